//! The configuration file as it is written, before anything is judged.
//!
//! Every scalar is text here, whatever YAML thinks its type is, so that one place
//! (`scalar.rs`) parses it and its error can quote the very value. Structures
//! refuse fields they do not know: a misspelt `fall` must not become the default.

mod check;

use std::fmt;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

pub use check::{
    Body, Check, Checks, Exec, Expect, Grpc, Header, Http, Postgres, Redis, Script, Step, Tcp,
    Timing, Tls, Udp,
};

/// The configuration of probe.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub interfaces: Interfaces,
    #[serde(default)]
    pub datapath: Datapath,
    #[serde(default)]
    pub control: Control,
    #[serde(default)]
    pub metrics: Metrics,
    pub services: Vec<Service>,
    pub suspect_self: Option<String>,
    #[serde(default)]
    pub checking: Checking,
    #[serde(default)]
    pub resolve: Resolve,
    #[serde(default)]
    pub page: Page,
}

/// `interfaces`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interfaces {
    #[serde(default)]
    pub edge: Vec<String>,
    #[serde(default)]
    pub uplink: Vec<String>,
    pub node: Option<String>,
}

/// `datapath`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Datapath {
    pub bpffs: Option<String>,
    pub tc: Option<String>,
    pub xdp: Option<String>,
    pub flows: Option<String>,
    pub learn: Option<String>,
    #[serde(default)]
    pub timeouts: Timeouts,
    pub source: Option<OneOrMany>,
    pub xdp_send: Option<String>,
    pub cgroup: Option<String>,
    pub log: Option<String>,
}

/// `datapath.timeouts`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    pub opening: Option<String>,
    pub established: Option<String>,
    pub closing: Option<String>,
    pub datagrams: Option<String>,
    pub datagrams_answered: Option<String>,
}

/// `control`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub socket: Option<String>,
    pub group: Option<String>,
    pub state: Option<String>,
}

/// `metrics`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub listen: Option<String>,
}

/// `checking`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checking {
    pub realtime: Option<String>,
    pub per_second: Option<String>,
    pub at_once: Option<String>,
}

/// `page`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Page {
    pub listen: Option<String>,
}

/// `resolve`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    pub every: Option<String>,
    pub hold_nx: Option<String>,
    pub hold_failure: Option<String>,
}

/// One of `services`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub name: String,
    pub listeners: Vec<String>,
    pub endpoints: Vec<Endpoint>,
    pub check: Option<Check>,
    pub checks: Option<Checks>,
    #[serde(default)]
    pub failback: Failback,
    pub all_down: Option<String>,
    pub on_marked_down: Option<Connections>,
    pub on_failback: Option<Connections>,
    pub drain: Option<String>,
    pub forward: Option<String>,
    #[serde(default)]
    pub affinity: Affinity,
    pub sentinel: Option<String>,
    pub observe: Option<String>,
    pub life_signs: Option<String>,
    pub error_limit: Option<String>,
    pub single_writer: Option<String>,
    pub slow_start: Option<String>,
    pub agent_check: Option<AgentCheck>,
    pub mode: Option<String>,
}

/// `agent_check`, of a service or of an endpoint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentCheck {
    pub port: String,
    pub address: Option<String>,
    pub inter: Option<String>,
    pub send: Option<String>,
}

/// One of a service's `endpoints`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    pub name: String,
    pub address: OneOrMany,
    pub tier: Option<String>,
    pub weight: Option<String>,
    #[serde(default)]
    pub listeners: Vec<String>,
    pub slow_start: Option<String>,
    pub agent_check: Option<AgentCheck>,
}

/// A service's `affinity`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Affinity {
    /// Written without a value it is there, and nothing.
    #[serde(default, deserialize_with = "written")]
    pub client_ip: Option<Option<String>>,
}

/// For what has a meaning without a value: `tls:` alone is there, with all its defaults.
fn there<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer).map(|value| Some(value.unwrap_or_default()))
}

fn written<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// What becomes of connections: a word, or `drain` with a time.
#[derive(Debug)]
pub enum Connections {
    Word(String),
    Drain(String),
}

// As `OneOrMany`, and so that a key that is not `drain` is named.
impl<'de> Deserialize<'de> for Connections {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ConnectionsVisitor)
    }
}

struct ConnectionsVisitor;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    drain: String,
}

impl<'de> Visitor<'de> for ConnectionsVisitor {
    type Value = Connections;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reset, keep or {drain: TIME}")
    }
    fn visit_str<E>(self, text: &str) -> Result<Connections, E> {
        Ok(Connections::Word(text.to_owned()))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Connections, A::Error> {
        let Drain { drain } = Drain::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Connections::Drain(drain))
    }
}

/// `x` and `[x, y]` alike.
#[derive(Debug)]
pub enum OneOrMany {
    Many(Vec<String>),
    One(String),
}

// Not `serde(untagged)`: that buffers what YAML took for a number, and text then
// does not accept it.
impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

struct OneOrManyVisitor;

impl<'de> Visitor<'de> for OneOrManyVisitor {
    type Value = OneOrMany;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value or a list of values")
    }
    fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
        Ok(OneOrMany::One(text.to_owned()))
    }
    fn visit_u64<E>(self, number: u64) -> Result<OneOrMany, E> {
        Ok(OneOrMany::One(number.to_string()))
    }
    fn visit_i64<E>(self, number: i64) -> Result<OneOrMany, E> {
        Ok(OneOrMany::One(number.to_string()))
    }
    fn visit_f64<E>(self, number: f64) -> Result<OneOrMany, E> {
        Ok(OneOrMany::One(number.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
        let mut many = Vec::new();
        while let Some(text) = list.next_element()? {
            many.push(text);
        }
        Ok(OneOrMany::Many(many))
    }
}

/// A service's `failback`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failback {
    pub mode: Option<String>,
    pub hold: Option<String>,
    pub max_hold: Option<String>,
}
