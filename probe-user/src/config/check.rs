//! What an endpoint must do to be called healthy, and when it is asked.
//!
//! A service has one check, or several whose verdicts make one. Each is of one
//! [`Kind`]; a new kind is a variant here, a structure that parses itself from its
//! raw one, and a conversation in [`crate::health::protocol`].

mod exec;
mod expect;
mod grpc;
mod http;
mod postgres;
mod reach;
mod redis;
mod script;
mod secret;
mod tls;
mod udp;

use std::{fmt, net::SocketAddr, time::Duration};

pub use self::http::{HttpCheck, HttpVersion, Keep, Method};
pub use exec::ExecCheck;
pub use expect::{BodyMatch, Expect, HeaderMatch, StatusSet, ValueMatch};
pub use grpc::GrpcCheck;
pub use postgres::{PostgresCheck, PostgresLogin, PostgresRole};
pub use reach::{ProxyVersion, Reach};
pub use redis::{RedisCheck, RedisLogin, RedisRole};
pub(super) use script::unescape;
pub use script::{Looked, ScriptCheck, Step};
pub use secret::{LONGEST_PASSWORD, Secret};
pub use tls::Tls;
pub use udp::UdpCheck;

use super::{
    error::Fault,
    raw,
    scalar::{self, duration, number},
};

const DEFAULT_INTER: Duration = Duration::from_secs(2);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_RISE: u32 = 2;
const DEFAULT_FALL: u32 = 3;
/// More than this many of anything in a row is a typing error.
pub const MOST_IN_A_ROW: u32 = 1000;
/// Checks that one endpoint may have.
const MOST_CHECKS: usize = 16;
/// HAProxy's bound, in percent.
const MOST_SPREAD: u32 = 50;
/// Checks of one endpoint that are waited for at one time, at most.
const MOST_IN_FLIGHT: usize = 100;
const KINDS: &str = "one of tcp, http, script, redis, postgres, grpc, udp, exec";

/// How the health of a service's endpoints is probed.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    each: Vec<Each>,
    combine: Combine,
    inter: Duration,
    fastinter: Duration,
    downinter: Duration,
    spread: u32,
    in_flight: Option<usize>,
    timeout: Duration,
    rise: u32,
    fall: u32,
}

/// One of the checks that are made of an endpoint at the same time.
#[derive(Clone, Debug, PartialEq)]
pub struct Each {
    kind: Kind,
    timeout: Duration,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A connection, and a TLS handshake if it has TLS.
    Tcp(TcpCheck),
    /// A request and its answer.
    Http(Box<HttpCheck>),
    /// Steps of send and expect.
    Script(ScriptCheck),
    /// PING, and the role.
    Redis(RedisCheck),
    /// A connection, and the role.
    Postgres(PostgresCheck),
    /// The health service.
    Grpc(GrpcCheck),
    /// A datagram and its answer.
    Udp(UdpCheck),
    /// A command.
    Exec(ExecCheck),
}

/// When an endpoint with several checks is healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// When all of them are good.
    All,
    /// When one of them is.
    Any,
}

/// Can one connect?
#[derive(Clone, Debug, PartialEq)]
pub struct TcpCheck {
    reach: Reach,
}

impl TcpCheck {
    /// How.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    fn parse(field: &str, raw: &raw::Tcp) -> Result<Self, Fault> {
        let reach = Reach::parse(field, &raw.port, &raw.address, &raw.send_proxy, &raw.tls)?;
        Ok(Self { reach })
    }
}

impl Check {
    /// What is asked, at least one thing.
    pub fn each(&self) -> &[Each] {
        &self.each
    }
    /// How several verdicts make one.
    pub fn combine(&self) -> Combine {
        self.combine
    }
    /// Time between the starts of two checks.
    pub fn inter(&self) -> Duration {
        self.inter
    }
    /// The same while an endpoint's state is in question; `inter` unless said.
    pub fn fastinter(&self) -> Duration {
        self.fastinter
    }
    /// The same while an endpoint is down; `inter` unless said.
    pub fn downinter(&self) -> Duration {
        self.downinter
    }
    /// How much later than its time a check may begin, in percent of the interval.
    pub fn spread(&self) -> u32 {
        self.spread
    }
    /// Time that one check may take, from connect to the last byte that it needs; of several,
    /// that one which may take longest.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
    /// Good checks in a row that bring an endpoint up.
    pub fn rise(&self) -> u32 {
        self.rise
    }
    /// Failed checks in a row that take an endpoint down.
    pub fn fall(&self) -> u32 {
        self.fall
    }

    /// Where connections to an endpoint go, a sentinel's too.
    pub fn target(&self, endpoint: SocketAddr) -> SocketAddr {
        let reach = self.each.iter().find_map(|each| each.kind().reach());
        reach.map_or(endpoint, |reach| reach.target(endpoint))
    }
    /// Checks of one endpoint that may be waited for at one time. One, as HAProxy does, unless the
    /// configuration says more: where they overlap, a single stall of the endpoint, or of this node,
    /// as long as the timeout and `fall` - 1 intervals looks like `fall` failures.
    pub fn in_flight(&self) -> usize {
        self.in_flight.unwrap_or(1)
    }

    /// Is a silent connection to the endpoint a good idea, unless the configuration says? Not
    /// where it may not listen on TCP, nor where each costs it a process.
    pub(super) fn bears_sentinel(&self) -> bool {
        let mut kinds = self.each.iter().map(Each::kind);
        kinds.clone().any(|kind| kind.reach().is_some())
            && !kinds.any(|kind| matches!(kind, Kind::Postgres(_)))
    }

    /// `field` is the service's.
    pub(super) fn parse(field: &str, raw: &raw::Service) -> Result<Self, Fault> {
        const ONE: &str = "either `check` or `checks`";
        match (&raw.check, &raw.checks) {
            (Some(check), None) => Self::single(&format!("{field}.check"), check),
            (None, Some(checks)) => Self::several(&format!("{field}.checks"), checks),
            (Some(_), Some(_)) => Err(Fault::absent(
                field,
                "both `check` and `checks` are given",
                ONE,
            )),
            (None, None) => Err(Fault::absent(field, "nothing is checked", ONE)),
        }
    }

    fn single(field: &str, raw: &raw::Check) -> Result<Self, Fault> {
        let mut check = Self::timed(field, &raw.timing())?;
        check.each = vec![Each {
            kind: Kind::parse(field, raw, check.inter)?,
            timeout: check.timeout,
        }];
        Ok(check)
    }

    fn several(field: &str, raw: &raw::Checks) -> Result<Self, Fault> {
        const ONE: &str = "either `all` or `any`, with a list of checks";
        let (word, list, combine) = match (&raw.all, &raw.any) {
            (Some(all), None) => ("all", all, Combine::All),
            (None, Some(any)) => ("any", any, Combine::Any),
            (Some(_), Some(_)) => {
                return Err(Fault::absent(field, "both `all` and `any` are given", ONE));
            }
            (None, None) => return Err(Fault::absent(field, "nothing is checked", ONE)),
        };
        if !(1..=MOST_CHECKS).contains(&list.len()) {
            return Err(Fault::new(
                format!("{field}.{word}"),
                list.len(),
                "not so many checks",
                format!("1 to {MOST_CHECKS} checks"),
            ));
        }
        let mut check = Self::timed(field, &raw.timing())?;
        check.combine = combine;
        check.each = list
            .iter()
            .enumerate()
            .map(|(i, raw)| check.one_of(&format!("{field}.{word}[{i}]"), raw))
            .collect::<Result<_, _>>()?;
        let longest = check.each.iter().map(|each| each.timeout).max();
        check.timeout = longest.unwrap_or(check.timeout);
        Ok(check)
    }

    fn one_of(&self, field: &str, raw: &raw::Check) -> Result<Each, Fault> {
        for (key, given) in [
            ("inter", &raw.inter),
            ("fastinter", &raw.fastinter),
            ("downinter", &raw.downinter),
            ("spread_checks", &raw.spread_checks),
            ("in_flight", &raw.in_flight),
            ("rise", &raw.rise),
            ("fall", &raw.fall),
        ] {
            if let Some(value) = given {
                return Err(Fault::new(
                    format!("{field}.{key}"),
                    value,
                    "belongs to all checks of the endpoint, which are made at the same time",
                    format!("`{key}` beside `all` or `any`"),
                ));
            }
        }
        Ok(Each {
            kind: Kind::parse(field, raw, self.inter)?,
            timeout: match &raw.timeout {
                Some(text) => duration(&format!("{field}.timeout"), text, LEAST)?,
                None => self.timeout,
            },
        })
    }

    /// A check of nothing yet.
    fn timed(field: &str, raw: &raw::Timing<'_>) -> Result<Self, Fault> {
        let time = |key: &str, text: &Option<String>, default| match text {
            Some(text) => duration(&format!("{field}.{key}"), text, LEAST),
            None => Ok(default),
        };
        let count = |key: &str, text: &Option<String>, default| match text {
            Some(text) => number(&format!("{field}.{key}"), text, 1..=MOST_IN_A_ROW),
            None => Ok(default),
        };
        let inter = time("inter", raw.inter, DEFAULT_INTER)?;
        Ok(Self {
            each: Vec::new(),
            combine: Combine::All,
            inter,
            fastinter: time("fastinter", raw.fastinter, inter)?,
            downinter: time("downinter", raw.downinter, inter)?,
            spread: match raw.spread_checks {
                Some(text) => number(&format!("{field}.spread_checks"), text, 0..=MOST_SPREAD)?,
                None => 0,
            },
            in_flight: match raw.in_flight {
                Some(text) => Some(number(
                    &format!("{field}.in_flight"),
                    text,
                    1..=MOST_IN_FLIGHT,
                )?),
                None => None,
            },
            timeout: time("timeout", raw.timeout, DEFAULT_TIMEOUT)?,
            rise: count("rise", raw.rise, DEFAULT_RISE)?,
            fall: count("fall", raw.fall, DEFAULT_FALL)?,
        })
    }
}

/// The shortest time that means something.
const LEAST: Duration = Duration::from_millis(1);

impl Each {
    /// What is asked.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }
    /// Time that it may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Kind {
    /// The way to the endpoint, of a kind that goes by TCP.
    pub fn reach(&self) -> Option<&Reach> {
        match self {
            Self::Tcp(tcp) => Some(tcp.reach()),
            Self::Http(http) => Some(http.reach()),
            Self::Script(script) => Some(script.reach()),
            Self::Redis(redis) => Some(redis.reach()),
            Self::Postgres(postgres) => Some(postgres.reach()),
            Self::Grpc(grpc) => Some(grpc.reach()),
            Self::Udp(_) | Self::Exec(_) => None,
        }
    }

    /// `inter` decides defaults.
    fn parse(field: &str, raw: &raw::Check, inter: Duration) -> Result<Self, Fault> {
        let mut kinds = Vec::new();
        if let Some(tcp) = &raw.tcp {
            kinds.push(Self::Tcp(TcpCheck::parse(&format!("{field}.tcp"), tcp)?));
        }
        if let Some(http) = &raw.http {
            let http = HttpCheck::parse(&format!("{field}.http"), http, inter)?;
            kinds.push(Self::Http(Box::new(http)));
        }
        if let Some(script) = &raw.script {
            let script = ScriptCheck::parse(&format!("{field}.script"), script)?;
            kinds.push(Self::Script(script));
        }
        if let Some(redis) = &raw.redis {
            let redis = RedisCheck::parse(&format!("{field}.redis"), redis, inter)?;
            kinds.push(Self::Redis(redis));
        }
        if let Some(postgres) = &raw.postgres {
            let postgres = PostgresCheck::parse(&format!("{field}.postgres"), postgres, inter)?;
            kinds.push(Self::Postgres(postgres));
        }
        if let Some(grpc) = &raw.grpc {
            let grpc = GrpcCheck::parse(&format!("{field}.grpc"), grpc, inter)?;
            kinds.push(Self::Grpc(grpc));
        }
        if let Some(udp) = &raw.udp {
            kinds.push(Self::Udp(UdpCheck::parse(&format!("{field}.udp"), udp)?));
        }
        if let Some(exec) = &raw.exec {
            kinds.push(Self::Exec(ExecCheck::parse(
                &format!("{field}.exec"),
                exec,
            )?));
        }
        let (first, more) = (kinds.pop(), kinds.len());
        match first {
            Some(kind) if more == 0 => Ok(kind),
            Some(_) => Err(Fault::absent(
                field,
                "two kinds of check",
                format!("{KINDS}; for several see `checks`"),
            )),
            None => Err(Fault::absent(field, "what is checked is not said", KINDS)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(tcp) => write!(f, "TCP{}", tcp.reach),
            Self::Http(http) => http.fmt(f),
            Self::Script(script) => script.fmt(f),
            Self::Redis(redis) => redis.fmt(f),
            Self::Postgres(postgres) => postgres.fmt(f),
            Self::Grpc(grpc) => grpc.fmt(f),
            Self::Udp(udp) => udp.fmt(f),
            Self::Exec(exec) => exec.fmt(f),
        }
    }
}

/// Shows a check as it is configured.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.each.as_slice(), self.combine) {
            ([only], _) => only.kind.fmt(f)?,
            (each, combine) => {
                f.write_str(match combine {
                    Combine::All => "all of",
                    Combine::Any => "any of",
                })?;
                for (i, each) in each.iter().enumerate() {
                    write!(f, "{} {}", if i == 0 { "" } else { ";" }, each.kind)?;
                }
            }
        }
        write!(f, ", every {}", scalar::show(self.inter))?;
        if self.fastinter != self.inter {
            write!(f, ", {} in transition", scalar::show(self.fastinter))?;
        }
        if self.downinter != self.inter {
            write!(f, ", {} while down", scalar::show(self.downinter))?;
        }
        if self.spread > 0 {
            write!(f, ", up to {} % later", self.spread)?;
        }
        if let Some(most) = self.in_flight {
            write!(f, ", {most} at one time")?;
        }
        write!(
            f,
            ", timeout {}, rise {}, fall {}",
            scalar::show(self.timeout),
            self.rise,
            self.fall,
        )
    }
}
