use std::{collections::BTreeSet, path::Path};

use boon::{Compiler, SchemaIndex, Schemas};

use super::*;
use crate::config::parse;

/// The schema, ready to judge.
struct Judge(Schemas, SchemaIndex);

impl Judge {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("probe.json", schema()).unwrap();
        let index = compiler.compile("probe.json", &mut schemas).unwrap();
        Self(schemas, index)
    }

    fn judge(&self, yaml: &str) -> Result<(), String> {
        // As editors do, by YAML 1.2: `on` and `off` are words.
        let options = serde_saphyr::options! { strict_booleans: true };
        let value: Value = serde_saphyr::from_str_with_options(yaml, options)
            .map_err(|error| error.to_string())?;
        let judged = self.0.validate(&value, self.1);
        judged.map_err(|error| format!("{error:#}"))
    }
}

thread_local! {
    static JUDGE: Judge = Judge::new();
}

/// What the parser takes, the schema takes: asked by every test that parses.
pub fn takes(yaml: &str) {
    JUDGE.with(|judge| {
        if let Err(error) = judge.judge(yaml) {
            panic!("the parser takes what the schema refuses: {error}\n{yaml}");
        }
    });
}

#[test]
fn the_examples_are_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let example = std::fs::read_to_string(folder.join("probe.yaml")).unwrap();
    takes(&example);
    let manifest = std::fs::read_to_string(folder.join("daemonset.yaml")).unwrap();
    let (_, after) = manifest.split_once("probe.yaml: |\n").unwrap();
    takes(after.split_once("\n---").unwrap().0);
}

const GOOD: &str = "
interfaces: {edge: ['veth*']}
services:
- name: sense
  listeners: ['10.96.0.10:8079']
  endpoints: [{name: sen2, address: '10.0.0.2:8079', tier: 0}]
  check: {http: {port: 80, version: 1.1, tls: }, inter: 10ms, fall: 2}
  on_failback: {drain: 0}
  affinity: {client_ip: }
  single_writer: false
";

/// What one field shows to be wrong, both refuse.
#[test]
fn what_is_wrong_is_refused() {
    takes(GOOD);
    parse(GOOD).unwrap();
    for (from, to) in [
        ("fall: 2", "fal: 2"),
        ("fall: 2", "fall: 0"),
        ("fall: 2", "fall: two"),
        ("fall: 2", "fall: [2]"),
        ("inter: 10ms", "inter: 10"),
        ("inter: 10ms", "inter: 10us"),
        ("port: 80", "port: 65536"),
        ("version: 1.1", "version: 3"),
        ("name: sense", "name: 'a b'"),
        ("tier: 0", "tier: 255"),
        ("'10.0.0.2:8079'", "10.0.0.2"),
        ("'10.96.0.10:8079'", "'vip:8079'"),
        ("single_writer: false", "single_writer: off"),
        ("single_writer: false", "observe: markdown"),
        ("{drain: 0}", "{drain: 5}"),
        ("{drain: 0}", "{wait: 5s}"),
        ("{drain: 0}", "drop"),
        ("name: sen2, ", ""),
        ("http:", "htp:"),
    ] {
        assert_eq!(GOOD.matches(from).count(), 1, "{from}");
        let bad = GOOD.replace(from, to);
        assert!(parse(&bad).is_err(), "the parser takes {to}");
        let judged = JUDGE.with(|judge| judge.judge(&bad));
        assert!(judged.is_err(), "the schema takes {to}");
    }
}

/// A new field needs a row, and a row that nobody uses says something that is not so.
#[test]
fn every_field_is_described() {
    fn bare(schema: &Value) -> bool {
        match schema {
            Value::Object(map) => is_text(map) || map.values().any(bare),
            Value::Array(list) => list.iter().any(bare),
            _ => false,
        }
    }
    let generator = SchemaSettings::draft07().into_generator();
    let plain = generator.into_root_schema_for::<raw::File>().to_value();
    let definitions = plain["definitions"].as_object().unwrap();
    let mut used = BTreeSet::new();
    let whole = std::iter::once(("File", &plain));
    for (name, definition) in whole.chain(definitions.iter().map(|(n, d)| (n.as_str(), d))) {
        let Some(properties) = definition["properties"].as_object() else {
            continue;
        };
        assert_eq!(definition["additionalProperties"], false, "{name}");
        for (field, _) in properties.iter().filter(|(_, property)| bare(property)) {
            match row(name, field) {
                Some((of, ..)) => used.insert(*of),
                None => panic!("{name}.{field} has no row in FIELDS"),
            };
        }
    }
    for (of, ..) in FIELDS {
        assert!(used.contains(of), "nothing is described by the row {of}");
    }
    assert_eq!(used.len(), FIELDS.len());
}
