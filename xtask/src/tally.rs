//! What test programs say of themselves, added up.

/// A test says this, with the reason, when it cannot run here.
const SKIPPED: &str = "SKIPPED:";
/// A test program says this, with the reason, when it did without a part.
const DEGRADED: &str = "DEGRADED:";

/// What one test program said so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// As the program counts: skipped ones are among them.
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    /// Why, once a skipped test.
    pub reasons: Vec<String>,
    /// It came to the line that counts.
    pub told: bool,
    /// What it did without, and why.
    pub degraded: Vec<String>,
}

impl Tally {
    pub fn read(&mut self, line: &str) {
        if let Some((_, what)) = line.split_once(SKIPPED) {
            self.skipped += 1;
            self.reasons.push(what.trim().to_owned());
        } else if let Some((_, what)) = line.split_once(DEGRADED) {
            self.degraded.push(what.trim().to_owned());
        } else if let Some((passed, failed)) = result_line(line) {
            self.passed += passed;
            self.failed += failed;
            self.told = true;
        }
    }
}

/// Name and outcome of `test a::b ... ok`. What a test printed itself may stand before the outcome.
pub fn test_line(line: &str) -> Option<(&str, bool)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    if rest.ends_with("FAILED") {
        Some((name, false))
    } else {
        rest.ends_with("ok").then_some((name, true))
    }
}

/// The counts of `test result: ok. 3 passed; 0 failed; ...`.
fn result_line(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let count = |word: &str| -> Option<u64> {
        let before = rest.split(word).next()?.trim_end();
        before.rsplit(' ').next()?.parse().ok()
    };
    Some((count(" passed;")?, count(" failed;")?))
}

#[cfg(test)]
mod tests {
    use super::{Tally, result_line, test_line};

    #[test]
    fn outcomes_of_tests_are_read() {
        assert_eq!(test_line("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(test_line("test a::b ... FAILED"), Some(("a::b", false)));
        assert_eq!(test_line("test a::b ... "), None);
        assert_eq!(test_line("test result: FAILED. 1 passed"), None);
    }

    #[test]
    fn counts_are_read_from_the_result_line() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some((12, 3)));
        let line = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(result_line(line), Some((0, 0)));
    }

    #[test]
    fn other_lines_are_not_results() {
        assert_eq!(result_line("test a::b ... ok"), None);
        assert_eq!(result_line("running 3 passed; tests"), None);
        assert_eq!(result_line("test result: soon"), None);
    }

    #[test]
    fn lines_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a ... SKIPPED: needs root",
            "DEGRADED: no frags before Linux 5.18",
            "test result: ok. 2 passed; 1 failed; 0 ignored",
        ] {
            tally.read(line);
        }
        let wanted = Tally {
            passed: 2,
            failed: 1,
            skipped: 1,
            reasons: vec!["needs root".to_owned()],
            told: true,
            degraded: vec!["no frags before Linux 5.18".to_owned()],
        };
        assert_eq!(tally, wanted);
    }
}
