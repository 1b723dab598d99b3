//! What endpoints weigh that share a tier, now.

use tokio::time::Instant;

use super::{Result, Service};
use crate::{
    datapath::Steering,
    failover::{Target, slow_start::WHOLE},
};

impl Service {
    /// Tells the datapath what those weigh that serve; the ring that is built next is by that.
    pub(super) fn write_weights<D: Steering>(&mut self, datapath: &mut D) {
        for (i, weight) in self.weights() {
            let endpoint = &mut self.endpoints[i];
            if endpoint.weight != weight {
                datapath.weigh(endpoint.id, weight);
                endpoint.weight = weight;
            }
        }
    }

    /// In whole numbers, in proportion to each other. The configured ones while nobody's is
    /// another one: the same ring on every node.
    fn weights(&self) -> Vec<(usize, u16)> {
        let Target::Endpoints(serving) = self.failover.selected() else {
            return Vec::new();
        };
        let all = serving.iter().map(|i| (*i, self.part(*i)));
        let whole = all.clone().all(|(_, part)| part == u32::from(WHOLE));
        let exact = all.map(|(i, part)| {
            let weight = u32::from(self.config.endpoints()[i].weight());
            let times = if whole { 1 } else { part };
            (i, weight * times)
        });
        fit(exact.collect())
    }

    /// How many percent of its weight an endpoint has, while that grows.
    pub(super) fn percent(&self, e: usize) -> Option<u16> {
        let part = self.slow_start.part(e);
        (part < WHOLE).then(|| part * 100 / WHOLE)
    }

    /// Of its weight, in parts of [`WHOLE`].
    fn part(&self, e: usize) -> u32 {
        u32::from(self.slow_start.part(e))
    }

    /// Somebody's share grows, if its time has come.
    pub(super) fn grow<D: Steering>(&mut self, now: Instant, datapath: &mut D) -> Result {
        if self.slow_start.tick(now) {
            self.write_selection(datapath)?;
        }
        Ok(())
    }
}

/// The same proportions in 16 bits; nobody who weighs something comes to nothing.
fn fit(exact: Vec<(usize, u32)>) -> Vec<(usize, u16)> {
    let most = exact.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
    let most = most.max(u32::from(u16::MAX));
    let fitted = |weight: u32| {
        let scaled = u64::from(weight) * u64::from(u16::MAX) / u64::from(most);
        let scaled = u16::try_from(scaled).unwrap_or(u16::MAX);
        scaled.max(u16::from(weight > 0))
    };
    exact.into_iter().map(|(i, w)| (i, fitted(w))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_weights_keep_their_proportion() {
        let fitted = |weights: &[u32]| {
            let all = weights.iter().map(|weight| (1, *weight));
            let fitted = fit(all.collect()).into_iter().map(|(_, weight)| weight);
            fitted.collect::<Vec<_>>()
        };
        assert_eq!(fitted(&[0, 1, 256]), [0, 1, 256]);
        assert_eq!(fitted(&[65_535 * 4, 65_535, 1, 0]), [65_535, 16_383, 1, 0]);
        assert_eq!(fitted(&[]), [0u16; 0]);
    }
}
