//! The binary from outside: exit codes and the one line that a person reads.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

const GOOD: &str = "
interfaces: {edge: ['veth*']}
services:
- name: sense
  listeners: ['10.96.0.10:8079']
  endpoints: [{name: sen2, address: '10.0.0.2:8079'}]
  check: {http: {}}
";

fn probe(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_probe"))
        .args(args)
        .env_remove("RUST_LOG")
        .output()
        .expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    (
        status.code().expect("no signal"),
        text(stdout),
        text(stderr),
    )
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.0.path().join("probe.yaml");
        std::fs::write(&path, text).expect("a file");
        path
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

#[test]
fn a_good_configuration_exits_with_0() {
    let folder = Folder::new();
    let file = folder.file(GOOD);
    for args in [
        vec!["check-config", text(&file)],
        vec!["check-config", "--config", text(&file)],
        vec!["check-config", text(&file), "--resolve"],
    ] {
        let (code, out, err) = probe(&args);
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        assert!(out.contains(": good\n"), "{out}");
        assert!(out.contains("tier 0: sen2 at 10.0.0.2:8079"), "{out}");
    }
}

#[test]
fn a_bad_configuration_exits_with_2_and_one_line() {
    let folder = Folder::new();
    let file = folder.file(&GOOD.replace("10.0.0.2:8079", "10.0.0.2:0"));
    for args in [
        vec!["check-config", text(&file)],
        vec!["run", "--config", text(&file)],
    ] {
        let (code, out, err) = probe(&args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert_eq!(err.lines().count(), 1, "{err}");
        let begin = format!(
            "probe: {}: services[0].endpoints[0].address: `10.0.0.2:0`: port 0; accepted: ",
            file.display()
        );
        assert!(err.starts_with(&begin), "{err}");
    }
    let (code, _, err) = probe(&["run", "--config", "/nonexistent/probe.yaml"]);
    assert_eq!(code, 2);
    assert!(
        err.contains("/nonexistent/probe.yaml: cannot read"),
        "{err}"
    );
}

#[test]
fn what_the_machine_lacks_exits_with_2() {
    let folder = Folder::new();
    let file = folder.file(&GOOD.replace("'veth*'", "nosuchiface0"));
    let (code, _, err) = probe(&["run", "--config", text(&file)]);
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("interfaces.edge[0]: `nosuchiface0`: there is no such interface"),
        "{err}"
    );
    // `localhost` is in every hosts file, and nothing that can be steered to.
    let file = folder.file(&GOOD.replace("10.0.0.2:8079", "localhost:8079"));
    let (code, _, err) = probe(&["check-config", text(&file), "--resolve"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("`localhost:8079`: does not resolve"), "{err}");
    // Without --resolve nobody asks, and a start goes on without that endpoint.
    assert_eq!(probe(&["check-config", text(&file)]).0, 0);
}

#[test]
fn a_stopped_agent_is_a_runtime_error() {
    let folder = Folder::new();
    let socket = folder.0.path().join("probe.sock");
    let file = folder.file(GOOD);
    for args in [
        vec!["status", "--socket", text(&socket)],
        vec!["status", "--format", "json", "--socket", text(&socket)],
        vec!["failback", "sense", "--socket", text(&socket)],
        vec!["drain", "sense", "sen2", "--socket", text(&socket)],
        vec![
            "promote",
            "sense",
            "sen1",
            "--dry-run",
            "--socket",
            text(&socket),
        ],
        vec!["events", "--follow", "--socket", text(&socket)],
        vec!["explain", "sense", "--socket", text(&socket)],
        vec!["flows", "--socket", text(&socket)],
        vec!["top", "--socket", text(&socket)],
        vec!["reload", "--socket", text(&socket)],
        vec!["diff", text(&file), "--socket", text(&socket)],
    ] {
        let (code, out, err) = probe(&args);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}");
        assert!(err.starts_with("probe: no agent is running: "), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

/// Two files without an agent: what differs, what a running agent would refuse, and what is wrong.
#[test]
fn differences_of_two_files() {
    let folder = Folder::new();
    let path = |name: &str, text: &str| {
        let path = folder.0.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let old = path("old.yaml", GOOD);
    let same = path("same.yaml", &format!("# the same\n{GOOD}"));
    let (code, out, err) = probe(&["diff", text(&old), text(&same)]);
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "nothing changes\n", "")
    );
    let more = "datapath: {log: debug, flows: 2048}\n";
    let new = path("new.yaml", &format!("{GOOD}{more}"));
    let (code, out, err) = probe(&["diff", text(&old), text(&new)]);
    assert_eq!((code, err.as_str()), (3, ""));
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "+ datapath: {flows: 2048, log: debug}",
            "! datapath.log: a restart brings it"
        ]
    );
    assert!(
        lines[2].starts_with("! datapath.flows: `2048`: cannot change in a running agent: stop"),
        "{out}"
    );
    let (code, out, _) = probe(&["diff", text(&old), text(&new), "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &report["outcome"]), (3, &"refused".into()));
    assert_eq!(report["changes"][0]["path"], "datapath");
    assert_eq!(report["restart_needed"][0], "datapath.log");
    let wrong = path("wrong.yaml", "services: 7");
    let (code, out, err) = probe(&["diff", text(&old), text(&wrong)]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("wrong.yaml: "), "{err}");
}

#[test]
fn usage_errors_exit_with_2() {
    for args in [
        vec![],
        vec!["run"],
        vec!["start"],
        vec!["status", "--format", "xml"],
        vec!["drain", "sense"],
        vec!["explain"],
        vec!["explain", "--packet", "10.0.0.9:1"],
        vec!["flows", "--dry-run"],
        vec!["events", "--since", "yesterday"],
        vec!["watch", "--every", "1ms"],
    ] {
        assert_eq!(probe(&args).0, 2, "{args:?}");
    }
    assert_eq!(probe(&["--version"]).0, 0);
    assert_eq!(probe(&["--help"]).0, 0);
}

/// A place that is no BPF file system: a runtime error, and nothing is left behind.
#[test]
fn no_bpffs_exits_with_1() {
    let folder = Folder::new();
    let bpffs = folder.0.path().join("bpf");
    std::fs::create_dir(&bpffs).expect("a folder");
    let socket = folder.0.path().join("probe.sock");
    let config = format!(
        "{GOOD}datapath: {{bpffs: {}}}\ncontrol: {{socket: {}}}\nmetrics: {{listen: 'off'}}\n",
        bpffs.display(),
        socket.display()
    );
    let file = folder.file(&config);
    let (code, _, err) = probe(&["run", "--config", text(&file)]);
    assert_eq!(code, 1, "{err}");
    let last = err.lines().last().unwrap_or_default();
    // Without root the missing privilege may be found first.
    assert!(
        last.contains("is not a BPF file system") || last.contains("probe needs root"),
        "{err}"
    );
    assert!(!socket.exists());
    assert_eq!(std::fs::read_dir(&bpffs).expect("readable").count(), 0);
}

/// Every verb, as `--help` lists them.
fn verbs() -> Vec<String> {
    let (_, help, _) = probe(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").expect("a list of verbs");
    let list = list.split("\n\n").next().unwrap_or_default();
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    list.lines()
        .filter_map(first)
        .filter(|verb| verb != "help")
        .collect()
}

#[test]
fn the_help_of_every_verb_has_examples() {
    let verbs = verbs();
    assert!(verbs.len() > 6, "{verbs:?}");
    for verb in &verbs {
        let (code, out, _) = probe(&[verb, "--help"]);
        assert_eq!(code, 0, "{verb}");
        let (_, examples) = out.split_once("Examples:\n").expect(verb);
        assert!(examples.contains(&format!("probe {verb}")), "{examples}");
    }
}

/// Shells that are here read their completions; bash is asked what it would complete.
#[test]
fn completions_are_understood_by_the_shells() {
    let folder = Folder::new();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let (code, script, err) = probe(&["completions", shell]);
        assert_eq!((code, err.as_str()), (0, ""), "{shell}");
        for verb in verbs() {
            assert!(script.contains(&verb), "{shell}: {verb}");
        }
        let file = folder.file(&script);
        let Ok(output) = Command::new(shell).arg(check).arg(&file).output() else {
            // Only bash is everywhere.
            assert_ne!(shell, "bash");
            continue;
        };
        assert!(output.status.success(), "{shell}: {output:?}");
    }
    let (_, script, _) = probe(&["completions", "bash"]);
    let ask = format!(
        "{script}\nCOMP_WORDS=(probe failb); COMP_CWORD=1\n_probe probe failb probe\necho \
         \"${{COMPREPLY[@]}}\""
    );
    let output = Command::new("bash").arg("-c").arg(ask).output();
    let output = output.expect("bash runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "failback");
}

#[test]
fn every_verb_has_a_manual_page() {
    let folder = Folder::new();
    let (code, _, err) = probe(&["man", "--output", text(folder.0.path())]);
    assert_eq!((code, err.as_str()), (0, ""));
    for verb in verbs() {
        let path = folder.0.path().join(format!("probe-{verb}.1"));
        let page = std::fs::read_to_string(&path).expect("a page");
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
        assert!(page.contains("Examples:"), "{page}");
        let (code, alone, _) = probe(&["man", &verb]);
        assert_eq!((code, alone), (0, page), "{verb}");
    }
    let (_, page, _) = probe(&["man"]);
    let path = folder.0.path().join("probe.1");
    assert_eq!(std::fs::read_to_string(path).expect("a page"), page);
    let (code, _, err) = probe(&["man", "start"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("accepted: run, check-config, "), "{err}");
}

/// The last line, why the agent ended, is JSON as the others are.
#[test]
fn a_log_in_json_is_json_to_the_end() {
    let folder = Folder::new();
    let file = folder.file(&GOOD.replace("'veth*'", "nosuchiface0"));
    let (code, out, err) = probe(&["run", "--config", text(&file), "--log-format", "json"]);
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    let lines: Vec<serde_json::Value> = err
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let last = lines.last().expect("a line");
    assert_eq!(last["level"], "ERROR");
    assert_eq!(last["code"], 2);
    let message = last["message"].as_str().expect("a message");
    assert!(message.contains("there is no such interface"), "{message}");
    assert!(last["timestamp"].is_string(), "{last}");
    // No colours in a pipe.
    let (_, _, err) = probe(&["run", "--config", text(&file)]);
    assert!(!err.contains('\u{1b}'), "{err}");
}

#[test]
fn the_schema_is_json() {
    let (code, out, err) = probe(&["schema"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let schema: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        schema["required"],
        serde_json::json!(["interfaces", "services"])
    );
}

/// deploy/probe.service starts what this binary takes, and systemd understands it where it is
/// installed.
#[test]
fn the_unit_is_good() {
    let unit = include_str!("../../deploy/probe.service");
    let value = |name: &str| {
        let of = |line: &'static str| line.strip_prefix(name)?.strip_prefix('=');
        unit.lines().find_map(of).expect(name)
    };
    let (program, arguments) = value("ExecStart").split_once(' ').expect("arguments");
    assert_eq!(program, "/usr/bin/probe");
    let arguments: Vec<_> = arguments.split(' ').collect();
    let (file, verb) = arguments.split_last().expect("a file");
    assert_eq!(*file, "/etc/probe/probe.yaml");
    let (code, _, err) = probe(&[verb, &["/nonexistent/probe.yaml"]].concat());
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("/nonexistent/probe.yaml: cannot read"),
        "{err}"
    );
    assert_eq!(value("ExecReload"), "/usr/bin/probe reload");
    let (code, _, err) = probe(&["reload", "--socket", "/nonexistent/probe.sock"]);
    assert_eq!(code, 1, "{err}");
    assert_eq!(value("Type"), "notify");
    // The default place of the control socket.
    assert_eq!(value("RuntimeDirectory"), "probe");

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("probe.service");
    let here = unit.replace(program, env!("CARGO_BIN_EXE_probe"));
    std::fs::write(&path, here).expect("a file");
    let verify = ["verify", "--man=no", "--recursive-errors=no", text(&path)];
    let Ok(output) = Command::new("systemd-analyze").args(verify).output() else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // It also speaks of other units of this machine.
    assert!(!said.contains("probe.service"), "{said}");
    assert!(output.status.success(), "{said}");
}
