//! Sweeping what is silent, by its state, and nothing else.

use std::{
    net::{IpAddr, Shutdown, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::PacketBuilder;
use lab::{
    Namespace, Way,
    capture::Capture,
    privileged,
    topology::{CLIENT_V4, MASTER_V4},
};
use serde_json::json;

use super::{Pair, Peer, RAW, RAW_PORT, Tables, connect, raw_at, raw_rig};
use crate::rig::Rig;

/// Between two sweeps, see the documentation.
const SWEEP: Duration = Duration::from_secs(5);

/// A UDP socket of the client, connected.
pub fn udp(client: &Arc<Namespace>, port: u16, to: SocketAddr) -> Result<UdpSocket> {
    client.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        // Several sockets of one port, told apart by whom they are connected to.
        socket.set_reuse_address(true)?;
        let me: SocketAddr = ([0, 0, 0, 0], port).into();
        socket.bind(&me.into())?;
        socket.connect(&to.into())?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket.into())
    })
}

/// A UDP socket of an endpoint at the raw port.
pub fn udp_server(host: &Arc<Namespace>) -> Result<UdpSocket> {
    let socket = host.run(|| Ok(UdpSocket::bind(("0.0.0.0", RAW_PORT))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// One SYN from the client, which its kernel knows nothing of.
fn forge_syn(rig: &Rig, port: u16, to: SocketAddr) -> Result<()> {
    let (IpAddr::V4(me), IpAddr::V4(vip)) = (CLIENT_V4, to.ip()) else {
        bail!("the constants have their families");
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x12], [2, 0, 0, 0, 0, 0x11])
        .ipv4(me.octets(), vip.octets(), 64)
        .tcp(port, to.port(), 1, 64_240)
        .syn()
        .write(&mut frame, &[])
        .context("a frame")?;
    Capture::open(&rig.lab.client, "eth0")?.inject(&frame)
}

/// Waits until there is no flow of the port, which must not be before `least` since
/// `begun`, nor much later.
fn goes(tables: &Tables, port: u16, what: &str, begun: Instant, least: u64) -> Result<()> {
    // The clock's unit is a second, and its sweeps are rare.
    let (least, unit) = (Duration::from_secs(least), Duration::from_millis(1100));
    while tables.hold(port)? {
        let late = begun.elapsed() > least + 2 * SWEEP + Duration::from_secs(10);
        ensure!(!late, "{what}: still there");
        thread::sleep(Duration::from_millis(20));
    }
    let took = begun.elapsed();
    ensure!(took + unit >= least, "{what}: gone after {took:?}");
    Ok(())
}

/// Each state has its own time. Whoever talks stays: also a client that only listens, and
/// one that has closed its side.
#[test]
fn idle_flows_go_by_their_state() {
    privileged(|| {
        let rig = raw_rig(Way::Edge, |config| {
            config["datapath"] = json!({"timeouts": {
                "opening": "2s",
                "closing": "4s",
                "established": "9s",
                "datagrams": "3s",
                "datagrams_answered": "8s",
            }});
        })?;
        let client = Arc::clone(&rig.lab.client);
        let peer = Peer::on(&rig.lab.master)?;
        let server = udp_server(&rig.lab.master)?;
        let tables = Tables::of(&rig.lab)?;

        // Those that go on talking, in their ways.
        let mut speaks = Pair::open(&client, Some(50_000), RAW, &peer)?;
        let mut listens = Pair::open(&client, Some(50_001), RAW, &peer)?;
        let mut half = Pair::open(&client, Some(50_002), RAW, &peer)?;
        half.talk()?;
        half.client.shutdown(Shutdown::Write)?;
        let asks = udp(&client, 50_003, RAW)?;
        // Those that fall silent.
        let mut idle = Pair::open(&client, Some(50_010), RAW, &peer)?;
        idle.talk()?;
        let mut closing = Pair::open(&client, Some(50_011), RAW, &peer)?;
        closing.talk()?;
        closing.server.shutdown(Shutdown::Write)?;
        // A clash is written down at its SYN; nobody answers this one.
        let direct = Pair::open(&client, Some(50_012), raw_at(MASTER_V4), &peer)?;
        rig.lab
            .master
            .ask("nft", &["add table ip deaf; add chain ip deaf in { type filter hook prerouting priority -300; }; add rule ip deaf in ip saddr 10.1.0.2 tcp sport != 50000-50019 drop"])?;
        forge_syn(&rig, 50_012, RAW)?;
        let unanswered = udp(&client, 50_013, RAW)?;
        unanswered.send(b"?")?;
        let answered = udp(&client, 50_014, RAW)?;
        answered.send(b"?")?;
        let begun = Instant::now();
        let mut answer = [0; 16];
        for _ in 0..2 {
            let (_, from) = server.recv_from(&mut answer)?;
            if from.port() == 50_014 {
                server.send_to(b"!", from)?;
            }
        }
        answered.recv(&mut answer)?;
        for port in [50_010, 50_011, 50_013, 50_014] {
            ensure!(tables.forward(port)?.len() == 1, "{port}");
        }
        ensure!(tables.forward(50_012)?.len() == 2, "direct and steered");

        thread::scope(|scope| -> Result<()> {
            let talk = scope.spawn(|| -> Result<()> {
                let mut answer = [0; 16];
                while begun.elapsed() < Duration::from_secs(26) {
                    speaks.talk().context("who speaks")?;
                    listens.down().context("who listens")?;
                    half.down().context("who has closed its side")?;
                    asks.send(b"?")?;
                    let (_, from) = server.recv_from(&mut answer)?;
                    server.send_to(b"!", from)?;
                    asks.recv(&mut answer)?;
                    for port in 50_000..50_004 {
                        let here = (tables.forward(port)?.len(), tables.reverse(port)?.len());
                        ensure!(here == (1, 1), "a flow that talks: {port}: {here:?}");
                    }
                    thread::sleep(Duration::from_millis(500));
                }
                Ok(())
            });
            let watch = Tables::of(&rig.lab)?;
            let steered = || -> Result<bool> {
                let forward = watch.forward(50_012)?;
                Ok(forward.iter().any(|flow| SocketAddr::V4(flow.vip) == RAW))
            };
            while steered()? {
                ensure!(
                    begun.elapsed() < Duration::from_secs(20),
                    "opening: still there"
                );
                thread::sleep(Duration::from_millis(20));
            }
            ensure!(
                begun.elapsed() >= Duration::from_millis(1000),
                "opening: too early"
            );
            goes(&watch, 50_013, "datagrams", begun, 3)?;
            goes(&watch, 50_011, "closing", begun, 4)?;
            goes(&watch, 50_014, "answered datagrams", begun, 8)?;
            goes(&watch, 50_010, "established", begun, 9)?;
            talk.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        drop((direct, idle, closing));
        Ok(())
    });
}

/// While no agent runs nobody keeps the clock that packets are seen by: the next one must
/// not take that for silence.
#[test]
fn a_restart_makes_nobody_look_idle() {
    privileged(|| {
        for gently in [true, false] {
            let mut rig = raw_rig(Way::Edge, |config| {
                config["datapath"] = json!({"learn": "0s", "timeouts": {"established": "6s"}});
            })?;
            let client = Arc::clone(&rig.lab.client);
            let peer = Peer::on(&rig.lab.master)?;
            let tables = Tables::of(&rig.lab)?;
            let mut speaks = Pair::open(&client, Some(51_000), RAW, &peer)?;
            speaks.talk()?;
            if gently {
                rig.agent.terminate()?;
            } else {
                rig.agent.kill()?;
            }
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(10) {
                speaks.talk()?;
                thread::sleep(Duration::from_millis(250));
            }
            rig.agent.restart()?;
            let begun = Instant::now();
            // Past two sweeps, at a pace that the timeout allows.
            while begun.elapsed() < 2 * SWEEP + Duration::from_secs(2) {
                ensure!(tables.hold(51_000)?, "it was swept");
                speaks.talk()?;
                for _ in 0..8 {
                    ensure!(tables.hold(51_000)?, "it was swept");
                    thread::sleep(Duration::from_millis(250));
                }
            }
            // And it still is swept when it is idle.
            goes(&tables, 51_000, "established", Instant::now(), 0)?;
            drop(connect(&client, None, RAW)?);
        }
        Ok(())
    });
}
