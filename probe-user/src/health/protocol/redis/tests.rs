use super::*;
use crate::health::protocol::tests::{Act, drips, hears, reason, repeats, says, told, with};

const PING: &str = "*1\r\n$4\r\nPING\r\n";
const ROLE: &str = "*1\r\n$4\r\nROLE\r\n";
const INFO: &str = "*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n";
const MASTER: &str = "*3\r\n$6\r\nmaster\r\n:3129659\r\n*1\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n\
                      $7\r\n3129242\r\n";
const REPLICA: &str =
    "*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:9000\r\n$9\r\nconnected\r\n:3167038\r\n";

async fn ask(redis: &Redis, fresh: bool, acts: impl Into<Vec<Act>>) -> Option<Outcome> {
    with(acts, async |stream, scratch| {
        redis.hold(stream, fresh, scratch).await
    })
    .await
}

async fn ends(role: Role, acts: impl Into<Vec<Act>>) -> String {
    let outcome = ask(&Redis::new(None, role), true, acts).await;
    told(outcome.expect("it ends"))
}

fn login(user: Option<&str>) -> Option<Login> {
    Some(Login {
        user: user.map(str::to_owned),
        password: Secret::Text("hunter2".to_owned()),
    })
}

#[tokio::test(start_paused = true)]
async fn ping() {
    let acts = [hears(PING), drips("+PONG\r\n"), Act::Waits];
    assert_eq!(ends(Role::Any, acts).await, "ok");
    for (answer, end) in [
        (
            "+PANG\r\n",
            "body-mismatch: unexpected answer: to PING, it begins `+PANG\\r\\n`",
        ),
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            "bad-status: not ready: LOADING Redis is loading the dataset in memory",
        ),
        (
            "-NOAUTH Authentication required.\r\n",
            "bad-status: not permitted: NOAUTH Authentication required.",
        ),
        (
            "-MASTERDOWN Link with MASTER is down\r\n",
            "bad-status: replication is broken: MASTERDOWN Link with MASTER is down",
        ),
        (
            "-ERR max number of clients reached\r\n",
            "bad-status: error: ERR max number of clients reached",
        ),
        (
            "HTTP/1.1 400 Bad Request\r\n",
            "protocol: not Redis' protocol: no such type, it begins `HTTP/1.1 400 Bad Request\\r\\n`",
        ),
        ("", "protocol: the connection is closed, nothing came"),
        ("+PON", "protocol: the answer breaks off, it begins `+PON`"),
    ] {
        assert_eq!(ends(Role::Any, [hears(PING), says(answer)]).await, end);
    }
}

/// Said before anything is asked, and the connection closed.
#[tokio::test(start_paused = true)]
async fn protected_mode() {
    let denied = "-DENIED Redis is running in protected mode because ...\r\n";
    let end = "bad-status: not permitted: DENIED Redis is running in protected mode because ...";
    assert_eq!(ends(Role::Any, [says(denied)]).await, end);
}

#[tokio::test(start_paused = true)]
async fn roles() {
    let both = [PING, ROLE].concat();
    for (role, answer, end) in [
        (Role::Master, MASTER, "ok"),
        (Role::Replica, REPLICA, "ok"),
        (
            Role::Master,
            REPLICA,
            "body-mismatch: wrong role: slave, not master",
        ),
        (
            Role::Replica,
            MASTER,
            "body-mismatch: wrong role: master, not replica",
        ),
        (
            Role::Master,
            "*2\r\n$8\r\nsentinel\r\n*0\r\n",
            "body-mismatch: wrong role: sentinel, not master",
        ),
        (
            Role::Master,
            "*0\r\n",
            "body-mismatch: unexpected answer: to ROLE, it begins `*0\\r\\n`",
        ),
        (
            Role::Master,
            "*3\r\n$6\r\nmaster\r\n",
            "protocol: the answer breaks off, it begins `*3\\r\\n$6\\r\\nmaster\\r\\n`",
        ),
        (
            Role::Master,
            "-LOADING soon\r\n",
            "bad-status: not ready: LOADING soon",
        ),
    ] {
        let acts = [hears(&both), says("+PONG\r\n"), drips(answer)];
        assert_eq!(ends(role, acts).await, end);
        let at_once = [hears(&both), says(format!("+PONG\r\n{answer}"))];
        assert_eq!(ends(role, at_once).await, end);
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_know_role_is_asked_by_info() {
    let both = [PING, ROLE].concat();
    for refusal in [
        "-ERR unknown command 'ROLE', with args beginning with: \r\n",
        "-NOPERM this user has no permissions to run the 'role' command\r\n",
    ] {
        let info = "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n";
        let info = format!("${}\r\n{info}\r\n", info.len());
        let acts = [
            hears(&both),
            says("+PONG\r\n"),
            says(refusal),
            hears(INFO),
            drips(info),
        ];
        assert_eq!(ends(Role::Master, acts.clone()).await, "ok");
        assert_eq!(
            ends(Role::Replica, acts).await,
            "body-mismatch: wrong role: master, not replica"
        );
        let acts = [
            hears(&both),
            says("+PONG\r\n"),
            says(refusal),
            hears(INFO),
            says(refusal),
        ];
        assert!(
            ends(Role::Master, acts)
                .await
                .starts_with("bad-status: not ")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn it_logs_in_once_a_connection() {
    let auth = "*2\r\n$4\r\nAUTH\r\n$7\r\nhunter2\r\n";
    let named = "*3\r\n$4\r\nAUTH\r\n$5\r\nprobe\r\n$7\r\nhunter2\r\n";
    for (user, auth) in [(None, auth), (Some("probe"), named)] {
        let redis = Redis::new(login(user), Role::Any);
        let all = [auth, PING].concat();
        let outcome = ask(&redis, true, [hears(&all), says("+OK\r\n+PONG\r\n")]).await;
        outcome.unwrap().unwrap();
        let outcome = ask(&redis, false, [hears(PING), says("+PONG\r\n")]).await;
        outcome.unwrap().unwrap();
        for wrong in [
            "-WRONGPASS invalid username-password pair or user is disabled.\r\n-NOAUTH\r\n",
            "-ERR invalid password\r\n-NOAUTH\r\n",
            "-ERR Client sent AUTH, but no password is set\r\n+PONG\r\n",
        ] {
            let outcome = ask(&redis, true, [hears(&all), says(wrong)]).await.unwrap();
            assert_eq!(reason(&outcome), Some(Reason::Credentials), "{wrong}");
            assert!(!told(outcome).contains("hunter2"));
        }
    }
    let absent = Redis::new(
        Some(Login {
            user: None,
            password: Secret::File("/nonexistent/password".into()),
        }),
        Role::Any,
    );
    let outcome = ask(&absent, true, [Act::Waits]).await.unwrap();
    assert!(matches!(outcome, Err(Failure::Local(_))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn endless_and_slow_answers_are_bounded() {
    let redis = Redis::new(None, Role::Master);
    let both = [PING, ROLE].concat();
    for endless in [
        vec![hears(&both), repeats("+PONG\r\n*1048576\r\n")],
        vec![
            hears(&both),
            says("+PONG\r\n*1048576\r\n"),
            repeats(":1\r\n"),
        ],
        vec![hears(&both), says("+PONG\r\n"), repeats("*1\r\n")],
        vec![hears(&both), says("+PONG\r\n$1000000\r\n"), repeats("x")],
        vec![hears(&both), repeats("+")],
        vec![repeats([0; 100])],
    ] {
        let outcome = ask(&redis, true, endless).await.expect("it is cut");
        assert!(matches!(outcome, Err(Failure::Protocol(..))), "{outcome:?}");
    }
    assert!(
        ask(&redis, true, [hears(&both), says("+PO"), Act::Waits])
            .await
            .is_none()
    );
}
