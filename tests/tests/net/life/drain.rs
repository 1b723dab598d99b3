//! An endpoint that is left while it is well: its flows go on, or have their time.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Agent, Namespace, Way,
    client::{Load, Plan},
    privileged,
    topology::VIP_V4,
    until,
    wait::until_true,
};
use serde_json::{Value, json};

use super::{Pair, Peer, RAW, connect, raw_rig, wait_raw};
use crate::rig::{Rig, none_failed};

const GIB: u64 = 1 << 30;
const PIECE: u64 = 256 << 10;

/// The drain of the service `raw`'s backup in the status.
fn drain(status: &Value) -> &Value {
    &status["services"][1]["endpoints"][1]["drain"]
}

/// A file of random bytes and its checksum, both made by programs of the system: a
/// debug build of this test would take minutes.
fn blob(rig: &Rig) -> Result<(File, String)> {
    let path = rig.lab.file("blob");
    let (mut from, mut to) = (File::open("/dev/urandom")?, File::create_new(&path)?);
    let mut buffer = vec![0; 4 << 20];
    for _ in 0..GIB / buffer.len() as u64 {
        from.read_exact(&mut buffer)?;
        to.write_all(&buffer)?;
    }
    let sum = rig.lab.node.ask("sha256sum", &[&path.to_string_lossy()])?;
    let sum = sum.split(' ').next().unwrap_or_default().to_owned();
    Ok((File::open(path)?, sum))
}

/// Sends all of the file, slowly at first, so that it is still going on when the
/// selection moves, and fast from then on.
fn send(file: &File, mut to: TcpStream, sent: &AtomicU64, moved: &AtomicBool) -> Result<()> {
    let mut done = 0;
    while done < GIB {
        // The kernel copies (sendfile).
        done += io::copy(&mut file.take(PIECE), &mut to).context("send")?;
        sent.store(done, Ordering::Relaxed);
        while !moved.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(2));
            if done < GIB / 4 * 3 {
                break;
            }
        }
    }
    to.shutdown(Shutdown::Write).context("end")?;
    Ok(())
}

/// The checksum of what comes until its end.
fn checksum(client: &Arc<Namespace>, mut from: TcpStream) -> Result<String> {
    let mut program = client.command("sha256sum");
    program.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = lab::process::fork_from_spawner(program).context("sha256sum")?;
    let mut input = program.stdin.take().context("piped")?;
    // The kernel copies (splice).
    let received = io::copy(&mut from, &mut input);
    drop(input);
    let output = program.wait_with_output().context("sha256sum")?;
    let received = received.context("receive")?;
    ensure!(received == GIB, "{received} bytes");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

fn a_gibibyte_across_a_fail_back(way: Way) -> Result<()> {
    let mut rig = raw_rig(way, |_| {})?;
    let (master, backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
    let client = Arc::clone(&rig.lab.client);
    let (file, expected) = blob(&rig)?;
    rig.master.kill()?;
    wait_raw(&mut rig.agent, "backup")?;
    rig.agent.wait_selected("backup")?;

    let load = Load::start(&client, Plan::steady(VIP_V4));
    let begun = Instant::now();
    let Pair {
        client: down,
        server: up,
    } = Pair::open(&client, None, RAW, &backup)?;
    let (sent, moved) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let sender = {
        let (sent, moved) = (Arc::clone(&sent), Arc::clone(&moved));
        thread::spawn(move || send(&file, up, &sent, &moved))
    };
    let receiver = {
        let client = Arc::clone(&client);
        thread::spawn(move || checksum(&client, down))
    };
    until_true("an eighth to be sent", || {
        sent.load(Ordering::Relaxed) > GIB / 8
    })?;
    rig.master.restart()?;
    wait_raw(&mut rig.agent, "master")?;
    rig.agent.wait_selected("master")?;
    let at = sent.load(Ordering::Relaxed);
    ensure!(at < GIB, "it was over before the selection moved");
    // New ones go to the master, while this one goes on where it is.
    for _ in 0..50 {
        Pair::open(&client, None, RAW, &master)?.talk()?;
    }
    ensure!(backup.came()?.is_none(), "a new connection to the backup");
    let status = rig.agent.status()?;
    ensure!(drain(&status)["until_unix_ms"].is_null(), "no deadline");
    ensure!(!drain(&status).is_null(), "{status}");
    ensure!(draining(&rig.agent)?, "the metric");
    load.wait_for("master")?;
    moved.store(true, Ordering::Relaxed);
    let join = |what: &str| format!("{way:?}: {what}");
    sender
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        .with_context(|| join("the sender"))?;
    let sum = receiver
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        .with_context(|| join("the receiver"))?;
    ensure!(sum == expected, "{sum} instead of {expected}");
    println!(
        "{way:?}: 1 GiB in {:.1?}, {} MiB of it before the switch",
        begun.elapsed(),
        at >> 20
    );
    none_failed(&load.stop()?)?;
    rig.agent.wait("nothing to drain", |status| {
        ensure!(drain(status).is_null());
        Ok(())
    })?;
    ensure!(!draining(&rig.agent)?, "the metric");
    Ok(())
}

/// The metric of the service `raw`'s backup.
fn draining(agent: &Agent) -> Result<bool> {
    let head = "probe_endpoint_draining{service=\"raw\",endpoint=\"backup\"} ";
    let page = agent.metrics_page("/metrics")?;
    let value = page.lines().find_map(|line| line.strip_prefix(head));
    Ok(value.context("no such metric")? == "1")
}

#[test]
fn a_gibibyte_across_a_fail_back_among_pods() {
    privileged(|| a_gibibyte_across_a_fail_back(Way::EdgeAmongPods));
}

#[test]
fn a_gibibyte_across_a_fail_back_on_an_uplink() {
    privileged(|| a_gibibyte_across_a_fail_back(Way::Uplink));
}

/// What the end of a connection says when it is used.
fn end(stream: &mut TcpStream) -> Result<ErrorKind> {
    let begun = Instant::now();
    loop {
        if let Err(error) = stream.write_all(b"more") {
            return Ok(error.kind());
        }
        // An answer takes its time.
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        match stream.read(&mut [0; 64]) {
            Ok(0) => bail!("closed in order"),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Ok(error.kind()),
            _ => {}
        }
        ensure!(begun.elapsed() < Duration::from_secs(10), "it goes on");
    }
}

/// Connections to the backup while it serves, then the master is back.
fn left_at_the_backup(rig: &mut Rig, peer: &Peer) -> Result<Vec<Pair>> {
    rig.master.kill()?;
    wait_raw(&mut rig.agent, "backup")?;
    let client = Arc::clone(&rig.lab.client);
    let mut pairs: Vec<Pair> = (0..4)
        .map(|_| Pair::open(&client, None, RAW, peer))
        .collect::<Result<_>>()?;
    pairs.iter_mut().try_for_each(Pair::talk)?;
    rig.master.restart()?;
    wait_raw(&mut rig.agent, "master")?;
    Ok(pairs)
}

/// A deadline ends them at their next packet, at both ends, whoever speaks first;
/// `on_marked_down: keep` is about something else.
fn a_deadline(way: Way, limit: &str, on_marked_down: &str) -> Result<()> {
    let mut rig = raw_rig(way, |config| {
        config["services"][1]["drain"] = json!(limit);
        config["services"][1]["on_marked_down"] = json!(on_marked_down);
        config["services"][1]["failback"] = json!({"mode": "manual"});
    })?;
    let (_master, backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
    rig.master.kill()?;
    wait_raw(&mut rig.agent, "backup")?;
    let client = Arc::clone(&rig.lab.client);
    let mut pairs: Vec<Pair> = (0..4)
        .map(|_| Pair::open(&client, None, RAW, &backup))
        .collect::<Result<_>>()?;
    rig.master.restart()?;
    rig.agent.wait("raw's master to be up", |status| {
        ensure!(status["services"][1]["endpoints"][0]["state"] == "up");
        Ok(())
    })?;
    pairs.iter_mut().try_for_each(Pair::talk)?;
    let begun = Instant::now();
    rig.agent.order(&["failback", "raw"])?;
    if limit != "0s" {
        while begun.elapsed() < Duration::from_secs(2) {
            pairs
                .iter_mut()
                .try_for_each(Pair::talk)
                .context("before the deadline")?;
            thread::sleep(Duration::from_millis(50));
        }
        until("the deadline to be over", || {
            let printed = rig.agent.printed();
            ensure!(printed.contains("drained: flows that are left are reset"));
            Ok(())
        })?;
        ensure!(begun.elapsed() >= Duration::from_secs(4), "too early");
    }
    for (i, pair) in pairs.iter_mut().enumerate() {
        let what = format!("{way:?}, drain {limit}, {on_marked_down}, pair {i}");
        // The client acknowledges what the server says, and is reset for it.
        if i % 2 == 0 {
            pair.server.write_all(b"word").context("the endpoint")?;
        }
        let told = end(&mut pair.client).with_context(|| what.clone())?;
        ensure!(told == ErrorKind::ConnectionReset, "{what}: {told}");
        // And so is the server for what it says next.
        let told = end(&mut pair.server).with_context(|| format!("{what}: the server"))?;
        ensure!(
            matches!(told, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{what}: the server: {told}"
        );
    }
    Ok(())
}

#[test]
fn a_deadline_ends_flows_of_pods() {
    privileged(|| {
        a_deadline(Way::Edge, "4s", "keep")?;
        a_deadline(Way::EdgeAmongPods, "0s", "reset")
    });
}

#[test]
fn a_deadline_ends_flows_of_outside_clients() {
    privileged(|| {
        a_deadline(Way::Uplink, "4s", "reset")?;
        a_deadline(Way::Uplink, "0s", "keep")
    });
}

/// Selected again in time: nobody notices that there was a deadline.
#[test]
fn selected_again_in_time() {
    privileged(|| {
        let mut rig = raw_rig(Way::Edge, |config| {
            config["services"][1]["drain"] = json!("5s");
        })?;
        let (_master, backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
        let mut pairs = left_at_the_backup(&mut rig, &backup)?;
        rig.agent.wait("a deadline", |status| {
            drain(status)["until_unix_ms"].as_u64().context("none")
        })?;
        rig.master.kill()?;
        wait_raw(&mut rig.agent, "backup")?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(7) {
            pairs.iter_mut().try_for_each(Pair::talk)?;
            thread::sleep(Duration::from_millis(100));
        }
        ensure!(drain(&rig.agent.status()?).is_null());
        Ok(())
    });
}

/// The agent is killed while flows drain: the next one keeps to the deadline, and
/// carries out one that passed while nobody was there.
#[test]
fn a_restart_does_not_forget_the_deadline() {
    privileged(|| {
        let mut rig = raw_rig(Way::Edge, |config| {
            config["services"][1]["drain"] = json!("4s");
        })?;
        let (master, backup) = (Peer::on(&rig.lab.master)?, Peer::on(&rig.lab.backup)?);
        let mut pairs = left_at_the_backup(&mut rig, &backup)?;
        let begun = Instant::now();
        rig.agent.kill()?;
        while begun.elapsed() < Duration::from_secs(5) {
            // Nobody is there to end them.
            pairs.iter_mut().try_for_each(Pair::talk)?;
            thread::sleep(Duration::from_millis(100));
        }
        rig.agent.restart()?;
        for pair in &mut pairs {
            let told = end(&mut pair.client)?;
            ensure!(told == ErrorKind::ConnectionReset, "{told}");
        }
        let mut new = connect(&rig.lab.client, None, RAW)?;
        new.write_all(b"word")?;
        let mut word = [0; 4];
        master.accept()?.read_exact(&mut word)?;
        Ok(())
    });
}
