//! keepalived.conf: `virtual_server` and its `real_server` blocks.
//!
//! Blocks are read as keepalived does: words up to the end of a line, `{` and `}` begin and
//! end a block, `#` and `!` a comment. What moves addresses between machines (VRRP) stays
//! with keepalived. Total: any text gives blocks; every line with words is in one of them.

use std::{net::IpAddr, time::Duration};

use super::{
    Options, Problem,
    plan::{
        Address, Check, Endpoint, Expect, Http, Kind, Listener, Match, Plan, Service, Sourced,
        Timing, Tls,
    },
    report::{Note, Report},
    vips::{Vips, Wanted},
};
use crate::config;

/// Its `delay_loop`, if a virtual server says none.
const DELAY_LOOP: Duration = Duration::from_secs(60);
/// Its `connect_timeout`.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Its `persistence_timeout` without a value.
const PERSISTENCE: Duration = Duration::from_secs(360);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A line of words, and the block behind it if it begins one.
#[derive(Clone, Debug)]
struct Item {
    line: usize,
    text: String,
    words: Vec<String>,
    block: Vec<Item>,
}

impl Item {
    fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    /// The items of the block that begin with a word.
    fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a Self> {
        self.block.iter().filter(move |item| item.word(0) == word)
    }

    /// The last of them, which counts.
    fn one<'a>(&'a self, word: &'a str) -> Option<&'a Self> {
        self.all(word).last()
    }
}

/// A piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
}

fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = line.chars().peekable();
    let mut word = String::new();
    let end = |word: &mut String, tokens: &mut Vec<Token>| {
        if !word.is_empty() {
            tokens.push(Token::Word(std::mem::take(word)));
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '#' | '!' if word.is_empty() => break,
            c if c.is_whitespace() => end(&mut word, &mut tokens),
            '{' => {
                end(&mut word, &mut tokens);
                tokens.push(Token::Open);
            }
            '}' => {
                end(&mut word, &mut tokens);
                tokens.push(Token::Close);
            }
            '"' => {
                let text: String = chars.by_ref().take_while(|c| *c != '"').collect();
                end(&mut word, &mut tokens);
                tokens.push(Token::Word(text));
            }
            c => word.push(c),
        }
    }
    end(&mut word, &mut tokens);
    tokens
}

/// Blocks within each other that keepalived could mean; deeper ones lie flat in the last.
const DEEPEST: usize = 16;

/// Blocks, as a tree. A block that is not closed ends with the text; a `}` too many is
/// nothing.
fn parse(text: &str) -> Vec<Item> {
    let mut open: Vec<Vec<Item>> = vec![Vec::new()];
    let mut flat = 0_usize;
    for (i, line) in text.lines().enumerate() {
        let mut words = Vec::new();
        let flush = |words: &mut Vec<String>, open: &mut Vec<Vec<Item>>| {
            if let (false, Some(inside)) = (words.is_empty(), open.last_mut()) {
                inside.push(Item {
                    line: i + 1,
                    text: line.trim().to_owned(),
                    words: std::mem::take(words),
                    block: Vec::new(),
                });
            }
        };
        for token in tokens(line) {
            match token {
                Token::Word(word) => words.push(word),
                Token::Open => {
                    flush(&mut words, &mut open);
                    if open.len() < DEEPEST {
                        open.push(Vec::new());
                    } else {
                        flat += 1;
                    }
                }
                Token::Close => {
                    flush(&mut words, &mut open);
                    if flat > 0 {
                        flat -= 1;
                    } else {
                        close(&mut open);
                    }
                }
            }
        }
        flush(&mut words, &mut open);
    }
    while open.len() > 1 {
        close(&mut open);
    }
    open.pop().unwrap_or_default()
}

fn close(open: &mut Vec<Vec<Item>>) {
    if open.len() < 2 {
        return;
    }
    let block = open.pop().unwrap_or_default();
    let Some(outside) = open.last_mut() else {
        return;
    };
    match outside.last_mut() {
        Some(head) if head.block.is_empty() => head.block = block,
        // `{` without a word before it.
        _ => outside.extend(block),
    }
}

/// Enters every line with words.
fn register(items: &[Item], section: &str, report: &mut Report) {
    for item in items {
        let own = if section.is_empty() && !item.block.is_empty() {
            item.words.join(" ")
        } else {
            section.to_owned()
        };
        report.line(item.line, &own, &item.text);
        register(&item.block, &own, report);
    }
}

/// Says the same of an item and all that is in it.
fn whole(item: &Item, note: &Note, report: &mut Report) {
    report.note(item.line, note.clone());
    for inside in &item.block {
        whole(inside, note, report);
    }
}

/// Translates a file.
pub fn translate(text: &str, options: &Options, report: &mut Report) -> Result<Plan, Problem> {
    let items = parse(text);
    register(&items, "", report);
    let groups: Vec<&Item> = items
        .iter()
        .filter(|item| item.word(0) == "virtual_server_group")
        .collect();
    let servers: Vec<(String, &Item)> = items
        .iter()
        .filter(|item| item.word(0) == "virtual_server")
        .map(|item| (name(item), item))
        .collect();
    if let Some(wanted) = &options.backend
        && !servers.iter().any(|(name, _)| name == wanted)
    {
        let known: Vec<_> = servers.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Problem::Usage(format!(
            "--backend {wanted}: there is no such virtual_server; known: {}",
            known.join(", ")
        )));
    }
    let vips = Vips::new(&options.vips);
    let mut plan = Plan::default();
    for item in &items {
        match item.word(0) {
            "virtual_server" => {}
            "virtual_server_group" => whole(item, &Note::carried("", "listeners"), report),
            "global_defs" | "static_ipaddress" | "static_routes" | "static_rules" => {
                whole(
                    item,
                    &Note::left("", "about keepalived's process or its machine"),
                    report,
                );
            }
            "vrrp_instance" | "vrrp_sync_group" | "vrrp_script" | "vrrp_track_process" => {
                let why = "which machine has an address: keep keepalived for it, where clients outside \
                           the cluster need one";
                whole(item, &Note::left("", why), report);
            }
            "include" => report.note(
                item.line,
                Note::lost("", "another file: import it by itself"),
            ),
            _ => whole(item, &Note::unknown("", "not known here"), report),
        }
    }
    for (name, item) in &servers {
        if options
            .backend
            .as_ref()
            .is_some_and(|wanted| wanted != name)
        {
            whole(item, &Note::left("", "not asked for"), report);
            continue;
        }
        let service = service(name, item, &groups, &vips, report);
        if service.endpoints.is_empty() {
            whole(
                item,
                &Note::left("", "no real_server: nothing to steer"),
                report,
            );
        } else {
            plan.services.push(service);
        }
    }
    match vips.unused() {
        Some(vip) => Err(Problem::Usage(format!(
            "--vip {vip}: nothing that is imported needs it"
        ))),
        None => Ok(plan),
    }
}

/// `10.0.0.1-80`, `group-web`: virtual servers have no names.
fn name(item: &Item) -> String {
    let words: Vec<_> = item.words.iter().skip(1).map(String::as_str).collect();
    let text: String = words
        .join("-")
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
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        text
    } else {
        format!("x{text}")
    }
}

/// An address and a port as keepalived writes them: two words.
fn place(address: &str, port: &str) -> Option<(IpAddr, u16)> {
    let ip: IpAddr = address.parse().ok()?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    config::unsteerable(ip).is_none().then_some((ip, port))
}

fn socket((ip, port): (IpAddr, u16)) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// Seconds, with a fraction or not.
fn seconds(text: &str) -> Option<Duration> {
    let value: f64 = text.parse().ok()?;
    (value > 0.0 && value <= LONGEST.as_secs_f64()).then(|| Duration::from_secs_f64(value))
}

fn service(name: &str, item: &Item, groups: &[&Item], vips: &Vips, report: &mut Report) -> Service {
    let udp = item.one("protocol").is_some_and(|p| p.word(1) == "UDP");
    report.note(item.line, Note::carried("", format!("service {name}")));
    let mut service = Service {
        name: name.to_owned(),
        line: item.line,
        title: item.words.join(" "),
        listeners: listeners(name, item, groups, udp, vips, report),
        endpoints: Vec::new(),
        check: Check {
            kind: Sourced::new(Kind::Tcp, item.line),
            port: None,
            address: None,
            tls: None,
            proxy_header: None,
            inter: Timing {
                value: DELAY_LOOP,
                line: None,
            },
            fastinter: None,
            downinter: None,
            timeout: Timing {
                value: TIMEOUT,
                line: None,
            },
            rise: Some(Sourced::new(1, item.line)),
            fall: Some(Sourced::new(1, item.line)),
        },
        affinity: None,
        manual: None,
        cut_backup: None,
        observe: None,
        direct_return: None,
        names: Vec::new(),
    };
    report.note(
        item.line,
        Note::changed(
            "connections",
            "of an endpoint that goes down are reset, so that clients come back at once",
        ),
    );
    for inside in &item.block {
        directive(inside, &mut service, report);
    }
    endpoints(item, &mut service, report);
    checks(item, &mut service, report);
    service
}

fn listeners(
    name: &str,
    item: &Item,
    groups: &[&Item],
    udp: bool,
    vips: &Vips,
    report: &mut Report,
) -> Vec<Listener> {
    let listener = |place, line| Listener {
        address: Some(socket(place)),
        port: Some(place.1),
        udp,
        line,
    };
    let mut found = Vec::new();
    match item.word(1) {
        "group" => {
            let group = groups.iter().find(|group| group.word(1) == item.word(2));
            for line in group.iter().flat_map(|group| &group.block) {
                match place(line.word(0), line.word(1)) {
                    Some(place) => found.push(listener(place, line.line)),
                    None => report.note(line.line, Note::lost("", "not an address with a port")),
                }
            }
        }
        "fwmark" => report.note(
            item.line,
            Note::lost(
                "fwmark",
                "packets that netfilter marks: say the addresses, --vip",
            ),
        ),
        address => found.extend(place(address, item.word(2)).map(|at| listener(at, item.line))),
    }
    let given = vips.of(Wanted {
        names: &[name],
        ports: &[],
        hint: None,
        alone: found.is_empty(),
    });
    found.extend(given.into_iter().map(|text| {
        Listener {
            port: text
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse().ok()),
            address: Some(text),
            udp,
            line: item.line,
        }
    }));
    if found.is_empty() {
        let why = format!("nothing tells where clients connect to: --vip {name}=ADDRESS:PORT");
        report.note(item.line, Note::lost("listeners", why));
        found.push(Listener {
            address: None,
            port: None,
            udp,
            line: item.line,
        });
    }
    found
}

/// A line of a virtual server that is no `real_server`.
fn directive(item: &Item, service: &mut Service, report: &mut Report) {
    let at = item.line;
    let note = match item.word(0) {
        "real_server" | "sorry_server" => return,
        "delay_loop" | "delay_before_retry" if seconds(item.word(1)).is_some() => {
            if item.word(0) == "delay_loop" {
                service.check.inter = Timing {
                    value: seconds(item.word(1)).unwrap_or(DELAY_LOOP),
                    line: Some(at),
                };
            }
            Note::carried("", "inter")
        }
        "lb_algo" | "lvs_sched" => match item.word(1) {
            "sh" | "mh" => Note::carried("", "connections are shared by consistent hashing"),
            _ => Note::changed(
                "",
                "connections are shared by consistent hashing, in proportion to weights",
            ),
        },
        "lb_kind" | "lvs_method" => match item.word(1) {
            "NAT" => Note::carried("", "forward: nat"),
            "DR" => {
                service.direct_return = Some(at);
                Note::carried("", "forward: dsr")
            }
            _ => Note::lost("", "tunnels: forward: nat, full-nat or dsr"),
        },
        "persistence_timeout" => {
            let time = seconds(item.word(1)).unwrap_or(PERSISTENCE);
            let time = time.max(Duration::from_secs(1));
            service.affinity = Some(Sourced::new(time, at));
            Note::carried("", "affinity by client address")
        }
        "persistence_granularity" => Note::changed(
            "",
            "affinity is by whole addresses of clients, not by their networks",
        ),
        "protocol" => match item.word(1) {
            "TCP" | "UDP" => Note::carried("", ""),
            _ => Note::lost("", "TCP and UDP are steered"),
        },
        "virtualhost" => Note::carried("", "the Host header of checks"),
        "ops" | "hashed" | "flag-1" | "flag-2" | "sh-port" | "sh-fallback" | "mh-port"
        | "mh-fallback" => Note::changed("", "consistent hashing with fallback, always"),
        "alpha" => Note::changed(
            "",
            "the first check decides at once, and until then the last choice holds",
        ),
        "omega" | "ha_suspend" | "notify_quorum_up" | "quorum_up" | "notify_quorum_down"
        | "quorum_down" => Note::left("", "alerts come from metrics and events"),
        "quorum" | "hysteresis" => Note::lost(
            "",
            "a tier serves while one of its endpoints is up, however few they are",
        ),
        "inhibit_on_failure" | "retry" | "nb_get_retry" | "warmup" | "smtp_alert" => {
            Note::changed("", "see the checks of the real servers")
        }
        _ => Note::unknown("", "not known here"),
    };
    report.note(at, note);
}

fn endpoints(item: &Item, service: &mut Service, report: &mut Report) {
    let real = item.all("real_server").map(|server| (server, 0));
    let sorry = item.all("sorry_server").map(|server| (server, 1));
    for (server, tier) in real.chain(sorry) {
        let found = place(server.word(1), server.word(2));
        let name = format!("{}-{}", server.word(1).replace(':', "."), server.word(2));
        let name = if name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            name
        } else {
            format!("x{name}")
        };
        let address = match found {
            Some(found) => {
                let note = if tier == 0 {
                    Note::carried("", format!("endpoint {name}"))
                } else {
                    Note::changed(
                        "",
                        format!(
                            "endpoint {name} in tier 1, which is checked as the others are; there it was \
                             taken to be up"
                        ),
                    )
                };
                report.note(server.line, note);
                Address::At(socket(found))
            }
            None => {
                let why = "not an address with a port that packets can go to";
                report.note(server.line, Note::lost("", why));
                Address::Needs("<ADDRESS>:PORT".to_owned(), why.to_owned())
            }
        };
        let weight = server.one("weight").and_then(|weight| {
            let value = weight
                .word(1)
                .parse::<u16>()
                .ok()
                .filter(|value| *value <= 256);
            report.note(
                weight.line,
                match value {
                    Some(_) => Note::carried("", ""),
                    None => Note::lost("", "weights go from 0 to 256"),
                },
            );
            value.map(|value| Sourced::new(value, weight.line))
        });
        for line in &server.block {
            let note = match line.word(0) {
                "inhibit_on_failure" => {
                    Note::changed("", "an endpoint that is down has no share at all")
                }
                "notify_up" | "notify_down" | "smtp_alert" | "uthreshold" | "lthreshold" => {
                    Note::left(
                        "",
                        "alerts come from metrics and events; connections are not counted",
                    )
                }
                "virtualhost" => Note::carried("", "the Host header of checks"),
                "weight" => continue,
                word if word.ends_with("_GET") || word.ends_with("_CHECK") => continue,
                "delay_loop" | "retry" | "delay_before_retry" | "warmup" | "alpha" => {
                    Note::changed("", "a service has one check: see its first real server's")
                }
                _ => Note::unknown("", "not known here"),
            };
            whole(line, &note, report);
        }
        service.endpoints.push(Endpoint {
            name,
            line: server.line,
            text: server.text.trim_end_matches('{').trim().to_owned(),
            address,
            tier,
            weight: weight.filter(|weight| weight.value != 1),
            disabled: None,
            direct: None,
            slowstart: None,
            agent: None,
        });
    }
}

/// The checks of the real servers: the first server's first is the service's.
fn checks(item: &Item, service: &mut Service, report: &mut Report) {
    let mut taken: Option<String> = None;
    for server in item.all("real_server") {
        let mut any = false;
        for block in &server.block {
            let word = block.word(0);
            if !(word.ends_with("_GET") || word.ends_with("_CHECK")) {
                continue;
            }
            let shape = shape(block);
            match &taken {
                None => {
                    check(block, item, server, service, report);
                    taken = Some(shape);
                }
                Some(first) if *first == shape && !any => {
                    whole(
                        block,
                        &Note::carried("", "the check of the service"),
                        report,
                    );
                }
                Some(_) => whole(
                    block,
                    &Note::lost(
                        "",
                        "a service has one check: that of its first real server is made",
                    ),
                    report,
                ),
            }
            any = true;
        }
        if !any {
            let why = "was taken to be up without a check; here it is checked";
            report.note(server.line, Note::changed("", why));
        }
    }
}

/// What is in a block, without its place.
fn shape(item: &Item) -> String {
    let inside: Vec<_> = item.block.iter().map(shape).collect();
    format!("{} {{{}}}", item.words.join(" "), inside.join("; "))
}

fn check(block: &Item, item: &Item, server: &Item, service: &mut Service, report: &mut Report) {
    report.note(block.line, Note::carried("", "the check of the service"));
    let kind = match block.word(0) {
        "HTTP_GET" | "SSL_GET" => {
            if block.word(0) == "SSL_GET" {
                // It verifies nothing.
                let tls = Tls {
                    insecure: true,
                    ..Tls::default()
                };
                service.check.tls = Some(Sourced::new(tls, block.line));
            }
            let virtualhost = server.one("virtualhost").or(item.one("virtualhost"));
            Kind::Http(http(block, virtualhost, report))
        }
        "TCP_CHECK" => Kind::Tcp,
        "SMTP_CHECK" => Kind::Other("SMTP"),
        "DNS_CHECK" => Kind::Other("DNS"),
        "MISC_CHECK" => Kind::Other("external program"),
        "UDP_CHECK" => Kind::Other("UDP"),
        "BFD_CHECK" => Kind::Other("BFD"),
        _ => Kind::Other("this one"),
    };
    service.check.kind = Sourced::new(kind, block.line);
    for line in &block.block {
        option(line, service, report);
    }
}

/// A line in a check's block.
fn option(line: &Item, service: &mut Service, report: &mut Report) {
    let at = line.line;
    let note = match line.word(0) {
        "url" | "virtualhost" => return,
        "connect_timeout" => match seconds(line.word(1)) {
            Some(value) => {
                service.check.timeout = Timing {
                    value,
                    line: Some(at),
                };
                Note::carried("", "timeout of a check as a whole")
            }
            None => Note::unknown("", "not a time"),
        },
        "connect_port" => match line.word(1).parse() {
            Ok(port) => {
                service.check.port = Some(Sourced::new(port, at));
                Note::carried("", "")
            }
            Err(_) => Note::unknown("", "not a port"),
        },
        "connect_ip" => {
            service.check.address = Some(Sourced::new(line.word(1).to_owned(), at));
            return;
        }
        "retry" | "nb_get_retry" => match line.word(1).parse::<u32>() {
            Ok(retry) if retry < 1000 => {
                service.check.fall = Some(Sourced::new(retry + 1, at));
                Note::carried("", "fall: the first try and these")
            }
            _ => Note::unknown("", "not a number"),
        },
        "delay_before_retry" => {
            service.check.fastinter = seconds(line.word(1)).map(|value| Sourced::new(value, at));
            return;
        }
        "warmup" => Note::carried("", "starts of checks are spread by themselves"),
        "bindto" | "bind_port" | "bind_if" | "fwmark" => {
            Note::changed("", "the node's routing says where checks come from")
        }
        _ => Note::lost("", "not part of a check here"),
    };
    whole(line, &note, report);
}

fn http(block: &Item, virtualhost: Option<&Item>, report: &mut Report) -> Http {
    let mut http = Http {
        method: "GET".to_owned(),
        path: "/".to_owned(),
        host: virtualhost.map(|line| line.word(1).to_owned()),
        headers: Vec::new(),
        body: None,
        expect: Vec::new(),
    };
    for (i, url) in block.all("url").enumerate() {
        if i > 0 {
            whole(url, &Note::lost("", "a check makes one request"), report);
            continue;
        }
        report.note(url.line, Note::carried("", ""));
        for line in &url.block {
            let note = match line.word(0) {
                "path" => {
                    http.path = line.word(1).to_owned();
                    Note::carried("", "")
                }
                "virtualhost" => {
                    http.host = Some(line.word(1).to_owned());
                    Note::carried("", "the Host header")
                }
                "status_code" => {
                    let ranges: Option<Vec<_>> =
                        line.words[1..].iter().map(|w| status(w)).collect();
                    match ranges.filter(|ranges| !ranges.is_empty()) {
                        Some(ranges) => {
                            let expect = Expect {
                                not: false,
                                what: Match::Status(ranges),
                            };
                            http.expect.push(Sourced::new(expect, line.line));
                            continue;
                        }
                        None => Note::unknown("", "not a list of statuses"),
                    }
                }
                "digest" => Note::lost("", "a hash of the page: expect a text that is in it"),
                "regex" => {
                    let expect = Expect {
                        not: false,
                        what: Match::Regex(line.word(1).to_owned()),
                    };
                    http.expect.push(Sourced::new(expect, line.line));
                    continue;
                }
                _ => Note::lost("", "not part of a check here"),
            };
            whole(line, &note, report);
        }
    }
    for line in block.all("virtualhost") {
        http.host = Some(line.word(1).to_owned());
        report.note(line.line, Note::carried("", "the Host header"));
    }
    // Without one keepalived takes 2xx.
    if http.expect.is_empty() {
        let expect = Expect {
            not: false,
            what: Match::Status(std::iter::once(200..=299).collect()),
        };
        http.expect.push(Sourced::new(expect, block.line));
    }
    http
}

/// `200` or `200-299`.
fn status(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (from >= 100 && to <= 599 && from <= to).then_some(from..=to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_a_tree() {
        let items = parse("a { # x\n b 1\n c { d }\n}\n! e\n}\nf \"g h\" {\n i\n");
        fn shown(items: &[Item]) -> String {
            let all: Vec<_> = items
                .iter()
                .map(|item| {
                    format!(
                        "{}:{}[{}]",
                        item.line,
                        item.words.join("|"),
                        shown(&item.block)
                    )
                })
                .collect();
            all.join(" ")
        }
        assert_eq!(shown(&items), "1:a[2:b|1[] 3:c[3:d[]]] 7:f|g h[8:i[]]");
    }

    #[test]
    fn no_depth_is_too_deep() {
        let items = parse(&format!(
            "{} b\n{}\nc",
            "a {\n".repeat(200_000),
            "}\n".repeat(200_000)
        ));
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].words, ["c"]);
    }
}
