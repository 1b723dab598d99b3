//! Programs and floors, packet by packet, in interleaved rounds.
//!
//! In each round every case is run once, with a program that does nothing run for
//! the same hook, family and direction. What a case costs is the median of the
//! differences within rounds.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::programs::ProgramFd;
use probe_ebpf::names;
use serde::Serialize;

use crate::{
    Scale,
    harness::{Drivers, Hook, Instance, Walk, descriptor},
    packets::{Family, Kind, ends, master, vip},
};
use lab::bench::Spread;

/// Flow counts that are compared.
pub const FLOWS: [u32; 3] = [1, 16 << 10, 512 << 10];
const MOST: u32 = FLOWS[2];
/// Size of the tables that hold them: room for new ones beside.
pub const TABLE: u32 = 768 << 10;
/// Size of the tables that are flooded, as configured by default.
const FLOODED_TABLE: u32 = probe_ebpf::abi::DEFAULT_FLOWS;
/// Established flows in the flooded tables.
const FLOODED_FLOWS: u32 = 64 << 10;
/// First flow of those that are opened and reset again in each round.
const FIRST_NEW: u32 = 1 << 22;
/// First flow of the flood.
const FIRST_FLOOD: u32 = 1 << 24;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Driver and a program that does nothing.
    Harness,
    FloorSwap,
    FloorParse,
    FloorSlot,
    FloorDnat,
    Established,
    Reverse,
    NotOurs,
    NotOursBack,
    New,
    Answer,
    Flood,
    FloodAnswer,
    EstablishedUnderFlood,
}

impl What {
    pub const fn shown(self) -> &'static str {
        match self {
            Self::Harness => "(the harness itself)",
            Self::FloorSwap => "floor: swap MACs, send back",
            Self::FloorParse => "floor: parse only",
            Self::FloorSlot => "floor: VIP, slot, DNAT",
            Self::FloorDnat => "floor: parse, LRU, DNAT",
            Self::Established => "probe: established",
            Self::Reverse => "probe: reply",
            Self::NotOurs => "probe: not ours",
            Self::NotOursBack => "probe: not ours, to a client",
            Self::New => "probe: new flow, SYN",
            Self::Answer => "probe: new flow, SYN-ACK",
            Self::Flood => "probe: SYN flood, tables full",
            Self::FloodAnswer => "probe: its SYN-ACKs, tables full",
            Self::EstablishedUnderFlood => "probe: established, tables full",
        }
    }
}

/// One thing measured at one hook in one family.
#[derive(Debug, Serialize)]
pub struct Row {
    pub hook: &'static str,
    pub family: Family,
    pub what: What,
    /// Flows that are walked through, if that is the question.
    pub flows: Option<u32>,
    /// For one packet, net of the harness.
    pub net_ns: Spread,
    /// For one packet, harness included.
    pub gross_ns: Spread,
    /// Of new flows: the part of the packets that went to the endpoint, or came back.
    pub steered: Option<f64>,
    /// Net, round by round.
    #[serde(skip)]
    rounds: Vec<f64>,
}

/// What the programs cost.
#[derive(Debug, Serialize)]
pub struct Programs {
    pub rounds: u32,
    pub packets_a_run: u32,
    pub rows: Vec<Row>,
}

impl Programs {
    fn row(&self, hook: Hook, family: Family, what: What, flows: Option<u32>) -> Result<&Row> {
        self.rows
            .iter()
            .find(|row| {
                (row.hook, row.family, row.what, row.flows) == (hook.shown(), family, what, flows)
            })
            .with_context(|| format!("{what:?} of {flows:?} flows was not measured"))
    }

    /// Net median, in nanoseconds.
    pub fn net(&self, hook: Hook, family: Family, what: What, flows: Option<u32>) -> Result<f64> {
        Ok(self.row(hook, family, what, flows)?.net_ns.median)
    }

    /// The median of a cost's ratios to another of the same round: what slows a round
    /// down slows both.
    pub fn ratio(
        &self,
        hook: Hook,
        family: Family,
        (what, flows): (What, Option<u32>),
        (to, to_flows): (What, Option<u32>),
    ) -> Result<f64> {
        let cost = &self.row(hook, family, what, flows)?.rounds;
        let other = &self.row(hook, family, to, to_flows)?.rounds;
        // Next to nothing, noise would decide.
        let ratios = cost.iter().zip(other).filter(|(_, other)| **other > 0.5);
        Ok(Spread::of(ratios.map(|(cost, other)| cost / other))
            .with_context(|| format!("{to:?} costs nothing to compare with"))?
            .median)
    }
}

struct Case {
    hook: Hook,
    family: Family,
    what: What,
    flows: Option<u32>,
    kind: Kind,
    target: ProgramFd,
    gross: Vec<f64>,
    net: Vec<f64>,
    /// Packets of new flows that were sent, and those that went to the endpoint.
    new: [u64; 2],
}

impl Case {
    fn title(&self) -> String {
        let hook = self.hook.shown();
        format!(
            "{hook} {} {:?} {:?}",
            self.family.shown(),
            self.what,
            self.flows
        )
    }
}

/// The kernel's objects that the rounds use.
pub struct Bench {
    pub drivers: Drivers,
    /// Holds many established flows.
    pub full: Instance,
    /// Is flooded.
    flooded: Instance,
    flood: BTreeMap<&'static str, u32>,
}

impl Bench {
    pub fn open(floors: &Path, object: &[u8]) -> Result<Self> {
        let mut full = Instance::open("full", TABLE, object)?;
        full.grant_all()?;
        Ok(Self {
            drivers: Drivers::load(floors)?,
            full,
            flooded: Instance::open("flooded", FLOODED_TABLE, object)?,
            flood: BTreeMap::new(),
        })
    }

    /// Establishes the flows, by the packets that do so in life.
    pub fn fill(&mut self) -> Result<()> {
        for family in Family::BOTH {
            for (instance, flows) in [(&self.full, MOST), (&self.flooded, FLOODED_FLOWS)] {
                let kinds = [Kind::Open, Kind::Answer, Kind::Data, Kind::Back];
                handshakes(&mut self.drivers, instance, family, 0, flows, &kinds)?;
            }
            let learn = self.drivers.floor(match family {
                Family::V4 => "learn_xdp_v4",
                Family::V6 => "learn_xdp_v6",
            })?;
            self.drivers
                .run(&learn, Hook::Xdp, family, Kind::Data, Walk::From(0), MOST)?;
            // More sources than the tables have entries, all answered by the endpoint.
            let first = FIRST_FLOOD - FLOODED_TABLE;
            let kinds = [Kind::Open, Kind::Answer];
            let (drivers, flooded) = (&mut self.drivers, &self.flooded);
            handshakes(drivers, flooded, family, first, FLOODED_TABLE, &kinds)?;
        }
        Ok(())
    }

    fn cases(&self) -> Result<Vec<Case>> {
        let mut cases = Vec::new();
        for hook in [Hook::Xdp, Hook::Tc] {
            for family in Family::BOTH {
                let mut case = |what, flows, kind, target| {
                    cases.push(Case {
                        hook,
                        family,
                        what,
                        flows,
                        kind,
                        target,
                        gross: Vec::new(),
                        net: Vec::new(),
                        new: [0; 2],
                    });
                };
                let floor = |name: &str| match (hook, family) {
                    (Hook::Xdp, Family::V4) => self.drivers.floor(&format!("{name}_xdp_v4")),
                    (Hook::Xdp, Family::V6) => self.drivers.floor(&format!("{name}_xdp_v6")),
                    (Hook::Tc, Family::V4) => self.drivers.floor(&format!("{name}_tc_v4")),
                    (Hook::Tc, Family::V6) => self.drivers.floor(&format!("{name}_tc_v6")),
                };
                let (empty, swap, forward) = match hook {
                    Hook::Xdp => ("empty_xdp", "swap_xdp", names::PROGRAM_XDP_FORWARD_FRAGS),
                    Hook::Tc => ("empty_tc", "swap_tc", names::PROGRAM_TC_FORWARD),
                };
                let full = |name: &str| descriptor(&self.full.ebpf, name);
                let flooded = || descriptor(&self.flooded.ebpf, forward);

                case(What::Harness, None, Kind::Data, self.drivers.floor(empty)?);
                case(What::FloorSwap, None, Kind::Data, self.drivers.floor(swap)?);
                case(What::FloorParse, None, Kind::Elsewhere, floor("parse")?);
                case(What::NotOurs, None, Kind::Elsewhere, full(forward)?);
                if hook == Hook::Tc {
                    let reverse = full(names::PROGRAM_TC_REVERSE)?;
                    case(What::NotOursBack, None, Kind::BackElsewhere, reverse);
                }
                for flows in FLOWS {
                    // Neighbours in time, since they are compared.
                    case(What::FloorDnat, Some(flows), Kind::Data, floor("flow")?);
                    case(What::Established, Some(flows), Kind::Data, full(forward)?);
                    case(What::FloorSlot, Some(flows), Kind::Data, floor("slot")?);
                    if hook == Hook::Tc {
                        let reverse = full(names::PROGRAM_TC_REVERSE)?;
                        case(What::Reverse, Some(flows), Kind::Back, reverse);
                    }
                }
                case(What::New, None, Kind::Open, full(forward)?);
                case(What::EstablishedUnderFlood, None, Kind::Data, flooded()?);
                case(What::Flood, None, Kind::Open, flooded()?);
                if hook == Hook::Tc {
                    let reverse = names::PROGRAM_TC_REVERSE;
                    case(What::Answer, None, Kind::Answer, full(reverse)?);
                    let flooded = descriptor(&self.flooded.ebpf, reverse)?;
                    case(What::FloodAnswer, None, Kind::Answer, flooded);
                }
            }
        }
        Ok(cases)
    }

    /// Runs every case once for a few packets and looks at what they became: a case
    /// that measures something else than it says is worth nothing.
    fn check(&mut self, cases: &[Case]) -> Result<()> {
        for case in cases {
            let walk = Walk::Among(case.flows.unwrap_or(FLOODED_FLOWS));
            let wanted = match case.what {
                What::FloorDnat
                | What::FloorSlot
                | What::Established
                | What::EstablishedUnderFlood => Some((1, master(case.family))),
                What::Reverse => Some((0, vip(case.family))),
                // New flows are checked by counters in each round.
                What::New | What::Answer | What::Flood | What::FloodAnswer => continue,
                What::Harness
                | What::FloorSwap
                | What::FloorParse
                | What::NotOurs
                | What::NotOursBack => None,
            };
            for _ in 0..16 {
                let ran =
                    self.drivers
                        .run(&case.target, case.hook, case.family, case.kind, walk, 1)?;
                let found = ends(&ran.packet, case.family);
                if let Some((end, wanted)) = &wanted {
                    ensure!(
                        found[*end] == *wanted,
                        "{}: a packet went from {:?} to {:?}, verdict {}",
                        case.title(),
                        found[0],
                        found[1],
                        ran.verdict
                    );
                }
            }
        }
        Ok(())
    }

    /// The flows of a case's next run.
    fn walk(&mut self, case: &Case, packets: u32, round: u32) -> Walk {
        match case.what {
            What::New | What::Answer => Walk::From(FIRST_NEW + round.wrapping_mul(packets)),
            What::Flood | What::FloodAnswer => {
                let next = self.flood.entry(case.family.shown()).or_insert(FIRST_FLOOD);
                let walk = Walk::From(*next);
                *next = next.wrapping_add(packets);
                walk
            }
            _ => Walk::Among(case.flows.unwrap_or(FLOODED_FLOWS)),
        }
    }

    /// Runs a case and the empty program; a packet's cost with either. The harness
    /// itself is told as it is.
    fn once(
        &mut self,
        case: &mut Case,
        nothing: &ProgramFd,
        walk: Walk,
        packets: u32,
    ) -> Result<(f64, f64)> {
        let (hook, family, kind) = (case.hook, case.family, case.kind);
        let mut run = |target, kind, packets| {
            self.drivers
                .run(target, hook, family, kind, walk, packets)
                .map(|ran| ran.ns)
        };
        let harness = run(nothing, kind, packets)?;
        if case.what == What::Harness {
            return Ok((harness, 0.0));
        }
        // The case before left the caches to itself. More flows fit into none.
        if let Walk::Among(flows @ 2..=FLOODED_FLOWS) = walk {
            run(&case.target, kind, flows)?;
        }
        let instance = match case.what {
            What::New | What::Answer => &self.full,
            What::Flood | What::FloodAnswer => &self.flooded,
            _ => return Ok((run(&case.target, kind, packets)?, harness)),
        };
        let reader = instance.datapath.reader()?;
        let id = instance.service.endpoints[0];
        let Walk::From(first) = walk else {
            unreachable!("new flows come in a row");
        };
        let back = kind.is_back();
        let before = reader.endpoint_counters(id)?;
        let gross = if back {
            // A SYN is forgotten when too many others come before its answer.
            let kinds = [Kind::Open, kind];
            handshakes(&mut self.drivers, instance, family, first, packets, &kinds)?
        } else {
            run(&case.target, kind, packets)?
        };
        let after = reader.endpoint_counters(id)?;
        case.new[0] += u64::from(packets);
        case.new[1] += if back {
            after.reverse_packets - before.reverse_packets
        } else {
            after.forward_packets - before.forward_packets
        };
        if case.what == What::Answer {
            let made = after.flows_opened - before.flows_opened;
            ensure!(
                made * 1000 >= u64::from(packets) * 999,
                "{}: {packets} SYN-ACKs made {made} flows known",
                case.title()
            );
            // The tables are as before.
            let forward = descriptor(&instance.ebpf, names::PROGRAM_TC_FORWARD)?;
            let walk = Walk::From(first);
            self.drivers
                .run(&forward, hook, family, Kind::Reset, walk, packets)?;
        }
        Ok((gross, harness))
    }

    /// Runs rounds until they are as many as wanted, or their time is over.
    pub fn measure(&mut self, scale: &Scale, mut tell: impl FnMut(&str)) -> Result<Programs> {
        let mut cases = self.cases()?;
        self.check(&cases)?;
        let empty = [
            (Hook::Xdp, self.drivers.floor("empty_xdp")?),
            (Hook::Tc, self.drivers.floor("empty_tc")?),
        ];
        let begun = Instant::now();
        let mut rounds = 0;
        while rounds < scale.rounds && (rounds < 3 || begun.elapsed() < scale.programs_limit) {
            // The first round warms caches up and is not counted.
            let counts = rounds > 0 || scale.rounds == 0;
            tell(&format!(
                "programs, round {} of {}",
                rounds + 1,
                scale.rounds
            ));
            for case in &mut cases {
                let nothing = &empty
                    .iter()
                    .find(|(hook, _)| *hook == case.hook)
                    .context("every hook has an empty program")?
                    .1;
                let walk = self.walk(case, scale.packets, rounds);
                let (gross, harness) = self.once(case, nothing, walk, scale.packets)?;
                if counts {
                    case.gross.push(gross);
                    case.net.push(gross - harness);
                }
            }
            rounds += 1;
        }
        self.check(&cases)?;
        // Else every packet took the long way.
        let reader = self.full.datapath.reader()?;
        ensure!(
            reader.slot_alone(self.full.service.id)?,
            "flows of the full tables do not go by the slot alone any more: {:?}",
            reader.reasons()?
        );
        let rows = cases
            .into_iter()
            .map(|case| {
                let title = case.title();
                Ok(Row {
                    hook: case.hook.shown(),
                    family: case.family,
                    what: case.what,
                    flows: case.flows,
                    net_ns: Spread::of(case.net.iter().copied()).with_context(|| title.clone())?,
                    gross_ns: Spread::of(case.gross).context(title)?,
                    steered: (case.new[0] > 0).then(|| case.new[1] as f64 / case.new[0] as f64),
                    rounds: case.net,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Programs {
            rounds: rounds - 1,
            packets_a_run: scale.packets,
            rows,
        })
    }
}

/// Flows of a batch of handshakes: so few that no SYN is forgotten before its answer.
const BATCH: u32 = 64;

/// Lets the flows go through these kinds of packets, batch after batch. Answers what a
/// packet of the last kind cost.
fn handshakes(
    drivers: &mut Drivers,
    instance: &Instance,
    family: Family,
    first: u32,
    flows: u32,
    kinds: &[Kind],
) -> Result<f64> {
    let forward = descriptor(&instance.ebpf, names::PROGRAM_TC_FORWARD)?;
    let reverse = descriptor(&instance.ebpf, names::PROGRAM_TC_REVERSE)?;
    let mut spent = 0.0;
    let mut at = 0;
    while at < flows {
        let batch = BATCH.min(flows - at);
        for (i, kind) in kinds.iter().enumerate() {
            let program = if kind.is_back() { &reverse } else { &forward };
            let walk = Walk::From(first.wrapping_add(at));
            let ran = drivers.run(program, Hook::Tc, family, *kind, walk, batch)?;
            if i + 1 == kinds.len() {
                spent += ran.ns * f64::from(batch);
            }
        }
        at += batch;
    }
    Ok(spent / f64::from(flows))
}

/// How long measuring may take.
pub const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
