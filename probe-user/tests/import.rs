//! Configurations in the manner of real ones, imported: what comes out, what is said of each
//! line, and that the configuration's own parser takes it.
//!
//! `PROBE_BLESS=1 cargo test -p probe-user --test import` writes what is expected anew; read the
//! difference before it is committed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use probe_user::{
    config,
    import::{self, Imported, Options, Source},
};

/// How far an import is meant to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing is left that matters.
    Complete,
    /// An agent takes it, and something that matters is left.
    Usable,
    /// Something is to be filled in.
    Unfinished,
}

struct Case {
    name: &'static str,
    file: &'static str,
    backend: Option<&'static str>,
    vips: &'static [&'static str],
    end: End,
}

const CASES: &[Case] = &[
    Case {
        name: "reference",
        file: "reference.cfg",
        backend: Some("10_sense"),
        vips: &[
            "10.96.0.10:8079",
            "sen2=10.96.0.12:8079",
            "sen1=10.96.0.11:8079",
        ],
        end: End::Complete,
    },
    Case {
        name: "reference-without-vips",
        file: "reference.cfg",
        backend: None,
        vips: &[],
        end: End::Unfinished,
    },
    Case {
        name: "redis",
        file: "redis.cfg",
        backend: None,
        vips: &[],
        end: End::Complete,
    },
    Case {
        name: "postgres",
        file: "postgres.cfg",
        backend: None,
        vips: &["10.96.0.9"],
        end: End::Complete,
    },
    Case {
        name: "web",
        file: "web.cfg",
        backend: None,
        vips: &["10.96.0.9", "static=10.96.0.10:8080", "api=10.96.0.11"],
        end: End::Unfinished,
    },
    Case {
        name: "web-shop",
        file: "web.cfg",
        backend: Some("shop"),
        vips: &["10.96.0.9"],
        end: End::Usable,
    },
    Case {
        name: "chat",
        file: "chat.cfg",
        backend: None,
        vips: &["blue=10.96.1.1:3000", "chat/green=10.96.1.2:3000"],
        end: End::Complete,
    },
    Case {
        name: "many",
        file: "many.cfg",
        backend: None,
        vips: &["10.96.0.9", "wiki=10.96.0.21:80", "billing=10.96.0.22:80"],
        end: End::Usable,
    },
    Case {
        name: "tls",
        file: "tls.cfg",
        backend: None,
        vips: &["vault=198.51.100.8:443"],
        end: End::Complete,
    },
    Case {
        name: "web-keepalived",
        file: "web-keepalived.conf",
        backend: None,
        vips: &[],
        end: End::Complete,
    },
    Case {
        name: "dns-keepalived",
        file: "dns-keepalived.conf",
        backend: None,
        vips: &[],
        end: End::Usable,
    },
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import")
}

/// Where the samples say that their authorities are.
const CA: &str = "/etc/haproxy/ca";

/// A sample, with its authorities where they are.
fn sample(file: &str) -> String {
    let text = fs::read_to_string(folder().join(file)).expect("a sample");
    text.replace(CA, &folder().display().to_string())
}

impl Case {
    fn source(&self) -> Source {
        if self.file.contains("keepalived") {
            Source::Keepalived
        } else {
            Source::Haproxy
        }
    }

    fn import(&self) -> Imported {
        let options = Options {
            backend: self.backend.map(str::to_owned),
            vips: self
                .vips
                .iter()
                .map(|vip| vip.parse().expect("a VIP"))
                .collect(),
        };
        let environment = |name: &str| (name == "REDIS_PASSWORD").then(|| "hush".to_owned());
        import::import(
            self.source(),
            self.file,
            &sample(self.file),
            &options,
            &environment,
        )
        .unwrap_or_else(|problem| panic!("{}: {problem}", self.name))
    }
}

/// The numbers of the lines that say something.
fn lines_that_matter(source: Source, text: &str) -> BTreeSet<usize> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| {
            let line = line.trim();
            let nothing = match source {
                Source::Haproxy => line.starts_with('#'),
                Source::Keepalived => line.starts_with(['#', '!']) || line == "}",
            };
            !(line.is_empty() || nothing)
        })
        .map(|(i, _)| i + 1)
        .collect()
}

#[test]
fn each_sample_becomes_what_is_expected() {
    let bless = std::env::var_os("PROBE_BLESS").is_some();
    for case in CASES {
        let Imported { yaml, report } = case.import();
        let here = folder().display().to_string();
        let found = [
            ("yaml", yaml.replace(&here, CA)),
            ("txt", report.human(case.file).replace(&here, CA)),
        ];
        for (kind, found) in found {
            let file = folder().join(format!("expected/{}.{kind}", case.name));
            if bless {
                fs::write(&file, &found).expect("a writable folder");
            }
            let expected = fs::read_to_string(&file).unwrap_or_default();
            assert_eq!(
                found,
                expected,
                "{} is not what was imported; if it is meant so: PROBE_BLESS=1",
                file.display()
            );
        }
    }
}

#[test]
fn an_agent_takes_what_is_said_to_be_usable() {
    for case in CASES {
        let Imported { yaml, report } = case.import();
        let end = match (config::parse(&yaml), report.complete()) {
            (Ok(_), true) => End::Complete,
            (Ok(_), false) => End::Usable,
            (Err(fault), _) => {
                // The place that is to be filled in, and nothing else.
                let value = fault.value.clone().unwrap_or_default();
                let places = ["<VIP>:", "<NODE>:", "<ADDRESS>:"];
                assert!(
                    places.iter().any(|place| value.starts_with(place)),
                    "{}: {fault}",
                    case.name
                );
                assert_eq!(report.fault(), Some(fault.to_string().as_str()));
                End::Unfinished
            }
        };
        assert_eq!(end, case.end, "{}", case.name);
    }
}

#[test]
fn every_line_that_matters_is_reported_once() {
    for case in CASES {
        let text = sample(case.file);
        let report = case.import().report;
        let reported: Vec<_> = report.entries().map(|entry| entry.line).collect();
        let expected: Vec<_> = lines_that_matter(case.source(), &text)
            .into_iter()
            .collect();
        assert_eq!(reported, expected, "{}", case.name);
        for entry in report.entries() {
            assert!(!entry.notes.is_empty(), "{}: {entry:?}", case.name);
            let line = text.lines().nth(entry.line - 1).unwrap_or_default();
            assert_eq!(line.trim(), entry.text, "{}", case.name);
        }
    }
}

/// What the guide shows is what comes out.
#[test]
fn the_guide_is_true() {
    let guide = folder().join("../../../deploy/MIGRATION.md");
    let guide = fs::read_to_string(guide).expect("the guide");
    let file = |name: &str| fs::read_to_string(folder().join(name)).expect("a file");
    for part in [
        "reference.cfg",
        "expected/reference.txt",
        "expected/reference.yaml",
    ] {
        assert!(guide.contains(&file(part)), "{part} is not in it");
    }
}

/// The samples themselves are right: HAProxy says so.
#[test]
fn haproxy_takes_the_samples() {
    if Command::new("haproxy").arg("-v").output().is_err() {
        eprintln!("skipped: haproxy is not installed");
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let pem = place.path().join("site.pem");
    let pair =
        rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()]).expect("a certificate");
    fs::write(&pem, pair.cert.pem() + &pair.signing_key.serialize_pem()).expect("a file");
    let page = place.path().join("503.http");
    fs::write(&page, "HTTP/1.0 503 No\r\n\r\n").expect("a file");
    let map = place.path().join("hosts.map");
    fs::write(&map, "").expect("a file");
    let files: BTreeSet<_> = CASES
        .iter()
        .filter(|case| case.source() == Source::Haproxy)
        .map(|case| case.file)
        .collect();
    assert!(files.len() >= 7);
    for file in files {
        let mut text = sample(file);
        for (from, to) in [
            ("/etc/haproxy/certs/site.pem", pem.display().to_string()),
            ("/etc/haproxy/errors/503.http", page.display().to_string()),
            ("/etc/haproxy/hosts.map", map.display().to_string()),
            // Names of the samples are in no DNS.
            ("react1.domain.com", "192.0.2.1".to_owned()),
            ("react2.domain.com", "192.0.2.2".to_owned()),
        ] {
            text = text.replace(from, &to);
        }
        let config = place.path().join(file);
        fs::write(&config, text).expect("a file");
        let output = Command::new("haproxy")
            .arg("-c")
            .arg("-f")
            .arg(&config)
            .env("REDIS_PASSWORD", "hush")
            .output()
            .expect("haproxy runs");
        // The reference has a backend and nothing else: no error, and nothing to start.
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() || said.contains("has no error"),
            "{file}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn probe(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_probe"))
        .arg("import")
        .args(args)
        .current_dir(folder())
        .output()
        .expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    (
        status.code().expect("no signal"),
        text(stdout),
        text(stderr),
    )
}

const VIPS: [&str; 6] = [
    "--vip",
    "10.96.0.10:8079",
    "--vip",
    "sen2=10.96.0.12:8079",
    "--vip",
    "sen1=10.96.0.11:8079",
];

#[test]
fn exit_codes_tell_whether_it_is_complete() {
    let with_vips = [&["haproxy", "reference.cfg"], &VIPS[..]].concat();
    let (code, out, err) = probe(&with_vips);
    assert_eq!(code, 0, "{err}");
    assert!(config::parse(&out).is_ok(), "{out}");
    assert!(err.starts_with("reference.cfg: "), "{err}");
    assert!(err.ends_with("was carried over\n"), "{err}");

    let (code, _, err) = probe(&["haproxy", "reference.cfg"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("--vip 10_sense=ADDRESS:8079"), "{err}");

    for args in [
        &["haproxy", "nothing.cfg"][..],
        &["haproxy", "ca.pem"],
        &["haproxy", "reference.cfg", "--backend", "x"],
        &["haproxy", "reference.cfg", "--vip", "x=10.96.0.1:1"],
        &["keepalived", "reference.cfg"],
    ] {
        let (code, out, err) = probe(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{args:?}: {err}");
    }
}

#[test]
fn a_file_is_written_once_and_the_report_goes_to_stdout() {
    let place = tempfile::tempdir().expect("a folder");
    let file = place.path().join("probe.yaml");
    let file = file.to_str().expect("paths of tests are UTF-8");
    let mut args = vec!["haproxy", "reference.cfg", "-o", file, "--format", "json"];
    args.extend(VIPS);
    let (code, out, err) = probe(&args);
    assert_eq!((code, err.as_str()), (0, ""));
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(report["complete"], true);
    let lines = report["lines"].as_array().expect("a list").len();
    let text = sample("reference.cfg");
    assert_eq!(lines, lines_that_matter(Source::Haproxy, &text).len());
    let counts = report["counts"].as_object().expect("an object");
    let sum: u64 = counts.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(sum, lines as u64);

    let written = fs::read_to_string(file).expect("it was written");
    assert!(config::parse(&written).is_ok(), "{written}");
    let (code, _, err) = probe(&args);
    assert_eq!(code, 1);
    assert!(err.contains("cannot be written: File exists"), "{err}");
    assert_eq!(fs::read_to_string(file).expect("it is there"), written);
}
