//! What test programs in a VM printed, test by test, and how a kernel's outcome is told.

use std::{collections::BTreeMap, fmt::Write, time::Instant};

use serde_json::{Value, json};

use super::kernels::Kernel;
use crate::tally::Tally;

/// Begins the lines of a VM's script among those of test programs.
pub const MARK: &str = "probe-vm: ";
/// How much of the output of a program that broke off is shown.
const TAIL: usize = 40;

/// How a test ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    /// It says what it needs.
    Skipped(String),
}

#[derive(Debug)]
struct Test {
    name: String,
    end: End,
    seconds: f64,
}

/// What one test program printed.
#[derive(Debug)]
pub struct Report {
    pub suite: &'static str,
    tally: Tally,
    tests: Vec<Test>,
    /// The test that runs: its name, and why it is skipped if it is.
    running: Option<(String, Option<String>)>,
    lines: Vec<String>,
    /// Its exit code, once it ended.
    code: Option<i32>,
    begun: Instant,
    last: Instant,
}

impl Report {
    fn new(suite: &'static str) -> Self {
        let now = Instant::now();
        Self {
            suite,
            tally: Tally::default(),
            tests: Vec::new(),
            running: None,
            lines: Vec::new(),
            code: None,
            begun: now,
            last: now,
        }
    }

    fn good(&self) -> bool {
        self.tally.told && self.tally.failed == 0 && self.code == Some(0)
    }

    fn seconds(&self) -> f64 {
        self.last.duration_since(self.begun).as_secs_f64()
    }

    fn line(&mut self, line: &str) {
        let now = Instant::now();
        self.tally.read(line);
        // libtest says `test NAME ... ok`; what the test says past the capture stands between.
        let mut word = line;
        if let Some((name, rest)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            self.running = Some((name.to_owned(), None));
            word = rest;
        }
        if let Some((name, skipped)) = &mut self.running
            && let Some((_, what)) = line.split_once("SKIPPED: ")
        {
            // It names itself once more.
            let reason = what.strip_prefix(name.as_str()).unwrap_or(what).trim();
            *skipped = Some(reason.to_owned());
        }
        if matches!(word, "ok" | "FAILED")
            && let Some((name, skipped)) = self.running.take()
        {
            let end = match skipped {
                _ if word == "FAILED" => End::Failed,
                Some(reason) => End::Skipped(reason),
                None => End::Passed,
            };
            self.tests.push(Test {
                name,
                end,
                seconds: now.duration_since(self.last).as_secs_f64(),
            });
            self.last = now;
        }
        self.lines.push(line.to_owned());
    }

    /// What is wrong with it, and of what it printed the part that tells why.
    fn trouble(&self) -> Option<String> {
        if self.good() {
            return None;
        }
        let mut text = match (self.tally.failed, self.code) {
            (0, Some(code)) => format!("{}: the program ended with {code}\n", self.suite),
            (0, None) => format!("{}: the program did not end\n", self.suite),
            (failed, _) => format!("{}: {failed} failed\n", self.suite),
        };
        // libtest repeats the output of every failed test behind this line.
        let from = self
            .lines
            .iter()
            .position(|line| line == "failures:")
            .unwrap_or(self.lines.len().saturating_sub(TAIL));
        text += &indented(&self.lines[from..]);
        Some(text)
    }

    fn json(&self) -> Value {
        let tests = self.tests.iter().map(|test| {
            let (outcome, reason) = match &test.end {
                End::Passed => ("passed", None),
                End::Failed => ("failed", None),
                End::Skipped(reason) => ("skipped", Some(reason)),
            };
            json!({
                "name": test.name,
                "outcome": outcome,
                "reason": reason,
                "seconds": rounded(test.seconds),
            })
        });
        json!({
            "suite": self.suite,
            "seconds": rounded(self.seconds()),
            "tests": tests.collect::<Vec<_>>(),
            "degraded": self.tally.degraded,
        })
    }
}

/// Sorts lines of output by program.
#[derive(Default)]
pub struct Reading {
    /// Suites in the order of their running.
    suites: Vec<&'static str>,
    reports: Vec<Report>,
    /// Before the first program: a mount that failed, say.
    before: Vec<String>,
}

impl Reading {
    pub fn new(suites: Vec<&'static str>) -> Self {
        Self {
            suites,
            ..Self::default()
        }
    }

    pub fn line(&mut self, line: &str) {
        if line.strip_prefix(MARK) == Some("begin") {
            if let Some(suite) = self.suites.get(self.reports.len()) {
                self.reports.push(Report::new(suite));
            }
            return;
        }
        let Some(report) = self.reports.last_mut() else {
            self.before.push(line.to_owned());
            return;
        };
        // A program that was killed leaves an unfinished line before the mark.
        if let Some((rest, code)) = line.split_once("probe-vm: end ") {
            report.code = code.trim().parse().ok();
            report.last = Instant::now();
            if !rest.is_empty() {
                report.lines.push(rest.to_owned());
            }
            return;
        }
        report.line(line);
    }

    /// Whether every program began.
    pub fn whole(&self) -> Result<(), String> {
        let (told, wanted) = (self.reports.len(), self.suites.len());
        if told < wanted {
            return Err(format!("{told} of {wanted} programs ran"));
        }
        Ok(())
    }
}

/// What became of one kernel.
#[derive(Debug, Default)]
pub struct Outcome {
    pub version: &'static str,
    /// As `uname -r` says, if it could be had.
    pub release: String,
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    seconds: f64,
    reports: Vec<Report>,
    /// What is wrong, each a paragraph.
    troubles: Vec<String>,
}

impl Outcome {
    /// A kernel that did not come to its tests. Asked for and not tested is no success.
    pub fn untested(version: &'static str, why: String) -> Self {
        Self {
            version,
            failed: 1,
            troubles: vec![why],
            ..Self::default()
        }
    }

    /// Adds up what the programs said. `broken`: what went wrong around them.
    pub fn new(
        kernel: &Kernel,
        release: &str,
        seconds: f64,
        reading: Reading,
        broken: Option<String>,
    ) -> Self {
        let mut outcome = Self {
            version: kernel.version,
            release: release.to_owned(),
            seconds,
            ..Self::default()
        };
        if !reading.before.is_empty() {
            outcome.troubles.push(indented(&reading.before));
        }
        for report in &reading.reports {
            let tally = &report.tally;
            outcome.passed += tally.passed.saturating_sub(tally.skipped);
            outcome.skipped += tally.skipped;
            outcome.failed += tally.failed;
            if let Some(trouble) = report.trouble() {
                outcome.failed += u64::from(tally.failed == 0);
                outcome.troubles.push(trouble);
            }
            for reason in tally.reasons.iter().chain(&tally.degraded) {
                if !kernel.excuse(reason) {
                    outcome.failed += 1;
                    outcome.troubles.push(format!(
                        "{}: nothing that Linux {} lacks explains: {reason}\n",
                        report.suite, kernel.version
                    ));
                }
            }
        }
        if let Some(broken) = broken {
            outcome.failed += 1;
            outcome.troubles.push(broken);
        }
        outcome.reports = reading.reports;
        outcome
    }

    /// For a person: troubles first, the sum last.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let name = if self.release.is_empty() {
            self.version
        } else {
            &self.release
        };
        writeln!(text, "== Linux {name}").expect("a string takes everything");
        for trouble in &self.troubles {
            text += trouble.trim_end();
            text.push('\n');
        }
        let mut skips: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for report in &self.reports {
            for what in &report.tally.degraded {
                writeln!(text, "{}: degraded: {what}", report.suite).expect("see above");
            }
            for test in &report.tests {
                if let End::Skipped(reason) = &test.end {
                    skips.entry(reason).or_default().push(&test.name);
                }
            }
        }
        for (reason, tests) in skips {
            writeln!(text, "{} skipped: {reason}", tests.len()).expect("see above");
        }
        let parts: Vec<String> = self
            .reports
            .iter()
            .map(|report| format!("{} {:.0} s", report.suite, report.seconds()))
            .collect();
        writeln!(
            text,
            "Linux {name}: {} passed, {} failed, {} skipped in {:.0} s ({})",
            self.passed,
            self.failed,
            self.skipped,
            self.seconds,
            parts.join(", ")
        )
        .expect("see above");
        text
    }

    fn json(&self) -> Value {
        json!({
            "version": self.version,
            "release": self.release,
            "passed": self.passed,
            "failed": self.failed,
            "skipped": self.skipped,
            "seconds": rounded(self.seconds),
            "suites": self.reports.iter().map(Report::json).collect::<Vec<_>>(),
            "troubles": self.troubles,
        })
    }
}

/// The sums over all kernels: passed, failed, skipped.
pub fn sums(outcomes: &[Outcome]) -> [u64; 3] {
    let sum = |pick: fn(&Outcome) -> u64| outcomes.iter().map(pick).sum::<u64>();
    [sum(|o| o.passed), sum(|o| o.failed), sum(|o| o.skipped)]
}

/// Everything as one object.
pub fn json(outcomes: &[Outcome]) -> Value {
    let [passed, failed, skipped] = sums(outcomes);
    json!({
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "kernels": outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
    })
}

/// The last lines, a step in.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    indented(&lines[lines.len().saturating_sub(TAIL)..])
}

fn indented<L: AsRef<str>>(lines: &[L]) -> String {
    lines
        .iter()
        .map(|line| format!("    {}\n", line.as_ref()))
        .collect()
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::{End, Outcome, Reading, json};
    use crate::vm::kernels::KERNELS;

    fn read(suites: &[&'static str], lines: &[&str]) -> Reading {
        let mut reading = Reading::new(suites.to_vec());
        for line in lines {
            reading.line(line);
        }
        reading
    }

    fn outcome(version: &str, lines: &[&str]) -> Outcome {
        let kernel = KERNELS
            .iter()
            .find(|kernel| kernel.version == version)
            .expect("a kernel of the list");
        Outcome::new(kernel, "x", 1.0, read(&["net"], lines), None)
    }

    #[test]
    fn lines_belong_to_the_program_between_marks() {
        let reading = read(
            &["good", "killed"],
            &[
                "probe-vm: begin",
                "test result: ok. 4 passed; 0 failed; 0 ignored",
                "probe-vm: end 0",
                "probe-vm: begin",
                "test slow ... probe-vm: end 124",
            ],
        );
        assert!(reading.whole().is_ok());
        let [good, killed] = &reading.reports[..] else {
            panic!("{} reports", reading.reports.len());
        };
        assert!(good.good());
        assert!(!killed.good());
        assert_eq!(killed.code, Some(124));
        let outcome = Outcome::new(&KERNELS[0], "x", 1.0, reading, None);
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (4, 1, 0));
    }

    #[test]
    fn a_program_that_did_not_begin_is_missed() {
        assert!(read(&["one", "two"], &["probe-vm: begin"]).whole().is_err());
    }

    const LINES: &[&str] = &[
        "probe-vm: begin",
        "test a::b ... ok",
        "test a::c ... SKIPPED: a::c needs TCX (Linux 6.6): no",
        "ok",
        "test d ... DEGRADED: x needs Linux 5.18: without it here",
        "FAILED",
        "test result: FAILED. 2 passed; 1 failed; 0 ignored",
        "probe-vm: end 101",
    ];

    #[test]
    fn every_test_has_its_end() {
        let reading = read(&["net"], LINES);
        let ends: Vec<_> = reading.reports[0]
            .tests
            .iter()
            .map(|test| (test.name.as_str(), &test.end))
            .collect();
        let skipped = End::Skipped("needs TCX (Linux 6.6): no".to_owned());
        assert_eq!(
            ends,
            [
                ("a::b", &End::Passed),
                ("a::c", &skipped),
                ("d", &End::Failed)
            ]
        );
    }

    #[test]
    fn a_skip_is_an_excuse_only_where_the_kernel_lacks_it() {
        let old = outcome("5.10", LINES);
        assert_eq!((old.passed, old.failed, old.skipped), (1, 1, 1));
        let new = outcome("7.2", LINES);
        // Neither the skip nor what it did without is explained.
        assert_eq!((new.passed, new.failed, new.skipped), (1, 3, 1));
        let told = json(&[old]);
        assert_eq!(
            told["kernels"][0]["suites"][0]["tests"][1]["outcome"],
            "skipped"
        );
        assert_eq!(told["failed"], 1);
    }
}
