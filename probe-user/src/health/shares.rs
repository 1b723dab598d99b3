//! Which thread checks whom, if there are several.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What checks are reckoned to cost, in microseconds of a processor.
const FRESH_COSTS: u64 = 50;
const KEPT_COSTS: u64 = 12;
/// What a thread gets before another one does, in microseconds a second: three eighths of a
/// processor. Fewer threads wake less often; but at real-time priority one that has much to do keeps whoever
/// else runs on its processor waiting, the answering endpoint too where that is on the same machine.
const ENOUGH: u64 = 375_000;

/// What each thread that checks has to do.
#[derive(Debug)]
pub struct Shares(Vec<Arc<AtomicU64>>);

/// An endpoint's part of it. It ends with this.
#[derive(Debug)]
pub struct Share {
    of: Arc<AtomicU64>,
    costs: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.costs, Ordering::Relaxed);
    }
}

impl Shares {
    /// Of so many threads, at least one.
    pub fn new(threads: usize) -> Self {
        Self((0..threads.max(1)).map(|_| Arc::default()).collect())
    }

    /// A thread for an endpoint that is checked so often: the first that has not enough to do, or
    /// else the one with least.
    pub fn take(&self, inter: Duration, fresh: bool) -> (usize, Share) {
        let each = if fresh { FRESH_COSTS } else { KEPT_COSTS };
        let micros = inter.as_micros().max(1);
        let costs = u64::try_from(u128::from(each) * 1_000_000 / micros).unwrap_or(u64::MAX);
        let has = |share: &Arc<AtomicU64>| share.load(Ordering::Relaxed);
        let fits = |share: &Arc<AtomicU64>| has(share).saturating_add(costs) <= ENOUGH;
        let first = self.0.iter().position(fits);
        let turn = first.unwrap_or_else(|| {
            let least = self
                .0
                .iter()
                .enumerate()
                .min_by_key(|(_, share)| has(share));
            least.map_or(0, |(turn, _)| turn)
        });
        let of = self.0[turn].clone();
        of.fetch_add(costs, Ordering::Relaxed);
        (turn, Share { of, costs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_fill_one_after_the_other_and_then_alike() {
        let shares = Shares::new(2);
        let ms = Duration::from_millis;
        let mut taken: Vec<_> = (0..75).map(|_| shares.take(ms(10), true)).collect();
        assert!(taken.iter().all(|(turn, _)| *turn == 0), "it has room");
        assert_eq!(shares.take(ms(10), false).0, 1);
        taken.extend((0..325).map(|_| shares.take(ms(10), true)));
        let on = |turn: usize| taken.iter().filter(|(of, _)| *of == turn).count();
        assert_eq!((on(0), on(1)), (200, 200));
        drop(taken);
        assert_eq!(shares.take(ms(1), true).0, 0);
        // Nothing costs too much to count.
        assert_eq!(shares.take(ms(3_600_000), true).0, 0);
        assert_eq!(shares.take(Duration::ZERO, true).0, 0);
    }
}
