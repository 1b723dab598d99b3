//! What differs between two configurations, as they are written.
//!
//! [`Tree`] is a configuration as YAML means it: comments, quotes and the order of keys are no
//! difference, and every scalar is text, as in `raw`. Services, endpoints and whatever else has
//! a name are told apart by it, so a service in another place of the list is the same one; that
//! the order differs is a difference of its own, since an endpoint without `tier` has the one of
//! its place.
//!
//! Paths are as in errors, with names for numbers: `services[sense].check.inter`. Values that
//! may be secret are never shown.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{Hash as _, Hasher as _},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

/// Longest value that is shown in full.
const LONGEST: usize = 300;
/// What stands in a secret's place.
const HIDDEN: &str = "(not shown)";

/// A configuration as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// A key without a value.
    Nothing,
    /// A scalar.
    Text(String),
    /// A list.
    List(Vec<Tree>),
    /// Fields.
    Map(BTreeMap<String, Tree>),
}

/// What became of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is new.
    Added,
    /// It is not there any more.
    Removed,
    /// It says something else.
    Changed,
    /// The same parts in another order.
    Order,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where.
    pub path: String,
    /// What became of it.
    pub kind: Kind,
    /// What it was, unless it was not there.
    #[serde(default)]
    pub from: Option<String>,
    /// What it is, unless it is not there.
    #[serde(default)]
    pub to: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, from, to) = (&self.path, of(&self.from), of(&self.to));
        match self.kind {
            Kind::Added => write!(f, "+ {path}: {to}"),
            Kind::Removed => write!(f, "- {path}: {from}"),
            Kind::Changed => write!(f, "~ {path}: {from} -> {to}"),
            Kind::Order => write!(f, "~ {path}: order {from} -> {to}"),
        }
    }
}

fn of(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

/// A configuration's text in short, to compare nodes by.
pub fn hash(text: &str) -> String {
    let mut hasher = SipHasher24::new();
    text.hash(&mut hasher);
    hasher.write_u8(0);
    format!("{:032x}", hasher.finish128().as_u128())
}

/// Reads a configuration that was judged before.
pub fn tree(text: &str) -> Tree {
    serde_saphyr::from_str(text).unwrap_or(Tree::Nothing)
}

/// All differences, in the order of the paths.
pub fn diff(from: &Tree, to: &Tree) -> Vec<Change> {
    let mut changes = Vec::new();
    compare("", from, to, &mut changes);
    changes
}

fn compare(path: &str, from: &Tree, to: &Tree, changes: &mut Vec<Change>) {
    match (from, to) {
        (from, to) if from == to => {}
        (Tree::Map(from), Tree::Map(to)) => {
            let name = |key: &str| match path {
                "" => key.to_owned(),
                path => format!("{path}.{key}"),
            };
            let from = from.iter().map(|(key, value)| (key.as_str(), value));
            let to = to.iter().map(|(key, value)| (key.as_str(), value));
            compare_all(name, &from.collect(), &to.collect(), changes);
        }
        (Tree::List(from), Tree::List(to)) => match (named(from), named(to)) {
            (Some(before), Some(after)) => {
                let name = |key: &str| format!("{path}[{key}]");
                compare_order(path, &before, &after, changes);
                compare_all(
                    name,
                    &before.into_iter().collect(),
                    &after.into_iter().collect(),
                    changes,
                );
            }
            _ if from.len() == to.len() && from.iter().chain(to).any(Tree::is_deep) => {
                for (i, (from, to)) in from.iter().zip(to).enumerate() {
                    compare(&format!("{path}[{i}]"), from, to, changes);
                }
            }
            _ => changed(path, Some(from_list(from)), Some(from_list(to)), changes),
        },
        (from, to) => changed(path, Some(from.clone()), Some(to.clone()), changes),
    }
}

fn from_list(list: &[Tree]) -> Tree {
    Tree::List(list.to_vec())
}

fn compare_all(
    name: impl Fn(&str) -> String,
    from: &BTreeMap<&str, &Tree>,
    to: &BTreeMap<&str, &Tree>,
    changes: &mut Vec<Change>,
) {
    let mut keys: Vec<_> = from.keys().chain(to.keys()).copied().collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let path = name(key);
        match (from.get(key), to.get(key)) {
            (Some(from), Some(to)) => compare(&path, from, to, changes),
            (from, to) => {
                let owned = |tree: Option<&&Tree>| tree.map(|tree| Tree::clone(tree));
                changed(&path, owned(from), owned(to), changes);
            }
        }
    }
}

/// Those that both have, if they come in another order.
fn compare_order(
    path: &str,
    from: &[(&str, &Tree)],
    to: &[(&str, &Tree)],
    changes: &mut Vec<Change>,
) {
    let common = |list: &[(&str, &Tree)], other: &[(&str, &Tree)]| -> Vec<String> {
        let known = |name: &&str| other.iter().any(|(of, _)| of == name);
        let names = list.iter().map(|(name, _)| *name).filter(known);
        names.map(str::to_owned).collect()
    };
    let (before, after) = (common(from, to), common(to, from));
    if before != after {
        changes.push(Change {
            path: path.to_owned(),
            kind: Kind::Order,
            from: Some(cut(before.join(", "))),
            to: Some(cut(after.join(", "))),
        });
    }
}

fn changed(path: &str, from: Option<Tree>, to: Option<Tree>, changes: &mut Vec<Change>) {
    let show = |tree: Tree| cut(shown(path, &tree));
    changes.push(Change {
        path: path.to_owned(),
        kind: match (&from, &to) {
            (None, _) => Kind::Added,
            (_, None) => Kind::Removed,
            _ => Kind::Changed,
        },
        from: from.map(show),
        to: to.map(show),
    });
}

fn cut(text: String) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} ...", &text[..at]),
        None => text,
    }
}

/// A list whose members all have names, each its own.
fn named(list: &[Tree]) -> Option<Vec<(&str, &Tree)>> {
    let mut names: Vec<(&str, &Tree)> = Vec::with_capacity(list.len());
    for member in list {
        let Tree::Map(fields) = member else {
            return None;
        };
        let Some(Tree::Text(name)) = fields.get("name") else {
            return None;
        };
        names.push((name, member));
    }
    let mut sorted: Vec<_> = names.iter().map(|(name, _)| *name).collect();
    sorted.sort_unstable();
    sorted.dedup();
    (sorted.len() == names.len()).then_some(names)
}

/// May a field hold what others must not read? Where it stands is part of its path.
fn is_secret(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    // What is sent may be a login, as the headers and the body of a request may.
    matches!(last, "password" | "send" | "send_hex" | "body")
        || path.contains(".headers.")
        || last == "headers"
}

/// On one line, as YAML would take it.
fn shown(path: &str, tree: &Tree) -> String {
    match tree {
        // Of expectations the body and the headers are structures; what is sent is text.
        Tree::Text(_) if is_secret(path) => HIDDEN.to_owned(),
        Tree::Nothing => "nothing".to_owned(),
        Tree::Text(text) if is_plain(text) => text.clone(),
        Tree::Text(text) => format!("{text:?}"),
        Tree::List(list) => {
            let each = list.iter().map(|tree| shown(path, tree));
            format!("[{}]", each.collect::<Vec<_>>().join(", "))
        }
        Tree::Map(fields) => {
            let each = fields
                .iter()
                .map(|(key, tree)| format!("{key}: {}", shown(&format!("{path}.{key}"), tree)));
            format!("{{{}}}", each.collect::<Vec<_>>().join(", "))
        }
    }
}

fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || "._-/:*@%+?".contains(c);
    !text.is_empty() && text.chars().all(plain)
}

impl Tree {
    /// Has it parts of its own?
    fn is_deep(&self) -> bool {
        matches!(self, Self::List(_) | Self::Map(_))
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a configuration")
    }
    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }
    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_string()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_string()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_string()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_string()))
    }
    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some(member) = list.next_element()? {
            all.push(member);
        }
        Ok(Tree::List(all))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, Tree>()? {
            fields.insert(key, value);
        }
        Ok(Tree::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "
interfaces: {edge: ['veth*']}
services:
- name: sense
  listeners: ['10.96.0.10:80']
  endpoints:
  - {name: master, address: '10.0.0.1:80'}
  - {name: backup, address: '10.0.0.2:80', weight: 5}
  check: {http: {path: /status, headers: {X-Token: abc}}, inter: 10ms}
- name: chat
  listeners: ['10.96.0.11:80']
  endpoints: [{name: one, address: '10.0.0.3:80'}]
  check: {redis: {password: hush}}
";

    fn lines(to: &str) -> Vec<String> {
        let changes = diff(&tree(BASE), &tree(to));
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn how_it_is_written_is_no_difference() {
        let same = BASE
            .replace("weight: 5", "weight: '5'")
            .replace("inter: 10ms}", "inter: \"10ms\"} # a comment");
        assert_ne!(same, BASE);
        assert_eq!(lines(&same), [""; 0]);
        // A service is known by its name, whatever its place.
        let (head, services) = BASE.split_once("services:\n").unwrap();
        let (sense, chat) = services.split_at(services.find("- name: chat").unwrap());
        assert_eq!(
            lines(&format!("{head}services:\n{chat}{sense}")),
            ["~ services: order sense, chat -> chat, sense"]
        );
    }

    #[test]
    fn each_difference_has_its_path() {
        let to = BASE
            .replace("inter: 10ms", "inter: 20ms, fall: 2")
            .replace(", weight: 5", "")
            .replace("['10.96.0.11:80']", "['10.96.0.11:80', '[fd00::1]:80']");
        assert_eq!(
            lines(&to),
            [
                "~ services[chat].listeners: [10.96.0.11:80] -> [10.96.0.11:80, \"[fd00::1]:80\"]",
                "+ services[sense].check.fall: 2",
                "~ services[sense].check.inter: 10ms -> 20ms",
                "- services[sense].endpoints[backup].weight: 5",
            ]
        );
        let (_, chat) = BASE.split_once("- name: chat").unwrap();
        let without = BASE.replace(&format!("- name: chat{chat}"), "");
        let gone = lines(&without);
        assert_eq!(gone.len(), 1);
        assert!(
            gone[0].starts_with("- services[chat]: {check: {redis: {password: (not shown)}}"),
            "{gone:?}"
        );
    }

    #[test]
    fn secrets_are_never_shown() {
        let to = BASE.replace("abc", "def").replace("hush", "louder");
        assert_eq!(
            lines(&to),
            [
                "~ services[chat].check.redis.password: (not shown) -> (not shown)",
                "~ services[sense].check.http.headers.X-Token: (not shown) -> (not shown)",
            ]
        );
        for text in [&to, BASE] {
            let all = diff(&Tree::Nothing, &tree(text));
            let all = all[0].to_string();
            for secret in ["abc", "def", "hush", "louder"] {
                assert!(!all.contains(secret), "{all}");
            }
        }
    }

    #[test]
    fn the_hash_is_the_texts() {
        assert_eq!(hash(BASE), hash(BASE));
        assert_ne!(hash(BASE), hash(&BASE.replace("10ms", "11ms")));
        assert_eq!(hash("").len(), 32);
    }
}
