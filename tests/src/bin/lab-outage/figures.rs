//! What the facts of the runs amount to. Pure: figures come from the records alone.
//!
//! What did not happen within a run is not a number: it is told as the time until which
//! it had not ([`Time`]). In a series such a value is above every one that came, however
//! late: windows of one way and fault are equally long.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lab::{
    bench::{Bar, Machine, quantile},
    client::{Failure, Gap, Held, Outcome, Record, Shot},
};
use serde::Serialize;

use crate::{faults::Fault, flows::Flows, ways::Path};

/// Slower than this is noticed: the median is below a millisecond.
pub const SLOW: Duration = Duration::from_millis(50);

/// A time that may not have come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Time {
    pub ms: Option<f64>,
    /// If it did not come: by then it had not.
    pub at_least_ms: Option<f64>,
}

impl Time {
    pub fn came(after: Duration) -> Self {
        Self {
            ms: Some(ms(after)),
            at_least_ms: None,
        }
    }

    pub fn not_by(bound: Duration) -> Self {
        Self {
            ms: None,
            at_least_ms: Some(ms(bound)),
        }
    }

    /// The order of series.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let key = |time: &Self| {
            (
                time.ms.is_none(),
                time.ms.or(time.at_least_ms).unwrap_or_default(),
            )
        };
        let (mine, other) = (key(self), key(other));
        mine.0.cmp(&other.0).then(mine.1.total_cmp(&other.1))
    }

    /// Later by so many ms, or earlier.
    fn shifted(self, by: f64) -> Self {
        Self {
            ms: self.ms.map(|ms| ms + by),
            at_least_ms: self.at_least_ms.map(|ms| ms + by),
        }
    }
}

/// Of a series; the worse of the two in the middle if it has no middle.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Three<T> {
    pub min: T,
    pub median: T,
    pub max: T,
}

impl Three<Time> {
    /// `None` of nothing.
    pub fn of(times: impl IntoIterator<Item = Time>) -> Option<Self> {
        let mut times: Vec<Time> = times.into_iter().collect();
        times.sort_by(Time::order);
        middle(&times)
    }
}

impl Three<usize> {
    /// `None` of nothing.
    pub fn of(counts: impl IntoIterator<Item = usize>) -> Option<Self> {
        let mut counts: Vec<usize> = counts.into_iter().collect();
        counts.sort_unstable();
        middle(&counts)
    }
}

fn middle<T: Copy>(sorted: &[T]) -> Option<Three<T>> {
    Some(Three {
        min: *sorted.first()?,
        median: *sorted.get(sorted.len() / 2)?,
        max: *sorted.last()?,
    })
}

/// One run, as it was.
pub struct Facts {
    pub path: Path,
    pub fault: Fault,
    pub begun: Instant,
    pub fault_at: Instant,
    /// No request began after it.
    pub end: Instant,
    /// When the agent said that the master is down.
    pub verdict: Option<Instant>,
    pub record: Record,
}

impl Facts {
    /// Who should have answered last before the fault did not: there was a false switch, and
    /// nothing can be learned about the fault.
    pub fn begun_wrong(&self) -> bool {
        let [before, _] = self.fault.servers();
        let answered = |shot: &&Shot| {
            shot.ended < self.fault_at && matches!(shot.outcome, Outcome::Answered(_))
        };
        let last = self.record.shots.iter().filter(answered);
        last.max_by_key(|shot| shot.ended)
            .is_some_and(|shot| !shot.outcome.by(before))
    }

    /// For how long the generator stood still while it mattered most: around the fault,
    /// or around the way back.
    pub fn stood_still(&self) -> Duration {
        let after = match self.fault {
            Fault::Recovery => Duration::from_millis(400),
            _ => Duration::from_millis(150),
        };
        let (from, to) = (
            self.fault_at - Duration::from_millis(20),
            self.fault_at + after,
        );
        let within = self.record.gaps.iter().map(|gap| {
            let end = gap.ran.min(to);
            end.saturating_duration_since(gap.due.max(from))
        });
        within.sum()
    }
}

/// One run, told.
#[derive(Clone, Debug)]
pub struct Run {
    pub first_answer: Time,
    pub failed: usize,
    /// Of these before a connection was there.
    pub failed_connects: usize,
    pub failures: BTreeMap<String, usize>,
    pub slow: usize,
    pub lost: usize,
    pub worst: Option<Time>,
    pub worst_from_due: Option<Time>,
    pub worst_from_connect: Option<Time>,
    pub worst_added: Option<Time>,
    pub told_idle: Option<Time>,
    pub told_active: Option<Time>,
    pub broken: Option<usize>,
    pub verdict: Option<Time>,
    pub idle_after_verdict: Option<Time>,
    pub in_flight_after_verdict: Option<Time>,
    pub false_switches: usize,
    pub failed_before: usize,
    pub quiet_ms: f64,
    pub steady_p50_ms: Option<f64>,
    pub late_p99_ms: f64,
    pub late_max_ms: f64,
    pub disturbed: usize,
    pub realtime: bool,
    pub stood_still_ms: f64,
    /// Runs that were thrown away for this one.
    pub repeated: usize,
}

pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn kind(shot: &Shot, failure: &Failure) -> String {
    let what = match failure {
        Failure::Other(what) => what.clone(),
        plain => format!("{plain:?}").to_lowercase(),
    };
    let when = if shot.connected.is_some() {
        "after connect"
    } else {
        "at connect"
    };
    format!("{what} {when}")
}

/// How long the last of these took; of those that were lost, how long they had taken by
/// then.
fn worst(shots: &[&Shot], took: impl Fn(&Shot) -> Duration) -> Option<Time> {
    let waited = shots.iter().filter(|shot| !failed(shot));
    let longest = waited.map(|shot| took(shot)).max()?;
    if shots.iter().any(|shot| shot.outcome == Outcome::Lost) {
        Some(Time::not_by(longest))
    } else {
        Some(Time::came(longest))
    }
}

/// How long a request took, without stretches in which the generator did not run: it has
/// a real-time priority, so neither did anything else on its CPU.
fn net(shot: &Shot, gaps: &[Gap]) -> Duration {
    let stood_still = gaps.iter().map(|gap| {
        let (from, to) = (gap.due.max(shot.due), gap.ran.min(shot.ended));
        to.saturating_duration_since(from)
    });
    shot.ended
        .saturating_duration_since(shot.due)
        .saturating_sub(stood_still.sum())
}

fn failed(shot: &Shot) -> bool {
    matches!(shot.outcome, Outcome::Failed(_))
}

/// When the last of the connections that were open at the fault was told.
fn told(held: &[Held], idle: bool, facts: &Facts) -> Option<Time> {
    let open = held.iter().filter(|held| {
        held.idle == idle
            && held
                .served
                .as_ref()
                .is_some_and(|(_, at)| *at < facts.fault_at)
            && held
                .ended
                .as_ref()
                .is_none_or(|(at, _)| *at >= facts.fault_at)
    });
    open.map(|held| match &held.ended {
        Some((at, _)) => Time::came(*at - facts.fault_at),
        None => Time::not_by(facts.end.saturating_duration_since(facts.fault_at)),
    })
    .max_by(Time::order)
}

/// How often the answers of the quiet part came from somebody else at once.
fn false_switches(shots: &[Shot], facts: &Facts) -> usize {
    let [before, _] = facts.fault.servers();
    let mut quiet: Vec<&Shot> = shots
        .iter()
        .filter(|shot| shot.ended < facts.fault_at && matches!(shot.outcome, Outcome::Answered(_)))
        .collect();
    quiet.sort_by_key(|shot| shot.ended);
    let mut right = true;
    let mut switches = 0;
    for shot in quiet {
        let now = shot.outcome.by(before);
        switches += usize::from(right && !now);
        right = now;
    }
    switches
}

/// How long after the verdict the last request learned that it is not answered, of those
/// that were under way at the verdict.
fn in_flight(shots: &[&Shot], verdict: Instant) -> Option<Time> {
    shots
        .iter()
        .filter(|shot| shot.begun < verdict && shot.ended > verdict)
        .filter_map(|shot| match shot.outcome {
            Outcome::Answered(_) => None,
            Outcome::Failed(_) => Some(Time::came(shot.ended - verdict)),
            Outcome::Lost => Some(Time::not_by(shot.ended - verdict)),
        })
        .max_by(Time::order)
}

/// Tells a run.
pub fn tell(facts: &Facts) -> Run {
    let Record {
        shots,
        held,
        gaps,
        realtime,
    } = &facts.record;
    let [_, after] = facts.fault.servers();
    let judged: Vec<&Shot> = shots
        .iter()
        .filter(|shot| shot.ended >= facts.fault_at)
        .collect();
    let before = || shots.iter().filter(|shot| shot.ended < facts.fault_at);
    let since = |at: Instant| at.saturating_duration_since(facts.fault_at);
    let mut steady: Vec<f64> = before()
        .filter(|shot| matches!(shot.outcome, Outcome::Answered(_)))
        .map(|shot| ms(shot.ended - shot.due))
        .collect();
    steady.sort_by(f64::total_cmp);
    let steady_p50_ms = quantile(&steady, 0.5);
    let mut late: Vec<f64> = shots
        .iter()
        .map(|shot| ms(shot.begun.saturating_duration_since(shot.due)))
        .collect();
    late.sort_by(f64::total_cmp);
    let mut failures = BTreeMap::new();
    for shot in &judged {
        if let Outcome::Failed(failure) = &shot.outcome {
            *failures.entry(kind(shot, failure)).or_default() += 1;
        }
    }
    let recovery = facts.fault == Fault::Recovery;
    let told_idle = told(held, true, facts);
    let worst_net = worst(&judged, |shot| net(shot, gaps));
    Run {
        first_answer: judged
            .iter()
            .filter(|shot| shot.outcome.by(after))
            .map(|shot| since(shot.ended))
            .min()
            .map_or_else(|| Time::not_by(since(facts.end)), Time::came),
        failed: judged.iter().filter(|shot| failed(shot)).count(),
        failed_connects: judged
            .iter()
            .filter(|shot| failed(shot) && shot.connected.is_none())
            .count(),
        failures,
        slow: judged
            .iter()
            .filter(|shot| matches!(shot.outcome, Outcome::Answered(_)) && net(shot, gaps) > SLOW)
            .count(),
        lost: judged
            .iter()
            .filter(|shot| shot.outcome == Outcome::Lost)
            .count(),
        worst: worst_net,
        worst_from_due: worst(&judged, |shot| {
            shot.ended.saturating_duration_since(shot.due)
        }),
        worst_from_connect: worst(&judged, |shot| {
            shot.ended.saturating_duration_since(shot.begun)
        }),
        worst_added: worst_net
            .zip(steady_p50_ms)
            .map(|(worst, steady)| worst.shifted(-steady)),
        broken: recovery.then(|| held.iter().filter(|held| lost_by(held, facts)).count()),
        told_active: told(held, false, facts).filter(|_| !recovery),
        told_idle: told_idle.filter(|_| !recovery),
        verdict: facts.verdict.map(|at| Time::came(since(at))),
        // Who was told before the verdict was told by others.
        idle_after_verdict: facts.verdict.zip(told_idle).map(|(at, told)| {
            let told = told.shifted(-ms(since(at)));
            Time {
                ms: told.ms.map(|ms| ms.max(0.0)),
                ..told
            }
        }),
        in_flight_after_verdict: facts.verdict.and_then(|at| in_flight(&judged, at)),
        false_switches: false_switches(shots, facts),
        failed_before: before().filter(|shot| failed(shot)).count(),
        quiet_ms: ms(facts.fault_at - facts.begun),
        steady_p50_ms,
        late_p99_ms: quantile(&late, 0.99).unwrap_or_default(),
        late_max_ms: late.last().copied().unwrap_or_default(),
        disturbed: judged
            .iter()
            .filter(|shot| {
                gaps.iter()
                    .any(|gap| gap.due < shot.ended && shot.due < gap.ran)
            })
            .count(),
        realtime: *realtime,
        stood_still_ms: ms(facts.stood_still()),
        repeated: 0,
    }
}

fn lost_by(held: &Held, facts: &Facts) -> bool {
    held.served.is_some()
        && held
            .ended
            .as_ref()
            .is_some_and(|(at, _)| *at >= facts.fault_at)
}

impl Run {
    /// Takes the quiet part of a run that was thrown away for this one: what happened in it
    /// happened.
    pub fn inherit(&mut self, other: &Self) {
        self.repeated += 1;
        self.false_switches += other.false_switches;
        self.failed_before += other.failed_before;
        self.quiet_ms += other.quiet_ms;
    }
}

/// All runs of one way and fault.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub way: Path,
    pub fault: Fault,
    pub runs: usize,
    pub window_ms: f64,
    pub first_answer: Three<Time>,
    pub failed: Three<usize>,
    pub failed_connects: Three<usize>,
    /// Over all runs.
    pub failures: BTreeMap<String, usize>,
    pub slow: Three<usize>,
    pub lost: Three<usize>,
    /// From the moment at which the request was due, without what the generator was late
    /// with itself.
    pub worst: Option<Three<Time>>,
    /// From that moment, all of it.
    pub worst_from_due: Option<Three<Time>>,
    /// From `connect()`, all of it.
    pub worst_from_connect: Option<Three<Time>>,
    /// To the median of the same run's quiet part.
    pub worst_added: Option<Three<Time>>,
    pub told_idle: Option<Three<Time>>,
    pub told_active: Option<Three<Time>>,
    /// Of a recovery: long connections that did not survive it.
    pub broken: Option<Three<usize>>,
    /// Where the way tells it.
    pub verdict: Option<Three<Time>>,
    pub idle_after_verdict: Option<Three<Time>>,
    pub in_flight_after_verdict: Option<Three<Time>>,
    pub false_switches: Three<usize>,
    /// In the quiet parts of all runs.
    pub false_switches_in_all: usize,
    pub failed_before: usize,
    pub quiet_ms: f64,
    pub steady_p50_ms: Option<f64>,
    pub generator: Generator,
}

/// How late the generator itself was.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Generator {
    /// The worst of the runs'.
    pub late_p99_ms: f64,
    pub late_max_ms: f64,
    /// Requests that were under way while it did not run for more than 2 ms.
    pub disturbed: usize,
    pub realtime: bool,
    /// The longest that it stood still around the fault.
    pub stood_still_ms: f64,
    /// Runs that were thrown away since it had stood still there, or since a false switch
    /// had come before the fault, and played again.
    pub repeated: usize,
}

/// Sums up; `None` without a run.
pub fn sum_up(way: Path, fault: Fault, runs: &[Run]) -> Option<Cell> {
    let times = |of: fn(&Run) -> Option<Time>| Three::<Time>::of(runs.iter().filter_map(of));
    let counts = |of: fn(&Run) -> usize| Three::<usize>::of(runs.iter().map(of));
    let most = |of: fn(&Run) -> f64| runs.iter().map(of).fold(0.0, f64::max);
    let mut failures = BTreeMap::new();
    for (kind, count) in runs.iter().flat_map(|run| &run.failures) {
        *failures.entry(kind.clone()).or_default() += count;
    }
    let mut steady: Vec<f64> = runs.iter().filter_map(|run| run.steady_p50_ms).collect();
    steady.sort_by(f64::total_cmp);
    Some(Cell {
        way,
        fault,
        runs: runs.len(),
        window_ms: ms(way.window(fault)),
        first_answer: times(|run| Some(run.first_answer))?,
        failed: counts(|run| run.failed)?,
        failed_connects: counts(|run| run.failed_connects)?,
        failures,
        slow: counts(|run| run.slow)?,
        lost: counts(|run| run.lost)?,
        worst: times(|run| run.worst),
        worst_from_due: times(|run| run.worst_from_due),
        worst_from_connect: times(|run| run.worst_from_connect),
        worst_added: times(|run| run.worst_added),
        told_idle: times(|run| run.told_idle),
        told_active: times(|run| run.told_active),
        broken: Three::<usize>::of(runs.iter().filter_map(|run| run.broken)),
        verdict: times(|run| run.verdict),
        idle_after_verdict: times(|run| run.idle_after_verdict),
        in_flight_after_verdict: times(|run| run.in_flight_after_verdict),
        false_switches: counts(|run| run.false_switches)?,
        false_switches_in_all: runs.iter().map(|run| run.false_switches).sum(),
        failed_before: runs.iter().map(|run| run.failed_before).sum(),
        quiet_ms: runs.iter().map(|run| run.quiet_ms).sum(),
        steady_p50_ms: quantile(&steady, 0.5),
        generator: Generator {
            late_p99_ms: most(|run| run.late_p99_ms),
            late_max_ms: most(|run| run.late_max_ms),
            disturbed: runs.iter().map(|run| run.disturbed).sum(),
            realtime: runs.iter().all(|run| run.realtime),
            stood_still_ms: most(|run| run.stood_still_ms),
            repeated: runs.iter().map(|run| run.repeated).sum(),
        },
    })
}

/// What was measured, how, on what.
#[derive(Serialize)]
pub struct Figures {
    pub machine: Machine,
    pub haproxy: String,
    pub setting: Setting,
    pub ways: Vec<Way>,
    pub cells: Vec<Cell>,
    pub flows: Option<Flows>,
    pub bars: Vec<Bar>,
    pub took_s: f64,
}

impl Figures {
    pub fn cell(&self, way: Path, fault: Fault) -> Option<&Cell> {
        self.cells
            .iter()
            .find(|cell| (cell.way, cell.fault) == (way, fault))
    }
}

#[derive(Serialize)]
pub struct Setting {
    pub connections_per_second: u32,
    pub idle_connections: usize,
    pub active_connections: usize,
    pub active_every_ms: f64,
    pub quiet_ms: f64,
    pub patience_ms: f64,
    pub slow_above_ms: f64,
    pub inter_ms: f64,
    pub timeout_ms: f64,
    pub fall: u32,
    pub rise: u32,
    pub hold_ms: f64,
}

#[derive(Serialize)]
pub struct Way {
    pub way: Path,
    pub name: &'static str,
    pub described: String,
    /// HAProxy's whole configuration.
    pub config: Option<String>,
}

#[cfg(test)]
pub mod tests {
    use std::time::{Duration, Instant};

    use lab::client::{Failure, Gap, Held, Outcome, Record, Shot};

    use super::{Facts, Run, Three, Time, sum_up, tell};
    use crate::{faults::Fault, ways::Path};

    fn time(ms: f64) -> Time {
        Time {
            ms: Some(ms),
            at_least_ms: None,
        }
    }

    fn never(by: u64) -> Time {
        Time::not_by(Duration::from_millis(by))
    }

    /// A request a millisecond for 100 ms, each answered after half of one, by the backup
    /// from 35 on; the fault is at 20. What was begun before and not answered is refused
    /// from 20 to 30, lost from 30 to 33 and slow from 33 to 35.
    pub fn facts() -> Facts {
        let start = Instant::now();
        let at = |micros: u64| start + Duration::from_micros(micros);
        let shots = (0..100)
            .map(|n| {
                let (took, outcome) = match n {
                    20..30 => (500, Outcome::Failed(Failure::Refused)),
                    30..33 => (2_000_000, Outcome::Lost),
                    33..35 => (60_000, Outcome::Answered("backup".to_owned())),
                    n if n < 20 => (500, Outcome::Answered("master".to_owned())),
                    _ => (500, Outcome::Answered("backup".to_owned())),
                };
                Shot {
                    due: at(n * 1000),
                    begun: at(n * 1000 + 100),
                    connected: (n != 25).then(|| at(n * 1000 + 200)),
                    ended: at(n * 1000 + took),
                    outcome,
                }
            })
            .collect();
        let held = |idle, ended: Option<u64>| Held {
            idle,
            served: Some(("master".to_owned(), at(500))),
            ended: ended.map(|micros| (at(micros), "reset".to_owned())),
        };
        Facts {
            path: Path::Probe,
            fault: Fault::Kill,
            begun: at(0),
            fault_at: at(20_000),
            end: at(100_000),
            verdict: Some(at(22_000)),
            record: Record {
                shots,
                held: vec![
                    held(true, Some(21_000)),
                    held(true, Some(23_500)),
                    held(false, None),
                    // Gone before the fault, so not told by anybody of it.
                    held(true, Some(10_000)),
                ],
                gaps: vec![Gap {
                    due: at(40_000),
                    ran: at(43_000),
                }],
                realtime: true,
            },
        }
    }

    #[test]
    fn a_run_is_told_from_its_requests() {
        let run = tell(&facts());
        assert_eq!(run.first_answer, time(15.5));
        assert_eq!((run.failed, run.failed_connects), (10, 1));
        assert_eq!((run.lost, run.slow), (3, 2));
        assert_eq!(run.failures["refused after connect"], 9);
        // Without the gap of 3 ms, in which all of the lost waited.
        assert_eq!(run.worst, Some(never(1997)));
        assert_eq!(run.worst_from_due, Some(never(2000)));
        assert_eq!(run.told_idle, Some(time(3.5)));
        assert_eq!(run.told_active, Some(never(80)));
        assert_eq!(run.verdict, Some(time(2.0)));
        assert_eq!(run.idle_after_verdict, Some(time(1.5)));
        assert_eq!(run.false_switches, 0);
        assert_eq!(run.steady_p50_ms, Some(0.5));
        // Those of 40, 41 and 42, and the five that took longer.
        assert_eq!(run.disturbed, 8);
        assert!((run.late_max_ms - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_switch_without_a_fault_is_false_once_there_and_back() {
        let mut facts = facts();
        for n in [5, 6, 12] {
            facts.record.shots[n].outcome = Outcome::Answered("backup".to_owned());
        }
        assert_eq!(tell(&facts).false_switches, 2);
        assert!(!facts.begun_wrong());
        facts.record.shots[19].outcome = Outcome::Answered("backup".to_owned());
        assert!(facts.begun_wrong());
        // Thrown away, its false switches are still told.
        let mut kept = tell(&self::facts());
        kept.inherit(&tell(&facts));
        assert_eq!((kept.repeated, kept.false_switches), (1, 3));
        assert!((kept.quiet_ms - 40.0).abs() < 1e-9);
    }

    #[test]
    fn who_is_pending_at_the_verdict_is_told_after_it() {
        let mut facts = facts();
        facts.record.shots.truncate(30);
        facts.record.shots[20].ended = facts.fault_at + Duration::from_millis(9);
        let run = tell(&facts);
        assert_eq!(run.in_flight_after_verdict, Some(time(7.0)));
        // Nobody answered: there is no worst answer, and no first one.
        assert_eq!(run.worst, None);
        assert_eq!(run.first_answer, never(80));
    }

    #[test]
    fn what_the_generator_was_late_with_is_told_apart() {
        let mut facts = facts();
        facts
            .record
            .shots
            .retain(|shot| shot.outcome != Outcome::Lost);
        let ended = facts.begun + Duration::from_micros(43_500);
        let shot = facts.record.shots.iter_mut();
        let late = shot
            .max_by_key(|shot| shot.ended - shot.due)
            .expect("it has shots");
        (late.due, late.ended) = (ended - Duration::from_micros(100_500), ended);
        let run = tell(&facts);
        // Of 100.5 ms it stood still for three.
        assert_eq!(run.worst_from_due, Some(time(100.5)));
        assert_eq!(run.worst, Some(time(97.5)));
        assert!((run.stood_still_ms - 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_did_not_come_is_above_what_came() {
        let three = Three::<Time>::of([never(10), time(500.0), time(20.0)]).expect("it has values");
        assert_eq!(
            (three.min, three.median, three.max),
            (time(20.0), time(500.0), never(10))
        );
        // Of two the worse one is told as the median.
        let three = Three::<Time>::of([time(1.0), never(9)]).expect("it has values");
        assert_eq!(three.median, never(9));
        assert!(Three::<Time>::of([]).is_none());
        let counts = Three::<usize>::of([3, 1, 2]).expect("it has values");
        assert_eq!((counts.min, counts.median, counts.max), (1, 2, 3));
    }

    #[test]
    fn a_cell_sums_up_its_runs() {
        let runs: Vec<Run> = [tell(&facts()), tell(&facts())].to_vec();
        let cell = sum_up(Path::Probe, Fault::Kill, &runs).expect("it has runs");
        assert_eq!(cell.runs, 2);
        assert_eq!(cell.failures["refused after connect"], 18);
        assert_eq!(cell.failed.max, 10);
        assert!(cell.broken.is_none());
        assert!(sum_up(Path::Probe, Fault::Kill, &[]).is_none());
        let json = serde_json::to_value(&cell).expect("it is JSON");
        assert_eq!(json["told_active"]["max"]["ms"], serde_json::Value::Null);
        assert_eq!(json["told_active"]["max"]["at_least_ms"], 80.0);
    }
}
