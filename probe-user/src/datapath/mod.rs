//! The agent's hands in the kernel: loads, attaches, pins, fills and reads.
//!
//! [`Steering`] is what the rest of the agent sees. [`kernel::Datapath`] is its
//! only real implementation; tests of the agent's core use a recorder.
//!
//! Ids are stable: a service or endpoint that keeps its name (and an endpoint
//! that keeps its addresses) keeps its id over restarts of the agent, because
//! names are stored beside the tables and the tables are pinned. An endpoint
//! whose address changes gets a new id; flows of the old one live on.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Index into the kernel's service tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// Index into the kernel's endpoint tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

/// A service as the datapath needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    /// At most 63 bytes, unique.
    pub name: String,
    /// VIP:port pairs that follow the selection, TCP.
    pub listeners: Vec<SocketAddr>,
    /// In any order; names unique within the service.
    pub endpoints: Vec<EndpointPlan>,
    /// Flows of an endpoint that is down keep going to it instead of being reset.
    pub keep_flows_of_down: bool,
}

/// An endpoint as the datapath needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPlan {
    /// At most 63 bytes.
    pub name: String,
    /// 0 is the master's tier.
    pub tier: u8,
    /// Address in IPv4, if it has one.
    pub v4: Option<Ipv4Addr>,
    /// Address in IPv6, if it has one.
    pub v6: Option<Ipv6Addr>,
    /// Port in both families, host order.
    pub port: u16,
    /// VIP:port pairs that always reach this endpoint, whatever the selection.
    pub listeners: Vec<SocketAddr>,
}

/// Where a service's new connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To this endpoint.
    Endpoint(EndpointId),
    /// Nowhere: clients get a RST.
    Refuse,
}

/// What the kernel holds for one service after [`Steering::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedService {
    /// The service's id.
    pub id: ServiceId,
    /// Ids of the plan's endpoints, in the plan's order.
    pub endpoints: Vec<EndpointId>,
    /// The selection that an earlier agent left, if it still names one of these endpoints.
    pub inherited: Option<Choice>,
    /// Per endpoint of the plan: was it marked down by an earlier agent?
    pub inherited_down: Vec<bool>,
}

/// Where an interface's packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The host's side of a pod's link: TC ingress and egress.
    Edge,
    /// The way to outside clients: XDP ingress and TC egress.
    Uplink,
}

/// How an interface was attached, for the log and the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// `tcx`, `clsact`.
    pub tc: &'static str,
    /// `native`, `generic`, or `None` on an edge.
    pub xdp: Option<&'static str>,
    /// What was wanted and not to be had, each a sentence for the log.
    pub degraded: Vec<String>,
    /// The programs of an earlier agent were replaced in place.
    pub inherited: bool,
}

/// Sums over CPUs of one endpoint's traffic.
pub use probe_ebpf::abi::EndpointCounters;

/// The datapath as the agent's core sees it.
pub trait Steering {
    /// Makes listeners, services and endpoints in the kernel equal to `plan`: all
    /// of it, so what is not in the plan is removed. Selections of services that
    /// stay are not touched; a new service has none until [`Steering::select`].
    fn apply(&mut self, plan: &[ServicePlan]) -> Result<Vec<AppliedService>, Error>;

    /// Gives an endpoint of a service new addresses (DNS said so), hence a new id.
    /// The old id's flows go on; the selection is not touched. The caller selects
    /// the new id if the old one was selected.
    fn readdress(
        &mut self,
        service: ServiceId,
        old: EndpointId,
        endpoint: &EndpointPlan,
    ) -> Result<EndpointId, Error>;

    /// The switch: one word.
    fn select(&mut self, service: ServiceId, choice: Choice) -> Result<(), Error>;

    /// Marks an endpoint up or down, which decides over its existing flows.
    fn mark(&mut self, endpoint: EndpointId, up: bool) -> Result<(), Error>;
}

/// What can go wrong between the agent and the kernel. Each message says what was
/// done to what, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Placeholder-free catch of a described failure.
    #[error("{0}")]
    Failed(String),
}
