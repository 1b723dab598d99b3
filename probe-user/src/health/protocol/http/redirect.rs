//! Where a redirect leads, as far as a check follows it.
//!
//! A check is of one endpoint, so it follows to another path of the same one only: to a
//! `Location` without a host, or with the scheme and the host that were asked for.

use super::judge::Headers;

/// Longest target that is followed.
const LONGEST: usize = 8 * 1024;

/// The `Location` of an answer that is a redirect (RFC 9110 section 15.4).
pub fn location(status: u16, headers: &dyn Headers) -> Option<Vec<u8>> {
    if !matches!(status, 301..=303 | 307 | 308) {
        return None;
    }
    let mut location = None;
    headers.any("location", &mut |value| {
        location = Some(value[..value.len().min(LONGEST)].to_vec());
        true
    });
    location
}

/// The path and query that a location means, asked for at a path of a host; nothing if
/// it is another place, or none.
pub fn target(location: &[u8], encrypted: bool, host: &str, path: &str) -> Option<String> {
    let text = std::str::from_utf8(location).ok()?.trim();
    let text = text.split('#').next().unwrap_or_default();
    if text.len() >= LONGEST || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let scheme = if encrypted { "https" } else { "http" };
    let rest = match text.split_once("://") {
        Some((theirs, rest)) if is_scheme(theirs) => {
            if !theirs.eq_ignore_ascii_case(scheme) {
                return None;
            }
            rest
        }
        _ => match text.strip_prefix("//") {
            Some(rest) => rest,
            None => return Some(relative(text, path)),
        },
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let port = if encrypted { ":443" } else { ":80" };
    let plain = |authority: &str| {
        let lower = authority.to_ascii_lowercase();
        lower.strip_suffix(port).unwrap_or(&lower).to_owned()
    };
    (plain(authority) == plain(host)).then(|| absolute(target))
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

fn absolute(target: &str) -> String {
    if target.starts_with('/') {
        target.to_owned()
    } else {
        format!("/{target}")
    }
}

/// A reference without a host (RFC 3986 section 5.2), its dots left to the server.
fn relative(reference: &str, path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    if reference.starts_with('/') {
        return reference.to_owned();
    }
    if reference.is_empty() || reference.starts_with('?') {
        return format!("{path}{reference}");
    }
    let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
    format!("{folder}{reference}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_endpoint_is_followed() {
        for (location, expected) in [
            ("/other", Some("/other")),
            ("other?a=b#c", Some("/a/other?a=b")),
            ("?x", Some("/a/b?x")),
            ("http://h:80/x", Some("/x")),
            ("http://H/x", Some("/x")),
            ("HTTP://h", Some("/")),
            ("http://h?q", Some("/?q")),
            ("//h/x", Some("/x")),
            ("https://h/x", None),
            ("http://h:81/x", None),
            ("http://other/x", None),
            ("//other/x", None),
            ("ftp://h/x", None),
            ("/a b", None),
            ("/a\u{e4}", None),
        ] {
            let found = target(location.as_bytes(), false, "h", "/a/b?c");
            assert_eq!(found.as_deref(), expected, "{location}");
        }
        let tls = |location: &[u8]| target(location, true, "h:443", "/");
        assert_eq!(tls(b"https://h/x").as_deref(), Some("/x"));
        assert_eq!(tls(b"http://h/x"), None);
        assert_eq!(tls(b"\xff"), None);
    }
}
