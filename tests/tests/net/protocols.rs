//! What goes beyond plain TCP: datagrams, and ICMP errors without which path MTU
//! discovery breaks.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Agent, Lab, Namespace, Way, agent,
    privilege::with_tcx,
    privileged,
    topology::{MASTER_V4, MASTER_V6, VIP_V4, VIP_V6},
    wait::patience,
};
use serde_json::json;

use crate::rig::Rig;

/// How long anything that must happen may take.
fn deadline() -> Duration {
    patience(Duration::from_secs(10))
}

/// Answers every datagram with its name until dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Echo {
    pub fn start(on: &Arc<Namespace>, name: &'static str) -> Result<Self> {
        Self::at(on, (Ipv6Addr::UNSPECIFIED, VIP_V4.port()).into(), name)
    }

    /// At one address, from which its answers come then.
    pub fn at(on: &Arc<Namespace>, address: SocketAddr, name: &'static str) -> Result<Self> {
        let socket = on.run(|| Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let mut answer = name.as_bytes().to_vec();
                    answer.extend(&buffer[..length]);
                    socket.send_to(&answer, from)?;
                }
            }
            Ok(())
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
            // What it failed with shows in the answers that are missing.
            drop(thread.join());
        }
    }
}

/// Asks until an answer comes. A connected socket takes only what comes from `to`.
pub fn ask(socket: &UdpSocket, question: &[u8]) -> Result<Vec<u8>> {
    let begin = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    loop {
        // A refused port is told by an error at the next call; it may be the backup's turn then.
        let answer = socket.send(question).and_then(|_| socket.recv(&mut buffer));
        match answer {
            Ok(length) => return Ok(buffer[..length].to_vec()),
            Err(error) => ensure!(begin.elapsed() < deadline(), "no answer: {error}"),
        }
    }
}

pub fn connected(client: &Arc<Namespace>, to: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = if to.is_ipv4() {
        "0.0.0.0:0".parse()?
    } else {
        "[::]:0".parse()?
    };
    let socket = client.run(|| Ok(UdpSocket::bind(any)?))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience(Duration::from_millis(200))))?;
    Ok(socket)
}

fn datagrams(way: Way, tc: &str) -> Result<()> {
    let mut rig = Rig::with(way, |config| {
        config["datapath"] = json!({"tc": tc});
        config["services"][0]["listeners"] = json!([
            VIP_V4.to_string(),
            VIP_V6.to_string(),
            format!("{VIP_V4}/udp"),
            format!("{VIP_V6}/udp"),
        ]);
    })?;
    let _master = Echo::start(&rig.lab.master, "master")?;
    let _backup = Echo::start(&rig.lab.backup, "backup")?;
    let mut clients = Vec::new();
    for to in [VIP_V4, VIP_V6] {
        let socket = connected(&rig.lab.client, to)?;
        // The last two arrive in fragments, and so do their answers.
        for length in [0, 1, 700, 1400, 4000, 20_000] {
            let question = vec![b'?'; length];
            let answer = ask(&socket, &question)?;
            ensure!(answer == [&b"master"[..], &question].concat());
        }
        clients.push(socket);
    }
    // Straight to the master: untouched, and beside the steered flow of the same socket's port.
    for (to, steered) in [(MASTER_V4, &clients[0]), (MASTER_V6, &clients[1])] {
        let port = steered.local_addr()?.port();
        let socket = connected(&rig.lab.client, to)?;
        ensure!(ask(&socket, b"!")? == b"master!");
        ensure!(socket.local_addr()?.port() != port);
        ensure!(ask(steered, b"!")? == b"master!");
    }
    rig.master.kill()?;
    rig.agent.wait_selected("backup")?;
    for socket in &clients {
        // UDP has no connection to reset: the same socket is answered by the backup.
        ensure!(ask(socket, b"!")? == b"backup!");
    }
    Ok(())
}

#[test]
fn datagrams_of_pods_by_tcx() {
    with_tcx(|| datagrams(Way::Edge, "tcx"));
}

#[test]
fn datagrams_among_pods_by_clsact() {
    privileged(|| datagrams(Way::EdgeAmongPods, "clsact"));
}

#[test]
fn datagrams_of_outside_clients() {
    privileged(|| datagrams(Way::Uplink, "auto"));
}

/// Good for the check, and takes uploads (`PUT <bytes>`, a blank line, the bytes) and makes
/// downloads (`GIVE <bytes>`, a blank line).
pub fn sink(on: &Arc<Namespace>) -> Result<()> {
    let listener = on.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, VIP_V4.port()))?))?;
    // Both threads end with the test program, whose namespaces they keep no longer than it.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    Ok(())
}

fn serve(mut stream: TcpStream) -> Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    if let Some(rest) = head.strip_prefix("GIVE ") {
        let wanted: usize = rest.trim().parse()?;
        stream.write_all(&vec![7; wanted])?;
        return Ok(());
    }
    let Some(rest) = head.strip_prefix("PUT ") else {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nversion")?;
        return Ok(());
    };
    let wanted: u64 = rest.trim().parse()?;
    let received = std::io::copy(&mut (&mut stream).take(wanted), &mut std::io::sink())?;
    stream.write_all(&received.to_be_bytes())?;
    Ok(())
}

/// The way to the master is narrower than the client's link. Only the node's ICMP
/// errors tell the client, and they quote the packet after its translation.
fn a_narrow_way(way: Way) -> Result<()> {
    const SIZE: u64 = 1 << 20;
    let lab = Lab::new(way)?;
    sink(&lab.master)?;
    sink(&lab.backup)?;
    // Only the node's end: what the master offers as segment size stays that of its link.
    let [link, _] = lab.endpoint_links();
    lab.node.ip([format!("link set {link} mtu 1300")])?;
    let mut agent = Agent::start(&lab, &agent::config(&lab))?;
    agent.wait_selected("master")?;
    for to in [VIP_V4, VIP_V6] {
        let mut stream = lab
            .client
            .run(|| Ok(TcpStream::connect_timeout(&to, deadline())?))?;
        stream.set_read_timeout(Some(deadline()))?;
        stream.set_write_timeout(Some(deadline()))?;
        stream.write_all(format!("PUT {SIZE}\r\n\r\n").as_bytes())?;
        stream
            .write_all(&vec![7; SIZE as usize])
            .with_context(|| format!("the upload to {to} is stuck"))?;
        let mut answer = [0; 8];
        stream
            .read_exact(&mut answer)
            .with_context(|| format!("the upload to {to} did not arrive"))?;
        ensure!(u64::from_be_bytes(answer) == SIZE);
    }
    let status = agent.status()?;
    let translated = &status["datapath"]["reasons"]["icmp_translated"];
    ensure!(
        translated.as_u64().is_some_and(|count| count >= 2),
        "the errors were translated, one a family at least: {translated}"
    );
    Ok(())
}

#[test]
fn a_narrow_way_for_pods() {
    privileged(|| a_narrow_way(Way::Edge));
}

#[test]
fn a_narrow_way_for_outside_clients() {
    privileged(|| a_narrow_way(Way::Uplink));
}
