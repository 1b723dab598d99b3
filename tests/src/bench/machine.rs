//! What a bench ran on.

use std::{fs, thread};

use anyhow::{Context, Result};
use serde::Serialize;

/// The machine as results name it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
}

impl Machine {
    /// This one.
    pub fn here() -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel")?;
        let info = fs::read_to_string("/proc/cpuinfo").context("the CPU")?;
        let cpu = info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("a CPU without a name", |(_, name)| name);
        Ok(Self {
            kernel: kernel.trim().to_owned(),
            cpu: cpu.to_owned(),
            cpus: thread::available_parallelism().context("the CPUs")?.get(),
        })
    }
}
