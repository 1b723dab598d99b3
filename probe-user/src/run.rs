//! `probe run`: puts the agent together, keeps it going, and takes it apart.
//!
//! Nothing in the kernel is touched before the configuration is valid, the
//! interfaces that it names exist and its names were looked up; no entry is changed
//! before the sockets are open; and a start that fails leaves the kernel as it
//! was. After that, any task that
//! ends by itself ends the process with code 1, and so does a panic anywhere:
//! whoever restarts us does better than an agent with a part missing. Steering
//! stays in place meanwhile.

mod checks;
mod keeper;
pub(crate) mod named;
pub(crate) mod realtime;
pub(crate) mod supervisor;
mod tasks;
pub(crate) mod threads;

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context as _, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    config::{self, Config, Each, Realtime},
    control::{self, Api, Socket},
    core::{
        Core, Inputs, Sources,
        journal::{Journal, What},
        order::Written,
        status::Had,
    },
    datapath::{
        OwnState, TellState,
        kernel::{Datapath, Options, last_known},
    },
    failure::Failure,
    health::{budget::Budget, lateness::Pulse, scheduler::Reports, sentinel},
    interfaces,
    log::{self, HeldBack, LogFormat},
    observe::{self, Metrics, Recorder, page},
    reload::{self, Loaded, Reloader},
};
use checks::{Checks, Voices};
use named::{Names, literals_exist, locate, names};
use threads::Thread;

/// What is neither checks nor decisions is little; a thread a core of a large node would only
/// contend.
const MAX_WORKERS: usize = 4;
/// Messages in flight to the core before senders wait.
const QUEUE: usize = 1024;
/// Good news in flight to it, which it looks for only now and then.
const QUIET: usize = 8192;

/// Runs the agent until a signal ends it.
pub fn agent(file: &Path, detach: bool, watch: bool, log: LogFormat) -> Result<(), Failure> {
    let held_back = log::to_stderr(log);
    log::end_on_panic(log);
    let loaded = Loaded::read(file).map_err(|error| Failure::Config(error.into()))?;
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_WORKERS));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(live(file, &loaded, detach, watch, held_back))
}

async fn live(
    file: &Path,
    loaded: &Loaded,
    detach: bool,
    watch_config: bool,
    held_back: HeldBack,
) -> Result<(), Failure> {
    let config = loaded.config();
    let invalid = |fault| {
        Failure::Config(anyhow::Error::new(config::Error::Invalid {
            file: file.to_owned(),
            fault,
        }))
    };
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("watch for SIGHUP")?;
    let existing = interfaces::list().await?;
    literals_exist(config, &existing).map_err(invalid)?;
    let known = last_known(config.datapath().bpffs());
    let (resolved, failed) = locate(config, &known).await;
    // From here on a failed start undoes what it did in the kernel, until `commit`.
    let mut datapath = Datapath::open(&options(config)).map_err(anyhow::Error::new)?;
    let socket = Socket::bind(config.socket(), config.group())?;
    let metrics_listener = match config.metrics() {
        Some(listen) => Some(observe::bind(listen, "metrics", "metrics.listen").await?),
        None => None,
    };
    let page_listener = match config.page() {
        Some(listen) => Some(observe::bind(listen, "the status page", "page.listen").await?),
        None => None,
    };
    let counters = Arc::new(datapath.reader().map_err(anyhow::Error::new)?);
    let events = datapath.events().map_err(anyhow::Error::new)?;
    let kernel_log = datapath.kernel_log().map_err(anyhow::Error::new)?;
    let sweeper = datapath.sweeper().map_err(anyhow::Error::new)?;
    let flows = Arc::new(datapath.flows().map_err(anyhow::Error::new)?);
    let trial = Arc::new(datapath.trial().map_err(anyhow::Error::new)?);
    let node = datapath.node();
    let pins = datapath.pins().display().to_string();
    let metrics = Arc::new(Metrics::new(counters.clone()));
    metrics.recorder().flows_max(config.datapath().flows());
    let observer = Box::new(metrics.recorder());
    let journal = Arc::new(Journal::default());
    journal.tell(What::Started {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    });
    let orders = keeper::place(config);
    let (standing, problem) = keeper::load(&orders);
    if let Some(problem) = problem {
        journal.tell(What::Orders { problem });
    }
    let log = journal.clone();
    let mut core = Core::new(config, resolved, standing, log, datapath, pins, observer)
        .map_err(anyhow::Error::new)?;
    core.attach(&existing).map_err(anyhow::Error::new)?;
    let own = core
        .datapath_mut()
        .attach_own()
        .map_err(anyhow::Error::new)?;
    tell_own(&own, &metrics.recorder());
    core.tell_own(&own);
    let (ender, lost) = core.datapath_mut().ender().map_err(anyhow::Error::new)?;
    let (teller, marked) = core.datapath_mut().teller().map_err(anyhow::Error::new)?;
    let telling = teller.as_ref().err().unwrap_or(&TellState::Ready).clone();
    tell_telling(&telling, &metrics.recorder());
    core.tell_telling(&telling);
    let (decides, tells, checking, had) = begin_threads(config)?;
    tell_realtime(&had, config.realtime(), &metrics.recorder())?;
    core.tell_realtime(&had);
    core.datapath_mut().commit();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        services = config.services().len(),
        "probe runs"
    );

    let (urgent, report_inbox) = mpsc::channel(QUEUE);
    let (quiet, quiet_inbox) = mpsc::channel(QUIET);
    let reports = Reports { urgent, quiet };
    let (signals, signal_inbox) = mpsc::channel(QUEUE);
    let (said, said_inbox) = mpsc::channel(QUEUE);
    let (lookups, lookup_inbox) = mpsc::channel(QUEUE);
    let (changes, change_inbox) = mpsc::channel(QUEUE);
    let (sweeps, sweep_inbox) = mpsc::channel(1);
    let (asks, ask_inbox) = mpsc::channel(QUEUE);
    let (shutdown, ending) = watch::channel(false);
    let (reloads, reload_inbox) = reload::Handle::new();
    let (names, names_now) = watch::channel(Names {
        names: names(config),
        every: config.resolve_every(),
        failed,
    });
    let ready = Arc::new(AtomicBool::new(false));
    let reloader = Reloader::new(
        file,
        loaded,
        asks.clone(),
        names,
        metrics.recorder(),
        journal.clone(),
        ready.clone(),
    );
    let seen = counters.clone();
    let sources = Sources { asks, counters };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let ended = interfaces::watch(changes).await;
        ended.context("watching the network interfaces")
    });
    tasks.spawn(tasks::resolve(names_now, lookups));
    tasks.spawn(reloader.run(reload_inbox, hangup));
    if watch_config {
        tasks.spawn(reload::watch(file.to_owned(), reloads.clone()));
    }
    let pressure = Arc::new(Notify::new());
    tasks.spawn(tasks::clock(node));
    tasks.spawn(tasks::held_back(held_back));
    tasks.spawn(tasks::sweep(sweeper, sweeps, pressure.clone()));
    tasks.spawn(tasks::events(
        events,
        metrics.recorder(),
        pressure,
        signals.clone(),
    ));
    tasks.spawn(async move { Err(kernel_log.run().await.into()) });
    tasks.spawn(tasks::end_sockets(ender, lost, metrics.recorder()));
    if let Ok(teller) = teller {
        let telling = tasks::tell_flows(teller, marked, metrics.recorder(), journal.clone());
        tasks.spawn_on(telling, tells.handle());
    }
    tasks.spawn(supervisor::run(sources.clone(), ready));
    let written = watch::Sender::new(Written::default());
    let (log, kept) = (journal.clone(), written.subscribe());
    let api = Api::new(sources.clone(), reloads, log, kept, flows, trial);
    tasks.spawn(keeper::keep(orders, core.kept(), written));
    tasks.spawn(async move {
        let served = socket.serve(control::router(api)).await;
        served.context("the control socket")
    });
    if let Some(listener) = metrics_listener {
        let served = observe::serve(listener, metrics.clone(), sources.clone());
        tasks.spawn(async move { served.await.context("the metrics listener") });
    }
    if let Some(listener) = page_listener {
        let (sources, feed) = (sources.clone(), metrics.feed());
        let served = page::serve(listener, sources, feed, page::Limits::default());
        tasks.spawn(async move { served.await.context("the status page") });
    }
    let inputs = Inputs {
        reports: report_inbox,
        quiet: quiet_inbox,
        signals: signal_inbox,
        said: said_inbox,
        lookups: lookup_inbox,
        changes: change_inbox,
        swept: sweep_inbox,
        asks: ask_inbox,
        shutdown: ending,
        precise: true,
    };
    let at_once = config
        .checks_at_once()
        .and_then(|most| usize::try_from(most).ok());
    let budget = Arc::new(Budget::new(config.checks_per_second(), at_once));
    core.look_by(Box::new(interfaces::Kernel));
    core.tell_budget(budget.clone());
    tasks.spawn(tasks::budget(budget.clone(), metrics.recorder()));
    let voices = Voices {
        reports,
        signals,
        said,
    };
    let mut checks = Checks::new(voices, seen, budget, room_for_sentinels(config));
    for (thread, pulse) in &checking {
        let lane = checks.add(thread.handle(), pulse.clone());
        let runs = thread
            .handle()
            .spawn(lane.context("make a lane of checks")?.run());
        tasks.spawn(async move { runs.await?.context("the plain checks") });
    }
    let start_checks = Box::new(move |key, plan| checks.start(key, plan));
    let mut core = decides.handle().spawn(core.run(inputs, start_checks));

    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM"),
        _ = interrupt.recv() => info!("SIGINT"),
        ended = &mut core => {
            let error = match ended {
                Ok(Ok(_)) => anyhow!("the core ended by itself"),
                Ok(Err(error)) => error.into(),
                Err(error) => error.into(),
            };
            return Err(error.context("the core").into());
        }
        Some(ended) = tasks.join_next() => {
            let error = match ended {
                Ok(Ok(())) => anyhow!("a task ended by itself"),
                Ok(Err(error)) => error,
                Err(error) => error.into(),
            };
            return Err(error.into());
        }
    }
    supervisor::stopping().await;
    // The socket's file goes first: nobody should ask any more.
    tasks.shutdown().await;
    // The core may have ended in this very moment; then its own result says so.
    let _ = shutdown.send(true);
    let datapath = core
        .await
        .map_err(anyhow::Error::new)?
        .map_err(anyhow::Error::new)?;
    if detach {
        let removed = datapath.remove().map_err(anyhow::Error::new)?;
        info!("{removed}");
    } else {
        info!("steering stays in place; `probe detach` removes it");
    }
    Ok(())
}

/// A thread that checks, and how it is.
type Checking = (Thread, Arc<Pulse>);

/// Begins the threads that decide, that tell clients and that check, with nothing to do yet.
fn begin_threads(config: &Config) -> anyhow::Result<(Thread, Thread, Vec<Checking>, Had)> {
    let timeouts = config.services().iter().flat_map(|s| s.check().each());
    let shortest = timeouts.map(Each::timeout).min().unwrap_or_default();
    let realtime = config.realtime();
    let memory = realtime::lock_memory(realtime);
    let (decides, mut priority) =
        Thread::start("probe-decides", realtime).context("start a thread that decides")?;
    let (tells, entered) =
        Thread::start("probe-tells", realtime).context("start a thread that tells clients")?;
    priority = priority.and(entered);
    let mut checking = Vec::new();
    for i in 0..threads::checking() {
        let (thread, entered) = Thread::start(&format!("probe-checks{i}"), realtime)
            .context("start a thread that checks")?;
        priority = priority.and(entered);
        let pulse = Arc::new(Pulse::new(shortest));
        let beats = pulse.clone();
        thread.handle().spawn(async move { beats.beat().await });
        checking.push((thread, pulse));
    }
    Ok((decides, tells, checking, Had { priority, memory }))
}

/// Tells whether checks and decisions have real-time priority and memory that stays. An error if
/// that was ordered and is not so.
fn tell_realtime(had: &Had, wanted: Realtime, recorder: &Recorder) -> anyhow::Result<()> {
    recorder.realtime(had.priority.is_ok(), had.memory.is_ok());
    let missing: Vec<_> = [&had.priority, &had.memory]
        .into_iter()
        .filter_map(|had| had.as_ref().err().map(String::as_str))
        .collect();
    match wanted {
        Realtime::Off => {}
        _ if missing.is_empty() => {
            info!("checks and decisions have real-time priority, memory is locked");
        }
        Realtime::Auto => warn!(
            "on a busy machine checks and decisions may be late: {}",
            missing.join("; ")
        ),
        Realtime::On => anyhow::bail!("`checking.realtime: on`: {}", missing.join("; ")),
    }
    Ok(())
}

/// Raises the soft limit of descriptors to the hard one, as far as that goes, and says how
/// many sentinels there may be.
fn room_for_sentinels(config: &Config) -> usize {
    let descriptors = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() => hard,
        Ok((soft, _)) => soft,
        // Cannot be; the least that a Linux process gets.
        Err(_) => 1024,
    };
    let room = sentinel::room(descriptors);
    let services = config.services().iter().filter(|s| s.sentinel());
    let wanted: usize = services.map(|s| s.endpoints().len()).sum();
    if wanted > room {
        warn!(
            descriptors,
            "{room} of {wanted} endpoints have a sentinel connection: half of the descriptors \
             (ulimit -n) are for checks"
        );
    }
    room
}

fn options(config: &Config) -> Options {
    let datapath = config.datapath();
    Options {
        bpffs: datapath.bpffs().to_owned(),
        tc: datapath.tc(),
        xdp: datapath.xdp(),
        flows: datapath.flows(),
        log: datapath.log(),
        learn: datapath.learn(),
        timeouts: datapath.timeouts(),
        uplinks: !config.uplink().is_empty(),
        source_v4: datapath.source_v4(),
        source_v6: datapath.source_v6(),
        xdp_send: datapath.xdp_send(),
        own: config.node(),
        cgroup: datapath.cgroup().to_owned(),
    }
}

/// Tells whether processes of the node itself are steered.
fn tell_own(own: &OwnState, recorder: &Recorder) {
    recorder.own(own);
    match own {
        OwnState::Off => {}
        OwnState::Attached {
            cgroup,
            is_root,
            inherited,
        } => {
            let cgroup = cgroup.display();
            info!(%cgroup, inherited, "processes of the node itself are steered");
            if !is_root {
                warn!(
                    "{cgroup} is not the root of the cgroups: only processes below it are steered"
                );
            }
        }
        OwnState::Missing(reason) => {
            warn!("processes of the node itself are not steered: {reason}");
        }
    }
}

/// Tells whether clients of lost endpoints are told.
fn tell_telling(telling: &TellState, recorder: &Recorder) {
    recorder.telling(telling);
    if let TellState::Missing(reason) = telling {
        warn!("idle connections of lost endpoints are reset at their next packet only: {reason}");
    }
}
