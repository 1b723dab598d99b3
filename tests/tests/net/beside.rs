//! Other programs at the same hooks: ours steers where the order lets it, theirs see
//! what ARCHITECTURE.md says and stay when ours go.

use std::{net::SocketAddr, os::fd::OwnedFd, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Agent, Lab, Server, Way, agent,
    client::{Failure, get},
    foreign::{Answer, Counts, Foreign, Hook, Mode, Place, xdp_off, xdp_pass},
    kernel::traces,
    privilege::with_tcx,
    privileged,
    server::Kind,
    topology::{MASTER_V4, VIP_V4, VIP_V6},
};
use serde_json::{Value, json};

/// One interface of a status object.
fn interface<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    status["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|interface| interface["name"] == name)
        .with_context(|| format!("no {name} in {status}"))
}

/// The lab's servers and the agent, with TC as ordered. Dropped first to last.
struct Beside {
    agent: Agent,
    _servers: [Server; 2],
    lab: Lab,
}

impl Beside {
    fn start(lab: Lab, tc: &str) -> Result<Self> {
        let servers = [
            Server::start_kind(&lab, &lab.master, Kind::Nginx)?,
            Server::start_kind(&lab, &lab.backup, Kind::Nginx)?,
        ];
        let mut config = agent::config(&lab);
        config["datapath"] = json!({"tc": tc});
        let mut agent = Agent::start(&lab, &config)?;
        agent.wait_selected("master")?;
        Ok(Self {
            agent,
            _servers: servers,
            lab,
        })
    }

    /// Requests by curl in both families reach the master.
    fn steers(&self) -> Result<()> {
        for vip in [VIP_V4, VIP_V6] {
            for _ in 0..5 {
                let body = self
                    .lab
                    .client
                    .ask("curl", &["-sS", "-m", "5", &format!("http://{vip}/")])?;
                ensure!(body == "master", "{vip}: {body}");
            }
        }
        Ok(())
    }

    fn detach(&self) -> Result<()> {
        let (code, _, stderr) = self.agent.probe(&["detach"])?;
        ensure!(code == 0, "{code}: {stderr}");
        Ok(())
    }
}

fn v4(address: SocketAddr) -> std::net::Ipv4Addr {
    match address.ip() {
        std::net::IpAddr::V4(ip) => ip,
        std::net::IpAddr::V6(ip) => unreachable!("{ip} is not of IPv4"),
    }
}

/// Counts what it sees at the hook as the client sees it, and as the endpoint sees it.
struct Observer {
    hook: Hook,
    client: Foreign,
    endpoint: Foreign,
}

impl Observer {
    fn new(hook: Hook) -> Result<Self> {
        let of = |address| {
            let counts = match hook {
                Hook::Ingress => Counts::Destination(v4(address)),
                Hook::Egress => Counts::Source(v4(address)),
            };
            Foreign::load(counts, 0, Answer::Next)
        };
        Ok(Self {
            hook,
            client: of(VIP_V4)?,
            endpoint: of(MASTER_V4)?,
        })
    }

    fn tcx(&self, lab: &Lab, place: Place) -> Result<[OwnedFd; 2]> {
        let link = lab.client_link();
        Ok([
            self.client.tcx(&lab.node, link, self.hook, place)?,
            self.endpoint.tcx(&lab.node, link, self.hook, place)?,
        ])
    }

    fn filter(&self, lab: &Lab, priority: u16) -> Result<()> {
        let link = lab.client_link();
        for each in [&self.client, &self.endpoint] {
            each.filter(&lab.node, link, self.hook, priority)?;
        }
        Ok(())
    }

    /// It saw connections, and this side of the translation only.
    fn saw(&self, what: &str, client: bool) -> Result<()> {
        let counts = (self.client.count()?, self.endpoint.count()?);
        let right = match client {
            true => counts.0 > 0 && counts.1 == 0,
            false => counts.0 == 0 && counts.1 > 0,
        };
        ensure!(
            right,
            "{what} at {}: {} packets with the VIP, {} with the endpoint",
            self.hook.name(),
            counts.0,
            counts.1
        );
        Ok(())
    }
}

/// Programs of TCX that were there before the agent, and that came later.
#[test]
fn programs_of_tcx() {
    with_tcx(|| {
        for way in [Way::Edge, Way::EdgeAmongPods] {
            let lab = Lab::new(way)?;
            let earlier = [Observer::new(Hook::Ingress)?, Observer::new(Hook::Egress)?];
            let _earlier = [
                earlier[0].tcx(&lab, Place::First)?,
                earlier[1].tcx(&lab, Place::Last)?,
            ];
            let beside = Beside::start(lab, "tcx")?;
            let later = |place| -> Result<_> {
                let both = [Observer::new(Hook::Ingress)?, Observer::new(Hook::Egress)?];
                let links = [
                    both[0].tcx(&beside.lab, place)?,
                    both[1].tcx(&beside.lab, place)?,
                ];
                Ok((both, links))
            };
            let (first, _first) = later(Place::First)?;
            let (last, _last) = later(Place::Last)?;
            beside.steers()?;
            // We went before the first at ingress and behind the last at egress.
            earlier[0].saw("earlier", false)?;
            earlier[1].saw("earlier", false)?;
            // Whoever comes later and asks to be the first or the last is.
            first[0].saw("later, first", true)?;
            first[1].saw("later, first", false)?;
            last[0].saw("later, last", false)?;
            last[1].saw("later, last", true)?;
            let with_ours = traces(&beside.lab.node)?;
            beside.detach()?;
            let without = traces(&beside.lab.node)?;
            for hook in ["ingress", "egress"] {
                let of = |count| format!("veth-c {hook} tcx: {count} programs");
                ensure!(with_ours.contains(&of(7)), "{with_ours:#?}");
                ensure!(without.contains(&of(6)), "theirs stay: {without:#?}");
            }
        }
        Ok(())
    });
}

/// Filters of clsact beside ours.
#[test]
fn filters_beside_filters() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        lab.node
            .ask("tc", &["qdisc", "add", "dev", "veth-c", "clsact"])?;
        let others: Vec<_> = Hook::ALL
            .into_iter()
            .map(|hook| {
                let observers = [Observer::new(hook)?, Observer::new(hook)?];
                observers[0].filter(&lab, 1000)?;
                // The kernel's choice, 0xc000 and below.
                observers[1].filter(&lab, 0)?;
                Ok(observers)
            })
            .collect::<Result<_>>()?;
        let before = traces(&lab.node)?;
        let beside = Beside::start(lab, "clsact")?;
        beside.steers()?;
        for other in others.iter().flatten() {
            other.saw("a filter", false)?;
        }
        beside.detach()?;
        let after = traces(&beside.lab.node)?;
        ensure!(before == after, "before {before:#?}\nafter {after:#?}");
        Ok(())
    });
}

/// Filters of clsact while ours is in TCX, which the kernel asks first in both
/// directions.
#[test]
fn filters_beside_tcx() {
    with_tcx(|| {
        let lab = Lab::new(Way::Edge)?;
        lab.node
            .ask("tc", &["qdisc", "add", "dev", "veth-c", "clsact"])?;
        let others = [Observer::new(Hook::Ingress)?, Observer::new(Hook::Egress)?];
        for other in &others {
            other.filter(&lab, 1)?;
        }
        let before = traces(&lab.node)?;
        let beside = Beside::start(lab, "tcx")?;
        beside.steers()?;
        others[0].saw("a filter", false)?;
        others[1].saw("a filter", true)?;
        beside.detach()?;
        ensure!(traces(&beside.lab.node)? == before, "theirs stay");
        Ok(())
    });
}

/// Filters of another kind at the priorities that ours would take: ours make way, and
/// the agent says so; they take the better place when it is free.
#[test]
fn filters_of_another_kind() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let tc = |words: &str| lab.node.ask("tc", &words.split(' ').collect::<Vec<_>>());
        tc("qdisc add dev veth-c clsact")?;
        // Nobody's packets: the match is on a reserved source.
        let places = [
            "ingress prio 1",
            "egress prio 1",
            "egress",
            "egress prio 65535",
        ];
        for place in places {
            tc(&format!(
                "filter add dev veth-c {place} protocol ip u32 match ip src 240.0.0.1/32 classid 1:1"
            ))?;
        }
        let before = traces(&lab.node)?;
        let mut beside = Beside::start(lab, "clsact")?;
        let node = beside.lab.node.clone();
        // The priorities of our filters.
        let ours = || -> Result<Vec<String>> {
            Ok(traces(&node)?
                .iter()
                .filter(|line| line.contains("bpf") && line.contains("probe_"))
                .filter_map(|line| Some(line.split_once("pref ")?.1.split(' ').next()?.to_owned()))
                .collect())
        };
        beside.steers()?;
        ensure!(ours()? == ["2", "65534"], "{:?}", ours()?);
        let status = beside.agent.status()?;
        let degraded = interface(&status, "veth-c")?["degraded"].to_string();
        for part in ["at ingress of veth-c", "at egress of veth-c"] {
            ensure!(degraded.contains(part), "no {part:?} in {degraded}");
        }
        beside.agent.kill()?;
        beside.agent.restart()?;
        ensure!(
            ours()? == ["2", "65534"],
            "replaced in place: {:?}",
            ours()?
        );
        beside.steers()?;
        beside.detach()?;
        let after = traces(&node)?;
        ensure!(before == after, "before {before:#?}\nafter {after:#?}");

        beside.agent.kill()?;
        beside.agent.restart()?;
        beside.agent.kill()?;
        for (hook, priority) in [("ingress", "1"), ("egress", "65535")] {
            node.ask(
                "tc",
                &["filter", "del", "dev", "veth-c", hook, "prio", priority],
            )?;
        }
        beside.agent.restart()?;
        ensure!(ours()? == ["1", "65535"], "moved: {:?}", ours()?);
        beside.steers()
    });
}

/// A program that answers `TC_ACT_OK` ends the chain: behind ours it changes nothing,
/// before ours it takes the packets from us. The documentation says so.
#[test]
fn a_program_that_ends_the_chain() {
    with_tcx(|| {
        for way in [Way::Edge, Way::EdgeAmongPods] {
            let beside = Beside::start(Lab::new(way)?, "tcx")?;
            let lab = &beside.lab;
            let link = lab.client_link();
            let at = |hook, place| -> Result<_> {
                let counts = match hook {
                    Hook::Ingress => Counts::Destination(v4(MASTER_V4)),
                    Hook::Egress => Counts::Source(v4(VIP_V4)),
                };
                let foreign = Foreign::load(counts, 0, Answer::Ok)?;
                let attached = foreign.tcx(&lab.node, link, hook, place)?;
                Ok((foreign, attached))
            };
            let behind = [
                at(Hook::Ingress, Place::Last)?,
                at(Hook::Egress, Place::Last)?,
            ];
            beside.steers()?;
            for (foreign, _) in &behind {
                ensure!(foreign.count()? > 0, "{way:?}: it saw our packets after us");
            }
            let before = at(Hook::Ingress, Place::First)?;
            ensure!(get(&lab.client, VIP_V4, "/")?.is_err(), "nobody asked us");
            drop(before);
            beside.steers()?;
            let before = at(Hook::Egress, Place::First)?;
            let answer = get(&lab.client, VIP_V4, "/")?;
            ensure!(
                answer == Err(Failure::Timeout),
                "replies pass us: {answer:?}"
            );
            drop(before);
            beside.steers()?;
        }
        Ok(())
    });
}

#[test]
fn filters_that_end_the_chain() {
    privileged(|| {
        let beside = Beside::start(Lab::new(Way::Edge)?, "clsact")?;
        let lab = &beside.lab;
        let link = lab.client_link();
        let behind = Foreign::load(Counts::Destination(v4(MASTER_V4)), 0, Answer::Ok)?;
        behind.filter(&lab.node, link, Hook::Ingress, 2)?;
        beside.steers()?;
        ensure!(behind.count()? > 0, "it saw our packets after us");
        // Any priority but the last is before ours at egress.
        let before = Foreign::load(Counts::Source(v4(MASTER_V4)), 0, Answer::Ok)?;
        before.filter(&lab.node, link, Hook::Egress, 0xfffe)?;
        let answer = get(&lab.client, VIP_V4, "/")?;
        ensure!(
            answer == Err(Failure::Timeout),
            "replies pass us: {answer:?}"
        );
        ensure!(before.count()? > 0);
        lab.node.ask(
            "tc",
            &["filter", "del", "dev", link, "egress", "prio", "65534"],
        )?;
        beside.steers()
    });
}

/// What others write beside the packet is left alone.
#[test]
fn marks_of_others_survive() {
    const MARK: i32 = 0x5eed;
    with_tcx(|| {
        for way in [Way::Edge, Way::EdgeAmongPods, Way::Uplink] {
            let beside = Beside::start(Lab::new(way)?, "tcx")?;
            let lab = &beside.lab;
            let link = lab.client_link();
            let [endpoint, _] = lab.endpoint_links();
            // Outside clients' packets are steered before TC: there is no earlier place there.
            let seen = match way {
                Way::Uplink => MASTER_V4,
                _ => VIP_V4,
            };
            let marker = Foreign::load(Counts::Destination(v4(seen)), MARK, Answer::Next)?;
            let _marker = marker.tcx(&lab.node, link, Hook::Ingress, Place::First)?;
            lab.node.ask(
                "nft",
                &["add table inet marks; add chain inet marks out { type filter hook forward priority 0; }; add rule inet marks out meta mark 0x5eed counter"],
            )?;
            beside.steers()?;
            let rules = lab.node.ask("nft", &["list", "table", "inet", "marks"])?;
            let counted: u64 = rules
                .split_once("counter packets ")
                .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
                .with_context(|| rules.clone())?;
            let marked = marker.count()?;
            ensure!(
                marked > 0 && counted == marked,
                "{marked} marked, {counted} seen by {endpoint}"
            );
        }
        Ok(())
    });
}

/// A native and a generic program exclude each other, so does a second one of a mode:
/// the agent says whose it is and steers by TC behind it.
fn foreign_xdp(there: Mode, tc: &str) -> Result<()> {
    let lab = Lab::new(Way::Uplink)?;
    xdp_pass(&lab.node, "up0", there)?;
    let before = traces(&lab.node)?;
    let mut beside = Beside::start(lab, tc)?;
    beside.steers()?;
    let status = beside.agent.status()?;
    let up0 = interface(&status, "up0")?;
    ensure!(up0["xdp"] == "none" && up0["tc"] == tc, "{up0}");
    let degraded = up0["degraded"].to_string();
    let id = foreign_id(&before)?;
    let program = format!("id {id} (foreign) in {} mode", there.name());
    ensure!(degraded.contains(&program), "no {program:?} in {degraded}");
    let shown = beside.agent.order(&["status"])?;
    ensure!(shown.contains(&program), "{shown}");
    let warned = beside
        .agent
        .printed()
        .lines()
        .any(|line| line.contains("WARN") && line.contains(&program));
    ensure!(warned, "{}", beside.agent.printed());
    let line = format!("probe_interfaces{{role=\"uplink\",tc=\"{tc}\",xdp=\"none\"}} 1");
    let metrics = beside.agent.metrics_page("/metrics")?;
    ensure!(metrics.lines().any(|each| each == line), "{metrics}");

    // The next agent takes over what this one attached.
    beside.agent.kill()?;
    beside.steers()?;
    beside.agent.restart()?;
    beside.agent.wait_selected("master")?;
    ensure!(
        beside.agent.printed().contains("inherited=true"),
        "{}",
        beside.agent.printed()
    );
    beside.steers()?;

    // Once the other is gone, only a restart takes XDP.
    xdp_off(&beside.lab.node, "up0", there)?;
    beside.steers()?;
    if there == Mode::Generic {
        // Past the time at which the agent tries again what failed: this did not fail.
        std::thread::sleep(Duration::from_secs(6));
    }
    let status = beside.agent.status()?;
    ensure!(interface(&status, "up0")?["xdp"] == "none", "{status}");
    beside.agent.kill()?;
    beside.agent.restart()?;
    beside.agent.wait_selected("master")?;
    let status = beside.agent.status()?;
    let up0 = interface(&status, "up0")?;
    ensure!(up0["xdp"] == "native", "{up0}");
    ensure!(up0["degraded"] == json!([]), "{up0}");
    beside.steers()?;
    let ingress = "up0 ingress";
    let traced = traces(&beside.lab.node)?;
    ensure!(
        !traced.iter().any(|line| line.starts_with(ingress)),
        "TC is off the ingress: {traced:#?}"
    );
    Ok(())
}

/// The id of the XDP program in the traces of an interface.
fn foreign_id(traces: &[String]) -> Result<&str> {
    traces
        .iter()
        .find_map(|line| line.split_once("prog/xdp id ")?.1.split(' ').next())
        .with_context(|| format!("no XDP program in {traces:#?}"))
}

#[test]
fn a_foreign_native_xdp_program_and_tcx() {
    with_tcx(|| foreign_xdp(Mode::Native, "tcx"));
}

#[test]
fn a_foreign_generic_xdp_program_and_tcx() {
    with_tcx(|| foreign_xdp(Mode::Generic, "tcx"));
}

#[test]
fn a_foreign_xdp_program_and_clsact() {
    privileged(|| foreign_xdp(Mode::Native, "clsact"));
}

/// Removal leaves the other's XDP program where it is.
#[test]
fn a_foreign_xdp_program_stays() {
    privileged(|| {
        for there in [Mode::Native, Mode::Generic] {
            let lab = Lab::new(Way::Uplink)?;
            xdp_pass(&lab.node, "up0", there)?;
            let before = traces(&lab.node)?;
            let mut beside = Beside::start(lab, "auto")?;
            beside.steers()?;
            beside.agent.terminate()?;
            beside.detach()?;
            let after = traces(&beside.lab.node)?;
            ensure!(before == after, "before {before:#?}\nafter {after:#?}");
        }
        Ok(())
    });
}
