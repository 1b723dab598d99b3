//! What happened, for people and tools: a bounded ring of events.
//!
//! Whoever has something to tell appends, which takes a short lock and no memory beyond the
//! ring's; nobody who reads holds the lock longer than it takes to copy pointers. So a slow
//! reader delays nothing, and loses what the ring has forgotten: sequence numbers show it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{order::Who, status};

/// So many events are remembered.
pub const LENGTH: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1 on since the agent started; no number is left out.
    pub seq: u64,
    /// When.
    pub at_unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened; `kind` in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    /// The agent runs.
    Started { version: String, pid: u32 },
    /// A service's new connections go elsewhere.
    Switch {
        service: String,
        /// Nobody if they were refused.
        from: Vec<String>,
        to: Vec<String>,
        /// One of [`crate::failover::Reason`]'s words.
        reason: String,
        /// It is a shadow: they would.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        would: bool,
    },
    /// An endpoint is in another state.
    State {
        service: String,
        endpoint: String,
        state: String,
        verdict: String,
        detail: String,
        /// What did not match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        saw: Option<String>,
    },
    /// An operator changed something.
    Order {
        service: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// The verb.
        order: String,
        before: String,
        after: String,
        by: Who,
    },
    /// A promotion ended by itself.
    PromotionOver { service: String, endpoint: String },
    /// Somebody ended connections.
    Killed { flows: u64, filter: String, by: Who },
    /// The agent doubts itself rather than its endpoints, or no longer.
    Distrust { doubts: bool },
    /// A service's endpoints cannot be reached from this node, or can again.
    CutOff {
        service: String,
        /// `link`, `gateway` or `route`; nothing if it is over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        what: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A tier came and went, or was steady again: its next fail-back waits so long.
    Damping {
        service: String,
        tier: u8,
        hold_ms: Option<u64>,
        relapses: u32,
    },
    /// The time of an endpoint's connections is over; what is left is reset.
    Drained {
        service: String,
        endpoint: String,
        flows: Option<u64>,
    },
    /// An endpoint's name has another address.
    Moved {
        service: String,
        endpoint: String,
        from: Vec<String>,
        to: Vec<String>,
    },
    /// An endpoint's name has no address any more, or has one again.
    Name {
        service: String,
        endpoint: String,
        resolves: bool,
        /// `nx`, as DNS says there is none, or `failure`, as nobody says anything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Where the endpoint is meanwhile, as far as that is known.
        kept: Vec<String>,
    },
    /// Clients of lost endpoints were told.
    Told { told: u64, not_told: u64 },
    /// What operators ordered cannot be kept, or could not be read.
    Orders { problem: String },
    /// The configuration was loaded again, or not.
    Reload {
        /// One of [`crate::reload::Outcome`]'s words.
        result: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// Services.
        added: Vec<String>,
        removed: Vec<String>,
        changed: Vec<String>,
        /// Nobody in person: a signal, or the file changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Who>,
    },
}

impl What {
    /// Its word, as in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Switch { .. } => "switch",
            Self::State { .. } => "state",
            Self::Order { .. } => "order",
            Self::PromotionOver { .. } => "promotion-over",
            Self::Killed { .. } => "killed",
            Self::Distrust { .. } => "distrust",
            Self::CutOff { .. } => "cut-off",
            Self::Damping { .. } => "damping",
            Self::Drained { .. } => "drained",
            Self::Moved { .. } => "moved",
            Self::Name { .. } => "name",
            Self::Told { .. } => "told",
            Self::Orders { .. } => "orders",
            Self::Reload { .. } => "reload",
        }
    }

    /// The service that it is about, if it is about one.
    pub fn service(&self) -> Option<&str> {
        match self {
            Self::Switch { service, .. }
            | Self::State { service, .. }
            | Self::Order { service, .. }
            | Self::PromotionOver { service, .. }
            | Self::CutOff { service, .. }
            | Self::Damping { service, .. }
            | Self::Drained { service, .. }
            | Self::Moved { service, .. }
            | Self::Name { service, .. } => Some(service),
            Self::Started { .. }
            | Self::Killed { .. }
            | Self::Distrust { .. }
            | Self::Told { .. }
            | Self::Orders { .. }
            | Self::Reload { .. } => None,
        }
    }
}

/// The same for people.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { version, pid } => write!(f, "probe {version} runs, pid {pid}"),
            Self::Switch {
                service,
                from,
                to,
                reason,
                would,
            } => write!(
                f,
                "{service}: {}from {} to {}, {reason}",
                if *would { "would go " } else { "" },
                names(from),
                names(to)
            ),
            Self::State {
                service,
                endpoint,
                state,
                verdict,
                detail,
                ..
            } => write!(f, "{service}/{endpoint} is {state}: {verdict}: {detail}"),
            Self::Order {
                service,
                endpoint,
                order,
                before,
                after,
                by,
            } => {
                let endpoint = endpoint.as_ref().map(|of| format!("/{of}"));
                let of = endpoint.unwrap_or_default();
                write!(f, "{service}{of}: {order} by {by}: {before} -> {after}")
            }
            Self::PromotionOver { service, endpoint } => {
                write!(f, "{service}: {endpoint} is no longer promoted")
            }
            Self::Killed { flows, filter, by } => {
                write!(f, "{flows} connections ended by {by}: {filter}")
            }
            Self::Distrust { doubts: true } => {
                f.write_str("all hosts are silent: perhaps it is this node; selections are held")
            }
            Self::Distrust { doubts: false } => f.write_str("it was not this node"),
            Self::CutOff {
                service,
                reason: Some(reason),
                ..
            } => write!(
                f,
                "{service}: its endpoints cannot be reached from this node: {reason}; the selection is held"
            ),
            Self::CutOff { service, .. } => {
                write!(f, "{service}: its endpoints can be reached again")
            }
            Self::Damping {
                service,
                tier,
                hold_ms: Some(hold_ms),
                relapses,
            } => write!(
                f,
                "{service}: tier {tier} waits {hold_ms} ms before a fail-back after {relapses} relapses"
            ),
            Self::Damping { service, tier, .. } => {
                write!(
                    f,
                    "{service}: tier {tier} is steady, fail-backs wait as configured"
                )
            }
            Self::Drained {
                service,
                endpoint,
                flows,
            } => {
                let flows = flows.map_or_else(|| "flows".to_owned(), |n| format!("{n} flows"));
                write!(f, "{service}/{endpoint} is drained, {flows} left are reset")
            }
            Self::Moved {
                service,
                endpoint,
                from,
                to,
            } => write!(
                f,
                "{service}/{endpoint} moved from {} to {}",
                from.join(", "),
                to.join(", ")
            ),
            Self::Name {
                service,
                endpoint,
                resolves: true,
                ..
            } => write!(f, "{service}/{endpoint}: its name resolves again"),
            Self::Name {
                service,
                endpoint,
                reason,
                kept,
                ..
            } => {
                let reason = reason.as_deref().unwrap_or_default();
                write!(
                    f,
                    "{service}/{endpoint}: its name does not resolve: {reason}; "
                )?;
                match kept.as_slice() {
                    [] => f.write_str("nothing is known of where it is"),
                    kept => write!(f, "it keeps {}", kept.join(", ")),
                }
            }
            Self::Told { told, not_told } => {
                write!(f, "{told} clients of lost endpoints told, {not_told} not")
            }
            Self::Orders { problem } => f.write_str(problem),
            Self::Reload {
                result,
                error,
                added,
                removed,
                changed,
                by,
            } => {
                write!(f, "the configuration was loaded again")?;
                if let Some(by) = by {
                    write!(f, " by {by}")?;
                }
                write!(f, ": {result}")?;
                if let Some(error) = error {
                    write!(f, ": {error}")?;
                }
                for (what, names) in [("added", added), ("removed", removed), ("changed", changed)]
                {
                    if !names.is_empty() {
                        write!(f, "; {what} {}", names.join(", "))?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn names(of: &[String]) -> String {
    match of {
        [] => "nobody (refused)".to_owned(),
        of => of.join(", "),
    }
}

/// The ring.
#[derive(Debug)]
pub struct Journal {
    ring: Mutex<Ring>,
    /// The number of the last event.
    last: watch::Sender<u64>,
    length: usize,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    last: u64,
}

/// Events from somewhere on.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In order.
    pub events: Vec<Arc<Event>>,
    /// So many that were asked for are forgotten.
    pub lost: u64,
    /// Go on after this one.
    pub last: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self::of_length(LENGTH)
    }
}

impl Journal {
    /// One that remembers so many.
    pub fn of_length(length: usize) -> Self {
        Self {
            ring: Mutex::default(),
            last: watch::Sender::new(0),
            length,
        }
    }

    /// Appends.
    pub fn tell(&self, what: What) {
        let at_unix_ms = status::unix_ms(SystemTime::now());
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let seq = ring.last;
        if ring.events.len() >= self.length {
            ring.events.pop_front();
        }
        ring.events.push_back(Arc::new(Event {
            seq,
            at_unix_ms,
            what,
        }));
        drop(ring);
        self.last.send_replace(seq);
    }

    /// At most so many events after a number, the oldest first.
    pub fn after(&self, seq: u64, most: usize) -> Page {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.last + 1 - ring.events.len() as u64;
        // A number of an earlier agent is none of ours.
        let seq = if seq > ring.last { 0 } else { seq };
        let lost = first.saturating_sub(seq + 1);
        let skip = usize::try_from((seq + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let events: Vec<_> = ring.events.iter().skip(skip).take(most).cloned().collect();
        let last = events.last().map_or(ring.last, |event| event.seq);
        Page { events, lost, last }
    }

    /// The number before the first event that is not older than this time.
    pub fn before(&self, unix_ms: u64) -> u64 {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let older = |event: &&Arc<Event>| event.at_unix_ms < unix_ms;
        let skipped = ring.events.iter().take_while(older).count();
        ring.last - (ring.events.len() - skipped) as u64
    }

    /// The number before the last so many events.
    pub fn before_last(&self, count: usize) -> u64 {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last - count.min(ring.events.len()) as u64
    }

    /// Changes with each event.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seqs(page: &Page) -> Vec<u64> {
        page.events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn the_ring_is_bounded_and_says_what_it_forgot() {
        let journal = Journal::of_length(3);
        assert_eq!(journal.after(0, 9).last, 0);
        for doubts in [true, false, true, false, true] {
            journal.tell(What::Distrust { doubts });
        }
        let page = journal.after(0, 9);
        assert_eq!((seqs(&page), page.lost, page.last), (vec![3, 4, 5], 2, 5));
        let page = journal.after(2, 9);
        assert_eq!((seqs(&page), page.lost), (vec![3, 4, 5], 0));
        let page = journal.after(3, 1);
        assert_eq!((seqs(&page), page.lost, page.last), (vec![4], 0, 4));
        let page = journal.after(5, 9);
        assert_eq!((seqs(&page), page.lost, page.last), (vec![], 0, 5));
        // Of an agent before this one.
        assert_eq!(seqs(&journal.after(700, 9)), [3, 4, 5]);
        assert_eq!(journal.before_last(2), 3);
        assert_eq!(journal.before_last(50), 2);
        assert_eq!(journal.before(0), 2);
        assert_eq!(journal.before(u64::MAX), 5);
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event {
            seq: 7,
            at_unix_ms: 5,
            what: What::Switch {
                service: "sense".to_owned(),
                from: vec!["sen2".to_owned()],
                to: Vec::new(),
                reason: "all-down".to_owned(),
                would: false,
            },
        };
        let json = serde_json::to_string(&event).unwrap();
        let expected = r#"{"seq":7,"at_unix_ms":5,"kind":"switch","service":"sense","from":["sen2"],"to":[],"reason":"all-down"}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        assert_eq!(
            event.what.to_string(),
            "sense: from sen2 to nobody (refused), all-down"
        );
        let kind = serde_json::to_value(&event.what).unwrap()["kind"].clone();
        assert_eq!(kind, event.what.kind());
    }
}
