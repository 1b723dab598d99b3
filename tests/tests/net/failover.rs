//! The master fails in every way a master fails; its clients get the backup.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{
    Way,
    client::{Failure, KeepAlive, Load, Long, Plan, Sample, get},
    faults, privileged,
    topology::{VIP_BACKUP_V4, VIP_MASTER_V4, VIP_V4, VIP_V6},
    wait::patience,
};
use serde_json::json;

use crate::rig::{Rig, all_by, none_failed};

/// Far above what a check every 10 ms needs, far below what a person notices.
fn soon() -> Duration {
    patience(Duration::from_secs(2))
}

/// Makes the fault under load, waits for the backup, checks what clients saw.
/// `harmless`: the master still serves requests, so none may fail; those that it is
/// answering at the switch too, if its flows are kept.
fn fails_over(way: Way, harmless: bool, fault: impl FnOnce(&mut Rig) -> Result<()>) -> Result<Rig> {
    let mut rig = Rig::with(way, |config| {
        let policy = if harmless { "keep" } else { "reset" };
        config["services"][0]["on_marked_down"] = json!(policy);
    })?;
    let client = rig.lab.client.clone();
    let loads = [VIP_V4, VIP_V6].map(|vip| {
        Load::start(
            &client,
            Plan {
                rate: 100,
                ..Plan::steady(vip)
            },
        )
    });
    for load in &loads {
        load.run_for(50)?;
    }
    let before = Instant::now();
    fault(&mut rig)?;
    let after = Instant::now();
    for load in &loads {
        let first = load.wait_for("backup")?;
        let took = first.ended.saturating_duration_since(after);
        ensure!(took < soon(), "the backup answered after {took:?}");
    }
    let reason = rig.agent.wait_selected("backup")?;
    ensure!(reason == "master-down", "the reason is {reason}");
    let switched = Instant::now();
    let verdict = rig.agent.wait_state("master", "down")?;
    ensure!(verdict != "ok", "the verdict is {verdict}");
    for load in &loads {
        load.run_for(100)?;
    }
    for load in loads {
        let samples = load.stop()?;
        // In the order of their beginnings; what was pending at the fault may meet it.
        let steady: Vec<Sample> = samples
            .iter()
            .filter(|sample| sample.ended < before)
            .cloned()
            .collect();
        all_by(&steady, "master")?;
        let after = samples.partition_point(|sample| sample.begun <= switched);
        all_by(&samples[after..], "backup")?;
        if harmless {
            none_failed(&samples)?;
        }
    }
    ensure!(rig.agent.switches()? == 1, "more than one switch");
    Ok(rig)
}

#[test]
fn killed() {
    privileged(|| {
        let rig = fails_over(Way::Edge, false, |rig| rig.master.kill())?;
        let answer = get(&rig.lab.client, VIP_MASTER_V4, "/")?;
        ensure!(
            answer == Err(Failure::Refused),
            "the master's own listener stays with the master: {answer:?}"
        );
        let answer = get(&rig.lab.client, VIP_BACKUP_V4, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "backup"));
        Ok(())
    });
}

#[test]
fn killed_seen_from_outside() {
    privileged(|| fails_over(Way::Uplink, false, |rig| rig.master.kill()).map(drop));
}

#[test]
fn killed_among_pods() {
    privileged(|| fails_over(Way::EdgeAmongPods, false, |rig| rig.master.kill()).map(drop));
}

#[test]
fn hung() {
    privileged(|| fails_over(Way::Edge, false, |rig| rig.master.stop()).map(drop));
}

#[test]
fn blackholed() {
    privileged(|| fails_over(Way::Edge, false, |rig| faults::blackhole(&rig.lab.master)).map(drop));
}

#[test]
fn blackholed_seen_from_outside() {
    privileged(|| {
        fails_over(Way::Uplink, false, |rig| faults::blackhole(&rig.lab.master)).map(drop)
    });
}

#[test]
fn unplugged() {
    privileged(|| fails_over(Way::Edge, false, |rig| faults::unplug(&rig.lab.master)).map(drop));
}

#[test]
fn answers_503() {
    privileged(|| fails_over(Way::Edge, true, |rig| rig.master.set_status(503)).map(drop));
}

#[test]
fn answers_a_wrong_body() {
    privileged(|| fails_over(Way::Edge, true, |rig| rig.master.set_body("starting up")).map(drop));
}

#[test]
fn answers_too_late() {
    privileged(|| {
        fails_over(Way::Edge, true, |rig| {
            // Past the check's timeout, within a client's patience.
            rig.master.set_delay(patience(Duration::from_millis(500)))
        })
        .map(drop)
    });
}

#[test]
fn connections_of_a_lost_master_are_reset() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let mut rig = Rig::new(way)?;
            let longs = [VIP_V4, VIP_V6]
                .map(|vip| Long::open(&rig.lab.client, vip, Duration::from_millis(10)));
            faults::blackhole(&rig.lab.master)?;
            rig.agent.wait_selected("backup")?;
            let told = Instant::now();
            for long in longs {
                let end = long?.wait_end()?;
                let late = end.at.saturating_duration_since(told);
                ensure!(late < soon(), "{way:?}: told after {late:?}: {}", end.how);
                ensure!(end.how == "reset", "{way:?}: {}", end.how);
            }
        }
        Ok(())
    });
}

#[test]
fn connections_of_a_lost_master_are_kept_if_told_so() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, |config| {
            config["services"][0]["on_marked_down"] = json!("keep");
        })?;
        let long = Long::open(&rig.lab.client, VIP_V4, Duration::from_millis(10))?;
        let mut kept = KeepAlive::connect(&rig.lab.client, VIP_V6)?;
        rig.master.set_status(503)?;
        rig.agent.wait_selected("backup")?;
        long.check_alive()?;
        let answer = kept.get("/").expect("a kept connection goes on");
        ensure!(answer.body == "master");
        ensure!(long.server().as_deref() == Some("master"));
        Ok(())
    });
}

/// Both endpoints go; says what a new client sees then.
fn all_down(policy: &str) -> Result<(Rig, Result<String, Failure>)> {
    let mut rig = Rig::with(Way::Edge, |config| {
        config["services"][0]["all_down"] = json!(policy);
        // Two faults, one soon after the other.
        config["suspect_self"] = json!("off");
    })?;
    faults::blackhole(&rig.lab.master)?;
    rig.agent.wait_selected("backup")?;
    faults::blackhole(&rig.lab.backup)?;
    rig.agent.wait_state("backup", "down")?;
    if policy == "refuse" {
        rig.agent.wait("the service to refuse", |status| {
            let selection = &status["services"][0]["selection"];
            (selection["kind"] == "refuse" && selection["reason"] == "all-down")
                .then_some(())
                .with_context(|| format!("{selection}"))
        })?;
    }
    let answer = get(&rig.lab.client, VIP_V4, "/")?.map(|answer| answer.body);
    Ok((rig, answer))
}

#[test]
fn all_down_keeps_the_last_choice() {
    privileged(|| {
        let (mut rig, answer) = all_down("keep")?;
        ensure!(answer == Err(Failure::Timeout), "{answer:?}");
        rig.agent.wait_selected("backup")?;
        faults::heal(&rig.lab.backup)?;
        rig.agent.wait_state("backup", "up")?;
        let answer = get(&rig.lab.client, VIP_V4, "/")?.map(|answer| answer.body);
        ensure!(answer == Ok("backup".to_owned()), "{answer:?}");
        Ok(())
    });
}

#[test]
fn all_down_refuses_if_told_so() {
    privileged(|| {
        let (mut rig, answer) = all_down("refuse")?;
        ensure!(answer == Err(Failure::Refused), "IPv4: {answer:?}");
        let answer = get(&rig.lab.client, VIP_V6, "/")?.map(|answer| answer.body);
        ensure!(answer == Err(Failure::Refused), "IPv6: {answer:?}");
        faults::heal(&rig.lab.backup)?;
        rig.agent.wait_selected("backup")?;
        let answer = get(&rig.lab.client, VIP_V4, "/")?.map(|answer| answer.body);
        ensure!(answer == Ok("backup".to_owned()), "{answer:?}");
        Ok(())
    });
}

/// Both at once may be the node's own trouble: nothing is switched, refused or reset.
#[test]
fn who_falls_silent_together_is_doubted() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, |config| {
            let service = &mut config["services"][0];
            service["all_down"] = json!("refuse");
            // Time to silence both before any check is over.
            service["check"]["timeout"] = json!("500ms");
        })?;
        let (host, other) = (&rig.lab.master, &rig.lab.backup);
        faults::blackhole(host)?;
        faults::blackhole(other)?;
        let doubts =
            |status: &serde_json::Value| status["agent"]["distrust_since_unix_ms"].is_u64();
        rig.agent.wait("the agent to doubt itself", |status| {
            ensure!(doubts(status), "{}", status["agent"]);
            Ok(())
        })?;
        rig.agent.wait_state("master", "down")?;
        rig.agent.wait_state("backup", "down")?;
        faults::heal(&rig.lab.master)?;
        faults::heal(&rig.lab.backup)?;
        rig.agent.wait_state("master", "up")?;
        rig.agent.wait_state("backup", "up")?;
        rig.agent.wait("the doubt to be over", |status| {
            ensure!(!doubts(status), "{}", status["agent"]);
            Ok(())
        })?;
        rig.agent.wait_selected("master")?;
        let switches = rig.agent.switches()?;
        ensure!(switches == 0, "{switches} switches");
        let answer = get(&rig.lab.client, VIP_V4, "/")?.map(|answer| answer.body);
        ensure!(answer == Ok("master".to_owned()), "{answer:?}");
        Ok(())
    });
}

#[test]
fn outside_clients_are_refused_too() {
    privileged(|| {
        for xdp in ["native", "generic", "off"] {
            let mut rig = Rig::with(Way::Uplink, |config| {
                config["services"][0]["all_down"] = json!("refuse");
                config["datapath"] = json!({"xdp": xdp});
            })?;
            rig.master.kill()?;
            rig.backup.set_status(503)?;
            rig.agent.wait("the service to refuse", |status| {
                let selection = &status["services"][0]["selection"];
                (selection["kind"] == "refuse")
                    .then_some(())
                    .with_context(|| format!("{selection}"))
            })?;
            for vip in [VIP_V4, VIP_V6] {
                // The backup would still answer: only the datapath refuses.
                let answer = get(&rig.lab.client, vip, "/")?.map(|answer| answer.body);
                ensure!(answer == Err(Failure::Refused), "{xdp} {vip}: {answer:?}");
            }
        }
        Ok(())
    });
}
