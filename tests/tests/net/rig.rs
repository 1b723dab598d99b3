//! The lab with servers and an agent, as most tests want it.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Result, ensure};
use lab::{
    Agent, Lab, Namespace, Server, Way, agent,
    client::{KeepAlive, Load, Plan, Sample},
};
use serde_json::Value;

pub struct Rig {
    // Dropped first: the agent must not see its checks fail while the lab goes.
    pub agent: Agent,
    pub master: Server,
    pub backup: Server,
    pub lab: Lab,
}

impl Rig {
    /// The agent runs, both endpoints are up, the master is selected.
    pub fn new(way: Way) -> Result<Self> {
        Self::with(way, |_| {})
    }

    /// [`Rig::new`] with a change to the configuration.
    pub fn with(way: Way, change: impl FnOnce(&mut Value)) -> Result<Self> {
        Self::in_lab(Lab::new(way)?, change)
    }

    /// [`Rig::with`] in a lab that was prepared.
    pub fn in_lab(lab: Lab, change: impl FnOnce(&mut Value)) -> Result<Self> {
        let master = Server::start(&lab, &lab.master)?;
        let backup = Server::start(&lab, &lab.backup)?;
        let mut config = agent::config(&lab);
        change(&mut config);
        let mut agent = Agent::start(&lab, &config)?;
        agent.wait_state("master", "up")?;
        agent.wait_state("backup", "up")?;
        agent.wait_selected("master")?;
        Ok(Self {
            agent,
            master,
            backup,
            lab,
        })
    }
}

/// Every sample was answered by this server.
pub fn all_by(samples: &[Sample], name: &str) -> Result<()> {
    ensure!(!samples.is_empty(), "no sample at all");
    for (at, sample) in samples.iter().enumerate() {
        ensure!(
            sample.answered_by(name),
            "request {at} of {}: {:?}",
            samples.len(),
            sample.outcome
        );
    }
    Ok(())
}

/// This server answers short connections and a kept one, and what is long arrives whole.
pub fn carries(client: &Arc<Namespace>, to: SocketAddr, name: &str) -> Result<()> {
    let load = Load::start(client, Plan::steady(to));
    load.run_for(200)?;
    all_by(&load.stop()?, name)?;
    let mut kept = KeepAlive::connect(client, to)?;
    for _ in 0..20 {
        ensure!(kept.get("/").expect("a kept connection answers").body == name);
    }
    let big = kept.get("/big").expect("a mebibyte arrives");
    ensure!(big.body == "0123456789abcdef".repeat(1 << 16), "damaged");
    Ok(())
}

/// No sample failed, whoever answered.
pub fn none_failed(samples: &[Sample]) -> Result<()> {
    ensure!(!samples.is_empty(), "no sample at all");
    for (at, sample) in samples.iter().enumerate() {
        ensure!(
            sample.outcome.is_ok(),
            "request {at} of {}: {:?}",
            samples.len(),
            sample.outcome
        );
    }
    Ok(())
}
