//! Raw sockets that send segments with whatever addresses they say.
//!
//! The kernel routes them as it does the node's own, past nothing: netfilter's output hooks and
//! the TC programs at the egress see them.

use std::{
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use socket2::SockAddr;

use super::forge::{ROOM, Segment};

/// Segments a system call.
const AT_ONCE: usize = 64;

/// The sockets; CAP_NET_RAW makes them.
pub struct RawSender {
    v4: OwnedFd,
    /// Nothing where the kernel has no IPv6.
    v6: Option<OwnedFd>,
}

/// What became of segments.
#[derive(Debug, Default)]
pub struct Sent {
    /// The kernel took them.
    pub sent: u64,
    /// It did not: there is no way, or a firewall forbids it.
    pub refused: u64,
    /// Why not, of the last one.
    pub error: Option<io::Error>,
}

impl RawSender {
    /// Opens them.
    pub fn open() -> io::Result<Self> {
        let v4 = socket(libc::AF_INET)?;
        let v6 = match socket(libc::AF_INET6) {
            Ok(v6) => Some(v6),
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(e) => return Err(e),
        };
        Ok(Self { v4, v6 })
    }

    /// Sends all that can be sent. Blocks while the interface's queue is full.
    pub fn send(&self, segments: &[Segment]) -> Sent {
        let mut done = Sent::default();
        let mut batch = Batch::default();
        for v4 in [true, false] {
            let socket = if v4 { Some(&self.v4) } else { self.v6.as_ref() };
            let of_family = segments.iter().filter(|s| s.dst.is_ipv4() == v4);
            for segment in of_family {
                let added = socket.is_some() && batch.add(segment);
                if !added {
                    done.refuse(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
                }
                if let Some(socket) = socket
                    && batch.packets.len() == AT_ONCE
                {
                    batch.send(socket, &mut done);
                }
            }
            if let Some(socket) = socket {
                batch.send(socket, &mut done);
            }
        }
        done
    }
}

impl Sent {
    fn refuse(&mut self, error: io::Error) {
        self.refused += 1;
        self.error = Some(error);
    }

    /// Adds another's.
    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.refused += other.refused;
        self.error = other.error.or(self.error.take());
    }
}

/// A raw socket to which one says the IP header too, as IPPROTO_RAW does in both families
/// (raw(7); in IPv6 `inet6_create` and `rawv6_init_sk` set it). It receives nothing: no packet has
/// this protocol number.
fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket has no memory precondition.
    let fd = unsafe {
        libc::socket(
            family,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_RAW,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Packets that go out by one system call.
#[derive(Default)]
struct Batch {
    packets: Vec<([u8; ROOM], usize)>,
    to: Vec<SockAddr>,
}

impl Batch {
    /// False if the segment makes no packet.
    fn add(&mut self, segment: &Segment) -> bool {
        let Some(packet) = segment.packet() else {
            return false;
        };
        self.packets.push(packet);
        // A raw socket's address has no port: in IPv6 that would be a protocol number.
        self.to.push(SocketAddr::new(segment.dst.ip(), 0).into());
        true
    }

    /// Sends what was added and forgets it.
    fn send(&mut self, socket: &OwnedFd, done: &mut Sent) {
        let mut parts: Vec<libc::iovec> = self
            .packets
            .iter_mut()
            .map(|(packet, length)| libc::iovec {
                iov_base: packet.as_mut_ptr().cast(),
                iov_len: *length,
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .zip(&self.to)
            .map(|(part, to)| {
                // SAFETY: a header of zeros is one without name, parts and control data.
                let mut message: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
                message.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
                message.msg_hdr.msg_namelen = to.len();
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut next = 0;
        while next < messages.len() {
            let rest = &mut messages[next..];
            // SAFETY: every header points to a name and a part that live, as what the part points
            // to does, and the length is that of the slice.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    0,
                )
            };
            if let Ok(sent @ 1..) = usize::try_from(sent) {
                done.sent += sent as u64;
                next += sent;
                continue;
            }
            // It is about the first of the rest.
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                done.refuse(error);
                next += 1;
            }
        }
        self.packets.clear();
        self.to.clear();
    }
}
