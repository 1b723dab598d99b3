use proptest::prelude::*;

use super::*;
use crate::health::protocol::tests::{Act, drips, hears, reason, repeats, says, told, with};

fn send(text: &str) -> Step {
    Step::Send(unescape(text).unwrap())
}

fn pattern(text: &str) -> Pattern {
    Pattern::Bytes(unescape(text).unwrap())
}

fn expect_of(pattern: Pattern) -> Expect {
    Expect {
        pattern,
        negated: false,
        min_recv: None,
    }
}

fn expect(text: &str) -> Step {
    Step::Expect(expect_of(pattern(text)))
}

fn regex(text: &str) -> Step {
    Step::Expect(expect_of(Pattern::Regex(Regex::new(text).unwrap())))
}

fn never(text: &str, min_recv: Option<usize>) -> Step {
    Step::Expect(Expect {
        pattern: pattern(text),
        negated: true,
        min_recv,
    })
}

/// `None`: it does not end.
async fn run(steps: impl Into<Vec<Step>>, acts: impl Into<Vec<Act>>) -> Option<Outcome> {
    let script = Script::new(steps.into()).unwrap();
    with(acts, async |stream, scratch| {
        script.hold(stream, scratch).await
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
        send(r"EHLO probe\r\n"),
        regex(r"(?m)^250[ -]SIZE \d+\r$"),
        Step::Send(unhex("00 ff 0D0a").unwrap()),
        Step::Expect(expect_of(Pattern::Bytes(unhex("fe00").unwrap()))),
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
        r"body-mismatch: unexpected answer: step 2 expects `+PONG`, the answer begins `-ERR\x00\r\n`"
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
        "body-mismatch: unexpected answer: step 3 expects `one`, the answer begins `two`"
    );
}

#[tokio::test(start_paused = true)]
async fn what_must_not_come() {
    let error =
        "body-mismatch: unexpected answer: step 1 expects not `ERR`, the answer begins `-ERR`";
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
    let mut wanted = expect_of(pattern("OK"));
    wanted.min_recv = Some(4);
    let steps = [Step::Expect(wanted)];
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

#[test]
fn a_script_must_expect_something() {
    assert!(Script::new(vec![send("x")]).is_none());
    assert!(Script::new(Vec::new()).is_none());
}

#[test]
fn bytes_as_people_write_them() {
    let bytes = |text| unescape(text).map(|bytes| bytes.to_vec());
    assert_eq!(
        bytes(r"a\r\n\t\0\\\x00\xfF"),
        Ok(b"a\r\n\t\0\\\x00\xff".to_vec())
    );
    assert_eq!(bytes("ä"), Ok("ä".as_bytes().to_vec()));
    for wrong in [r"\", r"\q", r"\x", r"\x1", r"\xg0", r"\x+1"] {
        assert!(bytes(wrong).is_err(), "{wrong}");
    }
    let hex = |text| unhex(text).map(|bytes| bytes.to_vec());
    assert_eq!(hex("00 fF\n0a"), Ok(b"\x00\xff\n".to_vec()));
    for wrong in ["0", "0g", "+1", "0 1 2"] {
        assert!(hex(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn any_bytes_can_be_written(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
        prop_assert_eq!(unhex(&hex).unwrap(), &bytes);
        let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        prop_assert_eq!(unescape(&escaped).unwrap(), &bytes);
        // As a failure shows them, they can be written; quotes aside, which it escapes too.
        let shown = bytes.escape_ascii().to_string().replace("\\'", "'").replace("\\\"", "\"");
        prop_assert_eq!(unescape(&shown).unwrap(), &bytes);
    }

    #[test]
    fn any_text_is_bytes_or_told_to_be_wrong(text in "\\PC{0,40}") {
        let _ = unescape(&text);
        let _ = unhex(&text);
    }

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
