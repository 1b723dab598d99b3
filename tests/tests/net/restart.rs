//! The agent ends, in order or not, and comes back: no client notices.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{
    Agent, Way, agent,
    client::{Load, Long, Plan, get},
    privilege::with_tcx,
    privileged,
    topology::{VIP_V4, VIP_V6},
};
use serde_json::json;

use crate::rig::{Rig, all_by};

/// Restarts the agent some times under traffic.
fn restarts(way: Way, tc: &str, gently: bool) -> Result<()> {
    let mut rig = Rig::with(way, |config| config["datapath"] = json!({"tc": tc}))?;
    let client = rig.lab.client.clone();
    let longs = [
        Long::open(&client, VIP_V4, Duration::from_millis(10))?,
        Long::open(&client, VIP_V6, Duration::from_millis(10))?,
    ];
    let loads = [VIP_V4, VIP_V6].map(|vip| {
        Load::start(
            &client,
            Plan {
                rate: 100,
                ..Plan::steady(vip)
            },
        )
    });
    for _ in 0..3 {
        if gently {
            let (status, printed) = rig.agent.terminate()?;
            ensure!(status.success(), "{status}: {printed}");
        } else {
            rig.agent.kill()?;
        }
        // Nobody is there, and traffic goes on.
        for load in &loads {
            load.run_for(30)?;
        }
        rig.agent.restart()?;
        let reason = rig.agent.wait_selected("master")?;
        ensure!(reason == "inherited", "the reason is {reason}");
        for load in &loads {
            load.run_for(30)?;
        }
    }
    for long in &longs {
        long.check_alive()?;
    }
    for load in loads {
        all_by(&load.stop()?, "master")?;
    }
    // The counters of the first agent are still there: the state was found again.
    let status = rig.agent.status()?;
    let traffic = &agent::find_endpoint(&status, "master")?["traffic"];
    ensure!(traffic["flows_opened"].as_u64() >= Some(360), "{traffic}");
    Ok(())
}

#[test]
fn terminated_among_pods_by_tcx() {
    with_tcx(|| restarts(Way::EdgeAmongPods, "tcx", true));
}

#[test]
fn terminated_by_clsact() {
    privileged(|| restarts(Way::Edge, "clsact", true));
}

#[test]
fn terminated_on_an_uplink() {
    privileged(|| restarts(Way::Uplink, "auto", true));
}

#[test]
fn killed_by_tcx() {
    with_tcx(|| restarts(Way::Edge, "tcx", false));
}

#[test]
fn killed_by_clsact() {
    privileged(|| restarts(Way::Edge, "clsact", false));
}

#[test]
fn killed_on_an_uplink() {
    privileged(|| restarts(Way::Uplink, "clsact", false));
}

#[test]
fn the_selection_is_inherited_while_the_master_is_down() {
    privileged(|| {
        let mut rig = Rig::new(Way::Edge)?;
        rig.master.kill()?;
        rig.agent.wait_selected("backup")?;
        rig.agent.kill()?;
        let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
        load.run_for(50)?;
        rig.agent.restart()?;
        rig.agent.wait_state("master", "down")?;
        load.run_for(50)?;
        all_by(&load.stop()?, "backup")?;
        ensure!(rig.agent.wait_selected("backup")? == "inherited");
        rig.master.restart()?;
        ensure!(rig.agent.wait_selected("master")? == "failback");
        Ok(())
    });
}

#[test]
fn a_second_agent_is_refused() {
    privileged(|| {
        let mut rig = Rig::new(Way::Edge)?;
        let mut config = agent::config(&rig.lab);
        config["control"]["socket"] = json!(rig.lab.file("second.sock"));
        config["metrics"]["listen"] = json!("off");
        let mut second = Agent::new(&rig.lab, &config, &[])?;
        second.launch()?;
        let (status, printed) = second.wait_end()?;
        ensure!(status.code() == Some(1), "{status}: {printed}");
        ensure!(printed.contains("another"), "{printed}");
        rig.agent.wait_selected("master")?;
        let answer = get(&rig.lab.client, VIP_V4, "/")?.expect("the first goes on");
        ensure!(answer.body == "master");
        Ok(())
    });
}
