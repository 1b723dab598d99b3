//! All hosts are silent: perhaps it is this node, and selections are held.

use super::*;

const REFUSE: &str = "  all_down: refuse";

#[tokio::test(start_paused = true)]
async fn selections_are_held_while_all_hosts_are_silent() {
    let bench = Bench::new(&config(REFUSE), Recorder::default(), &[]);
    bench
        .silent(Kind::ConnectTimeout, Kind::ResponseTimeout)
        .await;
    assert_eq!(bench.did().await, [Doubts(true)]);
    // Both are down now, and nobody is marked, left or refused.
    bench.check(1, Kind::Unreachable).await;
    assert_eq!(bench.did().await, []);
    let status = bench.status().await;
    assert!(status.agent.distrust_since_unix_ms.is_some());
    let service = &status.services[0];
    assert!(service.endpoints.iter().all(|e| e.state == "down"));
    assert_eq!(service.selection.endpoint.as_deref(), Some("master"));
    // A word of anybody ends it, and each is judged by its own next check, made at once.
    bench.later().await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, [Doubts(false)]);
    assert!(bench.triggered(0).await);
    let status = bench.status().await;
    assert_eq!(status.agent.distrust_since_unix_ms, None);
    // One that began before says nothing.
    bench.check(0, Kind::ConnectTimeout).await;
    assert_eq!(bench.did().await, []);
    bench.later().await;
    bench.check(0, Kind::ConnectTimeout).await;
    let over = [Select(1), Down(0), Heard(Reason::MasterDown)];
    assert_eq!(bench.did().await, over);
    bench.check(1, Kind::Ok).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bench.did().await, [], "there is nothing left to believe");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_comes_back_costs_nothing() {
    let bench = Bench::new(&config(REFUSE), Recorder::default(), &[]);
    bench.silent(Kind::Unreachable, Kind::Unreachable).await;
    bench.check(1, Kind::Unreachable).await;
    assert_eq!(bench.did().await, [Doubts(true)]);
    bench.later().await;
    for endpoint in [0, 1, 0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    assert_eq!(bench.did().await, [Doubts(false)]);
    assert_eq!(bench.status().await.services[0].endpoints[0].state, "up");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bench.did().await, []);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_doubt_has_an_end() {
    let bench = Bench::new(&config(REFUSE), Recorder::default(), &[]);
    bench
        .silent(Kind::ConnectTimeout, Kind::ConnectTimeout)
        .await;
    bench.check(1, Kind::ConnectTimeout).await;
    assert_eq!(bench.did().await, [Doubts(true)]);
    tokio::time::sleep(Duration::from_millis(9990)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(20)).await;
    // Not by way of the backup, which is down too.
    let refused = [
        Doubts(false),
        Down(1),
        Refuse,
        Down(0),
        Heard(Reason::AllDown),
    ];
    assert_eq!(bench.did().await, refused);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_doubts_what_is_said_or_when_told_not_to() {
    let over = [Select(1), Down(0), Heard(Reason::MasterDown)];
    let off = format!("{REFUSE}\nsuspect_self: off");
    let silence = Kind::ConnectTimeout;
    for (extra, master, backup) in [
        (REFUSE, silence, Kind::Ok),
        (REFUSE, silence, Kind::Refused),
        (REFUSE, Kind::BadStatus, silence),
        (&off, silence, silence),
    ] {
        let bench = Bench::new(&config(extra), Recorder::default(), &[]);
        bench.silent(master, backup).await;
        assert_eq!(bench.did().await, over, "{extra} {master:?} {backup:?}");
        bench.end().await;
    }
}
