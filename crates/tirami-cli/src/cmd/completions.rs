//! `tirami completions`: a completion script for a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::output::Output;

/// Which shell.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &CompletionsArgs, out: Output) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tirami", &mut script);
    let script = String::from_utf8_lossy(&script);
    let answer = json!({"shell": args.shell.to_string(), "script": script});
    out.answer(&answer, |out| out.piece(&script));
    Exit::Done
}
