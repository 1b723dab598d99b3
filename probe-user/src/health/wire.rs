//! When an answer came, by the kernel's clock; and a last look for it.
//!
//! A check has a deadline ([`within`]). An answer that was there in time is good, however late
//! the agent came to read it; one that came after the deadline is none, even if the agent finds
//! it before it looks at its clock. So whatever is read after the deadline is asked for its time:
//!
//! - data, by the time at which the kernel received it (`SO_TIMESTAMPNS`), of TCP the last
//!   packet's of what was read;
//! - a connection, by the round trip of its handshake (`TCP_INFO`), or by the last
//!   acknowledgment if SYNs were lost.
//!
//! Where the kernel tells no time (the end of a connection, a command), what was found counts as
//! it did.
//!
//! Before a deadline's passing is believed, the conversation is polled once more, and then reads
//! ask the socket itself instead of waiting to be told by epoll: an agent that was stalled may see
//! its alarm first. TLS, HTTP/2 and everything else above read through the same type.
//!
//! What is said of the deadline goes by thread: the poll of a future is on one. In time reading
//! costs a look at the clock and nothing else.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    mem::{MaybeUninit, size_of},
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    pin::{Pin, pin},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv, setsockopt, sockopt::ReceiveTimestampns},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UdpSocket},
    time::{Instant, sleep_until},
};

/// What a poll knows of its check's time.
#[derive(Clone, Copy)]
struct Look {
    deadline: Option<Instant>,
    /// The alarm went off: nobody will poll again.
    last: bool,
    /// When the latest came of what was read after the deadline, if that is known.
    came: Option<Instant>,
}

thread_local! {
    static LOOK: Cell<Look> = const {
        Cell::new(Look {
            deadline: None,
            last: false,
            came: None,
        })
    };
}

/// What came of a conversation with a deadline.
#[derive(Debug)]
pub struct Within<T> {
    /// Its end, if it came to one by what there was at the last look.
    pub output: Option<T>,
    /// All that it read had come in time, as far as is known.
    pub in_time: bool,
}

/// Polls until the deadline, and then once more.
pub async fn within<F: Future>(deadline: Instant, future: F) -> Within<F::Output> {
    let mut future = pin!(future);
    let mut alarm = pin!(sleep_until(deadline));
    let mut came = None;
    let output = poll_fn(|cx| {
        if let Poll::Ready(output) = looking(deadline, false, &mut came, future.as_mut(), cx) {
            return Poll::Ready(Some(output));
        }
        ready!(alarm.as_mut().poll(cx));
        match looking(deadline, true, &mut came, future.as_mut(), cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        }
    })
    .await;
    Within {
        output,
        in_time: came.is_none_or(|came| came <= deadline),
    }
}

/// Polls, and lets whoever reads below know of the time.
fn looking<F: Future>(
    deadline: Instant,
    last: bool,
    came: &mut Option<Instant>,
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    let outer = LOOK.replace(Look {
        deadline: Some(deadline),
        last,
        came: *came,
    });
    let polled = future.poll(cx);
    *came = LOOK.replace(outer).came;
    polled
}

impl Look {
    fn is_late(&self) -> bool {
        self.last
            || self
                .deadline
                .is_some_and(|deadline| Instant::now() > deadline)
    }

    /// Something was read that had come then.
    fn note(at: Option<Instant>) {
        let look = LOOK.get();
        LOOK.set(Look {
            came: look.came.max(at),
            ..look
        });
    }
}

/// A TCP connection of a check.
#[derive(Debug)]
pub struct Wire(TcpStream);

impl Wire {
    /// Makes one. It is closed with a RST, says what it has to say at once, and knows when what it
    /// reads came. `speaks`: the first word is ours.
    pub async fn connect(target: SocketAddr, speaks: bool) -> io::Result<Self> {
        let begun = Instant::now();
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
        // Zero linger: close sends a RST and leaves no TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        if speaks {
            defer_acknowledgment(&socket);
        }
        keep_stamps();
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let tcp = TcpStream::from_std(socket.into())?;
        poll_fn(|cx| poll_connected(&tcp, cx)).await?;
        if let Some(error) = tcp.take_error()? {
            return Err(error);
        }
        if LOOK.get().is_late() {
            Look::note(established(tcp.as_raw_fd(), begun));
        }
        Ok(Self(tcp))
    }

    /// Where it comes from.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Where it goes.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }
}

/// The acknowledgment that ends the handshake shall wait for what is said next, and go with it. A
/// kernel that does not do that sends a packet more.
pub fn defer_acknowledgment(socket: &Socket) {
    let _ = socket.set_tcp_quickack(false);
}

fn poll_connected(tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let polled = tcp.poll_write_ready(cx);
    if polled.is_pending() && LOOK.get().last && is_writable(tcp) {
        return Poll::Ready(Ok(()));
    }
    polled
}

/// Asks the kernel, not what epoll said last.
fn is_writable(tcp: &TcpStream) -> bool {
    // SAFETY: the descriptor is open for as long as the connection is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(tcp.as_raw_fd()) };
    let mut asked = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The beginning of the kernel's `struct tcp_info`, which only ever grows at its end.
#[repr(C)]
struct TcpInfo {
    _bytes: [u8; 8],
    words: [u32; 24],
}

/// Positions in [`TcpInfo::words`].
const LAST_ACK_RECV: usize = 12;
const RTT: usize = 15;
const TOTAL_RETRANS: usize = 23;

/// When a connection was established that was begun then and was not used yet.
pub fn established(fd: RawFd, begun: Instant) -> Option<Instant> {
    let mut info = MaybeUninit::<TcpInfo>::zeroed();
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes there.
    let failed = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if failed != 0 || (length as usize) < size_of::<TcpInfo>() {
        return None;
    }
    // SAFETY: all bytes were zeroed, and integers may be anything.
    let info = unsafe { info.assume_init() };
    if info.words[TOTAL_RETRANS] == 0 {
        // Nothing was measured but the handshake.
        return Some(begun + Duration::from_micros(info.words[RTT].into()));
    }
    let ago = Duration::from_millis(info.words[LAST_ACK_RECV].into());
    Instant::now().checked_sub(ago)
}

/// Lets the kernel remember when packets come, of all sockets. One that cannot tells no time.
pub fn keep_stamps() {
    static KEPT: OnceLock<Option<std::net::UdpSocket>> = OnceLock::new();
    // The kernel stamps packets while any socket wants it, and to begin or end that it
    // rewrites its own code: one socket always does.
    KEPT.get_or_init(|| {
        let kept = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        want_stamps(&kept);
        Some(kept)
    });
}

/// Lets a socket tell what the kernel remembers, of TCP also of what has come already.
pub fn want_stamps(socket: &impl std::os::fd::AsFd) {
    let _ = setsockopt(socket, ReceiveTimestampns, &true);
}

/// Reads without waiting, and notes when it came.
fn read_stamped(fd: RawFd, to: &mut [u8]) -> io::Result<usize> {
    let (count, came) = read_with_stamp(fd, to)?;
    Look::note(came);
    Ok(count)
}

/// Room for a stamp beside what is read, where its header is aligned.
#[repr(C)]
union StampRoom {
    _header: libc::cmsghdr,
    bytes: [u8; 64],
}

/// Reads without waiting; when it came, if that is known.
pub fn read_with_stamp(fd: RawFd, to: &mut [u8]) -> io::Result<(usize, Option<Instant>)> {
    let mut room = StampRoom { bytes: [0; 64] };
    let mut place = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    // SAFETY: a message of nothing is all zeros.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut place;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut room).cast();
    message.msg_controllen = size_of::<StampRoom>() as _;
    // SAFETY: the message names memory that outlives the call, each with its length.
    let count = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled it in.
    let stamp = unsafe { stamp_of(&message) };
    Ok((count, stamp.and_then(of_wall_clock)))
}

/// The stamp beside what was read.
///
/// # Safety
///
/// The message is as `recvmsg` left it, and its control data as long as it says.
unsafe fn stamp_of(message: &libc::msghdr) -> Option<Duration> {
    // SAFETY: upheld by the caller; what follows a header is not aligned, so it is copied.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(said) = header.as_ref() {
            if (said.cmsg_level, said.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
                let at: libc::timespec = std::ptr::read_unaligned(libc::CMSG_DATA(said).cast());
                let seconds = u64::try_from(at.tv_sec).ok()?;
                return Some(Duration::new(seconds, u32::try_from(at.tv_nsec).ok()?));
            }
            header = libc::CMSG_NXTHDR(message, said);
        }
    }
    None
}

/// When that was, if it is past; a clock that was set meanwhile tells nothing.
fn of_wall_clock(at: Duration) -> Option<Instant> {
    let ago = SystemTime::now().duration_since(UNIX_EPOCH + at).ok()?;
    Instant::now().checked_sub(ago)
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tcp = &mut self.get_mut().0;
        let look = LOOK.get();
        if look.is_late() && buf.remaining() > 0 {
            want_stamps(tcp);
            match read_stamped(tcp.as_raw_fd(), buf.initialize_unfilled()) {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                Err(_) => {}
            }
        }
        Pin::new(tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

/// The same of a datagram socket.
pub fn stamp_datagrams(socket: &UdpSocket) {
    keep_stamps();
    want_stamps(socket);
}

fn locked<'a, T>(it: &'a Mutex<T>) -> MutexGuard<'a, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a datagram; how long it is.
pub async fn datagram(socket: &UdpSocket, to: &mut [u8]) -> io::Result<usize> {
    // Who borrows it gives it back before the other asks.
    let to = Mutex::new(to);
    // An error of the network is news, and nothing that can be read.
    let interest = Interest::READABLE | Interest::ERROR;
    let mut told = pin!(socket.async_io(interest, || {
        let flags = MsgFlags::MSG_DONTWAIT;
        Ok(recv(socket.as_raw_fd(), &mut locked(&to), flags)?)
    }));
    poll_fn(|cx| {
        if LOOK.get().is_late() {
            match read_stamped(socket.as_raw_fd(), &mut locked(&to)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
        told.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread::sleep,
    };

    use tokio::io::AsyncReadExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// A connection, and the server's side of it.
    async fn pair() -> (Wire, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire::connect(listener.local_addr().unwrap(), true)
            .await
            .unwrap();
        (wire, listener.accept().unwrap().0)
    }

    /// Reads with a deadline that is so far off, after the thread stood still for so long.
    async fn read_after(
        wire: &mut Wire,
        timeout: Duration,
        before: impl FnOnce(),
    ) -> Within<usize> {
        let deadline = Instant::now() + timeout;
        before();
        let mut to = [0; 16];
        within(deadline, async { wire.read(&mut to).await.unwrap() }).await
    }

    #[tokio::test]
    async fn an_answer_that_came_in_time_and_was_read_late_is_in_time() {
        let (mut wire, mut server) = pair().await;
        let timeout = Duration::from_millis(200);
        let read = read_after(&mut wire, timeout, || {
            server.write_all(b"pong").unwrap();
            sleep(Duration::from_millis(400));
        });
        let read = read.await;
        assert_eq!(read.output, Some(4));
        assert!(read.in_time);
    }

    #[tokio::test]
    async fn an_answer_that_came_late_is_late_even_if_it_is_there_when_we_look() {
        let (mut wire, mut server) = pair().await;
        let read = read_after(&mut wire, Duration::from_millis(50), || {
            sleep(Duration::from_millis(150));
            server.write_all(b"pong").unwrap();
        });
        let read = read.await;
        assert_eq!(read.output, Some(4));
        assert!(!read.in_time, "the kernel received it after the deadline");
    }

    #[tokio::test]
    async fn silence_ends_with_the_deadline() {
        let (mut wire, _server) = pair().await;
        let begun = Instant::now();
        let read = read_after(&mut wire, Duration::from_millis(30), || ()).await;
        assert_eq!(read.output, None);
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn in_time_reading_is_reading() {
        let (mut wire, mut server) = pair().await;
        server.write_all(b"pong").unwrap();
        let read = read_after(&mut wire, LONG, || ()).await;
        assert_eq!((read.output, read.in_time), (Some(4), true));
        drop(wire);
        // Closed by a RST.
        let error = server.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_connection_that_was_established_in_time_is_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let deadline = Instant::now() + Duration::from_millis(100);
        let mut first = true;
        let mut connect = pin!(Wire::connect(target, true));
        let slow = poll_fn(|cx| {
            let polled = connect.as_mut().poll(cx);
            if std::mem::take(&mut first) {
                // The kernel makes the connection while nobody looks.
                sleep(Duration::from_millis(300));
            }
            polled
        });
        let made = within(deadline, slow).await;
        made.output.expect("it is there").unwrap();
        assert!(made.in_time);
        // One that is begun after the deadline cannot be.
        let made = within(deadline, Wire::connect(target, true)).await;
        if made.output.is_some() {
            assert!(!made.in_time);
        }
    }

    #[tokio::test]
    async fn datagrams_are_stamped_too() {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(server.local_addr().unwrap()).await.unwrap();
        stamp_datagrams(&socket);
        let here = socket.local_addr().unwrap();
        for (timeout, in_time) in [(300, true), (50, false)] {
            let deadline = Instant::now() + Duration::from_millis(timeout);
            if !in_time {
                sleep(Duration::from_millis(100));
            }
            server.send_to(b"pong", here).unwrap();
            if in_time {
                sleep(Duration::from_millis(500));
            }
            let mut to = [0; 16];
            let read = within(deadline, datagram(&socket, &mut to)).await;
            assert_eq!(read.output.unwrap().unwrap(), 4);
            assert_eq!(read.in_time, in_time);
        }
    }
}
