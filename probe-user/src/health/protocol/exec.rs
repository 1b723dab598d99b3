//! A command decides: exit status 0 is up.
//!
//! For what no other check can ask. The command gets its arguments as they are written (no
//! shell), the endpoint in its environment, and otherwise little: `PATH`, no standard
//! input, `/` to work in. What it prints is cut to [`LIMIT`] and told with the verdict.
//!
//! It runs in a process group of its own. When it ends, and when the check is dropped because its
//! deadline has passed, all that is left of the group is killed (SIGKILL): children that
//! it left behind, and what hangs. The group is killed before its leader is reaped, so its
//! id cannot have become another's. A command that makes a session of its own (`setsid`) leaves the
//! group and is its own keeper's matter.
//!
//! Commands cost processes, so only so many run at once ([`Room`]); who waits for room is
//! not judged.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, LazyLock, Once},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{
    failure::{Failure, Outcome},
    inbox::readable,
};
use crate::{
    config::ExecCheck,
    health::{
        transport::Stage,
        verdict::{Finding, Kind},
    },
};

/// Bytes of a command's output that are kept.
pub const LIMIT: usize = 4096;
/// Commands that run at once in one agent.
pub const AT_ONCE: usize = 16;
/// Where a command finds others.
const SEARCHED: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command, for one endpoint.
#[derive(Clone, Debug)]
pub struct Exec {
    program: String,
    args: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Exec {
    /// Of an endpoint; its environment names it.
    pub fn new(check: &ExecCheck, endpoint: SocketAddr) -> Self {
        Self {
            program: check.program().to_owned(),
            args: check.args().to_vec(),
            environment: vec![
                ("PATH", SEARCHED.to_owned()),
                ("PROBE_ADDRESS", endpoint.ip().to_string()),
                ("PROBE_PORT", endpoint.port().to_string()),
            ],
        }
    }

    /// Names the service and the endpoint.
    pub fn tell(&mut self, service: &str, endpoint: &str) {
        self.environment.extend([
            ("PROBE_SERVICE", service.to_owned()),
            ("PROBE_ENDPOINT", endpoint.to_owned()),
        ]);
    }

    /// Makes the check.
    pub async fn run(&self, stage: &mut Stage) -> Finding {
        static ROOM: LazyLock<Room> = LazyLock::new(|| Room::new(AT_ONCE));
        *stage = Stage {
            kind: Kind::Local,
            ..Stage::waiting("no room: so many other commands run")
        };
        let Some(place) = ROOM.enter().await else {
            return stage.over();
        };
        // One that has waited has less time than is its due.
        if !place.waited {
            *stage = Stage::waiting("the command has not ended");
        }
        let outcome = self.command(&place).await;
        outcome.err().map_or(Finding::OK, Finding::from)
    }

    /// Runs it to its end. Dropped before, it kills it.
    async fn command(&self, _place: &Place) -> Outcome {
        let (output, mut running) = self.start().map_err(|error| {
            Failure::Local(format!("cannot run {}: {error}", self.program).into())
        })?;
        let mut printed = Vec::new();
        let mut waste = [0; LIMIT];
        let mut open = true;
        loop {
            // What it prints past the limit is read too: it shall not wait for a reader.
            tokio::select! {
                biased;
                ended = running.ended() => {
                    ended?;
                    break;
                }
                read = read(&output, &mut waste), if open => match read {
                    Ok(0) | Err(_) => open = false,
                    Ok(count) => keep(&mut printed, &waste[..count]),
                },
            }
        }
        // What it has left behind is killed, and does not hold up the last words.
        let status = running.reap()?;
        while let Ok(count @ 1..) = output.try_read(&mut waste) {
            keep(&mut printed, &waste[..count]);
            if printed.len() == LIMIT {
                break;
            }
        }
        drop(output);
        judge(status, &printed)
    }

    fn start(&self) -> io::Result<(pipe::Receiver, Running)> {
        let (reader, writer) = io::pipe()?;
        let output = pipe::Receiver::from_owned_fd(reader.into())?;
        keep_inherited();
        let child = Command::new(&self.program)
            .args(&self.args)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn()?;
        Ok((output, Running::new(child)?))
    }
}

/// Descriptors that the agent opens are closed on exec, as the standard library and all
/// others open them. Those that it was started with need not be: they are marked so, once.
fn keep_inherited() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(open) = fs::read_dir("/proc/self/fd") else {
            return;
        };
        for fd in open.flatten() {
            let fd: Option<libc::c_int> = fd.file_name().to_str().and_then(|fd| fd.parse().ok());
            if let Some(fd @ 3..) = fd {
                // SAFETY: fcntl with F_SETFD takes three integers and changes nothing but what
                // becomes of the descriptor on exec. It fails for one that was closed meanwhile.
                unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
        }
    });
}

async fn read(from: &pipe::Receiver, to: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

fn keep(printed: &mut Vec<u8>, more: &[u8]) {
    let room = LIMIT - printed.len();
    printed.extend_from_slice(&more[..more.len().min(room)]);
}

fn judge(status: ExitStatus, printed: &[u8]) -> Outcome {
    if status.success() {
        return Ok(());
    }
    let end = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    };
    let printed = readable(printed);
    let colon = if printed.is_empty() { "" } else { ": " };
    Err(Failure::Exec(format!("{end}{colon}{printed}").into()))
}

/// A process and its group, both ended with this.
struct Running {
    /// None once it is reaped.
    child: Option<Child>,
    ended: Option<AsyncFd<OwnedFd>>,
}

impl Running {
    fn new(child: Child) -> io::Result<Self> {
        // From here on whatever fails kills it.
        let mut running = Self {
            child: Some(child),
            ended: None,
        };
        let fd = running.open()?;
        // SAFETY: the owned descriptor stays open, and the same, for as long as it is registered.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        running.ended = Some(fd);
        Ok(running)
    }

    /// A descriptor of the process (Linux 5.3), readable when it has ended.
    fn open(&self) -> io::Result<OwnedFd> {
        let Some(pid) = self.pid() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        // SAFETY: pidfd_open takes two integers. The child is not reaped, so the id is its own.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match i32::try_from(fd) {
            // SAFETY: the call has made this descriptor, close-on-exec, and nobody else has it.
            Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn pid(&self) -> Option<libc::pid_t> {
        self.child.as_ref()?.id().try_into().ok()
    }

    /// Waits for the end of the process, and leaves it unreaped.
    async fn ended(&self) -> io::Result<()> {
        match &self.ended {
            Some(fd) => fd.readable().await.map(drop),
            None => std::future::pending().await,
        }
    }

    /// Kills what is left of the group, and reaps the process, which has ended.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        self.kill_group();
        match self.child.take() {
            Some(mut child) => child.wait(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn kill_group(&self) {
        if let Some(group) = self.pid() {
            // SAFETY: killpg takes two integers. The leader is not reaped: the group is its own.
            // It fails only for a group that has ended.
            unsafe { libc::killpg(group, libc::SIGKILL) };
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Killed it ends soon, but not at once; the runtime shall not wait for it.
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        let ended = self.ended.take();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // The agent is ending; whoever inherits the process reaps it.
            return;
        };
        match ended {
            Some(fd) => drop(runtime.spawn(async move {
                fd.readable().await.ok();
                child.try_wait().ok();
            })),
            None => drop(runtime.spawn_blocking(move || child.wait())),
        }
    }
}

/// Room for so many commands at once.
#[derive(Debug)]
struct Room(Arc<Semaphore>);

/// A place in it.
#[derive(Debug)]
struct Place {
    waited: bool,
    _held: OwnedSemaphorePermit,
}

impl Room {
    fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Waits for a place, in turn.
    async fn enter(&self) -> Option<Place> {
        if let Ok(held) = Arc::clone(&self.0).try_acquire_owned() {
            return Some(Place {
                waited: false,
                _held: held,
            });
        }
        // It is never closed.
        let held = Arc::clone(&self.0).acquire_owned().await.ok()?;
        Some(Place {
            waited: true,
            _held: held,
        })
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
