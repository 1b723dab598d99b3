//! What stands in the kernel's place, and in the observer's: it keeps what was done, in its order.

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Did {
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

#[derive(Default)]
pub(super) struct Recorder {
    pub(super) did: Arc<Mutex<Vec<Did>>>,
    pub(super) inherited: Option<Choice>,
    pub(super) inherited_marks: Vec<Mark>,
    pub(super) inherited_ago: Duration,
    pub(super) attached: Vec<u32>,
    /// Interfaces that cannot be attached, and how often.
    pub(super) broken: VecDeque<String>,
    pub(super) next: u32,
    /// Ids of services and endpoints, by name; endpoints' addresses are part of theirs.
    pub(super) ids: BTreeMap<String, u32>,
    pub(super) plans: Arc<Mutex<Vec<Vec<ServicePlan>>>>,
    pub(super) full: Arc<Mutex<bool>>,
    /// Since when endpoints have answered no client.
    pub(super) silent: Arc<Mutex<BTreeMap<u32, Instant>>>,
    /// What they have sent to those that are connected.
    pub(super) packets: Arc<Mutex<u64>>,
}

impl Recorder {
    pub(super) fn note(&self, did: Did) {
        self.did.lock().unwrap().push(did);
    }
}

pub(super) fn failure() -> datapath::Error {
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

pub(super) struct Ears(pub(super) Arc<Mutex<Vec<Did>>>);

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
