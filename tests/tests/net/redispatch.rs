//! Connections that the selected endpoint refuses go to the next one, in the datapath: checks
//! are a minute apart here, so the selection stays where it is.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use lab::{
    Agent, Lab, Server, Way, agent,
    capture::Capture,
    client::{Failure, Load, Long, Plan, Sample, get},
    link::complete_checksums,
    privileged,
    topology::{BACKUP_V4, BACKUP_V6, CLIENT_V4, CLIENT_V6, MASTER_V4, VIP_V4, VIP_V6},
    wait::patience,
};
use serde_json::{Value, json};

use crate::{
    full_nat::SOURCES,
    rig::{Rig, all_by},
};

/// Nothing but the datapath notices anything.
fn quiet(config: &mut Value) {
    let service = &mut config["services"][0];
    service["check"]["inter"] = json!("60s");
    service["sentinel"] = json!("off");
    service["observe"] = json!("off");
}

/// A counter of the agent's.
pub fn counted(agent: &Agent, reason: &str) -> Result<u64> {
    let page = agent.metrics_page("/metrics")?;
    let wanted = format!("reason=\"{reason}\"");
    let line = page.lines().find(|line| line.contains(&wanted));
    let line = line.with_context(|| format!("no {reason} on the page"))?;
    let number = line.rsplit(' ').next().context("a number")?;
    Ok(number.parse::<f64>()? as u64)
}

/// So many connections in either family, all to this server.
fn all_reach(rig: &Rig, count: usize, name: &str) -> Result<()> {
    for vip in [VIP_V4, VIP_V6] {
        let load = Load::start(&rig.lab.client, Plan::steady(vip));
        load.run_for(count)?;
        all_by(&load.stop()?, name).with_context(|| format!("{vip}"))?;
    }
    Ok(())
}

fn refused_connections_reach_the_backup(way: Way) -> Result<()> {
    let mut rig = Rig::with(way, quiet)?;
    all_reach(&rig, 20, "master")?;
    rig.master.kill()?;
    all_reach(&rig, 100, "backup")?;
    let long = Long::open(&rig.lab.client, VIP_V4, Duration::from_millis(10))?;
    all_reach(&rig, 20, "backup")?;
    long.check_alive()?;
    ensure!(
        rig.agent.switches()? == 0,
        "the selection moved, so this test says nothing"
    );
    let redispatched = counted(&rig.agent, "redispatched")?;
    ensure!(redispatched > 240, "{redispatched} were sent on");
    // The master is back, and nobody decided anything: new connections are its own.
    rig.master.restart()?;
    all_reach(&rig, 20, "master")?;
    long.check_alive()
}

#[test]
fn at_the_edge() {
    privileged(|| refused_connections_reach_the_backup(Way::Edge));
}

#[test]
fn among_pods() {
    privileged(|| refused_connections_reach_the_backup(Way::EdgeAmongPods));
}

#[test]
fn from_outside() {
    privileged(|| refused_connections_reach_the_backup(Way::Uplink));
}

/// Refusals come to the node itself there, by TC and by XDP.
fn with_full_nat(way: Way) -> Result<()> {
    let mut rig = Rig::with(way, |config| {
        quiet(config);
        config["datapath"]["source"] = json!(SOURCES);
        config["services"][0]["forward"] = json!("full-nat");
        if way == Way::Uplink {
            config["interfaces"] = json!({"uplink": ["up0", "ep-*"]});
        }
    })?;
    if way == Way::Uplink {
        for host in [&rig.lab.master, &rig.lab.backup] {
            complete_checksums(host, "eth0")?;
        }
    }
    all_reach(&rig, 20, "master")?;
    rig.master.kill()?;
    all_reach(&rig, 100, "backup")?;
    let long = Long::open(&rig.lab.client, VIP_V4, Duration::from_millis(10))?;
    rig.master.restart()?;
    all_reach(&rig, 20, "master")?;
    long.check_alive()?;
    ensure!(rig.agent.switches()? == 0, "the selection moved");
    Ok(())
}

#[test]
fn full_nat_among_pods() {
    privileged(|| with_full_nat(Way::EdgeAmongPods));
}

#[test]
fn full_nat_by_uplinks() {
    privileged(|| with_full_nat(Way::Uplink));
}

#[test]
fn without_an_agent() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, quiet)?;
        let pid = rig.agent.pid().context("it runs")?;
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
        rig.master.kill()?;
        all_reach(&rig, 50, "backup")?;
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
        rig.agent.kill()?;
        all_reach(&rig, 50, "backup")?;
        let long = Long::open(&rig.lab.client, VIP_V4, Duration::from_millis(10))?;
        rig.master.restart()?;
        all_reach(&rig, 20, "master")?;
        long.check_alive()
    });
}

#[test]
fn when_all_refuse_the_client_hears_of_it() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, quiet)?;
        rig.master.kill()?;
        rig.backup.kill()?;
        for vip in [VIP_V4, VIP_V6] {
            for _ in 0..20 {
                let failure = get(&rig.lab.client, vip, "/")?.err();
                ensure!(failure == Some(Failure::Refused), "{vip}: {failure:?}");
            }
        }
        ensure!(counted(&rig.agent, "redispatched")? == 40, "once each");
        rig.backup.restart()?;
        all_reach(&rig, 20, "backup")
    });
}

#[test]
fn a_single_writer_has_no_stand_in() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, |config| {
            quiet(config);
            config["services"][0]["single_writer"] = json!(true);
        })?;
        rig.master.kill()?;
        for _ in 0..5 {
            let failure = get(&rig.lab.client, VIP_V4, "/")?.err();
            ensure!(failure == Some(Failure::Refused), "{failure:?}");
        }
        ensure!(counted(&rig.agent, "redispatched")? == 0, "sent on");
        Ok(())
    });
}

/// Two masters that share, and a backup: whoever of them is dead, somebody answers.
#[test]
fn in_a_tier_the_next_one_is_asked() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let third = lab.endpoint("t", 4)?;
        let mut server = Server::start(&lab, &third)?;
        let master = Server::start(&lab, &lab.master)?;
        let backup = Server::start(&lab, &lab.backup)?;
        let mut config = agent::config(&lab);
        quiet(&mut config);
        let service = &mut config["services"][0];
        let address = Lab::addresses(4).map(|address| address.to_string());
        let third = json!({"name": "t", "address": address, "tier": 0});
        let endpoints = service["endpoints"].as_array_mut().expect("there are two");
        endpoints[1]["tier"] = json!(1);
        endpoints.push(third);
        let mut agent = Agent::start(&lab, &config)?;
        for endpoint in ["master", "backup", "t"] {
            agent.wait_state(endpoint, "up")?;
        }
        let mut rig = Rig {
            agent,
            master,
            backup,
            lab,
        };
        server.kill()?;
        all_reach(&rig, 40, "master")?;
        rig.master.kill()?;
        all_reach(&rig, 40, "backup")?;
        ensure!(rig.agent.switches()? == 0, "the selection moved");
        Ok(())
    });
}

/// The TCP header of a SYN between these addresses, and what carries it.
fn syn(frame: &[u8], src: SocketAddr, dst: SocketAddr) -> Option<TcpHeader> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let ends: [IpAddr; 2] = match packet.net? {
        etherparse::NetSlice::Ipv4(ip) => [
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ],
        etherparse::NetSlice::Ipv6(ip) => [
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ],
        _ => return None,
    };
    let TransportSlice::Tcp(tcp) = packet.transport? else {
        return None;
    };
    let header = tcp.to_header();
    let opens = header.syn && !header.ack;
    (opens && ends == [src.ip(), dst.ip()] && header.destination_port == dst.port())
        .then_some(header)
}

/// Whatever the client's kernel asks for, the backup is asked for the same.
fn the_syn_keeps_its_options(sysctls: &[(&str, &str)]) -> Result<()> {
    let lab = Lab::new(Way::Edge)?;
    lab.client.sysctl(sysctls)?;
    let mut rig = Rig::in_lab(lab, quiet)?;
    rig.master.kill()?;
    for (vip, client, backup) in [
        (VIP_V4, CLIENT_V4, BACKUP_V4),
        (VIP_V6, CLIENT_V6, BACKUP_V6),
    ] {
        let client = SocketAddr::new(client, 0);
        let link = rig.lab.client_link();
        let first = Capture::open(&rig.lab.node, link)?;
        let second = Capture::open(&rig.lab.node, rig.lab.endpoint_links()[1])?;
        let answer = get(&rig.lab.client, vip, "/")?.expect("the backup answers");
        ensure!(answer.body == "backup", "{} answers", answer.body);
        let sent = first.wait("the client's SYN", |frame| {
            syn(frame, client, vip).is_some()
        })?;
        let got = second.wait("the backup's SYN", |frame| {
            syn(frame, client, backup).is_some()
        })?;
        let sent = syn(&sent, client, vip).context("it was one")?;
        let got = syn(&got, client, backup).context("it was one")?;
        ensure!(
            (got.sequence_number, got.window_size, got.source_port)
                == (sent.sequence_number, sent.window_size, sent.source_port),
            "{sent:?} became {got:?}"
        );
        ensure!(
            (got.ece, got.cwr) == (sent.ece, sent.cwr)
                && got.options.as_slice() == sent.options.as_slice(),
            "{sent:?} became {got:?}"
        );
    }
    Ok(())
}

#[test]
fn options_stay_as_they_were() {
    privileged(|| {
        the_syn_keeps_its_options(&[])?;
        // Without timestamps and selective acknowledgments, without window scaling, and with ECN.
        let none = [
            ("ipv4/tcp_timestamps", "0"),
            ("ipv4/tcp_sack", "0"),
            ("ipv4/tcp_window_scaling", "0"),
        ];
        the_syn_keeps_its_options(&none)?;
        the_syn_keeps_its_options(&[("ipv4/tcp_timestamps", "0"), ("ipv4/tcp_ecn", "1")])
    });
}

/// Refusals from nobody: as if by the master, with numbers that a blind attacker guesses, and by
/// others with the right one. They reach the backup's host, which forges them.
#[test]
fn forged_refusals_move_nobody() {
    privileged(|| {
        let rig = Rig::with(Way::Edge, quiet)?;
        let wire = Capture::open(&rig.lab.backup, "eth0")?;
        let stop = Arc::new(AtomicBool::new(false));
        let forger = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || -> Result<u64> {
                let mut sent = 0;
                let [IpAddr::V4(master), IpAddr::V4(client)] = [MASTER_V4.ip(), CLIENT_V4] else {
                    bail!("IPv4 only");
                };
                // Every port of the client's, many numbers, for as long as the load runs.
                for n in 0..2_000_000_u32 {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let mut frame = Vec::new();
                    let port = 32_768 + (n % 28_232) as u16;
                    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x32], [2, 0, 0, 0, 0, 0x31])
                        .ipv4(master.octets(), client.octets(), 64)
                        .tcp(MASTER_V4.port(), port, 0, 0)
                        .rst()
                        .ack(n.wrapping_mul(0x9e37_79b1))
                        .write(&mut frame, &[])?;
                    if wire.inject(&frame).is_ok() {
                        sent += 1;
                    }
                    if n % 64 == 0 {
                        std::thread::sleep(Duration::from_micros(500));
                    }
                }
                Ok(sent)
            })
        };
        let long = Long::open(&rig.lab.client, VIP_V4, Duration::from_millis(10))?;
        let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
        load.run_for(300)?;
        all_by(&load.stop()?, "master")?;
        long.check_alive()?;
        stop.store(true, Ordering::Relaxed);
        let sent = forger.join().expect("it does not panic")?;
        ensure!(sent > 1000, "only {sent} were forged");
        ensure!(
            counted(&rig.agent, "redispatched")? == 0,
            "one was believed"
        );
        let signals = signals(&rig)?;
        ensure!(signals == 0, "{signals} refusals were believed");
        Ok(())
    });
}

/// What the agent heard of refusals by the master.
fn signals(rig: &Rig) -> Result<u64> {
    let status = rig.agent.status()?;
    let master = agent::find_endpoint(&status, "master")?;
    let signals = master.pointer("/signals/endpoint_refused");
    signals.and_then(Value::as_u64).context("no signals")
}

/// A client that always comes from one port, as fast as it can.
#[test]
fn a_port_is_used_again_at_once() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, quiet)?;
        rig.master.kill()?;
        for (vip, from) in [(VIP_V4, CLIENT_V4), (VIP_V6, CLIENT_V6)] {
            for n in 0..50 {
                let body = rig
                    .lab
                    .client
                    .run(|| from_one_port(SocketAddr::new(from, 40_000), vip));
                let body = body.with_context(|| format!("connection {n} to {vip}"))?;
                ensure!(body.ends_with("backup"), "{body}");
            }
        }
        ensure!(counted(&rig.agent, "redispatched")? >= 100, "not sent on");
        Ok(())
    });
}

/// One request; the connection ends by a RST, so that nobody waits for anything.
fn from_one_port(from: SocketAddr, to: SocketAddr) -> Result<String> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(to),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&to.into(), patience(Duration::from_secs(5)))?;
    socket.set_read_timeout(Some(patience(Duration::from_secs(5))))?;
    let mut stream = std::net::TcpStream::from(socket);
    write!(stream, "GET / HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while !answer.ends_with(b"backup") && !answer.ends_with(b"master") {
        let read = stream.read(&mut piece)?;
        ensure!(
            read > 0,
            "it ends after {:?}",
            String::from_utf8_lossy(&answer)
        );
        answer.extend(&piece[..read]);
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The master comes and goes, and the agent follows: nobody is ever refused.
#[test]
fn nobody_is_refused_while_the_master_comes_and_goes() {
    privileged(|| {
        let mut rig = Rig::with(Way::Edge, |config| {
            config["services"][0]["failback"] =
                json!({"mode": "auto", "hold": "0s", "max_hold": "0s"});
        })?;
        let load = Load::start(&rig.lab.client, Plan::steady(VIP_V4));
        for _ in 0..5 {
            load.run_for(30)?;
            rig.master.kill()?;
            load.run_for(30)?;
            rig.agent.wait_selected("backup")?;
            rig.master.restart()?;
            rig.agent.wait_selected("master")?;
        }
        load.run_for(30)?;
        let samples = load.stop()?;
        // What the server's kernel had taken when it was killed is cut off, and nobody can say it
        // again; a busy machine takes its time to kill.
        let cut_off = [Err(Failure::Reset), Err(Failure::Closed)];
        let lost = |sample: &&Sample| sample.outcome.is_err() && !cut_off.contains(&sample.outcome);
        let lost: Vec<_> = samples.iter().filter(lost).collect();
        ensure!(
            lost.is_empty(),
            "{} of {}: {lost:?}",
            lost.len(),
            samples.len()
        );
        let answered = samples.iter().filter(|sample| sample.outcome.is_ok());
        ensure!(answered.count() > samples.len() / 2, "most are cut off");
        Ok(())
    });
}
