//! The parts of the run. In each, both ways take turns, and nothing else of the bench runs
//! meanwhile but the server.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::bench::Spread;
use nix::sys::signal::Signal;

use crate::{
    Scale,
    figures::{Cost, Detection, Fault, Gap, Period, Saturated},
    rig::{Checker, Rig, Server},
    serve::Counted,
    ways::{FALL, Kind, Plan, Way, down, up},
};

/// Of costs: a rate that both keep, 10,000 checks a second.
const COST: (usize, Duration) = (100, Duration::from_millis(10));
/// For caches and connections to be as they will be.
const SETTLE: Duration = Duration::from_millis(700);
/// Of detections and of checks beside other work.
const INTER: Duration = Duration::from_millis(10);
const TIMEOUT: Duration = Duration::from_millis(10);
const BESIDE: usize = 10;
/// A fault that is not found by then is not found.
const PATIENCE: Duration = Duration::from_secs(3);

/// What happened in a window of time.
struct Window {
    counted: Counted,
    /// Connections that were begun.
    connects: u64,
    cpu: Duration,
    server_cpu: Duration,
}

impl Window {
    fn seconds(&self) -> f64 {
        self.counted.window_ns as f64 / 1e9
    }
}

fn window(rig: &mut Rig, checker: &mut Checker, length: Duration) -> Result<Window> {
    let (cpu, server_cpu) = (checker.cpu()?, rig.server.cpu()?);
    let connects = rig.connects()?;
    rig.server.begin()?;
    thread::sleep(length);
    let counted = rig.server.end()?;
    checker.alive()?;
    Ok(Window {
        counted,
        connects: rig.connects()? - connects,
        cpu: checker.cpu()?.saturating_sub(cpu),
        server_cpu: rig.server.cpu()?.saturating_sub(server_cpu),
    })
}

/// CPU per check, by kind.
pub fn costs(scale: &Scale, mut tell: impl FnMut(&str)) -> Result<Vec<Cost>> {
    let mut rig = Rig::new(false)?;
    let mut cells = vec![
        (Way::Probe, Kind::HttpFresh),
        (Way::Haproxy, Kind::HttpFresh),
        (Way::Probe, Kind::HttpReused),
        (Way::Probe, Kind::HttpDefault),
        (Way::Probe, Kind::Tcp),
        (Way::Haproxy, Kind::Tcp),
        (Way::Probe, Kind::RedisFresh),
        (Way::Haproxy, Kind::RedisFresh),
        (Way::Probe, Kind::RedisReused),
    ];
    let order = cells.clone();
    let mut runs: Vec<(Way, Kind, f64, f64)> = Vec::new();
    for round in 0..scale.rounds {
        for (way, kind) in &cells {
            tell(&format!(
                "costs, round {} of {}: {}, {}",
                round + 1,
                scale.rounds,
                way.shown(),
                kind.shown()
            ));
            let plan = Plan::new(*way, *kind, COST.0, COST.1);
            let mut checker = plan.start(&mut rig)?;
            thread::sleep(SETTLE);
            let window = window(&mut rig, &mut checker, scale.cost)?;
            checker.stop()?;
            let checks = match kind {
                Kind::Tcp => window.connects,
                _ => window.counted.requests,
            };
            ensure!(checks > 0, "{} makes no checks", way.shown());
            let us = window.cpu.as_secs_f64() * 1e6 / checks as f64;
            runs.push((*way, *kind, checks as f64 / window.seconds(), us));
        }
        cells.rotate_left(1);
    }
    let mut all = Vec::new();
    for (way, kind) in order {
        let mine = runs.iter().filter(|run| (run.0, run.1) == (way, kind));
        let rate = Spread::of(mine.clone().map(|run| run.2));
        let (Some(checks_per_second), Some(cpu_us)) = (rate, Spread::of(mine.map(|run| run.3)))
        else {
            continue;
        };
        all.push(Cost {
            way,
            kind,
            endpoints: COST.0,
            inter_ms: COST.1.as_millis() as u64,
            checks_per_second,
            cpu_us,
        });
    }
    Ok(all)
}

/// Achieved period and jitter, memory on the way.
pub fn periods(scale: &Scale, mut tell: impl FnMut(&str)) -> Result<(Vec<Period>, Vec<String>)> {
    let mut rig = Rig::new(false)?;
    let begun = Instant::now();
    let (mut all, mut skipped) = (Vec::new(), Vec::new());
    for (turn, (endpoints, inter_ms)) in scale.periods.iter().enumerate() {
        if begun.elapsed() > scale.periods_limit {
            skipped.push(format!("{endpoints} endpoints every {inter_ms} ms"));
            continue;
        }
        let mut cells = vec![
            (Way::Probe, Kind::HttpDefault),
            (Way::Haproxy, Kind::HttpFresh),
        ];
        if (*endpoints, *inter_ms) == (1000, 10) {
            cells.push((Way::Probe, Kind::HttpFresh));
            cells.push((Way::Probe, Kind::HttpReused));
        }
        let first = turn % cells.len();
        cells.rotate_left(first);
        for (way, kind) in cells {
            tell(&format!(
                "periods, {endpoints} endpoints every {inter_ms} ms: {}, {}",
                way.shown(),
                kind.shown()
            ));
            let inter = Duration::from_millis(*inter_ms);
            let plan = Plan::new(way, kind, *endpoints, inter);
            let length = if inter.as_secs() == 0 {
                scale.period
            } else {
                scale.long_period
            };
            all.push(period(&mut rig, &plan, length)?);
        }
    }
    Ok((all, skipped))
}

fn period(rig: &mut Rig, plan: &Plan, length: Duration) -> Result<Period> {
    let mut checker = plan.start(rig)?;
    thread::sleep(SETTLE.max(plan.inter));
    let since = Instant::now();
    let window = window(rig, &mut checker, length)?;
    let false_downs = checker.lines(since, |line| down(line).is_some()).len();
    let (rss, rss_anon) = checker.memory()?;
    checker.stop()?;
    let counted = &window.counted;
    let inter_ms = plan.inter.as_secs_f64() * 1e3;
    let ms = |us: Option<f64>| us.map(|us| us / 1e3);
    let gap_ms = Gap {
        p50: ms(counted.gap_p50_us),
        p99: ms(counted.gap_p99_us),
        max: ms(counted.gap_max_us),
    };
    let each = counted.requests as f64 / plan.endpoints as f64;
    Ok(Period {
        way: plan.way,
        kind: plan.kind,
        endpoints: plan.endpoints,
        inter_ms: plan.inter.as_millis() as u64,
        wanted_per_second: plan.endpoints as f64 / plan.inter.as_secs_f64(),
        achieved_per_second: counted.requests as f64 / window.seconds(),
        checked: counted.endpoints,
        mean_period_ms: (each > 0.0).then(|| window.seconds() * 1e3 / each),
        gap_ms,
        late_ms: gap_ms.over(inter_ms),
        false_downs,
        cpus: window.cpu.as_secs_f64() / window.seconds(),
        server_cpus: window.server_cpu.as_secs_f64() / window.seconds(),
        rss,
        rss_anon,
    })
}

/// The plan of the parts with a victim.
fn with_victim(way: Way, sentinel: bool) -> Plan {
    let mut plan = Plan::new(way, Kind::HttpDefault, BESIDE, INTER);
    plan.timeout = TIMEOUT;
    plan.victim = true;
    plan.sentinel = sentinel;
    plan
}

fn victim_is_down(line: &str) -> bool {
    down(line) == Some("victim")
}

fn victim_is_up(line: &str) -> bool {
    up(line) == Some("victim")
}

/// Lets the fault happen, and says after how many ms it was told.
fn find(checker: &Checker, fault: impl FnOnce() -> Result<()>) -> Result<Option<f64>> {
    let begun = Instant::now();
    fault()?;
    let told = checker.wait(begun, PATIENCE, victim_is_down);
    Ok(told.map(|at| at.saturating_duration_since(begun).as_secs_f64() * 1e3))
}

/// Times to find a fault when nothing else is to be done.
pub fn detections(scale: &Scale, mut tell: impl FnMut(&str)) -> Result<Vec<Detection>> {
    let mut rig = Rig::new(false)?;
    let mut all = Vec::new();
    let ways = [
        (Way::Probe, true),
        (Way::Haproxy, false),
        (Way::Probe, false),
    ];
    for fault in [Fault::Kill, Fault::Stop] {
        for (way, sentinel) in ways {
            tell(&format!("detection: {}, {}", way.shown(), fault.shown()));
            let times = find_again(&mut rig, way, sentinel, fault, scale.detections)?;
            let found: Vec<f64> = times.iter().flatten().copied().collect();
            all.push(Detection {
                way,
                sentinel,
                fault,
                faults: times.len(),
                found: found.len(),
                worst_ms: found.iter().copied().reduce(f64::max),
                ms: Spread::of(found),
            });
        }
    }
    Ok(all)
}

fn find_again(
    rig: &mut Rig,
    way: Way,
    sentinel: bool,
    fault: Fault,
    times: usize,
) -> Result<Vec<Option<f64>>> {
    let mut victim = rig.victim(false)?;
    let mut checker = with_victim(way, sentinel).start(rig)?;
    thread::sleep(SETTLE);
    let mut found = Vec::new();
    for time in 0..times {
        // Not always at the same point of the interval.
        thread::sleep(Duration::from_micros(60_000 + 1_700 * time as u64));
        let since = Instant::now();
        match fault {
            Fault::Kill => {
                found.push(find(&checker, || victim.kill())?);
                victim = rig.victim(false)?;
            }
            Fault::Stop => {
                found.push(find(&checker, || victim.signal(Signal::SIGSTOP))?);
                victim.signal(Signal::SIGCONT)?;
            }
        }
        checker.wait(since, PATIENCE, victim_is_up);
    }
    checker.alive()?;
    checker.stop()?;
    Ok(found)
}

/// False alarms and a real fault while other work wants every CPU.
pub fn saturated(scale: &Scale, cpus: usize, mut tell: impl FnMut(&str)) -> Result<Vec<Saturated>> {
    // What is late shall be whoever checks: the server goes before all of them.
    let mut rig = Rig::new(true)?;
    let threads = 2 * cpus;
    let ways = [Way::Probe, Way::Haproxy];
    let mut all: Vec<Saturated> = ways
        .into_iter()
        .map(|way| Saturated {
            way,
            endpoints: BESIDE + 1,
            inter_ms: INTER.as_millis() as u64,
            timeout_ms: TIMEOUT.as_millis() as u64,
            fall: FALL,
            other_threads: threads,
            seconds: 0.0,
            false_downs: 0,
            kills: 0,
            found_ms: Vec::new(),
            checks_per_second: 0.0,
            gap_p99_ms: None,
            gap_max_ms: None,
        })
        .collect();
    for turn in 0..scale.turns {
        for of in &mut all {
            tell(&format!(
                "beside other work, turn {} of {}: {}",
                turn + 1,
                scale.turns,
                of.way.shown()
            ));
            saturate(&mut rig, of, threads, scale.turn)?;
        }
        all.rotate_left(1);
    }
    for of in &mut all {
        of.checks_per_second /= scale.turns as f64;
    }
    all.sort_by_key(|of| of.way != Way::Probe);
    Ok(all)
}

/// One turn. The victim is killed in the middle of it.
fn saturate(rig: &mut Rig, of: &mut Saturated, threads: usize, turn: Duration) -> Result<()> {
    let victim: Server = rig.victim(true)?;
    // What clients' connections tell is not there; the sentinel is as it is by default.
    let mut checker = with_victim(of.way, of.way == Way::Probe).start(rig)?;
    let other_work = rig.burn(threads)?;
    thread::sleep(SETTLE);
    let since = Instant::now();
    rig.server.begin()?;
    thread::sleep(turn / 2);
    let before = checker.lines(since, |line| down(line).is_some()).len();
    let killed = Instant::now();
    of.kills += 1;
    of.found_ms.extend(find(&checker, || victim.kill())?);
    thread::sleep(turn.saturating_sub(since.elapsed()));
    let counted = rig.server.end()?;
    drop(other_work);
    checker.alive()?;
    // All before the kill, and of the others those from then on.
    let wrong = |line: &str| down(line).is_some_and(|who| who != "victim");
    of.false_downs += before + checker.lines(killed, wrong).len();
    checker.stop()?;
    let seconds = counted.window_ns as f64 / 1e9;
    of.seconds += seconds;
    of.checks_per_second += counted.requests as f64 / seconds;
    let worse = |old: Option<f64>, us: Option<f64>| match (old, us.map(|us| us / 1e3)) {
        (Some(old), Some(new)) => Some(old.max(new)),
        (old, new) => old.or(new),
    };
    of.gap_p99_ms = worse(of.gap_p99_ms, counted.gap_p99_us);
    of.gap_max_ms = worse(of.gap_max_ms, counted.gap_max_us);
    Ok(())
}
