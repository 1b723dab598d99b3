//! The configuration's JSON schema, for editors.
//!
//! The structure comes from `raw`, which reads the file, so that fields cannot differ. There
//! every scalar is text; what text is accepted is said here, a row of [`FIELDS`] each. A test
//! demands a row for every field and a field for every row. The schema is a help while
//! writing: it takes whatever the parser takes, and refuses what a single field can show to
//! be wrong; `check-config` judges the whole.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};

use super::raw;

/// The schema; draft 7, which every editor knows.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    let mut schema = generator.into_root_schema_for::<raw::File>().to_value();
    describe("File", &mut schema);
    if let Some(Value::Object(definitions)) = schema.get_mut("definitions") {
        for (name, definition) in definitions {
            describe(name, definition);
        }
    }
    schema["title"] = json!("probe");
    schema
}

/// What a scalar may be.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Any text.
    Text,
    /// Text of a pattern.
    Like(&'static str),
    /// One of these.
    Word(&'static [&'static str]),
    /// A whole number in a range.
    Number(u64, u64),
    /// `10ms`, `1s`, `5m`, `2h`.
    Duration,
}

use Form::{Duration, Like, Number, Text, Word};

const NAME: Form = Like("^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$");
const LISTENER: Form = Like("^(\\[[0-9A-Fa-f:.]+\\]|[0-9.]+):[0-9]+(/[a-z]+)?$");
const PATH: Form = Like("^/");
const HEX: Form = Like("^[0-9A-Fa-f\\s]*$");
const ON_OFF: Form = Word(&["on", "off"]);
const BOOLEAN: Form = Word(&["true", "false"]);
const EITHER: Form = Word(&["on", "off", "true", "false"]);
const PORT: Form = Number(1, 65_535);
const COUNT: Form = Number(1, u32::MAX as u64);

/// A field, of one structure or of all, what it may be and what it is.
type Row = (&'static str, Form, &'static str);

#[rustfmt::skip]
const FIELDS: &[Row] = &[
    ("Interfaces.edge", Text, "The host's side of pods' links; patterns with * and ?"),
    ("Interfaces.uplink", Text, "The way to clients outside this node; patterns with * and ?"),
    ("Interfaces.node", Word(&["auto", "on", "off"]), "Processes of the node itself; auto: where cgroups of version 2 are mounted"),
    ("Datapath.bpffs", PATH, "Mount point of the BPF file system; /sys/fs/bpf"),
    ("Datapath.tc", Word(&["auto", "tcx", "clsact"]), "How programs are attached; auto: tcx where the kernel has it"),
    ("Datapath.xdp", Word(&["auto", "native", "generic", "off"]), "XDP on uplinks; auto: native, else generic, else TC"),
    ("Datapath.flows", Number(1024, 16_777_216), "Connections that the table of one address family holds; 131072"),
    ("Datapath.learn", Duration, "After the first start: how long connections from before are looked for; 2m"),
    ("Datapath.source", Text, "For forward: full-nat, addresses of this node that nothing else uses, one of a family"),
    ("Datapath.xdp_send", Word(&["auto", "on", "off"]), "Whether XDP sends packets on by itself"),
    ("Datapath.cgroup", PATH, "Root of the cgroups; /sys/fs/cgroup"),
    ("Datapath.log", Word(&["off", "error", "warn", "info", "debug"]), "Messages of the kernel side; warn"),
    ("Timeouts.opening", Duration, "Idle time of a connection whose SYN is not answered; 150s"),
    ("Timeouts.established", Duration, "Idle time of an open connection; 3h"),
    ("Timeouts.closing", Duration, "Idle time after one side has closed; 2m"),
    ("Timeouts.datagrams", Duration, "Idle time of UDP when only the client has spoken; 30s"),
    ("Timeouts.datagrams_answered", Duration, "Idle time of UDP that was answered; 3m"),
    ("Control.socket", PATH, "The local API's socket; /run/probe/probe.sock"),
    ("Control.group", Text, "A group that may use the socket too, by name or number"),
    ("Control.state", PATH, "A folder where orders of operators are kept; systemd's StateDirectory, else beside the socket"),
    ("Metrics.listen", Text, "ADDRESS:PORT of /metrics and /healthz, or off; 127.0.0.1:9377"),
    ("Page.listen", Text, "ADDRESS:PORT of the status page, 127.0.0.1:9378 for instance; off"),
    ("Resolve.every", Duration, "How often names are looked up again, from 100ms; 10s"),
    ("Resolve.hold_nx", Like("^(unlimited|[0-9]+(ms|s|m|h)|0+)$"), "How long an endpoint keeps its last address after DNS says that its name has none; unlimited"),
    ("Resolve.hold_failure", Like("^(unlimited|[0-9]+(ms|s|m|h)|0+)$"), "The same while no name server answers; unlimited"),
    ("Checking.realtime", Word(&["auto", "on", "off"]), "Real-time priority and locked memory for checks and decisions; auto: where permitted"),
    ("Checking.per_second", COUNT, "Checks a second of all endpoints; beyond that all intervals are stretched; no bound"),
    ("Checking.at_once", COUNT, "Checks at one time of all endpoints; no bound"),
    ("File.suspect_self", ON_OFF, "Holds selections while all hosts are silent together, or this node's link or gateway is gone; on"),
    ("Service.name", NAME, "The service's name"),
    ("Service.listeners", LISTENER, "ADDRESS:PORT that clients connect to, with /udp for datagrams"),
    ("Service.all_down", Word(&["keep", "refuse"]), "When no endpoint is up: keep the last choice, or refuse connections"),
    ("Service.drain", Like("^(unlimited|[0-9]+(ms|s|m|h)|0+)$"), "An older spelling of on_failback"),
    ("Service.forward", Word(&["nat", "full-nat", "dsr"]), "nat keeps the client's address, full-nat hides it, dsr: the endpoint answers its client itself"),
    ("Affinity.client_ip", Duration, "A client stays with its endpoint until it opened no connection for so long; 3h"),
    ("Service.sentinel", ON_OFF, "A silent connection to each endpoint that tells of a crash at once"),
    ("Service.observe", Word(&["off", "trigger", "mark-down"]), "What refused or unanswered clients do: nothing, checks at once, or failures"),
    ("Service.life_signs", ON_OFF, "on: a timeout does not count while the endpoint sends packets to its clients; off"),
    ("Service.error_limit", COUNT, "With observe: mark-down, so many in a row take the endpoint down; 10"),
    ("Service.single_writer", BOOLEAN, "true: a refused connection is never sent on to the next endpoint"),
    ("Service.mode", Word(&["active", "shadow"]), "shadow: decides and reports as ever, and touches no packet; active"),
    ("Endpoint.name", NAME, "The endpoint's name"),
    ("Endpoint.address", Like(":[0-9]+$"), "ADDRESS:PORT, [IPV6]:PORT or NAME:PORT; a list: one of each family"),
    ("Endpoint.tier", Number(0, LAST_TIER), "0 is the master, 1 and up are backups; if not said, the place in the list"),
    ("Endpoint.weight", Number(0, 256), "Its share of its tier's connections; 1"),
    ("slow_start", Duration, "After it was down an endpoint's share grows from a twentieth to all of it over so long"),
    ("AgentCheck.port", PORT, "Where the endpoint's agent listens, which says up, down, drain, maint, ready or NN%"),
    ("AgentCheck.address", Text, "Another address than the endpoint's"),
    ("AgentCheck.inter", Duration, "How often it is asked, from 100ms; 2s"),
    ("AgentCheck.send", Text, "Text to send first; knows \\r \\n \\t \\0 \\\\ and \\x00 to \\xff"),
    ("Endpoint.listeners", LISTENER, "ADDRESS:PORT that always reaches this endpoint"),
    ("Failback.mode", Word(&["auto", "manual"]), "manual waits for `probe failback SERVICE`"),
    ("Failback.hold", Duration, "How long the better endpoint must have been up; 5s"),
    ("Failback.max_hold", Duration, "The longest time that the hold grows to while the better endpoint comes and goes; 5m"),
    ("inter", Duration, "Between two checks, from 1ms; 2s"),
    ("fastinter", Duration, "The same while a check has spoken against the state; inter"),
    ("downinter", Duration, "The same while the endpoint is down; inter"),
    ("spread_checks", Number(0, 50), "By how many percent of the interval a check may begin earlier or later; 0"),
    ("in_flight", Number(1, 100), "Checks of one endpoint that are waited for at one time; 1 unless said"),
    ("timeout", Duration, "How long one check may take; 1s"),
    ("rise", COUNT, "So many good checks in a row bring an endpoint up; 2"),
    ("fall", COUNT, "So many failed checks in a row take it down; 3"),
    ("port", PORT, "Another port than the endpoint's"),
    ("address", Text, "Another address than the endpoint's"),
    ("send_proxy", Word(&["off", "v1", "v2"]), "A header of the PROXY protocol before the check"),
    ("connection", Word(&["fresh", "reuse", "mixed"]), "A connection for each check, one for all, or one for fresh_every"),
    ("fresh_every", Number(2, 100_000), "With connection: mixed, so many checks on a connection"),
    ("host", Text, "The host that is asked for, else the endpoint's address"),
    ("Http.method", Word(&["GET", "HEAD", "OPTIONS", "POST", "PUT"]), "GET"),
    ("Http.path", Text, "/"),
    ("Http.version", Word(&["auto", "1", "1.1", "2"]), "auto: 2 where the endpoint takes it in the TLS handshake"),
    ("Http.headers", Text, "Headers of the request"),
    ("Http.body", Text, "Body of the request, with POST and PUT"),
    ("Http.redirects", Number(0, 10), "How many redirects are followed, within the endpoint; 0"),
    ("Tls.sni", Text, "The name that is asked for and must be in the certificate"),
    ("Tls.ca", Text, "A file of the authorities that are believed instead of the system's"),
    ("Tls.certificate", Text, "A file with the client's certificate and its chain"),
    ("Tls.key", Text, "A file with the certificate's key"),
    ("Tls.verify", EITHER, "false: any certificate is believed"),
    ("status", Like("^[0-9\\s,-]+$"), "200-299,404"),
    ("Expect.body_replaces_status", EITHER, "on: the body is judged instead of the status, as in HAProxy"),
    ("Header.name", Text, "The header's name; alone: it must be there"),
    ("equals", Text, "The value"),
    ("contains", Text, "Somewhere in it"),
    ("regex", Text, "A regular expression that it matches"),
    ("Body.hex", HEX, "Bytes somewhere in it"),
    ("send", Text, "Text to send; knows \\r \\n \\t \\0 \\\\ and \\x00 to \\xff"),
    ("send_hex", HEX, "Bytes to send"),
    ("expect", Text, "Text that must be in the answer"),
    ("expect_hex", HEX, "Bytes that must be in the answer"),
    ("expect_regex", Text, "A regular expression that the answer must match"),
    ("not", BOOLEAN, "true: the expectation must not be met"),
    ("Step.min_recv", Number(0, 16_384), "So many bytes must be there before it is judged"),
    ("user", Text, "Who logs in"),
    ("password", Text, "The password"),
    ("password_file", Text, "A file with the password, read for each new connection"),
    ("Redis.role", Word(&["any", "master", "replica"]), "Which it must be"),
    ("Postgres.role", Word(&["any", "primary", "standby"]), "Which it must be"),
    ("Postgres.database", Text, "The database, else as the user"),
    ("Grpc.service", Text, "The service of grpc.health.v1, else the server as a whole"),
    ("Exec.command", Text, "The program and its arguments; exit status 0 is up"),
];

const LAST_TIER: u64 = probe_ebpf::abi::NO_TIER as u64 - 1;

impl Form {
    fn schema(self) -> Map<String, Value> {
        let schema = match self {
            Text => json!({"type": ["string", "number", "boolean"]}),
            Like(pattern) => json!({"type": ["string", "number"], "pattern": pattern}),
            Word(words) => {
                json!({"enum": words.iter().flat_map(|word| spellings(word)).collect::<Vec<_>>()})
            }
            Number(least, most) => {
                json!({"type": ["integer", "string"], "minimum": least, "maximum": most, "pattern": "^[+]?[0-9]+$"})
            }
            Duration => {
                json!({"type": ["string", "integer"], "minimum": 0, "maximum": 0, "pattern": DURATION})
            }
        };
        match schema {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// A bare number is no duration, but 0 is.
const DURATION: &str = "^([0-9]+(ms|s|m|h)|0+)$";

/// YAML takes some words for something else than text.
fn spellings(word: &str) -> Vec<Value> {
    let as_yaml = serde_json::from_str::<Value>(word);
    let other = as_yaml.ok().filter(|value| !value.is_string());
    std::iter::once(json!(word)).chain(other).collect()
}

fn row(structure: &str, field: &str) -> Option<&'static Row> {
    let named = |name: &str| FIELDS.iter().find(|(of, ..)| *of == name);
    named(&format!("{structure}.{field}")).or_else(|| named(field))
}

/// Says of a structure's fields what they may be.
fn describe(structure: &str, schema: &mut Value) {
    let Some(Value::Object(properties)) = schema.get_mut("properties") else {
        return;
    };
    for (field, property) in properties {
        if let Some((_, form, text)) = row(structure, field)
            && narrow(property, *form)
        {
            property["description"] = json!(text);
        }
    }
}

/// Is this what became of a `String`?
fn is_text(schema: &Map<String, Value>) -> bool {
    let bare = !schema.contains_key("enum") && !schema.contains_key("pattern");
    bare && match schema.get("type") {
        Some(Value::String(kind)) => kind == "string",
        Some(Value::Array(kinds)) => kinds.contains(&json!("string")),
        _ => false,
    }
}

/// Puts the form in place of every text in it; true if there is one.
fn narrow(schema: &mut Value, form: Form) -> bool {
    match schema {
        Value::Object(map) if is_text(map) => {
            let nullable = map["type"]
                .as_array()
                .is_some_and(|of| of.contains(&json!("null")));
            map.remove("type");
            map.extend(form.schema());
            if nullable {
                for list in ["type", "enum"] {
                    if let Some(Value::Array(list_of)) = map.get_mut(list) {
                        list_of.push(if list == "type" {
                            json!("null")
                        } else {
                            Value::Null
                        });
                    }
                }
            }
            true
        }
        Value::Object(map) => narrow_all(map.values_mut(), form),
        Value::Array(list) => narrow_all(list.iter_mut(), form),
        _ => false,
    }
}

fn narrow_all<'a>(schemas: impl Iterator<Item = &'a mut Value>, form: Form) -> bool {
    let mut found = false;
    for schema in schemas {
        found |= narrow(schema, form);
    }
    found
}

impl JsonSchema for raw::OneOrMany {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "OneOrMany".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
    }
}

impl JsonSchema for raw::Connections {
    fn schema_name() -> Cow<'static, str> {
        "Connections".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What becomes of connections: reset, keep, or {drain: TIME}",
            "anyOf": [
                {"enum": ["reset", "keep"]},
                {
                    "type": "object",
                    "properties": {"drain": Duration.schema()},
                    "required": ["drain"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
