//! Signs of failure beside the checks: a sentinel connection that ends, clients that are
//! refused. The checks themselves are seconds apart, so whatever is quick is theirs.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Agent, Lab, Namespace, Server, Way, agent,
    client::{Load, Plan, get},
    dns::Dns,
    faults, journal, privileged,
    topology::{BACKUP_V4, MASTER_V4, PORT, VIP_V4, VIP_V6},
    until,
    wait::{patience, until_true},
};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::rig::Rig;

/// Far more than a sign needs, and with checks every two seconds and two of them to fail
/// far less than they need alone: at least two seconds from the first that fails.
fn soon() -> Duration {
    patience(Duration::from_secs(1))
}

/// Checks so far apart that a test sees the first one only.
const NEVER: &str = "1h";

fn millis(real: u64) -> String {
    format!("{}ms", patience(Duration::from_millis(real)).as_millis())
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// A rig with an interval and policies.
fn rig(way: Way, inter: &str, sentinel: &str, observe: &str) -> Result<Rig> {
    Rig::with(way, |config| {
        let service = &mut config["services"][0];
        service["check"]["inter"] = json!(inter);
        service["sentinel"] = json!(sentinel);
        service["observe"] = json!(observe);
    })
}

/// A number of an endpoint in the status.
fn count(agent: &Agent, endpoint: &str, pointer: &str) -> Result<u64> {
    let status = agent.status()?;
    let endpoint = agent::find_endpoint(&status, endpoint)?;
    let value = endpoint.pointer(pointer).and_then(Value::as_u64);
    value.with_context(|| format!("no {pointer} in {endpoint}"))
}

/// Connections to the server of a host that are open.
fn open(host: &Arc<Namespace>) -> Result<usize> {
    let port = format!("sport = :{PORT}");
    let listed = host.ask("ss", &["-Htn", "state", "established", &port])?;
    Ok(listed.lines().count())
}

/// Waits until the agent has its connection to the host, and no other.
fn wait_open(host: &Arc<Namespace>, wanted: usize) -> Result<()> {
    until(&format!("{wanted} connections to {}", host.name()), || {
        let open = open(host)?;
        ensure!(open == wanted, "{open} are open");
        Ok(())
    })
}

/// Kills the master; how long until the agent switched.
fn kill_and_wait(rig: &mut Rig) -> Result<Duration> {
    let (begun, at) = (Instant::now(), unix_ms());
    rig.master.kill()?;
    rig.agent.wait_selected("backup")?;
    let seen = begun.elapsed();
    let since = rig.agent.status()?["services"][0]["selection"]["since_unix_ms"]
        .as_u64()
        .context("no time of the switch")?;
    let line = format!(
        "switched {} ms after the kill began, seen after {seen:?}",
        since.saturating_sub(at)
    );
    journal::note("test", &line);
    println!("{line}");
    Ok(seen)
}

#[test]
fn a_crash_is_known_long_before_the_next_check() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let mut rig = rig(way, &millis(2000), "on", "off")?;
            wait_open(&rig.lab.master, 1)?;
            let took = kill_and_wait(&mut rig)?;
            ensure!(took < soon(), "{way:?}: the agent switched after {took:?}");
            let verdict = rig.agent.wait_state("master", "down")?;
            ensure!(
                verdict == "refused" || verdict == "reset",
                "{verdict} decides"
            );
            for vip in [VIP_V4, VIP_V6] {
                let answer = get(&rig.lab.client, vip, "/")?;
                ensure!(answer.is_ok_and(|answer| answer.body == "backup"), "{vip}");
            }
            ensure!(rig.agent.switches()? == 1, "more than one switch");
            // It comes again when the server is back, and tells the next time too.
            rig.master.restart()?;
            rig.agent.wait_state("master", "up")?;
            rig.agent.wait_selected("master")?;
            wait_open(&rig.lab.master, 1)?;
            let took = kill_and_wait(&mut rig)?;
            ensure!(took < soon(), "{way:?}: the second time after {took:?}");
        }
        Ok(())
    });
}

#[test]
fn a_hang_is_no_matter_of_the_sentinel() {
    privileged(|| {
        let mut rig = rig(Way::Edge, NEVER, "on", "off")?;
        wait_open(&rig.lab.master, 1)?;
        let before = count(&rig.agent, "master", "/checks")?;
        rig.master.stop()?;
        // Nothing can be waited for: nothing happens.
        thread::sleep(Duration::from_millis(1500));
        wait_open(&rig.lab.master, 1)?;
        let after = count(&rig.agent, "master", "/checks")?;
        ensure!(after == before, "{} checks more", after - before);
        ensure!(rig.agent.wait_state("master", "up")? == "ok");
        ensure!(rig.agent.switches()? == 0, "a switch");
        rig.master.cont()?;
        // And it is not blind: without a check of the grid a crash is known.
        let took = kill_and_wait(&mut rig)?;
        ensure!(took < soon(), "the agent switched after {took:?}");
        Ok(())
    });
}

/// Answers every request well, and closes connections that ask nothing for a while.
struct Impatient {
    stop: Arc<AtomicBool>,
    closed: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Impatient {
    fn start(host: &Arc<Namespace>, port: u16, idle: Duration) -> Result<Self> {
        let listener = host.run(|| {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("no place to listen")
        })?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let closed = Arc::new(AtomicU64::new(0));
        let thread = {
            let (stop, closed) = (Arc::clone(&stop), Arc::clone(&closed));
            host.thread(move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            let closed = Arc::clone(&closed);
                            thread::spawn(move || converse(stream, idle, &closed));
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            thread::sleep(Duration::from_millis(1));
                        }
                        Err(error) => return Err(error).context("accept"),
                    }
                }
                Ok(())
            })
        };
        Ok(Self {
            stop,
            closed,
            thread: Some(thread),
        })
    }

    /// How many connections were closed because they were idle.
    fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// One request, or none.
fn converse(mut stream: TcpStream, idle: Duration, closed: &AtomicU64) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(idle))?;
    let mut request = [0; 4096];
    match stream.read(&mut request) {
        Ok(0) => {}
        Ok(_) => {
            let body = r#"{"version":"1.0"}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes())?;
        }
        Err(_) => drop(closed.fetch_add(1, Ordering::Relaxed)),
    }
    Ok(())
}

#[test]
fn a_server_that_closes_idle_connections_is_well() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let idle = Duration::from_millis(30);
        let impatient = Impatient::start(&lab.master, PORT, idle)?;
        let _backup = Server::start(&lab, &lab.backup)?;
        let inter = patience(Duration::from_secs(2));
        let mut config = agent::config(&lab);
        config["services"][0]["check"]["inter"] = json!(millis(2000));
        let mut agent = Agent::start(&lab, &config)?;
        let begun = Instant::now();
        agent.wait_state("master", "up")?;
        agent.wait("the server to close often", |_| {
            let closed = impatient.closed();
            ensure!(closed >= 7, "{closed} times");
            Ok(())
        })?;
        // The agent hears of the last one a moment later.
        let closed = agent.wait("the agent to hear of it", |status| {
            let master = agent::find_endpoint(status, "master")?;
            let heard = master["signals"]["sentinel_closed"].as_u64();
            heard.filter(|heard| *heard >= 7).context("not yet")
        })?;
        let checks = count(&agent, "master", "/checks")?;
        let grid = begun.elapsed().as_millis() / inter.as_millis() + 2;
        ensure!(
            u128::from(checks) <= grid + u128::from(impatient.closed()),
            "{checks} checks, {grid} of them of the grid, and {closed} connections closed"
        );
        // Each was a reason to check; the last such check may be under way.
        ensure!(checks + 1 >= closed, "{checks} checks for {closed} closed");
        // 30 ms idle and a wait that doubles from 10 ms on: the eleventh needs 10 s, and
        // from then on there is one in two seconds.
        let most = 10 + begun.elapsed().as_millis() / inter.as_millis();
        ensure!(u128::from(closed) <= most, "{closed} connections");
        ensure!(agent.switches()? == 0, "a switch");
        ensure!(agent.wait_state("master", "up")? == "ok");
        let status = agent.status()?;
        let failures = agent::find_endpoint(&status, "master")?["failures"].clone();
        ensure!(failures == 0, "{failures} failures");
        let printed = agent.printed();
        ensure!(!printed.contains("sentinel"), "log noise: {printed}");
        println!("{closed} connections closed, {checks} checks");
        Ok(())
    });
}

#[test]
fn refused_clients_make_the_failover_quick() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let mut rig = rig(way, &millis(2000), "off", "trigger")?;
            wait_open(&rig.lab.master, 0)?;
            let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
            load.run_for(20)?;
            let took = kill_and_wait(&mut rig)?;
            ensure!(took < soon(), "{way:?}: the agent switched after {took:?}");
            let verdict = rig.agent.wait_state("master", "down")?;
            ensure!(
                verdict == "refused" || verdict == "reset",
                "{verdict} decides"
            );
            let refused = count(&rig.agent, "master", "/signals/endpoint_refused")?;
            ensure!(refused > 0, "no signal");
            load.wait_for("backup")?;
            let samples = load.stop()?;
            let failed = samples.iter().filter(|s| s.outcome.is_err()).count();
            println!("{failed} of {} requests failed", samples.len());
            ensure!(rig.agent.switches()? == 1, "more than one switch");
        }
        Ok(())
    });
}

/// Leaves a service whose clients' failures count to what this test does to them.
fn silence_rig(way: Way, timeout: Duration) -> Result<Rig> {
    Rig::with(way, |config| {
        let service = &mut config["services"][0];
        service["check"]["inter"] = json!(NEVER);
        service["check"]["timeout"] = json!(format!("{}ms", timeout.as_millis()));
        service["sentinel"] = json!("off");
        service["observe"] = json!("mark-down");
        service["error_limit"] = json!(1);
    })
}

#[test]
fn a_master_that_answers_nobody_is_left_after_the_time_of_a_check() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            // A client repeats its SYN after a second: that is no part of this.
            let mut rig = silence_rig(way, patience(Duration::from_millis(200)))?;
            let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
            load.run_for(20)?;
            let begun = Instant::now();
            faults::blackhole(&rig.lab.master)?;
            rig.agent.wait_selected("backup")?;
            let took = begun.elapsed();
            println!("{way:?}: left after {took:?}");
            ensure!(took < soon(), "{way:?}: the agent switched after {took:?}");
            let verdict = rig.agent.wait_state("master", "down")?;
            ensure!(verdict == "observed", "{verdict} decides");
            ensure!(count(&rig.agent, "master", "/signals/silent")? == 1);
            load.wait_for("backup")?;
            load.stop()?;
            ensure!(rig.agent.switches()? == 1, "more than one switch");
        }
        Ok(())
    });
}

#[test]
fn a_master_that_loses_one_clients_syns_is_well() {
    privileged(|| {
        let timeout = patience(Duration::from_millis(200));
        let mut rig = silence_rig(Way::Edge, timeout)?;
        let checks = count(&rig.agent, "master", "/checks")?;
        let lossy = "table inet lossy { chain in { type filter hook prerouting priority -300; \
                     tcp flags & (syn | ack) == syn tcp sport 50000-50009 drop; }; }";
        rig.lab.master.ask("nft", &[lossy])?;
        // Among others that are answered, and then alone: it is checked, and that is all.
        let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
        let connect = |port| {
            rig.lab.client.run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.bind(&SocketAddr::from(([0; 4], port)).into())?;
                Ok(socket.connect_timeout(&VIP_V4.into(), 3 * timeout).is_err())
            })
        };
        ensure!(connect(50_000)?, "the first is answered");
        load.stop()?;
        ensure!(connect(50_001)?, "the second is answered");
        rig.agent.wait("a check for that", |status| {
            let master = agent::find_endpoint(status, "master")?;
            let made = master["checks"].as_u64();
            made.filter(|made| *made > checks).context("none")
        })?;
        ensure!(count(&rig.agent, "master", "/signals/silent")? == 0);
        ensure!(rig.agent.wait_state("master", "up")? == "ok");
        ensure!(rig.agent.switches()? == 0, "a switch");
        Ok(())
    });
}

#[test]
fn unobserved_clients_change_nothing() {
    privileged(|| {
        let mut rig = rig(Way::Edge, NEVER, "off", "off")?;
        let before = count(&rig.agent, "master", "/checks")?;
        rig.master.kill()?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            // Whom the master refuses the backup serves meanwhile.
            let answer = get(&rig.lab.client, VIP_V4, "/")?;
            ensure!(
                answer.as_ref().is_ok_and(|answer| answer.body == "backup"),
                "{answer:?}"
            );
        }
        // They are counted all the same.
        rig.agent.wait("the count of signals", |status| {
            let master = agent::find_endpoint(status, "master")?;
            let refused = master["signals"]["endpoint_refused"].as_u64();
            refused.filter(|refused| *refused > 1).context("none")
        })?;
        let metrics = rig.agent.metrics_page("/metrics")?;
        let line = metrics.lines().find(|line| {
            line.starts_with(
                "probe_endpoint_signals_total{service=\"sense\",endpoint=\"master\",kind=\"endpoint_refused\"} ",
            )
        });
        ensure!(line.is_some_and(|line| !line.ends_with(" 0")), "{line:?}");
        let after = count(&rig.agent, "master", "/checks")?;
        ensure!(after == before, "{} checks more", after - before);
        ensure!(rig.agent.wait_state("master", "up")? == "ok");
        ensure!(rig.agent.switches()? == 0, "a switch");
        Ok(())
    });
}

/// What is checked is well all the time, what clients want is not: only they know.
#[test]
fn clients_that_are_refused_too_often_mark_down() {
    const CHECKED: u16 = 9000;
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let idle = patience(Duration::from_secs(20));
        let _well = [&lab.master, &lab.backup].map(|host| Impatient::start(host, CHECKED, idle));
        let mut rig = Rig::in_lab(lab, |config| {
            let service = &mut config["services"][0];
            service["check"]["http"]["port"] = json!(CHECKED);
            service["check"]["inter"] = json!(millis(1000));
            service["observe"] = json!("mark-down");
            service["error_limit"] = json!(5);
            service["failback"] = json!({"mode": "manual"});
        })?;
        let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
        load.run_for(20)?;
        let checks = count(&rig.agent, "master", "/checks")?;
        rig.master.kill()?;
        rig.agent.wait_selected("backup")?;
        // By the log: the next good check is the last one in the status.
        let why = "endpoint is down: 5 connections of clients failed in a row, the last: \
                   endpoint_refused";
        until_true("the log to say why", || rig.agent.printed().contains(why))?;
        let refused = count(&rig.agent, "master", "/signals/endpoint_refused")?;
        ensure!(refused >= 5, "{refused} signals");
        load.wait_for("backup")?;
        // It comes up by checks, all of which are good.
        rig.agent.wait_state("master", "up")?;
        let more = count(&rig.agent, "master", "/checks")? - checks;
        ensure!(more >= 2, "it came up with {more} checks");
        let failures = count(&rig.agent, "master", "/failures")?;
        ensure!(failures == 0, "{failures} checks failed");
        ensure!(rig.agent.switches()? == 1, "more than one switch");
        load.stop()?;
        Ok(())
    });
}

#[test]
fn the_sentinel_goes_where_the_endpoint_goes() {
    const NAME: &str = "react2.domain.test";
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let spare = lab.endpoint("spare", 5)?;
        let _master = Server::start(&lab, &lab.master)?;
        let _backup = Server::start(&lab, &lab.backup)?;
        let mut elsewhere = Server::start(&lab, &spare)?;
        let dns = Dns::start(&lab.node)?;
        dns.set(NAME, &[MASTER_V4.ip()]);
        let mut config = agent::config(&lab);
        config["resolve"] = json!({"every": millis(100)});
        let service = &mut config["services"][0];
        service["listeners"] = json!([VIP_V4.to_string()]);
        service["check"]["inter"] = json!(NEVER);
        service["endpoints"] = json!([
            {"name": "master", "address": format!("{NAME}:{PORT}")},
            {"name": "backup", "address": BACKUP_V4.to_string()},
        ]);
        let mut agent = Agent::start(&lab, &config)?;
        agent.wait_state("master", "up")?;
        wait_open(&lab.master, 1)?;
        let [moved, _] = Lab::addresses(5);
        dns.set(NAME, &[moved.ip()]);
        wait_open(&spare, 1)?;
        wait_open(&lab.master, 0)?;
        wait_open(&lab.backup, 1)?;
        elsewhere.kill()?;
        let begun = Instant::now();
        agent.wait_selected("backup")?;
        ensure!(begun.elapsed() < soon(), "after {:?}", begun.elapsed());
        // Nothing is left when the agent ends.
        agent.terminate()?;
        wait_open(&lab.backup, 0)
    });
}
