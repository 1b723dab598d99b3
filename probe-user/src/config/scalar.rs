//! Parsing of single values. Each function takes the field's path for its error.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use super::error::Fault;
use crate::datapath::Vip;

/// Longest duration that makes sense anywhere; also keeps arithmetic on times safe.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// `10ms`, `1s`, `5m`, `2h`; whole numbers. A bare number is refused: HAProxy reads
/// it as milliseconds, others as seconds.
pub fn duration(field: &str, text: &str, least: Duration) -> Result<Duration, Fault> {
    let accepted = format!(
        "a whole number with a unit (ms, s, m, h), from {} to 24h",
        show(least)
    );
    let fault = |problem: &str| Fault::new(field, text, problem, accepted.clone());
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let Ok(number) = number.parse::<u64>() else {
        return Err(fault("not a duration"));
    };
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if number == 0 => 1,
        "" => return Err(fault("a duration needs a unit")),
        "us" | "ns" => return Err(fault("shorter than a millisecond")),
        _ => return Err(fault("not a duration")),
    };
    let value = number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .filter(|value| *value <= LONGEST)
        .ok_or_else(|| fault("too long"))?;
    if value < least {
        return Err(fault("too short"));
    }
    Ok(value)
}

/// A duration in the largest unit that shows it whole.
pub fn show(value: Duration) -> String {
    match value.as_millis() {
        0 => "0s".to_owned(),
        ms if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        ms if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        ms if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// A whole number within a range.
pub fn number<T>(field: &str, text: &str, range: RangeInclusive<T>) -> Result<T, Fault>
where
    T: FromStr + PartialOrd + Display,
{
    text.parse()
        .ok()
        .filter(|n| range.contains(n))
        .ok_or_else(|| {
            Fault::new(
                field,
                text,
                "not a number in range",
                format!("a whole number from {} to {}", range.start(), range.end()),
            )
        })
}

/// One of some words.
pub fn word<T: Copy>(field: &str, text: &str, words: &[(&str, T)]) -> Result<T, Fault> {
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            Fault::new(field, text, "not known", words.join(", "))
        })
}

/// A service's or endpoint's name: it appears in metrics, in URLs and beside the
/// kernel's tables, which hold 63 bytes.
pub fn name(field: &str, text: &str) -> Result<String, Fault> {
    let problem = if text.is_empty() {
        "empty name".to_owned()
    } else if text.len() > probe_ebpf::abi::NAME_LEN {
        format!("name of {} bytes", text.len())
    } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "a name begins with a letter or digit".to_owned()
    } else if let Some(c) = text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c)))
    {
        format!("{c:?} in a name")
    } else {
        return Ok(text.to_owned());
    };
    Err(Fault::new(
        field,
        text,
        problem,
        "1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
    ))
}

/// Why an address can be neither a VIP nor an endpoint.
pub fn unsteerable(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        return Some("the unspecified address is nobody's: clients connect to one address");
    }
    if ip.is_multicast() {
        return Some("TCP has no multicast");
    }
    if ip.is_loopback() {
        return Some("loopback packets never cross an interface that is managed");
    }
    match ip {
        IpAddr::V4(ip) if ip.is_broadcast() => Some("TCP has no broadcast"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            Some("a link-local address means something else on every link")
        }
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            Some("an IPv4-mapped address never is in a packet: write the IPv4 address")
        }
        _ => None,
    }
}

const SOCKET_ADDR: &str = "ADDRESS:PORT as 10.96.0.10:8079 or [fd00:96::10]:8079, port 1 to 65535";
const VIP: &str = "ADDRESS:PORT as 10.96.0.10:8079 or [fd00:96::10]:8079, port 1 to 65535, with /udp \
                   behind it for datagrams";

/// A VIP:port.
pub fn listener(field: &str, text: &str) -> Result<Vip, Fault> {
    let Ok(vip) = text.parse::<Vip>() else {
        let problem = if text.parse::<IpAddr>().is_ok() {
            "a listener needs a port"
        } else {
            "not an address with a port"
        };
        return Err(Fault::new(field, text, problem, VIP));
    };
    steerable(field, text, vip.address)?;
    Ok(vip)
}

/// Refuses port 0 and addresses that cannot be steered.
pub fn steerable(field: &str, text: &str, address: SocketAddr) -> Result<(), Fault> {
    if address.port() == 0 {
        return Err(Fault::new(field, text, "port 0", SOCKET_ADDR));
    }
    if let Some(reason) = unsteerable(address.ip()) {
        return Err(Fault::new(field, text, reason, "a unicast address"));
    }
    Ok(())
}

/// A DNS name as resolvers take it: labels of letters, digits, `-` and `_`.
pub fn is_host_name(text: &str) -> bool {
    let absolute = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // All-digit last labels are mistyped IPv4 addresses, not names (RFC 3696 section 2).
    absolute.len() <= 253
        && absolute.split('.').all(label)
        && !absolute
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}
