//! When checks are made, mostly on paused time; the grid, bursts, gaps and the budget.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use tokio::{net::TcpListener, task::AbortHandle, time::sleep};

use super::{course::Gap, grid::next_point, *};
use crate::health::{
    Probe,
    verdict::{Finding, Kind},
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn the_next_grid_point_is_always_to_come() {
    assert_eq!(next_point(0, ms(0), ms(10)), 1);
    assert_eq!(next_point(0, ms(9), ms(10)), 1);
    assert_eq!(next_point(0, ms(10), ms(10)), 2);
    assert_eq!(next_point(0, ms(52), ms(5)), 11);
    // A timer that fired a little early must not repeat its point.
    assert_eq!(next_point(7, ms(69), ms(10)), 8);
}

/// A server that never answers, a timeout of ten intervals: late checks do not bunch.
#[tokio::test]
async fn a_check_longer_than_the_interval_skips_and_does_not_bunch() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = server.local_addr().unwrap();
    let config = crate::config::parse(
        "interfaces: {edge: [a]}\nservices: [{name: a, listeners: ['10.0.0.1:80'], endpoints: \
         [{name: b, address: '10.0.0.2:80'}], check: {http: {}, inter: 5ms, timeout: 52ms}}]",
    )
    .unwrap();
    let check = config.services()[0].check();
    let rhythm = rhythm(check.inter());
    let check = check.clone();
    let probe = move || Probe::new(&check, target, "a");
    let (tx, mut rx) = mpsc::channel(16);
    let (_trigger, triggered) = Trigger::new();
    let task = tokio::spawn(run((), probe, rhythm, triggered, shared(), all_to(tx)));
    let first = rx.recv().await.unwrap();
    assert_eq!(first.verdict.kind, Kind::ResponseTimeout);
    assert_eq!(first.skipped, 0);
    for _ in 0..3 {
        let report = rx.recv().await.unwrap();
        assert_eq!(report.verdict.kind, Kind::ResponseTimeout);
        // Each took its whole timeout, so the ten grid points within it were skipped.
        assert!(report.verdict.latency >= Duration::from_millis(52));
        assert!(report.skipped >= 10, "{}", report.skipped);
    }
    task.abort();
}

/// Of an agent that is never stalled.
fn all_to<K>(tx: mpsc::Sender<Report<K>>) -> Reports<K> {
    Reports {
        urgent: tx.clone(),
        quiet: tx,
    }
}

fn shared() -> Shared {
    Shared {
        pulse: Arc::new(Pulse::new(ms(1000))),
        budget: Arc::new(Budget::new(None, None)),
    }
}

fn rhythm(inter: Duration) -> Rhythm {
    Rhythm {
        intervals: Intervals {
            inter,
            fastinter: inter,
            downinter: inter,
        },
        offset: Duration::ZERO,
        phase: inter,
        spread: 0,
        timeout: ms(1000),
        in_flight: 1,
        life_signs: None,
        health: RiseFall::new(2, 3, State::Up),
    }
}

/// What an endpoint in a test is like now.
#[derive(Debug)]
struct Mood {
    kind: Kind,
    takes: Duration,
    /// When checks of it began, from the start.
    begun: Vec<Duration>,
    start: Instant,
}

struct Scripted(Arc<Mutex<Mood>>);

impl Check for Scripted {
    async fn make(&mut self) -> Verdict {
        let (kind, takes) = {
            let mut mood = self.0.lock().unwrap();
            let begun = mood.start.elapsed();
            mood.begun.push(begun);
            (mood.kind, mood.takes)
        };
        sleep(takes).await;
        Finding::new(kind, "").after(takes)
    }
}

/// Checks of an endpoint that is up, on paused time.
struct Bench {
    mood: Arc<Mutex<Mood>>,
    trigger: Trigger,
    reports: mpsc::Receiver<Report<()>>,
    task: AbortHandle,
}

impl Bench {
    fn new(inter: Duration) -> Self {
        Self::with(rhythm(inter))
    }

    fn with(rhythm: Rhythm) -> Self {
        let mood = Arc::new(Mutex::new(Mood {
            kind: Kind::Ok,
            takes: Duration::ZERO,
            begun: Vec::new(),
            start: Instant::now(),
        }));
        let (trigger, triggered) = Trigger::new();
        let (tx, reports) = mpsc::channel(4096);
        let script = mood.clone();
        let checks = run(
            (),
            move || Scripted(script.clone()),
            rhythm,
            triggered,
            shared(),
            all_to(tx),
        );
        let task = tokio::spawn(checks).abort_handle();
        Self {
            mood,
            trigger,
            reports,
            task,
        }
    }

    fn becomes(&self, kind: Kind) {
        self.mood.lock().unwrap().kind = kind;
    }

    fn takes(&self, takes: Duration) {
        self.mood.lock().unwrap().takes = takes;
    }

    /// When checks began since the last question.
    fn begun(&self) -> Vec<Duration> {
        std::mem::take(&mut self.mood.lock().unwrap().begun)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_that_is_told_of_is_known_after_fall_checks() {
    let bench = Bench::new(ms(2000));
    sleep(ms(700)).await;
    assert_eq!(bench.begun(), [ms(0)]);
    bench.becomes(Kind::Refused);
    bench.trigger.pull();
    sleep(ms(500)).await;
    assert_eq!(bench.begun(), [ms(700), ms(701), ms(702)]);
    // The grid is where it was.
    sleep(ms(3000)).await;
    assert_eq!(bench.begun(), [ms(2000), ms(4000)]);
}

#[tokio::test(start_paused = true)]
async fn a_false_alarm_costs_one_check() {
    let bench = Bench::new(ms(2000));
    sleep(ms(10)).await;
    bench.trigger.pull();
    sleep(ms(1000)).await;
    assert_eq!(bench.begun(), [ms(0), ms(10)]);
    // One bad check and a good one: confirmed too.
    bench.becomes(Kind::Reset);
    bench.takes(ms(3));
    bench.trigger.pull();
    sleep(ms(1)).await;
    bench.becomes(Kind::Ok);
    sleep(ms(500)).await;
    // Slower than the spacing, so back to back.
    assert_eq!(bench.begun(), [ms(1010), ms(1013)]);
}

#[tokio::test(start_paused = true)]
async fn earlier_failures_count_in_a_burst_and_a_known_state_is_confirmed_by_one_check() {
    let bench = Bench::new(ms(100));
    sleep(ms(50)).await;
    bench.becomes(Kind::Refused);
    sleep(ms(100)).await;
    bench.trigger.pull();
    sleep(ms(30)).await;
    // One failure on the grid and two in the burst: down.
    assert_eq!(bench.begun(), [ms(0), ms(100), ms(150), ms(151)]);
    bench.trigger.pull();
    sleep(ms(10)).await;
    assert_eq!(bench.begun(), [ms(180)]);
    // Good again: `rise` of them, then one.
    bench.becomes(Kind::Ok);
    bench.trigger.pull();
    sleep(ms(4)).await;
    assert_eq!(bench.begun(), [ms(190), ms(191)]);
}

#[tokio::test(start_paused = true)]
async fn the_agents_own_trouble_ends_a_burst() {
    let bench = Bench::new(ms(2000));
    sleep(ms(10)).await;
    bench.becomes(Kind::Local);
    bench.trigger.pull();
    sleep(ms(100)).await;
    assert_eq!(bench.begun(), [ms(0), ms(10)]);
}

#[tokio::test(start_paused = true)]
async fn triggers_during_a_burst_are_merged_and_none_is_lost() {
    let bench = Bench::new(ms(2000));
    sleep(ms(10)).await;
    bench.becomes(Kind::Refused);
    bench.takes(ms(5));
    bench.trigger.pull();
    // During the first check: those that follow are the answer.
    sleep(ms(1)).await;
    bench.trigger.pull();
    bench.trigger.pull();
    sleep(ms(100)).await;
    assert_eq!(bench.begun(), [ms(0), ms(10), ms(15), ms(20)]);
    // During the last one: it began too early to answer.
    bench.trigger.pull();
    sleep(ms(1)).await;
    bench.trigger.pull();
    sleep(ms(100)).await;
    assert_eq!(bench.begun(), [ms(111), ms(126)]);
    // In the quiet time after a burst: later.
    bench.trigger.pull();
    sleep(ms(6)).await;
    bench.trigger.pull();
    sleep(ms(100)).await;
    assert_eq!(bench.begun(), [ms(212), ms(227)]);
}

#[tokio::test(start_paused = true)]
async fn a_trigger_in_the_quiet_time_outlives_a_check_of_the_grid() {
    let bench = Bench::new(ms(100));
    sleep(ms(95)).await;
    bench.trigger.pull();
    sleep(ms(1)).await;
    bench.becomes(Kind::Refused);
    bench.trigger.pull();
    sleep(ms(40)).await;
    // 95 the burst, 100 the grid, 105 the burst that was asked for at 96.
    assert_eq!(bench.begun(), [ms(0), ms(95), ms(100), ms(105), ms(106)]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_triggers_is_no_flood_of_checks() {
    for (inter, most) in [(ms(2000), 10), (ms(5), 401), (ms(1), 2001)] {
        let bench = Bench::new(inter);
        let begin = Instant::now();
        while begin.elapsed() < ms(1000) {
            for _ in 0..100 {
                bench.trigger.pull();
            }
            sleep(ms(1)).await;
        }
        let made = bench.begun().len();
        assert!(made <= most, "inter {inter:?}: {made} checks in a second");
        // And the grid has its share.
        let grid = usize::try_from(1000 / inter.as_millis()).unwrap();
        assert!(made >= grid, "inter {inter:?}: {made} checks in a second");
    }
}

#[test]
fn the_gap_grows_with_false_alarms_and_calm_or_a_change_ends_that() {
    let mut gap = Gap::new(ms(2000));
    let first = gap.after(ms(5000), false);
    assert_eq!(first, ms(10));
    let mut storm = |last: Duration| gap.after(last + ms(1), false);
    let grown: Vec<_> = (0..8)
        .scan(first, |last, _| {
            *last = storm(*last);
            Some(last.as_millis())
        })
        .collect();
    assert_eq!(grown, [20, 40, 80, 160, 320, 640, 1000, 1000]);
    assert_eq!(gap.after(ms(1999), false), ms(1000));
    assert_eq!(gap.clone().after(ms(2000), false), ms(10));
    assert_eq!(gap.after(ms(1000), true), ms(10));
    for inter in [1, 5, 10] {
        let mut gap = Gap::new(ms(inter));
        let gaps = [gap.after(ms(0), false), gap.after(ms(0), false)];
        assert_eq!(gaps, [ms(inter), ms(inter)]);
    }
    let mut gap = Gap::new(ms(100));
    let gaps: Vec<_> = (0..6).map(|_| gap.after(ms(0), false)).collect();
    assert_eq!(gaps[4..], [ms(100), ms(100)]);
}

#[tokio::test(start_paused = true)]
async fn a_long_burst_skips_what_it_did_not_make_up_for() {
    let mut bench = Bench::new(ms(10));
    sleep(ms(5)).await;
    bench.becomes(Kind::ResponseTimeout);
    bench.takes(ms(50));
    bench.trigger.pull();
    // Three checks from 5 to 155; of the grid 10 to 150 pass.
    sleep(ms(152)).await;
    assert_eq!(bench.begun(), [ms(0), ms(5), ms(55), ms(105)]);
    bench.takes(ms(0));
    sleep(ms(10)).await;
    assert_eq!(bench.begun(), [ms(160)]);
    let mut skipped = Vec::new();
    while let Ok(report) = bench.reports.try_recv() {
        skipped.push(report.skipped);
    }
    assert_eq!(skipped, [0, 0, 0, 0, 12]);
}

/// Another rhythm than that of most tests.
fn quick(change: impl FnOnce(&mut Rhythm)) -> Bench {
    let mut rhythm = rhythm(ms(1000));
    change(&mut rhythm);
    Bench::with(rhythm)
}

#[tokio::test(start_paused = true)]
async fn in_transition_and_while_down_the_intervals_are_others() {
    let bench = quick(|rhythm| {
        rhythm.intervals.fastinter = ms(100);
        rhythm.intervals.downinter = ms(5000);
    });
    sleep(ms(1500)).await;
    assert_eq!(bench.begun(), [ms(0), ms(1000)]);
    // The first failure is found on the grid, the others follow fast.
    bench.becomes(Kind::BadStatus);
    sleep(ms(8000)).await;
    assert_eq!(bench.begun(), [ms(2000), ms(2100), ms(2200), ms(7200)]);
    // One good check, the second makes it up; then as usual, from there.
    bench.becomes(Kind::Ok);
    sleep(ms(5000)).await;
    let up = [ms(12_200), ms(12_300), ms(13_300), ms(14_300)];
    assert_eq!(bench.begun(), up);
    // A failure that the next check takes back.
    sleep(ms(400)).await;
    bench.becomes(Kind::Refused);
    sleep(ms(450)).await;
    assert_eq!(bench.begun(), [ms(15_300)]);
    bench.becomes(Kind::Ok);
    sleep(ms(2000)).await;
    assert_eq!(bench.begun(), [ms(15_400), ms(16_400)]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_that_takes_an_endpoint_down_begins_the_interval_of_those() {
    let bench = quick(|rhythm| {
        rhythm.intervals.fastinter = ms(100);
        rhythm.intervals.downinter = ms(300);
    });
    sleep(ms(700)).await;
    bench.becomes(Kind::Refused);
    bench.trigger.pull();
    sleep(ms(700)).await;
    let down = [ms(0), ms(700), ms(701), ms(702), ms(1002), ms(1302)];
    assert_eq!(bench.begun(), down);
    // A false alarm leaves the grid alone.
    bench.becomes(Kind::Ok);
    sleep(ms(1000)).await;
    assert_eq!(bench.begun(), [ms(1602), ms(1702)]);
    bench.trigger.pull();
    sleep(ms(500)).await;
    assert_eq!(bench.begun(), [ms(2400), ms(2702)]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_check_in_transition_does_not_bunch() {
    let mut bench = quick(|rhythm| rhythm.intervals.fastinter = ms(10));
    sleep(ms(500)).await;
    bench.becomes(Kind::ResponseTimeout);
    bench.takes(ms(35));
    sleep(ms(640)).await;
    // On the fast grid, that began at 1000: those at 1010 to 1030 and so on were passed.
    let begun = [ms(0), ms(1000), ms(1040), ms(1080)];
    assert_eq!(bench.begun(), begun);
    let skipped: Vec<_> = std::iter::from_fn(|| bench.reports.try_recv().ok())
        .map(|report| report.skipped)
        .collect();
    assert_eq!(skipped, [0, 0, 0, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_first_check_is_early_and_the_grid_has_a_phase() {
    let bench = quick(|rhythm| {
        rhythm.offset = ms(1);
        rhythm.phase = ms(300);
    });
    sleep(ms(2500)).await;
    assert_eq!(bench.begun(), [ms(1), ms(301), ms(1301), ms(2301)]);
    // A first check that takes longer than the phase.
    let mut slow = quick(|rhythm| rhythm.phase = ms(20));
    slow.takes(ms(50));
    sleep(ms(1500)).await;
    assert_eq!(slow.begun(), [ms(0), ms(1020)]);
    assert_eq!(slow.reports.try_recv().unwrap().skipped, 0);
    assert_eq!(slow.reports.try_recv().unwrap().skipped, 1);
}

#[tokio::test(start_paused = true)]
async fn jitter_is_bounded_and_does_not_add_up() {
    let bench = quick(|rhythm| {
        rhythm.intervals.inter = ms(100);
        rhythm.phase = ms(100);
        rhythm.spread = 20;
    });
    sleep(ms(100_000)).await;
    let begun = bench.begun();
    assert!((999..=1001).contains(&begun.len()), "{}", begun.len());
    let late: Vec<_> = begun
        .iter()
        .zip(0u32..)
        .map(|(at, point)| at.checked_sub(ms(100) * point).unwrap())
        .collect();
    // Timers are exact to the millisecond.
    assert!(late.iter().all(|late| *late <= ms(21)), "{late:?}");
    let (early, tardy) = (ms(5), ms(15));
    assert!(late.iter().any(|late| *late < early));
    assert!(late.iter().any(|late| *late > tardy));
}

/// The thread stands still while a server's answer is there to be read.
#[tokio::test]
async fn a_timeout_in_the_agents_own_stall_is_made_again_at_once() {
    struct Stalls(u32);
    impl Check for Stalls {
        async fn make(&mut self) -> Verdict {
            self.0 += 1;
            let (kind, takes) = match self.0 {
                1 => (Kind::ResponseTimeout, ms(200)),
                _ => (Kind::Ok, ms(0)),
            };
            std::thread::sleep(takes);
            Finding::new(kind, "").after(takes)
        }
    }
    let pulse = Arc::new(Pulse::new(ms(100)));
    let shared = Shared {
        pulse: pulse.clone(),
        ..shared()
    };
    let (tx, mut reports) = mpsc::channel(16);
    let (_trigger, triggered) = Trigger::new();
    let mut rhythm = rhythm(Duration::from_secs(3600));
    rhythm.timeout = ms(100);
    rhythm.offset = ms(50);
    let beats = {
        let pulse = pulse.clone();
        tokio::spawn(async move { pulse.beat().await })
    };
    let checks = tokio::spawn(run((), || Stalls(0), rhythm, triggered, shared, all_to(tx)));
    let first = reports.recv().await.unwrap();
    assert_eq!(first.standing, Standing::Stalled);
    assert_eq!(first.judged(), None);
    assert!(first.late.is_some());
    // Not an hour later.
    let second = reports.recv().await.unwrap();
    assert_eq!(second.standing, Standing::Counts);
    assert_eq!(second.judged(), Some(true));
    assert_eq!(second.late, None);
    beats.abort();
    checks.abort();
}

/// Timeouts of a hang end one interval apart, not one timeout.
#[tokio::test(start_paused = true)]
async fn a_check_that_is_not_answered_does_not_hold_up_the_next() {
    let mut bench = quick(|rhythm| {
        rhythm.intervals = Intervals {
            inter: ms(10),
            fastinter: ms(10),
            downinter: ms(10),
        };
        rhythm.phase = ms(10);
        rhythm.in_flight = 3;
    });
    sleep(ms(5)).await;
    bench.becomes(Kind::ResponseTimeout);
    bench.takes(ms(100));
    sleep(ms(130)).await;
    let begun = [ms(0), ms(10), ms(20), ms(30), ms(120), ms(130)];
    assert_eq!(bench.begun(), begun);
    let ended: Vec<_> = std::iter::from_fn(|| bench.reports.try_recv().ok())
        .map(|report| (report.verdict.kind, report.standing, report.skipped))
        .collect();
    let hang = |skipped| (Kind::ResponseTimeout, Standing::Counts, skipped);
    let fine = (Kind::Ok, Standing::Counts, 0);
    // Of the grid 40 to 110 passed while three were waited for.
    assert_eq!(ended, [fine, hang(0), hang(8), hang(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_later_check_that_was_judged_overtakes_an_earlier_one() {
    let mut bench = quick(|rhythm| {
        rhythm.intervals.inter = ms(100);
        rhythm.intervals.fastinter = ms(100);
        rhythm.phase = ms(100);
        rhythm.in_flight = 2;
    });
    sleep(ms(50)).await;
    bench.becomes(Kind::ResponseTimeout);
    bench.takes(ms(450));
    sleep(ms(100)).await;
    bench.becomes(Kind::Ok);
    bench.takes(ms(1));
    sleep(ms(450)).await;
    let ended: Vec<_> = std::iter::from_fn(|| bench.reports.try_recv().ok())
        .map(|report| (report.verdict.kind, report.standing))
        .collect();
    let fine = (Kind::Ok, Standing::Counts);
    let late = (Kind::ResponseTimeout, Standing::Overtaken);
    assert_eq!(ended, [fine, fine, fine, fine, fine, late]);
}

/// Timeouts do not count while clients have replies, and nothing else is excused by them.
#[tokio::test(start_paused = true)]
async fn replies_to_clients_are_signs_of_life() {
    let sent = Arc::new(AtomicU64::new(7));
    let mut bench = quick(|rhythm| {
        let sent = sent.clone();
        let replies = move || Some(sent.load(Ordering::Relaxed));
        rhythm.life_signs = Some(Replies(Arc::new(replies)));
    });
    sleep(ms(500)).await;
    bench.takes(ms(100));
    let mut ended = Vec::new();
    for (kind, replies) in [
        (Kind::ResponseTimeout, 1),
        (Kind::ConnectTimeout, 3),
        (Kind::ResponseTimeout, 0),
        (Kind::Refused, 5),
    ] {
        bench.becomes(kind);
        sleep(ms(550)).await;
        sent.fetch_add(replies, Ordering::Relaxed);
        sleep(ms(450)).await;
        while let Ok(report) = bench.reports.try_recv() {
            ended.push((report.verdict.kind, report.standing));
        }
    }
    assert_eq!(
        ended,
        [
            (Kind::Ok, Standing::Counts),
            (Kind::ResponseTimeout, Standing::LifeSign),
            (Kind::ConnectTimeout, Standing::LifeSign),
            (Kind::ResponseTimeout, Standing::Counts),
            (Kind::Refused, Standing::Counts),
        ]
    );
}

/// Nor does a hang hold up a burst, nor a burst that hangs the grid.
#[tokio::test(start_paused = true)]
async fn a_burst_and_the_grid_do_not_wait_for_each_other() {
    let bench = quick(|rhythm| {
        rhythm.intervals.inter = ms(100);
        rhythm.intervals.fastinter = ms(100);
        rhythm.intervals.downinter = ms(100);
        rhythm.phase = ms(100);
        rhythm.in_flight = 3;
    });
    sleep(ms(50)).await;
    bench.takes(ms(500));
    sleep(ms(100)).await;
    bench.trigger.pull();
    sleep(ms(100)).await;
    assert_eq!(bench.begun(), [ms(0), ms(100), ms(150), ms(200)]);
}

#[tokio::test(start_paused = true)]
async fn a_budget_stretches_the_interval_and_gives_it_back() {
    let budget = Arc::new(Budget::new(Some(100), None));
    let shared = Shared {
        budget: budget.clone(),
        ..shared()
    };
    let (tx, mut reports) = mpsc::channel(4096);
    let (_trigger, triggered) = Trigger::new();
    let mood = Arc::new(Mutex::new(Mood {
        kind: Kind::Ok,
        takes: ms(0),
        begun: Vec::new(),
        start: Instant::now(),
    }));
    let script = mood.clone();
    let checks = run(
        (),
        move || Scripted(script.clone()),
        rhythm(ms(10)),
        triggered,
        shared,
        all_to(tx),
    );
    let task = tokio::spawn(checks);
    // Another one wants as much.
    budget.wants(None, Some(ms(10)));
    sleep(ms(95)).await;
    budget.wants(Some(ms(10)), None);
    sleep(ms(40)).await;
    let begun = std::mem::take(&mut mood.lock().unwrap().begun);
    let begun: Vec<_> = begun.iter().map(Duration::as_millis).collect();
    assert_eq!(begun, [0, 10, 30, 50, 70, 90, 110, 120, 130]);
    task.abort();
    assert!(task.await.is_err());
    reports.close();
    assert_eq!(budget.stretch(), 1.0);
}

#[tokio::test(start_paused = true)]
async fn without_anybody_to_trigger_the_grid_goes_on() {
    let mut bench = Bench::new(ms(10));
    // The other end, closed.
    bench.trigger = Trigger::new().0;
    sleep(ms(35)).await;
    assert_eq!(bench.begun(), [ms(0), ms(10), ms(20), ms(30)]);
}
