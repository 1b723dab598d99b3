//! Real-time priority for the threads that check and decide, and memory that stays.
//!
//! On a busy machine an ordinary thread waits for its turn, which is milliseconds, and a page that
//! was taken away is read back at the worst moment. Where the agent may (CAP_SYS_NICE or a limit of
//! RTPRIO; CAP_IPC_LOCK or no limit of MEMLOCK) it does without both.
//!
//! It must not starve the machine in turn:
//!
//! - the priority is the lowest of its kind, and round robin, so its peers get their share;
//! - a thread that used more than [`TOO_MUCH`] of a processor for a second is an ordinary one again,
//!   until it needed less than [`ENOUGH`] for five ([`Governor`]);
//! - one that does not come back to its runtime is stopped being special by the kernel's own watch
//!   (`RLIMIT_RTTIME`), whose signal does not end the agent;
//! - what it starts (commands of `exec` checks, threads that hash passwords) is ordinary
//!   (`SCHED_RESET_ON_FORK`, sched(7)), and no locked memory is inherited (mlock(2)).

use std::{
    fs, io,
    sync::{
        Once,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::{
        resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    },
    time::{ClockId, clock_gettime},
    unistd::{Pid, gettid},
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::config::Realtime;

/// The lowest.
const PRIORITY: libc::c_int = 1;
/// So much processor time without waiting for anything is a loop. Microseconds.
const LOOP_US: libc::rlim_t = 500_000;
/// CAP_IPC_LOCK of capabilities(7).
const IPC_LOCK: u32 = 14;

/// Parts of a processor, in percent.
const TOO_MUCH: u32 = 75;
const ENOUGH: u32 = 50;
/// How long the one and the other must last.
const HOT: Duration = Duration::from_secs(1);
const COOL: Duration = Duration::from_secs(5);
/// How often a thread looks.
const LOOK: Duration = Duration::from_millis(250);

/// Threads that may have the priority; zero is none.
static THREADS: [AtomicI32; 16] = [const { AtomicI32::new(0) }; 16];
/// The kernel's watch took it away.
static LOOPED: AtomicBool = AtomicBool::new(false);

/// Locks the agent's memory, if that is wanted and can be had.
pub fn lock_memory(wanted: Realtime) -> Result<(), String> {
    if wanted == Realtime::Off {
        return Err("`realtime: off`".to_owned());
    }
    // With a limit the next allocation beyond it would fail, which nothing survives.
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    if limit != RLIM_INFINITY && !may_lock() {
        return Err(format!(
            "memory cannot be locked: it takes CAP_IPC_LOCK, or no limit of locked memory \
             (LimitMEMLOCK=infinity; it is {limit} bytes)"
        ));
    }
    // Only what is touched: a stack of 2 MiB shall not need them.
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: flags only; nothing but what stays in memory changes.
    match unsafe { libc::mlockall(flags) } {
        0 => Ok(()),
        _ => Err(format!(
            "memory cannot be locked: {}",
            io::Error::last_os_error()
        )),
    }
}

/// Has this process CAP_IPC_LOCK?
fn may_lock() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    effective
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> IPC_LOCK & 1 == 1)
}

/// Gives this thread the priority.
pub fn enter(wanted: Realtime) -> Result<(), String> {
    if wanted == Realtime::Off {
        return Err("`realtime: off`".to_owned());
    }
    watch().map_err(|error| format!("loops could not be watched for: {error}"))?;
    let thread = gettid();
    let free = THREADS.iter().find(|slot| {
        slot.compare_exchange(0, thread.as_raw(), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    });
    let Some(slot) = free else {
        return Err("too many threads".to_owned());
    };
    schedule(thread, true).map_err(|error| {
        slot.store(0, Ordering::Relaxed);
        format!(
            "no real-time priority: {error}; it takes CAP_SYS_NICE or a limit of it \
             (LimitRTPRIO={PRIORITY})"
        )
    })
}

/// By the system call itself: musl's function of that name always fails.
fn schedule(thread: Pid, realtime: bool) -> io::Result<()> {
    let (policy, priority) = if realtime {
        (libc::SCHED_RR, PRIORITY)
    } else {
        (libc::SCHED_OTHER, 0)
    };
    // The flag stays: taking it away is a privilege of its own.
    let policy = policy | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `sched_param` of the kernel is one integer, which the call only reads.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            thread.as_raw(),
            policy,
            &raw const priority,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel signal a real-time thread that does not wait for anything.
fn watch() -> nix::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        let action = SigAction::new(
            SigHandler::Handler(demote),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        // SAFETY: the handler makes system calls and touches atomics only.
        result = unsafe { sigaction(Signal::SIGXCPU, &action) }.and_then(|_| {
            let (_, hard) = getrlimit(Resource::RLIMIT_RTTIME)?;
            setrlimit(Resource::RLIMIT_RTTIME, LOOP_US.min(hard), hard)
        });
    });
    result
}

/// In a signal: all of them, since it does not say which.
extern "C" fn demote(_: libc::c_int) {
    for slot in &THREADS {
        let thread = slot.load(Ordering::Relaxed);
        if thread != 0 {
            // One that has ended is none of ours: ids are used again last.
            let _ = schedule(Pid::from_raw(thread), false);
        }
    }
    LOOPED.store(true, Ordering::Relaxed);
}

/// When a thread may have the priority (pure).
#[derive(Debug)]
struct Governor {
    has_it: bool,
    /// Since when it has used too much, or little enough.
    since: Option<Instant>,
}

impl Governor {
    fn new() -> Self {
        Self {
            has_it: true,
            since: None,
        }
    }

    /// A thread that had the priority no longer has it.
    fn taken(&mut self) {
        *self = Self {
            has_it: false,
            since: None,
        };
    }

    /// It used so many percent of a processor up to now; what changes, if something does.
    fn used(&mut self, percent: u32, now: Instant) -> Option<bool> {
        let (turns, lasts) = if self.has_it {
            (percent > TOO_MUCH, HOT)
        } else {
            (percent < ENOUGH, COOL)
        };
        if !turns {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now - since < lasts {
            return None;
        }
        self.has_it = !self.has_it;
        self.since = None;
        Some(self.has_it)
    }
}

/// Takes the priority away from the thread that this runs on while it needs too much.
pub async fn govern() {
    let thread = gettid();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut governor = Governor::new();
    let mut before = (Instant::now(), used());
    loop {
        looks.tick().await;
        let now = (Instant::now(), used());
        if LOOPED.load(Ordering::Relaxed) && governor.has_it {
            governor.taken();
            warn!("a thread ran for {LOOP_US} us without a break and lost its real-time priority");
        }
        let wall = (now.0 - before.0).as_micros().max(1);
        let percent = now.1.saturating_sub(before.1).as_micros() * 100 / wall;
        before = now;
        let percent = u32::try_from(percent).unwrap_or(u32::MAX);
        let Some(realtime) = governor.used(percent, now.0) else {
            continue;
        };
        LOOPED.store(false, Ordering::Relaxed);
        match schedule(thread, realtime) {
            Ok(()) if realtime => info!("a thread has its real-time priority again"),
            Ok(()) => warn!(
                percent,
                "a thread needs so much of a processor that it does without real-time priority"
            ),
            Err(error) => warn!(realtime, "the priority of a thread did not change: {error}"),
        }
    }
}

/// Processor time of this thread.
fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;

    #[test]
    fn a_thread_that_needs_too_much_loses_it_until_it_is_calm() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut governor = Governor::new();
        assert_eq!(governor.used(90, at(0)), None);
        assert_eq!(governor.used(90, at(900)), None);
        // A calm moment begins it anew.
        assert_eq!(governor.used(75, at(950)), None);
        assert_eq!(governor.used(76, at(1000)), None);
        assert_eq!(governor.used(76, at(2000)), Some(false));
        assert_eq!(governor.used(60, at(3000)), None);
        assert_eq!(governor.used(49, at(4000)), None);
        assert_eq!(governor.used(51, at(8999)), None);
        assert_eq!(governor.used(10, at(9000)), None);
        assert_eq!(governor.used(10, at(14_000)), Some(true));
        governor.taken();
        assert_eq!(governor.used(10, at(14_100)), None);
        assert_eq!(governor.used(10, at(19_100)), Some(true));
    }

    /// Policy of whoever reads it, field 41 of proc_pid_stat(5).
    fn policy(stat: &str) -> &str {
        let after = stat.rsplit_once(')').expect("a name in brackets").1;
        after.split_whitespace().nth(41 - 3).expect("a policy")
    }

    #[test]
    fn what_a_real_time_thread_starts_is_ordinary() {
        let thread = thread::spawn(|| {
            let entered = enter(Realtime::Auto);
            if let Err(reason) = entered {
                // Where it is not permitted there is nothing to inherit.
                assert!(reason.contains("LimitRTPRIO"), "{reason}");
                println!("skipped: {reason}");
                return;
            }
            let own = fs::read_to_string("/proc/thread-self/stat").unwrap();
            // SCHED_RR.
            assert_eq!(policy(&own), "2");
            let child = Command::new("cat").arg("/proc/self/stat").output().unwrap();
            assert_eq!(policy(&String::from_utf8(child.stdout).unwrap()), "0");
            let second = thread::spawn(|| fs::read_to_string("/proc/thread-self/stat"));
            assert_eq!(policy(&second.join().unwrap().unwrap()), "0");
            // The kernel's watch.
            demote(0);
            let own = fs::read_to_string("/proc/thread-self/stat").unwrap();
            assert_eq!(policy(&own), "0");
        });
        thread.join().unwrap();
    }

    #[test]
    fn off_is_off() {
        assert!(lock_memory(Realtime::Off).is_err());
        assert!(enter(Realtime::Off).is_err());
    }
}
