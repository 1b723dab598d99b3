//! The interfaces that the agent manages.
//!
//! Patterns match interfaces that come and go by the second, and may be gone
//! before they are attached; so a failure is logged, shown in the status, and
//! tried again, but ends nothing. An interface that is named literally is there
//! when the agent starts, and must be attached then.

use std::{collections::BTreeMap, time::Duration};

use tracing::{error, info, warn};

use super::{Attach, Observer, status};
use crate::{
    config::Config,
    datapath::{self, Attached, Role, TcWay, XdpWay},
    interfaces::{Change, Interface, Pattern, role},
};

/// How often a failed attachment is tried again.
pub const RETRY: Duration = Duration::from_secs(5);

struct Entry {
    name: String,
    role: Role,
    /// How it is attached, or why it is not.
    attached: Result<Attached, String>,
}

/// Those interfaces, by index.
pub struct Managed {
    edge: Vec<Pattern>,
    uplink: Vec<Pattern>,
    entries: BTreeMap<u32, Entry>,
}

impl Managed {
    pub fn new(config: &Config) -> Self {
        Self {
            edge: config.edge().to_vec(),
            uplink: config.uplink().to_vec(),
            entries: BTreeMap::new(),
        }
    }

    /// Takes over from an earlier agent, and attaches to all that exist.
    pub fn begin<D: Attach>(
        &mut self,
        datapath: &mut D,
        existing: &[Interface],
        observer: &dyn Observer,
    ) -> Result<(), datapath::Error> {
        for index in datapath.attached() {
            match existing.iter().find(|i| i.index == index) {
                None => datapath.forget(index),
                Some(interface) if self.role(&interface.name).is_none() => {
                    info!(interface = interface.name, "no longer managed");
                    datapath.detach_interface(index, &interface.name)?;
                }
                Some(_) => {}
            }
        }
        for interface in existing {
            if let Some(role) = self.role(&interface.name) {
                let literal = [&self.edge, &self.uplink]
                    .iter()
                    .any(|list| list.iter().any(|p| p.literal() == Some(&interface.name)));
                let attached = datapath.attach(interface.index, &interface.name, role);
                match attached {
                    Err(error) if literal => return Err(error),
                    attached => self.enter(interface.clone(), role, attached),
                }
            }
        }
        self.count(observer);
        Ok(())
    }

    /// An interface appeared, changed its name or disappeared.
    pub fn change<D: Attach>(&mut self, datapath: &mut D, change: Change, observer: &dyn Observer) {
        match change {
            Change::Appeared(interface) => {
                let known = self
                    .entries
                    .get(&interface.index)
                    .is_some_and(|entry| entry.name == interface.name);
                if !known {
                    self.add(datapath, interface);
                }
            }
            Change::Renamed { from, to } => {
                let (old, new) = (self.role(&from), self.role(&to.name));
                match self.entries.get_mut(&to.index) {
                    Some(entry) if old == new => entry.name = to.name,
                    _ => {
                        self.remove(datapath, to.index, &to.name);
                        self.add(datapath, to);
                    }
                }
            }
            Change::Gone(interface) => {
                if let Some(entry) = self.entries.remove(&interface.index) {
                    info!(interface = entry.name, "interface gone");
                    datapath.forget(interface.index);
                }
            }
        }
        self.count(observer);
    }

    /// Other patterns: lets go of what matches no longer, and attaches to what does now.
    pub fn reload<D: Attach>(
        &mut self,
        config: &Config,
        datapath: &mut D,
        existing: Vec<Interface>,
        observer: &dyn Observer,
    ) {
        if self.edge == config.edge() && self.uplink == config.uplink() {
            return;
        }
        (self.edge, self.uplink) = (config.edge().to_vec(), config.uplink().to_vec());
        let other: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| self.role(&entry.name) != Some(entry.role))
            .map(|(index, entry)| (*index, entry.name.clone()))
            .collect();
        for (index, name) in other {
            info!(interface = name, "no longer managed as it was");
            self.remove(datapath, index, &name);
        }
        for interface in existing {
            if !self.entries.contains_key(&interface.index) {
                self.add(datapath, interface);
            }
        }
        self.count(observer);
    }

    /// Tries again what failed.
    pub fn retry<D: Attach>(&mut self, datapath: &mut D, observer: &dyn Observer) {
        for (index, entry) in &mut self.entries {
            if entry.attached.is_err()
                && let Ok(attached) = datapath.attach(*index, &entry.name, entry.role)
            {
                log_attached(&entry.name, entry.role, &attached);
                entry.attached = Ok(attached);
            }
        }
        self.count(observer);
    }

    /// For people and programs.
    pub fn status(&self) -> Vec<status::Interface> {
        self.entries
            .iter()
            .map(|(index, entry)| {
                let attached = entry.attached.as_ref().ok();
                status::Interface {
                    name: entry.name.clone(),
                    ifindex: *index,
                    role: role_label(entry.role).to_owned(),
                    tc: attached.map(|a| a.tc.label().to_owned()),
                    xdp: attached.map(|a| a.xdp.label().to_owned()),
                    degraded: match &entry.attached {
                        Ok(attached) => attached.degraded.clone(),
                        Err(error) => vec![format!("not attached: {error}")],
                    },
                }
            })
            .collect()
    }

    fn role(&self, name: &str) -> Option<Role> {
        role(&self.edge, &self.uplink, name)
    }

    fn add<D: Attach>(&mut self, datapath: &mut D, interface: Interface) {
        if let Some(role) = self.role(&interface.name) {
            let attached = datapath.attach(interface.index, &interface.name, role);
            self.enter(interface, role, attached);
        }
    }

    fn enter(
        &mut self,
        interface: Interface,
        role: Role,
        attached: Result<Attached, datapath::Error>,
    ) {
        let Interface { index, name } = interface;
        match &attached {
            Ok(attached) => log_attached(&name, role, attached),
            Err(error) => error!(
                interface = name,
                "not attached, trying again every {}s: {error}",
                RETRY.as_secs()
            ),
        }
        let attached = attached.map_err(|error| error.to_string());
        let entry = Entry {
            name,
            role,
            attached,
        };
        self.entries.insert(index, entry);
    }

    fn remove<D: Attach>(&mut self, datapath: &mut D, index: u32, name: &str) {
        if self.entries.remove(&index).is_some()
            && let Err(error) = datapath.detach_interface(index, name)
        {
            warn!(interface = name, "not detached: {error}");
        }
    }

    fn count(&self, observer: &dyn Observer) {
        for role in [Role::Edge, Role::Uplink] {
            for tc in TcWay::ALL {
                for xdp in XdpWay::ALL {
                    let alike = |entry: &&Entry| {
                        let attached = entry.attached.as_ref();
                        entry.role == role && attached.is_ok_and(|a| a.tc == tc && a.xdp == xdp)
                    };
                    if role == Role::Uplink || xdp == XdpWay::None {
                        let count = self.entries.values().filter(alike).count();
                        observer.interfaces(role, tc, xdp, count);
                    }
                }
            }
        }
    }
}

/// A role's word.
pub fn role_label(role: Role) -> &'static str {
    match role {
        Role::Edge => "edge",
        Role::Uplink => "uplink",
    }
}

fn log_attached(name: &str, role: Role, attached: &Attached) {
    info!(
        interface = name,
        role = role_label(role),
        tc = attached.tc.label(),
        xdp = attached.xdp.label(),
        inherited = attached.inherited,
        "attached"
    );
    for degraded in &attached.degraded {
        warn!(interface = name, "{degraded}");
    }
}
