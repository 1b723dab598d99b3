//! Patterns of interface names: `*` for any text, `?` for one character.

use std::fmt;

/// Longest interface name: IFNAMSIZ without the closing zero.
const NAME_LEN: usize = 15;

/// A literal interface name or a pattern of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The error says why no interface could ever have such a name.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        let characters = text.bytes().filter(|b| *b != b'*').count();
        if text.is_empty() {
            Err("empty")
        } else if characters > NAME_LEN {
            Err("longer than an interface name can be")
        } else if text == "." || text == ".." {
            Err("not an interface name")
        } else if let Some(bad) = text.chars().find(|c| {
            c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '[' | ']' | '{' | '}')
        }) {
            Err(match bad {
                '[' | ']' | '{' | '}' => "only * and ? are special",
                _ => "holds a character that no interface name has",
            })
        } else {
            Ok(Self(text.to_owned()))
        }
    }

    /// The name, if it is one and not a pattern.
    pub fn literal(&self) -> Option<&str> {
        (!self.0.contains(['*', '?'])).then_some(self.0.as_str())
    }

    /// Does an interface's name match?
    pub fn matches(&self, name: &str) -> bool {
        // Greedy with one point of return: linear in practice, quadratic at worst, no recursion.
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        let mut back: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    back = Some((p, n));
                    p += 1;
                }
                Some(b) if *b == b'?' || *b == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match back {
                    Some((star, from)) => {
                        back = Some((star, from + 1));
                        p = star + 1;
                        n = from + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|b| *b == b'*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name, expected) in [
            ("veth*", "veth0", true),
            ("veth*", "veth", true),
            ("veth*", "xveth0", false),
            ("*", "anything", true),
            ("eth?", "eth0", true),
            ("eth?", "eth", false),
            ("eth?", "eth10", false),
            ("*a*b", "xxaxxb", true),
            ("*a*b", "xxaxxbc", false),
            ("cali*.1", "cali12.1", true),
            ("a*a*a", "aa", false),
            ("eth0", "eth0", true),
            ("eth0", "eth00", false),
            ("eth.", "ethx", false),
        ] {
            let matches = Pattern::new(pattern).unwrap().matches(name);
            assert_eq!(matches, expected, "{pattern} {name}");
        }
    }

    #[test]
    fn impossible_names_are_refused() {
        for bad in ["", "a/b", "a b", "sixteen-bytes-xx", "..", "eth[01]", "a:b"] {
            assert!(Pattern::new(bad).is_err(), "{bad:?}");
        }
        // A star stands for nothing too, so it does not count.
        assert!(Pattern::new("fifteen-bytes-x*").is_ok());
    }

    /// The definition, written as it is said.
    fn by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|i| by_definition(rest, &name[i..])),
            Some((b'?', rest)) => !name.is_empty() && by_definition(rest, &name[1..]),
            Some((b, rest)) => name.first() == Some(b) && by_definition(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{1,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(
                Pattern::new(&pattern).unwrap().matches(&name),
                by_definition(pattern.as_bytes(), name.as_bytes())
            );
        }
    }
}
