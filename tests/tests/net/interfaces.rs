//! Interfaces come and go; foreign ones stay foreign.

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Namespace, Way,
    client::get,
    kernel::traces,
    privileged,
    topology::{VIP_V4, VIP_V6},
    until,
};
use serde_json::Value;

use crate::rig::Rig;

fn names(status: &Value) -> Vec<String> {
    let mut names: Vec<String> = status["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|interface| Some(interface["name"].as_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

#[test]
fn only_matching_interfaces_are_attached() {
    privileged(|| {
        let rig = Rig::new(Way::Edge)?;
        ensure!(names(&rig.agent.status()?) == ["veth-c"]);
        let rig = Rig::new(Way::EdgeAmongPods)?;
        ensure!(names(&rig.agent.status()?) == ["veth-b", "veth-c", "veth-m"]);
        Ok(())
    });
}

#[test]
fn a_later_pod_is_steered_and_forgotten_when_it_goes() {
    privileged(|| {
        let mut rig = Rig::new(Way::Edge)?;
        let before = traces(&rig.lab.node)?;
        // Twice: the second has a name that was known before.
        for _ in 0..2 {
            let pod = Namespace::new("pod")?;
            rig.lab.join(&pod, "veth-late", 4)?;
            for vip in [VIP_V4, VIP_V6] {
                until("the new pod to be steered", || {
                    let answer = get(&pod, vip, "/")?;
                    match answer {
                        Ok(answer) if answer.body == "master" => Ok(()),
                        other => bail!("{other:?}"),
                    }
                })?;
            }
            ensure!(names(&rig.agent.status()?) == ["veth-c", "veth-late"]);
            rig.lab.node.ip(["link del veth-late"])?;
            rig.agent
                .wait("the pod's interface to be forgotten", |status| {
                    (names(status) == ["veth-c"])
                        .then_some(())
                        .context("not yet")
                })?;
            until("its pins to go", || -> Result<()> {
                let now = traces(&rig.lab.node)?;
                ensure!(now == before, "before {before:#?}\nnow {now:#?}");
                Ok(())
            })?;
        }
        let answer = get(&rig.lab.client, VIP_V4, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "master"));
        Ok(())
    });
}

#[test]
fn a_pod_that_came_while_no_agent_ran_is_attached_at_start() {
    privileged(|| {
        let mut rig = Rig::new(Way::Edge)?;
        rig.agent.kill()?;
        let pod = Namespace::new("pod")?;
        rig.lab.join(&pod, "veth-late", 4)?;
        ensure!(get(&pod, VIP_V4, "/")?.is_err(), "nobody attached it");
        rig.agent.restart()?;
        rig.agent.wait("the pod's interface", |status| {
            (names(status) == ["veth-c", "veth-late"])
                .then_some(())
                .context("not yet")
        })?;
        let answer = get(&pod, VIP_V4, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "master"));
        Ok(())
    });
}
