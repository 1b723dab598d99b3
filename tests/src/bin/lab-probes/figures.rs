//! What a run measured, as it is told.

use lab::bench::{Bar, Machine, Spread};
use serde::Serialize;

use crate::ways::{Kind, Way};

#[derive(Serialize)]
pub struct Figures {
    pub machine: Machine,
    pub haproxy: String,
    /// `/proc/loadavg` when the run began and when it ended.
    pub load_before: Vec<f64>,
    pub load_after: Vec<f64>,
    pub costs: Vec<Cost>,
    pub periods: Vec<Period>,
    /// Endpoints and intervals for which there was no time.
    pub skipped: Vec<String>,
    pub memory: Vec<Memory>,
    pub detections: Vec<Detection>,
    pub saturated: Vec<Saturated>,
    pub bars: Vec<Bar>,
    pub took_s: f64,
}

/// What a check costs whoever makes it.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    pub way: Way,
    pub kind: Kind,
    pub endpoints: usize,
    pub inter_ms: u64,
    pub checks_per_second: Spread,
    /// User and system time of the whole process.
    pub cpu_us: Spread,
}

/// Whether checks come when they should.
#[derive(Clone, Debug, Serialize)]
pub struct Period {
    pub way: Way,
    pub kind: Kind,
    pub endpoints: usize,
    pub inter_ms: u64,
    pub wanted_per_second: f64,
    pub achieved_per_second: f64,
    /// Endpoints that had a check within the run.
    pub checked: usize,
    pub mean_period_ms: Option<f64>,
    /// From one check of an endpoint to the next.
    pub gap_ms: Gap,
    /// By how much that is longer than the interval.
    pub late_ms: Gap,
    pub false_downs: usize,
    /// CPUs that it kept busy, and that the server did.
    pub cpus: f64,
    pub server_cpus: f64,
    pub rss: u64,
    pub rss_anon: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Gap {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

impl Gap {
    /// By how much each is more than that.
    pub fn over(self, ms: f64) -> Self {
        let over = |gap: Option<f64>| gap.map(|gap| (gap - ms).max(0.0));
        Self {
            p50: over(self.p50),
            p99: over(self.p99),
            max: over(self.max),
        }
    }
}

/// What an endpoint takes, from the difference between few and many.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub way: Way,
    pub few: usize,
    pub many: usize,
    pub bytes_per_endpoint: f64,
    /// Of it what is neither a file nor shared.
    pub anonymous_bytes_per_endpoint: f64,
}

/// Of the kinds and intervals that were measured with both.
pub fn memory(periods: &[Period]) -> Vec<Memory> {
    let mut all = Vec::new();
    for way in [Way::Probe, Way::Haproxy] {
        // At one interval, since how many checks are under way takes memory too.
        let mine = periods
            .iter()
            .filter(|p| p.way == way && p.inter_ms == 1000 && p.checked == p.endpoints);
        let (few, many) = (
            mine.clone().min_by_key(|p| p.endpoints),
            mine.max_by_key(|p| p.endpoints),
        );
        let (Some(few), Some(many)) = (few, many) else {
            continue;
        };
        if few.endpoints == many.endpoints {
            continue;
        }
        let each = |more: u64, less: u64| {
            (more as f64 - less as f64) / (many.endpoints - few.endpoints) as f64
        };
        all.push(Memory {
            way,
            few: few.endpoints,
            many: many.endpoints,
            bytes_per_endpoint: each(many.rss, few.rss),
            anonymous_bytes_per_endpoint: each(many.rss_anon, few.rss_anon),
        });
    }
    all
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Kill,
    Stop,
}

impl Fault {
    pub const fn shown(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Stop => "SIGSTOP",
        }
    }
}

/// From a fault to the line that says that the endpoint is down, on an idle machine.
#[derive(Clone, Debug, Serialize)]
pub struct Detection {
    pub way: Way,
    pub sentinel: bool,
    pub fault: Fault,
    pub faults: usize,
    /// Those that were said within the time.
    pub found: usize,
    pub ms: Option<Spread>,
    pub worst_ms: Option<f64>,
}

/// With other work on every CPU.
#[derive(Clone, Debug, Serialize)]
pub struct Saturated {
    pub way: Way,
    pub endpoints: usize,
    pub inter_ms: u64,
    pub timeout_ms: u64,
    pub fall: u32,
    /// Threads of other work.
    pub other_threads: usize,
    pub seconds: f64,
    pub false_downs: usize,
    pub kills: usize,
    pub found_ms: Vec<f64>,
    pub checks_per_second: f64,
    /// Worst of all turns.
    pub gap_p99_ms: Option<f64>,
    pub gap_max_ms: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::Gap;

    #[test]
    fn early_is_not_late() {
        let gap = Gap {
            p50: Some(9.0),
            p99: Some(12.5),
            max: None,
        };
        let late = gap.over(10.0);
        assert_eq!((late.p50, late.p99, late.max), (Some(0.0), Some(2.5), None));
    }
}
