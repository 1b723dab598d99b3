//! What every program tells of its own process, by the names that Prometheus' client
//! libraries agree on, so that dashboards and alerts for processes fit this one too.
//!
//! Read from /proc at each scrape. What cannot be read is left out, as elsewhere.

use std::{fmt, fs, time::UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// This process.
#[derive(Debug)]
pub struct Process {
    started: f64,
}

impl Process {
    /// Takes now for its start: within milliseconds it is.
    pub fn new() -> Self {
        let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            // A clock before 1970 is not set at all.
            started: since.unwrap_or_default().as_secs_f64(),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, value: Option<f64>| -> fmt::Result {
            let Some(value) = value else { return Ok(()) };
            let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(family)
        };
        gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds",
            Some(self.started),
        )?;
        gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes",
            resident(),
        )?;
        gauge(
            "process_open_fds",
            "Number of open file descriptors",
            open(),
        )?;
        gauge(
            "process_max_fds",
            "Maximum number of open file descriptors",
            most(),
        )?;
        let Some(spent) = spent() else { return Ok(()) };
        let help = "Total user and system CPU time spent in seconds";
        let counter = MetricType::Counter;
        let family = encoder.encode_descriptor("process_cpu_seconds", help, None, counter)?;
        ConstCounter::new(spent).encode(family)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus' values are doubles; no process has 2^53 bytes or descriptors"
)]
fn double(value: u64) -> f64 {
    value as f64
}

fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(double(kib * 1024))
}

fn open() -> Option<f64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    // The folder's own is among them.
    u64::try_from(open).ok()?.checked_sub(1).map(double)
}

fn most() -> Option<f64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(double(soft))
}

fn spent() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let times = [usage.user_time(), usage.system_time()];
    let micros: i64 = times
        .map(|t| t.tv_sec() * 1_000_000 + t.tv_usec())
        .iter()
        .sum();
    Some(double(u64::try_from(micros).ok()?) / 1e6)
}
