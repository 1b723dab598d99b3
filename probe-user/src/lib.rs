//! The agent as a library.

pub mod config;
pub mod core;
pub mod datapath;
pub mod failover;
pub mod health;
pub mod http1;
pub mod interfaces;
pub mod resolve;
