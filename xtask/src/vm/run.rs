//! What runs inside a VM, and what comes out of it.
//!
//! The test programs are the host's own, at the host's own paths: the VM sees the
//! host's root. A shell script mounts what an init system would, and runs one after
//! the other between two marks.

use std::{
    fmt::Write,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    emulator::Emulator,
    initramfs::{self, READY},
    kernels::Image,
    qemu::{End, Plan},
};
use crate::{
    cargo::{build_binaries, cargo, executables},
    tally::Tally,
};

const MARK: &str = "probe-vm: ";
/// Told to the lab, so that its checks have patience with an emulated machine.
const SLOWNESS: u32 = 10;
/// What the kernel says when it found itself in the wrong.
const ALARMS: &[&str] = &["BUG: ", "WARNING: ", "Oops: ", "Kernel panic"];
/// How much of the output of a program that broke off is shown.
const TAIL: usize = 40;

/// A test program of the lab that makes sense on another kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// Packet tables under BPF_PROG_TEST_RUN
    Packets,
    /// Network namespaces with real servers and clients
    Net,
}

impl Suite {
    pub const ALL: [Self; 2] = [Self::Packets, Self::Net];

    const fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Net => "net",
        }
    }

    /// Many times what it takes under emulation.
    const fn limit(self) -> Duration {
        match self {
            Self::Packets => Duration::from_secs(10 * 60),
            Self::Net => Duration::from_secs(40 * 60),
        }
    }
}

/// What was built on the host.
pub struct Built {
    programs: Vec<(Suite, PathBuf)>,
    package: PathBuf,
    server: PathBuf,
    probe: PathBuf,
}

/// Builds the test programs and what they start.
pub fn build(suites: &[Suite]) -> Result<Built> {
    let [server, probe] = build_binaries(["lab-server", "probe"])?;
    let mut command = cargo("test");
    command.args(["--package", "probe-tests", "--no-run"]);
    for suite in suites {
        command.args(["--test", suite.name()]);
    }
    let made = executables(&mut command)?;
    let mut programs = Vec::new();
    let mut package = PathBuf::new();
    for suite in suites {
        let built = made
            .iter()
            .find(|built| built.is_test && built.name == suite.name())
            .with_context(|| format!("the build made no test program `{}`", suite.name()))?;
        programs.push((*suite, built.path.clone()));
        package.clone_from(&built.package);
    }
    Ok(Built {
        programs,
        package,
        server,
        probe,
    })
}

/// What became of one kernel.
#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

/// How to run them.
pub struct Request<'a> {
    pub built: &'a Built,
    pub emulator: &'a Emulator,
    pub filter: Option<&'a str>,
    /// Show all output, not only that of failures.
    pub verbose: bool,
}

impl Request<'_> {
    /// Boots one kernel, runs the tests and tells the outcome.
    pub fn run(&self, image: &Image) -> Result<Outcome> {
        let begun = Instant::now();
        let initramfs = image.folder.join("initramfs");
        initramfs::write(&initramfs, image, &self.script(image))?;
        let plan = Plan {
            image,
            emulator: self.emulator,
            initramfs: &initramfs,
            limit: self
                .built
                .programs
                .iter()
                .map(|(suite, _)| suite.limit())
                .sum::<Duration>()
                + Duration::from_secs(60),
        };
        println!("== Linux {}", image.release);
        let mut reading = Reading::default();
        let end = plan.run(|line| {
            if self.verbose && !line.starts_with(MARK) {
                println!("{line}");
            }
            reading.line(line);
        });
        fs::remove_file(&initramfs).ok();

        let mut outcome = Outcome::default();
        let mut parts = Vec::new();
        for ((suite, _), report) in self.built.programs.iter().zip(&reading.reports) {
            report.add_to(&mut outcome, suite.name(), self.verbose);
            parts.push(format!("{} {}", suite.name(), report.took()));
        }
        let told = reading.reports.len();
        let wanted = self.built.programs.len();
        let broken = match end? {
            End::Broken(why) => Some(why),
            End::Off if told < wanted => Some(format!("{told} of {wanted} programs ran")),
            End::Off => None,
        };
        let log = fs::read_to_string(plan.log()).unwrap_or_default();
        if let Some(why) = broken {
            outcome.failed += 1;
            println!("{why}. The end of {}:", plan.log().display());
            print_tail(log.lines());
            print_tail(plan.complaints().lines());
        } else if let Some(alarm) = log.lines().find(|line| is_alarm(line)) {
            outcome.failed += 1;
            println!(
                "the kernel complains, see {}: {alarm}",
                plan.log().display()
            );
        }
        println!(
            "Linux {}: {} passed, {} failed, {} skipped in {:.0} s ({})",
            image.release,
            outcome.passed,
            outcome.failed,
            outcome.skipped,
            begun.elapsed().as_secs_f64(),
            parts.join(", ")
        );
        Ok(outcome)
    }

    fn script(&self, image: &Image) -> String {
        let modules = format!("/lib/modules/{}", image.release);
        let mut script = format!(
            "exec < /dev/null > /dev/ttyS1 2>&1\n\
             stty -F /dev/ttyS1 raw\n\
             export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
             mount --make-rprivate /\n\
             mkdir -p /dev/shm /dev/pts\n\
             mount -t tmpfs shm /dev/shm\n\
             mount -t devpts devpts /dev/pts\n\
             mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
             mount -t bpf bpf /sys/fs/bpf\n\
             mkdir -p {modules}\n\
             mount --bind {} {modules}\n\
             ip link set lo up\n\
             ulimit -n 524288\n\
             cd {}\n\
             export CARGO_MANIFEST_DIR=\"$PWD\" LAB_SERVER={} PROBE_BIN={}\n\
             export LAB_SLOWNESS={SLOWNESS}\n\
             echo '{READY}'\n",
            quoted(&image.modules.to_string_lossy()),
            quoted(&self.built.package.to_string_lossy()),
            quoted(&self.built.server.to_string_lossy()),
            quoted(&self.built.probe.to_string_lossy()),
        );
        for (suite, program) in &self.built.programs {
            let filter = self.filter.map(quoted).unwrap_or_default();
            writeln!(
                script,
                "echo '{MARK}begin'\n\
                 timeout --kill-after=5 {} {} --test-threads=1 --color=never {filter}\n\
                 echo \"{MARK}end $?\"",
                suite.limit().as_secs(),
                quoted(&program.to_string_lossy()),
            )
            .expect("a string takes everything");
        }
        // The ports are emulated at no speed: once written, it is with the host.
        script.push_str("echo done > /dev/ttyS2\nsync\necho o > /proc/sysrq-trigger\nsleep 60\n");
        script
    }
}

/// A word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn is_alarm(line: &str) -> bool {
    ALARMS.iter().any(|alarm| line.contains(alarm))
}

fn print_tail<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) {
    let mut last: Vec<&str> = lines.rev().take(TAIL).collect();
    last.reverse();
    for line in last {
        println!("    {line}");
    }
}

/// What one test program printed.
#[derive(Debug)]
struct Report {
    tally: Tally,
    lines: Vec<String>,
    /// Its exit code, once it ended.
    code: Option<i32>,
    begun: Instant,
    seconds: f64,
}

impl Report {
    fn good(&self) -> bool {
        self.tally.told && self.tally.failed == 0 && self.code == Some(0)
    }

    fn took(&self) -> String {
        format!("{:.0} s", self.seconds)
    }

    /// Adds it up and shows what failed.
    fn add_to(&self, outcome: &mut Outcome, name: &str, shown: bool) {
        outcome.passed += self.tally.passed.saturating_sub(self.tally.skipped);
        outcome.failed += self.tally.failed;
        outcome.skipped += self.tally.skipped;
        for what in &self.tally.degraded {
            println!("{name}: degraded: {what}");
        }
        if self.good() {
            return;
        }
        if self.tally.failed == 0 {
            outcome.failed += 1;
            match self.code {
                Some(code) => println!("{name}: the program ended with {code}"),
                None => println!("{name}: the program did not end"),
            }
        }
        if shown {
            return;
        }
        // libtest repeats the output of every failed test behind this line.
        match self.lines.iter().position(|line| line == "failures:") {
            Some(from) => {
                println!("{name}:");
                for line in &self.lines[from..] {
                    println!("    {line}");
                }
            }
            None => print_tail(self.lines.iter().map(String::as_str)),
        }
    }
}

/// Sorts lines of output by program.
#[derive(Default)]
struct Reading {
    reports: Vec<Report>,
}

impl Reading {
    fn line(&mut self, line: &str) {
        if line == "probe-vm: begin" {
            self.reports.push(Report {
                tally: Tally::default(),
                lines: Vec::new(),
                code: None,
                begun: Instant::now(),
                seconds: 0.0,
            });
            return;
        }
        let Some(report) = self.reports.last_mut() else {
            // Before the first program: a mount that failed, say.
            eprintln!("{line}");
            return;
        };
        // A program that was killed leaves an unfinished line before the mark.
        if let Some((rest, code)) = line.split_once("probe-vm: end ") {
            report.code = code.trim().parse().ok();
            report.seconds = report.begun.elapsed().as_secs_f64();
            if rest.is_empty() {
                return;
            }
            report.lines.push(rest.to_owned());
            return;
        }
        report.tally.read(line);
        report.lines.push(line.to_owned());
    }
}

/// The sum over all kernels, and the last line.
pub fn finish(outcomes: &[Outcome]) -> Result<bool> {
    let sum = |pick: fn(&Outcome) -> u64| outcomes.iter().map(pick).sum::<u64>();
    let (passed, failed, skipped) = (sum(|o| o.passed), sum(|o| o.failed), sum(|o| o.skipped));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && passed + skipped == 0 {
        bail!("no test ran: no name contains the filter");
    }
    Ok(failed == 0)
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Reading, is_alarm, quoted};

    #[test]
    fn lines_belong_to_the_program_between_marks() {
        let mut reading = Reading::default();
        for line in [
            "probe-vm: begin",
            "test result: ok. 4 passed; 0 failed; 0 ignored",
            "probe-vm: end 0",
            "probe-vm: begin",
            "test slow ... probe-vm: end 124",
        ] {
            reading.line(line);
        }
        let [good, killed] = &reading.reports[..] else {
            panic!("{} reports", reading.reports.len());
        };
        assert!(good.good());
        assert!(!killed.good());
        assert_eq!(killed.code, Some(124));
        let mut outcome = Outcome::default();
        good.add_to(&mut outcome, "good", true);
        killed.add_to(&mut outcome, "killed", true);
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (4, 1, 0));
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }

    #[test]
    fn alarms_are_told_from_chatter() {
        assert!(is_alarm(
            "[ 1.0] WARNING: CPU: 0 PID: 1 at net/core/dev.c:1"
        ));
        assert!(!is_alarm("[ 1.0] clocksource: Switched to tsc"));
    }
}
