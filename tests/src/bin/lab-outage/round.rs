//! One run: a load, a quiet part, a fault, a window, and all as before.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use lab::client::{Course, OpenLoop};

use crate::{faults::Fault, figures::Facts, ways::Rig};

/// A new connection each.
pub const PERIOD: Duration = Duration::from_millis(1);
pub const IDLE: usize = 20;
pub const ACTIVE: usize = 5;
/// Periods between two requests of an active connection.
pub const SPEAK: usize = 20;
/// How long a request waits. A SYN that is lost is repeated after one second.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Before the fault.
pub const QUIET: Duration = Duration::from_millis(500);

/// Plays one fault in a rig whose turn it is and whose master serves.
pub fn play(rig: &mut Rig, fault: Fault) -> Result<Facts> {
    fault.prepare(rig)?;
    let load = OpenLoop::start(
        &rig.lab.client,
        Course {
            to: Rig::target(),
            period: PERIOD,
            patience: PATIENCE,
            idle: IDLE,
            active: ACTIVE,
            speak: SPEAK,
        },
    );
    let begun = Instant::now();
    thread::sleep(QUIET);
    let made = fault.make(rig)?;
    let end = made.at + rig.path.window(fault);
    thread::sleep(end.saturating_duration_since(Instant::now()));
    let record = load.stop()?;
    let fault_at = made.at;
    let verdict = rig
        .printed()
        .and_then(|printed| verdict_after(&printed, fault_at));
    made.undo(rig)?;
    rig.settle("master")?;
    Ok(Facts {
        path: rig.path,
        fault,
        begun,
        fault_at,
        end,
        verdict,
        record,
    })
}

/// When the agent's log says first that the master is down, from a moment on.
pub fn verdict_after(log: &str, since: Instant) -> Option<Instant> {
    let at = verdict(log, SystemTime::now() - since.elapsed())?;
    let ago = SystemTime::now().duration_since(at).unwrap_or_default();
    Some(Instant::now() - ago)
}

fn verdict(log: &str, since: SystemTime) -> Option<SystemTime> {
    log.lines()
        .filter(|line| line.contains("endpoint=\"master\"") && line.contains("state=\"down\""))
        .filter_map(|line| stamp(line.split_whitespace().next()?))
        .find(|at| *at >= since)
}

/// A time as the log writes it, RFC 3339 in UTC: `2026-11-21T12:00:00.123456Z`.
fn stamp(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let whole = |text: Option<&str>| text?.parse::<u64>().ok();
    let mut date = date.split('-');
    let (year, month, day) = (
        whole(date.next())?,
        whole(date.next())?,
        whole(date.next())?,
    );
    let mut time = time.split(':');
    let (hour, minute) = (whole(time.next())?, whole(time.next())?);
    let second: f64 = time.next()?.parse().ok()?;
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = (365 * year + leap_days + (153 * month + 2) / 5 + day - 1).checked_sub(719_468)?;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60;
    Some(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::try_from_secs_f64(second).ok()?)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{stamp, verdict};

    #[test]
    fn the_log_tells_the_time() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2024-02-29T12:00:00.5Z", 1_709_208_000_500_000),
            ("2026-11-21T12:00:00.123456Z", 1_795_262_400_123_456),
        ] {
            let at = stamp(text).expect("it is a time");
            let since = at.duration_since(UNIX_EPOCH).expect("it is later");
            assert!(since.abs_diff(Duration::from_micros(micros)) < Duration::from_micros(1));
        }
        assert!(stamp("INFO").is_none());
    }

    #[test]
    fn the_verdict_is_the_first_after_the_fault_about_the_master() {
        let log = "\
2026-11-21T12:00:00.100000Z  INFO endpoint is down: x service=\"sense\" endpoint=\"master\" state=\"down\"
2026-11-21T12:00:00.200000Z  INFO endpoint is up: x service=\"sense\" endpoint=\"master\" state=\"up\"
2026-11-21T12:00:00.250000Z  INFO endpoint is down: x service=\"sense\" endpoint=\"backup\" state=\"down\"
2026-11-21T12:00:00.300000Z  INFO endpoint is down: x service=\"sense\" endpoint=\"master\" state=\"down\"
2026-11-21T12:00:00.400000Z  INFO endpoint is down: x service=\"sense\" endpoint=\"master\" state=\"down\"
";
        let since = stamp("2026-11-21T12:00:00.150000Z").expect("it is a time");
        assert_eq!(verdict(log, since), stamp("2026-11-21T12:00:00.300000Z"));
        let late = stamp("2026-11-21T12:00:01Z").expect("it is a time");
        assert_eq!(verdict(log, late), None);
    }
}
