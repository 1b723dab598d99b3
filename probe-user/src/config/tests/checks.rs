//! What is checked, and how: settings of checks that cannot be, and what is kept from whom.

use super::*;

#[test]
fn a_check_is_of_one_kind_or_several_of_one_each() {
    for (check, message) in [
        (
            "  check: {inter: 1s}",
            "services[0].check: what is checked is not said; accepted: one of tcp, http, script, redis, \
             postgres, grpc, udp, exec",
        ),
        (
            "  check: {tcp: , http: }",
            "services[0].check: two kinds of check; accepted: one of tcp, http, script, redis, \
             postgres, grpc, udp, exec; for several see \
             `checks`",
        ),
        (
            "  check: {tcp: }\n  checks: {all: [{tcp: }]}",
            "services[0]: both `check` and `checks` are given; accepted: either `check` or `checks`",
        ),
        (
            "  checks: {inter: 1s}",
            "services[0].checks: nothing is checked; accepted: either `all` or `any`, with a list \
             of checks",
        ),
        (
            "  checks: {all: [{tcp: }], any: [{tcp: }]}",
            "services[0].checks: both `all` and `any` are given; accepted: either `all` or `any`, \
             with a list of checks",
        ),
        (
            "  checks: {any: []}",
            "services[0].checks.any: `0`: not so many checks; accepted: 1 to 16 checks",
        ),
        (
            "  checks: {all: [{tcp: , rise: 3}]}",
            "services[0].checks.all[0].rise: `3`: belongs to all checks of the endpoint, which are \
             made at the same time; accepted: `rise` beside `all` or `any`",
        ),
        (
            "  checks: {all: [{tcp: }, {tcp: {port: 70000}}]}",
            "services[0].checks.all[1].tcp.port: `70000`: not a number in range; accepted: a whole \
             number from 1 to 65535",
        ),
        (
            "  check: {tcp: {address: 0.0.0.0}}",
            "services[0].check.tcp.address: `0.0.0.0`: not an address that one can connect to; \
             accepted: an IP address, without a port",
        ),
        (
            "  check: {tcp: {send_proxy: v3}}",
            "services[0].check.tcp.send_proxy: `v3`: not known; accepted: off, v1, v2",
        ),
    ] {
        assert_eq!(with_check(check).unwrap_err(), message);
    }
    let config = with_check("  checks: {any: [{tcp: , timeout: 3s}, {http: }], timeout: 2s}");
    let config = config.unwrap();
    let check = config.services()[0].check();
    assert_eq!(check.combine(), Combine::Any);
    let timeouts = check.each().iter().map(|each| each.timeout().as_secs());
    assert!(timeouts.eq([3, 2]));
    assert_eq!(check.timeout().as_secs(), 3);
}

#[test]
fn http_checks_that_cannot_be_are_refused() {
    for (http, message) in [
        (
            "{expect: {body: {hex: 0}}}",
            ".expect.body.hex: `0`: not bytes in hexadecimal; accepted: pairs of hexadecimal \
             digits as 00ff or `00 ff`, at least one",
        ),
        (
            "{expect: {body: {hex: 00, contains: a}}}",
            ".expect.body: two things to look for are given; accepted: one of `contains: TEXT`, \
             `hex: BYTES` and `regex: EXPRESSION`",
        ),
        (
            "{expect: {status: 200, not: {status: 100-300}}}",
            ".expect.not.status: `100-300`: no status would be good; accepted: a set that leaves \
             some of `expect.status`",
        ),
        (
            "{expect: {body_replaces_status: on}}",
            ".expect.body_replaces_status: `on`: the body is to be judged instead of the status; \
             accepted: a `body` and no `status` beside it, or off",
        ),
        (
            "{expect: {headers: [{name: 'a b'}]}}",
            ".expect.headers[0].name: `a b`: not the name of a header; accepted: letters, digits \
             and - as in Content-Type",
        ),
        (
            "{expect: {headers: [{name: a, equals: b, regex: c}]}}",
            ".expect.headers[0]: two ways to match one value; accepted: at most one of `equals`, \
             `contains` and `regex`",
        ),
        (
            "{expect: {not: {headers: [{name: a, regex: '('}]}}}",
            ".expect.not.headers[0].regex: `(`: invalid regex: unclosed group; accepted: a regular \
             expression without look-around and back-references",
        ),
        (
            "{headers: {Host: a}}",
            ".headers.Host: `a`: is set by the check itself; accepted: another header; see `host`, \
             `connection` and `body`",
        ),
        (
            "{headers: {A: \"b\\r\\nC: d\"}}",
            ".headers.A: `b\r\nC: d`: not the value of a header; accepted: visible ASCII and \
             blanks",
        ),
        (
            "{body: a}",
            ".method: `GET`: such a request has no body, and `body` is given; accepted: POST or \
             PUT, or no `body`",
        ),
        (
            "{connection: reuse, fresh_every: 5}",
            ".fresh_every: `5`: only mixed connections are replaced now and then; accepted: no \
             `fresh_every`, or connection: mixed",
        ),
        (
            "{connection: keep}",
            ".connection: `keep`: not known; accepted: fresh, reuse, mixed",
        ),
        (
            "{redirects: 11}",
            ".redirects: `11`: not a number in range; accepted: a whole number from 0 to 10",
        ),
        (
            "{version: 3}",
            ".version: `3`: not known; accepted: auto, 1, 1.1, 2",
        ),
    ] {
        assert_eq!(about_http(http), message, "{http}");
    }
}

#[test]
fn files_of_tls_are_read_and_judged() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let about = |tls: &str| about_http(&format!("{{tls: {{{tls}}}}}"));
    let (ca, none, missing) = (at("ca.pem"), at("none.pem"), at("missing.pem"));
    let (client, key, other) = (at("client.pem"), at("client.key"), at("other.key"));
    assert_eq!(
        about(&format!("ca: '{missing}'")),
        format!(
            ".tls.ca: `{missing}`: cannot be read: No such file or directory (os error 2); \
             accepted: a file in PEM"
        )
    );
    assert_eq!(
        about(&format!("ca: '{none}'")),
        format!(".tls.ca: `{none}`: holds no certificate; accepted: certificates, PEM")
    );
    assert_eq!(
        about("ca: ca.pem"),
        ".tls.ca: `ca.pem`: not an absolute path; accepted: an absolute path as /etc/probe/ca.pem"
    );
    assert_eq!(
        about(&format!("ca: '{ca}', certificate: '{client}'")),
        ".tls: one of `certificate` and `key` without the other; accepted: both, or neither"
    );
    let wrong = about(&format!(
        "ca: '{ca}', certificate: '{client}', key: '{other}'"
    ));
    assert!(
        wrong.starts_with(&format!(".tls.key: `{other}`: "))
            && wrong.ends_with("; accepted: the private key of `certificate`"),
        "{wrong}"
    );
    assert_eq!(
        about(&format!("ca: '{ca}', verify: false")),
        format!(
            ".tls.ca: `{ca}`: with verify: false nothing is verified; accepted: no `ca`, or \
             verify: true"
        )
    );
    assert_eq!(
        about("verify: false, sni: 'a b'"),
        ".tls.sni: `a b`: not a name that a certificate could have; accepted: a DNS name or an IP \
         address"
    );
    let good = format!(
        "  check: {{http: {{tls: {{ca: '{ca}', certificate: '{client}', key: '{key}'}}}}}}"
    );
    let config = with_check(&good).unwrap();
    assert!(http(&config).reach().tls().is_some_and(Tls::verify));
    // The key is nobody's business.
    let shown = format!("{config:?}");
    assert!(
        shown.contains("Tls { sni: None, verify: true, .. }"),
        "{shown}"
    );
}

#[test]
fn other_kinds_that_cannot_be_are_refused() {
    for (check, message) in [
        (
            "script: {}",
            "script.steps: nothing is expected; accepted: a step with `expect`; for a connection \
             alone `tcp`",
        ),
        (
            "script: {steps: [{send: a}]}",
            "script.steps: nothing is expected; accepted: a step with `expect`; for a connection \
             alone `tcp`",
        ),
        (
            "script: {steps: [{expect: a}, {}]}",
            "script.steps[1]: a step that does nothing; accepted: one of `send`, `send_hex`, \
             `expect`, `expect_hex` and `expect_regex`",
        ),
        (
            "script: {steps: [{send: a, expect: b}]}",
            "script.steps[0]: a step does one thing; accepted: one of `send`, `send_hex`, \
             `expect`, `expect_hex` and `expect_regex`",
        ),
        (
            "script: {steps: [{send: a, min_recv: 3}, {expect: a}]}",
            "script.steps[0].min_recv: `3`: belongs to what is expected; accepted: a step that \
             sends nothing",
        ),
        (
            r"script: {steps: [{expect: 'a\q'}]}",
            r"script.steps[0].expect: `a\q`: not an escape; accepted: text with the escapes \r \n \t \0 \\ and \x00 to \xff, not empty",
        ),
        (
            "script: {steps: [{expect_regex: '('}]}",
            "script.steps[0].expect_regex: `(`: invalid regex: unclosed group; accepted: a \
             regular expression without look-around and back-references",
        ),
        (
            "script: {steps: [{expect_hex: 0g}]}",
            "script.steps[0].expect_hex: `0g`: not bytes in hexadecimal; accepted: pairs of \
             hexadecimal digits as 00ff or `00 ff`, at least one",
        ),
        (
            "script: {steps: [{expect: a, min_recv: 20000}]}",
            "script.steps[0].min_recv: `20000`: not a number in range; accepted: a whole number \
             from 0 to 16384",
        ),
        (
            "redis: {role: primary}",
            "redis.role: `primary`: not known; accepted: any, master, replica",
        ),
        (
            "redis: {user: probe}",
            "redis.user: `probe`: a user without a password; accepted: `password` or \
             `password_file` beside it",
        ),
        (
            "redis: {password: hunter2, password_file: /a}",
            "redis: two passwords are given; accepted: either `password` or `password_file`",
        ),
        (
            "redis: {password: ''}",
            "redis.password: empty, too long, or with a NUL; accepted: 1 to 4096 bytes without NUL",
        ),
        (
            "redis: {password_file: password}",
            "redis.password_file: `password`: not an absolute path; accepted: an absolute path as \
             /etc/probe/password",
        ),
        (
            "postgres: {role: primary}",
            "postgres.role: nobody logs in without a user; accepted: `user` beside it",
        ),
        (
            "postgres: {user: '', role: primary}",
            "postgres.user: ``: not a name of PostgreSQL's; accepted: 1 to 63 bytes",
        ),
        (
            "postgres: {user: a, role: master}",
            "postgres.role: `master`: not known; accepted: any, primary, standby",
        ),
        (
            "grpc: {host: 'a b'}",
            "grpc.host: `a b`: not an authority; accepted: a host name or address, with a port if \
             need be",
        ),
        (
            "udp: {expect: a}",
            "udp: nothing is sent; accepted: `send` or `send_hex`, which the endpoint answers",
        ),
        (
            "udp: {send: a, not: true}",
            "udp.not: `true`: of nothing; accepted: what is not to come beside it",
        ),
        (
            "exec: {}",
            "exec.command: no command is given; accepted: a list of the program's absolute path \
             and its arguments",
        ),
        (
            "exec: {command: [curl]}",
            "exec.command: `curl`: not an absolute path; accepted: a list of the program's \
             absolute path and its arguments",
        ),
    ] {
        let told = with_check(&format!("  check: {{{check}}}")).unwrap_err();
        assert_eq!(told, format!("services[0].check.{message}"), "{check}");
    }
}

#[test]
fn passwords_are_shown_nowhere() {
    for check in [
        "redis: {password: hunter2}",
        "postgres: {user: a, password: hunter2}",
        "exec: {command: [/bin/check, hunter2]}",
    ] {
        let config = with_check(&format!("  check: {{{check}}}")).unwrap();
        let check = config.services()[0].check();
        assert!(!check.to_string().contains("hunter2"), "{check}");
        if !check.to_string().contains("command") {
            assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
        }
    }
}

#[test]
fn a_sentinel_is_off_where_it_does_harm_unless_it_is_ordered() {
    for (check, sentinel) in [
        ("tcp: {}", true),
        ("redis: {}", true),
        ("postgres: {}", false),
        ("udp: {send: a}", false),
        ("exec: {command: [/bin/true]}", false),
    ] {
        let check = format!("  check: {{{check}}}\n");
        let config = with_check(&check).unwrap();
        assert_eq!(config.services()[0].sentinel(), sentinel, "{check}");
        let config = with_check(&format!("{check}  sentinel: on")).unwrap();
        assert!(config.services()[0].sentinel(), "{check}");
    }
    let both = with_check("  checks: {all: [{tcp: {}}, {exec: {command: [/bin/true]}}]}").unwrap();
    assert!(both.services()[0].sentinel());
}
