//! What the kernel lacks, the agent does without, and says so. The kernel is asked by
//! the lab itself, so the same test is about another thing on each kernel.

use anyhow::{Context, Result, ensure};
use lab::{
    Namespace, Way, agent,
    client::get,
    kernel::{tcx, xdp_frags},
    link::complete_checksums,
    privileged,
    topology::{VIP_V4, VIP_V6},
};
use serde_json::{Value, json};

use crate::rig::Rig;

/// How the agent attached to an interface, and what it says about it.
struct Attached {
    tc: String,
    xdp: Option<String>,
    degraded: String,
}

fn attached(status: &Value, name: &str) -> Result<Attached> {
    let interface = status["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|interface| interface["name"] == name)
        .with_context(|| format!("{name} is not in {status}"))?;
    let word = |value: &Value| value.as_str().map(ToOwned::to_owned);
    Ok(Attached {
        tc: word(&interface["tc"]).with_context(|| interface.to_string())?,
        xdp: word(&interface["xdp"]),
        degraded: interface["degraded"].to_string(),
    })
}

/// It is said where the interface's state is told and in the log, or in neither.
fn said(rig: &Rig, attached: &Attached, what: &str, wanted: bool) -> Result<()> {
    ensure!(
        attached.degraded.contains(what) == wanted,
        "{what:?} in the status: {}",
        attached.degraded
    );
    let printed = rig.agent.printed();
    ensure!(
        printed.contains(what) == wanted,
        "{what:?} in the log: {printed}"
    );
    Ok(())
}

#[test]
fn clsact_where_there_is_no_tcx() {
    privileged(|| {
        let rig = Rig::new(Way::Edge)?;
        let lacks = tcx().is_err();
        let link = attached(&rig.agent.status()?, "veth-c")?;
        ensure!(link.tc == if lacks { "clsact" } else { "tcx" });
        said(&rig, &link, "no TCX", lacks)?;
        let answer = get(&rig.lab.client, VIP_V4, "/")?;
        ensure!(answer.is_ok_and(|answer| answer.body == "master"));
        Ok(())
    });
}

/// An uplink whose packets do not fit one buffer, beside one whose packets do.
#[test]
fn generic_xdp_where_native_takes_no_large_packets() {
    privileged(|| {
        let mut rig = Rig::with(Way::Uplink, |config| {
            config["interfaces"] = json!({"uplink": ["up*"]});
        })?;
        let host = Namespace::new("jumbo")?;
        // Nobody attaches before it is large.
        rig.agent.kill()?;
        rig.lab.join(&host, "up1", 4)?;
        complete_checksums(&host, "eth0")?;
        host.ip(["link set eth0 mtu 9000"])?;
        rig.lab.node.ip(["link set up1 mtu 9000"])?;
        rig.agent.restart()?;
        rig.agent.wait("both uplinks", |status| {
            attached(status, "up1").and_then(|_| attached(status, "up0"))
        })?;

        let lacks = xdp_frags().is_err();
        let status = rig.agent.status()?;
        let large = attached(&status, "up1")?;
        let mode = if lacks { "generic" } else { "native" };
        ensure!(large.xdp.as_deref() == Some(mode), "{:?}", large.xdp);
        said(&rig, &large, "no native XDP on up1", lacks)?;
        let usual = attached(&status, "up0")?;
        ensure!(usual.xdp.as_deref() == Some("native"), "{:?}", usual.xdp);
        for from in [&host, &rig.lab.client] {
            for vip in [VIP_V4, VIP_V6] {
                let answer = get(from, vip, "/")?;
                ensure!(
                    answer.as_ref().is_ok_and(|answer| answer.body == "master"),
                    "{vip} from {}: {answer:?}",
                    from.name()
                );
            }
        }
        let status = rig.agent.status()?;
        let traffic = &agent::find_endpoint(&status, "master")?["traffic"];
        ensure!(traffic["flows_opened"].as_u64() >= Some(4), "{traffic}");
        Ok(())
    });
}
