//! The core with a recorder in the kernel's place: what is written, in which order.

mod cut;
mod names;
mod reload;
mod truth;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{order::Wish, *};
use crate::{
    config,
    datapath::{
        AppliedService, Choice, EndpointId, EndpointPlan, Mark, ServiceId, ServicePlan, Silent,
        TcWay, XdpWay,
    },
    failover::{NoFailback, orders::Mode},
    health::{Kind, Saw, scheduler::Standing},
    interfaces::Interface,
    resolve::{Unresolved, literal},
};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    Apply(usize),
    Select(u32),
    Spread(Vec<u32>),
    Refuse,
    Up(u32),
    Down(u32),
    Weigh(u32, u16),
    Drained(u32),
    Readdress(u32, String),
    Rest(u32, bool),
    Attached(String),
    Forget(u32),
    Detach(String),
    /// The observer heard of a switch: must come after the write.
    Heard(Reason),
    /// The hold time, where it is more than the usual one of these tests.
    Holds(Duration),
    Doubts(bool),
    CutOff(&'static str),
    /// The observer heard that it left.
    Gone(String),
    /// The duration of a failover, where it is more than the usual one of these tests.
    FailedOver(Duration),
}
use Did::{
    Apply, CutOff, Detach, Doubts, Down, Drained, FailedOver, Forget, Heard, Holds, Readdress,
    Refuse, Rest, Select, Spread, Up, Weigh,
};

#[derive(Default)]
struct Recorder {
    did: Arc<Mutex<Vec<Did>>>,
    inherited: Option<Choice>,
    inherited_marks: Vec<Mark>,
    inherited_ago: Duration,
    attached: Vec<u32>,
    /// Interfaces that cannot be attached, and how often.
    broken: VecDeque<String>,
    next: u32,
    /// Ids of services and endpoints, by name; endpoints' addresses are part of theirs.
    ids: BTreeMap<String, u32>,
    plans: Arc<Mutex<Vec<Vec<ServicePlan>>>>,
    full: Arc<Mutex<bool>>,
    /// Since when endpoints have answered no client.
    silent: Arc<Mutex<BTreeMap<u32, Instant>>>,
    /// What they have sent to those that are connected.
    packets: Arc<Mutex<u64>>,
}

impl Recorder {
    fn note(&self, did: Did) {
        self.did.lock().unwrap().push(did);
    }
}

fn failure() -> datapath::Error {
    datapath::Error::NoBpffs {
        path: "/nowhere".to_owned(),
    }
}

impl Steering for Recorder {
    fn apply(&mut self, plan: &[ServicePlan]) -> Result<Vec<AppliedService>, datapath::Error> {
        self.note(Apply(plan.len()));
        self.plans.lock().unwrap().push(plan.to_vec());
        let mut applied = Vec::new();
        for service in plan {
            let services = self.ids.values().filter(|id| **id >= 1000).count() as u32;
            let id = *self
                .ids
                .entry(service.name.clone())
                .or_insert(1000 + services)
                - 1000;
            let mut endpoints = Vec::new();
            for endpoint in &service.endpoints {
                let key = format!("{}/{}/{:?}", service.name, endpoint.name, endpoint.v4);
                let of = self.ids.values().filter(|of| **of / 10 == id).count() as u32;
                endpoints.push(EndpointId(*self.ids.entry(key).or_insert(id * 10 + of)));
            }
            applied.push(AppliedService {
                id: ServiceId(id),
                endpoints,
                inherited: self.inherited.clone(),
                inherited_marks: self.inherited_marks.clone(),
                inherited_at: SystemTime::now() - self.inherited_ago,
            });
        }
        self.next = 100;
        Ok(applied)
    }
    fn fits(&self, _: &[ServicePlan]) -> Result<(), datapath::Error> {
        if *self.full.lock().unwrap() {
            return Err(failure());
        }
        Ok(())
    }
    fn readdress(
        &mut self,
        _: ServiceId,
        old: EndpointId,
        endpoint: &EndpointPlan,
    ) -> Result<EndpointId, datapath::Error> {
        if endpoint.v4 == Some([10, 9, 9, 9].into()) {
            return Err(failure());
        }
        self.note(Readdress(old.0, format!("{:?}", endpoint.v4)));
        self.next += 1;
        Ok(EndpointId(self.next))
    }
    fn select(&mut self, _: ServiceId, choice: Choice) -> Result<(), datapath::Error> {
        self.note(match choice {
            Choice::Endpoint(id) => Select(id.0),
            Choice::Spread(ids) => Spread(ids.iter().map(|id| id.0).collect()),
            Choice::Refuse => Refuse,
        });
        Ok(())
    }
    fn rest(
        &mut self,
        _: ServiceId,
        endpoint: EndpointId,
        tier: Option<u8>,
    ) -> Result<(), datapath::Error> {
        self.note(Rest(endpoint.0, tier.is_none()));
        Ok(())
    }
    fn grave(&mut self, _: EndpointId) -> Result<Option<EndpointId>, datapath::Error> {
        Ok(None)
    }
    fn buried(&mut self) {}
    fn weigh(&mut self, endpoint: EndpointId, weight: u16) {
        self.note(Weigh(endpoint.0, weight));
    }
    fn silent(&self, at_least: Duration) -> Result<Vec<Silent>, datapath::Error> {
        let silent = self.silent.lock().unwrap();
        let lasting = silent
            .iter()
            .filter(|(_, since)| since.elapsed() >= at_least);
        let silent = lasting.map(|(id, since)| Silent {
            endpoint: EndpointId(*id),
            since: 1,
            lasts: since.elapsed(),
        });
        Ok(silent.collect())
    }
    fn heard(&self, endpoint: EndpointId) {
        self.silent.lock().unwrap().remove(&endpoint.0);
    }
    fn packets_from(&self, _: EndpointId) -> Option<u64> {
        Some(*self.packets.lock().unwrap())
    }
    fn mark(&mut self, endpoint: EndpointId, mark: Mark) -> Result<(), datapath::Error> {
        self.note(match mark {
            Mark::Up => Up(endpoint.0),
            Mark::Down => Down(endpoint.0),
            Mark::Drained => Drained(endpoint.0),
        });
        Ok(())
    }
}

impl Attach for Recorder {
    fn attach(&mut self, _: u32, name: &str, _: Role) -> Result<Attached, datapath::Error> {
        if self.broken.front().is_some_and(|broken| broken == name) {
            self.broken.pop_front();
            return Err(failure());
        }
        self.note(Did::Attached(name.to_owned()));
        Ok(Attached {
            tc: TcWay::Tcx,
            xdp: XdpWay::None,
            degraded: Vec::new(),
            inherited: false,
        })
    }
    fn forget(&mut self, ifindex: u32) {
        self.note(Forget(ifindex));
    }
    fn detach_interface(&mut self, _: u32, name: &str) -> Result<(), datapath::Error> {
        self.note(Detach(name.to_owned()));
        Ok(())
    }
    fn attached(&self) -> Vec<u32> {
        self.attached.clone()
    }
    fn swept(&mut self, _: &Swept) -> Result<(), datapath::Error> {
        Ok(())
    }
}

struct Ears(Arc<Mutex<Vec<Did>>>);

impl Observer for Ears {
    fn checked(&self, _: &str, _: &str, _: &Verdict, _: u64) {}
    fn excused(&self, _: &str, _: &str, _: Standing) {}
    fn late(&self, _: Duration, _: Duration) {}
    fn signalled(&self, _: &str, _: &str, _: Signal) {}
    fn state(&self, _: &str, _: &str, _: State) {}
    fn selected(&self, _: &str, _: &[&str]) {}
    fn switched(&self, _: &str, reason: Reason) {
        self.0.lock().unwrap().push(Heard(reason));
    }
    fn holds(&self, _: &str, hold: Duration) {
        let mut did = self.0.lock().unwrap();
        if hold > Duration::from_secs(5) {
            did.push(Holds(hold));
        }
    }
    fn distrusts(&self, doubts: bool) {
        self.0.lock().unwrap().push(Doubts(doubts));
    }
    fn cut_off(&self, _: &str, gone: Option<&Gone>) {
        if let Some(gone) = gone {
            self.0.lock().unwrap().push(CutOff(gone.label()));
        }
    }
    fn draining(&self, _: &str, _: &str, _: bool) {}
    fn served(&self, _: &str, _: ServiceId) {}
    fn identified(&self, _: &str, _: &str, _: EndpointId) {}
    fn service_mode(&self, _: &str, _: config::Mode) {}
    fn gone(&self, service: &str, endpoint: Option<&str>) {
        let name = endpoint.map_or(service.to_owned(), |name| format!("{service}/{name}"));
        self.0.lock().unwrap().push(Did::Gone(name));
    }
    fn interfaces(&self, _: Role, _: TcWay, _: XdpWay, _: usize) {}
    fn failed_over(&self, _: &str, took: Duration) {
        if took > Duration::from_secs(1) {
            self.0.lock().unwrap().push(FailedOver(took));
        }
    }
    fn placed(&self, _: &str, _: &str, _: u8, _: u16) {}
    fn mode(&self, _: &str, _: &str, _: Mode) {}
    fn frozen(&self, _: &str, _: bool) {}
    fn unresolved(&self, _: &str, _: &str, _: bool) {}
}

fn config(extra: &str) -> Config {
    let text = format!(
        "interfaces: {{edge: ['veth*', br0], uplink: ['eth0']}}\nservices:\n- name: sense\n  \
         listeners: ['10.96.0.10:80']\n  endpoints:\n  - {{name: master, address: \
         'm.domain.com:80'}}\n  - {{name: backup, address: '10.0.0.2:80'}}\n  check: {{http: \
         {{path: /}}, inter: 10ms, rise: 2, fall: 2}}\n{extra}"
    );
    config::parse(&text).unwrap()
}

fn resolved(config: &Config) -> Vec<Vec<Resolved>> {
    let at = |e: &config::Endpoint| {
        let mut at = literal(e.address());
        at.v4 = at.v4.or(Some([10, 0, 0, 1].into()));
        at
    };
    config
        .services()
        .iter()
        .map(|s| s.endpoints().iter().map(at).collect())
        .collect()
}

/// A core in its task, and everything to talk to it.
struct Bench {
    did: Arc<Mutex<Vec<Did>>>,
    reports: mpsc::Sender<Report<CheckKey>>,
    lookups: mpsc::Sender<Lookup>,
    changes: mpsc::Sender<Change>,
    sweeps: mpsc::Sender<Swept>,
    asks: mpsc::Sender<Ask>,
    shutdown: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<Recorder, datapath::Error>>,
    started: Arc<Mutex<Vec<CheckKey>>>,
    signals: mpsc::Sender<Signalled>,
    said: mpsc::Sender<AgentSaid>,
    plans: Arc<Mutex<Vec<Vec<ServicePlan>>>>,
    full: Arc<Mutex<bool>>,
    /// Of the checks that were started last, by endpoint of the first service.
    triggered: Arc<Mutex<BTreeMap<usize, Triggered>>>,
    journal: Arc<Journal>,
    kept: watch::Receiver<Kept>,
    /// What is known of ways to hosts.
    ways: cut::Known,
}

impl Bench {
    fn new(config: &Config, recorder: Recorder, existing: &[Interface]) -> Self {
        Self::after(StandingOrders::default(), config, recorder, existing)
    }

    /// With orders that an earlier agent kept.
    fn after(
        standing: StandingOrders,
        config: &Config,
        recorder: Recorder,
        existing: &[Interface],
    ) -> Self {
        Self::located(resolved(config), standing, config, recorder, existing)
    }

    /// With endpoints there, or nowhere.
    fn located(
        at: Vec<Vec<Resolved>>,
        standing: StandingOrders,
        config: &Config,
        recorder: Recorder,
        existing: &[Interface],
    ) -> Self {
        let did = recorder.did.clone();
        let (plans, full) = (recorder.plans.clone(), recorder.full.clone());
        let ears = Box::new(Ears(did.clone()));
        let journal = Arc::new(Journal::default());
        let pins = "pins".to_owned();
        let mut core =
            Core::new(config, at, standing, journal.clone(), recorder, pins, ears).unwrap();
        let kept = core.kept();
        let ways = cut::Known::default();
        core.look_by(Box::new(ways.clone()));
        core.attach(existing).unwrap();
        let (reports, r) = mpsc::channel(8);
        let (signals, g) = mpsc::channel(8);
        let (lookups, l) = mpsc::channel(8);
        let (changes, c) = mpsc::channel(8);
        let (sweeps, w) = mpsc::channel(8);
        let (asks, a) = mpsc::channel(8);
        let (said, y) = mpsc::channel(8);
        let (shutdown, s) = watch::channel(false);
        let inputs = Inputs {
            reports: r,
            quiet: mpsc::channel(1).1,
            signals: g,
            said: y,
            lookups: l,
            changes: c,
            swept: w,
            asks: a,
            shutdown: s,
            // Time is paused here.
            precise: false,
        };
        let started = Arc::new(Mutex::new(Vec::new()));
        let starts = started.clone();
        let triggered = Arc::new(Mutex::new(BTreeMap::new()));
        let triggers = triggered.clone();
        let start: StartChecks = Box::new(move |key, plan| {
            starts.lock().unwrap().push(key);
            triggers
                .lock()
                .unwrap()
                .insert(key.endpoint, plan.triggered);
            Running {
                tasks: vec![tokio::spawn(std::future::pending::<()>()).abort_handle()],
                seat: None,
                share: None,
            }
        });
        Self {
            did,
            reports,
            lookups,
            changes,
            sweeps,
            asks,
            shutdown,
            task: tokio::spawn(core.run(inputs, start)),
            started,
            signals,
            said,
            plans,
            full,
            triggered,
            journal,
            kept,
            ways,
        }
    }

    /// What was done since the last question, when all that was sent is dealt with.
    async fn did(&self) -> Vec<Did> {
        while self.reports.capacity()
            + self.lookups.capacity()
            + self.changes.capacity()
            + self.sweeps.capacity()
            + self.signals.capacity()
            + self.said.capacity()
            < 48
        {
            tokio::task::yield_now().await;
        }
        // The answer comes after whatever was received before it.
        self.pending().await;
        std::mem::take(&mut *self.did.lock().unwrap())
    }

    async fn pending(&self) -> Vec<String> {
        let (tx, rx) = oneshot::channel();
        self.asks.send(Ask::Pending(tx)).await.unwrap();
        rx.await.unwrap()
    }

    async fn status(&self) -> status::Status {
        let (tx, rx) = oneshot::channel();
        self.asks.send(Ask::Status(tx)).await.unwrap();
        rx.await.unwrap()
    }

    async fn order(&self, service: &str, what: Wish, dry_run: bool) -> Result<Done, Refused> {
        let (tx, rx) = oneshot::channel();
        let order = Order {
            service: service.to_owned(),
            what,
            by: services::orders::somebody(),
            dry_run,
        };
        self.asks.send(Ask::Order(order, tx)).await.unwrap();
        rx.await.unwrap().map(|(done, _)| done)
    }

    async fn explain(&self) -> explain::Service {
        let (tx, rx) = oneshot::channel();
        let ask = Ask::Explain("sense".to_owned(), tx);
        self.asks.send(ask).await.unwrap();
        rx.await.unwrap().unwrap()
    }

    async fn failback(&self, service: &str) -> Result<String, Refused> {
        let done = self.order(service, Wish::Failback, false).await?;
        Ok(done.to.join(", "))
    }

    async fn says(&self, endpoint: usize, answer: &str) {
        let key = CheckKey {
            service: 0,
            endpoint,
            generation: 0,
        };
        let said = Said::parse(answer.as_bytes());
        self.said.send(AgentSaid { key, said }).await.unwrap();
    }

    async fn check(&self, endpoint: usize, kind: Kind) {
        self.check_of(endpoint, 0, kind).await;
    }

    async fn check_of(&self, endpoint: usize, generation: u32, kind: Kind) {
        self.check_that(Standing::Counts, endpoint, generation, kind)
            .await;
    }

    async fn check_that(&self, standing: Standing, endpoint: usize, generation: u32, kind: Kind) {
        let report = Report {
            key: CheckKey {
                service: 0,
                endpoint,
                generation,
            },
            verdict: Verdict {
                kind,
                status: Some(200),
                latency: Duration::from_micros(400),
                note: "".into(),
                saw: Saw::NOTHING,
            },
            skipped: 0,
            standing,
            late: None,
        };
        self.reports.send(report).await.unwrap();
    }

    async fn signal(&self, whose: Whose, signal: Signal) {
        let signalled = Signalled { whose, signal };
        self.signals.send(signalled).await.unwrap();
    }

    /// Clients of an endpoint were refused.
    async fn refused(&self, service: u32, endpoint: u32, times: usize) {
        for _ in 0..times {
            let whose = Whose::Steered(ServiceId(service), EndpointId(endpoint));
            self.signal(whose, Signal::Refused).await;
        }
    }

    /// Were checks of the endpoint asked for since the last question?
    async fn triggered(&self, endpoint: usize) -> bool {
        self.did().await;
        let mut triggered = self.triggered.lock().unwrap();
        triggered.get_mut(&endpoint).is_some_and(Triggered::take)
    }

    async fn lookup(&self, answer: Result<&[&str], &str>) {
        let answer = answer
            .map(|ips| {
                ips.iter()
                    .map(|ip| ip.parse().unwrap())
                    .collect::<Vec<IpAddr>>()
            })
            .map_err(Unresolved::nx);
        let lookup = Lookup {
            service: 0,
            endpoint: 0,
            answer,
        };
        self.lookups.send(lookup).await.unwrap();
    }

    /// A sweep that begins now finds so many flows of the first service's selection with
    /// this endpoint.
    async fn sweep(&self, endpoint: u32, flows: u64) {
        let vip = "10.96.0.10:80".parse().unwrap();
        let swept = Swept::of(Instant::now().into_std(), vip, EndpointId(endpoint), flows);
        self.sweeps.send(swept).await.unwrap();
    }

    async fn end(self) -> Recorder {
        self.shutdown.send(true).unwrap();
        self.task.await.unwrap().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_failover_takes_from_the_first_failed_check_to_the_write() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    bench.did().await;
    bench.check(1, Kind::Ok).await;
    for kind in [Kind::Ok, Kind::Refused, Kind::Ok] {
        bench.check(0, kind).await;
    }
    bench.did().await;
    // What a good check has forgiven does not count.
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.check(0, Kind::Refused).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.check(0, Kind::Refused).await;
    let did = bench.did().await;
    let took = Duration::from_secs(3) + Duration::from_micros(400);
    let told = [Heard(Reason::MasterDown), FailedOver(took)];
    assert_eq!(did, [&[Select(1), Down(0)], told.as_slice()].concat());
}

#[tokio::test(start_paused = true)]
async fn over_and_back() {
    let bench = Bench::new(&config("  failback: {hold: 5s}"), Recorder::default(), &[]);
    assert_eq!(bench.pending().await, ["sense/master", "sense/backup"]);
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert!(bench.pending().await.is_empty());
    // `fall` failures; the write comes first, then the mark, then the news.
    bench.check(0, Kind::Refused).await;
    assert_eq!(bench.did().await, []);
    bench.check(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(0)]);
    let due = bench.status().await.services[0].failback.due_unix_ms;
    assert!(due.is_some());
    tokio::time::sleep(Duration::from_millis(4990)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Failback)]);
    let status = bench.status().await;
    let service = &status.services[0];
    assert_eq!(service.selection.endpoint.as_deref(), Some("master"));
    assert_eq!(service.selection.reason, "failback");
    assert_eq!(service.selection.switches, 2);
    assert_eq!(service.failback.due_unix_ms, None);
    assert_eq!(service.endpoints[0].checks, 5);
    assert_eq!(service.endpoints[0].failures, 2);
    assert_eq!(service.endpoints[0].address, "m.domain.com:80");
    assert_eq!(service.endpoints[0].resolved, ["10.0.0.1:80"]);
    assert_eq!(
        service.endpoints[0].detail.as_deref(),
        Some("200 in 0.4 ms")
    );
    bench.end().await;
}

/// What the agent's own stall explains takes nobody down, and is told.
#[tokio::test(start_paused = true)]
async fn a_verdict_that_is_excused_counts_neither_way() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    let stalled = Standing::Stalled;
    bench.check_that(stalled, 0, 0, Kind::ResponseTimeout).await;
    assert_eq!(bench.pending().await.len(), 2, "it was no first verdict");
    for endpoint in [0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    bench.did().await;
    for _ in 0..5 {
        bench.check_that(stalled, 0, 0, Kind::ResponseTimeout).await;
    }
    bench.check(0, Kind::Refused).await;
    bench.check_that(stalled, 0, 0, Kind::ResponseTimeout).await;
    assert_eq!(bench.did().await, []);
    // Nor does it take back what was a failure.
    bench.check(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    let master = &bench.status().await.services[0].endpoints[0];
    assert_eq!((master.checks, master.failures, master.excused), (10, 2, 7));
    bench.end().await;
}

/// Fail-backs of a master that comes and goes wait longer, failovers never.
#[tokio::test(start_paused = true)]
async fn a_relapse_is_told_and_forgotten() {
    let bench = Bench::new(&config("  failback: {hold: 5s}"), Recorder::default(), &[]);
    for endpoint in [0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    let down = async || {
        bench.check(0, Kind::Refused).await;
        bench.check(0, Kind::Refused).await;
    };
    let up = async || {
        bench.check(0, Kind::Ok).await;
        bench.check(0, Kind::Ok).await;
        assert_eq!(bench.did().await, [Up(0)]);
    };
    bench.did().await;
    let over = [Select(1), Down(0), Heard(Reason::MasterDown)];
    let back = [Select(0), Heard(Reason::Failback)];
    down().await;
    assert_eq!(bench.did().await, over);
    up().await;
    tokio::time::sleep(Duration::from_millis(5010)).await;
    assert_eq!(bench.did().await, back);
    // Over at once, with the news of a longer hold time after it.
    down().await;
    let ten = Holds(Duration::from_secs(10));
    assert_eq!(bench.did().await, [&over[..], &[ten]].concat());
    let failback = bench.status().await.services[0].failback.clone();
    let of = failback.damped[0];
    assert_eq!((of.tier, of.hold_ms, of.relapses), (0, 10_000, 1));
    let longest = failback.max_hold_ms;
    assert_eq!((failback.hold_ms, longest), (Some(5000), Some(300_000)));
    up().await;
    tokio::time::sleep(Duration::from_millis(9990)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bench.did().await, back);
    // Steady for a minute: forgotten, without anything else happening.
    assert_eq!(bench.status().await.services[0].failback.damped.len(), 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.did().await;
    assert!(bench.status().await.services[0].failback.damped.is_empty());
    // By hand nobody waits.
    down().await;
    assert_eq!(bench.did().await, over);
    up().await;
    assert_eq!(bench.failback("sense").await, Ok("master".to_owned()));
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Manual)]);
    bench.end().await;
}

/// A restart does not forget that the master comes and goes.
#[tokio::test(start_paused = true)]
async fn damping_survives_the_agent() {
    let config = config("  failback: {hold: 5s}");
    let bench = Bench::new(&config, Recorder::default(), &[]);
    for endpoint in [0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    for kind in [Kind::Refused, Kind::Ok] {
        bench.check(0, kind).await;
        bench.check(0, kind).await;
        bench.did().await;
    }
    tokio::time::sleep(Duration::from_millis(5010)).await;
    bench.did().await;
    assert!(bench.kept.borrow().standing.services.is_empty());
    bench.check(0, Kind::Refused).await;
    bench.check(0, Kind::Refused).await;
    bench.did().await;
    let standing = bench.kept.borrow().standing.clone();
    assert!(!standing.has_orders());
    bench.end().await;
    let text = serde_json::to_string(&*standing).unwrap();
    let read = serde_json::from_str(&text).unwrap();

    let left = Recorder {
        inherited: Some(Choice::Endpoint(EndpointId(1))),
        inherited_marks: vec![Mark::Down, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::after(read, &config, left, &[]);
    let failback = bench.status().await.services[0].failback.clone();
    assert_eq!(
        (failback.damped[0].tier, failback.damped[0].hold_ms),
        (0, 10_000)
    );
    for endpoint in [1, 0, 0] {
        bench.check(endpoint, Kind::Ok).await;
    }
    bench.did().await;
    tokio::time::sleep(Duration::from_millis(9990)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Failback)]);
    // Steady: forgotten, in the file too.
    tokio::time::sleep(Duration::from_secs(61)).await;
    bench.did().await;
    assert!(bench.kept.borrow().standing.services.is_empty());
    bench.end().await;
}

impl Bench {
    /// Both endpoints are up, and then the master's checks end so until it is down; `backup` is
    /// the verdict of the other one's last check before that.
    async fn silent(&self, master: Kind, backup: Kind) {
        for endpoint in [0, 1] {
            self.check(endpoint, Kind::Ok).await;
        }
        self.did().await;
        self.check(0, master).await;
        self.check(1, backup).await;
        self.check(0, master).await;
    }

    /// Checks that begin now are newer than what was said before.
    async fn later(&self) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const REFUSE: &str = "  all_down: refuse";

#[tokio::test(start_paused = true)]
async fn selections_are_held_while_all_hosts_are_silent() {
    let bench = Bench::new(&config(REFUSE), Recorder::default(), &[]);
    bench
        .silent(Kind::ConnectTimeout, Kind::ResponseTimeout)
        .await;
    assert_eq!(bench.did().await, [Doubts(true)]);
    // Both are down now, and nobody is marked, left or refused.
    bench.check(1, Kind::Unreachable).await;
    assert_eq!(bench.did().await, []);
    let status = bench.status().await;
    assert!(status.agent.distrust_since_unix_ms.is_some());
    let service = &status.services[0];
    assert!(service.endpoints.iter().all(|e| e.state == "down"));
    assert_eq!(service.selection.endpoint.as_deref(), Some("master"));
    // A word of anybody ends it, and each is judged by its own next check, made at once.
    bench.later().await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, [Doubts(false)]);
    assert!(bench.triggered(0).await);
    let status = bench.status().await;
    assert_eq!(status.agent.distrust_since_unix_ms, None);
    // One that began before says nothing.
    bench.check(0, Kind::ConnectTimeout).await;
    assert_eq!(bench.did().await, []);
    bench.later().await;
    bench.check(0, Kind::ConnectTimeout).await;
    let over = [Select(1), Down(0), Heard(Reason::MasterDown)];
    assert_eq!(bench.did().await, over);
    bench.check(1, Kind::Ok).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bench.did().await, [], "there is nothing left to believe");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_comes_back_costs_nothing() {
    let bench = Bench::new(&config(REFUSE), Recorder::default(), &[]);
    bench.silent(Kind::Unreachable, Kind::Unreachable).await;
    bench.check(1, Kind::Unreachable).await;
    assert_eq!(bench.did().await, [Doubts(true)]);
    bench.later().await;
    for endpoint in [0, 1, 0, 1] {
        bench.check(endpoint, Kind::Ok).await;
    }
    assert_eq!(bench.did().await, [Doubts(false)]);
    assert_eq!(bench.status().await.services[0].endpoints[0].state, "up");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bench.did().await, []);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_doubt_has_an_end() {
    let bench = Bench::new(&config(REFUSE), Recorder::default(), &[]);
    bench
        .silent(Kind::ConnectTimeout, Kind::ConnectTimeout)
        .await;
    bench.check(1, Kind::ConnectTimeout).await;
    assert_eq!(bench.did().await, [Doubts(true)]);
    tokio::time::sleep(Duration::from_millis(9990)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_millis(20)).await;
    // Not by way of the backup, which is down too.
    let refused = [
        Doubts(false),
        Down(1),
        Refuse,
        Down(0),
        Heard(Reason::AllDown),
    ];
    assert_eq!(bench.did().await, refused);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_doubts_what_is_said_or_when_told_not_to() {
    let over = [Select(1), Down(0), Heard(Reason::MasterDown)];
    let off = format!("{REFUSE}\nsuspect_self: off");
    let silence = Kind::ConnectTimeout;
    for (extra, master, backup) in [
        (REFUSE, silence, Kind::Ok),
        (REFUSE, silence, Kind::Refused),
        (REFUSE, Kind::BadStatus, silence),
        (&off, silence, silence),
    ] {
        let bench = Bench::new(&config(extra), Recorder::default(), &[]);
        bench.silent(master, backup).await;
        assert_eq!(bench.did().await, over, "{extra} {master:?} {backup:?}");
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_agents_own_trouble_counts_neither_way() {
    let bench = Bench::new(&config(""), Recorder::default(), &[]);
    bench.check(0, Kind::Local).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    assert_eq!(bench.pending().await, ["sense/master"], "nobody judged it");
    bench.check(0, Kind::Ok).await;
    for _ in 0..10 {
        bench.check(0, Kind::Local).await;
    }
    assert_eq!(bench.did().await, []);
    assert!(bench.pending().await.is_empty());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_kept_last_choice_is_never_marked_down() {
    let bench = Bench::new(&config("  all_down: keep"), Recorder::default(), &[]);
    bench.check(1, Kind::Refused).await;
    bench.check(0, Kind::ConnectTimeout).await;
    assert_eq!(bench.did().await, [Apply(1), Select(0), Down(1)]);
    // The backup comes first: marked up, selected, and only then the master is marked down.
    bench.check(1, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(1), Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn refusing_and_back() {
    let bench = Bench::new(&config("  all_down: refuse"), Recorder::default(), &[]);
    bench.check(1, Kind::Refused).await;
    bench.check(0, Kind::BadStatus).await;
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Select(0),
            Down(1),
            Refuse,
            Down(0),
            Heard(Reason::AllDown)
        ]
    );
    assert_eq!(bench.status().await.services[0].selection.kind, "refuse");
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Select(0), Heard(Reason::Failback)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_goes_on_where_the_earlier_one_was() {
    let recorder = Recorder {
        inherited: Some(Choice::Endpoint(EndpointId(1))),
        inherited_marks: vec![Mark::Down, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::new(&config("  failback: {mode: manual}"), recorder, &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(1)]);
    let service = &bench.status().await.services[0];
    assert_eq!(service.selection.reason, "inherited");
    assert_eq!(service.endpoints[0].state, "down");
    // One failure of the endpoint in use does not switch: it takes `fall`.
    bench.check(1, Kind::ResponseTimeout).await;
    bench.check(1, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(
        bench.failback("sense").await,
        Err(Refused::No {
            service: "sense".to_owned(),
            reason: NoFailback::NoneUp
        })
    );
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(0)]);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(bench.failback("sense").await, Ok("master".to_owned()));
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Manual)]);
    assert_eq!(
        bench.failback("nobody").await.unwrap_err().to_string(),
        "there is no service `nobody`"
    );
    bench.end().await;
}

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

/// Over to the backup, and back at once.
async fn over_and_back_at_once(bench: &Bench) {
    for _ in 0..2 {
        bench.check(1, Kind::Ok).await;
        bench.check(0, Kind::Refused).await;
    }
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Select(0),
            Select(1),
            Down(0),
            Heard(Reason::MasterDown)
        ]
    );
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
}

const AT_ONCE: &str = "  failback: {hold: 0s}\n";

#[tokio::test(start_paused = true)]
async fn flows_of_the_backup_have_their_time() {
    let bench = Bench::new(
        &config(&format!("{AT_ONCE}  drain: 60s")),
        Recorder::default(),
        &[],
    );
    over_and_back_at_once(&bench).await;
    let back = [Up(0), Select(0), Heard(Reason::Failback)];
    assert_eq!(bench.did().await, back);
    let drain = |status: status::Status| status.services[0].endpoints[1].drain;
    let said = drain(bench.status().await).unwrap();
    assert_eq!(said.flows, None);
    bench.sweep(1, 3).await;
    assert_eq!(bench.did().await, []);
    let said = drain(bench.status().await).unwrap();
    assert_eq!(said.flows, Some(3));
    let until = said.until_unix_ms.unwrap();
    assert!(until.abs_diff(said.since_unix_ms) >= 59_000);
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(bench.did().await, []);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.did().await, [Drained(1)]);
    assert!(
        drain(bench.status().await).is_some(),
        "they are still there"
    );
    bench.sweep(1, 0).await;
    assert_eq!(bench.did().await, [Up(1)]);
    assert!(drain(bench.status().await).is_none());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_endpoint_is_marked_up_before_it_is_selected() {
    let bench = Bench::new(
        &config(&format!("{AT_ONCE}  drain: 0s")),
        Recorder::default(),
        &[],
    );
    over_and_back_at_once(&bench).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Select(0), Drained(1), Heard(Reason::Failback)]
    );
    bench.check(0, Kind::Refused).await;
    bench.check(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Up(1), Select(1), Down(0), Heard(Reason::MasterDown)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn selected_again_or_down_cancels_a_drain() {
    for down in [false, true] {
        let text = format!("{AT_ONCE}  drain: 60s");
        let bench = Bench::new(&config(&text), Recorder::default(), &[]);
        over_and_back_at_once(&bench).await;
        bench.did().await;
        bench.sweep(1, 3).await;
        bench.did().await;
        let failing = if down { 1 } else { 0 };
        bench.check(failing, Kind::Refused).await;
        bench.check(failing, Kind::Refused).await;
        let did = bench.did().await;
        if down {
            assert_eq!(did, [Down(1)]);
        } else {
            assert_eq!(did, [Select(1), Down(0), Heard(Reason::MasterDown)]);
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(bench.did().await, []);
        assert!(
            bench.status().await.services[0].endpoints[1]
                .drain
                .is_none()
        );
        bench.end().await;
    }
}

/// Down is a mark that the service keeps; at the deadline it is drained.
#[tokio::test(start_paused = true)]
async fn who_goes_down_may_have_time() {
    let text = format!("{AT_ONCE}  on_marked_down: {{drain: 60s}}");
    for back in [false, true] {
        let bench = Bench::new(&config(&text), Recorder::default(), &[]);
        bench.check(0, Kind::Ok).await;
        bench.check(1, Kind::Ok).await;
        bench.did().await;
        bench.check(0, Kind::Refused).await;
        bench.check(0, Kind::Refused).await;
        assert_eq!(
            bench.did().await,
            [Select(1), Down(0), Heard(Reason::MasterDown)]
        );
        tokio::time::sleep(Duration::from_secs(59)).await;
        bench.sweep(0, 3).await;
        assert_eq!(bench.did().await, []);
        let drain = bench.status().await.services[0].endpoints[0].drain.unwrap();
        assert!(drain.until_unix_ms.is_some());
        assert_eq!(drain.flows, Some(3));
        if back {
            bench.check(0, Kind::Ok).await;
            bench.check(0, Kind::Ok).await;
            assert_eq!(
                bench.did().await,
                [Up(0), Select(0), Heard(Reason::Failback)]
            );
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let expected = if back { vec![] } else { vec![Drained(0)] };
        assert_eq!(bench.did().await, expected);
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_nothing_is_drained() {
    let bench = Bench::new(&config(AT_ONCE), Recorder::default(), &[]);
    over_and_back_at_once(&bench).await;
    bench.did().await;
    bench.sweep(1, 3).await;
    bench.did().await;
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    assert_eq!(bench.did().await, []);
    let drain = bench.status().await.services[0].endpoints[1].drain.unwrap();
    assert_eq!((drain.until_unix_ms, drain.flows), (None, Some(3)));
    bench.sweep(1, 0).await;
    assert_eq!(bench.did().await, []);
    assert!(
        bench.status().await.services[0].endpoints[1]
            .drain
            .is_none()
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_goes_on_over_a_restart() {
    let recorder = |ago, mark| Recorder {
        inherited: Some(Choice::Endpoint(EndpointId(0))),
        inherited_marks: vec![Mark::Up, mark],
        inherited_ago: Duration::from_secs(ago),
        ..Recorder::default()
    };
    let config = config("  drain: 60s");
    // Paused time begins at the start of the test: let there be a past.
    tokio::time::sleep(Duration::from_secs(1000)).await;
    let bench = Bench::new(&config, recorder(50, Mark::Up), &[]);
    bench.sweep(1, 3).await;
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    assert!(
        bench.status().await.services[0].endpoints[1]
            .drain
            .is_some()
    );
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(bench.did().await, [Drained(1)]);
    bench.end().await;
    // It was over before, or became so while nobody was there.
    let bench = Bench::new(&config, recorder(100, Mark::Drained), &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    bench.end().await;
    let bench = Bench::new(&config, recorder(100, Mark::Up), &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(0), Drained(1)]);
    bench.end().await;
}

/// Three masters, the third of them without weight, and two backups.
fn tiers(extra: &str) -> Config {
    let endpoints: String = [(0, 2), (0, 1), (0, 0), (1, 1), (1, 1)]
        .iter()
        .enumerate()
        .map(|(i, (tier, weight))| {
            let name = if i == 0 { "m.domain.com" } else { "10.0.0.2" };
            format!("  - {{name: e{i}, address: '{name}:8{i}', tier: {tier}, weight: {weight}}}\n")
        })
        .collect();
    let text = format!(
        "interfaces: {{edge: [br0]}}\nservices:\n- name: sense\n  listeners: \
         ['10.96.0.10:80']\n  endpoints:\n{endpoints}  check: {{http: {{path: /}}, inter: 10ms, \
         rise: 2, fall: 2}}\n{extra}"
    );
    config::parse(&text).unwrap()
}

impl Bench {
    async fn judge(&self, endpoint: usize, kind: Kind) {
        for _ in 0..2 {
            self.check(endpoint, kind).await;
        }
    }
}

/// Up is who neither its checks nor its agent calls down; who drains is left as one that is up.
#[tokio::test(start_paused = true)]
async fn an_endpoint_says_how_it_wants_to_be_treated() {
    let text = tiers("  agent_check: {port: 9777}");
    let bench = Bench::new(&text, Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![0, 1])]);
    for i in 0..5 {
        bench.check(i, Kind::Ok).await;
    }
    bench.says(0, "up ready 100%").await;
    assert_eq!(bench.did().await, []);
    let members = Heard(Reason::MembersChanged);

    bench.says(0, "drain").await;
    assert_eq!(
        bench.did().await,
        [Select(1), Rest(0, true), members.clone()]
    );
    let endpoint = bench.status().await.services[0].endpoints[0].clone();
    assert_eq!(endpoint.state, "up");
    assert_eq!(endpoint.agent_said.as_deref(), Some("up, drain, 100%"));
    bench.says(0, "ready, 50%").await;
    assert_eq!(
        bench.did().await,
        [
            Rest(0, false),
            Weigh(0, 2 * 20 * 50),
            Weigh(1, 20 * 100),
            Spread(vec![0, 1]),
            members.clone()
        ]
    );
    bench.says(0, "100%").await;
    assert_eq!(
        bench.did().await,
        [Weigh(0, 2), Weigh(1, 1), Spread(vec![0, 1])]
    );

    bench.says(0, "down # by hand\n").await;
    assert_eq!(bench.did().await, [Select(1), Down(0), members.clone()]);
    let endpoint = bench.status().await.services[0].endpoints[0].clone();
    assert_eq!(endpoint.state, "down");
    assert_eq!(endpoint.verdict.as_deref(), Some("agent-said"));
    // Good checks do not bring it up, bad ones do not hold its agent's word.
    bench.judge(0, Kind::Ok).await;
    bench.judge(0, Kind::Refused).await;
    assert_eq!(bench.did().await, []);
    bench.says(0, "up").await;
    assert_eq!(bench.did().await, []);
    bench.judge(0, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Spread(vec![0, 1]), members.clone()]
    );

    // Maintenance of all of a tier is a failover, and its end lets it wait like any other.
    bench.says(0, "maint").await;
    bench.says(1, "maint").await;
    assert_eq!(
        bench.did().await,
        [
            Select(1),
            Rest(0, true),
            Down(0),
            members,
            Spread(vec![3, 4]),
            Rest(1, true),
            Down(1),
            Heard(Reason::MasterDown)
        ]
    );
    bench.says(1, "ready").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.did().await, [Rest(1, false), Up(1)]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.did().await, [Select(1), Heard(Reason::Failback)]);
    bench.end().await;
}

/// The share of who was down grows; at the start, and of who serves alone, nothing is slow.
#[tokio::test(start_paused = true)]
async fn who_comes_back_to_a_tier_begins_with_a_small_share() {
    let text = tiers("  slow_start: 10s");
    let bench = Bench::new(&text, Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![0, 1])]);
    for i in 0..5 {
        bench.check(i, Kind::Ok).await;
    }
    bench.judge(0, Kind::Refused).await;
    let members = Heard(Reason::MembersChanged);
    assert_eq!(bench.did().await, [Select(1), Down(0), members.clone()]);
    bench.judge(0, Kind::Ok).await;
    // A twentieth of 2, to all of 1; all of 1 is 2,000.
    assert_eq!(
        bench.did().await,
        [
            Up(0),
            Weigh(0, 200),
            Weigh(1, 2000),
            Spread(vec![0, 1]),
            members.clone()
        ]
    );
    let percent = |status: &status::Status, e: usize| status.services[0].endpoints[e].slow_start;
    let status = bench.status().await;
    assert_eq!((percent(&status, 0), percent(&status, 1)), (Some(5), None));
    tokio::time::sleep(Duration::from_millis(5_010)).await;
    let did = bench.did().await;
    assert_eq!(did[did.len() - 2..], [Weigh(0, 2000), Spread(vec![0, 1])]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let did = bench.did().await;
    assert_eq!(
        did[did.len() - 3..],
        [Weigh(0, 2), Weigh(1, 1), Spread(vec![0, 1])]
    );
    // Nothing more, and none of it was a switch.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.did().await, []);
    let status = bench.status().await;
    assert_eq!(percent(&status, 0), None);
    assert_eq!(status.services[0].selection.members_changed, 2);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_tier_shares_and_moves_as_one() {
    let bench = Bench::new(&tiers("  failback: {hold: 5s}"), Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![0, 1])]);
    for i in 0..5 {
        bench.check(i, Kind::Ok).await;
    }
    assert_eq!(bench.did().await, []);
    let members = Heard(Reason::MembersChanged);
    // One is left: the fast way, without a ring. No failover.
    bench.judge(0, Kind::Refused).await;
    assert_eq!(bench.did().await, [Select(1), Down(0), members.clone()]);
    let selection = &bench.status().await.services[0].selection;
    assert_eq!(selection.switches, 0);
    assert_eq!(selection.members_changed, 1);
    assert_eq!(selection.reason, "initial");
    assert_eq!(selection.endpoint.as_deref(), Some("e1"));
    bench.judge(0, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Spread(vec![0, 1]), members.clone()]
    );
    // The last one takes the tier along.
    bench.judge(1, Kind::Refused).await;
    bench.judge(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [
            Select(0),
            Down(1),
            members.clone(),
            Spread(vec![3, 4]),
            Down(0),
            Heard(Reason::MasterDown)
        ]
    );
    let service = &bench.status().await.services[0];
    assert_eq!(service.selection.kind, "spread");
    assert_eq!(service.selection.endpoint, None);
    assert_eq!(service.selection.endpoints, ["e3", "e4"]);
    assert_eq!(service.selection.tier, Some(1));
    assert_eq!(service.selection.switches, 1);
    let serving: Vec<_> = service.endpoints.iter().map(|e| e.serving).collect();
    assert_eq!(serving, [false, false, false, true, true]);
    let weights: Vec<_> = service.endpoints.iter().map(|e| e.weight).collect();
    assert_eq!(weights, [2, 1, 0, 1, 1]);
    bench.judge(1, Kind::Ok).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.judge(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(1), Up(0)]);
    tokio::time::sleep(Duration::from_millis(2010)).await;
    assert_eq!(
        bench.did().await,
        [Spread(vec![0, 1]), Heard(Reason::Failback)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_to_serve_is_kept_and_never_marked_down() {
    let bench = Bench::new(&tiers(""), Recorder::default(), &[]);
    for i in [3, 4, 0] {
        bench.check(i, Kind::Refused).await;
    }
    bench.check(1, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Spread(vec![0, 1]),
            Down(3),
            Down(4),
            Select(1),
            Down(0),
            Heard(Reason::MembersChanged)
        ]
    );
    bench.judge(0, Kind::Ok).await;
    assert_eq!(
        bench.did().await,
        [Up(0), Select(0), Down(1), Heard(Reason::MembersChanged)]
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_clients_stay_even_one_is_chosen_by_a_ring() {
    let config = tiers("  affinity: {client_ip: 1m}");
    let bench = Bench::new(&config, Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![0, 1])]);
    bench.judge(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [Spread(vec![1]), Down(0), Heard(Reason::MembersChanged)]
    );
    assert_eq!(bench.status().await.services[0].affinity_ms, Some(60_000));
    bench.end().await;
    // Unless it is the only one of its tier.
    let bench = Bench::new(&config_of_two_with_affinity(), Recorder::default(), &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(0)]);
    bench.end().await;
}

fn config_of_two_with_affinity() -> Config {
    config("  affinity: {client_ip: 1m}")
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_takes_a_ring_over() {
    let of = |ids: &[u32]| {
        Some(Choice::Spread(
            ids.iter().copied().map(EndpointId).collect(),
        ))
    };
    let recorder = Recorder {
        inherited: of(&[3, 4]),
        inherited_marks: vec![Mark::Down, Mark::Up, Mark::Up, Mark::Up, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::new(&tiers("  failback: {hold: 5s}"), recorder, &[]);
    assert_eq!(bench.did().await, [Apply(1), Spread(vec![3, 4])]);
    let service = &bench.status().await.services[0];
    assert_eq!(service.selection.reason, "inherited");
    let states: Vec<_> = service.endpoints.iter().map(|e| e.state.as_str()).collect();
    assert_eq!(states, ["down", "unknown", "unknown", "up", "up"]);
    // What was in use takes `fall` failures to leave.
    bench.check(3, Kind::ResponseTimeout).await;
    assert_eq!(bench.did().await, []);
    bench.end().await;
    // One of them was marked down, one has left the configuration: who is left goes on.
    let recorder = Recorder {
        inherited: of(&[0, 1, 77]),
        inherited_marks: vec![Mark::Down, Mark::Up, Mark::Up, Mark::Up, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::new(&tiers(""), recorder, &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(1)]);
    let service = &bench.status().await.services[0];
    assert_eq!(service.selection.reason, "inherited");
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

fn interface(index: u32, name: &str) -> Interface {
    Interface {
        index,
        name: name.to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn interfaces_come_and_go() {
    let recorder = Recorder {
        attached: vec![3, 4, 9],
        broken: ["veth2".to_owned()].into(),
        ..Recorder::default()
    };
    let existing = [
        interface(1, "lo"),
        interface(2, "eth0"),
        interface(3, "dummy0"),
        interface(4, "veth1"),
    ];
    let bench = Bench::new(&config(""), recorder, &existing);
    let name = |text: &str| text.to_owned();
    assert_eq!(
        bench.did().await,
        [
            Apply(1),
            Select(0),
            // Inherited and no longer wanted; inherited and gone.
            Detach(name("dummy0")),
            Forget(9),
            Did::Attached(name("eth0")),
            Did::Attached(name("veth1")),
        ]
    );
    for change in [
        // The watcher's first dump repeats what is known.
        Change::Appeared(interface(4, "veth1")),
        Change::Appeared(interface(5, "veth2")),
        Change::Appeared(interface(6, "eth1")),
        Change::Renamed {
            from: name("veth1"),
            to: interface(4, "veth9"),
        },
        Change::Gone(interface(6, "eth1")),
    ] {
        bench.changes.send(change).await.unwrap();
    }
    assert_eq!(bench.did().await, []);
    let status = bench.status().await.interfaces;
    assert_eq!(status[1].name, "veth9");
    assert_eq!(status[1].xdp.as_deref(), Some("none"));
    assert_eq!(status[2].tc, None);
    assert!(status[2].degraded[0].starts_with("not attached: "));
    // What failed is tried again.
    tokio::time::sleep(interfaces::RETRY).await;
    assert_eq!(bench.did().await, [Did::Attached(name("veth2"))]);
    for change in [
        Change::Renamed {
            from: name("veth9"),
            to: interface(4, "other"),
        },
        Change::Gone(interface(5, "veth2")),
    ] {
        bench.changes.send(change).await.unwrap();
    }
    assert_eq!(bench.did().await, [Detach(name("other")), Forget(5)]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_literal_interface_must_be_attached_at_the_start() {
    let recorder = Recorder {
        broken: ["br0".to_owned()].into(),
        ..Recorder::default()
    };
    let config = config("");
    let ears = Box::new(Ears(recorder.did.clone()));
    let (orders, journal) = (StandingOrders::default(), Arc::default());
    let at = resolved(&config);
    let mut core = Core::new(&config, at, orders, journal, recorder, String::new(), ears).unwrap();
    core.attach(&[interface(7, "br0")]).unwrap_err();
}

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

fn mode(endpoint: &str, mode: Mode) -> Wish {
    Wish::Mode {
        endpoint: endpoint.to_owned(),
        mode,
        left: None,
    }
}

fn promote(endpoint: &str, force: bool) -> Wish {
    Wish::Promote {
        endpoint: endpoint.to_owned(),
        force,
        left: Some(Some(Duration::from_secs(30))),
    }
}

/// A bench whose master and backup are up.
async fn both_up(extra: &str) -> Bench {
    let bench = Bench::new(&config(extra), Recorder::default(), &[]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    bench.did().await;
    bench
}

fn kinds(bench: &Bench) -> Vec<String> {
    let events = bench.journal.after(0, 1000).events;
    events.iter().map(|e| e.what.kind().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn drain_moves_new_connections_and_goes_on_checking() {
    let bench = both_up("").await;
    let tried = bench
        .order("sense", mode("master", Mode::Drain), true)
        .await
        .unwrap();
    assert!(tried.changed && tried.dry_run);
    assert_eq!(
        (tried.from[0].as_str(), tried.to[0].as_str()),
        ("master", "backup")
    );
    assert_eq!(bench.did().await, [], "a dry run does nothing");
    let before = kinds(&bench);

    let done = bench
        .order("sense", mode("master", Mode::Drain), false)
        .await
        .unwrap();
    assert_eq!(
        (done.before.as_str(), done.after.as_str()),
        ("ready", "drain")
    );
    assert_eq!(
        bench.did().await,
        [Select(1), Rest(0, true), Heard(Reason::Manual)]
    );
    assert_eq!(kinds(&bench)[before.len()..], ["switch", "order"]);
    let status = bench.status().await;
    let master = &status.services[0].endpoints[0];
    assert_eq!(
        (master.mode.as_str(), master.state.as_str()),
        ("drain", "up")
    );
    assert_eq!(
        master.ordered.as_ref().unwrap().by.user.as_deref(),
        Some("root")
    );
    assert_eq!(status.services[0].failback.due_unix_ms, None);

    // Its checks count, and nothing goes back to it.
    bench.check(0, Kind::Refused).await;
    bench.check(0, Kind::Refused).await;
    assert_eq!(bench.did().await, [Down(0)]);
    bench.check(0, Kind::Ok).await;
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, [Up(0)]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.did().await, []);

    let again = bench
        .order("sense", mode("master", Mode::Drain), false)
        .await
        .unwrap();
    assert!(!again.changed);
    assert_eq!(kinds(&bench).last().unwrap(), "state");
    bench
        .order("sense", mode("master", Mode::Ready), false)
        .await
        .unwrap();
    assert_eq!(bench.did().await, [Rest(0, false)]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bench.did().await, [Select(0), Heard(Reason::Failback)]);
}

#[tokio::test(start_paused = true)]
async fn maint_ends_the_checks_and_ready_begins_them() {
    let bench = both_up("").await;
    bench.started.lock().unwrap().clear();
    bench
        .order("sense", mode("master", Mode::Maint), false)
        .await
        .unwrap();
    assert_eq!(
        bench.did().await,
        [Select(1), Rest(0, true), Down(0), Heard(Reason::Manual)]
    );
    // A check that was on its way says nothing any more.
    bench.check(0, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert!(
        bench.pending().await.is_empty(),
        "nobody waits for its verdict"
    );
    let status = bench.status().await;
    let master = &status.services[0].endpoints[0];
    assert_eq!(
        (master.mode.as_str(), master.state.as_str()),
        ("maint", "unknown")
    );
    // Nor does a new address begin any.
    bench.lookup(Ok(&["10.0.0.7"])).await;
    bench.did().await;
    assert!(bench.started.lock().unwrap().is_empty());

    bench
        .order("sense", mode("master", Mode::Ready), false)
        .await
        .unwrap();
    let started = bench.started.lock().unwrap().clone();
    assert_eq!(started.len(), 1);
    bench.did().await;
    bench.check_of(0, started[0].generation, Kind::Ok).await;
    bench.did().await;
    assert_eq!(bench.status().await.services[0].endpoints[0].state, "up");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bench.did().await.last(), Some(&Heard(Reason::Failback)));
}

#[tokio::test(start_paused = true)]
async fn both_in_maint_are_a_recreate_update() {
    let bench = both_up("").await;
    bench
        .order("sense", mode("master", Mode::Maint), false)
        .await
        .unwrap();
    let done = bench
        .order("sense", mode("backup", Mode::Maint), false)
        .await
        .unwrap();
    assert_eq!(done.from, done.to);
    assert!(done.notes[0].contains("all_down: keep"), "{:?}", done.notes);
    bench.did().await;
    // Nothing is known of it, which is better than what is known of the other.
    bench
        .order("sense", mode("master", Mode::Ready), false)
        .await
        .unwrap();
    let did = bench.did().await;
    assert_eq!(
        did,
        [
            Up(0),
            Rest(0, false),
            Select(0),
            Rest(1, true),
            Down(1),
            Heard(Reason::Manual)
        ]
    );
    let last = bench.started.lock().unwrap().last().copied().unwrap();
    bench.check_of(0, last.generation, Kind::Ok).await;
    assert_eq!(bench.did().await, []);
    assert_eq!(
        bench.status().await.services[0]
            .selection
            .endpoint
            .as_deref(),
        Some("master")
    );
}

#[tokio::test(start_paused = true)]
async fn a_promotion_holds_until_its_endpoint_is_down() {
    let bench = both_up("").await;
    let done = bench
        .order("sense", promote("backup", false), false)
        .await
        .unwrap();
    assert_eq!(
        (done.before.as_str(), done.after.as_str()),
        ("master", "backup (promoted)")
    );
    assert_eq!(bench.did().await, [Select(1), Heard(Reason::Manual)]);
    assert_eq!(bench.kept.borrow().version, 1);
    let status = bench.status().await;
    assert_eq!(status.services[0].promoted.as_ref().unwrap().what, "backup");
    assert_eq!(status.services[0].failback.due_unix_ms, None);
    // Those of the master have the time that was given.
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(bench.did().await, [Drained(0)]);
    bench.check(1, Kind::Refused).await;
    bench.check(1, Kind::Refused).await;
    let did = bench.did().await;
    assert_eq!(did, [Up(0), Select(0), Down(1), Heard(Reason::MasterDown)]);
    assert!(kinds(&bench).contains(&"promotion-over".to_owned()));
    assert_eq!(*bench.kept.borrow().standing, StandingOrders::default());
}

#[tokio::test(start_paused = true)]
async fn who_is_down_is_promoted_by_force_only() {
    let bench = both_up("").await;
    bench.check(1, Kind::Refused).await;
    bench.check(1, Kind::Refused).await;
    bench.did().await;
    let refused = bench.order("sense", promote("backup", false), false).await;
    let refused = refused.unwrap_err().to_string();
    assert_eq!(
        refused,
        "service sense: backup is not promoted: it is down, and clients would fail; --force \
         promotes it all the same"
    );
    bench
        .order("sense", promote("backup", true), false)
        .await
        .unwrap();
    assert_eq!(bench.did().await, [Up(1), Select(1), Heard(Reason::Manual)]);
    bench.check(1, Kind::Refused).await;
    assert_eq!(bench.did().await, [], "it was known to be down");
    assert_eq!(bench.failback("sense").await, Ok("master".to_owned()));
    assert_eq!(
        bench.did().await,
        [Select(0), Down(1), Heard(Reason::Manual)]
    );
    for (endpoint, why) in [("nobody", "it has master, backup"), ("", "no endpoint ``")] {
        let refused = bench.order("sense", promote(endpoint, true), false).await;
        assert!(refused.unwrap_err().to_string().contains(why));
    }
    let refused = bench.order("nosuch", Wish::Freeze(true), false).await;
    assert_eq!(refused, Err(Refused::NoService("nosuch".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_frozen_service_stays_and_obeys_orders() {
    let bench = both_up("").await;
    bench
        .order("sense", Wish::Freeze(true), false)
        .await
        .unwrap();
    bench.check(0, Kind::Refused).await;
    bench.check(0, Kind::Refused).await;
    assert_eq!(
        bench.did().await,
        [],
        "the selected endpoint is never marked down"
    );
    assert_eq!(bench.status().await.services[0].endpoints[0].state, "down");
    let tried = bench
        .order("sense", Wish::Freeze(false), true)
        .await
        .unwrap();
    assert_eq!(tried.to, ["backup"]);
    bench
        .order("sense", promote("backup", false), false)
        .await
        .unwrap();
    assert_eq!(
        bench.did().await,
        [Select(1), Down(0), Heard(Reason::Manual)]
    );
    bench
        .order("sense", Wish::Freeze(false), false)
        .await
        .unwrap();
    assert_eq!(bench.did().await, []);
    let explained = bench.explain().await;
    assert!(
        explained.because[0].contains("backup was promoted by root"),
        "{explained:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn orders_survive_a_restart() {
    let bench = both_up("").await;
    bench
        .order("sense", mode("master", Mode::Drain), false)
        .await
        .unwrap();
    bench
        .order("sense", Wish::Freeze(true), false)
        .await
        .unwrap();
    let mut standing = StandingOrders::clone(&bench.kept.borrow().standing);
    // Of a configuration that had more.
    let more = standing.services["sense"].clone();
    standing.services.insert("gone".to_owned(), more.clone());
    let drained = more.endpoints["master"].clone();
    let sense = standing.services.get_mut("sense").unwrap();
    sense.endpoints.insert("third".to_owned(), drained);

    let recorder = Recorder {
        inherited: Some(Choice::Endpoint(EndpointId(1))),
        inherited_marks: vec![Mark::Up, Mark::Up],
        ..Recorder::default()
    };
    let bench = Bench::after(standing.clone(), &config(""), recorder, &[]);
    assert_eq!(bench.did().await, [Apply(1), Select(1), Rest(0, true)]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Refused).await;
    bench.check(1, Kind::Refused).await;
    assert_eq!(bench.did().await, [], "frozen");
    let status = bench.status().await;
    assert_eq!(status.services[0].endpoints[0].mode, "drain");
    assert!(status.services[0].frozen.is_some());
    // Nothing of what names nobody is lost with the next order.
    bench
        .order("sense", Wish::Freeze(false), false)
        .await
        .unwrap();
    let kept = bench.kept.borrow().standing.clone();
    assert_eq!(kept.services["gone"], standing.services["gone"]);
    let sense = &kept.services["sense"];
    assert!(sense.frozen.is_none());
    assert_eq!(
        sense.endpoints.keys().collect::<Vec<_>>(),
        ["master", "third"]
    );
}

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
