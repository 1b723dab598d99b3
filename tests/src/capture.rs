//! What is on an interface, byte by byte: an AF_PACKET socket.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt::RcvBufForce},
};

use crate::{Namespace, wait::patience};

/// `sll_protocol` and the socket's protocol are in network order.
const EVERYTHING: u16 = (libc::ETH_P_ALL as u16).to_be();

/// An open capture of one interface, both directions.
pub struct Capture {
    socket: OwnedFd,
}

impl Capture {
    /// Sees packets from now on.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.run(|| {
            // SAFETY: socket has no memory precondition.
            let raw = unsafe {
                libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                    i32::from(EVERYTHING),
                )
            };
            if raw < 0 {
                return Err(io::Error::last_os_error()).context("no packet socket");
            }
            // SAFETY: the descriptor was just made and nobody else owns it.
            let socket = unsafe { OwnedFd::from_raw_fd(raw) };
            // A busy machine may not let us read for a while, and everything on the interface
            // comes here: with the default size a wanted frame can be the one that does not fit.
            setsockopt(&socket, RcvBufForce, &(64 << 20)).context("no room to capture")?;
            bind(&socket, interface)?;
            Ok(Self { socket })
        })
    }

    /// Sends a whole frame.
    pub fn inject(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer and length are those of a live slice.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        if sent != isize::try_from(frame.len())? {
            return Err(io::Error::last_os_error()).context("cannot send a frame");
        }
        Ok(())
    }

    /// The next frame if one is waiting.
    pub fn next(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0_u8; 65_536];
        // SAFETY: the pointer and length are those of a live buffer.
        let length = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        if let Ok(length) = usize::try_from(length) {
            frame.truncate(length);
            return Ok(Some(frame));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error).context("cannot capture"),
        }
    }

    /// Waits for a frame that is wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let begun = Instant::now();
        let limit = patience(Duration::from_secs(5));
        while begun.elapsed() < limit {
            match self.next()? {
                Some(frame) if wanted(&frame) => return Ok(frame),
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        bail!("waited {limit:?} for {what}")
    }
}

fn bind(socket: &OwnedFd, interface: &str) -> Result<()> {
    let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: EVERYTHING,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer and length are those of a live sockaddr_ll.
    let status = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if status < 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot capture on {interface}"));
    }
    Ok(())
}
