//! Full NAT and direct server return where not every link is as wide as the next: routers' errors must find who sent
//! too much, and what is sent in fragments must arrive whole.
//!
//! ```text
//! client --- (lab.client) --- node --- (lab.master) --- endpoint
//! ```
//!
//! The hosts in brackets are routers here. One-armed, both are `lab.client`.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Agent, Lab, Namespace, Way, agent,
    link::{End, veth},
    privileged,
    topology::{VIP_V4, VIP_V6},
    wait::patience,
};
use serde_json::{Value, json};

use crate::{
    dsr::own,
    full_nat::SOURCES,
    protocols::{Echo, ask, connected, sink},
};

/// Subnets of the client and the endpoint.
const CLIENTS: u8 = 6;
/// See [`CLIENTS`].
const ENDPOINTS: u8 = 7;

fn deadline() -> Duration {
    patience(Duration::from_secs(10))
}

/// A client and an endpoint, each behind a router.
struct Far {
    // Dropped first: the agent must not see its checks fail while the lab goes.
    agent: Agent,
    client: Arc<Namespace>,
    client_router: Arc<Namespace>,
    endpoint: Arc<Namespace>,
    endpoint_router: Arc<Namespace>,
    forward: String,
    lab: Lab,
}

impl Far {
    fn new(way: Way, one_armed: bool) -> Result<Self> {
        let lab = Lab::new(way)?;
        let (client_router, net) = (Arc::clone(&lab.client), 1);
        let client = behind(&lab, &client_router, net, CLIENTS)?;
        let (endpoint_router, net) = if one_armed {
            (Arc::clone(&lab.client), 1)
        } else {
            (Arc::clone(&lab.master), 2)
        };
        let endpoint = behind(&lab, &endpoint_router, net, ENDPOINTS)?;
        sink(&endpoint)?;
        let mut config = agent::config(&lab);
        config["datapath"]["source"] = json!(SOURCES);
        config["services"][0]["forward"] = json!("full-nat");
        config["services"][0]["listeners"] = json!([
            VIP_V4.to_string(),
            VIP_V6.to_string(),
            format!("{VIP_V4}/udp"),
            format!("{VIP_V6}/udp"),
        ]);
        let addresses = Lab::addresses(ENDPOINTS).map(|address| address.to_string());
        config["services"][0]["endpoints"] = json!([{"name": "far", "address": addresses}]);
        Self::start(
            lab,
            config,
            [client, client_router, endpoint, endpoint_router],
            one_armed,
        )
    }

    /// The endpoint is a neighbour of the node and owns the VIPs.
    fn server_return(way: Way) -> Result<Self> {
        let lab = Lab::new(way)?;
        let client_router = Arc::clone(&lab.client);
        let client = behind(&lab, &client_router, 1, CLIENTS)?;
        let endpoint = Arc::clone(&lab.master);
        own(&endpoint, &[VIP_V4, VIP_V6])?;
        sink(&endpoint)?;
        let mut config = agent::config(&lab);
        config["services"][0]["forward"] = json!("dsr");
        config["services"][0]["listeners"] = json!([
            VIP_V4.to_string(),
            VIP_V6.to_string(),
            format!("{VIP_V4}/udp"),
            format!("{VIP_V6}/udp"),
        ]);
        let addresses = Lab::addresses(2).map(|address| address.to_string());
        config["services"][0]["endpoints"] = json!([{"name": "far", "address": addresses}]);
        let none = Arc::clone(&endpoint);
        Self::start(lab, config, [client, client_router, endpoint, none], false)
    }

    fn start(
        lab: Lab,
        mut config: Value,
        [client, client_router, endpoint, endpoint_router]: [Arc<Namespace>; 4],
        one_armed: bool,
    ) -> Result<Self> {
        let way = lab.way;
        if way == Way::Uplink {
            config["interfaces"]["edge"] = json!(["ep-*"]);
        }
        if one_armed {
            config["datapath"]["xdp_send"] = json!("on");
        }
        let mut agent = Agent::start(&lab, &config)?;
        agent.wait_selected("far")?;
        let forward = &config["services"][0]["forward"];
        Ok(Self {
            forward: forward.as_str().context("a way of forwarding")?.to_owned(),
            agent,
            client,
            client_router,
            endpoint,
            endpoint_router,
            lab,
        })
    }

    fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        let connect = || Ok(TcpStream::connect_timeout(&to, deadline())?);
        let stream = self.client.run(connect).context("no connection")?;
        stream.set_read_timeout(Some(deadline()))?;
        stream.set_write_timeout(Some(deadline()))?;
        Ok(stream)
    }

    /// Sends `size` bytes to the endpoint.
    fn upload(&self, to: SocketAddr, size: u64) -> Result<()> {
        let mut stream = self.connect(to)?;
        stream.write_all(format!("PUT {size}\r\n\r\n").as_bytes())?;
        stream
            .write_all(&vec![7; size as usize])
            .with_context(|| format!("the upload to {to} is stuck"))?;
        let mut answer = [0; 8];
        stream
            .read_exact(&mut answer)
            .with_context(|| format!("the upload to {to} did not arrive"))?;
        ensure!(u64::from_be_bytes(answer) == size);
        Ok(())
    }

    /// Has the endpoint send `size` bytes.
    fn download(&self, from: SocketAddr, size: u64) -> Result<()> {
        let mut stream = self.connect(from)?;
        stream.write_all(format!("GIVE {size}\r\n\r\n").as_bytes())?;
        let mut all = Vec::new();
        stream
            .read_to_end(&mut all)
            .with_context(|| format!("the download from {from} is stuck at {}", all.len()))?;
        ensure!(all.len() as u64 == size, "{} bytes of {size}", all.len());
        Ok(())
    }

    /// How many ICMP errors were translated.
    fn translated(&self) -> Result<u64> {
        self.reason("icmp_translated")
    }

    fn reason(&self, label: &str) -> Result<u64> {
        let status = self.agent.status()?;
        let count = &status["datapath"]["reasons"][label];
        count.as_u64().with_context(|| format!("{label}: {count}"))
    }
}

/// A host of subnet `net` behind a router, which the node reaches by `via`.
fn behind(lab: &Lab, router: &Arc<Namespace>, via: u8, net: u8) -> Result<Arc<Namespace>> {
    let host = Namespace::new(&format!("far-{net}"))?;
    router.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        // The way back to a packet's sender may be the one that it came by.
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
    ])?;
    let link = format!("to-{net}");
    veth(
        &End {
            namespace: router,
            interface: &link,
            mac: net << 4 | 1,
            v4: format!("10.{net}.0.1/24"),
            v6: format!("fd00:{net}::1/64"),
        },
        &End {
            namespace: &host,
            interface: "eth0",
            mac: net << 4 | 2,
            v4: format!("10.{net}.0.2/24"),
            v6: format!("fd00:{net}::2/64"),
        },
    )?;
    host.ip([
        format!("route add default via 10.{net}.0.1"),
        format!("route add default via fd00:{net}::1"),
    ])?;
    lab.node.ip([
        format!("route add 10.{net}.0.0/24 via 10.{via}.0.2"),
        format!("route add fd00:{net}::/64 via fd00:{via}::2"),
    ])?;
    Ok(host)
}

/// The router takes no larger packets for the subnet's host.
fn narrow(router: &Arc<Namespace>, net: u8, mtu: u32) -> Result<()> {
    router.ip([
        format!("route replace 10.{net}.0.2/32 dev to-{net} mtu lock {mtu}"),
        format!("route replace fd00:{net}::2/128 dev to-{net} mtu lock {mtu}"),
    ])
}

/// Without the routers' errors, both ends would repeat what is too long for ever.
fn both_ways(way: Way, one_armed: bool) -> Result<()> {
    const SIZE: u64 = 1 << 20;
    let far = Far::new(way, one_armed)?;
    for to in [VIP_V4, VIP_V6] {
        far.upload(to, SIZE).context("while all is wide")?;
        far.download(to, SIZE).context("while all is wide")?;
    }
    ensure!(far.translated()? == 0);
    // Who was told of a path offers segments that fit it: the second has to be narrower.
    narrow(&far.endpoint_router, ENDPOINTS, 1300)?;
    narrow(&far.client_router, CLIENTS, 1290)?;
    for to in [VIP_V4, VIP_V6] {
        let before = far.translated()?;
        far.upload(to, SIZE).context("the endpoint's side")?;
        let between = far.translated()?;
        ensure!(between > before, "no error of the endpoint's router");
        far.download(to, SIZE).context("the client's side")?;
        ensure!(
            far.translated()? > between,
            "no error of the client's router"
        );
    }
    Ok(())
}

#[test]
fn path_mtu_discovery_among_pods() {
    privileged(|| both_ways(Way::EdgeAmongPods, false));
}

#[test]
fn path_mtu_discovery_by_an_uplink() {
    privileged(|| both_ways(Way::Uplink, false));
}

#[test]
fn path_mtu_discovery_one_armed() {
    privileged(|| both_ways(Way::Uplink, true));
}

/// The node's own links are the narrow ones, so nobody but the agent can tell.
fn own_links(way: Way) -> Result<()> {
    const SIZE: u64 = 1 << 20;
    let far = Far::new(way, false)?;
    let [to_endpoint, _] = far.lab.endpoint_links();
    type Move = fn(&Far, SocketAddr, u64) -> Result<()>;
    // Who was told of a path offers segments that fit it: the second has to be narrower.
    let links: [(&str, u32, Move); 2] = [
        (to_endpoint, 1300, Far::upload),
        (far.lab.client_link(), 1290, Far::download),
    ];
    for (link, mtu, moves) in links {
        // Only the node's end, which takes no more than it gives: nothing long may come back.
        far.lab.node.ip([format!("link set {link} mtu {mtu}")])?;
        for to in [VIP_V4, VIP_V6] {
            let before = far.reason("too_long")?;
            moves(&far, to, SIZE).with_context(|| format!("narrow {link}"))?;
            ensure!(
                far.reason("too_long")? > before,
                "nobody was told of {link}"
            );
        }
        far.lab.node.ip([format!("link set {link} mtu 1500")])?;
    }
    Ok(())
}

#[test]
fn narrow_links_among_pods() {
    privileged(|| own_links(Way::EdgeAmongPods));
}

#[test]
fn narrow_links_and_an_uplink() {
    privileged(|| own_links(Way::Uplink));
}

/// The endpoint's answers are too long for the client's router, who tells the VIP.
fn server_return_hears_of_it(way: Way) -> Result<()> {
    const SIZE: u64 = 1 << 20;
    let far = Far::server_return(way)?;
    narrow(&far.client_router, CLIENTS, 1290)?;
    for to in [VIP_V4, VIP_V6] {
        let before = far.translated()?;
        far.download(to, SIZE)?;
        ensure!(
            far.translated()? > before,
            "no error of the client's router"
        );
        far.upload(to, SIZE)?;
    }
    Ok(())
}

#[test]
fn path_mtu_discovery_with_server_return() {
    privileged(|| server_return_hears_of_it(Way::Edge));
}

#[test]
fn path_mtu_discovery_with_server_return_by_an_uplink() {
    privileged(|| server_return_hears_of_it(Way::Uplink));
}

#[test]
fn fragments_with_server_return() {
    privileged(|| {
        for way in [Way::Edge, Way::Uplink] {
            let far = Far::server_return(way)?;
            datagrams_arrive(&far)?;
        }
        Ok(())
    });
}

fn whole_datagrams(way: Way, one_armed: bool) -> Result<()> {
    datagrams_arrive(&Far::new(way, one_armed)?)
}

fn datagrams_arrive(far: &Far) -> Result<()> {
    for to in [VIP_V4, VIP_V6] {
        let at = match far.forward.as_str() {
            // Who owns the VIP answers from there.
            "dsr" => to,
            _ => (Ipv6Addr::UNSPECIFIED, to.port()).into(),
        };
        let _echo = Echo::at(&far.endpoint, at, "far")?;
        let socket = connected(&far.client, to)?;
        for length in [1, 1400, 4000, 20_000] {
            let question: Vec<u8> = (0..length).map(|n: u32| n as u8).collect();
            let answer =
                ask(&socket, &question).with_context(|| format!("{length} bytes to {to}"))?;
            ensure!(answer == [&b"far"[..], &question].concat());
        }
    }
    Ok(())
}

#[test]
fn fragments_among_pods() {
    privileged(|| whole_datagrams(Way::EdgeAmongPods, false));
}

#[test]
fn fragments_by_an_uplink() {
    privileged(|| whole_datagrams(Way::Uplink, false));
}

#[test]
fn fragments_one_armed() {
    privileged(|| whole_datagrams(Way::Uplink, true));
}
