//! Where Debian's packages come from when nothing shall be installed: private
//! package lists of another suite, from the mirrors and with the signing keys that
//! this machine's own apt configuration names.
//!
//! An entry of that configuration counts as a mirror of Debian if its suite is one
//! of Debian's and it has the component `main`. Only the suite is replaced.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::run::{checked, output};

/// What Debian's releases are called in sources files.
const RELEASES: &[&str] = &[
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];
/// A mirror that hangs is given up.
const UPDATE_SECONDS: &str = "300";
const DOWNLOAD_SECONDS: &str = "900";

/// An archive of Debian's that this machine is configured to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    uri: String,
    /// The rest of a `Signed-By` field, continuation lines included.
    signed_by: Option<String>,
    /// It holds `*-security` suites.
    security: bool,
}

/// The mirrors in /etc/apt.
pub fn mirrors() -> Result<Vec<Mirror>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<_> = folder.filter_map(|e| Some(e.ok()?.path())).collect();
        more.sort();
        files.extend(more);
    }
    let mut found: Vec<Mirror> = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let entries = match file.extension().and_then(|e| e.to_str()) {
            Some("list") => one_line(&text),
            Some("sources") => deb822(&text),
            _ => continue,
        };
        for mirror in entries.iter().flat_map(Entry::mirrors) {
            if !found.contains(&mirror) {
                found.push(mirror);
            }
        }
    }
    if found.is_empty() {
        bail!(
            "no mirror of Debian in /etc/apt/sources.list or /etc/apt/sources.list.d: kernels \
             are Debian's packages, so name one there"
        );
    }
    Ok(found)
}

/// One entry of a sources file.
#[derive(Default)]
struct Entry {
    types: Vec<String>,
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
    disabled: bool,
}

impl Entry {
    fn mirrors(&self) -> Vec<Mirror> {
        let has = |words: &[String], word: &str| words.iter().any(|w| w == word);
        if self.disabled || !has(&self.types, "deb") || !has(&self.components, "main") {
            return Vec::new();
        }
        let kinds: Vec<bool> = self.suites.iter().filter_map(|s| is_security(s)).collect();
        let mut mirrors = Vec::new();
        for uri in &self.uris {
            for security in [false, true] {
                if kinds.contains(&security) {
                    mirrors.push(Mirror {
                        uri: uri.clone(),
                        signed_by: self.signed_by.clone(),
                        security,
                    });
                }
            }
        }
        mirrors
    }
}

/// Whether one of Debian's suites is a security suite; `None` for anybody else's.
fn is_security(suite: &str) -> Option<bool> {
    let (release, rest) = suite.split_once('-').unwrap_or((suite, ""));
    if !RELEASES.contains(&release) {
        return None;
    }
    match rest {
        "security" => Some(true),
        "" | "updates" | "proposed-updates" | "backports" | "backports-sloppy" => Some(false),
        _ => None,
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// `deb [signed-by=FILE ...] URI SUITE COMPONENT...`
fn one_line(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((kind, mut rest)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let mut entry = Entry {
            types: vec![kind.to_owned()],
            ..Entry::default()
        };
        rest = rest.trim_start();
        if let Some((options, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            rest = after;
            entry.signed_by = options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map(|files| format!(" {}", files.replace(',', " ")));
        }
        let mut rest = rest.split_whitespace().map(str::to_owned);
        entry.uris.extend(rest.next());
        entry.suites.extend(rest.next());
        entry.components.extend(rest);
        entries.push(entry);
    }
    entries
}

/// Stanzas of `Field: value` with continuation lines (sources.list(5)).
fn deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if !fields.is_empty() {
                entries.push(stanza(&fields));
                fields.clear();
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }
    entries
}

fn stanza(fields: &[(String, String)]) -> Entry {
    let mut entry = Entry::default();
    for (name, value) in fields {
        match name.as_str() {
            "types" => entry.types = words(value),
            "uris" => entry.uris = words(value),
            "suites" => entry.suites = words(value),
            "components" => entry.components = words(value),
            "signed-by" => entry.signed_by = Some(value.clone()),
            "enabled" => {
                entry.disabled = matches!(value.trim(), "no" | "false" | "without" | "off");
            }
            _ => {}
        }
    }
    entry
}

/// Package lists of one suite of one mirror, in a folder of their own.
pub struct Lists {
    folder: PathBuf,
}

impl Lists {
    /// Loads them. The folder is made anew and belongs to the lists from then on.
    pub fn load(folder: &Path, mirror: &Mirror, suite: &str) -> Result<Self> {
        let lists = Self {
            folder: folder.to_path_buf(),
        };
        for inner in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(inner);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let mut sources = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nTargets: Packages\n",
            mirror.uri
        );
        if let Some(keys) = &mirror.signed_by {
            sources.push_str(&format!("Signed-By:{keys}\n"));
        }
        for (name, text) in [("suite.sources", sources.as_str()), ("status", "")] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        checked(lists.apt("apt-get", UPDATE_SECONDS).args(["-qq", "update"]))
            .with_context(|| format!("the suite {suite} cannot be had from {}", mirror.uri))?;
        Ok(lists)
    }

    /// One of apt's programs with these lists in place of the machine's, and a time limit.
    fn apt(&self, program: &str, seconds: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", seconds, program]);
        for (option, value) in [
            ("Dir::Etc::sourcelist", "suite.sources"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            let path = self.folder.join(value);
            command.arg("-o");
            command.arg(format!("{option}={}", path.display()));
        }
        for option in [
            "Dir::Etc::sourceparts=/dev/null",
            "Acquire::Languages=none",
            "Acquire::Retries=2",
            // The folder need not be open to apt's own user.
            "APT::Sandbox::User=root",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    /// Names of packages that match a regular expression.
    pub fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let found = output(self.apt("apt-cache", UPDATE_SECONDS).args([
            "search",
            "--names-only",
            pattern,
        ]))?;
        Ok(found
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// Downloads packages, verified against the lists, and unpacks them into a folder.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let downloads = self.folder.join("packages");
        fs::create_dir_all(&downloads)
            .with_context(|| format!("cannot make {}", downloads.display()))?;
        checked(
            self.apt("apt-get", DOWNLOAD_SECONDS)
                .current_dir(&downloads)
                .args(["-qq", "download"])
                .args(packages),
        )?;
        for entry in fs::read_dir(&downloads).context("cannot list the downloads")? {
            let package = entry.context("cannot list the downloads")?.path();
            checked(Command::new("dpkg").arg("-x").arg(&package).arg(into))?;
        }
        Ok(())
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        // Lists of a whole suite take tens of megabytes and age in hours.
        fs::remove_dir_all(&self.folder).ok();
    }
}

impl Mirror {
    /// Whether it would hold this suite.
    pub fn may_hold(&self, suite: &str) -> bool {
        is_security(suite) == Some(self.security)
    }
}

#[cfg(test)]
mod tests {
    use super::{Mirror, deb822, is_security, one_line};

    #[test]
    fn stanzas_become_mirrors() {
        let text = "# a comment\nTypes: deb deb-src\nURIs: http://mirror.example/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main contrib\n\
                    Signed-By:\n -----BEGIN\n .\n key\n\n\
                    Types: deb\nURIs: http://mirror.example/security\n# between\n\
                    Suites: bookworm-security\nComponents: main\nSigned-By: /keys/a.gpg\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.example/\nSuites: sid\n\
                    Components: main\n";
        let found: Vec<Mirror> = deb822(text).iter().flat_map(|e| e.mirrors()).collect();
        let mirror = |uri: &str, signed_by: &str, security| Mirror {
            uri: uri.to_owned(),
            signed_by: Some(signed_by.to_owned()),
            security,
        };
        assert_eq!(
            found,
            [
                mirror(
                    "http://mirror.example/debian",
                    "\n -----BEGIN\n .\n key",
                    false
                ),
                mirror("http://mirror.example/security", " /keys/a.gpg", true),
            ]
        );
    }

    #[test]
    fn lines_become_mirrors() {
        let text = "deb-src http://mirror.example/debian trixie main\n\
                    #deb http://off.example/debian trixie main\n\
                    deb [arch=amd64 signed-by=/a.gpg,/b.gpg] http://mirror.example/debian trixie main # why\n\
                    deb http://other.example trixie extra\n\
                    deb http://databases.example trixie-pgdg main\n\
                    broken\n";
        let found: Vec<Mirror> = one_line(text).iter().flat_map(|e| e.mirrors()).collect();
        assert_eq!(
            found,
            [Mirror {
                uri: "http://mirror.example/debian".to_owned(),
                signed_by: Some(" /a.gpg /b.gpg".to_owned()),
                security: false,
            }]
        );
    }

    #[test]
    fn only_debians_suites_count() {
        assert_eq!(is_security("bookworm-security"), Some(true));
        assert_eq!(is_security("trixie-backports"), Some(false));
        assert_eq!(is_security("sid"), Some(false));
        assert_eq!(is_security("jammy"), None);
        assert_eq!(is_security("bookworm-pgdg"), None);
        assert_eq!(is_security("cloud-sdk-bookworm"), None);
    }
}
