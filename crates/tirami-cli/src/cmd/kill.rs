//! `tirami kill`: freezes all spending, or lifts the freeze.

use clap::{Args, ValueEnum};
use tirami_sdk::types::KillRequest;

use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::settings::Global;

/// What to do with the kill switch.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// `on` freezes all spending and ends running answers; `off` lifts the freeze.
    state: State,
    /// Why, for the record; at most 256 characters.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Freeze.
    On,
    /// Go on.
    Off,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: KillArgs, out: Output) -> Result<Exit, Failure> {
    let client = connect(global, Need::Owner).await?;
    let request = KillRequest { activate: args.state == State::On, reason: args.reason };
    let status = client.kill(&request).await?;
    out.answer(&status, |out| {
        out.line(if status.kill_switch_active {
            "all spending is frozen; `tirami kill off` lifts it"
        } else {
            "spending goes on"
        });
    });
    Ok(Exit::Done)
}
