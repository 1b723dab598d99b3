//! Requests a second through the lab: straight to the endpoint, by probe, by an nft
//! DNAT rule and by HAProxy, in interleaved rounds.
//!
//! Each way has a lab of its own, since a NAT rule turns on connection tracking for
//! all of its namespace. Server, client and links are the same.

use std::{fs, sync::Arc, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Agent, Lab, Namespace, Process, Server, Way, agent,
    bench::Spread,
    client::get,
    server::Kind,
    topology::{MASTER_V4, PORT, VIP_V4},
    until,
};
use serde::Serialize;
use serde_json::json;

use crate::Scale;

/// How packets get to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    Direct,
    Probe,
    NftDnat,
    Haproxy,
}

impl Path {
    const ALL: [Self; 4] = [Self::Direct, Self::Probe, Self::NftDnat, Self::Haproxy];

    pub const fn shown(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Probe => "probe",
            Self::NftDnat => "nft DNAT",
            Self::Haproxy => "HAProxy, tcp mode",
        }
    }
}

/// What clients do with their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    KeepAlive,
    NewConnections,
}

impl Mode {
    pub const ALL: [Self; 2] = [Self::KeepAlive, Self::NewConnections];

    pub const fn shown(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::NewConnections => "new connections",
        }
    }
}

/// One run of the load generator.
#[derive(Clone, Copy, Debug)]
struct Run {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub path: Path,
    pub mode: Mode,
    pub per_second: Spread,
    pub p50_us: Spread,
    pub p99_us: Spread,
    /// Requests per second to those of direct in the same round.
    pub to_direct: Spread,
    /// And to those of nft DNAT.
    pub to_nft: Spread,
}

#[derive(Debug, Serialize)]
pub struct Throughput {
    pub rounds: u32,
    pub seconds_a_run: u32,
    pub connections: u32,
    pub rows: Vec<Row>,
}

impl Throughput {
    pub fn row(&self, path: Path, mode: Mode) -> Result<&Row> {
        self.rows
            .iter()
            .find(|row| (row.path, row.mode) == (path, mode))
            .with_context(|| format!("{path:?} was not measured"))
    }
}

const CONNECTIONS: u32 = 16;

/// Tells what a run was like in one line of numbers.
const REPORT: &str = "done = function(summary, latency, requests)\n\
    local e = summary.errors\n\
    io.write(string.format('RESULT %d %d %d %d %d\\n', summary.requests, summary.duration,\n\
    latency:percentile(50), latency:percentile(99),\n\
    e.connect + e.read + e.write + e.status + e.timeout))\n\
    end\n";

/// A lab with one way to the endpoint.
struct Rig {
    path: Path,
    // Dropped before the lab they live in.
    _agent: Option<Agent>,
    _proxy: Option<Process>,
    _servers: Vec<Server>,
    lab: Lab,
}

impl Rig {
    fn new(path: Path) -> Result<Self> {
        let lab = Lab::new(Way::Edge)?;
        let mut servers = vec![Server::start_kind(&lab, &lab.master, Kind::Nginx)?];
        let (mut agent, mut proxy) = (None, None);
        match path {
            Path::Direct => {}
            Path::Probe => {
                servers.push(Server::start_kind(&lab, &lab.backup, Kind::Nginx)?);
                agent = Some(settled(&lab)?);
            }
            Path::NftDnat => nft(&lab)?,
            Path::Haproxy => proxy = Some(haproxy(&lab)?),
        }
        fs::write(lab.file("report.lua"), REPORT).context("cannot write the report's script")?;
        let rig = Self {
            path,
            _agent: agent,
            _proxy: proxy,
            _servers: servers,
            lab,
        };
        until(&format!("{} to serve", path.shown()), || {
            let answer = get(&rig.lab.client, rig.target(), "/")?;
            ensure!(
                answer.as_ref().is_ok_and(|answer| answer.body == "master"),
                "it answers {answer:?}"
            );
            Ok(())
        })?;
        Ok(rig)
    }

    fn target(&self) -> std::net::SocketAddr {
        match self.path {
            Path::Direct => MASTER_V4,
            Path::Probe | Path::NftDnat | Path::Haproxy => VIP_V4,
        }
    }

    fn run(&self, mode: Mode, seconds: u32) -> Result<Run> {
        let script = self.lab.file("report.lua");
        let mut args = vec![
            "-t1".to_owned(),
            format!("-c{CONNECTIONS}"),
            format!("-d{seconds}s"),
            "-s".to_owned(),
            script.to_string_lossy().into_owned(),
        ];
        if mode == Mode::NewConnections {
            args.extend(["-H".to_owned(), "Connection: close".to_owned()]);
        }
        args.push(format!("http://{}/", self.target()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let printed = self.lab.client.ask("wrk", &args)?;
        parse(&printed).with_context(|| format!("{}: wrk printed {printed}", self.path.shown()))
    }
}

/// An agent that steers as it does from its learning time on: nobody was connected before it
/// came, so there is nothing to learn.
fn settled(lab: &Lab) -> Result<Agent> {
    let mut config = agent::config(lab);
    config["datapath"]["learn"] = json!("0s");
    let mut agent = Agent::start(lab, &config)?;
    agent.wait_selected("master")?;
    until("a sweep to find no other flows", || {
        let page = agent.metrics_page("/metrics")?;
        let alone = page.contains("probe_service_slot_alone{service=\"sense\"} 1");
        ensure!(alone, "the service has no slot alone yet");
        Ok(())
    })?;
    Ok(agent)
}

/// The line that [`REPORT`] prints.
fn parse(printed: &str) -> Result<Run> {
    let line = printed
        .lines()
        .find_map(|line| line.strip_prefix("RESULT "))
        .context("no result")?;
    let numbers: Vec<f64> = line
        .split(' ')
        .map(|word| word.parse().context("no number"))
        .collect::<Result<_>>()?;
    let [requests, duration_us, p50_us, p99_us, errors] = numbers[..] else {
        bail!("not five numbers");
    };
    ensure!(requests > 0.0 && duration_us > 0.0, "nothing was answered");
    ensure!(errors == 0.0, "{errors} requests failed");
    Ok(Run {
        per_second: requests / duration_us * 1e6,
        p50_us,
        p99_us,
    })
}

fn nft(lab: &Lab) -> Result<()> {
    let rules = format!(
        "table ip lab {{ chain pre {{ type nat hook prerouting priority dstnat; \
         ip daddr {} tcp dport {PORT} dnat to {MASTER_V4}; }}; }}",
        VIP_V4.ip()
    );
    lab.node.ask("nft", &[&rules])?;
    Ok(())
}

fn haproxy(lab: &Lab) -> Result<Process> {
    let node: &Arc<Namespace> = &lab.node;
    node.ip([format!("addr add {}/32 dev lo", VIP_V4.ip())])?;
    let config = lab.file("haproxy.cfg");
    let text = format!(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode tcp\n timeout connect 5s\n \
         timeout client 30s\n timeout server 30s\nlisten lab\n bind {VIP_V4}\n \
         server master {MASTER_V4}\n"
    );
    fs::write(&config, text).context("cannot write haproxy.cfg")?;
    let mut command = node.command("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    Process::start("haproxy", command)
}

pub fn measure(scale: &Scale, mut tell: impl FnMut(&str)) -> Result<Throughput> {
    tell("throughput: making four labs");
    let rigs: Vec<Rig> = Path::ALL.into_iter().map(Rig::new).collect::<Result<_>>()?;
    let begun = Instant::now();
    let mut runs: Vec<(Path, Mode, Vec<Run>)> = Path::ALL
        .into_iter()
        .flat_map(|path| Mode::ALL.map(|mode| (path, mode, Vec::new())))
        .collect();
    // Tables and ports are met for the first time.
    for rig in &rigs {
        for mode in Mode::ALL {
            rig.run(mode, 1)?;
        }
    }
    let mut rounds = 0;
    while rounds < scale.loads && (rounds < 3 || begun.elapsed() < scale.loads_limit) {
        tell(&format!(
            "throughput, round {} of {}",
            rounds + 1,
            scale.loads
        ));
        // Each round begins elsewhere, so that no way always follows the same other.
        let first = rounds as usize % runs.len();
        runs.rotate_left(first);
        for (path, mode, runs) in &mut runs {
            let rig = rigs
                .iter()
                .find(|rig| rig.path == *path)
                .context("every path has a lab")?;
            runs.push(rig.run(*mode, scale.load_seconds)?);
        }
        rounds += 1;
    }
    runs.sort_by_key(|(path, mode, _)| (*mode as u8, *path as u8));
    let of = |path: Path, mode: Mode| {
        runs.iter()
            .find(|(p, m, _)| (*p, *m) == (path, mode))
            .map(|(_, _, runs)| runs.as_slice())
            .unwrap_or_default()
    };
    let rows = runs
        .iter()
        .map(|(path, mode, mine)| {
            let spread = |value: fn(&Run) -> f64| {
                Spread::of(mine.iter().map(value)).context("no round was run")
            };
            let ratio = |other: Path| {
                let other = of(other, *mode);
                let ratios = mine.iter().zip(other);
                Spread::of(ratios.map(|(a, b)| a.per_second / b.per_second))
                    .context("no round was run")
            };
            Ok(Row {
                path: *path,
                mode: *mode,
                per_second: spread(|run| run.per_second)?,
                p50_us: spread(|run| run.p50_us)?,
                p99_us: spread(|run| run.p99_us)?,
                to_direct: ratio(Path::Direct)?,
                to_nft: ratio(Path::NftDnat)?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Throughput {
        rounds,
        seconds_a_run: scale.load_seconds,
        connections: CONNECTIONS,
        rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_from_its_line() {
        let run = parse("Running 1s test\nRESULT 1000 500000 40 90 0\n").expect("it is whole");
        assert_eq!(
            (run.per_second, run.p50_us, run.p99_us),
            (2000.0, 40.0, 90.0)
        );
    }

    #[test]
    fn failures_are_not_throughput() {
        assert!(parse("RESULT 1000 500000 40 90 3").is_err());
        assert!(parse("RESULT 0 500000 0 0 0").is_err());
        assert!(parse("nothing").is_err());
    }
}
