//! The reference pages, written from the same tables the program runs on.

use std::fmt::Write as _;

use clap::{Args, CommandFactory, ValueEnum};
use tirami_node::config::{config_markdown, env_markdown};
use tirami_node::metrics::METRICS;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::output::Output;

/// Which page.
#[derive(Debug, Args)]
pub(crate) struct ReferenceArgs {
    /// The page.
    page: Page,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Page {
    /// Every command and flag.
    Cli,
    /// The config file.
    Config,
    /// The environment variables.
    Env,
    /// What `GET /metrics` shows.
    Metrics,
    /// The OpenAPI document, as JSON.
    Openapi,
}

/// Prints a page.
pub(crate) fn run(args: &ReferenceArgs, out: Output) -> Exit {
    out.piece(&match args.page {
        Page::Cli => cli_markdown(),
        Page::Config => config_markdown(),
        Page::Env => env_markdown(),
        Page::Metrics => metrics_markdown(),
        // The schemas of our own types always serialise.
        Page::Openapi => tirami_sdk::openapi::document().to_pretty_json().unwrap_or_default(),
    });
    Exit::Done
}

fn metrics_markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n`GET /metrics` shows them in OpenMetrics; it needs the scope read.\n\n\
         | metric | kind | labels | what it counts |\n|---|---|---|---|\n",
    );
    for metric in METRICS {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            metric.name, metric.kind, metric.labels, metric.help
        );
    }
    page
}

fn cli_markdown() -> String {
    let mut page = String::from("# The `tirami` command\n");
    let mut root = Cli::command();
    root.build();
    let about = root.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = writeln!(page, "\n{about}.\n\nFlags of every command:");
    arguments(&root, &mut page, |arg| arg.is_global_set());
    let _ = writeln!(page, "\nExit codes:\n\n| code | meaning |\n|---|---|");
    for (exit, meaning) in Exit::TABLE {
        let _ = writeln!(page, "| {} | {meaning} |", exit.code());
    }
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        describe(command, "tirami", 2, &mut page);
    }
    page
}

fn describe(command: &clap::Command, parent: &str, depth: usize, page: &mut String) {
    let name = format!("{parent} {}", command.get_name());
    if command.get_name() == "help" {
        return;
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = writeln!(page, "\n{} `{name}`\n\n{about}.", "#".repeat(depth));
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let _ = writeln!(page, "\n```text\n{usage}\n```");
    arguments(command, page, |arg| !arg.is_global_set());
    for child in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        describe(child, &name, depth + 1, page);
    }
}

fn arguments(command: &clap::Command, page: &mut String, wanted: impl Fn(&clap::Arg) -> bool) {
    let shown = |arg: &&clap::Arg| {
        wanted(arg) && !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version")
    };
    for (index, arg) in command.get_arguments().filter(shown).enumerate() {
        if index == 0 {
            page.push('\n');
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(page, "- `{}`: {}", spelled(arg), help.trim_end_matches('.'));
    }
}

/// The argument as it is typed.
fn spelled(arg: &clap::Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let value = names.iter().map(|name| format!("<{name}>")).collect::<Vec<_>>().join(" ");
    match arg.get_long() {
        Some(long) if arg.get_action().takes_values() => format!("--{long} {value}"),
        Some(long) => format!("--{long}"),
        None if arg.is_required_set() => value,
        None => value.replace('<', "[").replace('>', "]"),
    }
}
