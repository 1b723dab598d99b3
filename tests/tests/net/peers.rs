//! Checks of other people's servers: gRPC's own library, HAProxy behind a PROXY header.

use lab::{
    Agent, Lab, Way,
    peers::{HealthService, haproxy_behind_proxy},
    privileged,
};
use serde_json::json;

use super::primaries::{config, wait_some_good, wait_told};

#[test]
fn grpc_by_its_own_library() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut master = HealthService::start(&lab.master)?;
        let mut backup = HealthService::start(&lab.backup)?;
        master.set("chat", "SERVING")?;
        let checked = json!({"grpc": {"service": "chat", "connection": "reuse"}});
        let mut agent = Agent::start(&lab, &config(&lab, checked))?;
        agent.wait_state("master", "up")?;
        // As a whole it serves, and of this service it knows nothing.
        let unknown = "not serving: NOT_FOUND unknown service chat";
        wait_told(&mut agent, "backup", "body-mismatch", unknown)?;
        backup.set("chat", "SERVING")?;
        agent.wait_state("backup", "up")?;
        wait_some_good(&mut agent)?;
        agent.wait_selected("master")?;

        master.set("chat", "NOT_SERVING")?;
        let not_serving = "not serving: NOT_SERVING";
        wait_told(&mut agent, "master", "body-mismatch", not_serving)?;
        agent.wait_selected("backup")?;
        master.set("chat", "UNKNOWN")?;
        wait_told(&mut agent, "master", "body-mismatch", "UNKNOWN")?;
        master.set("chat", "SERVING")?;
        agent.wait_selected("master")?;
        master.kill()?;
        wait_told(&mut agent, "master", "refused", "")?;
        agent.wait_selected("backup").map(drop)
    });
}

#[test]
fn haproxy_takes_our_proxy_header_and_nobody_without() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _master = haproxy_behind_proxy(&lab, &lab.master)?;
        // The node's address towards the master.
        let expect = json!({"body": {"contains": "proxied=1 from 10.2.0.1 to 10.2.0.2:8079"}});
        let by = |version: &str, connection: &str| json!({"http": {"send_proxy": version, "connection": connection, "expect": expect}});
        let all = json!({"all": [
            by("v1", "fresh"),
            by("v1", "reuse"),
            by("v2", "fresh"),
            by("v2", "reuse"),
            {"tcp": {"send_proxy": "v2"}},
        ]});
        let mut agent = Agent::start(&lab, &config(&lab, all))?;
        agent.wait_state("master", "up")?;
        wait_some_good(&mut agent)?;
        agent.terminate()?;

        let without = json!({"http": {"expect": expect}});
        let mut agent = Agent::start(&lab, &config(&lab, without))?;
        wait_told(&mut agent, "master", "reset", "")
    });
}
