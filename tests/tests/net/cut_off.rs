//! A link or a gateway of the node that is gone: the endpoints behind it cannot be blamed.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{
    Agent, Lab, Server, Way, agent,
    client::get,
    link::{mac, set_up},
    privileged,
    topology::VIP_V4,
    wait::patience,
};
use serde_json::{Value, json};

/// Two hosts behind the master's namespace, which is the router to them; both are itself.
const BEHIND: [&str; 2] = ["10.20.0.2", "10.30.0.2"];

fn routed(lab: &Lab) -> Result<Value> {
    for host in BEHIND {
        lab.master.ip([format!("addr add {host}/32 dev lo")])?;
        lab.node.ip([format!("route add {host}/32 via 10.2.0.2")])?;
    }
    // Nothing is known for ever, and the kernel is quick to find out.
    let known = format!("neigh replace 10.2.0.2 lladdr {} dev ep-m", mac(0x22));
    lab.node.ip([format!("{known} nud reachable")])?;
    let millis = patience(Duration::from_millis(50)).as_millis().to_string();
    lab.node
        .sysctl(&[("ipv4/neigh/ep-m/retrans_time_ms", millis.as_str())])?;
    let mut config = agent::config(lab);
    let service = &mut config["services"][0];
    service["listeners"] = json!([VIP_V4.to_string()]);
    service["all_down"] = json!("refuse");
    service["endpoints"] = json!([
        {"name": "master", "address": format!("{}:8079", BEHIND[0])},
        {"name": "backup", "address": format!("{}:8079", BEHIND[1])},
    ]);
    Ok(config)
}

fn wait_cut(agent: &mut Agent, what: Option<&str>) -> Result<()> {
    agent.wait(&format!("what is gone to be {what:?}"), |status| {
        let cut = &status["services"][0]["cut_off"];
        ensure!(cut["what"].as_str() == what, "{cut}");
        Ok(())
    })
}

fn wait_both(agent: &mut Agent, state: &str) -> Result<()> {
    for endpoint in ["master", "backup"] {
        agent.wait_state(endpoint, state)?;
    }
    Ok(())
}

#[test]
fn a_selection_is_held_while_link_or_gateway_are_gone() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _server = Server::start(&lab, &lab.master)?;
        let mut agent = Agent::start(&lab, &routed(&lab)?)?;
        wait_both(&mut agent, "up")?;
        agent.wait_selected("master")?;

        // A router that answers nobody, at no address of the network.
        let away = format!("link set eth0 arp off address {}", mac(0x99));
        lab.master.ip([away])?;
        wait_cut(&mut agent, Some("gateway"))?;
        wait_both(&mut agent, "down")?;
        let metrics = agent.metrics_page("/metrics")?;
        let series = "probe_service_cut_off{service=\"sense\",reason=\"gateway\"} 1";
        ensure!(metrics.contains(series), "{metrics}");
        lab.master
            .ip([format!("link set eth0 arp on address {}", mac(0x22))])?;
        lab.rejoin(&lab.master, 2)?;
        wait_both(&mut agent, "up")?;
        wait_cut(&mut agent, None)?;

        // The cable.
        set_up(&lab.master, "eth0", false)?;
        wait_cut(&mut agent, Some("link"))?;
        wait_both(&mut agent, "down")?;
        set_up(&lab.master, "eth0", true)?;
        lab.rejoin(&lab.master, 2)?;
        wait_both(&mut agent, "up")?;
        wait_cut(&mut agent, None)?;

        // Nobody was left or refused.
        agent.wait_selected("master")?;
        let switches = agent.switches()?;
        ensure!(switches == 0, "{switches} switches");
        let answer = get(&lab.client, VIP_V4, "/")?.map(|answer| answer.body);
        ensure!(answer == Ok("master".to_owned()), "{answer:?}");
        Ok(())
    });
}

/// The other end of an endpoint's own link is the endpoint.
#[test]
fn an_endpoint_whose_own_link_is_gone_is_left() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _servers = [
            Server::start(&lab, &lab.master)?,
            Server::start(&lab, &lab.backup)?,
        ];
        let mut agent = Agent::start(&lab, &agent::config(&lab))?;
        wait_both(&mut agent, "up")?;
        agent.wait_selected("master")?;
        set_up(&lab.master, "eth0", false)?;
        agent.wait_selected("backup")?;
        wait_cut(&mut agent, None)?;
        Ok(())
    });
}
