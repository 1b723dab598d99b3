//! What the loaded programs do with a packet: BPF_PROG_TEST_RUN.
//!
//! It is the live program on the live tables, so the answer is what the next such packet meets, and
//! the packet counts and leaves a note like any other; only it goes nowhere. A client's SYN leaves no
//! more than that, a datagram an entry that idles out. What comes after the program (routes,
//! neighbours, other programs) is not part of it. The kernel runs programs of packets so, not those at
//! cgroups: the node's own processes cannot be tried.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use probe_ebpf::{
    names,
    packet::parse::{RST, SYN, UDP},
};

use super::{Error, Protocol, Vip, forge::Segment};

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd`.
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// What a program may add: it never does, but the kernel wants to know of room.
const ROOM: usize = 256;

/// `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// One of the loaded programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// At edges, and at uplinks without XDP.
    Tc,
    /// At uplinks.
    Xdp,
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Passed to whoever comes next, as it is.
    Passed,
    /// Translated, and left to the kernel's forwarding.
    Translated(Ends),
    /// Sent on from there, translated or with other hardware addresses only.
    Sent(Ends),
    /// Turned round into a RST or an error.
    Refused,
    /// Dropped.
    Dropped,
}

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The source.
    pub src: SocketAddr,
    /// The destination.
    pub dst: SocketAddr,
}

/// Tries packets.
pub struct Trial {
    tc: OwnedFd,
    xdp: Option<OwnedFd>,
}

impl Trial {
    pub(super) fn of(
        tc: &aya::programs::ProgramFd,
        xdp: Option<&aya::programs::ProgramFd>,
    ) -> Result<Self, Error> {
        let copy = |fd: &aya::programs::ProgramFd| {
            fd.as_fd()
                .try_clone_to_owned()
                .map_err(|e| Error::failed("keeping a program for trials", e))
        };
        Ok(Self {
            tc: copy(tc)?,
            xdp: xdp.map(copy).transpose()?,
        })
    }

    /// What each program does with a client's first packet.
    pub fn first_packet(
        &self,
        client: SocketAddr,
        vip: Vip,
    ) -> Result<Vec<(Program, Outcome)>, Error> {
        let frame = frame(client, vip)
            .ok_or_else(|| Error::failed("making the packet", "its ends are of two families"))?;
        let mut done = vec![(Program::Tc, run(&self.tc, &frame).map(of_tc))];
        if let Some(xdp) = &self.xdp {
            done.push((Program::Xdp, run(xdp, &frame).map(of_xdp)));
        }
        let before = ends(&frame);
        done.into_iter()
            .map(|(program, ran)| {
                let (action, out) = ran.map_err(|e| {
                    let name = match program {
                        Program::Tc => names::PROGRAM_TC_FORWARD,
                        Program::Xdp => names::PROGRAM_XDP_FORWARD,
                    };
                    Error::failed(format!("trying a packet with {name}"), e)
                })?;
                Ok((program, judge(action, before, &frame, &out)))
            })
            .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Pass,
    Elsewhere,
    Drop,
}

fn of_tc((verdict, out): (u32, Vec<u8>)) -> (Action, Vec<u8>) {
    const TC_ACT_SHOT: u32 = 2;
    const TC_ACT_REDIRECT: u32 = 7;
    let action = match verdict {
        TC_ACT_SHOT => Action::Drop,
        TC_ACT_REDIRECT => Action::Elsewhere,
        _ => Action::Pass,
    };
    (action, out)
}

fn of_xdp((verdict, out): (u32, Vec<u8>)) -> (Action, Vec<u8>) {
    const XDP_PASS: u32 = 2;
    const XDP_TX: u32 = 3;
    const XDP_REDIRECT: u32 = 4;
    let action = match verdict {
        XDP_PASS => Action::Pass,
        XDP_TX | XDP_REDIRECT => Action::Elsewhere,
        _ => Action::Drop,
    };
    (action, out)
}

fn judge(action: Action, before: Option<Ends>, frame: &[u8], out: &[u8]) -> Outcome {
    let after = ends(out);
    match (action, before, after) {
        (Action::Drop, ..) => Outcome::Dropped,
        (Action::Elsewhere, Some(before), Some(after))
            if after.dst == before.src && (is_reset(out) || after.src == before.dst) =>
        {
            Outcome::Refused
        }
        (Action::Elsewhere, _, Some(after)) => Outcome::Sent(after),
        (Action::Pass, _, Some(after)) if frame != out => Outcome::Translated(after),
        (Action::Pass | Action::Elsewhere, ..) => Outcome::Passed,
    }
}

/// A SYN or a datagram as it comes in.
fn frame(client: SocketAddr, vip: Vip) -> Option<Vec<u8>> {
    let segment = Segment {
        src: client,
        dst: vip.address,
        seq: 1,
        ack: 0,
        flags: SYN,
        window: 64_240,
    };
    let (mut packet, mut length) = segment.packet()?;
    let v4 = client.is_ipv4();
    if vip.protocol == Protocol::Udp {
        // The header of a datagram without payload in the place of the other. Nobody but the
        // program sees it, which changes its checksum by differences.
        let header = if v4 { IPV4 } else { IPV6 };
        let udp = 8u16;
        packet[header + 4..header + 6].copy_from_slice(&udp.to_be_bytes());
        packet[header + 6..header + 8].copy_from_slice(&1u16.to_be_bytes());
        length = header + usize::from(udp);
        if v4 {
            packet[2..4].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
            packet[9] = UDP;
        } else {
            packet[4..6].copy_from_slice(&udp.to_be_bytes());
            packet[6] = UDP;
        }
    }
    let mut frame = Vec::with_capacity(ETHERNET + length);
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame.extend_from_slice(if v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    frame.extend_from_slice(&packet[..length]);
    Some(frame)
}

/// Addresses and ports of a frame that [`frame`] made, or a program of it.
fn ends(frame: &[u8]) -> Option<Ends> {
    let packet = frame.get(ETHERNET..)?;
    let (src, dst, ports) = if packet.first()? >> 4 == 4 {
        let ip = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::from(bytes))
        };
        (ip(12)?, ip(16)?, IPV4)
    } else {
        let ip = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::from(bytes))
        };
        (ip(8)?, ip(24)?, IPV6)
    };
    let port = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    Some(Ends {
        src: SocketAddr::new(src, port(ports)?),
        dst: SocketAddr::new(dst, port(ports + 2)?),
    })
}

fn is_reset(frame: &[u8]) -> bool {
    let header = match frame.get(ETHERNET).map(|byte| byte >> 4) {
        Some(4) => IPV4,
        _ => IPV6,
    };
    frame
        .get(ETHERNET + header + 13)
        .is_some_and(|flags| flags & RST != 0)
}

fn run(program: &OwnedFd, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let mut out = vec![0u8; frame.len() + ROOM];
    let size = |length: usize| u32::try_from(length).map_err(io::Error::other);
    let mut attr = Attr {
        prog_fd: program.as_raw_fd().unsigned_abs(),
        data_size_in: size(frame.len())?,
        data_size_out: size(out.len())?,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ..Attr::default()
    };
    // SAFETY: both buffers live as long as the call and have the sizes that `attr` says; the
    // kernel reads the one and writes no more than that to the other.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attr,
            size_of::<Attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(attr.data_size_out as usize);
    Ok((attr.retval, out))
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn frames_are_whole_packets() {
        for (client, vip) in [
            ("10.0.0.9:40000", "10.96.0.10:8079"),
            ("10.0.0.9:40000", "10.96.0.10:53/udp"),
            ("[fd00::9]:40000", "[fd00::10]:8079"),
            ("[fd00::9]:40000", "[fd00::10]:53/udp"),
        ] {
            let (client, vip): (SocketAddr, Vip) = (client.parse().unwrap(), vip.parse().unwrap());
            let frame = frame(client, vip).unwrap();
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let port = match sliced.transport.unwrap() {
                TransportSlice::Tcp(tcp) if tcp.syn() => tcp.destination_port(),
                TransportSlice::Udp(udp) => udp.destination_port(),
                other => panic!("{other:?}"),
            };
            assert_eq!(port, vip.address.port());
            let dst = vip.address;
            assert_eq!(ends(&frame), Some(Ends { src: client, dst }));
        }
        let mixed = frame(
            "10.0.0.9:1".parse().unwrap(),
            "[fd00::1]:1".parse().unwrap(),
        );
        assert_eq!(mixed, None);
    }

    #[test]
    fn outcomes() {
        let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (client, vip) = (at("10.0.0.9:40000"), at("10.96.0.10:80"));
        let syn = frame(client, vip.into()).unwrap();
        let before = ends(&syn);
        let told = |action, out: &[u8]| judge(action, before, &syn, out);
        assert_eq!(told(Action::Pass, &syn), Outcome::Passed);
        assert_eq!(told(Action::Drop, &syn), Outcome::Dropped);
        let moved = frame(client, at("10.0.0.2:80").into()).unwrap();
        let to = ends(&moved).unwrap();
        assert_eq!(told(Action::Pass, &moved), Outcome::Translated(to));
        assert_eq!(told(Action::Elsewhere, &moved), Outcome::Sent(to));
        let back = frame(vip, client.into()).unwrap();
        assert_eq!(told(Action::Elsewhere, &back), Outcome::Refused);
        assert_eq!(ends(&syn[..20]), None);
    }
}
