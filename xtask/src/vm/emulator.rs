//! Which QEMU and virtiofsd run the VMs.
//!
//! The system's packages, except that QEMU before 8 is passed over: under 7.2 (Debian
//! 12) the flags register of a program became garbage now and then, and the kernel
//! took a double fault or a debug exception of its own; 10.0 did not. Then the
//! release's backports are unpacked beside the kernels, and nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    apt::{Lists, mirrors},
    kernels::anew,
};
use crate::{
    cargo::root,
    run::asked,
    toolchain::{Program, find_program, need_programs},
};

const EMULATOR: &str = "qemu-system-x86_64";
/// The first major version that is good enough.
const GOOD: u32 = 8;
/// What a VM needs besides virtiofsd, which moved between packages.
const PROGRAMS: &[Program] = &[
    Program {
        name: EMULATOR,
        package: "qemu-system-x86",
    },
    Program {
        name: "busybox",
        package: "busybox-static",
    },
    // depmod here, modprobe in the VM.
    Program {
        name: "depmod",
        package: "kmod",
    },
    Program {
        name: "xz",
        package: "xz-utils",
    },
    Program {
        name: "timeout",
        package: "coreutils",
    },
];

/// The programs that make a VM.
pub struct Emulator {
    pub qemu: PathBuf,
    /// Folders of firmware, where they are not QEMU's own.
    pub firmware: Vec<PathBuf>,
    pub virtiofsd: PathBuf,
}

/// Installs or fetches what is missing.
pub fn need() -> Result<Emulator> {
    need_programs(PROGRAMS)?;
    let virtiofsd = need_virtiofsd()?;
    let system = find_program(EMULATOR).context("QEMU is installed but not to be found")?;
    let (qemu, firmware) = match version(&system) {
        Some(major) if major < GOOD => match newer() {
            Ok(unpacked) => (program(&unpacked), firmware(&unpacked)),
            Err(error) => {
                eprintln!(
                    "xtask: QEMU {major} may break VMs that run long, and a newer one cannot be \
                     had: {error:#}"
                );
                (system, Vec::new())
            }
        },
        _ => (system, Vec::new()),
    };
    Ok(Emulator {
        qemu,
        firmware,
        virtiofsd,
    })
}

fn need_virtiofsd() -> Result<PathBuf> {
    if let Some(path) = find_virtiofsd() {
        return Ok(path);
    }
    // Debian 12 has it in qemu-system-common, later releases in its own package, outside
    // the search path: so the attempt tells nothing, the second look does.
    let attempt = need_programs(&[Program {
        name: "virtiofsd",
        package: "virtiofsd",
    }]);
    match find_virtiofsd() {
        Some(path) => Ok(path),
        None => {
            attempt?;
            bail!("virtiofsd is installed but stands in no known place")
        }
    }
}

fn find_virtiofsd() -> Option<PathBuf> {
    ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
        .or_else(|| find_program("virtiofsd"))
}

/// The major version, if the program runs at all.
fn version(qemu: &Path) -> Option<u32> {
    major(&asked(Command::new(qemu).arg("--version"))?)
}

/// `QEMU emulator version 7.2.22 (Debian ...)` is 7.
fn major(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once(" version ")?;
    rest.split('.').next()?.parse().ok()
}

fn program(unpacked: &Path) -> PathBuf {
    unpacked.join("usr/bin").join(EMULATOR)
}

fn firmware(unpacked: &Path) -> Vec<PathBuf> {
    ["usr/share/qemu", "usr/share/seabios"]
        .iter()
        .flat_map(|folder| [unpacked.join(folder), Path::new("/").join(folder)])
        .filter(|folder| folder.is_dir())
        .collect()
}

/// An unpacked QEMU that is good enough.
fn newer() -> Result<PathBuf> {
    let unpacked = root().join("target/vm/qemu");
    if version(&program(&unpacked)).is_some_and(|major| major >= GOOD) {
        return Ok(unpacked);
    }
    let suite = format!("{}-backports", codename()?);
    for mirror in mirrors()?.iter().filter(|mirror| mirror.may_hold(&suite)) {
        eprintln!("xtask: fetching QEMU from {suite}");
        let work = root().join("target/vm/qemu.new");
        anew(&work)?;
        let lists = Lists::load(&work.join("apt"), mirror, &suite)?;
        let packages = lists.search("^(qemu-system-x86|qemu-system-data|seabios)$")?;
        if packages.is_empty() {
            continue;
        }
        lists.unpack(&packages, &work.join("tree"))?;
        drop(lists);
        anew(&unpacked)?;
        fs::rename(work.join("tree"), &unpacked).context("cannot move QEMU to its place")?;
        fs::remove_dir_all(work).ok();
        return match version(&program(&unpacked)) {
            Some(major) if major >= GOOD => Ok(unpacked),
            Some(major) => bail!("{suite} has QEMU {major}"),
            None => bail!("QEMU of {suite} does not run with this system's libraries"),
        };
    }
    bail!("no mirror has QEMU in {suite}")
}

/// Debian's name of the release that runs here.
fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("no /etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release has no VERSION_CODENAME")
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn the_major_version_is_read() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003\n";
        assert_eq!(major(text), Some(10));
        assert_eq!(major("something else"), None);
    }
}
