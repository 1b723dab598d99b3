use proptest::prelude::*;
use regex::bytes::Regex;

use super::*;
use crate::health::protocol::failure::Outcome;
use crate::health::protocol::tests::{Act, drips, hears, reason, repeats, says, told, with};

fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec().into())
}

fn step(pattern: BodyMatch, negated: bool, min_recv: Option<usize>) -> Step {
    let looked = Looked { pattern, negated };
    Step::Expect { looked, min_recv }
}

fn expect(bytes: impl AsRef<[u8]>) -> Step {
    step(BodyMatch::contains(bytes.as_ref()), false, None)
}

fn regex(text: &str) -> Step {
    step(BodyMatch::Regex(Regex::new(text).unwrap()), false, None)
}

fn never(text: &str, min_recv: Option<usize>) -> Step {
    step(BodyMatch::contains(text.as_bytes()), true, min_recv)
}

/// `None`: it does not end.
async fn run(steps: impl Into<Vec<Step>>, acts: impl Into<Vec<Act>>) -> Option<Outcome> {
    let steps = steps.into();
    with(acts, async |stream, scratch| {
        hold(Dialogue::Script(&steps), stream, scratch).await
    })
    .await
}

async fn ends(steps: impl Into<Vec<Step>>, acts: impl Into<Vec<Act>>) -> String {
    told(run(steps, acts).await.expect("it ends"))
}

#[tokio::test(start_paused = true)]
async fn several_steps_in_text_and_binary() {
    let steps = [
        expect("220 "),
        send("EHLO probe\r\n"),
        regex(r"(?m)^250[ -]SIZE \d+\r$"),
        send(b"\x00\xff\r\n"),
        expect(b"\xfe\x00"),
    ];
    let acts = [
        drips("220 mail.example.com\r\n"),
        hears("EHLO probe\r\n"),
        drips("250-mail\r\n250-SIZE 100\r\n250 HELP\r\n"),
        hears(b"\x00\xff\r\n"),
        says(b"\xff\xfe\x00"),
        Act::Waits,
    ];
    assert_eq!(ends(steps, acts).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_answer_is_quoted_once_no_other_can_come() {
    let steps = [send("PING"), expect("+PONG")];
    let acts = [hears("PING"), says("-ERR\0\r\n")];
    assert_eq!(
        ends(steps.clone(), acts.clone()).await,
        r"body-mismatch: unexpected answer: step 2 expects `+PONG`, it begins `-ERR\0\r\n`"
    );
    // While the connection is open, what is expected may still come.
    let acts = [&acts[..], &[Act::Waits]].concat();
    assert!(run(steps, acts).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn nothing_at_all() {
    let closed = "protocol: the connection is closed, nothing came";
    assert_eq!(ends([expect("x")], []).await, closed);
    assert!(run([expect("x")], [Act::Waits]).await.is_none());
    // Truncated.
    let outcome = run([expect("220 ")], [says("22")]).await.unwrap();
    assert_eq!(reason(&outcome), Some(Reason::Answer));
}

#[tokio::test(start_paused = true)]
async fn expectations_between_two_sends_share_what_came() {
    // In any order, and each whenever it is there.
    let steps = [expect("two"), expect("one"), send("x"), expect("three")];
    let acts = [drips("one two"), hears("x"), drips("three"), Act::Waits];
    assert_eq!(ends(steps, acts).await, "ok");
    // A send empties the buffer: what came before it counts no more.
    let steps = [expect("one"), send("x"), expect("one")];
    let acts = [says("one"), hears("x"), says("two")];
    assert_eq!(
        ends(steps, acts).await,
        "body-mismatch: unexpected answer: step 3 expects `one`, it begins `two`"
    );
}

#[tokio::test(start_paused = true)]
async fn what_must_not_come() {
    let error = "body-mismatch: unexpected answer: step 1 expects not `ERR`, it begins `-ERR`";
    let open = |text: &str| [says(text), Act::Waits];
    // Its presence is certain at once, its absence when the endpoint has closed.
    assert_eq!(ends([never("ERR", None)], open("-ERR")).await, error);
    assert!(run([never("ERR", None)], open("+OK fine")).await.is_none());
    assert_eq!(ends([never("ERR", None)], [says("+OK fine")]).await, "ok");
    // Or after so many bytes.
    assert_eq!(ends([never("ERR", Some(3))], open("+OK")).await, "ok");
    assert_eq!(ends([never("ERR", Some(4))], [drips("-ERR")]).await, error);
    assert!(run([never("ERR", Some(4))], open("+OK")).await.is_none());
    let both = [expect("OK"), never("ERR", Some(0))];
    assert_eq!(ends(both.clone(), [drips("+OK")]).await, "ok");
    let outcome = run(both, [says("+OK ERR")]).await.unwrap();
    assert_eq!(reason(&outcome), Some(Reason::Answer));
}

#[tokio::test(start_paused = true)]
async fn with_min_recv_absence_is_certain_too() {
    let steps = [step(BodyMatch::contains(b"OK"), false, Some(4))];
    assert!(run(steps.clone(), [says("OK"), Act::Waits]).await.is_none());
    assert_eq!(ends(steps.clone(), [drips("  OK"), Act::Waits]).await, "ok");
    let outcome = run(steps, [drips("OKAY"), Act::Waits]).await.unwrap();
    assert!(outcome.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_endless_answer_is_judged_by_its_beginning() {
    let outcome = run([expect("x")], [repeats([b'.'; 1000])]).await.unwrap();
    assert_eq!(reason(&outcome), Some(Reason::Answer));
    assert_eq!(
        ends([never("x", None)], [repeats([b'.'; 1000])]).await,
        "ok"
    );
    let late = [says(vec![b'.'; LIMIT]), repeats("x")];
    assert!(run([expect("x")], late).await.unwrap().is_err());
    let just = [says(vec![b'.'; LIMIT - 1]), repeats("x")];
    assert!(run([expect("x")], just).await.unwrap().is_ok());
    // After a send there is room again.
    let steps = [expect(".."), send("go"), expect("x")];
    let acts = [
        says(vec![b'.'; 64]),
        hears("go"),
        says(vec![b'.'; LIMIT - 100]),
        says("x"),
    ];
    assert_eq!(ends(steps, acts).await, "ok");
}

proptest! {
    /// However the answer is cut into pieces, the outcome is that of the whole of it.
    #[test]
    fn pieces_make_no_difference(
        answer in "[abc]{1,12}",
        wanted in prop::collection::vec(("[abc]{1,3}", any::<bool>()), 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let steps: Vec<_> = wanted
            .iter()
            .map(|(text, negated)| if *negated { never(text, None) } else { expect(text) })
            .collect();
        let met = wanted.iter().all(|(text, negated)| answer.contains(text) != *negated);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(answer.len())).collect();
        cuts.sort_unstable();
        let mut acts = Vec::new();
        let mut from = 0;
        for cut in cuts {
            acts.extend([says(&answer[from..cut]), Act::Pauses]);
            from = cut;
        }
        acts.push(says(&answer[from..]));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let outcome = runtime.block_on(run(steps, acts)).expect("it ends");
        prop_assert_eq!(outcome.is_ok(), met);
    }
}
