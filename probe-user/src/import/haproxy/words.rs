//! Lines of a haproxy.cfg as words: quotes, escapes, variables, comments.
//!
//! Follows HAProxy's own rules (its manual, section 2.2 and 2.3). Two things are
//! taken more kindly than HAProxy does, since a report is worth more than a refusal: a
//! quote that is not closed ends with its line, and a backslash at the end of a line joins
//! the next one. Invariant: every line of the text is in exactly one [`Line`].

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A line, joined with those that it is continued by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Of its first line, from 1.
    pub number: usize,
    /// How many lines of the file it is.
    pub count: usize,
    /// As written, without blanks around it.
    pub text: String,
    /// What stands in it before a comment.
    pub words: Vec<String>,
    /// What could not be read as HAProxy would.
    pub problems: Vec<String>,
}

impl Line {
    /// Has it no words?
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The word at a place, or nothing.
    pub fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    /// The words from a place on.
    pub fn from(&self, at: usize) -> &[String] {
        self.words.get(at..).unwrap_or_default()
    }
}

/// Splits a text into lines. Variables are looked up when words are made, so that `setenv`
/// earlier in the file counts.
pub fn raw_lines(text: &str) -> Vec<(usize, usize, String)> {
    let mut lines: Vec<(usize, usize, String)> = Vec::new();
    let mut open = false;
    for (i, line) in text.lines().enumerate() {
        let continued = ends_in_backslash(line);
        let piece = if continued {
            &line[..line.len() - 1]
        } else {
            line
        };
        match lines.last_mut() {
            Some((_, count, joined)) if open => {
                *count += 1;
                joined.push_str(piece);
            }
            _ => lines.push((i + 1, 1, piece.to_owned())),
        }
        open = continued;
    }
    lines
}

/// An odd number of them: the last one escapes the line's end. Not in a comment.
fn ends_in_backslash(line: &str) -> bool {
    let slashes = line.len() - line.trim_end_matches('\\').len();
    slashes % 2 == 1 && !line.trim_start().starts_with('#')
}

/// Makes words of a line.
pub fn line(number: usize, count: usize, text: &str, environment: Environment) -> Line {
    let mut reader = Reader {
        chars: text.chars().collect(),
        at: 0,
        words: Vec::new(),
        word: None,
        problems: Vec::new(),
        environment,
    };
    reader.read();
    let Reader {
        words, problems, ..
    } = reader;
    Line {
        number,
        count,
        text: text.trim().to_owned(),
        words,
        problems,
    }
}

/// Of Unicode's private area, where bytes written as `\xHH` stand until they are asked for.
const PRIVATE: u32 = 0xf700;

/// A word as the bytes that HAProxy makes of it.
pub fn bytes(word: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for c in word.chars() {
        match u32::from(c).checked_sub(PRIVATE).map(u8::try_from) {
            Some(Ok(byte)) if byte >= 0x80 => bytes.push(byte),
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

struct Reader<'a> {
    chars: Vec<char>,
    at: usize,
    words: Vec<String>,
    /// The word that is being read; `""` is one too.
    word: Option<String>,
    problems: Vec<String>,
    environment: Environment<'a>,
}

impl Reader<'_> {
    fn read(&mut self) {
        while let Some(c) = self.next() {
            match c {
                '#' => break,
                ' ' | '\t' | '\r' => self.end_word(),
                '"' => self.weak(),
                '\'' => self.strong(),
                '\\' => self.escape(),
                c => self.push(c),
            }
        }
        self.end_word();
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        Some(c)
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn end_word(&mut self) {
        self.words.extend(self.word.take());
    }

    /// Behind a backslash. What is no escape keeps its backslash, as regexes need it.
    fn escape(&mut self) {
        let plain = match self.peek(0) {
            Some(c @ (' ' | '\t' | '\\' | '#' | '"' | '\'' | '$')) => Some(c),
            Some('n') => Some('\n'),
            Some('r') => Some('\r'),
            Some('t') => Some('\t'),
            Some('x') => return self.hex(),
            _ => None,
        };
        match plain {
            Some(c) => {
                self.at += 1;
                self.push(c);
            }
            None => self.push('\\'),
        }
    }

    fn hex(&mut self) {
        let digit = |c: Option<char>| c.and_then(|c| c.to_digit(16));
        match (digit(self.peek(1)), digit(self.peek(2))) {
            (Some(high), Some(low)) => {
                self.at += 3;
                let byte = high * 16 + low;
                // Bytes that are no ASCII are kept apart from letters of UTF-8, see `bytes`.
                let code = if byte < 0x80 { byte } else { PRIVATE + byte };
                self.push(char::from_u32(code).unwrap_or('\u{fffd}'));
            }
            _ => {
                self.problems
                    .push("\\x needs two hexadecimal digits".to_owned());
                self.push('\\');
            }
        }
    }

    fn strong(&mut self) {
        self.word.get_or_insert_default();
        while let Some(c) = self.next() {
            match c {
                '\'' => return,
                c => self.push(c),
            }
        }
        self.problems.push("a ' that is not closed".to_owned());
    }

    fn weak(&mut self) {
        self.word.get_or_insert_default();
        while let Some(c) = self.next() {
            match c {
                '"' => return,
                '\\' => self.escape(),
                '$' => self.variable(),
                c => self.push(c),
            }
        }
        self.problems.push("a \" that is not closed".to_owned());
    }

    /// Behind a `$` in weak quotes: `NAME`, `{NAME}`, `{NAME-default}`, `{NAME[*]}`.
    fn variable(&mut self) {
        let braced = self.peek(0) == Some('{');
        let start = self.at + usize::from(braced);
        let rest = self.chars.get(start..).unwrap_or_default();
        let length = rest
            .iter()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
            .count();
        let name: String = rest[..length].iter().collect();
        if name.is_empty() {
            return self.push('$');
        }
        if !braced {
            self.at = start + length;
            return self.insert(&name, None, false);
        }
        let Some(close) = rest.iter().position(|c| *c == '}') else {
            self.problems.push(format!("${{{name} is not closed"));
            return self.push('$');
        };
        self.at = start + close + 1;
        let behind: String = rest[length.min(close)..close].iter().collect();
        let (behind, split) = match behind.strip_prefix("[*]") {
            Some(behind) => (behind, true),
            None => (behind.as_str(), false),
        };
        let default = behind.strip_prefix('-').map(str::to_owned);
        self.insert(&name, default, split);
    }

    fn insert(&mut self, name: &str, default: Option<String>, split: bool) {
        let value = match ((self.environment)(name), default) {
            (Some(value), _) => value,
            (None, Some(default)) => {
                self.problems.push(format!(
                    "the variable {name} is not set here: its default was taken"
                ));
                default
            }
            (None, None) => {
                self.problems.push(format!(
                    "the variable {name} is not set here: set it and import again"
                ));
                String::new()
            }
        };
        if !split {
            self.word.get_or_insert_default().push_str(&value);
            return;
        }
        for (i, piece) in value.split_whitespace().enumerate() {
            if i > 0 {
                self.end_word();
            }
            self.word.get_or_insert_default().push_str(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let environment = |name: &str| match name {
            "PORT" => Some("8080".to_owned()),
            "ALL" => Some("a b".to_owned()),
            _ => None,
        };
        line(1, 1, text, &environment).words
    }

    /// The table of the manual's section 2.2, and its examples.
    #[test]
    fn quotes_and_escapes_are_haproxys() {
        for (text, expected) in [
            (
                r"log-format %{+Q}o\ %t\ %s",
                vec!["log-format", "%{+Q}o %t %s"],
            ),
            (r#"a "b c"' d'\ e"#, vec!["a", "b c d e"]),
            (r"a\#b # comment", vec!["a#b"]),
            ("\"a # b\" c", vec!["a # b", "c"]),
            (
                r"GET /x HTTP/1.1\r\nHost:\ www",
                vec!["GET", "/x", "HTTP/1.1\r\nHost: www"],
            ),
            (r"\x41\x0a", vec!["A\n"]),
            (r"^[23]\d\d$", vec![r"^[23]\d\d$"]),
            (r#"'$PORT "x" \n'"#, vec![r#"$PORT "x" \n"#]),
            (r#""" ''"#, vec!["", ""]),
            ("$PORT", vec!["$PORT"]),
            (
                r#""$PORT" "${PORT}x" "\$PORT" "a $ b""#,
                vec!["8080", "8080x", "$PORT", "a $ b"],
            ),
            (r#""${NONE-127.0.0.1}:514""#, vec!["127.0.0.1:514"]),
            (r#""${ALL[*]}" "${ALL}""#, vec!["a", "b", "a b"]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    #[test]
    fn bytes_are_bytes() {
        let word = words(r"\x00\xffA\x7fé").remove(0);
        assert_eq!(bytes(&word), b"\x00\xffA\x7f\xc3\xa9");
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let problem = |text: &str| line(1, 1, text, &|_| None).problems.join("; ");
        assert_eq!(problem("a 'b"), "a ' that is not closed");
        assert_eq!(problem("a \"b"), "a \" that is not closed");
        assert_eq!(problem(r"\xg1"), "\\x needs two hexadecimal digits");
        assert_eq!(
            problem("\"$NONE\""),
            "the variable NONE is not set here: set it and import again"
        );
    }

    #[test]
    fn a_backslash_at_the_end_joins() {
        assert_eq!(
            raw_lines("a \\\n b\n# c \\\nd \\\\\ne"),
            [
                (1, 2, "a  b".to_owned()),
                (3, 1, "# c \\".to_owned()),
                (4, 1, "d \\\\".to_owned()),
                (5, 1, "e".to_owned()),
            ]
        );
    }
}
