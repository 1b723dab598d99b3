//! Programs at the system calls of the node's own processes, attached to a cgroup.
//!
//! They run in the context of a process, and a program that sees packets may interrupt them
//! on the same CPU. So they have no room of their own in `Work`, and count by atomic additions.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_MMAPABLE, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::{cgroup_sock, cgroup_sock_addr, map},
    maps::{Array, HashMap, LruHashMap},
    programs::{SockAddrContext, SockContext},
};
use probe_ebpf::{
    abi::{
        MAX_OWN_SENDERS, MAX_OWN_SOCKETS, OWN_DATAGRAMS, OWN_FOLLOWS, Own, OwnSender, OwnSocket,
        Reason, V4, V6,
    },
    packet::{
        parse::{TCP, UDP},
        rewrite::Family,
    },
    steer::{
        Tables,
        own::{self, Answer, Call, Fate, mapped, unmapped},
    },
};

use super::maps::{Maps, closed_in_process, count_in_process, opened_in_process};

/// The system call goes on.
const ALLOW: i32 = 1;
/// It fails with EPERM.
const DENY: i32 = 0;
/// `BPF_ANY` of `bpf_map_update_elem`.
const ANY: u64 = 0;

#[map]
static OWN: Array<Own> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static OWN_SOCKETS: HashMap<u64, OwnSocket> = HashMap::with_max_entries(MAX_OWN_SOCKETS, 0);
#[map]
static OWN_SENDERS: LruHashMap<OwnSender, OwnSocket> =
    LruHashMap::with_max_entries(MAX_OWN_SENDERS, 0);

/// A family's connection attempt that nobody accepts: the loopback address and port zero,
/// where nobody can listen, so the kernel itself answers with a RST at once.
trait Nobody: Family {
    const NOBODY: Self;
}

impl Nobody for V4 {
    const NOBODY: Self = Self(u32::from_ne_bytes([127, 0, 0, 1]));
}

impl Nobody for V6 {
    const NOBODY: Self = Self([0, 0, 0, 1_u32.to_be()]);
}

/// The kernel's description of a call. Each field is read and written by itself: the verifier
/// takes no other access.
struct Context(*mut bpf_sock_addr);

impl Context {
    #[inline(always)]
    fn v4(&self) -> V4 {
        // SAFETY: the context of the program, which lives as long as it runs.
        V4(unsafe { (&raw const (*self.0).user_ip4).read_volatile() })
    }

    #[inline(always)]
    fn v6(&self) -> V6 {
        // SAFETY: as above.
        unsafe {
            V6([
                (&raw const (*self.0).user_ip6[0]).read_volatile(),
                (&raw const (*self.0).user_ip6[1]).read_volatile(),
                (&raw const (*self.0).user_ip6[2]).read_volatile(),
                (&raw const (*self.0).user_ip6[3]).read_volatile(),
            ])
        }
    }

    #[inline(always)]
    fn port_be(&self) -> u16 {
        // SAFETY: as above.
        (unsafe { (&raw const (*self.0).user_port).read_volatile() }) as u16
    }

    #[inline(always)]
    fn set_v4(&self, address: V4) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).user_ip4).write_volatile(address.0) }
    }

    #[inline(always)]
    fn set_v6(&self, address: V6) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.0).user_ip6[0]).write_volatile(address.0[0]);
            (&raw mut (*self.0).user_ip6[1]).write_volatile(address.0[1]);
            (&raw mut (*self.0).user_ip6[2]).write_volatile(address.0[2]);
            (&raw mut (*self.0).user_ip6[3]).write_volatile(address.0[3]);
        }
    }

    #[inline(always)]
    fn set_port(&self, port_be: u16) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).user_port).write_volatile(port_be as u32) }
    }

    /// TCP, UDP, or something else that is none of ours.
    #[inline(always)]
    fn protocol(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).protocol).read_volatile() }
    }

    /// Is the socket bound to an interface? The loopback address is not reached from there.
    #[inline(always)]
    fn is_bound_to_device(&self) -> bool {
        // SAFETY: as above; the kernel gives no program of this kind a null socket.
        unsafe {
            let socket = (&raw const (*self.0).__bindgen_anon_1.sk).read_volatile();
            (&raw const (*socket).bound_dev_if).read_volatile() != 0
        }
    }

    /// No other socket has it, ever.
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper reads the program's own context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// Is the socket of the namespace whose processes are steered?
    #[inline(always)]
    fn is_ours(&self) -> bool {
        // SAFETY: as in `cookie`.
        OWN.get(0)
            .is_some_and(|own| own.netns.get() == unsafe { bpf_get_netns_cookie(self.0.cast()) })
    }
}

/// Is it the agent who asks what its namespace's cookie is? See [`Own::asking`].
#[inline(always)]
fn answer_agent(context: &Context) {
    if let Some(own) = OWN.get(0) {
        let asking = own.asking.get();
        if asking != 0 && asking == context.cookie() {
            // SAFETY: the helper reads the program's own context.
            own.answer
                .set(unsafe { bpf_get_netns_cookie(context.0.cast()) });
        }
    }
}

#[inline(always)]
fn call<A: Family>(context: &Context, to_be: A, protocol: u32) -> (Call<A>, Answer<A>)
where
    Maps: Tables<A>,
{
    let call = Call {
        to_be,
        to_port_be: context.port_be(),
        protocol: protocol as u8,
        cookie: context.cookie(),
    };
    let answer = own::steer(&Maps, &call);
    (call, answer)
}

/// What is remembered of a socket that was steered.
#[inline(always)]
fn socket<A: Family>(call: &Call<A>, answer: &Answer<A>, wide: impl Fn(A) -> V6) -> OwnSocket {
    let follows = if answer.follows { OWN_FOLLOWS } else { 0 };
    let datagrams = if call.protocol == UDP {
        OWN_DATAGRAMS
    } else {
        0
    };
    OwnSocket {
        vip_be: wide(call.to_be),
        peer_be: wide(answer.addr_be),
        vip_port_be: call.to_port_be,
        peer_port_be: answer.port_be,
        flags: follows | datagrams,
        pad: 0,
        service: answer.service,
        endpoint: answer.endpoint,
    }
}

/// From now on what comes in by datagram sockets has to be looked at.
#[inline(always)]
fn expect_datagrams() {
    if let Some(own) = OWN.get(0)
        && own.datagrams.get() == 0
    {
        own.datagrams.set(1);
    }
}

/// What a socket is known by that has sent to an endpoint, or may get datagrams of it.
#[inline(always)]
fn sender_key(cookie: u64, peer_be: V6, peer_port_be: u16) -> OwnSender {
    OwnSender {
        cookie,
        peer_be,
        peer_port_be,
        pad: 0,
        pad2: 0,
    }
}

/// The socket is no longer connected to where it was steered.
#[inline(always)]
fn forget(cookie: u64) {
    if let Some(before) = OWN_SOCKETS.get_ptr(cookie) {
        // SAFETY: map memory outlives the program's run; see `Tables` for a racing reuse.
        let before = unsafe { &*before };
        closed_in_process(before.endpoint);
        // What is not there is fine: another thread was faster.
        if before.flags & OWN_DATAGRAMS != 0 {
            let _ = OWN_SENDERS.remove(sender_key(cookie, before.peer_be, before.peer_port_be));
        }
        let _ = OWN_SOCKETS.remove(cookie);
    }
}

/// `connect`. `write` makes an address the one that is connected to.
#[inline(always)]
fn connect<A: Nobody>(context: &Context, to_be: A, wide: impl Fn(A) -> V6, write: impl Fn(A)) -> i32
where
    Maps: Tables<A>,
{
    let protocol = context.protocol();
    if protocol != TCP as u32 && protocol != UDP as u32 {
        return ALLOW;
    }
    let (call, answer) = call(context, to_be, protocol);
    match answer.fate {
        Fate::Pass => {
            // A datagram socket may have been steered before.
            forget(call.cookie);
            ALLOW
        }
        Fate::Refuse if call.protocol == TCP && !context.is_bound_to_device() => {
            count_in_process(answer.reason);
            write(A::NOBODY);
            context.set_port(0);
            ALLOW
        }
        Fate::Refuse => {
            count_in_process(if call.protocol == UDP {
                Reason::DatagramRefused
            } else {
                answer.reason
            });
            DENY
        }
        Fate::Steer => {
            forget(call.cookie);
            let socket = socket(&call, &answer, wide);
            if OWN_SOCKETS.insert(call.cookie, socket, ANY).is_err() {
                count_in_process(Reason::TableFull);
            }
            if call.protocol == UDP {
                let key = sender_key(call.cookie, socket.peer_be, socket.peer_port_be);
                // As in `send`.
                let _ = OWN_SENDERS.insert(key, socket, ANY);
                expect_datagrams();
            }
            opened_in_process(answer.endpoint);
            write(answer.addr_be);
            context.set_port(answer.port_be);
            ALLOW
        }
    }
}

/// `sendto` and `sendmsg` with an address. Each datagram follows the selection.
#[inline(always)]
fn send<A: Family>(context: &Context, to_be: A, wide: impl Fn(A) -> V6, write: impl Fn(A)) -> i32
where
    Maps: Tables<A>,
{
    let (call, answer) = call(context, to_be, UDP as u32);
    match answer.fate {
        Fate::Pass => ALLOW,
        Fate::Refuse => {
            count_in_process(Reason::DatagramRefused);
            DENY
        }
        Fate::Steer => {
            let socket = socket(&call, &answer, wide);
            let key = sender_key(call.cookie, socket.peer_be, socket.peer_port_be);
            // SAFETY: map memory outlives the program's run; a racing reuse only makes it differ.
            let known = OWN_SENDERS
                .get_ptr(key)
                .is_some_and(|known| unsafe { *known } == socket);
            if !known {
                // An LRU map makes place; if even that fails the answer shows the endpoint.
                let _ = OWN_SENDERS.insert(key, socket, ANY);
                expect_datagrams();
                opened_in_process(answer.endpoint);
            }
            write(answer.addr_be);
            context.set_port(answer.port_be);
            ALLOW
        }
    }
}

/// Where the socket's application believes to be connected to, if its peer is the endpoint
/// that it was steered to.
#[inline(always)]
fn connected(context: &Context, peer_be: V6) -> Option<&'static OwnSocket> {
    let socket = OWN_SOCKETS.get_ptr(context.cookie())?;
    // SAFETY: map memory outlives the program's run; see `Tables` for a racing reuse.
    let socket = unsafe { &*socket };
    let same = socket.peer_be == peer_be && socket.peer_port_be == context.port_be();
    same.then_some(socket)
}

/// Where a datagram seems to come from for the application that receives it.
#[inline(always)]
fn sender(context: &Context, from_be: V6) -> Option<&'static OwnSocket> {
    if OWN.get(0).is_none_or(|own| own.datagrams.get() == 0) {
        return None;
    }
    let key = sender_key(context.cookie(), from_be, context.port_be());
    // SAFETY: as in `connected`.
    OWN_SENDERS.get_ptr(key).map(|socket| unsafe { &*socket })
}

/// Shows the application the VIP.
#[inline(always)]
fn show_v4(context: &Context, socket: Option<&OwnSocket>) {
    if let Some(socket) = socket {
        context.set_v4(V4(socket.vip_be.0[3]));
        context.set_port(socket.vip_port_be);
    }
}

#[inline(always)]
fn show_v6(context: &Context, socket: Option<&OwnSocket>) {
    if let Some(socket) = socket {
        context.set_v6(socket.vip_be);
        context.set_port(socket.vip_port_be);
    }
}

#[cgroup_sock_addr(connect4)]
pub fn probe_connect4(ctx: SockAddrContext) -> i32 {
    let context = Context(ctx.sock_addr);
    answer_agent(&context);
    if !context.is_ours() {
        return ALLOW;
    }
    connect(&context, context.v4(), mapped, |to| context.set_v4(to))
}

#[cgroup_sock_addr(connect6)]
pub fn probe_connect6(ctx: SockAddrContext) -> i32 {
    let context = Context(ctx.sock_addr);
    if !context.is_ours() {
        return ALLOW;
    }
    let to = context.v6();
    match unmapped(to) {
        Some(to) => connect(&context, to, mapped, |to| context.set_v6(mapped(to))),
        None => connect(&context, to, |to| to, |to| context.set_v6(to)),
    }
}

#[cgroup_sock_addr(sendmsg4)]
pub fn probe_sendmsg4(ctx: SockAddrContext) -> i32 {
    let context = Context(ctx.sock_addr);
    if !context.is_ours() {
        return ALLOW;
    }
    send(&context, context.v4(), mapped, |to| context.set_v4(to))
}

/// The kernel sends what goes to a mapped address the way of IPv4, also from an IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn probe_sendmsg6(ctx: SockAddrContext) -> i32 {
    let context = Context(ctx.sock_addr);
    if !context.is_ours() {
        return ALLOW;
    }
    send(&context, context.v6(), |to| to, |to| context.set_v6(to))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn probe_recvmsg4(ctx: SockAddrContext) -> i32 {
    let context = Context(ctx.sock_addr);
    if context.is_ours() {
        show_v4(&context, sender(&context, mapped(context.v4())));
    }
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn probe_recvmsg6(ctx: SockAddrContext) -> i32 {
    let context = Context(ctx.sock_addr);
    if context.is_ours() {
        show_v6(&context, sender(&context, context.v6()));
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn probe_peername4(ctx: SockAddrContext) -> i32 {
    let context = Context(ctx.sock_addr);
    if context.is_ours() {
        show_v4(&context, connected(&context, mapped(context.v4())));
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn probe_peername6(ctx: SockAddrContext) -> i32 {
    let context = Context(ctx.sock_addr);
    if context.is_ours() {
        show_v6(&context, connected(&context, context.v6()));
    }
    ALLOW
}

#[cgroup_sock(sock_release)]
pub fn probe_release(ctx: SockContext) -> i32 {
    // SAFETY: the helpers read the program's own context.
    let (netns, cookie) = unsafe {
        (
            bpf_get_netns_cookie(ctx.as_ptr()),
            bpf_get_socket_cookie(ctx.as_ptr()),
        )
    };
    if OWN.get(0).is_some_and(|own| own.netns.get() == netns) {
        forget(cookie);
    }
    ALLOW
}
