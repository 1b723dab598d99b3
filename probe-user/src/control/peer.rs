//! Who is at the other end of the socket, as the kernel says.
//!
//! The file's mode decides who may open it; this is asked once more of each connection, since a
//! descriptor may have been handed on and a folder may have been made anew. Root, the agent's own
//! user, and members of `control.group` if there is one are answered.

use std::{io, os::fd::AsRawFd as _};

use anyhow::{Context as _, anyhow};
use nix::unistd::{Gid, Group, Uid, User, geteuid};
use tokio::net::UnixStream;

use crate::core::order::Who;

/// Groups that one process can be in (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65_536;

/// Who may use the socket.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    own: Uid,
    group: Option<Gid>,
}

impl Allowed {
    /// Root, the agent's user, and a group of this name or number.
    pub fn new(group: Option<&str>) -> anyhow::Result<Self> {
        let group = group.map(group_id).transpose()?;
        Ok(Self {
            own: geteuid(),
            group,
        })
    }

    /// The group, if there is one.
    pub fn group(&self) -> Option<Gid> {
        self.group
    }

    /// May who is at the other end use it?
    pub fn judge(&self, stream: &UnixStream) -> io::Result<Result<Peer, Peer>> {
        let found = stream.peer_cred()?;
        let peer = Peer {
            uid: found.uid(),
            pid: found.pid(),
        };
        let by_user = found.uid() == 0 || found.uid() == self.own.as_raw();
        let by_group = match self.group {
            Some(group) if !by_user => {
                found.gid() == group.as_raw() || groups(stream)?.contains(&group.as_raw())
            }
            _ => false,
        };
        Ok(if by_user || by_group {
            Ok(peer)
        } else {
            Err(peer)
        })
    }
}

/// Who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The process that connected.
    pub pid: Option<i32>,
}

impl Peer {
    /// With the user's name, which may take a while where names come from the network.
    pub async fn named(self) -> Who {
        let uid = Uid::from_raw(self.uid);
        let user = tokio::task::spawn_blocking(move || User::from_uid(uid));
        let user = match tokio::time::timeout(std::time::Duration::from_secs(1), user).await {
            Ok(Ok(Ok(user))) => user.map(|user| user.name),
            _ => None,
        };
        Who {
            uid: self.uid,
            user,
            pid: self.pid.filter(|pid| *pid > 0),
        }
    }
}

fn group_id(name: &str) -> anyhow::Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(name).with_context(|| format!("look up group {name}"))?;
    let found = found.ok_or_else(|| anyhow!("control.group: `{name}`: there is no such group"))?;
    Ok(found.gid)
}

/// The other end's supplementary groups (`SO_PEERGROUPS`, Linux 4.13).
fn groups(stream: &UnixStream) -> io::Result<Vec<libc::gid_t>> {
    let mut room = 64;
    loop {
        let mut groups: Vec<libc::gid_t> = vec![0; room];
        let mut length = libc::socklen_t::try_from(room * size_of::<libc::gid_t>())
            .expect("groups of one process are few");
        // SAFETY: the buffer has `length` bytes, and `length` itself is ours; the kernel writes
        // no more than it says, and plain integers.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result == 0 {
            groups.truncate(length as usize / size_of::<libc::gid_t>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || room >= MOST_GROUPS {
            return Err(error);
        }
        room = MOST_GROUPS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn oneself_is_known_by_name_and_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = Allowed::new(None).unwrap().judge(&here).unwrap().unwrap();
        assert_eq!(peer.uid, geteuid().as_raw());
        let who = peer.named().await;
        assert_eq!(who.pid, i32::try_from(std::process::id()).ok());
        let groups = groups(&here).unwrap();
        assert_eq!(groups.len(), nix::unistd::getgroups().unwrap().len());
    }

    #[test]
    fn groups_go_by_name_or_number() {
        assert_eq!(group_id("7").unwrap(), Gid::from_raw(7));
        assert_eq!(group_id("root").unwrap(), Gid::from_raw(0));
        let error = group_id("no such group").unwrap_err().to_string();
        assert!(error.contains("there is no such group"), "{error}");
    }
}
