//! The figures as tables to read.

use std::fmt::Write;

use crate::figures::{Figures, Gap};

pub fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, figures);
    text
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.0}"),
    }
}

fn gap(gap: Gap) -> String {
    let of = [gap.p50, gap.p99, gap.max].map(number);
    format!("{:>9}{:>9}{:>9}", of[0], of[1], of[2])
}

fn write(text: &mut String, figures: &Figures) -> std::fmt::Result {
    let load = |load: &[f64]| {
        let words: Vec<String> = load.iter().map(|of| format!("{of:.1}")).collect();
        words.join(" ")
    };
    writeln!(
        text,
        "Linux {}, {}, {} CPUs; {}; load {} before, {} after; {:.0} s",
        figures.machine.kernel,
        figures.machine.cpu,
        figures.machine.cpus,
        figures.haproxy,
        load(&figures.load_before),
        load(&figures.load_after),
        figures.took_s
    )?;
    costs(text, figures)?;
    periods(text, figures)?;
    faults(text, figures)?;
    bars(text, figures)
}

fn costs(text: &mut String, figures: &Figures) -> std::fmt::Result {
    let Some(first) = figures.costs.first() else {
        return Ok(());
    };
    writeln!(
        text,
        "\nCPU per check, {} endpoints every {} ms, {} rounds",
        first.endpoints, first.inter_ms, first.cpu_us.count
    )?;
    writeln!(
        text,
        "{:<16}{:<10}{:>11}{:>9}{:>9}{:>9}",
        "", "", "checks/s", "us", "q1", "q3"
    )?;
    for cost in &figures.costs {
        writeln!(
            text,
            "{:<16}{:<10}{:>11.0}{:>9.1}{:>9.1}{:>9.1}",
            cost.kind.shown(),
            cost.way.shown(),
            cost.checks_per_second.median,
            cost.cpu_us.median,
            cost.cpu_us.q1,
            cost.cpu_us.q3
        )?;
    }
    Ok(())
}

fn periods(text: &mut String, figures: &Figures) -> std::fmt::Result {
    if figures.periods.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\nfrom one check of an endpoint to the next, and by how much that is longer than the interval (ms)\n\
         {:>9}{:>9}  {:<9}{:<15}{:>10}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>11}{:>7}{:>9}",
        "endpoints",
        "every ms",
        "",
        "",
        "wanted/s",
        "checks/s",
        "mean",
        "p50",
        "p99",
        "max",
        "late p50",
        "p99",
        "max",
        "false DOWN",
        "CPUs",
        "server's"
    )?;
    for period in &figures.periods {
        let silent = period.endpoints - period.checked.min(period.endpoints);
        let silent = match silent {
            0 => String::new(),
            silent => format!("  {silent} had none"),
        };
        writeln!(
            text,
            "{:>9}{:>9}  {:<9}{:<15}{:>10.0}{:>10.0}{:>9}{}{}{:>11}{:>7.2}{:>9.2}{silent}",
            period.endpoints,
            period.inter_ms,
            period.way.shown(),
            period.kind.shown(),
            period.wanted_per_second,
            period.achieved_per_second,
            number(period.mean_period_ms),
            gap(period.gap_ms),
            gap(period.late_ms),
            period.false_downs,
            period.cpus,
            period.server_cpus
        )?;
    }
    if !figures.skipped.is_empty() {
        writeln!(text, "no time was left for: {}", figures.skipped.join("; "))?;
    }
    if !figures.memory.is_empty() {
        writeln!(text, "\nmemory per endpoint")?;
    }
    for memory in &figures.memory {
        writeln!(
            text,
            "{:<10}{:>8.0} bytes resident, {:.0} of them its own; {} endpoints less {}",
            memory.way.shown(),
            memory.bytes_per_endpoint,
            memory.anonymous_bytes_per_endpoint,
            memory.many,
            memory.few
        )?;
    }
    Ok(())
}

fn faults(text: &mut String, figures: &Figures) -> std::fmt::Result {
    if !figures.detections.is_empty() {
        writeln!(
            text,
            "\nfrom the fault to the line of the log (ms)\n{:<10}{:<22}{:>8}{:>9}{:>9}{:>9}",
            "", "", "found", "min", "median", "max"
        )?;
    }
    for detection in &figures.detections {
        let who = match detection.sentinel {
            true => "probe, sentinel",
            false => detection.way.shown(),
        };
        writeln!(
            text,
            "{:<10}{:<22}{:>8}{:>9}{:>9}{:>9}",
            detection.fault.shown(),
            who,
            format!("{}/{}", detection.found, detection.faults),
            number(detection.ms.map(|ms| ms.min)),
            number(detection.ms.map(|ms| ms.median)),
            number(detection.worst_ms)
        )?;
    }
    for (nth, of) in figures.saturated.iter().enumerate() {
        if nth == 0 {
            writeln!(
                text,
                "\n{} endpoints every {} ms, timeout {} ms, fall {}, beside {} threads of other work\n\
                 {:<10}{:>9}{:>10}{:>12}{:>18}{:>12}{:>12}",
                of.endpoints,
                of.inter_ms,
                of.timeout_ms,
                of.fall,
                of.other_threads,
                "",
                "seconds",
                "checks/s",
                "false DOWN",
                "kills found (ms)",
                "gap p99",
                "gap max"
            )?;
        }
        let found: Vec<String> = of.found_ms.iter().map(|ms| format!("{ms:.1}")).collect();
        writeln!(
            text,
            "{:<10}{:>9.1}{:>10.0}{:>12}{:>18}{:>12}{:>12}",
            of.way.shown(),
            of.seconds,
            of.checks_per_second,
            of.false_downs,
            format!("{}/{}: {}", of.found_ms.len(), of.kills, found.join(" ")),
            number(of.gap_p99_ms),
            number(of.gap_max_ms)
        )?;
    }
    Ok(())
}

fn bars(text: &mut String, figures: &Figures) -> std::fmt::Result {
    writeln!(text, "\nbars")?;
    for bar in &figures.bars {
        writeln!(
            text,
            "{:<7}{} {} {}, measured {}",
            if bar.met { "met" } else { "MISSED" },
            bar.name,
            number(bar.limit),
            bar.unit,
            number(bar.measured)
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
