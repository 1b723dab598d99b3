//! `/v1/flows`: which connections there are, and their end.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{
    api::{Api, Asked, Fault},
    kernel::Table,
    server::Client,
};
use crate::{
    core::{Ask, journal::What},
    datapath::{self, Flow, Vip},
};

/// Flows that are shown if nobody says how many.
const SHOWN: usize = 1000;
/// Flows that are shown at most.
const MOST: usize = 100_000;

/// Which flows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Of this service.
    pub service: Option<String>,
    /// To this endpoint.
    pub endpoint: Option<String>,
    /// Of clients there: an address, ADDRESS/PREFIX or ADDRESS:PORT.
    pub client: Option<String>,
    /// To this VIP:port.
    pub vip: Option<String>,
    /// `opening`, `established` or `closing`.
    pub stage: Option<String>,
    /// So many are shown.
    pub limit: Option<usize>,
    /// Of an order: only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

impl Filter {
    /// For people.
    fn text(&self) -> String {
        let all = [
            ("service", &self.service),
            ("endpoint", &self.endpoint),
            ("client", &self.client),
            ("vip", &self.vip),
            ("stage", &self.stage),
        ];
        let said = all.into_iter().filter_map(|(name, value)| {
            let value = value.as_ref()?;
            Some(format!("{name} {value}"))
        });
        said.collect::<Vec<_>>().join(", ")
    }

    fn clients(&self) -> Result<Clients, Fault> {
        let Some(text) = &self.client else {
            return Ok(Clients::All);
        };
        Clients::parse(text).ok_or_else(|| {
            bad(format!(
                "client: `{text}`: accepted: an address, ADDRESS/PREFIX or ADDRESS:PORT"
            ))
        })
    }
}

fn bad(told: String) -> Fault {
    Fault(StatusCode::BAD_REQUEST, told)
}

/// What became of connections that were to end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Killed {
    /// All that the filter takes.
    pub count: u64,
    /// Those that are reset, or would be.
    pub killed: u64,
    /// Those that stay: connections to a listener of one endpoint or to its own address, of full
    /// NAT, or such as ended meanwhile.
    pub left: u64,
    /// Nothing was done.
    pub dry_run: bool,
}

/// What is there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed {
    /// All that the filter takes.
    pub count: u64,
    /// The same by service, and within it by endpoint.
    pub by_endpoint: BTreeMap<String, BTreeMap<String, u64>>,
    /// Some of them.
    pub flows: Vec<Shown>,
}

/// A flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    pub client: String,
    pub vip: String,
    pub service: String,
    /// `-` if the endpoint has left the configuration or has another address now.
    pub endpoint: String,
    /// `opening`, `established` or `closing`.
    pub stage: String,
    /// For how long nothing was seen of it, to a second.
    pub idle_ms: u64,
    /// The client's port as the endpoint sees it, if that is another one.
    pub seen_port: Option<u16>,
}

/// Clients that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    All,
    One(SocketAddr),
    Net(IpAddr, u8),
}

impl Clients {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(one) = text.parse() {
            return Some(Self::One(one));
        }
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(bits), |text| text.parse().ok())?;
        (prefix <= bits).then_some(Self::Net(ip, prefix))
    }

    fn has(self, client: SocketAddr) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == client,
            Self::Net(net, prefix) => {
                let (a, b, bits) = match (net, client.ip()) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => {
                        (u128::from(a.to_bits()), u128::from(b.to_bits()), 32)
                    }
                    (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
                    _ => return false,
                };
                (a ^ b).checked_shr(bits - u32::from(prefix)).unwrap_or(0) == 0
            }
        }
    }
}

/// `GET /v1/flows`.
pub(super) async fn list(
    State(api): State<Api>,
    Asked(filter): Asked<Filter>,
) -> Result<Json<Listed>, Fault> {
    let clients = filter.clients()?;
    // One walk at a time, and not by who serves others.
    let _turn = api.walks.lock().await;
    let names = Names::of(&api, &filter).await?;
    let table: Arc<dyn Table> = api.flows.clone();
    let most = filter.limit.unwrap_or(SHOWN).min(MOST);
    let listed = tokio::task::spawn_blocking(move || {
        let mut count = 0;
        let mut by_endpoint: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        let flows = table.list(most, &mut |flow| {
            let wanted = names.wants(&filter, clients, flow);
            if wanted {
                let (service, endpoint) = names.get(flow);
                count += 1;
                let service = by_endpoint.entry(service.to_owned()).or_default();
                *service.entry(endpoint.to_owned()).or_default() += 1;
            }
            wanted
        })?;
        let flows = flows.iter().map(|flow| names.shown(flow)).collect();
        Ok(Listed {
            count,
            by_endpoint,
            flows,
        })
    });
    let listed: Result<_, datapath::Error> = listed.await.map_err(internal)?;
    listed.map(Json).map_err(internal)
}

fn internal(error: impl ToString) -> Fault {
    Fault(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// `POST /v1/flows/kill`.
pub(super) async fn kill(
    State(api): State<Api>,
    Extension(client): Extension<Client>,
    Asked(filter): Asked<Filter>,
) -> Result<Json<Killed>, Fault> {
    let (clients, text, dry_run) = (filter.clients()?, filter.text(), filter.dry_run);
    if text.is_empty() {
        return Err(bad(
            "which ones? say service, endpoint, client, vip or stage".to_owned(),
        ));
    }
    let _turn = api.walks.lock().await;
    let names = Names::of(&api, &filter).await?;
    let table: Arc<dyn Table> = api.flows.clone();
    let found = tokio::task::spawn_blocking(move || {
        let found = table.list(MOST, &mut |flow| names.wants(&filter, clients, flow))?;
        Ok((found, names))
    });
    let found: Result<_, datapath::Error> = found.await.map_err(internal)?;
    let (found, names) = found.map_err(internal)?;
    let count = found.len() as u64;
    let mine: Vec<_> = found.into_iter().filter(|f| names.follows(f)).collect();
    if dry_run {
        return Ok(Json(Killed {
            count,
            killed: mine.len() as u64,
            left: count - mine.len() as u64,
            dry_run,
        }));
    }
    let of: BTreeSet<_> = mine.iter().map(|flow| flow.endpoint).collect();
    let of: Vec<_> = of.into_iter().collect();
    let graves = api.sources.ask(|reply| Ask::Graves(of, reply)).await?;
    let graves: BTreeMap<_, _> = graves.map_err(internal)?.into_iter().collect();
    let table: Arc<dyn Table> = api.flows.clone();
    let killed = tokio::task::spawn_blocking(move || {
        let bury = |flow: &&Flow| {
            let grave = graves.get(&flow.endpoint);
            grave.is_some_and(|grave| table.bury(flow, *grave))
        };
        mine.iter().filter(bury).count() as u64
    });
    let killed = killed.await.map_err(internal)?;
    // Closed: the agent ends.
    let _ = api.sources.asks.send(Ask::Buried).await;
    if killed > 0 {
        let by = client.peer.named().await;
        info!(%by, flows = killed, "connections ended: {text}");
        api.journal.tell(What::Killed {
            flows: killed,
            filter: text,
            by,
        });
    }
    Ok(Json(Killed {
        count,
        killed,
        left: count - killed,
        dry_run,
    }))
}

/// Names of what flows know by number.
struct Names {
    services: BTreeMap<u32, String>,
    endpoints: BTreeMap<u32, String>,
    /// What follows a selection.
    listeners: HashSet<Vip>,
}

impl Names {
    async fn of(api: &Api, filter: &Filter) -> Result<Self, Fault> {
        let services = api.sources.ask(Ask::Names).await?;
        let mut names = Self {
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            listeners: HashSet::new(),
        };
        let wants = |of: &Option<String>, name: &str| of.as_deref() == Some(name);
        let (mut service_known, mut endpoint_known) = (false, false);
        for service in services {
            service_known |= wants(&filter.service, &service.name);
            names.services.insert(service.id.0, service.name);
            names.listeners.extend(service.listeners);
            for (id, name) in service.endpoints {
                endpoint_known |= wants(&filter.endpoint, &name);
                names.endpoints.insert(id.0, name);
            }
        }
        let unknown = |what: &str, name: &Option<String>| {
            let name = name.as_deref().unwrap_or_default();
            Fault(
                StatusCode::NOT_FOUND,
                format!("there is no {what} `{name}`"),
            )
        };
        if filter.service.is_some() && !service_known {
            return Err(unknown("service", &filter.service));
        }
        if filter.endpoint.is_some() && !endpoint_known {
            return Err(unknown("endpoint", &filter.endpoint));
        }
        Ok(names)
    }

    fn wants(&self, filter: &Filter, clients: Clients, flow: &Flow) -> bool {
        let (service, endpoint) = self.get(flow);
        clients.has(flow.client)
            && filter.service.as_ref().is_none_or(|of| of == service)
            && filter.endpoint.as_ref().is_none_or(|of| of == endpoint)
            && filter
                .stage
                .as_ref()
                .is_none_or(|of| of == flow.stage.label())
            && filter
                .vip
                .as_ref()
                .is_none_or(|vip| *vip == flow.vip.to_string())
    }

    /// Does it follow a selection? Others stay with their endpoint whatever its marks say.
    fn follows(&self, flow: &Flow) -> bool {
        self.listeners.contains(&flow.vip)
    }

    fn get(&self, flow: &Flow) -> (&str, &str) {
        let service = self.services.get(&flow.service.0);
        let endpoint = self.endpoints.get(&flow.endpoint.0);
        (
            service.map_or("-", String::as_str),
            endpoint.map_or("-", String::as_str),
        )
    }

    fn shown(&self, flow: &Flow) -> Shown {
        let (service, endpoint) = self.get(flow);
        Shown {
            client: flow.client.to_string(),
            vip: flow.vip.to_string(),
            service: service.to_owned(),
            endpoint: endpoint.to_owned(),
            stage: flow.stage.label().to_owned(),
            idle_ms: flow.idle_ms,
            seen_port: Some(flow.seen_port).filter(|port| *port != flow.client.port()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_by_address_net_and_port() {
        let at = |text: &str| text.parse().unwrap();
        for (filter, client, has) in [
            ("10.0.0.9", "10.0.0.9:1", true),
            ("10.0.0.9", "10.0.0.8:1", false),
            ("10.0.0.9:2", "10.0.0.9:2", true),
            ("10.0.0.9:2", "10.0.0.9:1", false),
            ("10.0.0.0/24", "10.0.0.200:7", true),
            ("10.0.0.0/24", "10.0.1.200:7", false),
            ("0.0.0.0/0", "10.0.1.200:7", true),
            ("0.0.0.0/0", "[fd00::1]:7", false),
            ("fd00::/64", "[fd00::7]:7", true),
            ("fd00::/64", "[fd00:0:0:1::7]:7", false),
            ("::/0", "[fd00::7]:7", true),
        ] {
            let clients = Clients::parse(filter).unwrap();
            assert_eq!(clients.has(at(client)), has, "{filter} {client}");
        }
        for bad in [
            "",
            "a",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.1/x",
            "10.0.0.1:99999",
        ] {
            assert_eq!(Clients::parse(bad), None, "{bad}");
        }
    }
}
