//! The lab itself: if these fail, no other test of it means anything.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lab::{
    Lab, Namespace, Server, Way,
    client::{Course, Failure, KeepAlive, Load, Long, OpenLoop, Outcome, Plan, Record, get},
    faults,
    foreign::{Gate, Mode, xdp_off, xdp_pass},
    kernel::traces,
    link::set_up,
    privilege::with_tcx,
    privileged,
    server::Kind,
    topology::{BACKUP_V4, BACKUP_V6, CLIENT_V4, CLIENT_V6, MASTER_V4, MASTER_V6, VIP_V4, VIP_V6},
    wait::{patience, until_true},
};

const WAYS: [Way; 3] = [Way::Edge, Way::EdgeAmongPods, Way::Uplink];

/// Says that it is a lab and waits to be killed; run by [`nothing_survives_a_kill`].
const VICTIM: &str = "LAB_VICTIM";
const READY: &str = "the victim is ready";

#[test]
fn client_reaches_endpoints_and_not_the_vip() {
    privileged(|| {
        for way in WAYS {
            let lab = Lab::new(way)?;
            let _master = Server::start(&lab, &lab.master)?;
            let _backup = Server::start(&lab, &lab.backup)?;
            for (to, name, me) in [
                (MASTER_V4, "master", CLIENT_V4),
                (MASTER_V6, "master", CLIENT_V6),
                (BACKUP_V4, "backup", CLIENT_V4),
                (BACKUP_V6, "backup", CLIENT_V6),
            ] {
                let answer = get(&lab.client, to, "/")?.expect("the endpoint answers");
                assert_eq!(
                    (answer.status, answer.body.as_str()),
                    (200, name),
                    "{way:?}"
                );
                let peer: SocketAddr = answer.peer.context("a peer")?.parse()?;
                assert_eq!((peer.ip(), answer.local.ip()), (mapped(me), me), "{way:?}");
            }
            for vip in [VIP_V4, VIP_V6] {
                assert!(
                    get(&lab.client, vip, "/")?.is_err(),
                    "{way:?}: nothing steers"
                );
            }
        }
        Ok(())
    });
}

/// The server listens on `[::]`, where IPv4 peers have mapped addresses.
fn mapped(ip: std::net::IpAddr) -> std::net::IpAddr {
    match ip {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        v6 => v6,
    }
}

/// An open loop against the master, while `during` happens to it.
fn open_loop(lab: &Lab, during: impl FnOnce() -> Result<()>) -> Result<Record> {
    let load = OpenLoop::start(
        &lab.client,
        Course {
            to: MASTER_V4,
            period: patience(Duration::from_millis(5)),
            patience: patience(Duration::from_millis(500)),
            idle: 3,
            active: 2,
            speak: 4,
        },
    );
    std::thread::sleep(patience(Duration::from_millis(400)));
    during()?;
    std::thread::sleep(patience(Duration::from_millis(400)));
    load.stop()
}

#[test]
fn an_open_loop_tells_a_kill_from_silence() {
    with_tcx(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut master = Server::start(&lab, &lab.master)?;
        let gate = Gate::at(&lab.master, "eth0")?;

        let record = open_loop(&lab, || Ok(()))?;
        assert!(record.shots.len() >= 20, "{}", record.shots.len());
        for shot in &record.shots {
            assert!(shot.outcome.by("master"), "{shot:?}");
            assert!(shot.due <= shot.begun && shot.begun <= shot.ended);
        }
        assert_eq!(record.held.len(), 5);
        for held in &record.held {
            assert!(held.served.is_some() && held.ended.is_none(), "{held:?}");
        }

        // Nobody answers, nobody says so, and nobody is told.
        let record = open_loop(&lab, || gate.set(true))?;
        assert!(record.shots.first().context("shots")?.outcome.by("master"));
        let last = record.shots.last().context("shots")?;
        assert_eq!(last.outcome, Outcome::Lost);
        assert!(last.ended - last.begun >= patience(Duration::from_millis(500)));
        assert!(record.held.iter().all(|held| held.ended.is_none()));
        gate.set(false)?;

        let record = open_loop(&lab, || master.kill())?;
        let last = record.shots.last().context("shots")?;
        assert_eq!(last.outcome, Outcome::Failed(Failure::Refused));
        for held in &record.held {
            assert!(held.ended.is_some(), "{held:?}");
        }
        Ok(())
    });
}

#[test]
fn a_link_that_was_down_is_as_before() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let _master = Server::start(&lab, &lab.master)?;
        set_up(&lab.master, "eth0", false)?;
        assert!(get(&lab.client, MASTER_V4, "/")?.is_err());
        set_up(&lab.master, "eth0", true)?;
        lab.rejoin(&lab.master, 2)?;
        for to in [MASTER_V4, MASTER_V6] {
            let answer = get(&lab.client, to, "/")?.expect("the endpoint answers");
            assert_eq!(answer.body, "master", "{to}");
        }
        Ok(())
    });
}

#[test]
fn ping_crosses_the_node() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        for to in [MASTER_V4, MASTER_V6, BACKUP_V4, BACKUP_V6] {
            lab.client
                .ask("ping", &["-c", "1", "-W", "5", &to.ip().to_string()])?;
        }
        Ok(())
    });
}

#[test]
fn faults_do_what_they_say() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut master = Server::start(&lab, &lab.master)?;
        let ask = || get(&lab.client, MASTER_V4, "/").map(|answer| answer.map(|a| a.body));

        master.kill()?;
        assert_eq!(ask()?, Err(Failure::Refused), "killed");
        master.restart()?;
        assert_eq!(ask()?, Ok("master".to_owned()), "restarted");

        master.stop()?;
        assert_eq!(
            ask()?,
            Err(Failure::Timeout),
            "stopped: accepts, says nothing"
        );
        master.cont()?;
        assert_eq!(ask()?, Ok("master".to_owned()), "continued");

        let mut kept = KeepAlive::connect(&lab.client, MASTER_V4)?;
        let mut kept_v6 = KeepAlive::connect(&lab.client, MASTER_V6)?;
        for kept in [&mut kept, &mut kept_v6] {
            assert_eq!(kept.get("/").map(|a| a.body), Ok("master".to_owned()));
        }
        faults::blackhole(&lab.master)?;
        assert_eq!(
            ask()?,
            Err(Failure::Timeout),
            "blackholed: no RST, no error"
        );
        let v6 = get(&lab.client, MASTER_V6, "/")?.map(|a| a.body);
        assert_eq!(v6, Err(Failure::Timeout), "blackholed in IPv6");
        for kept in [&mut kept, &mut kept_v6] {
            assert_eq!(kept.get("/"), Err(Failure::Timeout), "established too");
        }
        faults::heal(&lab.master)?;
        assert_eq!(ask()?, Ok("master".to_owned()), "healed");

        let status = || get(&lab.client, MASTER_V4, "/status");
        let said = |answer: Result<Result<lab::client::Answer, Failure>>| {
            answer.map(|answer| answer.map(|a| (a.status, a.body)))
        };
        let well = (200, r#"{"version":"1.0"}"#.to_owned());
        assert_eq!(said(status())?, Ok(well.clone()));
        master.set_status(503)?;
        assert_eq!(said(status())?, Ok((503, well.1.clone())));
        master.set_body("no such word")?;
        assert_eq!(said(status())?, Ok((503, "no such word".to_owned())));
        master.behave()?;
        master.set_delay(Duration::from_millis(300))?;
        let begun = Instant::now();
        assert_eq!(said(status())?, Ok(well));
        assert!(begun.elapsed() >= Duration::from_millis(300), "slow");
        assert_eq!(ask()?, Ok("master".to_owned()), "only /status is slow");

        faults::unplug(&lab.master)?;
        assert!(ask()?.is_err(), "unplugged");
        Ok(())
    });
}

#[test]
fn load_and_long_connection_tell_a_kill() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut master = Server::start(&lab, &lab.master)?;
        let long = Long::open(&lab.client, MASTER_V4, Duration::from_millis(20))?;
        assert_eq!(long.server().as_deref(), Some("master"));
        let load = Load::start(&lab.client, Plan::steady(MASTER_V4));
        load.run_for(100)?;
        long.check_alive()?;
        let healthy = load.count();
        assert!(
            load.samples()
                .iter()
                .all(|sample| sample.answered_by("master"))
        );

        master.kill()?;
        long.wait_end()?;
        load.run_for(20)?;
        let samples = load.stop()?;
        assert!(samples.len() >= healthy + 20);
        let last = samples.last().context("a sample")?;
        assert_eq!(last.outcome, Err(Failure::Refused));
        Ok(())
    });
}

#[test]
fn nginx_serves_too() {
    privileged(|| {
        let lab = Lab::new(Way::Edge)?;
        let mut master = Server::start_kind(&lab, &lab.master, Kind::Nginx)?;
        let answer = get(&lab.client, MASTER_V4, "/")?.expect("nginx answers");
        assert_eq!(answer.body, "master");
        let answer = get(&lab.client, MASTER_V6, "/status")?.expect("nginx answers");
        assert!(answer.body.contains("version"));
        master.kill()?;
        let answer = get(&lab.client, MASTER_V4, "/")?;
        assert_eq!(answer, Err(Failure::Refused));
        Ok(())
    });
}

#[test]
fn a_namespace_has_its_own_bpffs_and_sysfs() {
    privileged(|| {
        let (a, b) = (Namespace::new("a")?, Namespace::new("b")?);
        a.run(|| fs::create_dir("/sys/fs/bpf/mine").context("bpffs"))?;
        let seen = |host: &Namespace| host.run(|| Ok(Path::new("/sys/fs/bpf/mine").exists()));
        assert!(seen(&a)? && !seen(&b)? && !Path::new("/sys/fs/bpf/mine").exists());
        a.ip(["link add one type veth peer name two"])?;
        let seen = |host: &Namespace| host.run(|| Ok(Path::new("/sys/class/net/one").exists()));
        assert!(seen(&a)? && !seen(&b)?);
        Ok(())
    });
}

#[test]
fn traces_are_seen() {
    privileged(|| {
        let lab = Lab::new(Way::Uplink)?;
        let before = traces(&lab.node)?;
        assert_eq!(before, traces(&lab.node)?);
        let mut last = before.clone();
        let mut differs = |what: &str| -> Result<()> {
            let now = traces(&lab.node)?;
            assert_ne!(now, last, "{what} is not seen");
            last = now;
            Ok(())
        };
        xdp_pass(&lab.node, "up0", Mode::Native)?;
        differs("an XDP program")?;
        lab.node
            .ask("tc", &["qdisc", "add", "dev", "up0", "clsact"])?;
        differs("a qdisc")?;
        let filter = "filter add dev up0 ingress protocol ip prio 1 u32 match u32 0 0 classid 1:1";
        lab.node.ask("tc", &filter.split(' ').collect::<Vec<_>>())?;
        differs("a filter")?;
        lab.node
            .ask("tc", &["qdisc", "del", "dev", "up0", "clsact"])?;
        xdp_off(&lab.node, "up0", Mode::Native)?;
        lab.node
            .run(|| fs::create_dir("/sys/fs/bpf/pin").context("bpffs"))?;
        differs("a pin")?;
        lab.node
            .run(|| fs::remove_dir("/sys/fs/bpf/pin").context("bpffs"))?;
        assert_eq!(before, traces(&lab.node)?, "nothing is left");
        Ok(())
    });
}

#[test]
fn nothing_survives_a_kill() {
    privileged(|| {
        if std::env::var_os(VICTIM).is_some() {
            let lab = Lab::new(Way::Edge)?;
            let mut master = Server::start(&lab, &lab.master)?;
            master.stop()?;
            println!("{READY}");
            std::thread::sleep(Duration::from_secs(60));
            bail!("nobody killed the victim");
        }
        let before = namespaces()?;
        let mut victim = std::process::Command::new(std::env::current_exe()?);
        victim
            .args(["--exact", "lab::nothing_survives_a_kill", "--nocapture"])
            .env(VICTIM, "1")
            .stdout(Stdio::piped());
        let mut victim = victim.spawn().context("cannot start the victim")?;
        let output = victim.stdout.take().context("piped")?;
        BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .find(|line| line.contains(READY))
            .context("the victim did not get ready")?;
        let during: BTreeSet<_> = namespaces()?.difference(&before).cloned().collect();
        assert!(
            !during.is_empty(),
            "the victim's server is in a namespace of its own"
        );
        victim.kill()?;
        victim.wait()?;
        until_true("the victim's processes to be gone", || {
            namespaces().is_ok_and(|now| during.is_disjoint(&now))
        })?;
        Ok(())
    });
}

/// Network namespaces that some process or open descriptor of a process is in.
fn namespaces() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // Processes end while they are looked at.
        if let Ok(target) = fs::read_link(process.join("ns/net")) {
            found.insert(target.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}
