//! Faults of the network. Faults of a server are in [`crate::server`].

use std::sync::Arc;

use anyhow::Result;

use crate::{Namespace, journal};

/// Everything that arrives on the host's `eth0` vanishes: no RST, no ICMP error,
/// also on established connections. What the host sends still leaves.
pub fn blackhole(host: &Arc<Namespace>) -> Result<()> {
    journal::note(host.name(), "drops everything from now on");
    // Rules are read in order of preference, and the table of local addresses is
    // read first, by rule 0: it has to make place.
    host.ip([
        "rule add pref 2 lookup local",
        "-6 rule add pref 2 lookup local",
        "rule add pref 1 iif eth0 blackhole",
        "-6 rule add pref 1 iif eth0 blackhole",
        "rule del pref 0",
        "-6 rule del pref 0",
    ])
}

/// Ends [`blackhole`].
pub fn heal(host: &Arc<Namespace>) -> Result<()> {
    journal::note(host.name(), "receives again");
    host.ip([
        "rule add pref 0 lookup local",
        "-6 rule add pref 0 lookup local",
        "rule del pref 1",
        "-6 rule del pref 1",
        "rule del pref 2",
        "-6 rule del pref 2",
    ])
}

/// The cable is pulled at the host's end.
pub fn unplug(host: &Arc<Namespace>) -> Result<()> {
    journal::note(host.name(), "is unplugged");
    host.ip(["link set eth0 down"])
}
