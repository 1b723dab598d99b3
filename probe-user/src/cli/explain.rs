//! `probe explain`.

use anyhow::Context as _;

use super::{
    Failure,
    args::{self, Format},
    events::clock,
    print,
};
use crate::{control::client, core::explain};

pub fn run(args: &args::Explain) -> Result<(), Failure> {
    let explained = client::explain(&args.socket, &args.service)?;
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
