//! More live connections than the tables hold.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{Way, privileged, until};
use serde_json::json;

use super::{Pair, Peer, RAW, Tables, counted, raw_rig, wait_alone};

/// What each table holds: the least that may be configured.
const ROOM: usize = 1024;
/// Connections that live at once.
const LIVE: usize = 1500;

fn more_than_the_tables_hold(way: Way, learn: &str) -> Result<()> {
    let rig = raw_rig(way, |config| {
        config["datapath"] = json!({"flows": ROOM, "learn": learn});
    })?;
    let client = rig.lab.client.clone();
    let peer = Peer::on(&rig.lab.master)?;
    if learn == "0s" {
        wait_alone(&rig.agent, "raw", true)?;
    }
    let what = format!("{way:?}, learn: {learn}");
    let mut pairs: Vec<Pair> = Vec::with_capacity(LIVE);
    for i in 0..LIVE {
        let mut pair = Pair::open(&client, None, RAW, &peer)?;
        pair.talk().with_context(|| format!("{what}: {i}"))?;
        pairs.push(pair);
    }
    ensure!(counted(&rig.agent, "table_full")? > 0, "{what}");
    let tables = Tables::of(&rig.lab)?;
    let held = tables.count();
    ensure!(held <= ROOM && held > ROOM / 2, "{what}: {held} flows");
    for round in 0..3 {
        for (i, pair) in pairs.iter_mut().enumerate() {
            let at = || format!("{what}: round {round}, {i}");
            pair.talk().with_context(at)?;
            // Much of the answer, and more of it after a while.
            pair.down().with_context(at)?;
        }
        thread::sleep(Duration::from_millis(300));
    }
    // Whoever leaves makes room, which others take at their next segment.
    let late = pairs.split_off(LIVE / 2);
    drop(pairs);
    let mut pairs = late;
    until("the flows that ended to be gone", || {
        ensure!(tables.count() <= LIVE / 2);
        Ok(())
    })?;
    for pair in &mut pairs {
        pair.talk().with_context(|| what.clone())?;
    }
    let held = tables.count();
    ensure!(held == pairs.len(), "{what}: {held} of {}", pairs.len());
    Ok(())
}

#[test]
fn more_live_connections_than_entries() {
    privileged(|| {
        more_than_the_tables_hold(Way::Edge, "2m")?;
        more_than_the_tables_hold(Way::EdgeAmongPods, "0s")?;
        more_than_the_tables_hold(Way::Uplink, "0s")
    });
}
