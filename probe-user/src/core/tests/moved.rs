//! A name that leads to another address than before.

use super::{tiers::tiers, *};

#[tokio::test(start_paused = true)]
async fn a_moved_endpoint_gets_a_new_id_and_new_checks() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    // The present address is among the answers, then nothing resolves: nothing moves.
    bench.lookup(Ok(&["10.0.0.1", "10.0.0.0"])).await;
    bench.lookup(Err("SERVFAIL")).await;
    bench.lookup(Err("SERVFAIL")).await;
    assert_eq!(bench.did().await, []);
    // The datapath has no room: the old address goes on.
    bench.lookup(Ok(&["10.9.9.9"])).await;
    assert_eq!(bench.did().await, []);
    bench.lookup(Ok(&["10.0.0.7", "10.0.0.5"])).await;
    assert_eq!(
        bench.did().await,
        [
            Readdress(0, "Some(10.0.0.5)".to_owned()),
            Select(101),
            Heard(Reason::AddressChanged)
        ]
    );
    let keys: Vec<_> = bench
        .started
        .lock()
        .unwrap()
        .iter()
        .map(|k| (k.endpoint, k.generation))
        .collect();
    assert_eq!(keys, [(0, 0), (1, 0), (0, 1)]);
    // Verdicts on the old address are nobody's.
    for _ in 0..5 {
        bench.check_of(0, 0, Kind::Refused).await;
    }
    assert_eq!(bench.did().await, []);
    for _ in 0..2 {
        bench.check_of(0, 1, Kind::Refused).await;
    }
    assert_eq!(
        bench.did().await,
        [Select(1), Down(101), Heard(Reason::MasterDown)]
    );
    // Moved while it is down: the new id is marked down too.
    bench.lookup(Ok(&["10.0.0.8"])).await;
    assert_eq!(
        bench.did().await,
        [Readdress(101, "Some(10.0.0.8)".to_owned()), Down(102)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_moved_endpoint_of_several_is_no_switch() {
    let bench = Bench::new(&tiers(""), Recorder::default(), &[]);
    for i in 0..5 {
        bench.check(i, Kind::Ok).await;
    }
    bench.did().await;
    bench.lookup(Ok(&["10.0.0.5"])).await;
    assert_eq!(
        bench.did().await,
        [
            Readdress(0, "Some(10.0.0.5)".to_owned()),
            Spread(vec![101, 1]),
            Heard(Reason::MembersChanged)
        ]
    );
    assert_eq!(bench.status().await.services[0].selection.switches, 0);
    bench.end().await;
}
