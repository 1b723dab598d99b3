//! By which link and gateway the kernel would send to a host, and whether they are there.
//!
//! Three questions to rtnetlink at most, each answered by the kernel at once; they are only asked
//! when an endpoint has fallen silent. What cannot be asked is no witness.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

use crate::{
    datapath::netlink::exchange,
    failover::cut::{Gone, Hop, Way, Ways},
};

/// With an answer, and the end of it.
const QUESTION: u16 = NLM_F_REQUEST | NLM_F_ACK;

/// The kernel of this network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

/// What a host's packets would be sent by.
#[derive(Clone, Copy, Debug)]
enum Route {
    /// Nothing leaves the node.
    Local,
    /// An interface, and a gateway if the host is no neighbour.
    By(u32, Option<IpAddr>),
    /// Nothing.
    None,
}

impl Ways for Kernel {
    fn way(&mut self, host: IpAddr) -> Option<Way> {
        let way = |gateway, gone| Way {
            host,
            gateway,
            gone,
        };
        match route(host).ok()? {
            Route::Local => Some(way(None, None)),
            Route::None => Some(way(None, Some(Gone::Route))),
            Route::By(ifindex, gateway) => {
                let gone = link(ifindex).ok()?.map(Gone::Link);
                let hop = |at| (at, neighbour(ifindex, at).unwrap_or(Hop::Known));
                Some(way(gateway.map(hop), gone))
            }
        }
    }

    fn prove(&mut self, host: IpAddr) {
        let Ok(Route::By(ifindex, Some(gateway))) = route(host) else {
            return;
        };
        let mut message = of_neighbour(ifindex, gateway);
        message.header.state = NeighbourState::Probe;
        // Who may not ask finds that it is not being asked.
        let _ = exchange(
            RouteNetlinkMessage::NewNeighbour(message),
            QUESTION | NLM_F_REPLACE,
        );
    }
}

fn route(host: IpAddr) -> io::Result<Route> {
    let mut message = RouteMessage::default();
    let (family, bits, to) = match host {
        IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(to));
    let answers = match exchange(RouteNetlinkMessage::GetRoute(message), QUESTION) {
        Ok(answers) => answers,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => Ok(Route::None),
                _ => Err(error),
            };
        }
    };
    let found = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    let found = found.ok_or(io::ErrorKind::InvalidData)?;
    match found.header.kind {
        RouteType::Local => return Ok(Route::Local),
        // IPv6 answers so where it has none.
        RouteType::Unreachable => return Ok(Route::None),
        _ => {}
    }
    let (mut oif, mut gateway) = (None, None);
    for attribute in found.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => oif = Some(ifindex),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::V4(ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(IpAddr::V6(ip)),
            _ => {}
        }
    }
    let oif = oif.ok_or(io::ErrorKind::InvalidData)?;
    let unset = |ip: &IpAddr| *ip == Ipv4Addr::UNSPECIFIED || *ip == Ipv6Addr::UNSPECIFIED;
    Ok(Route::By(oif, gateway.filter(|ip| !unset(ip))))
}

/// The name of an interface that is down or has no carrier. A bridge has none of its own: it says
/// whether any port has, which may be those of the endpoints.
fn link(ifindex: u32) -> io::Result<Option<String>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let answers = exchange(RouteNetlinkMessage::GetLink(message), QUESTION)?;
    let found = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    let found = found.ok_or(io::ErrorKind::InvalidData)?;
    let is_up = found
        .header
        .flags
        .contains(LinkFlags::Up | LinkFlags::LowerUp);
    let (mut name, mut bridge) = (String::new(), false);
    for attribute in found.attributes {
        match attribute {
            LinkAttribute::IfName(it) => name = it,
            LinkAttribute::LinkInfo(parts) => {
                bridge = parts.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    Ok((!is_up && !bridge).then_some(name))
}

fn of_neighbour(ifindex: u32, at: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, at) = match at {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(at));
    message
}

fn neighbour(ifindex: u32, at: IpAddr) -> io::Result<Hop> {
    let message = of_neighbour(ifindex, at);
    let answers = match exchange(RouteNetlinkMessage::GetNeighbour(message), QUESTION) {
        Ok(answers) => answers,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Hop::Forgotten),
        Err(error) => return Err(error),
    };
    let found = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
        _ => None,
    });
    Ok(match found.map(|of| of.header.state) {
        Some(NeighbourState::Failed | NeighbourState::Incomplete) => Hop::Silent,
        Some(NeighbourState::Probe) => Hop::Asked,
        Some(_) => Hop::Known,
        None => Hop::Forgotten,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_leaves_no_node() {
        for host in ["127.0.0.1", "::1"] {
            let host = host.parse().unwrap();
            let way = Kernel.way(host);
            // A machine without IPv6 knows nothing of the second.
            assert!(way.is_none_or(|way| way.gone.is_none_or(|gone| gone == Gone::Route)));
        }
        let way = Kernel.way([127, 0, 0, 1].into()).unwrap();
        assert_eq!((way.gateway, way.gone), (None, None));
    }
}
