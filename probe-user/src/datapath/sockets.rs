//! Ending sockets of this network namespace: `SOCK_DESTROY` of sock_diag(7), as `ss -K` does
//! (Linux 4.5, with CONFIG_INET_DIAG_DESTROY).
//!
//! The application sees ECONNABORTED at once, in a call that waits too; the other end of a
//! TCP connection gets a RST. The requests are written by hand, since no crate knows this one.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `INET_DIAG_REQ_BYTECODE`.
const BYTECODE: u16 = 1;
/// `INET_DIAG_BC_D_COND`.
const DESTINATION: u8 = 8;
/// Every state with another end: ESTABLISHED to SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// Where it stands in `struct inet_diag_req_v2`, and the length of that.
const ID_IN_REQUEST: usize = 8;
const REQUEST: usize = ID_IN_REQUEST + ID;
/// Where it stands in `struct inet_diag_msg`.
const ID_IN_ANSWER: usize = 4;
/// Where the cookie stands in the id: two words, the lower first.
const COOKIE_IN_ID: usize = 40;

/// Which sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
}

impl Kind {
    fn protocol(self) -> u8 {
        match self {
            Self::Stream => libc::IPPROTO_TCP as u8,
            Self::Datagram => libc::IPPROTO_UDP as u8,
        }
    }
}

/// What became of a socket that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is over.
    Ended,
    /// The kernel cannot, or may not for us.
    Refused,
}

/// A socket as the kernel names it.
struct Found {
    family: u8,
    id: [u8; ID],
    cookie: u64,
}

/// Ends the sockets of these cookies that are connected, or connecting, to an address. Those
/// that are not there are not in the answer. Others are never touched.
pub fn end(kind: Kind, to: SocketAddr, cookies: &[u64]) -> io::Result<HashMap<u64, Outcome>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    let wanted: HashSet<u64> = cookies.iter().copied().collect();
    let mut found = Vec::new();
    // IPv6 sockets may be connected to a mapped address.
    let families: &[u8] = match to {
        SocketAddr::V4(_) => &[libc::AF_INET as u8, libc::AF_INET6 as u8],
        SocketAddr::V6(_) => &[libc::AF_INET6 as u8],
    };
    for family in families {
        found.extend(list(&mut socket, *family, kind, to)?);
    }
    let mut outcomes = HashMap::new();
    for one in found {
        if !wanted.contains(&one.cookie) {
            continue;
        }
        match destroy(&mut socket, &one, kind) {
            Ok(()) => outcomes.insert(one.cookie, Outcome::Ended),
            // It ended by itself meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                outcomes.insert(one.cookie, Outcome::Ended)
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)) => {
                outcomes.insert(one.cookie, Outcome::Refused)
            }
            Err(e) => return Err(e),
        };
    }
    Ok(outcomes)
}

/// A whole message: header, request, attributes.
fn message(kind: u16, flags: u16, request: &[u8; REQUEST], attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + REQUEST + attributes.len();
    let mut out = Vec::with_capacity(length);
    out.extend((length as u32).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence number and port: one question at a time.
    out.extend([0; 8]);
    out.extend(request);
    out.extend(attributes);
    out
}

fn request(family: u8, kind: Kind, states: u32) -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    out[0] = family;
    out[1] = kind.protocol();
    out[4..8].copy_from_slice(&states.to_ne_bytes());
    out
}

/// Only sockets to this address and port: `struct inet_diag_bc_op` and
/// `struct inet_diag_hostcond`, which also finds mapped addresses.
fn condition(to: SocketAddr) -> Vec<u8> {
    let (family, address) = match to.ip() {
        IpAddr::V4(ip) => (libc::AF_INET as u8, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6 as u8, ip.octets().to_vec()),
    };
    let length = 4 + 8 + address.len();
    let mut out = Vec::new();
    out.extend(((4 + length) as u16).to_ne_bytes());
    out.extend(BYTECODE.to_ne_bytes());
    // Where to go on: at the end if it holds, behind it if not, which refuses the socket.
    out.extend([DESTINATION, length as u8]);
    out.extend((length as u16 + 4).to_ne_bytes());
    out.extend([family, (address.len() * 8) as u8, 0, 0]);
    out.extend(i32::from(to.port()).to_ne_bytes());
    out.extend(address);
    out
}

fn list(socket: &mut Socket, family: u8, kind: Kind, to: SocketAddr) -> io::Result<Vec<Found>> {
    let question = message(
        SOCK_DIAG_BY_FAMILY,
        libc::NLM_F_DUMP as u16,
        &request(family, kind, STATES),
        &condition(to),
    );
    socket.send(&question, 0)?;
    let mut found = Vec::new();
    answers(socket, |answer| found.extend(decode(answer)))?;
    Ok(found)
}

fn decode(answer: &[u8]) -> Option<Found> {
    let id: [u8; ID] = answer
        .get(ID_IN_ANSWER..ID_IN_ANSWER + ID)?
        .try_into()
        .ok()?;
    let half = |at: usize| Some(u32::from_ne_bytes(id.get(at..at + 4)?.try_into().ok()?));
    let cookie = u64::from(half(COOKIE_IN_ID)?) | u64::from(half(COOKIE_IN_ID + 4)?) << 32;
    Some(Found {
        family: *answer.first()?,
        id,
        cookie,
    })
}

fn destroy(socket: &mut Socket, found: &Found, kind: Kind) -> io::Result<()> {
    let mut request = request(found.family, kind, STATES);
    request[ID_IN_REQUEST..].copy_from_slice(&found.id);
    let order = message(SOCK_DESTROY, libc::NLM_F_ACK as u16, &request, &[]);
    socket.send(&order, 0)?;
    answers(socket, |_| {})
}

/// Reads until the end of the answer, or its error.
fn answers(socket: &mut Socket, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some(header) = rest.get(..HEADER) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = i32::from(u16::from_ne_bytes([header[4], header[5]]));
            let Some(payload) = rest.get(HEADER..length) else {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            };
            match kind {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let code = payload.get(..4).and_then(|code| code.try_into().ok());
                    return match code.map_or(0, i32::from_ne_bytes) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                _ => each(payload),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsRawFd,
    };

    use super::*;

    fn cookie(socket: &impl AsRawFd) -> u64 {
        let (mut value, mut length) = (0u64, 8);
        // SAFETY: value and length are live.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut value).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        value
    }

    /// `None` where the kernel refuses: it needs CAP_NET_ADMIN.
    fn ended(kind: Kind, to: SocketAddr, cookie: u64) -> Option<bool> {
        match end(kind, to, &[cookie]).unwrap().get(&cookie) {
            Some(Outcome::Refused) => None,
            Some(Outcome::Ended) => Some(true),
            None => Some(false),
        }
    }

    #[test]
    fn the_condition_is_what_the_kernel_reads() {
        // As `ss` writes it: dst 10.0.2.2:80.
        assert_eq!(
            condition("10.0.2.2:80".parse().unwrap()),
            [
                20, 0, 1, 0, 8, 16, 20, 0, 2, 32, 0, 0, 80, 0, 0, 0, 10, 0, 2, 2
            ]
        );
    }

    #[test]
    fn only_sockets_that_are_named_end() {
        for host in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else {
                continue;
            };
            let at = listener.local_addr().unwrap();
            let to = SocketAddr::new(at.ip().to_canonical(), at.port());
            let [mut named, mut other] = [(); 2].map(|()| TcpStream::connect(at).unwrap());
            match ended(Kind::Stream, to, cookie(&named)) {
                None => return,
                found => assert_eq!(found, Some(true), "{host}"),
            }
            let error = named.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{host}");
            other.set_nonblocking(true).unwrap();
            let error = other.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{host}");
            // It is not there any more.
            assert_eq!(ended(Kind::Stream, to, cookie(&named)), Some(false));
        }
    }

    #[test]
    fn connected_datagram_sockets_end_too() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = peer.local_addr().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(to).unwrap();
        if ended(Kind::Datagram, to, cookie(&socket)).is_some() {
            let error = socket.recv(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        }
    }
}
