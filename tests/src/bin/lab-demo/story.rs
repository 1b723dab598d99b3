//! What happens in the demo, in order, and what was seen of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Agent, Lab, Server, Way, agent,
    client::{End, Load, Long, Plan, Sample},
    topology::VIP_V4,
};
use serde_json::json;

use crate::progress::Progress;

pub const INTERVAL: Duration = Duration::from_millis(10);
pub const TIMEOUT: Duration = Duration::from_millis(100);
pub const FALL: u32 = 2;
pub const RISE: u32 = 2;
pub const HOLD: Duration = Duration::from_secs(2);
/// New connections per second.
pub const RATE: u32 = 200;
/// How often the client of the long connection says something.
pub const SPEAK: Duration = Duration::from_millis(20);

/// Requests begun so shortly after the load began are not judged: first packets
/// fill caches and tables.
const WARM_UP: Duration = Duration::from_millis(500);
const STEADY: Duration = Duration::from_secs(4);
const ON_BACKUP: Duration = Duration::from_secs(3);
const BACK: Duration = Duration::from_secs(3);

/// The moments of the story and every request of it.
pub struct Facts {
    pub begun: Instant,
    pub killed: Instant,
    pub restored: Instant,
    pub ended: Instant,
    /// How the long connection to the killed master ended.
    pub long_end: End,
    /// Ticks that the long connection heard before.
    pub long_ticks: u64,
    /// A long connection to the backup went on while traffic went back to the master.
    pub backup_long_kept: bool,
    /// In the order of their beginnings.
    pub samples: Vec<Sample>,
    pub switches: u64,
}

/// Plays it; takes about 20 s.
pub fn play() -> Result<Facts> {
    let mut progress = Progress::begin();
    progress.phase("making client, node, master and backup");
    let lab = Lab::new(Way::Edge)?;
    let mut master = Server::start(&lab, &lab.master)?;
    let _backup = Server::start(&lab, &lab.backup)?;
    progress.phase("starting the agent");
    let mut config = agent::config(&lab);
    let service = &mut config["services"][0];
    let millis = |duration: Duration| format!("{}ms", duration.as_millis());
    service["check"]["inter"] = json!(millis(INTERVAL));
    service["check"]["timeout"] = json!(millis(TIMEOUT));
    service["check"]["fall"] = json!(FALL);
    service["check"]["rise"] = json!(RISE);
    service["failback"] = json!({"mode": "auto", "hold": millis(HOLD)});
    let mut agent = Agent::start(&lab, &config)?;
    agent.wait_selected("master")?;
    agent.wait_state("backup", "up")?;

    progress.phase("warming up");
    let load = Load::start(
        &lab.client,
        Plan {
            rate: RATE,
            ..Plan::steady(VIP_V4)
        },
    );
    let long = Long::open(&lab.client, VIP_V4, SPEAK)?;
    thread::sleep(WARM_UP);

    let begun = Instant::now();
    progress.phase("steady on the master");
    progress.watch(&load, STEADY);
    ensure!(
        long.end().is_none(),
        "the long connection ended in the steady state: {:?}",
        long.end()
    );
    let long_ticks = long.heard().0;

    progress.phase("master killed");
    let killed = Instant::now();
    master.kill()?;
    load.wait_for("backup")
        .context("after the kill nobody answered")?;
    let long_end = long.wait_end()?;
    let second_long = Long::open(&lab.client, VIP_V4, SPEAK)?;
    progress.phase("on the backup");
    progress.watch(&load, ON_BACKUP);

    progress.phase("master restored, holding");
    // Before its start: the hold cannot have begun earlier.
    let restored = Instant::now();
    master.restart()?;
    let mut back = false;
    while !back && restored.elapsed() < HOLD + Duration::from_secs(10) {
        progress.watch(&load, Duration::from_millis(100));
        back = load
            .since(load.count().saturating_sub(5))
            .iter()
            .any(|sample| sample.begun > restored && sample.answered_by("master"));
    }
    ensure!(back, "traffic did not go back to the master");
    progress.phase("back on the master");
    progress.watch(&load, BACK);
    let backup_long_kept = second_long.check_alive().is_ok();
    let switches = agent.switches()?;
    let ended = Instant::now();
    let samples = load.stop()?;
    progress.end();
    Ok(Facts {
        begun,
        killed,
        restored,
        ended,
        long_end,
        long_ticks,
        backup_long_kept,
        samples,
        switches,
    })
}
