//! From verdicts to switches: over and back, what is left when nobody is up, and what a restart finds.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_failover_takes_from_the_first_failed_check_to_the_write() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    bench.did().await;
    bench.check(1, Kind::Ok).await;
    for kind in [Kind::Ok, Kind::Refused, Kind::Ok] {
        bench.check(0, kind).await;
    }
    bench.did().await;
    // What a good check has forgiven does not count.
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.check(0, Kind::Refused).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.check(0, Kind::Refused).await;
    let did = bench.did().await;
    let took = Duration::from_secs(3) + Duration::from_micros(400);
    let told = [Heard(Reason::MasterDown), FailedOver(took)];
    assert_eq!(did, [&[Select(1), Down(0)], told.as_slice()].concat());
}

#[tokio::test(start_paused = true)]
async fn over_and_back() {
    let bench = Bench::new(&config("  failback: {hold: 5s}"), Recorder::default(), &[]);
    assert_eq!(bench.pending().await, ["sense/master", "sense/backup"]);
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert!(bench.pending().await.is_empty());
    // `fall` failures; the write comes first, then the mark, then the news.
    bench.check(0, Kind::Refused).await;
    assert_eq!(bench.did().await, []);
    bench.check(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(0)]);
    let due = bench.status().await.services[0].failback.due_unix_ms;
    assert!(due.is_some());
    tokio::time::sleep(Duration::from_millis(4990)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Failback)]);
    let status = bench.status().await;
    let service = &status.services[0];
    assert_eq!(service.selection.endpoint.as_deref(), Some("master"));
    assert_eq!(service.selection.reason, "failback");
    assert_eq!(service.selection.switches, 2);
    assert_eq!(service.failback.due_unix_ms, None);
    assert_eq!(service.endpoints[0].checks, 5);
    assert_eq!(service.endpoints[0].failures, 2);
    assert_eq!(service.endpoints[0].address, "m.domain.com:80");
    assert_eq!(service.endpoints[0].resolved, ["10.0.0.1:80"]);
    assert_eq!(
        service.endpoints[0].detail.as_deref(),
        Some("200 in 0.4 ms")
    );
    bench.end().await;
}

/// What the agent's own stall explains takes nobody down, and is told.
#[tokio::test(start_paused = true)]
async fn a_verdict_that_is_excused_counts_neither_way() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    let stalled = Standing::Stalled;
    bench.check_that(stalled, 0, 0, Kind::ResponseTimeout).await;
    assert_eq!(bench.pending().await.len(), 2, "it was no first verdict");
    for endpoint in [0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    bench.did().await;
    for _ in 0..5 {
        bench.check_that(stalled, 0, 0, Kind::ResponseTimeout).await;
    }
    bench.check(0, Kind::Refused).await;
    bench.check_that(stalled, 0, 0, Kind::ResponseTimeout).await;
    assert_eq!(bench.did().await, []);
    // Nor does it take back what was a failure.
    bench.check(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    let master = &bench.status().await.services[0].endpoints[0];
    assert_eq!((master.checks, master.failures, master.excused), (10, 2, 7));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_agents_own_trouble_counts_neither_way() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    bench.check(0, Kind::Local).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    assert_eq!(bench.pending().await, ["sense/master"], "nobody judged it");
    bench.check(0, Kind::Ok).await;
    for _ in 0..10 {
        bench.check(0, Kind::Local).await;
    }
    assert_eq!(bench.did().await, []);
    assert!(bench.pending().await.is_empty());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_kept_last_choice_is_never_marked_down() {
    let bench = Bench::new(&config("  all_down: keep"), Recorder::default(), &[]);
    bench.check(1, Kind::Refused).await;
    bench.check(0, Kind::ConnectTimeout).await;
    assert_eq!(bench.did().await, [Apply(1), Select(0), Down(1)]);
    // The backup comes first: marked up, selected, and only then the master is marked down.
    bench.check(1, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(1), Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn refusing_and_back() {
    let bench = Bench::new(&config("  all_down: refuse"), Recorder::default(), &[]);
    bench.check(1, Kind::Refused).await;
    bench.check(0, Kind::BadStatus).await;
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Select(0),
            Down(1),
            Refuse,
            Down(0),
            Heard(Reason::AllDown)
        ]
    );
    assert_eq!(bench.status().await.services[0].selection.kind, "refuse");
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Select(0), Heard(Reason::Failback)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_goes_on_where_the_earlier_one_was() {
    let recorder = Recorder {
        inherited: Some(Choice::Endpoint(EndpointId(1))),
        inherited_marks: vec![Mark::Down, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::new(&config("  failback: {mode: manual}"), recorder, &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(1)]);
    let service = &bench.status().await.services[0];
    assert_eq!(service.selection.reason, "inherited");
    assert_eq!(service.endpoints[0].state, "down");
    // One failure of the endpoint in use does not switch: it takes `fall`.
    bench.check(1, Kind::ResponseTimeout).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(
        bench.failback("sense").await,
        Err(Refused::No {
            service: "sense".to_owned(),
            reason: NoFailback::NoneUp
        })
    );
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(0)]);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(bench.failback("sense").await, Ok("master".to_owned()));
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Manual)]);
    assert_eq!(
        bench.failback("nobody").await.unwrap_err().to_string(),
        "there is no service `nobody`"
    );
    bench.end().await;
}
