//! A good configuration to begin with, services with one check, and what is said of them.

use super::*;

pub(super) const GOOD: &str = r#"
interfaces:
  edge: ["veth*"]
services:
  - name: sense
    listeners: ["10.96.0.10:8079"]
    endpoints:
      - name: sen2
        address: 10.0.0.2:8079
        listeners: ["10.96.0.12:8079"]
      - name: sen1
        address: react1.domain.com:8079
    check:
      http: {path: /status, expect: {status: 200, body: {contains: version}}}
      inter: 10ms
      timeout: 100ms
      rise: 2
      fall: 3
    failback: {mode: auto, hold: 5s}
"#;

/// Parses, and the schema takes what the parser takes.
pub(super) fn parse(text: &str) -> Result<Config, Fault> {
    let config = crate::config::parse(text);
    if config.is_ok() {
        schema::tests::takes(text);
    }
    config
}

/// The message for `GOOD` with one piece of it replaced.
pub(super) fn message(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} must be there once");
    match parse(&GOOD.replace(from, to)) {
        Ok(_) => panic!("{from:?} -> {to:?} was accepted"),
        Err(fault) => fault.to_string(),
    }
}

/// The only check of the first service, which is by HTTP.
pub(super) fn http(config: &Config) -> &HttpCheck {
    match config.services()[0].check().each() {
        [each] => match each.kind() {
            Kind::Http(http) => http,
            other => panic!("by {other}"),
        },
        each => panic!("{} checks", each.len()),
    }
}

/// A service with this check, or these checks.
pub(super) fn with_check(check: &str) -> Result<Config, String> {
    let text = format!(
        "interfaces: {{edge: [a]}}\nservices:\n- name: a\n  listeners: ['10.0.0.1:80']\n  \
         endpoints: [{{name: b, address: '10.0.0.2:80'}}]\n{check}"
    );
    parse(&text).map_err(|fault| fault.to_string())
}

/// The message about a check by HTTP, without what it is about.
pub(super) fn about_http(http: &str) -> String {
    let message = with_check(&format!("  check: {{http: {http}}}")).unwrap_err();
    let rest = message.strip_prefix("services[0].check.http");
    rest.unwrap_or(&message).to_owned()
}

/// A CA, and a key with its certificate, as files.
pub(super) fn pki(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(["a".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    for (name, text) in [
        ("ca.pem", made.pem()),
        ("client.pem", made.pem()),
        ("client.key", key.serialize_pem()),
        (
            "other.key",
            rcgen::KeyPair::generate().unwrap().serialize_pem(),
        ),
        ("none.pem", "nothing\n".to_owned()),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}
