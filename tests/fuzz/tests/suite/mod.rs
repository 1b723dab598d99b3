//! What the tests of stored bad input share.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Write the made ones anew instead of comparing them.
const WRITE: &str = "PROBE_WRITE_CASES";

/// One folder of `tests/cases`, and what must hold for everything in it.
pub struct Suite {
    /// Its name.
    pub folder: &'static str,
    /// All that is stored there.
    pub stored: fn() -> Vec<(String, Vec<u8>)>,
    /// What `made` in it holds.
    pub made: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// Panics where it does not hold.
    pub check: fn(&[u8]),
    /// Bytes that decide between two ways.
    pub deciding: &'static [u8],
}

impl Suite {
    /// Runs the check over one and says which it was if it fails.
    fn holds(&self, name: &str, data: &[u8]) {
        let held = catch_unwind(AssertUnwindSafe(|| (self.check)(data)));
        assert!(
            held.is_ok(),
            "{name}: {:?}",
            data.escape_ascii().to_string()
        );
    }

    /// All that is stored holds, cut anywhere too.
    pub fn stored_hold(&self) {
        let cases = (self.stored)();
        assert!(!cases.is_empty());
        for (name, data) in &cases {
            self.holds(name, data);
            for length in 0..data.len() {
                self.holds(&format!("{name} cut after {length}"), &data[..length]);
            }
        }
    }

    /// Those that are stored as made are what is made today.
    pub fn stored_are_made(&self) {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cases");
        let folder = cases.join(self.folder).join("made");
        let cases = (self.made)();
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
    pub fn changed_hold(&self, rounds: u32) {
        let mut draw = probe_fuzz::draws();
        let cases = (self.stored)();
        for round in 0..rounds {
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
                    4..6 => data[at] = self.deciding[draw(self.deciding.len())],
                    6 => data.insert(at, b"\r\n0"[draw(3)]),
                    7 => data.truncate(at),
                    _ => {
                        let (_, other) = &cases[draw(cases.len())];
                        data.truncate(at);
                        data.extend(&other[at.min(other.len())..]);
                    }
                }
            }
            self.holds(&format!("{name} in round {round}"), &data);
        }
    }
}
