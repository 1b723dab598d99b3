//! Orders of operators: what they ask for, what was done, and how that is kept. With them is kept which
//! tiers come and go ([`crate::failover::damping`]), which a restart should not forget either.
//!
//! What is in effect is a [`Standing`], which a file keeps over restarts of the agent. It names
//! services and endpoints, so it survives any change of the configuration: what names nobody is kept as it
//! is, and in effect again when the name comes back.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::failover::{
    NoFailback,
    orders::{Mode, NoPromotion},
};

/// Who asks, as the kernel says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    pub uid: u32,
    /// Nothing where the user has no name here.
    #[serde(default)]
    pub user: Option<String>,
    /// The process; nothing where it is of another process namespace.
    #[serde(default)]
    pub pid: Option<i32>,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => f.write_str(user)?,
            None => write!(f, "uid {}", self.uid)?,
        }
        match self.pid {
            Some(pid) => write!(f, " (pid {pid})"),
            None => Ok(()),
        }
    }
}

/// How long connections of who is left may go on: as they like, or so long.
pub type Left = Option<Duration>;

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The service's name.
    pub service: String,
    /// What is asked for.
    pub what: Wish,
    /// By whom.
    pub by: Who,
    /// Only tell what it would do.
    pub dry_run: bool,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// An endpoint's mode.
    Mode {
        endpoint: String,
        mode: Mode,
        /// Of drain: what becomes of its connections.
        left: Left,
    },
    /// Select an endpoint.
    Promote {
        endpoint: String,
        /// Although it is not up.
        force: bool,
        /// What becomes of the connections of who is left; nothing: as `on_failback` says.
        left: Option<Left>,
    },
    /// Back to the lowest tier.
    Failback,
    /// Hold the selection, or let it go.
    Freeze(bool),
}

impl Wish {
    /// The verb.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Mode { mode, .. } => mode.label(),
            Self::Promote { .. } => "promote",
            Self::Failback => "failback",
            Self::Freeze(true) => "freeze",
            Self::Freeze(false) => "unfreeze",
        }
    }

    /// The endpoint's name, where it is about one.
    pub fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Mode { endpoint, .. } | Self::Promote { endpoint, .. } => Some(endpoint),
            Self::Failback | Self::Freeze(_) => None,
        }
    }
}

/// What an order did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub service: String,
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The verb.
    pub order: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// It is not as it was.
    pub changed: bool,
    pub before: String,
    pub after: String,
    /// Where new connections went, and go.
    pub from: Vec<String>,
    pub to: Vec<String>,
    /// What the operator should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No service of that name.
    #[error("there is no service `{0}`")]
    NoService(String),
    /// No endpoint of that name.
    #[error("service {service} has no endpoint `{endpoint}`; it has {}", known.join(", "))]
    NoEndpoint {
        /// The service.
        service: String,
        /// The name.
        endpoint: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The service does not allow it now.
    #[error("service {service}: {reason}")]
    No {
        /// The service.
        service: String,
        /// Why not.
        reason: NoFailback,
    },
    /// The endpoint cannot be promoted now.
    #[error("service {service}: {endpoint} is not promoted: {reason}")]
    NotPromoted {
        /// The service.
        service: String,
        /// The endpoint.
        endpoint: String,
        /// Why not.
        reason: NoPromotion,
    },
}

/// All orders in effect, as the file has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// By service.
    pub services: BTreeMap<String, OfService>,
}

/// Those of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfService {
    /// Nothing but an order changes the selection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Given>,
    /// The endpoint that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Promoted>,
    /// Endpoints that are not simply ready, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, OfEndpoint>,
    /// Endpoints that a promotion left, and how long their connections go on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left: BTreeMap<String, OfLeft>,
    /// Tiers whose fail-backs wait longer than configured; no order, but kept all the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub damped: BTreeMap<u8, OfTier>,
}

/// A tier that came and went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfTier {
    /// What its next fail-back waits.
    pub hold_ms: u64,
    /// How often it went down soon after one.
    pub relapses: u32,
}

impl Standing {
    /// Is there any order?
    pub fn has_orders(&self) -> bool {
        let mut all = self.services.values();
        all.any(OfService::has_orders)
    }
}

impl OfService {
    /// Is there any order?
    pub fn has_orders(&self) -> bool {
        let without = Self {
            damped: BTreeMap::new(),
            ..self.clone()
        };
        !without.is_empty()
    }

    /// Adds what is known, to what is kept for endpoints that are not there.
    pub fn merge(&mut self, of: Self) {
        self.frozen = of.frozen;
        // Whoever is promoted now replaces who is not there.
        self.promoted = of.promoted.or_else(|| self.promoted.take());
        self.endpoints.extend(of.endpoints);
        self.left.extend(of.left);
        self.damped = of.damped;
    }

    /// Is there nothing to keep?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// By whom and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    pub by: Who,
    pub since_unix_ms: u64,
}

/// A promotion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promoted {
    pub endpoint: String,
    /// Although it was not up, and has not been since.
    #[serde(default)]
    pub forced: bool,
    pub given: Given,
}

/// An endpoint's mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfEndpoint {
    pub mode: ModeWord,
    /// What is left of its connections is reset so long after it was left; nothing: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    pub given: Given,
}

/// For how long connections go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfLeft {
    /// Nothing: as they like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// What is to be kept, and the how manieth it is.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    pub version: u64,
    pub standing: Arc<Standing>,
}

/// How far the file is.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Version of [`Kept`].
    pub version: u64,
    /// Why it is not in the file.
    pub problem: Option<String>,
}

/// A [`Mode`] that has to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeWord {
    Drain,
    Maint,
}

impl ModeWord {
    /// As the failover knows it.
    pub const fn mode(self) -> Mode {
        match self {
            Self::Drain => Mode::Drain,
            Self::Maint => Mode::Maint,
        }
    }
}
