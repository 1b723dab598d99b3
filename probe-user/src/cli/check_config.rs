//! `probe check-config`.

use std::fmt::Write as _;

use super::{Failure, args, print};
use crate::{
    config::{self, Config},
    run::named::all_resolve,
};

pub fn run(args: &args::CheckConfig) -> Result<(), Failure> {
    let file = args
        .file
        .as_ref()
        .or(args.config.as_ref())
        .expect("clap's group demands one of the two");
    let config = config::load(file).map_err(|error| Failure::Config(error.into()))?;
    if args.resolve {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(anyhow::Error::new)?;
        // Without what an earlier agent knew: the question is what DNS says.
        runtime.block_on(all_resolve(&config)).map_err(|fault| {
            let file = file.clone();
            Failure::Config(config::Error::Invalid { file, fault }.into())
        })?;
    }
    print(&format!("{}: good\n{}", file.display(), summary(&config)))
}

fn summary(config: &Config) -> String {
    let mut text = String::new();
    for service in config.services() {
        let listeners: Vec<_> = service
            .listeners()
            .iter()
            .map(ToString::to_string)
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {} at {}", service.name(), listeners.join(", "));
        let mut endpoints: Vec<_> = service.endpoints().iter().collect();
        endpoints.sort_by_key(|endpoint| endpoint.tier());
        for endpoint in endpoints {
            let _ = writeln!(
                text,
                "    tier {}: {} at {}",
                endpoint.tier(),
                endpoint.name(),
                endpoint.address()
            );
        }
        let _ = writeln!(text, "    check: {}", service.check());
    }
    text
}
