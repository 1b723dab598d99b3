//! The figures as tables to read.

use std::fmt::Write;

use crate::Figures;

pub fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, figures);
    text
}

fn write(text: &mut String, figures: &Figures) -> std::fmt::Result {
    writeln!(
        text,
        "Linux {}, {}, {} CPUs",
        figures.machine.kernel, figures.machine.cpu, figures.machine.cpus
    )?;
    if let Some(programs) = &figures.programs {
        writeln!(
            text,
            "\nns a packet, net of the harness: medians of {} rounds of {} packets",
            programs.rounds, programs.packets_a_run
        )?;
        writeln!(
            text,
            "{:<5}{:<6}{:<34}{:>8}{:>9}{:>9}{:>9}{:>9}",
            "hook", "", "", "flows", "median", "q1", "q3", "min"
        )?;
        for row in &programs.rows {
            let flows = row.flows.map(|flows| flows.to_string()).unwrap_or_default();
            let net = &row.net_ns;
            let steered = row
                .steered
                .map(|part| format!("  {:.0}% steered", part * 100.0))
                .unwrap_or_default();
            writeln!(
                text,
                "{:<5}{:<6}{:<34}{flows:>8}{:>9.1}{:>9.1}{:>9.1}{:>9.1}{steered}",
                row.hook,
                row.family.shown(),
                row.what.shown(),
                net.median,
                net.q1,
                net.q3,
                net.min
            )?;
        }
    }
    if let Some(throughput) = &figures.throughput {
        writeln!(
            text,
            "\nnginx behind a node, {} connections: medians of {} rounds of {} s",
            throughput.connections, throughput.rounds, throughput.seconds_a_run
        )?;
        writeln!(
            text,
            "{:<17}{:<19}{:>10}{:>11}{:>9}{:>9}{:>9}",
            "", "", "requests/s", "to direct", "to nft", "p50 us", "p99 us"
        )?;
        for row in &throughput.rows {
            writeln!(
                text,
                "{:<17}{:<19}{:>10.0}{:>11.3}{:>9.3}{:>9.0}{:>9.0}",
                row.mode.shown(),
                row.path.shown(),
                row.per_second.median,
                row.to_direct.median,
                row.to_nft.median,
                row.p50_us.median,
                row.p99_us.median
            )?;
        }
    }
    if !figures.switches.is_empty() {
        writeln!(text, "\nswitch")?;
        for switch in &figures.switches {
            writeln!(
                text,
                "{:>8} flows: store {:.0} ns; store to first packet steered {:.1} us (p99 {:.1} us)",
                switch.flows,
                switch.store_ns.median,
                switch.first_packet_us.median,
                switch.first_packet_p99_us
            )?;
        }
    }
    writeln!(text, "\nbars")?;
    for bar in &figures.bars {
        writeln!(
            text,
            "{:<7}{} {:.2} {}, measured {:.3}",
            if bar.met { "met" } else { "MISSED" },
            bar.name,
            bar.limit.unwrap_or(f64::INFINITY),
            bar.unit,
            bar.measured.unwrap_or(f64::NAN)
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
