//! `probe man`: pages made of the command line's shape, so that they cannot say anything else.

use anyhow::{Context as _, anyhow};
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, Failure, args, print_bytes};

pub fn run(args: &args::Man) -> Result<(), Failure> {
    let mut command = Cli::command().disable_help_subcommand(true);
    if let Some(folder) = &args.output {
        clap_mangen::generate_to(command, folder)
            .with_context(|| format!("{}: cannot write the pages", folder.display()))?;
        return Ok(());
    }
    // Gives the verbs their full names.
    command.build();
    let command = match &args.verb {
        None => command,
        Some(name) => verb(&command, name).map_err(Failure::Config)?,
    };
    let mut page = Vec::new();
    Man::new(command)
        .render(&mut page)
        .context("make the page")?;
    print_bytes(&page)
}

fn verb(command: &Command, name: &str) -> anyhow::Result<Command> {
    command.find_subcommand(name).cloned().ok_or_else(|| {
        let verbs: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
        anyhow!("`{name}`: no such verb; accepted: {}", verbs.join(", "))
    })
}
