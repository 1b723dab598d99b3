//! `--vip`: the addresses that a source does not tell.

use std::{cell::Cell, fmt, net::IpAddr, net::SocketAddr, str::FromStr};

/// One `--vip [NAME=]ADDRESS[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    name: Option<String>,
    address: IpAddr,
    port: Option<u16>,
    text: String,
}

impl FromStr for Vip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => (Some(name.to_owned()), rest),
            None => (None, text),
        };
        let (address, port) = match (rest.parse::<SocketAddr>(), rest.parse::<IpAddr>()) {
            (Ok(both), _) if both.port() != 0 => (both.ip(), Some(both.port())),
            (_, Ok(address)) => (address, None),
            _ => {
                return Err(
                    "accepted: ADDRESS:PORT or ADDRESS, with NAME= before it for one service or \
                     server"
                        .to_owned(),
                );
            }
        };
        if let Some(reason) = crate::config::unsteerable(address) {
            return Err(reason.to_owned());
        }
        Ok(Self {
            name,
            address,
            port,
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Vip {
    fn socket(&self, port: Option<u16>) -> Option<String> {
        Some(SocketAddr::new(self.address, self.port.or(port)?).to_string())
    }
}

/// All of them, and which something has needed.
#[derive(Clone, Debug)]
pub struct Vips<'a>(Vec<(&'a Vip, Cell<bool>)>);

/// Who asks for a VIP.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its names: the service's, the source's, the frontends'.
    pub names: &'a [&'a str],
    /// Ports at any address that it had.
    pub ports: &'a [u16],
    /// Its servers' port, for one that had none.
    pub hint: Option<u16>,
    /// VIPs without a name are for it too, whatever their port.
    pub alone: bool,
}

impl<'a> Vips<'a> {
    /// That nothing has needed yet.
    pub fn new(vips: &'a [Vip]) -> Self {
        Self(vips.iter().map(|vip| (vip, Cell::new(false))).collect())
    }

    /// The listeners of a service.
    pub fn of(&self, wanted: Wanted) -> Vec<String> {
        let mut all = Vec::new();
        for (vip, used) in &self.0 {
            let mut found = Vec::new();
            let named = match &vip.name {
                Some(name) if wanted.names.contains(&name.as_str()) => true,
                Some(_) => continue,
                None => false,
            };
            match vip.port {
                None if wanted.ports.is_empty() => {
                    if named || wanted.alone {
                        found.extend(vip.socket(wanted.hint));
                    }
                }
                None => found.extend(wanted.ports.iter().filter_map(|p| vip.socket(Some(*p)))),
                Some(port) if named || wanted.alone || wanted.ports.contains(&port) => {
                    found.extend(vip.socket(None));
                }
                Some(_) => {}
            }
            used.set(used.get() || !found.is_empty());
            all.append(&mut found);
        }
        all
    }

    /// The own listener of an endpoint.
    pub fn direct(&self, names: &[&str], port: Option<u16>) -> Option<String> {
        let (vip, used) = self.0.iter().find(|(vip, _)| {
            let name = vip.name.as_deref();
            name.is_some_and(|name| names.contains(&name))
        })?;
        let found = vip.socket(port)?;
        used.set(true);
        Some(found)
    }

    /// One that nothing needed.
    pub fn unused(&self) -> Option<&Vip> {
        let unused = self.0.iter().find(|(_, used)| !used.get());
        unused.map(|(vip, _)| *vip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_to_whom_they_were_given_for() {
        let vips: Vec<Vip> = ["10.0.0.1", "10.0.0.2:80", "a=10.0.0.3:81", "b/x=fd00::1"]
            .map(|text| text.parse().expect("a VIP"))
            .to_vec();
        let vips = Vips::new(&vips);
        let wanted = |names: &'static [&'static str], ports: &'static [u16]| Wanted {
            names,
            ports,
            hint: Some(5),
            alone: false,
        };
        assert_eq!(vips.of(wanted(&["z"], &[443])), ["10.0.0.1:443"]);
        assert_eq!(
            vips.unused().map(Vip::to_string).as_deref(),
            Some("10.0.0.2:80")
        );
        assert_eq!(
            vips.of(wanted(&["z"], &[80])),
            ["10.0.0.1:80", "10.0.0.2:80"]
        );
        assert_eq!(vips.of(wanted(&["a"], &[])), ["10.0.0.3:81"]);
        let alone = Wanted {
            alone: true,
            ..wanted(&["z"], &[])
        };
        assert_eq!(vips.of(alone), ["10.0.0.1:5", "10.0.0.2:80"]);
        assert_eq!(
            vips.direct(&["x", "b/x"], Some(7)).as_deref(),
            Some("[fd00::1]:7")
        );
        assert_eq!(vips.unused(), None);
    }

    #[test]
    fn bad_ones_are_refused() {
        for bad in [
            "",
            "x",
            "10.0.0.1:0",
            "127.0.0.1:80",
            "a=",
            "0.0.0.0",
            "224.0.0.1:1",
        ] {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
    }
}
