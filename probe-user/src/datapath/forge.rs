//! TCP segments made by hand, from the IP header on.
//!
//! Only what needs no connection of ours: no option and no payload. Checksums are complete, so a
//! segment may go out by a raw socket of either family (which fills in the IPv4 header's once
//! more), or into a frame.

use std::net::{IpAddr, SocketAddr};

use probe_ebpf::packet::{
    checksum::Sum,
    parse::{IPV4_LEN, TCP, TCP_LEN},
};

/// An IPv6 header without extension headers.
const IPV6_LEN: usize = 40;
/// The longest packet there is.
pub const ROOM: usize = IPV6_LEN + TCP_LEN;
/// What Linux takes for its own.
const HOPS: u8 = 64;
/// The rest of the flags and offset word: nobody cuts up so little.
const DONT_FRAGMENT: u16 = 1 << 14;

/// A segment without options and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it says that it comes from.
    pub src: SocketAddr,
    /// Where it goes; of the same family.
    pub dst: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number, or zero.
    pub ack: u32,
    /// As [`probe_ebpf::packet::parse`] names them.
    pub flags: u8,
    /// Not scaled.
    pub window: u16,
}

impl Segment {
    /// The whole packet and its length; nothing if its ends are of two families.
    pub fn packet(&self) -> Option<([u8; ROOM], usize)> {
        let mut out = [0; ROOM];
        let (src, dst) = (self.src.ip(), self.dst.ip());
        let header = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                out[0] = 4 << 4 | (IPV4_LEN / 4) as u8;
                out[2..4].copy_from_slice(&((IPV4_LEN + TCP_LEN) as u16).to_be_bytes());
                out[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
                (out[8], out[9]) = (HOPS, TCP);
                out[12..16].copy_from_slice(&src.octets());
                out[16..20].copy_from_slice(&dst.octets());
                let checksum = sum(&out[..IPV4_LEN]).store().0;
                out[10..12].copy_from_slice(&checksum.to_ne_bytes());
                IPV4_LEN
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                out[0] = 6 << 4;
                out[4..6].copy_from_slice(&(TCP_LEN as u16).to_be_bytes());
                (out[6], out[7]) = (TCP, HOPS);
                out[8..24].copy_from_slice(&src.octets());
                out[24..40].copy_from_slice(&dst.octets());
                IPV6_LEN
            }
            _ => return None,
        };
        let tcp = &mut out[header..];
        tcp[0..2].copy_from_slice(&self.src.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&self.dst.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = ((TCP_LEN / 4) as u8) << 4;
        tcp[13] = self.flags;
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        // The pseudo-headers of both families add up alike (RFC 9293 section 3.1, RFC 8200
        // section 8.1): addresses, protocol, length.
        let pseudo = address(src)
            .add(address(dst))
            .add_u16(u16::from(TCP).to_be())
            .add_u16((TCP_LEN as u16).to_be());
        let checksum = pseudo.add(sum(&tcp[..TCP_LEN])).store().0;
        tcp[16..18].copy_from_slice(&checksum.to_ne_bytes());
        Some((out, header + TCP_LEN))
    }
}

fn address(ip: IpAddr) -> Sum {
    match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    }
}

/// Of whole words.
fn sum(bytes: &[u8]) -> Sum {
    bytes.chunks_exact(2).fold(Sum::new(), |sum, word| {
        sum.add_u16(u16::from_ne_bytes([word[0], word[1]]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use probe_ebpf::packet::parse::{ACK, FIN, RST, SYN};
    use proptest::prelude::*;

    /// Reads it as somebody else does, checksums included.
    fn agrees(segment: Segment) {
        let (packet, length) = segment.packet().expect("one family");
        let packet = SlicedPacket::from_ip(&packet[..length]).expect("a whole packet");
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
            panic!("{packet:?}");
        };
        let ends = match packet.net.as_ref().expect("an IP header") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                let sum = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination());
                assert_eq!(tcp.checksum(), sum.expect("short"));
                [header.source, header.destination].map(IpAddr::from)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                let sum = header.source;
                let sum = tcp.calc_checksum_ipv6(sum, header.destination);
                assert_eq!(tcp.checksum(), sum.expect("short"));
                [header.source, header.destination].map(IpAddr::from)
            }
            other => panic!("{other:?}"),
        };
        let flags = [(tcp.fin(), FIN), (tcp.syn(), SYN), (tcp.rst(), RST)];
        let mut flags: u8 = flags
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, bit)| bit)
            .sum();
        if tcp.ack() {
            flags |= ACK;
        }
        let read = Segment {
            src: (ends[0], tcp.source_port()).into(),
            dst: (ends[1], tcp.destination_port()).into(),
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            flags,
            window: tcp.window_size(),
        };
        assert_eq!(read, segment);
        assert!(tcp.payload().is_empty());
    }

    fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<([u8; 4], u16, [u8; 4], u16)>();
        let v6 = any::<([u8; 16], u16, [u8; 16], u16)>();
        prop_oneof![
            v4.prop_map(|(a, p, b, q)| ((a, p).into(), (b, q).into())),
            v6.prop_map(|(a, p, b, q)| ((a, p).into(), (b, q).into())),
        ]
    }

    proptest! {
        #[test]
        fn a_second_reader_agrees(
            (src, dst) in ends(),
            seq: u32,
            ack: u32,
            bits in 0u8..16,
            window: u16,
        ) {
            let flags = [FIN, SYN, RST, ACK];
            let set = flags.iter().enumerate().filter(|(i, _)| bits & 1 << i != 0);
            let flags = set.map(|(_, flag)| flag).sum();
            agrees(Segment { src, dst, seq, ack, flags, window });
        }
    }

    #[test]
    fn two_families_make_no_packet() {
        let v4 = "10.0.0.1:1".parse().expect("an address");
        let v6 = "[fd00::1]:1".parse().expect("an address");
        for (src, dst) in [(v4, v6), (v6, v4)] {
            let segment = Segment {
                src,
                dst,
                seq: 0,
                ack: 0,
                flags: SYN,
                window: 0,
            };
            assert_eq!(segment.packet(), None);
        }
    }
}
