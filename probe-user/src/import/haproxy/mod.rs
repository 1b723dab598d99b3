//! haproxy.cfg: read ([`sections`]), then translated into a [`Plan`], with a word about each
//! line.
//!
//! A `backend` or `listen` with servers becomes a service. A `frontend` gives its addresses
//! to the one backend that all its connections go to; what is chosen by content stays with a
//! layer-7 proxy, or gets a VIP of its own.

mod address;
mod checks;
mod conditions;
mod health;
mod keywords;
pub mod sections;
mod server;
mod service;
mod settings;
mod words;

use std::time::Duration;

use self::{
    sections::{File, Kind, Section, Stray},
    service::{Entrance, Global, LONGEST, Proxy, Surroundings, build},
    settings::Settings,
};
use super::{
    Options, Problem,
    plan::{Plan, Sourced},
    report::{Note, Report},
    vips::Vips,
};

/// How long the kernel side remembers an idle connection, if nothing else is configured.
const ESTABLISHED: Duration = Duration::from_secs(3 * 60 * 60);

pub use self::checks::in_both;

/// Translates a file.
pub fn translate(
    text: &str,
    options: &Options,
    environment: words::Environment,
    report: &mut Report,
) -> Result<Plan, Problem> {
    let file = sections::parse(text, environment);
    register(&file, report);
    let proxies: Vec<_> = file
        .sections
        .iter()
        .enumerate()
        .filter(|(_, section)| {
            matches!(section.kind, Kind::Frontend | Kind::Backend | Kind::Listen)
        })
        .map(|(at, section)| (at, section, settings(&file, at)))
        .collect();
    let wanted = wanted(&proxies, options)?;
    for section in file.sections.iter() {
        match section.kind {
            Kind::Global => global(section, report),
            Kind::Other => whole(section, keywords::section(section.head.word(0)), report),
            _ => {}
        }
    }
    let mut plan = Plan::default();
    let global_settings = global_settings(&file);
    // A defaults section's lines are spoken of once, and only if something is made from it.
    let mut spoken = Vec::new();
    for (at, section, settings) in proxies.iter().filter(|(at, ..)| wanted.contains(at)) {
        for base in bases(&file, *at) {
            if !spoken.contains(&base) {
                spoken.push(base);
                let mut say = |line, note| report.note(line, note);
                Settings::default().read(&file.sections[base], &mut say);
                report.note(
                    file.sections[base].head.number,
                    Note::carried("", "what the proxies below are made from"),
                );
            }
        }
        if leads(section, settings) || serves(settings) {
            let mut say = |line, note| report.note(line, note);
            Settings::default().read(section, &mut say);
            general(settings, &mut plan, report);
        }
    }
    let served: Vec<_> = proxies
        .iter()
        .filter(|(at, _, settings)| wanted.contains(at) && serves(settings))
        .collect();
    for (at, section, settings) in &proxies {
        if !wanted.contains(at) {
            whole(section, "not asked for", report);
        } else if !leads(section, settings) && !serves(settings) {
            whole(
                section,
                "no servers that are in use: nothing to steer",
                report,
            );
        }
    }
    let vips = Vips::new(&options.vips);
    for (_, section, settings) in &served {
        let leading: Vec<_> = proxies
            .iter()
            .filter(|(at, front, settings)| {
                leads(front, settings)
                    && wanted.contains(at)
                    && default_backend(settings).is_some_and(|(name, _)| name == section.name)
            })
            .collect();
        let entrances: Vec<_> = leading
            .iter()
            .map(|(_, front, settings)| Entrance {
                name: &front.name,
                binds: &settings.binds,
            })
            .collect();
        let names = chosen_by(&proxies, section);
        let title = title(section);
        let here = unique(&plan, &service::name(&section.name));
        let proxy = Proxy {
            title: &title,
            name: &section.name,
            here: &here,
            line: section.head.number,
            settings,
        };
        let around = Surroundings {
            entrances: &entrances,
            names: &names,
            vips: &vips,
            alone: served.len() == 1,
            global: &global_settings,
        };
        let service = build(proxy, around, &mut |line, note| report.note(line, note));
        plan.services.push(service);
    }
    for (at, section, settings) in &proxies {
        if wanted.contains(at) && (leads(section, settings) || serves(settings)) {
            front(section, settings, &plan, report);
        }
    }
    match vips.unused() {
        Some(vip) => Err(Problem::Usage(format!(
            "--vip {vip}: nothing that is imported needs it; known: {}",
            known(&plan)
        ))),
        None => Ok(plan),
    }
}

/// What `--vip` may name.
fn known(plan: &Plan) -> String {
    let names: Vec<_> = plan.services.iter().map(|s| s.name.as_str()).collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    }
}

fn serves(settings: &Settings) -> bool {
    let servers = settings.servers.iter();
    let templates = settings.templates.iter().map(|(_, server)| server);
    settings.disabled.is_none()
        && servers
            .chain(templates)
            .any(|server| !server.has("disabled"))
}

/// Does it only lead to backends? So does a `listen` without servers that names one.
fn leads(section: &Section, settings: &Settings) -> bool {
    let names = settings.default_backend.is_some() || !settings.use_backends.is_empty();
    match section.kind {
        Kind::Frontend => true,
        Kind::Listen => names && settings.servers.is_empty() && settings.templates.is_empty(),
        _ => false,
    }
}

fn title(section: &Section) -> String {
    let kind = section.head.word(0);
    match section.name.as_str() {
        "" => kind.to_owned(),
        name => format!("{kind} {name}"),
    }
}

/// Enters every line with words, and says what can be said of those without a section.
fn register(file: &File, report: &mut Report) {
    for section in &file.sections {
        let title = title(section);
        for line in [&section.head].into_iter().chain(&section.lines) {
            report.line(line.number, &title, &line.text);
        }
    }
    for (line, stray) in &file.stray {
        report.line(line.number, "", &line.text);
        report.note(
            line.number,
            match stray {
                Stray::Before => Note::unknown("", "stands before the first section"),
                Stray::Inactive => Note::left("", "its condition is not met"),
                Stray::Condition => Note::carried("", "a condition, decided"),
                Stray::Undecided => Note::unknown(
                    "",
                    "a condition that only HAProxy itself can decide: what follows was read as if it \
                     were met",
                ),
                Stray::Message => Note::left("", "a message of HAProxy's"),
            },
        );
    }
}

/// Lines of the global section that checks go by.
const OF_CHECKS: &[&str] = &["ssl-server-verify", "ca-base", "crt-base"];

fn global_settings(file: &File) -> Global {
    let mut global = Global::default();
    let sections = file.sections.iter().filter(|s| s.kind == Kind::Global);
    for line in sections.flat_map(|section| &section.lines) {
        let value = || Some(line.word(1).to_owned());
        match line.word(0) {
            "ssl-server-verify" => global.unverified = line.word(1) == "none",
            "ca-base" => global.ca_base = value(),
            "crt-base" => global.crt_base = value(),
            _ => {}
        }
    }
    global
}

fn global(section: &Section, report: &mut Report) {
    whole(section, keywords::section("global"), report);
    for line in &section.lines {
        match line.word(0) {
            "setenv" | "presetenv" | "unsetenv" | "resetenv" => {
                report.note(line.number, Note::carried("", "read as HAProxy does"));
            }
            word if OF_CHECKS.contains(&word) => {
                report.note(line.number, Note::carried("", "for checks"));
            }
            _ => {}
        }
    }
}

/// Says the same of all lines of a section.
fn whole(section: &Section, why: &str, report: &mut Report) {
    for line in [&section.head].into_iter().chain(&section.lines) {
        let own = section.kind == Kind::Global
            && (matches!(
                line.word(0),
                "setenv" | "presetenv" | "unsetenv" | "resetenv"
            ) || OF_CHECKS.contains(&line.word(0)));
        if !own {
            report.note(line.number, Note::left("", why));
        }
    }
}

/// The `defaults` that a section is made from, the nearest first.
fn bases(file: &File, at: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    let mut at = at;
    loop {
        let section = &file.sections[at];
        let mut before = file.sections[..at].iter().enumerate().rev();
        let base = match &section.from {
            Some(name) => before.find(|(_, s)| s.kind == Kind::Defaults && s.name == *name),
            // Defaults without `from` begin anew.
            None if section.kind == Kind::Defaults => None,
            None => before.find(|(_, s)| s.kind == Kind::Defaults),
        };
        let Some((base, _)) = base else { return found };
        found.push(base);
        at = base;
    }
}

/// What a proxy says, with all that it inherits.
fn settings(file: &File, at: usize) -> Settings {
    let mut settings = Settings::default();
    let mut silent = |_, _| {};
    for base in bases(file, at).into_iter().rev() {
        settings.read(&file.sections[base], &mut silent);
        settings = settings.inherited();
    }
    settings.read(&file.sections[at], &mut silent);
    settings
}

type Proxies<'a> = [(usize, &'a Section, Settings)];

/// The places of the proxies that are asked for, with the frontends before them.
fn wanted(proxies: &Proxies, options: &Options) -> Result<Vec<usize>, Problem> {
    let Some(backend) = &options.backend else {
        return Ok(proxies.iter().map(|(at, ..)| *at).collect());
    };
    let names: Vec<_> = proxies
        .iter()
        .filter(|(_, section, _)| section.kind != Kind::Frontend)
        .map(|(_, section, _)| section.name.as_str())
        .collect();
    if !names.contains(&backend.as_str()) {
        return Err(Problem::Usage(format!(
            "--backend {backend}: there is no such backend or listen; known: {}",
            names.join(", ")
        )));
    }
    let to_it = |settings: &Settings| {
        let default = default_backend(settings).map(|(name, _)| name);
        let mut others = settings
            .use_backends
            .iter()
            .filter_map(|rule| rule.value.first());
        default == Some(backend) || others.any(|name| name == backend)
    };
    Ok(proxies
        .iter()
        .filter(|(_, section, settings)| {
            let named = section.kind != Kind::Frontend && section.name == *backend;
            named || (leads(section, settings) && to_it(settings))
        })
        .map(|(at, ..)| *at)
        .collect())
}

/// The backend that all connections go to which no condition sends elsewhere, and the line.
fn default_backend(settings: &Settings) -> Option<(&str, usize)> {
    let always = settings
        .use_backends
        .iter()
        .find_map(|rule| match rule.value.as_slice() {
            [name] if !name.contains('%') => Some((name.as_str(), rule.line)),
            _ => None,
        });
    let default = settings.default_backend.as_ref();
    always
        .or(default.map(|default| (default.value.as_str(), default.line)))
        .filter(|(name, _)| !name.contains('%'))
}

/// Names that frontends choose a backend by.
fn chosen_by(proxies: &Proxies, section: &Section) -> Vec<String> {
    let mut names = Vec::new();
    for (_, _, settings) in proxies {
        for rule in &settings.use_backends {
            if rule.value.first().is_some_and(|name| *name == section.name) {
                names.extend(conditions::hosts(&rule.value, &settings.acls));
            }
        }
    }
    names
}

fn unique(plan: &Plan, name: &str) -> String {
    let taken = |name: &str| plan.services.iter().any(|service| service.name == name);
    let mut number = 1;
    let mut unique = name.to_owned();
    while taken(&unique) {
        number += 1;
        unique = format!("{name}-{number}");
    }
    unique
}

/// Lines that frontends, backends and listens have alike.
fn general(settings: &Settings, plan: &mut Plan, report: &mut Report) {
    if let Some(mode) = &settings.mode {
        report.note(
            mode.line,
            match mode.value.as_str() {
                "tcp" => Note::carried("", "connections are steered"),
                "http" => Note::changed(
                    "",
                    "connections are steered, not requests: those of one connection go to one endpoint",
                ),
                _ => Note::lost("", "not a proxy for connections"),
            },
        );
    }
    for name in ["client", "server", "tunnel"] {
        let Some(timeout) = settings.timeouts.get(name) else {
            continue;
        };
        let longer = timeout.value > ESTABLISHED;
        report.note(
            timeout.line,
            if longer {
                Note::carried(
                    "",
                    "how long an idle connection is remembered, for all services: \
                     datapath.timeouts.established",
                )
            } else {
                Note::changed(
                    "",
                    "idle connections are not cut; they are remembered for \
                     datapath.timeouts.established (3h), of all services",
                )
            },
        );
        let value = timeout.value.min(LONGEST);
        if longer && plan.idle.as_ref().is_none_or(|idle| idle.value < value) {
            plan.idle = Some(Sourced::new(value, timeout.line));
        }
    }
    if let Some(line) = settings.disabled {
        report.note(line, Note::changed("", "the whole proxy is left out"));
    }
}

/// What a frontend or listen does with its connections.
fn front(section: &Section, settings: &Settings, plan: &Plan, report: &mut Report) {
    let find = |name: &str| plan.services.iter().find(|s| names(s, name));
    let default = default_backend(settings);
    if leads(section, settings) {
        let head = section.head.number;
        match default {
            Some((name, line)) => match find(name) {
                Some(service) => {
                    let note = Note::carried("", format!("listeners of {}", service.name));
                    report.note(head, note.clone());
                    report.note(line, note);
                }
                None => {
                    report.note(head, Note::left("", "its backend was not imported"));
                    report.note(line, Note::left("", "was not imported"));
                    binds(settings, "its backend was not imported", report);
                }
            },
            None => {
                let why = "nothing but the content of a connection tells which backend gets it: a \
                           layer-7 proxy, or a VIP for each backend";
                report.note(head, Note::left("", why));
                binds(settings, "see the rules of this frontend", report);
            }
        }
    }
    for rule in &settings.use_backends {
        if Some(rule.line) == default.map(|(_, line)| line) {
            continue;
        }
        let target = rule.value.first().map_or("", String::as_str);
        if target.contains('%') {
            let why = "a name that is worked out for each request: a layer-7 proxy";
            report.note(rule.line, Note::lost("", why));
            continue;
        }
        let names = conditions::hosts(&rule.value, &settings.acls).join(", ");
        let point = if names.is_empty() {
            "clients that are meant must connect there".to_owned()
        } else {
            format!("point {names} there")
        };
        let placed = find(target).and_then(|service| {
            let listener = service.listeners.iter().find_map(|l| l.address.as_ref())?;
            Some(format!("{} listens at {listener}: {point}", service.name))
        });
        report.note(
            rule.line,
            match placed {
                Some(placed) => Note::changed("", placed),
                None => Note::lost(
                    "",
                    format!(
                        "chosen by content: a layer-7 proxy, or a VIP of its own, --vip \
                         {target}=ADDRESS:PORT; {point}"
                    ),
                ),
            },
        );
    }
}

fn names(service: &super::plan::Service, name: &str) -> bool {
    service
        .title
        .split_once(' ')
        .is_some_and(|(_, own)| own == name)
}

fn binds(settings: &Settings, why: &str, report: &mut Report) {
    for bind in &settings.binds {
        report.note(bind.line, Note::left("", why));
    }
}
