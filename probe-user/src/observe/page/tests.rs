//! The page's document and its events over real sockets, with a core that says what the test
//! wants.

use std::{net::SocketAddr, sync::atomic::AtomicU64};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::*;
use crate::{core::Ask, failover::Reason, health::State as Health, observe::tests::Fixed};

/// However slow the machine is.
const PATIENCE: Duration = Duration::from_secs(20);

/// An endpoint, as `GET /v1/status` tells it.
pub fn endpoint(name: &str, tier: u8, state: &str, serving: bool) -> Value {
    json!({
        "name": name, "tier": tier, "weight": 1, "serving": serving, "address": "10.0.0.7:80",
        "resolved": ["10.0.0.7:80"], "state": state, "against": 0, "needed": 3,
        "verdict": "ok", "detail": "status 200 in 0.3 ms", "since_unix_ms": 1_700_000_000_000_u64,
        "checks": 1000, "failures": 3, "latency_us": 300,
        "durations": {"checks": 128, "p50_us": 310, "p95_us": 400, "p99_us": 900, "max_us": 1000},
        "listeners": [], "traffic": {"forward_packets": 1, "forward_bytes": 2,
        "reverse_packets": 3, "reverse_bytes": 4, "flows_opened": 5, "flows_closed": 4},
    })
}

/// A service with these endpoints.
pub fn service(name: &str, selected: &[&str], endpoints: &[Value]) -> Value {
    json!({
        "name": name, "listeners": ["10.96.0.10:80"], "endpoints": endpoints,
        "selection": {"kind": "endpoint", "endpoints": selected, "tier": 0,
            "since_unix_ms": 1_700_000_000_000_u64, "reason": "initial", "switches": 0,
            "members_changed": 0},
        "failback": {"mode": "auto", "hold_ms": 5000},
    })
}

/// A whole status.
pub fn status(services: &[Value]) -> Status {
    serde_json::from_value(json!({
        "version": "0.0.0",
        "agent": {"pid": 7, "started_unix_ms": unix_ms(SystemTime::now())},
        "services": services, "interfaces": [],
        "datapath": {"abi": 1, "pins": "", "processes": {"state": "off"}, "reasons": {}},
    }))
    .unwrap()
}

fn two() -> Status {
    let endpoints = [
        endpoint("sen2", 0, "up", true),
        endpoint("sen1", 1, "up", false),
    ];
    status(&[service("sense", &["sen2"], &endpoints)])
}

/// A served page, and the core behind it.
pub struct Bench {
    pub at: SocketAddr,
    pub feed: Feed,
    pub says: Arc<Mutex<Status>>,
    asked: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Bench {
    pub async fn new(status: Status, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (asks, mut inbox) = mpsc::channel(4);
        let counters = Arc::new(Fixed);
        let (feed, says) = (Feed::default(), Arc::new(Mutex::new(status)));
        let asked = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let (tells, count) = (says.clone(), asked.clone());
        tasks.spawn(async move {
            while let Some(ask) = inbox.recv().await {
                let Ask::Status(reply) = ask else {
                    panic!("{ask:?}")
                };
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let _ = reply.send(tells.lock().unwrap().clone());
            }
        });
        let sources = Sources { asks, counters };
        let served = serve(listener, sources, feed.clone(), limits);
        tasks.spawn(async move { served.await.unwrap() });
        Self {
            at,
            feed,
            says,
            asked,
            tasks,
        }
    }

    /// The core's status becomes another one.
    pub fn say(&self, status: Status) {
        *self.says.lock().unwrap() = status;
    }
}

async fn connect(at: SocketAddr, path: &str) -> TcpStream {
    connect_as(at, path, "localhost").await
}

async fn connect_as(at: SocketAddr, path: &str, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads until this was in it.
async fn read_until(stream: &mut TcpStream, what: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        loop {
            let text = String::from_utf8_lossy(&read).into_owned();
            if text.contains(what) {
                return text;
            }
            let count = stream.read_buf(&mut read).await.unwrap();
            assert!(count > 0, "ended before {what:?}: {text}");
        }
    };
    timeout(PATIENCE, reading).await.unwrap()
}

async fn ended(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // By its end or by a reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap();
}

/// Frames of the stream so far.
fn frames(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|json| serde_json::from_str(json).unwrap())
        .collect()
}

#[tokio::test]
async fn the_document_may_do_nothing_but_its_own() {
    let bench = Bench::new(two(), Limits::default()).await;
    let page = read_until(&mut connect(bench.at, "/").await, "</html>").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let (head, html) = page.split_once("\r\n\r\n").unwrap();
    let policy = head
        .lines()
        .find_map(|l| l.strip_prefix("content-security-policy: "))
        .unwrap();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    for tag in ["script", "style"] {
        let (_, after) = html.split_once(&format!("<{tag}>")).unwrap();
        let (inside, rest) = after.split_once(&format!("</{tag}>")).unwrap();
        assert!(!rest.contains(&format!("<{tag}")), "{tag}");
        let hash = BASE64_STANDARD.encode(Sha256::digest(inside));
        assert!(
            policy.contains(&format!("{tag}-src 'sha256-{hash}'")),
            "{tag}"
        );
    }
    // Nothing from elsewhere, and no markup made of text.
    for forbidden in [
        "src=",
        "@import",
        "url(",
        "innerHTML",
        "insertAdjacentHTML",
        "eval(",
    ] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    let missing = read_until(&mut connect(bench.at, "/else").await, "\r\n\r\n").await;
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
}

#[tokio::test]
async fn names_of_others_are_not_answered_on_loopback() {
    let bench = Bench::new(two(), Limits::default()).await;
    for (host, code) in [
        ("127.0.0.1:9378", 200),
        ("[::1]:9378", 200),
        ("[::1]", 200),
        ("LOCALHOST:9378", 200),
        ("evil.example:9378", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ] {
        let mut stream = connect_as(bench.at, "/", host).await;
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code} ")),
            "{host}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_newcomer_is_told_the_past_and_everybody_the_news() {
    let bench = Bench::new(two(), Limits::default()).await;
    let mut early = connect(bench.at, "/events").await;
    let text = read_until(&mut early, "\"sample\":true").await;
    assert!(text.contains("content-type: text/event-stream"), "{text}");
    // sen2 goes down, and the service goes over.
    let mut down = endpoint("sen2", 0, "down", false);
    down["detail"] = "refused <b>&amp;</b>\nover two lines".into();
    let endpoints = [down, endpoint("sen1", 1, "up", true)];
    bench.say(status(&[service("sense", &["sen1"], &endpoints)]));
    bench.feed.state("sense", "sen2", Health::Down);
    bench.feed.switched("sense", Reason::MasterDown);
    bench.feed.selected("sense", &["sen1"]);
    let text = read_until(&mut early, "master-down").await;
    let text = text + &read_until(&mut early, "\n\n").await;
    let all = frames(&text);
    let news = all.iter().find(|f| f["changes"] != json!([])).unwrap();
    let changes = news["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 2, "{changes:?}");
    let (state, switch) = (&changes[0], &changes[1]);
    assert_eq!(state["kind"], "state");
    assert_eq!([&state["from"], &state["to"]], ["up", "down"]);
    assert_eq!(state["detail"], "refused <b>&amp;</b>\nover two lines");
    assert_eq!(switch["kind"], "switch");
    assert_eq!(
        [&switch["from"], &switch["to"]],
        [&json!(["sen2"]), &json!(["sen1"])]
    );
    assert_eq!(switch["reason"], "master-down");
    assert_eq!(
        news["status"]["services"][0]["selection"]["endpoints"],
        json!(["sen1"])
    );
    assert_eq!(news["sample"], false);
    // Who comes now is told the same, and the durations.
    let mut late = connect(bench.at, "/events").await;
    let text = read_until(&mut late, "\n\n").await + &read_until(&mut late, "}\n\n").await;
    let past = &frames(&text)[0]["past"];
    assert_eq!(past["changes"], json!(changes));
    let sample = &past["samples"]["sense"]["sen2"][0];
    assert_eq!([&sample[1], &sample[2]], [310, 900]);
}

#[tokio::test]
async fn watchers_are_limited_and_leave_their_seat() {
    let limits = Limits {
        watchers: 2,
        ..Limits::default()
    };
    let bench = Bench::new(two(), limits).await;
    let mut seated = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(bench.at, "/events").await;
        read_until(&mut stream, "data: ").await;
        seated.push(stream);
    }
    let refused = read_until(&mut connect(bench.at, "/events").await, "\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    seated.pop();
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = read_until(&mut connect(bench.at, "/events").await, "\r\n\r\n").await;
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(Instant::now() < until, "{answer}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn who_says_nothing_and_who_reads_nothing_is_cut_off() {
    let limits = Limits {
        watchers: 4,
        connections: 2,
        patience: Duration::from_millis(500),
    };
    // Frames large enough to fill what sockets hold.
    let mut talks = endpoint("e0", 0, "up", true);
    talks["saw"] = "x".repeat(1 << 20).into();
    let talks = [talks];
    let bench = Bench::new(status(&[service("sense", &["e0"], &talks)]), limits).await;
    let mut silent = TcpStream::connect(bench.at).await.unwrap();
    let mut half = TcpStream::connect(bench.at).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    ended(&mut silent).await;
    ended(&mut half).await;
    // One that watches and does not read; the other place is a good one's.
    let mut deaf = connect(bench.at, "/events").await;
    let mut good = connect(bench.at, "/events").await;
    read_until(&mut good, "data: ").await;
    let until = Instant::now() + PATIENCE;
    while bench.asked.load(std::sync::atomic::Ordering::Relaxed) < 40 {
        bench.feed.state("sense", "e0", Health::Down);
        read_until(&mut good, "}\n\n").await;
        assert!(Instant::now() < until);
    }
    // Its place is another's.
    let page = read_until(&mut connect(bench.at, "/").await, "</html>").await;
    assert!(page.starts_with("HTTP/1.1 200"));
    ended(&mut deaf).await;
}

#[tokio::test]
async fn the_core_is_never_waited_for() {
    // Nobody subscribed, nobody reads: neither blocks.
    let feed = Feed::default();
    feed.state("s", "e", Health::Up);
    let mut news = feed.subscribe().unwrap();
    assert!(feed.subscribe().is_none());
    for _ in 0..10_000 {
        feed.state("s", "e", Health::Up);
    }
    let mut kept = Vec::new();
    while let Ok(one) = news.try_recv() {
        kept.push(one);
    }
    assert_eq!(kept.len(), 1024);
    // And what is kept of it is bounded too.
    let mut history = History::default();
    for one in kept {
        history.happened(one, &two());
    }
    for second in 0..1000 {
        history.sample(&two(), second);
    }
    let past = serde_json::to_value(history.past()).unwrap();
    assert_eq!(
        past["samples"]["sense"]["sen1"].as_array().unwrap().len(),
        180
    );
    assert_eq!(past["changes"], json!([]), "of a service that is no more");
    drop(news);
    feed.state("s", "e", Health::Up);
}

#[tokio::test]
async fn many_endpoints_are_asked_for_less_often() {
    let many: Vec<_> = (0..401)
        .map(|i| endpoint(&format!("e{i}"), 0, "up", false))
        .collect();
    let bench = Bench::new(
        status(&[service("sense", &["e0"], &many)]),
        Limits::default(),
    )
    .await;
    let mut stream = connect(bench.at, "/events").await;
    let text = read_until(&mut stream, "}\n\n").await;
    assert!(text.contains("\"beat_ms\":3000"), "{}", &text[..400]);
    drop(bench.tasks);
}
