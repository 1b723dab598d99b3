//! Replays `tests/cases/answers`, and walks around it.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use probe_fuzz::{
    answers::{check, made},
    stored_answers,
};

/// Write `tests/cases/answers/made` anew instead of comparing it.
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
fn every_stored_answer_holds() {
    let cases = stored_answers();
    assert!(!cases.is_empty());
    for (name, data) in &cases {
        holds(name, data);
        for length in 0..data.len() {
            holds(&format!("{name} cut after {length}"), &data[..length]);
        }
    }
}

#[test]
fn the_stored_answers_are_the_made_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cases/answers/made");
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

/// A short walk around the corpus, the same each time, where there is no fuzzer.
#[test]
fn changed_answers_hold() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: usize| {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let cases = stored_answers();
    for round in 0..100_000 {
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
                4..6 => data[at] = b"\r\n0:;, "[draw(7)],
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
