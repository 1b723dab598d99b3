//! Full NAT: the endpoint sees the node, and replies come back to it from wherever the
//! endpoint is.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Way, agent,
    client::{KeepAlive, Load, Long, Plan, get},
    privileged,
    topology::{VIP_MASTER_V4, VIP_V4, VIP_V6},
};
use serde_json::json;

use crate::rig::{Rig, all_by};

const SOURCES: [&str; 2] = ["10.0.9.9", "fd00:9::9"];

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
        let load = Load::start(&client, Plan::steady(vip));
        load.run_for(200)?;
        all_by(&load.stop()?, "master")?;
        let mut kept = KeepAlive::connect(&client, vip)?;
        for _ in 0..20 {
            ensure!(kept.get("/").expect("a kept connection answers").body == "master");
        }
        let big = kept.get("/big").expect("a mebibyte arrives");
        ensure!(big.body == "0123456789abcdef".repeat(1 << 16), "damaged");
        long.check_alive()?;
    }
    // The endpoint's own listener goes the same way, and its own address stays direct.
    let answer = get(&client, VIP_MASTER_V4, "/")?.expect("it answers");
    ensure!(answer.body == "master");

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
