//! What happens to the master, each by one system call or one order, so that its
//! moment is known.

use std::time::Instant;

use anyhow::Result;
use lab::link::set_up;
use serde::Serialize;

use crate::ways::Rig;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Kill,
    Hang,
    DropAll,
    LinkDown,
    Status503,
    WrongBody,
    /// The master that was killed before is started again.
    Recovery,
}

impl Fault {
    pub const ALL: [Self; 7] = [
        Self::Kill,
        Self::Hang,
        Self::DropAll,
        Self::LinkDown,
        Self::Status503,
        Self::WrongBody,
        Self::Recovery,
    ];

    pub const fn shown(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Hang => "hang (SIGSTOP)",
            Self::DropAll => "drop all",
            Self::LinkDown => "link down",
            Self::Status503 => "status 503",
            Self::WrongBody => "wrong body",
            Self::Recovery => "recovery",
        }
    }

    /// Nobody answers any more, and nobody says so.
    pub const fn is_silent(self) -> bool {
        matches!(self, Self::Hang | Self::DropAll | Self::LinkDown)
    }

    /// Who serves before it, and after it.
    pub const fn servers(self) -> [&'static str; 2] {
        match self {
            Self::Recovery => ["backup", "master"],
            _ => ["master", "backup"],
        }
    }

    /// What has to be so before the load begins.
    pub fn prepare(self, rig: &mut Rig) -> Result<()> {
        if self == Self::Recovery {
            rig.master.kill()?;
            rig.settle("backup")?;
        }
        Ok(())
    }

    /// Makes it happen; what is returned undoes it.
    pub fn make(self, rig: &mut Rig) -> Result<Made> {
        let now = Instant::now();
        let at = match self {
            Self::Kill => rig.master.kill().map(|()| now)?,
            Self::Hang => rig.master.stop().map(|()| now)?,
            Self::Status503 => rig.master.set_status(503).map(|()| now)?,
            Self::WrongBody => rig.master.set_body("out of order").map(|()| now)?,
            Self::Recovery => rig.master.restart().map(|()| now)?,
            Self::LinkDown => set_up(&rig.lab.master, "eth0", false)?,
            Self::DropAll => rig.gate.set(true).map(|()| now)?,
        };
        Ok(Made { at, fault: self })
    }
}

/// A fault that was made.
pub struct Made {
    pub at: Instant,
    fault: Fault,
}

impl Made {
    /// As it was before, as far as that is the master's matter.
    pub fn undo(self, rig: &mut Rig) -> Result<()> {
        match self.fault {
            Fault::Kill => rig.master.restart(),
            Fault::Hang => rig.master.cont(),
            Fault::Status503 | Fault::WrongBody => rig.master.behave(),
            Fault::DropAll => rig.gate.set(false),
            Fault::Recovery => Ok(()),
            Fault::LinkDown => {
                set_up(&rig.lab.master, "eth0", true)?;
                // What a kernel forgets with a link: routes, neighbours, IPv6 addresses.
                rig.lab.rejoin(&rig.lab.master, 2)
            }
        }
    }
}
