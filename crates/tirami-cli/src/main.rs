//! The `tirami` command: starts a node, and talks to one.

mod cli;
mod client;
mod cmd;
mod exit;
mod model;
mod output;
mod reference;
mod settings;
mod usage;

use clap::Parser;

use cli::{Cli, Command};
use exit::{Exit, Failure, quit};
use output::Output;

fn main() {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => quit(usage::end(&error)),
    };
    let out = Output::new(cli.global.json);
    std::panic::set_hook(Box::new(move |info| {
        out.failure(&Failure::new(
            Exit::Unexpected,
            format_args!("an internal assumption failed ({info}); please report this"),
        ));
    }));
    let result = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli, out));
            // A native call that still runs must not keep the process.
            runtime.shutdown_background();
            result
        }
        Err(error) => {
            Err(Failure::new(Exit::Unexpected, format_args!("cannot start threads: {error}")))
        }
    };
    match result {
        Ok(exit) => quit(exit),
        Err(failure) => {
            out.failure(&failure);
            quit(failure.exit)
        }
    }
}

async fn run(cli: Cli, out: Output) -> Result<Exit, Failure> {
    let global = &cli.global;
    global.warn_of_unknown_env(out);
    match cli.command {
        Command::Start(args) => cmd::start::run(global, args, out).await,
        Command::Chat(args) => cmd::chat::run(global, args, out).await,
        Command::Estimate(args) => cmd::estimate::run(global, args, out).await,
        Command::Models(args) => cmd::models::run(global, args, out).await,
        Command::Status => cmd::status::run(global, out).await,
        Command::Identity => cmd::identity::run(global, out).await,
        Command::Trades(args) => cmd::trades::run(global, args, out).await,
        Command::Agents(args) => cmd::agents::run(global, args, out).await,
        Command::Keys(args) => cmd::keys::run(global, args, out).await,
        Command::Kill(args) => cmd::kill::run(global, args, out).await,
        Command::Policy(args) => cmd::policy::run(global, args, out).await,
        Command::Approve(args) => cmd::approve::run(global, args, out).await,
        Command::Mesh(args) => cmd::mesh::run(global, args, out).await,
        Command::Peers(args) => cmd::peers::peers(global, args, out).await,
        Command::Providers => cmd::peers::providers(global, out).await,
        Command::Pause => cmd::serving::pause(global, out).await,
        Command::Resume => cmd::serving::resume(global, out).await,
        Command::Transfer(args) => cmd::transfer::run(global, args, out).await,
        Command::Join(args) => cmd::join::run(global, args, out).await,
        Command::Doctor(args) => cmd::doctor::run(global, args, out).await,
        Command::Config(args) => cmd::config::run(global, args, out),
        Command::Completions(args) => Ok(cmd::completions::run(&args, out)),
        Command::Reference(args) => Ok(reference::run(&args, out)),
    }
}
