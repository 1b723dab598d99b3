//! `check` and `checks` as they are written.
//!
//! A new kind is one more optional field of [`Check`], with a structure of its own.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{OneOrMany, there};

/// A service's `check`, or one of its `checks`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    #[serde(default, deserialize_with = "there")]
    pub tcp: Option<Tcp>,
    #[serde(default, deserialize_with = "there")]
    pub http: Option<Http>,
    #[serde(default, deserialize_with = "there")]
    pub script: Option<Script>,
    #[serde(default, deserialize_with = "there")]
    pub redis: Option<Redis>,
    #[serde(default, deserialize_with = "there")]
    pub postgres: Option<Postgres>,
    #[serde(default, deserialize_with = "there")]
    pub grpc: Option<Grpc>,
    #[serde(default, deserialize_with = "there")]
    pub udp: Option<Udp>,
    #[serde(default, deserialize_with = "there")]
    pub exec: Option<Exec>,
    pub inter: Option<String>,
    pub fastinter: Option<String>,
    pub downinter: Option<String>,
    pub spread_checks: Option<String>,
    pub in_flight: Option<String>,
    pub timeout: Option<String>,
    pub rise: Option<String>,
    pub fall: Option<String>,
}

/// A service's `checks`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    pub all: Option<Vec<Check>>,
    pub any: Option<Vec<Check>>,
    pub inter: Option<String>,
    pub fastinter: Option<String>,
    pub downinter: Option<String>,
    pub spread_checks: Option<String>,
    pub in_flight: Option<String>,
    pub timeout: Option<String>,
    pub rise: Option<String>,
    pub fall: Option<String>,
}

/// When checks are made, of `check` and of `checks` alike.
#[derive(Clone, Copy, Debug)]
pub struct Timing<'a> {
    pub inter: &'a Option<String>,
    pub fastinter: &'a Option<String>,
    pub downinter: &'a Option<String>,
    pub spread_checks: &'a Option<String>,
    pub in_flight: &'a Option<String>,
    pub timeout: &'a Option<String>,
    pub rise: &'a Option<String>,
    pub fall: &'a Option<String>,
}

impl Check {
    pub fn timing(&self) -> Timing<'_> {
        let Self {
            inter,
            fastinter,
            downinter,
            spread_checks,
            in_flight,
            timeout,
            rise,
            fall,
            ..
        } = self;
        Timing {
            inter,
            fastinter,
            downinter,
            spread_checks,
            in_flight,
            timeout,
            rise,
            fall,
        }
    }
}

impl Checks {
    pub fn timing(&self) -> Timing<'_> {
        let Self {
            inter,
            fastinter,
            downinter,
            spread_checks,
            in_flight,
            timeout,
            rise,
            fall,
            ..
        } = self;
        Timing {
            inter,
            fastinter,
            downinter,
            spread_checks,
            in_flight,
            timeout,
            rise,
            fall,
        }
    }
}

/// `tcp`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    pub port: Option<String>,
    pub address: Option<String>,
    pub send_proxy: Option<String>,
    #[serde(default, deserialize_with = "there")]
    pub tls: Option<Tls>,
}

/// `http`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    pub method: Option<String>,
    pub path: Option<String>,
    pub host: Option<String>,
    pub port: Option<String>,
    pub address: Option<String>,
    pub send_proxy: Option<String>,
    #[serde(default, deserialize_with = "there")]
    pub tls: Option<Tls>,
    pub version: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    pub body: Option<String>,
    pub connection: Option<String>,
    pub fresh_every: Option<String>,
    pub redirects: Option<String>,
    #[serde(default)]
    pub expect: Expect,
}

/// `tls`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub sni: Option<String>,
    pub ca: Option<String>,
    pub certificate: Option<String>,
    pub key: Option<String>,
    pub verify: Option<String>,
}

/// `http.expect`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    pub status: Option<OneOrMany>,
    #[serde(default)]
    pub headers: Vec<Header>,
    pub body: Option<Body>,
    pub body_replaces_status: Option<String>,
    #[serde(default)]
    pub not: Not,
}

/// `http.expect.not`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Not {
    pub status: Option<OneOrMany>,
    #[serde(default)]
    pub headers: Vec<Header>,
    pub body: Option<Body>,
}

/// One of `headers` that are expected or not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub name: String,
    pub equals: Option<String>,
    pub contains: Option<String>,
    pub regex: Option<String>,
}

/// `body` that is expected or not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Body {
    pub contains: Option<String>,
    pub hex: Option<String>,
    pub regex: Option<String>,
}

/// `script`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Script {
    pub port: Option<String>,
    pub address: Option<String>,
    pub send_proxy: Option<String>,
    #[serde(default, deserialize_with = "there")]
    pub tls: Option<Tls>,
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// One of `script.steps`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub send: Option<String>,
    pub send_hex: Option<String>,
    pub expect: Option<String>,
    pub expect_hex: Option<String>,
    pub expect_regex: Option<String>,
    pub not: Option<String>,
    pub min_recv: Option<String>,
}

/// `redis`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    pub port: Option<String>,
    pub address: Option<String>,
    pub send_proxy: Option<String>,
    #[serde(default, deserialize_with = "there")]
    pub tls: Option<Tls>,
    pub connection: Option<String>,
    pub fresh_every: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub password_file: Option<String>,
    pub role: Option<String>,
}

/// `postgres`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    pub port: Option<String>,
    pub address: Option<String>,
    pub send_proxy: Option<String>,
    #[serde(default, deserialize_with = "there")]
    pub tls: Option<Tls>,
    pub connection: Option<String>,
    pub fresh_every: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub password_file: Option<String>,
    pub database: Option<String>,
    pub role: Option<String>,
}

/// `grpc`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grpc {
    pub port: Option<String>,
    pub address: Option<String>,
    pub send_proxy: Option<String>,
    #[serde(default, deserialize_with = "there")]
    pub tls: Option<Tls>,
    pub connection: Option<String>,
    pub fresh_every: Option<String>,
    pub service: Option<String>,
    pub host: Option<String>,
}

/// `udp`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Udp {
    pub port: Option<String>,
    pub address: Option<String>,
    pub send: Option<String>,
    pub send_hex: Option<String>,
    pub expect: Option<String>,
    pub expect_hex: Option<String>,
    pub expect_regex: Option<String>,
    pub not: Option<String>,
}

/// `exec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    #[serde(default)]
    pub command: Vec<String>,
}
