//! The figures as tables to read.

use std::fmt::Write;

use crate::{
    faults::Fault,
    figures::{Cell, Figures, Three, Time},
    ways::Path,
};

pub fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, figures);
    text
}

/// Three digits are enough for everybody.
pub fn number(ms: f64) -> String {
    match ms {
        ms if ms >= 1000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 99.95 => format!("{ms:.0}"),
        ms if ms >= 9.995 => format!("{ms:.1}"),
        ms => format!("{ms:.2}"),
    }
}

pub fn time(time: Time) -> String {
    match (time.ms, time.at_least_ms) {
        (Some(ms), _) => number(ms),
        (None, Some(bound)) => format!(">{}", number(bound)),
        (None, None) => "-".to_owned(),
    }
}

fn times(three: Option<Three<Time>>) -> String {
    let Some(three) = three else {
        return "-".to_owned();
    };
    let [min, median, max] = [three.min, three.median, three.max].map(time);
    if min == max {
        return median;
    }
    format!("{median} ({min}..{max})")
}

fn counts(three: Three<usize>) -> String {
    if three.min == three.max {
        return three.median.to_string();
    }
    format!("{} ({}..{})", three.median, three.min, three.max)
}

fn write(text: &mut String, figures: &Figures) -> std::fmt::Result {
    let (machine, setting) = (&figures.machine, &figures.setting);
    writeln!(
        text,
        "Linux {}, {}, {} CPUs; {}; {:.0} s",
        machine.kernel, machine.cpu, machine.cpus, figures.haproxy, figures.took_s
    )?;
    if !figures.cells.is_empty() {
        writeln!(
            text,
            "{} new connections/s, {} idle and {} active long ones (a request every {:.0} ms); {:.0} ms quiet, then the fault",
            setting.connections_per_second,
            setting.idle_connections,
            setting.active_connections,
            setting.active_every_ms,
            setting.quiet_ms
        )?;
        writeln!(
            text,
            "median (min..max) of the runs, ms; >X: not within the window, or given up after {} s",
            setting.patience_ms / 1e3
        )?;
        for way in &figures.ways {
            writeln!(text, "  {:<18} {}", way.name, way.described)?;
        }
    }
    for fault in Fault::ALL {
        let cells: Vec<&Cell> = figures.cells.iter().filter(|c| c.fault == fault).collect();
        if !cells.is_empty() {
            table(text, fault, &cells)?;
        }
    }
    if !figures.cells.is_empty() {
        quiet(text, figures)?;
    }
    if let Some(flows) = &figures.flows {
        writeln!(
            text,
            "\n{} open flows ({} wanted{}), drop all: opened in {:.1} s, {} ended before; verdict after {} (ms); \
             {} told: half of them {} after the verdict, the last {}",
            flows.open,
            flows.wanted,
            flows
                .limited
                .as_ref()
                .map(|why| format!("; {why}"))
                .unwrap_or_default(),
            flows.opening_took_s,
            flows.ended_before,
            time(flows.verdict),
            flows.told,
            time(flows.half_told),
            time(flows.all_told)
        )?;
    }
    bars(text, figures)
}

fn table(text: &mut String, fault: Fault, cells: &[&Cell]) -> std::fmt::Result {
    let recovery = fault == Fault::Recovery;
    let (first, idle, active) = if recovery {
        ("first by master", "long ones lost", "")
    } else {
        ("first by backup", "idle told", "active told")
    };
    writeln!(
        text,
        "\n{:<18}{:>5}{:>24}{:>18}{:>14}{:>19}{:>25}{:>25}{:>24}",
        fault.shown(),
        "runs",
        first,
        "failed",
        "slow",
        "lost",
        "worst",
        idle,
        active
    )?;
    for cell in cells {
        let idle = match cell.broken {
            Some(broken) => counts(broken),
            None => times(cell.told_idle),
        };
        let active = if recovery {
            String::new()
        } else {
            times(cell.told_active)
        };
        writeln!(
            text,
            "{:<18}{:>5}{:>24}{:>18}{:>14}{:>19}{:>25}{:>25}{:>24}",
            cell.way.shown(),
            cell.runs,
            times(Some(cell.first_answer)),
            counts(cell.failed),
            counts(cell.slow),
            counts(cell.lost),
            times(cell.worst),
            idle,
            active
        )?;
    }
    for cell in cells {
        if cell.verdict.is_some() {
            writeln!(
                text,
                "  {}: verdict after {} ms; worst latency with all that the generator was late: {}",
                cell.way.shown(),
                times(cell.verdict),
                times(cell.worst_from_due)
            )?;
        }
        if cell.way == Path::Probe && !cell.failures.is_empty() {
            let kinds: Vec<String> = cell
                .failures
                .iter()
                .map(|(kind, count)| format!("{count} {kind}"))
                .collect();
            writeln!(text, "  {}: failed: {}", cell.way.shown(), kinds.join(", "))?;
        }
    }
    Ok(())
}

/// What happened without a fault, and how late the generator was.
fn quiet(text: &mut String, figures: &Figures) -> std::fmt::Result {
    writeln!(
        text,
        "\n{:<18}{:>10}{:>10}{:>10}{:>16}{:>16}{:>16}{:>12}{:>12}",
        "quiet parts",
        "seconds",
        "p50",
        "failed",
        "false switches",
        "begun late p99",
        "begun late max",
        "disturbed",
        "repeated"
    )?;
    for path in Path::ALL {
        let cells: Vec<&Cell> = figures.cells.iter().filter(|c| c.way == path).collect();
        if cells.is_empty() {
            continue;
        }
        let most = |of: fn(&Cell) -> f64| cells.iter().map(|c| of(c)).fold(0.0, f64::max);
        let mut steady: Vec<f64> = cells.iter().filter_map(|c| c.steady_p50_ms).collect();
        steady.sort_by(f64::total_cmp);
        let false_switches: usize = cells.iter().map(|c| c.false_switches_in_all).sum();
        writeln!(
            text,
            "{:<18}{:>10.1}{:>10}{:>10}{:>16}{:>16}{:>16}{:>12}{:>12}",
            path.shown(),
            cells.iter().map(|c| c.quiet_ms).sum::<f64>() / 1e3,
            lab::bench::quantile(&steady, 0.5).map_or("-".to_owned(), number),
            cells.iter().map(|c| c.failed_before).sum::<usize>(),
            false_switches,
            number(most(|c| c.generator.late_p99_ms)),
            number(most(|c| c.generator.late_max_ms)),
            cells.iter().map(|c| c.generator.disturbed).sum::<usize>(),
            cells.iter().map(|c| c.generator.repeated).sum::<usize>()
        )?;
    }
    let realtime = figures.cells.iter().all(|cell| cell.generator.realtime);
    writeln!(
        text,
        "disturbed: requests under way while the generator did not run for over 2 ms; repeated: runs \
         in which it did not for over 4 ms around the fault, or before whose fault there was a false switch. It {} a real-time priority",
        if realtime { "has" } else { "lacks" }
    )
}

fn bars(text: &mut String, figures: &Figures) -> std::fmt::Result {
    writeln!(text, "\nbars")?;
    let shown =
        |value: Option<f64>| value.map_or("never".to_owned(), |value| format!("{value:.2}"));
    for bar in &figures.bars {
        writeln!(
            text,
            "{:<7}{} {} {}, measured {}",
            if bar.met { "met" } else { "MISSED" },
            bar.name,
            shown(bar.limit),
            bar.unit,
            shown(bar.measured)
        )?;
    }
    let missed = figures.bars.iter().filter(|bar| !bar.met).count();
    writeln!(
        text,
        "{} of {} bars met, {missed} missed",
        figures.bars.len() - missed,
        figures.bars.len()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{number, time, times};
    use crate::figures::{Three, Time};

    #[test]
    fn what_did_not_come_is_told_by_its_bound() {
        assert_eq!(number(0.123), "0.12");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(number(123.4), "123");
        assert_eq!(number(5_400.0), "5.4 s");
        let never = Time::not_by(Duration::from_millis(1300));
        assert_eq!(time(never), ">1.3 s");
        let came = Time::came(Duration::from_millis(2));
        let three = Three::<Time>::of([never, came, came]);
        assert_eq!(times(three), "2.00 (2.00..>1.3 s)");
        assert_eq!(times(Three::<Time>::of([came, came])), "2.00");
        assert_eq!(times(None), "-");
    }
}
