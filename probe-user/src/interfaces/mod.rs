//! Which network interfaces there are, and which of them are ours to manage.
//!
//! [`Pattern`] names interfaces in the configuration. [`watch`] tells the core of
//! interfaces that appear and disappear. It asks netlink, never /sys, so it is
//! right inside any network namespace; and it compares with a full dump now and
//! then, because the kernel drops notifications when a socket's buffer is full.

mod glob;
mod watch;
mod ways;

use crate::datapath::Role;

pub use glob::Pattern;
pub use watch::{Change, Interface, Table, list, watch};
pub use ways::Kernel;

/// An interface's role by its name: a literal name before a pattern, and an
/// uplink before an edge.
pub fn role(edge: &[Pattern], uplink: &[Pattern], name: &str) -> Option<Role> {
    let literal = |list: &[Pattern]| list.iter().any(|p| p.literal() == Some(name));
    let matches = |list: &[Pattern]| list.iter().any(|p| p.matches(name));
    if literal(uplink) {
        Some(Role::Uplink)
    } else if literal(edge) {
        Some(Role::Edge)
    } else if matches(uplink) {
        Some(Role::Uplink)
    } else if matches(edge) {
        Some(Role::Edge)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_name_wins_over_a_pattern_and_an_uplink_over_an_edge() {
        let p = |text: &str| Pattern::new(text).unwrap();
        let (edge, uplink) = ([p("veth*"), p("eth9")], [p("eth*"), p("veth7")]);
        assert_eq!(role(&edge, &uplink, "veth0"), Some(Role::Edge));
        assert_eq!(role(&edge, &uplink, "veth7"), Some(Role::Uplink));
        assert_eq!(role(&edge, &uplink, "eth0"), Some(Role::Uplink));
        assert_eq!(role(&edge, &uplink, "eth9"), Some(Role::Edge));
        assert_eq!(role(&edge, &uplink, "lo"), None);
        assert_eq!(role(&[p("e*")], &[p("et*")], "eth0"), Some(Role::Uplink));
    }
}
