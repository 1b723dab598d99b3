//! The life of a flow, from its SYN to its end, seen from both ends and in the kernel's
//! tables.

mod clash;
mod close;
mod drain;
mod flood;
mod full;
mod idle;
mod tell;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use lab::{
    Agent, Lab, Namespace, Way,
    topology::{BACKUP_V4, MASTER_V4, PORT},
    until,
};
use probe_ebpf::{
    abi::{ABI_VERSION, FLOW_CONFIRMED},
    names,
};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::rig::Rig;

/// The port of the service `raw`, whose endpoints are sockets of the test itself.
pub const RAW_PORT: u16 = 9000;
/// Its listener.
pub const RAW: SocketAddr = v4([10, 96, 0, 20]);
/// The one that always reaches its master.
pub const RAW_MASTER: SocketAddr = v4([10, 96, 0, 22]);

/// How long anything that must happen may take.
pub const DEADLINE: Duration = Duration::from_secs(10);

const fn v4([a, b, c, d]: [u8; 4]) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), RAW_PORT))
}

/// The endpoint's address at the service `raw`.
pub fn raw_at(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip(), RAW_PORT)
}

/// Adds the service `raw`, which is as well as the lab's servers are. Endpoints go down
/// for what they say, never for a machine that is slow for a moment.
pub fn with_raw(config: &mut Value) {
    let mut service = config["services"][0].clone();
    service["name"] = json!("raw");
    service["listeners"] = json!([RAW.to_string(), format!("{RAW}/udp")]);
    service["endpoints"] = json!([
        {
            "name": "master",
            "address": raw_at(MASTER_V4).to_string(),
            "listeners": [RAW_MASTER.to_string(), format!("{RAW_MASTER}/udp")],
        },
        {"name": "backup", "address": raw_at(BACKUP_V4).to_string()},
    ]);
    service["check"]["http"]["port"] = json!(PORT);
    config["services"]
        .as_array_mut()
        .expect("a list of services")
        .push(service);
    for service in config["services"].as_array_mut().into_iter().flatten() {
        service["check"]["timeout"] = json!("5s");
    }
}

/// A rig with the service `raw`.
pub fn raw_rig(way: Way, change: impl FnOnce(&mut Value)) -> Result<Rig> {
    Rig::with(way, |config| {
        with_raw(config);
        change(config);
    })
}

/// Waits until the service `raw` goes to this endpoint.
pub fn wait_raw(agent: &mut Agent, endpoint: &str) -> Result<()> {
    agent.wait(&format!("raw to go to {endpoint}"), |status| {
        let selection = &status["services"][1]["selection"];
        ensure!(selection["endpoint"] == endpoint, "{selection}");
        Ok(())
    })
}

/// Waits until segments of a service go by its slot alone, or do not.
pub fn wait_alone(agent: &Agent, service: &str, alone: bool) -> Result<()> {
    let line = format!(
        "probe_service_slot_alone{{service=\"{service}\"}} {}",
        u8::from(alone)
    );
    until(&line, || {
        let page = agent.metrics_page("/metrics")?;
        ensure!(page.lines().any(|each| each == line));
        Ok(())
    })
}

/// One of the datapath's counters.
pub fn counted(agent: &Agent, reason: &str) -> Result<u64> {
    agent.status()?["datapath"]["reasons"][reason]
        .as_u64()
        .with_context(|| format!("no count of {reason}"))
}

/// An endpoint's socket, accepted from by the test.
pub struct Peer {
    listener: TcpListener,
}

impl Peer {
    pub fn on(host: &Arc<Namespace>) -> Result<Self> {
        Self::with_backlog(host, 4096)
    }

    /// So many connections may wait to be accepted, if the host allows it.
    pub fn with_backlog(host: &Arc<Namespace>, backlog: i32) -> Result<Self> {
        let listener = host.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            let me: SocketAddr = (Ipv6Addr::UNSPECIFIED, RAW_PORT).into();
            socket.bind(&me.into())?;
            socket.listen(backlog)?;
            Ok(TcpListener::from(socket))
        })?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// A connection that has come, if one has.
    pub fn came(&self) -> Result<Option<(TcpStream, SocketAddr)>> {
        match self.listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                Ok(Some((stream, from)))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("accept"),
        }
    }

    /// The next connection.
    pub fn accept(&self) -> Result<TcpStream> {
        let accepted = until("a connection", || self.came()?.context("none has come"));
        accepted.map(|(stream, _)| stream)
    }
}

/// Connects, from a port of the client's choice or any.
pub fn connect(client: &Arc<Namespace>, port: Option<u16>, to: SocketAddr) -> Result<TcpStream> {
    client.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(port) = port {
            socket.set_reuse_address(true)?;
            let me: SocketAddr = (Ipv4Addr::UNSPECIFIED, port).into();
            socket.bind(&me.into())?;
        }
        socket.connect_timeout(&to.into(), DEADLINE)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(stream)
    })
}

/// Both ends of a connection.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Pair {
    pub fn open(
        client: &Arc<Namespace>,
        port: Option<u16>,
        to: SocketAddr,
        peer: &Peer,
    ) -> Result<Self> {
        let client = connect(client, port, to).with_context(|| format!("connect to {to}"))?;
        let server = peer.accept()?;
        Ok(Self { client, server })
    }

    /// A word each way, the client first.
    pub fn talk(&mut self) -> Result<()> {
        self.up()?;
        self.down()
    }

    /// A word to the server.
    pub fn up(&mut self) -> Result<()> {
        pass(&mut self.client, &mut self.server).context("to the server")
    }

    /// A word to the client.
    pub fn down(&mut self) -> Result<()> {
        pass(&mut self.server, &mut self.client).context("to the client")
    }

    pub fn port(&self) -> Result<u16> {
        Ok(self.client.local_addr()?.port())
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    let mut word = [0; 4];
    from.write_all(b"word").context("write")?;
    to.read_exact(&mut word).context("read")?;
    ensure!(&word == b"word");
    Ok(())
}

/// An entry of the forward table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub client: SocketAddrV4,
    pub vip: SocketAddrV4,
    pub protocol: u8,
    pub endpoint: u32,
}

/// An entry of the reverse table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reverse {
    /// As the endpoint sees it.
    pub client: SocketAddrV4,
    pub endpoint: SocketAddrV4,
    /// The client's own port.
    pub own_port: u16,
    pub protocol: u8,
    pub state: u32,
}

impl Reverse {
    pub fn is_confirmed(&self) -> bool {
        self.state & FLOW_CONFIRMED != 0
    }
}

/// The IPv4 tables, by their pins.
pub struct Tables {
    forward: HashMap<MapData, [u8; 16], [u32; 6]>,
    reverse: HashMap<MapData, [u8; 16], [u32; 8]>,
    node: Array<MapData, [u64; 7]>,
}

fn open<T: TryFrom<Map, Error = aya::maps::MapError>>(name: &str) -> Result<T> {
    let path = format!("/sys/fs/bpf/probe/v{ABI_VERSION}/maps/{name}");
    let data = MapData::from_pin(&path).with_context(|| path.clone())?;
    Ok(T::try_from(Map::from_map_data(data)?)?)
}

impl Tables {
    pub fn of(lab: &Lab) -> Result<Self> {
        lab.node.run(|| {
            Ok(Self {
                forward: open(names::MAP_FORWARD_V4)?,
                reverse: open(names::MAP_REVERSE_V4)?,
                node: open(names::MAP_NODE)?,
            })
        })
    }

    /// Entries about a port of the lab's client as it is itself.
    pub fn forward(&self, port: u16) -> Result<Vec<Forward>> {
        let mut found = Vec::new();
        for entry in self.forward.iter() {
            // Where an entry goes meanwhile, the walk begins anew and sees others twice.
            let (key, value) = entry.context("the forward table")?;
            let (client, vip) = ends(&key);
            found.retain(|old: &Forward| {
                (old.client, old.vip, old.protocol) != (client, vip, key[12])
            });
            if client.port() == port && IpAddr::V4(*client.ip()) == lab::topology::CLIENT_V4 {
                found.push(Forward {
                    client,
                    vip,
                    protocol: key[12],
                    endpoint: value[3],
                });
            }
        }
        Ok(found)
    }

    /// The same of the reverse table.
    pub fn reverse(&self, port: u16) -> Result<Vec<Reverse>> {
        let mut found = Vec::new();
        for entry in self.reverse.iter() {
            let (key, value) = entry.context("the reverse table")?;
            let (client, endpoint) = ends(&key);
            found.retain(|old: &Reverse| {
                (old.client, old.endpoint) != (client, endpoint) || old.protocol != key[12]
            });
            let own_port = u16::from_be((value[7] >> 16) as u16);
            if own_port == port && IpAddr::V4(*client.ip()) == lab::topology::CLIENT_V4 {
                found.push(Reverse {
                    client,
                    endpoint,
                    own_port,
                    protocol: key[12],
                    state: value[1],
                });
            }
        }
        Ok(found)
    }

    /// A flow of the lab's client, once both its entries are there and confirmed, to be looked for again
    /// while thousands of others come and go: a walk may then miss what it has not come to, since room
    /// that is given to another key leads it elsewhere.
    pub fn confirmed_flow(&self, port: u16) -> Result<Flow> {
        let (forward, reverse) = (self.forward(port)?, self.reverse(port)?);
        let ([forward], [reverse]) = (&forward[..], &reverse[..]) else {
            bail!("port {port}: {forward:?} {reverse:?}");
        };
        ensure!(reverse.is_confirmed(), "port {port}: {reverse:?}");
        Ok(Flow {
            forward: key(forward.client, forward.vip, forward.protocol),
            reverse: key(reverse.client, reverse.endpoint, reverse.protocol),
        })
    }

    /// Is a flow as it was found?
    pub fn still(&self, flow: &Flow) -> Result<()> {
        let port = ends(&flow.forward).0.port();
        self.forward
            .get(&flow.forward, 0)
            .with_context(|| format!("port {port}: its forward entry is gone"))?;
        let value = self
            .reverse
            .get(&flow.reverse, 0)
            .with_context(|| format!("port {port}: its reverse entry is gone"))?;
        ensure!(
            value[1] & FLOW_CONFIRMED != 0,
            "port {port} is not confirmed any more"
        );
        Ok(())
    }

    /// Are there entries about this port?
    pub fn hold(&self, port: u16) -> Result<bool> {
        Ok(!self.forward(port)?.is_empty() || !self.reverse(port)?.is_empty())
    }

    /// Waits until there is no entry about this port.
    pub fn wait_empty(&self, port: u16, what: &str) -> Result<()> {
        until(&format!("no entry of {what}"), || {
            let (forward, reverse) = (self.forward(port)?, self.reverse(port)?);
            ensure!(
                forward.is_empty() && reverse.is_empty(),
                "{forward:?} {reverse:?}"
            );
            Ok(())
        })
    }

    /// How many flows there are.
    pub fn count(&self) -> usize {
        self.reverse.keys().filter(Result::is_ok).count()
    }

    /// How many flows may get their entries before their client has shown that it is there.
    pub fn grants(&self) -> Result<u64> {
        let [_, granted, limit, ..] = self.node.get(&0, 0)?;
        Ok(limit.saturating_sub(granted))
    }
}

/// Where both entries of a flow are.
pub struct Flow {
    forward: [u8; 16],
    reverse: [u8; 16],
}

fn key(client: SocketAddrV4, other: SocketAddrV4, protocol: u8) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&client.ip().octets());
    key[4..8].copy_from_slice(&other.ip().octets());
    key[8..10].copy_from_slice(&client.port().to_be_bytes());
    key[10..12].copy_from_slice(&other.port().to_be_bytes());
    key[12] = protocol;
    key
}

/// The client's and the other end of a key.
fn ends(key: &[u8; 16]) -> (SocketAddrV4, SocketAddrV4) {
    let ip = |at: usize| Ipv4Addr::new(key[at], key[at + 1], key[at + 2], key[at + 3]);
    let port = |at: usize| u16::from_be_bytes([key[at], key[at + 1]]);
    (
        SocketAddrV4::new(ip(0), port(8)),
        SocketAddrV4::new(ip(4), port(10)),
    )
}
