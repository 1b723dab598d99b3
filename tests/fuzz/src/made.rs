//! Hand-made cases: good packets as seeds, and what is wrong with packets, by name.
//!
//! They are stored in `tests/cases/made`, so that the fuzzer begins with them and a
//! person can look at them; [`cases`] makes them, and a test compares both. Addresses
//! and ports are those of the packet tables: most are for a listener there, so that only
//! what is wrong with them keeps them from being steered.

use crate::{
    case::Case,
    opinion::{pseudo_tail, repair},
};

/// Where clients connect to.
pub const VIP_PORT: u16 = 80;
/// Where the master listens.
pub const MASTER_PORT: u16 = 8080;
/// Where the client's packets come from.
pub const CLIENT_PORT: u16 = 50000;
/// Where clients connect to.
pub const VIP_V4: [u8; 4] = [10, 96, 0, 10];
/// See [`VIP_V4`].
pub const VIP_V6: [u8; 16] = v6(0x96, 0x10);
/// An endpoint.
pub const MASTER_V4: [u8; 4] = [10, 0, 2, 2];
/// See [`MASTER_V4`].
pub const MASTER_V6: [u8; 16] = v6(2, 2);
/// A client.
pub const CLIENT_V4: [u8; 4] = [10, 0, 1, 2];
/// See [`CLIENT_V4`].
pub const CLIENT_V6: [u8; 16] = v6(1, 2);
const ROUTER_V4: [u8; 4] = [192, 0, 2, 1];
const ROUTER_V6: [u8; 16] = v6(0x77, 1);

/// Destination and source link address.
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
/// Offset of the IP header in a frame without tags.
const L3: usize = 14;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

const fn v6(net: u8, host: u8) -> [u8; 16] {
    [0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
}

/// The family of a case, and what depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ip {
    V4,
    V6,
}

/// Who sends, who receives: an address and a port.
type Peer = (Vec<u8>, u16);

impl Ip {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    fn peer(self, v4: [u8; 4], v6: [u8; 16], port: u16) -> Peer {
        match self {
            Self::V4 => (v4.to_vec(), port),
            Self::V6 => (v6.to_vec(), port),
        }
    }

    fn client(self) -> Peer {
        self.peer(CLIENT_V4, CLIENT_V6, CLIENT_PORT)
    }

    fn vip(self) -> Peer {
        self.peer(VIP_V4, VIP_V6, VIP_PORT)
    }

    fn master(self) -> Peer {
        self.peer(MASTER_V4, MASTER_V6, MASTER_PORT)
    }

    fn router(self) -> Peer {
        self.peer(ROUTER_V4, ROUTER_V6, 0)
    }

    const fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Offset of the header behind the IP header, in a frame without tags.
    const fn l4(self) -> usize {
        L3 + self.header()
    }

    /// Offset of the length field in the frame.
    const fn length_at(self) -> usize {
        match self {
            Self::V4 => L3 + 2,
            Self::V6 => L3 + 4,
        }
    }

    const fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }

    /// Destination unreachable.
    const fn unreachable(self) -> u8 {
        match self {
            Self::V4 => 3,
            Self::V6 => 1,
        }
    }

    /// Next protocol in the IP header, as an offset in the frame.
    const fn protocol_at(self) -> usize {
        match self {
            Self::V4 => L3 + 9,
            Self::V6 => L3 + 6,
        }
    }

    /// An IP packet; in IPv4 with options and the field of flags and fragment offset.
    fn packet(self, from: &Peer, to: &Peer, protocol: u8, options: &[u8], body: &[u8]) -> Vec<u8> {
        let mut out = match self {
            Self::V4 => {
                let words = 5 + options.len() / 4;
                let mut header = vec![0x40 | words as u8, 0];
                header.extend(((words * 4 + body.len()) as u16).to_be_bytes());
                header.extend([0x42, 0x42, 0, 0, 61, protocol, 0, 0]);
                header
            }
            Self::V6 => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend((body.len() as u16).to_be_bytes());
                header.extend([protocol, 61]);
                header
            }
        };
        out.extend(&from.0);
        out.extend(&to.0);
        if self == Self::V4 {
            out.extend(options);
        }
        out.extend(body);
        out
    }

    /// A TCP segment to put into a packet.
    fn tcp(self, from: &Peer, to: &Peer, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
        let mut out = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        out.extend(0x1234_5678_u32.to_be_bytes());
        let ack = if flags & ACK == 0 { 0 } else { 0x9abc_def0_u32 };
        out.extend(ack.to_be_bytes());
        out.extend([((5 + options.len() / 4) as u8) << 4, flags, 0xfa, 0xf0]);
        out.extend([0; 4]);
        out.extend(options);
        out.extend(data);
        self.summed(from, to, TCP, 16, out)
    }

    fn udp(self, from: &Peer, to: &Peer, data: &[u8]) -> Vec<u8> {
        let mut out = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        out.extend((8 + data.len() as u16).to_be_bytes());
        out.extend([0; 2]);
        out.extend(data);
        self.summed(from, to, UDP, 6, out)
    }

    /// With its checksum. Added up here, since it is needed for what is no whole packet.
    fn summed(self, from: &Peer, to: &Peer, protocol: u8, at: usize, body: Vec<u8>) -> Vec<u8> {
        let tail = pseudo_tail(protocol, body.len());
        let all = [&from.0[..], &to.0[..], &tail[..], &body[..]].concat();
        let mut sum: u32 = all
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let mut body = body;
        body[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        body
    }

    /// A client's segment to the VIP, in a packet.
    fn segment(self, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
        let (from, to) = (self.client(), self.vip());
        let body = self.tcp(&from, &to, flags, options, data);
        self.packet(&from, &to, TCP, &[], &body)
    }

    /// A client's SYN to the VIP, in a frame.
    fn syn(self) -> Vec<u8> {
        self.frame(&self.segment(SYN, &[], &[]))
    }

    /// A client's datagram to the VIP, in a frame.
    fn datagram(self, data: &[u8]) -> Vec<u8> {
        let (from, to) = (self.client(), self.vip());
        let body = self.udp(&from, &to, data);
        self.frame(&self.packet(&from, &to, UDP, &[], &body))
    }

    /// A frame around an IP packet, with the right checksums where there are whole packets.
    fn frame(self, packet: &[u8]) -> Vec<u8> {
        self.tagged(&[], packet)
    }

    fn tagged(self, tags: &[u16], packet: &[u8]) -> Vec<u8> {
        let mut out = MACS.to_vec();
        for tag in tags {
            out.extend(tag.to_be_bytes());
            out.extend([0, 5]);
        }
        out.extend(match self {
            Self::V4 => [0x08, 0x00],
            Self::V6 => [0x86, 0xdd],
        });
        out.extend(packet);
        repair(&mut out);
        out
    }

    /// What the VIP answered, as errors from clients quote it.
    fn answer(self) -> Vec<u8> {
        let (from, to) = (self.vip(), self.client());
        let body = self.tcp(&from, &to, SYN | ACK, &[], &[7; 40]);
        self.fixed(self.packet(&from, &to, TCP, &[], &body))
    }

    /// What the client sent, as the master's side sees and quotes it.
    fn question(self) -> Vec<u8> {
        let (from, to) = (self.client(), self.master());
        let body = self.tcp(&from, &to, SYN, &[], &[7; 40]);
        self.fixed(self.packet(&from, &to, TCP, &[], &body))
    }

    /// An IP packet with its header's checksum.
    fn fixed(self, packet: Vec<u8>) -> Vec<u8> {
        self.frame(&packet).split_off(L3)
    }

    /// An ICMP error that quotes these bytes.
    fn error(self, from: &Peer, to: &Peer, kind: u8, quote: &[u8]) -> Vec<u8> {
        let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        body.extend(quote);
        self.frame(&self.packet(from, to, self.icmp(), &[], &body))
    }

    /// An error on its way to the VIP.
    fn complaint(self, quote: &[u8]) -> Vec<u8> {
        self.error(&self.router(), &self.vip(), self.unreachable(), quote)
    }

    /// A fragment of a UDP packet, 64 bytes of it from `offset` (in eights) on.
    fn fragment(self, offset: u16, more: bool) -> Vec<u8> {
        let (from, to) = (self.client(), self.vip());
        let whole = self.udp(&from, &to, &[0x5a; 184]);
        let begin = usize::from(offset) * 8;
        let part = &whole[begin..begin + 64];
        match self {
            Self::V4 => {
                let mut packet = self.packet(&from, &to, UDP, &[], part);
                let field = offset | if more { 0x2000 } else { 0 };
                packet[6..8].copy_from_slice(&field.to_be_bytes());
                self.frame(&packet)
            }
            Self::V6 => {
                let body = chain(&[fragment_header(offset, more)], UDP, part);
                self.frame(&self.packet(&from, &to, 44, &[], &body))
            }
        }
    }
}

/// An IPv6 extension header: its number, and its bytes after the next header's number.
type Extension = (u8, Vec<u8>);

/// A fragment header (RFC 8200 section 4.5).
fn fragment_header(offset: u16, more: bool) -> Extension {
    let [a, b] = (offset << 3 | u16::from(more)).to_be_bytes();
    (44, vec![0, a, b, 0, 0, 0, 77])
}

/// Options or a routing header of eight bytes: PadN (RFC 8200 section 4.2), or a type
/// with no segments left.
fn short(kind: u8) -> Extension {
    (kind, vec![0, 1, 4, 0, 0, 0, 0])
}

/// Extension headers before a body.
fn chain(headers: &[Extension], last: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, (_, rest)) in headers.iter().enumerate() {
        out.push(headers.get(i + 1).map_or(last, |next| next.0));
        out.extend(rest);
    }
    out.extend(body);
    out
}

/// A client's SYN behind extension headers.
fn extended(headers: &[Extension]) -> Vec<u8> {
    let ip = Ip::V6;
    let (from, to) = (ip.client(), ip.vip());
    let body = chain(headers, TCP, &ip.tcp(&from, &to, SYN, &[], &[]));
    ip.frame(&ip.packet(&from, &to, headers[0].0, &[], &body))
}

/// Bytes with a change.
fn with(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut bytes);
    bytes
}

/// The table.
struct Table(Vec<(String, Vec<u8>)>);

impl Table {
    /// A frame whose destination is to become the master.
    fn add(&mut self, name: &str, frame: Vec<u8>) {
        let address = if name.ends_with("v4") {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&MASTER_V4);
            wide
        } else {
            MASTER_V6
        };
        let case = Case::new(frame, address, MASTER_PORT, CLIENT_PORT);
        self.0.push((name.to_owned(), case.bytes()));
    }
}

/// All hand-made cases: a name and the bytes that `check` takes.
pub fn cases() -> Vec<(String, Vec<u8>)> {
    let mut table = Table(Vec::new());
    for ip in Ip::BOTH {
        whole(&mut table, ip);
        links(&mut table, ip);
        lengths(&mut table, ip);
        segments(&mut table, ip);
        datagrams(&mut table, ip);
        errors(&mut table, ip);
        pieces(&mut table, ip);
    }
    ipv4(&mut table);
    ipv6(&mut table);
    strangers(&mut table);
    table.0
}

/// Names of cases whose every part is in order: they are also cut at each byte.
pub fn is_whole(name: &str) -> bool {
    name.starts_with("whole-")
}

fn whole(table: &mut Table, ip: Ip) {
    let name = |what: &str| format!("whole-{what}-{}", ip.name());
    table.add(&name("tcp-syn"), ip.syn());
    table.add(
        &name("tcp-ack-with-data"),
        ip.frame(&ip.segment(ACK | 0x08, &[], b"GET / HTTP/1.1\r\n")),
    );
    // MSS, window scale and a no-operation.
    let options = [2, 4, 5, 0xb4, 3, 3, 7, 1];
    table.add(
        &name("tcp-syn-options"),
        ip.frame(&ip.segment(SYN, &options, &[])),
    );
    table.add(
        &name("tcp-fin"),
        ip.frame(&ip.segment(ACK | 0x01, &[], &[])),
    );
    table.add(&name("tcp-rst"), ip.frame(&ip.segment(0x04, &[], &[])));
    table.add(
        &name("tcp-odd-length"),
        ip.frame(&ip.segment(ACK, &[], &[9; 7])),
    );
    table.add(&name("udp"), ip.datagram(b"who is there?"));
    table.add(&name("udp-empty"), ip.datagram(b""));
    let one_tag = ip.tagged(&[0x8100], &ip.segment(SYN, &[], &[]));
    table.add(&name("vlan"), one_tag);
    let two_tags = ip.tagged(&[0x88a8, 0x8100], &ip.segment(SYN, &[], &[]));
    table.add(&name("two-tags"), two_tags);
    table.add(&name("icmp-error-to-vip"), ip.complaint(&ip.answer()));
    table.add(
        &name("icmp-error-by-client"),
        ip.error(&ip.client(), &ip.vip(), ip.unreachable(), &ip.answer()),
    );
    table.add(
        &name("icmp-error-to-client"),
        ip.error(&ip.router(), &ip.client(), ip.unreachable(), &ip.question()),
    );
    table.add(&name("fragment-first"), ip.fragment(0, true));
    table.add(&name("fragment-middle"), ip.fragment(8, true));
    table.add(&name("fragment-last"), ip.fragment(16, false));
}

fn links(table: &mut Table, ip: Ip) {
    let name = |what: &str| format!("link-{what}-{}", ip.name());
    let packet = ip.segment(SYN, &[], &[]);
    table.add(
        &name("three-tags"),
        ip.tagged(&[0x88a8, 0x8100, 0x8100], &packet),
    );
    table.add(&name("five-tags"), ip.tagged(&[0x8100; 5], &packet));
    table.add(&name("tag-of-another-kind"), ip.tagged(&[0x9100], &packet));
    table.add(
        &name("tag-of-another-kind-inside"),
        ip.tagged(&[0x8100, 0x9100], &packet),
    );
    table.add(
        &name("tag-cut-short"),
        with(ip.tagged(&[0x8100], &packet), |f| f.truncate(16)),
    );
    table.add(
        &name("second-tag-cut-short"),
        with(ip.tagged(&[0x8100; 2], &packet), |f| f.truncate(20)),
    );
    table.add(&name("header-only"), with(ip.syn(), |f| f.truncate(14)));
    table.add(
        &name("padded-to-the-minimum"),
        with(ip.syn(), |f| f.extend([0; 46])),
    );
    table.add(
        &name("trailer-of-2000-bytes"),
        with(ip.syn(), |f| f.extend([0xee; 2000])),
    );
    table.add(
        &name("of-the-other-family"),
        with(ip.syn(), |f| {
            let other = if ip == Ip::V4 { [0x86, 0xdd] } else { [8, 0] };
            f[12..14].copy_from_slice(&other);
        }),
    );
}

fn lengths(table: &mut Table, ip: Ip) {
    let name = |what: &str| format!("length-{what}-{}", ip.name());
    let lie = |value: u16| {
        with(ip.syn(), |f| {
            let at = ip.length_at();
            f[at..at + 2].copy_from_slice(&value.to_be_bytes());
        })
    };
    // In IPv4 the length includes the header.
    let base = if ip == Ip::V4 { 20 } else { 0 };
    table.add(&name("zero"), lie(0));
    table.add(&name("one"), lie(1));
    table.add(&name("of-no-payload"), lie(base));
    table.add(&name("one-below-the-tcp-header"), lie(base + 19));
    table.add(&name("one-beyond-the-frame"), lie(base + 21));
    table.add(&name("65535"), lie(0xffff));
    table.add(
        &name("shorter-than-the-data-behind-it"),
        with(ip.frame(&ip.segment(ACK, &[], &[3; 40])), |f| {
            let at = ip.length_at() + 1;
            f[at] -= 33;
        }),
    );
    table.add(
        &name("version-5"),
        with(ip.syn(), |f| f[L3] = 0x50 | f[L3] & 0xf),
    );
    table.add(&name("version-0"), with(ip.syn(), |f| f[L3] &= 0xf));
    table.add(
        &name("frame-ends-in-the-ip-header"),
        with(ip.syn(), |f| f.truncate(ip.l4() - 1)),
    );
    table.add(
        &name("frame-ends-with-the-ip-header"),
        with(ip.syn(), |f| f.truncate(ip.l4())),
    );
}

fn segments(table: &mut Table, ip: Ip) {
    let name = |what: &str| format!("tcp-{what}-{}", ip.name());
    let l4 = ip.l4();
    for (what, value) in [
        ("0", 0),
        ("4", 0x40),
        ("6-beyond-the-packet", 0x60),
        ("15", 0xf0),
    ] {
        table.add(
            &name(&format!("data-offset-{what}")),
            with(ip.syn(), |f| f[l4 + 12] = value),
        );
    }
    table.add(
        &name("frame-ends-in-its-header"),
        with(ip.syn(), |f| f.truncate(l4 + 19)),
    );
    table.add(
        &name("packet-ends-in-its-options"),
        with(ip.frame(&ip.segment(SYN, &[2, 4, 5, 0xb4], &[])), |f| {
            f.truncate(l4 + 22);
            let at = ip.length_at() + 1;
            f[at] -= 2;
        }),
    );
    table.add(&name("no-flags"), ip.frame(&ip.segment(0, &[], &[])));
    table.add(&name("all-flags"), ip.frame(&ip.segment(0xff, &[], &[])));
    table.add(&name("syn-fin"), ip.frame(&ip.segment(SYN | 1, &[], &[])));
    table.add(&name("syn-rst"), ip.frame(&ip.segment(SYN | 4, &[], &[])));
    table.add(
        &name("syn-with-data"),
        ip.frame(&ip.segment(SYN, &[], b"early")),
    );
    // An option of length zero, on which a reader of options would hang.
    table.add(
        &name("option-of-length-zero"),
        ip.frame(&ip.segment(SYN, &[2, 0, 5, 0xb4], &[])),
    );
    table.add(
        &name("option-beyond-the-header"),
        ip.frame(&ip.segment(SYN, &[1, 1, 8, 10], &[])),
    );
    table.add(
        &name("wrong-checksum"),
        with(ip.syn(), |f| f[l4 + 16] ^= 0x55),
    );
    for (what, field) in [("checksum-0", [0, 0]), ("checksum-ffff", [0xff, 0xff])] {
        table.add(
            &name(what),
            with(ip.syn(), |f| f[l4 + 16..l4 + 18].copy_from_slice(&field)),
        );
    }
    table.add(
        &name("ports-0"),
        with(ip.syn(), |f| {
            f[l4..l4 + 4].fill(0);
            repair(f);
        }),
    );
    table.add(
        &name("from-itself-to-itself"),
        with(ip.syn(), |f| {
            let (src, dst) = (l4 - 2 * ip.vip().0.len(), l4 - ip.vip().0.len());
            f.copy_within(dst..l4, src);
            f.copy_within(l4 + 2..l4 + 4, l4);
            repair(f);
        }),
    );
    table.add(
        &name("sequence-number-about-to-wrap"),
        with(ip.frame(&ip.segment(SYN, &[], &[1; 8])), |f| {
            f[l4 + 4..l4 + 8].fill(0xff);
            repair(f);
        }),
    );
    // A fragmented segment: the answer to it must not be a fragment.
    table.add(&name("first-fragment"), first_segment_fragment(ip));
}

/// The first of two fragments of a client's segment.
fn first_segment_fragment(ip: Ip) -> Vec<u8> {
    let (from, to) = (ip.client(), ip.vip());
    let body = ip.tcp(&from, &to, ACK, &[], &[4; 44]);
    match ip {
        Ip::V4 => {
            let mut packet = ip.packet(&from, &to, TCP, &[], &body[..32]);
            packet[6] = 0x20;
            ip.frame(&packet)
        }
        Ip::V6 => {
            let body = chain(&[fragment_header(0, true)], TCP, &body[..32]);
            ip.frame(&ip.packet(&from, &to, 44, &[], &body))
        }
    }
}

fn datagrams(table: &mut Table, ip: Ip) {
    let name = |what: &str| format!("udp-{what}-{}", ip.name());
    let l4 = ip.l4();
    let lie = |value: u16| {
        with(ip.datagram(&[6; 12]), |f| {
            f[l4 + 4..l4 + 6].copy_from_slice(&value.to_be_bytes());
        })
    };
    table.add(&name("length-0"), lie(0));
    table.add(&name("length-7"), lie(7));
    table.add(&name("length-8-of-20"), lie(8));
    table.add(&name("length-21-of-20"), lie(21));
    table.add(&name("length-65535"), lie(0xffff));
    table.add(
        &name("no-checksum"),
        with(lie(20), |f| f[l4 + 6..l4 + 8].fill(0)),
    );
    table.add(
        &name("checksum-ffff"),
        with(lie(20), |f| f[l4 + 6..l4 + 8].fill(0xff)),
    );
    table.add(
        &name("wrong-checksum"),
        with(lie(20), |f| f[l4 + 6] ^= 0x55),
    );
    table.add(
        &name("frame-ends-in-its-header"),
        with(lie(20), |f| f.truncate(l4 + 7)),
    );
    table.add(
        &name("packet-ends-in-its-header"),
        with(lie(20), |f| {
            f.truncate(l4 + 7);
            let at = ip.length_at() + 1;
            f[at] -= 13;
        }),
    );
    // Whose checksum is zero once it is translated, which would say that there is none.
    let zero = (0..=u16::MAX)
        .map(u16::to_be_bytes)
        .find(|data| ip.udp(&ip.client(), &ip.master(), data)[6..8] == [0, 0])
        .expect("one in 65,536");
    table.add(&name("checksum-becomes-0"), ip.datagram(&zero));
}

fn errors(table: &mut Table, ip: Ip) {
    let name = |what: &str| format!("icmp-{what}-{}", ip.name());
    let (l4, header) = (ip.l4(), ip.header());
    let answer = ip.answer();
    let echo = if ip == Ip::V4 { 8 } else { 128 };
    let ping = ip.error(&ip.client(), &ip.vip(), echo, &[1; 32]);
    table.add(&name("echo"), ping.clone());
    table.add(&name("quoting-an-echo"), ip.complaint(&ping[L3..]));
    table.add(
        &name("quoting-an-error"),
        ip.complaint(&ip.complaint(&answer)[L3..]),
    );
    table.add(&name("quoting-nothing"), ip.complaint(&[]));
    table.add(
        &name("quoting-half-an-ip-header"),
        ip.complaint(&answer[..header / 2]),
    );
    table.add(
        &name("quoting-only-the-ip-header"),
        ip.complaint(&answer[..header]),
    );
    table.add(
        &name("quoting-three-bytes-of-ports"),
        ip.complaint(&answer[..header + 3]),
    );
    table.add(
        &name("quoting-only-ports"),
        ip.complaint(&answer[..header + 4]),
    );
    table.add(
        &name("quoting-eight-bytes"),
        ip.complaint(&answer[..header + 8]),
    );
    table.add(
        &name("quoting-an-odd-number-of-bytes"),
        ip.complaint(&answer[..header + 21]),
    );
    table.add(
        &name("quoting-another-version"),
        ip.complaint(&with(answer.clone(), |q| q[0] ^= 0x20)),
    );
    table.add(
        &name("quoting-another-protocol"),
        ip.complaint(&with(answer.clone(), |q| q[ip.protocol_at() - L3] = 47)),
    );
    table.add(
        &name("quoting-a-lie-about-length"),
        ip.complaint(&with(answer.clone(), |q| q[ip.length_at() - L3] = 0xff)),
    );
    // The quotation is behind the end of the packet: padding that looks like one.
    table.add(
        &name("quoting-in-the-trailer"),
        with(ip.complaint(&[]), |f| f.extend(&answer)),
    );
    table.add(
        &name("ports-in-the-trailer"),
        with(ip.complaint(&answer[..header]), |f| {
            f.extend(&answer[header..])
        }),
    );
    table.add(
        &name("quoting-another-sender"),
        ip.complaint(&ip.question()),
    );
    table.add(
        &name("wrong-checksum"),
        with(ip.complaint(&answer), |f| f[l4 + 2] ^= 0x55),
    );
    table.add(
        &name("header-cut-short"),
        with(ip.complaint(&answer), |f| f.truncate(l4 + 7)),
    );
    for kind in [0, 4, 5, 11, 12, 13, 127, 255] {
        let frame = ip.error(&ip.router(), &ip.vip(), kind, &answer);
        table.add(&name(&format!("type-{kind}")), frame);
    }
}

fn pieces(table: &mut Table, ip: Ip) {
    let name = |what: &str| format!("fragment-{what}-{}", ip.name());
    let field = if ip == Ip::V4 { L3 + 6 } else { ip.l4() + 2 };
    // A middle one where the offset ends at 64 KiB.
    table.add(
        &name("at-the-highest-offset"),
        with(ip.fragment(8, true), |f| f[field..field + 2].fill(0xff)),
    );
    table.add(
        &name("of-eight-bytes"),
        with(ip.fragment(0, true), |f| {
            let at = ip.length_at();
            let rest = f.len() - 56;
            f.truncate(rest);
            f[at + 1] -= 56;
        }),
    );
    table.add(
        &name("overlapping-the-first-at-offset-1"),
        with(ip.fragment(8, true), |f| {
            f[field..field + 2].copy_from_slice(match ip {
                Ip::V4 => &[0x20, 1],
                Ip::V6 => &[0, 9],
            });
        }),
    );
    table.add(
        &name("first-of-an-icmp-error"),
        with(ip.fragment(0, true), |f| match ip {
            Ip::V4 => f[L3 + 9] = 1,
            Ip::V6 => f[ip.l4()] = 58,
        }),
    );
}

fn ipv4(table: &mut Table) {
    let ip = Ip::V4;
    let (from, to) = (ip.client(), ip.vip());
    for ihl in [0, 4, 6, 15] {
        table.add(
            &format!("ihl-{ihl}-v4"),
            with(ip.syn(), |f| f[L3] = 0x40 | ihl),
        );
    }
    let optioned = |options: &[u8]| {
        let body = ip.tcp(&from, &to, SYN, &[], &[]);
        ip.frame(&ip.packet(&from, &to, TCP, options, &body))
    };
    // Router alert (RFC 2113), no-operations and an end.
    table.add("whole-options-v4", optioned(&[0x94, 4, 0, 0, 1, 1, 1, 0]));
    table.add("whole-options-of-40-bytes-v4", optioned(&[1; 40]));
    // A reader of options would hang on a length of zero.
    table.add("options-of-length-zero-v4", optioned(&[7, 0, 4, 0]));
    table.add("options-beyond-the-header-v4", optioned(&[7, 39, 4, 0]));
    // Loose source route with a hop left.
    table.add(
        "options-source-route-v4",
        optioned(&[0x83, 7, 4, 10, 0, 9, 9, 0]),
    );
    table.add(
        "header-longer-than-the-packet-v4",
        with(ip.syn(), |f| {
            f[L3] = 0x4f;
            f[L3 + 2..L3 + 4].copy_from_slice(&[0, 40]);
        }),
    );
    table.add(
        "header-wrong-checksum-v4",
        with(ip.syn(), |f| f[L3 + 10] ^= 0x55),
    );
    table.add(
        "header-checksum-ffff-v4",
        with(ip.syn(), |f| f[L3 + 10..L3 + 12].fill(0xff)),
    );
    table.add(
        "header-evil-bit-v4",
        with(ip.syn(), |f| {
            f[L3 + 6] = 0xc0;
            repair(f);
        }),
    );
    let answer = ip.answer();
    table.add(
        "icmp-quoting-ihl-4-v4",
        ip.complaint(&with(answer.clone(), |q| q[0] = 0x44)),
    );
    table.add(
        "icmp-quoting-ihl-15-beyond-the-packet-v4",
        ip.complaint(&with(answer[..28].to_vec(), |q| q[0] = 0x4f)),
    );
    table.add(
        "icmp-quoting-a-later-fragment-v4",
        ip.complaint(&with(answer.clone(), |q| q[7] = 9)),
    );
    table.add(
        "icmp-quoting-the-other-family-v4",
        ip.complaint(&Ip::V6.answer()),
    );
    table.add(
        "icmp-quoting-a-wrong-header-checksum-v4",
        ip.complaint(&with(answer, |q| q[10] ^= 0x55)),
    );
    // An authentication header.
    let ah = [&[TCP, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..], &[0; 12]].concat();
    let body = [ah, ip.tcp(&from, &to, SYN, &[], &[])].concat();
    table.add(
        "authentication-header-v4",
        ip.frame(&ip.packet(&from, &to, 51, &[], &body)),
    );
    // IP in IP, and a tunnel of the other family.
    let inner = ip.segment(SYN, &[], &[]);
    table.add(
        "tunnel-of-v4-in-v4",
        ip.frame(&ip.packet(&from, &to, 4, &[], &inner)),
    );
    let inner = Ip::V6.segment(SYN, &[], &[]);
    table.add(
        "tunnel-of-v6-in-v4",
        ip.frame(&ip.packet(&from, &to, 41, &[], &inner)),
    );
}

fn ipv6(table: &mut Table) {
    let ip = Ip::V6;
    let (from, to) = (ip.client(), ip.vip());
    table.add("whole-extension-hop-by-hop-v6", extended(&[short(0)]));
    table.add(
        "whole-extension-routing-done-v6",
        extended(&[(43, vec![0, 2, 0, 0, 0, 0, 0])]),
    );
    let long = (60, [&[2, 1, 20][..], &[0; 20]].concat());
    table.add(
        "whole-extensions-four-v6",
        extended(&[short(0), long, (43, vec![0, 2, 0, 0, 0, 0, 0]), short(60)]),
    );
    table.add(
        "whole-fragment-that-is-all-v6",
        extended(&[fragment_header(0, false)]),
    );
    table.add("extensions-five-v6", extended(&[(); 5].map(|()| short(60))));
    // Each says that another of its kind follows, to the end of the packet.
    table.add(
        "extensions-without-end-hop-by-hop-v6",
        extended(&[(); 64].map(|()| short(0))),
    );
    table.add(
        "extensions-without-end-options-v6",
        extended(&[(); 64].map(|()| short(60))),
    );
    table.add(
        "extensions-without-end-fragments-v6",
        extended(&[(); 64].map(|()| fragment_header(0, false))),
    );
    // Length fields count eights beyond the first, so zero is eight bytes, and all of them nothing.
    table.add(
        "extension-of-zeros-v6",
        ip.frame(&ip.packet(&from, &to, 0, &[], &[0; 64])),
    );
    table.add(
        "extension-longer-than-the-packet-v6",
        extended(&[(0, vec![0xff, 1, 4, 0, 0, 0, 0])]),
    );
    let huge = (60, [&[0xff, 1, 4, 0, 0, 0, 0][..], &[0; 2040]].concat());
    table.add("extension-of-2048-bytes-v6", extended(&[huge]));
    table.add(
        "extension-ends-with-the-packet-v6",
        ip.frame(&ip.packet(&from, &to, 60, &[], &chain(&[short(60)], TCP, &[]))),
    );
    table.add(
        "extension-cut-after-one-byte-v6",
        ip.frame(&ip.packet(&from, &to, 60, &[], &[TCP])),
    );
    table.add(
        "extension-reaches-into-the-trailer-v6",
        with(
            ip.frame(&ip.packet(&from, &to, 60, &[], &chain(&[short(60)], TCP, &[]))),
            |f| {
                f.extend(ip.tcp(&ip.client(), &ip.vip(), SYN, &[], &[]));
            },
        ),
    );
    table.add(
        "extension-hop-by-hop-not-first-v6",
        extended(&[short(60), short(0)]),
    );
    table.add(
        "extension-routing-with-a-segment-left-v6",
        extended(&[(43, vec![0, 2, 1, 0, 0, 0, 0])]),
    );
    table.add(
        "extension-routing-cut-short-v6",
        ip.frame(&ip.packet(&from, &to, 43, &[], &[TCP, 0, 2])),
    );
    let mut ah = vec![4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    ah.extend([0; 12]);
    table.add("extension-authentication-v6", extended(&[(51, ah)]));
    for (what, kind) in [("mobility", 135), ("host-identity", 139), ("shim6", 140)] {
        table.add(&format!("extension-{what}-v6"), extended(&[short(kind)]));
    }
    for (what, kind) in [
        ("no-next-header", 59),
        ("encrypted", 50),
        ("experimental", 253),
    ] {
        let body = [7; 40];
        table.add(
            &format!("extension-{what}-v6"),
            ip.frame(&ip.packet(&from, &to, kind, &[], &body)),
        );
    }
    table.add(
        "fragment-header-cut-short-v6",
        ip.frame(&ip.packet(&from, &to, 44, &[], &[TCP, 0, 0, 1, 0])),
    );
    // A first fragment in whose middle another fragment header stands.
    table.add(
        "fragment-within-a-fragment-v6",
        extended(&[fragment_header(0, true), fragment_header(0, false)]),
    );
    table.add(
        "fragment-later-within-a-first-v6",
        extended(&[fragment_header(0, true), fragment_header(3, true)]),
    );
    table.add(
        "fragment-behind-options-v6",
        extended(&[short(0), short(60), fragment_header(0, true)]),
    );
    table.add(
        "tcp-behind-options-to-refuse-v6",
        with(extended(&[short(60), short(60)]), |f| f[L3 + 7] = 1),
    );
    table.add(
        "icmp-quoting-extension-headers-v6",
        ip.complaint(&extended(&[short(60)])[L3..]),
    );
    table.add(
        "icmp-quoting-the-other-family-v6",
        ip.complaint(&Ip::V4.answer()),
    );
    // The error itself behind options.
    let error = ip.complaint(&ip.answer())[ip.l4()..].to_vec();
    let body = chain(&[short(60)], 58, &error);
    table.add(
        "icmp-behind-options-v6",
        ip.frame(&ip.packet(&ip.router(), &to, 60, &[], &body)),
    );
    // Packet too big.
    table.add(
        "icmp-type-2-v6",
        ip.error(&ip.router(), &ip.vip(), 2, &ip.answer()),
    );
    let inner = Ip::V4.segment(SYN, &[], &[]);
    table.add(
        "tunnel-of-v4-in-v6",
        ip.frame(&ip.packet(&from, &to, 4, &[], &inner)),
    );
}

/// What is no IP at all.
fn strangers(table: &mut Table) {
    let frame = |kind: u16, body: &[u8]| [&MACS[..], &kind.to_be_bytes()[..], body].concat();
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &[2, 0, 0, 0, 0, 1],
        &CLIENT_V4,
        &[0; 6],
        &VIP_V4,
    ]
    .concat();
    table.add("stranger-arp", frame(0x0806, &arp));
    table.add(
        "stranger-spanning-tree",
        frame(0x0026, &[0x42, 0x42, 3, 0, 0, 0, 0, 0]),
    );
    table.add("stranger-lldp", frame(0x88cc, &[2, 7, 4, 2, 0, 0, 0, 0, 1]));
    let packet = Ip::V4.segment(SYN, &[], &[]);
    table.add(
        "stranger-mpls",
        frame(0x8847, &[&[0, 1, 1, 64][..], &packet].concat()),
    );
    table.add(
        "stranger-pppoe",
        frame(
            0x8864,
            &[&[0x11, 0, 0, 1, 0, 42, 0, 0x21][..], &packet].concat(),
        ),
    );
    table.add("stranger-macsec", frame(0x88e5, &[0; 40]));
    table.add("stranger-empty-frame", Vec::new());
    table.add("stranger-one-byte", vec![2]);
    table.add(
        "stranger-13-bytes",
        MACS.iter().copied().chain([8]).collect(),
    );
    table.add("stranger-zeros", vec![0; 64]);
    table.add("stranger-ones", vec![0xff; 64]);
    // The bytes of a linear congruential generator, the same each time.
    let mut state = 1_u32;
    let noise: Vec<u8> = (0..256)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    table.add("stranger-noise", noise.clone());
    table.add("stranger-noise-as-v4", frame(0x0800, &noise));
    table.add(
        "stranger-noise-behind-a-v4-header",
        with(Ip::V4.syn(), |f| {
            f.truncate(34);
            f.extend(&noise);
        }),
    );
    table.add("stranger-noise-as-v6", frame(0x86dd, &noise));
    table.add(
        "stranger-noise-behind-a-v6-header",
        with(Ip::V6.syn(), |f| {
            f.truncate(54);
            f.extend(&noise);
        }),
    );
}
