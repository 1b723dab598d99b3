//! Metrics as they are scraped, and the health page over a real socket.

use bytes::BytesMut;
use probe_ebpf::abi::{EventKind, Reason as Packet};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

use super::*;
use crate::{
    config,
    core::{Counters, Observer as _},
    datapath::{
        self, Ended, EndpointCounters, EndpointId, FlowCounts, OwnState, Role, ServiceId, TcWay,
        TellCounts, TellState, Told, XdpWay,
    },
    failover::{Reason, cut::Gone, orders::Mode},
    health::{Kind, Saw, Signal, State, Verdict},
    http1::{Decoder, Limits, Progress},
    reload::Outcome,
};

pub(super) struct Fixed;

impl Counters for Fixed {
    fn endpoint(&self, id: EndpointId) -> Result<EndpointCounters, datapath::Error> {
        if id == EndpointId(9) {
            return Err(datapath::Error::NoBpffs {
                path: String::new(),
            });
        }
        Ok(EndpointCounters {
            forward_packets: 10,
            forward_bytes: 1000,
            reverse_packets: 20,
            reverse_bytes: 2000,
            flows_opened: 3,
            flows_closed: 2,
        })
    }
    fn reasons(&self) -> Result<Vec<(Packet, u64)>, datapath::Error> {
        let count = |reason: &Packet| match reason {
            Packet::NotListener => 7,
            Packet::Refused => 1,
            _ => 0,
        };
        Ok(Packet::ALL.iter().map(|r| (*r, count(r))).collect())
    }
    fn flows(&self) -> FlowCounts {
        FlowCounts {
            v4: 4,
            v6: 6,
            own: 5,
        }
    }
    fn slot_alone(&self, id: ServiceId) -> Result<bool, datapath::Error> {
        Ok(id == ServiceId(5))
    }
}

/// Metrics of an agent to which everything has happened that is counted.
pub(super) fn eventful() -> Metrics {
    let metrics = Metrics::new(Arc::new(Fixed));
    let recorder = metrics.recorder();
    recorder.identified("sense", "sen2", EndpointId(0));
    recorder.identified("sense", "sen1", EndpointId(9));
    recorder.served("sense", ServiceId(5));
    recorder.identified("other", "one", EndpointId(1));
    recorder.served("other", ServiceId(6));
    recorder.distrusts(true);
    recorder.holds("sense", Duration::from_secs(10));
    recorder.draining("sense", "sen2", false);
    recorder.draining("sense", "sen1", true);
    recorder.state("sense", "sen2", State::Up);
    recorder.selected("sense", &["sen2"]);
    let verdict = Verdict {
        kind: Kind::Refused,
        status: None,
        latency: Duration::from_micros(300),
        note: "".into(),
        saw: Saw::NOTHING,
    };
    recorder.checked("sense", "sen2", &verdict, 4);
    recorder.switched("sense", Reason::MasterDown);
    recorder.event(EventKind::FlowReset, 2);
    recorder.signalled("sense", "sen2", Signal::Unanswered);
    recorder.signalled("sense", "sen2", Signal::Unanswered);
    recorder.interfaces(Role::Edge, TcWay::Tcx, XdpWay::None, 3);
    recorder.interfaces(Role::Uplink, TcWay::Clsact, XdpWay::Generic, 1);
    recorder.own(&OwnState::Missing("no cgroups".to_owned()));
    recorder.own_ended(Ended {
        ended: 3,
        refused: 1,
    });
    recorder.telling(&TellState::Missing("no capability".to_owned()));
    recorder.told(&Told {
        counts: [(
            EndpointId(0),
            TellCounts {
                released: 5,
                clients: 9,
                endpoints: 6,
                told: 7,
                given_up: 1,
            },
        )]
        .into(),
        ..Told::default()
    });
    recorder.failed_over("sense", Duration::from_millis(20));
    recorder.placed("sense", "sen2", 0, 1);
    recorder.placed("sense", "sen1", 1, 256);
    recorder.flows_max(131_072);
    recorder.mode("sense", "sen1", Mode::Maint);
    recorder.frozen("sense", true);
    recorder.cut_off("sense", Some(&Gone::Route));
    recorder.unresolved("sense", "sen2", true);
    recorder.late(Duration::from_millis(3), Duration::from_millis(7));
    recorder.realtime(true, false);
    metrics
}

#[test]
fn what_is_scraped() {
    let text = eventful().render(Format::OpenMetrics).unwrap();
    for line in [
        "probe_checks_total{service=\"sense\",endpoint=\"sen2\",verdict=\"refused\"} 1",
        "probe_checks_total{service=\"sense\",endpoint=\"sen2\",verdict=\"ok\"} 0",
        "probe_checks_skipped_total{service=\"sense\",endpoint=\"sen2\"} 4",
        "probe_check_duration_seconds_bucket{le=\"0.00025\",service=\"sense\",endpoint=\"sen2\"} 0",
        "probe_check_duration_seconds_bucket{le=\"0.0005\",service=\"sense\",endpoint=\"sen2\"} 1",
        "probe_endpoint_state{service=\"sense\",endpoint=\"sen2\",state=\"up\"} 1",
        "probe_endpoint_state{service=\"sense\",endpoint=\"sen2\",state=\"down\"} 0",
        "probe_endpoint_selected{service=\"sense\",endpoint=\"sen2\"} 1",
        "probe_endpoint_selected{service=\"sense\",endpoint=\"sen1\"} 0",
        "probe_endpoint_draining{service=\"sense\",endpoint=\"sen2\"} 0",
        "probe_endpoint_draining{service=\"sense\",endpoint=\"sen1\"} 1",
        "probe_service_slot_alone{service=\"sense\"} 1",
        "probe_service_slot_alone{service=\"other\"} 0",
        "probe_service_refusing{service=\"sense\"} 0",
        "probe_self_distrust 1",
        "probe_failback_hold_seconds{service=\"sense\"} 10.0",
        "probe_switches_total{service=\"sense\",reason=\"master-down\"} 1",
        "probe_switches_total{service=\"sense\",reason=\"failback\"} 0",
        "probe_events_total{kind=\"flow_reset\"} 3",
        "probe_endpoint_signals_total{service=\"sense\",endpoint=\"sen2\",kind=\"syn_unanswered\"} 2",
        "probe_syns_released_total{service=\"sense\",endpoint=\"sen2\"} 5",
        "probe_endpoint_signals_total{service=\"sense\",endpoint=\"sen1\",kind=\"sentinel_reset\"} 0",
        "probe_interfaces{role=\"edge\",tc=\"tcx\",xdp=\"none\"} 3",
        "probe_interfaces{role=\"uplink\",tc=\"clsact\",xdp=\"generic\"} 1",
        "probe_datapath_packets_total{service=\"sense\",endpoint=\"sen2\",direction=\"forward\"} 10",
        "probe_datapath_bytes_total{service=\"sense\",endpoint=\"sen2\",direction=\"reverse\"} 2000",
        "probe_datapath_flows_opened_total{service=\"sense\",endpoint=\"sen2\"} 3",
        "probe_datapath_flows_closed_total{service=\"sense\",endpoint=\"sen2\"} 2",
        "probe_datapath_reasons_total{verdict=\"pass\",reason=\"not_listener\"} 7",
        "probe_datapath_reasons_total{verdict=\"reset\",reason=\"refused\"} 1",
        "probe_datapath_flows{family=\"ipv6\"} 6",
        "probe_node_processes{state=\"missing\"} 1",
        "probe_node_processes{state=\"attached\"} 0",
        "probe_node_sockets 5",
        "probe_node_sockets_ended_total{outcome=\"ended\"} 3",
        "probe_node_sockets_ended_total{outcome=\"refused\"} 1",
        "probe_telling{state=\"missing\"} 1",
        "probe_telling{state=\"ready\"} 0",
        "probe_flow_challenges_total{service=\"sense\",endpoint=\"sen2\",to=\"client\"} 9",
        "probe_flow_challenges_total{service=\"sense\",endpoint=\"sen2\",to=\"endpoint\"} 6",
        "probe_flows_told_total{service=\"sense\",endpoint=\"sen2\"} 7",
        "probe_flows_not_told_total{service=\"sense\",endpoint=\"sen2\"} 1",
        "probe_flows_told_total{service=\"sense\",endpoint=\"sen1\"} 0",
        "# TYPE probe_checks counter",
        "probe_failover_duration_seconds_bucket{le=\"0.01\",service=\"sense\"} 0",
        "probe_failover_duration_seconds_bucket{le=\"0.025\",service=\"sense\"} 1",
        "probe_failover_duration_seconds_count{service=\"other\"} 0",
        "probe_endpoint_tier{service=\"sense\",endpoint=\"sen1\"} 1",
        "probe_endpoint_weight{service=\"sense\",endpoint=\"sen1\"} 256",
        "probe_datapath_flows_max 131072",
        "probe_endpoint_mode{service=\"sense\",endpoint=\"sen1\",mode=\"maint\"} 1",
        "probe_endpoint_mode{service=\"sense\",endpoint=\"sen1\",mode=\"ready\"} 0",
        "probe_service_frozen{service=\"sense\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    // As of every process.
    for name in [
        "resident_memory_bytes",
        "open_fds",
        "max_fds",
        "start_time_seconds",
    ] {
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("process_{name} ")));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value > 0.0), "{name}\n{text}");
    }
    assert!(text.contains("\nprocess_cpu_seconds_total "), "{text}");
    assert!(text.contains("probe_build_info{version=\""), "{text}");
    assert!(text.ends_with("# EOF\n"));
    // What the kernel does not tell is absent, not zero.
    assert!(!text.contains("probe_datapath_packets_total{service=\"sense\",endpoint=\"sen1\""));
}

async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let limits = Limits {
        head: 1 << 16,
        body: 1 << 20,
    };
    let (mut decoder, mut input) = (Decoder::new(limits, false), BytesMut::new());
    loop {
        let count = stream.read_buf(&mut input).await.unwrap();
        let progress = if count == 0 {
            decoder.close(&input)
        } else {
            decoder.push(&mut input)
        };
        if progress.unwrap() == Progress::Done {
            let body = String::from_utf8(decoder.body().to_vec()).unwrap();
            return (decoder.status(), body);
        }
    }
}

/// What left the configuration leaves no line, and reloads are counted.
#[test]
fn what_left_is_not_scraped() {
    let metrics = Metrics::new(Arc::new(Fixed));
    let recorder = metrics.recorder();
    for endpoint in ["sen1", "sen2"] {
        recorder.identified("sense", endpoint, EndpointId(0));
        recorder.state("sense", endpoint, State::Up);
        recorder.draining("sense", endpoint, false);
        recorder.signalled("sense", endpoint, Signal::Refused);
    }
    recorder.served("sense", ServiceId(5));
    recorder.service_mode("sense", config::Mode::Shadow);
    recorder.holds("sense", Duration::from_secs(5));
    recorder.selected("sense", &["sen1"]);
    recorder.switched("sense", Reason::Reload);
    recorder.switched("sense", Reason::MembersChanged);
    recorder.loaded();
    recorder.gone("sense", Some("sen1"));
    let text = metrics.render(Format::OpenMetrics).unwrap();
    assert!(!text.contains("sen1"), "{text}");
    assert!(text.contains("probe_endpoint_state{service=\"sense\",endpoint=\"sen2\""));
    assert!(text.contains("probe_service_shadow{service=\"sense\"} 1"));
    recorder.gone("sense", Some("sen2"));
    recorder.gone("sense", None);
    recorder.reloaded(Outcome::Applied);
    recorder.reloaded(Outcome::Refused);
    let text = metrics.render(Format::OpenMetrics).unwrap();
    assert!(!text.contains("sense"), "{text}");
    for line in [
        "probe_config_reloads_total{result=\"applied\"} 1",
        "probe_config_reloads_total{result=\"invalid\"} 0",
        "probe_config_last_reload_successful 0",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    recorder.reloaded(Outcome::Unchanged);
    let text = metrics.render(Format::OpenMetrics).unwrap();
    assert!(text.contains("probe_config_last_reload_successful 1"));
}

#[tokio::test]
async fn the_health_page() {
    let (asks, mut receiver) = mpsc::channel(4);
    let sources = Sources {
        asks,
        counters: Arc::new(Fixed),
    };
    let listener = bind("127.0.0.1:0".parse().unwrap(), "metrics", "metrics.listen")
        .await
        .unwrap();
    let at = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::new(Arc::new(Fixed)));
    let task = tokio::spawn(serve(listener, metrics, sources));
    let core = tokio::spawn(async move {
        let many: Vec<_> = (0..7).map(|i| format!("s/{i}")).collect();
        for pending in [many, Vec::new()] {
            match receiver.recv().await {
                Some(Ask::Pending(reply)) => reply.send(pending).unwrap(),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(
        get(at, "/healthz").await,
        (
            503,
            "waiting for the first verdict on s/0, s/1, s/2, s/3, s/4 and 2 more\n".to_owned()
        )
    );
    assert_eq!(get(at, "/healthz").await, (200, "ok\n".to_owned()));
    core.await.unwrap();
    assert_eq!(
        get(at, "/healthz").await,
        (503, "the agent's core does not answer\n".to_owned())
    );
    let (code, text) = get(at, "/metrics").await;
    assert_eq!(code, 200);
    assert!(
        text.contains("# TYPE probe_events_total counter\n"),
        "{text}"
    );
    assert!(!text.contains("# EOF"), "{text}");
    assert_eq!(get(at, "/else").await.0, 404);
    let error = bind(at, "metrics", "metrics.listen")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("metrics.listen"), "{error}");
    task.abort();
}
