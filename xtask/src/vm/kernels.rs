//! Which kernels, from which suites of Debian, and their files under target/vm.
//!
//! A kernel is unpacked once and then used without the network until `--fresh`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::apt::{Lists, mirrors};
use crate::{cargo::root, run::checked};

/// What Debian adds to the name of a kernel for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";

/// A line of kernels and the suites that hold it, the likeliest first.
pub struct Kernel {
    pub version: &'static str,
    pub suites: &'static [&'static str],
}

/// The oldest that probe supports, Debian's releases since, and the newest.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        version: "5.10",
        suites: &["bullseye", "bullseye-security"],
    },
    Kernel {
        version: "6.1",
        suites: &["bookworm", "bookworm-security"],
    },
    Kernel {
        version: "6.12",
        suites: &["trixie", "trixie-security"],
    },
    Kernel {
        version: "6.18",
        suites: &["trixie-backports", "sid"],
    },
    Kernel {
        version: "7.2",
        suites: &["trixie-backports", "sid"],
    },
];

/// Something that probe uses where the kernel has it.
pub struct Feature {
    pub name: &'static str,
    /// Major and minor version of the first Linux that has it.
    pub since: (u64, u64),
    /// What the agent does without it, said in its log and status.
    pub instead: &'static str,
}

/// Everything that a supported kernel may lack. What a test skips or does without has
/// to name the Linux that brought it: [`Kernel::excuse`] holds the two together.
pub const FEATURES: &[Feature] = &[
    Feature {
        name: "XDP on packets in several buffers",
        since: (5, 18),
        instead: "generic XDP on uplinks whose MTU is too large for one buffer",
    },
    Feature {
        name: "TCX",
        since: (6, 6),
        instead: "clsact",
    },
];

/// An unpacked kernel.
#[derive(Clone)]
pub struct Image {
    /// As `uname -r` will say.
    pub release: String,
    pub kernel: PathBuf,
    /// Its `/lib/modules/RELEASE`, with the index of dependencies.
    pub modules: PathBuf,
    /// Where files of its runs go.
    pub folder: PathBuf,
}

impl Kernel {
    /// What it lacks.
    pub fn lacks(&self) -> impl Iterator<Item = &'static Feature> {
        let ours = numbers(self.version);
        FEATURES
            .iter()
            .filter(move |feature| ours < vec![feature.since.0, feature.since.1])
    }

    /// Whether a test's reason for a skip is something that this kernel lacks.
    pub fn excuse(&self, reason: &str) -> bool {
        self.lacks().any(|feature| {
            let (major, minor) = feature.since;
            let first = format!("Linux {major}.{minor}");
            // Not 6.6 in 6.60.
            reason.match_indices(&first).any(|(at, _)| {
                !reason[at + first.len()..].starts_with(|next: char| next.is_ascii_digit())
            })
        })
    }

    fn folder(&self) -> PathBuf {
        root().join("target/vm").join(self.version)
    }

    /// The unpacked kernel, if it is there.
    pub fn cached(&self) -> Option<Image> {
        let folder = self.folder();
        let release = fs::read_to_string(folder.join("release")).ok()?;
        Some(Image {
            kernel: folder.join("vmlinuz"),
            modules: folder.join("lib/modules").join(&release),
            release,
            folder,
        })
    }

    /// The unpacked kernel, fetched if need be.
    pub fn image(&self, fresh: bool) -> Result<Image> {
        if let Some(image) = self.cached().filter(|_| !fresh) {
            return Ok(image);
        }
        self.fetch()
            .with_context(|| format!("Linux {} cannot be had", self.version))?;
        self.cached()
            .with_context(|| format!("{} is not complete", self.folder().display()))
    }

    fn fetch(&self) -> Result<()> {
        let mirrors = mirrors()?;
        let work = self.folder().with_extension("new");
        let mut refused = Vec::new();
        for suite in self.suites {
            for mirror in mirrors.iter().filter(|mirror| mirror.may_hold(suite)) {
                anew(&work)?;
                eprintln!("xtask: looking for Linux {} in {suite}", self.version);
                let lists = match Lists::load(&work.join("apt"), mirror, suite) {
                    Ok(lists) => lists,
                    Err(error) => {
                        refused.push(format!("{error:#}"));
                        continue;
                    }
                };
                let names = lists.search(&self.pattern())?;
                let Some(release) = self.newest(&names) else {
                    refused.push(format!("{suite} has no Linux {}", self.version));
                    continue;
                };
                eprintln!("xtask: fetching Linux {release}");
                lists.unpack(&packages(&names, &release), &work.join("tree"))?;
                drop(lists);
                return self.keep(&work, &release);
            }
        }
        fs::remove_dir_all(&work).ok();
        if refused.is_empty() {
            bail!(
                "the machine's apt sources have no mirror for {}",
                self.suites.join(" or ")
            );
        }
        bail!("{}", refused.join("; "));
    }

    fn pattern(&self) -> String {
        format!(
            "^linux-(image|binary|modules|base)-{}\\.[0-9].*{FLAVOUR}$",
            self.version.replace('.', "\\.")
        )
    }

    /// The newest release among package names.
    fn newest(&self, names: &[String]) -> Option<String> {
        let prefix = format!("{}.", self.version);
        names
            .iter()
            .filter_map(|name| {
                name.strip_prefix("linux-image-")
                    .or_else(|| name.strip_prefix("linux-binary-"))
            })
            .filter(|release| release.starts_with(&prefix))
            .max_by_key(|release| numbers(release))
            .map(str::to_owned)
    }

    /// Moves what is needed out of the unpacked packages to its place.
    fn keep(&self, work: &Path, release: &str) -> Result<()> {
        let tree = work.join("tree");
        let new = work.join("kernel");
        fs::create_dir_all(new.join("lib/modules")).context("cannot make the kernel's folder")?;
        let first = |candidates: [String; 2]| -> Result<PathBuf> {
            candidates
                .iter()
                .map(|path| tree.join(path))
                .find(|path| path.exists())
                .with_context(|| format!("the packages of {release} have no {}", candidates[0]))
        };
        let move_to = |from: PathBuf, to: PathBuf| {
            fs::rename(&from, &to).with_context(|| format!("cannot move {}", from.display()))
        };
        // Since Linux 7.0 Debian's image stands beside its modules, under /usr.
        move_to(
            first([
                format!("boot/vmlinuz-{release}"),
                format!("usr/lib/modules/{release}/vmlinuz"),
            ])?,
            new.join("vmlinuz"),
        )?;
        move_to(
            first([
                format!("lib/modules/{release}"),
                format!("usr/lib/modules/{release}"),
            ])?,
            new.join("lib/modules").join(release),
        )?;
        checked(
            Command::new(
                crate::toolchain::find_program("depmod").context("depmod is not installed")?,
            )
            .arg("-b")
            .arg(&new)
            .arg(release),
        )?;
        // Last: it tells that everything else is there.
        fs::write(new.join("release"), release).context("cannot note the release")?;
        let folder = self.folder();
        if folder.exists() {
            fs::remove_dir_all(&folder).context("cannot remove the old kernel")?;
        }
        move_to(new, folder)?;
        fs::remove_dir_all(work).ok();
        Ok(())
    }
}

/// An empty folder.
pub fn anew(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The packages that make up a release: one image, or parts since Linux 7.0, where
/// the image is an empty package that depends on them.
fn packages(names: &[String], release: &str) -> Vec<String> {
    let parts: Vec<String> = ["binary", "modules", "base"]
        .iter()
        .map(|part| format!("linux-{part}-{release}"))
        .filter(|name| names.contains(name))
        .collect();
    if parts.iter().any(|name| name.starts_with("linux-modules-")) {
        return parts;
    }
    vec![format!("linux-image-{release}")]
}

/// The numbers in a release, to compare releases of one line.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Kernel, packages};

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    fn kernel(version: &'static str) -> Kernel {
        Kernel {
            version,
            suites: &[],
        }
    }

    #[test]
    fn the_newest_is_found_by_number() {
        let found = names(&[
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-32-cloud-amd64",
            "linux-image-6.1.0-40-cloud-amd64",
            "linux-image-6.12.1+deb13-cloud-amd64",
        ]);
        let newest = |version| kernel(version).newest(&found);
        assert_eq!(newest("5.10").as_deref(), Some("5.10.0-32-cloud-amd64"));
        assert_eq!(newest("6.1").as_deref(), Some("6.1.0-40-cloud-amd64"));
        assert_eq!(newest("7.2"), None);
    }

    #[test]
    fn only_what_a_kernel_lacks_excuses_a_skip() {
        let lacks = |version| {
            kernel(version)
                .lacks()
                .map(|feature| feature.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(lacks("5.10").len(), 2);
        assert_eq!(lacks("6.1"), ["TCX"]);
        assert!(lacks("6.12").is_empty());
        let tcx = "needs TCX (Linux 6.6): Invalid argument";
        assert!(kernel("6.1").excuse(tcx));
        assert!(!kernel("6.12").excuse(tcx));
        assert!(!kernel("6.1").excuse("needs Linux 5.18"));
        assert!(!kernel("5.10").excuse("needs Linux 6.60"));
        assert!(!kernel("5.10").excuse("needs root"));
    }

    #[test]
    fn a_kernel_in_parts_is_fetched_in_parts() {
        let release = "7.2.12+deb13-cloud-amd64";
        let found = names(&[
            "linux-base-7.2.12+deb13-cloud-amd64",
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-modules-7.2.12+deb13-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
        ]);
        let mut got = packages(&found, release);
        got.sort();
        assert_eq!(got, found[..3]);
        let found = names(&["linux-image-6.1.0-40-cloud-amd64"]);
        assert_eq!(packages(&found, "6.1.0-40-cloud-amd64"), found);
    }
}
