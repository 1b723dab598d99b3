//! What became of each line of the source.
//!
//! Invariant: a line is one [`Entry`], however many notes are made about it, and a line
//! that nothing was said about is said to be unused.

use std::collections::BTreeMap;

use serde::Serialize;

/// What became of something, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It does here what it did there.
    Carried,
    /// It has a counterpart that differs.
    Changed,
    /// It is not done here.
    Left,
    /// Nobody knows what it is.
    Unknown,
}

impl Outcome {
    /// In lower case, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Changed => "changed",
            Self::Left => "left",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of a line, or of some words of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The words; nothing for the whole line.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// What became of them.
    pub outcome: Outcome,
    /// Why, and where it belongs instead.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Health or the choice of a server depends on it, and it was not carried over.
    #[serde(skip_serializing_if = "is_false")]
    pub matters: bool,
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Note {
    fn new(what: impl Into<String>, outcome: Outcome, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            outcome,
            why: why.into(),
            matters: false,
        }
    }

    /// It does here what it did there.
    pub fn carried(what: impl Into<String>, how: impl Into<String>) -> Self {
        Self::new(what, Outcome::Carried, how)
    }
    /// It has a counterpart that differs.
    pub fn changed(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(what, Outcome::Changed, why)
    }
    /// It is not done here, and neither health nor the choice of a server depends on it.
    pub fn left(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(what, Outcome::Left, why)
    }
    /// It is not done here, and health or the choice of a server depends on it.
    pub fn lost(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            matters: true,
            ..Self::new(what, Outcome::Left, why)
        }
    }
    /// Nobody knows what it is, so it may matter.
    pub fn unknown(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            matters: true,
            ..Self::new(what, Outcome::Unknown, why)
        }
    }
}

/// A line of the source.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Its number, from 1.
    pub line: usize,
    /// The section that it stands in.
    pub section: String,
    /// As written.
    pub text: String,
    /// The worst of its notes.
    pub outcome: Outcome,
    /// What was said about it, at least one.
    pub notes: Vec<Note>,
}

/// All lines of the source that say something.
#[derive(Clone, Debug, Default)]
pub struct Report {
    entries: BTreeMap<usize, Entry>,
    /// What the result still needs before an agent takes it.
    fault: Option<String>,
}

/// How many lines met each fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Of these lines all was carried over.
    pub carried: usize,
    /// Of these something differs.
    pub changed: usize,
    /// Of these something is not done here.
    pub left: usize,
    /// Of these something was not understood.
    pub unknown: usize,
}

#[derive(Serialize)]
struct Json<'a> {
    source: &'a str,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'a str>,
    counts: Counts,
    lines: Vec<&'a Entry>,
}

impl Report {
    /// A line that will be spoken of.
    pub fn line(&mut self, line: usize, section: &str, text: &str) {
        self.entries.insert(
            line,
            Entry {
                line,
                section: section.to_owned(),
                text: text.to_owned(),
                outcome: Outcome::Carried,
                notes: Vec::new(),
            },
        );
    }

    /// Says something about a line. Said twice it is said once.
    pub fn note(&mut self, line: usize, note: Note) {
        let entry = self.entries.entry(line).or_insert_with(|| Entry {
            line,
            section: String::new(),
            text: String::new(),
            outcome: Outcome::Carried,
            notes: Vec::new(),
        });
        if !entry.notes.contains(&note) {
            entry.outcome = entry.outcome.max(note.outcome);
            entry.notes.push(note);
        }
    }

    /// Says of lines that nothing was said about that nothing uses them.
    pub fn finish(&mut self, fault: Option<String>) {
        for entry in self.entries.values_mut().filter(|e| e.notes.is_empty()) {
            let note = Note::left("", "nothing that was imported uses it");
            entry.outcome = note.outcome;
            entry.notes.push(note);
        }
        self.fault = fault;
    }

    /// The lines, in order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// What an agent would say against the result.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Would an agent take the result, and is all in it that health and the choice of a
    /// server depend on?
    pub fn complete(&self) -> bool {
        self.fault.is_none() && !self.entries().any(|e| e.notes.iter().any(|n| n.matters))
    }

    /// How many lines met each fate.
    pub fn counts(&self) -> Counts {
        let of = |outcome| self.entries().filter(|e| e.outcome == outcome).count();
        Counts {
            carried: of(Outcome::Carried),
            changed: of(Outcome::Changed),
            left: of(Outcome::Left),
            unknown: of(Outcome::Unknown),
        }
    }

    /// For programs.
    pub fn json(&self, source: &str) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Json {
            source,
            complete: self.complete(),
            fault: self.fault(),
            counts: self.counts(),
            lines: self.entries().collect(),
        })
    }

    /// For people: each line once, below it what differs.
    pub fn human(&self, source: &str) -> String {
        let Counts {
            carried,
            changed,
            left,
            unknown,
        } = self.counts();
        let mut text = format!(
            "{source}: {carried} lines carried over, {changed} changed, {left} left, {unknown} unknown\n"
        );
        let mut section = "";
        for entry in self.entries() {
            if entry.section != section {
                section = &entry.section;
                let shown = if section.is_empty() { "-" } else { section };
                text += &format!("\n{}\n", short(shown, 88));
            }
            text += &format!(
                "{:>5}  {:8} {}\n",
                entry.line,
                entry.outcome.as_str(),
                short(&entry.text, 88)
            );
            let notes: Vec<_> = entry.notes.iter().filter(|n| !n.why.is_empty()).collect();
            for note in &notes {
                text += &said(note, note.outcome != entry.outcome || notes.len() > 1);
            }
        }
        text += match (&self.fault, self.complete()) {
            (Some(_), _) => "\nnot usable yet: ",
            (None, true) => {
                "\ncomplete: all that health and the choice of a server depend on was carried over\n"
            }
            (None, false) => {
                "\nusable, and not complete: what is marked ! was not carried over, and health or the \
                 choice of a server depends on it\n"
            }
        };
        if let Some(fault) = &self.fault {
            text += &format!("{}\n", short(fault, usize::MAX));
        }
        text
    }
}

fn said(note: &Note, several: bool) -> String {
    let mark = if note.matters { "!" } else { " " };
    let what = match note.what.as_str() {
        "" => String::new(),
        what => format!("{}: ", short(what, 60)),
    };
    // The outcome of the line is said already; of several notes each has its own.
    let outcome = if several {
        format!("{}: ", note.outcome.as_str())
    } else {
        String::new()
    };
    let why = short(&note.why, usize::MAX);
    wrapped(&format!("{outcome}{what}{why}"), mark)
}

/// Lines of at most 100 columns, below the text of the entry.
fn wrapped(text: &str, mark: &str) -> String {
    let mut out = String::new();
    let mut line = String::new();
    let mut flush = |line: &mut String| {
        let mark = if out.is_empty() { mark } else { " " };
        out.push_str(format!("             {mark}  {line}").trim_end());
        out.push('\n');
        line.clear();
    };
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > 84 {
            flush(&mut line);
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    flush(&mut line);
    out
}

/// On one line, without control characters, of bounded width.
pub fn short(text: &str, width: usize) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == width {
            out.pop();
            out.push('…');
            break;
        }
        match c {
            '\t' | '\n' | '\r' => out.push(' '),
            c if c.is_control() || is_invisible(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Line and paragraph separators, marks of direction, byte order marks: not to be shown as they
/// are, nor allowed in a comment of YAML.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}'..='\u{200f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_entry_and_as_good_as_its_worst_note() {
        let mut report = Report::default();
        report.line(2, "backend b", "server a");
        report.line(1, "backend b", "backend b");
        report.note(2, Note::carried("a", ""));
        report.note(2, Note::changed("b", "why"));
        report.note(2, Note::changed("b", "why"));
        report.finish(None);
        let found: Vec<_> = report
            .entries()
            .map(|e| (e.line, e.outcome, e.notes.len()))
            .collect();
        assert_eq!(found, [(1, Outcome::Left, 1), (2, Outcome::Changed, 2)]);
        assert!(report.complete());
        report.note(2, Note::lost("c", "why"));
        assert!(!report.complete());
        assert_eq!(report.counts().left, 2);
        assert!(
            report.human("f").contains("!  left: c: why"),
            "{}",
            report.human("f")
        );
    }

    #[test]
    fn what_is_shown_is_one_line() {
        assert_eq!(short("a\tb\u{1b}[0m\u{2028}", 9), "a b\u{fffd}[0m\u{fffd}");
        assert_eq!(short("abcdef", 4), "abc…");
    }
}
