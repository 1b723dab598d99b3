//! SYNs that wait for an endpoint when it goes down are sent on, and what comes late is reset.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{
    Namespace, Way,
    client::{Load, Long, Plan},
    faults, privileged,
    topology::{VIP_V4, VIP_V6},
    until,
};
use serde_json::json;

use crate::{redispatch::counted, rig::Rig};

/// Checks decide soon, and nothing else does.
fn rig(way: Way) -> Result<Rig> {
    Rig::with(way, |config| {
        let service = &mut config["services"][0];
        service["sentinel"] = json!("off");
        service["observe"] = json!("off");
    })
}

/// A counter of the master's.
fn of_master(rig: &Rig, name: &str) -> Result<u64> {
    let page = rig.agent.metrics_page("/metrics")?;
    let start = format!("probe_{name}_total{{service=\"sense\",endpoint=\"master\"}} ");
    let found = page.lines().find_map(|line| line.strip_prefix(&start));
    let found = found.with_context(|| format!("no {name} on the page"))?;
    Ok(found.parse::<f64>()? as u64)
}

/// SYNs that the host has repeated.
fn repeated(host: &Namespace) -> Result<u64> {
    let text = host.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/netstat")?))?;
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("TcpExt:")).collect();
    let [names, values] = lines[..] else {
        anyhow::bail!("no TcpExt in {text}");
    };
    let at = names.split(' ').position(|name| name == "TCPSynRetrans");
    let value = values.split(' ').nth(at.context("TCPSynRetrans")?);
    Ok(value.context("a value")?.parse()?)
}

fn nobody_waits_for_a_lost_endpoint(way: Way) -> Result<()> {
    let mut rig = rig(way)?;
    for vip in [VIP_V4, VIP_V6] {
        let before = (
            of_master(&rig, "syns_released")?,
            repeated(&rig.lab.client)?,
        );
        let load = Load::start(&rig.lab.client, Plan::steady(vip));
        load.run_for(20)?;
        faults::blackhole(&rig.lab.master)?;
        rig.agent.wait_selected("backup")?;
        load.wait_for("backup")?;
        load.run_for(50)?;
        let samples = load.stop()?;
        let failed = samples.iter().filter(|sample| sample.outcome.is_err());
        // What was connected when the master vanished cannot be answered any more.
        let failed = failed.count();
        ensure!(failed <= 2, "{failed} of {} failed", samples.len());
        let released = of_master(&rig, "syns_released")? - before.0;
        let repeated = repeated(&rig.lab.client)? - before.1;
        println!("{vip}: {released} released, {repeated} repeated, {failed} failed");
        // The agent may take a look while some are still to be repeated, never while all are.
        ensure!(
            released > 0 && released >= repeated,
            "{vip}: {released} and {repeated}"
        );
        faults::heal(&rig.lab.master)?;
        rig.agent.wait_state("master", "up")?;
        rig.agent.wait_selected("master")?;
    }
    Ok(())
}

#[test]
fn at_the_edge() {
    privileged(|| nobody_waits_for_a_lost_endpoint(Way::Edge));
}

#[test]
fn from_outside() {
    privileged(|| nobody_waits_for_a_lost_endpoint(Way::Uplink));
}

/// The master hears and is not heard. When it is, nobody listens any more.
#[test]
fn who_answers_late_is_reset() {
    privileged(|| {
        let mut rig = rig(Way::Edge)?;
        let mute = "table inet mute { chain out { type filter hook output priority 0; \
                    tcp flags & (syn | ack) == syn | ack drop; }; }";
        rig.lab.master.ask("nft", &[mute])?;
        let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
        rig.agent.wait_selected("backup")?;
        load.wait_for("backup")?;
        let long = Long::open(&rig.lab.client, VIP_V4, Duration::from_millis(10))?;
        rig.lab.master.ask("nft", &["delete table inet mute"])?;
        // Its kernel repeats what it has not been told to forget.
        until("a late answer", || {
            let late = counted(&rig.agent, "late_answer")?;
            ensure!(late > 0, "none came");
            Ok(())
        })?;
        for sample in load.stop()? {
            ensure!(sample.outcome.is_ok(), "{sample:?}");
        }
        long.check_alive()
    });
}
