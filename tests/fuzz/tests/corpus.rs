//! Replays `tests/cases`: what was made by hand, and what the fuzzer found worth keeping.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use probe_fuzz::{Case, check, draws, look, made, stored};

/// Write `tests/cases/made` anew instead of comparing it.
const WRITE: &str = "PROBE_WRITE_CASES";
/// The corpus stays small enough to read, to review and to clone.
const FILES: usize = 450;
const BYTES: usize = 300_000;

/// Runs the check over all of them and names those that fail.
fn all_hold(cases: impl IntoIterator<Item = (String, Vec<u8>)>) -> usize {
    let mut count = 0;
    let failed: Vec<String> = cases
        .into_iter()
        .inspect(|_| count += 1)
        .filter(|(_, data)| catch_unwind(AssertUnwindSafe(|| check(data))).is_err())
        .map(|(name, data)| format!("{name} {data:02x?}"))
        .collect();
    assert!(
        failed.is_empty(),
        "{} fail, see above; the first ones:\n{}",
        failed.len(),
        failed[..failed.len().min(20)].join("\n")
    );
    count
}

#[test]
fn every_stored_case_holds() {
    let cases = stored();
    let bytes: usize = cases.iter().map(|(_, data)| data.len()).sum();
    assert!(bytes <= BYTES, "{bytes} bytes");
    let count = all_hold(cases);
    assert!(count <= FILES, "{count} files");
    println!("{count} cases, {bytes} bytes");
}

#[test]
fn whole_packets_cut_at_each_byte_hold() {
    let whole = made::cases()
        .into_iter()
        .filter(|(name, _)| made::is_whole(name));
    let count = all_hold(whole.flat_map(|(name, data)| {
        let case = Case::read(&data).expect("made with a head");
        (0..case.frame().len()).map(move |length| {
            (
                format!("{name} cut after {length}"),
                case.cut(length).bytes(),
            )
        })
    }));
    assert!(count > 2000, "{count} cut frames");
}

#[test]
fn whole_packets_are_understood() {
    for (name, data) in made::cases() {
        let case = Case::read(&data).expect("made with a head");
        let found = look(&*case.frame());
        assert!(found.is_ok() || !made::is_whole(&name), "{name}: {found:?}");
    }
}

#[test]
fn the_stored_cases_are_the_made_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cases/made");
    let cases = made::cases();
    let names: BTreeSet<_> = cases.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), cases.len(), "two cases of one name");
    let there: BTreeSet<_> = fs::read_dir(&folder)
        .expect("a folder")
        .map(|entry| entry.expect("readable").file_name())
        .map(|name| name.into_string().expect("plain names"))
        .collect();
    if std::env::var_os(WRITE).is_some() {
        for name in there.difference(&names) {
            fs::remove_file(folder.join(name)).expect("removable");
        }
        for (name, data) in cases {
            fs::write(folder.join(name), data).expect("writable");
        }
        return;
    }
    let hint = format!("run with {WRITE}=1 and look at the difference");
    assert_eq!(there, names, "{hint}");
    for (name, data) in cases {
        let stored = fs::read(folder.join(&name)).expect("readable");
        assert!(stored == data, "{name} is not as made: {hint}");
    }
}

/// A short walk around the corpus, the same each time, where there is no fuzzer.
#[test]
fn changed_cases_hold() {
    let mut draw = draws();
    let cases = stored();
    all_hold((0..200_000).map(|round| {
        let (name, data) = &cases[draw(cases.len())];
        let mut data = data.clone();
        for _ in 0..=draw(4) {
            if data.is_empty() {
                break;
            }
            let at = draw(data.len());
            match draw(8) {
                0..3 => data[at] = draw(256) as u8,
                3..6 => data[at] ^= 1 << draw(8),
                6 => data.truncate(at),
                _ => {
                    let (_, other) = &cases[draw(cases.len())];
                    let from = at.min(other.len());
                    data.truncate(from);
                    data.extend(&other[from..]);
                }
            }
        }
        (format!("{name} in round {round}"), data)
    }));
}
