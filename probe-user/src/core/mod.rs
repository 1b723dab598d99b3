//! The one task that decides and writes.
//!
//! It owns every service's [`Failover`] and the only handle to the kernel's
//! tables. Verdicts, timers, DNS answers, interfaces and orders reach it as
//! messages, so nothing here needs a lock, and what it writes has one order.
//!
//! Two rules of that order matter. A switch's map write comes before its marks,
//! its log line and its metrics. And the selected endpoint is never marked down in
//! the kernel, or the flows that it is to take would be reset: a target is marked
//! up before it is selected, and an endpoint is marked down after it was left.
//!
//! A write that the kernel refuses ends the task, and with it the agent: one that
//! cannot steer must not look alive.

mod alarm;
pub mod explain;
mod interfaces;
pub mod journal;
pub mod order;
mod services;
mod sources;
pub mod status;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use crate::{
    config::{self, Config},
    datapath::{
        self, Attached, EndpointCounters, EndpointId, OwnState, Role, ServiceId, Steering, Swept,
        TcWay, TellState, Vip, XdpWay,
    },
    failover::{
        Reason,
        cut::{Gone, Ways},
        orders::Mode,
    },
    health::{
        Signal, State, Verdict,
        agent::{self, Said},
        budget::Budget,
        lane::Seated,
        probe::Recipe,
        scheduler::{Report, Rhythm, Standing, Triggered},
        shares::Share,
    },
    interfaces::{Change, Interface},
    resolve::{Answer, Resolved},
};
use alarm::Alarm;
use interfaces::Managed;
use journal::Journal;
use order::{Done, Kept, Order, Refused, Standing as StandingOrders};
use services::Services;
pub use services::{Reloaded, Slots, failed};
pub use sources::{NoAnswer, Sources};

/// How often verdicts that change nothing are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What the core needs of the datapath beside [`Steering`].
pub trait Attach {
    /// Begins to manage an interface.
    fn attach(&mut self, ifindex: u32, name: &str, role: Role)
    -> Result<Attached, datapath::Error>;
    /// The interface is gone.
    fn forget(&mut self, ifindex: u32);
    /// The interface exists and is no longer wanted.
    fn detach_interface(&mut self, ifindex: u32, name: &str) -> Result<(), datapath::Error>;
    /// Interfaces that are managed now, also by an earlier agent.
    fn attached(&self) -> Vec<u32>;
    /// The flow tables were swept: ids that no flow refers to any more may be used again.
    fn swept(&mut self, swept: &Swept) -> Result<(), datapath::Error>;
}

impl Attach for datapath::kernel::Datapath {
    fn attach(
        &mut self,
        ifindex: u32,
        name: &str,
        role: Role,
    ) -> Result<Attached, datapath::Error> {
        self.attach(ifindex, name, role)
    }
    fn forget(&mut self, ifindex: u32) {
        self.forget(ifindex);
    }
    fn detach_interface(&mut self, ifindex: u32, name: &str) -> Result<(), datapath::Error> {
        self.detach_interface(ifindex, name)
    }
    fn attached(&self) -> Vec<u32> {
        self.attached()
    }
    fn swept(&mut self, swept: &Swept) -> Result<(), datapath::Error> {
        self.after_sweep(swept)
    }
}

/// Reads what the datapath counted.
pub trait Counters: Send + Sync {
    /// An endpoint's traffic.
    fn endpoint(&self, id: EndpointId) -> Result<EndpointCounters, datapath::Error>;
    /// Packets by reason.
    fn reasons(&self) -> Result<Vec<(probe_ebpf::abi::Reason, u64)>, datapath::Error>;
    /// Flows in the tables.
    fn flows(&self) -> datapath::FlowCounts;
    /// Do segments of the service go by its slot alone?
    fn slot_alone(&self, id: ServiceId) -> Result<bool, datapath::Error>;
}

impl Counters for datapath::Reader {
    fn endpoint(&self, id: EndpointId) -> Result<EndpointCounters, datapath::Error> {
        self.endpoint_counters(id)
    }
    fn reasons(&self) -> Result<Vec<(probe_ebpf::abi::Reason, u64)>, datapath::Error> {
        self.reasons()
    }
    fn flows(&self) -> datapath::FlowCounts {
        self.flow_counts()
    }
    fn slot_alone(&self, id: ServiceId) -> Result<bool, datapath::Error> {
        self.slot_alone(id)
    }
}

/// Is told what happened, after it happened.
pub trait Observer: Send {
    /// A check was made.
    fn checked(&self, service: &str, endpoint: &str, verdict: &Verdict, skipped: u64);
    /// One whose verdict does not count, and why.
    fn excused(&self, service: &str, endpoint: &str, standing: Standing);
    /// A check began so late; the largest of the last minutes.
    fn late(&self, late: Duration, largest: Duration);
    /// There was a sign that an endpoint may have failed.
    fn signalled(&self, service: &str, endpoint: &str, signal: Signal);
    /// An endpoint is in this state.
    fn state(&self, service: &str, endpoint: &str, state: State);
    /// A service's new connections go to these endpoints, or nowhere.
    fn selected(&self, service: &str, endpoints: &[&str]);
    /// The selection changed, or who serves within the selected tier.
    fn switched(&self, service: &str, reason: Reason);
    /// An automatic fail-back of the service waits so long at most, now.
    fn holds(&self, service: &str, hold: Duration);
    /// The agent doubts itself, or no longer.
    fn distrusts(&self, doubts: bool);
    /// What the ways to all endpoints of the service need is gone, or there.
    fn cut_off(&self, service: &str, gone: Option<&Gone>);
    /// An endpoint that was left has flows, or may have, or has none any more.
    fn draining(&self, service: &str, endpoint: &str, draining: bool);
    /// A service has this id in the kernel.
    fn served(&self, service: &str, id: ServiceId);
    /// An endpoint has this id in the kernel.
    fn identified(&self, service: &str, endpoint: &str, id: EndpointId);
    /// A service steers, or only decides.
    fn service_mode(&self, service: &str, mode: config::Mode);
    /// An endpoint, or a whole service, left the configuration.
    fn gone(&self, service: &str, endpoint: Option<&str>);
    /// So many interfaces of a role are attached this way.
    fn interfaces(&self, role: Role, tc: TcWay, xdp: XdpWay, attached: usize);
    /// The service was switched away from an endpoint that went down, so long after the first
    /// check that failed had begun.
    fn failed_over(&self, service: &str, took: Duration);
    /// An endpoint's place and share.
    fn placed(&self, service: &str, endpoint: &str, tier: u8, weight: u16);
    /// What operators say of an endpoint.
    fn mode(&self, service: &str, endpoint: &str, mode: Mode);
    /// Does the endpoint's name, if it has one, have no address?
    fn unresolved(&self, service: &str, endpoint: &str, unresolved: bool);
    /// Does nothing but an order change the service's selection?
    fn frozen(&self, service: &str, frozen: bool);
}

/// Which endpoint a check is of, and of which of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckKey {
    /// Position in the configuration.
    pub service: usize,
    /// Position in the service.
    pub endpoint: usize,
    /// Counts address changes: a verdict on an old address is nobody's.
    pub generation: u32,
}

/// Begins the checks of an endpoint.
pub type StartChecks = Box<dyn FnMut(CheckKey, CheckPlan) -> Running + Send>;

/// How an endpoint is checked.
#[derive(Debug)]
pub struct CheckPlan {
    /// The check.
    pub recipe: Recipe,
    /// Where its connections go.
    pub target: SocketAddr,
    /// Whose packets to clients excuse timeouts, if that is wanted.
    pub life_signs: Option<EndpointId>,
    /// When it is made. The offset keeps endpoints from all being checked at one moment.
    pub rhythm: Rhythm,
    /// What makes it be made at once.
    pub triggered: Triggered,
    /// Is a connection kept open beside it?
    pub sentinel: bool,
    /// How its own agent is asked, if it has one.
    pub agent: Option<agent::Plan>,
}

/// What watches an endpoint. It ends with this.
#[derive(Debug)]
pub struct Running {
    /// Tasks.
    pub tasks: Vec<AbortHandle>,
    /// Its seat among the plain checks, if it has one.
    pub seat: Option<Seated<CheckKey>>,
    /// What it is reckoned for on its thread.
    pub share: Option<Share>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Whom a sign is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// As checks are told apart.
    Checked(CheckKey),
    /// As the kernel knows them. An id may be retired by now.
    Steered(ServiceId, EndpointId),
}

/// A sign that an endpoint may have failed.
#[derive(Clone, Copy, Debug)]
pub struct Signalled {
    /// Whom it is about.
    pub whose: Whose,
    /// What was noticed.
    pub signal: Signal,
}

/// What an endpoint's own agent said.
#[derive(Debug)]
pub struct AgentSaid {
    /// Whose agent.
    pub key: CheckKey,
    /// Its answer.
    pub said: Said,
}

/// A name's lookup.
#[derive(Debug)]
pub struct Lookup {
    /// Position in the configuration.
    pub service: usize,
    /// Position in the service.
    pub endpoint: usize,
    /// What DNS said, or why it said nothing.
    pub answer: Answer,
}

/// Another configuration.
#[derive(Debug)]
pub struct Reload {
    /// All of it, valid.
    pub config: Config,
    /// Where each endpoint of each service is.
    pub resolved: Vec<Vec<Resolved>>,
    /// The interfaces that exist.
    pub existing: Vec<Interface>,
}

/// Questions and orders from outside.
#[derive(Debug)]
pub enum Ask {
    /// All that is known.
    Status(oneshot::Sender<status::Status>),
    /// Endpoints without a first verdict, as `service/endpoint`; the answer alone shows
    /// that the core is alive.
    Pending(oneshot::Sender<Vec<String>>),
    /// An operator's order; answers with what was done, and the version of [`order::Kept`] that
    /// has it.
    Order(Order, oneshot::Sender<Result<(Done, u64), Refused>>),
    /// An id for each of these endpoints whose flows are over, see [`Steering::grave`].
    Graves(Vec<EndpointId>, oneshot::Sender<Graves>),
    /// Flows were given to such ids.
    Buried,
    /// What flows know by number.
    Names(oneshot::Sender<Vec<Named>>),
    /// Why a service's connections go where they go.
    Explain(String, oneshot::Sender<Result<explain::Service, Refused>>),
    /// Take another configuration, or say why not.
    Reload(
        Box<Reload>,
        oneshot::Sender<Result<Reloaded, datapath::Error>>,
    ),
    /// Tell this of the configuration from now on.
    Configured(Box<status::Configuration>),
}

/// Ids whose flows are over, of those endpoints that can have one; or why there is none.
pub type Graves = Result<Vec<(EndpointId, EndpointId)>, String>;

/// A service and its endpoints, as the kernel knows them.
#[derive(Clone, Debug)]
pub struct Named {
    /// The service's number.
    pub id: ServiceId,
    /// Its name.
    pub name: String,
    /// Its endpoints, likewise.
    pub endpoints: Vec<(EndpointId, String)>,
    /// What follows the selection.
    pub listeners: Vec<Vip>,
}

/// After an answer, so many times as long goes to verdicts before the next: whoever asks
/// without end has a fifth of the core at most.
const QUIET: u32 = 4;

/// The next question, from then on. Loses none if it is dropped.
async fn asked(asks: &mut mpsc::Receiver<Ask>, not_before: Instant) -> Option<Ask> {
    sleep_until(not_before).await;
    asks.recv().await
}

/// What the core listens to.
pub struct Inputs {
    /// Verdicts.
    pub reports: mpsc::Receiver<Report<CheckKey>>,
    /// Verdicts that change nothing, see [`scheduler::Reports`](crate::health::scheduler::Reports).
    pub quiet: mpsc::Receiver<Report<CheckKey>>,
    /// Signs beside them.
    pub signals: mpsc::Receiver<Signalled>,
    /// What endpoints say of themselves.
    pub said: mpsc::Receiver<AgentSaid>,
    /// DNS.
    pub lookups: mpsc::Receiver<Lookup>,
    /// Interfaces.
    pub changes: mpsc::Receiver<Change>,
    /// Sweeps of the flow tables.
    pub swept: mpsc::Receiver<Swept>,
    /// People and programs.
    pub asks: mpsc::Receiver<Ask>,
    /// True when it is time to end.
    pub shutdown: watch::Receiver<bool>,
    /// Silent endpoints are looked for by a timer of the kernel's own, not by the runtime's.
    pub precise: bool,
}

/// The state of the agent.
pub struct Core<D> {
    datapath: D,
    services: Services,
    managed: Managed,
    observer: Box<dyn Observer>,
    started: SystemTime,
    pins: String,
    processes: status::Processes,
    telling: status::Telling,
    config: status::Configuration,
    realtime: status::Realtime,
    budget: Option<Arc<Budget>>,
}

impl<D: Steering + Attach> Core<D> {
    /// Puts the configuration into the kernel and selects; attaches and checks nothing
    /// yet. `resolved` says where each endpoint of each service is; one that is nowhere is down.
    pub fn new(
        config: &Config,
        resolved: Vec<Vec<Resolved>>,
        orders: StandingOrders,
        journal: Arc<Journal>,
        mut datapath: D,
        pins: String,
        observer: Box<dyn Observer>,
    ) -> Result<Self, datapath::Error> {
        let services = Services::new(
            config,
            resolved,
            orders,
            journal,
            &mut datapath,
            observer.as_ref(),
        )?;
        Ok(Self {
            datapath,
            services,
            managed: Managed::new(config),
            observer,
            started: SystemTime::now(),
            pins,
            processes: status::Processes::default(),
            telling: status::Telling::default(),
            config: status::Configuration::default(),
            realtime: status::Realtime::default(),
            budget: None,
        })
    }

    /// Attaches to the interfaces that exist. An interface that the configuration names
    /// literally must be attached; one that matches a pattern is tried again later.
    pub fn attach(&mut self, existing: &[Interface]) -> Result<(), datapath::Error> {
        self.managed
            .begin(&mut self.datapath, existing, self.observer.as_ref())
    }

    /// Orders in effect, for who keeps them.
    pub fn kept(&self) -> watch::Receiver<Kept> {
        self.services.kept()
    }

    /// Whether processes of the node itself are steered.
    pub fn tell_own(&mut self, own: &OwnState) {
        self.processes = status::Processes::of(own);
    }

    /// Whether idle connections of lost endpoints are told.
    pub fn tell_telling(&mut self, telling: &TellState) {
        self.telling = status::Telling::of(telling);
    }

    /// Whether checks and decisions run at real-time priority.
    pub fn tell_realtime(&mut self, had: &status::Had) {
        self.realtime = status::Realtime::of(had);
    }

    /// Who is asked for the ways to endpoints that fall silent.
    pub fn look_by(&mut self, ways: Box<dyn Ways>) {
        self.services.look_by(ways);
    }

    /// What bounds all checks.
    pub fn tell_budget(&mut self, budget: Arc<Budget>) {
        self.budget = Some(budget);
    }

    /// The datapath, for what is done to it around the start.
    pub fn datapath_mut(&mut self) -> &mut D {
        &mut self.datapath
    }

    /// Begins the checks, and works until it is told to end. Gives the datapath back.
    pub async fn run(
        mut self,
        mut inputs: Inputs,
        start_checks: StartChecks,
    ) -> Result<D, datapath::Error> {
        self.services.begin_checks(start_checks);
        let mut retry = tokio::time::interval(interfaces::RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        retry.tick().await;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut quiet_until = Instant::now();
        let mut alarm = Alarm::new(inputs.precise);
        loop {
            let due = self.services.due();
            let look = self.services.look_due();
            tokio::select! {
                Some(report) = inputs.reports.recv() => {
                    // What was before it.
                    self.take_quiet(&mut inputs.quiet)?;
                    self.verdict(report)?;
                }
                () = alarm.at(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                    if self.services.look(Instant::now(), &self.datapath)? {
                        // Good checks break a silence.
                        self.take_quiet(&mut inputs.quiet)?;
                        let (datapath, observer) = (&mut self.datapath, self.observer.as_ref());
                        self.services.judge_silence(Instant::now(), datapath, observer)?;
                    }
                }
                _ = looks.tick(), if !inputs.quiet.is_closed() => self.take_quiet(&mut inputs.quiet)?,
                Some(signalled) = inputs.signals.recv() => self.services.signalled(
                    signalled,
                    Instant::now(),
                    &mut self.datapath,
                    self.observer.as_ref(),
                )?,
                Some(said) = inputs.said.recv() => self.services.agent_said(
                    &said,
                    Instant::now(),
                    &mut self.datapath,
                    self.observer.as_ref(),
                )?,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.services.tick(Instant::now(), &mut self.datapath, self.observer.as_ref())?;
                }
                Some(lookup) = inputs.lookups.recv() => {
                    let now = Instant::now();
                    self.services.looked_up(lookup, now, &mut self.datapath, self.observer.as_ref())?;
                }
                Some(change) = inputs.changes.recv() => {
                    self.managed.change(&mut self.datapath, change, self.observer.as_ref());
                }
                _ = retry.tick() => self.managed.retry(&mut self.datapath, self.observer.as_ref()),
                Some(swept) = inputs.swept.recv() => {
                    self.datapath.swept(&swept)?;
                    self.services.swept(&swept, &mut self.datapath, self.observer.as_ref())?;
                }
                Some(ask) = asked(&mut inputs.asks, quiet_until) => {
                    let begun = Instant::now();
                    self.take_quiet(&mut inputs.quiet)?;
                    self.answer(ask)?;
                    quiet_until = Instant::now() + begun.elapsed() * QUIET;
                }
                // An error means that the sender is gone: nobody is left to work for.
                ended = inputs.shutdown.wait_for(|end| *end) => {
                    drop(ended);
                    break;
                }
            }
        }
        self.services.end_checks();
        Ok(self.datapath)
    }

    fn verdict(&mut self, report: Report<CheckKey>) -> Result<(), datapath::Error> {
        let (datapath, observer) = (&mut self.datapath, self.observer.as_ref());
        self.services
            .verdict(report, Instant::now(), datapath, observer)
    }

    /// Takes the verdicts that nobody was woken for.
    fn take_quiet(
        &mut self,
        quiet: &mut mpsc::Receiver<Report<CheckKey>>,
    ) -> Result<(), datapath::Error> {
        // No more than there are now: others wait too.
        for _ in 0..quiet.len() {
            let Ok(report) = quiet.try_recv() else { break };
            self.verdict(report)?;
        }
        Ok(())
    }

    fn answer(&mut self, ask: Ask) -> Result<(), datapath::Error> {
        // Who asked may have gone away; that is their business.
        match ask {
            Ask::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Ask::Pending(reply) => {
                let _ = reply.send(self.services.pending());
            }
            Ask::Order(order, reply) => {
                let answer = self.services.order(
                    &order,
                    Instant::now(),
                    &mut self.datapath,
                    self.observer.as_ref(),
                )?;
                let _ = reply.send(answer);
            }
            Ask::Graves(of, reply) => {
                let _ = reply.send(self.graves(&of)?);
            }
            Ask::Buried => self.datapath.buried(),
            Ask::Names(reply) => {
                let _ = reply.send(self.services.names());
            }
            Ask::Explain(service, reply) => {
                let _ = reply.send(self.services.explain(&service, Instant::now()));
            }
            Ask::Reload(reload, reply) => {
                let _ = reply.send(self.reload(*reload)?);
            }
            Ask::Configured(config) => self.config = *config,
        }
        Ok(())
    }

    fn graves(&mut self, of: &[EndpointId]) -> Result<Graves, datapath::Error> {
        let mut graves = Vec::new();
        for id in of {
            match self.datapath.grave(*id) {
                Ok(grave) => graves.extend(grave.map(|grave| (*id, grave))),
                // A full table is no reason to end.
                Err(error @ datapath::Error::Full { .. }) => return Ok(Err(error.to_string())),
                Err(error) => return Err(error),
            }
        }
        Ok(Ok(graves))
    }

    fn reload(
        &mut self,
        reload: Reload,
    ) -> Result<Result<Reloaded, datapath::Error>, datapath::Error> {
        let Reload {
            config,
            resolved,
            existing,
        } = reload;
        let now = Instant::now();
        let (datapath, observer) = (&mut self.datapath, self.observer.as_ref());
        let reloaded = self
            .services
            .reload(&config, resolved, now, datapath, observer)?;
        if reloaded.is_ok() {
            self.managed.reload(&config, datapath, existing, observer);
        }
        Ok(reloaded)
    }

    fn status(&self) -> status::Status {
        status::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent: status::Agent {
                pid: std::process::id(),
                started_unix_ms: status::unix_ms(self.started),
                distrust_since_unix_ms: self.services.distrust_since_unix_ms(Instant::now()),
                lateness: status::Lateness::of(self.services.lateness()),
                realtime: self.realtime.clone(),
                stretch: self.budget.as_ref().map(|budget| budget.stretch()),
            },
            services: self.services.status(Instant::now()),
            interfaces: self.managed.status(),
            datapath: status::Datapath {
                abi: probe_ebpf::abi::ABI_VERSION,
                pins: self.pins.clone(),
                processes: self.processes.clone(),
                telling: self.telling.clone(),
                ..status::Datapath::default()
            },
            config: self.config.clone(),
        }
    }
}
