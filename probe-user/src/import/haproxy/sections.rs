//! Sections of a haproxy.cfg, and the lines that its conditions leave out.
//!
//! Pure and total: any text gives sections. Every line with words is in exactly one
//! section, or among [`File::stray`] (before the first one, or not to be read at all).

use std::collections::HashMap;

use super::words::{self, Environment, Line};

/// What begins a section, and what probe makes of it.
const KINDS: &[(&str, Kind)] = &[
    ("global", Kind::Global),
    ("defaults", Kind::Defaults),
    ("frontend", Kind::Frontend),
    ("backend", Kind::Backend),
    ("listen", Kind::Listen),
    ("peers", Kind::Other),
    ("resolvers", Kind::Other),
    ("userlist", Kind::Other),
    ("mailers", Kind::Other),
    ("cache", Kind::Other),
    ("program", Kind::Other),
    ("http-errors", Kind::Other),
    ("ring", Kind::Other),
    ("log-forward", Kind::Other),
    ("log-profile", Kind::Other),
    ("fcgi-app", Kind::Other),
    ("crt-store", Kind::Other),
    ("acme", Kind::Other),
    ("traces", Kind::Other),
];

/// Kinds of section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the whole process.
    Global,
    /// For the proxies below it, or those that name it.
    Defaults,
    /// Where clients come in.
    Frontend,
    /// Servers.
    Backend,
    /// Both.
    Listen,
    /// Nothing that steers connections.
    Other,
}

/// A section.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its kind.
    pub kind: Kind,
    /// Its first line.
    pub head: Line,
    /// Its name, or nothing.
    pub name: String,
    /// The named `defaults` that it is made from.
    pub from: Option<String>,
    /// Lines with words.
    pub lines: Vec<Line>,
}

/// Why a line is in no section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    /// It stands before the first one.
    Before,
    /// Its condition is not met.
    Inactive,
    /// `.if` and the like, which could be decided.
    Condition,
    /// `.if` and the like, which only a running HAProxy can decide; read as true.
    Undecided,
    /// `.notice` and the like.
    Message,
}

/// A whole file.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// In order.
    pub sections: Vec<Section>,
    /// Lines with words and without a section.
    pub stray: Vec<(Line, Stray)>,
    /// How many lines hold nothing but blanks and comments.
    pub blank: usize,
}

/// Reads a file.
pub fn parse(text: &str, environment: Environment) -> File {
    let mut file = File::default();
    let mut own: HashMap<String, Option<String>> = HashMap::new();
    let mut conditions = Conditions::default();
    for (number, count, raw) in words::raw_lines(text) {
        let section = file.sections.last().map(|section| section.name.clone());
        let lookup = |name: &str| match name {
            ".LINE" => Some(number.to_string()),
            ".SECTION" => section.clone(),
            name => match own.get(name) {
                Some(value) => value.clone(),
                None => environment(name),
            },
        };
        let line = words::line(number, count, &raw, &lookup);
        if line.is_empty() {
            file.blank += line.count;
            continue;
        }
        if let Some(stray) = conditions.step(&line, &lookup) {
            file.stray.push((line, stray));
            continue;
        }
        let set = set_variables(&line, &lookup);
        own.extend(set);
        let kind = KINDS.iter().find(|(word, _)| *word == line.word(0));
        match (kind, file.sections.last_mut()) {
            (Some((_, kind)), _) => file.sections.push(Section::new(*kind, line)),
            (None, Some(section)) => section.lines.push(line),
            (None, None) => file.stray.push((line, Stray::Before)),
        }
    }
    file
}

impl Section {
    fn new(kind: Kind, head: Line) -> Self {
        let mut words = head.from(1).iter();
        let first = words.next().cloned();
        // `defaults from base` has no name of its own.
        let (name, from) = match (first.as_deref(), head.word(2)) {
            (Some("from"), base) if kind == Kind::Defaults => {
                (String::new(), Some(base.to_owned()))
            }
            (_, "from") => (first.unwrap_or_default(), Some(head.word(3).to_owned())),
            _ => (first.unwrap_or_default(), None),
        };
        Self {
            kind,
            name,
            from: from.filter(|from| !from.is_empty()),
            lines: Vec::new(),
            head,
        }
    }
}

/// What `setenv` and its like change for later lines.
fn set_variables(line: &Line, lookup: Environment) -> Vec<(String, Option<String>)> {
    let name = line.word(1).to_owned();
    match line.word(0) {
        "setenv" => vec![(name, Some(line.word(2).to_owned()))],
        "presetenv" if lookup(&name).is_none() => vec![(name, Some(line.word(2).to_owned()))],
        "unsetenv" => line
            .from(1)
            .iter()
            .map(|name| (name.clone(), None))
            .collect(),
        _ => Vec::new(),
    }
}

/// Open `.if` blocks, outermost first.
#[derive(Default)]
struct Conditions {
    open: Vec<Block>,
}

struct Block {
    /// The lines that follow count.
    active: bool,
    /// One of its branches has counted.
    taken: bool,
}

impl Conditions {
    /// What the line is, unless it is one of a section.
    fn step(&mut self, line: &Line, lookup: Environment) -> Option<Stray> {
        let outer = match self.open.split_last() {
            Some((_, outer)) => outer.iter().all(|block| block.active),
            None => true,
        };
        let active = self.open.iter().all(|block| block.active);
        let expression = line.from(1).join(" ");
        match line.word(0) {
            ".if" => {
                let value = if active {
                    decide(&expression, lookup)
                } else {
                    Some(false)
                };
                let yes = value.unwrap_or(true);
                self.open.push(Block {
                    active: yes,
                    taken: yes,
                });
                Some(said(value))
            }
            ".elif" => {
                let block = self.open.last_mut()?;
                let value = if outer && !block.taken {
                    decide(&expression, lookup)
                } else {
                    Some(false)
                };
                block.active = value.unwrap_or(true);
                block.taken |= block.active;
                Some(said(value))
            }
            ".else" => {
                let block = self.open.last_mut()?;
                block.active = !block.taken;
                block.taken = true;
                Some(Stray::Condition)
            }
            ".endif" => self.open.pop().map(|_| Stray::Condition),
            _ if !active => Some(Stray::Inactive),
            ".notice" | ".warning" | ".alert" | ".diag" => Some(Stray::Message),
            _ => None,
        }
    }
}

fn said(value: Option<bool>) -> Stray {
    match value {
        Some(_) => Stray::Condition,
        None => Stray::Undecided,
    }
}

/// The conditions that need no HAProxy: numbers, `defined`, `streq`, `strneq`, negated or
/// not, without `&&` and `||`.
fn decide(expression: &str, lookup: Environment) -> Option<bool> {
    let text = expression.trim();
    let bare = text.trim_start_matches(['!', ' ']);
    let negations = text[..text.len() - bare.len()].matches('!').count();
    if negations > 0 && !bare.is_empty() {
        return decide(bare, lookup).map(|value| value != (negations % 2 == 1));
    }
    if text.is_empty() {
        return Some(false);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Some(number != 0);
    }
    let (predicate, rest) = text.split_once('(')?;
    let inside = rest.strip_suffix(')')?;
    if inside.contains(['(', ')', '&', '|']) {
        return None;
    }
    let two = || {
        let (a, b) = inside.split_once(',')?;
        let bare = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
        Some((bare(a), bare(b)))
    };
    match predicate.trim() {
        "defined" => Some(lookup(inside.trim()).is_some()),
        "streq" => two().map(|(a, b)| a == b),
        "strneq" => two().map(|(a, b)| a != b),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_have_names_and_bases() {
        let text = "lost\nglobal\n  daemon\ndefaults base\n mode tcp\ndefaults from base\n\
                    defaults web from base # c\nbackend b from web\n server a 1.2.3.4:5\n\n# x\n";
        let file = parse(text, &|_| None);
        let found: Vec<_> = file
            .sections
            .iter()
            .map(|s| (s.kind, s.name.as_str(), s.from.as_deref(), s.lines.len()))
            .collect();
        assert_eq!(
            found,
            [
                (Kind::Global, "", None, 1),
                (Kind::Defaults, "base", None, 1),
                (Kind::Defaults, "", Some("base"), 0),
                (Kind::Defaults, "web", Some("base"), 0),
                (Kind::Backend, "b", Some("web"), 1),
            ]
        );
        assert_eq!((file.stray.len(), file.blank), (1, 2));
        assert_eq!(file.stray[0].1, Stray::Before);
    }

    #[test]
    fn conditions_choose_lines() {
        let text = "global\n setenv A 1\n.if defined(A)\n a\n.elif defined(B)\n b\n.else\n c\n.endif\n\
                    .if feature(OPENSSL)\n d\n.else\n e\n.endif\n.if 0\n.if 1\n f\n.endif\n.else\n g\n.endif\n\
                    .if ! !streq(\"$A\",1)\n h\n.endif\n.if !defined(A)\n i\n.endif\n.notice \"x\"\n";
        let file = parse(text, &|_| None);
        let kept: Vec<_> = file.sections[0].lines.iter().map(|l| l.word(0)).collect();
        assert_eq!(kept, ["setenv", "a", "d", "g", "h"]);
        let of = |kind| {
            file.stray
                .iter()
                .filter(|(_, stray)| *stray == kind)
                .count()
        };
        assert_eq!(of(Stray::Inactive), 5);
        assert_eq!(of(Stray::Undecided), 1);
        assert_eq!(of(Stray::Message), 1);
    }

    #[test]
    fn a_lone_end_is_a_line_like_any_other() {
        let file = parse("global\n.endif\n.else\n", &|_| None);
        assert_eq!(file.sections[0].lines.len(), 2);
    }
}
