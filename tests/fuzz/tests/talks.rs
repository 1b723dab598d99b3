//! Replays `tests/cases/talks`, and walks around it.

mod suite;

use probe_fuzz::{
    stored_talks,
    talks::{check, made, verdict},
};
use probe_user::health::Kind;
use suite::Suite;

const TALKS: Suite = Suite {
    folder: "talks",
    stored: stored_talks,
    made,
    check,
    deciding: b"\r\n0*$+\xff",
};

#[test]
fn every_stored_talk_holds() {
    TALKS.stored_hold();
}

#[test]
fn the_stored_talks_are_the_made_ones() {
    TALKS.stored_are_made();
}

/// They are what they are called, so that the fuzzer begins from whole conversations.
#[test]
fn the_made_ones_come_to_their_end() {
    let verdict = |name: &str| {
        let all = made();
        let found = all.iter().find(|(of, _)| *of == name);
        verdict(&found.expect("one of them").1)
    };
    for (name, kind) in [
        ("redis-master", Kind::Ok),
        ("redis-replica", Kind::BodyMismatch),
        ("redis-role-by-info", Kind::Ok),
        ("postgres-starts", Kind::BadStatus),
        ("postgres-primary", Kind::Ok),
        ("postgres-standby", Kind::BodyMismatch),
        ("grpc-serving", Kind::Ok),
        ("grpc-unknown-service", Kind::BodyMismatch),
        ("script-all-of-it", Kind::Ok),
        ("script-steps", Kind::Ok),
        ("nothing", Kind::Protocol),
    ] {
        assert_eq!(verdict(name), Some(kind), "{name}");
    }
}

#[test]
fn changed_talks_hold() {
    TALKS.changed_hold(20_000);
}
