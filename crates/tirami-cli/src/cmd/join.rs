//! `tirami join`: gives a running node an invite.

use clap::Args;

use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::settings::Global;

/// Which mesh.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The word that `tirami mesh invite` printed on another machine.
    token: String,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: JoinArgs, out: Output) -> Result<Exit, Failure> {
    let done = connect(global, Need::Owner).await?.mesh_join(&args.token).await?;
    out.answer(&done, |out| {
        out.line("this node is in that mesh; it dials the nodes in the invite")
    });
    Ok(Exit::Done)
}
