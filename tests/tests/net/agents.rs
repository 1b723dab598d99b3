//! Endpoints that say themselves how they want to be treated, by an agent beside them.

use std::{
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, Way, agent, client::Long, privileged, topology::VIP_V4};
use serde_json::json;

use crate::rig::Rig;

const PORT: u16 = 9777;

/// An agent on a host, which answers whoever connects with its line and closes.
struct Said {
    line: Arc<Mutex<&'static str>>,
    end: Arc<AtomicBool>,
}

impl Said {
    fn start(host: &Arc<Namespace>, line: &'static str) -> Result<Self> {
        let said = Self {
            line: Arc::new(Mutex::new(line)),
            end: Arc::default(),
        };
        let listener = host
            .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("the agent's port"))?;
        listener.set_nonblocking(true)?;
        let (line, end) = (Arc::clone(&said.line), Arc::clone(&said.end));
        thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let line = *line.lock().unwrap_or_else(PoisonError::into_inner);
                // Who asks may have gone away.
                writeln!(stream, "{line}").ok();
            }
        });
        Ok(said)
    }

    fn says(&self, line: &'static str) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn drains_and_goes_down() -> Result<()> {
    let mut rig = Rig::with(Way::Edge, |config| {
        config["services"][0]["endpoints"][0]["agent_check"] =
            json!({"port": PORT, "inter": "100ms"});
    })?;
    let said = Said::start(&rig.lab.master, "up ready 100%")?;
    let long = Long::open(&rig.lab.client, VIP_V4, Duration::from_millis(10))?;

    said.says("drain");
    rig.agent.wait_selected("backup")?;
    let status = rig.agent.status()?;
    let master = agent::find_endpoint(&status, "master")?;
    ensure!(master["state"] == "up", "{master}");
    ensure!(master["agent_said"] == "up, drain, 100%", "{master}");
    long.check_alive()?;

    said.says("ready");
    rig.agent.wait_selected("master")?;
    long.check_alive()?;

    said.says("down # upgrade");
    rig.agent.wait_state("master", "down")?;
    rig.agent.wait_selected("backup")?;
    let status = rig.agent.status()?;
    let master = agent::find_endpoint(&status, "master")?;
    ensure!(
        master["agent_said"] == "down, ready, 100%: upgrade",
        "{master}"
    );
    // By the default of on_marked_down.
    long.wait_end()?;

    said.says("up");
    rig.agent.wait_selected("master")?;
    Ok(())
}

#[test]
fn an_agent_drains_its_endpoint_and_takes_it_down() {
    privileged(drains_and_goes_down);
}
