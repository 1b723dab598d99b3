//! Another configuration for a running agent: by SIGHUP, by `probe reload`, or because its file
//! changed.
//!
//! One task does it ([`Reloader`]), so two orders are carried out one after the other. The whole
//! file is read and judged as at a start, names are looked up, and only then the core is asked,
//! which applies all of it between two other messages ([`crate::core::Ask::Reload`]). Until then
//! nothing has changed, and whatever is wrong with the file changes nothing.
//!
//! Services and interfaces change at once, as do `suspect_self` and `resolve`. Of the rest a field
//! is either *refused*, where a restart would not do it either or what is steered depends on it,
//! or waits for the next start, with a warning ([`judge`]).

mod watch;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, oneshot, watch as latest},
};
use tracing::{error, info, warn};

use crate::{
    config::{
        self, Config, Fault,
        diff::{self, Change, Tree},
    },
    core::{
        Ask, Reload, Reloaded, Slots,
        journal::{Journal, What},
        order::Who,
        status,
    },
    datapath::kernel::last_known,
    interfaces,
    observe::Recorder,
    run::{
        named::{self, Failed, Named, Names},
        supervisor,
    },
};

pub use watch::watch;

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is in force.
    Applied,
    /// It says what is in force.
    Unchanged,
    /// The file is no configuration; nothing changed.
    Invalid,
    /// It is one, and cannot be had in a running agent; nothing changed.
    Refused,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Applied, Self::Unchanged, Self::Invalid, Self::Refused];

    /// The outcome's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
        }
    }

    /// Is what the file says in force?
    pub const fn is_good(self) -> bool {
        matches!(self, Self::Applied | Self::Unchanged)
    }
}

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In a word.
    pub outcome: Outcome,
    /// Why it is not applied, if it is not.
    #[serde(default)]
    pub error: Option<String>,
    /// What differs from the configuration that was in force.
    #[serde(default)]
    pub changes: Vec<Change>,
    /// Fields of it that the next start brings.
    #[serde(default)]
    pub restart_needed: Vec<String>,
    /// Services that are new.
    #[serde(default)]
    pub added: Vec<String>,
    /// Services that are gone.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Services of which something changed.
    #[serde(default)]
    pub changed: Vec<String>,
    /// How many were left alone.
    #[serde(default)]
    pub unchanged: usize,
}

impl Report {
    fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            error: None,
            changes: Vec::new(),
            restart_needed: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
            changed: Vec::new(),
            unchanged: 0,
        }
    }

    fn failed(outcome: Outcome, error: impl ToString) -> Self {
        Self {
            error: Some(error.to_string()),
            ..Self::of(outcome)
        }
    }
}

/// What is asked for.
#[derive(Debug)]
pub enum Request {
    /// Load the file again.
    Reload(Option<Who>, oneshot::Sender<Report>),
    /// The file may have changed: load it if it has since the last attempt.
    Look,
    /// What would another text change?
    Diff(String, oneshot::Sender<Report>),
}

/// Asks for it.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Request>);

impl Handle {
    /// And who has to answer. More than a few at a time wait.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, inbox) = mpsc::channel(16);
        (Self(requests), inbox)
    }

    /// Loads the file again; nothing if the agent ends.
    pub async fn reload(&self, by: Who) -> Option<Report> {
        self.ask(|reply| Request::Reload(Some(by), reply)).await
    }

    /// What would this text change? Nothing if the agent ends.
    pub async fn diff(&self, text: String) -> Option<Report> {
        self.ask(|reply| Request::Diff(text, reply)).await
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Report>) -> Request,
    ) -> Option<Report> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.ok()?;
        answer.await.ok()
    }

    async fn look(&self) -> bool {
        self.0.send(Request::Look).await.is_ok()
    }
}

/// A configuration with the text that it was made of.
#[derive(Debug)]
pub struct Loaded {
    text: String,
    config: Config,
}

impl Loaded {
    /// Reads a file. What is wrong with it is said as `probe check-config` says it.
    pub fn read(file: &Path) -> Result<Self, config::Error> {
        let text = config::read(file)?;
        let config = config::judge(file, &text)?;
        Ok(Self { text, config })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// What the task works with.
pub struct Reloader {
    file: PathBuf,
    /// What the agent started with: what cannot change since is as it says.
    boot: Config,
    tree: Tree,
    /// Of the file when it was last read, whatever became of it.
    looked: Option<String>,
    told: status::Configuration,
    asks: mpsc::Sender<Ask>,
    names: latest::Sender<Names>,
    recorder: Recorder,
    journal: Arc<Journal>,
    /// The service manager was told that the agent is ready.
    ready: Arc<AtomicBool>,
}

impl Reloader {
    /// For an agent that has just started with a configuration.
    pub(crate) fn new(
        file: &Path,
        loaded: &Loaded,
        asks: mpsc::Sender<Ask>,
        names: latest::Sender<Names>,
        recorder: Recorder,
        journal: Arc<Journal>,
        ready: Arc<AtomicBool>,
    ) -> Self {
        recorder.loaded();
        Self {
            file: file.to_owned(),
            boot: loaded.config.clone(),
            tree: diff::tree(&loaded.text),
            looked: Some(diff::hash(&loaded.text)),
            told: status::Configuration {
                file: file.display().to_string(),
                hash: diff::hash(&loaded.text),
                loaded_unix_ms: status::unix_ms(SystemTime::now()),
                last_reload: None,
                restart_needed: Vec::new(),
            },
            asks,
            names,
            recorder,
            journal,
            ready,
        }
    }

    /// Works until the agent ends.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut hangup: Signal,
    ) -> anyhow::Result<()> {
        self.tell().await;
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    info!("SIGHUP");
                    self.reload(None).await;
                }
                request = requests.recv() => match request {
                    None => return Ok(()),
                    // Who asked may have gone away; that is their business.
                    Some(Request::Reload(by, reply)) => {
                        let _ = reply.send(self.reload(by).await);
                    }
                    Some(Request::Look) => self.look().await,
                    Some(Request::Diff(text, reply)) => {
                        let _ = reply.send(self.diff(&text));
                    }
                },
            }
        }
    }

    /// Tells the core what is to be said of the configuration.
    async fn tell(&self) {
        // Closed: the agent ends.
        let told = Box::new(self.told.clone());
        let _ = self.asks.send(Ask::Configured(told)).await;
    }

    async fn look(&mut self) {
        match read(&self.file).await {
            Ok(text) if self.looked.as_ref() == Some(&diff::hash(&text)) => {}
            // In the midst of a replacement there may be no file; the next look will tell.
            Err(_) if self.looked.is_none() => {}
            Ok(_) | Err(_) => {
                info!(file = self.told.file, "the configuration file changed");
                self.reload(None).await;
            }
        }
    }

    async fn reload(&mut self, by: Option<Who>) -> Report {
        supervisor::reloading(&self.ready).await;
        let report = self.attempt().await;
        match (report.outcome, &report.error) {
            (Outcome::Invalid | Outcome::Refused, error) => error!(
                result = report.outcome.label(),
                "the configuration was not loaded again, and the one before stays in force: {}",
                error.as_deref().unwrap_or_default()
            ),
            (Outcome::Unchanged, _) => info!("the configuration is what is in force already"),
            (Outcome::Applied, _) => {
                for change in &report.changes {
                    info!("{change}");
                }
                info!(
                    added = report.added.len(),
                    removed = report.removed.len(),
                    changed = report.changed.len(),
                    unchanged = report.unchanged,
                    hash = self.told.hash,
                    "the configuration was loaded again"
                );
            }
        }
        if !report.restart_needed.is_empty() {
            let fields = report.restart_needed.join(", ");
            warn!(
                fields,
                "these cannot change in a running agent: a restart brings them"
            );
        }
        self.recorder.reloaded(report.outcome);
        self.journal.tell(What::Reload {
            result: report.outcome.label().to_owned(),
            error: report.error.clone(),
            added: report.added.clone(),
            removed: report.removed.clone(),
            changed: report.changed.clone(),
            by,
        });
        self.told.last_reload = Some(status::LastReload {
            unix_ms: status::unix_ms(SystemTime::now()),
            result: report.outcome.label().to_owned(),
            error: report.error.clone(),
        });
        self.tell().await;
        supervisor::reloaded(&self.ready).await;
        report
    }

    async fn attempt(&mut self) -> Report {
        let text = match read(&self.file).await {
            Ok(text) => text,
            Err(error) => {
                self.looked = None;
                return Report::failed(Outcome::Invalid, error);
            }
        };
        let hash = diff::hash(&text);
        self.looked = Some(hash.clone());
        let (file, judged) = (self.file.clone(), text.clone());
        // Certificates are read too.
        let config = tokio::task::spawn_blocking(move || config::judge(&file, &judged)).await;
        let config = match config {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => return Report::failed(Outcome::Invalid, error),
            Err(error) => return Report::failed(Outcome::Invalid, error),
        };
        let tree = diff::tree(&text);
        let changes = diff::diff(&self.tree, &tree);
        let (refused, restart_needed) = judge(&self.boot, &config);
        if let Some(fault) = refused {
            return Report {
                changes,
                ..Report::failed(Outcome::Refused, self.fault(fault))
            };
        }
        let (reloaded, config, mut failed) = match self.apply(config).await {
            Ok(applied) => applied,
            Err(report) => return Report { changes, ..report },
        };
        let services = names(&config, &reloaded.slots);
        named::renumber(failed.iter_mut().map(|(whose, _)| whose), &reloaded.slots);
        // Closed: the agent ends.
        let _ = self.names.send(Names {
            names: services,
            every: config.resolve_every(),
            failed,
        });
        let touched = [&reloaded.added, &reloaded.removed, &reloaded.changed];
        // A renewed certificate is no difference of the text.
        let same = changes.is_empty() && touched.iter().all(|list| list.is_empty());
        self.tree = tree;
        self.told.hash = hash;
        self.told.loaded_unix_ms = status::unix_ms(SystemTime::now());
        self.told.restart_needed.clone_from(&restart_needed);
        Report {
            changes,
            restart_needed,
            added: reloaded.added,
            removed: reloaded.removed,
            changed: reloaded.changed,
            unchanged: reloaded.unchanged,
            ..Report::of(if same {
                Outcome::Unchanged
            } else {
                Outcome::Applied
            })
        }
    }

    /// Has the core take it.
    async fn apply(&self, config: Config) -> Result<(Reloaded, Config, Failed), Report> {
        let invalid = |fault| Report::failed(Outcome::Invalid, self.fault(fault));
        let refused = |error: &dyn ToString| Report::failed(Outcome::Refused, error.to_string());
        let existing = interfaces::list().await.map_err(|error| refused(&error))?;
        named::literals_exist(&config, &existing).map_err(invalid)?;
        let bpffs = config.datapath().bpffs().to_owned();
        let known = tokio::task::spawn_blocking(move || last_known(&bpffs)).await;
        let known = known.unwrap_or_default();
        let (resolved, failed) = named::locate(&config, &known).await;
        let reload = Box::new(Reload {
            config: config.clone(),
            resolved,
            existing,
        });
        let (reply, answer) = oneshot::channel();
        let ends = "the agent ends";
        let sent = self.asks.send(Ask::Reload(reload, reply)).await;
        sent.map_err(|_| refused(&ends))?;
        match answer.await {
            Ok(Ok(reloaded)) => Ok((reloaded, config, failed)),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(refused(&ends)),
        }
    }

    fn fault(&self, fault: Fault) -> config::Error {
        let file = self.file.clone();
        config::Error::Invalid { file, fault }
    }

    fn diff(&self, text: &str) -> Report {
        let config = match config::parse(text) {
            Ok(config) => config,
            Err(fault) => return Report::failed(Outcome::Invalid, fault),
        };
        let changes = diff::diff(&self.tree, &diff::tree(text));
        compared(changes, &self.boot, &config)
    }
}

/// What an agent that started with a configuration would say to another one.
pub fn compared(changes: Vec<Change>, boot: &Config, other: &Config) -> Report {
    let (refused, restart_needed) = judge(boot, other);
    let outcome = match (&refused, changes.is_empty()) {
        (Some(_), _) => Outcome::Refused,
        (None, true) => Outcome::Unchanged,
        (None, false) => Outcome::Applied,
    };
    Report {
        changes,
        restart_needed,
        error: refused.map(|fault| fault.to_string()),
        ..Report::of(outcome)
    }
}

async fn read(file: &Path) -> Result<String, config::Error> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || config::read(&path)).await;
    read.unwrap_or_else(|error| {
        Err(config::Error::Read {
            file: file.to_owned(),
            source: error.into(),
        })
    })
}

/// Names to look up, by slots.
fn names(config: &Config, slots: &Slots) -> Vec<Named> {
    let mut names = named::names(config);
    for name in &mut names {
        named::renumber(&mut name.2, slots);
    }
    names
}

/// What of another configuration cannot be had: what is refused, and which fields wait for the
/// next start.
pub fn judge(boot: &Config, other: &Config) -> (Option<Fault>, Vec<String>) {
    let (old, new) = (boot.datapath(), other.datapath());
    let sources = |of: &config::Datapath| {
        let v4 = of.source_v4().map(|ip| ip.to_string());
        let all: Vec<_> = v4
            .into_iter()
            .chain(of.source_v6().map(|ip| ip.to_string()))
            .collect();
        format!("[{}]", all.join(", "))
    };
    let refuse = |field: &str, value: String, before: String, what: &str| {
        let problem = format!("cannot change in a running agent: {what}");
        Some(Fault::new(field, value, problem, before))
    };
    let detach = "stop it, run `probe detach` (this ends steering until the next start), start it";
    let refused = if old.bpffs() != new.bpffs() {
        let (value, before) = (new.bpffs().display().to_string(), old.bpffs().display());
        refuse("datapath.bpffs", value, before.to_string(), detach)
    } else if old.flows() != new.flows() {
        let (value, before) = (new.flows().to_string(), old.flows().to_string());
        refuse("datapath.flows", value, before, detach)
    } else if sources(old) != sources(new) {
        let what = "restart it; connections of full NAT come back to the old source";
        refuse("datapath.source", sources(new), sources(old), what)
    } else {
        None
    };
    let waits = [
        ("interfaces.node", boot.node() != other.node()),
        ("datapath.tc", old.tc() != new.tc()),
        ("datapath.xdp", old.xdp() != new.xdp()),
        ("datapath.xdp_send", old.xdp_send() != new.xdp_send()),
        ("datapath.learn", old.learn() != new.learn()),
        ("datapath.timeouts", old.timeouts() != new.timeouts()),
        ("datapath.cgroup", old.cgroup() != new.cgroup()),
        ("datapath.log", old.log() != new.log()),
        ("control.socket", boot.socket() != other.socket()),
        ("control.group", boot.group() != other.group()),
        ("control.state", boot.state() != other.state()),
        ("metrics.listen", boot.metrics() != other.metrics()),
        ("page.listen", boot.page() != other.page()),
        ("checking.realtime", boot.realtime() != other.realtime()),
        (
            "checking.per_second",
            boot.checks_per_second() != other.checks_per_second(),
        ),
        (
            "checking.at_once",
            boot.checks_at_once() != other.checks_at_once(),
        ),
    ];
    let waits = waits.into_iter().filter(|(_, differs)| *differs);
    let waits = waits.map(|(field, _)| field.to_owned()).collect();
    (refused, waits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
interfaces: {edge: ['veth*']}
services:
- name: s
  listeners: ['10.96.0.10:80']
  endpoints: [{name: e, address: '10.0.0.1:80'}]
  check: {tcp: {}}
";

    fn against_good(more: &str) -> (Option<String>, Vec<String>) {
        let config = |text: &str| config::parse(text).unwrap();
        let (refused, waits) = judge(&config(GOOD), &config(&format!("{GOOD}{more}")));
        (refused.map(|fault| fault.to_string()), waits)
    }

    #[test]
    fn what_cannot_change_is_named() {
        assert_eq!(against_good(""), (None, vec![]));
        assert_eq!(against_good("resolve: {every: 1s}\n"), (None, vec![]));
        let (refused, waits) = against_good(
            "datapath: {tc: tcx, xdp: off, xdp_send: on, learn: 1s, timeouts: {opening: 9s}, log: \
             debug, cgroup: /c}\ncontrol: {socket: /s}\nmetrics: {listen: 'off'}\n",
        );
        assert_eq!(refused, None);
        assert_eq!(
            waits,
            [
                "datapath.tc",
                "datapath.xdp",
                "datapath.xdp_send",
                "datapath.learn",
                "datapath.timeouts",
                "datapath.cgroup",
                "datapath.log",
                "control.socket",
                "metrics.listen"
            ]
        );
        for (more, begin) in [
            ("bpffs: /b", "datapath.bpffs: `/b`: cannot change"),
            ("flows: 4096", "datapath.flows: `4096`: cannot change"),
            (
                "source: 10.0.0.9",
                "datapath.source: `[10.0.0.9]`: cannot change",
            ),
        ] {
            let (refused, _) = against_good(&format!("datapath: {{{more}}}\n"));
            let refused = refused.unwrap();
            assert!(refused.starts_with(begin), "{refused}");
        }
    }

    /// What is not the same is another service: each of these begins its checks anew, or more.
    #[test]
    fn a_renewed_certificate_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let text = GOOD.replace(
            "{tcp: {}}",
            &format!("{{tcp: {{tls: {{ca: {}}}}}}}", ca.display()),
        );
        let read = || {
            let key = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
            std::fs::write(&ca, key.cert.pem()).unwrap();
            let config = config::parse(&text).unwrap();
            assert_eq!(
                config.services()[0],
                config::parse(&text).unwrap().services()[0]
            );
            config
        };
        assert_ne!(read().services()[0], read().services()[0]);
    }
}
