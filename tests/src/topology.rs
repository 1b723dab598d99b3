//! The lab's hosts and how they are joined.
//!
//! ```text
//! client 10.1.0.2 --- 10.1.0.1 node 10.2.0.1 --- 10.2.0.2 master
//!                              node 10.3.0.1 --- 10.3.0.2 backup
//! ```
//!
//! and the same with fd00:1:: to fd00:3::. The client's only route is the node.
//! VIPs have no route on the node: without steering they are unreachable.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Result;

use crate::{
    Namespace,
    folder::Folder,
    foreign::{Mode, xdp_pass},
    link::{End, complete_checksums, mac, veth},
};

/// The port of listeners and endpoints.
pub const PORT: u16 = 8079;
pub const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
pub const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2));
pub const MASTER_V4: SocketAddr = v4([10, 2, 0, 2]);
pub const MASTER_V6: SocketAddr = v6(2, 2);
pub const BACKUP_V4: SocketAddr = v4([10, 3, 0, 2]);
pub const BACKUP_V6: SocketAddr = v6(3, 2);
/// The service's listeners.
pub const VIP_V4: SocketAddr = v4([10, 96, 0, 10]);
pub const VIP_V6: SocketAddr = v6(0x96, 0x10);
/// Listeners of one instance each.
pub const VIP_MASTER_V4: SocketAddr = v4([10, 96, 0, 12]);
pub const VIP_MASTER_V6: SocketAddr = v6(0x96, 0x12);
pub const VIP_BACKUP_V4: SocketAddr = v4([10, 96, 0, 11]);
pub const VIP_BACKUP_V6: SocketAddr = v6(0x96, 0x11);

const fn v4(octets: [u8; 4]) -> SocketAddr {
    let [a, b, c, d] = octets;
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), PORT)
}

const fn v6(net: u16, host: u16) -> SocketAddr {
    SocketAddr::new(
        IpAddr::V6(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, host)),
        PORT,
    )
}

/// How the client reaches the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As a pod, by the node's `veth-c`; the endpoints' links are `ep-*`, not steered.
    Edge,
    /// As a pod among pods: the endpoints' links are `veth-*` too.
    EdgeAmongPods,
    /// From outside, by the node's `up0`.
    Uplink,
}

/// Four hosts and a folder.
pub struct Lab {
    pub way: Way,
    pub client: Arc<Namespace>,
    pub node: Arc<Namespace>,
    pub master: Arc<Namespace>,
    pub backup: Arc<Namespace>,
    dir: Folder,
}

impl Lab {
    /// Makes the hosts and joins them.
    pub fn new(way: Way) -> Result<Self> {
        let lab = Self {
            way,
            client: Namespace::new("client")?,
            node: Namespace::new("node")?,
            master: Namespace::new("master")?,
            backup: Namespace::new("backup")?,
            dir: Folder::new()?,
        };
        lab.node.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ])?;
        for endpoint in [&lab.master, &lab.backup] {
            // A silent drop is a routing rule here, and early demultiplexing
            // would spare established connections the look at it.
            endpoint.sysctl(&[("ipv4/ip_early_demux", "0")])?;
        }
        lab.join(&lab.client, lab.client_link(), 1)?;
        let [master, backup] = lab.endpoint_links();
        lab.join(&lab.master, master, 2)?;
        lab.join(&lab.backup, backup, 3)?;
        if way == Way::Uplink {
            // The veth stands for a wire: on a wire checksums are complete.
            complete_checksums(&lab.client, "eth0")?;
            // What XDP_TX sends back over veth is only delivered if the other end has an
            // XDP program too (drivers/net/veth.c, veth_xdp_flush).
            xdp_pass(&lab.client, "eth0", Mode::Native)?;
        }
        Ok(lab)
    }

    /// The node's interface towards the client.
    pub fn client_link(&self) -> &'static str {
        match self.way {
            Way::Edge | Way::EdgeAmongPods => "veth-c",
            Way::Uplink => "up0",
        }
    }

    /// The node's interfaces towards master and backup.
    pub fn endpoint_links(&self) -> [&'static str; 2] {
        match self.way {
            Way::Edge | Way::Uplink => ["ep-m", "ep-b"],
            Way::EdgeAmongPods => ["veth-m", "veth-b"],
        }
    }

    /// One more endpoint's host, with `net`'s addresses: not steered by itself, or a pod
    /// among pods, as master and backup are.
    pub fn endpoint(&self, name: &str, net: u8) -> Result<Arc<Namespace>> {
        let host = Namespace::new(name)?;
        host.sysctl(&[("ipv4/ip_early_demux", "0")])?;
        let link = match self.way {
            Way::Edge | Way::Uplink => format!("ep-{name}"),
            Way::EdgeAmongPods => format!("veth-{name}"),
        };
        self.join(&host, &link, net)?;
        Ok(host)
    }

    /// The addresses of a host that was joined as `net`, with the endpoints' port.
    pub fn addresses(net: u8) -> [SocketAddr; 2] {
        [v4([10, net, 0, 2]), v6(u16::from(net), 2)]
    }

    /// A path for a file of this lab; it vanishes with the lab.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Joins a host's `eth0` to the node; `net` is the subnet's number.
    pub fn join(&self, host: &Arc<Namespace>, node_interface: &str, net: u8) -> Result<()> {
        veth(
            &End {
                namespace: &self.node,
                interface: node_interface,
                mac: net << 4 | 1,
                v4: format!("10.{net}.0.1/24"),
                v6: format!("fd00:{net}::1/64"),
            },
            &End {
                namespace: host,
                interface: "eth0",
                mac: net << 4 | 2,
                v4: format!("10.{net}.0.2/24"),
                v6: format!("fd00:{net}::2/64"),
            },
        )?;
        host.ip([
            format!("route add default via 10.{net}.0.1"),
            format!("route add default via fd00:{net}::1"),
        ])
    }

    /// A host that was joined as `net` and whose `eth0` was down and is up again gets
    /// back what its kernel forgot with the link.
    pub fn rejoin(&self, host: &Arc<Namespace>, net: u8) -> Result<()> {
        host.ip([
            format!("addr replace fd00:{net}::2/64 dev eth0 nodad"),
            format!(
                "neigh replace 10.{net}.0.1 lladdr {} dev eth0 nud permanent",
                mac(net << 4 | 1)
            ),
            format!(
                "neigh replace fd00:{net}::1 lladdr {} dev eth0 nud permanent",
                mac(net << 4 | 1)
            ),
            format!("route replace default via 10.{net}.0.1"),
            format!("route replace default via fd00:{net}::1"),
        ])
    }
}
