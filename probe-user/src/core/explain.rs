//! Why a service's connections go where they go: `GET /v1/services/NAME/explain`.

use serde::{Deserialize, Serialize};

use super::status;

/// A service, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Sentences, the most important first.
    pub because: Vec<String>,
    /// What decides.
    pub rules: Rules,
    pub endpoints: Vec<Endpoint>,
    /// What the status says of it.
    pub status: status::Service,
}

/// Thresholds and policies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rules {
    pub rise: u32,
    pub fall: u32,
    pub inter_ms: u64,
    pub fastinter_ms: u64,
    pub downinter_ms: u64,
    pub all_down: String,
    pub on_marked_down: String,
    pub on_failback: String,
    pub observe: String,
    pub sentinel: bool,
    pub single_writer: bool,
}

/// An endpoint's part in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    pub name: String,
    /// Checks in a row that spoke against its state.
    pub against: u32,
    /// So many change it.
    pub needed: u32,
    /// Since when its tier has been up without a break, if it is.
    pub tier_up_since_unix_ms: Option<u64>,
    /// What its checks said, the last ones last.
    pub history: Vec<Run>,
}

/// Checks in a row with the same kind of verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    pub verdict: String,
    pub checks: u64,
    pub since_unix_ms: u64,
}

/// A span of time for people, in its two largest units.
pub fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}
