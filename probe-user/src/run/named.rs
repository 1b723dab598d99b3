//! What a configuration names and another place knows: endpoints, whose names are looked up, and
//! interfaces, which must be there.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt as _;
use tracing::warn;

use crate::{
    config::{Address, Config, Fault},
    core::Slots,
    datapath::kernel::LastKnown,
    interfaces,
    resolve::{Answer, Families, Resolved, Unresolved, choose, literal, lookups},
};

/// An interface that is named literally must be there.
pub fn literals_exist(config: &Config, existing: &[interfaces::Interface]) -> Result<(), Fault> {
    for (key, list) in [("edge", config.edge()), ("uplink", config.uplink())] {
        for (i, pattern) in list.iter().enumerate() {
            if let Some(name) = pattern.literal()
                && !existing.iter().any(|interface| interface.name == name)
            {
                let names: Vec<_> = existing.iter().map(|i| i.name.as_str()).collect();
                return Err(Fault::new(
                    format!("interfaces.{key}[{i}]"),
                    name,
                    "there is no such interface",
                    format!(
                        "one that exists ({}), or a pattern, which may match nothing",
                        names.join(", ")
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// A name of endpoints, and who has it: positions of the service and in it.
pub type Named = (String, Families, Vec<(usize, usize)>);

/// From places in the configuration to the slots that the core knows them by.
pub fn renumber<'a>(whose: impl IntoIterator<Item = &'a mut (usize, usize)>, slots: &Slots) {
    for (service, endpoint) in whose {
        if let Some((of, endpoints)) = slots.get(*service)
            && let Some(slot) = endpoints.get(*endpoint)
        {
            (*service, *endpoint) = (*of, *slot);
        }
    }
}

/// What is looked up, and how often.
#[derive(Clone, Debug)]
pub struct Names {
    pub names: Vec<Named>,
    pub every: Duration,
    /// What the first round did not find, which nobody was told of.
    pub failed: Failed,
}

pub fn names(config: &Config) -> Vec<Named> {
    let mut names: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (s, service) in config.services().iter().enumerate() {
        for (e, endpoint) in service.endpoints().iter().enumerate() {
            if let Address::Name { host, .. } = endpoint.address() {
                let families = Families::of(service, endpoint);
                let whose = names.entry((host.clone(), families)).or_default();
                whose.push((s, e));
            }
        }
    }
    let named = |((host, families), whose)| (host, families, whose);
    names.into_iter().map(named).collect()
}

/// Endpoints whose names do not resolve, by their places: of the service and in it.
pub type Failed = Vec<((usize, usize), Unresolved)>;

/// Where every endpoint is that is somewhere. One whose name does not resolve is where an
/// earlier agent knew it, or else nowhere.
pub async fn locate(config: &Config, known: &[LastKnown]) -> (Vec<Vec<Resolved>>, Failed) {
    let mut all: Vec<Vec<Resolved>> = config
        .services()
        .iter()
        .map(|service| {
            let endpoints = service.endpoints().iter();
            endpoints.map(|e| literal(e.address())).collect()
        })
        .collect();
    let answers: Vec<_> = lookups(names(config)).collect().await;
    let each = |(whose, answer): (Vec<_>, Answer)| {
        let answered = move |at| (at, answer.clone());
        whose.into_iter().map(answered).collect::<Vec<_>>()
    };
    let mut answers: Vec<_> = answers.into_iter().flat_map(each).collect();
    // The first in the file is the first reported, whichever failed first.
    answers.sort_by_key(|(at, _)| *at);
    let mut failed = Failed::new();
    for ((s, e), answer) in answers {
        let service = &config.services()[s];
        let endpoint = &service.endpoints()[e];
        let families = Families::of(service, endpoint);
        let at = &mut all[s][e];
        let earlier = known
            .iter()
            .find(|k| k.service == service.name() && k.endpoint == endpoint.name());
        if let Some(earlier) = earlier {
            (at.v4, at.v6) = (earlier.v4, earlier.v6);
        }
        *at = choose(*at, families, answer.as_deref().unwrap_or_default());
        match answer {
            Err(lost) => failed.push(((s, e), lost)),
            Ok(_) if at.is_empty() => failed.push(((s, e), Unresolved::families())),
            Ok(_) if families.v4 && at.v4.is_none() || families.v6 && at.v6.is_none() => warn!(
                service = service.name(),
                endpoint = endpoint.name(),
                "{} has an address in one family only; clients of the other are refused while it \
                 is selected",
                endpoint.address()
            ),
            Ok(_) => {}
        }
    }
    (all, failed)
}

/// A name that does not resolve is a fault, for who wants to know before a start.
pub async fn all_resolve(config: &Config) -> Result<(), Fault> {
    let (_, failed) = locate(config, &[]).await;
    match failed.into_iter().next() {
        None => Ok(()),
        Some(((s, e), lost)) => Err(Fault::new(
            format!("services[{s}].endpoints[{e}].address"),
            config.services()[s].endpoints()[e].address(),
            format!("does not resolve: {}", lost.reason),
            "a name that DNS or the hosts file knows, in a family of the service's listeners",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, resolve::Why};

    fn config(address: &str) -> Config {
        config::parse(&format!(
            "interfaces: {{edge: ['veth*'], uplink: [nosuch0]}}\nservices: [{{name: s, listeners: \
             ['10.96.0.10:80'], endpoints: [{{name: e, address: '{address}'}}], check: {{http: \
             {{}}}}}}]"
        ))
        .unwrap()
    }

    #[test]
    fn a_missing_literal_interface_is_named() {
        let lo = interfaces::Interface {
            index: 1,
            name: "lo".to_owned(),
        };
        let fault = literals_exist(&config("10.0.0.1:80"), &[lo]).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "interfaces.uplink[0]: `nosuch0`: there is no such interface; accepted: one that \
             exists (lo), or a pattern, which may match nothing"
        );
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_where_it_was_or_nowhere() {
        // The hosts file knows `localhost` everywhere, and it cannot be steered to.
        let config = config("localhost:80");
        let fault = all_resolve(&config).await.unwrap_err().to_string();
        assert!(
            fault.starts_with(
                "services[0].endpoints[0].address: `localhost:80`: does not resolve: "
            ),
            "{fault}"
        );
        let (at, failed) = locate(&config, &[]).await;
        assert!(at[0][0].is_empty());
        assert!(matches!(&failed[..], [((0, 0), lost)] if lost.why == Why::Nx));
        let known = LastKnown {
            service: "s".to_owned(),
            endpoint: "e".to_owned(),
            v4: Some([10, 0, 0, 7].into()),
            v6: None,
            port: 81,
        };
        let (at, failed) = locate(&config, &[known]).await;
        assert_eq!(
            at[0][0].addresses().collect::<Vec<_>>(),
            ["10.0.0.7:80".parse().unwrap()]
        );
        assert_eq!(failed.len(), 1, "it is said all the same");
    }
}
