//! Reading a hash map in batches (Linux 5.6): two system calls an entry would
//! make a sweep of a large flow table cost a CPU second.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use probe_ebpf::abi::Plain;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries a call. The kernel reads whole buckets, so it needs room for the longest.
const ENTRIES: u32 = 4096;

/// `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `each` with the bytes of every key and value. Entries that come or go
/// meanwhile may or may not be seen; none is seen twice unless it was removed and
/// added again.
pub fn for_each(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut entries = ENTRIES;
    let mut keys = vec![0u8; key_size * entries as usize];
    // The kernel rounds a value up to eight bytes only inside; the copies are exact.
    let mut values = vec![0u8; value_size * entries as usize];
    let (mut from, mut to) = (0u32, 0u32);
    let mut first = true;
    loop {
        let mut attr = Attr {
            in_batch: if first { 0 } else { &raw const from as u64 },
            out_batch: &raw mut to as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: entries,
            map_fd: map.as_raw_fd() as u32,
            ..Attr::default()
        };
        // SAFETY: every pointer in `attr` is to a live buffer of at least the size the kernel
        // writes: `count` keys and values, and the four bytes of a hash map's cursor.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attr,
                size_of::<Attr>(),
            )
        };
        let error = (result < 0).then(io::Error::last_os_error);
        match error.as_ref().and_then(io::Error::raw_os_error) {
            // ENOENT: this was the last batch.
            None | Some(libc::ENOENT) => {}
            // A bucket longer than the buffer: try again with a larger one.
            Some(libc::ENOSPC) if entries < 1 << 20 => {
                entries *= 4;
                keys.resize(key_size * entries as usize, 0);
                values.resize(value_size * entries as usize, 0);
                continue;
            }
            Some(libc::EINTR) => continue,
            Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
        }
        let count = attr.count.min(entries) as usize;
        for i in 0..count {
            each(
                &keys[i * key_size..(i + 1) * key_size],
                &values[i * value_size..(i + 1) * value_size],
            );
        }
        if error.is_some() {
            return Ok(());
        }
        first = false;
        from = to;
    }
}

/// A value of the ABI from the kernel's bytes.
pub fn decode<T: Plain>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>(), "the map's shape was checked");
    // SAFETY: `Plain` makes every bit pattern valid, and the length was just checked.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}
