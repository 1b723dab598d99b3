//! Anonymous network namespaces.
//!
//! A thread makes the namespaces and ends; the file descriptors that it opened
//! keep them alive. Code and processes enter by those descriptors. With the last
//! descriptor and the last process inside, the kernel removes all of it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{prctl, signal::Signal},
    unistd,
};

use crate::{journal, process::fork_from_spawner};

/// A network namespace with its own mounts of sysfs and bpffs.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    net: OwnedFd,
    mnt: OwnedFd,
}

impl Namespace {
    /// Makes one with the loopback interface up.
    pub fn new(name: &str) -> Result<Arc<Self>> {
        let (net, mnt) = thread::spawn(make)
            .join()
            .expect("making a namespace does not panic")
            .with_context(|| format!("cannot make the namespace of {name}"))?;
        let made = Arc::new(Self {
            name: name.to_owned(),
            net,
            mnt,
        });
        made.ip(["link set lo up"])?;
        Ok(made)
    }

    /// Which host of the lab this is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path to the network namespace, for `ip ... netns PATH` in another one.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.net.as_raw_fd()
        ))
    }

    /// Runs code inside, on a thread of its own.
    pub fn run<T: Send>(&self, code: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(self.net.as_fd(), self.mnt.as_fd())
                        .with_context(|| format!("cannot enter the namespace of {}", self.name))?;
                    code()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside that outlives this call.
    pub fn thread<T: Send + 'static>(
        self: &Arc<Self>,
        code: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let me = Arc::clone(self);
        thread::spawn(move || {
            enter(me.net.as_fd(), me.mnt.as_fd())
                .with_context(|| format!("cannot enter the namespace of {}", me.name))?;
            code()
        })
    }

    /// A command that will run inside and die with the lab.
    pub fn command(self: &Arc<Self>, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let me = Arc::clone(self);
        let lab = unistd::getpid();
        let inside = move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The lab may have died before the signal was asked for.
            if unistd::getppid() != lab {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            enter(me.net.as_fd(), me.mnt.as_fd())
        };
        // SAFETY: between fork and exec only system calls are made: no allocation,
        // no lock. The descriptors are open in the child, which is closed on exec only.
        unsafe { command.pre_exec(inside) };
        command
    }

    /// Runs a command to its end. Fails only if it cannot be started.
    pub fn output(self: &Arc<Self>, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        fork_from_spawner(command)
            .and_then(std::process::Child::wait_with_output)
            .with_context(|| format!("cannot run {program} in {}", self.name))
    }

    /// Runs a command that must succeed and returns what it printed.
    pub fn ask(self: &Arc<Self>, program: &str, args: &[&str]) -> Result<String> {
        let output = self.output(program, args)?;
        if !output.status.success() {
            bail!(
                "`{program} {}` in {}: {}: {}",
                args.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` with each line of the batch; lines that begin with `-6 ` go last,
    /// to one `ip -6`.
    pub fn ip<L: AsRef<str>>(self: &Arc<Self>, batch: impl IntoIterator<Item = L>) -> Result<()> {
        let (mut plain, mut v6) = (String::new(), String::new());
        for line in batch {
            let line = line.as_ref();
            journal::note(&self.name, &format!("ip {line}"));
            let (to, line) = match line.strip_prefix("-6 ") {
                Some(rest) => (&mut v6, rest),
                None => (&mut plain, line),
            };
            to.push_str(line);
            to.push('\n');
        }
        self.ip_batch(&[], &plain)?;
        self.ip_batch(&["-6"], &v6)
    }

    fn ip_batch(self: &Arc<Self>, options: &[&str], lines: &str) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut command = self.command("ip");
        command.args(options).args(["-batch", "-"]);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = fork_from_spawner(command).context("cannot run ip")?;
        let mut input = child.stdin.take().expect("stdin is piped");
        input
            .write_all(lines.as_bytes())
            .context("ip does not read")?;
        drop(input);
        let output = child.wait_with_output().context("cannot wait for ip")?;
        if !output.status.success() {
            bail!(
                "ip in {}: {}\n{lines}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Writes settings under /proc/sys/net, which shows the caller's namespace.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
            }
            Ok(())
        })
    }
}

fn make() -> Result<(OwnedFd, OwnedFd)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare")?;
    let nothing: Option<&str> = None;
    // What is mounted from here on is seen in here only.
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context("cannot make the mounts private")?;
    // sysfs shows the interfaces of the namespace it was mounted in.
    mount(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        MsFlags::empty(),
        nothing,
    )
    .context("cannot mount sysfs")?;
    mount(
        Some("bpffs"),
        "/sys/fs/bpf",
        Some("bpf"),
        MsFlags::empty(),
        nothing,
    )
    .context("cannot mount bpffs")?;
    let net = File::open("/proc/thread-self/ns/net").context("cannot open the namespace")?;
    let mnt = File::open("/proc/thread-self/ns/mnt").context("cannot open the namespace")?;
    Ok((net.into(), mnt.into()))
}

/// Moves this thread, or this child before exec, into the namespaces.
fn enter(net: BorrowedFd<'_>, mnt: BorrowedFd<'_>) -> io::Result<()> {
    // A mount namespace cannot be joined while the working directory is shared
    // with other threads.
    unshare(CloneFlags::CLONE_FS)?;
    setns(mnt, CloneFlags::CLONE_NEWNS)?;
    setns(net, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
