//! Endpoints given by DNS names, which change.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{
    Agent, Lab, Namespace, Server, Way, agent,
    client::{Load, Plan, get},
    dns::Dns,
    privileged,
    topology::{BACKUP_V4, BACKUP_V6, MASTER_V4, MASTER_V6, VIP_V4, VIP_V6},
    wait::patience,
};
use serde_json::{Value, json};

use crate::rig::{all_by, none_failed};

const MASTER: &str = "react2.domain.test";
const BACKUP: &str = "react1.domain.test";

fn named(lab: &Lab) -> Value {
    let mut config = agent::config(lab);
    let every = patience(Duration::from_millis(100)).as_millis();
    config["resolve"] = json!({"every": format!("{every}ms")});
    let endpoints = &mut config["services"][0]["endpoints"];
    endpoints[0]["address"] = json!(format!("{MASTER}:8079"));
    endpoints[1]["address"] = json!(format!("{BACKUP}:8079"));
    config
}

struct Named {
    agent: Agent,
    lab: Lab,
    dns: Dns,
    _servers: [Server; 2],
}

fn start() -> Result<Named> {
    let lab = Lab::new(Way::Edge)?;
    let servers = [
        Server::start(&lab, &lab.master)?,
        Server::start(&lab, &lab.backup)?,
    ];
    let dns = Dns::start(&lab.node)?;
    dns.set(MASTER, &[MASTER_V4.ip(), MASTER_V6.ip()]);
    dns.set(BACKUP, &[BACKUP_V4.ip(), BACKUP_V6.ip()]);
    let mut agent = Agent::start(&lab, &named(&lab))?;
    agent.wait_state("master", "up")?;
    agent.wait_selected("master")?;
    Ok(Named {
        agent,
        lab,
        dns,
        _servers: servers,
    })
}

#[test]
fn a_name_with_both_families_is_steered_in_both() {
    privileged(|| {
        let named = start()?;
        for vip in [VIP_V4, VIP_V6] {
            let answer = get(&named.lab.client, vip, "/")?;
            ensure!(answer.is_ok_and(|answer| answer.body == "master"), "{vip}");
        }
        let status = named.agent.status()?;
        let master = agent::find_endpoint(&status, "master")?;
        let mut resolved: Vec<&str> = master["resolved"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        resolved.sort_unstable();
        ensure!(
            resolved == ["10.2.0.2:8079", "[fd00:2::2]:8079"],
            "{master}"
        );
        Ok(())
    });
}

#[test]
fn a_name_that_moves_takes_new_connections_along() {
    privileged(|| {
        let mut named = start()?;
        let spare = Namespace::new("spare")?;
        named.lab.join(&spare, "ep-s", 5)?;
        let _spare = Server::start(&named.lab, &spare)?;
        let load = Load::start(&named.lab.client, Plan::steady(VIP_V4));
        load.run_for(50)?;
        named
            .dns
            .set(MASTER, &["10.5.0.2".parse()?, "fd00:5::2".parse()?]);
        let first = load.wait_for("spare")?;
        named.agent.wait("the reason", |status| {
            (status["services"][0]["selection"]["reason"] == "address-changed")
                .then_some(())
                .context("another reason")
        })?;
        load.run_for(50)?;
        let samples = load.stop()?;
        none_failed(&samples)?;
        let moved = samples.partition_point(|sample| sample.begun <= first.ended);
        all_by(&samples[moved..], "spare")?;
        let answer = get(&named.lab.client, VIP_V6, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "spare"));
        Ok(())
    });
}

/// Waits until the master is down for its name.
fn wait_dns(agent: &mut Agent) -> Result<()> {
    agent.wait("the verdict dns", |status| {
        let master = agent::find_endpoint(status, "master")?;
        ensure!(
            master["state"] == "down" && master["verdict"] == "dns",
            "{master}"
        );
        Ok(())
    })
}

/// A name that nobody knows yet costs nobody else anything; one that vanished for too long is
/// down, if that is wanted.
#[test]
fn a_name_without_an_address_is_down() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _servers = [
            Server::start(&lab, &lab.master)?,
            Server::start(&lab, &lab.backup)?,
        ];
        let dns = Dns::start(&lab.node)?;
        dns.set(BACKUP, &[BACKUP_V4.ip(), BACKUP_V6.ip()]);
        let mut config = named(&lab);
        config["resolve"]["hold_nx"] = json!("0s");
        let mut agent = Agent::start(&lab, &config)?;
        agent.wait_selected("backup")?;
        wait_dns(&mut agent)?;
        let answer = get(&lab.client, VIP_V4, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "backup"));
        let metrics = agent.metrics_page("/metrics")?;
        let series = "probe_endpoint_unresolved{service=\"sense\",endpoint=\"master\"} 1";
        ensure!(metrics.contains(series), "{metrics}");
        dns.set(MASTER, &[MASTER_V4.ip(), MASTER_V6.ip()]);
        agent.wait_state("master", "up")?;
        agent.wait_selected("master")?;
        // It goes as it came.
        dns.set(MASTER, &[]);
        wait_dns(&mut agent)?;
        agent.wait_selected("backup")?;
        let answer = get(&lab.client, VIP_V6, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "backup"));
        Ok(())
    });
}

#[test]
fn a_name_that_vanishes_keeps_its_last_addresses() {
    privileged(|| {
        let mut named = start()?;
        let load = Load::start(&named.lab.client, Plan::steady(VIP_V4));
        load.run_for(50)?;
        named.dns.set(MASTER, &[]);
        named.dns.set(BACKUP, &[]);
        // Many times the interval of resolution.
        load.run_for(200)?;
        // A restarted agent knows them too: they are pinned.
        named.agent.kill()?;
        named.agent.restart()?;
        named.agent.wait_state("master", "up")?;
        load.run_for(50)?;
        all_by(&load.stop()?, "master")?;
        named.dns.set(MASTER, &[MASTER_V4.ip(), MASTER_V6.ip()]);
        let answer = get(&named.lab.client, VIP_V6, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "master"));
        Ok(())
    });
}
