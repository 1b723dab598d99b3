//! The figures as a timeline to read.

use std::fmt::Write;

use crate::figures::{Bar, Figures, Phase};

pub fn timeline(figures: &Figures) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    compose(figures, &mut text).expect("a string takes all");
    text
}

fn compose(figures: &Figures, out: &mut String) -> std::fmt::Result {
    let Figures {
        machine,
        setting,
        steady,
        failover,
        on_backup,
        failback,
        back_on_master,
        ..
    } = figures;
    writeln!(
        out,
        "probe demo: {} new connections/s, check every {} ms, fall {}, rise {}, hold {} s",
        setting.connections_per_second,
        setting.interval_ms,
        setting.fall,
        setting.rise,
        setting.hold_ms / 1000.0
    )?;
    writeln!(out, "Linux {}, {} CPUs\n", machine.kernel, machine.cpus)?;

    line(out, 0.0, "steady on the master", &served(steady))?;
    line(out, failover.killed_at_ms, "master killed", "SIGKILL")?;
    after(
        out,
        failover.long_connection_told_after_ms,
        "long connection told",
        &format!(
            "{} after {} ticks",
            failover.long_connection_told_by, failover.long_connection_ticks_before
        ),
    )?;
    let kinds = if failover.failures.is_empty() {
        String::new()
    } else {
        format!(" ({})", failover.failures.join(", "))
    };
    after(
        out,
        failover.first_answer_from_backup_after_ms,
        "first answer from the backup",
        &format!(
            "{} of {} requests failed{kinds}, {} slow",
            failover.failed, failover.requests, failover.slow
        ),
    )?;
    line(
        out,
        on_backup.begins_ms,
        "on the backup",
        &served(on_backup),
    )?;
    line(out, failback.restored_at_ms, "master restored", "")?;
    let kept = if failback.long_connection_to_backup_kept {
        "long connection to the backup kept"
    } else {
        "long connection to the backup lost"
    };
    let mut returns = [
        (
            failback.first_answer_from_master_after_ms,
            "first answer from the master",
            format!(
                "hold {} ms, {} of {} requests failed meanwhile",
                setting.hold_ms, failback.failed, failback.requests
            ),
        ),
        (
            failback.last_answer_from_backup_after_ms,
            "last answer from the backup",
            kept.to_owned(),
        ),
    ];
    returns.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (at, what, more) in &returns {
        after(out, *at, what, more)?;
    }
    line(
        out,
        back_on_master.begins_ms,
        "back on the master",
        &served(back_on_master),
    )?;
    writeln!(out)?;
    figures.bars.iter().try_for_each(|item| bar(out, item))
}

fn line(out: &mut String, at_ms: f64, what: &str, more: &str) -> std::fmt::Result {
    writeln!(out, "{:>9.3} s  {what:<30} {more}", at_ms / 1000.0)
}

fn after(out: &mut String, after_ms: f64, what: &str, more: &str) -> std::fmt::Result {
    writeln!(out, "{:>+9.1} ms   {what:<29} {more}", after_ms)
}

fn served(phase: &Phase) -> String {
    let time = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
    format!(
        "{} requests, {} failed, {} slow; p50 {} p99 {} worst {} ms",
        phase.requests,
        phase.failed,
        phase.slow,
        time(phase.p50_ms),
        time(phase.p99_ms),
        time(phase.worst_ms)
    )
}

fn bar(out: &mut String, bar: &Bar) -> std::fmt::Result {
    let verdict = if bar.met { "met   " } else { "MISSED" };
    writeln!(
        out,
        "{verdict}  {:<62} {} (limit {}) {}",
        bar.name, bar.measured, bar.limit, bar.unit
    )
}
