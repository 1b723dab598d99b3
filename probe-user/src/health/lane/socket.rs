//! A socket of a check that no runtime knows: what it is asked, it is asked by a system call.
//!
//! What the kernel need not do is not asked of it. A connection is closed by a RST, as in
//! [`super::super::wire`]. And the acknowledgment that ends a handshake waits for what is said next
//! (`TCP_QUICKACK` off, as HAProxy does): it goes with the request, or, where nothing is said and the
//! connection is closed at once, not at all, so that the server's application hears of no
//! connection. On a local link a packet less is a tenth of a check. A server that speaks first would
//! wait for it.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::time::Instant;

use crate::health::wire;

/// A TCP socket.
#[derive(Debug)]
pub struct Plain(OwnedFd);

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connected {
    /// It is there.
    Yes,
    /// Not yet.
    NotYet,
}

impl Plain {
    /// Begins to connect. `hears`: the first word is the server's.
    pub fn connect(target: SocketAddr, hears: bool) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
        // Zero linger: close sends a RST and leaves no TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        if !hears {
            wire::defer_acknowledgment(&socket);
        }
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        wire::keep_stamps();
        Ok(Self(socket.into()))
    }

    /// Is it connected? An error is the connection's.
    pub fn connected(&self, target: SocketAddr) -> io::Result<Connected> {
        let target = SockAddr::from(target);
        // SAFETY: the address is as long as it says, and outlives the call.
        let failed =
            unsafe { libc::connect(self.0.as_raw_fd(), target.as_ptr().cast(), target.len()) };
        if failed == 0 {
            return Ok(Connected::Yes);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EISCONN) => Ok(Connected::Yes),
            Some(libc::EALREADY | libc::EINPROGRESS | libc::EINTR) => Ok(Connected::NotYet),
            _ => Err(error),
        }
    }

    /// Where it comes from.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let local = socket2::SockRef::from(&self.0).local_addr()?;
        local.as_socket().ok_or(io::ErrorKind::Unsupported.into())
    }

    /// From now on what is sent goes out at once, though the server has not acknowledged what was sent
    /// before.
    pub fn without_delay(&self) {
        // It is worth a try: what is said comes later without it.
        let _ = socket2::SockRef::from(&self.0).set_tcp_nodelay(true);
    }

    /// Sends what there is room for. While it is not connected that is nothing (`WouldBlock`), and
    /// an error is the connection's.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        Ok(send(self.0.as_raw_fd(), bytes, flags)?)
    }

    /// Reads what there is.
    pub fn read(&self, to: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0.as_raw_fd(), to, MsgFlags::MSG_DONTWAIT)?)
    }

    /// From now on the kernel tells when what is read came, also of what has come already: it
    /// remembers that in any case.
    pub fn want_stamps(&self) {
        wire::want_stamps(&self.0);
    }

    /// The same, and when the kernel received it, if it tells.
    pub fn read_stamped(&self, to: &mut [u8]) -> io::Result<(usize, Option<Instant>)> {
        wire::read_with_stamp(self.0.as_raw_fd(), to)
    }

    /// When it was connected that was begun then, if the kernel tells.
    pub fn established(&self, begun: Instant) -> Option<Instant> {
        wire::established(self.0.as_raw_fd(), begun)
    }
}

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
