//! A [`Plan`] as a commented probe.yaml.
//!
//! Only what the configuration knows is written ([`features`]); what it does not is reported at
//! the line that asked for it. A service whose check cannot be written stands as a comment:
//! another check in its place could send clients to the wrong endpoint.

use std::time::Duration;

use super::{
    Source,
    features::{Feature, missing},
    plan::{
        Address, Bytes, Check, Endpoint, Expect, HeaderValue, Http, Kind, Match, Observe, Plan,
        Redis, Service, Sourced, Step, Tls,
    },
    report::{Note, Report, short},
};
use crate::config::show;

/// Headers of a request that say how it is framed.
const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "expect",
];
/// From here on a comment says that it may be shorter.
const SLOW: Duration = Duration::from_secs(1);
const COMMENT: usize = 140;

/// Writes a plan.
pub fn yaml(source: Source, file: &str, plan: &Plan, report: &mut Report) -> String {
    let program = match source {
        Source::Haproxy => "haproxy",
        Source::Keepalived => "keepalived",
    };
    let mut out = Text::default();
    out.comment(0, &format!("Made from {file} by `probe import {program}`."));
    out.comment(
        0,
        "Judge it with `probe check-config`; what became of each line is in the import's report.",
    );
    out.blank();
    out.comment(0, "Where clients are; the source does not tell. edge: the host's side of pods' links; uplink: the");
    out.comment(
        0,
        "way to clients outside this node; node: processes of the node itself.",
    );
    out.line(0, "interfaces:");
    out.line(1, "edge: [\"veth*\", \"cali*\"]");
    out.line(1, "# uplink: [\"eth0\"]");
    out.line(1, "node: auto");
    if let Some(idle) = &plan.idle {
        out.blank();
        out.line(0, "datapath:");
        out.line(1, "timeouts:");
        out.line(
            2,
            &format!("established: {}  # line {}", show(idle.value), idle.line),
        );
    }
    out.blank();
    let mut any = false;
    let mut services = Text::default();
    for service in &plan.services {
        let mut writer = Writer {
            out: Text::default(),
            report,
        };
        let whole = writer.service(service);
        any |= whole;
        services.blank();
        services.comment(1, &format!("{} (line {})", service.title, service.line));
        if !whole {
            services.comment(
                1,
                "Its check cannot be written for this version of probe, so all of it is a comment:",
            );
        }
        services.text += &if whole {
            writer.out.text
        } else {
            commented(&writer.out.text)
        };
    }
    out.line(0, if any { "services:" } else { "services: []" });
    out.text += services.text.trim_start_matches('\n');
    out.text
}

fn commented(text: &str) -> String {
    text.lines()
        .map(|line| match line.trim_start() {
            comment if comment.starts_with('#') => format!("{line}\n"),
            _ => format!("  # {}\n", line.strip_prefix("  ").unwrap_or(line)),
        })
        .collect()
}

/// Lines of YAML.
#[derive(Default)]
struct Text {
    text: String,
}

impl Text {
    fn blank(&mut self) {
        self.text.push('\n');
    }

    fn line(&mut self, depth: usize, line: &str) {
        self.text += &"  ".repeat(depth);
        self.text += line;
        self.text.push('\n');
    }

    fn comment(&mut self, depth: usize, text: &str) {
        self.line(depth, &format!("# {}", short(text.trim(), COMMENT)));
    }
}

/// A scalar of YAML: plain where nothing could be meant by it but text.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_./-:".contains(&b))
        && !text.ends_with(':')
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if plain { text.to_owned() } else { quoted(text) }
}

/// In double quotes, with everything escaped that is not printable.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            c if c.is_alphanumeric() => out.push(c),
            c => {
                let code = u32::from(c);
                if code > 0xffff {
                    out.push_str(&format!("\\U{code:08x}"));
                } else {
                    out.push_str(&format!("\\u{code:04x}"));
                }
            }
        }
    }
    out.push('"');
    out
}

struct Writer<'a> {
    out: Text,
    report: &'a mut Report,
}

impl Writer<'_> {
    /// Notes what cannot be written; `true` if it can.
    fn can(&mut self, feature: Feature, line: usize, what: &str) -> bool {
        match missing(feature) {
            None => true,
            Some(why) => {
                self.report.note(line, Note::lost(what, why));
                false
            }
        }
    }

    /// Writes a service; `false` if its check cannot be written.
    fn service(&mut self, service: &Service) -> bool {
        self.out
            .line(1, &format!("- name: {}", scalar(&service.name)));
        self.listeners(service);
        self.out.line(2, "endpoints:");
        for endpoint in &service.endpoints {
            self.endpoint(endpoint);
        }
        let whole = self.check(&service.check);
        self.policies(service);
        whole
    }

    fn listeners(&mut self, service: &Service) {
        for name in &service.names {
            self.out.comment(
                2,
                &format!("clients chose it by the name {name}: point it here"),
            );
        }
        if service
            .listeners
            .iter()
            .any(|listener| listener.address.is_none())
        {
            self.out.comment(
                2,
                &format!(
                    "FILL IN: write an address for <VIP>, or import with --vip {}=ADDRESS:PORT",
                    service.name
                ),
            );
        }
        let listeners: Vec<_> = service
            .listeners
            .iter()
            .map(|listener| {
                let port = listener
                    .port
                    .map_or_else(|| "PORT".to_owned(), |p| p.to_string());
                let address = listener.address.clone();
                let udp = if listener.udp { "/udp" } else { "" };
                quoted(&(address.unwrap_or_else(|| format!("<VIP>:{port}")) + udp))
            })
            .collect();
        self.out
            .line(2, &format!("listeners: [{}]", listeners.join(", ")));
    }

    fn endpoint(&mut self, endpoint: &Endpoint) {
        self.out
            .comment(3, &format!("line {}: {}", endpoint.line, endpoint.text));
        let mut text = Text::default();
        text.line(3, &format!("- name: {}", scalar(&endpoint.name)));
        match &endpoint.address {
            Address::At(address) => text.line(4, &format!("address: {}", scalar(address))),
            Address::Needs(place, why) => {
                text.comment(4, &format!("FILL IN: {why}"));
                text.line(4, &format!("address: {}", quoted(place)));
            }
        }
        text.line(4, &format!("tier: {}", endpoint.tier));
        if let Some(weight) = &endpoint.weight {
            text.line(4, &format!("weight: {}", weight.value));
        }
        if let Some(direct) = &endpoint.direct {
            text.comment(
                4,
                "use-server: an address of its own that always reaches this endpoint, whatever is selected",
            );
            for name in &direct.names {
                text.comment(4, &format!("point {name} at it"));
            }
            match &direct.vip {
                Some(vip) => text.line(4, &format!("listeners: [{}]", quoted(vip))),
                None => text.comment(4, "listeners: [\"<VIP>:PORT\"]"),
            }
        }
        if let Some(slowstart) = &endpoint.slowstart
            && self.can(Feature::Slowstart, slowstart.line, "slowstart")
        {
            text.line(4, &format!("slow_start: {}", show(slowstart.value)));
            self.report
                .note(slowstart.line, Note::carried("slowstart", ""));
        }
        if let Some(agent) = &endpoint.agent {
            self.can(Feature::Agent, agent.line, "agent-check");
        }
        match endpoint.disabled {
            Some(_) => {
                for line in text.text.lines() {
                    let line = line.strip_prefix("      ").unwrap_or(line);
                    self.out.line(3, &format!("# {line}"));
                }
            }
            None => self.out.text += &text.text,
        }
    }

    /// `false` if it cannot be written.
    fn check(&mut self, check: &Check) -> bool {
        self.out.line(2, "check:");
        let whole = match &check.kind.value {
            Kind::Http(http) => self.http(http, check),
            Kind::Tcp => self.tcp(check, "connects only"),
            Kind::Script(steps) => self.script(steps, check),
            Kind::Redis(redis) => self.redis(redis, check),
            Kind::Postgres(user) => self.postgres(user.as_deref(), check),
            Kind::Other(name) => {
                self.report.note(
                    check.kind.line,
                    Note::lost("", format!("{name}: a kind of check that probe has not")),
                );
                missing(Feature::Tcp).is_none() && self.tcp(check, "connects only, instead")
            }
        };
        self.timing(check);
        whole
    }

    /// A kind with the way to the endpoint and fields of its own; `false` if it cannot be written.
    fn kind(&mut self, name: &str, fields: &[String], comment: &str, check: &Check) -> bool {
        let Some(mut lines) = self.reach(check) else {
            return false;
        };
        lines.extend_from_slice(fields);
        let comment = match comment {
            "" => String::new(),
            comment => format!("  # {comment}"),
        };
        if lines.is_empty() {
            self.out.line(3, &format!("{name}: {{}}{comment}"));
        } else {
            self.out.line(3, &format!("{name}:{comment}"));
            lines.iter().for_each(|line| self.out.line(4, line));
        }
        true
    }

    fn tcp(&mut self, check: &Check, comment: &str) -> bool {
        if self.can(Feature::Tcp, check.kind.line, "a check that connects") {
            return self.kind("tcp", &[], comment, check);
        }
        self.out.comment(3, "tcp: {}");
        false
    }

    fn redis(&mut self, redis: &Redis, check: &Check) -> bool {
        let line = check.kind.line;
        if !self.can(Feature::Redis, line, "") {
            // A connection tells as much as PING does, but nothing about the role.
            return redis.role.is_none()
                && missing(Feature::Tcp).is_none()
                && self.tcp(check, "connects only, instead");
        }
        self.report.note(line, Note::carried("", ""));
        for line in &redis.lines {
            let why = "what the check of Redis does by itself: PING, who asks, the role";
            self.report.note(*line, Note::carried("", why));
        }
        let mut fields = Vec::new();
        if let Some((user, password)) = &redis.login {
            fields.extend(user.iter().map(|user| format!("user: {}", quoted(user))));
            fields.push(format!(
                "password: {}  # or password_file",
                quoted(password)
            ));
        }
        fields.extend(redis.role.map(|role| format!("role: {role}")));
        self.kind("redis", &fields, "", check)
    }

    fn postgres(&mut self, user: Option<&str>, check: &Check) -> bool {
        let line = check.kind.line;
        if !self.can(Feature::Postgres, line, "") {
            return missing(Feature::Tcp).is_none() && self.tcp(check, "connects only, instead");
        }
        let user = user.unwrap_or("haproxy");
        let why = format!(
            "sees that connections are taken, without user {user}; with user and password_file it \
             logs in, and role: primary sees which one is"
        );
        self.report.note(line, Note::changed("", why));
        self.kind(
            "postgres",
            &[],
            "with user, password_file and role: primary it sees more",
            check,
        )
    }

    fn script(&mut self, steps: &[Sourced<Step>], check: &Check) -> bool {
        let mut whole = self.can(Feature::Script, check.kind.line, "");
        let mut fields = vec!["steps:".to_owned()];
        for step in steps {
            let field = match &step.value {
                Step::Send(bytes) => format!("send: {}", escaped(bytes)),
                Step::Expect { not, what } => {
                    let what = match what {
                        Bytes::Exact(bytes) => format!("expect: {}", escaped(bytes)),
                        Bytes::Regex(text) => format!("expect_regex: {}", quoted(text)),
                        Bytes::HexRegex(_) => {
                            let why =
                                "expressions for digits of bytes: expect_hex, or expect_regex";
                            self.report.note(step.line, Note::lost("", why));
                            whole = false;
                            continue;
                        }
                    };
                    what + if *not { ", not: true" } else { "" }
                }
                Step::Connect { .. } => {
                    self.report
                        .note(step.line, Note::lost("", "a script has one connection"));
                    whole = false;
                    continue;
                }
            };
            if self.can(Feature::Script, step.line, "") {
                self.report.note(step.line, Note::carried("", ""));
            }
            fields.push(format!("  - {{{field}}}  # line {}", step.line));
        }
        if whole {
            self.report.note(check.kind.line, Note::carried("", ""));
        }
        self.kind("script", &fields, "", check) && whole
    }

    /// Port, address, header, TLS; nothing if the check cannot be made without one of them.
    fn reach(&mut self, check: &Check) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        if let Some(port) = &check.port {
            lines.push(format!("port: {}", port.value));
        }
        if let Some(address) = &check.address {
            if !self.can(
                Feature::CheckAddress,
                address.line,
                &format!("addr {}", address.value),
            ) {
                return None;
            }
            self.report.note(address.line, Note::carried("addr", ""));
            lines.push(format!("address: {}", scalar(&address.value)));
        }
        if let Some(line) = check.proxy_header {
            if !self.can(Feature::ProxyHeader, line, "check-send-proxy") {
                return None;
            }
            self.report
                .note(line, Note::carried("check-send-proxy", ""));
            lines.push("send_proxy: v1".to_owned());
        }
        if let Some(tls) = &check.tls {
            if !self.can(Feature::Tls, tls.line, "TLS in checks") {
                return None;
            }
            self.report
                .note(tls.line, Note::carried("TLS in checks", ""));
            lines.push(format!("tls: {{{}}}", tls_fields(tls).join(", ")));
        }
        Some(lines)
    }

    fn http(&mut self, http: &Http, check: &Check) -> bool {
        let line = check.kind.line;
        let mut whole = true;
        self.out.line(3, "http:");
        if !matches!(http.method.as_str(), "GET" | "HEAD" | "OPTIONS") {
            let known = matches!(http.method.as_str(), "POST" | "PUT");
            whole &= known && self.can(Feature::Methods, line, &http.method);
            if !known {
                self.report.note(
                    line,
                    Note::lost(&http.method, "a method that checks do not use"),
                );
            }
        }
        self.out
            .line(4, &format!("method: {}", scalar(&http.method)));
        self.out.line(4, &format!("path: {}", scalar(&http.path)));
        match &http.host {
            Some(host) => self.out.line(4, &format!("host: {}", scalar(host))),
            None => self
                .out
                .comment(4, "host: without it the endpoint's address"),
        }
        match self.reach(check) {
            Some(reach) => reach.iter().for_each(|line| self.out.line(4, line)),
            None => whole = false,
        }
        self.request(http);
        self.expect(http);
        whole
    }

    fn request(&mut self, http: &Http) {
        let mut headers = Vec::new();
        for header in &http.headers {
            let (name, value) = &header.value;
            let lower = name.to_ascii_lowercase();
            if FRAMING.contains(&lower.as_str()) {
                self.report.note(
                    header.line,
                    Note::changed(name, "is set by the check itself"),
                );
                continue;
            }
            if self.can(
                Feature::RequestHeaders,
                header.line,
                &format!("{name}: {value}"),
            ) {
                headers.push(format!("{}: {}", scalar(name), quoted(value)));
            }
        }
        if !headers.is_empty() {
            self.out.line(4, "headers:");
            headers.iter().for_each(|line| self.out.line(5, line));
        }
        let bodied = matches!(http.method.as_str(), "POST" | "PUT");
        if let Some(body) = http.body.as_ref().filter(|_| !bodied) {
            self.report
                .note(body.line, Note::lost("body", "only POST and PUT have one"));
        } else if let Some(body) = &http.body
            && self.can(Feature::RequestBody, body.line, "body")
        {
            self.out.line(4, &format!("body: {}", quoted(&body.value)));
        }
    }

    fn expect(&mut self, http: &Http) {
        let mut statuses: Option<Vec<std::ops::RangeInclusive<u16>>> = None;
        let (mut good, mut bad) = (Found::default(), Found::default());
        for expect in &http.expect {
            let Expect { not, what } = &expect.value;
            let found = if *not { &mut bad } else { &mut good };
            if *not && !self.can(Feature::Not, expect.line, "") {
                continue;
            }
            match what {
                Match::Status(ranges) => {
                    statuses = Some(match statuses {
                        Some(before) => super::haproxy::in_both(&before, ranges),
                        None => ranges.clone(),
                    });
                }
                Match::Text(_) | Match::Regex(_) if found.body.is_some() => {
                    self.report.note(
                        expect.line,
                        Note::lost("", "one expression for the body: put both into a regex"),
                    );
                    continue;
                }
                Match::Text(text) => found.body = Some(format!("{{contains: {}}}", scalar(text))),
                Match::Regex(text) => found.body = Some(format!("{{regex: {}}}", quoted(text))),
                Match::Header { name, value } => {
                    if !self.can(Feature::Headers, expect.line, "") {
                        continue;
                    }
                    let value = match value {
                        None => "regex: \".*\"".to_owned(),
                        Some(HeaderValue::Is(text)) => format!("equals: {}", quoted(text)),
                        Some(HeaderValue::Contains(text)) => format!("contains: {}", quoted(text)),
                        Some(HeaderValue::Regex(text)) => format!("regex: {}", quoted(text)),
                    };
                    found
                        .headers
                        .push(format!("{{name: {}, {value}}}", scalar(name)));
                }
            }
            self.report.note(expect.line, Note::carried("", ""));
        }
        self.out.line(4, "expect:");
        match &statuses {
            Some(ranges) => {
                let all: Vec<_> = ranges.iter().map(status).collect();
                match all.as_slice() {
                    [one] => self.out.line(5, &format!("status: {one}")),
                    all => self.out.line(5, &format!("status: [{}]", all.join(", "))),
                }
            }
            None => {
                if good.body.is_some() || bad.body.is_some() {
                    self.out.comment(5, "In HAProxy the line for the body REPLACES the check of the status: a 503 whose body is");
                    self.out.comment(5, "right keeps its server up there. Here both must be right; 100-599 is what it did.");
                }
                self.out.line(5, "status: 200-399");
            }
        }
        good.write(&mut self.out, 5);
        if !bad.is_empty() {
            self.out.line(5, "not:");
            bad.write(&mut self.out, 6);
        }
    }

    fn timing(&mut self, check: &Check) {
        let from = |line: Option<usize>, default: &str| match line {
            Some(line) => format!("line {line}"),
            None => default.to_owned(),
        };
        let inter = check.inter;
        if inter.value >= SLOW {
            self.out.comment(3, "A check costs little here: inter: 10ms and timeout: 100ms are meant. A crash is known at");
            self.out.comment(
                3,
                "once either way (sentinel, observe), a hang after fall times inter.",
            );
        }
        self.out.line(
            3,
            &format!(
                "inter: {}  # {}",
                show(inter.value),
                from(inter.line, "the default there")
            ),
        );
        for (name, value, feature) in [
            ("fastinter", &check.fastinter, Feature::Fastinter),
            ("downinter", &check.downinter, Feature::Downinter),
        ] {
            let Some(value) = value else { continue };
            if missing(feature).is_some() {
                let why = "not supported by this version: one interval for all; the first sign of a \
                           failure makes checks at once (sentinel, observe)";
                self.report.note(value.line, Note::changed(name, why));
            } else {
                self.report.note(value.line, Note::carried(name, ""));
                self.out.line(
                    3,
                    &format!("{name}: {}  # line {}", show(value.value), value.line),
                );
            }
        }
        self.out.line(
            3,
            &format!(
                "timeout: {}  # {}",
                show(check.timeout.value.max(Duration::from_millis(1))),
                from(check.timeout.line, "as inter")
            ),
        );
        for (name, value, default) in [("rise", &check.rise, 2), ("fall", &check.fall, 3)] {
            let number = value.as_ref().map_or(default, |value| value.value);
            let line = value.as_ref().map(|value| value.line);
            self.out.line(
                3,
                &format!("{name}: {number}  # {}", from(line, "the default there")),
            );
        }
    }

    fn policies(&mut self, service: &Service) {
        let several = |tier| service.endpoints.iter().filter(|e| e.tier == tier).count() > 1;
        if let Some(affinity) = &service.affinity {
            let time = show(affinity.value);
            if service
                .endpoints
                .iter()
                .any(|endpoint| several(endpoint.tier))
            {
                self.out.line(
                    2,
                    &format!("affinity: {{client_ip: {time}}}  # line {}", affinity.line),
                );
            } else {
                self.out.comment(
                    2,
                    "affinity: with one endpoint in each tier there is nothing to choose",
                );
            }
        }
        if matches!(
            service.check.kind.value,
            Kind::Redis(_) | Kind::Postgres(_) | Kind::Other("MySQL")
        ) {
            self.out
                .comment(2, "A silent connection is dear to this kind of server.");
            self.out.line(2, "sentinel: off");
        }
        match &service.observe {
            Some(Sourced {
                value: Observe::MarkDown(limit),
                line,
            }) => {
                self.out
                    .line(2, &format!("observe: mark-down  # line {line}"));
                self.out.line(2, &format!("error_limit: {limit}"));
            }
            Some(Sourced { line, .. }) => {
                self.out
                    .line(2, &format!("observe: trigger  # line {line}"));
            }
            None => {}
        }
        if let Some(line) = service.direct_return {
            self.out.line(2, &format!("forward: dsr  # line {line}"));
        }
        match service.manual {
            Some(line) => self.out.line(2, &format!("failback: {{mode: manual}}  # line {line}")),
            None => self.out.line(
                2,
                "failback: {mode: auto, hold: 0s}  # at once, as before, but for one that comes and goes; hold: 5s waits for a steady master",
            ),
        }
        match service.cut_backup {
            Some(line) => self.out.line(2, &format!("drain: 0s  # line {line}")),
            None => self.out.line(
                2,
                "drain: unlimited  # connections stay on the backup until they end",
            ),
        }
        self.out.line(
            2,
            "on_marked_down: reset  # clients are told at once; keep: they stay",
        );
        self.out
            .line(2, "all_down: refuse  # keep: the last choice stays");
    }
}

/// What was found to expect of an answer beside its status.
#[derive(Default)]
struct Found {
    body: Option<String>,
    headers: Vec<String>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.body.is_none() && self.headers.is_empty()
    }

    fn write(&self, out: &mut Text, depth: usize) {
        if !self.headers.is_empty() {
            out.line(depth, &format!("headers: [{}]", self.headers.join(", ")));
        }
        if let Some(body) = &self.body {
            out.line(depth, &format!("body: {body}"));
        }
    }
}

/// Bytes as a script takes them, in quotes.
fn escaped(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    quoted(&text.replace("\\'", "'").replace("\\\"", "\""))
}

fn status(range: &std::ops::RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

fn tls_fields(tls: &Sourced<Tls>) -> Vec<String> {
    let Tls {
        sni,
        insecure,
        ca,
        certificate,
    } = &tls.value;
    let mut fields = Vec::new();
    if let Some(sni) = sni {
        fields.push(format!("sni: {}", scalar(sni)));
    }
    if *insecure {
        fields.push("verify: off".to_owned());
    } else if let Some(ca) = ca {
        fields.push(format!("ca: {}", scalar(ca)));
    }
    if let Some(file) = certificate {
        fields.push(format!("certificate: {0}, key: {0}", scalar(file)));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_mean_text() {
        for (text, expected) in [
            ("abc", "abc"),
            ("web.example.com:80", "web.example.com:80"),
            ("/status", "/status"),
            ("10.0.0.1:80", "\"10.0.0.1:80\""),
            ("on", "\"on\""),
            ("a: b", "\"a: b\""),
            (
                "a\n\u{7f}\"\\\u{1f600}",
                "\"a\\n\\u007f\\\"\\\\\\U0001f600\"",
            ),
            ("", "\"\""),
        ] {
            assert_eq!(scalar(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_commented_service_is_nothing_but_comments() {
        let text = commented("  - name: a\n    # x\n    b: c\n");
        assert_eq!(text, "  # - name: a\n    # x\n  #   b: c\n");
    }
}
