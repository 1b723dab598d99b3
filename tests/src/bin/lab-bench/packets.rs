//! The packets that are measured: headers without options, by family and direction.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::job::{FIRST_ADDRESS, FIRST_PORT, TEMPLATE_LEN};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub const fn shown(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Offsets of source address, its length, and the TCP header.
    pub const fn layout(self) -> (usize, usize, usize) {
        match self {
            Self::V4 => (26, 4, 34),
            Self::V6 => (22, 16, 54),
        }
    }
}

pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);
pub const VIP_PORT: u16 = 80;
/// Nobody's address.
const ELSEWHERE_V4: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 10);
const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x97, 0, 0, 0, 0, 0, 0x10);
pub const MASTER_V4: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
pub const MASTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2);
pub const BACKUP_V4: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 2);
pub const BACKUP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 3, 0, 0, 0, 0, 0, 2);
pub const ENDPOINT_PORT: u16 = 8080;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The client's SYN to the VIP.
    Open,
    /// The master's SYN-ACK to the client.
    Answer,
    /// The client's data to the VIP.
    Data,
    /// The master's data to the client.
    Back,
    /// The client's data to an address that is nobody's VIP.
    Elsewhere,
    /// Data from such an address to the client.
    BackElsewhere,
    /// The client's RST to the VIP.
    Reset,
}

impl Kind {
    /// From an endpoint to the client.
    pub const fn is_back(self) -> bool {
        matches!(self, Self::Answer | Self::Back | Self::BackElsewhere)
    }

    const fn flags(self) -> u8 {
        match self {
            Self::Open => SYN,
            Self::Answer => SYN | ACK,
            Self::Data | Self::Back | Self::Elsewhere | Self::BackElsewhere => ACK,
            Self::Reset => RST,
        }
    }
}

/// The address of the server's side: VIP, endpoint or nobody's.
fn server(kind: Kind, family: Family) -> (Vec<u8>, u16) {
    let (v4, v6, port) = match kind {
        Kind::Answer | Kind::Back => (MASTER_V4, MASTER_V6, ENDPOINT_PORT),
        Kind::Elsewhere | Kind::BackElsewhere => (ELSEWHERE_V4, ELSEWHERE_V6, VIP_PORT),
        Kind::Open | Kind::Data | Kind::Reset => (VIP_V4, VIP_V6, VIP_PORT),
    };
    match family {
        Family::V4 => (v4.octets().to_vec(), port),
        Family::V6 => (v6.octets().to_vec(), port),
    }
}

/// The client of flow 0.
fn client(family: Family) -> Vec<u8> {
    let low = FIRST_ADDRESS.to_be_bytes();
    match family {
        Family::V4 => low.to_vec(),
        Family::V6 => {
            let mut address = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0).octets();
            address[12..].copy_from_slice(&low);
            address.to_vec()
        }
    }
}

/// A frame with checksums of flow 0. Data is ten bytes; what opens, answers or resets
/// has none, so that a RST in its place has the same length and the next packet fits.
pub fn frame(kind: Kind, family: Family) -> Vec<u8> {
    let payload: &[u8] = match kind {
        Kind::Data | Kind::Back | Kind::Elsewhere | Kind::BackElsewhere => b"0123456789",
        Kind::Open | Kind::Answer | Kind::Reset => b"",
    };
    let mut tcp_source = (client(family), FIRST_PORT);
    let mut tcp_target = server(kind, family);
    if kind.is_back() {
        std::mem::swap(&mut tcp_source, &mut tcp_target);
    }
    let length = (20 + payload.len()) as u16;

    let mut tcp = Vec::new();
    tcp.extend(tcp_source.1.to_be_bytes());
    tcp.extend(tcp_target.1.to_be_bytes());
    tcp.extend([0, 0, 0x10, 0, 0, 0, 0x20, 0]);
    tcp.extend([5 << 4, kind.flags(), 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    let mut pseudo = [tcp_source.0.clone(), tcp_target.0.clone()].concat();
    pseudo.extend([0, 6]);
    pseudo.extend(length.to_be_bytes());
    pseudo.extend(&tcp);
    tcp[16..18].copy_from_slice(&checksum(&pseudo));

    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match family {
        Family::V4 => {
            frame.extend([0x08, 0x00]);
            let mut ip = vec![0x45, 0];
            ip.extend((20 + length).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            ip.extend(tcp_source.0);
            ip.extend(tcp_target.0);
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum);
            frame.extend(ip);
        }
        Family::V6 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([6, 64]);
            frame.extend(tcp_source.0);
            frame.extend(tcp_target.0);
        }
    }
    frame.extend(tcp);
    frame
}

/// The headers of [`frame`] as a driver restores them.
pub fn template(kind: Kind, family: Family) -> [u8; TEMPLATE_LEN] {
    let frame = frame(kind, family);
    let mut template = [0; TEMPLATE_LEN];
    let length = TEMPLATE_LEN.min(frame.len());
    template[..length].copy_from_slice(&frame[..length]);
    template
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Source and destination of a frame, each address and port.
pub fn ends(frame: &[u8], family: Family) -> [(Vec<u8>, u16); 2] {
    let (source, length, tcp) = family.layout();
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let target = source + length;
    [
        (frame[source..target].to_vec(), port(tcp)),
        (frame[target..target + length].to_vec(), port(tcp + 2)),
    ]
}

/// The master as the far end of a packet.
pub fn master(family: Family) -> (Vec<u8>, u16) {
    server(Kind::Back, family)
}

/// The VIP as the far end of a packet.
pub fn vip(family: Family) -> (Vec<u8>, u16) {
    server(Kind::Data, family)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    /// A second opinion: a packet that is malformed would be passed, and measured.
    #[test]
    fn frames_are_whole_and_their_checksums_right() {
        for kind in [
            Kind::Open,
            Kind::Answer,
            Kind::Data,
            Kind::Back,
            Kind::Elsewhere,
            Kind::Reset,
        ] {
            for family in Family::BOTH {
                let frame = frame(kind, family);
                let packet = SlicedPacket::from_ethernet(&frame).expect("it parses");
                let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
                    panic!("{kind:?} {family:?} is no TCP");
                };
                let header = tcp.to_header();
                assert_eq!(header.syn, matches!(kind, Kind::Open | Kind::Answer));
                assert_eq!(header.rst, kind == Kind::Reset);
                let (sum, payload) = match packet.net.as_ref().expect("it has an IP header") {
                    NetSlice::Ipv4(ip) => {
                        let ip = ip.header().to_header();
                        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                        let payload = tcp.payload();
                        (header.calc_checksum_ipv4(&ip, payload), payload)
                    }
                    NetSlice::Ipv6(ip) => {
                        let payload = tcp.payload();
                        let ip = ip.header().to_header();
                        (header.calc_checksum_ipv6(&ip, payload), payload)
                    }
                    NetSlice::Arp(_) => panic!("{kind:?} {family:?} is ARP"),
                };
                assert_eq!(header.checksum, sum.expect("it is short"));
                let data = matches!(
                    kind,
                    Kind::Data | Kind::Back | Kind::Elsewhere | Kind::BackElsewhere
                );
                assert_eq!(payload.len(), if data { 10 } else { 0 });
                let server = if kind.is_back() { 0 } else { 1 };
                assert_eq!(ends(&frame, family)[server], server_of(kind, family));
            }
        }
    }

    fn server_of(kind: Kind, family: Family) -> (Vec<u8>, u16) {
        match kind {
            Kind::Answer | Kind::Back => master(family),
            Kind::Elsewhere | Kind::BackElsewhere => server(Kind::Elsewhere, family),
            Kind::Open | Kind::Data | Kind::Reset => vip(family),
        }
    }
}
