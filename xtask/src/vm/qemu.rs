//! One VM: QEMU, the server of the host's root, and how both end.
//!
//! Nothing outlives the call: both processes die with this one (parent death
//! signal), with the guard that owns them, on a deadline and on SIGINT or SIGTERM.
//! They talk over sockets that have no name in the file system.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::{
        fd::{AsRawFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    emulator::Emulator,
    initramfs::{READY, TAG},
    kernels::Image,
};

/// Boot takes seconds; a machine under load gets minutes.
const BOOT: Duration = Duration::from_secs(180);
/// No test takes a fraction of this, and the lab gives up on one earlier: a VM that says
/// nothing for so long is stuck itself.
const SILENCE: Duration = Duration::from_secs(8 * 60);
/// How often signals and deadlines are looked at.
const GLANCE: Duration = Duration::from_millis(200);
const MEMORY: &str = "2G";
/// An old model: what newer ones add, vectors above all, takes emulation longer, and
/// nothing here asks for it. Random numbers spare the wait for entropy.
const CPU: &str = "Nehalem,+rdrand";
/// Any panic ends the VM at once, and a fault in the kernel is a panic. What protects
/// against the flaws of real processors only costs time here.
const APPEND: &str = "console=ttyS0 panic=-1 oops=panic mitigations=off";
const EMULATOR_LOG: &str = "qemu.log";
const SERVER_LOG: &str = "virtiofsd.log";

/// How a VM ended.
pub enum End {
    /// Its script came to the end, and it powered itself off.
    Off,
    /// It stopped without having said that it was done; why.
    Broken(String),
}

/// What a machine is started from.
pub struct Plan<'a> {
    pub image: &'a Image,
    pub emulator: &'a Emulator,
    pub initramfs: &'a Path,
    /// For all of the tests, after the boot.
    pub limit: Duration,
}

impl Plan<'_> {
    /// Where the kernel's log of the run stays.
    pub fn log(&self) -> PathBuf {
        self.image.folder.join("kernel.log")
    }

    /// What QEMU and virtiofsd complained of.
    pub fn complaints(&self) -> String {
        [EMULATOR_LOG, SERVER_LOG]
            .iter()
            .filter_map(|name| fs::read_to_string(self.image.folder.join(name)).ok())
            .collect()
    }

    /// Boots, hands each line of output to `line`, and waits for the end.
    pub fn run(&self, line: impl FnMut(&str)) -> Result<End> {
        let status = self.image.folder.join("status");
        for file in [&status, &self.log()] {
            fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
        }
        let outcome = self.attend(&status, line);
        let told = fs::read_to_string(&status).unwrap_or_default();
        fs::remove_file(&status).ok();
        match outcome? {
            None if told.lines().any(|line| line.trim() == "done") => Ok(End::Off),
            None => Ok(End::Broken(match told.trim() {
                "" => "the VM stopped before its tests were done".to_owned(),
                told => told.to_owned(),
            })),
            Some(why) => Ok(End::Broken(why)),
        }
    }

    /// `Some` with the reason when it had to be ended.
    fn attend(&self, status: &Path, mut line: impl FnMut(&str)) -> Result<Option<String>> {
        let mut guests = self.start(status)?;
        let output = guests.0[1].stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::channel();
        // Ends with the pipe, which ends with QEMU.
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line);
                if sender.send(text.trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });
        let mut deadline = Instant::now() + BOOT;
        let mut stage = "boot";
        let mut heard = Instant::now();
        loop {
            match lines.recv_timeout(GLANCE) {
                Ok(text) if text == READY => {
                    deadline = Instant::now() + self.limit;
                    stage = "end of its tests";
                    heard = Instant::now();
                }
                Ok(text) => {
                    heard = Instant::now();
                    line(&text);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interrupted() {
                drop(guests);
                bail!("interrupted");
            }
            if heard.elapsed() > SILENCE {
                return Ok(Some(format!("the VM said nothing for {SILENCE:?}")));
            }
            if Instant::now() > deadline {
                return Ok(Some(format!("the VM did not come to the {stage} in time")));
            }
        }
    }

    fn start(&self, status: &Path) -> Result<Guests> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "probe-vm-{}-{}",
            std::process::id(),
            SERIAL.fetch_add(1, Ordering::Relaxed)
        );
        let address = SocketAddr::from_abstract_name(name).context("the socket's name")?;
        let listener = UnixListener::bind_addr(&address).context("cannot bind a socket")?;
        // Connected before anybody accepts, so nobody has to wait for anybody.
        let stream = UnixStream::connect_addr(&address).context("cannot connect a socket")?;

        let mut server = Command::new(&self.emulator.virtiofsd);
        server
            .arg(format!("--fd={}", listener.as_raw_fd()))
            // Both virtiofsd, C's and Rust's, know these. Its other sandbox pivots to the shared
            // folder, and nothing can pivot to the root it is in (pivot_root(2), EBUSY).
            .args(["-o", "source=/", "-o", "cache=always"])
            .args(["-o", "sandbox=chroot"])
            .arg("--rlimit-nofile=1000000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file(&self.image.folder.join(SERVER_LOG))?);
        bind_to_us(&mut server, listener.as_raw_fd());
        let mut guests = Guests(vec![spawn(&mut server)?]);

        let mut emulator = Command::new(&self.emulator.qemu);
        for folder in &self.emulator.firmware {
            emulator.arg("-L").arg(folder);
        }
        emulator
            .args(["-no-user-config", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-nic", "none"])
            // One processor, and room for a second that never comes: only for a machine that
            // may have two does QEMU emulate locked instructions by locked ones. Linux's memory
            // barrier is one, and without it virtiofsd, which shares the memory, and the guest
            // now and then miss each other's notice: a request is never answered, and whoever
            // opens a file waits forever.
            .args(["-accel", "tcg,thread=multi", "-cpu", CPU])
            .args(["-M", "q35,memory-backend=mem", "-m", MEMORY])
            .args(["-smp", "1,maxcpus=2"])
            // Shared, so that virtiofsd reaches it.
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=mem,size={MEMORY},share=on"
            ))
            .arg("-chardev")
            .arg(format!("socket,id=root,fd={}", stream.as_raw_fd()))
            .arg("-device")
            .arg(format!("vhost-user-fs-pci,chardev=root,tag={TAG}"))
            .arg("-serial")
            .arg(format!("file:{}", self.log().display()))
            .args([
                "-chardev",
                "stdio,id=output,signal=off",
                "-serial",
                "chardev:output",
            ])
            .arg("-serial")
            .arg(format!("file:{}", status.display()))
            .arg("-kernel")
            .arg(&self.image.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", APPEND])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file(&self.image.folder.join(EMULATOR_LOG))?);
        bind_to_us(&mut emulator, stream.as_raw_fd());
        guests.0.push(spawn(&mut emulator)?);
        Ok(guests)
    }
}

fn log_file(path: &Path) -> Result<fs::File> {
    fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .spawn()
        .with_context(|| format!("cannot run {}", Path::new(command.get_program()).display()))
}

/// The child inherits one descriptor and dies with us.
fn bind_to_us(command: &mut Command, fd: RawFd) {
    let us = std::process::id().cast_signed();
    let prepare = move || {
        // SAFETY: system calls on numbers only; they have no memory to get wrong.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                || libc::fcntl(fd, libc::F_SETFD, 0) != 0
                // Behind the host's own work; failing is no matter.
                || { libc::nice(5); false }
                // We may have died before the signal was asked for.
                || libc::getppid() != us
        };
        if failed {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made: no allocation, no lock.
    unsafe { command.pre_exec(prepare) };
}

/// virtiofsd and QEMU, in this order; they end with this value.
struct Guests(Vec<Child>);

impl Drop for Guests {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            // It may have ended by itself; the wait tells nothing new either.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether somebody asked us to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

extern "C" fn note_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From here on SIGINT and SIGTERM are noted, so that what was started is ended first.
pub fn catch_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler stores one word, which is allowed at any moment.
        unsafe { libc::signal(signal, note_signal as *const () as libc::sighandler_t) };
    }
}
