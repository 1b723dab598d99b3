//! What the paths ask the kernel, as traits, so that tests need none.

use std::net::SocketAddr;

use crate::datapath::{self, EndpointId, Flow, Flows, Outcome, Program, Trial, Vip};

/// Where flows are read.
pub trait Table: Send + Sync {
    /// The first so many that are wanted, see [`Flows::list`].
    fn list(
        &self,
        most: usize,
        wanted: &mut dyn FnMut(&Flow) -> bool,
    ) -> Result<Vec<Flow>, datapath::Error>;

    /// See [`Flows::bury`].
    fn bury(&self, flow: &Flow, grave: EndpointId) -> bool;
}

impl Table for Flows {
    fn list(
        &self,
        most: usize,
        wanted: &mut dyn FnMut(&Flow) -> bool,
    ) -> Result<Vec<Flow>, datapath::Error> {
        Self::list(self, most, wanted)
    }

    fn bury(&self, flow: &Flow, grave: EndpointId) -> bool {
        Self::bury(self, flow, grave)
    }
}

/// Where packets are tried.
pub trait Tries: Send + Sync {
    /// See [`Trial::first_packet`].
    fn first_packet(
        &self,
        client: SocketAddr,
        vip: Vip,
    ) -> Result<Vec<(Program, Outcome)>, datapath::Error>;
}

impl Tries for Trial {
    fn first_packet(
        &self,
        client: SocketAddr,
        vip: Vip,
    ) -> Result<Vec<(Program, Outcome)>, datapath::Error> {
        Self::first_packet(self, client, vip)
    }
}
