//! What the verbs need beyond cargo: installed when that is possible without
//! asking (rustup's components, crates, Debian's packages for root), else named
//! in one message with the command that installs it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    cargo::{cargo, tool},
    run::{asked, checked, succeeds},
};

/// From 0.11.1 on bpf-linker wants a system LLVM; this one loads rustc's own.
const BPF_LINKER: &str = "0.10.3";

/// A program of the system and the Debian package that brings it; where that is no program, the
/// file that tells of it.
pub struct Program {
    pub name: &'static str,
    pub package: &'static str,
}

/// What the namespace tests run besides what cargo builds.
pub const LAB: &[Program] = &[
    Program {
        name: "ip",
        package: "iproute2",
    },
    Program {
        name: "tc",
        package: "iproute2",
    },
    Program {
        name: "curl",
        package: "curl",
    },
    Program {
        name: "nginx",
        package: "nginx-light",
    },
    Program {
        name: "ping",
        package: "iputils-ping",
    },
    Program {
        name: "nft",
        package: "nftables",
    },
    Program {
        name: "iptables",
        package: "iptables",
    },
    Program {
        name: "redis-server",
        package: "redis-server",
    },
    Program {
        name: "redis-cli",
        package: "redis-tools",
    },
    // The server itself is in a folder of its version, which PATH does not name.
    Program {
        name: "pg_createcluster",
        package: "postgresql",
    },
    Program {
        name: "psql",
        package: "postgresql-client",
    },
    Program {
        name: "setpriv",
        package: "util-linux",
    },
    Program {
        name: "/usr/lib/python3/dist-packages/grpc/__init__.py",
        package: "python3-grpcio",
    },
    Program {
        name: "haproxy",
        package: "haproxy",
    },
];

/// What the unit tests run besides what cargo builds: second opinions.
pub const SECOND: &[Program] = &[
    // Reads metrics, alerts and the dashboard.
    Program {
        name: "promtool",
        package: "prometheus",
    },
];

/// What looks at the status page. 290 MB are not installed without being asked for but where no
/// skip is allowed.
pub const BROWSER: &[Program] = &[Program {
    name: "chromium",
    package: "chromium",
}];

/// What the demo runs besides what cargo builds.
pub const DEMO: &[Program] = &[Program {
    name: "ip",
    package: "iproute2",
}];

/// What the bench runs besides what cargo builds.
pub const BENCH: &[Program] = &[
    Program {
        name: "ip",
        package: "iproute2",
    },
    Program {
        name: "nginx",
        package: "nginx-light",
    },
    Program {
        name: "wrk",
        package: "wrk",
    },
    Program {
        name: "nft",
        package: "nftables",
    },
    Program {
        name: "haproxy",
        package: "haproxy",
    },
];

/// What the bench of failover runs besides what cargo builds.
pub const OUTAGE: &[Program] = &[
    Program {
        name: "ip",
        package: "iproute2",
    },
    Program {
        name: "nft",
        package: "nftables",
    },
    Program {
        name: "haproxy",
        package: "haproxy",
    },
];

/// What the bench of checks runs besides what cargo builds.
pub const PROBES: &[Program] = &[
    Program {
        name: "ip",
        package: "iproute2",
    },
    Program {
        name: "haproxy",
        package: "haproxy",
    },
];

/// Are we root? Then packages may be installed and namespaces made.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no precondition and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Looks where Debian puts programs for root too, which users often lack in PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// Programs that are not there.
pub fn missing(programs: &[Program]) -> Vec<&Program> {
    programs
        .iter()
        .filter(|program| find_program(program.name).is_none())
        .collect()
}

/// Makes the programs exist, or says which packages do.
pub fn need_programs(programs: &[Program]) -> Result<()> {
    let missing = missing(programs);
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let names: Vec<&str> = missing.iter().map(|program| program.name).collect();
    let install = format!("apt-get install -y {}", packages.join(" "));
    if find_program("apt-get").is_none() {
        bail!(
            "missing: {}. Debian's packages are {}: install your system's equivalent",
            names.join(", "),
            packages.join(", ")
        );
    }
    if !is_root() {
        bail!("missing: {}. Run `sudo {install}`", names.join(", "));
    }
    eprintln!("xtask: installing {}", packages.join(", "));
    if apt(&packages).is_err() {
        // The package lists may be old or absent.
        checked(Command::new("apt-get").args(["-qq", "update"]))?;
        apt(&packages).with_context(|| format!("try `{install}` by hand"))?;
    }
    Ok(())
}

fn apt(packages: &[&str]) -> Result<()> {
    checked(
        Command::new("apt-get")
            .args(["-qq", "install", "-y", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // A package that brings a service must not start it here.
            .env("RUNLEVEL", "1"),
    )
}

/// rust-src: the kernel side builds `core` from source.
pub fn need_rust_src() -> Result<()> {
    let sysroot = asked(tool("rustc").args(["--print", "sysroot"]))
        .context("cannot run rustc: install Rust from rustup")?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if core.is_file() {
        return Ok(());
    }
    need_component("rust-src")
}

/// A component of the pinned toolchain that a cargo subcommand needs.
pub fn need_subcommand(subcommand: &str, component: &str) -> Result<()> {
    if succeeds(tool("cargo").args([subcommand, "--version"])) {
        return Ok(());
    }
    need_component(component)
}

fn need_component(component: &str) -> Result<()> {
    if find_rustup().is_none() {
        bail!(
            "missing: Rust's component {component}, and there is no rustup to add it. Install \
             rustup, or your distribution's package of it for the toolchain in rust-toolchain.toml"
        );
    }
    eprintln!("xtask: adding Rust's component {component}");
    checked(tool("rustup").args(["component", "add", component]))
        .with_context(|| format!("try `rustup component add {component}` by hand"))
}

/// A target of the pinned toolchain.
pub fn need_target(target: &str) -> Result<()> {
    if asked(tool("rustc").args(["--target", target, "--print", "target-libdir"]))
        .is_some_and(|folder| Path::new(folder.trim()).is_dir())
    {
        return Ok(());
    }
    if find_rustup().is_none() {
        bail!("missing: Rust's target {target}, and there is no rustup to add it");
    }
    eprintln!("xtask: adding Rust's target {target}");
    checked(tool("rustup").args(["target", "add", target]))
        .with_context(|| format!("try `rustup target add {target}` by hand"))
}

fn find_rustup() -> Option<PathBuf> {
    find_program("rustup").or_else(|| {
        crate::cargo::bin_dir()
            .map(|bin| bin.join("rustup"))
            .filter(|path| path.is_file())
    })
}

/// The linker of BPF objects, in the version that loads this toolchain's LLVM.
pub fn need_bpf_linker() -> Result<()> {
    let version = asked(tool("bpf-linker").arg("--version")).unwrap_or_default();
    if version.split_whitespace().nth(1) == Some(BPF_LINKER) {
        return Ok(());
    }
    // The message of a linker that cargo needs to build anything at all.
    need_programs(&[Program {
        name: "cc",
        package: "gcc",
    }])?;
    eprintln!("xtask: installing bpf-linker {BPF_LINKER} (about a minute)");
    checked(cargo("install").args(["bpf-linker", "--version", BPF_LINKER, "--locked"]))
        .with_context(|| {
            format!("try `cargo install bpf-linker --version {BPF_LINKER} --locked` by hand")
        })
}
