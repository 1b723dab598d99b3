//! What deploy/ brings for monitoring, against what the agent really tells: a dashboard or an
//! alert that names something else shows nothing, for ever, and nobody notices.
//!
//! promtool, of Prometheus itself, is the second opinion: on both formats, on every expression,
//! and on what the alerts do with made-up series.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use regex::Regex;
use serde_json::{Value, json};

use super::{Format, tests::eventful};

/// Metrics by name, and of each its labels and their values.
type Told = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// Of every scrape.
const EVERYWHERE: [&str; 2] = ["job", "instance"];
/// Labels whose values are names from the configuration.
const NAMES: [&str; 4] = ["service", "endpoint", "job", "instance"];

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(file)
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&fs::read_to_string(deploy(file)).unwrap()).unwrap()
}

fn told() -> Told {
    let label = Regex::new(r#"(\w+)="([^"]*)""#).unwrap();
    let mut told = Told::new();
    for line in eventful().render(Format::Text).unwrap().lines() {
        let Some((series, _)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let name = series.split('{').next().unwrap();
        let labels = told.entry(name.to_owned()).or_default();
        for found in label.captures_iter(series) {
            let values = labels.entry(found[1].to_owned()).or_default();
            values.insert(found[2].to_owned());
        }
    }
    // Prometheus' own, about each target.
    told.insert("up".to_owned(), BTreeMap::new());
    told
}

/// What an expression names that does not exist.
fn faults(expr: &str, told: &Told) -> Vec<String> {
    let selector = Regex::new(r"\b((?:probe|process)_\w+|up\b)\s*(?:\{([^}]*)\})?").unwrap();
    let matcher = Regex::new(r#"(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)""#).unwrap();
    let grouping =
        Regex::new(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)").unwrap();
    let mut faults = Vec::new();
    let mut known: BTreeSet<&str> = EVERYWHERE.into();
    for found in selector.captures_iter(expr) {
        let Some(labels) = told.get(&found[1]) else {
            faults.push(format!("no metric {}", &found[1]));
            continue;
        };
        known.extend(labels.keys().map(String::as_str));
        let matchers = found.get(2).map_or("", |inside| inside.as_str());
        for matched in matcher.captures_iter(matchers) {
            let (label, operator, value) = (&matched[1], &matched[2], &matched[3]);
            let values = labels.get(label);
            if values.is_none() && !EVERYWHERE.contains(&label) {
                faults.push(format!("{} has no label {label}", &found[1]));
            } else if !NAMES.contains(&label)
                && !operator.ends_with('~')
                && !values.is_some_and(|values| values.contains(value))
            {
                faults.push(format!("{} has no {label}=\"{value}\"", &found[1]));
            }
        }
    }
    if !selector.is_match(expr) {
        faults.push("names no metric at all".to_owned());
    }
    for group in grouping.captures_iter(expr) {
        for label in group[1].split(',').map(str::trim).filter(|l| !l.is_empty()) {
            if !known.contains(label) {
                faults.push(format!("groups by {label}, which none of its metrics has"));
            }
        }
    }
    faults
}

fn alerts() -> Vec<Value> {
    let groups = yaml("alerts.yaml")["groups"].as_array().unwrap().clone();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap());
    rules.cloned().collect()
}

/// Every expression of the dashboard, with where it stands.
fn dashboard() -> Vec<(String, String)> {
    let file = fs::read_to_string(deploy("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&file).unwrap();
    let mut exprs = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().unwrap().to_owned();
            exprs.push((title, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        let expr = annotation["expr"].as_str().unwrap().to_owned();
        exprs.push(("annotation".to_owned(), expr));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        // label_values(SERIES, LABEL) is Grafana's, the series is an expression.
        let query = variable["definition"].as_str().unwrap_or_default();
        if let Some(inside) = query.strip_prefix("label_values(") {
            let (series, label) = inside.trim_end_matches(')').rsplit_once(", ").unwrap();
            let expr = format!("count by ({label}) ({series})");
            exprs.push((variable["name"].to_string(), expr));
        }
    }
    exprs
}

#[test]
fn alerts_and_dashboard_name_only_what_exists() {
    let told = told();
    for (wrong, fault) in [
        ("probe_chekcs_total", "no metric probe_chekcs_total"),
        (
            r#"probe_checks_total{verdit="ok"}"#,
            "probe_checks_total has no label verdit",
        ),
        (
            r#"probe_checks_total{verdict="fine"}"#,
            "probe_checks_total has no verdict=\"fine\"",
        ),
        (
            "sum by (tier) (probe_checks_total)",
            "groups by tier, which none of its metrics has",
        ),
        ("vector(1)", "names no metric at all"),
    ] {
        assert!(faults(wrong, &told).contains(&fault.to_owned()), "{wrong}");
    }
    let of_alerts = alerts().into_iter().map(|alert| {
        let text = |key: &str| alert[key].as_str().unwrap().to_owned();
        (text("alert"), text("expr"))
    });
    for (place, expr) in of_alerts.chain(dashboard()) {
        assert_eq!(faults(&expr, &told), [""; 0], "{place}: {expr}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_a_trial() {
    let runbook = fs::read_to_string(deploy("RUNBOOK.md")).unwrap();
    let trials = fs::read_to_string(deploy("alerts.test.yaml")).unwrap();
    let headings: BTreeSet<_> = runbook
        .lines()
        .filter_map(|l| l.strip_prefix("## "))
        .collect();
    let names: Vec<_> = alerts()
        .iter()
        .map(|alert| alert["alert"].as_str().unwrap().to_owned())
        .collect();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let link = format!("deploy/RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], link.as_str(), "{name}");
        assert!(headings.contains(name), "{name}");
        // One in which it fires.
        let fires = format!(r"alertname: {name}\n.*\n +exp_alerts:\n +- exp_labels");
        assert!(Regex::new(&fires).unwrap().is_match(&trials), "{name}");
    }
    assert_eq!(headings, names.iter().map(String::as_str).collect());
    // The operator's resource holds the same.
    assert_eq!(
        yaml("prometheusrule.yaml")["spec"]["groups"],
        yaml("alerts.yaml")["groups"]
    );
}

/// Runs promtool, or says that it is not there.
fn promtool(arguments: &[&str], input: &str) -> Option<Output> {
    let child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let reason = format!("needs promtool (Debian's package prometheus): {error}");
            assert!(
                std::env::var_os("CI").is_none(),
                "{reason}, and CI allows no skip"
            );
            println!("SKIPPED: {reason}");
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // One that reads no input has closed it.
        let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Some(output)
}

fn said(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}

#[test]
fn promtool_reads_the_text_and_finds_no_fault_with_names() {
    let text = eventful().render(Format::Text).unwrap();
    let Some(output) = promtool(&["check", "metrics"], &text) else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "");
}

#[test]
fn promtool_reads_openmetrics() {
    let text = eventful().render(Format::OpenMetrics).unwrap();
    // It imports history, so each sample needs its time.
    let mut samples = 0;
    let mut timed = String::new();
    for line in text.lines() {
        timed.push_str(line);
        if !line.starts_with('#') {
            samples += 1;
            timed.push_str(" 1700000000");
        }
        timed.push('\n');
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, blocks) = (folder.path().join("in"), folder.path().join("out"));
    fs::write(&file, timed).unwrap();
    let (file, blocks) = (file.to_str().unwrap(), blocks.to_str().unwrap());
    let import = ["tsdb", "create-blocks-from", "openmetrics", file, blocks];
    let Some(output) = promtool(&import, "") else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    let meta = fs::read_dir(blocks).unwrap().find_map(|block| {
        let meta = fs::read_to_string(block.unwrap().path().join("meta.json")).ok()?;
        serde_json::from_str::<Value>(&meta).ok()
    });
    assert_eq!(meta.unwrap()["stats"]["numSamples"], samples);
}

#[test]
fn promtool_tries_the_alerts() {
    let (rules, trials) = (deploy("alerts.yaml"), deploy("alerts.test.yaml"));
    for arguments in [
        ["check", "rules", rules.to_str().unwrap()],
        ["test", "rules", trials.to_str().unwrap()],
    ] {
        let Some(output) = promtool(&arguments, "") else {
            return;
        };
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn promtool_reads_the_dashboard() {
    let rule = |(number, (place, expr)): (usize, (String, String))| {
        let mut expr = expr.replace("$job", ".*");
        for (variable, value) in [
            ("$instance", ".*"),
            ("$service", ".*"),
            ("$__rate_interval", "1m"),
            ("$__interval", "1m"),
            ("$__range", "1h"),
        ] {
            expr = expr.replace(variable, value);
        }
        assert!(!expr.contains('$'), "{place}: {expr}");
        json!({"record": format!("dashboard:{number}"), "expr": expr})
    };
    let rules: Vec<_> = dashboard().into_iter().enumerate().map(rule).collect();
    assert!(rules.len() > 40, "{}", rules.len());
    let count = rules.len();
    let file = tempfile::NamedTempFile::new().unwrap();
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    // JSON is YAML.
    fs::write(file.path(), groups.to_string()).unwrap();
    let Some(output) = promtool(&["check", "rules", file.path().to_str().unwrap()], "") else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    let found = format!("{count} rules found");
    assert!(said(&output).contains(&found), "{}", said(&output));
}
