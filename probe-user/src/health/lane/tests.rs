//! Plain checks over real sockets on the loopback.

use std::{
    net::SocketAddr,
    sync::{
        Mutex as Locked,
        atomic::{AtomicUsize, Ordering},
    },
    thread::sleep as stall,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    task::AbortHandle,
    time::timeout,
};

use super::*;
use crate::health::{
    RiseFall, State, Verdict,
    budget::Budget,
    lateness::Pulse,
    probe::Recipe,
    scheduler::{Intervals, Trigger},
};

const LONG: Duration = Duration::from_secs(20);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nversion 1";
const PONG: &str = "+PONG\r\n";
const MASTER: &str = "+PONG\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
const REPLICA: &str = "+PONG\r\n*5\r\n$5\r\nslave\r\n$1\r\na\r\n:1\r\n$4\r\nsync\r\n:0\r\n";

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A check as configured, of an endpoint that is there.
fn recipe(check: &str, endpoint: SocketAddr) -> Recipe {
    let config = crate::config::parse(&format!(
        "interfaces: {{edge: [a]}}\nservices: [{{name: a, listeners: ['10.0.0.1:80'], \
         endpoints: [{{name: b, address: '10.0.0.2:80'}}], check: {check}}}]",
    ));
    Recipe {
        check: Arc::new(config.unwrap().services()[0].check().clone()),
        endpoint,
        authority: "a".to_owned(),
        service: "a".to_owned(),
        name: "b".to_owned(),
    }
}

fn asks(check: &str, endpoint: SocketAddr) -> Asks {
    Asks::of(&recipe(check, endpoint)).expect("a plain check")
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

/// A lane that runs.
struct Bench {
    door: Arc<Door<u32>>,
    shared: Shared,
    reports: mpsc::Receiver<Report<u32>>,
    task: AbortHandle,
}

impl Bench {
    fn new() -> Self {
        let shared = Shared {
            pulse: Arc::new(Pulse::new(ms(1000))),
            budget: Arc::new(Budget::new(None, None)),
        };
        let (tx, reports) = mpsc::channel(4096);
        let ways = Reports {
            urgent: tx.clone(),
            quiet: tx,
        };
        let lane = Lane::new(shared.clone(), ways).unwrap();
        Self {
            door: lane.door(),
            shared,
            reports,
            task: tokio::spawn(lane.run()).abort_handle(),
        }
    }

    fn sit(&self, key: u32, asks: Asks, rhythm: &Rhythm) -> (Seated<u32>, Trigger) {
        let (trigger, triggered) = Trigger::new();
        let seated = self.door.sit(key, asks, rhythm, triggered, &self.shared);
        (seated, trigger)
    }

    async fn report(&mut self) -> Report<u32> {
        let report = timeout(LONG, self.reports.recv()).await;
        report.expect("a report comes").expect("the lane runs")
    }

    async fn kinds(&mut self, count: usize) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for _ in 0..count {
            kinds.push(self.report().await.verdict.kind);
        }
        kinds
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that answers so, on each connection so many times, and closes then. What it was asked
/// last, and how many connections it had.
struct Server {
    at: SocketAddr,
    connections: Arc<AtomicUsize>,
    asked: Arc<Locked<String>>,
    task: AbortHandle,
}

impl Server {
    /// Each piece of the answer goes out by itself.
    async fn new(answer: &'static [&'static str], answers: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let asked = Arc::<Locked<String>>::default();
        let (count, heard) = (connections.clone(), asked.clone());
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let heard = heard.clone();
                tokio::spawn(async move {
                    for _ in 0..answers {
                        let mut request = vec![0; 1024];
                        match stream.read(&mut request).await {
                            Ok(count) if count > 0 => request.truncate(count),
                            _ => return,
                        }
                        *heard.lock().unwrap() = String::from_utf8(request).unwrap();
                        for (i, piece) in answer.iter().enumerate() {
                            if i > 0 {
                                tokio::time::sleep(ms(3)).await;
                            }
                            if stream.write_all(piece.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self {
            at,
            connections,
            asked,
            task: task.abort_handle(),
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// So many checks; what they concluded, and over how many connections.
async fn made(check: &str, answer: &'static [&'static str], answers: usize) -> (Vec<Kind>, usize) {
    let server = Server::new(answer, answers).await;
    let mut bench = Bench::new();
    let (seated, _trigger) = bench.sit(1, asks(check, server.at), &rhythm(ms(10)));
    let kinds = bench.kinds(6).await;
    drop(seated);
    (kinds, server.connections())
}

#[tokio::test]
async fn connections_live_as_long_as_configured() {
    for (settings, connections) in [
        ("connection: fresh", 6),
        ("connection: reuse", 1),
        ("connection: mixed, fresh_every: 3", 2),
    ] {
        for (check, answer) in [
            (
                format!("{{http: {{{settings}, expect: {{body: {{contains: version}}}}}}}}"),
                &[OK],
            ),
            (format!("{{redis: {{{settings}}}}}"), &[PONG]),
            (
                format!("{{redis: {{role: master, {settings}}}}}"),
                &[MASTER],
            ),
        ] {
            let (kinds, made) = made(&check, answer, usize::MAX).await;
            assert_eq!(kinds, [Kind::Ok; 6], "{check}");
            // The next check may have begun.
            let seen = made == connections || made == connections + 1;
            assert!(seen, "{check}: {made}");
        }
    }
}

#[tokio::test]
async fn one_that_was_closed_meanwhile_is_no_failure_and_one_that_always_closes_is() {
    for (check, answer) in [
        ("{http: {connection: reuse}}", &[OK]),
        ("{redis: {connection: reuse}}", &[PONG]),
    ] {
        let (kinds, connections) = made(check, answer, 2).await;
        assert_eq!(kinds, [Kind::Ok; 6]);
        assert!((3..=4).contains(&connections), "{connections}");
        let (kinds, connections) = made(check, answer, 0).await;
        assert!(!kinds.contains(&Kind::Ok), "{kinds:?}");
        assert!((6..=7).contains(&connections), "{connections}");
    }
}

/// One of another role is in step with us, one in trouble may not be, and nor is one that says more
/// than was asked.
#[tokio::test]
async fn connections_are_kept_where_both_sides_agree() {
    for (answer, kind, connections) in [
        (&[REPLICA], Kind::BodyMismatch, 1),
        (&["+PONG\r\n-ERR internal\r\n"], Kind::BadStatus, 6),
        (&["+PONG\r\n*1\r\n+master\r\n+more\r\n"], Kind::Ok, 6),
    ] {
        let check = "{redis: {role: master, connection: reuse}}";
        let (kinds, made) = made(check, answer, usize::MAX).await;
        assert_eq!(kinds, [kind; 6]);
        assert!((connections..=connections + 1).contains(&made), "{made}");
    }
}

#[tokio::test]
async fn a_lane_finds_what_a_task_finds() {
    let master = "{redis: {role: master}}";
    let login = "{redis: {user: probe, password: hunter2, role: master}}";
    let script = "{script: {steps: [{send: a}, {expect: two}, {send: b}, {send: c}, {expect: one}, \
                  {expect_regex: two$}, {expect: no, not: true, min_recv: 4}]}}";
    let never = "{script: {steps: [{send: a}, {expect: no, not: true}, {send: b}, {expect: one}]}}";
    for (check, answer, answers) in [
        (
            master,
            &["+PO", "NG\r\n*3\r\n$6\r\nmas", "ter\r\n:0\r\n*0\r\n"][..],
            9,
        ),
        (master, &[REPLICA], 9),
        (master, &["-LOADING soon\r\n"], 9),
        (master, &["+PONG\r\n-NOPERM\r\n"], 9),
        (master, &["HTTP/1.1 400 Bad Request\r\n\r\n"], 9),
        (master, &["+PONG\r\n*3\r\n$6\r\nmas"], 1),
        (master, &[], 1),
        (login, &["+OK\r\n", MASTER], 9),
        (login, &["-WRONGPASS invalid\r\n-NOAUTH\r\n-NOAUTH\r\n"], 9),
        (script, &["one ", "two"], 9),
        (script, &["one"], 1),
        (never, &["yes"], 1),
        (never, &["no"], 9),
    ] {
        let server = Server::new(answer, answers).await;
        let task = recipe(check, server.at).make().run().await;
        let mut bench = Bench::new();
        let _seat = bench.sit(1, asks(check, server.at), &rhythm(ms(10)));
        let lane = bench.report().await.verdict;
        let told = |verdict: Verdict| (verdict.kind, verdict.note, verdict.saw);
        assert_eq!(told(lane), told(task), "{check}: {answer:?}");
    }
}

/// A server that greets is heard before anything is said, and waits for no acknowledgment.
#[tokio::test]
async fn who_speaks_first_is_heard_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut heard = [0; 6];
                let _ = stream.write_all(b"220 hello\r\n").await;
                if stream.read_exact(&mut heard).await.is_ok() && heard == *b"EHLO\r\n" {
                    let _ = stream.write_all(b"250 well\r\n").await;
                }
                let _ = stream.read(&mut heard).await;
            });
        }
    });
    let greets = r#"{script: {steps: [{expect: "220 "}, {send: 'EHLO\r\n'}, {expect: "250 "}]}}"#;
    let waits = "{script: {steps: [{expect: never}]}, inter: 10ms, timeout: 60ms}";
    let mut bench = Bench::new();
    let seat = bench.sit(1, asks(greets, at), &rhythm(ms(10)));
    assert_eq!(bench.kinds(5).await, [Kind::Ok; 5]);
    drop(seat);
    let mut bench = Bench::new();
    let _seat = bench.sit(1, asks(waits, at), &rhythm(ms(10)));
    let verdict = bench.report().await.verdict;
    assert_eq!(verdict.kind, Kind::ResponseTimeout);
    assert_eq!(verdict.note, "what is expected has not come");
    server.abort();
}

#[test]
fn what_may_wait_or_goes_another_way_is_for_a_task() {
    for check in [
        "{redis: {password_file: /etc/probe/password}}",
        "{redis: {send_proxy: v1}}",
        "{script: {tls: {verify: false}, steps: [{expect: a}]}}",
        "{postgres: {}}",
        "{grpc: {}}",
    ] {
        let recipe = recipe(check, "10.0.0.2:80".parse().unwrap());
        assert!(Asks::of(&recipe).is_none(), "{check}");
    }
}

#[tokio::test]
async fn answers_in_pieces_are_read_whole_and_a_rest_before_the_next_question() {
    let pieces = &[
        "HTTP/1.1 200 OK\r\nTransfer-",
        "Encoding: chunked\r\n\r\n4\r\nvers\r\n",
        "3\r\nion\r\n0\r\n\r\n",
    ];
    for expect in ["{body: {contains: version}}", "{status: 200}"] {
        let check = format!("{{http: {{connection: reuse, expect: {expect}}}}}");
        let (kinds, connections) = made(&check, pieces, usize::MAX).await;
        assert_eq!(kinds, [Kind::Ok; 6], "{expect}");
        assert_eq!(connections, 1, "{expect}");
    }
}

#[tokio::test]
async fn wrong_answers_have_their_verdicts() {
    for (answer, kind) in [
        (
            &["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"],
            Kind::BadStatus,
        ),
        (
            &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"],
            Kind::BodyMismatch,
        ),
        (&["+PONG\r\n"], Kind::Protocol),
    ] {
        let check = "{http: {connection: reuse, expect: {body: {contains: version}}}}";
        assert_eq!(made(check, answer, usize::MAX).await.0, [kind; 6]);
    }
}

#[tokio::test]
async fn what_is_asked_is_what_is_configured() {
    let server = Server::new(&[OK], usize::MAX).await;
    let check = "{http: {method: HEAD, path: /x, connection: reuse, headers: {X-A: b}}}";
    let mut bench = Bench::new();
    let _seat = bench.sit(1, asks(check, server.at), &rhythm(ms(10)));
    bench.report().await;
    let asked = server.asked.lock().unwrap().clone();
    assert!(
        asked.starts_with("HEAD /x HTTP/1.1\r\nHost: a\r\n"),
        "{asked}"
    );
    assert!(asked.to_lowercase().contains("x-a: b\r\n"), "{asked}");
}

#[tokio::test]
async fn refused_and_silent() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = closed.local_addr().unwrap();
    drop(closed);
    let mut bench = Bench::new();
    let _one = bench.sit(1, asks("{http: {}}", at), &rhythm(ms(20)));
    assert_eq!(bench.kinds(2).await, [Kind::Refused; 2]);
    let mut bench = Bench::new();
    let _two = bench.sit(1, asks("{tcp: {}}", at), &rhythm(ms(20)));
    assert_eq!(bench.kinds(2).await, [Kind::Refused; 2]);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    let mut bench = Bench::new();
    let check = "{http: {}, inter: 10ms, timeout: 60ms}";
    let _three = bench.sit(1, asks(check, at), &rhythm(ms(10)));
    for first in [true, false] {
        let report = bench.report().await;
        assert_eq!(report.verdict.kind, Kind::ResponseTimeout);
        assert_eq!(report.verdict.note, "no complete head");
        assert!(report.verdict.latency >= ms(60));
        // Points of the grid passed meanwhile.
        assert!(first || report.skipped >= 3, "{}", report.skipped);
    }
}

/// The server's application hears of no connection.
#[tokio::test]
async fn a_connection_is_enough_and_disturbs_nobody() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut bench = Bench::new();
    let check = asks("{tcp: {}}", listener.local_addr().unwrap());
    let _seat = bench.sit(1, check, &rhythm(ms(10)));
    assert_eq!(bench.kinds(5).await, [Kind::Ok; 5]);
    let accepted = listener.accept().map(drop).unwrap_err();
    assert_eq!(accepted.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_trigger_makes_a_burst_and_who_left_is_not_checked() {
    let server = Server::new(
        &["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"],
        usize::MAX,
    )
    .await;
    let mut bench = Bench::new();
    let check = || asks("{http: {connection: reuse}}", server.at);
    let (seated, trigger) = bench.sit(1, check(), &rhythm(ms(3_600_000)));
    bench.report().await;
    trigger.pull();
    // With the first one `fall` have spoken against it.
    assert_eq!(bench.kinds(2).await, [Kind::BadStatus; 2]);
    drop(seated);
    trigger.pull();
    // The seat is another's now, whom the old trigger does not concern.
    let (_other, _) = bench.sit(2, check(), &rhythm(ms(3_600_000)));
    assert_eq!(bench.report().await.key, 2);
    trigger.pull();
    let more = timeout(ms(100), bench.reports.recv()).await;
    assert!(more.is_err(), "{more:?}");
    assert_eq!(bench.door.orders().seats, 2);
}

#[tokio::test]
async fn checks_overlap_where_they_may() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let check = "{http: {}, inter: 20ms, timeout: 200ms, in_flight: 3}";
    let check = asks(check, silent.local_addr().unwrap());
    let mut bench = Bench::new();
    let rhythm = Rhythm {
        in_flight: 3,
        ..rhythm(ms(20))
    };
    let _seat = bench.sit(1, check, &rhythm);
    let begun = Instant::now();
    let kinds = bench.kinds(3).await;
    assert_eq!(kinds, [Kind::ResponseTimeout; 3]);
    // One after the other they would take three timeouts.
    assert!(begun.elapsed() < ms(550), "{:?}", begun.elapsed());
}

/// One conversation, by hand.
struct Hand {
    desk: Desk,
    asks: Asks,
    talk: Talk,
    progress: Progress,
    begun: Instant,
}

impl Hand {
    fn new(asks: Asks) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        Self {
            desk: Desk::new(epoll),
            asks,
            talk: Talk::default(),
            progress: Progress::BEGINNING,
            begun: Instant::now(),
        }
    }

    fn look(&mut self, begins: bool, late: bool) -> Option<Finding> {
        let look = Look {
            readable: !begins,
            begun: self.begun,
            late,
            stamps: late,
        };
        let (talk, progress) = (&mut self.talk, &mut self.progress);
        if begins {
            talk.begin(&self.asks, 0, progress, look, &mut self.desk)
        } else {
            talk.goes_on(&self.asks, 0, progress, look, &mut self.desk)
        }
    }
}

/// When it came counts, not when it is read.
#[tokio::test]
async fn what_is_found_after_the_deadline_is_asked_when_it_came() {
    use std::io::{Read as _, Write as _};
    let script = "{script: {steps: [{send: a}, {expect: version}]}}";
    let all = [("{http: {}}", OK), ("{redis: {}}", PONG), (script, OK)];
    for ((check, answer), in_time) in all.into_iter().flat_map(|one| [(one, true), (one, false)]) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut hand = Hand::new(asks(check, listener.local_addr().unwrap()));
        assert_eq!(hand.look(true, false), None);
        let (mut server, _) = listener.accept().unwrap();
        assert!(server.read(&mut [0; 512]).unwrap() > 0);
        let deadline = hand.begun + ms(200);
        if !in_time {
            stall(ms(300));
        }
        server.write_all(answer.as_bytes()).unwrap();
        if in_time {
            stall(ms(300));
        }
        let found = hand.look(false, true).expect("it is there");
        assert_eq!(found.kind, Kind::Ok);
        let came = hand.progress.came.expect("the kernel tells");
        assert_eq!(came <= deadline, in_time);
    }
}

#[tokio::test]
async fn a_connection_that_was_there_in_time_is_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut hand = Hand::new(asks("{tcp: {}}", listener.local_addr().unwrap()));
    let found = hand.look(true, false);
    if found.is_none() {
        stall(ms(300));
        assert_eq!(hand.look(false, true).expect("it is there").kind, Kind::Ok);
        let came = hand.progress.came.expect("the kernel tells");
        assert!(came <= hand.begun + ms(200));
    }
}

/// A lane that was held up believes the kernel.
#[tokio::test]
async fn a_stall_of_the_agent_fails_nobody() {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    // A thread of its own, that has no part in the stall.
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let mut bench = Bench::new();
    let check = "{http: {connection: reuse}, inter: 10ms, timeout: 1s}";
    let _seat = bench.sit(1, asks(check, at), &rhythm(ms(10)));
    for _ in 0..2 {
        assert_eq!(bench.kinds(3).await, [Kind::Ok; 3]);
        // A question is on its way, and its timeout is over when somebody looks.
        tokio::time::sleep(ms(11)).await;
        stall(ms(1500));
    }
    assert_eq!(bench.kinds(20).await, [Kind::Ok; 20]);
}

/// So many checks that the lane looks after them by itself change nothing of what is found.
#[tokio::test]
async fn many_checks_find_the_same() {
    let good = Server::new(&[OK], usize::MAX).await;
    // Longer than it is looked after: epoll tells of the rest.
    let slow = Server::new(
        &[
            "HTTP/1.1 200 OK\r\nContent-",
            "Length: 9\r\n",
            "\r\nversion 1",
        ],
        usize::MAX,
    )
    .await;
    let pongs = Server::new(&["+PO", "NG\r\n"], usize::MAX).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (silent_at, gone_at) = (silent.local_addr().unwrap(), gone.local_addr().unwrap());
    drop(gone);
    let mut bench = Bench::new();
    let mut seats = Vec::new();
    for key in 0..4 {
        let check = asks("{http: {connection: reuse}}", good.at);
        seats.push(bench.sit(key, check, &rhythm(ms(1))));
    }
    let mut counts = [0; 9];
    let mut until = async |bench: &mut Bench, enough: &[(usize, usize)]| {
        while enough.iter().any(|(key, least)| counts[*key] < *least) {
            let report = bench.report().await;
            let kind = match report.key {
                4 => Kind::ResponseTimeout,
                5 => Kind::Refused,
                _ => Kind::Ok,
            };
            assert_eq!(report.verdict.kind, kind, "{report:?}");
            counts[report.key as usize] += 1;
        }
    };
    until(&mut bench, &[(0, 1000)]).await;
    let mut sit = |key, check: &str, at| {
        seats.push(bench.sit(key, asks(check, at), &rhythm(ms(10))));
    };
    sit(4, "{http: {}, inter: 10ms, timeout: 60ms}", silent_at);
    sit(5, "{http: {}}", gone_at);
    sit(6, "{http: {connection: mixed, fresh_every: 3}}", slow.at);
    sit(7, "{redis: {connection: reuse}}", pongs.at);
    let script = "{script: {steps: [{send: a}, {expect: PONG}]}}";
    sit(8, script, pongs.at);
    let enough = [(0, 1500), (4, 3), (5, 10), (6, 10), (7, 10), (8, 10)];
    until(&mut bench, &enough).await;
    assert!(slow.connections() >= 3, "{}", slow.connections());
}
