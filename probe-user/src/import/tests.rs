//! What must hold for any text.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// Words that files are made of, and that the parsers know.
const WORDS: &[&str] = &[
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "from",
    "a",
    "b",
    "server",
    "server-template",
    "default-server",
    "bind",
    "use-server",
    "use_backend",
    "default_backend",
    "if",
    "{",
    "}",
    "hdr(host)",
    "-i",
    "10.0.0.1:80",
    "10.0.0.2",
    "web.example:80",
    "127.0.0.1:1",
    "*:80",
    ":1-5",
    "[fd00::1]:80",
    "unix@/x",
    "check",
    "backup",
    "disabled",
    "port",
    "inter",
    "5s",
    "1",
    "0",
    "-1",
    "99999999999999999999",
    "weight",
    "rise",
    "fall",
    "ssl",
    "check-ssl",
    "verify",
    "none",
    "ca-file",
    "check-sni",
    "option",
    "httpchk",
    "tcp-check",
    "redis-check",
    "pgsql-check",
    "GET",
    "/x",
    "HTTP/1.1\\r\\nHost:\\ w",
    "http-check",
    "expect",
    "send",
    "connect",
    "!",
    "status",
    "200",
    "rstatus",
    "^2",
    "string",
    "x: y",
    "rstring",
    "(",
    "hdr",
    "name",
    "value",
    "meth",
    "uri",
    "body",
    "send-binary",
    "ff",
    "binary",
    "balance",
    "source",
    "first",
    "stick-table",
    "type",
    "ip",
    "expire",
    "stick",
    "on",
    "src",
    "dst",
    "timeout",
    "client",
    "8h",
    "mode",
    "http",
    "tcp",
    "observe",
    "layer4",
    "on-error",
    "mark-down",
    "error-limit",
    "agent-check",
    "slowstart",
    "cookie",
    "maxconn",
    "acl",
    "no",
    "setenv",
    ".if",
    ".elif",
    ".else",
    ".endif",
    "defined(X)",
    "\"$X\"",
    "\"${X-y}\"",
    "'",
    "\"",
    "\\",
    "\\x41",
    "\\xff",
    "#",
    "\t",
    "\u{7f}",
    "\u{2028}",
    "é",
    "virtual_server",
    "real_server",
    "10.0.0.1 80",
    "{\n",
    "}\n",
    "HTTP_GET",
    "SSL_GET",
    "TCP_CHECK",
    "MISC_CHECK",
    "url",
    "path",
    "status_code",
    "digest",
    "delay_loop",
    "lb_algo",
    "lb_kind",
    "DR",
    "persistence_timeout",
    "protocol",
    "UDP",
    "sorry_server",
    "retry",
    "connect_timeout",
    "connect_port",
    "connect_ip",
    "group",
    "virtual_server_group",
    "fwmark",
];

fn text() -> impl Strategy<Value = String> {
    let line = vec(select(WORDS), 0..8).prop_map(|words| words.join(" "));
    let lines = vec(line, 0..40).prop_map(|lines| lines.join("\n"));
    // A beginning that leads to a service more often than chance does.
    let begun = lines.prop_map(|lines| {
        format!("listen l\nbind 10.9.0.1:80\nserver s 10.9.0.2:80 check\n{lines}")
    });
    let wild = "\\PC{0,200}".prop_map(|text| text.replace(';', "\n"));
    let keepalived = vec(select(WORDS), 0..60).prop_map(|words| {
        let words = words.join("\n");
        format!("virtual_server 10.9.0.1 80 {{\nreal_server 10.9.0.2 80 {{\n}}\n{words}")
    });
    prop_oneof![begun, wild, keepalived]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No line of the file is in no section, or in two.
    #[test]
    fn the_parser_loses_no_line(text in text()) {
        let file = haproxy::sections::parse(&text, &|_| None);
        let mut lines = BTreeSet::new();
        let mut count = file.blank;
        let in_sections = file.sections.iter().flat_map(|s| [&s.head].into_iter().chain(&s.lines));
        for line in in_sections.chain(file.stray.iter().map(|(line, _)| line)) {
            prop_assert!(lines.insert(line.number), "{} is there twice", line.number);
            count += line.count;
        }
        prop_assert_eq!(count, text.lines().count());
    }

    /// Whatever comes in, what comes out is YAML of a configuration's shape, each line is
    /// reported once, and the report says whether an agent takes it.
    #[test]
    fn any_text_is_reported(text in text()) {
        for source in [Source::Haproxy, Source::Keepalived] {
            let options = Options::default();
            let Ok(Imported { yaml, report }) = import(source, "f", &text, &options, &|_| None) else {
                continue;
            };
            let shape = serde_saphyr::from_str::<serde_json::Value>(&yaml);
            prop_assert!(shape.is_ok(), "{:?}\n{}", shape, yaml);
            prop_assert_eq!(config::parse(&yaml).is_ok(), report.fault().is_none());
            let lines: BTreeSet<_> = report.entries().map(|entry| entry.line).collect();
            prop_assert_eq!(lines.len(), report.entries().count());
            for entry in report.entries() {
                prop_assert!(!entry.notes.is_empty());
                prop_assert!(entry.line <= text.lines().count());
            }
            if source == Source::Haproxy {
                let file = haproxy::sections::parse(&text, &|_| None);
                let words = file.sections.iter().map(|s| 1 + s.lines.len()).sum::<usize>();
                prop_assert_eq!(report.entries().count(), words + file.stray.len());
            }
            prop_assert!(report.json("f").is_ok());
            let shown = report.human("f");
            prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
