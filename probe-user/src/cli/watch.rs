//! `probe watch`: the status again and again.
//!
//! Plain ANSI on the alternate screen: a status is a table, and a library for terminals would be
//! more than all of this verb. The terminal is set back by [`Screen`], which goes with the end of the
//! verb in every way: by q, by a signal, by an error and by a panic.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, anyhow};
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};

use super::{
    Failure, args, print, reader_is_gone,
    status::{colour, row, state, table},
};
use crate::{
    config,
    control::client,
    core::{
        explain::span,
        status::{self, Endpoint, Service, Status},
    },
    log,
};

/// Looks that the graph shows.
const LOOKS: usize = 30;
/// How often keys and signals are looked for.
const PATIENCE: Duration = Duration::from_millis(50);
/// The column of states.
const STATE: usize = 3;

static ENDS: AtomicBool = AtomicBool::new(false);

pub fn run(args: &args::Watch) -> Result<(), Failure> {
    let every = config::duration("--every", &args.every, Duration::from_millis(100));
    let every = every.map_err(|fault| Failure::Config(anyhow!("{fault}")))?;
    let live = io::stdout().is_terminal();
    let looks = args.count.unwrap_or(if live { u64::MAX } else { 1 });
    // Asked once before the screen is taken, so that an error is seen.
    let first = client::status(&args.socket)?;
    if let Some(name) = &args.service
        && !first.services.iter().any(|of| of.name == *name)
    {
        return Err(anyhow!("there is no service `{name}`").into());
    }
    let coloured = log::coloured(&io::stdout());
    let mut screen = live.then(Screen::take).transpose()?;
    let mut past = Past::default();
    let mut status = Ok(first);
    for look in 0..looks {
        if look > 0 {
            status = client::status(&args.socket);
        }
        let text = match &mut status {
            Ok(status) => {
                status
                    .services
                    .retain(|of| args.service.as_ref().is_none_or(|name| of.name == *name));
                past.note(status, Instant::now());
                frame(status, &past, status::unix_ms(SystemTime::now()), coloured)
            }
            // It may be restarted at the moment.
            Err(error) if live => format!("{error:#}\n"),
            Err(error) => return Err(anyhow!("{error:#}").into()),
        };
        match &mut screen {
            Some(screen) => screen.show(&text)?,
            None => print(&text)?,
        }
        if reader_is_gone() || (look + 1 < looks && waited(every, screen.as_ref())) {
            break;
        }
    }
    Ok(())
}

/// Until the next look; true if somebody wants the end.
fn waited(every: Duration, screen: Option<&Screen>) -> bool {
    let until = Instant::now() + every;
    loop {
        if ENDS.load(Ordering::Relaxed) || screen.is_some_and(Screen::is_asked_to_end) {
            return true;
        }
        let rest = until.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return false;
        }
        thread::sleep(rest.min(PATIENCE));
    }
}

/// The terminal while it is ours.
struct Screen {
    /// What keys did before, where they come from a terminal.
    before: Option<Termios>,
}

impl Screen {
    fn take() -> anyhow::Result<Self> {
        catch_signals().context("watch for signals")?;
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok();
        if let Some(before) = &before {
            let mut keys = before.clone();
            // Ctrl-C stays a signal.
            keys.local_flags
                .remove(LocalFlags::ICANON | LocalFlags::ECHO);
            keys.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
            keys.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &keys).context("set the terminal")?;
        }
        let screen = Self { before };
        screen.write("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// The text from the top, what was there before gone, and no line longer than the screen.
    fn show(&mut self, text: &str) -> anyhow::Result<()> {
        let (rows, columns) = size();
        let mut frame = String::from("\x1b[H");
        for line in text.lines().take(rows) {
            frame += &cut(line, columns);
            frame += "\x1b[K\r\n";
        }
        // The last line end would move everything up.
        if let Some(shown) = frame.strip_suffix("\r\n") {
            frame.truncate(shown.len());
        }
        frame += "\x1b[J";
        self.write(&frame)
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .context("write to the terminal")
    }

    fn is_asked_to_end(&self) -> bool {
        let mut keys = [0; 16];
        let keys = self.before.as_ref().and_then(|_| {
            io::stdin()
                .read(&mut keys)
                .ok()
                .map(|count| keys[..count].to_vec())
        });
        keys.is_some_and(|keys| keys.contains(&b'q'))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.write("\x1b[?25h\x1b[?1049l");
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, before);
        }
    }
}

/// Signals that end a program end the loop instead, so that the screen is given back.
fn catch_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let kinds = [
        tokio::signal::unix::SignalKind::interrupt(),
        tokio::signal::unix::SignalKind::terminate(),
        tokio::signal::unix::SignalKind::hangup(),
    ];
    let signals = kinds.map(tokio::signal::unix::signal);
    drop(guard);
    let [mut interrupt, mut terminate, mut hangup] = match signals {
        [Ok(a), Ok(b), Ok(c)] => [a, b, c],
        [a, b, c] => {
            return Err(a
                .and(b)
                .and(c)
                .err()
                .map_or(anyhow!("no signals"), Into::into));
        }
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            ENDS.store(true, Ordering::Relaxed);
        });
    });
    Ok(())
}

/// Rows and columns of the terminal.
fn size() -> (usize, usize) {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request writes one `winsize`, which lives as long as the call.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    if result < 0 || size.ws_row == 0 || size.ws_col == 0 {
        return (24, 80);
    }
    (size.ws_row.into(), size.ws_col.into())
}

/// At most so many columns; colours take none.
fn cut(line: &str, columns: usize) -> String {
    let mut text = String::new();
    let (mut seen, mut escape) = (0, false);
    for c in line.chars() {
        if c == '\x1b' {
            escape = true;
        } else if escape {
            escape = c != 'm';
        } else {
            seen += 1;
            if seen > columns {
                continue;
            }
        }
        text.push(c);
    }
    text
}

/// What was seen before.
#[derive(Default)]
struct Past {
    endpoints: BTreeMap<(String, String), Seen>,
    at: Option<Instant>,
    /// Between the last two looks.
    gap: Duration,
}

#[derive(Default)]
struct Seen {
    /// Durations of the last checks in us; nothing where one had failed.
    checks: VecDeque<Option<u64>>,
    now: Counts,
    before: Option<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    packets: u64,
    bytes: u64,
    opened: u64,
}

impl Past {
    fn note(&mut self, status: &Status, now: Instant) {
        self.gap = self.at.map_or(Duration::ZERO, |at| now - at);
        self.at = Some(now);
        for (service, endpoint) in all(status) {
            let key = (service.name.clone(), endpoint.name.clone());
            let seen = self.endpoints.entry(key).or_default();
            if seen.checks.len() >= LOOKS {
                seen.checks.pop_front();
            }
            let good = endpoint.verdict.as_deref() == Some("ok");
            seen.checks.push_back(endpoint.latency_us.filter(|_| good));
            let traffic = &endpoint.traffic;
            seen.before = (!self.gap.is_zero()).then_some(seen.now);
            seen.now = Counts {
                packets: traffic.forward_packets + traffic.reverse_packets,
                bytes: traffic.forward_bytes + traffic.reverse_bytes,
                opened: traffic.flows_opened,
            };
        }
    }

    /// A rate since the look before.
    fn rate(&self, seen: &Seen, of: impl Fn(&Counts) -> u64) -> String {
        let Some(before) = &seen.before else {
            return "-".to_owned();
        };
        // A new id begins at zero.
        let more = of(&seen.now).saturating_sub(of(before));
        let millis = self.gap.as_millis().max(1);
        short(u64::try_from(u128::from(more) * 1000 / millis).unwrap_or(u64::MAX))
    }
}

fn all(status: &Status) -> impl Iterator<Item = (&Service, &Endpoint)> {
    let services = status.services.iter();
    services.flat_map(|of| of.endpoints.iter().map(move |endpoint| (of, endpoint)))
}

/// `1.2k`, `3.4M`: four places at most.
fn short(number: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    for (size, unit) in UNITS {
        if number >= size * 100 {
            return format!("{}{unit}", number / size);
        }
        if number >= size {
            return format!("{}.{}{unit}", number / size, number % size * 10 / size);
        }
    }
    number.to_string()
}

/// Durations as bars between nothing and the longest.
fn sparkline(checks: &VecDeque<Option<u64>>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = checks.iter().flatten().max().copied().unwrap_or(0).max(1);
    let bar = |us: &Option<u64>| match us {
        Some(us) => {
            let step = usize::try_from(us * 8 / (most + 1)).unwrap_or(0);
            BARS[step.min(7)]
        }
        None => 'x',
    };
    checks.iter().map(bar).collect()
}

fn frame(status: &Status, past: &Past, now_ms: u64, coloured: bool) -> String {
    let ago = |then: u64| span(now_ms.saturating_sub(then));
    let mut text = format!(
        "probe {}, pid {}, up {}{}\n",
        status.version,
        status.agent.pid,
        ago(status.agent.started_unix_ms),
        if status.agent.distrust_since_unix_ms.is_some() {
            "; all hosts are silent, selections are held"
        } else {
            ""
        }
    );
    for service in &status.services {
        let selection = &service.selection;
        let to = match selection.endpoints.as_slice() {
            [] => "refuses".to_owned(),
            to => format!("-> {}", to.join(", ")),
        };
        let due = match service.failback.due_unix_ms {
            Some(due) => format!(", fails back in {}", span(due.saturating_sub(now_ms))),
            None => String::new(),
        };
        let orders = super::status::orders(service, now_ms);
        text += &format!(
            "\n{} {to}, {} for {}, switches {}{due}{orders}\n",
            service.name,
            selection.reason,
            ago(selection.since_unix_ms),
            selection.switches
        );
        let mut rows = vec![row(&[
            "",
            "ENDPOINT",
            "TIER",
            "STATE",
            "FOR",
            "CHECK",
            "P99",
            "FLOWS/s",
            "PACKETS/s",
            "BYTES/s",
            "LATENCY",
        ])];
        let mut endpoints: Vec<_> = service.endpoints.iter().collect();
        endpoints.sort_by_key(|endpoint| endpoint.tier);
        for endpoint in endpoints {
            rows.push(line(service, endpoint, past, &ago));
        }
        text += &table(&rows, |column, cell| match column {
            STATE if coloured => colour(cell),
            _ => None,
        });
    }
    text
}

fn line(
    service: &Service,
    endpoint: &Endpoint,
    past: &Past,
    ago: &impl Fn(u64) -> String,
) -> Vec<String> {
    let millis = |us: u64| format!("{}.{} ms", us / 1000, us % 1000 / 100);
    let check = match (endpoint.verdict.as_deref(), endpoint.latency_us) {
        (Some("ok"), Some(us)) => millis(us),
        (Some(verdict), _) => verdict.to_owned(),
        (None, _) => "-".to_owned(),
    };
    let p99 = endpoint.durations.map(|of| millis(of.p99_us.into()));
    let none = Seen::default();
    let key = (service.name.clone(), endpoint.name.clone());
    let seen = past.endpoints.get(&key).unwrap_or(&none);
    vec![
        if endpoint.serving { "*" } else { "" }.to_owned(),
        endpoint.name.clone(),
        endpoint.tier.to_string(),
        state(endpoint),
        ago(endpoint.since_unix_ms),
        check,
        p99.unwrap_or_else(|| "-".to_owned()),
        past.rate(seen, |of| of.opened),
        past.rate(seen, |of| of.packets),
        past.rate(seen, |of| of.bytes),
        sparkline(&seen.checks),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (99_999, "99.9k"),
            (123_456, "123k"),
            (1_234_567, "1.2M"),
            (7_000_000_000, "7.0G"),
        ] {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn a_frame_tells_rates_and_latency() {
        let mut status = crate::control::tests::example();
        let mut past = Past::default();
        let begun = Instant::now();
        past.note(&status, begun);
        let first = frame(&status, &past, 10_001, false);
        assert!(
            first.contains("*  sen2      0     up     9s   0.4 ms"),
            "{first}"
        );
        let endpoint = &mut status.services[0].endpoints[0];
        endpoint.traffic.forward_packets = 3000;
        endpoint.latency_us = Some(800);
        status.services[0].endpoints[1].verdict = Some("refused".to_owned());
        past.note(&status, begun + Duration::from_secs(2));
        let second = frame(&status, &past, 10_001, false);
        assert!(second.contains("1.5k"), "{second}");
        assert!(second.contains("▄█"), "{second}");
        assert!(second.contains("refused"), "{second}");
        assert!(second.contains("█x"), "{second}");
        for _ in 0..100 {
            past.note(&status, begun + Duration::from_secs(3));
        }
        assert!(
            past.endpoints
                .values()
                .all(|seen| seen.checks.len() == LOOKS)
        );
    }

    #[test]
    fn lines_are_cut_without_their_colours() {
        assert_eq!(cut("abcdef", 4), "abcd");
        assert_eq!(cut("a\x1b[32mbc\x1b[0mdef", 4), "a\x1b[32mbc\x1b[0md");
        assert_eq!(cut("a\x1b[32mbcdef\x1b[0m", 2), "a\x1b[32mb\x1b[0m");
    }
}
