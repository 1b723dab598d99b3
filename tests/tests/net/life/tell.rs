//! A switch is told to connections that say nothing, at both ends.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lab::{
    Lab, Way,
    capture::Capture,
    faults, privileged,
    topology::{BACKUP_V6, MASTER_V6},
    until,
    wait::patience,
};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::{DEADLINE, Pair, Peer, RAW, RAW_PORT, connect, raw_at, raw_rig, wait_raw, with_raw};
use crate::{dsr::own, full_nat::SOURCES, rig::Rig};

/// The service `raw`'s listener in IPv6.
const RAW_V6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x20)),
    RAW_PORT,
);

/// The service `raw` in both families.
fn both_families(config: &mut Value) {
    let raw = &mut config["services"][1];
    raw["listeners"] = json!([RAW.to_string(), RAW_V6.to_string()]);
    for (i, v6) in [MASTER_V6, BACKUP_V6].into_iter().enumerate() {
        let v4 = raw["endpoints"][i]["address"].clone();
        raw["endpoints"][i]["address"] = json!([v4, raw_at(v6).to_string()]);
    }
}

fn full_nat(way: Way, config: &mut Value) {
    config["datapath"]["source"] = json!(SOURCES);
    config["services"][1]["forward"] = json!("full-nat");
    if way == Way::Uplink {
        config["interfaces"]["edge"] = json!(["ep-*"]);
    }
}

/// Connections to the selected endpoint in both families, which have talked and fall silent.
fn idle(rig: &Rig, peer: &Peer) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for to in [RAW, RAW_V6, RAW, RAW_V6] {
        let mut pair = Pair::open(&rig.lab.client, None, to, peer)?;
        pair.talk()?;
        pairs.push(pair);
    }
    Ok(pairs)
}

/// What an end hears that says nothing itself. The deadline is that of [`Pair`]'s sockets.
fn hears(stream: &mut TcpStream) -> Result<ErrorKind> {
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => bail!("closed in order"),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!("told nothing in {DEADLINE:?}")
            }
            Err(error) => return Ok(error.kind()),
        }
    }
}

fn is_reset(stream: &mut TcpStream, what: &str) -> Result<()> {
    let heard = hears(stream).with_context(|| what.to_owned())?;
    ensure!(heard == ErrorKind::ConnectionReset, "{what}: {heard}");
    Ok(())
}

fn both_are_reset(pairs: &mut [Pair], what: &str) -> Result<()> {
    for (i, pair) in pairs.iter_mut().enumerate() {
        is_reset(&mut pair.client, &format!("{what}, client {i}"))?;
    }
    for (i, pair) in pairs.iter_mut().enumerate() {
        is_reset(&mut pair.server, &format!("{what}, server {i}"))?;
    }
    Ok(())
}

fn metric(rig: &Rig, name: &str, endpoint: &str, more: &str) -> Result<u64> {
    let head = format!("probe_{name}_total{{service=\"raw\",endpoint=\"{endpoint}\"{more}}} ");
    let page = rig.agent.metrics_page("/metrics")?;
    let value = page.lines().find_map(|line| line.strip_prefix(&head));
    Ok(value.with_context(|| format!("no {head}"))?.parse()?)
}

/// The master answers 503: it is alive, and frees its side too.
fn an_endpoint_that_is_alive(way: Way, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut rig = raw_rig(way, |config| {
        both_families(config);
        change(config);
    })?;
    let (master, _backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
    let mut pairs = idle(&rig, &master)?;
    rig.master.set_status(503)?;
    both_are_reset(&mut pairs, &format!("{way:?}"))?;
    wait_raw(&mut rig.agent, "backup")?;
    until("the log to say so", || {
        let printed = rig.agent.printed();
        ensure!(printed.contains("were told that their connection is over told=4 given_up=0"));
        Ok(())
    })?;
    ensure!(metric(&rig, "flows_told", "master", "")? == 4);
    ensure!(metric(&rig, "flow_challenges", "master", ",to=\"client\"")? >= 4);
    ensure!(metric(&rig, "flow_challenges", "master", ",to=\"endpoint\"")? == 4);
    ensure!(metric(&rig, "flows_not_told", "master", "")? == 0);
    ensure!(metric(&rig, "flow_challenges", "backup", ",to=\"client\"")? == 0);
    Ok(())
}

#[test]
fn both_ends_of_idle_connections_of_pods() {
    privileged(|| {
        an_endpoint_that_is_alive(Way::Edge, |_| {})?;
        an_endpoint_that_is_alive(Way::EdgeAmongPods, |_| {})
    });
}

#[test]
fn both_ends_of_idle_connections_of_outside_clients() {
    privileged(|| {
        for xdp in ["native", "off"] {
            an_endpoint_that_is_alive(Way::Uplink, |config| {
                config["datapath"]["xdp"] = json!(xdp);
            })?;
        }
        Ok(())
    });
}

#[test]
fn both_ends_with_full_nat() {
    privileged(|| {
        for way in [Way::EdgeAmongPods, Way::Uplink] {
            an_endpoint_that_is_alive(way, |config| full_nat(way, config))?;
        }
        Ok(())
    });
}

/// Direct server return: the endpoint owns the VIP, and its clients are told.
#[test]
fn clients_with_direct_server_return() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let lab = Lab::new(way)?;
            own(&lab.master, &[RAW, RAW_V6])?;
            own(&lab.backup, &[RAW, RAW_V6])?;
            let mut rig = Rig::in_lab(lab, |config| {
                with_raw(config);
                both_families(config);
                config["services"][1]["forward"] = json!("dsr");
            })?;
            let (master, _backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
            let mut pairs = idle(&rig, &master)?;
            rig.master.set_status(503)?;
            for (i, pair) in pairs.iter_mut().enumerate() {
                is_reset(&mut pair.client, &format!("{way:?}, client {i}"))?;
            }
            ensure!(metric(&rig, "flow_challenges", "master", ",to=\"endpoint\"")? == 0);
        }
        Ok(())
    });
}

/// Of a shared tier only those are told whose endpoint is down.
#[test]
fn only_connections_of_the_lost_one_of_a_tier() {
    privileged(|| {
        let mut rig = raw_rig(Way::Edge, |config| {
            both_families(config);
            for endpoint in [0, 1] {
                config["services"][1]["endpoints"][endpoint]["tier"] = json!(0);
            }
        })?;
        let (master, backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
        let mut of = [Vec::new(), Vec::new()];
        for i in 0..40 {
            let to = [RAW, RAW_V6][i % 2];
            let client = connect(&rig.lab.client, None, to)?;
            let (at, server) = until("a connection", || {
                for (at, peer) in [&master, &backup].into_iter().enumerate() {
                    if let Some((server, _)) = peer.came()? {
                        return Ok((at, server));
                    }
                }
                bail!("none has come")
            })?;
            let mut pair = Pair { client, server };
            pair.talk()?;
            of[at].push(pair);
        }
        let [lost, left] = &mut of;
        ensure!(!lost.is_empty() && !left.is_empty(), "they do not share");
        rig.master.set_status(503)?;
        for (i, pair) in lost.iter_mut().enumerate() {
            is_reset(&mut pair.client, &format!("client {i}"))?;
        }
        wait_raw(&mut rig.agent, "backup")?;
        left.iter_mut().try_for_each(Pair::talk)?;
        ensure!(metric(&rig, "flow_challenges", "backup", ",to=\"client\"")? == 0);
        Ok(())
    });
}

/// Nobody but the datapath can tell the clients; what they have sent is on its way for ever.
fn a_silent_endpoint(way: Way, timestamps: &str, sack: &str) -> Result<()> {
    let mut rig = raw_rig(way, both_families)?;
    let (master, _backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
    rig.lab
        .client
        .sysctl(&[("ipv4/tcp_timestamps", timestamps), ("ipv4/tcp_sack", sack)])?;
    let mut pairs = idle(&rig, &master)?;
    faults::blackhole(&rig.lab.master)?;
    for pair in &mut pairs[..2] {
        pair.client.write_all(b"lost")?;
    }
    for (i, pair) in pairs.iter_mut().enumerate() {
        let what = format!("{way:?}, timestamps {timestamps}, SACK {sack}, client {i}");
        is_reset(&mut pair.client, &what)?;
    }
    wait_raw(&mut rig.agent, "backup")
}

#[test]
fn clients_of_a_silent_endpoint() {
    privileged(|| {
        a_silent_endpoint(Way::Edge, "1", "1")?;
        a_silent_endpoint(Way::Edge, "0", "0")?;
        a_silent_endpoint(Way::Uplink, "1", "0")?;
        a_silent_endpoint(Way::Uplink, "0", "1")
    });
}

/// The process is killed while its connections are held by another one, as after a fork: the
/// kernel of the endpoint says nothing to clients.
#[test]
fn clients_of_a_killed_process() {
    privileged(|| {
        let mut rig = raw_rig(Way::Edge, both_families)?;
        let (master, _backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
        let mut pairs = idle(&rig, &master)?;
        rig.master.kill()?;
        both_are_reset(&mut pairs, "killed")
    });
}

/// Data flows towards the client, and waits there unread, when it is told.
#[test]
fn clients_with_data_in_flight() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let mut rig = raw_rig(way, both_families)?;
            let (master, _backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
            let mut writers = Vec::new();
            let mut clients = Vec::new();
            for to in [RAW, RAW_V6] {
                let Pair { client, mut server } = Pair::open(&rig.lab.client, None, to, &master)?;
                clients.push(client);
                writers.push(thread::spawn(move || {
                    let begun = Instant::now();
                    loop {
                        if let Err(error) = server.write_all(&[7; 1000]) {
                            return error.kind();
                        }
                        assert!(begun.elapsed() < patience(2 * DEADLINE), "never told");
                        thread::sleep(Duration::from_millis(1));
                    }
                }));
            }
            thread::sleep(Duration::from_millis(50));
            rig.master.set_status(503)?;
            wait_raw(&mut rig.agent, "backup")?;
            for client in &mut clients {
                is_reset(client, &format!("{way:?}"))?;
            }
            for writer in writers {
                let told = writer.join().expect("the writer ends");
                ensure!(
                    matches!(told, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                    "{way:?}: {told}"
                );
            }
        }
        Ok(())
    });
}

/// Nothing happens for a while: this is how long.
fn a_while() -> Duration {
    patience(Duration::from_millis(1500))
}

#[test]
fn kept_connections_are_left_alone() {
    privileged(|| {
        let mut rig = raw_rig(Way::Edge, |config| {
            both_families(config);
            config["services"][1]["on_marked_down"] = json!("keep");
        })?;
        let (master, _backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
        let mut pairs = idle(&rig, &master)?;
        rig.master.set_status(503)?;
        wait_raw(&mut rig.agent, "backup")?;
        thread::sleep(a_while());
        pairs.iter_mut().try_for_each(Pair::talk)?;
        ensure!(metric(&rig, "flow_challenges", "master", ",to=\"client\"")? == 0);
        Ok(())
    });
}

/// They go on with the endpoint that is down until the deadline, and those that say nothing are
/// told then.
#[test]
fn a_time_to_end_while_the_endpoint_is_down() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let limit = patience(Duration::from_secs(2));
            let mut rig = raw_rig(way, |config| {
                both_families(config);
                let drain = json!({"drain": format!("{}ms", limit.as_millis())});
                config["services"][1]["on_marked_down"] = drain;
            })?;
            let (master, _backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
            let mut pairs = idle(&rig, &master)?;
            let begun = Instant::now();
            rig.master.set_status(503)?;
            wait_raw(&mut rig.agent, "backup")?;
            let until_ms = rig.agent.wait("the master to drain", |status| {
                let drain = &status["services"][1]["endpoints"][0]["drain"];
                drain["until_unix_ms"].as_u64().context("no deadline")
            })?;
            ensure!(until_ms > 0);
            pairs.iter_mut().try_for_each(Pair::talk)?;
            both_are_reset(&mut pairs, &format!("{way:?}"))?;
            ensure!(begun.elapsed() >= limit, "told after {:?}", begun.elapsed());
        }
        Ok(())
    });
}

/// The master is back; who is idle at the backup is told.
fn a_fail_back(way: Way, policy: &Value, least: Duration) -> Result<()> {
    let mut rig = raw_rig(way, |config| {
        both_families(config);
        config["services"][1]["on_failback"] = policy.clone();
    })?;
    let (_master, backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
    rig.master.kill()?;
    wait_raw(&mut rig.agent, "backup")?;
    let mut pairs = idle(&rig, &backup)?;
    let begun = Instant::now();
    rig.master.restart()?;
    both_are_reset(&mut pairs, &format!("{way:?}, {policy}"))?;
    ensure!(begun.elapsed() >= least, "told after {:?}", begun.elapsed());
    wait_raw(&mut rig.agent, "master")
}

#[test]
fn a_fail_back_resets_or_waits() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            a_fail_back(way, &json!("reset"), Duration::ZERO)?;
            a_fail_back(way, &json!({"drain": "1s"}), Duration::from_secs(1))?;
        }
        Ok(())
    });
}

/// A segment between the listener and a client's port.
#[derive(Debug)]
struct Seen {
    to_client: bool,
    syn: bool,
    ack: Option<u32>,
    rst: bool,
    seq: u32,
    payload: usize,
}

fn seen(frame: &[u8], vip: SocketAddr, port: u16) -> Option<Seen> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let ends: [IpAddr; 2] = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => [
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ],
        NetSlice::Ipv6(ip) => [
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ],
        _ => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return None;
    };
    let to_client = ends[0] == vip.ip() && tcp.destination_port() == port;
    let to_vip = ends[1] == vip.ip() && tcp.source_port() == port;
    (to_client || to_vip).then(|| Seen {
        to_client,
        syn: tcp.syn(),
        ack: tcp.ack().then(|| tcp.acknowledgment_number()),
        rst: tcp.rst(),
        seq: tcp.sequence_number(),
        payload: tcp.payload().len(),
    })
}

/// What the client sees on its wire: a SYN of any number, its own challenge ACK, and a RST with
/// exactly the number that this says, which is what it has received so far. No other RST.
fn exactly_once(way: Way, to: SocketAddr) -> Result<()> {
    let mut rig = raw_rig(way, both_families)?;
    let (master, _backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
    let capture = Capture::open(&rig.lab.client, "eth0")?;
    let mut pair = Pair::open(&rig.lab.client, None, to, &master)?;
    pair.talk()?;
    pair.down()?;
    let port = pair.port()?;
    rig.master.set_status(503)?;
    both_are_reset(std::slice::from_mut(&mut pair), &format!("{way:?} {to}"))?;
    let mut frames = Vec::new();
    while let Some(frame) = capture.next()? {
        frames.extend(seen(&frame, to, port));
    }
    let first = frames
        .iter()
        .find(|s| s.to_client && s.syn && s.ack.is_some())
        .context("no SYN-ACK")?;
    let received: usize = frames
        .iter()
        .filter(|s| s.to_client)
        .map(|s| s.payload)
        .sum();
    ensure!(
        received == 8,
        "{received} bytes, a retransmission: {frames:?}"
    );
    let next = first.seq.wrapping_add(1).wrapping_add(received as u32);
    let challenge = frames
        .iter()
        .position(|s| s.to_client && s.syn && s.ack.is_none())
        .context("no SYN of ours")?;
    let after = &frames[challenge + 1..];
    let answer = after
        .iter()
        .find(|s| !s.to_client && !s.rst)
        .context("no challenge ACK")?;
    ensure!(answer.ack == Some(next), "{answer:?} instead of {next}");
    let resets: Vec<_> = frames.iter().filter(|s| s.to_client && s.rst).collect();
    ensure!(!resets.is_empty());
    for reset in resets {
        ensure!(reset.seq == next, "{reset:?} instead of {next}");
    }
    Ok(())
}

#[test]
fn the_sequence_number_is_exact() {
    privileged(|| {
        for way in [Way::Edge, Way::EdgeAmongPods, Way::Uplink] {
            for to in [RAW, RAW_V6] {
                exactly_once(way, to).with_context(|| format!("{way:?} {to}"))?;
            }
        }
        Ok(())
    });
}

/// Connections of one thread of the crowd: descriptors are limited.
const THREAD: usize = 5000;
/// Threads of the crowd.
const THREADS: u8 = 4;

/// An address of the crowd's thread, so that there are ports for all.
fn address(thread: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 100 + thread)
}

/// Connects a thread's part and answers when each was reset, from the first to the last.
fn crowd(thread: u8, connected: &Barrier) -> Result<[Instant; 2]> {
    // Descriptors of its own.
    unshare(CloneFlags::CLONE_FILES).context("unshare")?;
    let mut streams = Vec::with_capacity(THREAD);
    let mut connect = || -> Result<()> {
        for _ in 0..THREAD {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&SocketAddr::from((address(thread), 0)).into())?;
            socket.connect_timeout(&RAW.into(), DEADLINE)?;
            socket.set_read_timeout(Some(patience(3 * DEADLINE)))?;
            streams.push(TcpStream::from(socket));
        }
        Ok(())
    };
    let done = connect();
    connected.wait();
    done.context("connect")?;
    let mut first = None;
    for (i, stream) in streams.iter_mut().enumerate() {
        is_reset(stream, &format!("client {i} of thread {thread}"))?;
        first.get_or_insert_with(Instant::now);
    }
    Ok([first.context("nobody")?, Instant::now()])
}

#[test]
fn twenty_thousand_idle_connections() {
    privileged(|| {
        let mut rig = raw_rig(Way::Edge, |_| {})?;
        let client = rig.lab.client.clone();
        client.ip((0..THREADS).map(|i| format!("addr add {}/24 dev eth0", address(i))))?;
        // They wait to be accepted, which takes no descriptor.
        rig.lab.master.sysctl(&[
            ("core/somaxconn", "200000"),
            ("ipv4/tcp_max_syn_backlog", "200000"),
        ])?;
        let master = Peer::with_backlog(&rig.lab.master, 200_000)?;
        let connected = Arc::new(Barrier::new(usize::from(THREADS) + 1));
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let connected = Arc::clone(&connected);
                client.thread(move || crowd(thread, &connected))
            })
            .collect();
        connected.wait();
        let begun = Instant::now();
        rig.master.set_status(503)?;
        wait_raw(&mut rig.agent, "backup")?;
        let mut told = Vec::new();
        for thread in threads {
            told.extend(thread.join().expect("no panic")?);
        }
        let all = usize::from(THREADS) * THREAD;
        let (first, last) = (told.iter().min(), told.iter().max());
        let (first, last) = first.zip(last).context("nobody")?;
        println!(
            "{all} idle clients were told within {:.1?}, the first after {:.1?}",
            last.duration_since(begun),
            first.duration_since(begun)
        );
        for i in 0..all {
            is_reset(&mut master.accept()?, &format!("server {i}"))?;
        }
        // One whose RST was lost is told once more.
        until("the log to say so", || {
            let printed = rig.agent.printed();
            let line = printed.lines().find(|line| line.contains("were told that"));
            let line = line.context("not yet")?;
            println!("{line}");
            ensure!(line.contains("given_up=0"), "{line}");
            Ok(())
        })?;
        ensure!(metric(&rig, "flows_told", "master", "")? >= all as u64);
        ensure!(metric(&rig, "flows_not_told", "master", "")? == 0);
        Ok(())
    });
}
