//! Checks of a proxy: `option httpchk` in its old and new syntax, `http-check`, `tcp-check`.

use std::ops::RangeInclusive;

use super::words::{self, Line};
use crate::import::{
    plan::{Bytes, Expect, HeaderValue, Http, Match, Sourced, Step},
    report::Note,
};

/// Which protocol a proxy's checks speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `option httpchk` and its request.
    Http(Request),
    /// `option tcp-check`.
    Script,
    /// `option redis-check`.
    Redis,
    /// `option pgsql-check`.
    Postgres(Option<String>),
    /// `option ssl-hello-chk`: a TLS handshake, of which the answer is enough.
    TlsHello,
    /// Another one.
    Other(&'static str),
}

/// A request, as far as it is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Option<String>,
    /// The target.
    pub path: Option<String>,
    /// The version, without what the old syntax puts behind it.
    pub version: Option<String>,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Option<String>,
}

/// A line `http-check` that is part of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpRule {
    /// `connect`.
    Connect(Connect),
    /// `send`.
    Send(Request),
    /// `expect`.
    Expect(Expect),
}

/// A line `tcp-check` that is part of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpRule {
    /// `connect`.
    Connect(Connect),
    /// The others.
    Step(Step),
}

/// `connect` in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// Another port.
    pub port: Option<u16>,
    /// Another address.
    pub address: Option<String>,
    /// Over TLS.
    pub tls: bool,
    /// With this name.
    pub sni: Option<String>,
    /// A PROXY header first.
    pub proxy_header: bool,
}

/// `option KIND-check ...`, if it is one.
pub fn asked(line: &Line) -> Option<Asked> {
    Some(match line.word(1) {
        "httpchk" => Asked::Http(httpchk(line.from(2))),
        "tcp-check" => Asked::Script,
        "redis-check" => Asked::Redis,
        "pgsql-check" => Asked::Postgres(user(line)),
        "ssl-hello-chk" => Asked::TlsHello,
        "mysql-check" => Asked::Other("MySQL"),
        "smtpchk" => Asked::Other("SMTP"),
        "ldap-check" => Asked::Other("LDAP"),
        "external-check" => Asked::Other("external program"),
        _ => return None,
    })
}

fn user(line: &Line) -> Option<String> {
    (line.word(2) == "user" && !line.word(3).is_empty()).then(|| line.word(3).to_owned())
}

/// `[METHOD] URI [VERSION]`; headers may hang behind the version, as before 2.2.
fn httpchk(words: &[String]) -> Request {
    let mut request = Request::default();
    match words {
        [] => {}
        [path] => request.path = Some(path.clone()),
        [method, path, rest @ ..] => {
            request.method = Some(method.clone());
            request.path = Some(path.clone());
            if let Some(version) = rest.first() {
                old_headers(version, &mut request);
            }
            if let Some(host) = rest.get(1) {
                request.headers.push(("Host".to_owned(), host.clone()));
            }
        }
    }
    request
}

/// `HTTP/1.1\r\nHost:\ www`: what follows the version's line is headers, and a body behind
/// an empty line.
fn old_headers(text: &str, request: &mut Request) {
    let text = text.replace("\r\n", "\n");
    let (head, body) = match text.split_once("\n\n") {
        Some((head, body)) => (head, Some(body)),
        None => (text.as_str(), None),
    };
    let mut lines = head.split('\n');
    request.version = lines.next().map(str::to_owned);
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        request
            .headers
            .push((name.trim().to_owned(), value.trim().to_owned()));
    }
    request.body = body.filter(|body| !body.is_empty()).map(str::to_owned);
}

/// `http-check ...`: a rule, or what is said about the line instead.
pub fn http_rule(line: &Line) -> Result<HttpRule, Note> {
    match line.word(1) {
        "connect" => connect(line.from(2)).map(HttpRule::Connect),
        "send" => send(line.from(2)).map(HttpRule::Send),
        "expect" => expect(line.from(2)).map(HttpRule::Expect),
        _ => Err(Note::unknown("", "not a rule of checks that is known here")),
    }
}

/// `tcp-check ...`: a rule, or what is said about the line instead.
pub fn tcp_rule(line: &Line) -> Result<TcpRule, Note> {
    let step = match line.word(1) {
        "connect" => return connect(line.from(2)).map(TcpRule::Connect),
        "send" => Step::Send(words::bytes(line.word(2))),
        "send-binary" => Step::Send(hex(line.word(2)).ok_or_else(not_hex)?),
        "send-lf" if !line.word(2).contains('%') => Step::Send(words::bytes(line.word(2))),
        "send-lf" | "send-binary-lf" => return Err(formatted()),
        "expect" => expect_bytes(line.from(2))?,
        _ => return Err(Note::unknown("", "not a rule of checks that is known here")),
    };
    Ok(TcpRule::Step(step))
}

fn formatted() -> Note {
    Note::lost("", "checks send and expect fixed bytes, not a log format")
}

fn not_hex() -> Note {
    Note::unknown("", "not an even number of hexadecimal digits")
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<_> = text.chars().map(|c| c.to_digit(16)).collect();
    if digits.len() % 2 == 1 {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| match pair {
            [Some(high), Some(low)] => u8::try_from(high * 16 + low).ok(),
            _ => None,
        })
        .collect()
}

fn connect(words: &[String]) -> Result<Connect, Note> {
    let mut connect = Connect::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut argument = || words.next().cloned().unwrap_or_default();
        match word.as_str() {
            "default" | "linger" => {}
            "port" => {
                let text = argument();
                let port = text.parse().ok().filter(|port| *port != 0);
                connect.port = Some(port.ok_or_else(|| {
                    Note::lost(
                        format!("port {text}"),
                        "a port that is worked out at each check",
                    )
                })?);
            }
            "addr" => connect.address = Some(argument()),
            "ssl" => connect.tls = true,
            "sni" => connect.sni = Some(argument()),
            "send-proxy" => connect.proxy_header = true,
            "comment" | "alpn" | "proto" => drop(argument()),
            word => return Err(Note::unknown(word, "not known here")),
        }
    }
    Ok(connect)
}

fn send(words: &[String]) -> Result<Request, Note> {
    let mut request = Request::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut argument = || words.next().cloned().unwrap_or_default();
        match word.as_str() {
            "meth" => request.method = Some(argument()),
            "uri" => request.path = Some(argument()),
            "ver" => request.version = Some(argument()),
            "body" => request.body = Some(argument()),
            "comment" => drop(argument()),
            "hdr" => {
                let name = argument();
                let value = argument();
                if value.contains('%') {
                    return Err(formatted());
                }
                request.headers.push((name, value));
            }
            "uri-lf" | "body-lf" => {
                let value = argument();
                if value.contains('%') {
                    return Err(formatted());
                }
                if word == "uri-lf" {
                    request.path = Some(value);
                } else {
                    request.body = Some(value);
                }
            }
            word => return Err(Note::unknown(word, "not known here")),
        }
    }
    Ok(request)
}

/// Options before the match: name and whether it changes what is found.
const BEFORE: &[&str] = &[
    "comment",
    "min-recv",
    "ok-status",
    "error-status",
    "tout-status",
    "on-success",
    "on-error",
    "status-code",
];

/// Skips what does not change the match; the rest begins with `!` or the kind of match.
fn skip_options(mut words: &[String]) -> (bool, &[String]) {
    let mut not = false;
    loop {
        match words {
            [option, _, rest @ ..] if BEFORE.contains(&option.as_str()) => words = rest,
            [bang, rest @ ..] if bang == "!" => {
                not = !not;
                words = rest;
            }
            _ => return (not, words),
        }
    }
}

fn expect(words: &[String]) -> Result<Expect, Note> {
    let (mut not, words) = skip_options(words);
    let Some((kind, rest)) = words.split_first() else {
        return Err(Note::unknown("", "nothing is expected"));
    };
    // `!status` is written too.
    let kind = match kind.strip_prefix('!') {
        Some(kind) => {
            not = !not;
            kind
        }
        None => kind,
    };
    let pattern = rest.first().cloned().unwrap_or_default();
    let what = match kind {
        "status" => Match::Status(
            statuses(&pattern).ok_or_else(|| Note::unknown("", "not a list of statuses"))?,
        ),
        "rstatus" => Match::Status(matched_statuses(&pattern)?),
        "string" => Match::Text(pattern),
        "rstring" => {
            compile(&pattern)?;
            Match::Regex(pattern)
        }
        "string-lf" if !pattern.contains('%') => Match::Text(pattern),
        "string-lf" => return Err(formatted()),
        "hdr" | "fhdr" => header(rest)?,
        kind => return Err(Note::unknown(kind, "not known here")),
    };
    let expect = Expect { not, what };
    Ok(match expect {
        Expect {
            not: true,
            what: Match::Status(ranges),
        } => Expect {
            not: false,
            what: Match::Status(others(&ranges)),
        },
        expect => expect,
    })
}

fn compile(pattern: &str) -> Result<regex::bytes::Regex, Note> {
    regex::bytes::Regex::new(pattern).map_err(|_| {
        Note::lost(
            "",
            "an expression with look-around, back-references or an error: not known here",
        )
    })
}

/// `200,201,300-310`.
fn statuses(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    text.split(',')
        .map(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
            let range: RangeInclusive<u16> = from..=to;
            (!range.is_empty() && from >= 100 && to <= 599).then_some(range)
        })
        .collect()
}

const ALL: RangeInclusive<u16> = 100..=599;

fn matched_statuses(pattern: &str) -> Result<Vec<RangeInclusive<u16>>, Note> {
    let regex = compile(pattern)?;
    Ok(ranges(|status| {
        regex.is_match(status.to_string().as_bytes())
    }))
}

fn others(without: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    ranges(|status| !without.iter().any(|range| range.contains(&status)))
}

/// Those that both lists hold.
pub fn in_both(a: &[RangeInclusive<u16>], b: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let holds =
        |list: &[RangeInclusive<u16>], status| list.iter().any(|range| range.contains(&status));
    ranges(|status| holds(a, status) && holds(b, status))
}

fn ranges(good: impl Fn(u16) -> bool) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for status in ALL.filter(|status| good(*status)) {
        match ranges.last_mut() {
            Some(last) if *last.end() + 1 == status => *last = *last.start()..=status,
            _ => ranges.push(status..=status),
        }
    }
    ranges
}

/// `name [-m METHOD] NAME [value [-m METHOD] VALUE]`.
fn header(words: &[String]) -> Result<Match, Note> {
    let unknown = || Note::lost("", "a way of matching headers that is not known here");
    let (name, rest) = match words {
        [key, name, rest @ ..] if key == "name" && name != "-m" => (name, rest),
        [key, m, method, name, rest @ ..] if key == "name" && m == "-m" && method == "str" => {
            (name, rest)
        }
        _ => return Err(unknown()),
    };
    let value = match rest {
        [] => None,
        [key, value] if key == "value" => Some(HeaderValue::Is(value.clone())),
        [key, m, method, value] if key == "value" && m == "-m" => Some(match method.as_str() {
            "str" => HeaderValue::Is(value.clone()),
            "sub" => HeaderValue::Contains(value.clone()),
            "beg" => HeaderValue::Regex(format!("^{}", regex::escape(value))),
            "end" => HeaderValue::Regex(format!("{}$", regex::escape(value))),
            "reg" => {
                compile(value)?;
                HeaderValue::Regex(value.clone())
            }
            _ => return Err(unknown()),
        }),
        _ => return Err(unknown()),
    };
    Ok(Match::Header {
        name: name.clone(),
        value,
    })
}

fn expect_bytes(words: &[String]) -> Result<Step, Note> {
    let (mut not, words) = skip_options(words);
    let Some((kind, rest)) = words.split_first() else {
        return Err(Note::unknown("", "nothing is expected"));
    };
    let kind = match kind.strip_prefix('!') {
        Some(kind) => {
            not = !not;
            kind
        }
        None => kind,
    };
    let pattern = rest.first().map_or("", String::as_str);
    let what = match kind {
        "string" => Bytes::Exact(words::bytes(pattern)),
        "binary" => Bytes::Exact(hex(pattern).ok_or_else(not_hex)?),
        "rstring" => {
            compile(pattern)?;
            Bytes::Regex(pattern.to_owned())
        }
        "rbinary" => {
            compile(pattern)?;
            Bytes::HexRegex(pattern.to_owned())
        }
        "string-lf" if !pattern.contains('%') => Bytes::Exact(words::bytes(pattern)),
        "string-lf" | "binary-lf" => return Err(formatted()),
        kind => return Err(Note::unknown(kind, "not known here")),
    };
    Ok(Step::Expect { not, what })
}

/// The request of `option httpchk` with what `http-check send` says instead.
pub fn request(
    option: &Sourced<Request>,
    send: Option<&Sourced<Request>>,
) -> (Http, Option<String>) {
    let base = &option.value;
    let more = send.map(|send| &send.value);
    let said = |of: fn(&Request) -> &Option<String>| {
        more.and_then(|more| of(more).clone())
            .or_else(|| of(base).clone())
    };
    let mut host = None;
    let mut headers = Vec::new();
    let of_option = base.headers.iter().map(|header| (header, option.line));
    let of_send = send
        .into_iter()
        .flat_map(|send| send.value.headers.iter().map(|header| (header, send.line)));
    for ((name, value), line) in of_option.chain(of_send) {
        if name.eq_ignore_ascii_case("host") {
            host = Some(value.clone());
        } else {
            headers.push(Sourced::new((name.clone(), value.clone()), line));
        }
    }
    let body = match (more.and_then(|more| more.body.clone()), send, &base.body) {
        (Some(body), Some(send), _) => Some(Sourced::new(body, send.line)),
        (_, _, Some(body)) => Some(Sourced::new(body.clone(), option.line)),
        _ => None,
    };
    let http = Http {
        method: said(|request| &request.method).unwrap_or_else(|| "OPTIONS".to_owned()),
        path: said(|request| &request.path).unwrap_or_else(|| "/".to_owned()),
        host,
        headers,
        body,
        expect: Vec::new(),
    };
    (http, said(|request| &request.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        words::line(1, 1, text, &|_| None)
    }

    fn expected(text: &str) -> Expect {
        match http_rule(&line(text)) {
            Ok(HttpRule::Expect(expect)) => expect,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn statuses_become_ranges() {
        for (text, ranges) in [
            (
                "status 200,201,300-310",
                vec![200..=200, 201..=201, 300..=310],
            ),
            ("rstatus ^[23]", vec![200..=399]),
            ("rstatus (2|3)[0-9][0-9]", vec![200..=399]),
            ("! rstatus ^5", vec![100..=499]),
            ("! status 404", vec![100..=403, 405..=599]),
            ("!status 404", vec![100..=403, 405..=599]),
            ("comment x min-recv 5 status 200", vec![200..=200]),
        ] {
            let expect = expected(&format!("http-check expect {text}"));
            assert_eq!(
                expect,
                Expect {
                    not: false,
                    what: Match::Status(ranges)
                },
                "{text}"
            );
        }
    }

    #[test]
    fn bodies_and_headers_are_read() {
        assert_eq!(
            expected(r"http-check expect ! string SQL\ Error"),
            Expect {
                not: true,
                what: Match::Text("SQL Error".to_owned())
            }
        );
        assert_eq!(
            expected(r#"http-check expect hdr name "set-cookie" value -m beg "sess=""#).what,
            Match::Header {
                name: "set-cookie".to_owned(),
                value: Some(HeaderValue::Regex("^sess=".to_owned()))
            }
        );
        assert!(http_rule(&line("http-check expect rstring (?=x)")).is_err());
        assert!(http_rule(&line("http-check expect")).is_err());
    }

    #[test]
    fn the_old_request_has_its_headers_behind_the_version() {
        let option = line(r"option httpchk GET /x HTTP/1.1\r\nHost:\ www\r\nX-A:\ b");
        let Some(Asked::Http(request_of)) = asked(&option) else {
            panic!("httpchk");
        };
        let (http, version) = request(&Sourced::new(request_of, 1), None);
        assert_eq!(version.as_deref(), Some("HTTP/1.1"));
        assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/x"));
        assert_eq!(http.host.as_deref(), Some("www"));
        assert_eq!(
            http.headers,
            [Sourced::new(("X-A".to_owned(), "b".to_owned()), 1)]
        );
    }

    #[test]
    fn the_new_request_replaces_what_it_says() {
        let Some(Asked::Http(old)) = asked(&line("option httpchk GET /old")) else {
            panic!("httpchk");
        };
        let Ok(HttpRule::Send(new)) = http_rule(&line(
            "http-check send uri /new ver HTTP/1.1 hdr Host www body x",
        )) else {
            panic!("send");
        };
        let (http, _) = request(&Sourced::new(old, 1), Some(&Sourced::new(new, 2)));
        assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/new"));
        assert_eq!(http.body, Some(Sourced::new("x".to_owned(), 2)));
    }

    #[test]
    fn scripts_are_bytes() {
        let step = |text: &str| tcp_rule(&line(text));
        assert_eq!(
            step(r"tcp-check send PING\r\n"),
            Ok(TcpRule::Step(Step::Send(b"PING\r\n".to_vec())))
        );
        assert_eq!(
            step("tcp-check send-binary 50ff"),
            Ok(TcpRule::Step(Step::Send(vec![0x50, 0xff])))
        );
        assert_eq!(
            step("tcp-check expect string +PONG"),
            Ok(TcpRule::Step(Step::Expect {
                not: false,
                what: Bytes::Exact(b"+PONG".to_vec())
            }))
        );
        assert_eq!(
            step("tcp-check connect port 443 ssl sni www"),
            Ok(TcpRule::Connect(Connect {
                port: Some(443),
                tls: true,
                sni: Some("www".to_owned()),
                ..Connect::default()
            }))
        );
        for bad in [
            "tcp-check send-binary 5",
            "tcp-check expect",
            "tcp-check jump",
        ] {
            assert!(step(bad).is_err(), "{bad}");
        }
    }
}
