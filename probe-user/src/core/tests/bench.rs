//! A core in its task with all that it is told by, and the configuration that most tests give it.

use super::*;

pub(super) fn config(extra: &str) -> Config {
    let text = format!(
        "interfaces: {{edge: ['veth*', br0], uplink: ['eth0']}}\nservices:\n- name: sense\n  \
         listeners: ['10.96.0.10:80']\n  endpoints:\n  - {{name: master, address: \
         'm.domain.com:80'}}\n  - {{name: backup, address: '10.0.0.2:80'}}\n  check: {{http: \
         {{path: /}}, inter: 10ms, rise: 2, fall: 2}}\n{extra}"
    );
    config::parse(&text).unwrap()
}

pub(super) fn resolved(config: &Config) -> Vec<Vec<Resolved>> {
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
pub(super) struct Bench {
    pub(super) did: Arc<Mutex<Vec<Did>>>,
    pub(super) reports: mpsc::Sender<Report<CheckKey>>,
    pub(super) lookups: mpsc::Sender<Lookup>,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) sweeps: mpsc::Sender<Swept>,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) shutdown: watch::Sender<bool>,
    pub(super) task: tokio::task::JoinHandle<Result<Recorder, datapath::Error>>,
    pub(super) started: Arc<Mutex<Vec<CheckKey>>>,
    pub(super) signals: mpsc::Sender<Signalled>,
    pub(super) said: mpsc::Sender<AgentSaid>,
    pub(super) plans: Arc<Mutex<Vec<Vec<ServicePlan>>>>,
    pub(super) full: Arc<Mutex<bool>>,
    /// Of the checks that were started last, by endpoint of the first service.
    pub(super) triggered: Arc<Mutex<BTreeMap<usize, Triggered>>>,
    pub(super) journal: Arc<Journal>,
    pub(super) kept: watch::Receiver<Kept>,
    /// What is known of ways to hosts.
    pub(super) ways: cut::Known,
}

impl Bench {
    pub(super) fn new(config: &Config, recorder: Recorder, existing: &[Interface]) -> Self {
        Self::after(StandingOrders::default(), config, recorder, existing)
    }

    /// With orders that an earlier agent kept.
    pub(super) fn after(
        standing: StandingOrders,
        config: &Config,
        recorder: Recorder,
        existing: &[Interface],
    ) -> Self {
        Self::located(resolved(config), standing, config, recorder, existing)
    }

    /// With endpoints there, or nowhere.
    pub(super) fn located(
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
    pub(super) async fn did(&self) -> Vec<Did> {
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

    pub(super) async fn pending(&self) -> Vec<String> {
        let (tx, rx) = oneshot::channel();
        self.asks.send(Ask::Pending(tx)).await.unwrap();
        rx.await.unwrap()
    }

    pub(super) async fn status(&self) -> status::Status {
        let (tx, rx) = oneshot::channel();
        self.asks.send(Ask::Status(tx)).await.unwrap();
        rx.await.unwrap()
    }

    pub(super) async fn order(
        &self,
        service: &str,
        what: Wish,
        dry_run: bool,
    ) -> Result<Done, Refused> {
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

    pub(super) async fn explain(&self) -> explain::Service {
        let (tx, rx) = oneshot::channel();
        let ask = Ask::Explain("sense".to_owned(), tx);
        self.asks.send(ask).await.unwrap();
        rx.await.unwrap().unwrap()
    }

    pub(super) async fn failback(&self, service: &str) -> Result<String, Refused> {
        let done = self.order(service, Wish::Failback, false).await?;
        Ok(done.to.join(", "))
    }

    pub(super) async fn says(&self, endpoint: usize, answer: &str) {
        let key = CheckKey {
            service: 0,
            endpoint,
            generation: 0,
        };
        let said = Said::parse(answer.as_bytes());
        self.said.send(AgentSaid { key, said }).await.unwrap();
    }

    pub(super) async fn check(&self, endpoint: usize, kind: Kind) {
        self.check_of(endpoint, 0, kind).await;
    }

    pub(super) async fn check_of(&self, endpoint: usize, generation: u32, kind: Kind) {
        self.check_that(Standing::Counts, endpoint, generation, kind)
            .await;
    }

    pub(super) async fn check_that(
        &self,
        standing: Standing,
        endpoint: usize,
        generation: u32,
        kind: Kind,
    ) {
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

    pub(super) async fn signal(&self, whose: Whose, signal: Signal) {
        let signalled = Signalled { whose, signal };
        self.signals.send(signalled).await.unwrap();
    }

    /// Clients of an endpoint were refused.
    pub(super) async fn refused(&self, service: u32, endpoint: u32, times: usize) {
        for _ in 0..times {
            let whose = Whose::Steered(ServiceId(service), EndpointId(endpoint));
            self.signal(whose, Signal::Refused).await;
        }
    }

    /// Were checks of the endpoint asked for since the last question?
    pub(super) async fn triggered(&self, endpoint: usize) -> bool {
        self.did().await;
        let mut triggered = self.triggered.lock().unwrap();
        triggered.get_mut(&endpoint).is_some_and(Triggered::take)
    }

    pub(super) async fn lookup(&self, answer: Result<&[&str], &str>) {
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
    pub(super) async fn sweep(&self, endpoint: u32, flows: u64) {
        let vip = "10.96.0.10:80".parse().unwrap();
        let swept = Swept::of(Instant::now().into_std(), vip, EndpointId(endpoint), flows);
        self.sweeps.send(swept).await.unwrap();
    }

    pub(super) async fn end(self) -> Recorder {
        self.shutdown.send(true).unwrap();
        self.task.await.unwrap().unwrap()
    }
}

impl Bench {
    /// Both endpoints are up, and then the master's checks end so until it is down; `backup` is
    /// the verdict of the other one's last check before that.
    pub(super) async fn silent(&self, master: Kind, backup: Kind) {
        for endpoint in [0, 1] {
            self.check(endpoint, Kind::Ok).await;
        }
        self.did().await;
        self.check(0, master).await;
        self.check(1, backup).await;
        self.check(0, master).await;
    }

    /// Checks that begin now are newer than what was said before.
    pub(super) async fn later(&self) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) fn interface(index: u32, name: &str) -> Interface {
    Interface {
        index,
        name: name.to_owned(),
    }
}

pub(super) fn mode(endpoint: &str, mode: Mode) -> Wish {
    Wish::Mode {
        endpoint: endpoint.to_owned(),
        mode,
        left: None,
    }
}

/// A bench whose master and backup are up.
pub(super) async fn both_up(extra: &str) -> Bench {
    let bench = Bench::new(&config(extra), Recorder::default(), &[]);
    bench.check(0, Kind::Ok).await;
    bench.check(1, Kind::Ok).await;
    bench.did().await;
    bench
}
