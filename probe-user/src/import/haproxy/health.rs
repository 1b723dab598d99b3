//! The check of a service from the settings of a proxy and its servers.
//!
//! HAProxy has a check for each server; a service here has one. That of the first server
//! in the order of tiers is taken, and whatever differs from it is said.

use std::time::Duration;

use super::{
    checks::{self, Asked, Connect, HttpRule, TcpRule},
    server::Server,
    service::{Global, LONGEST, Say},
    settings::{Settings, time},
};
use crate::import::{
    plan::{Agent, Bytes, Check, Kind, Match, Redis, Sourced, Step, Timing, Tls},
    report::Note,
};

/// HAProxy's `inter`.
const INTER: Duration = Duration::from_secs(2);

/// Options of servers that make their check.
const OPTIONS: &[&str] = &[
    "port",
    "addr",
    "inter",
    "fastinter",
    "downinter",
    "rise",
    "fall",
    "check-ssl",
    "check-sni",
    "check-send-proxy",
];

/// Makes the check of a service.
pub fn check(settings: &Settings, servers: &[&Server], global: &Global, say: Say) -> Check {
    let first = servers.iter().find(|server| server.has("check"));
    let first = first.or(servers.first()).copied();
    for server in servers {
        checked(server, say);
    }
    if let Some(first) = first {
        same(first, servers, say);
    }
    let option = |name: &str| first.and_then(|first| first.option(name));
    let duration = |name: &str, say: Say| first.and_then(|f| duration_of(f, name, say));
    let inter = duration("inter", say);
    let timeout = settings.timeouts.get("check");
    if let Some(timeout) = timeout {
        say(
            timeout.line,
            Note::changed(
                "",
                "timeout of a check as a whole; there connecting had a time of its own, timeout connect",
            ),
        );
    }
    let inter = Timing {
        value: inter.as_ref().map_or(INTER, |inter| inter.value),
        line: inter.map(|inter| inter.line),
    };
    let mut check = Check {
        kind: Sourced::new(Kind::Tcp, first.map_or(0, |first| first.line)),
        port: number(option("port"), say).and_then(|port| match u16::try_from(port.value) {
            Ok(0) | Err(_) => None,
            Ok(value) => Some(Sourced::new(value, port.line)),
        }),
        address: option("addr").map(|o| Sourced::new(o.argument().to_owned(), o.line)),
        tls: tls(first, global),
        proxy_header: option("check-send-proxy").map(|o| o.line),
        inter,
        fastinter: duration("fastinter", say),
        downinter: duration("downinter", say),
        timeout: match timeout {
            Some(timeout) => Timing {
                value: timeout.value.min(LONGEST),
                line: Some(timeout.line),
            },
            None => Timing {
                line: None,
                ..inter
            },
        },
        rise: number(option("rise"), say),
        fall: number(option("fall"), say),
    };
    ask(settings, &said_of_tls(first, global), &mut check, say);
    check
}

fn checked(server: &Server, say: Say) {
    match server.option("check") {
        Some(option) => say(option.line, Note::carried("check", "")),
        None if server.has("disabled") => {}
        None => say(
            server.line,
            Note::changed("", "was taken to be up without a check; here it is checked"),
        ),
    }
}

/// Says of each option of a check what becomes of it.
fn same(first: &Server, servers: &[&Server], say: Say) {
    for server in servers {
        for name in OPTIONS {
            let (own, taken) = (server.option(name), first.option(name));
            let equal = own.map(|o| &o.arguments) == taken.map(|o| &o.arguments);
            match own {
                // What holds for the service is said where it is used.
                Some(_) if equal => {}
                Some(own) => {
                    let why = format!(
                        "a service has one check: that of {} is made{}",
                        first.name,
                        taken.map(|o| format!(", {}", o.text())).unwrap_or_default()
                    );
                    // When it is asked differs; whether it asks the right one does not.
                    let note = if TIMING.contains(name) {
                        Note::changed(own.text(), why)
                    } else {
                        Note::lost(own.text(), why)
                    };
                    say(own.line, note);
                }
                None if equal => {}
                None => say(
                    server.line,
                    Note::changed(
                        "",
                        format!(
                            "checked as {}: {}",
                            first.name,
                            taken
                                .map(super::server::ServerOption::text)
                                .unwrap_or_default()
                        ),
                    ),
                ),
            }
            if let Some(own) = own.filter(|_| equal)
                && !DECIDED_LATER.contains(name)
            {
                say(own.line, Note::carried(own.text(), ""));
            }
        }
    }
}

const TIMING: &[&str] = &["inter", "fastinter", "downinter", "rise", "fall"];

/// The emitter knows whether this version can do it, and says so.
const DECIDED_LATER: &[&str] = &[
    "addr",
    "fastinter",
    "downinter",
    "check-ssl",
    "check-sni",
    "check-send-proxy",
];

/// A duration option of a server, at most 24 h.
pub fn duration_of(server: &Server, name: &str, say: Say) -> Option<Sourced<Duration>> {
    let option = server.option(name)?;
    match time(option.argument()) {
        Some(value) if value > LONGEST => {
            say(option.line, Note::changed(option.text(), "24h at most"));
            Some(Sourced::new(LONGEST, option.line))
        }
        Some(value) => Some(Sourced::new(
            value.max(Duration::from_millis(1)),
            option.line,
        )),
        None => {
            say(option.line, Note::unknown(option.text(), "not a time"));
            None
        }
    }
}

fn number(option: Option<&super::server::ServerOption>, say: Say) -> Option<Sourced<u32>> {
    let option = option?;
    match option.argument().parse() {
        Ok(value) => Some(Sourced::new(value, option.line)),
        Err(_) => {
            say(option.line, Note::unknown(option.text(), "not a number"));
            None
        }
    }
}

/// TLS of checks: `check-ssl`, or the server's own where the check goes to the same place.
fn tls(first: Option<&Server>, global: &Global) -> Option<Sourced<Tls>> {
    let first = first?;
    let elsewhere = first.has("port") || first.has("addr");
    let option = match (first.option("check-ssl"), first.option("ssl")) {
        (Some(option), _) => option,
        (None, Some(option)) if !elsewhere => option,
        _ => return None,
    };
    Some(Sourced::new(said_of_tls(Some(first), global), option.line))
}

/// What a server says of TLS, whether it is used or not.
fn said_of_tls(first: Option<&Server>, global: &Global) -> Tls {
    let Some(first) = first else {
        return Tls::default();
    };
    let insecure = match first.option("verify") {
        Some(verify) => verify.argument() == "none",
        None => global.unverified,
    };
    let text = |name: &str| first.option(name).map(|o| o.argument().to_owned());
    Tls {
        sni: text("check-sni"),
        insecure,
        ca: text("ca-file")
            .filter(|file| !file.starts_with('@'))
            .map(|file| below(&global.ca_base, file)),
        certificate: text("crt").map(|file| below(&global.crt_base, file)),
    }
}

/// A file below the folder that `ca-base` or `crt-base` names.
fn below(base: &Option<String>, file: String) -> String {
    match base {
        Some(base) if !file.starts_with('/') => format!("{}/{file}", base.trim_end_matches('/')),
        _ => file,
    }
}

/// The agent that states its server's state.
pub fn agent(server: &Server, say: Say) -> Option<Sourced<Agent>> {
    let option = server.option("agent-check")?;
    let inter = duration_of(server, "agent-inter", say).map(|inter| inter.value);
    let port = server
        .option("agent-port")
        .and_then(|o| o.argument().parse().ok());
    let text = |name: &str| server.option(name).map(|o| o.argument().to_owned());
    let agent = Agent {
        port,
        address: text("agent-addr"),
        inter,
        send: text("agent-send"),
    };
    Some(Sourced::new(agent, option.line))
}

/// What is asked, by `option ...-check` and its rules.
fn ask(settings: &Settings, tls: &Tls, check: &mut Check, say: Say) {
    let Some(asked) = &settings.asked else {
        for rule in settings.http_rules.iter().map(|rule| rule.line) {
            say(
                rule,
                Note::left("", "without option httpchk it did nothing"),
            );
        }
        for rule in settings.tcp_rules.iter().map(|rule| rule.line) {
            say(
                rule,
                Note::left("", "without option tcp-check it did nothing"),
            );
        }
        return;
    };
    match &asked.value {
        Asked::Http(request) => {
            let request = Sourced::new(request.clone(), asked.line);
            http(settings, &request, tls, check, say);
        }
        Asked::Script => script(settings, asked.line, tls, check, say),
        Asked::Redis => check.kind = Sourced::new(Kind::Redis(Redis::default()), asked.line),
        Asked::Postgres(user) => {
            check.kind = Sourced::new(Kind::Postgres(user.clone()), asked.line);
        }
        Asked::TlsHello => {
            check.kind = Sourced::new(Kind::Tcp, asked.line);
            let tls = Tls {
                insecure: true,
                ..Tls::default()
            };
            check.tls = Some(Sourced::new(tls, asked.line));
        }
        Asked::Other(name) => check.kind = Sourced::new(Kind::Other(name), asked.line),
    }
}

/// `tls` is what the first server says of TLS, for a rule that connects by it.
fn apply(connect: &Connect, line: usize, tls: &Tls, check: &mut Check) {
    if let Some(port) = connect.port {
        check.port = Some(Sourced::new(port, line));
    }
    if let Some(address) = &connect.address {
        check.address = Some(Sourced::new(address.clone(), line));
    }
    if connect.proxy_header {
        check.proxy_header = Some(line);
    }
    if connect.tls || connect.sni.is_some() {
        let tls = check
            .tls
            .get_or_insert_with(|| Sourced::new(tls.clone(), line));
        tls.line = line;
        if connect.sni.is_some() {
            tls.value.sni.clone_from(&connect.sni);
        }
    }
}

fn http(
    settings: &Settings,
    option: &Sourced<checks::Request>,
    tls: &Tls,
    check: &mut Check,
    say: Say,
) {
    let mut send = None;
    let mut expects = Vec::new();
    let mut over = false;
    for rule in &settings.http_rules {
        // What follows the expectations of the first answer is a second request.
        let again = matches!(rule.value, HttpRule::Send(_) | HttpRule::Connect(_));
        over |= again && (send.is_some() || !expects.is_empty());
        match &rule.value {
            _ if over => say(
                rule.line,
                Note::lost("", "a check makes one request and judges one answer"),
            ),
            HttpRule::Connect(connect) => {
                apply(connect, rule.line, tls, check);
                say(rule.line, Note::carried("", ""));
            }
            HttpRule::Send(request) => send = Some(Sourced::new(request.clone(), rule.line)),
            HttpRule::Expect(expect) => expects.push(Sourced::new(expect.clone(), rule.line)),
        }
    }
    let (mut http, version) = checks::request(option, send.as_ref());
    http.expect = expects;
    let spoken = version.as_deref().unwrap_or("HTTP/1.0");
    let note = if spoken.eq_ignore_ascii_case("HTTP/1.1") {
        Note::carried("", "")
    } else {
        Note::changed(
            "",
            format!(
                "asked as HTTP/1.1, with a Host header; there {spoken}{}",
                if http.host.is_some() {
                    ""
                } else {
                    " without one"
                }
            ),
        )
    };
    say(option.line, note);
    if let Some(send) = &send {
        say(send.line, Note::carried("", ""));
    }
    let statuses = http
        .expect
        .iter()
        .any(|expect| matches!(expect.value.what, Match::Status(_)));
    if !statuses {
        for expect in &http.expect {
            say(
                expect.line,
                Note::changed(
                    "",
                    "there it REPLACES the check of the status: a 503 that holds it keeps its server \
                     up. Here both must be right, the status (200-399) and this",
                ),
            );
        }
    }
    check.kind = Sourced::new(Kind::Http(http), option.line);
}

fn script(settings: &Settings, line: usize, tls: &Tls, check: &mut Check, say: Say) {
    let mut steps = Vec::new();
    for rule in &settings.tcp_rules {
        match &rule.value {
            TcpRule::Connect(connect) if steps.is_empty() => {
                apply(connect, rule.line, tls, check);
                say(rule.line, Note::carried("", ""));
            }
            TcpRule::Connect(connect) => steps.push(Sourced::new(
                Step::Connect {
                    port: connect.port,
                    tls: connect.tls,
                },
                rule.line,
            )),
            TcpRule::Step(step) => steps.push(Sourced::new(step.clone(), rule.line)),
        }
    }
    if steps.is_empty() {
        say(line, Note::carried("", "a check that connects"));
        check.kind = Sourced::new(Kind::Tcp, line);
    } else if let Some(redis) = redis(&steps) {
        check.kind = Sourced::new(Kind::Redis(redis), line);
    } else {
        check.kind = Sourced::new(Kind::Script(steps), line);
    }
}

/// Is a script nothing but what the check of Redis does by itself: AUTH, PING, the role?
fn redis(steps: &[Sourced<Step>]) -> Option<Redis> {
    let mut redis = Redis::default();
    let mut pings = false;
    for step in steps {
        redis.lines.push(step.line);
        match &step.value {
            Step::Send(bytes) => {
                let text = std::str::from_utf8(bytes).ok()?;
                let words: Vec<_> = text.split_ascii_whitespace().collect();
                let upper: Vec<_> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
                let upper: Vec<_> = upper.iter().map(String::as_str).collect();
                match (upper.as_slice(), words.as_slice()) {
                    (["PING"], _) => pings = true,
                    (["QUIT"] | ["ROLE"] | ["INFO", "REPLICATION"], _) => {}
                    (["AUTH", _], [_, password]) => {
                        redis.login = Some((None, (*password).to_owned()));
                    }
                    (["AUTH", ..], [_, user, password]) => {
                        redis.login = Some((Some((*user).to_owned()), (*password).to_owned()));
                    }
                    _ => return None,
                }
            }
            Step::Expect {
                not: false,
                what: Bytes::Exact(bytes),
            } => match bytes.as_slice() {
                b"+OK" | b"+PONG" => {}
                b"role:master" => redis.role = Some("master"),
                b"role:slave" => redis.role = Some("replica"),
                _ => return None,
            },
            _ => return None,
        }
    }
    (pings || redis.role.is_some()).then_some(redis)
}
