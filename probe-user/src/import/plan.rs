//! What a source means, in probe's words and independent of the source and of what this
//! version can do: services, endpoints and checks. The emitter writes from it what the
//! configuration knows; each value remembers the line that it came from, for the report.

use std::{ops::RangeInclusive, time::Duration};

/// A value and the line that said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Number of the line.
    pub line: usize,
}

impl<T> Sourced<T> {
    /// A value and the line that said so.
    pub const fn new(value: T, line: usize) -> Self {
        Self { value, line }
    }
}

/// All that was imported.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of the source.
    pub services: Vec<Service>,
    /// The longest time that a connection may be idle there, if it is longer than here.
    pub idle: Option<Sourced<Duration>>,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name here.
    pub name: String,
    /// The line that it begins with.
    pub line: usize,
    /// What it is called there, as `backend 10_sense`.
    pub title: String,
    /// Where clients connect to.
    pub listeners: Vec<Listener>,
    /// In order of their tiers.
    pub endpoints: Vec<Endpoint>,
    /// How health is probed.
    pub check: Check,
    /// A client stays with its endpoint.
    pub affinity: Option<Sourced<Duration>>,
    /// It stays on a backup until somebody orders it back.
    pub manual: Option<usize>,
    /// What is left on a backup is cut when the master is back.
    pub cut_backup: Option<usize>,
    /// What failing clients do.
    pub observe: Option<Sourced<Observe>>,
    /// The way of forwarding, if it is not NAT.
    pub direct_return: Option<usize>,
    /// Names that clients choose it by, which are to point at its VIP.
    pub names: Vec<String>,
}

/// Where clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// An address and port, `ADDRESS:PORT`; without an address it needs a VIP.
    pub address: Option<String>,
    /// The port, if it is known.
    pub port: Option<u16>,
    /// Datagrams.
    pub udp: bool,
    /// The line.
    pub line: usize,
}

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name here.
    pub name: String,
    /// Its line.
    pub line: usize,
    /// Its line's text.
    pub text: String,
    /// Where it is.
    pub address: Address,
    /// 0 is the master's.
    pub tier: u8,
    /// If it is not 1.
    pub weight: Option<Sourced<u16>>,
    /// Out of service from the start.
    pub disabled: Option<usize>,
    /// Its own listener, where clients reach it whatever is selected.
    pub direct: Option<Direct>,
    /// Its share grows after a recovery.
    pub slowstart: Option<Sourced<Duration>>,
    /// It is asked for its own state.
    pub agent: Option<Sourced<Agent>>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `ADDRESS:PORT` or `NAME:PORT`.
    At(String),
    /// Nowhere that packets can be steered to: what stands in its place, and why.
    Needs(String, String),
}

/// An endpoint's own listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    /// The VIP, if one was given.
    pub vip: Option<String>,
    /// The names that clients used there.
    pub names: Vec<String>,
    /// The line.
    pub line: usize,
}

/// The agent that states its server's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its port.
    pub port: Option<u16>,
    /// Another address than the server's.
    pub address: Option<String>,
    /// Time between two questions.
    pub inter: Option<Duration>,
    /// What it is sent first.
    pub send: Option<String>,
}

/// What failing clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observe {
    /// Checks are made at once.
    Trigger,
    /// So many errors take the endpoint down.
    MarkDown(u32),
}

/// How health is probed.
#[derive(Clone, Debug)]
pub struct Check {
    /// What is asked.
    pub kind: Sourced<Kind>,
    /// Another port than the endpoint's.
    pub port: Option<Sourced<u16>>,
    /// Another address than the endpoint's.
    pub address: Option<Sourced<String>>,
    /// Over TLS.
    pub tls: Option<Sourced<Tls>>,
    /// A PROXY header is sent first.
    pub proxy_header: Option<usize>,
    /// Time between two checks.
    pub inter: Timing,
    /// In transition.
    pub fastinter: Option<Sourced<Duration>>,
    /// While down.
    pub downinter: Option<Sourced<Duration>>,
    /// For one check.
    pub timeout: Timing,
    /// Good ones in a row.
    pub rise: Option<Sourced<u32>>,
    /// Failed ones in a row.
    pub fall: Option<Sourced<u32>>,
}

/// A time that the source says, or that is its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The time.
    pub value: Duration,
    /// The line, unless it is a default.
    pub line: Option<usize>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be connected.
    Tcp,
    /// An HTTP request.
    Http(Http),
    /// Sent and expected bytes.
    Script(Vec<Sourced<Step>>),
    /// `PING`, and what else is asked.
    Redis(Redis),
    /// The beginning of a session.
    Postgres(Option<String>),
    /// Something that probe has no kind for, by its name there.
    Other(&'static str),
}

/// What Redis is asked beside `PING`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redis {
    /// Who asks: a user, perhaps, and a password.
    pub login: Option<(Option<String>, String)>,
    /// `master` or `replica`.
    pub role: Option<&'static str>,
    /// The lines of the script that it stands for.
    pub lines: Vec<usize>,
}

/// An HTTP request and what must come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// The method.
    pub method: String,
    /// The target.
    pub path: String,
    /// The Host header.
    pub host: Option<String>,
    /// Other headers.
    pub headers: Vec<Sourced<(String, String)>>,
    /// The request's body.
    pub body: Option<Sourced<String>>,
    /// All of these.
    pub expect: Vec<Sourced<Expect>>,
}

/// What an answer must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Or must not be.
    pub not: bool,
    /// What.
    pub what: Match,
}

/// Something to find in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// One of these statuses.
    Status(Vec<RangeInclusive<u16>>),
    /// This text.
    Text(String),
    /// Something that this expression matches.
    Regex(String),
    /// A header, and what its value must be.
    Header {
        /// Its name.
        name: String,
        /// The value.
        value: Option<HeaderValue>,
    },
}

/// What a header's value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderValue {
    /// This text.
    Is(String),
    /// This text is in it.
    Contains(String),
    /// An expression matches.
    Regex(String),
}

/// A step of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connect once more: to a port, over TLS.
    Connect {
        /// The port.
        port: Option<u16>,
        /// Over TLS.
        tls: bool,
    },
    /// Send bytes.
    Send(Vec<u8>),
    /// Wait for bytes.
    Expect {
        /// Or for their absence.
        not: bool,
        /// Which.
        what: Bytes,
    },
}

/// Bytes to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// These.
    Exact(Vec<u8>),
    /// Something that this expression matches.
    Regex(String),
    /// The same, in hexadecimal digits.
    HexRegex(String),
}

/// How TLS is spoken in checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The name that is asked for.
    pub sni: Option<String>,
    /// The certificate is believed unseen.
    pub insecure: bool,
    /// The authority.
    pub ca: Option<String>,
    /// The client's certificate and key, in one file.
    pub certificate: Option<String>,
}
