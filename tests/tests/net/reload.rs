//! Another configuration for a running agent, and services that only decide.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Agent, Lab, Server, Way,
    agent::{self, find_endpoint},
    client::{Failure, Load, Long, Plan, get},
    privileged,
    topology::{BACKUP_V4, MASTER_V4, VIP_V4, VIP_V6},
    wait::until_true,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::rig::{Rig, all_by, none_failed};

/// Of the second service.
fn other_vip() -> SocketAddr {
    SocketAddr::new(VIP_V4.ip(), 8090)
}

/// A second service, of the backup alone.
fn other(inter: &str) -> Value {
    json!({
        "name": "other",
        "listeners": [other_vip().to_string()],
        "endpoints": [{"name": "only", "address": BACKUP_V4.to_string()}],
        "check": {"tcp": {}, "inter": inter},
    })
}

fn checks(agent: &Agent, endpoint: &str) -> Result<u64> {
    let status = agent.status()?;
    let checks = find_endpoint(&status, endpoint)?["checks"].as_u64();
    checks.context("no number of checks")
}

/// Services come, change and go by verb and by signal, while a long connection and a load
/// through another one see nothing of it; and what is wrong with a file changes nothing.
#[test]
fn one_service_changes_and_the_other_sees_nothing() {
    privileged(|| {
        // Nobody fails here, however busy the machine is.
        let patient = |config: &mut Value| config["services"][0]["check"]["timeout"] = json!("3s");
        let mut rig = Rig::with(Way::Edge, patient)?;
        let mut base = agent::config(&rig.lab);
        patient(&mut base);
        let client = rig.lab.client.clone();
        let long = Long::open(&client, VIP_V4, Duration::from_millis(5))?;
        let load = Load::start(&client, Plan::steady(VIP_V6));
        load.run_for(50)?;
        let before = checks(&rig.agent, "master")?;
        let begun = hash(&rig.agent.status()?)?;

        let mut more = base.clone();
        let services = more["services"].as_array_mut().context("services")?;
        services.insert(0, other("10ms"));
        rig.agent.rewrite(&more)?;
        let file = rig.agent.config_file().to_string_lossy().into_owned();
        let (code, shown, error) = rig.agent.ask(&["diff", &file])?;
        ensure!(
            code == 3 && shown.starts_with("+ services[other]: "),
            "{code} {shown} {error}"
        );
        let shown = rig.agent.order(&["reload"])?;
        ensure!(shown.contains("added: other\nleft alone: 1\n"), "{shown}");
        let answer = get(&client, other_vip(), "/")?;
        ensure!(
            answer.is_ok_and(|answer| answer.body == "backup"),
            "the new service"
        );

        let added = hash(&rig.agent.status()?)?;
        more["services"][0] = other("20ms");
        rig.agent.rewrite(&more)?;
        rig.agent.signal(Signal::SIGHUP)?;
        rig.agent.wait("the signal to be followed", |status| {
            let now = hash(status)?;
            ensure!(now != added && now != begun, "not yet");
            Ok(())
        })?;

        // What is wrong is said as `check-config` says it, and nothing changes.
        let mut wrong = more.clone();
        wrong["services"][1]["check"]["fall"] = json!(0);
        rig.agent.rewrite(&wrong)?;
        let (code, _, said) = rig.agent.probe(&["check-config", &file])?;
        let (reload_code, _, reload_said) = rig.agent.ask(&["reload"])?;
        ensure!(
            (code, reload_code) == (2, 2) && said == reload_said,
            "{said} / {reload_said}"
        );
        let mut refused = more.clone();
        refused["datapath"] = json!({"flows": 2048});
        rig.agent.rewrite(&refused)?;
        let (code, _, said) = rig.agent.ask(&["reload"])?;
        ensure!(
            code == 1 && said.contains("datapath.flows: `2048`: cannot change"),
            "{said}"
        );
        let page = rig.agent.metrics_page("/metrics")?;
        for line in [
            "probe_config_reloads_total{result=\"applied\"} 2",
            "probe_config_reloads_total{result=\"invalid\"} 1",
            "probe_config_reloads_total{result=\"refused\"} 1",
            "probe_config_last_reload_successful 0",
        ] {
            ensure!(page.contains(line), "{line} is not in {page}");
        }

        rig.agent.rewrite(&base)?;
        let shown = rig.agent.order(&["reload"])?;
        ensure!(shown.contains("removed: other\nleft alone: 1\n"), "{shown}");
        let answer = get(&client, other_vip(), "/")?;
        ensure!(answer == Err(Failure::Refused), "it left: {answer:?}");
        ensure!(hash(&rig.agent.status()?)? == begun, "what it began with");

        load.run_for(50)?;
        long.check_alive()?;
        ensure!(long.server().as_deref() == Some("master"));
        let samples = load.stop()?;
        none_failed(&samples)?;
        all_by(&samples, "master")?;
        ensure!(
            checks(&rig.agent, "master")? > before,
            "its checks go on counting"
        );
        ensure!(rig.agent.switches()? == 0, "switched");
        Ok(())
    });
}

fn hash(status: &Value) -> Result<String> {
    let hash = status["config"]["hash"].as_str();
    hash.map(str::to_owned).context("no hash")
}

/// The master is killed, and reloads come from before that until after the switch.
#[test]
fn a_reload_in_the_midst_of_a_switch() {
    privileged(|| {
        let mut rig = Rig::new(Way::Edge)?;
        let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
        load.run_for(20)?;
        let mut config = agent::config(&rig.lab);
        for (round, inter) in ["11ms", "12ms", "13ms", "14ms", "15ms"].iter().enumerate() {
            config["services"][0]["check"]["inter"] = json!(inter);
            rig.agent.rewrite(&config)?;
            if round == 1 {
                rig.master.kill()?;
            }
            rig.agent.order(&["reload"])?;
        }
        load.wait_for("backup")?;
        let reason = rig.agent.wait_selected("backup")?;
        ensure!(reason == "master-down", "the reason is {reason}");
        let switched = Instant::now();
        load.run_for(50)?;
        let samples = load.stop()?;
        let after = samples.partition_point(|sample| sample.begun <= switched);
        all_by(&samples[after..], "backup")?;
        ensure!(rig.agent.switches()? == 1, "more than one switch");
        Ok(())
    });
}

/// A shadow decides, and the packets to its listener go by untouched; a reload lets it steer.
#[test]
fn a_shadow_steers_nothing() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, |config| {
            config["services"][0]["mode"] = json!("shadow");
        })?;
        let untouched = || -> Result<()> {
            let answer = get(&rig.lab.client, VIP_V4, "/")?;
            ensure!(answer.is_err(), "somebody answers: {answer:?}");
            let direct = Load::start(&rig.lab.client, Plan::steady(MASTER_V4));
            direct.run_for(20)?;
            all_by(&direct.stop()?, "master")
        };
        untouched()?;
        let direct = Long::open(&rig.lab.client, MASTER_V4, Duration::from_millis(5))?;
        rig.master.set_status(503)?;
        let reason = rig.agent.wait_selected("backup")?;
        ensure!(reason == "master-down", "the reason is {reason}");
        rig.agent.wait_state("master", "down")?;
        let answer = get(&rig.lab.client, VIP_V4, "/")?;
        ensure!(answer.is_err(), "somebody answers: {answer:?}");
        direct.check_alive()?;
        ensure!(rig.agent.printed().contains("would switch, as a shadow"));
        let status = rig.agent.status()?;
        ensure!(status["services"][0]["mode"] == "shadow", "{status}");
        for name in ["master", "backup"] {
            let traffic = &find_endpoint(&status, name)?["traffic"];
            for what in ["forward_packets", "reverse_packets", "flows_opened"] {
                ensure!(traffic[what] == 0, "{name}: {traffic}");
            }
        }
        let page = rig.agent.metrics_page("/metrics")?;
        ensure!(
            page.contains("probe_service_shadow{service=\"sense\"} 1"),
            "{page}"
        );

        rig.agent.rewrite(&agent::config(&rig.lab))?;
        let shown = rig.agent.order(&["reload"])?;
        ensure!(shown.contains("services[sense].mode: shadow"), "{shown}");
        for vip in [VIP_V4, VIP_V6] {
            let load = Load::start(&rig.lab.client, Plan::steady(vip));
            load.run_for(20)?;
            all_by(&load.stop()?, "backup")?;
        }
        direct.check_alive()?;
        Ok(())
    });
}

/// As kubelet does with a ConfigMap: a new folder, and the link to it replaced.
fn publish(folder: &Path, version: &str, text: &str) -> Result<()> {
    let inner = folder.join(format!("..{version}"));
    fs::create_dir(&inner).context("a version")?;
    fs::write(inner.join("probe.yaml"), text).context("its file")?;
    let link = folder.join("..data_tmp");
    symlink(&inner, &link).context("a link")?;
    fs::rename(&link, folder.join("..data")).context("the link replaced")
}

#[test]
fn a_config_map_is_followed() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _master = Server::start(&lab, &lab.master)?;
        let _backup = Server::start(&lab, &lab.backup)?;
        let config = agent::config(&lab);
        let mut agent = Agent::new(&lab, &config, &["--watch-config"])?;
        let file = agent.config_file().to_owned();
        let folder = file.parent().context("a folder")?.to_owned();
        let text = fs::read_to_string(&file).context("the configuration")?;
        fs::remove_file(&file).context("the file")?;
        publish(&folder, "one", &text)?;
        symlink("..data/probe.yaml", &file).context("a link")?;
        agent.restart()?;
        let begun = hash(&agent.status()?)?;

        let mut more: Value = serde_json::from_str(&text).context("JSON")?;
        let services = more["services"].as_array_mut().context("services")?;
        services.push(other("10ms"));
        publish(&folder, "two", &more.to_string())?;
        agent.wait("the new one to be followed", |status| {
            ensure!(status["services"][1]["name"] == "other");
            Ok(())
        })?;
        let answer = get(&lab.client, other_vip(), "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "backup"));

        let followed = hash(&agent.status()?)?;
        publish(&folder, "three", "services: nonsense")?;
        let error = agent.wait("the wrong one to be seen", |status| {
            let last = &status["config"]["last_reload"];
            if last["result"] != "invalid" {
                bail!("not yet");
            }
            Ok(last["error"].to_string())
        })?;
        ensure!(error.contains("probe.yaml"), "{error}");
        ensure!(followed != begun && hash(&agent.status()?)? == followed);
        until_true("the log to say it", || {
            agent.printed().contains("stays in force")
        })?;
        let answer = get(&lab.client, VIP_V4, "/")?;
        ensure!(answer.is_ok(), "whoever is selected: {answer:?}");
        Ok(())
    });
}
