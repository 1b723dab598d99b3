//! Child processes that cannot outlive the lab.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{journal, wait::patience};

type Job = Box<dyn FnOnce() + Send>;

/// Starts the command from a thread that never ends.
///
/// A parent-death signal is sent when the thread that forked ends, not when its
/// process does; tests run on threads that end.
pub fn fork_from_spawner(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for job in jobs {
                job();
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = mpsc::channel();
    let job: Job = Box::new(move || {
        answer.send(command.spawn()).ok();
    });
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .expect("the spawner never ends");
    child.recv().expect("the spawner answers every job")
}

/// A child whose output goes to the journal. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Process {
    /// Starts a command, usually one of [`crate::Namespace::command`].
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = command.get_program().to_string_lossy().into_owned();
        let mut child =
            fork_from_spawner(command).with_context(|| format!("cannot start {name} ({shown})"))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let readers = vec![
            read(name, stdout, Arc::clone(&lines)),
            read(name, stderr, Arc::clone(&lines)),
        ];
        journal::note(name, &format!("started, pid {}", child.id()));
        Ok(Self {
            name: name.to_owned(),
            stdin: child.stdin.take(),
            child,
            lines,
            readers,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far, both streams.
    pub fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sends a line to its standard input.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let input = self.stdin.as_mut().expect("stdin is piped");
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .with_context(|| format!("{} does not read", self.name))
    }

    /// Sends a signal. The process is not reaped before, so the id is its own.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        journal::note(&self.name, &format!("is sent {signal}"));
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Has it ended by itself?
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait")? {
                journal::note(&self.name, &format!("ended: {status}"));
                for reader in self.readers.drain(..) {
                    reader.join().ok();
                }
                return Ok(status);
            }
            if begun.elapsed() > limit {
                bail!("{} did not end within {limit:?}", self.name);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended().is_none() {
            self.signal(Signal::SIGKILL)?;
        }
        let status = self.wait(patience(Duration::from_secs(10)))?;
        if status.signal() != Some(libc::SIGKILL) {
            bail!("{} had ended before it was killed: {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Also a stopped process dies of SIGKILL; an ended one makes both calls no-ops.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read(
    name: &str,
    from: impl io::Read + Send + 'static,
    to: Arc<Mutex<Vec<String>>>,
) -> thread::JoinHandle<()> {
    let name = name.to_owned();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            journal::note(&name, &line);
            to.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    })
}
