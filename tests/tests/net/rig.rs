//! The lab with servers and an agent, as most tests want it.

use anyhow::{Result, ensure};
use lab::{Agent, Lab, Server, Way, agent, client::Sample};
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
