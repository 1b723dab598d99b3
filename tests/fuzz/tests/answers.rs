//! Replays `tests/cases/answers`, and walks around it.

mod suite;

use probe_fuzz::{
    answers::{check, made},
    stored_answers,
};
use suite::Suite;

const ANSWERS: Suite = Suite {
    folder: "answers",
    stored: stored_answers,
    made,
    check,
    deciding: b"\r\n0:;, ",
};

#[test]
fn every_stored_answer_holds() {
    ANSWERS.stored_hold();
}

#[test]
fn the_stored_answers_are_the_made_ones() {
    ANSWERS.stored_are_made();
}

#[test]
fn changed_answers_hold() {
    ANSWERS.changed_hold(100_000);
}
