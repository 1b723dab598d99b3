//! Values that are each right and contradict each other: names and listeners used
//! twice, tiers, address families, policies that cannot apply, and more than the kernel's tables hold.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use probe_ebpf::abi;

use super::{
    address::Address,
    error::Fault,
    valid::{Observe, Service},
};
use crate::datapath::{Forward, Protocol, Vip};

/// Refuses services that contradict themselves or each other.
pub fn check(services: &[Service]) -> Result<(), Fault> {
    counts(services)?;
    let mut names = HashSet::new();
    for (s, service) in services.iter().enumerate() {
        if !names.insert(service.name()) {
            return Err(Fault::new(
                format!("services[{s}].name"),
                service.name(),
                "another service has this name",
                "a unique name",
            ));
        }
        endpoints(&format!("services[{s}]"), service)?;
        tiers(&format!("services[{s}]"), service)?;
        families(&format!("services[{s}]"), service)?;
        observed(&format!("services[{s}]"), service)?;
    }
    listeners(services)
}

/// Every listener with its field and what it belongs to.
fn all_listeners(services: &[Service]) -> impl Iterator<Item = (String, String, Vip)> {
    services.iter().enumerate().flat_map(|(s, service)| {
        let own = service.listeners().iter().enumerate().map(move |(l, at)| {
            (
                format!("services[{s}].listeners[{l}]"),
                format!("service {}", service.name()),
                *at,
            )
        });
        let direct = service
            .endpoints()
            .iter()
            .enumerate()
            .flat_map(move |(e, endpoint)| {
                endpoint.listeners().iter().enumerate().map(move |(l, at)| {
                    (
                        format!("services[{s}].endpoints[{e}].listeners[{l}]"),
                        format!("endpoint {}/{}", service.name(), endpoint.name()),
                        *at,
                    )
                })
            });
        own.chain(direct)
    })
}

fn listeners(services: &[Service]) -> Result<(), Fault> {
    let mut owners: HashMap<Vip, (String, String)> = HashMap::new();
    for (field, owner, at) in all_listeners(services) {
        if let Some((first, owner)) = owners.get(&at) {
            return Err(Fault::new(
                field,
                at,
                format!("already a listener of {owner} ({first})"),
                "each VIP:port once",
            ));
        }
        owners.insert(at, (field, owner));
    }
    for service in services {
        for endpoint in service.endpoints() {
            for at in literals(endpoint.address()).flat_map(in_each_protocol) {
                if let Some((field, _)) = owners.get(&at) {
                    return Err(Fault::new(
                        field.clone(),
                        at,
                        format!(
                            "is the own address of endpoint {}/{}: what is sent to it would be \
                             steered in a circle",
                            service.name(),
                            endpoint.name()
                        ),
                        "a VIP:port at which no endpoint listens",
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Refuses full NAT without a source in every family of the listeners, or with one that is
/// somebody's VIP or endpoint.
pub fn sources(
    services: &[Service],
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
) -> Result<(), Fault> {
    let is_source = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => v4 == Some(ip),
        IpAddr::V6(ip) => v6 == Some(ip),
    };
    let accepted = "an address that is not a source of full NAT";
    for (field, owner, at) in all_listeners(services) {
        if is_source(at.address.ip()) {
            let problem = format!("the address of this listener of {owner} is in datapath.source");
            return Err(Fault::new(field, at, problem, accepted));
        }
    }
    for (s, service) in services.iter().enumerate() {
        for (e, endpoint) in service.endpoints().iter().enumerate() {
            if let Some(at) = literals(endpoint.address()).find(|at| is_source(at.ip())) {
                let field = format!("services[{s}].endpoints[{e}].address");
                return Err(Fault::new(
                    field,
                    at,
                    "this address is in datapath.source",
                    accepted,
                ));
            }
        }
        if service.forward() != Forward::FullNat {
            continue;
        }
        let all = service.listeners().iter();
        for listener in all.chain(service.endpoints().iter().flat_map(|e| e.listeners())) {
            let (missing, family) = match listener.address {
                SocketAddr::V4(_) => (v4.is_none(), "IPv4"),
                SocketAddr::V6(_) => (v6.is_none(), "IPv6"),
            };
            if missing {
                return Err(Fault::new(
                    format!("services[{s}].forward"),
                    "full-nat",
                    format!("datapath.source has no {family} address, and {listener} is {family}"),
                    "a source in every family of the service's listeners, or forward: nat",
                ));
            }
        }
    }
    Ok(())
}

/// Refuses direct server return where the endpoint does not listen at the port of the VIP:
/// nothing but hardware addresses changes on the way to it.
pub fn server_return(services: &[Service]) -> Result<(), Fault> {
    for (s, service) in services.iter().enumerate() {
        if service.forward() != Forward::Dsr {
            continue;
        }
        for (e, endpoint) in service.endpoints().iter().enumerate() {
            let port = endpoint.address().port();
            let all = service.listeners().iter().chain(endpoint.listeners());
            if let Some(listener) = all.copied().find(|l| l.address.port() != port) {
                return Err(Fault::new(
                    format!("services[{s}].endpoints[{e}].address"),
                    endpoint.address(),
                    format!("with forward: dsr packets for {listener} come as they are"),
                    format!("port {}, or forward: nat", listener.address.port()),
                ));
            }
        }
    }
    Ok(())
}

fn in_each_protocol(address: SocketAddr) -> [Vip; 2] {
    [Protocol::Tcp, Protocol::Udp].map(|protocol| Vip { address, protocol })
}

fn literals(address: &Address) -> impl Iterator<Item = SocketAddr> + use<> {
    let (v4, v6, port) = match address {
        Address::Literal { v4, v6, port } => (*v4, *v6, *port),
        Address::Name { port, .. } => (None, None, *port),
    };
    v4.map(|ip| SocketAddr::from((ip, port)))
        .into_iter()
        .chain(v6.map(|ip| SocketAddr::from((ip, port))))
}

fn endpoints(field: &str, service: &Service) -> Result<(), Fault> {
    let mut names = HashSet::new();
    let mut addresses: HashMap<String, &str> = HashMap::new();
    for (e, endpoint) in service.endpoints().iter().enumerate() {
        if !names.insert(endpoint.name()) {
            return Err(Fault::new(
                format!("{field}.endpoints[{e}].name"),
                endpoint.name(),
                "another endpoint of the service has this name",
                "a name that is unique within the service",
            ));
        }
        let keys = match endpoint.address() {
            Address::Name { host, port } => vec![format!("{}:{port}", host.to_ascii_lowercase())],
            literal @ Address::Literal { .. } => literals(literal).map(|a| a.to_string()).collect(),
        };
        for key in keys {
            if let Some(other) = addresses.insert(key.clone(), endpoint.name()) {
                return Err(Fault::new(
                    format!("{field}.endpoints[{e}].address"),
                    key,
                    format!("endpoint {other} has this address"),
                    "an address of its own for each endpoint of a service",
                ));
            }
        }
    }
    Ok(())
}

fn tiers(field: &str, service: &Service) -> Result<(), Fault> {
    let mut sizes: HashMap<u8, usize> = HashMap::new();
    for (e, endpoint) in service.endpoints().iter().enumerate() {
        let size = sizes.entry(endpoint.tier()).or_default();
        *size += 1;
        if *size > abi::MAX_TIER {
            return Err(Fault::new(
                format!("{field}.endpoints[{e}].tier"),
                endpoint.tier(),
                "too many endpoints are in this tier",
                format!("at most {} endpoints in a tier", abi::MAX_TIER),
            ));
        }
    }
    for (e, endpoint) in service.endpoints().iter().enumerate() {
        if let Some(gap) = (0..endpoint.tier()).find(|tier| !sizes.contains_key(tier)) {
            return Err(Fault::new(
                format!("{field}.endpoints[{e}].tier"),
                endpoint.tier(),
                format!("there is no endpoint in tier {gap}"),
                "tiers 0, 1, 2, ... without a gap; an endpoint without `tier` is in that of its \
                 place in the list, from 0",
            ));
        }
    }
    if service.endpoints().iter().all(|e| e.weight() == 0) {
        return Err(Fault::new(
            format!("{field}.endpoints[*].weight"),
            0,
            "no endpoint of the service may have new connections",
            "a weight above 0 for at least one endpoint",
        ));
    }
    Ok(())
}

/// Has it a tier of several endpoints?
fn shares(service: &Service) -> bool {
    let mut tiers = HashSet::new();
    !service.endpoints().iter().all(|e| tiers.insert(e.tier()))
}

fn families(field: &str, service: &Service) -> Result<(), Fault> {
    for (e, endpoint) in service.endpoints().iter().enumerate() {
        let Address::Literal { v4, v6, .. } = endpoint.address() else {
            continue;
        };
        for listener in service.listeners().iter().chain(endpoint.listeners()) {
            let (missing, family) = match listener.address {
                SocketAddr::V4(_) => (v4.is_none(), "IPv4"),
                SocketAddr::V6(_) => (v6.is_none(), "IPv6"),
            };
            if missing {
                return Err(Fault::new(
                    format!("{field}.endpoints[{e}].address"),
                    endpoint.address(),
                    format!("no {family} address, and the listener {listener} is {family}"),
                    "an address in every family of the service's listeners, as [IPV4:PORT, \"[IPV6]:PORT\"]",
                ));
            }
        }
    }
    Ok(())
}

/// Datagrams are not refused and not repeated: nobody would ever be marked down.
fn observed(field: &str, service: &Service) -> Result<(), Fault> {
    let direct = service.endpoints().iter().flat_map(|e| e.listeners());
    let mut all = service.listeners().iter().chain(direct);
    let counts = matches!(service.observe(), Observe::MarkDown { .. });
    if counts && all.all(|listener| listener.protocol == Protocol::Udp) {
        return Err(Fault::new(
            format!("{field}.observe"),
            "mark-down",
            "the service has no TCP listener, and only connections are observed",
            "off, or a TCP listener",
        ));
    }
    Ok(())
}

fn counts(services: &[Service]) -> Result<(), Fault> {
    let endpoints: usize = services.iter().map(|s| s.endpoints().len()).sum();
    let listeners = |v4: bool| {
        all_listeners(services)
            .filter(|(_, _, at)| at.address.is_ipv4() == v4)
            .count()
            // Endpoints' own addresses stand among them, and old ones for a while.
            + 2 * endpoints
    };
    let most = |field: &str, count: usize, most: u32| {
        if count as u64 > u64::from(most) {
            let problem = format!("more than the kernel's tables hold, {most}");
            return Err(Fault::new(field, count, problem, format!("at most {most}")));
        }
        Ok(())
    };
    most("services", services.len(), abi::MAX_SERVICES)?;
    most(
        "services with several endpoints in a tier",
        services.iter().filter(|service| shares(service)).count(),
        abi::MAX_RINGS / 2,
    )?;
    most("services[*].endpoints", endpoints, abi::MAX_ENDPOINTS)?;
    most(
        "services[*].listeners (IPv4)",
        listeners(true),
        abi::MAX_LISTENERS,
    )?;
    most(
        "services[*].listeners (IPv6)",
        listeners(false),
        abi::MAX_LISTENERS,
    )
}
