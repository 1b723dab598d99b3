//! What the agent refuses to start with: one clear message, the right exit code,
//! and a kernel that was not touched.

use std::{fs, os::unix::process::CommandExt, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Agent, Lab, Namespace, Process, Server, Way, agent,
    client::get,
    foreign::{Mode, xdp_off, xdp_pass},
    kernel::traces,
    privileged,
    server::binary,
    topology::{MASTER_V4, VIP_V4},
    until,
    wait::{patience, until_true},
};
use serde_json::{Value, json};

/// Starts an agent that must end by itself and touch nothing.
fn refused(lab: &Lab, what: &str, config: &Value, code: i32, parts: &[&str]) -> Result<()> {
    let before = traces(&lab.node)?;
    let mut agent = Agent::new(lab, config, &[])?;
    agent.launch()?;
    let (status, printed) = agent.wait_end().with_context(|| what.to_owned())?;
    ensure!(status.code() == Some(code), "{what}: {status}: {printed}");
    for part in parts {
        ensure!(
            printed.contains(part),
            "{what}: no {part:?} in the message: {printed}"
        );
    }
    let after = traces(&lab.node)?;
    ensure!(before == after, "{what}: {before:#?}\n{after:#?}");
    Ok(())
}

/// A mistake, and what the message must hold: the field, and the value.
struct Mistake {
    what: &'static str,
    make: fn(&mut Value),
    parts: &'static [&'static str],
}

const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "unknown field",
        make: |config| config["services"][0]["chek"] = json!({}),
        parts: &["chek"],
    },
    Mistake {
        what: "listener twice in a service",
        make: |config| {
            config["services"][0]["listeners"] = json!(["10.96.0.10:8079", "10.96.0.10:8079"]);
        },
        parts: &["listeners", "10.96.0.10:8079"],
    },
    Mistake {
        what: "listener of a service also of an endpoint",
        make: |config| {
            config["services"][0]["endpoints"][0]["listeners"] = json!(["10.96.0.10:8079"]);
        },
        parts: &["listeners", "10.96.0.10:8079"],
    },
    Mistake {
        what: "endpoint without a port",
        make: |config| config["services"][0]["endpoints"][0]["address"] = json!("10.2.0.2"),
        parts: &["address", "10.2.0.2"],
    },
    Mistake {
        what: "port 0",
        make: |config| config["services"][0]["listeners"] = json!(["10.96.0.10:0"]),
        parts: &["listeners", "10.96.0.10:0"],
    },
    Mistake {
        what: "interval 0",
        make: |config| config["services"][0]["check"]["inter"] = json!("0ms"),
        parts: &["inter", "0ms"],
    },
    Mistake {
        what: "timeout 0",
        make: |config| config["services"][0]["check"]["timeout"] = json!("0s"),
        parts: &["timeout", "0s"],
    },
    Mistake {
        what: "rise 0",
        make: |config| config["services"][0]["check"]["rise"] = json!(0),
        parts: &["rise", "0"],
    },
    Mistake {
        what: "tier gap",
        make: |config| config["services"][0]["endpoints"][1]["tier"] = json!(2),
        parts: &["tier", "2"],
    },
    Mistake {
        what: "a weight out of range",
        make: |config| config["services"][0]["endpoints"][1]["weight"] = json!(257),
        parts: &["weight", "257"],
    },
    Mistake {
        what: "another port behind direct server return",
        make: |config| {
            config["services"][0]["forward"] = json!("dsr");
            config["services"][0]["listeners"] = json!(["10.96.0.10:80"]);
        },
        parts: &["endpoints[0].address", "dsr", "port 80,"],
    },
    Mistake {
        what: "invalid regex",
        make: |config| {
            config["services"][0]["check"]["http"]["expect"]["body"] = json!({"regex": "ver(sion"});
        },
        parts: &["regex", "ver(sion"],
    },
    Mistake {
        what: "missing interface",
        make: |config| config["interfaces"]["uplink"] = json!(["nosuch0"]),
        parts: &["interfaces", "nosuch0"],
    },
];

#[test]
fn mistakes_in_the_configuration() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        for mistake in MISTAKES {
            let mut config = agent::config(&lab);
            (mistake.make)(&mut config);
            refused(&lab, mistake.what, &config, 2, mistake.parts)?;
            refused(&lab, mistake.what, &config, 2, &["probe.yaml"])?;
        }
        Ok(())
    });
}

#[test]
fn mistakes_do_not_disturb_what_runs() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _master = Server::start(&lab, &lab.master)?;
        let good = agent::config(&lab);
        let mut agent = Agent::start(&lab, &good)?;
        agent.wait_selected("master")?;
        agent.kill()?;
        for mistake in MISTAKES {
            let mut config = good.clone();
            (mistake.make)(&mut config);
            refused(&lab, mistake.what, &config, 2, mistake.parts)?;
        }
        let answer = get(&lab.client, VIP_V4, "/")?;
        ensure!(
            answer.is_ok_and(|answer| answer.body == "master"),
            "steering stays"
        );
        Ok(())
    });
}

#[test]
fn no_bpffs() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let folder = lab.file("not-a-bpffs");
        fs::create_dir(&folder)?;
        let mut config = agent::config(&lab);
        config["datapath"] = json!({"bpffs": folder});
        refused(&lab, "no bpffs", &config, 1, &["bpf", "mount"])
    });
}

/// With `auto` it is no reason to refuse, see [`crate::beside`].
#[test]
fn an_ordered_mode_of_xdp_where_somebody_else_is() {
    privileged(|| {
        let lab = Lab::new(Way::Uplink)?;
        let _master = Server::start(&lab, &lab.master)?;
        for there in [Mode::Native, Mode::Generic] {
            xdp_pass(&lab.node, "up0", there)?;
            let mode = format!("{} mode", there.name());
            let way_out = "datapath.xdp: auto";
            for ordered in ["native", "generic"] {
                let mut config = agent::config(&lab);
                config["datapath"] = json!({"xdp": ordered});
                let parts = ["up0", "foreign", &mode, way_out];
                refused(&lab, ordered, &config, 1, &parts)?;
            }
            let answer = get(&lab.client, MASTER_V4, "/")?;
            ensure!(answer.is_ok(), "the foreign program still passes");
            xdp_off(&lab.node, "up0", there)?;
        }
        Ok(())
    });
}

/// A folder of the node alone that needs no privilege to read.
fn open_folder(lab: &Lab) -> Result<()> {
    lab.node
        .ask("mount", &["-t", "tmpfs", "-o", "mode=0755", "open", "/mnt"])?;
    Ok(())
}

/// A `probe run` whose configuration anybody may read, as this caller.
fn run_as(lab: &Lab, config: &Value, drop: impl Fn(&mut Command)) -> Result<Process> {
    let text = serde_json::to_string(config)?;
    let program = binary("probe", "PROBE_BIN")?;
    lab.node.run(|| {
        fs::write("/mnt/probe.yaml", text)?;
        fs::copy(&program, "/mnt/probe")?;
        Ok(())
    })?;
    let mut command = command_of(&lab.node);
    drop(&mut command);
    Process::start("probe", command)
}

fn command_of(node: &Arc<Namespace>) -> Command {
    let mut command = node.command("/mnt/probe");
    command.args(["run", "--config", "/mnt/probe.yaml"]);
    command
}

#[test]
fn no_privilege() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        open_folder(&lab)?;
        let before = traces(&lab.node)?;
        let mut config = agent::config(&lab);
        config["control"]["socket"] = json!("/mnt/probe.sock");
        let mut process = run_as(&lab, &config, |command| {
            let nobody = || {
                // SAFETY: a plain system call; the child has one thread.
                if unsafe { libc::setuid(65_534) } != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            };
            // SAFETY: between fork and exec only one system call is made.
            unsafe { command.pre_exec(nobody) };
        })?;
        let status = process.wait(patience(Duration::from_secs(10)))?;
        let printed = process.lines().join("\n");
        ensure!(status.code() == Some(1), "{status}: {printed}");
        ensure!(
            printed.contains("CAP_BPF") || printed.contains("root"),
            "the message names the privilege: {printed}"
        );
        ensure!(traces(&lab.node)? == before);
        Ok(())
    });
}

/// The capabilities of deploy/daemonset.yaml and no other are enough.
#[test]
fn the_capabilities_of_the_daemonset() {
    let manifest = include_str!("../../../deploy/daemonset.yaml");
    let names = [
        "BPF",
        "NET_ADMIN",
        "NET_RAW",
        "SYS_NICE",
        "IPC_LOCK",
        "PERFMON",
        "SYS_RESOURCE",
    ];
    for name in names {
        assert!(
            manifest.contains(&format!("- {name}\n")),
            "{name} is asked for"
        );
    }
    these_are_enough(&names);
}

/// So are those of deploy/probe.service, with its limit of locked memory.
#[test]
fn the_capabilities_of_the_unit() {
    let unit = include_str!("../../../deploy/probe.service");
    assert!(unit.contains("\nLimitMEMLOCK=infinity\n"));
    let set = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .expect("a set");
    let names: Vec<_> = set
        .split_whitespace()
        .filter_map(|name| name.strip_prefix("CAP_"))
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    these_are_enough(&names);
}

fn these_are_enough(names: &[&str]) {
    privileged(|| {
        let names: Vec<String> = names
            .iter()
            .map(|name| format!("+{}", name.to_lowercase()))
            .collect();
        for (way, foreign) in [
            (Way::Edge, false),
            (Way::Uplink, false),
            (Way::Uplink, true),
        ] {
            let lab = Lab::new(way)?;
            let _master = Server::start(&lab, &lab.master)?;
            if foreign {
                xdp_pass(&lab.node, "up0", Mode::Native)?;
            }
            open_folder(&lab)?;
            let mut config = agent::config(&lab);
            config["control"]["socket"] = json!("/mnt/probe.sock");
            let bounding = format!("--bounding-set=-all,{}", names.join(","));
            let mut process = run_as(&lab, &config, |command| {
                let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
                let program = command.get_program().to_owned();
                *command = lab.node.command("setpriv");
                command.arg(&bounding).arg(program).args(args);
            })?;
            let deadline = std::time::Instant::now() + patience(Duration::from_secs(10));
            while get(&lab.client, VIP_V4, "/")?.is_err() {
                ensure!(
                    std::time::Instant::now() < deadline,
                    "{way:?}: not steered: {}",
                    process.lines().join("\n")
                );
                std::thread::sleep(Duration::from_millis(50));
            }
            // Its name is not told without CAP_SYS_ADMIN, the rest is.
            let told = || {
                process.lines().iter().any(|line| {
                    line.contains("up0 carries XDP program id") && line.contains("in native mode")
                })
            };
            if foreign {
                until_true("the word for the foreign program", told)?;
            } else {
                ensure!(!told(), "{}", process.lines().join("\n"));
            }
            let printed = process.lines().join("\n");
            ensure!(!printed.contains("CAP_NET_RAW"), "{printed}");
            process.kill()?;
        }
        Ok(())
    });
}

/// Without CAP_NET_RAW everything works but the telling of who is idle, and that is said.
#[test]
fn without_raw_sockets() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _master = Server::start(&lab, &lab.master)?;
        open_folder(&lab)?;
        let mut config = agent::config(&lab);
        config["control"]["socket"] = json!("/mnt/probe.sock");
        let mut process = run_as(&lab, &config, |command| {
            let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            let program = command.get_program().to_owned();
            *command = lab.node.command("setpriv");
            command
                .arg("--bounding-set=-net_raw")
                .arg(program)
                .args(args);
        })?;
        until("an answer", || {
            let answer = get(&lab.client, VIP_V4, "/")?;
            ensure!(answer.is_ok(), "{answer:?}");
            Ok(())
        })?;
        let printed = process.lines().join("\n");
        ensure!(printed.contains("it takes CAP_NET_RAW"), "{printed}");
        process.kill()
    });
}
