//! The first file system of a VM: busybox, the modules that reach the host's root,
//! an init that puts a writable layer over it and hands over to the script of tests.
//!
//! Written here as a `newc` archive (Documentation/driver-api/early-userspace/
//! buffer-format.rst in Linux), which takes less than another package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::kernels::Image;
use crate::toolchain::find_program;

/// Modules that must be there before the root is; the kernel may have them built in.
const EARLY: &[&str] = &["virtio_pci", "virtiofs", "overlay"];

/// The virtiofs tag of the host's root.
pub const TAG: &str = "hostroot";
/// Told first by the script of tests, on the port of outputs.
pub const READY: &str = "probe-vm: ready";

/// The host's root is the lower layer, so programs, libraries and built tests stand
/// where they stand on the host; what is written goes to memory. PID 1 changes root
/// itself: the kernel's helper processes (modprobe) follow it.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
fail() {
    echo "probe-vm: $*"
    echo "init: $*" > /dev/ttyS2
    poweroff -f
}
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in /modules/*.ko; do
    [ -e "$module" ] || continue
    insmod "$module" || fail "cannot load $module"
done
mount -t virtiofs -o ro @TAG@ /host || fail "cannot mount the host's root by virtiofs"
mount -t tmpfs -o mode=755,size=60% upper /upper || fail "cannot mount a tmpfs"
mkdir /upper/root /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/root,workdir=/upper/work root /new ||
    fail "cannot put an overlay over the host's root"
mount --move /dev /new/dev
mount --move /proc /new/proc
mount --move /sys /new/sys
mount -t tmpfs -o mode=755 run /new/run
cp /tests /new/run/tests
exec switch_root /new /bin/sh /run/tests
"#;

/// Writes the archive; `tests` is the shell script that runs once the root stands.
pub fn write(to: &Path, image: &Image, tests: &str) -> Result<()> {
    let mut archive = Archive::default();
    for folder in [
        "bin", "dev", "host", "modules", "new", "proc", "sys", "upper",
    ] {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, &busybox()?);
    archive.add(
        "init",
        0o100_755,
        INIT.trim_start().replace("@TAG@", TAG).as_bytes(),
    );
    archive.add("tests", 0o100_755, tests.as_bytes());
    for (at, module) in modules(&image.modules)?.iter().enumerate() {
        // Numbered: the shell loads them in the order of their names.
        let name = format!("modules/{at:02}.ko");
        archive.add(&name, 0o100_644, &uncompressed(module)?);
    }
    fs::write(to, archive.finish()).with_context(|| format!("cannot write {}", to.display()))
}

fn busybox() -> Result<Vec<u8>> {
    let path = find_program("busybox").context("busybox is not installed")?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // A dynamic program names its loader close to its beginning.
    let head = &bytes[..bytes.len().min(4096)];
    if head.windows(8).any(|part| part == b"ld-linux") {
        bail!(
            "{} needs libraries: install Debian's busybox-static",
            path.display()
        );
    }
    Ok(bytes)
}

/// Files of the early modules and what they need, in the order of loading.
fn modules(folder: &Path) -> Result<Vec<PathBuf>> {
    let path = folder.join("modules.dep");
    let index =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(order(&index, EARLY)
        .into_iter()
        .map(|file| folder.join(file))
        .collect())
}

/// What modules.dep says: `MODULE: NEEDED...`, the ones to load first coming last.
fn order<'a>(index: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut files: Vec<&str> = Vec::new();
    for name in wanted {
        let Some((module, needs)) = index
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(module, _)| module_name(module) == *name)
        else {
            // Built in; if it is not, init says which mount failed.
            continue;
        };
        for file in needs.split_whitespace().rev().chain([module]) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    files
}

/// `kernel/drivers/virtio/virtio-pci.ko.xz` is `virtio_pci`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

fn uncompressed(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => {
            return fs::read(module).with_context(|| format!("cannot read {}", module.display()));
        }
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(module)
        .output()
        .with_context(|| format!("cannot run {program} on {}", module.display()))?;
    if !output.status.success() {
        bail!("{program} cannot read {}", module.display());
    }
    Ok(output.stdout)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).expect("a module is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        // inode, mode, uid, gid, links, mtime, size, 4 device numbers, name's size, checksum
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Archive, order};

    #[test]
    fn modules_load_after_what_they_need() {
        let index = "kernel/fs/fuse/fuse.ko:\n\
                     kernel/fs/overlayfs/overlay.ko.xz:\n\
                     kernel/virtio/virtio-pci.ko: kernel/virtio/modern.ko kernel/virtio/ring.ko kernel/virtio/virtio.ko\n\
                     kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko kernel/virtio/ring.ko kernel/virtio/virtio.ko\n";
        assert_eq!(
            order(index, &["virtio_pci", "virtiofs", "missing", "overlay"]),
            [
                "kernel/virtio/virtio.ko",
                "kernel/virtio/ring.ko",
                "kernel/virtio/modern.ko",
                "kernel/virtio/virtio-pci.ko",
                "kernel/fs/fuse/fuse.ko",
                "kernel/fs/fuse/virtiofs.ko",
                "kernel/fs/overlayfs/overlay.ko.xz",
            ]
        );
    }

    #[test]
    fn an_entry_is_a_header_a_name_and_padding() {
        let mut archive = Archive::default();
        archive.add("ab", 0o100_644, b"xyz");
        let text = String::from_utf8(archive.bytes).expect("ASCII here");
        // 6 of magic, 13 fields of 8, name and its zero: 113, padded to 116.
        assert_eq!(text.len(), 120);
        assert!(text.starts_with("07070100000001000081a4"));
        assert_eq!(&text[54..62], "00000003");
        assert_eq!(&text[94..102], "00000003");
        assert_eq!(&text[110..], "ab\0\0\0\0xyz\0");
    }
}
