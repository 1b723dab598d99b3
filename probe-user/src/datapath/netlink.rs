//! The few questions that attaching, detaching and self-distrust ask of rtnetlink, in one
//! blocking exchange each. They work in the network namespace of the caller,
//! where `/sys` may show another.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
    tc::{TcAttribute, TcHandle, TcMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `TC_H_CLSACT`: the parent of the clsact qdisc.
const CLSACT_PARENT: u32 = 0xffff_fff1;
/// Its ingress and egress sides, where filters hang.
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
/// The handle the kernel gives clsact.
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpOnLink {
    /// `native`, `generic`, `offloaded` or `several`.
    pub mode: &'static str,
    /// Its id.
    pub id: u32,
}

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Do its packets begin with an Ethernet header?
    pub ethernet: bool,
    /// The XDP program on it.
    pub xdp: Option<XdpOnLink>,
}

/// Every interface.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = exchange(message, NLM_F_REQUEST | NLM_F_DUMP)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(interface(link)),
            _ => None,
        })
        .collect())
}

/// One interface, if it exists.
pub fn find(ifindex: u32) -> io::Result<Option<Interface>> {
    Ok(interfaces()?
        .into_iter()
        .find(|interface| interface.ifindex == ifindex))
}

fn interface(link: LinkMessage) -> Interface {
    let mut out = Interface {
        ifindex: link.header.index,
        name: String::new(),
        ethernet: matches!(
            link.header.link_layer_type,
            LinkLayerType::Ether | LinkLayerType::Loopback
        ),
        xdp: None,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => out.name = name,
            LinkAttribute::Xdp(parts) => out.xdp = xdp(&parts),
            _ => {}
        }
    }
    out
}

fn xdp(parts: &[LinkXdp]) -> Option<XdpOnLink> {
    let mut mode = None;
    let mut id = 0;
    for part in parts {
        match part {
            LinkXdp::Attached(XdpAttached::Driver) => mode = Some("native"),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some("generic"),
            LinkXdp::Attached(XdpAttached::Hardware) => mode = Some("offloaded"),
            LinkXdp::Attached(XdpAttached::Multiple) => mode = Some("several"),
            LinkXdp::ProgId(program)
            | LinkXdp::DrvProgId(program)
            | LinkXdp::SkbProgId(program)
            | LinkXdp::HwProgId(program)
                if *program != 0 =>
            {
                id = *program;
            }
            _ => {}
        }
    }
    mode.map(|mode| XdpOnLink { mode, id })
}

/// Removes the clsact qdisc of an interface, and with it every filter on it.
pub fn delete_clsact(ifindex: u32) -> io::Result<()> {
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.family = AddressFamily::Unspec;
    message.header.parent = TcHandle::from(CLSACT_PARENT);
    message.header.handle = TcHandle::from(CLSACT_HANDLE);
    message
        .attributes
        .push(TcAttribute::Kind("clsact".to_owned()));
    exchange(
        RouteNetlinkMessage::DelQueueDiscipline(message),
        NLM_F_REQUEST | NLM_F_ACK,
    )
    .map(drop)
}

/// Does the interface have a clsact qdisc?
pub fn has_clsact(ifindex: u32) -> io::Result<bool> {
    let message = TcMessage::with_index(ifindex as i32);
    let answers = exchange(
        RouteNetlinkMessage::GetQueueDiscipline(message),
        NLM_F_REQUEST | NLM_F_DUMP,
    )?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            qdisc.header.index == ifindex as i32
                && qdisc
                    .attributes
                    .iter()
                    .any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "clsact"))
        }
        _ => false,
    }))
}

/// How many filters hang on both sides of an interface's clsact.
pub fn clsact_filters(ifindex: u32) -> io::Result<usize> {
    let mut count = 0;
    for parent in [CLSACT_INGRESS, CLSACT_EGRESS] {
        let mut message = TcMessage::with_index(ifindex as i32);
        message.header.parent = TcHandle::from(parent);
        let answers = exchange(
            RouteNetlinkMessage::GetTrafficFilter(message),
            NLM_F_REQUEST | NLM_F_DUMP,
        )?;
        count += answers
            .iter()
            .filter(|answer| matches!(answer, RouteNetlinkMessage::NewTrafficFilter(_)))
            .count();
    }
    Ok(count)
}

/// Sends one request and collects its answers.
pub(crate) fn exchange(
    message: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    request.header.sequence_number = 1;
    request.finalize();
    let mut bytes = vec![0; request.header.length as usize];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            let length = (answer.header.length as usize).next_multiple_of(4);
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) => {
                    // An error without a code is the acknowledgment.
                    return match error.code {
                        None => Ok(answers),
                        Some(_) => Err(error.to_io()),
                    };
                }
                NetlinkPayload::InnerMessage(message) => answers.push(message),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
