//! Where the datapath listens: the tables of listeners, and before them the sieve and the cache, so
//! that most packets need no look at them.
//!
//! What the sieve does not pass, no program looks up: so a listener's bit is there before the
//! listener, and an endpoint's before anybody is sent to it. The cache says what the tables say, or
//! nothing.

use std::{
    collections::HashMap as Map,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use probe_ebpf::{
    abi::{
        Address, Endpoint, FAMILY_V4, FAMILY_V6, FORWARD_NAT, LISTENER_ENDPOINT, LISTENER_OWN,
        LISTENER_SELECTION, Listener, ListenerKey, MAX_LISTENERS, V4, V6,
    },
    names,
    packet::parse::{TCP, UDP},
};

use super::{
    EndpointId, Error, Image, Protocol, ServiceId, Vip,
    cache::{Cache, Place},
    mapping::{take, take_mapped},
    sieve::Sieve,
};

/// The tables of listeners, with what stands before them.
pub struct Listeners {
    v4: HashMap<MapData, Image<ListenerKey<V4>>, Image<Listener>>,
    v6: HashMap<MapData, Image<ListenerKey<V6>>, Image<Listener>>,
    sieve: Sieve,
    cache: Cache,
    /// What stands in the tables.
    known: Map<Vip, Listener>,
}

impl Listeners {
    /// Takes the maps, reads what an earlier agent left in the tables and fills what stands
    /// before them: an agent that had none left that empty.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut listeners = Self {
            v4: take(ebpf, names::MAP_LISTENERS_V4)?,
            v6: take(ebpf, names::MAP_LISTENERS_V6)?,
            sieve: take_mapped(ebpf, names::MAP_SIEVE, |fd| Sieve::map(fd))?,
            cache: take_mapped(ebpf, names::MAP_LISTENER_CACHE, |fd| {
                Cache::map(fd, Instant::now())
            })?,
            known: Map::new(),
        };
        listeners.known = listeners.read()?;
        for address in listeners.known.keys() {
            listeners.sieve.add(place(address).0);
        }
        listeners.fill_cache();
        Ok(listeners)
    }

    /// Lets the sieve pass what this endpoint sends.
    pub fn admit(&self, value: &Endpoint) {
        for vip in own_addresses(value) {
            self.sieve.add(place(&vip).0);
        }
    }

    /// What kind of listener stands at an address, if any.
    pub fn kind(&self, address: Vip) -> Option<u32> {
        self.known.get(&address).map(|listener| listener.kind)
    }

    /// Adds and changes what is wanted, removes the rest. What stays as it is, is not written.
    /// The sieve passes nothing else after that but what these endpoints send.
    pub fn make<'a>(
        &mut self,
        wanted: &Map<Vip, Listener>,
        endpoints: impl Iterator<Item = &'a Endpoint>,
    ) -> Result<(), Error> {
        let gone: Vec<_> = self
            .known
            .keys()
            .filter(|address| !wanted.contains_key(address))
            .copied()
            .collect();
        let news: Vec<_> = wanted
            .iter()
            .filter(|(address, listener)| self.known.get(address) != Some(listener))
            .collect();
        for address in gone {
            self.remove(address)?;
        }
        for (address, listener) in news {
            self.write(*address, *listener)?;
        }
        let all = wanted
            .keys()
            .copied()
            .chain(endpoints.flat_map(own_addresses));
        self.sieve.keep(all.map(|vip| place(&vip).0));
        self.fill_cache();
        Ok(())
    }

    /// Gives those their slots that were another's before.
    fn fill_cache(&mut self) {
        let now = Instant::now();
        for (address, listener) in &self.known {
            self.cache.put(place(address), *listener, now);
        }
    }

    /// What stands in the tables of listeners. Those of a newer version's protocols do not count.
    fn read(&self) -> Result<Map<Vip, Listener>, Error> {
        let failed = |e| Error::failed("reading the listeners", e);
        let mut present = Map::new();
        for entry in self.v4.iter() {
            let (Image(key), Image(listener)) = entry.map_err(failed)?;
            let at = vip(key.addr_be.bytes().into(), key.port_be, key.protocol);
            present.extend(at.map(|at| (at, listener)));
        }
        for entry in self.v6.iter() {
            let (Image(key), Image(listener)) = entry.map_err(failed)?;
            let at = vip(key.addr_be.bytes().into(), key.port_be, key.protocol);
            present.extend(at.map(|at| (at, listener)));
        }
        Ok(present)
    }

    /// Adds or changes one.
    pub fn write(&mut self, address: Vip, listener: Listener) -> Result<(), Error> {
        let place = place(&address);
        self.sieve.add(place.0);
        let written = match address.address.ip() {
            IpAddr::V4(ip) => {
                let key = key(V4::from_bytes(ip.octets()), address);
                self.v4.insert(Image(key), Image(listener), 0)
            }
            IpAddr::V6(ip) => {
                let key = key(V6::from_bytes(ip.octets()), address);
                self.v6.insert(Image(key), Image(listener), 0)
            }
        };
        if written.is_ok() {
            self.known.insert(address, listener);
            self.cache.put(place, listener, Instant::now());
        }
        written.map_err(
            |e| match super::io_error(&e).and_then(std::io::Error::raw_os_error) {
                Some(libc::E2BIG) => Error::full(format!("listener {address}"), MAX_LISTENERS),
                _ => Error::failed(format!("adding listener {address}"), e),
            },
        )
    }

    /// Removes one.
    pub fn remove(&mut self, address: Vip) -> Result<(), Error> {
        self.cache.remove(place(&address), Instant::now());
        let removed = match address.address.ip() {
            IpAddr::V4(ip) => {
                let key = key(V4::from_bytes(ip.octets()), address);
                self.v4.remove(&Image(key))
            }
            IpAddr::V6(ip) => {
                let key = key(V6::from_bytes(ip.octets()), address);
                self.v6.remove(&Image(key))
            }
        };
        if removed.is_ok() {
            self.known.remove(&address);
        }
        removed.map_err(|e| Error::failed(format!("removing listener {address}"), e))
    }
}

/// What a key of the listener tables names; `None` for a protocol that a newer
/// version wrote.
fn vip(ip: IpAddr, port_be: u16, protocol: u8) -> Option<Vip> {
    let protocol = match protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => return None,
    };
    let address = SocketAddr::new(ip, u16::from_be(port_be));
    Some(Vip { address, protocol })
}

fn key<A>(addr_be: A, vip: Vip) -> ListenerKey<A> {
    ListenerKey {
        addr_be,
        port_be: vip.address.port().to_be(),
        protocol: vip.protocol.number(),
        pad: 0,
    }
}

/// Where a listener stands in sieve and cache.
fn place(vip: &Vip) -> Place {
    fn of<A: Address>(key: &ListenerKey<A>) -> Place {
        (key.bit(), key.words())
    }
    match vip.address.ip() {
        IpAddr::V4(ip) => of(&key(V4::from_bytes(ip.octets()), *vip)),
        IpAddr::V6(ip) => of(&key(V6::from_bytes(ip.octets()), *vip)),
    }
}

/// An endpoint's own addresses, see [`own`].
fn own_addresses(value: &Endpoint) -> impl Iterator<Item = Vip> + use<> {
    own(EndpointId(0), value).map(|(vip, _)| vip)
}

/// What follows a service's selection, or always goes to one of its endpoints.
pub fn listener(service: ServiceId, endpoint: Option<EndpointId>) -> Listener {
    Listener {
        service: service.0,
        endpoint: endpoint.map_or(0, |id| id.0),
        kind: match endpoint {
            Some(_) => LISTENER_ENDPOINT,
            None => LISTENER_SELECTION,
        },
        flags: 0,
    }
}

/// An endpoint's own addresses, and what the datapath shall know of them, if connections
/// straight to it can look like steered ones: with other forwarding than NAT they cannot.
/// They are known in every protocol: which one the service's listeners use may change.
pub fn own(id: EndpointId, value: &Endpoint) -> impl Iterator<Item = (Vip, Listener)> + use<> {
    let listener = Listener {
        service: value.service,
        endpoint: id.0,
        kind: LISTENER_OWN,
        flags: 0,
    };
    let port = u16::from_be(value.port_be);
    let families = if value.forward == FORWARD_NAT {
        value.families
    } else {
        0
    };
    let v4 = (families & FAMILY_V4 != 0).then(|| IpAddr::from(value.v4_be.bytes()));
    let v6 = (families & FAMILY_V6 != 0).then(|| IpAddr::from(value.v6_be.bytes()));
    [v4, v6].into_iter().flatten().flat_map(move |ip| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| {
            let address = SocketAddr::new(ip, port);
            (Vip { address, protocol }, listener)
        })
    })
}
