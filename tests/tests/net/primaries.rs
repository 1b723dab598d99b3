//! Databases whose checks ask who is master, and other kinds of check with real servers.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Agent, Lab, Namespace, Process, Server, Way,
    agent::{self, find_endpoint},
    database::{Postgres, Redis},
    privileged,
    topology::{BACKUP_V4, MASTER_V4, PORT, VIP_V4},
    until,
    wait::patience,
};
use serde_json::{Value, json};

use super::checks::Pki;

/// The lab's service, checked so.
pub fn config(lab: &Lab, checks: Value) -> Value {
    let mut config = agent::config(lab);
    let service = &mut config["services"][0];
    // Of IPv4 alone: that is where the databases let us in from.
    service["listeners"] = json!([VIP_V4.to_string()]);
    service["endpoints"] = json!([
        {"name": "master", "address": MASTER_V4.to_string()},
        {"name": "backup", "address": BACKUP_V4.to_string()},
    ]);
    let timing = service["check"].take();
    service.as_object_mut().expect("an object").remove("check");
    let mut checks = checks;
    let (key, all) = match checks.get("all") {
        Some(_) => ("checks", &mut checks),
        None => ("check", &mut checks),
    };
    for field in ["inter", "timeout", "rise", "fall"] {
        all[field] = timing[field].clone();
    }
    // A process, a hash of 4,096 rounds: more than a HEAD takes.
    all["timeout"] = json!("10s");
    service[key] = all.take();
    config
}

/// Waits until the master was checked some times, always with success.
pub fn wait_some_good(agent: &mut Agent) -> Result<()> {
    agent.wait("some checks", |status| {
        let seen = find_endpoint(status, "master")?;
        ensure!(
            seen["failures"] == 0 && seen["checks"].as_u64() > Some(20),
            "{seen}"
        );
        Ok(())
    })?;
    Ok(())
}

/// Waits until an endpoint's verdict is of this kind and says this.
pub fn wait_told(agent: &mut Agent, endpoint: &str, kind: &str, detail: &str) -> Result<()> {
    let what = format!("{endpoint}: {kind}, {detail}");
    agent.wait(&what, |status| {
        let seen = find_endpoint(status, endpoint)?;
        let told = seen["detail"].as_str().unwrap_or_default();
        ensure!(seen["verdict"] == kind && told.contains(detail), "{seen}");
        Ok(())
    })
}

fn redis(client: &Arc<Namespace>, to: SocketAddr, words: &[&str]) -> Result<String> {
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    let answer = client.ask("redis-cli", &[&["-h", &host, "-p", &port], words].concat())?;
    Ok(answer.trim().to_owned())
}

fn is_replica_in_step(redis: &Redis) -> Result<()> {
    until("the replica to follow", || {
        let info = redis.ask(&["info", "replication"])?;
        ensure!(info.contains("master_link_status:up"), "{info}");
        Ok(())
    })
}

/// Whoever is master serves, whatever the tiers say.
#[test]
fn a_redis_service_follows_the_promotion() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut first = Redis::start(&lab, &lab.master, &[])?;
        let second = Redis::start(&lab, &lab.backup, &[])?;
        second.follow(MASTER_V4)?;
        is_replica_in_step(&second)?;
        let config = config(&lab, json!({"redis": {"role": "master"}}));
        let mut agent = Agent::start(&lab, &config)?;
        agent.wait_state("master", "up")?;
        wait_told(
            &mut agent,
            "backup",
            "body-mismatch",
            "wrong role: slave, not master",
        )?;
        agent.wait_selected("master")?;
        redis(&lab.client, VIP_V4, &["set", "song", "one"])?;
        until("the write to be replicated", || {
            ensure!(second.ask(&["get", "song"])? == "one");
            Ok(())
        })?;

        // A planned one: both live.
        second.promote()?;
        first.follow(BACKUP_V4)?;
        agent.wait_selected("backup")?;
        assert_eq!(redis(&lab.client, VIP_V4, &["get", "song"])?, "one");
        redis(&lab.client, VIP_V4, &["set", "song", "two"])?;
        assert_eq!(second.ask(&["get", "song"])?, "two");
        wait_told(&mut agent, "master", "body-mismatch", "wrong role")?;
        is_replica_in_step(&first)?;

        // And one that a crash makes necessary.
        let mut second = second;
        second.kill()?;
        agent.wait_state("backup", "down")?;
        first.promote()?;
        agent.wait_selected("master")?;
        assert_eq!(redis(&lab.client, VIP_V4, &["get", "song"])?, "two");
        redis(&lab.client, VIP_V4, &["set", "song", "three"])?;
        // It comes back as a master of its own: then the tier decides.
        second.restart()?;
        agent.wait_state("backup", "up")?;
        agent.wait_selected("master")?;
        first.kill()?;
        agent.wait_selected("backup").map(drop)
    });
}

#[test]
fn redis_with_passwords_and_protected_mode() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let secret = lab.file("password");
        fs::write(&secret, "hunter2\n").context("cannot write the password")?;
        let _first = Redis::start(&lab, &lab.master, &["--requirepass", "hunter2"])?;
        let second = Redis::start(&lab, &lab.backup, &[])?;
        let acl = [
            "acl", "setuser", "probe", "on", ">hunter2", "+ping", "+info",
        ];
        second.ask(&acl)?;
        let by_password = json!({"redis": {"password_file": secret, "role": "master"}});
        let mut agent = Agent::start(&lab, &config(&lab, by_password))?;
        agent.wait_state("master", "up")?;
        let none_set = "not permitted: ERR AUTH <password> called without any password";
        wait_told(&mut agent, "backup", "bad-status", none_set)?;
        // Read anew for each connection.
        fs::write(&secret, "another\n").context("cannot write the password")?;
        wait_told(
            &mut agent,
            "master",
            "bad-status",
            "not permitted: WRONGPASS",
        )?;
        fs::write(&secret, "hunter2\n").context("cannot write the password")?;
        agent.wait_state("master", "up")?;
        agent.terminate()?;

        // A user who may not ask for the role, but for what INFO says of it.
        let by_user = json!({"redis": {"user": "probe", "password": "hunter2", "role": "master"}});
        let mut agent = Agent::start(&lab, &config(&lab, by_user))?;
        agent.wait_state("backup", "up")?;
        wait_told(
            &mut agent,
            "master",
            "bad-status",
            "not permitted: WRONGPASS",
        )?;
        agent.terminate()?;

        let mut agent = Agent::start(&lab, &config(&lab, json!({"redis": {}})))?;
        wait_told(&mut agent, "master", "bad-status", "not permitted: NOAUTH")?;
        agent.wait_state("backup", "up")?;
        second.ask(&["config", "set", "protected-mode", "yes"])?;
        wait_told(&mut agent, "backup", "bad-status", "not permitted: DENIED")
    });
}

/// A Redis that reads its data answers, and says so.
#[test]
fn a_redis_that_loads_its_data_is_not_ready() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let slow = ["--rdbcompression", "no", "--enable-debug-command", "yes"];
        let mut first = Redis::start(&lab, &lab.master, &slow)?;
        first.ask(&["debug", "populate", "2000", "song", "1000"])?;
        first.ask(&["save"])?;
        first.kill()?;
        // Five milliseconds a key, and clients are looked at in between.
        let slow = [&slow[..], &["--key-load-delay", "5000"]].concat();
        let slow = [
            &slow[..],
            &["--loading-process-events-interval-bytes", "1024"],
        ]
        .concat();
        let mut agent = Agent::new(
            &lab,
            &config(&lab, json!({"redis": {"role": "master"}})),
            &[],
        )?;
        agent.launch()?;
        first = Redis::start(&lab, &lab.master, &slow)?;
        wait_told(&mut agent, "master", "bad-status", "not ready: LOADING")?;
        first.ask(&["config", "set", "key-load-delay", "0"])?;
        agent.wait_state("master", "up").map(drop)
    });
}

#[test]
fn a_datagram_and_its_answer() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let checked = json!({"udp": {"send": "who", "expect": "me"}});
        let mut agent = Agent::new(&lab, &config(&lab, checked), &[])?;
        agent.launch()?;
        wait_told(&mut agent, "master", "refused", "")?;
        let answers = |answer: &'static [u8]| {
            lab.master
                .run(|| UdpSocket::bind(MASTER_V4).context("bind"))
                .map(|socket| {
                    socket
                        .set_read_timeout(Some(patience(Duration::from_millis(100))))
                        .ok();
                    let ends = Arc::new(AtomicBool::new(false));
                    let end = Arc::clone(&ends);
                    let thread = thread::spawn(move || {
                        let mut heard = [0; 64];
                        while !end.load(Ordering::Relaxed) {
                            if let Ok((3, from)) = socket.recv_from(&mut heard) {
                                socket.send_to(answer, from).ok();
                            }
                        }
                    });
                    move || {
                        ends.store(true, Ordering::Relaxed);
                        thread.join().expect("it answers")
                    }
                })
        };
        let stop = answers(b"it is me")?;
        agent.wait_state("master", "up")?;
        stop();
        let stop = answers(b"you")?;
        let wrong = "unexpected answer: expects `me`, it begins `you`";
        wait_told(&mut agent, "master", "body-mismatch", wrong)?;
        stop();
        wait_told(&mut agent, "master", "refused", "")
    });
}

/// As HAProxy's documentation of tcp-check has it, on a real Redis.
#[test]
fn a_script_speaks_with_redis() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _first = Redis::start(&lab, &lab.master, &[])?;
        let second = Redis::start(&lab, &lab.backup, &[])?;
        second.follow(MASTER_V4)?;
        let steps = json!([
            {"send": r"PING\r\n"},
            {"expect": "+PONG"},
            {"send_hex": "69 6e 66 6f 20 72 65 70 6c 69 63 61 74 69 6f 6e 0d 0a"},
            {"expect_regex": r"(?m)^role:master\r$"},
            {"expect": "role:slave", "not": true, "min_recv": 20},
            {"send": r"QUIT\r\n"},
            {"expect": "+OK"},
        ]);
        let config = config(&lab, json!({"script": {"steps": steps}}));
        let mut agent = Agent::start(&lab, &config)?;
        agent.wait_state("master", "up")?;
        agent.wait_state("backup", "down")?;
        second.promote()?;
        agent.wait_state("backup", "up").map(drop)
    });
}

/// All ways to log in at once, then a standby that becomes the primary.
#[test]
fn a_postgresql_service_follows_the_promotion() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut primary = Postgres::start(&lab.master)?;
        let mut standby = Postgres::start_standby(&lab.backup, MASTER_V4, &["hot_standby=off"])?;
        let secret = lab.file("password");
        fs::write(&secret, "hunter2\n").context("cannot write the password")?;
        let one = |user: &str, password: bool| {
            let mut check = json!({"user": user, "database": "postgres", "role": "primary"});
            if password {
                check["password_file"] = json!(secret);
            }
            json!({"postgres": check})
        };
        let all = json!({"all": [
            {"postgres": {}},
            one("trusted", false),
            one("clear", true),
            one("hashed", true),
            one("probe", true),
        ]});
        let mut agent = Agent::start(&lab, &config(&lab, all))?;
        agent.wait_state("master", "up")?;
        // It recovers and takes no queries: what a server says that is starting.
        wait_told(&mut agent, "backup", "bad-status", "not ready: FATAL 57P03")?;
        standby.stop()?;
        agent.wait_state("backup", "down")?;
        standby.restart(&[])?;
        wait_told(
            &mut agent,
            "backup",
            "body-mismatch",
            "wrong role: in recovery",
        )?;
        agent.wait_selected("master")?;

        primary.kill()?;
        agent.wait_state("master", "down")?;
        standby.promote()?;
        agent.wait_selected("backup")?;
        let (host, port) = (VIP_V4.ip().to_string(), VIP_V4.port().to_string());
        let to = ["-h", &host, "-p", &port, "-U", "trusted", "-d", "postgres"];
        let query = [
            "-qAtXc",
            "CREATE TEMP TABLE song (line text); SELECT pg_is_in_recovery()",
        ];
        let answer = lab.client.ask("psql", &[&to[..], &query].concat())?;
        assert_eq!(answer.trim(), "f", "the VIP leads to one that takes writes");
        Ok(())
    });
}

#[test]
fn postgresql_refuses_and_its_log_stays_clean() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut primary = Postgres::start(&lab.master)?;
        let wrong =
            json!({"postgres": {"user": "probe", "password": "another", "database": "postgres"}});
        let mut agent = Agent::start(&lab, &config(&lab, wrong))?;
        let refusal = "not permitted: FATAL 28P01 password authentication failed";
        wait_told(&mut agent, "master", "bad-status", refusal)?;
        wait_told(&mut agent, "backup", "refused", "")?;
        agent.terminate()?;

        let right = json!({"all": [
            {"postgres": {"user": "probe", "password": "hunter2", "database": "postgres", "connection": "fresh"}},
            {"postgres": {}},
        ]});
        let mut agent = Agent::start(&lab, &config(&lab, right))?;
        agent.wait_state("master", "up")?;
        // What was broken off with the agent before has been noted by now.
        let before = primary.log()?.len();
        agent.wait("some checks", |status| {
            let made = find_endpoint(status, "master")?["checks"].as_u64();
            ensure!(made > Some(20), "{made:?}");
            Ok(())
        })?;
        let log = primary.log()?;
        agent.terminate()?;
        // Who is asked without a user finds that it does not exist, if it trusts everybody;
        // here it is not in pg_hba.conf. Nothing else is worth a line.
        let odd =
            |line: &&String| !line.contains("no pg_hba.conf entry") && !line.contains("checkpoint");
        let noise: Vec<_> = log[before..].iter().filter(odd).collect();
        ensure!(noise.is_empty(), "{noise:#?}");
        Ok(())
    });
}

/// Redis begins with TLS, PostgreSQL asks for it first, and neither goes without.
#[test]
fn databases_over_tls() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let pki = Pki::new(&lab, "pki")?;
        let file = |name: &str| pki.file(name).display().to_string();
        let (ca, certificate, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
        let _redis = Redis::start(
            &lab,
            &lab.master,
            &[
                "--port",
                "8078",
                "--tls-port",
                "8079",
                "--tls-auth-clients",
                "no",
                "--tls-ca-cert-file",
                &ca,
                "--tls-cert-file",
                &certificate,
                "--tls-key-file",
                &key,
            ],
        )?;
        let mut postgres = Postgres::start(&lab.backup)?;
        let tls = json!({"ca": ca, "sni": "sense.example.com"});
        let service = |name: &str, vip: &str, at: SocketAddr, check: Value| {
            json!({
                "name": name, "listeners": [vip],
                "endpoints": [{"name": name, "address": at.to_string()}],
                "check": {name: check, "inter": "50ms", "timeout": "10s"},
            })
        };
        let login = json!({
            "user": "probe", "password": "hunter2", "database": "postgres", "role": "primary",
            "tls": tls, "connection": "mixed", "fresh_every": 3,
        });
        let mut config = agent::config(&lab);
        config["services"] = json!([
            service(
                "redis",
                "10.96.0.10:80",
                MASTER_V4,
                json!({"role": "master", "tls": tls})
            ),
            service("postgres", "10.96.0.11:80", BACKUP_V4, login),
        ]);
        let mut agent = Agent::start(&lab, &config)?;
        let state = |status: &Value, service: usize, state: &str, detail: &str| {
            let endpoint = &status["services"][service]["endpoints"][0];
            let told = endpoint["detail"].as_str().unwrap_or_default();
            ensure!(
                endpoint["state"] == state && told.contains(detail),
                "{endpoint}"
            );
            Ok(())
        };
        agent.wait("Redis to be up", |status| state(status, 0, "up", "ok"))?;
        let declines = "it does no TLS";
        agent.wait("PostgreSQL to decline", |status| {
            state(status, 1, "down", declines)
        })?;
        postgres.stop()?;
        postgres.encrypt(&pki.file("server.pem"), &pki.file("server.key"))?;
        agent.wait("PostgreSQL to be up", |status| state(status, 1, "up", "ok"))?;
        let query = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'probe' AND NOT ssl";
        assert_eq!(postgres.ask(query)?, "0", "all checks are encrypted");
        Ok(())
    });
}

/// nginx answers in HTTP/2 what a health service would.
#[test]
fn grpc_by_a_real_http2_server() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let serving = b"\0\0\0\0\x02\x08\x01";
        let not_serving = b"\0\0\0\0\x02\x08\x02";
        let _master = health_service(&lab, &lab.master, Some(serving))?;
        let backup = health_service(&lab, &lab.backup, Some(not_serving))?;
        let kept = json!({"grpc": {"service": "chat", "connection": "reuse"}});
        let mut agent = Agent::start(&lab, &config(&lab, kept))?;
        agent.wait_state("master", "up")?;
        // It ends each connection after three answers, in a polite way.
        wait_some_good(&mut agent)?;
        wait_told(
            &mut agent,
            "backup",
            "body-mismatch",
            "not serving: NOT_SERVING",
        )?;
        drop(backup);
        wait_told(&mut agent, "backup", "refused", "")?;
        let _backup = health_service(&lab, &lab.backup, None)?;
        let unimplemented = "not implemented: UNIMPLEMENTED unknown service";
        wait_told(&mut agent, "backup", "bad-status", unimplemented)?;
        agent.wait_selected("master").map(drop)
    });
}

/// `None`: there is none.
fn health_service(lab: &Lab, host: &Arc<Namespace>, answer: Option<&[u8]>) -> Result<Process> {
    let dir = lab.file(host.name());
    fs::create_dir_all(&dir).context("cannot make the server's folder")?;
    fs::write(dir.join("message"), answer.unwrap_or_default()).context("cannot write")?;
    let dir = dir.display();
    let answers = match answer {
        // A file is not for POST; an error's page is asked for by GET.
        Some(_) => format!(
            "location / {{ error_page 405 =200 /message; return 405; }}\n\
             location = /message {{ root {dir}; add_trailer grpc-status 0; }}"
        ),
        None => "location / { add_header grpc-status 12;\n\
                 add_header grpc-message 'unknown service'; return 200; }"
            .to_owned(),
    };
    let config = lab.file("grpc.conf");
    let text = format!(
        "daemon off; master_process off; pid {dir}/pid;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
           access_log off; default_type application/grpc;\n\
           client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
           fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi;\n\
           scgi_temp_path {dir}/scgi;\n\
           server {{ listen {PORT} http2; keepalive_requests 3; {answers} }}\n\
         }}\n"
    );
    fs::write(&config, text).context("cannot write the configuration")?;
    let mut command = host.command("nginx");
    command.arg("-p").arg(lab.file("")).arg("-c").arg(&config);
    command.args(["-e", "stderr"]);
    let mut process = Process::start(host.name(), command)?;
    let me = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    until("nginx to serve", || {
        if let Some(status) = process.ended() {
            bail!("it ended: {status}: {:?}", process.lines());
        }
        host.run(|| TcpStream::connect(me).context("connect"))
    })?;
    Ok(process)
}

#[test]
fn a_command_decides_and_none_is_left() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut master = Server::start(&lab, &lab.master)?;
        let _backup = Server::start(&lab, &lab.backup)?;
        let script = "test $PROBE_SERVICE:$PROBE_PORT = sense:8079 || exit 9
            curl -fsS --max-time 5 http://$PROBE_ADDRESS:$PROBE_PORT/status | grep -q version";
        let command = json!(["/bin/sh", "-c", script]);
        let checked = json!({"exec": {"command": command}});
        let mut agent = Agent::start(&lab, &config(&lab, checked))?;
        agent.wait_state("master", "up")?;
        agent.wait_selected("master")?;
        master.set_status(503)?;
        agent.wait_selected("backup")?;
        wait_told(&mut agent, "master", "exec", "exit status 1")?;
        master.behave()?;
        agent.wait_selected("master")?;
        agent.terminate()?;

        // One that hangs, with a child, ends with the agent.
        let pids = lab.file("pids");
        let script = format!("(sleep 1000; :) & echo $$ $! >> {}; wait", pids.display());
        let hangs = json!({"exec": {"command": ["/bin/sh", "-c", script]}});
        let mut agent = Agent::new(&lab, &config(&lab, hangs), &[])?;
        agent.launch()?;
        let started = until("commands to run", || {
            let text = fs::read_to_string(&pids).context("no command yet")?;
            ensure!(text.lines().count() >= 2, "{text}");
            Ok(text)
        })?;
        agent.terminate()?;
        for pid in started.split_whitespace() {
            until(&format!("{pid} to be gone"), || {
                ensure!(!Path::new("/proc").join(pid).exists(), "it lives");
                Ok(())
            })?;
        }
        Ok(())
    });
}
