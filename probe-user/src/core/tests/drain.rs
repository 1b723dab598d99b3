//! Connections of an endpoint that new ones have left: how long they may last.

use super::*;

/// Over to the backup, and back at once.
async fn over_and_back_at_once(bench: &Bench) {
    for _ in 0..2 {
        bench.check(1, Kind::Ok).await;
        bench.check(0, Kind::Refused).await;
    }
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Select(0),
            Select(1),
            Down(0),
            Heard(Reason::MasterDown)
        ]
    );
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
}

const AT_ONCE: &str = "  failback: {hold: 0s}\n";

#[tokio::test(start_paused = true)]
async fn flows_of_the_backup_have_their_time() {
    let bench = Bench::new(
        &config(&format!("{AT_ONCE}  drain: 60s")),
        Recorder::default(),
        &[],
    );
    over_and_back_at_once(&bench).await;
    let back = [Up(0), Select(0), Heard(Reason::Failback)];
    assert_eq!(bench.did().await, back);
    let drain = |status: status::Status| status.services[0].endpoints[1].drain;
    let said = drain(bench.status().await).unwrap();
    assert_eq!(said.flows, None);
    bench.sweep(1, 3).await;
    assert_eq!(bench.did().await, []);
    let said = drain(bench.status().await).unwrap();
    assert_eq!(said.flows, Some(3));
    let until = said.until_unix_ms.unwrap();
    assert!(until.abs_diff(said.since_unix_ms) >= 59_000);
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.did().await, [Drained(1)]);
    assert!(
        drain(bench.status().await).is_some(),
        "they are still there"
    );
    bench.sweep(1, 0).await;
    assert_eq!(bench.did().await, [Up(1)]);
    assert!(drain(bench.status().await).is_none());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_endpoint_is_marked_up_before_it_is_selected() {
    let bench = Bench::new(
        &config(&format!("{AT_ONCE}  drain: 0s")),
        Recorder::default(),
        &[],
    );
    over_and_back_at_once(&bench).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Select(0), Drained(1), Heard(Reason::Failback)]
    );
    bench.check(0, Kind::Refused).await;
    bench.check(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Up(1), Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn selected_again_or_down_cancels_a_drain() {
    for down in [false, true] {
        let text = format!("{AT_ONCE}  drain: 60s");
        let bench = Bench::new(&config(&text), Recorder::default(), &[]);
        over_and_back_at_once(&bench).await;
        bench.did().await;
        bench.sweep(1, 3).await;
        bench.did().await;
        let failing = if down { 1 } else { 0 };
        bench.check(failing, Kind::Refused).await;
        bench.check(failing, Kind::Refused).await;
        let did = bench.did().await;
        if down {
            assert_eq!(did, [Down(1)]);
        } else {
            assert_eq!(did, [Select(1), Down(0), Heard(Reason::MasterDown)]);
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(bench.did().await, []);
        assert!(
            bench.status().await.services[0].endpoints[1]
                .drain
                .is_none()
        );
        bench.end().await;
    }
}

/// Down is a mark that the service keeps; at the deadline it is drained.
#[tokio::test(start_paused = true)]
async fn who_goes_down_may_have_time() {
    let text = format!("{AT_ONCE}  on_marked_down: {{drain: 60s}}");
    for back in [false, true] {
        let bench = Bench::new(&config(&text), Recorder::default(), &[]);
        bench.check(0, Kind::Ok).await;
        bench.check(1, Kind::Ok).await;
        bench.did().await;
        bench.check(0, Kind::Refused).await;
        bench.check(0, Kind::Refused).await;
        assert_eq!(
            bench.did().await,
            [Select(1), Down(0), Heard(Reason::MasterDown)]
        );
        tokio::time::sleep(Duration::from_secs(59)).await;
        bench.sweep(0, 3).await;
        assert_eq!(bench.did().await, []);
        let drain = bench.status().await.services[0].endpoints[0].drain.unwrap();
        assert!(drain.until_unix_ms.is_some());
        assert_eq!(drain.flows, Some(3));
        if back {
            bench.check(0, Kind::Ok).await;
            bench.check(0, Kind::Ok).await;
            assert_eq!(
                bench.did().await,
                [Up(0), Select(0), Heard(Reason::Failback)]
            );
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let expected = if back { vec![] } else { vec![Drained(0)] };
        assert_eq!(bench.did().await, expected);
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_nothing_is_drained() {
    let bench = Bench::new(&config(AT_ONCE), Recorder::default(), &[]);
    over_and_back_at_once(&bench).await;
    bench.did().await;
    bench.sweep(1, 3).await;
    bench.did().await;
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    assert_eq!(bench.did().await, []);
    let drain = bench.status().await.services[0].endpoints[1].drain.unwrap();
    assert_eq!((drain.until_unix_ms, drain.flows), (None, Some(3)));
    bench.sweep(1, 0).await;
    assert_eq!(bench.did().await, []);
    assert!(
        bench.status().await.services[0].endpoints[1]
            .drain
            .is_none()
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_goes_on_over_a_restart() {
    let recorder = |ago, mark| Recorder {
        inherited: Some(Choice::Endpoint(EndpointId(0))),
        inherited_marks: vec![Mark::Up, mark],
        inherited_ago: Duration::from_secs(ago),
        ..Recorder::default()
    };
    let config = config("  drain: 60s");
    // Paused time begins at the start of the test: let there be a past.
    tokio::time::sleep(Duration::from_secs(1000)).await;
    let bench = Bench::new(&config, recorder(50, Mark::Up), &[]);
    bench.sweep(1, 3).await;
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    assert!(
        bench.status().await.services[0].endpoints[1]
            .drain
            .is_some()
    );
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(bench.did().await, [Drained(1)]);
    bench.end().await;
    // It was over before, or became so while nobody was there.
    let bench = Bench::new(&config, recorder(100, Mark::Drained), &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    bench.end().await;
    let bench = Bench::new(&config, recorder(100, Mark::Up), &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(0), Drained(1)]);
    bench.end().await;
}
