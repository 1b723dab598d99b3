//! A node that tracks connections and drops what its firewall calls invalid: nothing
//! that is steered may be. Both translations are at the client's edge, so the firewall
//! sees one flow, client to endpoint, whatever becomes of it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::PacketBuilder;
use lab::{
    Agent, Lab, Namespace, Server, Way, agent,
    capture::Capture,
    client::{KeepAlive, Load, Long, Plan, Sample},
    link::{End, veth},
    privileged,
    server::Kind,
    topology::{BACKUP_V4, BACKUP_V6, CLIENT_V4, MASTER_V4, MASTER_V6, PORT, VIP_V4, VIP_V6},
    until,
};
use serde_json::{Value, json};

use crate::{
    bystander::clash,
    protocols::sink,
    rig::{Rig, none_failed},
};

const WAYS: [Way; 3] = [Way::Edge, Way::EdgeAmongPods, Way::Uplink];

/// What filters on the node: established, related and new connections of the client
/// to the endpoints' port pass, all else is dropped, what is invalid is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Firewall {
    /// Nothing: not even connection tracking.
    Absent,
    Nft,
    Iptables,
}

impl Firewall {
    fn raise(self, lab: &Lab) -> Result<()> {
        let (node, client) = (&lab.node, lab.client_link());
        match self {
            Self::Absent => {}
            Self::Nft => {
                let rules = format!(
                    "table inet firewall {{\n\
                       chain forward {{\n\
                         type filter hook forward priority 0; policy drop;\n\
                         ct state invalid counter drop\n\
                         ct state established,related accept\n\
                         iifname \"{client}\" tcp dport {PORT} ct state new accept\n\
                       }}\n\
                     }}\n"
                );
                let path = lab.file("firewall.nft");
                std::fs::write(&path, rules).context("the rules")?;
                node.ask("nft", &["-f", &path.to_string_lossy()])?;
            }
            Self::Iptables => {
                let port = PORT.to_string();
                for iptables in ["iptables", "ip6tables"] {
                    for rule in [
                        "-P FORWARD DROP".to_owned(),
                        "-A FORWARD -m conntrack --ctstate INVALID -j DROP".to_owned(),
                        "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
                            .to_owned(),
                        format!(
                            "-A FORWARD -i {client} -p tcp --dport {port} -m conntrack --ctstate NEW \
                             -j ACCEPT"
                        ),
                    ] {
                        let words: Vec<&str> = ["-w"]
                            .into_iter()
                            .chain(rule.split(' ').filter(|word| !word.is_empty()))
                            .collect();
                        node.ask(iptables, &words)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Packets that were dropped as invalid so far.
    fn invalid(self, lab: &Lab) -> Result<u64> {
        match self {
            Self::Absent => Ok(0),
            Self::Nft => {
                let rules = lab
                    .node
                    .ask("nft", &["list", "table", "inet", "firewall"])?;
                rules
                    .split_once("counter packets ")
                    .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
                    .with_context(|| format!("no counter in {rules}"))
            }
            Self::Iptables => {
                let mut sum = 0;
                for iptables in ["iptables", "ip6tables"] {
                    let rules = lab.node.ask(iptables, &["-vxnL", "FORWARD"])?;
                    let counted: u64 = rules
                        .lines()
                        .find(|line| line.contains("ctstate INVALID"))
                        .and_then(|line| line.split_whitespace().next()?.parse().ok())
                        .with_context(|| format!("no counter in {rules}"))?;
                    sum += counted;
                }
                Ok(sum)
            }
        }
    }

    /// Connections are tracked if, and only if, there is a firewall.
    fn tracks(self, lab: &Lab) -> Result<()> {
        let path = "/proc/sys/net/netfilter/nf_conntrack_count";
        let tracked = lab
            .node
            // Without the module there is no file.
            .run(|| Ok(std::fs::read_to_string(path).unwrap_or_else(|_| "0".to_owned())))?;
        ensure!(
            (tracked.trim() == "0") == (self == Self::Absent),
            "{self:?}: {tracked} connections are tracked"
        );
        Ok(())
    }

    fn none_invalid(self, lab: &Lab, after: &str) -> Result<()> {
        let invalid = self.invalid(lab)?;
        ensure!(
            invalid == 0,
            "{self:?}, {:?}: {invalid} invalid packets after {after}",
            lab.way
        );
        Ok(())
    }
}

/// If this fails, no count of zero means anything.
#[test]
fn what_is_invalid_is_counted_and_dropped() {
    privileged(|| {
        for firewall in [Firewall::Nft, Firewall::Iptables] {
            let lab = Lab::new(Way::Edge)?;
            firewall.raise(&lab)?;
            firewall.none_invalid(&lab, "nothing")?;
            let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) =
                (CLIENT_V4, MASTER_V4.ip())
            else {
                bail!("the constants have their families");
            };
            let mut stray = Vec::new();
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x12], [2, 0, 0, 0, 0, 0x11])
                .ipv4(from.octets(), to.octets(), 64)
                .tcp(40_000, PORT, 1000, 512)
                .rst()
                .write(&mut stray, &[])
                .context("a packet")?;
            Capture::open(&lab.client, "eth0")?.inject(&stray)?;
            until("the stray RST to be counted", || {
                ensure!(firewall.invalid(&lab)? == 1);
                Ok(())
            })?;
            let _master = Server::start(&lab, &lab.master)?;
            let other = SocketAddr::new(MASTER_V4.ip(), PORT + 1);
            let refused = lab.client.run(|| {
                Ok(TcpStream::connect_timeout(
                    &other,
                    Duration::from_millis(300),
                ))
            })?;
            ensure!(refused.is_err(), "another port is closed by the firewall");
        }
        Ok(())
    });
}

/// Endpoints go down for what they say, never for a machine that is slow for a moment:
/// that would explain failed requests that nothing here did.
fn patient(config: &mut Value) {
    config["services"][0]["check"]["timeout"] = json!("5s");
}

/// What ended before the kill and what began after the switch did not fail.
fn none_failed_outside(samples: &[Sample], kill: Instant, over: Instant) -> Result<()> {
    let outside: Vec<_> = samples
        .iter()
        .filter(|sample| sample.ended < kill || sample.begun > over)
        .cloned()
        .collect();
    none_failed(&outside)
}

/// New connections that the server closes, kept ones that the client closes, and long
/// ones, over a failover and back.
fn a_life(way: Way, firewall: Firewall) -> Result<()> {
    let lab = Lab::new(way)?;
    firewall.raise(&lab)?;
    let mut rig = Rig::in_lab(lab, patient)?;
    let client = Arc::clone(&rig.lab.client);
    let loads = [VIP_V4, VIP_V6].map(|to| Load::start(&client, Plan::steady(to)));
    for load in &loads {
        load.run_for(100)?;
    }
    let kept = |name: &str| -> Result<()> {
        for to in [VIP_V4, VIP_V6] {
            let mut connections = (0..10)
                .map(|_| KeepAlive::connect(&client, to))
                .collect::<Result<Vec<_>>>()?;
            for _ in 0..3 {
                for connection in &mut connections {
                    let body = connection.get("/").map(|answer| answer.body);
                    ensure!(body.as_deref() == Ok(name), "{to}: {body:?}");
                }
            }
            // The client closes here, and first.
        }
        Ok(())
    };
    kept("master")?;
    firewall.none_invalid(&rig.lab, "ordinary connections")?;

    let longs = [VIP_V4, VIP_V6]
        .into_iter()
        .map(|to| Long::open(&client, to, Duration::from_millis(5)))
        .collect::<Result<Vec<_>>>()?;
    for long in &longs {
        long.check_alive()?;
    }
    let kill = Instant::now();
    rig.master.kill()?;
    for long in &longs {
        long.wait_end()?;
    }
    rig.agent.wait_selected("backup")?;
    let over = Instant::now();
    for load in &loads {
        load.wait_for("backup")?;
        load.run_for(100)?;
    }
    kept("backup")?;
    firewall.none_invalid(&rig.lab, "a failover")?;

    rig.master.restart()?;
    rig.agent.wait_selected("master")?;
    for load in &loads {
        load.wait_for("master")?;
        load.run_for(100)?;
    }
    kept("master")?;
    firewall.none_invalid(&rig.lab, "a fail-back")?;
    for load in loads {
        none_failed_outside(&load.stop()?, kill, over)?;
    }
    firewall.tracks(&rig.lab)?;
    firewall.none_invalid(&rig.lab, "everything")
}

#[test]
fn a_life_without_a_firewall() {
    privileged(|| {
        WAYS.into_iter()
            .try_for_each(|way| a_life(way, Firewall::Absent))
    });
}

#[test]
fn a_life_behind_nft() {
    privileged(|| {
        WAYS.into_iter()
            .try_for_each(|way| a_life(way, Firewall::Nft))
    });
}

#[test]
fn a_life_behind_iptables() {
    privileged(|| {
        WAYS.into_iter()
            .try_for_each(|way| a_life(way, Firewall::Iptables))
    });
}

/// The endpoint is taken down for its answers and lives on: what both ends still say
/// on the connections that the client lost, and the end of them.
fn a_master_that_lives_on(way: Way, firewall: Firewall) -> Result<()> {
    const PORTS: std::ops::Range<u16> = 47_000..47_010;
    let lab = Lab::new(way)?;
    firewall.raise(&lab)?;
    let mut rig = Rig::in_lab(lab, patient)?;
    let client = Arc::clone(&rig.lab.client);
    let open = |to, name: &str| -> Result<Vec<_>> {
        PORTS
            .map(|port| {
                let mut connection = client.run(|| clash::Connection::open(port, to))?;
                let body = connection.ask()?;
                ensure!(body == name, "{to} from {port}: {body}");
                Ok(connection)
            })
            .collect()
    };
    for to in [VIP_V4, VIP_V6] {
        // The client has spoken, and from now on only acknowledges ticks.
        let long = Long::open(&client, to, Duration::from_secs(3600))?;
        until("the echo", || {
            ensure!(long.heard().1 == 1, "not yet");
            Ok(())
        })?;
        let mut connections = open(to, "master")?;
        rig.master.set_status(503)?;
        rig.agent.wait_selected("backup")?;
        let end = long.wait_end()?;
        ensure!(end.how == "reset", "{to}: {}", end.how);
        for connection in &mut connections {
            ensure!(connection.ask().is_err(), "{to}: it was reset");
        }
        drop(connections);
        // Its ticks meet a client that has no such connection any more.
        std::thread::sleep(Duration::from_millis(300));
        firewall.none_invalid(&rig.lab, "ticks of an endpoint that is down")?;
        // The same ports to the backup, then again to the master, whose kernel still has
        // the old connections, as the connection tracking has.
        drop(open(to, "backup")?);
        rig.master.behave()?;
        rig.agent.wait_selected("master")?;
        let mut connections = open(to, "master")?;
        for connection in &mut connections {
            ensure!(connection.ask()? == "master");
        }
        drop(connections);
        firewall.none_invalid(&rig.lab, "the same ports again")?;
    }
    // Down, and dead a while later: its kernel tells whom it still knows.
    let longs = [VIP_V4, VIP_V6]
        .into_iter()
        .map(|to| Long::open(&client, to, Duration::from_secs(3600)))
        .collect::<Result<Vec<_>>>()?;
    rig.master.set_status(503)?;
    rig.agent.wait_selected("backup")?;
    rig.master.kill()?;
    for long in &longs {
        long.wait_end()?;
    }
    std::thread::sleep(Duration::from_millis(300));
    firewall.none_invalid(&rig.lab, "the end of an endpoint that is down")
}

#[test]
fn a_master_that_lives_on_behind_nft() {
    privileged(|| {
        WAYS.into_iter()
            .try_for_each(|way| a_master_that_lives_on(way, Firewall::Nft))
    });
}

#[test]
fn a_master_that_lives_on_behind_iptables() {
    privileged(|| a_master_that_lives_on(Way::Edge, Firewall::Iptables));
}

/// A client that is in the middle of sending much: one segment is answered by a RST,
/// and what is under way behind it must not reach anybody either.
#[test]

fn a_burst_to_an_endpoint_that_is_down() {
    privileged(|| {
        let lab = Lab::new(Way::Uplink)?;
        Firewall::Nft.raise(&lab)?;
        let mut rig = Rig::in_lab(lab, patient)?;
        for to in [VIP_V4, VIP_V6] {
            let long = Long::open(&rig.lab.client, to, Duration::from_millis(20))?;
            rig.master.set_status(503)?;
            rig.agent.wait_selected("backup")?;
            let end = long.wait_end()?;
            ensure!(end.how == "reset", "{to}: {}", end.how);
            std::thread::sleep(Duration::from_millis(300));
            Firewall::Nft.none_invalid(&rig.lab, "a burst")?;
            rig.master.behave()?;
            rig.agent.wait_selected("master")?;
        }
        Ok(())
    });
}

/// The endpoint lives behind a router with a narrow link, and what the router tells
/// the client of it crosses the firewall as related.
fn a_narrow_way(way: Way, firewall: Firewall) -> Result<()> {
    const SIZE: u64 = 1 << 20;
    const DEADLINE: Duration = Duration::from_secs(10);
    let lab = Lab::new(way)?;
    firewall.raise(&lab)?;
    // master is the router, far is the endpoint.
    let far = Namespace::new("far")?;
    let end = |namespace, interface, mac, host: u8| End {
        namespace,
        interface,
        mac,
        v4: format!("10.9.0.{host}/24"),
        v6: format!("fd00:9::{host}/64"),
    };
    veth(
        &end(&lab.master, "narrow", 0x91, 1),
        &end(&far, "eth0", 0x92, 2),
    )?;
    lab.master
        .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    // Only the router's end, so that the endpoint offers segments that do not fit.
    lab.master.ip(["link set narrow mtu 1300"])?;
    far.ip([
        "route add default via 10.9.0.1",
        "route add default via fd00:9::1",
    ])?;
    lab.node.ip([
        format!("route add 10.9.0.0/24 via {}", MASTER_V4.ip()),
        format!("route add fd00:9::/64 via {}", MASTER_V6.ip()),
    ])?;
    sink(&far)?;
    let mut config = agent::config(&lab);
    config["services"][0]["endpoints"][0]["address"] =
        json!([format!("10.9.0.2:{PORT}"), format!("[fd00:9::2]:{PORT}")]);
    let mut agent = Agent::start(&lab, &config)?;
    agent.wait_selected("master")?;
    for to in [VIP_V4, VIP_V6] {
        let mut stream = lab
            .client
            .run(|| Ok(TcpStream::connect_timeout(&to, DEADLINE)?))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
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
    let translated = agent.status()?["datapath"]["reasons"]["icmp_translated"].clone();
    ensure!(
        translated.as_u64().is_some_and(|count| count >= 2),
        "one error a family at least: {translated}"
    );
    firewall.none_invalid(&lab, "a narrow way")
}

#[test]
fn a_narrow_way_behind_nft() {
    privileged(|| {
        WAYS.into_iter()
            .try_for_each(|way| a_narrow_way(way, Firewall::Nft))
    });
}

#[test]
fn a_narrow_way_behind_iptables() {
    privileged(|| a_narrow_way(Way::Edge, Firewall::Iptables));
}

/// nginx and curl: one that keeps its connection, and one that does not.
#[test]
fn curl_and_nginx_behind_nft() {
    privileged(|| {
        for way in WAYS {
            let lab = Lab::new(way)?;
            Firewall::Nft.raise(&lab)?;
            let _master = Server::start_kind(&lab, &lab.master, Kind::Nginx)?;
            let _backup = Server::start_kind(&lab, &lab.backup, Kind::Nginx)?;
            let mut agent = Agent::start(&lab, &agent::config(&lab))?;
            agent.wait_selected("master")?;
            // Steered, and straight to the other endpoint.
            for (to, name) in [
                (VIP_V4, "master"),
                (VIP_V6, "master"),
                (BACKUP_V4, "backup"),
                (BACKUP_V6, "backup"),
            ] {
                // Ten requests, on one connection and on one each. Without -g, brackets would
                // be taken for a range.
                let urls: Vec<String> = (0..10).map(|n| format!("http://{to}/{n}")).collect();
                for header in ["Connection: keep-alive", "Connection: close"] {
                    let mut words = vec!["-sS", "-g", "-m", "10", "-H", header];
                    words.extend(urls.iter().map(String::as_str));
                    let said = lab.client.ask("curl", &words)?;
                    ensure!(said == name.repeat(10), "{way:?} {to}: {said}");
                }
            }
            Firewall::Nft.none_invalid(&lab, "curl")?;
        }
        Ok(())
    });
}
