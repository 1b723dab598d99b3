//! Tells when a configuration file may have changed.
//!
//! What is watched are folders, since files are mostly replaced, not written: an editor renames
//! a new one into the old one's place, and Kubernetes renames the link `..data` to a new folder,
//! while `probe.yaml`, a link to `..data/probe.yaml`, stays as it is. So every folder on the way
//! is watched, from link to link, and the way is walked anew after each event. Events that come
//! together are one ([`QUIET`], and [`LONGEST`] at most).
//!
//! Some file systems tell nothing (a ConfigMap mounted by `subPath` never even changes), so the
//! file is looked at every [`POLL`] too; and so it is where the kernel gives no watch.

use std::{
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::warn;

use super::Handle;

/// After the last event of several.
const QUIET: Duration = Duration::from_millis(100);
/// After the first, however many follow.
const LONGEST: Duration = Duration::from_secs(2);
/// Without any event.
const POLL: Duration = Duration::from_secs(60);
/// As the kernel's own bound.
const MOST_LINKS: usize = 40;

/// Looks at the file whenever it may have changed.
pub async fn watch(file: PathBuf, reloads: Handle) -> anyhow::Result<()> {
    let mut told = false;
    loop {
        let watched = Watch::new(&file);
        if let Err(error) = &watched
            && !std::mem::replace(&mut told, true)
        {
            let every = POLL.as_secs();
            warn!("the configuration file is looked at every {every}s only: {error}");
        }
        // What changed before the watch began is seen now.
        if !reloads.look().await {
            return Ok(());
        }
        match watched {
            Ok(watched) => watched.wait().await?,
            Err(_) => sleep(POLL).await,
        }
    }
}

struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    fn new(file: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let (mut watched, mut error) = (0, None);
        for folder in folders(file) {
            match inotify.add_watch(&folder, flags) {
                Ok(_) => watched += 1,
                // In the midst of a replacement; the folder above tells of its end.
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => error = Some(errno),
            }
        }
        if let Some(error) = error.filter(|_| watched == 0) {
            return Err(error.into());
        }
        // SAFETY: the descriptor is the watch's own, and open until that is dropped, which
        // deregisters it first.
        let events =
            unsafe { AsyncFd::register_with_interest(OwnedFd::from(inotify), Interest::READABLE) }?;
        Ok(Self(events))
    }

    /// Until something happened and no more happens, or until it is time to look anyway.
    async fn wait(self) -> io::Result<()> {
        let Ok(first) = timeout(POLL, self.some()).await else {
            return Ok(());
        };
        first?;
        let end = Instant::now() + LONGEST;
        while Instant::now() < end {
            let quiet = end.min(Instant::now() + QUIET);
            match timeout_at(quiet, self.some()).await {
                Ok(more) => more?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Some events. What they say does not matter.
    async fn some(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(read) = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut events)?)) {
                return read.map(drop);
            }
        }
    }
}

/// Folders in which a change may make the path lead to another file: each one that holds a part
/// of the way that is a link, and the one that holds the file.
fn folders(file: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut way: Vec<PathBuf> = parts(file);
    let mut at = PathBuf::from("/");
    if file.is_relative() {
        at = std::env::current_dir().unwrap_or(at);
    }
    let mut links = 0;
    while !way.is_empty() {
        let part = way.remove(0);
        if part == Path::new("..") {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        match std::fs::read_link(&next) {
            Ok(to) if links < MOST_LINKS && leads(&next, &at.join(&to)) => {
                links += 1;
                add(&mut folders, &at);
                if to.is_absolute() {
                    at = PathBuf::from("/");
                }
                let rest = std::mem::replace(&mut way, parts(&to));
                way.extend(rest);
            }
            Ok(_) | Err(_) => {
                if way.is_empty() {
                    add(&mut folders, &at);
                }
                at = next;
            }
        }
    }
    folders
}

/// Does the text of a link lead where the link does? That of a descriptor in /proc need not.
fn leads(link: &Path, to: &Path) -> bool {
    let place = |path: &Path| std::fs::metadata(path).map(|of| (of.dev(), of.ino())).ok();
    place(link) == place(to)
}

fn parts(path: &Path) -> Vec<PathBuf> {
    let plain = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.into()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(plain).collect()
}

fn add(folders: &mut Vec<PathBuf>, folder: &Path) {
    if !folders.iter().any(|known| known == folder) {
        folders.push(folder.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::reload::Request;

    /// As kubelet mounts a ConfigMap.
    fn config_map(folder: &Path) {
        fs::create_dir(folder.join("..1")).unwrap();
        fs::write(folder.join("..1/probe.yaml"), "one").unwrap();
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/probe.yaml", folder.join("probe.yaml")).unwrap();
    }

    #[test]
    fn every_link_on_the_way_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        config_map(&base);
        assert_eq!(
            folders(&base.join("probe.yaml")),
            [base.clone(), base.join("..1")]
        );
        fs::create_dir(base.join("etc")).unwrap();
        symlink(base.join("probe.yaml"), base.join("etc/link")).unwrap();
        assert_eq!(
            folders(&base.join("etc/../etc/link")),
            [base.join("etc"), base.clone(), base.join("..1")]
        );
        // A circle ends.
        symlink("round", base.join("round")).unwrap();
        assert_eq!(folders(&base.join("round")), [base]);
    }

    /// Waits until the file is looked at, so often that later looks are nobody's.
    async fn looks(inbox: &mut tokio::sync::mpsc::Receiver<Request>) {
        let request = timeout(Duration::from_secs(20), inbox.recv()).await;
        assert!(matches!(request, Ok(Some(Request::Look))), "{request:?}");
    }

    #[tokio::test]
    async fn a_swapped_link_and_a_replaced_file_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        config_map(folder.path());
        let (handle, mut inbox) = Handle::new();
        let task = tokio::spawn(watch(folder.path().join("probe.yaml"), handle));
        looks(&mut inbox).await;
        fs::create_dir(folder.path().join("..2")).unwrap();
        fs::write(folder.path().join("..2/probe.yaml"), "two").unwrap();
        symlink("..2", folder.path().join("..data_tmp")).unwrap();
        fs::rename(
            folder.path().join("..data_tmp"),
            folder.path().join("..data"),
        )
        .unwrap();
        looks(&mut inbox).await;
        // The new folder is watched too.
        fs::write(folder.path().join("..2/probe.yaml"), "three").unwrap();
        looks(&mut inbox).await;
        task.abort();
    }
}
