//! The bars, each computed from what the run measured.
//!
//! Counts are judged by the worst run, so that one failure in all of them is one; times
//! by their medians: one disturbed run of a busy machine moves the worst of them.

use lab::bench::{Bar, at_most};

use crate::{
    faults::Fault,
    figures::{Cell, Figures, Three, Time},
    ways::{FALL, INTER, Path, TIMEOUT},
};

/// "At once", as idle connections have it.
const AT_ONCE_MS: f64 = 10.0;

fn median(times: Option<Three<Time>>) -> Option<f64> {
    times.and_then(|times| times.median.ms)
}

fn none(name: &str, counts: Three<usize>) -> Bar {
    at_most(format!("{name}, worst run"), counts.max as f64, 0.0, "")
}

pub fn judge(figures: &Figures) -> Vec<Bar> {
    let mut bars = Vec::new();
    for fault in Fault::ALL {
        if let Some(cell) = figures.cell(Path::Probe, fault) {
            promises(cell, &mut bars);
        }
    }
    if let Some(flows) = &figures.flows {
        bars.push(at_most(
            format!(
                "{} open flows: verdict to the last idle connection told",
                flows.open
            ),
            flows.all_told.ms,
            1_000.0,
            "ms",
        ));
    }
    for fault in Fault::ALL {
        if let (Some(probe), Some(tuned)) = (
            figures.cell(Path::Probe, fault),
            figures.cell(Path::HaproxyTuned, fault),
        ) {
            compare(probe, tuned, &mut bars);
        }
    }
    bars
}

/// What is promised whatever others do.
fn promises(cell: &Cell, bars: &mut Vec<Bar>) {
    let name = cell.fault.shown();
    let first = cell.first_answer.median.ms;
    let detection = median(cell.verdict);
    let inter = INTER.as_secs_f64() * 1e3;
    match cell.fault {
        Fault::Kill => {
            bars.push(none(&format!("{name}: failed requests"), cell.failed));
            bars.push(at_most(
                format!("{name}: worst latency over the quiet part's median"),
                median(cell.worst_added),
                5.0,
                "ms",
            ));
        }
        Fault::DropAll => {
            bars.push(none(
                &format!("{name}: failed connects"),
                cell.failed_connects,
            ));
            bars.push(at_most(
                format!("{name}: worst latency (detection, the verdict's median, and 5 ms)"),
                median(cell.worst),
                // Without a verdict nothing keeps the promise.
                detection.unwrap_or_default() + 5.0,
                "ms",
            ));
        }
        Fault::Hang => {
            bars.push(at_most(
                format!("{name}: first answer from the backup (fall x inter + timeout + 5 ms)"),
                first,
                f64::from(FALL) * inter + TIMEOUT.as_secs_f64() * 1e3 + 5.0,
                "ms",
            ));
            bars.push(at_most(
                format!("{name}: verdict to the last request in flight told"),
                // None in flight: none to be told.
                cell.in_flight_after_verdict
                    .map_or(Some(0.0), |told| told.median.ms)
                    .filter(|_| detection.is_some()),
                AT_ONCE_MS,
                "ms",
            ));
        }
        Fault::Status503 => {
            bars.push(at_most(
                format!("{name}: first answer from the backup"),
                first,
                25.0,
                "ms",
            ));
            bars.push(none(&format!("{name}: failed requests"), cell.failed));
        }
        Fault::Recovery => {
            bars.push(none(&format!("{name}: failed requests"), cell.failed));
        }
        Fault::LinkDown | Fault::WrongBody => {}
    }
    if cell.fault != Fault::Recovery {
        bars.push(at_most(
            format!("{name}: verdict to the last idle connection told"),
            median(cell.idle_after_verdict),
            AT_ONCE_MS,
            "ms",
        ));
    }
}

/// Column by column against HAProxy tuned. Of counts none is as good as none.
fn compare(probe: &Cell, tuned: &Cell, bars: &mut Vec<Bar>) {
    let name = probe.fault.shown();
    let mut counts = |what: &str, mine: Three<usize>, other: Three<usize>| {
        bars.push(at_most(
            format!("{name}: {what}, median, to HAProxy tuned"),
            mine.median as f64,
            // Better is less, unless there is nothing less.
            other.median.saturating_sub(1) as f64,
            "",
        ));
    };
    counts("failed requests", probe.failed, tuned.failed);
    counts("slow requests", probe.slow, tuned.slow);
    counts("lost requests", probe.lost, tuned.lost);
    counts("false switches", probe.false_switches, tuned.false_switches);
    if let (Some(mine), Some(other)) = (probe.broken, tuned.broken) {
        counts("long connections lost", mine, other);
    }
    let mut times = |what: &str, mine: Option<Three<Time>>, other: Option<Three<Time>>| {
        bars.push(at_most(
            format!("{name}: {what}, median, to HAProxy tuned"),
            median(mine),
            median(other),
            "ms",
        ));
    };
    // Whose requests all were answered is not slower than who left some without an answer.
    let answers_all = |cell: &Cell| cell.failed.median + cell.lost.median == 0;
    let other = tuned
        .worst
        .filter(|_| answers_all(tuned) || !answers_all(probe));
    times("worst latency", probe.worst, other);
    // When traffic goes back is a matter of the hold, and nobody is to be told then.
    if probe.fault != Fault::Recovery {
        times(
            "first answer",
            Some(probe.first_answer),
            Some(tuned.first_answer),
        );
        times("idle connections told", probe.told_idle, tuned.told_idle);
        times(
            "active connections told",
            probe.told_active,
            tuned.told_active,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{compare, promises};
    use crate::{
        faults::Fault,
        figures::{Three, Time, sum_up, tell, tests::facts},
        ways::Path,
    };

    #[test]
    fn a_failure_in_one_run_misses_the_bar() {
        let cell = sum_up(Path::Probe, Fault::Kill, &[tell(&facts())]).expect("it has a run");
        let mut bars = Vec::new();
        promises(&cell, &mut bars);
        let met: Vec<(bool, Option<f64>)> =
            bars.iter().map(|bar| (bar.met, bar.measured)).collect();
        // Ten failed; the worst never came; the idle ones were told 1.5 ms after the verdict.
        assert_eq!(met, [(false, Some(10.0)), (false, None), (true, Some(1.5))]);
    }

    #[test]
    fn better_is_less_or_none() {
        let mine = sum_up(Path::Probe, Fault::Kill, &[tell(&facts())]).expect("it has a run");
        let met = |mine: usize, other: usize| {
            let (mut a, mut b) = (mine_with(mine), mine_with(other));
            (a.slow, b.slow) = (a.failed, b.failed);
            let mut bars = Vec::new();
            compare(&a, &b, &mut bars);
            bars[0].met
        };
        assert!(met(0, 0) && met(0, 1) && met(2, 3));
        assert!(!met(1, 1) && !met(1, 0));
        // Neither told: nobody is better.
        let mut bars = Vec::new();
        compare(&mine, &mine, &mut bars);
        let active = bars
            .iter()
            .find(|bar| bar.name.contains("active"))
            .expect("it is compared");
        assert!(!active.met);
        // The other never did, and we did.
        let mut told = mine.clone();
        let came = Time {
            ms: Some(3.0),
            at_least_ms: None,
        };
        told.told_active = Some(Three {
            min: came,
            median: came,
            max: came,
        });
        bars.clear();
        compare(&told, &mine, &mut bars);
        assert!(
            bars.iter()
                .any(|bar| bar.name.contains("active") && bar.met)
        );
    }

    fn mine_with(failed: usize) -> crate::figures::Cell {
        let mut cell = sum_up(Path::Probe, Fault::Kill, &[tell(&facts())]).expect("it has a run");
        cell.failed = Three {
            min: failed,
            median: failed,
            max: failed,
        };
        cell
    }
}
