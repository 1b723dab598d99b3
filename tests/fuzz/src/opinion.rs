//! The second opinion: etherparse reads the same bytes.
//!
//! Both directions are checked. What we act on must be there in etherparse's eyes, at
//! the same place; and a whole packet that etherparse finds must be found by us, unless
//! a documented bound says why not.

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, Ipv4HeaderSlice, Ipv6ExtensionSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, LaxNetSlice, LaxSlicedPacket, LinkExtSlice, NetSlice,
    SlicedPacket, TcpSlice, TransportSlice, UdpHeaderSlice, checksum::Sum16BitWords, err,
    err::packet::SliceError,
};
use probe_ebpf::{
    abi::Reason,
    packet::{
        Piece, Quoted, Segment,
        parse::{EXTENSIONS, ICMP, ICMPV6, TCP, UDP},
    },
};

use crate::check::{Carried, Found, Ip};

/// Panics where etherparse and we disagree about the frame.
pub fn agree(frame: &[u8], found: &Result<Found, Reason>) {
    match found {
        Ok(Found::V4(carried)) => carried_alike(frame, carried),
        Ok(Found::V6(carried)) => carried_alike(frame, carried),
        Err(reason) => nothing_missed(frame, *reason),
    }
}

fn carried_alike<A: Ip>(frame: &[u8], carried: &Carried<A>) {
    match carried {
        Carried::Segment(segment) => segment_alike(frame, segment),
        Carried::Error(quoted) => error_alike(frame, quoted),
        Carried::Piece(piece) => piece_alike(frame, piece),
    }
}

/// Where a part of the frame begins.
fn at(frame: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - frame.as_ptr().addr()
}

/// The frame in etherparse's eyes. `None` where it is stricter than we are: it refuses
/// hop-by-hop options anywhere but directly behind the IPv6 header (RFC 8200 section
/// 4.1), which is for the receiver to refuse.
fn sliced<'a>(frame: &'a [u8], ours: &dyn std::fmt::Debug) -> Option<SlicedPacket<'a>> {
    match SlicedPacket::from_ethernet(frame) {
        Ok(sliced) => Some(sliced),
        Err(SliceError::Ipv6Exts(err::ipv6_exts::HeaderError::HopByHopNotAtStart)) => None,
        Err(error) => panic!("we found {ours:?}, etherparse says: {error}"),
    }
}

/// Offset of the IP header, source, destination.
fn addresses(frame: &[u8], net: &NetSlice) -> (usize, Vec<u8>, Vec<u8>) {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            (
                at(frame, header.slice()),
                header.source().to_vec(),
                header.destination().to_vec(),
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (
                at(frame, header.slice()),
                header.source().to_vec(),
                header.destination().to_vec(),
            )
        }
        NetSlice::Arp(_) => panic!("we found an IP packet, etherparse found ARP"),
    }
}

fn segment_alike<A: Ip>(frame: &[u8], ours: &Segment<A>) {
    let Some(sliced) = sliced(frame, ours) else {
        return;
    };
    let net = sliced.net.as_ref().expect("a network layer");
    let theirs = addresses(frame, net);
    assert_eq!((ours.l3, ours.src_be.raw(), ours.dst_be.raw()), theirs);
    let payload = net.ip_payload_ref().expect("a payload");
    assert_eq!(ours.protocol, payload.ip_number.0, "protocol");
    assert_eq!(ours.l4, at(frame, payload.payload), "offset of its header");
    assert_eq!(ours.fragmented, payload.fragmented, "first fragment?");
    if ours.fragmented {
        assert_eq!(identification(net), Some(identified::<A>(ours.id_be)));
    } else {
        let transport = sliced.transport.as_ref();
        match ours.protocol {
            TCP => assert!(matches!(transport, Some(TransportSlice::Tcp(_)))),
            _ => assert!(matches!(transport, Some(TransportSlice::Udp(_)))),
        }
    }
    let ports = (
        u16::from_be(ours.src_port_be),
        u16::from_be(ours.dst_port_be),
    );
    if ours.protocol == TCP {
        let tcp = TcpSlice::from_slice(payload.payload).expect("a TCP header");
        assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
        assert_eq!(ours.seq, tcp.sequence_number());
        assert_eq!(ours.ack, tcp.acknowledgment_number());
        assert_eq!(ours.flags, tcp.slice()[13]);
        assert_eq!(ours.payload as usize, tcp.payload().len());
    } else {
        assert_eq!(ours.protocol, UDP);
        let udp = UdpHeaderSlice::from_slice(payload.payload).expect("a UDP header");
        assert_eq!(ports, (udp.source_port(), udp.destination_port()));
        assert_eq!((ours.seq, ours.ack, ours.flags), (0, 0, 0));
        assert_eq!(ours.payload as usize, payload.payload.len() - 8);
    }
}

/// The number of an identification as it stands in the packet: two bytes in IPv4.
fn identified<A: Ip>(id_be: u32) -> u32 {
    if A::VERSION == 4 {
        u16::from_be(id_be as u16).into()
    } else {
        u32::from_be(id_be)
    }
}

/// Of a fragment.
fn identification(net: &NetSlice) -> Option<u32> {
    match net {
        NetSlice::Ipv4(ip) => Some(u32::from(ip.header().identification())),
        NetSlice::Ipv6(ip) => ip.extensions().clone().into_iter().find_map(fragments),
        NetSlice::Arp(_) => None,
    }
}

/// The identification in a fragment header that is not one of a whole packet.
fn fragments(extension: Ipv6ExtensionSlice) -> Option<u32> {
    match extension {
        Ipv6ExtensionSlice::Fragment(header) if header.is_fragmenting_payload() => {
            Some(header.identification())
        }
        _ => None,
    }
}

fn error_alike<A: Ip>(frame: &[u8], ours: &Quoted<A>) {
    let Some(sliced) = sliced(frame, ours) else {
        return;
    };
    let net = sliced.net.as_ref().expect("a network layer");
    let theirs = addresses(frame, net);
    assert_eq!((ours.l3, ours.src_be.raw(), ours.dst_be.raw()), theirs);
    let (icmp, quotation) = match sliced.transport.as_ref().expect("an ICMP header") {
        TransportSlice::Icmpv4(icmp) => {
            assert!(is_error_v4(icmp), "an ICMP error");
            (icmp.slice(), icmp.payload())
        }
        TransportSlice::Icmpv6(icmp) => {
            assert!(is_error_v6(icmp), "an ICMPv6 error");
            (icmp.slice(), icmp.payload())
        }
        other => panic!("we found an ICMP error, etherparse {other:?}"),
    };
    assert_eq!(ours.l4, at(frame, icmp), "offset of the ICMP header");
    assert_eq!(ours.inner_l3, at(frame, quotation), "offset of the quote");
    let quote = Quote::read(A::VERSION, quotation).expect("a quotation within the packet");
    assert_eq!(ours.inner_l4, ours.inner_l3 + quote.header);
    assert_eq!(ours.protocol, quote.protocol);
    assert!(!quote.later, "the first fragment is quoted");
    assert_eq!(ours.inner_src_be.raw(), quote.src);
    assert_eq!(ours.inner_dst_be.raw(), quote.dst);
    let ports = [
        u16::from_be(ours.inner_src_port_be),
        u16::from_be(ours.inner_dst_port_be),
    ];
    assert_eq!(Some(ports), quote.ports);
}

/// Destination unreachable, time exceeded, parameter problem (RFC 792).
fn is_error_v4(icmp: &Icmpv4Slice) -> bool {
    matches!(icmp.type_u8(), 3 | 11 | 12)
}

/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
fn is_error_v6(icmp: &Icmpv6Slice) -> bool {
    matches!(icmp.type_u8(), 1..=4)
}

/// The packet that an ICMP error quotes.
struct Quote {
    header: usize,
    protocol: u8,
    later: bool,
    src: Vec<u8>,
    dst: Vec<u8>,
    /// If they are within the quotation.
    ports: Option<[u16; 2]>,
}

impl Quote {
    fn read(version: u8, quotation: &[u8]) -> Option<Self> {
        let mut quote = if version == 4 {
            let ip = Ipv4HeaderSlice::from_slice(quotation).ok()?;
            Self {
                header: ip.slice().len(),
                protocol: ip.protocol().0,
                later: ip.fragments_offset().value() != 0,
                src: ip.source().to_vec(),
                dst: ip.destination().to_vec(),
                ports: None,
            }
        } else {
            let ip = Ipv6HeaderSlice::from_slice(quotation).ok()?;
            Self {
                header: ip.slice().len(),
                protocol: ip.next_header().0,
                later: false,
                src: ip.source().to_vec(),
                dst: ip.destination().to_vec(),
                ports: None,
            }
        };
        if let Some(&[a, b, c, d]) = quotation.get(quote.header..quote.header + 4) {
            quote.ports = Some([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        }
        Some(quote)
    }
}

fn piece_alike<A: Ip>(frame: &[u8], ours: &Piece<A>) {
    // Lax, since etherparse reads extension headers even in the middle of a packet.
    let lax = LaxSlicedPacket::from_ethernet(frame).expect("an Ethernet header");
    match lax.net.as_ref().expect("a network layer") {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(ours.l3, at(frame, header.slice()));
            assert_eq!(ours.src_be.raw(), header.source());
            assert_eq!(ours.dst_be.raw(), header.destination());
            assert_eq!(
                identified::<A>(ours.id_be),
                u32::from(header.identification())
            );
            assert_eq!(ours.protocol, header.protocol().0);
            assert_ne!(header.fragments_offset().value(), 0);
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            assert_eq!(ours.l3, at(frame, header.slice()));
            assert_eq!(ours.src_be.raw(), header.source());
            assert_eq!(ours.dst_be.raw(), header.destination());
            let id = fragment_of(header.next_header().0, &frame[ours.l3 + 40..]);
            assert_eq!(id, Some(identified::<A>(ours.id_be)));
        }
        LaxNetSlice::Arp(_) => panic!("we found a fragment, etherparse found ARP"),
    }
}

/// The identification in the first fragment header that makes a fragment. Header by
/// header, since etherparse 0.21's iterator leaves its slice where lax parsing stopped
/// before hop-by-hop options.
fn fragment_of(mut next: u8, mut rest: &[u8]) -> Option<u32> {
    loop {
        let length = match next {
            0 | 43 | 60 => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                next = header.next_header().0;
                header.slice().len()
            }
            44 => {
                let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                if header.is_fragmenting_payload() {
                    return Some(header.identification());
                }
                next = header.next_header().0;
                header.slice().len()
            }
            _ => return None,
        };
        rest = &rest[length..];
    }
}

/// We found nothing to act on: is there nothing, or a bound that says why?
fn nothing_missed(frame: &[u8], reason: Reason) {
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else {
        return;
    };
    let (Some(net), Some(transport)) = (&sliced.net, &sliced.transport) else {
        return;
    };
    let steerable = match transport {
        TransportSlice::Tcp(_) | TransportSlice::Udp(_) => true,
        TransportSlice::Icmpv4(icmp) => is_error_v4(icmp) && quotes(4, icmp.payload()),
        TransportSlice::Icmpv6(icmp) => is_error_v6(icmp) && quotes(6, icmp.payload()),
        TransportSlice::Igmp(_) => false,
    };
    let of_its_family = matches!(
        (net, transport),
        (_, TransportSlice::Tcp(_) | TransportSlice::Udp(_))
            | (NetSlice::Ipv4(_), TransportSlice::Icmpv4(_))
            | (NetSlice::Ipv6(_), TransportSlice::Icmpv6(_))
    );
    if steerable && of_its_family {
        assert!(
            bound(frame, &sliced, net, reason),
            "{reason:?}, but etherparse found {transport:?}"
        );
    }
}

/// Whether there is enough of a TCP or UDP packet in the quotation to know whose it is.
fn quotes(version: u8, quotation: &[u8]) -> bool {
    Quote::read(version, quotation).is_some_and(|quote| {
        matches!(quote.protocol, TCP | UDP) && !quote.later && quotation.len() >= quote.header + 8
    })
}

/// Whether the reason is a bound that `packet::parse` documents.
fn bound(frame: &[u8], sliced: &SlicedPacket, net: &NetSlice, reason: Reason) -> bool {
    match (reason, net) {
        (Reason::VlanDepth, _) => sliced.link_exts.len() > 2,
        // Tags of a kind that we do not read: 0x9100, MACsec.
        (Reason::NotIp, _) => {
            let mut kind = [frame[12], frame[13]];
            sliced.link_exts.iter().any(|tag| {
                let foreign = !matches!(kind, [0x81, 0x00] | [0x88, 0xa8]);
                if let LinkExtSlice::Vlan(tag) = tag {
                    kind = tag.ether_type().0.to_be_bytes();
                }
                foreign
            })
        }
        (Reason::ExtensionHeader, NetSlice::Ipv6(ip)) => {
            let all: Vec<_> = ip.extensions().clone().into_iter().collect();
            all.len() > EXTENSIONS || all.iter().any(is_refused)
        }
        // An authentication header.
        (Reason::NotSteerable, NetSlice::Ipv4(ip)) => !ip.extensions().is_empty(),
        // To etherparse a length of zero means a jumbogram of any size.
        (Reason::Malformed, NetSlice::Ipv6(ip)) => ip.header().payload_length() == 0,
        _ => false,
    }
}

/// Extension headers that end the walk.
fn is_refused(extension: &Ipv6ExtensionSlice) -> bool {
    match extension {
        Ipv6ExtensionSlice::Authentication(_) => true,
        Ipv6ExtensionSlice::Routing(routing) => segments_left(routing) != 0,
        _ => false,
    }
}

fn segments_left(routing: &Ipv6RawExtHeaderSlice) -> u8 {
    routing.slice()[3]
}

/// What is left of a checksum when all that it covers is added up: zero if it is right,
/// and if it is wrong the same whatever is changed together with it.
pub fn residue(pseudo: &[&[u8]], covered: &[u8]) -> u16 {
    let mut sum = Sum16BitWords::new();
    for part in pseudo {
        sum = sum.add_slice(part);
    }
    match sum.add_slice(covered).ones_complement() {
        // The two zeros of one's complement.
        0xffff => 0,
        left => left,
    }
}

/// The pseudo-header of a packet whose addresses stand in a row in its header (RFC 9293
/// section 3.1, RFC 8200 section 8.1).
pub fn pseudo_tail(protocol: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [a, b, c, d, 0, 0, 0, protocol]
}

/// Makes the checksums right that etherparse finds.
pub fn repair(frame: &mut [u8]) {
    let before = frame.to_vec();
    let Ok(sliced) = SlicedPacket::from_ethernet(&before) else {
        return;
    };
    let Some(net) = &sliced.net else { return };
    if matches!(net, NetSlice::Arp(_)) {
        return;
    }
    let (l3, src, dst) = addresses(&before, net);
    let header = match net {
        NetSlice::Ipv4(ip) => Some(ip.header().slice().len()),
        _ => None,
    };
    // Offset, end, offset of the checksum, and the protocol if there is a pseudo-header.
    let transport = sliced.transport.as_ref().and_then(|transport| {
        let (slice, checksum, protocol) = match transport {
            TransportSlice::Tcp(tcp) => (tcp.slice(), 16, Some(TCP)),
            TransportSlice::Udp(udp) => (udp.slice(), 6, Some(UDP)),
            TransportSlice::Icmpv4(icmp) => (icmp.slice(), 2, None),
            TransportSlice::Icmpv6(icmp) => (icmp.slice(), 2, Some(ICMPV6)),
            TransportSlice::Igmp(_) => return None,
        };
        let from = at(&before, slice);
        let is_icmp = matches!(protocol, None | Some(ICMPV6));
        let quoted = is_icmp
            .then(|| Quote::read(4, before.get(from + 8..from + slice.len())?))
            .flatten()
            .filter(|_| header.is_some())
            .map(|quote| (from + 8, quote.header));
        Some((from, from + slice.len(), checksum, protocol, quoted))
    });
    if let Some(length) = header {
        put(frame, &[], l3, l3 + length, 10);
    }
    let Some((from, to, checksum, protocol, quoted)) = transport else {
        return;
    };
    if let Some((inner, length)) = quoted {
        put(frame, &[], inner, inner + length, 10);
    }
    match protocol {
        Some(protocol) => {
            let tail = pseudo_tail(protocol, to - from);
            put(frame, &[&src, &dst, &tail], from, to, checksum);
            let field = from + checksum;
            if protocol == UDP && frame[field..field + 2] == [0, 0] {
                frame[field..field + 2].fill(0xff);
            }
        }
        None => put(frame, &[], from, to, checksum),
    }
}

/// Writes the checksum over a part of the frame.
fn put(frame: &mut [u8], pseudo: &[&[u8]], from: usize, to: usize, checksum: usize) {
    let field = from + checksum;
    frame[field..field + 2].fill(0);
    let mut sum = Sum16BitWords::new();
    for part in pseudo {
        sum = sum.add_slice(part);
    }
    let sum = sum.add_slice(&frame[from..to]).ones_complement();
    frame[field..field + 2].copy_from_slice(&sum.to_ne_bytes());
}

/// Is this a whole RST with right checksums and nothing behind it? Panics if not.
pub fn is_reset(frame: &[u8], header_was_right: bool) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        panic!("a RST that is no TCP segment: {:?}", sliced.transport);
    };
    let (wanted, end) = match sliced.net.as_ref().expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            if header_was_right {
                let left = residue(&[], header.slice());
                assert_eq!(left, 0, "the IPv4 header's checksum");
            }
            (
                tcp.calc_checksum_ipv4(header.source(), header.destination()),
                at(frame, header.slice()) + usize::from(header.total_len()),
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            assert!(ip.extensions().is_empty(), "extension headers in a RST");
            (
                tcp.calc_checksum_ipv6(header.source(), header.destination()),
                at(frame, header.slice()) + 40 + usize::from(header.payload_length()),
            )
        }
        NetSlice::Arp(_) => panic!("a RST in ARP"),
    };
    let wanted = wanted.expect("a short segment");
    let zeros = [0, 0xffff];
    assert!(
        wanted == tcp.checksum() || (zeros.contains(&wanted) && zeros.contains(&tcp.checksum())),
        "the TCP checksum is {:#06x}, not {wanted:#06x}",
        tcp.checksum()
    );
    assert_eq!(end, frame.len(), "nothing behind the packet");
    assert_eq!(tcp.header_slice().len(), 20, "no options");
    assert!(tcp.payload().is_empty() && tcp.rst());
    assert!(!(tcp.syn() || tcp.fin() || tcp.psh() || tcp.urg() || tcp.ece() || tcp.cwr()));
    assert_eq!(tcp.urgent_pointer(), 0);
}

/// Protocol number of the ICMP of a family.
pub const fn icmp_of(version: u8) -> u8 {
    if version == 4 { ICMP } else { ICMPV6 }
}
