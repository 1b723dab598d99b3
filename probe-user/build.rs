//! Finds the kernel side, which `cargo xtask build-ebpf` built, for embedding.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=PROBE_EBPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let object = env::var_os("PROBE_EBPF_OBJECT").map_or_else(
        || manifest.join("../target/ebpf/probe-ebpf.o"),
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    let Ok(object) = object.canonicalize() else {
        println!(
            "cargo::error=the kernel side {} is not built: run `cargo xtask build-ebpf`, or set \
             PROBE_EBPF_OBJECT to a built object",
            object.display()
        );
        return;
    };
    println!("cargo::rustc-env=PROBE_EBPF_OBJECT={}", object.display());
}
