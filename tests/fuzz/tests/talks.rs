//! Replays `tests/cases/talks`, and walks around it.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use probe_fuzz::{
    stored_talks,
    talks::{check, made, verdict},
};
use probe_user::health::Kind;

/// Write `tests/cases/talks/made` anew instead of comparing it.
const WRITE: &str = "PROBE_WRITE_CASES";

/// Runs the check over one and says which it was if it fails.
fn holds(name: &str, data: &[u8]) {
    let held = catch_unwind(AssertUnwindSafe(|| check(data)));
    assert!(
        held.is_ok(),
        "{name}: {:?}",
        data.escape_ascii().to_string()
    );
}

#[test]
fn every_stored_talk_holds() {
    let cases = stored_talks();
    assert!(!cases.is_empty());
    for (name, data) in &cases {
        holds(name, data);
        for length in 0..data.len() {
            holds(&format!("{name} cut after {length}"), &data[..length]);
        }
    }
}

#[test]
fn the_stored_talks_are_the_made_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cases/talks/made");
    let cases = made();
    if std::env::var_os(WRITE).is_some() {
        fs::create_dir_all(&folder).expect("a folder");
        for (name, data) in &cases {
            fs::write(folder.join(name), data).expect("writable");
        }
    }
    let there: BTreeSet<_> = fs::read_dir(&folder)
        .expect("a folder")
        .map(|entry| entry.expect("readable").file_name())
        .map(|name| name.into_string().expect("plain names"))
        .collect();
    let names = cases.iter().map(|(name, _)| (*name).to_owned()).collect();
    let hint = format!("run with {WRITE}=1 and look at the difference");
    assert_eq!(there, names, "{hint}");
    for (name, data) in cases {
        let stored = fs::read(folder.join(name)).expect("readable");
        assert!(stored == data, "{name} is not as made: {hint}");
    }
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

/// A short walk around the corpus, the same each time, where there is no fuzzer.
#[test]
fn changed_talks_hold() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: usize| {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let cases = stored_talks();
    for round in 0..20_000 {
        let (name, data) = &cases[draw(cases.len())];
        let mut data = data.clone();
        for _ in 0..=draw(4) {
            if data.is_empty() {
                break;
            }
            let at = draw(data.len());
            match draw(9) {
                0..2 => data[at] = draw(256) as u8,
                2..4 => data[at] ^= 1 << draw(8),
                // What decides between two ways.
                4..6 => data[at] = b"\r\n0*$+\xff"[draw(7)],
                6 => data.insert(at, b"\r\n0"[draw(3)]),
                7 => data.truncate(at),
                _ => {
                    let (_, other) = &cases[draw(cases.len())];
                    data.truncate(at);
                    data.extend(&other[at.min(other.len())..]);
                }
            }
        }
        holds(&format!("{name} in round {round}"), &data);
    }
}
