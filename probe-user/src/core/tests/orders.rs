//! Orders of somebody: modes, promotions, freezing; how long they hold.

use super::*;

fn promote(endpoint: &str, force: bool) -> Wish {
    Wish::Promote {
        endpoint: endpoint.to_owned(),
        force,
        left: Some(Some(Duration::from_secs(30))),
    }
}

fn kinds(bench: &Bench) -> Vec<String> {
    let events = bench.journal.after(0, 1000).events;
    events.iter().map(|e| e.what.kind().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn drain_moves_new_connections_and_goes_on_checking() {
    let bench = both_up("").await;
    let tried = bench
        .order("sense", mode("master", Mode::Drain), true)
        .await
        .unwrap();
    assert!(tried.changed && tried.dry_run);
    assert_eq!(
        (tried.from[0].as_str(), tried.to[0].as_str()),
        ("master", "backup")
    );
    assert_eq!(bench.did().await, [], "a dry run does nothing");
    let before = kinds(&bench);

    let done = bench
        .order("sense", mode("master", Mode::Drain), false)
        .await
        .unwrap();
    assert_eq!(
        (done.before.as_str(), done.after.as_str()),
        ("ready", "drain")
    );
    assert_eq!(
        bench.did().await,
        [Select(1), Rest(0, true), Heard(Reason::Manual)]
    );
    assert_eq!(kinds(&bench)[before.len()..], ["switch", "order"]);
    let status = bench.status().await;
    let master = &status.services[0].endpoints[0];
    assert_eq!(
        (master.mode.as_str(), master.state.as_str()),
        ("drain", "up")
    );
    assert_eq!(
        master.ordered.as_ref().unwrap().by.user.as_deref(),
        Some("root")
    );
    assert_eq!(status.services[0].failback.due_unix_ms, None);

    // Its checks count, and nothing goes back to it.
    bench.check(0, Kind::Refused).await;
    bench.check(0, Kind::Refused).await;
    assert_eq!(bench.did().await, [Down(0)]);
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(0)]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.did().await, []);

    let again = bench
        .order("sense", mode("master", Mode::Drain), false)
        .await
        .unwrap();
    assert!(!again.changed);
    assert_eq!(kinds(&bench).last().unwrap(), "state");
    bench
        .order("sense", mode("master", Mode::Ready), false)
        .await
        .unwrap();
    assert_eq!(bench.did().await, [Rest(0, false)]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Failback)]);
}

#[tokio::test(start_paused = true)]
async fn maint_ends_the_checks_and_ready_begins_them() {
    let bench = both_up("").await;
    bench.started.lock().unwrap().clear();
    bench
        .order("sense", mode("master", Mode::Maint), false)
        .await
        .unwrap();
    assert_eq!(
        bench.did().await,
        [Select(1), Rest(0, true), Down(0), Heard(Reason::Manual)]
    );
    // A check that was on its way says nothing any more.
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert!(
        bench.pending().await.is_empty(),
        "nobody waits for its verdict"
    );
    let status = bench.status().await;
    let master = &status.services[0].endpoints[0];
    assert_eq!(
        (master.mode.as_str(), master.state.as_str()),
        ("maint", "unknown")
    );
    // Nor does a new address begin any.
    bench.lookup(Ok(&["10.0.0.7"])).await;
    bench.did().await;
    assert!(bench.started.lock().unwrap().is_empty());

    bench
        .order("sense", mode("master", Mode::Ready), false)
        .await
        .unwrap();
    let started = bench.started.lock().unwrap().clone();
    assert_eq!(started.len(), 1);
    bench.did().await;
    bench.check_of(0, started[0].generation, Kind::Ok).await;
    bench.did().await;
    assert_eq!(bench.status().await.services[0].endpoints[0].state, "up");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bench.did().await.last(), Some(&Heard(Reason::Failback)));
}

#[tokio::test(start_paused = true)]
async fn both_in_maint_are_a_recreate_update() {
    let bench = both_up("").await;
    bench
        .order("sense", mode("master", Mode::Maint), false)
        .await
        .unwrap();
    let done = bench
        .order("sense", mode("backup", Mode::Maint), false)
        .await
        .unwrap();
    assert_eq!(done.from, done.to);
    assert!(done.notes[0].contains("all_down: keep"), "{:?}", done.notes);
    bench.did().await;
    // Nothing is known of it, which is better than what is known of the other.
    bench
        .order("sense", mode("master", Mode::Ready), false)
        .await
        .unwrap();
    let did = bench.did().await;
    assert_eq!(
        did,
        [
            Up(0),
            Rest(0, false),
            Select(0),
            Rest(1, true),
            Down(1),
            Heard(Reason::Manual)
        ]
    );
    let last = bench.started.lock().unwrap().last().copied().unwrap();
    bench.check_of(0, last.generation, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(
        bench.status().await.services[0]
            .selection
            .endpoint
            .as_deref(),
        Some("master")
    );
}

#[tokio::test(start_paused = true)]
async fn a_promotion_holds_until_its_endpoint_is_down() {
    let bench = both_up("").await;
    let done = bench
        .order("sense", promote("backup", false), false)
        .await
        .unwrap();
    assert_eq!(
        (done.before.as_str(), done.after.as_str()),
        ("master", "backup (promoted)")
    );
    assert_eq!(bench.did().await, [Select(1), Heard(Reason::Manual)]);
    assert_eq!(bench.kept.borrow().version, 1);
    let status = bench.status().await;
    assert_eq!(status.services[0].promoted.as_ref().unwrap().what, "backup");
    assert_eq!(status.services[0].failback.due_unix_ms, None);
    // Those of the master have the time that was given.
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(bench.did().await, [Drained(0)]);
    bench.check(1, Kind::Refused).await;
    bench.check(1, Kind::Refused).await;
    let did = bench.did().await;
    assert_eq!(did, [Up(0), Select(0), Down(1), Heard(Reason::MasterDown)]);
    assert!(kinds(&bench).contains(&"promotion-over".to_owned()));
    assert_eq!(*bench.kept.borrow().standing, StandingOrders::default());
}

#[tokio::test(start_paused = true)]
async fn who_is_down_is_promoted_by_force_only() {
    let bench = both_up("").await;
    bench.check(1, Kind::Refused).await;
    bench.check(1, Kind::Refused).await;
    bench.did().await;
    let refused = bench.order("sense", promote("backup", false), false).await;
    let refused = refused.unwrap_err().to_string();
    assert_eq!(
        refused,
        "service sense: backup is not promoted: it is down, and clients would fail; --force \
         promotes it all the same"
    );
    bench
        .order("sense", promote("backup", true), false)
        .await
        .unwrap();
    assert_eq!(bench.did().await, [Up(1), Select(1), Heard(Reason::Manual)]);
    bench.check(1, Kind::Refused).await;
    assert_eq!(bench.did().await, [], "it was known to be down");
    assert_eq!(bench.failback("sense").await, Ok("master".to_owned()));
    assert_eq!(
        bench.did().await,
        [Select(0), Down(1), Heard(Reason::Manual)]
    );
    for (endpoint, why) in [("nobody", "it has master, backup"), ("", "no endpoint ``")] {
        let refused = bench.order("sense", promote(endpoint, true), false).await;
        assert!(refused.unwrap_err().to_string().contains(why));
    }
    let refused = bench.order("nosuch", Wish::Freeze(true), false).await;
    assert_eq!(refused, Err(Refused::NoService("nosuch".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_frozen_service_stays_and_obeys_orders() {
    let bench = both_up("").await;
    bench
        .order("sense", Wish::Freeze(true), false)
        .await
        .unwrap();
    bench.check(0, Kind::Refused).await;
    bench.check(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [],
        "the selected endpoint is never marked down"
    );
    assert_eq!(bench.status().await.services[0].endpoints[0].state, "down");
    let tried = bench
        .order("sense", Wish::Freeze(false), true)
        .await
        .unwrap();
    assert_eq!(tried.to, ["backup"]);
    bench
        .order("sense", promote("backup", false), false)
        .await
        .unwrap();
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::Manual)]
    );
    bench
        .order("sense", Wish::Freeze(false), false)
        .await
        .unwrap();
    assert_eq!(bench.did().await, []);
    let explained = bench.explain().await;
    assert!(
        explained.because[0].contains("backup was promoted by root"),
        "{explained:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn orders_survive_a_restart() {
    let bench = both_up("").await;
    bench
        .order("sense", mode("master", Mode::Drain), false)
        .await
        .unwrap();
    bench
        .order("sense", Wish::Freeze(true), false)
        .await
        .unwrap();
    let mut standing = StandingOrders::clone(&bench.kept.borrow().standing);
    // Of a configuration that had more.
    let more = standing.services["sense"].clone();
    standing.services.insert("gone".to_owned(), more.clone());
    let drained = more.endpoints["master"].clone();
    let sense = standing.services.get_mut("sense").unwrap();
    sense.endpoints.insert("third".to_owned(), drained);

    let recorder = Recorder {
        inherited: Some(Choice::Endpoint(EndpointId(1))),
        inherited_marks: vec![Mark::Up, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::after(standing.clone(), &config(""), recorder, &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(1), Rest(0, true)]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Refused).await;
    bench.check(1, Kind::Refused).await;
    assert_eq!(bench.did().await, [], "frozen");
    let status = bench.status().await;
    assert_eq!(status.services[0].endpoints[0].mode, "drain");
    assert!(status.services[0].frozen.is_some());
    // Nothing of what names nobody is lost with the next order.
    bench
        .order("sense", Wish::Freeze(false), false)
        .await
        .unwrap();
    let kept = bench.kept.borrow().standing.clone();
    assert_eq!(kept.services["gone"], standing.services["gone"]);
    let sense = &kept.services["sense"];
    assert!(sense.frozen.is_none());
    assert_eq!(
        sense.endpoints.keys().collect::<Vec<_>>(),
        ["master", "third"]
    );
}
