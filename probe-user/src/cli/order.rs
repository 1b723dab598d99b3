//! `probe drain`, `ready`, `maint`, `promote`, `failback`, `freeze` and `unfreeze`.

use std::path::Path;

use anyhow::Context as _;

use super::{
    Failure,
    args::{self, Format},
    print,
};
use crate::{control::client, core::order::Done};

type Query = Vec<(&'static str, String)>;

pub fn drain(args: &args::Drain) -> Result<(), Failure> {
    let of = &args.of;
    let query = args.deadline.iter().map(|time| ("deadline", time.clone()));
    mode(of, "drain", query.collect())
}

pub fn ready(args: &args::OfEndpoint) -> Result<(), Failure> {
    mode(args, "ready", Query::new())
}

pub fn maint(args: &args::OfEndpoint) -> Result<(), Failure> {
    mode(args, "maint", Query::new())
}

fn mode(of: &args::OfEndpoint, mode: &str, query: Query) -> Result<(), Failure> {
    let rest = ["endpoints", &of.endpoint, mode];
    order(&of.service, &rest, query, &of.order)
}

pub fn promote(args: &args::Promote) -> Result<(), Failure> {
    let of = &args.of;
    let mut query = vec![("endpoint", of.endpoint.clone())];
    query.extend(args.drain.iter().map(|time| ("drain", time.clone())));
    if args.force {
        query.push(("force", "true".to_owned()));
    }
    order(&of.service, &["promote"], query, &of.order)
}

pub fn of_service(args: &args::OfService, verb: &str) -> Result<(), Failure> {
    order(&args.service, &[verb], Query::new(), &args.order)
}

fn order(
    service: &str,
    rest: &[&str],
    mut query: Query,
    order: &args::Order,
) -> Result<(), Failure> {
    if order.dry_run {
        query.push(("dry_run", "true".to_owned()));
    }
    let socket: &Path = &order.socket;
    let done = client::order(socket, service, rest, &query)?;
    let text = match order.format {
        Format::Json => serde_json::to_string(&done).context("write the answer as JSON")? + "\n",
        Format::Human => human(&done),
    };
    print(&text)
}

fn human(done: &Done) -> String {
    let mut of = done.service.clone();
    // An order about a service tells its endpoint as what changed.
    if let Some(endpoint) = done.endpoint.as_ref().filter(|_| done.order != "promote") {
        of += "/";
        of += endpoint;
    }
    let would = if done.dry_run { "would be: " } else { "" };
    let mut text = if done.changed {
        format!("{of}: {would}{} -> {}\n", done.before, done.after)
    } else {
        format!("{of}: {} already, nothing to change\n", done.after)
    };
    let names = |of: &[String]| match of {
        [] => "nobody (refused)".to_owned(),
        of => of.join(", "),
    };
    if done.changed && done.from != done.to {
        let goes = if done.dry_run { "would go" } else { "go" };
        text += &format!(
            "new connections {goes} to {} instead of {}\n",
            names(&done.to),
            names(&done.from)
        );
    } else {
        text += &format!("new connections go to {} as before\n", names(&done.to));
    }
    for note in &done.notes {
        text += &format!("note: {note}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_changed() {
        let mut done = Done {
            service: "sense".to_owned(),
            endpoint: Some("sen2".to_owned()),
            order: "drain".to_owned(),
            dry_run: false,
            changed: true,
            before: "ready".to_owned(),
            after: "drain for 30s".to_owned(),
            from: vec!["sen2".to_owned()],
            to: vec!["sen1".to_owned()],
            notes: vec!["this".to_owned()],
        };
        assert_eq!(
            human(&done),
            "sense/sen2: ready -> drain for 30s\nnew connections go to sen1 instead of sen2\nnote: \
             this\n"
        );
        done.dry_run = true;
        done.to = Vec::new();
        assert!(human(&done).starts_with(
            "sense/sen2: would be: ready -> drain for 30s\nnew connections would go to nobody \
             (refused) instead of sen2\n"
        ));
        done.changed = false;
        assert!(human(&done).starts_with("sense/sen2: drain for 30s already, nothing to change\n"));
        done.order = "promote".to_owned();
        assert!(human(&done).starts_with("sense: "));
    }
}
