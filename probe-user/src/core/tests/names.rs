//! Names that do not resolve: who is nowhere is never selected, and who was somewhere stays.

use super::{journal::What, *};

/// A core with nobody known of whom the hosts' names say nothing.
fn nowhere(config: &Config) -> Bench {
    let each = config.services().iter().map(|service| {
        let endpoints = service.endpoints().iter();
        endpoints.map(|e| literal(e.address())).collect()
    });
    let at: Vec<Vec<_>> = each.collect();
    let orders = StandingOrders::default();
    Bench::located(at, orders, config, Recorder::default(), &[])
}

/// The events since the start that are about names or states.
fn told(bench: &Bench) -> Vec<String> {
    let page = bench.journal.after(0, 1000);
    let about = |event: &Arc<journal::Event>| match &event.what {
        What::Name { .. } | What::State { .. } => Some(event.what.to_string()),
        _ => None,
    };
    page.events.iter().filter_map(about).collect()
}

#[tokio::test(start_paused = true)]
async fn the_service_starts_on_those_that_are_somewhere() {
    let bench = nowhere(&config(""));
    // Marked as down, so that nobody who is refused elsewhere is sent there.
    assert_eq!(bench.did().await, [Apply(1), Select(1), Down(0)]);
    bench.lookup(Err("there is no such name")).await;
    bench.did().await;
    // Of the one that is checked the first verdict is waited for, of the other it is there.
    assert_eq!(bench.pending().await, ["sense/backup"]);
    let checked: Vec<_> = bench.started.lock().unwrap().clone();
    assert!(checked.iter().all(|key| key.endpoint == 1), "{checked:?}");
    let master = bench.status().await.services[0].endpoints[0].clone();
    assert_eq!(
        (master.state.as_str(), master.verdict.as_deref()),
        ("down", Some("dns"))
    );
    assert!(master.resolved.is_empty() && master.latency_us.is_none());
    let lost = master.unresolved.unwrap();
    assert_eq!((lost.why.as_str(), lost.down), ("nx", true));
    assert_eq!(
        master.detail.as_deref(),
        Some("m.domain.com:80 does not resolve: there is no such name")
    );
    // Said once, however often it is asked for.
    bench.lookup(Err("there is no such name")).await;
    bench.did().await;
    assert_eq!(
        told(&bench),
        [
            "sense/master: its name does not resolve: there is no such name; nothing is known of \
             where it is",
            "sense/master is down: dns: m.domain.com:80 does not resolve: there is no such name"
        ]
    );
    // Nor is it selected when the other one is down, or by force.
    bench.check(1, Kind::Refused).await;
    assert_eq!(bench.did().await, []);
    let wish = Wish::Promote {
        endpoint: "master".to_owned(),
        force: true,
        left: None,
    };
    let refused = bench.order("sense", wish, false).await.unwrap_err();
    assert!(
        refused.to_string().contains("its name has no address"),
        "{refused}"
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_first_address_is_checked_and_the_first_check_decides() {
    let bench = nowhere(&config("  failback: {hold: 5s}"));
    bench.lookup(Err("there is no such name")).await;
    bench.check(1, Kind::Ok).await;
    bench.did().await;
    bench.lookup(Ok(&["10.0.0.7"])).await;
    let moved = Readdress(0, "Some(10.0.0.7)".to_owned());
    assert_eq!(bench.did().await, [moved, Up(101)]);
    let master = bench.status().await.services[0].endpoints[0].clone();
    assert_eq!(master.state, "unknown");
    assert!(master.unresolved.is_none() && master.verdict.is_none());
    let generation = bench.started.lock().unwrap().last().unwrap().generation;
    bench.check_of(0, generation, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(bench.status().await.services[0].endpoints[0].state, "up");
    tokio::time::sleep(Duration::from_millis(5010)).await;
    assert_eq!(bench.did().await, [Select(101), Heard(Reason::Failback)]);
    bench.end().await;
}

/// Names of all endpoints are unknown: clients are refused until one is up.
#[tokio::test(start_paused = true)]
async fn a_service_of_which_nothing_is_known_refuses() {
    let text = "interfaces: {edge: [a]}\nservices: [{name: sense, listeners: ['10.96.0.10:80'], \
                endpoints: [{name: master, address: 'm.domain.com:80'}], check: {http: {}, rise: \
                2, fall: 2}}]";
    let bench = nowhere(&config::parse(text).unwrap());
    assert_eq!(bench.did().await, [Apply(1), Refuse, Down(0)]);
    bench.lookup(Err("there is no such name")).await;
    assert_eq!(bench.did().await, []);
    assert!(bench.pending().await.is_empty());
    // An answer of another family is none.
    bench.lookup(Ok(&["fd00::7"])).await;
    assert_eq!(bench.did().await, []);
    let lost = bench.status().await.services[0].endpoints[0]
        .unresolved
        .clone();
    assert!(lost.unwrap().reason.contains("no address in a family"));
    bench.lookup(Ok(&["10.0.0.7"])).await;
    bench.did().await;
    let generation = bench.started.lock().unwrap().last().unwrap().generation;
    bench.check_of(0, generation, Kind::Ok).await;
    assert_eq!(bench.did().await, [Select(101), Heard(Reason::Failback)]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_vanishes_keeps_its_address_for_as_long_as_is_said() {
    let bench = Bench::new(
        &config("resolve: {hold_nx: 30s}\n"),
        Recorder::default(),
        &[],
    );
    for endpoint in [0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    bench.did().await;
    bench.lookup(Err("there is no such name")).await;
    tokio::time::sleep(Duration::from_millis(29_900)).await;
    bench.lookup(Err("there is no such name")).await;
    assert_eq!(bench.did().await, []);
    let master = bench.status().await.services[0].endpoints[0].clone();
    assert_eq!(master.state, "up");
    assert_eq!(master.resolved, ["10.0.0.1:80"]);
    assert!(master.unresolved.is_some_and(|lost| !lost.down));
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.lookup(Err("there is no such name")).await;
    let over = [Select(1), Down(0), Heard(Reason::MasterDown)];
    assert_eq!(bench.did().await, over);
    let master = bench.status().await.services[0].endpoints[0].clone();
    assert_eq!(master.verdict.as_deref(), Some("dns"));
    // What is on its way of its checks is nobody's.
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    // At its old address nothing is known of it any more.
    bench.lookup(Ok(&["10.0.0.1"])).await;
    assert_eq!(bench.did().await, [Up(0)]);
    let generation = bench.started.lock().unwrap().last().unwrap().generation;
    bench.check_of(0, generation, Kind::Ok).await;
    bench.did().await;
    assert_eq!(bench.status().await.services[0].endpoints[0].state, "up");
    bench.end().await;
}

/// A name server that is gone is no news of an endpoint, unless it is to be.
#[tokio::test(start_paused = true)]
async fn a_failure_is_not_a_denial() {
    for (holds, down) in [
        ("resolve: {hold_nx: 1s}\n", false),
        ("resolve: {hold_failure: 1s}\n", true),
        ("", false),
    ] {
        let bench = Bench::new(&config(holds), Recorder::default(), &[]);
        for endpoint in [0, 1] {
            bench.check(endpoint, Kind::Ok).await;
        }
        bench.did().await;
        for _ in 0..2 {
            let lookup = Lookup {
                service: 0,
                endpoint: 0,
                answer: Err(Unresolved::failure("no name server answers")),
            };
            bench.lookups.send(lookup).await.unwrap();
            bench.did().await;
            tokio::time::sleep(Duration::from_secs(100)).await;
        }
        let service = bench.status().await.services[0].clone();
        assert_eq!(service.endpoints[0].state == "down", down, "{holds}");
        let selected = if down { "backup" } else { "master" };
        assert_eq!(service.selection.endpoint.as_deref(), Some(selected));
        bench.end().await;
    }
}
