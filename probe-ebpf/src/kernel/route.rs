//! Where the kernel's routes lead.

use aya_ebpf::{
    bindings::{bpf_fib_lookup as Params, bpf_redir_neigh as Neighbour},
    cty::c_void,
    helpers::generated::bpf_fib_lookup,
};
use probe_ebpf::{
    abi::{V4, V6},
    packet::rewrite::Family,
};

/// Not in the bindings: `AF_INET` and `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What [`find`] answers if the next hop's hardware address is known.
pub const FOUND: i64 = 0;
/// What it answers if it is not; the interface is known all the same (Linux 5.11).
pub const NO_NEIGHBOUR: i64 = 7;
/// What it answers if the packet is not to be forwarded, as one for the node itself.
pub const NOT_FORWARDED: i64 = 4;

/// What it answers if the packet is too long for the way; [`mtu`] is what it takes.
pub const TOO_LONG: i64 = 8;

/// The MTU that [`find`] told with [`TOO_LONG`] about a packet of this length. Zero before
/// Linux 5.12 (e1850ea9bd9e), which leaves the length where the MTU would stand.
#[inline(always)]
pub fn mtu(params: &Params, length: u16) -> u16 {
    // SAFETY: two integers share the place, and one of them was written.
    let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    if mtu < length { mtu } else { 0 }
}

/// An address family as routes want it.
pub trait Route: Family {
    /// Writes family, source and destination.
    fn ask(params: &mut Params, from: Self, to: Self);
    /// The next hop that was found: the destination itself if it is a neighbour.
    fn next_hop(params: &Params) -> Self;
    /// This address, as what a packet is sent to.
    fn neighbour(self) -> Neighbour;
}

impl Route for V4 {
    #[inline(always)]
    fn ask(params: &mut Params, from: Self, to: Self) {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = from.0;
        params.__bindgen_anon_4.ipv4_dst = to.0;
    }

    #[inline(always)]
    fn next_hop(params: &Params) -> Self {
        // SAFETY: integers, all of them written.
        Self(unsafe { params.__bindgen_anon_4.ipv4_dst })
    }

    #[inline(always)]
    fn neighbour(self) -> Neighbour {
        let mut to = neighbour(AF_INET);
        to.__bindgen_anon_1.ipv4_nh = self.0;
        to
    }
}

impl Route for V6 {
    #[inline(always)]
    fn ask(params: &mut Params, from: Self, to: Self) {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = from.0;
        params.__bindgen_anon_4.ipv6_dst = to.0;
    }

    #[inline(always)]
    fn next_hop(params: &Params) -> Self {
        // SAFETY: integers, all of them written.
        Self(unsafe { params.__bindgen_anon_4.ipv6_dst })
    }

    #[inline(always)]
    fn neighbour(self) -> Neighbour {
        let mut to = neighbour(AF_INET6);
        to.__bindgen_anon_1.ipv6_nh = self.0;
        to
    }
}

#[inline(always)]
fn neighbour(family: u8) -> Neighbour {
    // SAFETY: integers and unions of such: zeros are a value.
    let mut to: Neighbour = unsafe { core::mem::zeroed() };
    to.nh_family = family as u32;
    to
}

/// Asks the kernel's routes, as for a packet that came in by `ifindex`. `length` is that of
/// the IP packet, or zero if it is cut up later. Answers one of the codes above, or another
/// if there is no way for the packet.
#[inline(always)]
pub fn find<A: Route>(
    ctx: *mut c_void,
    ifindex: u32,
    from: A,
    to: A,
    length: u16,
) -> (i64, Params) {
    // SAFETY: integers and unions of such: zeros are a value.
    let mut params: Params = unsafe { core::mem::zeroed() };
    A::ask(&mut params, from, to);
    params.ifindex = ifindex;
    params.__bindgen_anon_1.tot_len = length;
    // SAFETY: the context is the program's; the parameters live on the stack, with their size.
    let found = unsafe { bpf_fib_lookup(ctx, &raw mut params, size_of::<Params>() as i32, 0) };
    (found, params)
}
