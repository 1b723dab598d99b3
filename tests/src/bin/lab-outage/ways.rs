//! The ways that are compared: what stands between clients and endpoints, how it is
//! configured, how long it may take.

use std::{
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Agent, Lab, Process, Server, agent,
    client::get,
    foreign::Gate,
    topology::{BACKUP_V4, MASTER_V4, PORT, VIP_V4},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::faults::Fault;

/// Of probe and of HAProxy where it is tuned: the interval of checks, and their timeout.
pub const INTER: Duration = Duration::from_millis(10);
/// Of both: the interval while an endpoint's state is in doubt.
const FASTINTER: Duration = Duration::from_millis(2);
pub const TIMEOUT: Duration = Duration::from_millis(10);
pub const FALL: u32 = 2;
pub const RISE: u32 = 2;
/// For how long a master has to be up again before probe goes back to it.
pub const HOLD: Duration = Duration::from_millis(300);
/// The reference's `inter 40000`, and what it is divided by to fit.
pub const REFERENCE_INTER: Duration = Duration::from_secs(40);
pub const SHORTENED_BY: u32 = 40;

/// What stands between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    Probe,
    HaproxyTuned,
    HaproxyFloor,
    HaproxyDefault,
    HaproxyShortened,
    NftDnat,
}

impl Path {
    pub const ALL: [Self; 6] = [
        Self::Probe,
        Self::HaproxyTuned,
        Self::HaproxyFloor,
        Self::HaproxyDefault,
        Self::HaproxyShortened,
        Self::NftDnat,
    ];

    pub const fn shown(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::HaproxyTuned => "HAProxy tuned",
            Self::HaproxyFloor => "HAProxy 1 ms",
            Self::HaproxyDefault => "HAProxy default",
            Self::HaproxyShortened => "HAProxy shortened",
            Self::NftDnat => "nft DNAT",
        }
    }

    /// In a line.
    pub fn described(self) -> String {
        let (inter, timeout) = (INTER.as_millis(), TIMEOUT.as_millis());
        let fast = FASTINTER.as_millis();
        match self {
            Self::Probe => format!(
                "inter {inter} ms, fastinter {fast} ms, fall {FALL}, rise {RISE}, timeout {timeout} ms, sentinel on, observe mark-down with error_limit 1, \
                 on_marked_down reset, failback auto with a hold of {} ms",
                HOLD.as_millis()
            ),
            Self::HaproxyTuned => format!(
                "inter {inter} ms, fastinter {fast} ms, fall {FALL}, rise {RISE}, observe layer4 with error-limit 1 and \
                 on-error mark-down, on-marked-down shutdown-sessions, option redispatch 1, \
                 retries 3, timeouts of connect and check {timeout} ms, and a check of the status, \
                 which the reference's expectation of a string replaces"
            ),
            Self::HaproxyFloor => {
                "as tuned, but inter 1 ms, fall 1: connects of checks time out after 1 ms"
                    .to_owned()
            }
            Self::HaproxyDefault => "inter 2 s, fall 3, rise 2: nothing but `check`".to_owned(),
            Self::HaproxyShortened => format!(
                "the reference's lines with its inter 40000 divided by {SHORTENED_BY}: \
                 unshortened it takes {SHORTENED_BY} times as long"
            ),
            Self::NftDnat => "one rule to the master, no checks".to_owned(),
        }
    }

    /// How long is waited for what a fault makes of it.
    pub const fn window(self, fault: Fault) -> Duration {
        let millis = match (self, fault) {
            (Self::Probe | Self::HaproxyTuned | Self::HaproxyFloor | Self::NftDnat, _) => 1_300,
            (Self::HaproxyShortened, Fault::Recovery) => 3_500,
            (Self::HaproxyShortened, _) if fault.is_silent() => 8_000,
            (Self::HaproxyShortened, _) => 4_500,
            (Self::HaproxyDefault, Fault::Recovery) => 6_500,
            (Self::HaproxyDefault, _) if fault.is_silent() => 15_000,
            (Self::HaproxyDefault, _) => 8_000,
        };
        Duration::from_millis(millis)
    }

    /// What takes milliseconds is disturbed by milliseconds.
    pub const fn is_fast(self) -> bool {
        matches!(self, Self::Probe | Self::HaproxyTuned | Self::HaproxyFloor)
    }

    /// What takes seconds runs less often.
    pub const fn is_slow(self) -> bool {
        matches!(self, Self::HaproxyDefault | Self::HaproxyShortened)
    }

    /// HAProxy takes a server that was never checked down at its first failed check,
    /// whatever `fall` is: the first good one comes within the interval.
    const fn first_check(self) -> Duration {
        let millis = match self {
            Self::HaproxyDefault => 2_500,
            Self::HaproxyShortened => 1_500,
            _ => 100,
        };
        Duration::from_millis(millis)
    }

    /// The lines of HAProxy's configuration that make the way what it is.
    fn haproxy(self) -> Option<String> {
        let (inter, timeout) = (INTER.as_millis(), TIMEOUT.as_millis());
        let reference = REFERENCE_INTER.as_millis() / u128::from(SHORTENED_BY);
        let tuned = |inter: String| {
            format!(
                " timeout connect {timeout}ms\n timeout check {timeout}ms\n timeout client 1m\n timeout server 1m\n retries 3\n \
                 option redispatch 1\n default-server {inter} rise {RISE} observe layer4 \
                 error-limit 1 on-error mark-down on-marked-down shutdown-sessions\n"
            )
        };
        let plain = " timeout connect 5s\n timeout client 1m\n timeout server 1m\n".to_owned();
        match self {
            Self::Probe | Self::NftDnat => None,
            Self::HaproxyTuned => Some(tuned(format!(
                "inter {inter}ms fastinter 2ms downinter {inter}ms fall {FALL}"
            ))),
            Self::HaproxyFloor => Some(tuned("inter 1ms fall 1".to_owned())),
            Self::HaproxyDefault => Some(plain),
            Self::HaproxyShortened => Some(format!("{plain} default-server inter {reference}\n")),
        }
    }
}

/// HAProxy's whole configuration; nothing for the other ways.
pub fn haproxy_config(path: Path) -> Option<String> {
    let own = path.haproxy()?;
    // A body with "version" keeps a server up whatever its status, unless that is asked for.
    let status = match path {
        Path::HaproxyTuned | Path::HaproxyFloor => " http-check expect status 200\n",
        _ => "",
    };
    Some(format!(
        "defaults\n mode tcp\n{own}listen sense\n bind {VIP_V4}\n option httpchk GET /status\n{status} \
         http-check expect string version\n server backup {BACKUP_V4} check port {PORT} backup\n \
         server master {MASTER_V4} check port {PORT}\n"
    ))
}

/// The agent's configuration, IPv4 alone as the others have it.
pub fn probe_config(lab: &Lab) -> Value {
    let millis = |time: Duration| format!("{}ms", time.as_millis());
    let mut config = agent::config(lab);
    let service = &mut config["services"][0];
    service["listeners"] = json!([VIP_V4.to_string()]);
    service["endpoints"] = json!([
        {"name": "master", "address": MASTER_V4.to_string()},
        {"name": "backup", "address": BACKUP_V4.to_string(), "tier": 1},
    ]);
    service["check"]["inter"] = json!(millis(INTER));
    service["check"]["fastinter"] = json!(millis(FASTINTER));
    service["check"]["timeout"] = json!(millis(TIMEOUT));
    service["check"]["fall"] = json!(FALL);
    service["check"]["rise"] = json!(RISE);
    service["sentinel"] = json!("on");
    // What the tuned HAProxy has: `observe layer4`, `error-limit 1`, `on-error mark-down`.
    service["observe"] = json!("mark-down");
    service["error_limit"] = json!(1);
    service["on_marked_down"] = json!("reset");
    // The master fails again and again here: fail-back must not wait longer each time.
    service["failback"] = json!({"mode": "auto", "hold": millis(HOLD), "max_hold": millis(HOLD)});
    config
}

/// What runs while a way has its turn.
enum Balancer {
    Agent(Agent),
    Haproxy(Process),
    /// A rule of the kernel's.
    Rule,
}

/// A lab with one way.
pub struct Rig {
    pub path: Path,
    /// Only while the way has its turn: those that wait must not disturb.
    balancer: Option<Balancer>,
    pub master: Server,
    /// At the master's interface.
    pub gate: Gate,
    _backup: Server,
    pub lab: Lab,
}

impl Rig {
    pub fn new(path: Path) -> Result<Self> {
        let lab = Lab::new(lab::Way::Edge)?;
        for host in [&lab.client, &lab.node] {
            // A connection a millisecond, whose ports rest at the other side.
            host.sysctl(&[("ipv4/ip_local_port_range", "1024 65535")])?;
        }
        let master = Server::start(&lab, &lab.master)?;
        let backup = Server::start(&lab, &lab.backup)?;
        if path == Path::NftDnat {
            let rules = format!(
                "table ip lab {{ chain pre {{ type nat hook prerouting priority dstnat; \
                 ip daddr {} tcp dport {PORT} dnat to {MASTER_V4}; }}; }}",
                VIP_V4.ip()
            );
            lab.node.ask("nft", &[&rules])?;
        }
        if let Some(text) = haproxy_config(path) {
            lab.node
                .ip([format!("addr add {}/32 dev lo", VIP_V4.ip())])?;
            fs::write(lab.file("haproxy.cfg"), text).context("cannot write haproxy.cfg")?;
        }
        Ok(Self {
            path,
            balancer: None,
            master,
            gate: Gate::at(&lab.master, "eth0")?,
            _backup: backup,
            lab,
        })
    }

    pub const fn target() -> SocketAddr {
        VIP_V4
    }

    /// Its turn begins.
    pub fn start(&mut self) -> Result<()> {
        self.balancer = Some(match self.path {
            Path::Probe => {
                let config = probe_config(&self.lab);
                Balancer::Agent(Agent::start_with(&self.lab, &config, &["--detach"])?)
            }
            Path::NftDnat => Balancer::Rule,
            _ => {
                let mut command = self.lab.node.command("haproxy");
                command
                    .arg("-db")
                    .arg("-f")
                    .arg(self.lab.file("haproxy.cfg"));
                Balancer::Haproxy(Process::start("haproxy", command)?)
            }
        });
        thread::sleep(self.path.first_check());
        self.settle("master")
    }

    /// Its turn is over.
    pub fn stop(&mut self) -> Result<()> {
        match self.balancer.take() {
            Some(Balancer::Agent(mut agent)) => {
                let (status, printed) = agent.terminate()?;
                ensure!(status.success(), "the agent ended with {status}: {printed}");
            }
            // Killed when dropped.
            Some(Balancer::Haproxy(_) | Balancer::Rule) | None => {}
        }
        Ok(())
    }

    /// What the agent printed, if this is its way.
    pub fn printed(&self) -> Option<String> {
        match &self.balancer {
            Some(Balancer::Agent(agent)) => Some(agent.printed()),
            _ => None,
        }
    }

    /// Waits until this server answers again and again, and both are known to be well
    /// where that is told.
    pub fn settle(&mut self, server: &str) -> Result<()> {
        if self.path == Path::NftDnat && server != "master" {
            return Ok(());
        }
        if let Some(Balancer::Agent(agent)) = &mut self.balancer {
            if server == "master" {
                agent.wait_state("master", "up")?;
            }
            agent.wait_state("backup", "up")?;
            agent.wait_selected(server)?;
        }
        let begun = Instant::now();
        let mut right = 0;
        while right < 5 {
            if let Some(Balancer::Haproxy(process)) = &mut self.balancer
                && let Some(status) = process.ended()
            {
                bail!("HAProxy ended: {status}: {:?}", process.lines());
            }
            let answer = get(&self.lab.client, Self::target(), "/")?;
            match answer {
                Ok(answer) if answer.body == server => right += 1,
                other => {
                    right = 0;
                    ensure!(
                        begun.elapsed() < Duration::from_secs(30),
                        "{}: {server} does not serve: {other:?}",
                        self.path.shown()
                    );
                }
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::{Path, SHORTENED_BY, haproxy_config};
    use crate::faults::Fault;

    #[test]
    fn the_shortened_reference_differs_by_its_factor_alone() {
        let text = haproxy_config(Path::HaproxyShortened).expect("it is HAProxy's");
        assert!(text.contains(&format!("default-server inter {}\n", 40_000 / SHORTENED_BY)));
        assert!(text.contains("option httpchk GET /status\n http-check expect string version\n"));
        assert!(!text.contains("fall") && !text.contains("observe"));
    }

    #[test]
    fn only_haproxy_has_its_configuration() {
        for path in Path::ALL {
            let named = path.shown().starts_with("HAProxy");
            assert_eq!(haproxy_config(path).is_some(), named, "{path:?}");
        }
        let tuned = haproxy_config(Path::HaproxyTuned).expect("it is HAProxy's");
        for word in [
            "inter 10ms",
            "fall 2",
            "rise 2",
            "observe layer4",
            "on-error mark-down",
            "option redispatch 1",
            "on-marked-down shutdown-sessions",
            "http-check expect status 200",
        ] {
            assert!(tuned.contains(word), "{word}");
        }
    }

    #[test]
    fn haproxy_takes_its_configurations() {
        if Command::new("haproxy").arg("-v").output().is_err() {
            println!("SKIPPED: haproxy_takes_its_configurations needs haproxy");
            return;
        }
        for path in Path::ALL {
            let Some(text) = haproxy_config(path) else {
                continue;
            };
            let folder = lab::folder::Folder::new();
            let Ok(folder) = folder else {
                println!("SKIPPED: haproxy_takes_its_configurations needs root");
                return;
            };
            let file = folder.path().join("haproxy.cfg");
            fs::write(&file, text).expect("the folder takes files");
            let mut judge = Command::new("haproxy");
            let judged = judge.arg("-c").arg("-f").arg(&file).output();
            let judged = judged.expect("haproxy runs");
            let said = String::from_utf8_lossy(&judged.stderr);
            assert!(judged.status.success(), "{path:?}: {said}");
        }
    }

    #[test]
    fn slow_ways_have_the_time_that_they_need() {
        for fault in Fault::ALL {
            let window = |path: Path| path.window(fault);
            assert!(window(Path::HaproxyDefault) > window(Path::HaproxyShortened));
            assert!(window(Path::HaproxyShortened) > window(Path::Probe));
        }
    }
}
