//! Network namespaces with real servers, clients and faults. One program, so that
//! the lab is linked once.

mod agents;
mod beside;
mod bystander;
mod checks;
mod cut_off;
mod detach;
mod dsr;
mod failback;
mod failover;
mod firewall;
mod full_nat;
mod interfaces;
mod kernels;
mod lab;
mod life;
mod names;
mod narrow;
mod operate;
mod own;
mod peers;
mod primaries;
mod protocols;
mod redispatch;
mod refusals;
mod release;
mod reload;
mod restart;
mod rig;
mod sentinel;
mod steer;
mod supervised;
mod tiers;
