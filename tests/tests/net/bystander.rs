//! What is not for a listener passes as if nobody were there, bit for bit.
//!
//! The frames are sent twice, without an agent and with one, and captured behind
//! the node. The two captures are compared whole.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep, ip_number};
use lab::{
    Agent, Lab, Server, Way, agent,
    capture::Capture,
    client::{Load, Long, Plan},
    link::mac,
    privilege::with_tcx,
    privileged,
    topology::{
        BACKUP_V4, CLIENT_V4, CLIENT_V6, MASTER_V4, MASTER_V6, PORT, VIP_MASTER_V4, VIP_MASTER_V6,
        VIP_V4, VIP_V6,
    },
    wait::patience,
};

use crate::rig::{Rig, all_by};

/// Where a frame starts, on the client's or on the master's side of the node.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Client,
    Master,
}

struct Frame {
    what: &'static str,
    from: Side,
    bytes: Vec<u8>,
}

/// Marks our frames among everything else on a link.
const MARK: &[u8] = b"bystander";

fn mac_bytes(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

/// Ethernet and IP from one host of the lab to another address, through the node.
fn ip(from: Side, to: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    let (net, v4, v6) = match from {
        Side::Client => (1_u8, CLIENT_V4, CLIENT_V6),
        Side::Master => (2, MASTER_V4.ip(), MASTER_V6.ip()),
    };
    let link = PacketBuilder::ethernet2(mac_bytes(net << 4 | 2), mac_bytes(net << 4 | 1));
    match (v4, v6, to) {
        (IpAddr::V4(me), _, IpAddr::V4(to)) => link.ipv4(me.octets(), to.octets(), 64),
        (_, IpAddr::V6(me), IpAddr::V6(to)) => link.ipv6(me.octets(), to.octets(), 64),
        _ => unreachable!("the constants have their families"),
    }
}

/// `numbered` makes each payload unique, so that a capture can be put in order.
fn payload(number: usize) -> Vec<u8> {
    [MARK, format!(" {number:04} ").as_bytes(), &[0xa5; 40]].concat()
}

fn frames() -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut add = |what, from, make: &dyn Fn(&[u8]) -> Vec<u8>| {
        let bytes = make(&payload(frames.len()));
        frames.push(Frame { what, from, bytes });
    };
    let tcp = |from, to: SocketAddr, ports: (u16, u16), flags: u8| {
        move |payload: &[u8]| {
            let mut step = ip(from, to.ip()).tcp(ports.0, ports.1, 1000, 512);
            if flags & 1 != 0 {
                step = step.syn();
            }
            if flags & 2 != 0 {
                step = step.ack(77);
            }
            if flags & 4 != 0 {
                step = step.rst();
            }
            let mut bytes = Vec::new();
            step.write(&mut bytes, payload).expect("a vector takes all");
            bytes
        }
    };
    let udp = |from, to: SocketAddr, ports: (u16, u16)| {
        move |payload: &[u8]| {
            let mut bytes = Vec::new();
            ip(from, to.ip())
                .udp(ports.0, ports.1)
                .write(&mut bytes, payload)
                .expect("a vector takes all");
            bytes
        }
    };
    for (vip, master, client) in [
        (VIP_V4, MASTER_V4, CLIENT_V4),
        (VIP_V6, MASTER_V6, CLIENT_V6),
    ] {
        use Side::{Client, Master};
        let client = SocketAddr::new(client, 0);
        add(
            "SYN to the endpoint itself",
            Client,
            &tcp(Client, master, (40_000, PORT), 1),
        );
        add(
            "ACK to the endpoint itself",
            Client,
            &tcp(Client, master, (40_001, PORT), 2),
        );
        add(
            "SYN to another port of the VIP",
            Client,
            &tcp(Client, vip, (40_002, PORT + 1), 1),
        );
        add(
            "RST to another port of the VIP",
            Client,
            &tcp(Client, vip, (40_003, 80), 4),
        );
        add(
            "UDP to the listener's port",
            Client,
            &udp(Client, vip, (40_004, PORT)),
        );
        add(
            "UDP to the endpoint",
            Client,
            &udp(Client, master, (40_005, 53)),
        );
        add(
            "ACK from the endpoint of no flow",
            Master,
            &tcp(Master, client, (PORT, 40_006), 2),
        );
        add(
            "RST from the endpoint of no flow",
            Master,
            &tcp(Master, client, (PORT, 40_007), 4),
        );
        add(
            "SYN from the endpoint",
            Master,
            &tcp(Master, client, (40_008, 9), 1),
        );
        add(
            "UDP from the endpoint's port",
            Master,
            &udp(Master, client, (PORT, 40_009)),
        );
    }
    let raw = |to: IpAddr, protocol: IpNumber, head: Vec<u8>| {
        move |payload: &[u8]| {
            let mut bytes = Vec::new();
            ip(Side::Client, to)
                .write(&mut bytes, protocol, &[&head, payload].concat())
                .expect("a vector takes all");
            bytes
        }
    };
    for vip in [VIP_V4.ip(), VIP_V6.ip()] {
        // A TCP header that says it is shorter than a TCP header.
        let mut short = vec![0; 20];
        short[..4].copy_from_slice(&[0x9c, 0x50, 0x1f, 0x8f]);
        short[12] = 3 << 4;
        add(
            "malformed TCP to the listener",
            Side::Client,
            &raw(vip, ip_number::TCP, short),
        );
        add(
            "SCTP to the VIP",
            Side::Client,
            &raw(vip, ip_number::SCTP, vec![0; 12]),
        );
        add(
            "ESP to the VIP",
            Side::Client,
            &raw(vip, ip_number::ENCAP_SEC, vec![7; 16]),
        );
    }
    frames
}

/// Sends every frame and returns what arrived behind the node, in the frames' order.
fn pass(lab: &Lab, frames: &[Frame]) -> Result<Vec<Vec<u8>>> {
    let client = Capture::open(&lab.client, "eth0")?;
    let master = Capture::open(&lab.master, "eth0")?;
    frames
        .iter()
        .map(|frame| {
            let (sender, receiver, arrives_at) = match frame.from {
                Side::Client => (&client, &master, mac(0x22)),
                Side::Master => (&master, &client, mac(0x12)),
            };
            sender.inject(&frame.bytes)?;
            let ours = &frame.bytes[frame.bytes.len() - payload(0).len()..];
            receiver.wait(frame.what, |seen| {
                let destination: Vec<String> =
                    seen[..6].iter().map(|byte| format!("{byte:02x}")).collect();
                seen.ends_with(ours) && destination.join(":") == arrives_at
            })
        })
        .collect()
}

/// The VIPs are addresses of the master's host, so that what is not steered arrives.
fn house_vips(lab: &Lab) -> Result<()> {
    let (vip4, vip6) = (VIP_V4.ip(), VIP_V6.ip());
    lab.master.ip([
        format!("addr add {vip4}/32 dev lo"),
        format!("addr add {vip6}/128 dev lo nodad"),
    ])?;
    lab.node.ip([
        format!("route add {vip4} via {}", MASTER_V4.ip()),
        format!("route add {vip6} via {}", MASTER_V6.ip()),
    ])
}

fn bit_for_bit(way: Way, tc: &str, xdp: &str) -> Result<()> {
    let lab = Lab::new(way)?;
    house_vips(&lab)?;
    let _master = Server::start(&lab, &lab.master)?;
    let _backup = Server::start(&lab, &lab.backup)?;
    let frames = frames();
    let without = pass(&lab, &frames)?;
    let mut config = agent::config(&lab);
    config["datapath"] = serde_json::json!({"tc": tc, "xdp": xdp});
    let mut agent = Agent::start(&lab, &config)?;
    agent.wait_selected("master")?;
    // Flows exist while bystanders pass.
    let long = Long::open(&lab.client, VIP_V4, Duration::from_millis(10))?;
    let with = pass(&lab, &frames)?;
    for ((frame, without), with) in frames.iter().zip(&without).zip(&with) {
        ensure!(
            without == with,
            "{}:\nwithout {without:02x?}\nwith    {with:02x?}",
            frame.what
        );
    }
    long.check_alive()
}

#[test]
fn the_lab_passes_every_frame_and_twice_alike() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let lab = Lab::new(way)?;
            house_vips(&lab)?;
            let frames = frames();
            let (once, twice) = (pass(&lab, &frames)?, pass(&lab, &frames)?);
            ensure!(once == twice, "comparing two passes means nothing");
        }
        Ok(())
    });
}

#[test]
fn pods_by_tcx() {
    with_tcx(|| bit_for_bit(Way::EdgeAmongPods, "tcx", "auto"));
}

#[test]
fn pods_by_clsact() {
    privileged(|| bit_for_bit(Way::Edge, "clsact", "auto"));
}

#[test]
fn outside_clients_by_native_xdp() {
    with_tcx(|| bit_for_bit(Way::Uplink, "tcx", "native"));
}

#[test]
fn outside_clients_by_generic_xdp() {
    with_tcx(|| bit_for_bit(Way::Uplink, "tcx", "generic"));
}

#[test]
fn other_services_of_the_same_hosts() {
    privileged(|| {
        for way in [Way::EdgeAmongPods, Way::Uplink] {
            let lab = Lab::new(way)?;
            house_vips(&lab)?;
            let _master = Server::start(&lab, &lab.master)?;
            let _backup = Server::start(&lab, &lab.backup)?;
            let mut agent = Agent::start(&lab, &agent::config(&lab))?;
            agent.wait_selected("master")?;
            for to in [VIP_V4, VIP_V6, MASTER_V4, MASTER_V6] {
                let to = to.ip().to_string();
                lab.client.ask("ping", &["-c", "1", "-W", "5", &to])?;
            }
            let listener = lab
                .master
                .run(|| TcpListener::bind("[::]:9000").context("cannot listen"))?;
            for vip in [VIP_V4, VIP_V6] {
                let to = SocketAddr::new(vip.ip(), 9000);
                let near = lab.client.run(|| {
                    std::net::TcpStream::connect_timeout(&to, patience(Duration::from_secs(5)))
                        .with_context(|| format!("{to} is another service"))
                })?;
                let (far, peer) = listener.accept().context("accept")?;
                ensure!(peer.port() == near.local_addr()?.port());
                ensure!(far.local_addr()?.ip().to_canonical() == vip.ip());
            }
        }
        Ok(())
    });
}

#[test]
fn direct_traffic_does_not_notice_a_switch() {
    privileged(|| {
        let mut rig = Rig::new(Way::EdgeAmongPods)?;
        let client = rig.lab.client.clone();
        let steered = Load::start(&client, Plan::steady(VIP_V4));
        let direct = Load::start(&client, Plan::steady(BACKUP_V4));
        let long = Long::open(&client, MASTER_V6, Duration::from_millis(10))?;
        direct.run_for(50)?;
        rig.master.set_status(503)?;
        rig.agent.wait_selected("backup")?;
        direct.run_for(50)?;
        // The master is unwell for the service only; who reaches it directly goes on.
        long.check_alive()?;
        drop(steered);
        all_by(&direct.stop()?, "backup")
    });
}

/// Opens connections from one port of the client to both, in this order, and uses
/// them in turns.
fn share_a_port(rig: &Rig, port: u16, first: SocketAddr, second: SocketAddr) -> Result<()> {
    let open = |to| {
        rig.lab
            .client
            .run(|| clash::Connection::open(port, to))
            .with_context(|| format!("{:?}: {to} of {first}, {second}", rig.lab.way))
    };
    let mut both = [open(first)?, open(second)?];
    for _ in 0..5 {
        for connection in &mut both {
            let name = connection
                .ask()
                .with_context(|| format!("{:?}: {first} and {second}", rig.lab.way))?;
            ensure!(name == "master", "{name:?}");
        }
    }
    Ok(())
}

#[test]
fn the_same_client_port_to_two_listeners_of_one_endpoint() {
    privileged(|| {
        for way in [Way::Edge, Way::EdgeAmongPods, Way::Uplink] {
            let rig = Rig::new(way)?;
            share_a_port(&rig, 44_000, VIP_V4, VIP_MASTER_V4)?;
            share_a_port(&rig, 44_001, VIP_MASTER_V6, VIP_V6)?;
        }
        Ok(())
    });
}

#[test]
fn the_same_client_port_to_the_endpoint_and_then_to_the_vip() {
    privileged(|| {
        for way in [Way::Edge, Way::EdgeAmongPods, Way::Uplink] {
            let rig = Rig::new(way)?;
            share_a_port(&rig, 45_000, MASTER_V4, VIP_V4)?;
            share_a_port(&rig, 45_001, MASTER_V6, VIP_V6)?;
        }
        Ok(())
    });
}

#[test]
fn the_same_client_port_to_the_vip_and_then_to_the_endpoint() {
    privileged(|| {
        for way in [Way::Edge, Way::EdgeAmongPods, Way::Uplink] {
            let rig = Rig::new(way)?;
            share_a_port(&rig, 46_000, VIP_V4, MASTER_V4)?;
            share_a_port(&rig, 46_001, VIP_V6, MASTER_V6)?;
        }
        Ok(())
    });
}

/// Connections with a chosen port of the client.
pub mod clash {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
        time::Duration,
    };

    use anyhow::{Context, Result};
    use lab::wait::patience;
    use socket2::{Domain, Protocol, Socket, Type};

    pub struct Connection(TcpStream);

    impl Connection {
        pub fn open(port: u16, to: SocketAddr) -> Result<Self> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            // Two connections may share a port if their destinations differ.
            socket.set_reuse_address(true)?;
            let me: SocketAddr = if to.is_ipv4() {
                (Ipv4Addr::UNSPECIFIED, port).into()
            } else {
                (Ipv6Addr::UNSPECIFIED, port).into()
            };
            socket.bind(&me.into())?;
            socket
                .connect_timeout(&to.into(), patience(Duration::from_secs(3)))
                .context("cannot connect")?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(patience(Duration::from_secs(3))))?;
            Ok(Self(stream))
        }

        /// The server's name.
        pub fn ask(&mut self) -> Result<String> {
            self.0
                .write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
                .context("cannot send")?;
            let mut answer = Vec::new();
            let mut byte = [0];
            while !answer.ends_with(b"\r\n\r\n") {
                self.0.read_exact(&mut byte).context("no answer")?;
                answer.push(byte[0]);
            }
            let mut body = [0; 6];
            self.0.read_exact(&mut body).context("no body")?;
            Ok(String::from_utf8_lossy(&body).into_owned())
        }
    }
}
