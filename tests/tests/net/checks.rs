//! Kinds of check against real servers: nginx with TLS, client certificates, HTTP/2, PROXY
//! headers, and connections that it ends when it likes.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Agent, Lab, Server, Way, agent, privileged, topology::MASTER_V4, until, wait::patience};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

/// A CA, and what it signed, as files of the lab.
pub struct Pki {
    folder: PathBuf,
}

impl Pki {
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let folder = lab.file(name);
        fs::create_dir_all(&folder).context("a folder for certificates")?;
        let me = Self { folder };
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Else all are called alike, and OpenSSL takes each for its own issuer.
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        fs::write(me.file("ca.pem"), params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        for (name, of) in [("server", "sense.example.com"), ("client", "probe")] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new([of.to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, of);
            let certificate = params.signed_by(&key, &issuer)?;
            fs::write(me.file(&format!("{name}.pem")), certificate.pem())?;
            fs::write(me.file(&format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(me)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// What nginx serves beside the lab's own server, and writes down.
fn nginx(pki: &Pki, log: &Path) -> String {
    let (ca, certificate, key, log) = (
        pki.file("ca.pem").display().to_string(),
        pki.file("server.pem").display().to_string(),
        pki.file("server.key").display().to_string(),
        log.display(),
    );
    format!(
        "log_format seen '$server_port $server_protocol $connection $connection_requests \
         verify=$ssl_client_verify proxy=$proxy_protocol_addr';\n\
         ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_client_certificate {ca};\n\
         server {{ access_log {log} seen; listen 8443 ssl http2; ssl_verify_client on;\n\
           location = /status {{ add_header X-Role primary; return 200 'version'; }} }}\n\
         server {{ access_log {log} seen; listen 8444 ssl; location / {{ return 200 'version'; }} }}\n\
         server {{ access_log {log} seen; listen 8082 http2; location / {{ return 200 'version'; }} }}\n\
         server {{ access_log {log} seen; listen 8083 proxy_protocol; location / {{ return 200 'version'; }} }}\n\
         server {{ access_log {log} seen; listen 8084; keepalive_timeout 20ms; keepalive_requests 7;\n\
           location / {{ return 200 'version'; }} }}\n"
    )
}

/// A service of one endpoint, the master, with this check or these checks.
fn service(number: usize, key: &str, mut checks: Value) -> Value {
    let millis = |real| format!("{}ms", patience(Duration::from_millis(real)).as_millis());
    let timing = checks.as_object_mut().expect("an object");
    for (key, value) in [
        ("inter", json!(millis(20))),
        ("timeout", json!(millis(1000))),
    ] {
        timing.entry(key).or_insert(value);
    }
    json!({
        "name": format!("s{number}"),
        "listeners": [format!("10.96.1.{}:80", number + 1)],
        "endpoints": [{"name": "master", "address": MASTER_V4.to_string()}],
        "sentinel": "off",
        key: checks,
    })
}

fn endpoint(status: &Value, service: usize) -> &Value {
    &status["services"][service]["endpoints"][0]
}

/// Waits until the endpoint of a service is up or down by this verdict.
fn wait(agent: &mut Agent, service: usize, state: &str, verdict: &str) -> Result<Value> {
    let what = format!("service {service} to be {state} by {verdict}");
    agent.wait(&what, |status| {
        let endpoint = endpoint(status, service);
        ensure!(endpoint["state"] == state && endpoint["verdict"] == verdict);
        Ok(endpoint.clone())
    })
}

/// Lines that nginx wrote of a port.
fn seen(log: &Path, port: u16) -> Result<Vec<String>> {
    let text = fs::read_to_string(log).context("nginx's log")?;
    let of = format!("{port} ");
    let lines = text.lines().filter(|line| line.starts_with(&of));
    Ok(lines.map(str::to_owned).collect())
}

/// The most requests on one connection.
fn most_requests(lines: &[String]) -> u32 {
    let requests = lines.iter().filter_map(|line| line.split(' ').nth(3));
    requests.filter_map(|n| n.parse().ok()).max().unwrap_or(0)
}

#[test]
fn nginx_is_checked_in_every_way() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let (pki, stranger) = (Pki::new(&lab, "pki")?, Pki::new(&lab, "stranger")?);
        let log = lab.file("seen.log");
        let _master = Server::nginx(&lab, &lab.master, nginx(&pki, &log))?;
        let host = "sense.example.com";
        let ca = pki.file("ca.pem");
        let mine = json!({
            "ca": ca,
            "certificate": pki.file("client.pem"),
            "key": pki.file("client.key"),
        });
        let expect = json!({
            "status": "200-299,404",
            "headers": [{"name": "X-Role", "equals": "primary"}],
            "body": {"regex": "^version$"},
            "not": {"body": {"contains": "error"}},
        });
        let two = json!({"port": 8443, "path": "/status", "host": host, "tls": mine, "version": 2,
                         "connection": "mixed", "fresh_every": 10, "expect": expect});
        let expect = json!({"body": {"contains": "version"}});
        let services = [
            // HTTP/2 over TLS with both certificates, reused and renewed.
            ("check", json!({"http": two})),
            // The same without a certificate of ours: nginx says so in an answer.
            (
                "check",
                json!({"http": {"port": 8443, "host": host, "tls": {"ca": ca}}}),
            ),
            // A CA that did not sign it, a name that it is not for, and neither asked for.
            (
                "check",
                json!({"http": {"port": 8444, "host": host,
                             "tls": {"ca": stranger.file("ca.pem")}}}),
            ),
            (
                "check",
                json!({"http": {"port": 8444, "host": "other.example.com",
                             "tls": {"ca": ca}}}),
            ),
            (
                "check",
                json!({"http": {"port": 8444, "host": "other.example.com",
                             "tls": {"verify": false}, "expect": expect}}),
            ),
            // By prior knowledge, and behind both versions of the PROXY header.
            (
                "check",
                json!({"http": {"port": 8082, "version": 2, "expect": expect}}),
            ),
            (
                "checks",
                json!({"all": [
                    {"http": {"port": 8083, "send_proxy": "v1", "expect": expect}},
                    {"http": {"port": 8083, "send_proxy": "v2", "expect": expect}},
                    {"tcp": {}},
                    {"tcp": {"port": 8444, "tls": {"ca": ca, "sni": host}}},
                ]}),
            ),
            ("check", json!({"http": {"port": 8083}})),
            (
                "checks",
                json!({"any": [
                    {"tcp": {"port": 1}},
                    {"http": {"address": "10.2.0.2", "path": "/status", "expect": expect}},
                ]}),
            ),
        ];
        let mut config = agent::config(&lab);
        config["services"] = services
            .into_iter()
            .enumerate()
            .map(|(i, (key, check))| service(i, key, check))
            .collect();
        let mut agent = Agent::start(&lab, &config)?;
        for good in [0, 4, 5, 6, 8] {
            wait(&mut agent, good, "up", "ok")?;
        }
        let bad = wait(&mut agent, 1, "down", "bad-status")?;
        ensure!(
            bad["detail"].as_str().is_some_and(|d| d.starts_with("400")),
            "{bad}"
        );
        wait(&mut agent, 2, "down", "tls")?;
        wait(&mut agent, 3, "down", "tls")?;
        // Without the header nginx takes the request for one that is broken.
        wait(&mut agent, 7, "down", "protocol")
            .or_else(|_| wait(&mut agent, 7, "down", "reset"))?;

        until("enough requests", || {
            let lines = seen(&log, 8443)?;
            let good = |line: &&String| line.contains("HTTP/2.0") && line.contains("=SUCCESS");
            let good: Vec<_> = lines.iter().filter(good).cloned().collect();
            ensure!(good.len() >= 40, "{}", good.len());
            // Mixed, and every tenth check makes a connection.
            ensure!(most_requests(&good) == 10, "{}", most_requests(&good));
            Ok(())
        })?;
        let proxied = seen(&log, 8083)?;
        ensure!(
            proxied.iter().any(|line| line.ends_with("proxy=10.2.0.1")),
            "{proxied:?}"
        );
        let known = seen(&log, 8082)?;
        ensure!(
            known.iter().all(|line| line.contains("HTTP/2.0")),
            "{known:?}"
        );
        let status = agent.status()?;
        let durations = &endpoint(&status, 0)["durations"];
        ensure!(
            durations["p50_us"].as_u64() <= durations["max_us"].as_u64()
                && durations["checks"]
                    .as_u64()
                    .is_some_and(|checks| checks > 0),
            "{durations}"
        );
        Ok(())
    });
}

/// nginx closes idle connections after 20 ms, about when the next check begins, and all after
/// seven requests. Nobody else notices.
#[test]
fn connections_that_nginx_closes_are_no_failures() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let pki = Pki::new(&lab, "pki")?;
        let log = lab.file("seen.log");
        let _master = Server::nginx(&lab, &lab.master, nginx(&pki, &log))?;
        let mut config = agent::config(&lab);
        let services = ["5ms", "19ms", "20ms", "21ms", "30ms"];
        config["services"] = services
            .into_iter()
            .enumerate()
            .map(|(i, inter)| {
                let check = json!({
                    "http": {"port": 8084, "connection": "reuse",
                             "expect": {"body": {"contains": "version"}}},
                    "inter": inter,
                });
                service(i, "check", check)
            })
            .collect();
        let mut agent = Agent::start(&lab, &config)?;
        for (i, inter) in services.into_iter().enumerate() {
            wait(&mut agent, i, "up", "ok")?;
            agent.wait(&format!("checks every {inter}"), |status| {
                let endpoint = endpoint(status, i);
                ensure!(endpoint["checks"].as_u64() >= Some(100));
                Ok(())
            })?;
        }
        // What is in flight.
        thread::sleep(patience(Duration::from_millis(100)));
        let status = agent.status()?;
        for (i, inter) in services.into_iter().enumerate() {
            let endpoint = endpoint(&status, i);
            ensure!(endpoint["failures"] == 0, "every {inter}: {endpoint}");
        }
        let most = most_requests(&seen(&log, 8084)?);
        ensure!((2..=7).contains(&most), "{most} requests on a connection");
        Ok(())
    });
}
