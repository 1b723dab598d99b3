//! A folder for files and sockets that vanishes with its descriptor: a tmpfs that
//! is mounted nowhere (fsmount(2), Linux 5.2). A folder in /tmp would stay behind
//! after SIGKILL.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, Result};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// An open, detached tmpfs.
#[derive(Debug)]
pub struct Folder(OwnedFd);

impl Folder {
    pub fn new() -> Result<Self> {
        let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context("cannot open a tmpfs")?;
        fsconfig_create(tmpfs.as_fd()).context("cannot create a tmpfs")?;
        let root = fsmount(
            tmpfs.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .context("cannot mount a tmpfs")?;
        Ok(Self(root))
    }

    /// A path to it for every process, whatever its mount namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.0.as_raw_fd()
        ))
    }
}
