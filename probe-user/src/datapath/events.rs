//! What the programs tell by ring buffer: events and log messages.

use std::os::fd::AsFd;

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use probe_ebpf::{abi::Event, names};
use tokio::io::unix::AsyncFd;

use super::Error;

/// The datapath's events, oldest first.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let map = ebpf.take_map(names::MAP_EVENTS).ok_or_else(|| {
            Error::failed(
                "opening the event ring",
                "it was taken before, and it has one reader",
            )
        })?;
        let ring =
            RingBuf::try_from(map).map_err(|e| Error::failed("opening the event ring", e))?;
        Ok(Self {
            ring: watch(ring, "watching the event ring")?,
        })
    }

    /// The next event. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            // Read to the end before clearing readiness: the ring signals only on growth.
            if let Some(item) = self.ring.get_mut().next()
                && let Some(event) = decode(&item)
            {
                return Ok(event);
            }
            let mut guard = self
                .ring
                .readable_mut()
                .await
                .map_err(|e| Error::failed("waiting for events", e))?;
            if let Some(item) = guard.get_inner_mut().next() {
                if let Some(event) = decode(&item) {
                    return Ok(event);
                }
            } else {
                guard.clear_ready();
            }
        }
    }
}

/// An event from the ring's bytes; `None` for bytes that are none.
fn decode(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: the length was checked, and any bytes make a valid `Event` (it is `Plain`).
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

/// The datapath's log messages.
pub struct KernelLog {
    logger: AsyncFd<EbpfLogger<&'static dyn log::Log>>,
}

impl KernelLog {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let logger =
            EbpfLogger::init(ebpf).map_err(|e| Error::failed("opening the datapath's log", e))?;
        Ok(Self {
            logger: watch(logger, "watching the datapath's log")?,
        })
    }

    /// Forwards messages to the `log` crate's logger, which the agent bridges to
    /// `tracing`. Ends only with an error.
    pub async fn run(mut self) -> Error {
        loop {
            match self.logger.readable_mut().await {
                Ok(mut guard) => {
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
                Err(e) => return Error::failed("waiting for the datapath's log", e),
            }
        }
    }
}

fn watch<T: AsFd + std::os::fd::AsRawFd>(inner: T, what: &str) -> Result<AsyncFd<T>, Error> {
    // SAFETY: both types answer with the descriptor of the ring they own, which stays the same and
    // open until they are dropped, which `AsyncFd` does after deregistering.
    unsafe { AsyncFd::register_with_interest(inner, tokio::io::Interest::READABLE) }
        .map_err(|e| Error::failed(what, std::io::Error::from(e)))
}
