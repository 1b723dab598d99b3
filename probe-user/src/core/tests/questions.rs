//! Questions beside verdicts: who asks without end delays nobody.

use super::*;

/// From a verdict that takes the selected endpoint down to the write that leaves it, sorted.
async fn switches(bench: &Bench) -> Vec<Duration> {
    let mut took = Vec::new();
    for round in 0..100 {
        let (from, to) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        bench.check(from, Kind::Refused).await;
        let begun = std::time::Instant::now();
        bench.check(from, Kind::Refused).await;
        while !bench.did.lock().unwrap().contains(&Select(to)) {
            tokio::task::yield_now().await;
        }
        took.push(begun.elapsed());
        bench.check(from, Kind::Ok).await;
        bench.check(from, Kind::Ok).await;
        bench.did().await;
    }
    took.sort();
    took
}

/// Somebody who asks without end has a share of the core, no more: a verdict that takes the
/// master down is not kept waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn questions_do_not_delay_a_switch() {
    let bench = both_up("").await;
    let calm = switches(&bench).await;
    let mut askers = Vec::new();
    for _ in 0..32 {
        let asks = bench.asks.clone();
        askers.push(tokio::spawn(async move {
            loop {
                let (tx, rx) = oneshot::channel();
                if asks.send(Ask::Status(tx)).await.is_err() || rx.await.is_err() {
                    return;
                }
            }
        }));
    }
    let took = switches(&bench).await;
    askers.iter().for_each(tokio::task::JoinHandle::abort);
    println!(
        "verdict to write: median {:?}, p90 {:?}; beside 32 askers {:?}, {:?}",
        calm[50], calm[90], took[50], took[90]
    );
    assert!(took[50] < Duration::from_millis(50), "{took:?}");
}
