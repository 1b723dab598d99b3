//! A master that comes and goes: its fail-backs wait longer.

use super::*;

/// Fail-backs of a master that comes and goes wait longer, failovers never.
#[tokio::test(start_paused = true)]
async fn a_relapse_is_told_and_forgotten() {
    let bench = Bench::new(&config("  failback: {hold: 5s}"), Recorder::default(), &[]);
    for endpoint in [0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    let down = async || {
        bench.check(0, Kind::Refused).await;
        bench.check(0, Kind::Refused).await;
    };
    let up = async || {
        bench.check(0, Kind::Ok).await;
        bench.check(0, Kind::Ok).await;
        assert_eq!(bench.did().await, [Up(0)]);
    };
    bench.did().await;
    let over = [Select(1), Down(0), Heard(Reason::MasterDown)];
    let back = [Select(0), Heard(Reason::Failback)];
    down().await;
    assert_eq!(bench.did().await, over);
    up().await;
    tokio::time::sleep(Duration::from_millis(5010)).await;
    assert_eq!(bench.did().await, back);
    // Over at once, with the news of a longer hold time after it.
    down().await;
    let ten = Holds(Duration::from_secs(10));
    assert_eq!(bench.did().await, [&over[..], &[ten]].concat());
    let failback = bench.status().await.services[0].failback.clone();
    let of = failback.damped[0];
    assert_eq!((of.tier, of.hold_ms, of.relapses), (0, 10_000, 1));
    let longest = failback.max_hold_ms;
    assert_eq!((failback.hold_ms, longest), (Some(5000), Some(300_000)));
    up().await;
    tokio::time::sleep(Duration::from_millis(9990)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bench.did().await, back);
    // Steady for a minute: forgotten, without anything else happening.
    assert_eq!(bench.status().await.services[0].failback.damped.len(), 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.did().await;
    assert!(bench.status().await.services[0].failback.damped.is_empty());
    // By hand nobody waits.
    down().await;
    assert_eq!(bench.did().await, over);
    up().await;
    assert_eq!(bench.failback("sense").await, Ok("master".to_owned()));
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Manual)]);
    bench.end().await;
}

/// A restart does not forget that the master comes and goes.
#[tokio::test(start_paused = true)]
async fn damping_survives_the_agent() {
    let config = config("  failback: {hold: 5s}");
    let bench = Bench::new(&config, Recorder::default(), &[]);
    for endpoint in [0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    for kind in [Kind::Refused, Kind::Ok] {
        bench.check(0, kind).await;
        bench.check(0, kind).await;
        bench.did().await;
    }
    tokio::time::sleep(Duration::from_millis(5010)).await;
    bench.did().await;
    assert!(bench.kept.borrow().standing.services.is_empty());
    bench.check(0, Kind::Refused).await;
    bench.check(0, Kind::Refused).await;
    bench.did().await;
    let standing = bench.kept.borrow().standing.clone();
    assert!(!standing.has_orders());
    bench.end().await;
    let text = serde_json::to_string(&*standing).unwrap();
    let read = serde_json::from_str(&text).unwrap();

    let left = Recorder {
        inherited: Some(Choice::Endpoint(EndpointId(1))),
        inherited_marks: vec![Mark::Down, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::after(read, &config, left, &[]);
    let failback = bench.status().await.services[0].failback.clone();
    assert_eq!(
        (failback.damped[0].tier, failback.damped[0].hold_ms),
        (0, 10_000)
    );
    for endpoint in [1, 0, 0] {
        bench.check(endpoint, Kind::Ok).await;
    }
    bench.did().await;
    tokio::time::sleep(Duration::from_millis(9990)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Failback)]);
    // Steady: forgotten, in the file too.
    tokio::time::sleep(Duration::from_secs(61)).await;
    bench.did().await;
    assert!(bench.kept.borrow().standing.services.is_empty());
    bench.end().await;
}
