//! Where endpoints are that are given as DNS names.
//!
//! The node's own rules hold: /etc/hosts, and the servers, search domains and
//! ndots of /etc/resolv.conf. Both files are read afresh for every round, and no
//! answer is cached, so that `resolve.every` alone says how old an address can be. A name that
//! several endpoints share is asked for once.
//!
//! An endpoint keeps its present address as long as it is among the answers, so a
//! server that rotates its records does not make it wander; a new one is the least
//! of the answers, so that all nodes choose the same. A family without an answer
//! keeps its last address: a DNS failure must not become an outage. What becomes of an
//! endpoint whose name has no address at all, or none any more, the core decides
//! ([`crate::core`]); here it is only told apart whether DNS said so, or said nothing.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{LookupIpStrategy, ResolveHosts, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};

use crate::config::{self, Address};

/// Bounds one question to one server; there are two attempts.
const TIMEOUT: Duration = Duration::from_secs(2);

/// An endpoint's addresses and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// In IPv4.
    pub v4: Option<Ipv4Addr>,
    /// In IPv6.
    pub v6: Option<Ipv6Addr>,
    /// In both families.
    pub port: u16,
}

impl Resolved {
    /// IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        let v4 = self.v4.map(|ip| SocketAddr::from((ip, self.port)));
        let v6 = self.v6.map(|ip| SocketAddr::from((ip, self.port)));
        v4.into_iter().chain(v6)
    }

    /// Has it any address?
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// The address families that an endpoint's listeners use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Families {
    /// IPv4 is needed.
    pub v4: bool,
    /// IPv6 is needed.
    pub v6: bool,
}

impl Families {
    /// Those of the listeners through which an endpoint is reached.
    pub fn of(service: &config::Service, endpoint: &config::Endpoint) -> Self {
        let mut all = service.listeners().iter().chain(endpoint.listeners());
        let v4 = all.clone().any(|vip| vip.address.is_ipv4());
        Self {
            v4,
            v6: all.any(|vip| vip.address.is_ipv6()),
        }
    }
}

/// The endpoint's addresses after a lookup that found `answers`.
pub fn choose(present: Resolved, families: Families, answers: &[IpAddr]) -> Resolved {
    let usable = answers
        .iter()
        .filter(|ip| config::unsteerable(**ip).is_none());
    let v4: Vec<_> = usable
        .clone()
        .filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        })
        .collect();
    let v6: Vec<_> = usable
        .filter_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        })
        .collect();
    Resolved {
        v4: if families.v4 {
            keep(present.v4, &v4)
        } else {
            None
        },
        v6: if families.v6 {
            keep(present.v6, &v6)
        } else {
            None
        },
        port: present.port,
    }
}

fn keep<A: Copy + Ord>(present: Option<A>, answers: &[A]) -> Option<A> {
    match present {
        Some(address) if answers.contains(&address) => Some(address),
        present => answers.iter().min().copied().or(present),
    }
}

/// Lookups at one time.
const AT_ONCE: usize = 32;

/// Looks up names, each once and so many at one time, in no order. The node's rules are read
/// once for all of them.
pub fn lookups<N: Clone>(
    names: impl IntoIterator<Item = (String, Families, N)>,
) -> impl Stream<Item = (N, Answer)> {
    let mut resolvers = BTreeMap::new();
    let asked: Vec<_> = names
        .into_iter()
        .map(|(host, families, whose)| {
            let ready = resolvers
                .entry(families)
                .or_insert_with(|| resolver(families).map_err(|error| error.to_string()));
            (host, ready.clone(), whose)
        })
        .collect();
    stream::iter(asked)
        .map(|(host, resolver, whose)| async move {
            let answer = match resolver {
                Ok(resolver) => ask(&resolver, &host).await,
                Err(error) => Err(Unresolved::failure(format!("set up the resolver: {error}"))),
            };
            (whose, answer)
        })
        .buffer_unordered(AT_ONCE)
}

/// A name's addresses, or why there is none.
pub type Answer = Result<Vec<IpAddr>, Unresolved>;

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Who says so.
    pub why: Why,
    /// The same for people.
    pub reason: String,
}

/// Who says that a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// DNS does: there is no such name, or none with an address.
    Nx,
    /// Nobody: no server answered, or none could.
    Failure,
}

impl Why {
    /// In HAProxy's words, as far as it tells them apart.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Nx => "nx",
            Self::Failure => "failure",
        }
    }
}

impl Unresolved {
    /// DNS says so.
    pub fn nx(reason: impl Into<String>) -> Self {
        Self {
            why: Why::Nx,
            reason: reason.into(),
        }
    }

    /// Nobody says so.
    pub fn failure(reason: impl Into<String>) -> Self {
        Self {
            why: Why::Failure,
            reason: reason.into(),
        }
    }

    /// A name whose answers are of other families than its listeners.
    pub fn families() -> Self {
        Self::nx("it has no address in a family of the service's listeners")
    }
}

/// Asks for a name's addresses in the families that are needed.
async fn ask(resolver: &TokioResolver, host: &str) -> Answer {
    let answer = resolver.lookup_ip(host).await;
    let found: Vec<IpAddr> = match answer {
        Ok(answer) => answer.iter().collect(),
        Err(error) if error.is_nx_domain() => return Err(Unresolved::nx("there is no such name")),
        Err(error) if error.is_no_records_found() => {
            return Err(Unresolved::nx("the name has no address"));
        }
        Err(error) => return Err(Unresolved::failure(error.to_string())),
    };
    if found.is_empty() {
        return Err(Unresolved::nx("the answer holds no address"));
    }
    if let Some(reason) = found
        .iter()
        .map(|ip| config::unsteerable(*ip))
        .reduce(|all, one| all.and(one))
        .flatten()
    {
        return Err(Unresolved::nx(format!(
            "{} cannot be steered to: {reason}",
            found[0]
        )));
    }
    Ok(found)
}

fn resolver(families: Families) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    // Without a resolv.conf there still is the hosts file.
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
        Resolver::builder_with_config(
            ResolverConfig::from_name_servers(Vec::new()),
            TokioRuntimeProvider::default(),
        )
    });
    let options = builder.options_mut();
    options.timeout = TIMEOUT;
    options.attempts = 2;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Always;
    // A family that nobody needs is not asked for: its silence would only delay.
    options.ip_strategy = match (families.v4, families.v6) {
        (true, false) => LookupIpStrategy::Ipv4Only,
        (false, true) => LookupIpStrategy::Ipv6Only,
        _ => LookupIpStrategy::Ipv4AndIpv6,
    };
    builder.build()
}

/// What is known of an endpoint before any lookup: literal addresses, or none.
pub fn literal(address: &Address) -> Resolved {
    match address {
        Address::Literal { v4, v6, port } => Resolved {
            v4: *v4,
            v6: *v6,
            port: *port,
        },
        Address::Name { port, .. } => Resolved {
            v4: None,
            v6: None,
            port: *port,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Families = Families { v4: true, v6: true };

    fn at(v4: Option<&str>, v6: Option<&str>) -> Resolved {
        Resolved {
            v4: v4.map(|ip| ip.parse().unwrap()),
            v6: v6.map(|ip| ip.parse().unwrap()),
            port: 80,
        }
    }

    fn answers(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn the_present_address_stays_while_it_is_among_the_answers() {
        let present = at(Some("10.0.0.7"), None);
        let found = answers(&["10.0.0.3", "10.0.0.7"]);
        assert_eq!(choose(present, BOTH, &found), present);
    }

    #[test]
    fn a_new_address_is_the_least_of_the_answers() {
        for found in [["10.0.0.9", "10.0.0.10"], ["10.0.0.10", "10.0.0.9"]] {
            let chosen = choose(at(Some("10.0.0.7"), None), BOTH, &answers(&found));
            assert_eq!(chosen, at(Some("10.0.0.9"), None));
        }
    }

    #[test]
    fn a_family_without_an_answer_keeps_its_address() {
        let present = at(Some("10.0.0.7"), Some("fd00::7"));
        assert_eq!(choose(present, BOTH, &[]), present);
        assert_eq!(
            choose(present, BOTH, &answers(&["10.0.0.8"])),
            at(Some("10.0.0.8"), Some("fd00::7"))
        );
    }

    #[test]
    fn families_that_nobody_needs_and_unusable_answers_are_ignored() {
        let v4_only = Families {
            v4: true,
            v6: false,
        };
        let found = answers(&["127.0.0.1", "0.0.0.0", "10.0.0.8", "fd00::8", "224.0.0.1"]);
        assert_eq!(
            choose(at(None, None), v4_only, &found),
            at(Some("10.0.0.8"), None)
        );
    }

    #[tokio::test]
    async fn the_hosts_file_is_honoured_and_loopback_is_refused() {
        // Every hosts file has localhost; it is an answer that cannot be steered to.
        let name = |who: u32| ("localhost".to_owned(), BOTH, who);
        let answers: Vec<_> = lookups((0..100).map(name)).collect().await;
        assert_eq!(answers.len(), 100);
        for (_, answer) in answers {
            let error = answer.unwrap_err();
            assert!(error.reason.contains("loopback"), "{error:?}");
        }
    }
}
