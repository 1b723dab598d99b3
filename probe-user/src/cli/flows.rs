//! `probe flows`.

use anyhow::Context as _;

use super::{
    Failure,
    args::{self, Format},
    print,
    status::{row, table},
};
use crate::{
    control::{client, flows::Listed},
    core::explain::span,
};

pub fn run(args: &args::Flows) -> Result<(), Failure> {
    let mut query = Vec::new();
    for (name, value) in [
        ("service", &args.service),
        ("endpoint", &args.endpoint),
        ("client", &args.client),
        ("vip", &args.vip),
        ("stage", &args.stage),
    ] {
        query.extend(value.iter().map(|value| (name, value.clone())));
    }
    let limit = if args.count { Some(0) } else { args.limit };
    query.extend(limit.map(|limit| ("limit", limit.to_string())));
    let listed: Listed = client::get_with(&args.socket, "/v1/flows", &query)?;
    let text = match args.format {
        Format::Json => serde_json::to_string(&listed).context("write the answer as JSON")? + "\n",
        Format::Human if args.count => counts(&listed),
        Format::Human => human(&listed),
    };
    print(&text)
}

fn human(listed: &Listed) -> String {
    let mut rows = vec![row(&[
        "CLIENT",
        "VIP",
        "SERVICE",
        "ENDPOINT",
        "STAGE",
        "IDLE",
        "PORT SEEN",
    ])];
    for flow in &listed.flows {
        rows.push(vec![
            flow.client.clone(),
            flow.vip.clone(),
            flow.service.clone(),
            flow.endpoint.clone(),
            flow.stage.clone(),
            span(flow.idle_ms),
            flow.seen_port
                .map_or_else(|| "-".to_owned(), |port| port.to_string()),
        ]);
    }
    let mut text = table(&rows, |_, _| None);
    let shown = listed.flows.len() as u64;
    if shown < listed.count {
        text += &format!("{shown} of {} flows; --limit shows more\n", listed.count);
    } else {
        text += &format!("{shown} flows\n");
    }
    text
}

fn counts(listed: &Listed) -> String {
    let mut rows = vec![row(&["SERVICE", "ENDPOINT", "FLOWS"])];
    for (service, endpoints) in &listed.by_endpoint {
        for (endpoint, count) in endpoints {
            rows.push(vec![service.clone(), endpoint.clone(), count.to_string()]);
        }
    }
    table(&rows, |_, _| None) + &format!("{} flows\n", listed.count)
}
