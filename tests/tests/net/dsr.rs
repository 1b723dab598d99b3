//! Direct server return: the endpoints own the VIP, and packets reach them as clients
//! sent them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Lab, Namespace, Server, Way, agent,
    capture::Capture,
    client::{KeepAlive, Long, get},
    privileged,
    topology::{
        CLIENT_V4, MASTER_V4, MASTER_V6, PORT, VIP_MASTER_V4, VIP_MASTER_V6, VIP_V4, VIP_V6,
    },
};
use serde_json::{Value, json};

use crate::{
    protocols::{Echo, ask, connected},
    rig::{Rig, carries},
};

/// Gives a host addresses that others must not hear of.
pub fn own(host: &Arc<Namespace>, vips: &[SocketAddr]) -> Result<()> {
    host.ip(vips.iter().map(|vip| match vip {
        SocketAddr::V4(vip) => format!("addr add {}/32 dev lo", vip.ip()),
        SocketAddr::V6(vip) => format!("addr add {}/128 dev lo nodad", vip.ip()),
    }))
}

fn lab(way: Way) -> Result<Lab> {
    let lab = Lab::new(way)?;
    own(&lab.master, &[VIP_V4, VIP_V6, VIP_MASTER_V4, VIP_MASTER_V6])?;
    own(&lab.backup, &[VIP_V4, VIP_V6])?;
    Ok(lab)
}

fn dsr(config: &mut Value) {
    config["services"][0]["forward"] = json!("dsr");
}

/// The address that the server saw its client at.
fn peer(client: &Arc<Namespace>, to: SocketAddr) -> Result<SocketAddr> {
    let answer = get(client, to, "/")?.expect("it answers");
    Ok(answer.peer.context("X-Peer")?.parse()?)
}

fn hands_packets_on(way: Way) -> Result<()> {
    let mut rig = Rig::in_lab(lab(way)?, dsr)?;
    let client = rig.lab.client.clone();
    for vip in [VIP_V4, VIP_V6] {
        carries(&client, vip, "master")?;
    }
    ensure!(peer(&client, VIP_V4)?.ip().to_canonical() == CLIENT_V4);
    let answer = get(&client, VIP_MASTER_V4, "/")?.expect("the endpoint's listener answers");
    ensure!(answer.body == "master");

    let status = rig.agent.status()?;
    let traffic = &agent::find_endpoint(&status, "master")?["traffic"];
    for counter in ["forward_packets", "flows_opened"] {
        ensure!(
            traffic[counter].as_u64() > Some(400),
            "{counter} of the master in {traffic}"
        );
    }

    // What was there before stays with the backup when the master is back, and is reset
    // when its endpoint goes down.
    let first = Long::open(&client, VIP_V4, Duration::from_millis(10))?;
    rig.master.kill()?;
    rig.agent.wait_selected("backup")?;
    first.wait_end()?;
    let second = Long::open(&client, VIP_V6, Duration::from_millis(10))?;
    ensure!(second.server().as_deref() == Some("backup"));
    rig.master.restart()?;
    rig.agent.wait_selected("master")?;
    let answer = get(&client, VIP_V4, "/")?.expect("the master answers");
    ensure!(answer.body == "master");
    second.check_alive()
}

#[test]
fn to_pods() {
    privileged(|| hands_packets_on(Way::Edge));
}

#[test]
fn by_an_uplink() {
    privileged(|| hands_packets_on(Way::Uplink));
}

/// With a link of their own between endpoint and client, the node sees no answer.
#[test]
fn answers_go_past_the_node() {
    privileged(|| {
        let lab = lab(Way::Uplink)?;
        lab.client.ip([format!(
            "link add name past type veth peer name past netns {}",
            lab.master.path().display()
        )])?;
        lab.client
            .ip(["addr add 10.9.0.1/24 dev past", "link set past up"])?;
        lab.master.ip([
            "addr add 10.9.0.2/24 dev past".to_owned(),
            "link set past up".to_owned(),
            format!("route add {CLIENT_V4}/32 via 10.9.0.1"),
        ])?;
        // The way of the answers is not the way of the questions.
        lab.client.sysctl(&[("ipv4/conf/past/rp_filter", "0")])?;
        let rig = Rig::in_lab(lab, dsr)?;
        let client = rig.lab.client.clone();
        let capture = Capture::open(&rig.lab.node, rig.lab.client_link())?;
        let mut kept = KeepAlive::connect(&client, VIP_V4)?;
        for _ in 0..20 {
            ensure!(kept.get("/").expect("it answers").body == "master");
        }
        let SocketAddr::V4(vip) = VIP_V4 else {
            unreachable!("an IPv4 VIP");
        };
        while let Some(frame) = capture.next()? {
            let from_vip =
                frame.len() > 34 && frame[12..14] == [8, 0] && frame[26..30] == vip.ip().octets();
            ensure!(!from_vip, "an answer by the node: {frame:02x?}");
        }
        Ok(())
    });
}

#[test]
fn datagrams() {
    privileged(|| {
        let rig = Rig::in_lab(lab(Way::Edge)?, |config| {
            dsr(config);
            config["services"][0]["listeners"] = json!([
                VIP_V4.to_string(),
                format!("{VIP_V4}/udp"),
                format!("{VIP_V6}/udp"),
            ]);
        })?;
        for to in [VIP_V4, VIP_V6] {
            let _echo = Echo::at(&rig.lab.master, to, "master")?;
            let socket = connected(&rig.lab.client, to)?;
            for length in [0, 1, 700, 1400] {
                let question = vec![b'?'; length];
                let answer = ask(&socket, &question)?;
                ensure!(answer == [&b"master"[..], &question].concat());
            }
        }
        Ok(())
    });
}

/// The node may be one of the endpoints, as with a pair of hosts that share a VIP.
#[test]
fn the_node_as_an_endpoint() {
    privileged(|| {
        let lab = lab(Way::Uplink)?;
        own(&lab.node, &[VIP_V4])?;
        let _here = Server::start(&lab, &lab.node)?;
        let rig = Rig::in_lab(lab, |config| {
            dsr(config);
            config["services"][0]["listeners"] = json!([VIP_V4.to_string()]);
            config["services"][0]["endpoints"][0] =
                json!({"name": "master", "address": format!("10.1.0.1:{PORT}")});
        })?;
        let answer = get(&rig.lab.client, VIP_V4, "/")?.expect("the node answers");
        ensure!(answer.body == "node", "{} answers", answer.body);
        Ok(())
    });
}

/// A router in between would not know what to do with the VIP: such a packet is not sent
/// there.
#[test]
fn an_endpoint_behind_a_router() {
    privileged(|| {
        let lab = lab(Way::Edge)?;
        lab.master.ip(["addr add 10.9.9.9/32 dev lo"])?;
        lab.node
            .ip([format!("route add 10.9.9.9/32 via {}", MASTER_V4.ip())])?;
        let rig = Rig::in_lab(lab, |config| {
            dsr(config);
            config["services"][0]["endpoints"][0]["address"] =
                json!([format!("10.9.9.9:{PORT}"), MASTER_V6.to_string()]);
        })?;
        ensure!(
            get(&rig.lab.client, VIP_V4, "/")?.is_err(),
            "nobody is there"
        );
        let reasons = &rig.agent.status()?["datapath"]["reasons"];
        ensure!(
            reasons["not_forwarded"].as_u64() > Some(0),
            "not counted: {reasons}"
        );
        Ok(())
    });
}

/// Connections to an endpoint's own address are nobody's business, however the service
/// forwards.
#[test]
fn own_addresses_stay_direct() {
    privileged(|| {
        for forward in ["dsr", "full-nat"] {
            let rig = Rig::in_lab(lab(Way::EdgeAmongPods)?, |config| {
                config["datapath"]["source"] = json!(["10.0.9.9", "fd00:9::9"]);
                config["services"][0]["forward"] = json!(forward);
            })?;
            let client = &rig.lab.client;
            ensure!(get(client, VIP_V4, "/")?.is_ok());
            for (own, seen) in [
                (MASTER_V4, CLIENT_V4),
                (MASTER_V6, lab::topology::CLIENT_V6),
            ] {
                let peer = peer(client, own)?.ip();
                ensure!(
                    peer.to_canonical() == seen,
                    "{forward}: the server sees {peer}"
                );
            }
        }
        Ok(())
    });
}
