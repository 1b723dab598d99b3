//! `probe events`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Failure,
    args::{self, Format},
    print,
};
use crate::{config, control::client, core::journal::Event, core::status};

/// How many are shown if nobody says.
const LAST: usize = 100;

/// A line of the stream.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Event(Box<Event>),
    Lost { lost: u64 },
}

pub fn run(args: &args::Events) -> Result<(), Failure> {
    let mut query = Vec::new();
    match &args.since {
        Some(since) => {
            let since = moment(since, SystemTime::now()).map_err(Failure::Config)?;
            query.push(("since_unix_ms", since.to_string()));
        }
        None => query.push(("last", LAST.to_string())),
    }
    query.extend(args.service.iter().map(|of| ("service", of.clone())));
    if args.follow {
        query.push(("follow", "true".to_owned()));
    }
    let mut failed = None;
    client::lines(&args.socket, "/v1/events", &query, |line| {
        let text = match args.format {
            Format::Json => format!("{line}\n"),
            Format::Human => human(line)?,
        };
        // A reader that went away is no error, and nobody is left to read.
        failed = print(&text).err();
        Ok(failed.is_none() && !super::reader_is_gone())
    })?;
    failed.map_or(Ok(()), Err)
}

fn human(line: &str) -> anyhow::Result<String> {
    let line = serde_json::from_str(line).context("the agent's events are of another version")?;
    Ok(match line {
        Line::Event(event) => format!(
            "{}  {:<14}  {}\n",
            clock(event.at_unix_ms),
            event.what.kind(),
            event.what
        ),
        Line::Lost { lost } => format!("({lost} events are forgotten)\n"),
    })
}

/// A time as RFC 3339 has it, in UTC, to the millisecond.
pub fn clock(unix_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000);
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{}T{:02}:{:02}:{:02}.{:03}Z",
        at.date(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

/// `10m` (so long ago), `2026-11-21T15:04:05Z`, or Unix seconds.
fn moment(text: &str, now: SystemTime) -> anyhow::Result<u64> {
    if let Ok(ago) = config::duration("--since", text, std::time::Duration::ZERO) {
        return Ok(status::unix_ms(now.checked_sub(ago).unwrap_or(UNIX_EPOCH)));
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(seconds.saturating_mul(1000));
    }
    let at = OffsetDateTime::parse(text, &Rfc3339);
    let at = at.ok().map(|at| at.unix_timestamp_nanos() / 1_000_000);
    at.and_then(|ms| u64::try_from(ms).ok()).ok_or_else(|| {
        anyhow!(
            "--since: `{text}`: not a time; accepted: how long ago (10m), a time as \
             2026-11-21T15:04:05Z, or Unix seconds"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now = UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        for (text, ms) in [
            ("10s", 999_990_000),
            ("2h", 992_800_000),
            ("86400", 86_400_000),
            ("1970-01-02T00:00:00Z", 86_400_000),
            ("1970-01-02T01:00:00.250+01:00", 86_400_250),
        ] {
            assert_eq!(moment(text, now).unwrap(), ms, "{text}");
        }
        for bad in ["yesterday", "", "10", "-5s", "1969-01-01T00:00:00Z"] {
            assert_eq!(moment(bad, now).is_err(), bad != "10", "{bad}");
        }
        assert_eq!(clock(1_795_273_445_006), "2026-11-21T15:04:05.006Z");
    }

    #[test]
    fn people_see_lines() {
        let line = r#"{"seq":2,"at_unix_ms":0,"kind":"distrust","doubts":false}"#;
        assert_eq!(
            human(line).unwrap(),
            "1970-01-01T00:00:00.000Z  distrust        it was not this node\n"
        );
        assert_eq!(
            human(r#"{"lost":3}"#).unwrap(),
            "(3 events are forgotten)\n"
        );
        human("{}").unwrap_err();
    }
}
