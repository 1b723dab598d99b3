//! `/v1/explain/packet`: what the datapath does with a client's first packet.

use std::{net::SocketAddr, sync::Arc};

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};

use super::{
    api::{Api, Asked, Fault},
    kernel::Tries,
};
use crate::{
    core::status::Status,
    datapath::{Outcome, Program, Vip},
};

/// Which packet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packet {
    /// The client, with its port.
    src: SocketAddr,
    /// Where it connects to; with `/udp` a datagram.
    dst: String,
}

/// What becomes of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    pub src: String,
    pub dst: String,
    /// Whose address that is.
    pub listener: String,
    /// By program.
    pub outcomes: Vec<Tried>,
    /// What a trial cannot tell.
    pub notes: Vec<String>,
}

/// What one program does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tried {
    /// `tc` at edges, or `xdp` at uplinks.
    pub program: String,
    /// `passed` unchanged, `translated` and left to the kernel's forwarding, `sent` on from
    /// there, `refused` or `dropped`.
    pub outcome: String,
    /// Where it goes then.
    pub to: Option<String>,
    /// Whose address that is.
    pub endpoint: Option<String>,
    /// The source, if that is another one.
    pub from: Option<String>,
}

/// `POST /v1/explain/packet`.
pub(super) async fn explain(
    State(api): State<Api>,
    Asked(packet): Asked<Packet>,
) -> Result<Json<Answer>, Fault> {
    let bad = |told: String| Fault(StatusCode::BAD_REQUEST, told);
    let vip: Vip = packet.dst.parse().map_err(|_| {
        bad(format!(
            "dst: `{}`: accepted: ADDRESS:PORT, with /udp for a datagram",
            packet.dst
        ))
    })?;
    if vip.address.is_ipv4() != packet.src.is_ipv4() {
        return Err(bad("src and dst are of two address families".to_owned()));
    }
    let status = api.sources.status().await?;
    let tries: Arc<dyn Tries> = api.trial.clone();
    let src = packet.src;
    let done = tokio::task::spawn_blocking(move || tries.first_packet(src, vip)).await;
    let done = done
        .map_err(|error| error.to_string())
        .and_then(|done| done.map_err(|error| error.to_string()))
        .map_err(|error| Fault(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    let outcomes = done.into_iter();
    Ok(Json(Answer {
        src: src.to_string(),
        dst: vip.to_string(),
        listener: listener(&status, vip),
        outcomes: outcomes
            .map(|(program, outcome)| told(&status, src, program, &outcome))
            .collect(),
        notes: vec![
            "it counts as a packet, and leaves a note that is soon forgotten; nothing is sent"
                .to_owned(),
            "routes and neighbours are not looked at where the kernel forwards; processes of this \
             node are steered at connect, which cannot be tried"
                .to_owned(),
        ],
    }))
}

fn listener(status: &Status, vip: Vip) -> String {
    let (shown, address) = (vip.to_string(), vip.address.to_string());
    for service in &status.services {
        if service.listeners.contains(&shown) {
            return format!("service {}", service.name);
        }
        for endpoint in &service.endpoints {
            if endpoint.listeners.contains(&shown) {
                return format!("always {}/{}", service.name, endpoint.name);
            }
            if endpoint.resolved.contains(&address) {
                return format!("{}/{}'s own address", service.name, endpoint.name);
            }
        }
    }
    "nobody".to_owned()
}

fn told(status: &Status, src: SocketAddr, program: Program, outcome: &Outcome) -> Tried {
    let (word, ends) = match outcome {
        Outcome::Passed => ("passed", None),
        Outcome::Translated(ends) => ("translated", Some(ends)),
        Outcome::Sent(ends) => ("sent", Some(ends)),
        Outcome::Refused => ("refused", None),
        Outcome::Dropped => ("dropped", None),
    };
    let to = ends.map(|ends| ends.dst.to_string());
    let endpoint = to.as_ref().and_then(|to| {
        let services = status.services.iter();
        let mut all = services.flat_map(|of| of.endpoints.iter().map(move |e| (of, e)));
        let found = all.find(|(_, endpoint)| endpoint.resolved.contains(to));
        found.map(|(service, endpoint)| format!("{}/{}", service.name, endpoint.name))
    });
    Tried {
        program: match program {
            Program::Tc => "tc",
            Program::Xdp => "xdp",
        }
        .to_owned(),
        outcome: word.to_owned(),
        to,
        endpoint,
        from: ends
            .filter(|ends| ends.src != src)
            .map(|ends| ends.src.to_string()),
    }
}
