//! Processes of the node itself as clients. Their sockets are made in a cgroup of the test's
//! own, in the node's network namespace.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Agent, Cgroup, Lab, Namespace, Server, Way, agent,
    client::get,
    faults,
    foreign::cgroup_connect,
    kernel::{cgroup_programs, traces},
    privileged,
    topology::{MASTER_V4, MASTER_V6, PORT, VIP_BACKUP_V4, VIP_BACKUP_V6, VIP_V4, VIP_V6},
    wait::{generous, patience, until},
};
use nix::sys::socket::{AddressFamily, SockType};
use serde_json::{Value, json};
use socket2::Socket;

use crate::protocols::Echo;

/// The lab with an agent that steers the node's own processes, as far as they are of the
/// test's cgroup.
struct Own {
    // Dropped first, and the cgroup after all that is in it.
    agent: Agent,
    master: Server,
    backup: Server,
    cgroup: Arc<Cgroup>,
    lab: Lab,
}

/// An IPv4 address as IPv6 sockets know it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

/// The VIP in all three spellings.
fn vips() -> [SocketAddr; 3] {
    [VIP_V4, VIP_V6, mapped(VIP_V4)]
}

impl Own {
    fn new(change: impl FnOnce(&mut Value)) -> Result<Self> {
        let lab = Lab::new(Way::Edge)?;
        let cgroup = Arc::new(Cgroup::new()?);
        let master = Server::start(&lab, &lab.master)?;
        let backup = Server::start(&lab, &lab.backup)?;
        let mut config = agent::config(&lab);
        config["interfaces"]["node"] = json!("on");
        config["datapath"] = json!({"cgroup": cgroup.path()});
        config["services"][0]["listeners"] = json!([
            VIP_V4.to_string(),
            VIP_V6.to_string(),
            format!("{VIP_V4}/udp"),
            format!("{VIP_V6}/udp"),
        ]);
        change(&mut config);
        let mut agent = Agent::new(&lab, &config, &[])?;
        // Before Linux 5.14 it finds out its namespace by being below.
        agent.admit(&cgroup);
        agent.restart()?;
        agent.wait_selected("master")?;
        Ok(Self {
            agent,
            master,
            backup,
            cgroup,
            lab,
        })
    }

    /// A socket of a process of the cgroup and the node.
    fn socket(&self, to: SocketAddr, kind: SockType) -> Result<Socket> {
        self.socket_in(&self.lab.node, to, kind)
    }

    fn socket_in(&self, host: &Arc<Namespace>, to: SocketAddr, kind: SockType) -> Result<Socket> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let socket = Socket::from(self.cgroup.socket(host, family, kind)?);
        socket.set_read_timeout(Some(patience(Duration::from_secs(5))))?;
        Ok(socket)
    }

    fn try_connect(&self, to: SocketAddr) -> Result<std::io::Result<TcpStream>> {
        let socket = self.socket(to, SockType::Stream)?;
        let result = socket.connect_timeout(&to.into(), patience(Duration::from_secs(5)));
        Ok(result.map(|()| socket.into()))
    }

    fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.try_connect(to)?
            .with_context(|| format!("connecting to {to}"))
    }

    /// A datagram socket, connected or not.
    fn datagrams(&self, to: SocketAddr, connected: bool) -> Result<UdpSocket> {
        let socket = UdpSocket::from(self.socket(to, SockType::Datagram)?);
        if connected {
            socket
                .connect(to)
                .with_context(|| format!("connecting to {to}"))?;
        }
        Ok(socket)
    }

    /// What the agent counted.
    fn metric(&self, line: &str) -> Result<u64> {
        let page = self.agent.metrics_page("/metrics")?;
        let value = page.lines().find_map(|l| l.strip_prefix(line));
        let value = value.with_context(|| format!("no {line} in {page}"))?;
        Ok(value.trim().parse()?)
    }
}

/// Who answers on a connection that is kept.
fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: own\r\n\r\n")?;
    let mut answer = String::new();
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "closed after {answer:?}");
        answer += std::str::from_utf8(&buffer[..length])?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        if let Some(name @ ("master" | "backup")) = body {
            return Ok(name.to_owned());
        }
    }
}

/// Who answers a datagram, and where the answer seems to come from.
fn ask_by_datagram(
    socket: &UdpSocket,
    to: SocketAddr,
    connected: bool,
) -> Result<(String, SocketAddr)> {
    if connected {
        socket.send(b"!")?;
    } else {
        socket.send_to(b"!", to)?;
    }
    let mut buffer = [0; 64];
    let (length, from) = socket
        .recv_from(&mut buffer)
        .with_context(|| format!("an answer from {to}, connected: {connected}"))?;
    let name = String::from_utf8_lossy(&buffer[..length]).replace('!', "");
    Ok((name, from))
}

/// The application is told in its call, long before any timeout of the protocol.
fn is_told<T: std::fmt::Debug>(result: std::io::Result<T>, what: &str) -> Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::ConnectionAborted => Ok(()),
        other => bail!("{what}: {other:?}"),
    }
}

#[test]
fn connections_reach_who_is_selected_and_see_the_vip() {
    privileged(|| {
        let mut own = Own::new(|_| {})?;
        let echoes = [
            Echo::start(&own.lab.master, "master")?,
            Echo::start(&own.lab.backup, "backup")?,
        ];
        let all = |own: &Own, name: &str| -> Result<()> {
            for vip in vips() {
                let mut stream = own.connect(vip)?;
                ensure!(ask(&mut stream)? == name, "{vip}");
                ensure!(stream.peer_addr()? == vip, "{vip}: {}", stream.peer_addr()?);
                for connected in [true, false] {
                    let socket = own.datagrams(vip, connected)?;
                    for _ in 0..3 {
                        let (answer, from) = ask_by_datagram(&socket, vip, connected)?;
                        ensure!(answer == name, "{vip}: {answer} answers");
                        ensure!(from == vip, "{vip}: from {from}");
                    }
                    if connected {
                        ensure!(socket.peer_addr()? == vip);
                    }
                }
            }
            Ok(())
        };
        all(&own, "master")?;
        // An instance's own listener, and its own address.
        for to in [VIP_BACKUP_V4, VIP_BACKUP_V6, mapped(VIP_BACKUP_V4)] {
            let mut stream = own.connect(to)?;
            ensure!(ask(&mut stream)? == "backup" && stream.peer_addr()? == to);
        }
        for (vip, to) in vips()
            .into_iter()
            .zip([MASTER_V4, MASTER_V6, mapped(MASTER_V4)])
        {
            let mut stream = own.connect(to)?;
            ensure!(ask(&mut stream)? == "master" && stream.peer_addr()? == to);
            // A socket that goes there by itself after it was steered.
            let socket = own.datagrams(vip, true)?;
            socket.connect(to)?;
            ensure!(socket.peer_addr()? == to);
            ensure!(ask_by_datagram(&socket, to, true)?.1 == to);
        }
        // One of TCP and two of UDP in each spelling.
        let status = own.agent.status()?;
        let traffic = &agent::find_endpoint(&status, "master")?["traffic"];
        ensure!(traffic["flows_opened"].as_u64() >= Some(9), "{traffic}");
        ensure!(
            traffic["forward_packets"] == 0,
            "no packet is touched: {traffic}"
        );
        until("the sockets to be closed", || {
            let status = own.agent.status()?;
            let traffic = &agent::find_endpoint(&status, "master")?["traffic"];
            ensure!(traffic["flows_closed"].as_u64() >= Some(6), "{traffic}");
            Ok(())
        })?;
        own.master.kill()?;
        own.agent.wait_selected("backup")?;
        all(&own, "backup")?;
        drop(echoes);
        Ok(())
    });
}

/// They go straight to the endpoint, however others' packets are forwarded: its own address
/// is no listener then, and nothing is sent on from here.
#[test]
fn the_forwarding_of_others_does_not_matter() {
    privileged(|| {
        for forward in ["full-nat", "dsr"] {
            let own = Own::new(|config| {
                config["services"][0]["forward"] = json!(forward);
                config["datapath"]["source"] = json!(["10.99.0.1", "fd00:99::1"]);
            })?;
            let _echo = Echo::start(&own.lab.master, "master")?;
            for vip in vips() {
                let mut stream = own.connect(vip)?;
                ensure!(ask(&mut stream)? == "master", "{forward} {vip}");
                ensure!(stream.peer_addr()? == vip, "{forward} {vip}");
                for connected in [true, false] {
                    let socket = own.datagrams(vip, connected)?;
                    let (answer, from) = ask_by_datagram(&socket, vip, connected)?;
                    ensure!(answer == "master" && from == vip, "{forward} {vip}: {from}");
                }
            }
            // A socket that goes straight to the endpoint after it was steered to it.
            let socket = own.datagrams(VIP_V4, true)?;
            socket.connect(MASTER_V4)?;
            let (_, from) = ask_by_datagram(&socket, MASTER_V4, true)?;
            ensure!(
                from == MASTER_V4 && socket.peer_addr()? == MASTER_V4,
                "{forward}"
            );
        }
        Ok(())
    });
}

/// The master hangs: its kernel acknowledges and nobody answers.
#[test]
fn connections_of_a_lost_endpoint_end_at_once() {
    privileged(|| {
        let mut own = Own::new(|_| {})?;
        let _echo = Echo::start(&own.lab.backup, "backup")?;
        let mut streams = Vec::new();
        let mut sockets = Vec::new();
        for vip in vips() {
            let mut stream = own.connect(vip)?;
            ensure!(ask(&mut stream)? == "master");
            stream.set_read_timeout(Some(generous()))?;
            streams.push(stream);
            let socket = own.datagrams(vip, true)?;
            socket.set_read_timeout(Some(generous()))?;
            sockets.push(socket);
        }
        // Nobody's business: straight to the master, and by its own listener.
        let mut direct = own.connect(MASTER_V4)?;
        let mut other = own.connect(lab::topology::VIP_MASTER_V4)?;
        for stream in [&mut direct, &mut other] {
            ensure!(ask(stream)? == "master");
        }
        let outside = own.lab.node.run(|| Ok(TcpStream::connect(MASTER_V4)?))?;
        own.master.stop()?;
        own.agent.wait_selected("backup")?;
        for (stream, vip) in streams.iter_mut().zip(vips()) {
            is_told(stream.read(&mut [0]), &vip.to_string())?;
        }
        for (socket, vip) in sockets.iter_mut().zip(vips()) {
            is_told(socket.recv(&mut [0]), &format!("{vip}/udp"))?;
            // The same socket, as the application connects it again.
            socket.connect(vip)?;
            ensure!(ask_by_datagram(socket, vip, true)?.0 == "backup");
        }
        own.master.cont()?;
        for stream in [&mut direct, &mut other] {
            ensure!(
                ask(stream)? == "master",
                "it had nothing to do with the service"
            );
        }
        outside.set_nonblocking(true)?;
        let error = (&outside).read(&mut [0]).expect_err("nothing was asked");
        ensure!(error.kind() == ErrorKind::WouldBlock, "{error}");
        ensure!(own.metric("probe_node_sockets_ended_total{outcome=\"ended\"}")? == 6);
        ensure!(own.metric("probe_node_sockets_ended_total{outcome=\"refused\"}")? == 0);
        Ok(())
    });
}

/// The master is not there at all: a SYN is not answered, and `connect` waits.
#[test]
fn a_connect_that_waits_ends_at_once() {
    privileged(|| {
        let mut own = Own::new(|config| {
            // Long enough for a connect to begin.
            let inter = patience(Duration::from_millis(500)).as_millis();
            config["services"][0]["check"]["inter"] = json!(format!("{inter}ms"));
        })?;
        faults::blackhole(&own.lab.master)?;
        let mut waiting = Vec::new();
        for vip in vips() {
            let socket = own.socket(vip, SockType::Stream)?;
            // A SYN is repeated for more than two minutes.
            waiting.push(thread::spawn(move || socket.connect(&vip.into())));
        }
        own.agent.wait_selected("backup")?;
        for (thread, vip) in waiting.into_iter().zip(vips()) {
            let result = thread.join().expect("connect does not panic");
            is_told(result, &vip.to_string())?;
        }
        for vip in vips() {
            ensure!(ask(&mut own.connect(vip)?)? == "backup");
        }
        Ok(())
    });
}

#[test]
fn connections_of_a_lost_endpoint_are_kept_if_the_service_says_so() {
    privileged(|| {
        let mut own = Own::new(|config| {
            config["services"][0]["on_marked_down"] = json!("keep");
        })?;
        let mut stream = own.connect(VIP_V4)?;
        ensure!(ask(&mut stream)? == "master");
        own.master.stop()?;
        own.agent.wait_selected("backup")?;
        ensure!(ask(&mut own.connect(VIP_V4)?)? == "backup");
        own.master.cont()?;
        ensure!(ask(&mut stream)? == "master", "it goes on");
        ensure!(own.metric("probe_node_sockets_ended_total{outcome=\"ended\"}")? == 0);
        Ok(())
    });
}

#[test]
fn connections_drain_after_a_fail_back() {
    privileged(|| {
        let mut own = Own::new(|config| {
            let drain = patience(Duration::from_secs(1)).as_millis();
            config["services"][0]["drain"] = json!(format!("{drain}ms"));
        })?;
        own.master.kill()?;
        own.agent.wait_selected("backup")?;
        let mut stream = own.connect(VIP_V4)?;
        ensure!(ask(&mut stream)? == "backup");
        own.master.restart()?;
        own.agent.wait_selected("master")?;
        stream.set_read_timeout(Some(generous()))?;
        is_told(stream.read(&mut [0]), "drained")?;
        ensure!(ask(&mut own.connect(VIP_V4)?)? == "master");
        Ok(())
    });
}

#[test]
fn who_is_refused_is_told_at_once() {
    privileged(|| {
        let mut own = Own::new(|config| {
            config["services"][0]["all_down"] = json!("refuse");
        })?;
        own.master.kill()?;
        own.backup.kill()?;
        own.agent.wait("the service to refuse", |status| {
            let selection = &status["services"][0]["selection"];
            ensure!(selection["kind"] == "refuse", "{selection}");
            Ok(())
        })?;
        let refused = |result: std::io::Result<()>, what: &str| match result {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => bail!("{what}: {other:?}"),
        };
        let mut kept = Vec::new();
        for vip in vips() {
            refused(own.try_connect(vip)?.map(drop), &vip.to_string())?;
            // Of a socket that is bound to an address from which the loopback one is far.
            let bound = own.socket(vip, SockType::Stream)?;
            let from: SocketAddr = match vip {
                SocketAddr::V4(_) => "10.2.0.1:0".parse()?,
                SocketAddr::V6(_) if vip == VIP_V6 => "[fd00:2::1]:0".parse()?,
                SocketAddr::V6(_) => "[::ffff:10.2.0.1]:0".parse()?,
            };
            bound.bind(&from.into())?;
            refused(bound.connect(&vip.into()), &format!("{vip} from {from}"))?;
            kept.push(bound);
            // From an interface there is no way to the loopback address.
            let bound = own.socket(vip, SockType::Stream)?;
            bound.bind_device(Some(b"ep-m"))?;
            for (socket, what) in [
                (bound, "bound to an interface"),
                (own.socket(vip, SockType::Datagram)?, "by datagrams"),
            ] {
                let error = socket.connect(&vip.into()).err().context("refused")?;
                ensure!(
                    error.kind() == ErrorKind::PermissionDenied,
                    "{vip} {what}: {error}"
                );
            }
            let error = own.datagrams(vip, false)?.send_to(b"!", vip);
            let error = error.err().context("refused")?;
            ensure!(
                error.kind() == ErrorKind::PermissionDenied,
                "{vip}: {error}"
            );
        }
        let reasons = own.agent.status()?["datapath"]["reasons"].clone();
        ensure!(reasons["refused"] == 9, "{reasons}");
        ensure!(reasons["datagram_refused"] == 6, "{reasons}");
        own.master.restart()?;
        own.agent.wait_selected("master")?;
        for (socket, vip) in kept.into_iter().zip(vips()) {
            // The same sockets, tried again.
            socket.connect(&vip.into())?;
            ensure!(ask(&mut socket.into())? == "master");
        }
        Ok(())
    });
}

/// Accepts one connection at the VIP, which is an address of the host's own.
fn at_home(host: &Arc<Namespace>) -> Result<TcpListener> {
    host.ip([
        format!("addr add {}/32 dev lo", VIP_V4.ip()),
        format!("-6 addr add {}/128 dev lo nodad", VIP_V6.ip()),
    ])?;
    host.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))
}

#[test]
fn others_are_left_alone() {
    privileged(|| {
        let own = Own::new(|_| {})?;
        // Here the VIP is an address of the node, where somebody listens.
        let _listener = at_home(&own.lab.node)?;
        let stranger = Namespace::new("stranger")?;
        let _other = at_home(&stranger)?;
        for vip in vips() {
            let mut steered = own.connect(vip)?;
            ensure!(
                ask(&mut steered)? == "master",
                "{vip}: a process of the node"
            );
            // Of the node, and of another cgroup.
            let peer = own.lab.node.run(|| {
                let stream = TcpStream::connect(vip)?;
                Ok((stream.peer_addr()?, stream.local_addr()?))
            })?;
            ensure!(peer.0 == vip && peer.1.ip() == vip.ip(), "{vip}: {peer:?}");
            // Of the cgroup, and of another namespace: so is a pod.
            let socket = own.socket_in(&stranger, vip, SockType::Stream)?;
            socket.connect_timeout(&vip.into(), patience(Duration::from_secs(5)))?;
            let peer = TcpStream::from(socket).local_addr()?;
            ensure!(peer.ip() == vip.ip(), "{vip}: {peer:?}");
        }
        // A pod is steered at its link as ever.
        let answer = get(&own.lab.client, VIP_V4, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "master"));
        Ok(())
    });
}

#[test]
fn an_agent_that_ends_leaves_it_in_place_and_the_next_takes_over() {
    privileged(|| {
        let mut own = Own::new(|_| {})?;
        let mut streams = Vec::new();
        for gently in [true, false] {
            let mut stream = own.connect(VIP_V4)?;
            ensure!(ask(&mut stream)? == "master");
            streams.push(stream);
            if gently {
                let (status, printed) = own.agent.terminate()?;
                ensure!(status.success(), "{status}: {printed}");
            } else {
                own.agent.kill()?;
            }
            // Nobody is there.
            let mut stream = own.connect(VIP_V6)?;
            ensure!(ask(&mut stream)? == "master" && stream.peer_addr()? == VIP_V6);
            streams.push(stream);
            own.agent.restart()?;
            let printed = own.agent.printed();
            ensure!(printed.contains("inherited=true"), "{printed}");
            ensure!(cgroup_programs(&own.cgroup.path())? == 9);
        }
        for stream in &mut streams {
            ensure!(ask(stream)? == "master");
            stream.set_read_timeout(Some(generous()))?;
        }
        ensure!(streams[0].peer_addr()? == VIP_V4);
        // What was connected before is known to the next agent.
        own.master.stop()?;
        own.agent.wait_selected("backup")?;
        for stream in &mut streams {
            is_told(stream.read(&mut [0]), "an old connection")?;
        }
        Ok(())
    });
}

#[test]
fn nothing_is_left_behind() {
    privileged(|| {
        let mut own = Own::new(|_| {})?;
        let path = own.cgroup.path();
        let steered = |own: &Own| -> Result<bool> { Ok(own.try_connect(VIP_V4)?.is_ok()) };
        ensure!(steered(&own)? && cgroup_programs(&path)? == 9);
        let mut stream = own.connect(VIP_V4)?;

        // Another configuration, of the same agent.
        own.agent.kill()?;
        let mut config = agent::config(&own.lab);
        config["interfaces"]["node"] = json!("off");
        let mut off = Agent::start(&own.lab, &config)?;
        ensure!(cgroup_programs(&path)? == 0);
        ensure!(!steered(&own)?);
        ensure!(off.status()?["datapath"]["processes"]["state"] == "off");
        off.kill()?;
        own.agent = Agent::new(
            &own.lab,
            &{
                config["interfaces"]["node"] = json!("on");
                config["datapath"] = json!({"cgroup": path});
                config
            },
            &[],
        )?;
        own.agent.admit(&own.cgroup);
        own.agent.restart()?;
        ensure!(steered(&own)? && cgroup_programs(&path)? == 9);
        // What was connected goes on; nobody knows any more where it wanted to.
        ensure!(ask(&mut stream)? == "master" && stream.peer_addr()? == MASTER_V4);

        own.agent.kill()?;
        let (code, _, stderr) = own.agent.probe(&["detach"])?;
        ensure!(code == 0, "{code}: {stderr}");
        ensure!(cgroup_programs(&path)? == 0);
        ensure!(!steered(&own)?);
        let left = traces(&own.lab.node)?;
        ensure!(
            !left.iter().any(|trace| trace.contains("probe")),
            "{left:#?}"
        );
        Ok(())
    });
}

#[test]
fn what_is_missing_is_said() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let cgroup = Cgroup::new()?;
        let _master = Server::start(&lab, &lab.master)?;
        let mut config = agent::config(&lab);
        config["interfaces"]["node"] = json!("auto");
        let no_cgroup = lab.file("");
        let no_cgroup = no_cgroup.to_string_lossy().trim_end_matches('/').to_owned();
        config["datapath"] = json!({"cgroup": no_cgroup});
        let mut agent = Agent::start(&lab, &config)?;
        let own = agent.status()?["datapath"]["processes"].clone();
        let reason = own["reason"].as_str().unwrap_or_default();
        ensure!(
            own["state"] == "missing" && reason.contains("datapath.cgroup"),
            "{own}"
        );
        ensure!(agent.printed().contains(reason), "{}", agent.printed());
        ensure!(
            agent
                .metrics_page("/metrics")?
                .contains("probe_node_processes{state=\"missing\"} 1")
        );
        ensure!(agent.order(&["status"])?.contains("are not steered: "));
        // The rest is steered.
        ensure!(get(&lab.client, VIP_V4, "/")?.is_ok());
        agent.terminate()?;

        config["interfaces"]["node"] = json!("on");
        let mut agent = Agent::new(&lab, &config, &[])?;
        agent.launch()?;
        let (status, printed) = agent.wait_end()?;
        ensure!(
            status.code() == Some(1) && printed.contains("datapath.cgroup"),
            "{printed}"
        );

        // An agent above the cgroup: it has to be told its namespace by the kernel.
        config["interfaces"]["node"] = json!("auto");
        config["datapath"] = json!({"cgroup": cgroup.path()});
        let mut agent = Agent::start(&lab, &config)?;
        let own = agent.status()?["datapath"]["processes"].clone();
        if own["state"] == "missing" {
            let reason = own["reason"].as_str().unwrap_or_default();
            ensure!(reason.contains("5.14"), "{own}");
            ensure!(cgroup_programs(&cgroup.path())? == 0);
        } else {
            ensure!(own["state"] == "attached", "{own}");
            ensure!(
                agent
                    .order(&["status"])?
                    .contains("processes of the node below cgroup ")
            );
        }
        agent.kill()?;
        Ok(())
    });
}

#[test]
fn beside_programs_of_others() {
    privileged(|| {
        for only in [false, true] {
            let lab = Lab::new(Way::Edge)?;
            let cgroup = Arc::new(Cgroup::new()?);
            cgroup_connect(&cgroup.path(), only)?;
            let _master = Server::start(&lab, &lab.master)?;
            let mut config = agent::config(&lab);
            config["interfaces"]["node"] = json!("auto");
            config["datapath"] = json!({"cgroup": cgroup.path()});
            let mut agent = Agent::new(&lab, &config, &[])?;
            agent.admit(&cgroup);
            agent.restart()?;
            let processes = agent.status()?["datapath"]["processes"].clone();
            if only {
                let reason = processes["reason"].as_str().unwrap_or_default();
                ensure!(reason.contains("BPF_F_ALLOW_MULTI"), "{processes}");
                ensure!(cgroup_programs(&cgroup.path())? == 1);
            } else {
                ensure!(processes["state"] == "attached", "{processes}");
                ensure!(cgroup_programs(&cgroup.path())? == 10);
                let family = AddressFamily::Inet;
                let socket = cgroup.socket(&lab.node, family, SockType::Stream)?;
                let socket = Socket::from(socket);
                socket.connect_timeout(&VIP_V4.into(), patience(Duration::from_secs(5)))?;
                ensure!(ask(&mut socket.into())? == "master");
            }
            agent.kill()?;
        }
        Ok(())
    });
}

#[test]
fn several_endpoints_share_them() {
    privileged(|| {
        let spread = |config: &mut Value| {
            for endpoint in config["services"][0]["endpoints"]
                .as_array_mut()
                .into_iter()
                .flatten()
            {
                endpoint["tier"] = json!(0);
            }
        };
        for keeps in [false, true] {
            let lab = Lab::new(Way::Edge)?;
            let cgroup = Arc::new(Cgroup::new()?);
            let master = Server::start(&lab, &lab.master)?;
            let backup = Server::start(&lab, &lab.backup)?;
            let mut config = agent::config(&lab);
            spread(&mut config);
            config["interfaces"]["node"] = json!("on");
            config["datapath"] = json!({"cgroup": cgroup.path()});
            if keeps {
                config["services"][0]["affinity"] = json!({"client_ip": "1h"});
            }
            let mut agent = Agent::new(&lab, &config, &[])?;
            agent.admit(&cgroup);
            agent.restart()?;
            agent.wait_state("master", "up")?;
            agent.wait_state("backup", "up")?;
            agent.wait("both to serve", |status| {
                let selection = &status["services"][0]["selection"];
                ensure!(selection["kind"] == "spread", "{selection}");
                Ok(())
            })?;
            let own = Own {
                agent,
                master,
                backup,
                cgroup,
                lab,
            };
            let mut by = [0u32; 2];
            for i in 0..40 {
                let vip = vips()[i % 3];
                let name = ask(&mut own.connect(vip)?)?;
                by[usize::from(name == "backup")] += 1;
            }
            if keeps {
                // Each family has its memory, and the node the same place in both.
                ensure!(by.contains(&40), "one node is one client: {by:?}");
            } else {
                // That one of 40 falls ten times or less is less than one in a thousand.
                ensure!(by.iter().all(|count| *count > 4), "{by:?}");
            }
        }
        Ok(())
    });
}

/// Says which cgroup is its own and waits to be killed; run by [`a_cgroup_of_the_lab_vanishes`].
const VICTIM: &str = "LAB_CGROUP_VICTIM";
const MADE: &str = "the cgroup is ";

/// What the tests do to the machine: nothing that stays.
#[test]
fn a_cgroup_of_the_lab_vanishes() {
    privileged(|| {
        let made = Cgroup::new()?;
        let host = Namespace::new("host")?;
        let socket = made.socket(&host, AddressFamily::Inet, SockType::Stream)?;
        let name = |cgroup: &Cgroup| -> Result<String> {
            let link = std::fs::read_link(cgroup.path())?;
            let name = link.file_name().context("a name")?;
            Ok(name.to_string_lossy().into_owned())
        };
        if std::env::var_os(VICTIM).is_some() {
            println!("{MADE}{}", name(&made)?);
            thread::sleep(generous());
            bail!("nobody killed the victim");
        }
        // Beside another one, whose folder above is the same.
        let other = Cgroup::new()?;
        let above = other.path().join("..");
        let first = above.join(name(&made)?);
        ensure!(first.exists());
        drop(made);
        drop(socket);
        ensure!(!first.exists(), "{} is still there", first.display());

        let mut victim = Command::new(std::env::current_exe()?);
        victim
            .args([
                "--exact",
                "own::a_cgroup_of_the_lab_vanishes",
                "--nocapture",
            ])
            .env(VICTIM, "1")
            .stdout(Stdio::piped());
        let mut victim = victim.spawn().context("cannot start the victim")?;
        let output = victim.stdout.take().context("piped")?;
        let second = BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| Some(above.join(line.split_once(MADE)?.1)));
        let seen = second.as_ref().is_some_and(|second| second.exists());
        victim.kill()?;
        victim.wait()?;
        let second = second.context("the victim made none")?;
        ensure!(seen, "{}", second.display());
        until("the victim's cgroup to be gone", || {
            ensure!(!second.exists());
            Ok(())
        })
    });
}
