//! What happened in a test, in one order: what processes printed, which faults
//! were made. Shown when the test fails.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

struct Journal {
    begun: Option<Instant>,
    lines: Vec<String>,
}

static JOURNAL: Mutex<Journal> = Mutex::new(Journal {
    begun: None,
    lines: Vec::new(),
});

fn journal() -> MutexGuard<'static, Journal> {
    JOURNAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets the test before.
pub fn begin() {
    let mut journal = journal();
    journal.begun = Some(Instant::now());
    journal.lines.clear();
}

/// Adds a line.
pub fn note(who: &str, what: &str) {
    let mut journal = journal();
    let begun = *journal.begun.get_or_insert_with(Instant::now);
    journal.lines.push(format!(
        "{:9.3}s {who:>8} | {what}",
        begun.elapsed().as_secs_f64()
    ));
}

/// Everything since [`begin`].
pub fn text() -> String {
    journal().lines.join("\n")
}
