//! One client port towards the VIP, another listener and the endpoint itself, forced by
//! bind(): connections that look alike to the endpoint. What they cost the service, a
//! look at the tables for every segment, is over when they are.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, Way, privileged, topology::MASTER_V4};
use serde_json::{Value, json};

use super::{
    DEADLINE, Pair, Peer, RAW, RAW_MASTER, Tables, idle::udp, idle::udp_server, raw_at, raw_rig,
    wait_alone,
};

/// All three ways to the master's one socket, each of them first once.
fn orders() -> [[SocketAddr; 3]; 3] {
    let own = raw_at(MASTER_V4);
    [
        [RAW, RAW_MASTER, own],
        [RAW_MASTER, own, RAW],
        [own, RAW, RAW_MASTER],
    ]
}

/// What ends is forgotten soon.
fn short(config: &mut Value) {
    config["datapath"] = json!({"learn": "0s", "timeouts": {
        "opening": "2s",
        "closing": "2s",
        "datagrams": "2s",
        "datagrams_answered": "4s",
    }});
}

/// Answers datagrams with themselves until dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(on: &Arc<Namespace>) -> Result<Self> {
        let socket = udp_server(on)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // What is lost shows at the client.
                    socket.send_to(&buffer[..length], from).ok();
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Sends a word that is its own, and takes no other for an answer.
fn ask(socket: &UdpSocket, word: &str) -> Result<()> {
    let begun = Instant::now();
    let mut answer = [0; 64];
    loop {
        socket.send(word.as_bytes())?;
        if let Ok(length) = socket.recv(&mut answer) {
            let answer = String::from_utf8_lossy(&answer[..length]);
            ensure!(answer == word, "{answer} for {word}");
            return Ok(());
        }
        ensure!(begun.elapsed() < DEADLINE, "no answer");
    }
}

fn datagrams(way: Way) -> Result<()> {
    let rig = raw_rig(way, short)?;
    let _echo = Echo::start(&rig.lab.master)?;
    wait_alone(&rig.agent, "raw", true)?;
    for (i, order) in orders().into_iter().enumerate() {
        let port = 54_000 + u16::try_from(i)?;
        let sockets: Vec<UdpSocket> = order
            .iter()
            .map(|to| udp(&rig.lab.client, port, *to))
            .collect::<Result<_>>()?;
        for round in 0..5 {
            for (to, socket) in order.iter().zip(&sockets) {
                ask(socket, &format!("{to} {round}"))
                    .with_context(|| format!("{way:?}: {to} of {order:?}, round {round}"))?;
            }
        }
        let tables = Tables::of(&rig.lab)?;
        let (forward, reverse) = (tables.forward(port)?, tables.reverse(port)?);
        ensure!(forward.len() == 3 && reverse.len() == 3, "{forward:?}");
        let ports: std::collections::HashSet<_> = reverse.iter().map(|flow| flow.client).collect();
        ensure!(ports.len() == 3, "they look alike: {reverse:?}");
    }
    wait_alone(&rig.agent, "raw", false)?;
    // Nobody speaks any more.
    wait_alone(&rig.agent, "raw", true)
}

#[test]
fn three_sockets_of_one_port() {
    privileged(|| {
        [Way::Edge, Way::EdgeAmongPods, Way::Uplink]
            .into_iter()
            .try_for_each(datagrams)
    });
}

fn connections(way: Way) -> Result<()> {
    let rig = raw_rig(way, short)?;
    let peer = Peer::on(&rig.lab.master)?;
    let tables = Tables::of(&rig.lab)?;
    wait_alone(&rig.agent, "raw", true)?;
    // There before, and there after: by the slot alone, by the tables, and again.
    let mut before = Pair::open(&rig.lab.client, None, RAW, &peer)?;
    before.talk()?;
    for (i, order) in orders().into_iter().enumerate() {
        let port = 55_000 + u16::try_from(i)?;
        let what = |to: &SocketAddr| format!("{way:?}: {to} of {order:?}");
        let mut pairs = Vec::new();
        for to in &order {
            let pair = Pair::open(&rig.lab.client, Some(port), *to, &peer);
            pairs.push((*to, pair.with_context(|| what(to))?));
            for (to, pair) in &mut pairs {
                pair.talk().with_context(|| what(to))?;
            }
            before.talk()?;
        }
        for _ in 0..5 {
            for (to, pair) in &mut pairs {
                pair.talk().with_context(|| what(to))?;
            }
        }
        let reverse = tables.reverse(port)?;
        let ports: std::collections::HashSet<_> = reverse.iter().map(|flow| flow.client).collect();
        ensure!(ports.len() == 3, "{reverse:?}");
        wait_alone(&rig.agent, "raw", false)?;
        // One after another ends, the others go on.
        while let Some(ended) = pairs.pop() {
            drop(ended);
            for (to, pair) in &mut pairs {
                pair.talk().with_context(|| what(to))?;
            }
            before.talk()?;
        }
        tables.wait_empty(port, "the three")?;
    }
    before.talk()?;
    wait_alone(&rig.agent, "raw", true)?;
    before.talk()?;
    Ok(())
}

#[test]
fn three_connections_of_one_port_by_the_slot_alone() {
    privileged(|| {
        [Way::Edge, Way::EdgeAmongPods, Way::Uplink]
            .into_iter()
            .try_for_each(connections)
    });
}
