//! When an endpoint is checked.
//!
//! One task an endpoint. Checks begin on a fixed grid, `inter` apart. A check that
//! takes longer than the interval makes the grid points within it be skipped, not
//! made up for later: a burst of late checks would only tell the same thing
//! several times. The timeout is the check's own and may be longer than `inter`.

use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{http::Probe, verdict::Verdict};

/// A verdict and whose it is.
#[derive(Debug)]
pub struct Report<K> {
    /// As given to [`run`].
    pub key: K,
    /// What the check concluded.
    pub verdict: Verdict,
    /// Checks skipped before this one because their predecessor took too long.
    pub skipped: u64,
}

/// Checks until nobody listens any more.
pub async fn run<K: Clone>(
    key: K,
    probe: Probe,
    inter: Duration,
    offset: Duration,
    reports: mpsc::Sender<Report<K>>,
) {
    let mut buffer = BytesMut::with_capacity(8192);
    let start = Instant::now() + offset;
    let (mut point, mut skipped) = (0u64, 0);
    loop {
        sleep_until(start + offset_of(point, inter)).await;
        let report = Report {
            key: key.clone(),
            verdict: probe.run(&mut buffer).await,
            skipped,
        };
        if reports.send(report).await.is_err() {
            return;
        }
        let next = next_point(point, start.elapsed(), inter);
        skipped = next - point - 1;
        point = next;
    }
}

/// The first grid point after `point` that is still to come.
fn next_point(point: u64, since_start: Duration, inter: Duration) -> u64 {
    let passed = since_start.as_nanos() / inter.as_nanos().max(1);
    u64::try_from(passed)
        .unwrap_or(u64::MAX - 1)
        .saturating_add(1)
        .max(point.saturating_add(1))
}

/// When a grid point is, from the start. `Duration` alone multiplies by 32 bits only,
/// which checks every millisecond use up in 49 days.
fn offset_of(point: u64, inter: Duration) -> Duration {
    let nanos = u128::from(point) * inter.as_nanos();
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::verdict::Kind;
    use tokio::net::TcpListener;

    #[test]
    fn the_next_grid_point_is_always_to_come() {
        let ms = Duration::from_millis;
        assert_eq!(next_point(0, ms(0), ms(10)), 1);
        assert_eq!(next_point(0, ms(9), ms(10)), 1);
        assert_eq!(next_point(0, ms(10), ms(10)), 2);
        assert_eq!(next_point(0, ms(52), ms(5)), 11);
        // A timer that fired a little early must not repeat its point.
        assert_eq!(next_point(7, ms(69), ms(10)), 8);
    }

    /// A server that never answers, a timeout of ten intervals: late checks do not bunch.
    #[tokio::test]
    async fn a_check_longer_than_the_interval_skips_and_does_not_bunch() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        let config = crate::config::parse(
            "interfaces: {edge: [a]}\nservices: [{name: a, listeners: ['10.0.0.1:80'], endpoints: \
             [{name: b, address: '10.0.0.2:80'}], check: {http: {}, inter: 5ms, timeout: 52ms}}]",
        )
        .unwrap();
        let check = config.services()[0].check();
        let probe = Probe::new(check, target, "a");
        let (tx, mut rx) = mpsc::channel(16);
        let task = tokio::spawn(run((), probe, check.inter(), Duration::ZERO, tx));
        let first = rx.recv().await.unwrap();
        assert_eq!(first.verdict.kind, Kind::ResponseTimeout);
        assert_eq!(first.skipped, 0);
        for _ in 0..3 {
            let report = rx.recv().await.unwrap();
            assert_eq!(report.verdict.kind, Kind::ResponseTimeout);
            // Each took its whole timeout, so the ten grid points within it were skipped.
            assert!(report.verdict.latency >= Duration::from_millis(52));
            assert!(report.skipped >= 10, "{}", report.skipped);
        }
        task.abort();
    }
}
