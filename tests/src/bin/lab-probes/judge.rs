//! The bars, each computed from what the run measured.

use lab::bench::{Bar, at_least, at_most};

use crate::{
    figures::Figures,
    ways::{Kind, Way},
};

pub fn judge(figures: &Figures) -> Vec<Bar> {
    let mut bars = Vec::new();
    if !figures.costs.is_empty() {
        let cpu = |way, kind| {
            let of = |cost: &&crate::figures::Cost| (cost.way, cost.kind) == (way, kind);
            figures.costs.iter().find(of).map(|cost| cost.cpu_us.median)
        };
        let theirs = cpu(Way::Haproxy, Kind::HttpFresh);
        bars.push(at_most(
            "CPU of a reused HTTP check, a third of HAProxy's check".to_owned(),
            cpu(Way::Probe, Kind::HttpReused),
            theirs.map(|us| us / 3.0),
            "us",
        ));
        bars.push(at_most(
            "CPU of a fresh HTTP check, HAProxy's check".to_owned(),
            cpu(Way::Probe, Kind::HttpFresh),
            theirs,
            "us",
        ));
    }
    let period = figures.periods.iter().find(|period| {
        (period.way, period.kind) == (Way::Probe, Kind::HttpDefault)
            && (period.endpoints, period.inter_ms) == (1000, 10)
    });
    if let Some(period) = period {
        bars.push(at_most(
            "1,000 endpoints every 10 ms, lateness p99".to_owned(),
            period.late_ms.p99,
            5.0,
            "ms",
        ));
        bars.push(at_most(
            "1,000 endpoints every 10 ms, mean period".to_owned(),
            period.mean_period_ms,
            10.1,
            "ms",
        ));
    }
    if let Some(memory) = figures.memory.iter().find(|of| of.way == Way::Probe) {
        bars.push(at_most(
            "memory of an endpoint".to_owned(),
            memory.bytes_per_endpoint,
            4096.0,
            "bytes",
        ));
    }
    if let Some(saturated) = figures.saturated.iter().find(|of| of.way == Way::Probe) {
        let at = format!("{:.0} s beside other work", saturated.seconds);
        bars.push(at_most(
            format!("{at}, false DOWNs"),
            saturated.false_downs as f64,
            0.0,
            "",
        ));
        bars.push(at_least(
            format!("{at}, real kills found"),
            saturated.found_ms.len() as f64,
            saturated.kills as f64,
            "",
        ));
        bars.push(at_most(
            format!("{at}, a real kill found after"),
            saturated.found_ms.iter().copied().reduce(f64::max),
            100.0,
            "ms",
        ));
    }
    bars
}
