//! A cgroup of a test's own, with sockets in it.
//!
//! It hangs below the cgroup of version 2 that the lab is in, has no controller, and holds a
//! process only for the moment in which that makes a socket: a socket stays in the cgroup and
//! in the network namespace that it was made in, whoever uses it. A child of the lab waits
//! for the end of the lab and then removes the folder, so that even SIGKILL leaves none behind.

use std::{
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    cmsg_space,
    sys::{
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            recvmsg, sendmsg, socket, socketpair,
        },
        statfs::{CGROUP2_SUPER_MAGIC, statfs},
    },
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::{Namespace, process::fork_from_spawner};

/// What every folder's name begins with.
const PREFIX: &str = "probe-lab-";

/// Waits for the end of its standard input, then for the folder to be empty, and removes it.
const JANITOR: &str = "trap '' INT TERM HUP; cd \"$1\" || exit 1; echo ready; read -r _; n=0; \
    while ! rmdir \"$2\" 2>/dev/null && [ -d \"$2\" ] && [ $n -lt 200 ]; do n=$((n+1)); \
    sleep 0.05; done; [ ! -d \"$2\" ]";

/// A cgroup that vanishes with this value, or with the lab's process.
#[derive(Debug)]
pub struct Cgroup {
    folder: File,
    processes: Arc<File>,
    janitor: Child,
    /// Its end is what the janitor waits for.
    alive: Option<ChildStdin>,
}

impl Cgroup {
    /// Makes one.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        // A mount of our own, mounted nowhere: where the machine has it differs.
        let cgroup2 = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)
            .context("cannot open the cgroups of version 2")?;
        fsconfig_create(&cgroup2).context("cannot open the cgroups of version 2")?;
        let root = fsmount(
            &cgroup2,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .context("cannot mount the cgroups of version 2")?;
        let mine = fs::read_to_string("/proc/self/cgroup").context("own cgroup")?;
        let mine = mine
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("this process is in no cgroup of version 2")?;
        let parent = descriptor(&root).join(mine);
        fs::create_dir(parent.join(&name)).with_context(|| format!("cannot make cgroup {name}"))?;
        let mut janitor = Command::new("sh");
        janitor
            .args(["-c", JANITOR, "sh"])
            .arg(&parent)
            .arg(&name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the lab.
            .process_group(0);
        let made = janitor.spawn().context("cannot start the janitor");
        let mut janitor = match made {
            Ok(janitor) => janitor,
            Err(error) => {
                fs::remove_dir(parent.join(&name)).ok();
                return Err(error);
            }
        };
        let alive = janitor.stdin.take();
        let folder = File::open(parent.join(&name)).context("cannot open the cgroup")?;
        let processes = File::options()
            .write(true)
            .open(parent.join(&name).join("cgroup.procs"))
            .context("cannot open the cgroup's processes")?;
        // It is in the folder above before the mount may go.
        let mut ready = [0; 6];
        let mut said = janitor.stdout.take().context("piped")?;
        io::Read::read_exact(&mut said, &mut ready).context("the janitor is not ready")?;
        Ok(Self {
            folder,
            processes: Arc::new(processes),
            janitor,
            alive,
        })
    }

    /// A path to it for every process, whatever its mount namespace.
    pub fn path(&self) -> PathBuf {
        descriptor(&self.folder)
    }

    /// Is this path that of a cgroup that a test made, or of none at all?
    pub fn is_harmless(path: &Path) -> bool {
        let is_cgroup = statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let target = fs::read_link(path).unwrap_or_default();
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        !is_cgroup || name.starts_with(PREFIX)
    }

    /// Makes a command's process one of this cgroup.
    pub fn admit(&self, command: &mut Command) {
        let processes = Arc::clone(&self.processes);
        let enter = move || {
            nix::unistd::write(&*processes, b"0")?;
            Ok(())
        };
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(enter) };
    }

    /// A socket that a process of this cgroup made in that namespace.
    pub fn socket(
        &self,
        host: &Arc<Namespace>,
        family: AddressFamily,
        kind: SockType,
    ) -> Result<OwnedFd> {
        let (here, there) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .context("cannot make a pair of sockets")?;
        let mut command = host.command("true");
        self.admit(&mut command);
        let make = move || {
            let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
            let rights = [made.as_raw_fd()];
            sendmsg::<()>(
                there.as_raw_fd(),
                &[IoSlice::new(b"s")],
                &[ControlMessage::ScmRights(&rights)],
                MsgFlags::empty(),
                None,
            )?;
            Ok(())
        };
        // SAFETY: between fork and exec; the little memory that `sendmsg` wants for its control
        // message is taken by a child whose one thread is this one. glibc's allocator is safe
        // to use there.
        unsafe { command.pre_exec(make) };
        let status = fork_from_spawner(command)
            .and_then(|mut child| child.wait())
            .context("cannot make a socket in the cgroup")?;
        ensure!(status.success(), "a process of the cgroup ends: {status}");
        let mut byte = [0];
        let mut space = cmsg_space!(i32);
        let mut parts = [IoSliceMut::new(&mut byte)];
        let answer = recvmsg::<()>(
            here.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .context("no socket comes")?;
        for message in answer.cmsgs().context("no socket comes")? {
            if let ControlMessageOwned::ScmRights(descriptors) = message
                && let [descriptor] = descriptors[..]
            {
                // SAFETY: the kernel just opened it for us.
                return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        bail!("no socket came")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Some(mut alive) = self.alive.take() {
            alive.flush().ok();
        }
        match self.janitor.wait() {
            Ok(status) if status.success() => {}
            ended => eprintln!("a cgroup of the lab is left behind: {ended:?}"),
        }
    }
}

fn descriptor(of: &impl std::os::fd::AsRawFd) -> PathBuf {
    PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        of.as_raw_fd()
    ))
}
