//! The agent under a service manager: what it is told, and when.

use std::{
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{Agent, Lab, Server, Way, agent, privileged, wait::patience};
use nix::sys::signal::Signal;
use serde_json::json;

/// Reads what the manager is told until one of its lines is this one.
fn told(manager: &UnixDatagram, line: &str) -> Result<Vec<String>> {
    let begun = Instant::now();
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while begun.elapsed() < patience(Duration::from_secs(20)) {
        manager
            .set_read_timeout(Some(patience(Duration::from_secs(20))))
            .context("timeout")?;
        let len = manager
            .recv(&mut buffer)
            .with_context(|| format!("{line} did not come, but {all:?}"))?;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        all.extend(text.lines().map(str::to_owned));
        if all.iter().any(|told| told == line) {
            return Ok(all);
        }
    }
    bail!("{line} did not come, but {all:?}");
}

/// Readiness waits for the first verdicts, the watchdog gets its signs of life, and the end
/// is announced. A configuration that is loaded again is too.
#[test]
fn the_service_manager_is_told() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _master = Server::start(&lab, &lab.master)?;
        let path = lab.file("notify.sock");
        let manager = UnixDatagram::bind(&path).context("the manager's socket")?;
        let mut config = agent::config(&lab);
        // Nobody is at these addresses of the backup's link: the first check takes so long.
        let service = &mut config["services"][0];
        service["endpoints"][1]["address"] = json!(["10.3.0.77:8079", "[fd00:3::77]:8079"]);
        service["check"]["timeout"] = json!("1500ms");
        let mut agent = Agent::new(&lab, &config, &[])?;
        agent.set_env("NOTIFY_SOCKET", &path.to_string_lossy());
        agent.set_env("WATCHDOG_USEC", "600000");
        let begun = Instant::now();
        agent.launch()?;
        let before = told(&manager, "READY=1")?;
        ensure!(
            before.iter().any(|line| line.contains("first verdict on")),
            "{before:?}"
        );
        ensure!(begun.elapsed() > Duration::from_millis(1500), "too early");
        let status = agent.status()?;
        for name in ["master", "backup"] {
            let endpoint = agent::find_endpoint(&status, name)?;
            ensure!(endpoint["state"] != "unknown", "{endpoint}");
        }
        for _ in 0..3 {
            told(&manager, "WATCHDOG=1")?;
        }
        agent.signal(Signal::SIGHUP)?;
        let during = told(&manager, "RELOADING=1")?;
        ensure!(
            during
                .iter()
                .any(|line| line.starts_with("MONOTONIC_USEC=")),
            "{during:?}"
        );
        told(&manager, "READY=1")?;
        let (status, printed) = agent.terminate()?;
        ensure!(status.success(), "{status}: {printed}");
        told(&manager, "STOPPING=1")?;
        Ok(())
    });
}
