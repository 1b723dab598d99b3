//! The API over a real socket, with a stand-in for the core.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener as StdListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use probe_ebpf::abi::Reason;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{mpsc, watch},
    time::timeout,
};

use super::*;
use crate::{
    core::{
        Ask, Counters, Named, Sources,
        journal::{Journal, What},
        order::{Done, Order, Refused, Written},
        status,
    },
    datapath::{self, EndpointCounters, EndpointId, FlowCounts, ServiceId},
    failover::NoFailback,
    reload::Handle,
};

struct Fixed;

impl Counters for Fixed {
    fn endpoint(&self, id: EndpointId) -> Result<EndpointCounters, datapath::Error> {
        Ok(EndpointCounters {
            forward_packets: u64::from(id.0) * 100,
            ..EndpointCounters::default()
        })
    }
    fn reasons(&self) -> Result<Vec<(Reason, u64)>, datapath::Error> {
        Ok(vec![(Reason::NotListener, 7)])
    }
    fn flows(&self) -> FlowCounts {
        FlowCounts::default()
    }
    fn slot_alone(&self, _: ServiceId) -> Result<bool, datapath::Error> {
        Ok(false)
    }
}

fn endpoint(name: &str, id: u32) -> status::Endpoint {
    status::Endpoint {
        name: name.to_owned(),
        tier: 0,
        weight: 1,
        slow_start: None,
        agent_said: None,
        serving: name == "sen2",
        address: "a:1".to_owned(),
        resolved: vec!["10.0.0.1:1".to_owned()],
        unresolved: None,
        state: "up".to_owned(),
        mode: "ready".to_owned(),
        ordered: None,
        against: 0,
        needed: 3,
        verdict: Some("ok".to_owned()),
        detail: Some("200 in 0.4 ms".to_owned()),
        since_unix_ms: 5,
        checks: 1,
        failures: 0,
        excused: 0,
        latency_us: Some(400),
        durations: None,
        verdict_since_unix_ms: None,
        saw: None,
        signals: BTreeMap::new(),
        listeners: Vec::new(),
        traffic: status::Traffic::default(),
        drain: None,
        id: Some(EndpointId(id)),
    }
}

/// A status for tests of those that show it.
pub fn example() -> status::Status {
    status::Status {
        version: "0.1.0".to_owned(),
        agent: status::Agent {
            pid: 7,
            started_unix_ms: 1,
            distrust_since_unix_ms: None,
            lateness: None,
            realtime: status::Realtime::default(),
            stretch: None,
        },
        services: vec![status::Service {
            name: "sense".to_owned(),
            mode: "active".to_owned(),
            listeners: vec!["10.96.0.10:8079".to_owned()],
            selection: status::Selection {
                kind: "endpoint".to_owned(),
                endpoint: Some("sen2".to_owned()),
                endpoints: vec!["sen2".to_owned()],
                tier: Some(0),
                since_unix_ms: 2,
                reason: "initial".to_owned(),
                switches: 0,
                members_changed: 0,
            },
            failback: status::Failback {
                mode: "auto".to_owned(),
                hold_ms: Some(5000),
                max_hold_ms: Some(300_000),
                due_unix_ms: None,
                damped: Vec::new(),
            },
            cut_off: None,
            affinity_ms: None,
            promoted: None,
            frozen: None,
            endpoints: vec![endpoint("sen2", 3), endpoint("sen1", 4)],
        }],
        interfaces: Vec::new(),
        datapath: status::Datapath::default(),
        config: status::Configuration::default(),
    }
}

fn sources() -> Sources {
    let (asks, mut receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(ask) = receiver.recv().await {
            match ask {
                Ask::Status(reply) => reply.send(example()).unwrap(),
                Ask::Pending(reply) => reply.send(Vec::new()).unwrap(),
                Ask::Graves(of, reply) => {
                    let grave = |id: EndpointId| (id, EndpointId(id.0 + 100));
                    reply.send(Ok(of.into_iter().map(grave).collect())).unwrap();
                }
                Ask::Buried => {}
                Ask::Names(reply) => {
                    let endpoints = [(3, "sen2"), (4, "sen1")];
                    let named = |(id, name): (u32, &str)| (EndpointId(id), name.to_owned());
                    let sense = Named {
                        id: ServiceId(1),
                        name: "sense".to_owned(),
                        endpoints: endpoints.into_iter().map(named).collect(),
                        listeners: vec!["10.96.0.10:8079".parse().unwrap()],
                    };
                    reply.send(vec![sense]).unwrap();
                }
                Ask::Order(order, reply) => reply.send(ordered(&order)).unwrap(),
                Ask::Explain(name, reply) => reply.send(Err(Refused::NoService(name))).unwrap(),
                other => panic!("{other:?}"),
            }
        }
    });
    Sources {
        asks,
        counters: Arc::new(Fixed),
    }
}

/// The stand-in's only service is `sense`, and what it is told it does.
fn ordered(order: &Order) -> Result<(Done, u64), Refused> {
    let service = order.service.clone();
    match service.as_str() {
        "sense" => Ok((
            Done {
                service,
                endpoint: order.what.endpoint().map(str::to_owned),
                order: order.what.verb().to_owned(),
                dry_run: order.dry_run,
                changed: true,
                before: format!("{:?}", order.what),
                after: format!("{:?}", order.by.uid),
                to: vec!["sen2".to_owned()],
                ..Done::default()
            },
            0,
        )),
        "best" => Err(Refused::No {
            service,
            reason: NoFailback::Lowest,
        }),
        _ => Err(Refused::NoService(service)),
    }
}

/// A datapath that sends everything to `sen2`.
struct Translates;

impl kernel::Tries for Translates {
    fn first_packet(
        &self,
        src: std::net::SocketAddr,
        _: datapath::Vip,
    ) -> Result<Vec<(datapath::Program, datapath::Outcome)>, datapath::Error> {
        let dst = "10.0.0.1:1".parse().unwrap();
        let to = datapath::Outcome::Translated(datapath::Ends { src, dst });
        Ok(vec![
            (datapath::Program::Tc, to),
            (datapath::Program::Xdp, datapath::Outcome::Passed),
        ])
    }
}

/// Three flows.
struct Few;

impl kernel::Table for Few {
    fn list(
        &self,
        most: usize,
        wanted: &mut dyn FnMut(&datapath::Flow) -> bool,
    ) -> Result<Vec<datapath::Flow>, datapath::Error> {
        let flow = |port: u16, endpoint| datapath::Flow {
            client: ([10, 0, 0, 9], port).into(),
            vip: "10.96.0.10:8079".parse().unwrap(),
            endpoint: EndpointId(endpoint),
            service: ServiceId(1),
            seen_port: 1,
            stage: datapath::Stage::Established,
            idle_ms: 0,
        };
        let all = [flow(1, 3), flow(2, 4), flow(3, 99)];
        let mut found: Vec<_> = all.into_iter().filter(|flow| wanted(flow)).collect();
        found.truncate(most);
        Ok(found)
    }

    fn bury(&self, flow: &datapath::Flow, grave: EndpointId) -> bool {
        // The last one has ended meanwhile.
        grave.0 == flow.endpoint.0 + 100 && flow.client.port() != 3
    }
}

fn api(journal: &Arc<Journal>) -> Api {
    let (_, written) = watch::channel(Written::default());
    Api::new(
        sources(),
        Handle::new().0,
        journal.clone(),
        written,
        Arc::new(Few),
        Arc::new(Translates),
    )
}

/// What a client says, and what it is answered until the connection ends.
async fn say(path: &Path, text: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // Whoever is refused early does not read all of it.
    let _ = stream.write_all(text).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, String> {
    let joined = tokio::task::spawn_blocking(f).await.unwrap();
    joined.map_err(|error| format!("{error:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_and_orders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/probe.sock");
    let socket = Socket::bind(&path, None).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let task = tokio::spawn(socket.serve(router(api(&Arc::default()))));
    let at = path.clone();
    let status = blocking(move || client::status(&at)).await.unwrap();
    assert_eq!(status.services[0].endpoints[1].traffic.forward_packets, 400);
    assert_eq!(status.datapath.reasons["not_listener"], 7);
    let order = |service: &'static str| {
        let at = path.clone();
        blocking(move || client::order(&at, service, &["failback"], &[]).map(|done| done.to))
    };
    assert_eq!(order("sense").await, Ok(vec!["sen2".to_owned()]));
    assert_eq!(
        order("best").await.unwrap_err(),
        "service best: the lowest tier already is selected"
    );
    assert_eq!(
        order("a/b c").await.unwrap_err(),
        "there is no service `a/b c`"
    );
    // A second agent does not take the socket away.
    let at = path.clone();
    let error = blocking(move || Ok(UnixBind(at).bind())).await.unwrap();
    assert!(error.contains("another agent answers"), "{error}");
    task.abort();
    let _ = task.await;
    assert!(!path.exists(), "the socket's file goes with it");
    let at = path.clone();
    let error = blocking(move || client::status(&at)).await.unwrap_err();
    assert!(
        error.starts_with("no agent is running: there is no socket"),
        "{error}"
    );
}

struct UnixBind(PathBuf);
impl UnixBind {
    fn bind(&self) -> String {
        Socket::bind(&self.0, None).unwrap_err().to_string()
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_newer_one_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("probe.sock");
    drop(StdListener::bind(&path).unwrap());
    let error = blocking({
        let path = path.clone();
        move || client::status(&path)
    })
    .await
    .unwrap_err();
    assert!(
        error.starts_with("no agent is running: nobody answers"),
        "{error}"
    );
    let socket = Socket::bind(&path, None).unwrap();
    // Somebody else's file at the same path outlives us.
    fs::remove_file(&path).unwrap();
    let _other = StdListener::bind(&path).unwrap();
    drop(socket);
    assert!(path.exists());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    Socket::bind(&path, None).unwrap_err();
}

#[test]
fn the_json_has_the_documented_shape() {
    let json = serde_json::to_value(example()).unwrap();
    assert_eq!(json["services"][0]["selection"]["endpoint"], "sen2");
    assert_eq!(
        json["services"][0]["failback"]["due_unix_ms"],
        serde_json::Value::Null
    );
    assert_eq!(json["services"][0]["endpoints"][0]["verdict"], "ok");
    assert_eq!(
        json["services"][0]["endpoints"][0]["traffic"]["flows_opened"],
        0
    );
    assert!(json["services"][0]["endpoints"][0].get("id").is_none());
    assert_eq!(json["datapath"]["abi"], 0);
}

/// A served socket in a folder, with its task and its journal.
struct Served {
    path: PathBuf,
    journal: Arc<Journal>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe.sock");
        let journal = Arc::new(Journal::default());
        let socket = Socket::bind(&path, None).unwrap();
        let task = tokio::spawn(socket.serve(router(api(&journal))));
        Self {
            path,
            journal,
            task,
            _folder: folder,
        }
    }

    async fn get(&self, path: &str) -> String {
        say(
            &self.path,
            format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes(),
        )
        .await
    }

    async fn post(&self, path: &str) -> String {
        say(
            &self.path,
            format!("POST {path} HTTP/1.0\r\n\r\n").as_bytes(),
        )
        .await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn orders_are_what_their_paths_say() {
    let served = Served::new();
    for (path, wish) in [
        ("freeze", "Freeze(true)"),
        ("unfreeze", "Freeze(false)"),
        (
            "promote?endpoint=sen1&drain=30s&force=true",
            "force: true, left: Some(Some(30s))",
        ),
        ("promote?endpoint=sen1&drain=unlimited", "left: Some(None)"),
        ("promote?endpoint=sen1", "force: false, left: None"),
        (
            "endpoints/sen1/drain?deadline=5m",
            "mode: Drain, left: Some(300s)",
        ),
        ("endpoints/sen1/ready", "mode: Ready, left: None"),
        ("endpoints/sen1/maint?dry_run=true", "mode: Maint"),
    ] {
        let answer = served.post(&format!("/v1/services/sense/{path}")).await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{path}: {answer}");
        assert!(answer.contains(wish), "{path}: {answer}");
        let tried = answer.contains("\"dry_run\":true");
        assert_eq!(tried, path.contains("dry_run"), "{answer}");
    }
}

#[tokio::test]
async fn wrong_questions_are_answered_as_such() {
    let served = Served::new();
    for (path, code, why) in [
        ("/", 404, "no such path"),
        ("/v2/status", 404, "no such path"),
        ("/v1/services/nosuch/failback", 404, "no service `nosuch`"),
        ("/v1/services/best/failback", 409, "lowest tier"),
        ("/v1/services/sense/endpoints/a/up", 404, "no such path"),
        (
            "/v1/services/sense/promote",
            400,
            "missing field `endpoint`",
        ),
        (
            "/v1/services/sense/promote?endpoint=a&dryrun=true",
            400,
            "unknown field `dryrun`",
        ),
        (
            "/v1/services/sense/promote?endpoint=a&drain=7",
            400,
            "a duration needs a unit",
        ),
        ("/v1/services/sense/freeze?dry_run=perhaps", 400, "dry_run"),
        (
            "/v1/services/sense/endpoints/a/maint?deadline=1s",
            400,
            "only drain",
        ),
        ("/v1/status", 405, "by GET"),
    ] {
        let answer = served.post(path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.0 {code}")),
            "{path}: {answer}"
        );
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(why), "{path}: {error}");
    }
    let answer = served.get("/v1/services/sense/failback").await;
    assert!(answer.starts_with("HTTP/1.0 405"), "{answer}");
}

/// Whatever is said, the next one is answered.
#[tokio::test]
async fn garbage_hurts_nobody() {
    let served = Served::new();
    let long_head = [
        b"GET /v1/status HTTP/1.1\r\nx: ".as_slice(),
        &vec![b'a'; 1 << 20],
    ]
    .concat();
    let long_path = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20));
    let body = [
        b"POST /v1/services/sense/freeze HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n"
            .as_slice(),
        &vec![0; 8 << 20],
    ]
    .concat();
    for said in [
        b"\0\0\0\0\r\n\r\n".as_slice(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"\r\n\r\n\r\n\r\nGET\r\n\r\n",
        &long_head,
        long_path.as_bytes(),
        &body,
    ] {
        let answer = timeout(Duration::from_secs(20), say(&served.path, said)).await;
        let answer = answer.expect("the connection ends");
        let shown = &answer[..answer.len().min(200)];
        // Closed, refused, or (a body that nobody reads) answered.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1."),
            "{shown}"
        );
    }
    assert!(served.get("/v1/status").await.starts_with("HTTP/1.0 200"));
}

#[tokio::test]
async fn a_thousand_idle_clients_keep_nobody_out() {
    let served = Served::new();
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(UnixStream::connect(&served.path).await.unwrap());
        // As a backlog of 1,000 is more than any system has.
        tokio::task::yield_now().await;
    }
    let answer = timeout(Duration::from_secs(10), served.get("/v1/status")).await;
    assert!(answer.unwrap().starts_with("HTTP/1.0 200"));
    // Those that are too many were ended, the oldest first.
    let mut byte = [0];
    let ended = timeout(Duration::from_secs(10), idle[0].read(&mut byte)).await;
    assert_eq!(ended.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn events_are_lines_and_can_be_followed() {
    let served = Served::new();
    let tell = |service: &str| {
        served.journal.tell(What::PromotionOver {
            service: service.to_owned(),
            endpoint: "sen1".to_owned(),
        });
    };
    for service in ["a", "b", "c"] {
        tell(service);
    }
    let body = |answer: String| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(body(served.get("/v1/events").await).lines().count(), 3);
    assert_eq!(
        body(served.get("/v1/events?last=1").await).lines().count(),
        1
    );
    assert_eq!(
        body(served.get("/v1/events?after=1").await).lines().count(),
        2
    );
    assert_eq!(
        body(served.get("/v1/events?service=b").await)
            .lines()
            .count(),
        1
    );
    assert_eq!(
        body(served.get("/v1/events?since_unix_ms=99999999999999").await),
        ""
    );

    let at = served.path.clone();
    let (lines, mut seen) = mpsc::channel(8);
    let following = tokio::task::spawn_blocking(move || {
        let query = [("after", "3".to_owned()), ("follow", "true".to_owned())];
        client::lines(&at, "/v1/events", &query, |line| {
            lines.blocking_send(line.to_owned())?;
            Ok(!line.contains("\"last\""))
        })
    });
    for service in ["d", "last"] {
        tell(service);
        let line = timeout(Duration::from_secs(10), seen.recv()).await.unwrap();
        assert!(
            line.unwrap()
                .contains(&format!("\"service\":\"{service}\""))
        );
    }
    following.await.unwrap().unwrap();
}

/// Followers that read nothing take a bounded share, and leave room for others.
#[tokio::test]
async fn followers_leave_room_for_others() {
    let served = Served::new();
    let mut followers = Vec::new();
    for _ in 0..100 {
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        let asked = b"GET /v1/events?follow=true HTTP/1.1\r\nHost: a\r\n\r\n";
        // It may be one too many, and closed.
        let _ = stream.write_all(asked).await;
        followers.push(stream);
    }
    for doubts in [true, false].into_iter().cycle().take(10_000) {
        served.journal.tell(What::Distrust { doubts });
    }
    let answer = timeout(Duration::from_secs(20), async {
        loop {
            let answer = served.get("/v1/status").await;
            if answer.starts_with("HTTP/1.0 200") {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    answer.await.expect("somebody else is answered");
}

#[tokio::test]
async fn flows_are_filtered_and_counted() {
    let served = Served::new();
    for (query, count, shown) in [
        ("", 3, 3),
        ("?limit=1", 3, 1),
        ("?limit=0&service=sense", 3, 0),
        ("?endpoint=sen2", 1, 1),
        ("?client=10.0.0.0/8", 3, 3),
        ("?client=10.0.0.9:3", 1, 1),
        ("?client=10.1.0.0/16", 0, 0),
        ("?vip=10.96.0.10:8079&stage=established", 3, 3),
        ("?stage=opening", 0, 0),
    ] {
        let answer = served.get(&format!("/v1/flows{query}")).await;
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let listed: flows::Listed = serde_json::from_str(body).unwrap();
        assert_eq!(
            (listed.count, listed.flows.len()),
            (count, shown),
            "{query}"
        );
    }
    for (query, code) in [
        ("?service=nosuch", 404),
        ("?endpoint=nosuch", 404),
        ("?client=everybody", 400),
        ("?clients=10.0.0.9", 400),
    ] {
        let answer = served.get(&format!("/v1/flows{query}")).await;
        assert!(answer.starts_with(&format!("HTTP/1.0 {code}")), "{answer}");
    }
}

#[tokio::test]
async fn packets_are_tried() {
    let served = Served::new();
    let ask = async |src: &str, dst: &str| {
        let answer = served
            .post(&format!("/v1/explain/packet?src={src}&dst={dst}"))
            .await;
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str::<serde_json::Value>(body).unwrap()
    };
    let answer = ask("10.0.0.9:1", "10.96.0.10:8079").await;
    assert_eq!(answer["listener"], "service sense");
    assert_eq!(answer["outcomes"][0]["endpoint"], "sense/sen2");
    assert_eq!(answer["outcomes"][1]["outcome"], "passed");
    let answer = ask("10.0.0.9:1", "10.0.0.1:1").await;
    assert_eq!(answer["listener"], "sense/sen2's own address");
    assert_eq!(
        ask("10.0.0.9:1", "10.9.9.9:9/udp").await["listener"],
        "nobody"
    );
    for (src, dst, why) in [
        ("10.0.0.9:1", "sense", "dst: `sense`"),
        ("10.0.0.9:1", "[fd00::1]:80", "two address families"),
        ("client", "10.96.0.10:8079", "src"),
    ] {
        let error = ask(src, dst).await["error"].to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn flows_that_are_named_can_be_ended() {
    let served = Served::new();
    for (query, count, killed) in [
        ("?service=sense&dry_run=true", 3, 3),
        ("?endpoint=sen2", 1, 1),
        ("?client=10.0.0.9", 3, 2),
    ] {
        let answer = served.post(&format!("/v1/flows/kill{query}")).await;
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let done: flows::Killed = serde_json::from_str(body).unwrap();
        assert_eq!(
            (done.count, done.killed, done.left),
            (count, killed, count - killed)
        );
    }
    let events = served.journal.after(0, 9).events;
    let told: Vec<_> = events.iter().map(|of| of.what.to_string()).collect();
    assert_eq!(told.len(), 2, "a dry run is no event");
    assert!(
        told[0].starts_with("1 connections ended by root"),
        "{told:?}"
    );
    assert!(told[1].ends_with(": client 10.0.0.9"), "{told:?}");
    let answer = served.post("/v1/flows/kill").await;
    assert!(answer.starts_with("HTTP/1.0 400"), "{answer}");
}
