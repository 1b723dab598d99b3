//! The API over a real socket, with a stand-in for the core.

use std::os::unix::net::UnixListener as StdListener;

use probe_ebpf::abi::Reason;

use super::*;
use crate::datapath::{self, EndpointCounters, EndpointId, FlowCounts, ServiceId};

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
        serving: name == "sen2",
        address: "a:1".to_owned(),
        resolved: vec!["10.0.0.1:1".to_owned()],
        state: "up".to_owned(),
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
            affinity_ms: None,
            endpoints: vec![endpoint("sen2", 3), endpoint("sen1", 4)],
        }],
        interfaces: Vec::new(),
        datapath: status::Datapath::default(),
    }
}

fn sources() -> Sources {
    let (asks, mut receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(ask) = receiver.recv().await {
            match ask {
                Ask::Status(reply) => reply.send(example()).unwrap(),
                Ask::Pending(reply) => reply.send(Vec::new()).unwrap(),
                Ask::Failback(name, reply) if name == "sense" => {
                    reply.send(Ok("sen2".to_owned())).unwrap();
                }
                Ask::Failback(name, reply) if name == "best" => reply
                    .send(Err(Refused::No {
                        service: name,
                        reason: crate::failover::NoFailback::Lowest,
                    }))
                    .unwrap(),
                Ask::Failback(name, reply) => reply.send(Err(Refused::NoService(name))).unwrap(),
            }
        }
    });
    Sources {
        asks,
        counters: Arc::new(Fixed),
    }
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
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let task = tokio::spawn(socket.serve(sources()));
    let at = path.clone();
    let status = blocking(move || client::status(&at)).await.unwrap();
    assert_eq!(status.services[0].endpoints[1].traffic.forward_packets, 400);
    assert_eq!(status.datapath.reasons["not_listener"], 7);
    let order = |service: &'static str| {
        let at = path.clone();
        blocking(move || client::failback(&at, service))
    };
    assert_eq!(order("sense").await, Ok("sen2".to_owned()));
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
        Socket::bind(&self.0).unwrap_err().to_string()
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
    let socket = Socket::bind(&path).unwrap();
    // Somebody else's file at the same path outlives us.
    fs::remove_file(&path).unwrap();
    let _other = StdListener::bind(&path).unwrap();
    drop(socket);
    assert!(path.exists());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    Socket::bind(&path).unwrap_err();
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
