//! Steering over tables made of std's hash maps.
//!
//! A part for each subject; `host` has the tables and `segments` what all of them send.

use super::*;
use crate::abi::{
    Action, Address, Decision, ENDPOINT_DOWN, ENDPOINT_DRAINED, ENDPOINT_UP, Endpoint, EventKind,
    FAMILY_V4, FAMILY_V6, FORWARD_DSR, FORWARD_FULL_NAT, LINES_A_POOL, LISTENER_OWN, Listener,
    ListenerKey, NO_ENDPOINT, PortLine, RecentSet, V4, V6,
};
use crate::packet::parse::{ACK, FIN, RST, SYN, TCP, UDP};
use host::{
    BACKUP, BACKUP_ADDR, CLIENT, Host, MASTER, MASTER_ADDR, OTHER_VIP, SOURCE, THIRD, VIP, alone,
    endpoint, follow_udp, full_nat, listener_key, ring_of, spread_over, steer_to,
};
use segments::{
    connect, datagram, direct, forward, from_client, from_master, from_port, goes_to, reverse,
    segment,
};
use std::{collections::HashMap, vec::Vec};

mod affinity;
mod alone;
mod clash;
mod connection;
mod end;
mod errors;
mod flood;
mod fragments;
mod full_nat;
mod host;
mod paired;
mod process;
mod redispatch;
mod segments;
mod server_return;
mod silence;
mod spread;
mod stays;
