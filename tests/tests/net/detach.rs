//! Removal leaves nothing of ours and everything of others.

use anyhow::{Result, ensure};
use lab::{
    Agent, Lab, Server, Way, agent,
    client::get,
    kernel::traces,
    privilege::with_tcx,
    privileged,
    topology::{VIP_V4, VIP_V6},
};
use serde_json::json;

#[derive(Clone, Copy, Debug)]
enum Removal {
    /// `probe run --detach`, then SIGTERM.
    Option,
    /// SIGTERM, then `probe detach`.
    AfterTerm,
    /// SIGKILL, then `probe detach`.
    AfterKill,
}

fn leaves_nothing(way: Way, tc: &str, xdp: &str, removal: Removal) -> Result<()> {
    let lab = Lab::new(way)?;
    let _master = Server::start(&lab, &lab.master)?;
    let _backup = Server::start(&lab, &lab.backup)?;
    // Somebody else's filter, on a qdisc that is somebody else's then.
    if tc == "clsact" {
        let link = lab.client_link();
        lab.node
            .ask("tc", &["qdisc", "add", "dev", link, "clsact"])?;
        let filter = format!(
            "filter add dev {link} ingress protocol ip prio 40000 u32 match u32 0 0 classid 1:1"
        );
        let words: Vec<&str> = filter.split(' ').collect();
        lab.node.ask("tc", &words)?;
    }
    let before = traces(&lab.node)?;
    let mut config = agent::config(&lab);
    config["datapath"] = json!({"tc": tc, "xdp": xdp});
    let options: &[&str] = match removal {
        Removal::Option => &["--detach"],
        Removal::AfterTerm | Removal::AfterKill => &[],
    };
    let mut agent = Agent::start_with(&lab, &config, options)?;
    agent.wait_selected("master")?;
    for vip in [VIP_V4, VIP_V6] {
        ensure!(get(&lab.client, vip, "/")?.is_ok(), "{vip} is steered");
    }
    ensure!(traces(&lab.node)? != before, "steering is visible");

    match removal {
        Removal::Option => {
            let (status, printed) = agent.terminate()?;
            ensure!(status.success(), "{status}: {printed}");
        }
        Removal::AfterTerm | Removal::AfterKill => {
            if matches!(removal, Removal::AfterTerm) {
                let (status, printed) = agent.terminate()?;
                ensure!(status.success(), "{status}: {printed}");
            } else {
                agent.kill()?;
            }
            ensure!(get(&lab.client, VIP_V4, "/")?.is_ok(), "steering stays");
            let (code, _, stderr) = agent.probe(&["detach"])?;
            ensure!(code == 0, "{code}: {stderr}");
        }
    }
    let after = traces(&lab.node)?;
    ensure!(after == before, "before {before:#?}\nafter {after:#?}");
    for vip in [VIP_V4, VIP_V6] {
        ensure!(get(&lab.client, vip, "/")?.is_err(), "nothing steers {vip}");
    }
    // Once more there is nothing to do, and that is fine.
    let (code, _, stderr) = agent.probe(&["detach"])?;
    ensure!(code == 0, "{code}: {stderr}");
    ensure!(traces(&lab.node)? == before, "the second removal");
    Ok(())
}

#[test]
fn by_option_from_tcx() {
    with_tcx(|| leaves_nothing(Way::EdgeAmongPods, "tcx", "auto", Removal::Option));
}

#[test]
fn by_option_from_clsact() {
    privileged(|| leaves_nothing(Way::EdgeAmongPods, "clsact", "auto", Removal::Option));
}

#[test]
fn by_option_from_an_uplink() {
    with_tcx(|| leaves_nothing(Way::Uplink, "tcx", "native", Removal::Option));
}

#[test]
fn by_the_kill_switch_from_tcx() {
    with_tcx(|| leaves_nothing(Way::Edge, "tcx", "auto", Removal::AfterKill));
}

#[test]
fn by_the_kill_switch_from_clsact() {
    privileged(|| leaves_nothing(Way::Edge, "clsact", "auto", Removal::AfterTerm));
}

#[test]
fn by_the_kill_switch_from_an_uplink() {
    privileged(|| leaves_nothing(Way::Uplink, "clsact", "generic", Removal::AfterKill));
}

/// What an agent of another ABI left: the same kind of objects in another folder.
#[test]
fn the_state_of_another_version_is_refused_and_removed() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _master = Server::start(&lab, &lab.master)?;
        let before = traces(&lab.node)?;
        let config = agent::config(&lab);
        let mut agent = Agent::start(&lab, &config)?;
        agent.wait_selected("master")?;
        agent.kill()?;
        let pins = "/sys/fs/bpf/probe";
        let ours = format!("{pins}/v{}", probe_ebpf::abi::ABI_VERSION);
        lab.node.ask("mv", &[&ours, &format!("{pins}/v0")])?;
        let old = traces(&lab.node)?;

        let mut newer = Agent::new(&lab, &config, &[])?;
        newer.launch()?;
        let (status, printed) = newer.wait_end()?;
        ensure!(status.code() == Some(1), "{status}: {printed}");
        for part in ["probe/v0", "probe detach"] {
            ensure!(printed.contains(part), "no {part}: {printed}");
        }
        ensure!(traces(&lab.node)? == old, "it was not touched");
        ensure!(get(&lab.client, VIP_V4, "/")?.is_ok(), "and goes on");

        let (code, _, stderr) = newer.probe(&["detach"])?;
        ensure!(code == 0, "{code}: {stderr}");
        let after = traces(&lab.node)?;
        ensure!(after == before, "before {before:#?}\nafter {after:#?}");
        Ok(())
    });
}

#[test]
fn beside_a_running_agent() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _master = Server::start(&lab, &lab.master)?;
        let before = traces(&lab.node)?;
        let mut agent = Agent::start(&lab, &agent::config(&lab))?;
        agent.wait_selected("master")?;
        let (code, stdout, stderr) = agent.probe(&["detach"])?;
        ensure!(code == 0, "{code}: {stderr}");
        ensure!(stdout.contains("still running"), "{stdout}");
        ensure!(traces(&lab.node)? == before, "nothing is left");
        ensure!(get(&lab.client, VIP_V4, "/")?.is_err(), "nothing steers");
        agent.terminate()?;
        Ok(())
    });
}
