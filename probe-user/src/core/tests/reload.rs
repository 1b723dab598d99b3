//! Another configuration in a running core: what is left alone, and the order of the rest.

use super::*;

const SENSE: &str = "\
- name: sense
  listeners: ['10.96.0.10:80']
  endpoints:
  - {name: master, address: '10.0.0.1:80'}
  - {name: backup, address: '10.0.0.2:80'}
  check: {http: {path: /}, inter: 10ms, rise: 2, fall: 2}
";
const CHAT: &str = "\
- name: chat
  listeners: ['10.96.0.20:80']
  endpoints: [{name: one, address: '10.0.1.1:80'}]
  check: {tcp: {}, inter: 10ms}
";

fn services(text: &str) -> Config {
    config::parse(&format!(
        "interfaces: {{edge: ['veth*']}}\nservices:\n{text}"
    ))
    .unwrap()
}

impl Bench {
    async fn reload(&self, text: &str) -> Result<Reloaded, datapath::Error> {
        self.reload_to(services(text), Vec::new()).await
    }

    async fn reload_to(
        &self,
        config: Config,
        existing: Vec<Interface>,
    ) -> Result<Reloaded, datapath::Error> {
        let (tx, rx) = oneshot::channel();
        let reload = Reload {
            resolved: resolved(&config),
            config,
            existing,
        };
        let ask = Ask::Reload(Box::new(reload), tx);
        self.asks.send(ask).await.unwrap();
        rx.await.unwrap()
    }

    /// Plans that were applied since the last question: name, listeners, shadow.
    fn plans(&self) -> Vec<Vec<(String, Vec<String>, bool)>> {
        let plans = std::mem::take(&mut *self.plans.lock().unwrap());
        let of = |of: ServicePlan| {
            let listeners = of.listeners.iter().map(ToString::to_string).collect();
            (of.name, listeners, of.shadow)
        };
        plans
            .into_iter()
            .map(|plan| plan.into_iter().map(of).collect())
            .collect()
    }

    fn started(&self) -> Vec<CheckKey> {
        std::mem::take(&mut *self.started.lock().unwrap())
    }

    async fn verdict(&self, key: CheckKey, kind: Kind) {
        let report = Report {
            key,
            verdict: Verdict {
                kind,
                status: None,
                latency: Duration::from_micros(400),
                note: "".into(),
                saw: Saw::NOTHING,
            },
            skipped: 0,
            standing: Standing::Counts,
            late: None,
        };
        self.reports.send(report).await.unwrap();
    }
}

fn key(service: usize, endpoint: usize, generation: u32) -> CheckKey {
    CheckKey {
        service,
        endpoint,
        generation,
    }
}

/// A bench of these services whose endpoints all are up.
async fn well(text: &str) -> Bench {
    let config = services(text);
    let bench = Bench::new(&config, Recorder::default(), &[]);
    for (s, service) in config.services().iter().enumerate() {
        for e in 0..service.endpoints().len() {
            bench.verdict(key(s, e, 0), Kind::Ok).await;
        }
    }
    bench.did().await;
    bench.plans();
    bench.started();
    bench
}

#[tokio::test(start_paused = true)]
async fn the_same_again_does_nothing() {
    let bench = well(&format!("{SENSE}{CHAT}")).await;
    let reloaded = bench.reload(&format!("{SENSE}{CHAT}")).await.unwrap();
    assert_eq!(reloaded.unchanged, 2);
    assert_eq!((bench.did().await, bench.plans()), (vec![], vec![]));
    assert_eq!(bench.started(), []);
    bench.end().await;
}

/// One service changes, another is new in front of it, the third is left alone: its checks go
/// on, although it has another place now.
#[tokio::test(start_paused = true)]
async fn what_is_not_meant_is_left_alone() {
    let bench = well(&format!("{SENSE}{CHAT}")).await;
    let new = SENSE.replace("sense", "new").replace("96.0.10", "96.0.30");
    let faster = CHAT.replace("inter: 10ms", "inter: 5ms");
    let reloaded = bench
        .reload(&format!("{new}{faster}{SENSE}"))
        .await
        .unwrap();
    assert_eq!(
        (
            reloaded.added.as_slice(),
            reloaded.changed.as_slice(),
            reloaded.removed.as_slice()
        ),
        (&["new".to_owned()][..], &["chat".to_owned()][..], &[][..])
    );
    assert_eq!(
        reloaded.slots,
        [(2, vec![0, 1]), (1, vec![0]), (0, vec![0, 1])]
    );
    // Who is new decides without a listener first, and only then has one.
    let plans = bench.plans();
    let first: Vec<_> = plans[0].iter().map(|of| (of.0.as_str(), of.2)).collect();
    assert_eq!(first, [("new", true), ("sense", false), ("chat", false)]);
    let second: Vec<_> = plans[1].iter().map(|of| (of.0.as_str(), of.2)).collect();
    assert_eq!(second, [("new", false), ("chat", false), ("sense", false)]);
    assert_eq!(plans.len(), 2);
    let did = bench.did().await;
    assert_eq!(
        did,
        [Apply(3), Select(20), Apply(3), Select(20), Select(10)],
        "nothing of the one that is the same"
    );
    // Of the changed one the checks begin anew, by what they were known by, and what the old
    // ones still say is nobody's.
    assert_eq!(bench.started(), [key(2, 0, 0), key(2, 1, 0), key(1, 0, 1)]);
    bench.verdict(key(1, 0, 0), Kind::Refused).await;
    bench.verdict(key(1, 0, 1), Kind::Ok).await;
    // The one in the last place is known by the same key, and fails over.
    for _ in 0..2 {
        bench.verdict(key(0, 0, 0), Kind::Refused).await;
    }
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    let status = bench.status().await;
    let names: Vec<_> = status.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["new", "chat", "sense"]);
    assert_eq!(status.services[1].endpoints[0].checks, 2);
    assert_eq!(status.services[1].endpoints[0].state, "up");
    assert_eq!(status.services[2].endpoints[0].checks, 3);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn endpoints_come_and_go() {
    let bench = well(SENSE).await;
    // The selected one leaves: who is up is preferred to who is new.
    let other = SENSE.replace(
        "{name: master, address: '10.0.0.1:80'}",
        "{name: other, address: '10.0.0.3:80'}",
    );
    bench.reload(&other).await.unwrap();
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Did::Gone("sense/master".to_owned()),
            Select(1),
            Heard(Reason::Reload),
        ]
    );
    assert_eq!(bench.started(), [key(0, 2, 0)], "of the new one only");
    let status = bench.status().await;
    let endpoints = &status.services[0].endpoints;
    assert_eq!(
        (endpoints[0].state.as_str(), endpoints[0].checks),
        ("unknown", 0)
    );
    assert_eq!(
        (endpoints[1].state.as_str(), endpoints[1].checks),
        ("up", 1)
    );
    // Verdicts on who left are nobody's, and a lookup of its name too.
    bench.verdict(key(0, 0, 0), Kind::Refused).await;
    bench.lookup(Ok(&["10.0.0.9"])).await;
    assert_eq!(bench.did().await, []);
    // The new master is up, and after its time takes over.
    bench.verdict(key(0, 2, 0), Kind::Ok).await;
    bench.did().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bench.did().await, [Select(2), Heard(Reason::Failback)]);
    bench.end().await;
}

/// Both are up, the backup serves, and the fail-back is due in a while: a reload of something
/// else of the service does not put it off, and the new hold time counts.
#[tokio::test(start_paused = true)]
async fn times_go_on_and_changed_ones_count() {
    let bench = well(SENSE).await;
    for _ in 0..2 {
        bench.verdict(key(0, 0, 0), Kind::Refused).await;
    }
    for _ in 0..2 {
        bench.verdict(key(0, 0, 0), Kind::Ok).await;
    }
    bench.did().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let keep = format!("{SENSE}  all_down: refuse\n");
    bench.reload(&keep).await.unwrap();
    assert_eq!(bench.did().await, [Apply(1), Select(1)]);
    assert_eq!(bench.started(), [], "the checks are the same");
    tokio::time::sleep(Duration::from_millis(1900)).await;
    assert_eq!(bench.did().await, []);
    // It has been up for 4.9 of 5 s; with 4 s it is time.
    let sooner = format!("{keep}  failback: {{hold: 4s}}\n");
    bench.reload(&sooner).await.unwrap();
    assert_eq!(
        bench.did().await,
        [Apply(1), Select(0), Heard(Reason::Reload)]
    );
    bench.end().await;
}

/// A reload comes between two failed checks, and another one when the endpoint is down: counts
/// and marks stay as they are.
#[tokio::test(start_paused = true)]
async fn a_reload_during_a_switch() {
    let bench = well(SENSE).await;
    bench.verdict(key(0, 0, 0), Kind::Refused).await;
    assert_eq!(bench.did().await, []);
    // One of two: the next bad check decides, whichever task makes it.
    bench
        .reload(&SENSE.replace("inter: 10ms", "inter: 20ms"))
        .await
        .unwrap();
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    bench.verdict(key(0, 0, 1), Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    // Down is down, after another one too.
    bench.reload(SENSE).await.unwrap();
    assert_eq!(bench.did().await, [Apply(1), Select(1)]);
    let status = bench.status().await;
    assert_eq!(status.services[0].endpoints[0].state, "down");
    assert_eq!(status.services[0].selection.switches, 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_refused_for_a_while() {
    let bench = well(&format!("{SENSE}{CHAT}")).await;
    let reloaded = bench.reload(SENSE).await.unwrap();
    assert_eq!(reloaded.removed, ["chat"]);
    assert_eq!(
        bench.did().await,
        [
            Did::Gone("chat/one".to_owned()),
            Did::Gone("chat".to_owned()),
            Refuse,
            Drained(10),
            Apply(2),
        ]
    );
    tokio::time::sleep(Duration::from_secs(9)).await;
    bench.plans();
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.did().await, [Apply(1)]);
    assert_eq!(bench.plans()[0][0].0, "sense");
    bench.end().await;
}

/// The same under another name: nobody is refused.
#[tokio::test(start_paused = true)]
async fn a_new_name_is_no_end() {
    let bench = well(CHAT).await;
    let renamed = CHAT.replace("name: chat", "name: talk");
    bench.reload(&renamed).await.unwrap();
    assert_eq!(
        bench.did().await,
        [
            Apply(2),
            Select(10),
            Did::Gone("chat/one".to_owned()),
            Did::Gone("chat".to_owned()),
            Apply(1),
            Select(10),
        ]
    );
    let plans = bench.plans();
    assert!(plans[0].iter().any(|of| of.0 == "chat" && !of.2));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_shadow_decides_and_writes_nothing() {
    let shadow = format!("{SENSE}  mode: shadow\n");
    let bench = well(&shadow).await;
    for _ in 0..2 {
        bench.verdict(key(0, 0, 0), Kind::Refused).await;
    }
    assert_eq!(bench.did().await, [Heard(Reason::MasterDown)]);
    let status = bench.status().await;
    assert_eq!(status.services[0].mode, "shadow");
    assert_eq!(
        status.services[0].selection.endpoint.as_deref(),
        Some("backup")
    );
    // From now on it steers, to whom it chose, and the marks follow.
    bench.reload(SENSE).await.unwrap();
    assert_eq!(
        bench.did().await,
        [Apply(1), Select(1), Apply(1), Select(1), Down(0)]
    );
    let plans = bench.plans();
    assert!(plans[0][0].2 && !plans[1][0].2);
    assert_eq!(bench.started(), []);
    // And back: refused and told, and then nothing of it is left.
    bench.reload(&shadow).await.unwrap();
    assert_eq!(
        bench.did().await,
        [Refuse, Drained(0), Drained(1), Apply(1)]
    );
    assert!(!bench.plans()[0][0].2, "its listeners refuse");
    for _ in 0..2 {
        bench.verdict(key(0, 0, 0), Kind::Ok).await;
    }
    assert_eq!(bench.did().await, [], "a shadow again");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(
        bench.did().await,
        [Heard(Reason::Failback), Apply(1), Up(0), Up(1)]
    );
    assert!(bench.plans()[0][0].2);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn no_room_changes_nothing() {
    let bench = well(SENSE).await;
    *bench.full.lock().unwrap() = true;
    let error = bench.reload(&format!("{SENSE}{CHAT}")).await.unwrap_err();
    assert_eq!(error.to_string(), failure().to_string());
    assert_eq!(bench.did().await, []);
    assert_eq!(bench.status().await.services.len(), 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn interfaces_change_too() {
    let bench = well(SENSE).await;
    let interface = |index, name: &str| Interface {
        index,
        name: name.to_owned(),
    };
    bench
        .changes
        .send(Change::Appeared(interface(7, "veth7")))
        .await
        .unwrap();
    assert_eq!(bench.did().await, [Did::Attached("veth7".to_owned())]);
    let text = format!("interfaces: {{uplink: ['up*']}}\nservices:\n{SENSE}");
    let existing = vec![interface(7, "veth7"), interface(8, "up0")];
    bench
        .reload_to(config::parse(&text).unwrap(), existing)
        .await
        .unwrap();
    assert_eq!(
        bench.did().await,
        [Detach("veth7".to_owned()), Did::Attached("up0".to_owned())]
    );
    bench.end().await;
}

/// Orders are by names: they go on over a reload, and wait for who is gone.
#[tokio::test(start_paused = true)]
async fn orders_go_on() {
    let bench = well(SENSE).await;
    let drain = mode("master", Mode::Drain);
    bench.order("sense", drain, false).await.unwrap();
    assert!(bench.did().await.contains(&Select(1)));
    bench.plans.lock().unwrap().clear();
    let slower = SENSE.replace("inter: 10ms", "inter: 20ms");
    bench.reload(&slower).await.unwrap();
    assert_eq!(bench.did().await, [Apply(1), Select(1)]);
    let resting: Vec<_> = bench.plans.lock().unwrap()[0][0]
        .endpoints
        .iter()
        .map(|of| of.resting)
        .collect();
    assert_eq!(resting, [true, false], "it stays out of its tier");
    let mode = |status: &status::Status, e: usize| status.services[0].endpoints[e].mode.clone();
    assert_eq!(mode(&bench.status().await, 0), "drain");

    let alone = SENSE.replace("  - {name: master, address: '10.0.0.1:80'}\n", "");
    bench.reload(&alone).await.unwrap();
    assert_eq!(bench.status().await.services[0].endpoints.len(), 1);
    bench.reload(SENSE).await.unwrap();
    let status = bench.status().await;
    assert_eq!(
        (mode(&status, 0), mode(&status, 1)),
        ("drain".into(), "ready".into())
    );
    assert_eq!(
        status.services[0].selection.endpoint.as_deref(),
        Some("backup")
    );

    // Who was promoted and leaves is not promoted any more, and nobody asks for it.
    let promote = Wish::Promote {
        endpoint: "backup".to_owned(),
        force: false,
        left: None,
    };
    bench.order("sense", promote, false).await.unwrap();
    assert!(bench.status().await.services[0].promoted.is_some());
    let other = SENSE.replace("  - {name: backup, address: '10.0.0.2:80'}\n", "");
    bench.reload(&other).await.unwrap();
    assert!(bench.status().await.services[0].promoted.is_none());
    bench.end().await;
}
