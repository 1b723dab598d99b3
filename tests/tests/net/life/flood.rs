//! Forged SYNs from very many sources against small tables: whoever was there stays,
//! whoever comes gets in.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::PacketBuilder;
use lab::{
    Lab, Namespace, Way,
    capture::Capture,
    client::{Load, Long, Plan},
    privileged,
    topology::VIP_V4,
    until,
};
use serde_json::json;

use super::{Pair, Peer, RAW, Tables, connect, counted, raw_rig, wait_alone};
use crate::rig::none_failed;

/// How many different frames a flood consists of.
const FRAMES: u32 = 1 << 17;
/// What each table holds.
const ROOM: usize = 4096;
/// Frames a second on an uplink. The lab's veth drops them without regard of person where
/// its XDP program is given more than it has CPU for, as a full line would; and an endpoint that
/// misses an acknowledgment in a flood forgets the connection.
const UPLINK_RATE: u64 = 30_000;
/// How long it goes on.
const TIME: Duration = Duration::from_secs(10);
/// Past this many frames it ends even sooner.
const MOST: u64 = 5_000_000;

/// A running flood.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
    begun: Instant,
}

impl Flood {
    /// Sources are all of 10.99.0.0/16, from two ports each.
    fn start(client: &Arc<Namespace>, to: SocketAddr, rate: Option<u64>) -> Result<Self> {
        let IpAddr::V4(vip) = to.ip() else {
            bail!("IPv4 only");
        };
        let frames: Vec<Vec<u8>> = (0..FRAMES)
            .map(|n| {
                // Odd multipliers visit every value once, in an order without neighbours.
                let n = n.wrapping_mul(0x9e37_79b1);
                let [a, b] = ((n >> 1) as u16).to_be_bytes();
                let port = 1024 + ((n >> 17) as u16 ^ n as u16) % 60_000;
                let mut frame = Vec::new();
                PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x12], [2, 0, 0, 0, 0, 0x11])
                    .ipv4([10, 99, a, b], vip.octets(), 64)
                    .tcp(port, to.port(), n, 64_240)
                    .syn()
                    .write(&mut frame, &[])
                    .map(|()| frame)
                    .context("a frame")
            })
            .collect::<Result<_>>()?;
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let wire = Capture::open(client, "eth0")?;
        let begun = Instant::now();
        let thread = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            std::thread::spawn(move || {
                for frame in frames.iter().cycle() {
                    if stop.load(Ordering::Relaxed) || begun.elapsed() > TIME {
                        break;
                    }
                    // A full queue is no reason to end.
                    if wire.inject(frame).is_ok() && sent.fetch_add(1, Ordering::Relaxed) >= MOST {
                        break;
                    }
                    if let Some(rate) = rate {
                        let due =
                            Duration::from_micros(sent.load(Ordering::Relaxed) * 1_000_000 / rate);
                        let early = due.saturating_sub(begun.elapsed());
                        // In small bursts: a sleep takes its time.
                        if early > Duration::from_micros(500) {
                            std::thread::sleep(early);
                        }
                    }
                }
                Ok(())
            })
        };
        Ok(Self {
            stop,
            sent,
            thread: Some(thread),
            begun,
        })
    }

    fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    /// Waits for its end; frames a second.
    fn end(mut self) -> Result<u64> {
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let rate = self.sent.load(Ordering::Relaxed) as f64 / self.begun.elapsed().as_secs_f64();
        Ok(rate as u64)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The forged sources are behind the client's link, whose kernel ignores the answers; or
/// they are nowhere, and the answers are lost.
fn sources(lab: &Lab, answered: bool) -> Result<()> {
    if answered {
        let link = lab.client_link();
        lab.node
            .ip([format!("route add 10.99.0.0/16 via 10.1.0.2 dev {link}")])
    } else {
        lab.node.ip(["route add blackhole 10.99.0.0/16"])
    }
}

fn a_flood(way: Way, answered: bool, learn: &str) -> Result<()> {
    let rig = raw_rig(way, |config| {
        config["datapath"] = json!({"flows": ROOM, "learn": learn});
    })?;
    sources(&rig.lab, answered)?;
    let client = Arc::clone(&rig.lab.client);
    let peer = Peer::on(&rig.lab.master)?;
    if learn == "0s" {
        wait_alone(&rig.agent, "sense", true)?;
    }
    // Who was there: one that talks, and some that are silent.
    let long = Long::open(&client, VIP_V4, Duration::from_millis(10))?;
    long.check_alive()?;
    let mut quiet: Vec<Pair> = (0..20)
        .map(|_| Pair::open(&client, None, RAW, &peer))
        .collect::<Result<_>>()?;
    quiet.iter_mut().try_for_each(Pair::talk)?;
    let ports: Vec<u16> = quiet.iter().map(Pair::port).collect::<Result<_>>()?;
    let tables = Tables::of(&rig.lab)?;
    let flows: Vec<_> = until("every flow to be confirmed", || {
        ports
            .iter()
            .map(|port| tables.confirmed_flow(*port))
            .collect()
    })?;

    // The sockets of both services are flooded, at the same endpoint's kernel.
    let rate = (way == Way::Uplink).then_some(UPLINK_RATE);
    let flood = Flood::start(&client, VIP_V4, rate)?;
    let plan = Plan {
        rate: 50,
        // A SYN may be lost many times, and is repeated ever more rarely.
        patience: Duration::from_secs(30),
        ..Plan::steady(VIP_V4)
    };
    let load = Load::start(&client, plan);
    let (mut longs, mut pairs, mut slow, mut used_up) = (Vec::new(), Vec::new(), 0, false);
    while flood.runs() {
        let begun = Instant::now();
        longs.push(
            Long::open(&client, VIP_V4, Duration::from_millis(50))
                .context("a new connection with requests")?,
        );
        // The client speaks first, as most do: a lost acknowledgment does no harm then.
        let mut stream = connect(&client, None, RAW).context("a new connection")?;
        stream
            .write_all(b"word")
            .context("the first word of a new connection")?;
        let mut pair = Pair {
            client: stream,
            server: peer.accept().context("a new connection")?,
        };
        pair.server
            .read_exact(&mut [0; 4])
            .context("the first word of a new connection at its endpoint")?;
        pair.down().context("a new connection")?;
        slow += usize::from(begun.elapsed() > Duration::from_secs(1));
        pairs.push(pair);
        // Those from the beginning of the flood are used again only now and then.
        let at = pairs.len() / 2;
        pairs[at]
            .talk()
            .with_context(|| format!("connection {at} of {}", pairs.len()))?;
        used_up |= tables.grants()? == 0;
        std::thread::sleep(Duration::from_millis(200));
    }
    let rate = flood.end()?;
    let samples = load.stop()?;
    let full = counted(&rig.agent, "table_full")?;
    let what = format!("{way:?}, answered: {answered}, learn: {learn}");
    let late = samples
        .iter()
        .filter(|sample| sample.took() > Duration::from_secs(1))
        .count();
    println!(
        "{what}: {rate} SYNs a second, {} requests ({late} slow), {} long ones ({slow} slow), \
         {full} without room",
        samples.len(),
        2 * longs.len(),
    );
    none_failed(&samples).with_context(|| what.clone())?;
    // Who spoke last before the flood, and who came during it.
    for pair in quiet.iter_mut().chain(&mut pairs) {
        // The endpoint first: nothing of the client's has renewed anything.
        let spoken = pair.down().and_then(|()| pair.up());
        let port = pair.port()?;
        spoken.with_context(|| {
            let (forward, reverse) = (tables.forward(port), tables.reverse(port));
            format!("{what}: port {port}, {forward:?}, {reverse:?}")
        })?;
    }
    for flow in &flows {
        tables.still(flow).with_context(|| what.clone())?;
    }
    for long in longs.iter().chain([&long]) {
        long.check_alive().with_context(|| what.clone())?;
    }
    ensure!(
        (full > 0) == answered,
        "{what}: tables were full {full} times"
    );
    ensure!(used_up == answered, "{what}: grants used up: {used_up}");
    let left = longs.len() + pairs.len() + quiet.len() + 1;
    until("the flood's flows to be swept", || {
        let (now, grants) = (tables.count(), tables.grants()?);
        ensure!(
            now <= left + 100 && grants > ROOM as u64 / 2,
            "{now} flows, {grants} grants"
        );
        Ok(())
    })
    .with_context(|| what.clone())?;
    for pair in quiet.iter_mut().chain(&mut pairs) {
        pair.talk().with_context(|| what.clone())?;
    }
    Ok(())
}

#[test]
fn answered_syns_of_pods() {
    privileged(|| a_flood(Way::Edge, true, "2m"));
}

#[test]
fn answered_syns_of_pods_by_the_slot_alone() {
    privileged(|| a_flood(Way::Edge, true, "0s"));
}

#[test]
fn answered_syns_on_an_uplink() {
    privileged(|| a_flood(Way::Uplink, true, "0s"));
}

#[test]
fn syns_that_nobody_answers() {
    privileged(|| {
        a_flood(Way::Edge, false, "2m")?;
        a_flood(Way::Uplink, false, "0s")
    });
}
