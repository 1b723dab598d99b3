//! The core with a recorder in the kernel's place: what is written, in which order.

mod attach;
mod bench;
mod cut;
mod damping;
mod doubt;
mod drain;
mod moved;
mod names;
mod orders;
mod questions;
mod recorder;
mod reload;
mod signals;
mod switch;
mod tiers;
mod truth;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{order::Wish, *};
use crate::{
    config,
    datapath::{
        AppliedService, Choice, EndpointId, EndpointPlan, Mark, ServiceId, ServicePlan, Silent,
        TcWay, XdpWay,
    },
    failover::{NoFailback, orders::Mode},
    health::{Kind, Saw, scheduler::Standing},
    interfaces::Interface,
    resolve::{Unresolved, literal},
};
use bench::{Bench, both_up, config, interface, mode, resolved};
use recorder::{
    Did::{
        self, Apply, CutOff, Detach, Doubts, Down, Drained, FailedOver, Forget, Heard, Holds,
        Readdress, Refuse, Rest, Select, Spread, Up, Weigh,
    },
    Ears, Recorder, failure,
};
