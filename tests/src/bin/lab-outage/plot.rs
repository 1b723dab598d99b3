//! The latency over time around each fault, as SVG: plain text, no script, no font or
//! image of elsewhere, colours for light and dark.
//!
//! A panel a fault. Above, a lane a way: a tick for each request that failed, a paler one
//! for each that was lost, at the moment at which it was due. Below, a dot for each that
//! was answered, by how long it took.

use std::{fmt::Write, time::Instant};

use lab::client::Outcome;

use crate::{
    faults::Fault,
    figures::{Facts, Figures, Run, Three, Time, ms},
    human,
    ways::Path,
};

/// One run as dots.
#[derive(Clone, Debug)]
pub struct Trace {
    path: Path,
    fault: Fault,
    /// When it was due after the fault, in ms, and what became of it.
    points: Vec<(f64, Mark)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mark {
    /// In so many ms.
    Answered(f64),
    Failed,
    Lost,
}

impl Trace {
    pub fn of(facts: &Facts) -> Self {
        let after = |at: Instant| {
            if at < facts.fault_at {
                -ms(facts.fault_at - at)
            } else {
                ms(at - facts.fault_at)
            }
        };
        let points = facts.record.shots.iter().map(|shot| {
            let mark = match shot.outcome {
                Outcome::Answered(_) => Mark::Answered(ms(shot.ended - shot.due)),
                Outcome::Failed(_) => Mark::Failed,
                Outcome::Lost => Mark::Lost,
            };
            (after(shot.due), mark)
        });
        Self {
            path: facts.path,
            fault: facts.fault,
            points: points.collect(),
        }
    }
}

/// The run whose first answer is the median.
pub fn typical(runs: &[Run], traces: &[Trace]) -> Option<Trace> {
    let median = Three::<Time>::of(runs.iter().map(|run| run.first_answer))?.median;
    runs.iter()
        .zip(traces)
        .find(|(run, _)| run.first_answer == median)
        .map(|(_, trace)| trace.clone())
}

const WIDTH: f64 = 1240.0;
const HEADER: f64 = 90.0;
const PANEL_WIDTH: f64 = 620.0;
const PANEL_HEIGHT: f64 = 286.0;
/// Names of the ways.
const LEFT: f64 = 134.0;
/// When they answered again.
const RIGHT: f64 = 66.0;
const TOP: f64 = 42.0;
const LANE: f64 = 12.0;
/// Between lanes and dots.
const BETWEEN: f64 = 10.0;
const DOTS: f64 = 118.0;
const PLOT: f64 = PANEL_WIDTH - LEFT - RIGHT;
/// Decades of the axis of latency, in ms.
const DECADES: (i32, i32) = (-1, 3);

/// What a panel shows of the time around the fault, and where it has its ticks, in ms.
fn span(fault: Fault) -> ((f64, f64), [f64; 5]) {
    match fault {
        Fault::Recovery => ((-50.0, 500.0), [0.0, 100.0, 200.0, 300.0, 400.0]),
        _ => ((-15.0, 110.0), [0.0, 25.0, 50.0, 75.0, 100.0]),
    }
}

/// Light and dark: background, text, lines, then a colour a way.
const STYLE: &str = "\
svg{font:12px system-ui,'Segoe UI','DejaVu Sans',sans-serif}\
.bg{fill:#fff}.t{fill:#1f2328}.m{fill:#656d76}.g{stroke:#d8dee4;stroke-width:1;fill:none}\
.f{stroke:#1f2328;stroke-width:1;stroke-dasharray:3 3;fill:none}.lane{fill:#f3f5f7}\
.h{font-size:19px;font-weight:600}.p{font-size:14px;font-weight:600}.s{font-size:11px}\
.d{stroke-width:2.6;stroke-linecap:round;fill:none}.k{stroke-width:1.6;fill:none}.l{opacity:.4}\
.c0{stroke:#0969da}.c1{stroke:#d9720b}.c2{stroke:#c2368f}.c3{stroke:#1a8f54}\
.c4{stroke:#8a6d3b}.c5{stroke:#6e7781}\
.n0{fill:#0969da;font-weight:700}.n1{fill:#b45c04}.n2{fill:#b02a80}.n3{fill:#157a46}.n4{fill:#7a5f31}.n5{fill:#5c646c}\
@media(prefers-color-scheme:dark){.bg{fill:#0d1117}.t{fill:#e6edf3}.m{fill:#8d96a0}\
.g{stroke:#2b3138}.f{stroke:#e6edf3}.lane{fill:#161b22}\
.c0{stroke:#58a6ff}.c1{stroke:#f0883e}.c2{stroke:#f778ba}.c3{stroke:#3fb950}\
.c4{stroke:#c9a26b}.c5{stroke:#9aa4ae}\
.n0{fill:#58a6ff}.n1{fill:#f0883e}.n2{fill:#f778ba}.n3{fill:#3fb950}.n4{fill:#c9a26b}.n5{fill:#9aa4ae}}";

pub fn svg(figures: &Figures, traces: &[Trace]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, figures, traces);
    out
}

fn write(out: &mut String, figures: &Figures, traces: &[Trace]) -> std::fmt::Result {
    let faults: Vec<Fault> = Fault::ALL
        .into_iter()
        .filter(|fault| traces.iter().any(|trace| trace.fault == *fault))
        .collect();
    // The legend is a panel of its own.
    let rows = (faults.len() + 1).div_ceil(2);
    let height = HEADER + rows as f64 * PANEL_HEIGHT;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"title desc\">\n<title id=\"title\">What clients see of an outage</title>\n\
         <desc id=\"desc\">Latency of new connections around each fault, by way; ticks are requests \
         that failed or were lost.</desc>\n<style>{STYLE}</style>\n\
         <rect class=\"bg\" width=\"{WIDTH}\" height=\"{height}\"/>"
    )?;
    let setting = &figures.setting;
    text(
        out,
        "t h",
        24.0,
        34.0,
        "start",
        "What clients see of an outage",
    )?;
    text(
        out,
        "m",
        24.0,
        56.0,
        "start",
        &format!(
            "{} new connections a second; probe and HAProxy tuned check every {:.0} ms, fall {}. Of each way \
             the run whose first answer is the median.",
            setting.connections_per_second, setting.inter_ms, setting.fall
        ),
    )?;
    text(
        out,
        "m",
        24.0,
        73.0,
        "start",
        &format!(
            "Linux {}, {} CPUs, {}. At the right of each lane: how long until who takes over answers.",
            figures.machine.kernel, figures.machine.cpus, figures.haproxy
        ),
    )?;
    for (n, fault) in faults.iter().enumerate() {
        let (x, y) = place(n);
        writeln!(out, "<g transform=\"translate({x} {y})\">")?;
        panel(out, figures, *fault, traces)?;
        writeln!(out, "</g>")?;
    }
    let (x, y) = place(faults.len());
    writeln!(out, "<g transform=\"translate({x} {y})\">")?;
    legend(out, figures)?;
    writeln!(out, "</g>\n</svg>")
}

fn place(n: usize) -> (f64, f64) {
    let (column, row) = ((n % 2) as f64, (n / 2) as f64);
    (column * PANEL_WIDTH, HEADER + row * PANEL_HEIGHT)
}

/// Characters that mean something in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn text(
    out: &mut String,
    class: &str,
    x: f64,
    y: f64,
    anchor: &str,
    what: &str,
) -> std::fmt::Result {
    writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(what)
    )
}

fn panel(out: &mut String, figures: &Figures, fault: Fault, traces: &[Trace]) -> std::fmt::Result {
    let ((from, to), ticks) = span(fault);
    let x = |after: f64| LEFT + (after - from) / (to - from) * PLOT;
    let ways: Vec<Path> = Path::ALL
        .into_iter()
        .filter(|path| traces.iter().any(|t| (t.path, t.fault) == (*path, fault)))
        .collect();
    let dots_top = TOP + LANE * Path::ALL.len() as f64 + BETWEEN;
    let bottom = dots_top + DOTS;
    let (low, high) = DECADES;
    let y = |latency: f64| {
        let at = latency.log10().clamp(f64::from(low), f64::from(high));
        bottom - (at - f64::from(low)) / f64::from(high - low) * DOTS
    };
    text(out, "t p", LEFT, 20.0, "start", fault.shown())?;
    text(out, "m s", LEFT - 8.0, 35.0, "end", "failed or lost")?;
    let back = if fault == Fault::Recovery {
        "on master"
    } else {
        "on backup"
    };
    text(out, "m s", LEFT + PLOT + 8.0, 35.0, "start", back)?;
    for decade in low..=high {
        let at = y(10_f64.powi(decade));
        writeln!(out, "<path class=\"g\" d=\"M{LEFT} {at:.1}h{PLOT}\"/>")?;
        let label = match decade {
            3 => "1 s".to_owned(),
            -1 => "0.1 ms".to_owned(),
            decade => format!("{} ms", 10_u32.pow(decade.unsigned_abs())),
        };
        text(out, "m s", LEFT - 8.0, at + 4.0, "end", &label)?;
    }
    for tick in ticks {
        writeln!(
            out,
            "<path class=\"g\" d=\"M{:.1} {dots_top:.1}V{bottom:.1}\"/>",
            x(tick)
        )?;
        let label = if tick == 0.0 {
            "0".to_owned()
        } else {
            format!("+{tick:.0} ms")
        };
        text(out, "m s", x(tick), bottom + 15.0, "middle", &label)?;
    }
    for (n, path) in ways.iter().enumerate() {
        let top = TOP + LANE * n as f64;
        lane(out, figures, fault, *path, top)?;
    }
    // Probe is drawn last, over the others.
    for path in ways.iter().rev() {
        let top = TOP + LANE * ways.iter().position(|way| way == path).unwrap_or_default() as f64;
        for trace in traces
            .iter()
            .filter(|t| (t.path, t.fault) == (*path, fault))
        {
            let within = |after: &&(f64, Mark)| after.0 >= from && after.0 <= to;
            let points: Vec<(f64, Mark)> = trace.points.iter().filter(within).copied().collect();
            let class = *path as usize;
            marks(out, &points, class, top, x)?;
            dots(out, &points, class, x, y)?;
        }
    }
    writeln!(
        out,
        "<path class=\"f\" d=\"M{:.1} {}V{bottom:.1}\"/>",
        x(0.0),
        TOP - 6.0
    )
}

/// The lane's name, its ground, and when the way answered again.
fn lane(
    out: &mut String,
    figures: &Figures,
    fault: Fault,
    path: Path,
    top: f64,
) -> std::fmt::Result {
    let class = path as usize;
    writeln!(
        out,
        "<rect class=\"lane\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{PLOT}\" height=\"{:.1}\"/>",
        top + 1.0,
        LANE - 2.0
    )?;
    let name = format!("s n{class}");
    text(out, &name, LEFT - 8.0, top + 10.0, "end", path.shown())?;
    let Some(cell) = figures.cell(path, fault) else {
        return Ok(());
    };
    let first = cell.first_answer.median;
    let shown = match first.ms {
        Some(ms) if ms < 1000.0 => format!("{} ms", human::number(ms)),
        _ if path == Path::NftDnat && fault != Fault::Recovery => "never".to_owned(),
        _ => human::time(first),
    };
    text(out, &name, LEFT + PLOT + 8.0, top + 10.0, "start", &shown)
}

fn marks(
    out: &mut String,
    points: &[(f64, Mark)],
    class: usize,
    top: f64,
    x: impl Fn(f64) -> f64,
) -> std::fmt::Result {
    for (wanted, paler) in [(Mark::Failed, ""), (Mark::Lost, " l")] {
        let mut path = String::new();
        for (after, mark) in points {
            if *mark == wanted {
                write!(path, "M{:.1} {:.1}v{:.1}", x(*after), top + 1.0, LANE - 2.0)?;
            }
        }
        if !path.is_empty() {
            writeln!(out, "<path class=\"k c{class}{paler}\" d=\"{path}\"/>")?;
        }
    }
    Ok(())
}

fn dots(
    out: &mut String,
    points: &[(f64, Mark)],
    class: usize,
    x: impl Fn(f64) -> f64,
    y: impl Fn(f64) -> f64,
) -> std::fmt::Result {
    let mut path = String::new();
    for (after, mark) in points {
        if let Mark::Answered(latency) = mark {
            write!(path, "M{:.1} {:.1}h0", x(*after), y(latency.max(1e-3)))?;
        }
    }
    if path.is_empty() {
        return Ok(());
    }
    writeln!(out, "<path class=\"d c{class}\" d=\"{path}\"/>")
}

fn legend(out: &mut String, figures: &Figures) -> std::fmt::Result {
    text(out, "t p", LEFT, 20.0, "start", "How to read it")?;
    let lines = [
        "Dots: requests that were answered, by how long they took.",
        "Ticks: requests that failed; paler ones: that were lost, given up after 2 s.",
        "Both stand at the moment at which the request was due.",
        "At the right: the fault to the first answer from the server that takes over.",
    ];
    for (n, line) in lines.iter().enumerate() {
        text(out, "m", LEFT, 44.0 + 18.0 * n as f64, "start", line)?;
    }
    for (n, way) in figures.ways.iter().enumerate() {
        let y = 132.0 + 20.0 * n as f64;
        let class = way.way as usize;
        writeln!(
            out,
            "<path class=\"d c{class}\" style=\"stroke-width:8\" d=\"M{} {}h0\"/>",
            LEFT + 5.0,
            y - 4.0
        )?;
        text(out, &format!("n{class}"), LEFT + 18.0, y, "start", way.name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lab::bench::Machine;

    use super::{STYLE, Trace, escaped, svg, typical};
    use crate::{
        faults::Fault,
        figures::{Figures, sum_up, tell, tests::facts},
        setting,
        ways::Path,
    };

    /// Every tag that opens is closed, in order; attributes are quoted.
    fn check(text: &str) -> usize {
        let mut open: Vec<&str> = Vec::new();
        let mut count = 0;
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "a stray >: {}", &rest[..at]);
            let end = at + rest[at..].find('>').expect("a tag ends");
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().expect("a tag has a name"));
            }
            count += 1;
        }
        assert!(open.is_empty(), "{open:?} are open");
        count
    }

    #[test]
    fn the_picture_is_well_formed() {
        let run = tell(&facts());
        let figures = Figures {
            machine: Machine {
                kernel: "<6.18 & more>".to_owned(),
                cpu: String::new(),
                cpus: 2,
            },
            haproxy: String::new(),
            setting: setting(),
            ways: Vec::new(),
            cells: sum_up(Path::Probe, Fault::Kill, std::slice::from_ref(&run))
                .into_iter()
                .collect(),
            flows: None,
            bars: Vec::new(),
            took_s: 0.0,
        };
        let trace = typical(&[run], &[Trace::of(&facts())]).expect("it has a run");
        let text = svg(&figures, &[trace]);
        assert!(check(&text) > 20);
        assert!(text.contains("class=\"k c0\"") && text.contains("class=\"k c0 l\""));
        assert!(text.contains("&lt;6.18 &amp; more&gt;"));
        assert!(!text.contains("NaN") && !text.contains("inf"));
        // Nothing measured is a picture, too.
        check(&svg(
            &Figures {
                cells: Vec::new(),
                ..figures
            },
            &[],
        ));
    }

    #[test]
    fn every_way_has_a_colour_in_light_and_dark() {
        for path in Path::ALL {
            for class in ["c", "n"] {
                let rule = format!(".{class}{}{{", path as usize);
                assert_eq!(STYLE.matches(&rule).count(), 2, "{rule}");
            }
        }
        assert_eq!(escaped("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}
