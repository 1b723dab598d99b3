//! Conditions that name hosts: the names clients must find a VIP by.

/// Fetches whose values are host names.
const HOSTS: &[&str] = &[
    "hdr(host)",
    "req.hdr(host)",
    "hdr_dom(host)",
    "hdr_beg(host)",
    "hdr_end(host)",
    "hdr_reg(host)",
    "hdr_sub(host)",
    "hdr_dir(host)",
    "hdr_m(host)",
    "hdr(host),lower",
    "req.hdr(host),lower",
    "hdr(host),field(1,:)",
    "hdr(host),lower,field(1,:)",
    "req_ssl_sni",
    "req.ssl_sni",
    "ssl_fc_sni",
];

/// The host names in a condition, `NAME if ...`, and in the ACLs that it names.
pub fn hosts(words: &[String], acls: &[Vec<String>]) -> Vec<String> {
    let mut hosts = Vec::new();
    let mut anonymous: Option<Vec<String>> = None;
    for word in words.iter().skip(2) {
        match (word.as_str(), &mut anonymous) {
            ("{", _) => anonymous = Some(Vec::new()),
            ("}", Some(inside)) => {
                values(inside, &mut hosts);
                anonymous = None;
            }
            (word, Some(inside)) => inside.push(word.to_owned()),
            (word, None) => {
                for acl in acls
                    .iter()
                    .filter(|acl| acl.first().is_some_and(|n| n == word))
                {
                    values(&acl[1..], &mut hosts);
                }
            }
        }
    }
    let mut seen = Vec::new();
    hosts.retain(|host| {
        let new = !seen.contains(host);
        seen.push(host.clone());
        new
    });
    hosts
}

/// `hdr(host) -i a b`: what stands behind the flags.
fn values(words: &[String], hosts: &mut Vec<String>) {
    let Some((fetch, rest)) = words.split_first() else {
        return;
    };
    if !HOSTS.contains(&fetch.to_ascii_lowercase().as_str()) {
        return;
    }
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "-m" | "-f" | "-M" | "-u" => drop(rest.next()),
            flag if flag.starts_with('-') => {}
            host => hosts.push(host.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::haproxy::words;

    fn words_of(text: &str) -> Vec<String> {
        words::line(1, 1, text, &|_| None).words
    }

    #[test]
    fn names_are_found() {
        let acls = [
            words_of("is_api hdr(Host) -i api.example.com api2.example.com"),
            words_of("is_post method POST"),
        ];
        for (text, expected) in [
            (
                "sen2 if { hdr(Host) -i master.domain.com }",
                vec!["master.domain.com"],
            ),
            (
                "api if is_api is_post or { hdr(host),lower a.b }",
                vec!["api.example.com", "api2.example.com", "a.b"],
            ),
            ("x if { path_beg /x }", vec![]),
            ("x", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(hosts(&words_of(text), &acls), expected, "{text}");
        }
    }
}
