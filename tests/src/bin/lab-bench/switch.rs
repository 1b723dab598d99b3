//! What a switch costs, and how soon packets follow it.
//!
//! The switch is the agent's own: `Steering::select` of the real datapath, which
//! stores one word through the mapped table. Packets are SYNs of one unanswered
//! tuple, which follow the selection of their moment; another CPU runs the XDP
//! program over them one by one without a pause. The time counted is from before
//! the store to after the first run whose packet went to the new endpoint, so the
//! entry into the kernel and the way out of it are in it. It is an upper bound.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::programs::TestRunOptions;
use probe_ebpf::names;
use probe_user::datapath::{Choice, Steering};
use serde::Serialize;

use crate::{
    Scale,
    harness::{Instance, stay_on, test_run},
    packets::{BACKUP_V4, Family, Kind, ends, frame},
};
use lab::bench::Spread;

/// One more than the port of every other flow of this client.
const OWN_PORT: u16 = 0x7fff;

#[derive(Debug, Serialize)]
pub struct Switch {
    /// Established flows in each family's tables.
    pub flows: u32,
    /// One call of `Steering::select` that changes the selection.
    pub store_ns: Spread,
    /// From the store to the first packet that followed it.
    pub first_packet_us: Spread,
    /// 99 of 100 were not later.
    pub first_packet_p99_us: f64,
}

/// Stores in a row whose mean is one value.
const BATCH: u32 = 1000;

pub fn measure(instance: &mut Instance, flows: u32, scale: &Scale) -> Result<Switch> {
    let service = instance.service.id;
    let choices = [1, 0].map(|at| Choice::Endpoint(instance.service.endpoints[at]));
    let mut store = Vec::new();
    for _ in 0..scale.switches {
        let begun = Instant::now();
        for at in 0..BATCH {
            instance
                .datapath
                .select(service, choices[at as usize % 2].clone())?;
        }
        store.push(begun.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }

    // 0 while nothing is awaited, else the number of the switch that is.
    let awaited = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let origin = Instant::now();
    let seen_at = AtomicU64::new(0);
    let (ebpf, datapath) = (&instance.ebpf, &mut instance.datapath);
    let mut delays = thread::scope(|scope| -> Result<Vec<f64>> {
        let packets = scope.spawn(|| -> Result<()> {
            stay_on(0)?;
            let mut packet = frame(Kind::Open, Family::V4);
            packet[34..36].copy_from_slice(&OWN_PORT.to_be_bytes());
            let mut out = vec![0; packet.len() + 64];
            while !over.load(Ordering::Relaxed) {
                let number = awaited.load(Ordering::Acquire);
                let options = TestRunOptions {
                    data_in: Some(&packet),
                    data_out: Some(&mut out),
                    ..TestRunOptions::default()
                };
                test_run(ebpf, names::PROGRAM_XDP_FORWARD_FRAGS, options)?;
                let now = origin.elapsed().as_nanos() as u64;
                let on_backup = ends(&out, Family::V4)[1].0 == BACKUP_V4.octets();
                if number != 0 && on_backup == (number % 2 == 1) {
                    seen_at.store(now, Ordering::Relaxed);
                    awaited.store(0, Ordering::Release);
                }
            }
            Ok(())
        });
        let mut switch = || -> Result<Vec<f64>> {
            let mut delays = Vec::new();
            for number in 1..=u64::from(scale.switches) * 2 {
                // Not in step with the runs of the other CPU.
                thread::sleep(Duration::from_micros(50 + number * 37 % 100));
                awaited.store(number, Ordering::Release);
                let begun = origin.elapsed().as_nanos() as u64;
                datapath.select(service, choices[(number % 2) as usize ^ 1].clone())?;
                let limit = Instant::now() + Duration::from_secs(5);
                while awaited.load(Ordering::Acquire) != 0 {
                    if Instant::now() > limit || packets.is_finished() {
                        bail!("no packet followed the switch");
                    }
                    std::hint::spin_loop();
                }
                delays.push((seen_at.load(Ordering::Relaxed) as f64 - begun as f64) / 1e3);
            }
            Ok(delays)
        };
        let delays = switch();
        over.store(true, Ordering::Relaxed);
        match packets.join() {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        delays
    })?;
    datapath.select(service, choices[1].clone())?;
    instance.settle()?;
    delays.sort_by(f64::total_cmp);
    Ok(Switch {
        flows,
        store_ns: Spread::of(store).context("no switch was made")?,
        first_packet_p99_us: lab::bench::quantile(&delays, 0.99).context("no switch was seen")?,
        first_packet_us: Spread::of(delays).context("no switch was seen")?,
    })
}
