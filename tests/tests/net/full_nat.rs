//! Full NAT: the endpoint sees the node, and replies come back to it from wherever the
//! endpoint is.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Lab, Server, Way, agent,
    capture::Capture,
    client::{KeepAlive, Long, get},
    foreign::{Mode, xdp_pass},
    link::complete_checksums,
    privileged,
    topology::{
        BACKUP_V4, CLIENT_V4, CLIENT_V6, MASTER_V4, MASTER_V6, PORT, VIP_MASTER_V4, VIP_V4, VIP_V6,
    },
};
use serde_json::json;

use crate::{
    protocols::{Echo, ask, connected},
    rig::{Rig, carries},
};

pub const SOURCES: [&str; 2] = ["10.0.9.9", "fd00:9::9"];

/// An agent whose service hides clients behind the sources, which nobody owns: replies
/// are taken before the node looks for their address.
fn rig(way: Way) -> Result<Rig> {
    Rig::with(way, |config| {
        config["datapath"]["source"] = json!(SOURCES);
        config["services"][0]["forward"] = json!("full-nat");
        if way == Way::Uplink {
            config["interfaces"]["edge"] = json!(["ep-*"]);
        }
    })
}

fn hides_the_client(way: Way) -> Result<()> {
    let mut rig = rig(way)?;
    let client = rig.lab.client.clone();
    for (vip, source) in [(VIP_V4, SOURCES[0]), (VIP_V6, SOURCES[1])] {
        let source: IpAddr = source.parse()?;
        let answer = get(&client, vip, "/")?.expect("the VIP answers");
        let peer: std::net::SocketAddr = answer.peer.context("X-Peer")?.parse()?;
        ensure!(peer.ip().to_canonical() == source, "the server sees {peer}");
        ensure!(peer.port() >= 1024, "a port of the node's own");

        let long = Long::open(&client, vip, Duration::from_millis(10))?;
        carries(&client, vip, "master")?;
        long.check_alive()?;
    }
    // The endpoint's own listener goes the same way, and its own address stays direct.
    let answer = get(&client, VIP_MASTER_V4, "/")?.expect("it answers");
    ensure!(answer.body == "master");
    for (own, seen) in [(MASTER_V4, CLIENT_V4), (MASTER_V6, CLIENT_V6)] {
        let answer = get(&client, own, "/")?.expect("its own address answers");
        let peer: std::net::SocketAddr = answer.peer.context("X-Peer")?.parse()?;
        ensure!(peer.ip().to_canonical() == seen, "the server sees {peer}");
    }

    let status = rig.agent.status()?;
    let traffic = &agent::find_endpoint(&status, "master")?["traffic"];
    for counter in ["forward_packets", "reverse_packets", "flows_opened"] {
        ensure!(
            traffic[counter].as_u64() > Some(400),
            "{counter} of the master in {traffic}"
        );
    }

    // A failover as with any other service.
    let long = Long::open(&client, VIP_V4, Duration::from_millis(10))?;
    rig.master.kill()?;
    rig.agent.wait_selected("backup")?;
    long.wait_end()?;
    let answer = get(&client, VIP_V4, "/")?.expect("the backup answers");
    ensure!(answer.body == "backup");
    Ok(())
}

#[test]
fn among_pods() {
    privileged(|| hides_the_client(Way::EdgeAmongPods));
}

#[test]
fn by_an_uplink() {
    privileged(|| hides_the_client(Way::Uplink));
}

/// Endpoint and client behind the same uplink, as on a one-armed gateway: XDP sends both
/// ways, and the node's own stack sees nothing but what it was asked to resolve.
#[test]
fn one_armed() {
    privileged(|| {
        let lab = Lab::new(Way::Uplink)?;
        lab.client.ip(["addr add 10.1.0.3/24 dev eth0"])?;
        let _third = Server::start(&lab, &lab.client)?;
        let rig = Rig::in_lab(lab, |config| {
            config["datapath"]["source"] = json!(SOURCES);
            config["datapath"]["xdp_send"] = json!("on");
            config["services"][0]["forward"] = json!("full-nat");
            config["services"][0]["listeners"] = json!([VIP_V4.to_string()]);
            config["services"][0]["endpoints"] = json!([
                {"name": "master", "address": format!("10.1.0.3:{PORT}")},
                {"name": "backup", "address": BACKUP_V4.to_string()},
            ]);
            config["interfaces"]["edge"] = json!(["ep-*"]);
        })?;
        // The agent's checks have made the next hop known.
        past_the_stack(&rig, "client")
    });
}

/// The endpoint of this name answers, and the node's stack sees none of the client's packets.
fn past_the_stack(rig: &Rig, name: &str) -> Result<()> {
    let capture = Capture::open(&rig.lab.node, rig.lab.client_link())?;
    let mut kept = KeepAlive::connect(&rig.lab.client, VIP_V4)?;
    for _ in 0..20 {
        ensure!(kept.get("/").expect("it answers").body == name);
    }
    let IpAddr::V4(vip) = VIP_V4.ip() else {
        unreachable!("an IPv4 VIP");
    };
    while let Some(frame) = capture.next()? {
        let tcp = frame.len() > 34 && frame[12..14] == [8, 0] && frame[23] == 6;
        let to_vip = tcp && frame[30..34] == vip.octets();
        ensure!(!to_vip, "the node's stack saw {frame:02x?}");
    }
    Ok(())
}

/// Client and endpoint behind an uplink each: XDP sends from one to the other, and the node's
/// own stack sees nothing of the client's packets.
#[test]
fn two_armed() {
    privileged(|| {
        let lab = Lab::new(Way::Uplink)?;
        let to_master = lab.endpoint_links()[0];
        // As the lab has it at the client's end.
        complete_checksums(&lab.master, "eth0")?;
        xdp_pass(&lab.master, "eth0", Mode::Native)?;
        let rig = Rig::in_lab(lab, |config| {
            config["datapath"]["source"] = json!(SOURCES);
            config["datapath"]["xdp_send"] = json!("on");
            config["services"][0]["forward"] = json!("full-nat");
            config["interfaces"]["uplink"] = json!(["up0", to_master]);
        })?;
        let client = rig.lab.client.clone();
        // The agent's checks have made the next hop known, and this the client.
        ensure!(get(&client, VIP_V4, "/")?.expect("it answers").body == "master");
        let before = KeepAlive::connect(&client, VIP_V4)?;
        drop(before);
        past_the_stack(&rig, "master")
    });
}

/// Datagrams too, in fragments or not.
#[test]
fn datagrams() {
    privileged(|| {
        let rig = Rig::with(Way::Uplink, |config| {
            config["datapath"]["source"] = json!(SOURCES);
            config["services"][0]["forward"] = json!("full-nat");
            config["services"][0]["listeners"] = json!([
                VIP_V4.to_string(),
                format!("{VIP_V4}/udp"),
                format!("{VIP_V6}/udp"),
            ]);
            config["interfaces"]["edge"] = json!(["ep-*"]);
        })?;
        let _echo = Echo::start(&rig.lab.master, "master")?;
        for to in [VIP_V4, VIP_V6] {
            let socket = connected(&rig.lab.client, to)?;
            for length in [0, 1, 700, 1400, 4000] {
                let question = vec![b'?'; length];
                let answer = ask(&socket, &question)?;
                ensure!(answer == [&b"master"[..], &question].concat());
            }
        }
        Ok(())
    });
}
