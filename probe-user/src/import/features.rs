//! What the configuration may know, and whether it does: a row for each thing that sources say
//! and some version of probe could not.
//!
//! A row has a sample, which is a service's `check` (or the piece of a service that it
//! belongs to). The configuration's own parser is asked: what it refuses is not written,
//! and reported. So a feature is there from the moment the configuration takes it.

use crate::config;

/// Something that sources say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A check that only connects.
    Tcp,
    /// A script of sent and expected bytes.
    Script,
    /// Redis.
    Redis,
    /// PostgreSQL.
    Postgres,
    /// A check over TLS.
    Tls,
    /// Another address than the endpoint's.
    CheckAddress,
    /// A PROXY header before the check.
    ProxyHeader,
    /// Headers of the request.
    RequestHeaders,
    /// A body of the request.
    RequestBody,
    /// Methods that may change something.
    Methods,
    /// What must not be in the answer.
    Not,
    /// Headers of the answer.
    Headers,
    /// Another interval in transition.
    Fastinter,
    /// Another interval while down.
    Downinter,
    /// Shares that grow.
    Slowstart,
    /// The agent that states its server's state.
    Agent,
}

/// Feature; a service's fields that show it, if its shape is known; what to do without.
const FEATURES: &[(Feature, Option<&str>, &str)] = &[
    (
        Feature::Tcp,
        Some("check: {tcp: {port: 1}}"),
        "let the server answer HTTP at a port of its own",
    ),
    (
        Feature::Script,
        Some("check: {script: {steps: [{expect: a}]}}"),
        "let the server answer HTTP at a port of its own",
    ),
    (
        Feature::Redis,
        Some("check: {redis: {}}"),
        "let a helper answer HTTP at a port of its own",
    ),
    (
        Feature::Postgres,
        Some("check: {postgres: {}}"),
        "let a helper (as Patroni's REST API) answer HTTP",
    ),
    (
        Feature::Tls,
        Some("check: {http: {tls: {verify: off}}}"),
        "check a plain port",
    ),
    (
        Feature::CheckAddress,
        Some("check: {http: {address: 10.0.0.1}}"),
        "checks go to the endpoint's own address",
    ),
    (
        Feature::ProxyHeader,
        Some("check: {http: {send_proxy: v1}}"),
        "check a port that demands no header",
    ),
    (
        Feature::RequestHeaders,
        Some("check: {http: {headers: {a: b}}}"),
        "checks send a Host header only",
    ),
    (
        Feature::RequestBody,
        Some("check: {http: {body: a}}"),
        "checks send no body",
    ),
    (
        Feature::Methods,
        Some("check: {http: {method: POST}}"),
        "GET, HEAD or OPTIONS",
    ),
    (
        Feature::Not,
        Some("check: {http: {expect: {not: {body: {contains: a}}}}}"),
        "expect what a good answer has",
    ),
    (
        Feature::Headers,
        Some("check: {http: {expect: {headers: [{name: a, equals: b}]}}}"),
        "expect a status or a body",
    ),
    (
        Feature::Fastinter,
        Some("check: {http: {}, fastinter: 1s}"),
        "one interval for all: inter",
    ),
    (
        Feature::Downinter,
        Some("check: {http: {}, downinter: 1s}"),
        "one interval for all: inter",
    ),
    (
        Feature::Slowstart,
        Some("check: {http: {}}\n  slow_start: 30s"),
        "an endpoint gets its whole share at once; failback's hold waits before",
    ),
    (
        Feature::Agent,
        None,
        "the check has to fail while the server wants no clients",
    ),
];

/// Why the configuration does not know it, or nothing where it does.
pub fn missing(feature: Feature) -> Option<String> {
    let (_, sample, instead) = FEATURES.iter().find(|(of, ..)| *of == feature)?;
    if sample.is_some_and(is_known) {
        return None;
    }
    Some(format!("not supported by this version: {instead}"))
}

fn is_known(sample: &str) -> bool {
    let text = format!(
        "interfaces: {{edge: [a]}}\nservices:\n- name: a\n  listeners: ['10.0.0.1:1']\n  \
         endpoints: [{{name: a, address: '10.0.0.2:1'}}]\n  {sample}\n"
    );
    config::parse(&text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_asked_of_the_configuration() {
        assert!(is_known("check: {http: {}}"));
        assert!(!is_known("check: {telepathy: {}}"));
    }

    #[test]
    fn what_is_missing_has_a_word() {
        for (feature, sample, instead) in FEATURES {
            assert!(!instead.is_empty());
            // The sample itself is well formed, whatever is known of it.
            if let Some(sample) = sample {
                assert!(sample.starts_with("check: {"), "{feature:?}");
            }
            let _ = missing(*feature);
        }
    }
}
