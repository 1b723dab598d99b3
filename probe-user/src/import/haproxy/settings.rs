//! What the lines of a proxy (`frontend`, `backend`, `listen`, and `defaults` before them)
//! say, collected. A line is read once, where it stands; what is inherited keeps its number.

use std::{collections::BTreeMap, time::Duration};

use super::{
    checks::{self, Asked, HttpRule, TcpRule},
    keywords,
    sections::{Kind, Section},
    server::{self, Server, ServerOption},
    words::Line,
};
use crate::import::{plan::Sourced, report::Note};

/// A proxy, with what it inherits.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `mode`.
    pub mode: Option<Sourced<String>>,
    /// `balance` and its arguments.
    pub balance: Option<Sourced<Vec<String>>>,
    /// What the checks speak.
    pub asked: Option<Sourced<Asked>>,
    /// `http-check`.
    pub http_rules: Vec<Sourced<HttpRule>>,
    /// `tcp-check`.
    pub tcp_rules: Vec<Sourced<TcpRule>>,
    /// `timeout` by name.
    pub timeouts: BTreeMap<String, Sourced<Duration>>,
    /// `option allbackups`.
    pub allbackups: Option<usize>,
    /// `default-server`.
    pub default_server: Vec<ServerOption>,
    /// `server`.
    pub servers: Vec<Server>,
    /// `server-template`: prefix, number, and the server that each is.
    pub templates: Vec<(String, Server)>,
    /// `bind`.
    pub binds: Vec<Bind>,
    /// `default_backend`.
    pub default_backend: Option<Sourced<String>>,
    /// `use_backend`: its name and condition.
    pub use_backends: Vec<Sourced<Vec<String>>>,
    /// `use-server`: its name and condition.
    pub use_servers: Vec<Sourced<Vec<String>>>,
    /// `acl`: its name and what it matches.
    pub acls: Vec<Vec<String>>,
    /// `stick-table`.
    pub table: Option<Sourced<Table>>,
    /// `stick on src`, and the like.
    pub stick_source: Vec<usize>,
    /// `stick on dst`: one entry for all.
    pub stick_destination: Vec<usize>,
    /// `disabled`, for the whole proxy.
    pub disabled: Option<usize>,
}

/// `bind`.
#[derive(Clone, Debug)]
pub struct Bind {
    /// Addresses, as written between commas.
    pub addresses: Vec<String>,
    /// TLS ends at the proxy.
    pub tls: bool,
    /// A PROXY header is expected.
    pub accepts_proxy: bool,
    /// The line.
    pub line: usize,
}

/// `stick-table`.
#[derive(Clone, Debug)]
pub struct Table {
    /// The type of its keys.
    pub kind: String,
    /// How long entries live.
    pub expire: Option<Duration>,
    /// How many there are.
    pub size: String,
    /// It only counts, for rules of layer 7.
    pub stores: bool,
}

/// `10`, `10ms`, `10s`; a bare number is milliseconds. Rounded up to them.
pub fn time(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "us" => Some(number.div_ceil(1000)),
        "" | "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    }?;
    Some(Duration::from_millis(ms))
}

/// Of `defaults` these do not add to what a proxy says itself.
impl Settings {
    /// What a proxy begins with that is made from these `defaults`.
    pub fn inherited(&self) -> Self {
        Self {
            servers: Vec::new(),
            templates: Vec::new(),
            binds: Vec::new(),
            use_backends: Vec::new(),
            use_servers: Vec::new(),
            ..self.clone()
        }
    }

    /// Reads the lines of a section; `say` hears of those that need no plan.
    pub fn read(&mut self, section: &Section, say: &mut dyn FnMut(usize, Note)) {
        let mut own_http = false;
        let mut own_tcp = false;
        for line in &section.lines {
            // Rules of a proxy's own replace those of its defaults.
            match line.word(0) {
                "http-check" if !own_http && checks::http_rule(line).is_ok() => {
                    self.http_rules.clear();
                    own_http = true;
                }
                "tcp-check" if !own_tcp && checks::tcp_rule(line).is_ok() => {
                    self.tcp_rules.clear();
                    own_tcp = true;
                }
                _ => {}
            }
            for problem in &line.problems {
                let outcome = if problem.ends_with("was taken") {
                    Note::changed("", problem)
                } else {
                    Note::unknown("", problem)
                };
                say(line.number, outcome);
            }
            for note in self.line(section, line) {
                say(line.number, note);
            }
        }
    }

    /// Reads a line; what it returns is said of it at once.
    fn line(&mut self, section: &Section, line: &Line) -> Vec<Note> {
        let at = line.number;
        let rest = || Sourced::new(line.from(1).to_vec(), at);
        match line.word(0) {
            "mode" => self.mode = Some(Sourced::new(line.word(1).to_owned(), at)),
            "balance" => self.balance = Some(rest()),
            "server" => return self.server(line, 3),
            "server-template" => return self.template(line),
            "default-server" => {
                let (options, notes) = server::options(line, 1);
                self.default_server.extend(options);
                return notes;
            }
            "bind" => return self.bind(line),
            "default_backend" => {
                self.default_backend = Some(Sourced::new(line.word(1).to_owned(), at));
            }
            "use_backend" => self.use_backends.push(rest()),
            "use-server" => self.use_servers.push(rest()),
            "acl" => {
                self.acls.push(line.from(1).to_vec());
                return keywords::fate(line).into_iter().collect();
            }
            "stick-table" => self.table = Some(Sourced::new(table(line), at)),
            "stick" => return self.stick(line),
            "timeout" | "clitimeout" | "contimeout" | "srvtimeout" => return self.timeout(line),
            "disabled" => self.disabled = Some(at),
            "enabled" => {
                self.disabled = None;
                return vec![Note::carried("", "")];
            }
            "option" => return self.option(line),
            "no" if line.word(1) == "option" => return self.no_option(line),
            "http-check" => {
                if let Some(note) = keywords::fate(line) {
                    return vec![note];
                }
                match checks::http_rule(line) {
                    Ok(rule) => self.http_rules.push(Sourced::new(rule, at)),
                    Err(note) => return vec![note],
                }
            }
            "tcp-check" => {
                if let Some(note) = keywords::fate(line) {
                    return vec![note];
                }
                match checks::tcp_rule(line) {
                    Ok(rule) => self.tcp_rules.push(Sourced::new(rule, at)),
                    Err(note) => return vec![note],
                }
            }
            _ => return vec![other(section, line)],
        }
        Vec::new()
    }

    fn server(&mut self, line: &Line, from: usize) -> Vec<Note> {
        let (server, notes) = self.read_server(line, from, 1, 2);
        self.servers.push(server);
        notes
    }

    /// `server-template PREFIX NUMBER|RANGE HOST[:PORT] ...`.
    fn template(&mut self, line: &Line) -> Vec<Note> {
        let (server, notes) = self.read_server(line, 4, 1, 3);
        self.templates.push((line.word(2).to_owned(), server));
        notes
    }

    fn read_server(
        &self,
        line: &Line,
        from: usize,
        name: usize,
        address: usize,
    ) -> (Server, Vec<Note>) {
        let (own, notes) = server::options(line, from);
        let server = Server {
            name: line.word(name).to_owned(),
            address: line.word(address).to_owned(),
            options: self.default_server.iter().cloned().chain(own).collect(),
            line: line.number,
            text: line.text.clone(),
        };
        (server, notes)
    }

    fn bind(&mut self, line: &Line) -> Vec<Note> {
        let words = line.from(2);
        let is = |word: &str| words.iter().any(|w| w == word);
        self.binds.push(Bind {
            addresses: line.word(1).split(',').map(str::to_owned).collect(),
            tls: is("ssl"),
            accepts_proxy: is("accept-proxy"),
            line: line.number,
        });
        Vec::new()
    }

    fn stick(&mut self, line: &Line) -> Vec<Note> {
        match (line.word(1), line.word(2)) {
            ("on" | "match" | "store-request", "src") => self.stick_source.push(line.number),
            ("on" | "match" | "store-request", "dst") => self.stick_destination.push(line.number),
            _ => return keywords::fate(line).into_iter().collect(),
        }
        Vec::new()
    }

    fn timeout(&mut self, line: &Line) -> Vec<Note> {
        let (name, value) = match line.word(0) {
            "timeout" => (line.word(1), line.word(2)),
            "clitimeout" => ("client", line.word(1)),
            "contimeout" => ("connect", line.word(1)),
            _ => ("server", line.word(1)),
        };
        let Some(value) = time(value) else {
            return vec![Note::unknown("", "not a time")];
        };
        let why = match name {
            "check" => "",
            "connect" => {
                "clients' own kernels say when they give up; it bounds the time of a check"
            }
            "queue" => return vec![Note::left("", "packets do not queue")],
            "client" | "server" | "tunnel" => "",
            "http-request" | "http-keep-alive" | "tarpit" => {
                return vec![Note::left(
                    "",
                    "requests are the application's, or a layer-7 proxy's",
                )];
            }
            "client-fin" | "server-fin" => {
                "how long a half-closed connection is remembered, for all services: \
                 datapath.timeouts.closing"
            }
            "client-hs" => return vec![Note::left("", "TLS is not ended here")],
            _ => return vec![Note::unknown("", "not a timeout that is known here")],
        };
        self.timeouts
            .insert(name.to_owned(), Sourced::new(value, line.number));
        if why.is_empty() {
            Vec::new()
        } else {
            vec![Note::changed("", why)]
        }
    }

    fn option(&mut self, line: &Line) -> Vec<Note> {
        if let Some(asked) = checks::asked(line) {
            self.asked = Some(Sourced::new(asked, line.number));
            return Vec::new();
        }
        if line.word(1) == "allbackups" {
            self.allbackups = Some(line.number);
            return Vec::new();
        }
        let unknown = || Note::unknown("", "not an option that is known here");
        vec![keywords::fate(line).unwrap_or_else(unknown)]
    }

    fn no_option(&mut self, line: &Line) -> Vec<Note> {
        match line.word(2) {
            "allbackups" => self.allbackups = None,
            "httpchk" | "tcp-check" | "redis-check" | "pgsql-check" => self.asked = None,
            _ => {}
        }
        vec![Note::carried("", "")]
    }
}

fn other(section: &Section, line: &Line) -> Note {
    let known = keywords::fate(line);
    known.unwrap_or_else(|| match section.kind {
        Kind::Frontend => Note::left("", "not known here; a frontend chooses no server by itself"),
        _ => Note::unknown("", "not a directive that is known here"),
    })
}

fn table(line: &Line) -> Table {
    let mut table = Table {
        kind: String::new(),
        expire: None,
        size: String::new(),
        stores: false,
    };
    let mut words = line.from(1).iter();
    while let Some(word) = words.next() {
        let mut argument = || words.next().cloned().unwrap_or_default();
        match word.as_str() {
            "type" => table.kind = argument(),
            "size" => table.size = argument(),
            "expire" => table.expire = time(&argument()),
            "store" => {
                argument();
                table.stores = true;
            }
            _ => {}
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::haproxy::sections;

    #[test]
    fn times_are_haproxys() {
        for (text, ms) in [
            ("40000", Some(40_000)),
            ("2s", Some(2000)),
            ("1500us", Some(2)),
            ("1d", Some(86_400_000)),
            ("1w", None),
            ("", None),
            ("99999999999999999999", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(time(text), ms.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn rules_of_ones_own_replace_inherited_ones() {
        let text = "defaults\n option httpchk\n http-check expect status 200\n timeout check 1s\n\
                    default-server inter 1s\nbackend b\n http-check expect string x\n\
                    server a 1.2.3.4:5 check no-check\n";
        let file = sections::parse(text, &|_| None);
        let mut notes = Vec::new();
        let mut say = |line, note| notes.push((line, note));
        let mut base = Settings::default();
        base.read(&file.sections[0], &mut say);
        let mut backend = base.inherited();
        backend.read(&file.sections[1], &mut say);
        assert_eq!(backend.http_rules.len(), 1);
        assert_eq!(backend.http_rules[0].line, 7);
        assert_eq!(backend.asked.map(|asked| asked.line), Some(2));
        let server = &backend.servers[0];
        assert_eq!(server.option("inter").map(|inter| inter.line), Some(5));
        assert!(!server.has("check"));
        assert_eq!(notes, []);
    }
}
