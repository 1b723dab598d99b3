//! `probe status`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::builder::styling::{AnsiColor, Style};

use super::{
    Failure,
    args::{self, Format},
    print,
};
use crate::{
    control::client,
    core::{explain::span, status},
    log,
};

pub fn run(args: &args::Status) -> Result<(), Failure> {
    let status = client::status(&args.socket)?;
    let text = match args.format {
        Format::Json => serde_json::to_string(&status).context("write the status as JSON")? + "\n",
        Format::Human => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
            human(&status, now, log::coloured(&std::io::stdout()))
        }
    };
    print(&text)
}

/// What it runs by, where there is something to say.
fn configuration(config: &status::Configuration, now_ms: u64) -> String {
    let mut text = String::new();
    if let Some(last) = &config.last_reload {
        let ago = span(now_ms.saturating_sub(last.unix_ms));
        text += &match &last.error {
            None => format!("configuration: {} {ago} ago\n", last.result),
            Some(error) => format!(
                "configuration: {} {ago} ago, the one before is in force: {error}\n",
                last.result
            ),
        };
    }
    if !config.restart_needed.is_empty() {
        let fields = config.restart_needed.join(", ");
        text += &format!("configuration: a restart brings {fields}\n");
    }
    text
}

fn lateness(late: status::Lateness) -> String {
    let ms = |micros: u64| format!("{} ms", micros as f64 / 1000.0);
    let within = |micros: Option<u64>| micros.map_or("beyond 1 s".to_owned(), ms);
    format!(
        "checks begin late by {} (median), {} (p99), {:.1} ms at most in the last minutes\n",
        within(late.p50_us),
        within(late.p99_us),
        late.max_us as f64 / 1000.0
    )
}

fn human(status: &status::Status, now_ms: u64, coloured: bool) -> String {
    let ago = |then: u64| span(now_ms.saturating_sub(then));
    let mut text = format!(
        "probe {}, pid {}, up {}\n",
        status.version,
        status.agent.pid,
        ago(status.agent.started_unix_ms)
    );
    if let Some(since) = status.agent.distrust_since_unix_ms {
        text += &format!(
            "endpoints of all hosts are silent for {}: perhaps it is this node; selections are held\n",
            ago(since)
        );
    }
    text += &configuration(&status.config, now_ms);
    if let Some(late) = status.agent.lateness {
        text += &lateness(late);
    }
    if let Some(stretch) = status.agent.stretch.filter(|stretch| *stretch > 1.0) {
        text += &format!(
            "more checks are wanted than `checking` allows: intervals are {stretch:.2} times as long\n"
        );
    }
    for service in &status.services {
        let selection = &service.selection;
        let to = match (service.mode.as_str(), selection.endpoints.as_slice()) {
            ("shadow", []) => "shadow, would refuse".to_owned(),
            ("shadow", serving) => format!("shadow, would go to {}", serving.join(", ")),
            (_, []) => "refuses".to_owned(),
            (_, serving) => format!("-> {}", serving.join(", ")),
        };
        let due = match service.failback.due_unix_ms {
            Some(due) => format!(", fails back in {}", span(due.saturating_sub(now_ms))),
            None => String::new(),
        };
        let ordered = orders(service, now_ms);
        let damped: String = service.failback.damped.iter().map(damped).collect();
        let drains: String = service
            .endpoints
            .iter()
            .filter_map(|endpoint| Some(drains(&endpoint.name, endpoint.drain?, now_ms)))
            .collect();
        text += &format!(
            "\n{} ({}) {to}, {} for {}, switches {}{due}{damped}{drains}{ordered}\n",
            service.name,
            service.listeners.join(", "),
            selection.reason,
            ago(selection.since_unix_ms),
            selection.switches,
        );
        let mut rows = vec![row(&[
            "",
            "ENDPOINT",
            "TIER",
            "WEIGHT",
            "STATE",
            "FOR",
            "LAST CHECK",
            "ADDRESS",
            "FLOWS",
            "PACKETS",
            "BYTES",
            "SIGNALS",
        ])];
        let mut endpoints: Vec<_> = service.endpoints.iter().collect();
        endpoints.sort_by_key(|endpoint| endpoint.tier);
        for endpoint in endpoints {
            let traffic = &endpoint.traffic;
            rows.push(vec![
                if endpoint.serving { "*" } else { "" }.to_owned(),
                endpoint.name.clone(),
                endpoint.tier.to_string(),
                endpoint.weight.to_string(),
                state(endpoint),
                ago(endpoint.since_unix_ms),
                match (&endpoint.verdict, &endpoint.detail) {
                    (Some(verdict), Some(detail)) => format!("{verdict}: {detail}"),
                    _ => "none yet".to_owned(),
                },
                address(endpoint),
                traffic.flows_opened.to_string(),
                (traffic.forward_packets + traffic.reverse_packets).to_string(),
                (traffic.forward_bytes + traffic.reverse_bytes).to_string(),
                signals(endpoint),
            ]);
        }
        text += &table(&rows, |column, cell| match column {
            STATE if coloured => colour(cell),
            _ => None,
        });
    }
    let mut rows = vec![row(&["", "INTERFACE", "ROLE", "TC", "XDP", "DEGRADED"])];
    for interface in &status.interfaces {
        rows.push(vec![
            String::new(),
            interface.name.clone(),
            interface.role.clone(),
            interface.tc.clone().unwrap_or_else(|| "-".to_owned()),
            interface.xdp.clone().unwrap_or_else(|| "-".to_owned()),
            match interface.degraded.as_slice() {
                [] => "-".to_owned(),
                degraded => degraded.join("; "),
            },
        ]);
    }
    if status.interfaces.is_empty() {
        text += "\nno interface is attached\n";
    } else {
        text += "\n";
        text += &table(&rows, |_, _| None);
    }
    let processes = &status.datapath.processes;
    text += &match (&processes.cgroup, &processes.reason) {
        (Some(cgroup), _) if processes.is_root == Some(false) => {
            format!("\nprocesses of the node below cgroup {cgroup} are steered\n")
        }
        (Some(_), _) => "\nprocesses of the node are steered\n".to_owned(),
        (None, Some(reason)) => format!("\nprocesses of the node are not steered: {reason}\n"),
        (None, None) => "\nprocesses of the node are not steered\n".to_owned(),
    };
    if let Some(reason) = &status.datapath.telling.reason {
        text += &format!(
            "idle connections of lost endpoints are reset at their next packet only: {reason}\n"
        );
    }
    text
}

/// What operators ordered of the service as a whole.
pub(super) fn orders(service: &status::Service, now_ms: u64) -> String {
    let by = |of: &status::Ordered| {
        let ago = span(now_ms.saturating_sub(of.since_unix_ms));
        format!("by {} {ago} ago", of.by)
    };
    let mut text = String::new();
    if let Some(promoted) = &service.promoted {
        text += &format!(", {} promoted {}", promoted.what, by(promoted));
    }
    if let Some(frozen) = &service.frozen {
        text += &format!(", frozen {}", by(frozen));
    }
    text
}

/// In HAProxy's words: what operators say comes first.
pub(super) fn state(endpoint: &status::Endpoint) -> String {
    match (endpoint.mode.as_str(), endpoint.state.as_str()) {
        ("maint", _) => "maint".to_owned(),
        ("drain", "up") => "drain".to_owned(),
        ("drain", state) => format!("drain, {state}"),
        (_, state) => state.to_owned(),
    }
}

/// Where it is, or was last.
fn address(endpoint: &status::Endpoint) -> String {
    let resolved = endpoint.resolved.join(", ");
    match (&endpoint.unresolved, resolved.is_empty()) {
        (_, true) => "unknown".to_owned(),
        (Some(_), false) => format!("{resolved} (no longer resolves)"),
        (None, false) => resolved,
    }
}

/// Signs of failure, those that there were.
fn signals(endpoint: &status::Endpoint) -> String {
    let seen: Vec<_> = endpoint
        .signals
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    match seen.as_slice() {
        [] => "-".to_owned(),
        seen => seen.join(", "),
    }
}

/// What an endpoint that was left still has.
fn damped(of: &status::Damped) -> String {
    let times = if of.relapses == 1 { "time" } else { "times" };
    format!(
        ", tier {} waits {} before a fail-back (down again {} {times} soon after one)",
        of.tier,
        span(of.hold_ms),
        of.relapses
    )
}

fn drains(endpoint: &str, drain: status::Drain, now_ms: u64) -> String {
    let flows = match drain.flows {
        Some(flows) => format!("{flows} flows"),
        None => "flows".to_owned(),
    };
    match drain.until_unix_ms {
        None => format!(", {endpoint} drains {flows}"),
        Some(until) if until > now_ms => {
            format!(", {endpoint} drains {flows} for {}", span(until - now_ms))
        }
        Some(_) => format!(", {endpoint} is drained of {flows}"),
    }
}

pub(super) fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// The column of states.
const STATE: usize = 4;

/// As HAProxy's page: green is up, red is down; what no check has judged is neither.
pub(super) fn colour(state: &str) -> Option<Style> {
    let colour = match state {
        "up" => AnsiColor::Green,
        "down" => AnsiColor::Red,
        "unknown" => AnsiColor::Yellow,
        "drain" => AnsiColor::Blue,
        "maint" => AnsiColor::Magenta,
        _ => return None,
    };
    Some(colour.on_default())
}

/// Columns as wide as their widest cell; the last one as it is. Colours take no width.
pub(super) fn table(rows: &[Vec<String>], style: impl Fn(usize, &str) -> Option<Style>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|row| row.get(c));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line += &match style(c, cell) {
                Some(style) => format!("{style}{cell}{style:#}"),
                None => cell.clone(),
            };
            line += &" ".repeat(width - cell.chars().count() + 2);
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{OwnState, TellState};

    #[test]
    fn spans() {
        for (ms, text) in [
            (999, "999ms"),
            (59_999, "59s"),
            (61_000, "1m1s"),
            (3_660_000, "1h1m"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn people_see_what_drains() {
        let mut status = crate::control::tests::example();
        let mut line = |drain| {
            status.services[0].endpoints[1].drain = Some(drain);
            let text = human(&status, 10_001, false);
            text.lines().nth(2).unwrap_or_default().to_owned()
        };
        let drain = status::Drain {
            since_unix_ms: 5000,
            until_unix_ms: None,
            flows: None,
        };
        let head = "sense (10.96.0.10:8079) -> sen2, initial for 9s, switches 0";
        assert_eq!(line(drain), format!("{head}, sen1 drains flows"));
        let drain = status::Drain {
            until_unix_ms: Some(65_001),
            flows: Some(12),
            ..drain
        };
        assert_eq!(line(drain), format!("{head}, sen1 drains 12 flows for 55s"));
        let drain = status::Drain {
            until_unix_ms: Some(10_001),
            ..drain
        };
        assert_eq!(line(drain), format!("{head}, sen1 is drained of 12 flows"));
    }

    #[test]
    fn people_see_what_was_ordered() {
        let mut status = crate::control::tests::example();
        let order = |what: &str| status::Ordered {
            what: what.to_owned(),
            since_unix_ms: 5001,
            by: crate::core::order::Who {
                uid: 1000,
                user: Some("ada".to_owned()),
                pid: Some(9),
            },
        };
        let service = &mut status.services[0];
        service.promoted = Some(order("sen2"));
        service.frozen = Some(order("frozen"));
        service.endpoints[1].mode = "maint".to_owned();
        let text = human(&status, 10_001, false);
        assert!(
            text.contains(", sen2 promoted by ada (pid 9) 5s ago, frozen by ada (pid 9) 5s ago\n"),
            "{text}"
        );
        assert!(
            text.contains("   sen1      0     1       maint  "),
            "{text}"
        );
    }

    #[test]
    fn people_see_whether_processes_of_the_node_are_steered() {
        let mut status = crate::control::tests::example();
        let mut line = |state: OwnState| {
            status.datapath.processes = status::Processes::of(&state);
            human(&status, 10_001, false)
                .lines()
                .last()
                .map(str::to_owned)
        };
        let attached = |is_root| OwnState::Attached {
            cgroup: "/cg".into(),
            is_root,
            inherited: false,
        };
        for (state, text) in [
            (OwnState::Off, "processes of the node are not steered"),
            (attached(true), "processes of the node are steered"),
            (
                attached(false),
                "processes of the node below cgroup /cg are steered",
            ),
            (
                OwnState::Missing("why".to_owned()),
                "processes of the node are not steered: why",
            ),
        ] {
            assert_eq!(line(state).as_deref(), Some(text));
        }
    }

    #[test]
    fn people_see_when_idle_connections_are_not_told() {
        let mut status = crate::control::tests::example();
        let last = |status: &status::Status| {
            human(status, 10_001, false)
                .lines()
                .last()
                .map(str::to_owned)
        };
        status.datapath.telling = status::Telling::of(&TellState::Ready);
        let before = last(&status);
        status.datapath.telling = status::Telling::of(&TellState::Missing("why".to_owned()));
        let expected =
            "idle connections of lost endpoints are reset at their next packet only: why";
        assert_eq!(last(&status).as_deref(), Some(expected));
        assert_ne!(before, last(&status));
    }

    #[test]
    fn people_see_a_table() {
        let mut status = crate::control::tests::example();
        status.interfaces.push(status::Interface {
            name: "veth0".to_owned(),
            ifindex: 3,
            role: "edge".to_owned(),
            tc: Some("tcx".to_owned()),
            xdp: None,
            degraded: Vec::new(),
        });
        let signals = [
            ("endpoint_refused", 3),
            ("sentinel_closed", 1),
            ("sentinel_reset", 0),
        ];
        status.services[0].endpoints[0].signals =
            signals.map(|(kind, count)| (kind.to_owned(), count)).into();
        let expected = "\
probe 0.1.0, pid 7, up 10s

sense (10.96.0.10:8079) -> sen2, initial for 9s, switches 0
   ENDPOINT  TIER  WEIGHT  STATE  FOR  LAST CHECK         ADDRESS     FLOWS  PACKETS  BYTES  SIGNALS
*  sen2      0     1       up     9s   ok: 200 in 0.4 ms  10.0.0.1:1  0      0        0      endpoint_refused 3, sentinel_closed 1
   sen1      0     1       up     9s   ok: 200 in 0.4 ms  10.0.0.1:1  0      0        0      -

  INTERFACE  ROLE  TC   XDP  DEGRADED
  veth0      edge  tcx  -    -

processes of the node are not steered
";
        assert_eq!(human(&status, 10_001, false), expected);
        // Colours change nothing but the colour.
        let coloured = human(&status, 10_001, true);
        let up = "\u{1b}[32mup\u{1b}[0m     9s";
        assert_eq!(coloured.matches(up).count(), 2, "{coloured}");
        let plain = coloured.replace("\u{1b}[32m", "").replace("\u{1b}[0m", "");
        assert_eq!(plain, expected);
    }
}
