//! Options of `server`, `default-server` and `server-template` lines: how many words each
//! takes, and what becomes of it here.

use super::words::Line;
use crate::import::report::Note;

/// What becomes of an option.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The translation decides, with the whole service before it.
    Plan,
    /// It is done here too, or needs no doing.
    Carried(&'static str),
    /// It has a counterpart that differs.
    Changed(&'static str),
    /// It is not done here, and neither health nor the choice of a server depends on it.
    Left(&'static str),
    /// It is not done here, and it matters.
    Lost(&'static str),
}

use Fate::{Carried, Changed, Left, Lost, Plan};

const TLS_DATA: &str = "TLS between proxy and server: packets pass through as they are, so clients and \
                        server speak TLS with each other";
const POOL: &str = "a pool of the proxy's own connections: clients have theirs";
const QUEUE: &str = "packets do not queue: limit connections in the application";
const PROXY: &str = "nothing is put before a client's data; the client's own address arrives at the \
                     server, which must no longer demand the header";
const PROTOCOL: &str =
    "the protocol between proxy and server: clients speak to the server themselves";

/// Name, number of arguments, fate. With `no-` before it: the same, without arguments.
const OPTIONS: &[(&str, usize, Fate)] = &[
    ("addr", 1, Plan),
    ("agent-addr", 1, Plan),
    ("agent-check", 0, Plan),
    ("agent-inter", 1, Plan),
    ("agent-port", 1, Plan),
    ("agent-send", 1, Plan),
    ("allow-0rtt", 0, Left(TLS_DATA)),
    ("alpn", 1, Left(TLS_DATA)),
    ("backup", 0, Plan),
    ("ca-file", 1, Plan),
    ("cc", 1, Left("clients' congestion control is their own")),
    ("check", 0, Plan),
    (
        "check-alpn",
        1,
        Changed("HTTP/2 where the endpoint offers it, else HTTP/1.1"),
    ),
    ("check-proto", 1, Lost("checks speak HTTP/1.1")),
    ("check-send-proxy", 0, Plan),
    ("check-sni", 1, Plan),
    ("check-ssl", 0, Plan),
    (
        "check-via-socks4",
        0,
        Lost("checks go straight to the endpoint"),
    ),
    ("ciphers", 1, Left(TLS_DATA)),
    ("ciphersuites", 1, Left(TLS_DATA)),
    ("client-sigalgs", 1, Left(TLS_DATA)),
    ("cookie", 1, Plan),
    ("crl-file", 1, Left(TLS_DATA)),
    ("crt", 1, Plan),
    ("curves", 1, Left(TLS_DATA)),
    ("disabled", 0, Plan),
    ("downinter", 1, Plan),
    ("enabled", 0, Carried("every endpoint is")),
    ("error-limit", 1, Plan),
    ("fall", 1, Plan),
    ("fastinter", 1, Plan),
    ("force-sslv3", 0, Left(TLS_DATA)),
    ("force-tlsv10", 0, Left(TLS_DATA)),
    ("force-tlsv11", 0, Left(TLS_DATA)),
    ("force-tlsv12", 0, Left(TLS_DATA)),
    ("force-tlsv13", 0, Left(TLS_DATA)),
    ("guid", 1, Carried("names are unique here")),
    (
        "hash-key",
        1,
        Changed("endpoints are hashed by their names"),
    ),
    ("id", 1, Carried("endpoints go by their names")),
    (
        "init-addr",
        1,
        Changed(
            "as last,libc,none: the last address that was known, else what the name says, else it is down until its name resolves",
        ),
    ),
    ("inter", 1, Plan),
    ("log-bufsize", 1, Left("logs are no service")),
    ("log-proto", 1, Left("logs are no service")),
    ("max-reuse", 1, Left(POOL)),
    ("maxconn", 1, Left(QUEUE)),
    ("maxqueue", 1, Left(QUEUE)),
    ("minconn", 1, Left(QUEUE)),
    (
        "namespace",
        1,
        Lost("the agent checks in its own network namespace"),
    ),
    (
        "non-stick",
        0,
        Changed("affinity holds for all endpoints of a service"),
    ),
    ("npn", 1, Left(TLS_DATA)),
    ("observe", 1, Plan),
    ("on-error", 1, Plan),
    ("on-marked-down", 1, Plan),
    ("on-marked-up", 1, Plan),
    ("pool-conn-name", 1, Left(POOL)),
    ("pool-low-conn", 1, Left(POOL)),
    ("pool-max-conn", 1, Left(POOL)),
    ("pool-purge-delay", 1, Left(POOL)),
    ("port", 1, Plan),
    ("proto", 1, Left(PROTOCOL)),
    ("proxy-v2-options", 1, Left("see send-proxy-v2")),
    (
        "redir",
        1,
        Left("a redirect: a layer-7 proxy, or the application"),
    ),
    (
        "resolve-net",
        1,
        Changed("a name keeps its present address while it is among the answers"),
    ),
    (
        "resolve-opts",
        1,
        Changed("the node's own resolver configuration decides"),
    ),
    (
        "resolve-prefer",
        1,
        Changed("a name brings both families; each listener uses its own"),
    ),
    (
        "resolvers",
        1,
        Changed(
            "the node's own resolver configuration decides; how often: resolve.every; hold: resolve.hold_nx, hold_failure",
        ),
    ),
    ("rise", 1, Plan),
    ("send-proxy", 0, Lost(PROXY)),
    ("send-proxy-v2", 0, Lost(PROXY)),
    ("send-proxy-v2-ssl", 0, Lost(PROXY)),
    ("send-proxy-v2-ssl-cn", 0, Lost(PROXY)),
    ("set-proxy-v2-tlv-fmt", 1, Left("see send-proxy-v2")),
    ("shard", 1, Left("peers are HAProxy's")),
    ("sigalgs", 1, Left(TLS_DATA)),
    ("slowstart", 1, Plan),
    ("sni", 1, Plan),
    ("socks4", 1, Lost("packets go straight to the endpoint")),
    (
        "source",
        1,
        Changed("the client's address is kept; forward: full-nat hides it"),
    ),
    ("interface", 1, Left("see source")),
    ("ssl", 0, Plan),
    ("ssl-max-ver", 1, Left(TLS_DATA)),
    ("ssl-min-ver", 1, Left(TLS_DATA)),
    ("ssl-reuse", 0, Left(TLS_DATA)),
    (
        "stick",
        0,
        Carried("affinity holds for all endpoints of a service"),
    ),
    ("strict-maxconn", 0, Left(QUEUE)),
    (
        "tcp-md5sig",
        1,
        Lost("clients' segments are not signed for them"),
    ),
    ("tcp-ut", 1, Left("clients' connections are their own")),
    ("tfo", 0, Left("clients' connections are their own")),
    ("tls-tickets", 0, Left(TLS_DATA)),
    (
        "track",
        1,
        Lost("the health of a server elsewhere: each service makes its own checks here"),
    ),
    ("usesrc", 1, Carried("the client's address is kept anyway")),
    ("verify", 1, Plan),
    (
        "verifyhost",
        1,
        Changed("the name in the certificate must be check-sni's"),
    ),
    ("weight", 1, Plan),
    ("ws", 1, Left(PROTOCOL)),
];

/// An option as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOption {
    /// Its name, without `no-`.
    pub name: String,
    /// `no-` stood before it.
    pub no: bool,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its line.
    pub line: usize,
}

impl ServerOption {
    /// As written.
    pub fn text(&self) -> String {
        let no = if self.no { "no-" } else { "" };
        let mut text = format!("{no}{}", self.name);
        for argument in &self.arguments {
            text.push(' ');
            text += argument;
        }
        text
    }

    /// Its first argument.
    pub fn argument(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }
}

/// Reads the options of a line from a word on, and says at once what needs no plan.
pub fn options(line: &Line, from: usize) -> (Vec<ServerOption>, Vec<Note>) {
    let (mut options, mut notes) = (Vec::new(), Vec::new());
    let mut words = line.from(from).iter();
    while let Some(word) = words.next() {
        let exact = OPTIONS.iter().find(|(name, ..)| name == word);
        let negated = || {
            let word = word.strip_prefix("no-")?;
            OPTIONS.iter().find(|(name, ..)| *name == word)
        };
        let (no, found) = match exact {
            Some(found) => (false, Some(found)),
            None => (true, negated()),
        };
        let Some((name, count, fate)) = found else {
            notes.push(unknown(word));
            continue;
        };
        let count = if no { 0 } else { *count };
        // `usesrc` and `interface` behind `source ADDRESS` are options of their own here.
        let arguments: Vec<_> = words.by_ref().take(count).cloned().collect();
        let option = ServerOption {
            name: (*name).to_owned(),
            no,
            arguments,
            line: line.number,
        };
        let text = option.text();
        match (fate, no) {
            (Plan, _) => options.push(option),
            (_, true) => notes.push(Note::carried(text, "")),
            (Carried(why), _) => notes.push(Note::carried(text, *why)),
            (Changed(why), _) => notes.push(Note::changed(text, *why)),
            (Left(why), _) => notes.push(Note::left(text, *why)),
            (Lost(why), _) => notes.push(Note::lost(text, *why)),
        }
    }
    (options, notes)
}

fn unknown(word: &str) -> Note {
    match word {
        "no-verifyhost" => Note::left(word, TLS_DATA),
        // `no-sslv3`, `no-tlsv10`: without a positive form.
        word if word.starts_with("no-ssl") || word.starts_with("no-tls") => {
            Note::left(word, TLS_DATA)
        }
        word => Note::unknown(word, "not an option of servers that is known here"),
    }
}

/// A server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Its address as written.
    pub address: String,
    /// Its own options, behind those of `default-server`.
    pub options: Vec<ServerOption>,
    /// Its line.
    pub line: usize,
    /// Its line's text.
    pub text: String,
}

impl Server {
    /// The option that holds: the last one that was written, unless that is its `no-`.
    pub fn option(&self, name: &str) -> Option<&ServerOption> {
        self.options
            .iter()
            .rev()
            .find(|option| option.name == name)
            .filter(|option| !option.no)
    }

    /// Is the option on?
    pub fn has(&self, name: &str) -> bool {
        self.option(name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::{haproxy::words, report::Outcome};

    #[test]
    fn options_take_their_words() {
        let line = words::line(
            7,
            1,
            "server a 1.2.3.4:5 check port 8080 inter 2s rise 1 no-ssl maxconn 30 source 0.0.0.0 usesrc clientip bogus",
            &|_| None,
        );
        let (options, notes) = options(&line, 3);
        let options: Vec<_> = options.iter().map(ServerOption::text).collect();
        assert_eq!(
            options,
            ["check", "port 8080", "inter 2s", "rise 1", "no-ssl"]
        );
        let notes: Vec<_> = notes
            .iter()
            .map(|note| (note.what.as_str(), note.outcome))
            .collect();
        assert_eq!(
            notes,
            [
                ("maxconn 30", Outcome::Left),
                ("source 0.0.0.0", Outcome::Changed),
                ("usesrc clientip", Outcome::Carried),
                ("bogus", Outcome::Unknown),
            ]
        );
    }

    #[test]
    fn names_are_known_once() {
        let mut names: Vec<_> = OPTIONS.iter().map(|(name, ..)| *name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
