//! Links between namespaces, and what their ends offload.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Namespace;

/// One end of a link.
pub struct End<'a> {
    pub namespace: &'a Arc<Namespace>,
    pub interface: &'a str,
    /// Last byte of its hardware address, unique in the lab.
    pub mac: u8,
    /// Address and prefix length.
    pub v4: String,
    pub v6: String,
}

/// The hardware address with the given last byte; locally administered.
pub fn mac(last: u8) -> String {
    format!("02:00:00:00:00:{last:02x}")
}

/// Joins two namespaces by a veth pair with addresses, up, without duplicate
/// address detection, with neighbours known: nothing has to be waited for, and a
/// host that drops everything still has a known neighbour, as behind a switch.
pub fn veth(a: &End<'_>, b: &End<'_>) -> Result<()> {
    a.namespace.ip([format!(
        "link add name {} address {} type veth peer name {} address {} netns {}",
        a.interface,
        mac(a.mac),
        b.interface,
        mac(b.mac),
        b.namespace.path().display()
    )])?;
    for (here, there) in [(a, b), (b, a)] {
        let host = |address: &str| address.split('/').next().unwrap_or_default().to_owned();
        let dev = here.interface;
        here.namespace.ip([
            format!("addr add {} dev {dev}", here.v4),
            format!("addr add {} dev {dev} nodad", here.v6),
            format!("link set {dev} up"),
            format!(
                "neigh replace {} lladdr {} dev {dev} nud permanent",
                host(&there.v4),
                mac(there.mac)
            ),
            format!(
                "neigh replace {} lladdr {} dev {dev} nud permanent",
                host(&there.v6),
                mac(there.mac)
            ),
        ])?;
    }
    Ok(())
}

/// Switches an interface on or off by one system call, so that the moment is known.
pub fn set_up(namespace: &Namespace, interface: &str, up: bool) -> Result<Instant> {
    namespace.run(|| {
        let socket = any_socket()?;
        let mut request = libc::ifreq {
            ifr_name: name_of(interface),
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
        };
        let call = |command, request: &mut libc::ifreq| {
            // SAFETY: both commands take a pointer to an ifreq, which outlives the call.
            let status = unsafe { libc::ioctl(socket.as_raw_fd(), command, &raw mut *request) };
            if status < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        call(libc::SIOCGIFFLAGS, &mut request)
            .with_context(|| format!("cannot read the flags of {interface}"))?;
        // SAFETY: the kernel has just written the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let bit = libc::IFF_UP as libc::c_short;
        request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
        let now = Instant::now();
        call(libc::SIOCSIFFLAGS, &mut request)
            .with_context(|| format!("cannot switch {interface}"))?;
        Ok(now)
    })
}

/// A socket for questions about interfaces.
fn any_socket() -> Result<OwnedFd> {
    socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("cannot open a socket")
}

/// As an ifreq holds it, with a zero at its end.
fn name_of(interface: &str) -> [libc::c_char; libc::IFNAMSIZ] {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name
        .iter_mut()
        .zip(interface.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from.cast_signed();
    }
    name
}

/// The kernel fills in the checksums of what the interface sends, as on a wire, and
/// does not leave them to the hardware: `ethtool -K INTERFACE tx off`.
pub fn complete_checksums(namespace: &Namespace, interface: &str) -> Result<()> {
    /// `struct ethtool_value`, include/uapi/linux/ethtool.h.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;

    namespace.run(|| {
        let socket = any_socket()?;
        let mut value = Value {
            command: ETHTOOL_STXCSUM,
            data: 0,
        };
        let mut request = libc::ifreq {
            ifr_name: name_of(interface),
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: (&raw mut value).cast(),
            },
        };
        // SAFETY: the request is an ifreq whose data points at an ethtool_value, as
        // the command wants it; both outlive the call.
        let status = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if status < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot switch the checksum offload of {interface}"));
        }
        Ok(())
    })
}
