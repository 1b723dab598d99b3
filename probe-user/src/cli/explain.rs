//! `probe explain`.

use anyhow::{Context as _, anyhow};

use super::{
    Failure,
    args::{self, Format},
    events::clock,
    print,
};
use crate::{
    control::{client, packet::Answer},
    core::explain,
};

pub fn run(args: &args::Explain) -> Result<(), Failure> {
    match (&args.service, args.packet.as_deref()) {
        (Some(service), _) => of_service(args, service),
        (None, Some([src, dst])) => of_packet(args, src, dst),
        (None, _) => Err(anyhow!("neither a service nor a packet").into()),
    }
}

fn of_packet(args: &args::Explain, src: &str, dst: &str) -> Result<(), Failure> {
    let query = [("src", src.to_owned()), ("dst", dst.to_owned())];
    let answer: Answer = client::post_with(&args.socket, "/v1/explain/packet", &query)?;
    let text = match args.format {
        Format::Json => serde_json::to_string(&answer).context("write the answer as JSON")? + "\n",
        Format::Human => packet(&answer),
    };
    print(&text)
}

fn packet(answer: &Answer) -> String {
    let mut text = format!(
        "{} -> {}: {} listens there\n",
        answer.src, answer.dst, answer.listener
    );
    for tried in &answer.outcomes {
        let place = match tried.program.as_str() {
            "xdp" => "XDP, at uplinks",
            _ => "TC, at edges",
        };
        let to = match (&tried.to, &tried.endpoint) {
            (Some(to), Some(endpoint)) => format!(" to {endpoint} ({to})"),
            (Some(to), None) => format!(" to {to}"),
            (None, _) => String::new(),
        };
        let from = tried.from.as_ref().map(|from| format!(" from {from}"));
        text += &format!(
            "  {place}: {}{to}{}\n",
            tried.outcome,
            from.unwrap_or_default()
        );
    }
    for note in &answer.notes {
        text += &format!("note: {note}\n");
    }
    text
}

fn of_service(args: &args::Explain, service: &str) -> Result<(), Failure> {
    let explained = client::explain(&args.socket, service)?;
    let text = match args.format {
        Format::Json => {
            serde_json::to_string(&explained).context("write the answer as JSON")? + "\n"
        }
        Format::Human => human(&explained),
    };
    print(&text)
}

fn human(explained: &explain::Service) -> String {
    let status = &explained.status;
    let to = match status.selection.endpoints.as_slice() {
        [] => "nobody (refused)".to_owned(),
        to => to.join(", "),
    };
    let mut text = format!(
        "{} ({}): new connections go to {to}\n",
        status.name,
        status.listeners.join(", ")
    );
    for sentence in &explained.because {
        text += &format!("  {sentence}\n");
    }
    let rules = &explained.rules;
    text += &format!(
        "\nrules: rise {}, fall {}, inter {} ms (fastinter {}, downinter {}), all_down {}\n",
        rules.rise,
        rules.fall,
        rules.inter_ms,
        rules.fastinter_ms,
        rules.downinter_ms,
        rules.all_down
    );
    let failback = match (status.failback.hold_ms, status.failback.max_hold_ms) {
        (Some(hold), Some(most)) => {
            format!("{}, hold {hold} ms up to {most} ms", status.failback.mode)
        }
        _ => status.failback.mode.clone(),
    };
    text += &format!(
        "       failback {failback}; on_marked_down {}, on_failback {}; observe {}, sentinel {}{}\n",
        rules.on_marked_down,
        rules.on_failback,
        rules.observe,
        if rules.sentinel { "on" } else { "off" },
        if rules.single_writer {
            ", single_writer"
        } else {
            ""
        }
    );
    for endpoint in &explained.endpoints {
        text += &format!("\n{}: checks, the last ones last\n", endpoint.name);
        for run in &endpoint.history {
            text += &format!(
                "  {}  {} x {}\n",
                clock(run.since_unix_ms),
                run.checks,
                run.verdict
            );
        }
        if endpoint.history.is_empty() {
            text += "  none\n";
        }
    }
    text
}
