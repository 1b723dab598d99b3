//! Packets, described by what they carry and serialized by etherparse.

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Header, Icmpv4Type, Icmpv6Header,
    Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, TcpOptionElement, UdpHeader,
};

pub const VIP_PORT: u16 = 80;
pub const MASTER_PORT: u16 = 8080;
pub const BACKUP_PORT: u16 = 8081;
pub const CLIENT_PORT: u16 = 50000;
pub const VIP_V4: [u8; 4] = [10, 96, 0, 10];
pub const MASTER_V4: [u8; 4] = [10, 0, 2, 2];
pub const BACKUP_V4: [u8; 4] = [10, 0, 3, 2];
pub const CLIENT_V4: [u8; 4] = [10, 0, 1, 2];
pub const VIP_V6: [u8; 16] = v6(0x96, 0x10);
pub const MASTER_V6: [u8; 16] = v6(2, 2);
pub const BACKUP_V6: [u8; 16] = v6(3, 2);
pub const CLIENT_V6: [u8; 16] = v6(1, 2);
/// What full NAT hides clients behind.
pub const SOURCE_V4: [u8; 4] = [10, 0, 9, 9];
pub const SOURCE_V6: [u8; 16] = v6(9, 9);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const fn v6(net: u8, host: u8) -> [u8; 16] {
    [0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// Who sends or receives: an address in each family, and a port.
#[derive(Clone, Copy, Debug)]
struct Peer {
    v4: [u8; 4],
    v6: [u8; 16],
    port: u16,
}

/// A TCP or UDP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    family: Family,
    udp: bool,
    /// A UDP packet without a checksum.
    unsummed: bool,
    /// IPv6 extension headers, each by its number and its bytes after the first.
    extensions: Vec<(u8, Vec<u8>)>,
    macs: [[u8; 6]; 2],
    tags: Vec<(u16, u16)>,
    src: Peer,
    dst: Peer,
    hop_limit: u8,
    /// IPv4's identification.
    id: u16,
    ipv4_options: Vec<u8>,
    seq: u32,
    ack: u32,
    /// SYN, ACK, RST, PSH.
    flags: [bool; 4],
    window: u16,
    tcp_options: Vec<TcpOptionElement>,
    payload: Vec<u8>,
    trailer: usize,
}

/// A client's packet to a port of the VIP.
pub fn client(family: Family, port: u16) -> Packet {
    Packet {
        family,
        udp: false,
        unsummed: false,
        extensions: Vec::new(),
        macs: [CLIENT_MAC, NODE_MAC],
        tags: Vec::new(),
        src: Peer {
            v4: CLIENT_V4,
            v6: CLIENT_V6,
            port: CLIENT_PORT,
        },
        dst: Peer {
            v4: VIP_V4,
            v6: VIP_V6,
            port,
        },
        hop_limit: 61,
        id: 0x4242,
        ipv4_options: Vec::new(),
        seq: 0x1234_5678,
        ack: 0,
        flags: [false; 4],
        window: 64240,
        tcp_options: Vec::new(),
        payload: Vec::new(),
        trailer: 0,
    }
}

impl Packet {
    pub fn syn(mut self) -> Self {
        self.flags = [true, false, false, false];
        self
    }

    /// A datagram instead of a segment.
    pub fn udp(mut self) -> Self {
        self.udp = true;
        self
    }

    /// Without a checksum, as IPv4 allows (RFC 768).
    pub fn unsummed(mut self) -> Self {
        self.unsummed = true;
        self
    }

    /// Behind IPv6 extension headers: each its number and its bytes after the next
    /// header's number.
    pub fn extensions(mut self, headers: &[(u8, &[u8])]) -> Self {
        self.extensions = headers
            .iter()
            .map(|(kind, rest)| (*kind, rest.to_vec()))
            .collect();
        self
    }

    /// An ICMP error about this packet, from a router to its source: fragmentation
    /// needed or packet too big, quoting the header and `quoted` bytes more.
    pub fn too_big_by_router(&self, quoted: usize) -> Vec<u8> {
        let router = Peer {
            v4: [192, 0, 2, 1],
            v6: v6(0x77, 1),
            port: 0,
        };
        self.too_big_from(router, quoted)
    }

    /// The same, from whoever this packet is addressed to.
    pub fn too_big_by_receiver(&self, quoted: usize) -> Vec<u8> {
        self.too_big_from(self.dst, quoted)
    }

    fn too_big_from(&self, reporter: Peer, quoted: usize) -> Vec<u8> {
        let whole = self.bytes();
        let quote = &whole[self.l3()..(self.l4() + quoted).min(whole.len())];
        let outer = Self {
            macs: [self.macs[1], self.macs[0]],
            src: reporter,
            dst: self.src,
            extensions: Vec::new(),
            ipv4_options: Vec::new(),
            ..self.clone()
        };
        match self.family {
            Family::V4 => {
                let kind = Icmpv4Type::DestinationUnreachable(
                    etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
                        next_hop_mtu: 1400,
                    },
                );
                let mut inner = Icmpv4Header::with_checksum(kind, quote).to_bytes().to_vec();
                inner.extend(quote);
                outer.around(IpNumber::ICMP, &inner)
            }
            Family::V6 => {
                let kind = Icmpv6Type::PacketTooBig { mtu: 1400 };
                let header = Icmpv6Header::with_checksum(kind, outer.src.v6, outer.dst.v6, quote)
                    .expect("a small packet");
                let mut inner = header.to_bytes().to_vec();
                inner.extend(quote);
                outer.around(IpNumber::IPV6_ICMP, &inner)
            }
        }
    }

    pub fn rst(mut self) -> Self {
        self.flags = [false, false, true, false];
        self
    }

    /// A later packet of the same connection, with data.
    pub fn ack(&self, data: &[u8]) -> Self {
        Self {
            flags: [false, true, false, true],
            seq: self.seq.wrapping_add(1),
            ack: 0x9abc_def0,
            tcp_options: Vec::new(),
            payload: data.to_vec(),
            ..self.clone()
        }
    }

    /// The SYN-ACK of whoever this is addressed to.
    pub fn answered(&self) -> Self {
        Self {
            macs: [self.macs[1], self.macs[0]],
            src: self.dst,
            dst: self.src,
            flags: [true, true, false, false],
            seq: 0x0bad_cafe,
            ack: self.seq.wrapping_add(1),
            ..self.clone()
        }
    }

    /// The RST of whoever this SYN is addressed to, as a host sends it where nobody listens.
    pub fn refused(&self) -> Self {
        Self {
            flags: [false, true, true, false],
            seq: 0,
            ack: self.seq.wrapping_add(1 + self.payload.len() as u32),
            window: 0,
            tcp_options: Vec::new(),
            payload: Vec::new(),
            ..self.answered()
        }
    }

    /// With its hardware addresses swapped.
    pub fn back_to_back(mut self) -> Self {
        self.macs.reverse();
        self
    }

    /// Sent by the node.
    pub fn anew(self) -> Self {
        Self { id: 0, ..self }.hops(64)
    }

    /// With so many hops left.
    pub fn hops(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// With another acknowledgment number.
    pub fn acks(mut self, ack: u32) -> Self {
        self.ack = ack;
        self
    }

    pub fn at_master(mut self) -> Self {
        self.dst = Peer {
            v4: MASTER_V4,
            v6: MASTER_V6,
            port: MASTER_PORT,
        };
        self
    }

    pub fn at_backup(mut self) -> Self {
        self.dst = Peer {
            v4: BACKUP_V4,
            v6: BACKUP_V6,
            port: BACKUP_PORT,
        };
        self
    }

    /// From a port of full NAT's source.
    pub fn hidden(mut self, port: u16) -> Self {
        self.src = Peer {
            v4: SOURCE_V4,
            v6: SOURCE_V6,
            port,
        };
        self
    }

    /// From another source port.
    pub fn port(mut self, port: u16) -> Self {
        self.src.port = port;
        self
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub fn tcp_options(mut self, options: &[TcpOptionElement]) -> Self {
        self.tcp_options = options.to_vec();
        self
    }

    pub fn ipv4_options(mut self, options: &[u8]) -> Self {
        self.ipv4_options = options.to_vec();
        self
    }

    /// Tags by TPID and VLAN id, outermost first.
    pub fn vlan(mut self, tags: &[(u16, u16)]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// Zeros behind the IP packet, as Ethernet pads short frames.
    pub fn trailer(mut self, bytes: usize) -> Self {
        self.trailer = bytes;
        self
    }

    fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub fn family(&self) -> Family {
        self.family
    }

    pub fn is_udp(&self) -> bool {
        self.udp
    }

    pub fn source_port(&self) -> u16 {
        self.src.port
    }

    /// Offset of the TCP header.
    pub fn l4(&self) -> usize {
        self.l3()
            + match self.family {
                Family::V4 => 20 + self.ipv4_options.len(),
                Family::V6 => 40 + self.extensions.iter().map(|e| 1 + e.1.len()).sum::<usize>(),
            }
    }

    /// Offset of the IP header's length field.
    pub fn length_at(&self) -> usize {
        self.l3()
            + match self.family {
                Family::V4 => 2,
                Family::V6 => 4,
            }
    }

    /// The bytes, after `change` had its way with them.
    pub fn patched(&self, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = self.bytes();
        change(&mut bytes);
        bytes
    }

    fn ipv4(&self, length: usize, protocol: IpNumber) -> Ipv4Header {
        let mut ip = Ipv4Header::new(
            length as u16,
            self.hop_limit,
            protocol,
            self.src.v4,
            self.dst.v4,
        )
        .expect("a small packet");
        ip.identification = self.id;
        ip.dont_fragment = true;
        ip.options = self
            .ipv4_options
            .as_slice()
            .try_into()
            .expect("whole words");
        ip.set_payload_len(length).expect("a small packet");
        ip.header_checksum = ip.calc_header_checksum();
        ip
    }

    fn ipv6(&self, length: usize, protocol: IpNumber) -> Ipv6Header {
        Ipv6Header {
            payload_length: length as u16,
            next_header: protocol,
            hop_limit: self.hop_limit,
            source: self.src.v6,
            destination: self.dst.v6,
            ..Ipv6Header::default()
        }
    }

    /// The frame around an IP payload.
    fn around(&self, protocol: IpNumber, inner: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.macs[1]);
        out.extend(self.macs[0]);
        for (tpid, id) in &self.tags {
            out.extend(tpid.to_be_bytes());
            out.extend(id.to_be_bytes());
        }
        match self.family {
            Family::V4 => {
                out.extend(EtherType::IPV4.0.to_be_bytes());
                self.ipv4(inner.len(), protocol)
                    .write(&mut out)
                    .expect("to memory");
            }
            Family::V6 => {
                out.extend(EtherType::IPV6.0.to_be_bytes());
                let mut chain = Vec::new();
                for (i, (_, rest)) in self.extensions.iter().enumerate() {
                    chain.push(self.extensions.get(i + 1).map_or(protocol.0, |next| next.0));
                    chain.extend(rest);
                }
                let first = self.extensions.first().map_or(protocol, |e| IpNumber(e.0));
                self.ipv6(chain.len() + inner.len(), first)
                    .write(&mut out)
                    .expect("to memory");
                out.extend(chain);
            }
        }
        out.extend(inner);
        out.extend(std::iter::repeat_n(0, self.trailer));
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        if self.udp {
            return self.datagram();
        }
        let mut tcp = TcpHeader::new(self.src.port, self.dst.port, self.seq, self.window);
        [tcp.syn, tcp.ack, tcp.rst, tcp.psh] = self.flags;
        tcp.acknowledgment_number = self.ack;
        tcp.set_options(&self.tcp_options).expect("they fit");
        tcp.checksum = match self.family {
            Family::V4 => tcp.calc_checksum_ipv4_raw(self.src.v4, self.dst.v4, &self.payload),
            Family::V6 => tcp.calc_checksum_ipv6_raw(self.src.v6, self.dst.v6, &self.payload),
        }
        .expect("a small packet");
        let mut inner = Vec::new();
        tcp.write(&mut inner).expect("to memory");
        inner.extend(&self.payload);
        self.around(IpNumber::TCP, &inner)
    }
}

impl Packet {
    fn datagram(&self) -> Vec<u8> {
        let (src, dst) = (self.src.port, self.dst.port);
        let header = match self.family {
            Family::V4 => {
                UdpHeader::with_ipv4_checksum(src, dst, &self.ipv4(0, IpNumber::UDP), &self.payload)
            }
            Family::V6 => {
                UdpHeader::with_ipv6_checksum(src, dst, &self.ipv6(0, IpNumber::UDP), &self.payload)
            }
        };
        let mut header = header.expect("a small packet");
        if self.unsummed {
            header.checksum = 0;
        }
        let mut inner = Vec::new();
        header.write(&mut inner).expect("to memory");
        inner.extend(&self.payload);
        self.around(IpNumber::UDP, &inner)
    }
}

/// The frame after a router: one hop less to live, and new hardware addresses (destination
/// and source) unless the kernel writes those later.
pub fn forwarded(mut frame: Vec<u8>, macs: Option<[[u8; 6]; 2]>) -> Vec<u8> {
    if let Some([to, from]) = macs {
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
    }
    if frame[12..14] == EtherType::IPV6.0.to_be_bytes() {
        frame[14 + 7] -= 1;
        return frame;
    }
    frame[14 + 8] -= 1;
    let ip = Ipv4Header::from_slice(&frame[14..]).expect("a header").0;
    let sum = ip.calc_header_checksum().to_be_bytes();
    frame[14 + 10..14 + 12].copy_from_slice(&sum);
    frame
}

/// Checks the ICMP error that tells `sent`'s sender of a way of `mtu`: from whom it was
/// sent to, quoting what is needed of it.
pub fn check_too_long(sent: &Packet, out: &[u8], mtu: u16) {
    let quoted = if sent.udp { 8 } else { 20 };
    let before = sent.bytes();
    let quote = &before[sent.l3()..sent.l4() + quoted];
    let checksum = sent.l4() - sent.l3() + if sent.udp { 6 } else { 16 };
    let wanted = Packet {
        hop_limit: 64,
        ..sent.answered()
    };
    let mut wanted = match sent.family {
        Family::V4 => wanted.around(
            IpNumber::ICMP,
            &[&[3, 4, 0, 0, 0, 0], &mtu.to_be_bytes()[..], quote].concat(),
        ),
        Family::V6 => wanted.around(
            IpNumber::IPV6_ICMP,
            &[&[2, 0, 0, 0, 0, 0], &mtu.to_be_bytes()[..], quote].concat(),
        ),
    };
    if sent.family == Family::V4 {
        // The identification is nobody's business.
        let mut ip = Ipv4Header::from_slice(&wanted[14..]).expect("a header").0;
        ip.identification = 0;
        let sum = ip.calc_header_checksum().to_be_bytes();
        wanted[18..20].fill(0);
        wanted[24..26].copy_from_slice(&sum);
    }
    let icmp = wanted.len() - quote.len() - 8;
    // Both checksums depend on each other, see below.
    for at in [icmp + 2, icmp + 8 + checksum] {
        wanted[at..at + 2].copy_from_slice(&out[at..at + 2]);
    }
    assert_eq!(hex(out), hex(&wanted));
    check_icmp_checksum(sent.family, out);
    // The kernel may still owe the quoted checksum, and put it there.
    let mut completed = out.to_vec();
    let at = icmp + 8 + checksum;
    let l4 = icmp + 8 + sent.l4() - sent.l3();
    let mut sum: u32 = completed[l4..]
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    completed[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    check_icmp_checksum(sent.family, &completed);
}

/// Checks a RST that answers `answered`, as RFC 9293 section 3.10.7.1 has it.
pub fn check_reset(answered: &Packet, out: &[u8]) {
    let syn = u32::from(answered.flags[0]);
    let acks = answered.flags[1];
    let end = answered
        .seq
        .wrapping_add(answered.payload.len() as u32 + syn);
    let l4 = answered.l4();
    // The window of a RST means nothing; it is chosen so that the checksum below comes out.
    let window = u16::from_be_bytes([out[l4 + 14], out[l4 + 15]]);
    let wanted = Packet {
        macs: [answered.macs[1], answered.macs[0]],
        src: answered.dst,
        dst: answered.src,
        hop_limit: 64,
        seq: if acks { answered.ack } else { 0 },
        ack: if acks { 0 } else { end },
        flags: [false, !acks, true, false],
        window,
        tcp_options: Vec::new(),
        payload: Vec::new(),
        trailer: 0,
        ..answered.clone()
    };
    assert_eq!(hex(out), hex(&wanted.bytes()));
    // Where the kernel still owes the checksum, the field must hold the pseudo-header's sum.
    let words = match wanted.family {
        Family::V4 => [wanted.src.v4, wanted.dst.v4].concat(),
        Family::V6 => [wanted.src.v6, wanted.dst.v6].concat(),
    };
    let sum: u32 = words
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum::<u32>()
        + 6
        + 20;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    assert_eq!(
        u32::from(u16::from_be_bytes([out[l4 + 16], out[l4 + 17]])),
        sum
    );
}

pub fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|line| line.iter().map(|b| format!("{b:02x} ")).collect::<String>())
        .collect::<Vec<_>>()
        .join("\n")
}

pub fn arp() -> Vec<u8> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &CLIENT_MAC,
        &CLIENT_V4,
        &[0; 6],
        &VIP_V4,
    )
    .expect("sizes match");
    let mut out = [[0xff; 6], CLIENT_MAC].concat();
    out.extend(EtherType::ARP.0.to_be_bytes());
    out.extend(arp.to_bytes());
    out
}

pub fn udp(family: Family) -> Vec<u8> {
    let packet = client(family, VIP_PORT);
    let mut inner = Vec::new();
    UdpHeader {
        source_port: CLIENT_PORT,
        destination_port: VIP_PORT,
        length: 30,
        checksum: 0x1234,
    }
    .write(&mut inner)
    .expect("to memory");
    inner.extend([9; 22]);
    packet.around(IpNumber::UDP, &inner)
}

pub fn icmp(family: Family) -> Vec<u8> {
    let packet = client(family, VIP_PORT);
    let echo = Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id: 1, seq: 2 });
    let mut inner = Icmpv4Header::with_checksum(echo, &[1; 40])
        .to_bytes()
        .to_vec();
    inner.extend([1; 40]);
    match family {
        Family::V4 => packet.around(IpNumber::ICMP, &inner),
        Family::V6 => packet.around(IpNumber::IPV6_ICMP, &inner),
    }
}

impl Packet {
    /// The packet in fragments of at most `size` bytes of payload, a multiple of eight.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let whole = self.bytes()[self.l4()..].to_vec();
        let protocol = if self.udp {
            IpNumber::UDP
        } else {
            IpNumber::TCP
        };
        let last = (whole.len() - 1) / size;
        whole
            .chunks(size)
            .enumerate()
            .map(|(i, part)| {
                let more = i < last;
                let offset = (i * size / 8) as u16;
                match self.family {
                    Family::V4 => {
                        let mut out = self.around(protocol, part);
                        let l3 = self.l3();
                        let field = offset | if more { 0x2000 } else { 0 };
                        out[l3 + 6..l3 + 8].copy_from_slice(&field.to_be_bytes());
                        let mut ip = Ipv4Header::from_slice(&out[l3..]).expect("a header").0;
                        ip.header_checksum = ip.calc_header_checksum();
                        let sum = ip.header_checksum.to_be_bytes();
                        out[l3 + 10..l3 + 12].copy_from_slice(&sum);
                        out
                    }
                    Family::V6 => {
                        // RFC 8200 section 4.5.
                        let mut inner = vec![protocol.0, 0];
                        inner.extend((offset << 3 | u16::from(more)).to_be_bytes());
                        inner.extend([0, 0, 0, 77]);
                        inner.extend(part);
                        self.around(IpNumber::IPV6_FRAGMENTATION_HEADER, &inner)
                    }
                }
            })
            .collect()
    }
}

/// Where the ICMP header and the packet it quotes stand in an error about `about`.
fn icmp_places(about: &Packet) -> (usize, usize) {
    let icmp = 14
        + match about.family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
    (icmp, icmp + 8)
}

/// The error with its checksum and that of the quoted TCP or UDP header blanked: the
/// former depends on the latter, which translation leaves alone.
pub fn without_quoted_checksum(about: &Packet, error: &[u8]) -> Vec<u8> {
    let mut out = error.to_vec();
    let (icmp, inner) = icmp_places(about);
    out[icmp + 2..icmp + 4].fill(0);
    let header = match about.family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    let checksum = inner + header + if about.udp { 6 } else { 16 };
    if let Some(bytes) = out.get_mut(checksum..checksum + 2) {
        bytes.fill(0);
    }
    out
}

/// Adds up what the checksum of an ICMP error covers (RFC 792, RFC 4443 section 2.3).
pub fn check_icmp_checksum(family: Family, error: &[u8]) {
    let mut covered = match family {
        Family::V4 => error[34..].to_vec(),
        Family::V6 => {
            let mut all = error[22..54].to_vec();
            all.extend(((error.len() - 54) as u32).to_be_bytes());
            all.extend([0, 0, 0, 58]);
            all.extend(&error[54..]);
            all
        }
    };
    if covered.len() % 2 == 1 {
        covered.push(0);
    }
    let mut sum: u32 = covered
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    assert_eq!(sum, 0xffff, "the ICMP checksum holds");
}
