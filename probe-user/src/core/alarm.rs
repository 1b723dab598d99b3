//! A timer that comes when it should: the runtime's come up to two milliseconds late.

use std::{
    os::fd::{AsFd as _, AsRawFd, RawFd},
    time::Duration,
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};
use tracing::debug;

/// For the runtime, which wants it by number.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// One timer of the kernel's, or the runtime's where there is none.
pub struct Alarm {
    timer: Option<AsyncFd<Timer>>,
    /// For when it is set.
    set: Option<Instant>,
}

impl Alarm {
    /// With a timer of the kernel's, if that is wanted.
    pub fn new(precise: bool) -> Self {
        let timer = precise.then(|| {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            // SAFETY: the descriptor is the timer's own, which stays open as long as it.
            unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }
                .map_err(|_| nix::Error::EBADF)
        });
        let timer = timer.transpose().unwrap_or_else(|error| {
            debug!("no timer of the kernel's: {error}");
            None
        });
        Self { timer, set: None }
    }

    /// Waits until then. Costs no call of the kernel if it is set for that already; nothing is lost
    /// if the future is dropped.
    pub async fn at(&mut self, then: Instant) {
        let Some(timer) = &self.timer else {
            return sleep_until(then).await;
        };
        if self.set != Some(then) {
            // Zero would stop it.
            let left = then.saturating_duration_since(Instant::now());
            let left = TimeSpec::from_duration(left.max(Duration::from_nanos(1)));
            let once = Expiration::OneShot(left);
            if timer
                .get_ref()
                .0
                .set(once, TimerSetTimeFlags::empty())
                .is_err()
            {
                return sleep_until(then).await;
            }
            self.set = Some(then);
        }
        while Instant::now() < then {
            match timer.readable().await {
                // Whether it is that time is for the clock to say.
                Ok(mut ready) => {
                    let _ = nix::unistd::read(timer.get_ref().0.as_fd(), &mut [0; 8]);
                    ready.clear_ready();
                }
                Err(_) => return sleep_until(then).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_comes_when_it_should_or_later() {
        for precise in [true, false] {
            let mut alarm = Alarm::new(precise);
            for micros in [0, 300, 1_500] {
                let then = Instant::now() + Duration::from_micros(micros);
                // Asked again, as by a loop that something else woke.
                let other = tokio::time::timeout(Duration::from_micros(100), alarm.at(then));
                drop(other.await);
                alarm.at(then).await;
                assert!(Instant::now() >= then);
                // Past: at once.
                alarm.at(then).await;
            }
        }
    }
}
