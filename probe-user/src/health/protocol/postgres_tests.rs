use bytes::BufMut as _;
use proptest::prelude::*;

use super::*;
use crate::config::Secret;
use crate::health::protocol::tests::{Act, drips, hears, reason, repeats, says, told, with};

/// A message of the server's.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.put_u32(u32::try_from(body.len() + 4).unwrap());
    message.put_slice(body);
    message
}

fn authentication(kind: u32, more: &[u8]) -> Vec<u8> {
    message(b'R', &[&kind.to_be_bytes(), more].concat())
}

fn error(severity: &str, code: &str, text: &str) -> Vec<u8> {
    let body = format!("S{severity}\0V{severity}\0C{code}\0M{text}\0Fpostmaster.c\0\0");
    message(b'E', body.as_bytes())
}

fn ready() -> Vec<u8> {
    [
        authentication(0, b""),
        message(b'S', b"server_version\x0017.2\0"),
        message(b'N', b"SNOTICE\0Mhello\0\0"),
        message(b'K', &[0; 8]),
        message(b'Z', b"I"),
    ]
    .concat()
}

fn row(value: &[u8]) -> Vec<u8> {
    let len = u32::try_from(value.len()).unwrap().to_be_bytes();
    let name = [b"pg_is_in_recovery\0".as_slice(), &[0; 18]].concat();
    [
        message(b'T', &[&[0, 1], &name[..]].concat()),
        message(b'D', &[&[0, 1], &len[..], value].concat()),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

fn start_up(user: &str, database: &str) -> Act {
    let parameters =
        format!("\0\x03\0\0user\0{user}\0database\0{database}\0application_name\0probe\0\0");
    let mut bytes = Vec::new();
    bytes.put_u32(u32::try_from(parameters.len() + 4).unwrap());
    bytes.put_slice(parameters.as_bytes());
    hears(bytes)
}

fn query() -> Act {
    hears(message(b'Q', b"SELECT pg_is_in_recovery()\0"))
}

fn login(password: Option<&str>) -> Login {
    Login {
        user: "probe".to_owned(),
        password: password.map(|text| Secret::Text(text.to_owned())),
        database: "app".to_owned(),
    }
}

async fn hold(postgres: Postgres, acts: impl Into<Vec<Act>>) -> Option<Outcome> {
    with(acts, async |stream, scratch| {
        postgres.hold(stream, scratch).await
    })
    .await
}

/// Without a user.
async fn is_up(acts: impl Into<Vec<Act>>) -> String {
    let postgres = Postgres::new(None, Role::Any);
    told(hold(postgres, acts).await.expect("it ends"))
}

/// With one; `acts` follow the start-up message.
async fn logs_in(role: Role, password: Option<&str>, acts: &[Act]) -> String {
    let postgres = Postgres::new(Some(login(password)), role);
    let acts = [&[start_up("probe", "app")], acts].concat();
    told(hold(postgres, acts).await.expect("it ends"))
}

#[tokio::test(start_paused = true)]
async fn without_a_user_any_answer_will_do() {
    for answer in [
        authentication(0, b""),
        authentication(3, b""),
        authentication(5, b"salt"),
        authentication(10, b"SCRAM-SHA-256\0\0"),
        error("FATAL", "28000", "role \"probe\" does not exist"),
        error("FATAL", "53300", "sorry, too many clients already"),
    ] {
        assert_eq!(
            is_up([start_up("probe", "postgres"), drips(answer)]).await,
            "ok"
        );
    }
    let starting = error("FATAL", "57P03", "the database system is starting up");
    assert_eq!(
        is_up([start_up("probe", "postgres"), says(starting)]).await,
        "bad-status: not ready: FATAL 57P03 the database system is starting up"
    );
}

#[tokio::test(start_paused = true)]
async fn roles() {
    for (role, answer, end) in [
        (Role::Any, &b"f"[..], "ok"),
        (Role::Any, b"t", "ok"),
        (Role::Primary, b"f", "ok"),
        (Role::Standby, b"t", "ok"),
        (
            Role::Primary,
            b"t",
            "body-mismatch: wrong role: in recovery: a standby, not primary",
        ),
        (
            Role::Standby,
            b"f",
            "body-mismatch: wrong role: not in recovery: a primary, not standby",
        ),
    ] {
        let acts = [says(ready()), query(), drips(row(answer))];
        assert_eq!(logs_in(role, None, &acts).await, end);
    }
    let odd = logs_in(Role::Any, None, &[says(ready()), query(), says(row(b"x"))]).await;
    assert!(
        odd.starts_with("body-mismatch: unexpected answer: neither"),
        "{odd}"
    );
}

#[tokio::test(start_paused = true)]
async fn passwords_in_clear_and_by_md5() {
    let tail = [says(ready()), query(), says(row(b"f"))];
    let clear = [
        says(authentication(3, b"")),
        hears(message(b'p', b"hunter2\0")),
    ];
    let all = [&clear[..], &tail].concat();
    assert_eq!(logs_in(Role::Primary, Some("hunter2"), &all).await, "ok");
    // printf 'md5%s' $(printf '%s\1\2\3\4' $(printf hunter2probe | md5sum | cut -c-32) | md5sum)
    let md5 = [
        says(authentication(5, &[1, 2, 3, 4])),
        hears(message(b'p', b"md5134ffb7ebab6cf28ab758466124d70f8\0")),
    ];
    let all = [&md5[..], &tail].concat();
    assert_eq!(logs_in(Role::Primary, Some("hunter2"), &all).await, "ok");
    // None to give.
    assert_eq!(
        logs_in(Role::Primary, None, &clear[..1]).await,
        "bad-status: not permitted: it wants a password, and none is configured"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_server_refuses() {
    for (code, text, end) in [
        ("28P01", "password authentication failed", "not permitted"),
        ("57P03", "the database system is starting up", "not ready"),
        (
            "57P01",
            "terminating connection due to administrator command",
            "not ready",
        ),
        ("53300", "sorry, too many clients already", "error"),
        ("3D000", "database \"app\" does not exist", "error"),
    ] {
        let end = format!("bad-status: {end}: FATAL {code} {text}");
        let refusal = says(error("FATAL", code, text));
        assert_eq!(
            logs_in(Role::Any, None, std::slice::from_ref(&refusal)).await,
            end
        );
        let later = [says(authentication(0, b"")), refusal.clone()];
        assert_eq!(logs_in(Role::Any, None, &later).await, end);
        let last = [says(ready()), query(), refusal];
        assert_eq!(logs_in(Role::Any, None, &last).await, end);
    }
    for (kind, body, end) in [
        (
            7,
            &b""[..],
            "bad-status: not permitted: it wants GSSAPI, SSPI or the like",
        ),
        (
            10,
            b"OAUTHBEARER\0\0",
            "bad-status: not permitted: it wants SASL, and not by SCRAM-SHA-256",
        ),
        (
            99,
            b"",
            "protocol: not a message of PostgreSQL, it begins `R\\0\\0\\0\\u{8}\\0\\0\\0c`",
        ),
    ] {
        let acts = [says(authentication(kind, body))];
        assert_eq!(logs_in(Role::Any, Some("hunter2"), &acts).await, end);
    }
}

/// The server's side of SCRAM is tested with a real one; here are its lies.
#[tokio::test(start_paused = true)]
async fn scram_that_lies() {
    // The client's first message has a nonce of its own choice, so its length alone is known.
    let offer = [
        says(authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")),
        Act::HearsSome(1 + 4 + 14 + 4 + 32),
    ];
    for challenge in [
        "r=another,s=c2FsdA==,i=4096",
        "r=another,s=c2FsdA==,i=4294967295",
        "garbage",
        "",
        "\u{fffd}\0",
    ] {
        let acts = [
            &offer[..],
            &[says(authentication(11, challenge.as_bytes()))],
        ]
        .concat();
        let end = logs_in(Role::Any, Some("hunter2"), &acts).await;
        assert!(
            end.starts_with("protocol: a broken message of PostgreSQL: "),
            "{end}"
        );
    }
    let acts = [&offer[..], &[says(authentication(12, b"v=c2FsdA=="))]].concat();
    let end = logs_in(Role::Any, Some("hunter2"), &acts).await;
    assert_eq!(end, "protocol: a message out of turn");
}

#[tokio::test(start_paused = true)]
async fn garbage_and_endless_answers() {
    let http = "protocol: not a message of PostgreSQL, it begins `HTTP/1.1 400 Bad Request\\r\\n`";
    for (acts, end) in [
        (vec![], "protocol: the connection is closed, nothing came"),
        (
            vec![says(b"R\0\0")],
            r"protocol: the answer breaks off, it begins `R\0\0`",
        ),
        (vec![says("HTTP/1.1 400 Bad Request\r\n")], http),
        (
            vec![says([b'R', 0, 0, 0, 3])],
            r"protocol: not a message of PostgreSQL, it begins `R\0\0\0\u{3}`",
        ),
        (
            vec![says(message(b'Z', b"I"))],
            "protocol: the end of an answer out of turn",
        ),
        (
            vec![repeats(message(b'S', b"a\0b\0"))],
            "protocol: the answer never ends",
        ),
        (
            vec![repeats(message(b'N', &[b'x'; 8000]))],
            "protocol: the answer never ends",
        ),
    ] {
        assert_eq!(is_up(acts.clone()).await, end);
        assert_eq!(logs_in(Role::Any, None, &acts).await, end);
    }
    let endless = [
        says(ready()),
        query(),
        repeats(message(b'D', &[0, 1, 0, 0, 0, 1, b'f'])),
    ];
    assert_eq!(
        logs_in(Role::Any, None, &endless).await,
        "protocol: a second row out of turn"
    );
    let postgres = Postgres::new(None, Role::Any);
    assert!(
        hold(postgres, [says(b"R\0\0\0\x08"), Act::Waits])
            .await
            .is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_asked_again_and_left_politely() {
    let postgres = Postgres::new(Some(login(None)), Role::Primary);
    assert!(postgres.can_keep());
    assert!(!Postgres::new(None, Role::Any).can_keep());
    let acts = [
        start_up("probe", "app"),
        says(ready()),
        query(),
        says(row(b"f")),
        query(),
        says(row(b"t")),
        hears(message(b'X', b"")),
    ];
    let outcomes = with(acts, async |stream, scratch| {
        let first = postgres.hold(stream, scratch).await;
        let second = postgres.ask(stream, scratch).await;
        leave(stream, true).await;
        (first, second)
    });
    let (first, second) = outcomes.await.expect("it ends");
    first.unwrap();
    assert_eq!(reason(&second), Some(Reason::Role));
}

#[tokio::test(start_paused = true)]
async fn tls_is_asked_for_and_never_done_without() {
    let question = hears([0, 0, 0, 8, 4, 210, 22, 47]);
    for (answer, end) in [
        (&b"S"[..], "ok"),
        (b"N", "body-mismatch: unexpected answer: it does no TLS"),
        (b"E", "bad-status: error: it cannot do TLS now"),
        (b"H", "protocol: not PostgreSQL, it begins `H`"),
        (b"", "protocol: the connection is closed, nothing came"),
    ] {
        let acts = [question.clone(), says(answer)];
        let outcome = with(acts, async |stream, _| request_tls(stream).await).await;
        assert_eq!(told(outcome.expect("it ends")), end);
    }
    // What follows the answer is left to TLS.
    let acts = [question, says(b"S\x16\x03")];
    let rest = with(acts, async |stream, _| {
        request_tls(stream).await.unwrap();
        stream.read_u8().await.unwrap()
    });
    assert_eq!(rest.await, Some(0x16));
}

proptest! {
    /// Whatever a server says, the conversation ends when it does, with a failure.
    #[test]
    fn garbage_is_bounded(bytes in prop::collection::vec(
        prop_oneof![prop::sample::select(&b"RESNKZTDC\0\0\0\0\x08\x0c"[..]), any::<u8>()], 0..120)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        for login in [None, Some(login(Some("hunter2")))] {
            let postgres = Postgres::new(login, Role::Any);
            let outcome = runtime.block_on(hold(postgres, [says(&bytes)]));
            prop_assert!(outcome.is_some());
        }
    }
}
