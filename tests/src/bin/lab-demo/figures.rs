//! What the facts amount to. Pure: figures come from the samples alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::client::{Failure, Sample};
use serde::Serialize;

use crate::story::{FALL, Facts, HOLD, INTERVAL, RATE, RISE, TIMEOUT};

/// Slower than this is noticed: the median is below a millisecond.
const SLOW: Duration = Duration::from_millis(50);

#[derive(Debug, Serialize)]
pub struct Figures {
    pub machine: Machine,
    pub setting: Setting,
    pub steady: Phase,
    pub failover: Failover,
    pub on_backup: Phase,
    pub failback: Failback,
    pub back_on_master: Phase,
    pub switches: u64,
    pub bars: Vec<Bar>,
}

#[derive(Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cpus: usize,
}

#[derive(Debug, Serialize)]
pub struct Setting {
    pub connections_per_second: u32,
    pub interval_ms: f64,
    pub timeout_ms: f64,
    pub rise: u32,
    pub fall: u32,
    pub hold_ms: f64,
    pub slow_above_ms: f64,
}

/// Requests that began in one stretch of time.
#[derive(Debug, Serialize)]
pub struct Phase {
    pub begins_ms: f64,
    pub requests: usize,
    pub failed: usize,
    pub slow: usize,
    pub by_master: usize,
    pub by_backup: usize,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub worst_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct Failover {
    pub killed_at_ms: f64,
    pub first_answer_from_backup_after_ms: f64,
    /// Of the requests pending at the kill or begun between it and that answer.
    pub requests: usize,
    pub failed: usize,
    pub slow: usize,
    /// Kinds of failure, as the clients' sockets told them.
    pub failures: Vec<String>,
    pub long_connection_told_after_ms: f64,
    pub long_connection_told_by: String,
    pub long_connection_ticks_before: u64,
}

#[derive(Debug, Serialize)]
pub struct Failback {
    pub restored_at_ms: f64,
    pub first_answer_from_master_after_ms: f64,
    pub last_answer_from_backup_after_ms: f64,
    pub requests: usize,
    pub failed: usize,
    pub long_connection_to_backup_kept: bool,
}

/// One promise of the product, measured.
#[derive(Debug, Serialize)]
pub struct Bar {
    pub name: &'static str,
    pub measured: f64,
    /// At most, or for a share at least.
    pub limit: f64,
    pub unit: &'static str,
    pub met: bool,
}

impl Bar {
    fn at_most(name: &'static str, measured: f64, limit: f64, unit: &'static str) -> Self {
        Self {
            name,
            measured,
            limit,
            unit,
            met: measured <= limit,
        }
    }

    fn at_least(name: &'static str, measured: f64, limit: f64, unit: &'static str) -> Self {
        Self {
            name,
            measured,
            limit,
            unit,
            met: measured >= limit,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn phase(samples: &[Sample], start: Instant, from: Instant, to: Instant) -> Phase {
    let within: Vec<&Sample> = samples
        .iter()
        .filter(|sample| sample.begun >= from && sample.begun < to)
        .collect();
    let mut times: Vec<Duration> = within
        .iter()
        .filter(|sample| sample.outcome.is_ok())
        .map(|sample| sample.took())
        .collect();
    times.sort_unstable();
    // The value that this percentage of the values does not exceed.
    let quantile = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100);
        times.get(rank.saturating_sub(1)).copied().map(ms)
    };
    let by = |name: &str| within.iter().filter(|s| s.answered_by(name)).count();
    Phase {
        begins_ms: ms(from.saturating_duration_since(start)),
        requests: within.len(),
        failed: within.iter().filter(|s| s.outcome.is_err()).count(),
        slow: times.iter().filter(|time| **time > SLOW).count(),
        by_master: by("master"),
        by_backup: by("backup"),
        p50_ms: quantile(50),
        p99_ms: quantile(99),
        worst_ms: quantile(100),
    }
}

fn kind(failure: &Failure) -> String {
    match failure {
        Failure::Other(what) => what.clone(),
        plain => format!("{plain:?}").to_lowercase(),
    }
}

pub fn from(facts: &Facts) -> Result<Figures> {
    let start = facts.begun;
    let samples = &facts.samples;
    let at = |moment: Instant| ms(moment.saturating_duration_since(start));

    let first_backup = samples
        .iter()
        .filter(|sample| sample.ended > facts.killed && sample.answered_by("backup"))
        .map(|sample| sample.ended)
        .min()
        .context("the backup never answered")?;
    let first_master = samples
        .iter()
        .filter(|sample| sample.begun > facts.restored && sample.answered_by("master"))
        .map(|sample| sample.ended)
        .min()
        .context("the master never answered again")?;
    let last_backup = samples
        .iter()
        .filter(|sample| sample.answered_by("backup"))
        .map(|sample| sample.ended)
        .max()
        .context("the backup never answered")?;

    let disturbed: Vec<&Sample> = samples
        .iter()
        .filter(|sample| sample.ended > facts.killed && sample.begun < first_backup)
        .collect();
    let mut failures: Vec<String> = disturbed
        .iter()
        .filter_map(|sample| sample.outcome.as_ref().err().map(kind))
        .collect();
    failures.sort();
    failures.dedup();
    // Pending at the kill: judged with the failover, not with the steady state.
    let steady_end = disturbed
        .iter()
        .map(|sample| sample.begun)
        .min()
        .map_or(facts.killed, |first| first.min(facts.killed));

    let failover = Failover {
        killed_at_ms: at(facts.killed),
        first_answer_from_backup_after_ms: ms(first_backup - facts.killed),
        requests: disturbed.len(),
        failed: disturbed.iter().filter(|s| s.outcome.is_err()).count(),
        slow: disturbed
            .iter()
            .filter(|s| s.outcome.is_ok() && s.took() > SLOW)
            .count(),
        failures,
        long_connection_told_after_ms: ms(facts
            .long_end
            .at
            .saturating_duration_since(facts.killed)),
        long_connection_told_by: facts.long_end.how.clone(),
        long_connection_ticks_before: facts.long_ticks,
    };
    let steady = phase(samples, start, facts.begun, steady_end);
    let on_backup = phase(samples, start, first_backup, facts.restored);
    let returning = phase(samples, start, facts.restored, first_master);
    let back = phase(samples, start, first_master, facts.ended);
    let failback = Failback {
        restored_at_ms: at(facts.restored),
        first_answer_from_master_after_ms: ms(first_master - facts.restored),
        last_answer_from_backup_after_ms: ms(last_backup.saturating_duration_since(facts.restored)),
        requests: returning.requests,
        failed: returning.failed,
        long_connection_to_backup_kept: facts.backup_long_kept,
    };
    let interval_ms = ms(INTERVAL);
    let share = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    let bars = vec![
        Bar::at_most(
            "failed requests in the steady state",
            steady.failed as f64,
            0.0,
            "requests",
        ),
        Bar::at_most(
            "kill to first answer from the backup",
            failover.first_answer_from_backup_after_ms,
            2.0 * interval_ms + 20.0,
            "ms",
        ),
        Bar::at_most(
            "failed requests on the backup and while going back",
            (on_backup.failed + returning.failed + back.failed) as f64,
            0.0,
            "requests",
        ),
        Bar::at_least(
            "traffic on the master after its recovery",
            share(back.by_master, back.requests),
            100.0,
            "%",
        ),
        Bar::at_least(
            "recovery to first answer from the master: not before the hold",
            failback.first_answer_from_master_after_ms,
            ms(HOLD),
            "ms",
        ),
    ];
    Ok(Figures {
        machine: Machine {
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .context("no kernel release")?
                .trim()
                .to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        },
        setting: Setting {
            connections_per_second: RATE,
            interval_ms,
            timeout_ms: ms(TIMEOUT),
            rise: RISE,
            fall: FALL,
            hold_ms: ms(HOLD),
            slow_above_ms: ms(SLOW),
        },
        steady,
        failover,
        on_backup,
        failback,
        back_on_master: back,
        switches: facts.switches,
        bars,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use lab::client::{End, Failure, Sample};

    use super::{Facts, from};

    /// A request a millisecond that takes a millisecond, over 100 ms: the master is
    /// killed at 20.5, the backup answers from 30 on, the master is restored at 50,
    /// answers again from `back` on.
    fn facts(back: u64) -> Facts {
        let start = Instant::now();
        let at = |micros: u64| start + Duration::from_micros(micros);
        let samples = (0..100)
            .map(|n| Sample {
                begun: at(n * 1000),
                ended: at(n * 1000 + 900),
                outcome: match n {
                    20..30 => Err(Failure::Refused),
                    n if n < 20 || n >= back => Ok("master".to_owned()),
                    _ => Ok("backup".to_owned()),
                },
            })
            .collect();
        Facts {
            begun: at(0),
            killed: at(20_500),
            restored: at(50_000),
            ended: at(100_000),
            long_end: End {
                at: at(21_000),
                how: "reset".to_owned(),
            },
            long_ticks: 3,
            backup_long_kept: true,
            samples,
            switches: 2,
        }
    }

    #[test]
    fn failures_belong_to_the_failover_and_not_to_the_steady_state() {
        let figures = from(&facts(80)).expect("figures");
        assert_eq!((figures.steady.requests, figures.steady.failed), (20, 0));
        assert_eq!(
            (figures.failover.requests, figures.failover.failed),
            (11, 10)
        );
        assert_eq!(figures.failover.failures, ["refused"]);
        assert_eq!(figures.on_backup.failed, 0);
        assert!((figures.failover.first_answer_from_backup_after_ms - 10.4).abs() < 1e-9);
        assert!((figures.failover.long_connection_told_after_ms - 0.5).abs() < 1e-9);
        assert!((figures.failback.first_answer_from_master_after_ms - 30.9).abs() < 1e-9);
        let met: Vec<bool> = figures.bars.iter().map(|bar| bar.met).collect();
        // Back before the demo's hold of seconds: the last bar says so.
        assert_eq!(met, [true, true, true, true, false]);
    }

    #[test]
    fn a_backup_that_never_answers_is_an_error() {
        let mut facts = facts(80);
        facts.samples.retain(|sample| !sample.answered_by("backup"));
        assert!(from(&facts).is_err());
    }

    #[test]
    fn a_failure_in_the_steady_state_fails_its_bar() {
        let mut facts = facts(80);
        facts.samples[7].outcome = Err(Failure::Timeout);
        let figures = from(&facts).expect("figures");
        assert_eq!(figures.steady.failed, 1);
        assert!(!figures.bars[0].met);
    }
}
