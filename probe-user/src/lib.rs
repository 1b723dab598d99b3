//! The agent as a library.
//!
//! Data flows one way: `config` says what is wanted, `health` judges endpoints,
//! `failover` decides (pure), `core` carries it out through `datapath`. `control`
//! and `observe` look on; `cli` and `run` put it together. `import` makes a configuration
//! of another program's.

pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod datapath;
pub mod failover;
pub mod failure;
pub mod health;
pub mod http1;
pub mod import;
pub mod interfaces;
mod log;
pub mod observe;
pub mod reload;
pub mod resolve;
mod run;
