use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn exec(program: &str, args: &[&str]) -> Exec {
    let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
    let endpoint: SocketAddr = "[2001:db8::7]:6379".parse().unwrap();
    let mut exec = Exec {
        program: program.to_owned(),
        args,
        environment: vec![
            ("PATH", SEARCHED.to_owned()),
            ("PROBE_ADDRESS", endpoint.ip().to_string()),
            ("PROBE_PORT", endpoint.port().to_string()),
        ],
    };
    exec.tell("sense", "sen2");
    exec
}

fn shell(script: &str) -> Exec {
    exec("/bin/sh", &["-c", script])
}

async fn run(exec: &Exec) -> Outcome {
    let place = Room::new(1).enter().await.unwrap();
    timeout(LONG, exec.command(&place)).await.expect("it ends")
}

async fn told(exec: &Exec) -> String {
    run(exec).await.unwrap_err().to_string()
}

/// Waits until the process has ended and is reaped.
async fn gone(pid: &str) {
    let begun = Instant::now();
    while Path::new("/proc").join(pid).exists() {
        assert!(begun.elapsed() < LONG, "{pid} lives");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn written(path: &Path) -> String {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.ends_with('\n') {
            return text.trim().to_owned();
        }
        assert!(begun.elapsed() < LONG, "nothing is in {}", path.display());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_exit_status_decides() {
    run(&exec("/bin/true", &[])).await.unwrap();
    let finding = exec("/bin/false", &[]).run(&mut Stage::waiting("")).await;
    assert_eq!(
        (finding.kind, finding.note.as_ref()),
        (Kind::Exec, "exit status 1")
    );
    assert_eq!(
        told(&shell("echo out; echo err >&2; exit 7")).await,
        "exit status 7: out err"
    );
    assert_eq!(told(&shell("kill -9 $$")).await, "killed by signal 9");
}

#[tokio::test]
async fn a_command_that_is_not_there_judges_nobody() {
    let missing = exec("/nonexistent/check", &[]);
    let finding = missing.run(&mut Stage::waiting("")).await;
    assert_eq!(finding.kind, Kind::Local);
    assert!(finding.note.contains("/nonexistent/check"), "{finding:?}");
}

#[tokio::test]
async fn arguments_are_no_shells() {
    let printf = exec("/usr/bin/printf", &["%s|", "a b", "$PATH", "*"]);
    run(&printf).await.unwrap();
    let test = |arg: &str| exec("/bin/sh", &["-c", r#"echo "$1"; exit 1"#, "sh", arg]);
    assert_eq!(told(&test("$(id) ; *")).await, "exit status 1: $(id) ; *");
}

#[tokio::test]
async fn it_knows_the_endpoint_and_little_else() {
    let environment = told(&shell("/usr/bin/env; exit 1")).await;
    for wanted in [
        "PROBE_ADDRESS=2001:db8::7",
        "PROBE_PORT=6379",
        "PROBE_SERVICE=sense",
        "PROBE_ENDPOINT=sen2",
    ] {
        assert!(environment.contains(wanted), "{environment}");
    }
    // Cargo sets it for tests.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(!environment.contains("CARGO"), "{environment}");
    assert_eq!(told(&shell("pwd; exit 1")).await, "exit status 1: /");
    // Its input ends at once.
    run(&shell("! read line")).await.unwrap();
    // In, out, error, and the folder that lists them.
    let open = told(&shell("ls -m /proc/self/fd; exit 1")).await;
    assert_eq!(open, "exit status 1: 0, 1, 2, 3");
}

#[tokio::test]
async fn it_does_not_hold_our_descriptors() {
    let before = descriptors();
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        run(&exec("/bin/true", &[])).await.unwrap();
        let place = Room::new(1).enter().await.unwrap();
        let hangs = shell(&format!(
            "echo $$ > {0}/pid; sleep 1000",
            folder.path().display()
        ));
        let cut = timeout(Duration::from_millis(50), hangs.command(&place)).await;
        assert!(cut.is_err());
    }
    let begun = Instant::now();
    // Other tests of this process open some too, for a moment.
    while descriptors() > before + 10 {
        assert!(
            begun.elapsed() < LONG,
            "{} were open, {} are",
            before,
            descriptors()
        );
        sleep(Duration::from_millis(5)).await;
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn what_it_prints_is_cut_and_does_not_stop_it() {
    let much = shell("head -c 10000000 /dev/zero | tr '\\0' x; exit 3");
    let told = told(&much).await;
    assert!(told.starts_with("exit status 3: xxx"), "{told}");
    assert!(told.len() < 300, "{told}");
}

/// The deadline ends the command, its child and its child's child.
#[tokio::test]
async fn dropped_it_is_killed_with_all_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let at = folder.path().display();
    // Deaf to what can be ignored.
    let hangs = shell(&format!(
        "trap '' TERM HUP INT; (sh -c 'echo $$ > {at}/inner; sleep 1000' & echo > {at}/forked; sleep 1000) \
         & echo $$ > {at}/outer; sleep 1000"
    ));
    let place = Room::new(1).enter().await.unwrap();
    let running = tokio::spawn(async move { hangs.command(&place).await });
    let inner = written(&file("inner")).await;
    let outer = written(&file("outer")).await;
    assert_ne!(inner, outer);
    running.abort();
    for pid in [inner, outer] {
        gone(&pid).await;
    }
}

/// Who leaves a child behind and exits has it killed, and does not wait for it.
#[tokio::test]
async fn what_it_leaves_behind_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("left");
    // The child holds the output open.
    let leaves = shell(&format!(
        "sh -c 'echo $$ > {0}; sleep 1000' & while ! [ -s {0} ]; do :; done; echo fine; exit 4",
        left.display()
    ));
    assert_eq!(told(&leaves).await, "exit status 4: fine");
    gone(&written(&left).await).await;
}

#[tokio::test]
async fn a_fork_bomb_of_a_check_ends_with_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let forks = shell(&format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'echo $$ >> {0}; exec sleep 1000' & done; wait",
        pids.display()
    ));
    let place = Room::new(1).enter().await.unwrap();
    let running = tokio::spawn(async move { forks.command(&place).await });
    let begun = Instant::now();
    let children: BTreeSet<String> = loop {
        let text = fs::read_to_string(&pids).unwrap_or_default();
        if text.lines().count() == 10 {
            break text.lines().map(str::to_owned).collect();
        }
        assert!(begun.elapsed() < LONG);
        sleep(Duration::from_millis(5)).await;
    };
    running.abort();
    for pid in children {
        gone(&pid).await;
    }
}

#[tokio::test]
async fn only_so_many_run_at_once() {
    let room = Room::new(2);
    let first = room.enter().await.unwrap();
    let _second = room.enter().await.unwrap();
    let third = timeout(Duration::from_millis(50), room.enter()).await;
    assert!(third.is_err(), "there is no room");
    assert!(!first.waited);
    let (third, ()) = tokio::join!(timeout(LONG, room.enter()), async {
        tokio::task::yield_now().await;
        drop(first);
    });
    assert!(third.unwrap().unwrap().waited);
}
