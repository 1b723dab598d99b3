//! Several endpoints in a tier: they share, they come and go, and the tier moves as one.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use lab::{
    Agent, Lab, Namespace, Server, Way, agent,
    client::{Load, Long, Plan, Sample},
    privilege::with_tcx,
    privileged,
    topology::{VIP_V4, VIP_V6},
    until,
};
use probe_ebpf::{
    abi::{ABI_VERSION, Action, Decision, Selection},
    names,
};
use probe_user::config::DEFAULT_BPFFS;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::{
    protocols::{Echo, ask, connected},
    rig::none_failed,
};

/// Name, subnet, tier and weight.
const ENDPOINTS: [(&str, u8, u8, u16); 5] = [
    ("master", 2, 0, 2),
    ("m2", 4, 0, 1),
    ("m3", 5, 0, 1),
    ("backup", 3, 1, 1),
    ("b2", 6, 1, 3),
];
const MASTERS: [&str; 3] = ["master", "m2", "m3"];

struct Tiers {
    // Dropped first: the agent must not see its checks fail while the lab goes.
    agent: Agent,
    servers: BTreeMap<&'static str, Server>,
    hosts: BTreeMap<&'static str, Arc<Namespace>>,
    config: Value,
    lab: Lab,
}

impl Tiers {
    /// All are up and the masters share.
    fn new(way: Way, change: impl FnOnce(&mut Value)) -> Result<Self> {
        let lab = Lab::new(way)?;
        let mut hosts = BTreeMap::new();
        let mut servers = BTreeMap::new();
        let mut config = agent::config(&lab);
        let mut endpoints = Vec::new();
        for (name, net, tier, weight) in ENDPOINTS {
            let host = match name {
                "master" => Arc::clone(&lab.master),
                "backup" => Arc::clone(&lab.backup),
                other => lab.endpoint(other, net)?,
            };
            servers.insert(name, Server::start(&lab, &host)?);
            hosts.insert(name, host);
            let addresses = Lab::addresses(net).map(|address| address.to_string());
            endpoints.push(json!({
                "name": name, "address": addresses, "tier": tier, "weight": weight,
            }));
        }
        config["services"][0]["endpoints"] = json!(endpoints);
        change(&mut config);
        let mut tiers = Self {
            agent: Agent::start(&lab, &config)?,
            servers,
            hosts,
            config,
            lab,
        };
        tiers.wait_serving(&MASTERS)?;
        Ok(tiers)
    }

    /// Waits until exactly these serve.
    fn wait_serving(&mut self, names: &[&str]) -> Result<()> {
        self.agent.wait(&format!("{names:?} to serve"), |status| {
            let service = &status["services"][0];
            ensure!(
                service["selection"]["endpoints"] == json!(names),
                "{} serve",
                service["selection"]["endpoints"]
            );
            for endpoint in service["endpoints"].as_array().into_iter().flatten() {
                let name = endpoint["name"].as_str().unwrap_or_default();
                ensure!(endpoint["serving"] == json!(names.contains(&name)));
            }
            Ok(())
        })
    }

    fn kill(&mut self, name: &str) -> Result<()> {
        self.servers.get_mut(name).context("a server")?.kill()
    }

    fn restart(&mut self, name: &str) -> Result<()> {
        self.servers.get_mut(name).context("a server")?.restart()
    }

    /// New connections over a while, both families.
    fn samples(&self) -> Result<Vec<Sample>> {
        let loads = [VIP_V4, VIP_V6].map(|vip| Load::start(&self.lab.client, Plan::steady(vip)));
        for load in &loads {
            load.run_for(150)?;
        }
        let mut all = Vec::new();
        for load in loads {
            all.extend(load.stop()?);
        }
        none_failed(&all)?;
        Ok(all)
    }

    /// Each of these, and nobody else, has its part of new connections.
    fn share(&self, parts: &[(&str, u32)]) -> Result<()> {
        let samples = self.samples()?;
        let total: u32 = parts.iter().map(|(_, part)| part).sum();
        let mut sum = 0;
        for (name, part) in parts {
            let got = samples.iter().filter(|s| s.answered_by(name)).count();
            sum += got;
            let exact = samples.len() as f64 * f64::from(*part) / f64::from(total);
            // Five standard deviations of 300 random connections are less than 0.15.
            let off = (got as f64 - exact).abs() / samples.len() as f64;
            ensure!(
                off < 0.16,
                "{name} got {got} of {}, not {exact:.0}",
                samples.len()
            );
        }
        ensure!(sum == samples.len(), "somebody else answered");
        Ok(())
    }

    /// Long connections, at least one with each master.
    fn longs(&self, to: SocketAddr) -> Result<Vec<Long>> {
        let mut longs: Vec<Long> = Vec::new();
        while !MASTERS.iter().all(|name| {
            let at = |long: &Long| long.server().as_deref() == Some(name);
            longs.iter().any(at)
        }) {
            ensure!(longs.len() < 60, "one master has no connection of 60");
            longs.push(Long::open(&self.lab.client, to, Duration::from_millis(10))?);
        }
        Ok(longs)
    }
}

fn of(longs: Vec<Long>, name: &str) -> (Vec<Long>, Vec<Long>) {
    longs
        .into_iter()
        .partition(|long| long.server().as_deref() == Some(name))
}

/// Shares by weight; one leaves and only its share moves; all leave and the tier moves;
/// all come back.
fn shares_and_moves(way: Way, tc: &str) -> Result<()> {
    let mut tiers = Tiers::new(way, |config| {
        config["datapath"] = json!({"tc": tc});
        // Longer than it takes to bring three servers up.
        config["services"][0]["failback"]["hold"] = json!("2s");
    })?;
    tiers.share(&[("master", 2), ("m2", 1), ("m3", 1)])?;

    let mut longs = tiers.longs(VIP_V4)?;
    longs.extend(tiers.longs(VIP_V6)?);
    let (lost, kept) = of(longs, "m2");
    tiers.kill("m2")?;
    tiers.wait_serving(&["master", "m3"])?;
    tiers.agent.wait_state("m2", "down")?;
    for long in &lost {
        long.wait_end()?;
    }
    tiers.share(&[("master", 2), ("m3", 1)])?;
    for long in &kept {
        long.check_alive()?;
    }
    tiers.restart("m2")?;
    tiers.wait_serving(&MASTERS)?;
    tiers.share(&[("master", 2), ("m2", 1), ("m3", 1)])?;
    let selection = tiers.agent.status()?["services"][0]["selection"].clone();
    ensure!(
        selection["switches"] == 0 && selection["reason"] == "initial",
        "no failover happened: {selection}"
    );
    ensure!(selection["members_changed"] == 2, "{selection}");

    for name in MASTERS {
        tiers.kill(name)?;
    }
    tiers.wait_serving(&["backup", "b2"])?;
    for name in MASTERS {
        tiers.agent.wait_state(name, "down")?;
    }
    for long in &kept {
        long.wait_end()?;
    }
    tiers.share(&[("backup", 1), ("b2", 3)])?;
    let selection = tiers.agent.status()?["services"][0]["selection"].clone();
    ensure!(
        selection["switches"] == 1
            && selection["reason"] == "master-down"
            && selection["tier"] == 1
            && selection["kind"] == "spread",
        "the tier moved as one: {selection}"
    );
    let page = tiers.agent.metrics_page("/metrics")?;
    for line in [
        "probe_switches_total{service=\"sense\",reason=\"master-down\"} 1",
        "probe_endpoint_selected{service=\"sense\",endpoint=\"backup\"} 1",
        "probe_endpoint_selected{service=\"sense\",endpoint=\"b2\"} 1",
        "probe_endpoint_selected{service=\"sense\",endpoint=\"m2\"} 0",
    ] {
        ensure!(page.contains(line), "no {line:?} in\n{page}");
    }

    for name in MASTERS {
        tiers.restart(name)?;
    }
    tiers.wait_serving(&MASTERS)?;
    let selection = tiers.agent.status()?["services"][0]["selection"].clone();
    ensure!(selection["reason"] == "failback", "{selection}");
    tiers.share(&[("master", 2), ("m2", 1), ("m3", 1)])
}

#[test]
fn shares_of_pods_by_tcx() {
    with_tcx(|| shares_and_moves(Way::Edge, "tcx"));
}

#[test]
fn shares_among_pods_by_clsact() {
    privileged(|| shares_and_moves(Way::EdgeAmongPods, "clsact"));
}

#[test]
fn shares_of_outside_clients() {
    privileged(|| shares_and_moves(Way::Uplink, "auto"));
}

/// Action, tier and target of the service's decision, and how often it has moved.
fn decided(node: &Namespace) -> Result<(u8, u8, u32, u64)> {
    const WORDS: usize = size_of::<Selection>() / 8;
    let path = format!(
        "{DEFAULT_BPFFS}/{}/v{ABI_VERSION}/{}/{}",
        names::PIN_ROOT,
        names::PIN_MAPS,
        names::MAP_SELECTIONS
    );
    node.run(|| {
        let map = Map::Array(MapData::from_pin(path)?);
        let slots: Array<_, [u64; WORDS]> = map.try_into()?;
        // The first service of all has the first id.
        let slot = slots.get(&0, 0)?;
        let decision = Decision::unpack(slot[offset_of!(Selection, decision) / 8]);
        let epoch = slot[offset_of!(Selection, epoch) / 8];
        Ok((decision.action as u8, decision.tier, decision.target, epoch))
    })
}

/// The agent ends and comes back: the ring stays, and with it where everybody goes.
#[test]
fn a_restart_takes_the_ring_over() {
    privileged(|| {
        let mut tiers = Tiers::new(Way::Edge, |_| {})?;
        let longs = tiers.longs(VIP_V4)?;
        tiers.kill("m2")?;
        tiers.wait_serving(&["master", "m3"])?;
        let before = decided(&tiers.lab.node)?;
        ensure!(before.0 == Action::Spread as u8, "{before:?}");
        let load = Load::start(&tiers.lab.client, Plan::steady(VIP_V4));
        for gently in [true, false] {
            if gently {
                let (status, printed) = tiers.agent.terminate()?;
                ensure!(status.success(), "{status}: {printed}");
            } else {
                tiers.agent.kill()?;
            }
            load.run_for(30)?;
            tiers.agent.restart()?;
            tiers.wait_serving(&["master", "m3"])?;
            let selection = &tiers.agent.status()?["services"][0]["selection"];
            ensure!(
                selection["reason"] == "inherited" && selection["members_changed"] == 0,
                "{selection}"
            );
            load.run_for(30)?;
            // Not even rewritten: the very ring that stood there.
            let after = decided(&tiers.lab.node)?;
            ensure!(after == before, "{before:?} became {after:?}");
        }
        none_failed(&load.stop()?)?;
        let (lost, kept) = of(longs, "m2");
        for long in &lost {
            long.wait_end()?;
        }
        for long in &kept {
            long.check_alive()?;
        }
        Ok(())
    });
}

/// Who answers a new connection from this address of the client's.
fn answers(client: &Namespace, from: Ipv4Addr) -> Result<String> {
    client.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect_timeout(&VIP_V4.into(), Duration::from_secs(5))?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        Ok(body.to_owned())
    })
}

/// All of some connections from this address are answered by one; who?
fn keeps(client: &Namespace, from: Ipv4Addr) -> Result<String> {
    let first = answers(client, from)?;
    for _ in 0..15 {
        let next = answers(client, from)?;
        ensure!(next == first, "{from} went to {first} and to {next}");
    }
    Ok(first)
}

fn two_clients(way: Way) -> Result<()> {
    let mut tiers = Tiers::new(way, |config| {
        config["services"][0]["affinity"] = json!({"client_ip": "1h"});
        config["services"][0]["listeners"] = json!([VIP_V4.to_string(), format!("{VIP_V4}/udp")]);
    })?;
    let client = Arc::clone(&tiers.lab.client);
    let _echoes: Vec<Echo> = ENDPOINTS
        .iter()
        .map(|(name, ..)| Echo::start(&tiers.hosts[name], name))
        .collect::<Result<_>>()?;
    // Two that go different ways.
    let IpAddr::V4(one) = lab::topology::CLIENT_V4 else {
        bail!("the client has an IPv4 address")
    };
    let lost = keeps(&client, one)?;
    let mut found = None;
    for host in 3..40 {
        let two = Ipv4Addr::new(10, 1, 0, host);
        client.ip([format!("addr add {two}/24 dev eth0")])?;
        let stays = keeps(&client, two)?;
        if stays != lost {
            found = Some((two, stays));
            break;
        }
    }
    let (two, stays) = found.context("all clients go to one endpoint")?;
    // Datagrams of the client go along.
    let udp = || connected(&client, VIP_V4);
    ensure!(ask(&udp()?, b"!")? == format!("{lost}!").as_bytes());

    tiers.kill(&lost)?;
    let left: Vec<_> = MASTERS.into_iter().filter(|name| *name != lost).collect();
    tiers.wait_serving(&left)?;
    let new = keeps(&client, one)?;
    ensure!(new != lost && MASTERS.contains(&new.as_str()));
    ensure!(keeps(&client, two)? == stays, "the other stays");
    ensure!(ask(&udp()?, b"!")? == format!("{new}!").as_bytes());

    // The ring is the old one again, and who has found another endpoint stays there.
    tiers.restart(&lost)?;
    tiers.wait_serving(&MASTERS)?;
    ensure!(keeps(&client, one)? == new, "it keeps its new endpoint");
    ensure!(keeps(&client, two)? == stays);
    ensure!(ask(&udp()?, b"!")? == format!("{new}!").as_bytes());
    tiers.agent.kill()?;
    ensure!(keeps(&client, one)? == new, "without an agent too");
    tiers.agent.restart()?;
    ensure!(keeps(&client, one)? == new, "and after a restart");

    // A shorter time runs out.
    tiers.agent.terminate()?;
    tiers.config["services"][0]["affinity"] = json!({"client_ip": "1s"});
    let text = serde_json::to_string(&tiers.config)?;
    fs::write(tiers.lab.file("probe.yaml"), text)?;
    tiers.agent.restart()?;
    tiers.wait_serving(&MASTERS)?;
    until("the client to be sent where the ring says", || {
        // Each connection counts anew.
        thread::sleep(Duration::from_secs(4));
        let now = answers(&client, one)?;
        ensure!(now == lost, "{now} answers");
        Ok(())
    })
}

/// Who comes back gets a twentieth of its share for half a minute; at the start nobody is slow.
fn comes_back_slowly() -> Result<()> {
    let mut tiers = Tiers::new(Way::Edge, |config| {
        config["services"][0]["slow_start"] = json!("10m");
    })?;
    tiers.share(&[("master", 2), ("m2", 1), ("m3", 1)])?;
    tiers.kill("m2")?;
    tiers.wait_serving(&["master", "m3"])?;
    tiers.restart("m2")?;
    tiers.wait_serving(&MASTERS)?;
    let status = tiers.agent.status()?;
    ensure!(agent::find_endpoint(&status, "m2")?["slow_start"] == 5);
    let samples = tiers.samples()?;
    let got = samples.iter().filter(|s| s.answered_by("m2")).count();
    // A sixtieth, where its whole share is a quarter.
    ensure!(
        got * 10 < samples.len(),
        "m2 got {got} of {}",
        samples.len()
    );
    Ok(())
}

#[test]
fn a_share_grows_slowly_after_a_recovery() {
    privileged(comes_back_slowly);
}

#[test]
fn clients_keep_their_endpoint_among_pods() {
    privileged(|| two_clients(Way::EdgeAmongPods));
}

#[test]
fn outside_clients_keep_their_endpoint() {
    privileged(|| two_clients(Way::Uplink));
}

fn datagrams(way: Way) -> Result<()> {
    let mut tiers = Tiers::new(way, |config| {
        config["services"][0]["listeners"] =
            json!([format!("{VIP_V4}/udp"), format!("{VIP_V6}/udp")]);
    })?;
    let _echoes: Vec<Echo> = ENDPOINTS
        .iter()
        .map(|(name, ..)| Echo::start(&tiers.hosts[name], name))
        .collect::<Result<_>>()?;
    let who = |socket: &UdpSocket| -> Result<String> {
        let answer = ask(socket, b"")?;
        Ok(String::from_utf8(answer)?)
    };
    let mut sockets = Vec::new();
    for to in [VIP_V4, VIP_V6] {
        for _ in 0..40 {
            let socket = connected(&tiers.lab.client, to)?;
            let name = who(&socket)?;
            sockets.push((socket, name));
        }
    }
    for name in MASTERS {
        let count = sockets.iter().filter(|(_, at)| at == name).count();
        ensure!(count >= 5, "{name} has {count} of {}", sockets.len());
    }
    tiers.kill("m3")?;
    tiers.wait_serving(&["master", "m2"])?;
    tiers.agent.wait_state("m3", "down")?;
    for (socket, at) in &mut sockets {
        let now = who(socket)?;
        if at == "m3" {
            ensure!(now == "master" || now == "m2", "{now} took over");
        } else {
            ensure!(now == *at, "{at} is up, and {now} answers");
        }
        *at = now;
    }
    // Those that moved stay where they are now.
    tiers.restart("m3")?;
    tiers.wait_serving(&MASTERS)?;
    for (socket, at) in &sockets {
        ensure!(who(socket)? == *at);
    }
    for name in MASTERS {
        tiers.kill(name)?;
    }
    tiers.wait_serving(&["backup", "b2"])?;
    for name in MASTERS {
        tiers.agent.wait_state(name, "down")?;
    }
    let now: Vec<_> = sockets
        .iter()
        .map(|(socket, _)| who(socket))
        .collect::<Result<_>>()?;
    for name in ["backup", "b2"] {
        ensure!(now.iter().any(|at| at == name), "{now:?}");
    }
    ensure!(now.iter().all(|at| at == "backup" || at == "b2"), "{now:?}");
    Ok(())
}

#[test]
fn datagrams_of_pods_are_shared() {
    privileged(|| datagrams(Way::Edge));
}

#[test]
fn datagrams_of_outside_clients_are_shared() {
    privileged(|| datagrams(Way::Uplink));
}
