//! Who checks, how, and with which configuration.

use std::{
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lab::server::binary;
use serde::Serialize;
use serde_json::{Value, json};

use crate::rig::{Checker, Rig, VICTIM, endpoint};

pub const FALL: u32 = 2;
pub const RISE: u32 = 2;
/// Endpoints of a service, or servers of a backend: a master and its backups.
const EACH: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Probe,
    Haproxy,
}

/// What a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A new connection each time, the only way that HAProxy knows.
    HttpFresh,
    HttpReused,
    /// What probe does unless told otherwise: below `inter: 1s` ten on a connection, or as many as fit
    /// into a quarter of a second, else one.
    HttpDefault,
    Tcp,
    RedisFresh,
    RedisReused,
}

impl Kind {
    pub const fn shown(self) -> &'static str {
        match self {
            Self::HttpFresh => "http, fresh",
            Self::HttpReused => "http, reused",
            Self::HttpDefault => "http, default",
            Self::Tcp => "tcp",
            Self::RedisFresh => "redis, fresh",
            Self::RedisReused => "redis, reused",
        }
    }

    const fn connection(self) -> Option<&'static str> {
        match self {
            Self::HttpFresh | Self::RedisFresh => Some("fresh"),
            Self::HttpReused | Self::RedisReused => Some("reuse"),
            Self::HttpDefault | Self::Tcp => None,
        }
    }
}

impl Way {
    pub const fn shown(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Haproxy => "HAProxy",
        }
    }
}

/// What is checked how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub way: Way,
    pub kind: Kind,
    pub endpoints: usize,
    pub inter: Duration,
    pub timeout: Duration,
    /// One more endpoint, which is killed or stopped.
    pub victim: bool,
    pub sentinel: bool,
}

impl Plan {
    pub const fn new(way: Way, kind: Kind, endpoints: usize, inter: Duration) -> Self {
        Self {
            way,
            kind,
            endpoints,
            inter,
            // As long as the interval, from 100 ms on.
            timeout: if inter.as_millis() < 100 {
                Duration::from_millis(100)
            } else {
                inter
            },
            victim: false,
            sentinel: false,
        }
    }

    /// Name and address of every endpoint.
    fn all(&self) -> Vec<(String, String)> {
        let victim = self
            .victim
            .then(|| ("victim".to_owned(), VICTIM.to_string()));
        let others = (0..self.endpoints).map(|i| (format!("e{i}"), endpoint(i).to_string()));
        victim.into_iter().chain(others).collect()
    }

    fn probe(&self, rig: &Rig) -> Value {
        let millis = |time: Duration| format!("{}ms", time.as_millis());
        let mut check = match self.kind {
            Kind::HttpFresh | Kind::HttpReused | Kind::HttpDefault => json!({"http": {
                "path": "/status", "host": "bench",
                "expect": {"status": 200, "body": {"contains": "version"}},
            }}),
            Kind::Tcp => json!({"tcp": {}}),
            Kind::RedisFresh | Kind::RedisReused => json!({"redis": {}}),
        };
        for kind in ["http", "redis"] {
            if let (Some(settings), Some(word)) = (check.get_mut(kind), self.kind.connection()) {
                settings["connection"] = json!(word);
            }
        }
        check["inter"] = json!(millis(self.inter));
        check["timeout"] = json!(millis(self.timeout));
        check["rise"] = json!(RISE);
        check["fall"] = json!(FALL);
        let services: Vec<Value> = self
            .all()
            .chunks(EACH)
            .enumerate()
            .map(|(s, endpoints)| {
                let endpoints: Vec<Value> = endpoints
                    .iter()
                    .enumerate()
                    .map(|(tier, (name, at))| json!({"name": name, "address": at, "tier": tier}))
                    .collect();
                json!({
                    "name": format!("s{s}"),
                    "listeners": [format!("10.96.{}.{}:80", s >> 8, s & 255)],
                    "endpoints": endpoints,
                    "check": check,
                    "sentinel": if self.sentinel { "on" } else { "off" },
                })
            })
            .collect();
        json!({
            // There are no clients: what is measured is the checks.
            "interfaces": {"edge": ["none*"], "node": "off"},
            "datapath": {"flows": 4096},
            "control": {"socket": rig.file("probe.sock")},
            "services": services,
        })
    }

    /// The same for HAProxy.
    pub fn haproxy(&self) -> String {
        let (inter, timeout) = (self.inter.as_millis(), self.timeout.as_millis());
        let mut text = format!(
            "defaults\n mode tcp\n timeout connect {timeout}ms\n timeout check {timeout}ms\n \
             timeout client 1m\n timeout server 1m\n \
             default-server inter {inter}ms rise {RISE} fall {FALL}\n\
             frontend all\n bind 127.0.0.1:80\n default_backend s0\n"
        );
        let check = match self.kind {
            Kind::HttpFresh | Kind::HttpReused | Kind::HttpDefault => {
                " option httpchk GET /status\n http-check expect status 200\n \
                 http-check expect string version\n"
            }
            Kind::Tcp => "",
            Kind::RedisFresh | Kind::RedisReused => " option redis-check\n",
        };
        for (s, endpoints) in self.all().chunks(EACH).enumerate() {
            // Writing to a string cannot fail.
            let _ = write!(text, "backend s{s}\n{check}");
            for (tier, (name, at)) in endpoints.iter().enumerate() {
                let backup = if tier == 0 { "" } else { " backup" };
                let _ = writeln!(text, " server {name} {at} check{backup}");
            }
        }
        text
    }

    /// Starts it, and waits until every endpoint was checked, as far as that comes about.
    pub fn start(&self, rig: &mut Rig) -> Result<Checker> {
        let command = match self.way {
            Way::Probe => {
                let file = rig.file("probe.yaml");
                let text = serde_json::to_string(&self.probe(rig)).context("it is JSON")?;
                fs::write(&file, text).context("cannot write probe.yaml")?;
                let mut command = rig.checker.command(binary("probe", "PROBE_BIN")?);
                command.args(["run", "--detach", "--config"]).arg(file);
                command
            }
            Way::Haproxy => {
                let file = rig.file("haproxy.cfg");
                fs::write(&file, self.haproxy()).context("cannot write haproxy.cfg")?;
                let mut command = rig.checker.command("haproxy");
                command.args(["-db", "-f"]).arg(file);
                command
            }
        };
        rig.server.begin()?;
        let connects = rig.connects()?;
        let begun = Instant::now();
        let mut checker = Checker::start(command)?;
        while begun.elapsed() < Duration::from_secs(20) {
            checker.alive()?;
            let all = match self.kind {
                Kind::Tcp => rig.connects()? - connects >= 3 * self.endpoints as u64,
                _ => rig.server.seen()? >= self.endpoints,
            };
            if all {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(checker)
    }
}

/// Does this line say that an endpoint is down, and which one?
pub fn down(line: &str) -> Option<&str> {
    said(line, "endpoint is down", " is DOWN")
}

/// The same of one that is up.
pub fn up(line: &str) -> Option<&str> {
    said(line, "endpoint is up", " is UP")
}

fn said<'a>(line: &'a str, ours: &str, theirs: &str) -> Option<&'a str> {
    if line.contains(ours) {
        // Of our log: `endpoint="e1"`.
        return line.split("endpoint=\"").nth(1)?.split('"').next();
    }
    // `Server s0/e1 is DOWN, reason: ...`
    let (before, _) = line.split_once(theirs)?;
    before
        .rsplit_once("Server ")?
        .1
        .split_once('/')
        .map(|of| of.1)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, time::Duration};

    use super::{Kind, Plan, Way, down, up};

    #[test]
    fn both_say_who_is_down() {
        let ours = "2026-11-21T15:00:00Z  INFO endpoint is down: refused service=\"s0\" endpoint=\"victim\" state=\"down\"";
        assert_eq!(down(ours), Some("victim"));
        assert_eq!(up(ours), None);
        let theirs =
            "[WARNING]  (12) : Server s0/e7 is DOWN, reason: Layer4 timeout, check duration: 10ms.";
        assert_eq!(down(theirs), Some("e7"));
        assert_eq!(
            up("[WARNING]  (12) : Backup Server s0/e7 is UP, reason: x"),
            Some("e7")
        );
        assert_eq!(
            down("[ALERT] : backend 's0' has no server available!"),
            None
        );
    }

    #[test]
    fn haproxy_takes_its_configurations() {
        if Command::new("haproxy").arg("-v").output().is_err() {
            println!("SKIPPED: haproxy_takes_its_configurations needs haproxy");
            return;
        }
        let Ok(folder) = lab::folder::Folder::new() else {
            println!("SKIPPED: haproxy_takes_its_configurations needs root");
            return;
        };
        for kind in [Kind::HttpFresh, Kind::Tcp, Kind::RedisFresh] {
            let mut plan = Plan::new(Way::Haproxy, kind, 25, Duration::from_millis(10));
            plan.victim = true;
            let text = plan.haproxy();
            assert_eq!(text.matches("\nbackend ").count(), 3);
            assert_eq!(text.matches("\n server ").count(), 26);
            let file = folder.path().join("haproxy.cfg");
            fs::write(&file, &text).expect("the folder takes files");
            let judged = Command::new("haproxy")
                .arg("-c")
                .arg("-f")
                .arg(&file)
                .output();
            let judged = judged.expect("haproxy runs");
            let said = String::from_utf8_lossy(&judged.stderr);
            assert!(judged.status.success(), "{kind:?}: {said}");
        }
    }
}
