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

use anyhow::{Context, Result};

use super::{
    emulator::Emulator,
    initramfs::{self, READY},
    kernels::{Image, Kernel},
    qemu::{End, Plan},
    report::{MARK, Outcome, Reading, tail},
};
use crate::cargo::{build_profile, cargo, executables};

/// Emulated code has to be optimized code; see Cargo.toml.
const PROFILE: &str = "guest";
/// Told to the lab, so that its checks have patience with an emulated machine.
const SLOWNESS: u32 = 5;
/// What the kernel says when it found itself in the wrong.
const ALARMS: &[&str] = &["BUG: ", "WARNING: ", "Oops: ", "Kernel panic"];

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
            Self::Packets => Duration::from_secs(30 * 60),
            Self::Net => Duration::from_secs(60 * 60),
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
    let [server, probe] = build_profile(PROFILE, ["lab-server", "probe"])?;
    let mut command = cargo("test");
    command.args(["--profile", PROFILE, "--package", "probe-tests", "--no-run"]);
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
    pub fn run(&self, kernel: &Kernel, image: &Image) -> Result<Outcome> {
        let begun = Instant::now();
        let initramfs = image.folder.join("initramfs");
        initramfs::write(&initramfs, image, &self.script(image))?;
        let limits = self.built.programs.iter().map(|(suite, _)| suite.limit());
        let plan = Plan {
            image,
            emulator: self.emulator,
            initramfs: &initramfs,
            limit: limits.sum::<Duration>() + Duration::from_secs(60),
        };
        let suites = self.built.programs.iter().map(|(suite, _)| suite.name());
        let mut reading = Reading::new(suites.collect());
        let end = plan.run(|line| {
            if self.verbose && !line.starts_with(MARK) {
                eprintln!("{} | {line}", kernel.version);
            }
            reading.line(line);
        });
        fs::remove_file(&initramfs).ok();

        let broken = match end? {
            End::Broken(why) => Some(why),
            End::Off => reading.whole().err(),
        };
        let log = fs::read_to_string(plan.log()).unwrap_or_default();
        let trouble = if let Some(why) = broken {
            Some(format!(
                "{why}. The end of {}:\n{}{}",
                plan.log().display(),
                tail(&log),
                tail(&plan.complaints())
            ))
        } else {
            log.lines().find(|line| is_alarm(line)).map(|alarm| {
                let log = plan.log();
                format!("the kernel complains, see {}: {alarm}", log.display())
            })
        };
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Outcome::new(
            kernel,
            &image.release,
            seconds,
            reading,
            trouble,
        ))
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
        // A program that neither passed nor failed hung or crashed: what every task was at
        // goes to the kernel's log.
        for (suite, program) in &self.built.programs {
            let filter = self.filter.map(quoted).unwrap_or_default();
            writeln!(
                script,
                "echo '{MARK}begin'\n\
                 timeout --kill-after=5 {} {} --test-threads=1 --color=never {filter}\n\
                 code=$?\n\
                 case $code in 0|101) ;; *) echo t > /proc/sysrq-trigger ;; esac\n\
                 echo \"{MARK}end $code\"",
                suite.limit().as_secs(),
                quoted(&program.to_string_lossy()),
            )
            .expect("a string takes everything");
        }
        // The ports are emulated at no speed: once written, it is with the host. Without
        // another program: even where none can be started any more, the VM ends.
        script.push_str("echo done > /dev/ttyS2\necho o > /proc/sysrq-trigger\nsleep 60\n");
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

#[cfg(test)]
mod tests {
    use super::{is_alarm, quoted};

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
