//! What operators order, with a running agent.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Way, agent,
    client::{Load, Long, Plan, get},
    privileged,
    topology::{CLIENT_V4, VIP_V4},
};
use serde_json::{Value, json};

use crate::rig::{Rig, none_failed};

fn serves(rig: &Rig, endpoint: &str) -> Result<()> {
    let answer = get(&rig.lab.client, VIP_V4, "/")?.expect("the VIP answers");
    ensure!(answer.body == endpoint, "{} serves", answer.body);
    Ok(())
}

/// A verb with options, its answer as JSON.
fn ask(rig: &Rig, args: &[&str]) -> Result<Value> {
    let mut all = args.to_vec();
    all.extend(["--format", "json"]);
    let said = rig.agent.order(&all)?;
    serde_json::from_str(&said).with_context(|| format!("probe {args:?}: {said}"))
}

/// Events of a kind, the last ones last.
fn events(rig: &Rig, kind: &str) -> Result<Vec<Value>> {
    let said = rig.agent.order(&["events", "--format", "json"])?;
    let all = said.lines().map(serde_json::from_str::<Value>);
    let all = all.collect::<Result<Vec<_>, _>>().context("events")?;
    Ok(all.into_iter().filter(|of| of["kind"] == kind).collect())
}

/// A planned upgrade of the master, and nobody notices: no request fails, who is connected has
/// its time.
#[test]
fn an_upgrade_by_drain_and_maint_fails_nobody() {
    privileged(|| {
        let mut rig = Rig::new(Way::Edge)?;
        let client = rig.lab.client.clone();
        let long = Long::open(&client, VIP_V4, Duration::from_millis(10))?;
        let load = Load::start(&client, Plan::steady(VIP_V4));
        load.run_for(20)?;

        let tried = ask(&rig, &["drain", "sense", "master", "--dry-run"])?;
        ensure!(
            tried["to"] == json!(["backup"]) && tried["changed"] == true,
            "{tried}"
        );
        serves(&rig, "master")?;
        let done = ask(&rig, &["drain", "sense", "master", "--deadline", "1m"])?;
        ensure!(done["notes"] == json!([]), "{done}");
        serves(&rig, "backup")?;
        load.run_for(20)?;
        long.check_alive()?;
        ensure!(long.server().as_deref() == Some("master"));
        let status = rig.agent.status()?;
        let master = agent::find_endpoint(&status, "master")?;
        ensure!(
            master["mode"] == "drain" && master["state"] == "up",
            "{master}"
        );

        // Its time was cut short; then it is taken down, and no check says so.
        ask(&rig, &["maint", "sense", "master"])?;
        long.wait_end()?;
        rig.master.kill()?;
        load.run_for(20)?;
        rig.master.restart()?;
        ask(&rig, &["ready", "sense", "master"])?;
        let reason = rig.agent.wait_selected("master")?;
        ensure!(reason == "failback", "the reason is {reason}");
        none_failed(&load.stop()?)?;

        let orders = events(&rig, "order")?;
        let said: Vec<_> = orders.iter().map(|of| of["order"].as_str()).collect();
        ensure!(
            said == [Some("drain"), Some("maint"), Some("ready")],
            "{said:?}"
        );
        ensure!(
            orders.iter().all(|of| of["by"]["user"] == "root"),
            "{orders:?}"
        );
        let downs = events(&rig, "state")?;
        ensure!(!downs.iter().any(|of| of["state"] == "down"), "{downs:?}");
        Ok(())
    });
}

#[test]
fn a_planned_switch_and_a_frozen_service_survive_a_restart() {
    privileged(|| {
        let mut rig = Rig::new(Way::Edge)?;
        let client = rig.lab.client.clone();
        let long = Long::open(&client, VIP_V4, Duration::from_millis(10))?;
        let load = Load::start(&client, Plan::steady(VIP_V4));
        load.run_for(20)?;
        ask(&rig, &["promote", "sense", "backup", "--drain", "100ms"])?;
        long.wait_end()?;
        load.run_for(20)?;
        none_failed(&load.stop()?)?;
        serves(&rig, "backup")?;
        ask(&rig, &["freeze", "sense"])?;

        rig.agent.terminate()?;
        rig.agent.restart()?;
        let status = rig.agent.status()?;
        let service = &status["services"][0];
        ensure!(service["promoted"]["what"] == "backup", "{service}");
        ensure!(service["frozen"]["by"]["uid"] == 0, "{service}");
        rig.backup.kill()?;
        rig.agent.wait_state("backup", "down")?;
        ensure!(rig.agent.status()?["services"][0]["selection"]["endpoint"] == "backup");
        let explained = ask(&rig, &["explain", "sense"])?;
        let because = explained["because"][0].as_str().unwrap_or_default();
        ensure!(because.starts_with("frozen by root"), "{explained}");
        let done = ask(&rig, &["unfreeze", "sense"])?;
        ensure!(done["to"] == json!(["master"]), "{done}");
        serves(&rig, "master")?;

        let socket = rig.lab.file("probe.sock");
        let socket = socket.to_string_lossy();
        let order = ["promote", "sense", "backup", "--socket", &socket];
        let (code, _, stderr) = rig.agent.probe(&order)?;
        ensure!(
            code == 1 && stderr.contains("it is down"),
            "{code}: {stderr}"
        );
        let orders = rig.lab.file("probe.orders.json");
        fs::write(&orders, "{").context("breaking the file")?;
        rig.agent.terminate()?;
        rig.agent.restart()?;
        ensure!(rig.agent.printed().contains("orders of operators are lost"));
        ensure!(!orders.exists(), "it is moved aside");
        Ok(())
    });
}

/// What curl and `probe events --follow` see.
#[test]
fn tools_follow_events_and_wrong_ones_hurt_nobody() {
    privileged(|| {
        let mut rig = Rig::new(Way::Edge)?;
        let socket = rig.lab.file("probe.sock");
        let socket = socket.to_string_lossy();
        let curl = |path: &str| {
            let url = format!("http://probe{path}");
            let args = ["-sS", "-X", "POST", "--unix-socket", &socket, &url];
            let said = rig.lab.node.ask("curl", &args)?;
            serde_json::from_str::<Value>(&said).with_context(|| said.clone())
        };
        let mut follow = rig
            .lab
            .node
            .command(lab::server::binary("probe", "PROBE_BIN")?);
        follow.args([
            "events", "--follow", "--format", "json", "--socket", &socket,
        ]);
        let mut follow = follow.stdout(Stdio::piped()).spawn().context("probe")?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
            follow.stdout.take().context("piped")?,
        ));
        let done = curl("/v1/services/sense/promote?endpoint=backup")?;
        ensure!(
            done["order"] == "promote" && done["changed"] == true,
            "{done}"
        );
        let error = curl("/v1/services/sense/endpoints/nobody/drain")?;
        ensure!(
            error["error"]
                .as_str()
                .is_some_and(|of| of.contains("master, backup"))
        );
        let found = lines
            .by_ref()
            .map_while(Result::ok)
            .find(|line| line.contains("\"kind\":\"order\""));
        let found: Value = serde_json::from_str(&found.context("an order")?)?;
        follow.kill()?;
        follow.wait()?;
        ensure!(
            found["order"] == "promote" && found["by"]["pid"].is_number(),
            "{found}"
        );

        let client = rig.lab.client.clone();
        let long = Long::open(&client, VIP_V4, Duration::from_millis(10))?;
        let listed = ask(
            &rig,
            &["flows", "--endpoint", "backup", "--stage", "established"],
        )?;
        ensure!(
            listed["count"].as_u64().is_some_and(|count| count >= 1),
            "{listed}"
        );
        let (src, dst) = (format!("{}:40000", CLIENT_V4), VIP_V4.to_string());
        let tried = ask(&rig, &["explain", "--packet", &src, &dst])?;
        let tc = &tried["outcomes"][0];
        ensure!(
            tc["outcome"] == "translated" && tc["endpoint"] == "sense/backup",
            "{tried}"
        );
        let tried = ask(&rig, &["explain", "--packet", &src, "192.0.2.7:22"])?;
        ensure!(tried["outcomes"][0]["outcome"] == "passed", "{tried}");
        let shown = rig
            .agent
            .order(&["watch", "--count", "2", "--every", "100ms"])?;
        ensure!(
            shown.matches("*  backup").count() == 2 && !shown.contains('\x1b'),
            "{shown}"
        );
        drop(long);

        // Idle clients by the hundred, then a failure: the agent does what it always does.
        let mut idle = Vec::new();
        for _ in 0..300 {
            idle.push(std::os::unix::net::UnixStream::connect(&*socket)?);
        }
        serves(&rig, "backup")?;
        rig.backup.kill()?;
        rig.agent.wait_selected("master")?;
        serves(&rig, "master")
    });
}
