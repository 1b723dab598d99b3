//! Connections to the VIP arrive at the selected endpoint, by every hook.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Agent, Lab, Server, Way, agent,
    client::{KeepAlive, Load, Long, Plan, get},
    privilege::with_tcx,
    privileged,
    server::Kind,
    topology::{
        BACKUP_V4, BACKUP_V6, CLIENT_V4, CLIENT_V6, MASTER_V4, MASTER_V6, VIP_BACKUP_V4,
        VIP_BACKUP_V6, VIP_MASTER_V4, VIP_MASTER_V6, VIP_V4, VIP_V6,
    },
    wait::until,
};
use serde_json::json;

use crate::rig::{Rig, all_by};

/// The address a server on `[::]` sees.
fn canonical(peer: &str) -> Result<IpAddr> {
    let peer: SocketAddr = peer.parse().context("X-Peer is an address")?;
    Ok(peer.ip().to_canonical())
}

/// Everything a client does, in both families, and the attachment is the one asked for.
fn steers(way: Way, tc: &str, xdp: &str) -> Result<()> {
    let rig = Rig::with(way, |config| {
        config["datapath"] = json!({"tc": tc, "xdp": xdp});
    })?;
    let client = rig.lab.client.clone();
    let status = rig.agent.status()?;
    let interface = status["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|interface| interface["name"] == rig.lab.client_link())
        .with_context(|| format!("the client's link is not in {status}"))?;
    ensure!(interface["tc"] == tc, "attached by {interface}");
    if way == Way::Uplink && xdp != "off" {
        ensure!(interface["xdp"] == xdp, "attached by {interface}");
    } else {
        ensure!(interface["xdp"] == "none", "attached by {interface}");
    }

    for (vip, me) in [(VIP_V4, CLIENT_V4), (VIP_V6, CLIENT_V6)] {
        let long = Long::open(&client, vip, Duration::from_millis(10))?;
        ensure!(long.server().as_deref() == Some("master"));

        let load = Load::start(&client, Plan::steady(vip));
        load.run_for(200)?;
        all_by(&load.stop()?, "master")?;

        let answer = get(&client, vip, "/")?.expect("the VIP answers");
        let peer = canonical(&answer.peer.context("X-Peer")?)?;
        ensure!(peer == me, "the server sees {peer} instead of the client");

        let mut kept = KeepAlive::connect(&client, vip)?;
        for _ in 0..20 {
            let answer = kept.get("/").expect("a kept connection answers");
            ensure!(answer.body == "master");
        }
        let big = kept.get("/big").expect("a mebibyte arrives");
        ensure!(
            big.body == "0123456789abcdef".repeat(1 << 16),
            "it is damaged"
        );

        long.check_alive()?;
    }
    for (to, name) in [
        (VIP_MASTER_V4, "master"),
        (VIP_MASTER_V6, "master"),
        (VIP_BACKUP_V4, "backup"),
        (VIP_BACKUP_V6, "backup"),
        (MASTER_V4, "master"),
        (MASTER_V6, "master"),
        (BACKUP_V4, "backup"),
        (BACKUP_V6, "backup"),
    ] {
        let answer = get(&client, to, "/")?.expect("every instance answers for itself");
        ensure!(answer.body == name, "{to} is answered by {}", answer.body);
    }

    let status = rig.agent.status()?;
    let traffic = &agent::find_endpoint(&status, "master")?["traffic"];
    for counter in [
        "forward_packets",
        "forward_bytes",
        "reverse_packets",
        "reverse_bytes",
    ] {
        ensure!(
            traffic[counter].as_u64() > Some(1000),
            "{counter} of the master in {traffic}"
        );
    }
    ensure!(
        traffic["flows_opened"].as_u64() >= Some(400),
        "flows of the master in {traffic}"
    );
    Ok(())
}

#[test]
fn pods_by_tcx() {
    with_tcx(|| steers(Way::Edge, "tcx", "auto"));
}

#[test]
fn pods_by_clsact() {
    privileged(|| steers(Way::Edge, "clsact", "auto"));
}

#[test]
fn pods_among_pods_by_tcx() {
    with_tcx(|| steers(Way::EdgeAmongPods, "tcx", "auto"));
}

#[test]
fn pods_among_pods_by_clsact() {
    privileged(|| steers(Way::EdgeAmongPods, "clsact", "auto"));
}

#[test]
fn outside_clients_by_native_xdp() {
    with_tcx(|| steers(Way::Uplink, "tcx", "native"));
}

#[test]
fn outside_clients_by_native_xdp_and_clsact() {
    privileged(|| steers(Way::Uplink, "clsact", "native"));
}

#[test]
fn outside_clients_by_generic_xdp() {
    with_tcx(|| steers(Way::Uplink, "tcx", "generic"));
}

#[test]
fn outside_clients_by_tc_alone() {
    with_tcx(|| steers(Way::Uplink, "tcx", "off"));
}

#[test]
fn nginx_and_curl() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut master = Server::start_kind(&lab, &lab.master, Kind::Nginx)?;
        let _backup = Server::start_kind(&lab, &lab.backup, Kind::Nginx)?;
        let mut agent = Agent::start(&lab, &agent::config(&lab))?;
        agent.wait_selected("master")?;
        let curl = |vip: SocketAddr| {
            let url = format!("http://{vip}/");
            lab.client.ask(
                "curl",
                &["--silent", "--show-error", "--max-time", "5", &url],
            )
        };
        for vip in [VIP_V4, VIP_V6] {
            ensure!(curl(vip)? == "master");
        }
        master.kill()?;
        agent.wait_selected("backup")?;
        for vip in [VIP_V4, VIP_V6] {
            ensure!(curl(vip)? == "backup");
        }
        Ok(())
    });
}

#[test]
fn metrics_are_served() {
    privileged(|| {
        let rig = Rig::new(Way::Edge)?;
        get(&rig.lab.client, VIP_V4, "/")?.expect("the VIP answers");
        let page = rig.agent.metrics_page("/metrics")?;
        for part in [
            "# TYPE probe_checks_total counter",
            "sense",
            "master",
            "backup",
        ] {
            ensure!(page.contains(part), "no {part:?} in\n{page}");
        }
        let human = rig.agent.order(&["status"])?;
        for part in ["sense", "master", "backup"] {
            ensure!(human.contains(part), "no {part:?} in\n{human}");
        }
        let json = rig.agent.order(&["status", "--format", "json"])?;
        let json: serde_json::Value = serde_json::from_str(&json)?;
        ensure!(json["services"][0]["selection"]["endpoint"] == "master");
        Ok(())
    });
}

#[test]
fn the_status_page_tells_of_a_switch() {
    privileged(|| {
        let page = "127.0.0.1:9378";
        let mut rig = Rig::with(Way::Edge, |config| {
            config["page"] = json!({"listen": page});
        })?;
        let node = rig.lab.node.clone();
        let document = node.ask("curl", &["-sS", page])?;
        ensure!(document.contains("</html>"), "{document}");
        rig.master.kill()?;
        rig.agent.wait_selected("backup")?;
        // It goes on until it is told to stop.
        let events = format!("{page}/events");
        until("the switch in the page's events", || {
            let told = node.output("curl", &["-sS", "--max-time", "1", &events])?;
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            let switch = r#""from":["master"],"to":["backup"],"reason":"master-down""#;
            ensure!(told.contains(switch), "{told}");
            Ok(())
        })
    });
}
