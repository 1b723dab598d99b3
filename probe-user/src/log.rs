//! The agent's log: on the standard error, as text or as JSON, and never without bound.
//!
//! Most lines that can come again are said once until things change. What can change again
//! and again by itself (an endpoint that flaps at 1 ms, a link that comes and goes, a packet
//! that makes the kernel side complain) is limited here: of one place in the program, about
//! one service, endpoint or interface, [`BURST`] lines at once and one a second after
//! that. What is held back is counted and told. Lines that somebody ordered, debug and trace,
//! are not limited.
//!
//! Invariant: what is said of one endpoint is never held back because of another, as long as
//! fewer than [`SUBJECTS`] of them have something to say.

use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::ValueEnum;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    layer::{Context, Filter, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

/// Lines of one place about one subject that may come at once.
const BURST: u32 = 20;
/// After so long one more may come.
const REFILL: Duration = Duration::from_secs(1);
/// Subjects that are remembered; those beyond share one allowance.
const SUBJECTS: usize = 16_384;

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal, unless NO_COLOR is set
    Text,
    /// One JSON object a line
    Json,
}

/// May output to this be coloured? <https://no-color.org>: NO_COLOR is set and not empty.
pub fn coloured(output: &impl IsTerminal) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    output.is_terminal() && !no_color && !dumb
}

/// Begins to log.
pub fn to_stderr(format: LogFormat) -> HeldBack {
    let wanted = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let held_back = HeldBack::default();
    let limit = Limit {
        buckets: Mutex::default(),
        held_back: held_back.clone(),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(coloured(&std::io::stderr())).boxed(),
        // Beside each other: what reads logs looks for `service`, not for `fields.service`.
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(wanted)
        .with(lines.with_filter(limit))
        .init();
    held_back
}

/// A panic anywhere ends the process; it is said in the log's own format.
pub fn end_on_panic(format: LogFormat) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        match format {
            LogFormat::Text => print(panic),
            LogFormat::Json => {
                let backtrace = std::backtrace::Backtrace::capture();
                tracing::error!(%backtrace, "{panic}");
            }
        }
        std::process::exit(1);
    }));
}

/// How many lines were held back.
#[derive(Clone, Debug, Default)]
pub struct HeldBack(Arc<AtomicU64>);

impl HeldBack {
    /// Since the last call.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

struct Limit {
    buckets: Mutex<Buckets>,
    held_back: HeldBack,
}

impl<S: Subscriber> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        // Verbose levels are greater.
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let mut subject = Subject(DefaultHasher::new());
        event.metadata().callsite().hash(&mut subject.0);
        event.record(&mut subject);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let may = buckets.admit(subject.0.finish(), Instant::now());
        if !may {
            self.held_back.0.fetch_add(1, Ordering::Relaxed);
        }
        may
    }
}

/// What a line is about: the place in the program and who it names.
struct Subject(DefaultHasher);

impl Subject {
    /// Lines of the `log` crate have one place in the program together, and say theirs.
    fn names(field: &Field) -> bool {
        matches!(
            field.name(),
            "service" | "endpoint" | "interface" | "log.target" | "log.line"
        )
    }
}

impl Visit for Subject {
    fn record_str(&mut self, field: &Field, value: &str) {
        if Self::names(field) {
            value.hash(&mut self.0);
        }
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        if Self::names(field) {
            value.hash(&mut self.0);
        }
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if Self::names(field) {
            format!("{value:?}").hash(&mut self.0);
        }
    }
}

/// Token buckets, one a subject.
#[derive(Default)]
struct Buckets {
    of: HashMap<u64, Bucket>,
    shared: Option<Bucket>,
    /// When there was no room the last time: looking for some takes long.
    cleared: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: u32,
    /// When `left` was right.
    at: Instant,
}

impl Bucket {
    fn full(at: Instant) -> Self {
        Self { left: BURST, at }
    }

    fn refill(&mut self, now: Instant) {
        let periods = now.saturating_duration_since(self.at).as_millis() / REFILL.as_millis();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if periods >= BURST - self.left {
            *self = Self::full(now);
        } else {
            self.left += periods;
            self.at += REFILL * periods;
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

impl Buckets {
    fn admit(&mut self, subject: u64, now: Instant) -> bool {
        if self.of.len() >= SUBJECTS && !self.of.contains_key(&subject) {
            self.clear(now);
            if self.of.len() >= SUBJECTS {
                return self
                    .shared
                    .get_or_insert_with(|| Bucket::full(now))
                    .take(now);
            }
        }
        self.of
            .entry(subject)
            .or_insert_with(|| Bucket::full(now))
            .take(now)
    }

    /// Forgets full ones: they say no more than those that are not there.
    fn clear(&mut self, now: Instant) {
        let lately = |then| now.saturating_duration_since(then) < REFILL;
        if self.cleared.is_some_and(lately) {
            return;
        }
        self.cleared = Some(now);
        self.of.retain(|_, bucket| {
            bucket.refill(now);
            bucket.left < BURST
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(buckets: &mut Buckets, subject: u64, times: u32, now: Instant) -> u32 {
        (0..times)
            .map(|_| u32::from(buckets.admit(subject, now)))
            .sum()
    }

    #[test]
    fn a_burst_then_one_a_second() {
        let mut buckets = Buckets::default();
        let start = Instant::now();
        assert_eq!(count(&mut buckets, 1, 100, start), BURST);
        // Another one is not held back for it.
        assert_eq!(count(&mut buckets, 2, 5, start), 5);
        let later = |ms| start + Duration::from_millis(ms);
        assert_eq!(count(&mut buckets, 1, 100, later(999)), 0);
        assert_eq!(count(&mut buckets, 1, 100, later(1000)), 1);
        // What is left of a period counts towards the next line.
        assert_eq!(count(&mut buckets, 1, 100, later(2500)), 1);
        assert_eq!(count(&mut buckets, 1, 100, later(3000)), 1);
        assert_eq!(count(&mut buckets, 1, 100, later(3_600_000)), BURST);
    }

    #[test]
    fn memory_is_bounded() {
        let mut buckets = Buckets::default();
        let start = Instant::now();
        let most = u64::try_from(SUBJECTS).expect("it is small");
        for subject in 0..most {
            assert!(buckets.admit(subject, start));
        }
        let shared = (most..2 * most)
            .filter(|s| buckets.admit(*s, start))
            .count();
        assert_eq!(shared, usize::try_from(BURST).expect("it is small"));
        assert_eq!(buckets.of.len(), SUBJECTS);
        // When those are quiet again there is room.
        assert!(buckets.admit(3 * most, start + REFILL));
        assert_eq!(buckets.of.len(), 1);
    }

    /// Counts the lines that come through the limit.
    fn lines_of(say: impl FnOnce()) -> (usize, u64) {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("no panic").extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (lines, held_back) = (Lines::default(), HeldBack::default());
        let limit = Limit {
            buckets: Mutex::default(),
            held_back: held_back.clone(),
        };
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(limit));
        tracing::subscriber::with_default(subscriber, say);
        let text = lines.0.lock().expect("no panic").clone();
        let count = text.split(|b| *b == b'\n').count() - 1;
        (count, held_back.take())
    }

    #[test]
    fn lines_are_limited_by_place_and_subject() {
        let burst = usize::try_from(BURST).expect("it is small");
        let (lines, held_back) = lines_of(|| {
            for i in 0..100 {
                tracing::info!(service = "a", i, "one");
                tracing::debug!(service = "a", "ordered");
            }
            // The clock may give one more line if the machine stands still for a second; the
            // place above had its burst of it then as well.
            tracing::warn!(service = "a", "another place");
        });
        assert!((burst + 101..burst + 110).contains(&lines), "{lines}");
        let lines = u64::try_from(lines).expect("it is small");
        assert_eq!(lines + held_back, 201);
        let (lines, held_back) = lines_of(|| {
            for endpoint in 0..100_u64 {
                tracing::warn!(service = "a", endpoint, "of each");
            }
        });
        assert_eq!((lines, held_back), (100, 0));
    }
}
