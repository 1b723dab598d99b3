//! Signs of failure that are no checks: from sentinels, and from what the datapath sees of clients.

use super::*;

const SENTINEL: Signal = Signal::SentinelClosed;

fn checked(endpoint: usize, generation: u32) -> Whose {
    Whose::Checked(CheckKey {
        service: 0,
        endpoint,
        generation,
    })
}

/// A bench whose endpoints are both up.
async fn up(extra: &str) -> Bench {
    let bench = Bench::new(&config(extra), Recorder::default(), &[]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    bench.did().await;
    bench
}

fn signals(status: &status::Status, endpoint: usize, signal: Signal) -> u64 {
    status.services[0].endpoints[endpoint].signals[signal.label()]
}

#[tokio::test(start_paused = true)]
async fn a_signal_triggers_checks_of_its_endpoint_and_decides_nothing() {
    let bench = up("").await;
    assert!(!bench.triggered(0).await && !bench.triggered(1).await);
    bench.refused(0, 1, 1).await;
    assert!(bench.triggered(1).await && !bench.triggered(0).await);
    bench.signal(checked(0, 0), SENTINEL).await;
    assert!(bench.triggered(0).await && !bench.triggered(1).await);
    bench.refused(0, 0, 1000).await;
    assert_eq!(bench.did().await, []);
    let status = bench.status().await;
    assert_eq!(signals(&status, 0, Signal::Refused), 1000);
    assert_eq!(signals(&status, 0, SENTINEL), 1);
    assert_eq!(signals(&status, 1, Signal::Refused), 1);
    assert_eq!(signals(&status, 1, Signal::Unanswered), 0);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn signals_about_nobody_are_ignored() {
    let bench = up("  observe: mark-down\n  error_limit: 1").await;
    // No such service, no such endpoint, no such position.
    bench.refused(1, 0, 1).await;
    bench.refused(0, 2, 1).await;
    bench.refused(0, 100, 1).await;
    bench.signal(checked(7, 0), SENTINEL).await;
    bench.signal(checked(0, 1), SENTINEL).await;
    assert_eq!(bench.did().await, []);
    assert!(!bench.triggered(0).await && !bench.triggered(1).await);
    // The master moves: its id is retired, its sentinel another one.
    bench.lookup(Ok(&["10.0.0.5"])).await;
    bench.did().await;
    bench.refused(0, 0, 1).await;
    bench.signal(checked(0, 0), SENTINEL).await;
    assert_eq!(bench.did().await, []);
    assert!(!bench.triggered(0).await && !bench.triggered(1).await);
    let status = bench.status().await;
    assert_eq!(signals(&status, 0, Signal::Refused), 0);
    assert_eq!(signals(&status, 0, SENTINEL), 0);
    bench.signal(checked(0, 1), SENTINEL).await;
    assert!(bench.triggered(0).await);
    bench.refused(0, 101, 1).await;
    assert_eq!(
        bench.did().await,
        [Select(1), Down(101), Heard(Reason::MasterDown)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn off_only_counts() {
    let bench = up("  observe: off").await;
    bench.refused(0, 0, 100).await;
    assert!(!bench.triggered(0).await);
    assert_eq!(signals(&bench.status().await, 0, Signal::Refused), 100);
    // The sentinel is another matter.
    bench.signal(checked(0, 0), SENTINEL).await;
    assert!(bench.triggered(0).await);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn too_many_errors_in_a_row_mark_down() {
    let (bench, timeout, silent) = watched("  observe: mark-down\n  error_limit: 3").await;
    // A good check forgives, a bad one and the other endpoint's do not.
    bench.refused(0, 0, 2).await;
    assert_eq!(bench.did().await, []);
    bench.check(0, Kind::Ok).await;
    bench.did().await;
    bench.refused(0, 0, 2).await;
    bench.did().await;
    bench.check(0, Kind::Refused).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert!(!bench.triggered(0).await, "errors are counted, not checked");
    // One that is repeated counts if nobody else was answered since.
    let whose = Whose::Steered(ServiceId(0), EndpointId(0));
    bench.signal(whose, Signal::Unanswered).await;
    assert_eq!(bench.did().await, []);
    assert!(bench.triggered(0).await);
    silent
        .lock()
        .unwrap()
        .insert(0, Instant::now() - timeout * 6 / 10);
    bench.signal(whose, Signal::Unanswered).await;
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    let status = bench.status().await;
    let master = &status.services[0].endpoints[0];
    assert_eq!(master.state, "down");
    assert_eq!(master.verdict.as_deref(), Some("observed"));
    assert_eq!(
        master.detail.as_deref(),
        Some("3 connections of clients failed in a row, the last: syn_unanswered")
    );
    assert_eq!((master.checks, master.failures), (3, 1));
    // Who is down is not marked down again, and comes up by `rise` good checks.
    bench.refused(0, 0, 10).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(0)]);
    // What was counted while it was down is no debt.
    bench.refused(0, 0, 2).await;
    assert_eq!(bench.did().await, []);
    bench.end().await;
}

/// A bench whose endpoints are up, the time that its checks may take, and since when which of them
/// have answered no client.
async fn watched(extra: &str) -> (Bench, Duration, Silences) {
    let (recorder, of) = (Recorder::default(), config(extra));
    let (silent, timeout) = (recorder.silent.clone(), of.services()[0].check().timeout());
    let bench = Bench::new(&of, recorder, &[]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    bench.did().await;
    // What begins now begins after those checks.
    tokio::time::sleep(Duration::from_millis(1)).await;
    (bench, timeout, silent)
}

type Silences = Arc<Mutex<BTreeMap<u32, Instant>>>;

#[tokio::test(start_paused = true)]
async fn who_answers_nobody_is_checked_and_then_left() {
    let (bench, timeout, silent) = watched("  observe: mark-down\n  error_limit: 1").await;
    silent.lock().unwrap().insert(0, Instant::now());
    tokio::time::sleep(timeout / 2 - timeout / 10).await;
    assert!(!bench.triggered(0).await);
    tokio::time::sleep(timeout / 5).await;
    // The other one is a witness.
    assert!(bench.triggered(0).await && bench.triggered(1).await);
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(timeout / 2).await;
    assert_eq!(bench.did().await, [], "perhaps it is this node");
    bench.check(1, Kind::Ok).await;
    tokio::time::sleep(timeout).await;
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    let status = bench.status().await;
    assert_eq!(signals(&status, 0, Signal::Silent), 1);
    assert_eq!(
        status.services[0].endpoints[0].detail.as_deref(),
        Some("1 connections of clients failed in a row, the last: silent")
    );
    // Clients of the last choice that is kept: no news.
    silent.lock().unwrap().insert(0, Instant::now());
    tokio::time::sleep(3 * timeout).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(signals(&bench.status().await, 0, Signal::Silent), 1);
    assert!(silent.lock().unwrap().is_empty());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_good_check_breaks_a_silence() {
    let (bench, timeout, silent) = watched("  observe: mark-down\n  error_limit: 1").await;
    silent.lock().unwrap().insert(0, Instant::now());
    tokio::time::sleep(timeout * 7 / 10).await;
    assert!(bench.triggered(0).await);
    bench.check(0, Kind::Ok).await;
    tokio::time::sleep(timeout).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(signals(&bench.status().await, 0, Signal::Silent), 0);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn silence_is_checked_only_where_clients_do_no_more() {
    let (bench, timeout, silent) = watched("").await;
    silent.lock().unwrap().insert(0, Instant::now());
    bench.check(1, Kind::Ok).await;
    tokio::time::sleep(timeout * 3 / 2).await;
    assert!(bench.triggered(0).await);
    assert_eq!(bench.did().await, []);
    assert_eq!(signals(&bench.status().await, 0, Signal::Silent), 1);
    bench.end().await;
    let (bench, timeout, silent) = watched("  observe: off").await;
    silent.lock().unwrap().insert(0, Instant::now());
    tokio::time::sleep(3 * timeout).await;
    assert!(!bench.triggered(0).await);
    assert_eq!(signals(&bench.status().await, 0, Signal::Silent), 0);
    bench.end().await;
}

/// Its id is retired, or was given to another since.
#[tokio::test(start_paused = true)]
async fn the_silence_of_nobody_is_forgotten() {
    let (bench, timeout, silent) = watched("").await;
    silent.lock().unwrap().insert(77, Instant::now());
    tokio::time::sleep(3 * timeout).await;
    assert_eq!(bench.did().await, []);
    assert!(silent.lock().unwrap().is_empty());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_kept_last_choice_is_not_marked_down_by_its_clients_either() {
    let bench = up("  observe: mark-down\n  error_limit: 1\n  all_down: keep").await;
    bench.refused(0, 1, 1).await;
    bench.refused(0, 0, 1).await;
    assert_eq!(bench.did().await, [Down(1)]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_down_is_left_to_the_grid() {
    let bench = up("").await;
    bench.check(0, Kind::Refused).await;
    bench.refused(0, 0, 1).await;
    assert!(bench.triggered(0).await, "not down yet");
    bench.check(0, Kind::Refused).await;
    bench.did().await;
    bench.refused(0, 0, 1).await;
    bench.signal(checked(0, 0), Signal::SentinelFailed).await;
    assert!(!bench.triggered(0).await);
    assert_eq!(signals(&bench.status().await, 0, Signal::SentinelFailed), 1);
    bench.end().await;
}
