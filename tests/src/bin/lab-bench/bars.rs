//! The bars, each computed from what the run measured.

use anyhow::Result;
use lab::bench::{Bar, at_least, at_most};

use crate::{
    Figures,
    harness::Hook,
    packets::Family,
    programs::{FLOWS, What},
    throughput::{Mode, Path},
};

fn shown(flows: Option<u32>) -> String {
    match flows {
        Some(1) => "one flow".to_owned(),
        flows => format!("{}k flows", flows.unwrap_or_default() >> 10),
    }
}

pub fn judge(figures: &Figures) -> Result<Vec<Bar>> {
    let mut bars = Vec::new();
    if let Some(programs) = &figures.programs {
        for hook in [Hook::Xdp, Hook::Tc] {
            for family in Family::BOTH {
                let at = format!("{} {}", hook.shown(), family.shown());
                let ratio = |cost, to| programs.ratio(hook, family, cost, to);
                for flows in FLOWS.map(Some) {
                    bars.push(at_most(
                        format!("{at}, established, {}, to the DNAT floor", shown(flows)),
                        ratio((What::Established, flows), (What::FloorDnat, flows))?,
                        1.5,
                        "x",
                    ));
                }
                let [one, _, many] = FLOWS.map(|flows| (What::Established, Some(flows)));
                bars.push(at_most(
                    format!("{at}, established, {} to one", shown(many.1)),
                    ratio(many, one)?,
                    1.3,
                    "x",
                ));
                let parse = programs.net(hook, family, What::FloorParse, None)?;
                let mut not_ours = vec![(What::NotOurs, "not ours")];
                if hook == Hook::Tc {
                    not_ours.push((What::NotOursBack, "not ours, to a client"));
                }
                for (what, shown) in not_ours {
                    bars.push(at_most(
                        format!("{at}, {shown} (25 ns, or 1.15 times parse only if that is more)"),
                        programs.net(hook, family, what, None)?,
                        (1.15 * parse).max(25.0),
                        "ns",
                    ));
                }
                bars.push(at_most(
                    format!("{at}, SYN of a new flow, to established, {}", shown(many.1)),
                    ratio((What::New, None), many)?,
                    2.0,
                    "x",
                ));
                bars.push(at_most(
                    format!(
                        "{at}, SYN of a new flow in a SYN flood that has filled the tables, to established in it"
                    ),
                    ratio((What::Flood, None), (What::EstablishedUnderFlood, None))?,
                    2.0,
                    "x",
                ));
            }
        }
    }
    if let Some(throughput) = &figures.throughput {
        for (mode, limit) in Mode::ALL.into_iter().zip([0.97, 0.93]) {
            let row = throughput.row(Path::Probe, mode)?;
            let at = format!("requests/s, {}", mode.shown());
            bars.push(at_least(
                format!("{at}, to direct"),
                row.to_direct.median,
                limit,
                "x",
            ));
            bars.push(at_least(
                format!("{at}, to nft DNAT"),
                row.to_nft.median,
                1.0,
                "x",
            ));
        }
    }
    for switch in &figures.switches {
        let at = format!("switch with {} flows", switch.flows);
        bars.push(at_most(
            format!("{at}, the store"),
            switch.store_ns.median / 1e3,
            50.0,
            "us",
        ));
        bars.push(at_most(
            format!("{at}, store to first packet steered"),
            switch.first_packet_us.median,
            50.0,
            "us",
        ));
    }
    Ok(bars)
}
