//! What a floor does, the same at XDP and TC: parse the plainest packet, find the
//! endpoint, say what must change. No options, no tags, no counters, no states.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap},
};

/// Entries of the floors' flow tables, as the bench sizes those of probe.
const FLOWS: u32 = 786_432;

/// An address family's width: one word or four.
pub trait Words: Copy + PartialEq + 'static {
    /// Offset of the transport header.
    const L4: usize;
    /// Offset of the source address; the destination follows it.
    const SOURCE: usize;
    /// Bytes of headers.
    const HEADERS: usize;
    fn flows() -> &'static LruHashMap<Tuple<Self>, Target<Self>>;
    fn listeners() -> &'static HashMap<Listener<Self>, u32>;
    fn slots() -> &'static Array<Target<Self>>;
    /// Are these the headers of an unfragmented TCP segment without options?
    ///
    /// # Safety
    ///
    /// `packet` points to [`Words::HEADERS`] readable bytes.
    unsafe fn plain(packet: *const u8) -> bool;
    /// What replacing `self` by `new` adds to a checksum.
    fn change(self, new: Self) -> u64;
}

pub type V4 = [u32; 1];
pub type V6 = [u32; 4];

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub ports: [u16; 2],
    pub protocol: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Listener<A> {
    pub addr: A,
    pub port: u16,
    pub protocol: u16,
}

/// Where a packet goes: an endpoint.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Target<A> {
    pub addr: A,
    pub port: u16,
    pub pad: u16,
}

#[map]
static FLOOR_FLOWS_V4: LruHashMap<Tuple<V4>, Target<V4>> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static FLOOR_FLOWS_V6: LruHashMap<Tuple<V6>, Target<V6>> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static FLOOR_VIPS_V4: HashMap<Listener<V4>, u32> = HashMap::with_max_entries(8192, 0);
#[map]
static FLOOR_VIPS_V6: HashMap<Listener<V6>, u32> = HashMap::with_max_entries(8192, 0);
#[map]
static FLOOR_SLOTS_V4: Array<Target<V4>> = Array::with_max_entries(4096, 0);
#[map]
static FLOOR_SLOTS_V6: Array<Target<V6>> = Array::with_max_entries(4096, 0);

/// One load of any alignment, as BPF has them.
///
/// # Safety
///
/// `at` is readable.
#[inline(always)]
unsafe fn read<T: Copy>(packet: *const u8, at: usize) -> T {
    // SAFETY: by contract; BPF has no alignment.
    unsafe { *packet.add(at).cast::<T>() }
}

impl Words for V4 {
    const L4: usize = 34;
    const SOURCE: usize = 26;
    const HEADERS: usize = 54;

    #[inline(always)]
    fn flows() -> &'static LruHashMap<Tuple<Self>, Target<Self>> {
        &FLOOR_FLOWS_V4
    }

    #[inline(always)]
    fn listeners() -> &'static HashMap<Listener<Self>, u32> {
        &FLOOR_VIPS_V4
    }

    #[inline(always)]
    fn slots() -> &'static Array<Target<Self>> {
        &FLOOR_SLOTS_V4
    }

    #[inline(always)]
    unsafe fn plain(packet: *const u8) -> bool {
        // SAFETY: all within the headers, by contract.
        unsafe {
            read::<u16>(packet, 12) == 0x0800_u16.to_be()
                && read::<u8>(packet, 14) == 0x45
                && read::<u16>(packet, 20) & 0x3fff_u16.to_be() == 0
                && read::<u8>(packet, 23) == 6
        }
    }

    #[inline(always)]
    fn change(self, new: Self) -> u64 {
        !self[0] as u64 + new[0] as u64
    }
}

impl Words for V6 {
    const L4: usize = 54;
    const SOURCE: usize = 22;
    const HEADERS: usize = 74;

    #[inline(always)]
    fn flows() -> &'static LruHashMap<Tuple<Self>, Target<Self>> {
        &FLOOR_FLOWS_V6
    }

    #[inline(always)]
    fn listeners() -> &'static HashMap<Listener<Self>, u32> {
        &FLOOR_VIPS_V6
    }

    #[inline(always)]
    fn slots() -> &'static Array<Target<Self>> {
        &FLOOR_SLOTS_V6
    }

    #[inline(always)]
    unsafe fn plain(packet: *const u8) -> bool {
        // SAFETY: all within the headers, by contract.
        unsafe {
            read::<u16>(packet, 12) == 0x86dd_u16.to_be()
                && read::<u8>(packet, 14) >> 4 == 6
                && read::<u8>(packet, 20) == 6
        }
    }

    #[inline(always)]
    fn change(self, new: Self) -> u64 {
        !self[0] as u64
            + new[0] as u64
            + !self[1] as u64
            + new[1] as u64
            + !self[2] as u64
            + new[2] as u64
            + !self[3] as u64
            + new[3] as u64
    }
}

/// The packet's tuple, if it is a plain TCP segment.
///
/// # Safety
///
/// `start` and `end` are the context's `data` and `data_end`.
#[inline(always)]
pub unsafe fn parse<A: Words>(start: usize, end: usize) -> Option<Tuple<A>> {
    if start + A::HEADERS > end {
        return None;
    }
    let packet = start as *const u8;
    // SAFETY: the headers are there.
    if !unsafe { A::plain(packet) } {
        return None;
    }
    // SAFETY: the headers are there.
    unsafe {
        Some(Tuple {
            src: read(packet, A::SOURCE),
            dst: read(packet, A::SOURCE + size_of::<A>()),
            ports: read(packet, A::L4),
            protocol: 6,
        })
    }
}

/// By one look into the flow table.
#[inline(always)]
pub fn by_flow<A: Words>(tuple: &Tuple<A>) -> Option<Target<A>> {
    // SAFETY: nobody changes the values while the bench measures.
    A::flows().get_ptr(tuple).map(|target| unsafe { *target })
}

/// By the VIP and its slot, whatever the client.
#[inline(always)]
pub fn by_slot<A: Words>(tuple: &Tuple<A>) -> Option<Target<A>> {
    let listener = Listener {
        addr: tuple.dst,
        port: tuple.ports[1],
        protocol: 6,
    };
    // SAFETY: as in `by_flow`.
    let slot = A::listeners()
        .get_ptr(listener)
        .map(|slot| unsafe { *slot })?;
    A::slots().get(slot).copied()
}

/// Writes the flow down, as the slot says.
#[inline(always)]
pub fn learn<A: Words>(tuple: &Tuple<A>) -> Option<()> {
    let target = by_slot(tuple)?;
    A::flows().insert(tuple, target, 0).ok()
}

/// What a port's replacement adds to a checksum.
#[inline(always)]
pub fn port_change(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// Folds a sum of 64 bits to 32, for the kernel's helpers.
#[inline(always)]
pub fn fold_32(sum: u64) -> u64 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) & 0xffff_ffff
}

/// Adds a change to a stored checksum (RFC 1624).
#[inline(always)]
pub fn update(stored: u16, change: u64) -> u16 {
    let sum = fold_32(!stored as u64 + change);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Writes destination and destination port, and the IPv4 header's checksum.
///
/// # Safety
///
/// As [`parse`], which found a packet there.
#[inline(always)]
pub unsafe fn write<A: Words>(start: usize, end: usize, target: &Target<A>, change: u64) {
    if start + A::HEADERS > end {
        return;
    }
    let packet = start as *mut u8;
    // SAFETY: the headers are there.
    unsafe {
        *packet.add(A::SOURCE + size_of::<A>()).cast::<A>() = target.addr;
        *packet.add(A::L4 + 2).cast::<u16>() = target.port;
        if size_of::<A>() == 4 {
            let sum = packet.add(24).cast::<u16>();
            *sum = update(*sum, change);
        }
    }
}
