//! A service from a `backend` or `listen` and the frontends that lead to it.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::{
    address::{self, Bound},
    health,
    server::Server,
    settings::{Bind, Settings},
};
use crate::import::{
    plan::{self, Address, Direct, Endpoint, Listener, Service, Sourced},
    report::Note,
    vips::{Vips, Wanted},
};

/// HAProxy's `error-limit`.
const ERROR_LIMIT: u32 = 10;
/// What affinity lasts here where the source gives no time.
const AFFINITY: Duration = Duration::from_secs(3 * 60 * 60);
/// No duration of the configuration is longer.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Says something about a line.
pub type Say<'a> = &'a mut dyn FnMut(usize, Note);

/// A proxy with servers.
#[derive(Clone, Copy, Debug)]
pub struct Proxy<'a> {
    /// `backend` or `listen` and its name.
    pub title: &'a str,
    /// Its name there.
    pub name: &'a str,
    /// Its name here.
    pub here: &'a str,
    /// Its first line.
    pub line: usize,
    /// What it says.
    pub settings: &'a Settings,
}

/// A frontend that leads all its connections to a service.
#[derive(Clone, Copy, Debug)]
pub struct Entrance<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it listens.
    pub binds: &'a [Bind],
}

/// What else is known about the way to a service.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Frontends that lead to it.
    pub entrances: &'a [Entrance<'a>],
    /// Names that clients choose it by.
    pub names: &'a [String],
    /// VIPs that were given.
    pub vips: &'a Vips<'a>,
    /// There is no other service.
    pub alone: bool,
    /// What the global section says about TLS of checks.
    pub global: &'a Global,
}

/// What the global section says about TLS of checks.
#[derive(Clone, Debug, Default)]
pub struct Global {
    /// `ssl-server-verify none`.
    pub unverified: bool,
    /// `ca-base`.
    pub ca_base: Option<String>,
    /// `crt-base`.
    pub crt_base: Option<String>,
}

/// Makes a service of a proxy with servers.
pub fn build(proxy: Proxy, around: Surroundings, say: Say) -> Service {
    let settings = proxy.settings;
    say(
        proxy.line,
        Note::carried("", format!("service {}", proxy.here)),
    );
    let mut servers: Vec<&Server> = settings.servers.iter().collect();
    let templates: Vec<Server> = settings
        .templates
        .iter()
        .map(|(count, server)| template(count, server, say))
        .collect();
    servers.extend(&templates);
    let listeners = listeners(&proxy, &around, &servers, say);
    let tiers = tiers(settings, &servers, say);
    let active = tiers
        .iter()
        .zip(&servers)
        .filter(|(tier, server)| **tier == 0 && !server.has("disabled"))
        .count();
    let mut order: Vec<usize> = (0..servers.len()).collect();
    order.sort_by_key(|i| (servers[*i].has("disabled"), tiers[*i]));
    let ordered: Vec<&Server> = order.iter().map(|i| servers[*i]).collect();
    let ports: BTreeSet<_> = listeners.iter().filter_map(|l| l.port).collect();
    let port = match ports.len() {
        1 => ports.first().copied(),
        _ => None,
    };
    let endpoints = order
        .iter()
        .map(|i| endpoint(servers[*i], tiers[*i], port, active, say))
        .collect();
    let mut service = Service {
        name: proxy.here.to_owned(),
        line: proxy.line,
        title: proxy.title.to_owned(),
        listeners,
        endpoints,
        check: health::check(settings, &ordered, around.global, say),
        affinity: None,
        manual: None,
        cut_backup: None,
        observe: observe(&ordered, say),
        direct_return: None,
        names: around.names.to_vec(),
    };
    balance(settings, active, &mut service, say);
    stick(settings, &mut service, say);
    marked(&ordered, &mut service, say);
    encryption(&proxy, &around, &ordered, say);
    direct(&proxy, &around, &mut service, say);
    head(&proxy, settings, &ordered, active, say);
    service
}

/// What a proxy's first line stands for, with what differs without a line of its own.
fn head(proxy: &Proxy, settings: &Settings, servers: &[&Server], active: usize, say: Say) {
    let cut = servers
        .iter()
        .all(|server| server.option("on-marked-down").is_some());
    if !cut {
        say(
            proxy.line,
            Note::changed(
                "connections",
                "of an endpoint that goes down are reset, so that clients come back at once; there \
                 they stayed (on_marked_down: keep does that)",
            ),
        );
    }
    if settings.balance.is_none() && active > 1 {
        say(
            proxy.line,
            Note::changed(
                "roundrobin",
                "its default: here connections are shared by consistent hashing",
            ),
        );
    }
}

/// `NUMBER` or `FIRST-LAST` servers at one name: probe takes one address of a name.
fn template(count: &str, server: &Server, say: Say) -> Server {
    let several = count != "1";
    if several {
        say(
            server.line,
            Note::lost(
                format!("server-template {count}"),
                "an endpoint has one address of its name: write one endpoint for each address",
            ),
        );
    }
    server.clone()
}

/// Backups stand behind each other, unless all serve at once.
fn tiers(settings: &Settings, servers: &[&Server], say: Say) -> Vec<u8> {
    let first = settings
        .balance
        .as_ref()
        .is_some_and(|balance| balance.value.first().is_some_and(|word| word == "first"));
    if let Some(line) = settings.allbackups {
        say(line, Note::carried("", "all backups stand in one tier"));
    }
    let mut next = 0_u8;
    let mut tiers = vec![0; servers.len()];
    for backup in [false, true] {
        let together = if backup {
            settings.allbackups.is_some()
        } else {
            !first
        };
        let mut any = false;
        for (i, server) in servers.iter().enumerate() {
            if server.has("backup") != backup || server.has("disabled") {
                continue;
            }
            tiers[i] = next;
            any = true;
            if !together {
                next = next.saturating_add(1);
            }
        }
        if together && any {
            next = next.saturating_add(1);
        }
    }
    tiers
}

fn listeners(proxy: &Proxy, around: &Surroundings, servers: &[&Server], say: Say) -> Vec<Listener> {
    let mut listeners = Vec::new();
    // Ports at any address, with the line of each.
    let mut any: Vec<(u16, usize)> = Vec::new();
    let own = Entrance {
        name: proxy.name,
        binds: &proxy.settings.binds,
    };
    let encrypted = servers.iter().all(|server| server.has("ssl"));
    for bind in around
        .entrances
        .iter()
        .chain([&own])
        .flat_map(|entrance| entrance.binds)
    {
        if bind.accepts_proxy {
            say(
                bind.line,
                Note::lost(
                    "accept-proxy",
                    "what stands before it sends a header, which now arrives at the servers",
                ),
            );
        }
        if bind.tls && !encrypted {
            say(
                bind.line,
                Note::left(
                    "ssl",
                    "TLS ends at the proxy: keep a layer-7 proxy for it, and let it connect to the VIP \
                     of this service",
                ),
            );
            continue;
        }
        if bind.tls {
            say(
                bind.line,
                Note::changed(
                    "ssl",
                    "TLS passes through to the servers, which speak it: clients see their certificates",
                ),
            );
        }
        for text in &bind.addresses {
            match address::bound(text) {
                Bound::At(ip, ports) => {
                    for port in ports {
                        listeners.push(Listener {
                            address: Some(SocketAddr::new(ip, port).to_string()),
                            port: Some(port),
                            udp: false,
                            line: bind.line,
                        });
                    }
                    say(
                        bind.line,
                        Note::carried(text, format!("listener of {}", proxy.here)),
                    );
                }
                Bound::Any(ports) => any.extend(ports.into_iter().map(|port| (port, bind.line))),
                Bound::Other(why) => say(bind.line, Note::lost(text, why)),
            }
        }
    }
    let hint = common_port(servers);
    let mut names: Vec<&str> = around.entrances.iter().map(|e| e.name).collect();
    names.extend([proxy.name, proxy.here]);
    let ports: Vec<u16> = any.iter().map(|(port, _)| *port).collect();
    let given = around.vips.of(Wanted {
        names: &names,
        ports: &ports,
        hint,
        alone: around.alone && listeners.is_empty() && any.is_empty(),
    });
    for text in given {
        let port = text
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        let line = any.iter().find(|(at, _)| Some(*at) == port);
        listeners.push(Listener {
            address: Some(text),
            port,
            udp: false,
            line: line.map_or(proxy.line, |(_, line)| *line),
        });
    }
    for (port, line) in any {
        if let Some(found) = listeners.iter().find(|l| l.port == Some(port)) {
            let vip = found.address.clone().unwrap_or_default();
            say(
                line,
                Note::changed(
                    "",
                    format!("any address of the proxy becomes the VIP {vip}"),
                ),
            );
            continue;
        }
        say(
            line,
            Note::lost(
                "",
                format!(
                    "any address of the proxy: say which VIP takes its place, --vip {}=ADDRESS:{port}",
                    proxy.name
                ),
            ),
        );
        listeners.push(Listener {
            address: None,
            port: Some(port),
            udp: false,
            line,
        });
    }
    if listeners.is_empty() {
        let port = hint.map_or_else(|| "PORT".to_owned(), |port| port.to_string());
        let why = format!(
            "nothing tells where clients connect to: --vip {}=ADDRESS:{port}",
            proxy.name
        );
        say(proxy.line, Note::lost("listeners", why));
        listeners.push(Listener {
            address: None,
            port: hint,
            udp: false,
            line: proxy.line,
        });
    } else if around.entrances.is_empty() && proxy.settings.binds.is_empty() {
        say(
            proxy.line,
            Note::carried("listeners", "at the VIP that was given"),
        );
    }
    listeners
}

/// The port of all servers, if it is one.
fn common_port(servers: &[&Server]) -> Option<u16> {
    let ports: BTreeSet<_> = servers
        .iter()
        .map(|server| address::port(&address::server(&server.address, None)))
        .collect();
    match ports.len() {
        1 => ports.into_iter().next().flatten(),
        _ => None,
    }
}

fn endpoint(server: &Server, tier: u8, port: Option<u16>, active: usize, say: Say) -> Endpoint {
    let address = address::server(&server.address, port);
    let here = name(&server.name);
    match &address {
        Address::At(_) if here == server.name => say(
            server.line,
            Note::carried(
                "",
                match tier {
                    0 => format!("endpoint {here}"),
                    tier => format!("endpoint {here} in tier {tier}"),
                },
            ),
        ),
        Address::At(_) => say(
            server.line,
            Note::changed(&server.name, format!("endpoint {here}")),
        ),
        Address::Needs(place, why) => say(
            server.line,
            Note::lost(&server.address, format!("{why} (here: {place})")),
        ),
    }
    let disabled = server.option("disabled").map(|option| option.line);
    if let Some(line) = disabled {
        say(
            line,
            Note::changed(
                "disabled",
                "is written as a comment: take it in when it is ready",
            ),
        );
    }
    if let Some(backup) = server.option("backup") {
        say(backup.line, Note::carried("backup", ""));
    }
    if let Some(cookie) = server.option("cookie") {
        let why =
            "a cookie is inside of the connection: a layer-7 proxy, or affinity by client address";
        let note = if active > 1 { Note::lost } else { Note::left };
        say(cookie.line, note(cookie.text(), why.to_owned()));
    }
    let number = |name: &str| {
        server
            .option(name)
            .map(|o| (o, o.argument().parse::<u16>()))
    };
    let weight = match number("weight") {
        None => None,
        Some((option, Ok(weight))) if weight <= 256 => {
            say(option.line, Note::carried(option.text(), ""));
            Some(Sourced::new(weight, option.line))
        }
        Some((option, _)) => {
            say(
                option.line,
                Note::unknown(option.text(), "not a weight from 0 to 256"),
            );
            None
        }
    };
    Endpoint {
        name: here,
        line: server.line,
        text: server.text.clone(),
        address,
        tier,
        weight: weight.filter(|weight| weight.value != 1),
        disabled,
        direct: None,
        slowstart: health::duration_of(server, "slowstart", say),
        agent: health::agent(server, say),
    }
}

/// A name that the configuration takes.
pub fn name(text: &str) -> String {
    let mut name: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(60)
        .collect();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        name.insert(0, 'x');
    }
    name
}

fn observe(servers: &[&Server], say: Say) -> Option<Sourced<plan::Observe>> {
    let mut found = None;
    for server in servers {
        let Some(option) = server.option("observe") else {
            continue;
        };
        let mode = server.option("on-error").map_or("", |mode| mode.argument());
        let limit = server.option("error-limit");
        let count = limit.and_then(|limit| limit.argument().parse().ok());
        let count = count.unwrap_or(ERROR_LIMIT);
        let (value, why) = match (option.argument(), mode) {
            (_, "mark-down") => (
                plan::Observe::MarkDown(count),
                "observe: mark-down; refused and unanswered connections count, a good check between \
                 them starts anew",
            ),
            _ => (
                plan::Observe::Trigger,
                "observe: trigger; the first sign makes checks at once, without a limit",
            ),
        };
        let note = match option.argument() {
            "layer4" => Note::changed(option.text(), why),
            _ => Note::changed(
                option.text(),
                format!(
                    "{why}; answers of layer 7 are not seen: the check must see what clients see"
                ),
            ),
        };
        say(option.line, note);
        for other in [limit, server.option("on-error")].into_iter().flatten() {
            let note = match (value, other.name.as_str()) {
                (plan::Observe::MarkDown(_), _) => Note::carried(other.text(), ""),
                (_, "error-limit") => Note::changed(other.text(), "the first sign makes checks"),
                _ => Note::changed(other.text(), "checks are made at once"),
            };
            say(other.line, note);
        }
        found.get_or_insert(Sourced::new(value, option.line));
    }
    for server in servers {
        for name in ["on-error", "error-limit"] {
            if let Some(option) = server.option(name).filter(|_| !server.has("observe")) {
                say(
                    option.line,
                    Note::changed(option.text(), "without observe it did nothing"),
                );
            }
        }
    }
    found
}

fn balance(settings: &Settings, active: usize, service: &mut Service, say: Say) {
    let Some(balance) = &settings.balance else {
        return;
    };
    let at = balance.line;
    let how = balance.value.first().map_or("", String::as_str);
    let one = active <= 1 && settings.allbackups.is_none();
    match how {
        "source" => {
            say(
                at,
                Note::changed(
                    "",
                    "affinity: {client_ip: ...}; a client stays with its endpoint while it is up, \
                     also when others come",
                ),
            );
            service.affinity = Some(Sourced::new(AFFINITY, at));
        }
        "first" => say(
            at,
            Note::changed(
                "",
                "each server in a tier of its own, whatever its connections",
            ),
        ),
        _ if one => say(
            at,
            Note::carried("", "one server at a time has nothing to share"),
        ),
        "roundrobin" | "static-rr" | "random" => say(
            at,
            Note::changed(
                "",
                "connections are shared by consistent hashing, in proportion to weights",
            ),
        ),
        "leastconn" => say(
            at,
            Note::changed(
                "",
                "connections are shared by consistent hashing, in proportion to weights; nobody counts \
                 which endpoint has fewest",
            ),
        ),
        _ => say(
            at,
            Note::lost(
                "",
                "needs a request's content: a layer-7 proxy; here connections are hashed",
            ),
        ),
    }
}

fn stick(settings: &Settings, service: &mut Service, say: Say) {
    let backups = service.endpoints.iter().any(|endpoint| endpoint.tier > 0);
    if let Some(line) = settings.stick_destination.first() {
        say(
            *line,
            Note::changed(
                "",
                "one entry for everybody keeps a backup after the master is back: failback mode \
                 manual, `probe failback SERVICE` goes back",
            ),
        );
        service.manual = Some(*line);
    }
    let expire = settings.table.as_ref().and_then(|table| table.value.expire);
    for line in &settings.stick_source {
        say(
            *line,
            if backups {
                Note::changed(
                    "",
                    "affinity by client address, among endpoints of one tier: when the master is back \
                     new connections go to it, while there a client stayed on the backup",
                )
            } else {
                Note::carried("", "affinity by client address")
            },
        );
        let time = expire
            .unwrap_or(LONGEST)
            .clamp(Duration::from_secs(1), LONGEST);
        service.affinity = Some(Sourced::new(time, *line));
    }
    let Some(table) = &settings.table else { return };
    let used = !settings.stick_source.is_empty();
    let by_address = matches!(table.value.kind.as_str(), "ip" | "ipv6");
    say(
        table.line,
        match (used, expire) {
            _ if !settings.stick_destination.is_empty() => {
                Note::changed("", "the choice is kept in the kernel, whatever its age")
            }
            (true, Some(expire)) if by_address && expire <= LONGEST => Note::changed(
                "",
                "expire is affinity's time; its size is the kernel's flow tables', and peers are not \
                 told: every node hashes alike",
            ),
            (true, _) if by_address => Note::changed("", "entries expire after 24h at the latest"),
            (true, _) => Note::lost("", "a key that is not the client's address"),
            (false, _) if table.value.stores => Note::left("", "counters for rules of layer 7"),
            (false, _) => Note::left("", "no rule fills it"),
        },
    );
}

fn marked(servers: &[&Server], service: &mut Service, say: Say) {
    for server in servers {
        if let Some(option) = server.option("on-marked-down") {
            say(
                option.line,
                Note::carried(option.text(), "on_marked_down: reset"),
            );
        }
        if let Some(option) = server.option("on-marked-up") {
            say(option.line, Note::carried(option.text(), "drain: 0s"));
            service.cut_backup.get_or_insert(option.line);
        }
    }
}

/// `ssl` of servers: whoever speaks TLS with them now.
fn encryption(proxy: &Proxy, around: &Surroundings, servers: &[&Server], say: Say) {
    let own = &proxy.settings.binds;
    let binds = || around.entrances.iter().flat_map(|e| e.binds).chain(own);
    let plain = binds().any(|bind| !bind.tls);
    for server in servers {
        if let Some(option) = server.option("ssl") {
            say(
                option.line,
                if plain {
                    Note::lost(
                        "ssl",
                        "nothing encrypts for clients that come in plain: they must speak TLS with the \
                         server, or a layer-7 proxy for them",
                    )
                } else {
                    Note::changed("ssl", "clients speak TLS with the server themselves")
                },
            );
        }
        if let Some(option) = server.option("sni") {
            say(
                option.line,
                Note::left(
                    option.text(),
                    "clients send their own; checks have check-sni",
                ),
            );
        }
    }
}

/// `use-server`: a listener of its own for an endpoint.
fn direct(proxy: &Proxy, around: &Surroundings, service: &mut Service, say: Say) {
    for rule in &proxy.settings.use_servers {
        let target = rule.value.first().map_or("", String::as_str);
        let hosts = super::conditions::hosts(&rule.value, &proxy.settings.acls);
        let here = name(target);
        let Some(endpoint) = service.endpoints.iter_mut().find(|e| e.name == here) else {
            say(rule.line, Note::unknown(target, "there is no such server"));
            continue;
        };
        if endpoint.direct.is_none() {
            let (long, short) = (format!("{}/{target}", proxy.name), target);
            let port = address::port(&endpoint.address);
            endpoint.direct = Some(Direct {
                vip: around.vips.direct(&[&long, short], port),
                names: Vec::new(),
                line: rule.line,
            });
        }
        let Some(direct) = &mut endpoint.direct else {
            continue;
        };
        let shown = hosts.join(", ");
        direct.names.extend(hosts);
        let note = match (&direct.vip, shown.as_str()) {
            (None, _) => Note::lost(
                "",
                format!(
                    "a listener of its own, if it is told which: --vip {target}=ADDRESS:PORT{}",
                    if shown.is_empty() {
                        String::new()
                    } else {
                        format!("; point {shown} there")
                    }
                ),
            ),
            (Some(vip), "") => Note::changed(
                "",
                format!("{vip} always reaches {target}; which clients go there is theirs to say"),
            ),
            (Some(vip), names) => Note::changed(
                "",
                format!("{vip} always reaches {target}: point {names} there"),
            ),
        };
        say(rule.line, note);
    }
}
