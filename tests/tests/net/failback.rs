//! The master comes back; so do its clients, when they should.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{
    Way, agent,
    client::{Load, Long, Plan, get},
    privileged,
    topology::VIP_V4,
};
use serde_json::json;

use crate::rig::{Rig, all_by, none_failed};

#[test]
fn after_the_hold_and_without_a_failed_request() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let hold = Duration::from_millis(700);
            let mut rig = Rig::with(way, |config| {
                config["services"][0]["failback"] = json!({"mode": "auto", "hold": "700ms"});
            })?;
            let client = rig.lab.client.clone();
            rig.master.kill()?;
            rig.agent.wait_selected("backup")?;

            let load = Load::start(&client, Plan::steady(VIP_V4));
            let long = Long::open(&client, VIP_V4, Duration::from_millis(10))?;
            ensure!(long.server().as_deref() == Some("backup"));
            load.run_for(50)?;
            // The server listens before this returns, so the hold may begin earlier.
            let begun = Instant::now();
            rig.master.restart()?;
            let first = load.wait_for("master")?;
            let took = first.ended.saturating_duration_since(begun);
            ensure!(took >= hold, "{way:?}: back after {took:?}, hold {hold:?}");
            let reason = rig.agent.wait_selected("master")?;
            ensure!(reason == "failback", "the reason is {reason}");
            let switched = Instant::now();
            load.run_for(100)?;
            let samples = load.stop()?;
            none_failed(&samples)?;
            let back = samples.partition_point(|sample| sample.begun <= switched);
            all_by(&samples[back..], "master")?;
            // The backup is well: who talks to it goes on.
            long.check_alive()?;
        }
        Ok(())
    });
}

#[test]
fn a_relapse_begins_the_hold_anew() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, |config| {
            config["services"][0]["failback"] = json!({"mode": "auto", "hold": "800ms"});
        })?;
        rig.master.set_status(503)?;
        rig.agent.wait_selected("backup")?;
        rig.master.behave()?;
        rig.agent.wait_state("master", "up")?;
        rig.agent.wait("a fail-back to be due", |status| {
            status["services"][0]["failback"]["due_unix_ms"]
                .as_u64()
                .context("none is due")
        })?;
        rig.master.set_status(503)?;
        rig.agent.wait_state("master", "down")?;
        rig.agent.wait("no fail-back to be due", |status| {
            status["services"][0]["failback"]["due_unix_ms"]
                .is_null()
                .then_some(())
                .context("one is due")
        })?;
        let again = Instant::now();
        rig.master.behave()?;
        rig.agent.wait_selected("master")?;
        let took = again.elapsed();
        ensure!(took >= Duration::from_millis(800), "back after {took:?}");
        ensure!(rig.agent.switches()? == 2, "there and back");
        Ok(())
    });
}

#[test]
fn manual_waits_for_the_order() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, |config| {
            config["services"][0]["failback"] = json!({"mode": "manual"});
        })?;
        let checks = |rig: &mut Rig| -> Result<u64> {
            agent::find_endpoint(&rig.agent.status()?, "master")?["checks"]
                .as_u64()
                .context("a count of checks")
        };
        rig.master.kill()?;
        rig.agent.wait_selected("backup")?;
        rig.master.restart()?;
        rig.agent.wait_state("master", "up")?;
        let goal = checks(&mut rig)? + 100;
        lab::wait::until_true("a hundred good checks", || {
            checks(&mut rig).is_ok_and(|count| count >= goal)
        })?;
        ensure!(rig.agent.switches()? == 1, "it went back by itself");
        let answer = get(&rig.lab.client, VIP_V4, "/")?.expect("the VIP answers");
        ensure!(answer.body == "backup");

        let socket = rig.lab.file("probe.sock");
        let socket = socket.to_string_lossy();
        let (code, _, stderr) = rig
            .agent
            .probe(&["failback", "nonsense", "--socket", &socket])?;
        ensure!(code != 0 && stderr.contains("nonsense"), "{code}: {stderr}");

        rig.agent.order(&["failback", "sense"])?;
        let reason = rig.agent.wait_selected("master")?;
        ensure!(reason == "manual", "the reason is {reason}");
        let answer = get(&rig.lab.client, VIP_V4, "/")?.expect("the VIP answers");
        ensure!(answer.body == "master");
        Ok(())
    });
}
