//! The live table of interfaces, kept by netlink.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    },
};
use tokio::{sync::mpsc, task::AbortHandle, time::MissedTickBehavior};

/// How often the table is compared with a full dump.
const REDUMP: Duration = Duration::from_secs(15);

/// An interface that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number, unique in its network namespace at any one time.
    pub index: u32,
    /// Its name, which may change.
    pub name: String,
}

/// What happened to the interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Appeared(Interface),
    /// It has a new name.
    Renamed {
        /// Its name before.
        from: String,
        /// As it is now.
        to: Interface,
    },
    /// It is gone.
    Gone(Interface),
}

/// The interfaces as last told. Turns what netlink says, in any order and with
/// repetitions, into changes.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<u32, String>);

impl Table {
    /// An interface is there (also told whenever one of its flags changes).
    pub fn present(&mut self, interface: Interface) -> Vec<Change> {
        let Interface { index, name } = &interface;
        match self.0.insert(*index, name.clone()) {
            Some(old) if old == *name => Vec::new(),
            Some(from) => vec![Change::Renamed {
                from,
                to: interface,
            }],
            None => vec![Change::Appeared(interface)],
        }
    }

    /// An interface is gone.
    pub fn absent(&mut self, index: u32) -> Vec<Change> {
        self.0
            .remove(&index)
            .map(|name| Change::Gone(Interface { index, name }))
            .into_iter()
            .collect()
    }

    /// This, and nothing else, is there.
    pub fn dump(&mut self, all: Vec<Interface>) -> Vec<Change> {
        let mut changes = Vec::new();
        let gone: Vec<u32> = self
            .0
            .keys()
            .filter(|index| !all.iter().any(|interface| interface.index == **index))
            .copied()
            .collect();
        for index in gone {
            changes.extend(self.absent(index));
        }
        for interface in all {
            changes.extend(self.present(interface));
        }
        changes
    }
}

/// Every interface of this network namespace.
pub async fn list() -> anyhow::Result<Vec<Interface>> {
    let (connection, handle, _) = new_connection().context("open a netlink socket")?;
    let task = Aborted(tokio::spawn(connection).abort_handle());
    let all = dump(&handle).await;
    drop(task);
    all
}

/// Tells `changes` of every interface that appears or disappears, beginning with
/// all that exist. Ends when the receiver is dropped, or with an error.
pub async fn watch(changes: mpsc::Sender<Change>) -> anyhow::Result<()> {
    let (connection, handle, mut messages) =
        new_multicast_connection(&[MulticastGroup::Link]).context("open a netlink socket")?;
    let _task = Aborted(tokio::spawn(connection).abort_handle());
    let mut table = Table::default();
    let mut redump = tokio::time::interval(REDUMP);
    redump.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let found = tokio::select! {
            // The first tick is at once: the initial dump, after the subscription so that
            // nothing falls between the two.
            _ = redump.tick() => table.dump(dump(&handle).await?),
            message = messages.next() => match message.map(|(message, _)| message.payload) {
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => {
                    interface(&link).map(|i| table.present(i)).unwrap_or_default()
                }
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)))
                    if !of_bridge(&link) => table.absent(link.header.index),
                // Notifications were lost: only a dump tells which.
                Some(NetlinkPayload::Overrun(_)) => table.dump(dump(&handle).await?),
                Some(_) => Vec::new(),
                None => bail!("the netlink socket that tells of interfaces was closed"),
            },
        };
        for change in found {
            if changes.send(change).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// A bridge tells of ports that join and leave it with link messages of its own
/// family; a port that leaves the bridge still exists.
fn of_bridge(link: &LinkMessage) -> bool {
    link.header.interface_family == rtnetlink::packet_route::AddressFamily::Bridge
}

fn interface(link: &LinkMessage) -> Option<Interface> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(Interface {
                index: link.header.index,
                name: name.clone(),
            }),
            _ => None,
        })
}

async fn dump(handle: &Handle) -> anyhow::Result<Vec<Interface>> {
    let links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| anyhow!("list the network interfaces: {error}"))?;
    Ok(links.iter().filter_map(interface).collect())
}

/// Ends a task with its owner.
struct Aborted(AbortHandle);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
        }
    }

    #[test]
    fn repetitions_are_silent_and_renames_are_told() {
        let mut table = Table::default();
        let a = interface(3, "veth0");
        assert_eq!(table.present(a.clone()), [Change::Appeared(a.clone())]);
        assert_eq!(table.present(a.clone()), []);
        let b = interface(3, "cali1");
        assert_eq!(
            table.present(b.clone()),
            [Change::Renamed {
                from: "veth0".to_owned(),
                to: b.clone()
            }]
        );
        assert_eq!(table.absent(3), [Change::Gone(b)]);
        assert_eq!(table.absent(3), []);
    }

    #[test]
    fn a_dump_finds_what_notifications_missed() {
        let mut table = Table::default();
        let (a, b, c) = (interface(1, "lo"), interface(2, "a"), interface(5, "c"));
        table.present(a.clone());
        table.present(b.clone());
        assert_eq!(
            table.dump(vec![a.clone(), c.clone()]),
            [Change::Gone(b), Change::Appeared(c.clone())]
        );
        assert_eq!(table.dump(vec![a, c]), []);
    }

    #[tokio::test]
    async fn every_namespace_has_a_loopback() {
        let all = list().await.unwrap();
        assert!(
            all.iter().any(|i| i.name == "lo" && i.index == 1),
            "{all:?}"
        );
        let (tx, mut rx) = mpsc::channel(1);
        let watcher = tokio::spawn(watch(tx));
        let first = rx.recv().await;
        assert_eq!(first, Some(Change::Appeared(interface(1, "lo"))));
        drop(rx);
        watcher.abort();
    }
}
