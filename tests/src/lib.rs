//! The lab: network namespaces with real servers, clients and faults.
//!
//! Its first rule is that nothing can be left behind, even when it is killed with
//! SIGKILL. Namespaces have no name: they live as long as a file descriptor of the
//! lab or a process in them. Each has a private mount namespace with its own
//! bpffs, so pins vanish with it; files are on a tmpfs mounted nowhere. Child processes die with the lab's process.

pub mod agent;
pub mod bench;
pub mod capture;
pub mod cgroup;
pub mod client;
pub mod database;
pub mod dns;
pub mod faults;
pub mod folder;
pub mod foreign;
pub mod journal;
pub mod kernel;
pub mod link;
pub mod namespace;
pub mod peers;
pub mod privilege;
pub mod process;
pub mod server;
pub mod topology;
pub mod wait;

pub use agent::Agent;
pub use cgroup::Cgroup;
pub use namespace::Namespace;
pub use privilege::privileged;
pub use process::Process;
pub use server::Server;
pub use topology::{Lab, Way};
pub use wait::until;
