//! The ways a connection ends. Nothing of it stays in the tables, and nothing reaches the
//! client from another address than the VIP's, not even the last acknowledgment.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lab::{Way, capture::Capture, privileged, until};
use serde_json::json;
use socket2::SockRef;

use super::{Pair, Peer, RAW, RAW_PORT, Tables, raw_rig, wait_alone};

/// Segments of the raw port at the client; fails if one has another address than the VIP's.
fn only_the_vip(wire: &Capture) -> Result<usize> {
    let mut seen = 0;
    while let Some(frame) = wire.next()? {
        let Ok(packet) = SlicedPacket::from_ethernet(&frame) else {
            continue;
        };
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) =
            (&packet.net, &packet.transport)
        else {
            continue;
        };
        let header = ip.header();
        let other = if tcp.source_port() == RAW_PORT {
            header.source_addr()
        } else if tcp.destination_port() == RAW_PORT {
            header.destination_addr()
        } else {
            continue;
        };
        seen += 1;
        ensure!(
            IpAddr::V4(other) == RAW.ip(),
            "a segment of {other}, flags {:?}",
            tcp.to_header()
        );
    }
    Ok(seen)
}

/// Reads the other's end.
fn ended(stream: &mut TcpStream) -> Result<()> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).context("its end")?;
    ensure!(rest.is_empty());
    Ok(())
}

fn was_reset(stream: &mut TcpStream) -> Result<()> {
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => anyhow::bail!("not reset: {other:?}"),
    }
}

fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

fn client_first(mut pair: Pair) -> Result<()> {
    pair.client.shutdown(Shutdown::Write)?;
    ended(&mut pair.server)?;
    drop(pair.server);
    ended(&mut pair.client)
}

fn server_first(mut pair: Pair) -> Result<()> {
    pair.server.shutdown(Shutdown::Write)?;
    ended(&mut pair.client)?;
    drop(pair.client);
    ended(&mut pair.server)
}

fn both_at_once(mut pair: Pair) -> Result<()> {
    let start = Barrier::new(2);
    thread::scope(|scope| {
        for stream in [&pair.client, &pair.server] {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                // A failure shows in what the other end reads.
                stream.shutdown(Shutdown::Write).ok();
            });
        }
    });
    ended(&mut pair.client)?;
    ended(&mut pair.server)
}

fn reset_by_client(mut pair: Pair) -> Result<()> {
    reset(pair.client)?;
    was_reset(&mut pair.server)
}

fn reset_by_server(mut pair: Pair) -> Result<()> {
    reset(pair.server)?;
    was_reset(&mut pair.client)
}

fn reset_after_fin(mut pair: Pair) -> Result<()> {
    pair.server.shutdown(Shutdown::Write)?;
    ended(&mut pair.client)?;
    reset(pair.client)?;
    was_reset(&mut pair.server)
}

type Ending = fn(Pair) -> Result<()>;

const ENDINGS: [(&str, Ending, u16); 6] = [
    ("the client first", client_first, 3),
    ("the server first", server_first, 3),
    ("both at once", both_at_once, 20),
    ("reset by the client", reset_by_client, 3),
    ("reset by the server", reset_by_server, 3),
    ("reset after a FIN", reset_after_fin, 3),
];

fn nothing_is_left(way: Way, learn: &str) -> Result<()> {
    let rig = raw_rig(way, |config| {
        config["datapath"] = json!({"learn": learn});
    })?;
    // Or a second connection of the same ends would have to wait for a minute.
    rig.lab.client.sysctl(&[("ipv4/tcp_tw_reuse", "1")])?;
    let client = rig.lab.client.clone();
    let peer = Peer::on(&rig.lab.master)?;
    if learn == "0s" {
        wait_alone(&rig.agent, "raw", true)?;
    }
    let tables = Tables::of(&rig.lab)?;
    let wire = Capture::open(&client, "eth0")?;
    let mut port = 52_000;
    for (name, end, times) in ENDINGS {
        let what = format!("{way:?}, learn {learn}, {name}");
        for _ in 0..times {
            port += 1;
            // The same ends once more, right after the end.
            for again in [false, true] {
                let what = || format!("{what}, port {port}, again: {again}");
                let mut pair = until("the port to be free", || {
                    Pair::open(&client, Some(port), RAW, &peer)
                })
                .with_context(what)?;
                pair.talk().with_context(what)?;
                ensure!(tables.hold(port)?, "{}: no entry", what());
                end(pair).with_context(what)?;
                if again {
                    tables.wait_empty(port, &what())?;
                }
            }
        }
    }
    // What is repeated or late has come by now.
    thread::sleep(Duration::from_millis(500));
    let seen = only_the_vip(&wire).with_context(|| format!("{way:?}, learn {learn}"))?;
    ensure!(seen > 500, "the capture saw {seen} segments");
    ensure!(tables.count() == 0, "{} flows", tables.count());
    Ok(())
}

#[test]
fn nothing_is_left_of_an_end_among_pods() {
    privileged(|| {
        nothing_is_left(Way::EdgeAmongPods, "2m")?;
        nothing_is_left(Way::EdgeAmongPods, "0s")
    });
}

#[test]
fn nothing_is_left_of_an_end_of_outside_clients() {
    privileged(|| {
        nothing_is_left(Way::Uplink, "2m")?;
        nothing_is_left(Way::Uplink, "0s")
    });
}

/// One side has closed, the other streams on for longer than closing flows may be idle.
fn half_closed(way: Way, learn: &str) -> Result<()> {
    let rig = raw_rig(way, |config| {
        config["datapath"] = json!({"learn": learn, "timeouts": {"closing": "3s"}});
    })?;
    let client = rig.lab.client.clone();
    let peer = Peer::on(&rig.lab.master)?;
    if learn == "0s" {
        wait_alone(&rig.agent, "raw", true)?;
    }
    let tables = Tables::of(&rig.lab)?;
    let wire = Capture::open(&client, "eth0")?;
    let mut down = Pair::open(&client, Some(53_000), RAW, &peer)?;
    let mut up = Pair::open(&client, Some(53_001), RAW, &peer)?;
    down.talk()?;
    up.talk()?;
    down.client.shutdown(Shutdown::Write)?;
    ended(&mut down.server)?;
    up.server.shutdown(Shutdown::Write)?;
    ended(&mut up.client)?;
    let mut piece = vec![0x5a; 100_000];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        for (from, to) in [
            (&mut down.server, &mut down.client),
            (&mut up.client, &mut up.server),
        ] {
            thread::scope(|scope| -> Result<()> {
                let writer = scope.spawn(|| from.write_all(&vec![0x5a; 100_000]));
                to.read_exact(&mut piece).context("the stream")?;
                writer
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                Ok(())
            })?;
        }
        ensure!(tables.hold(53_000)? && tables.hold(53_001)?, "swept");
        thread::sleep(Duration::from_millis(1500));
    }
    drop(down.server);
    ended(&mut down.client)?;
    drop(up.client);
    ended(&mut up.server)?;
    tables.wait_empty(53_000, "the one that streamed to the client")?;
    tables.wait_empty(53_001, "the one that streamed to the server")?;
    only_the_vip(&wire)?;
    Ok(())
}

#[test]
fn half_closed_for_long() {
    privileged(|| {
        half_closed(Way::Edge, "2m")?;
        half_closed(Way::Edge, "0s")?;
        half_closed(Way::Uplink, "0s")
    });
}

const _: () = {
    let SocketAddr::V4(_) = RAW else {
        panic!("this file looks for IPv4")
    };
};
