//! The command line as a whole.

use clap::{Parser, Subcommand};

use crate::cmd;
use crate::exit::Exit;
use crate::reference::ReferenceArgs;
use crate::settings::Global;

/// Answers with a local model, and keeps the accounts of what that costs.
#[derive(Debug, Parser)]
#[command(
    name = "tirami",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_long_help = exit_codes()
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a node: load a model, open the account book, answer requests.
    Start(cmd::start::StartArgs),
    /// Ask the model once, or talk to it when no prompt is given.
    Chat(cmd::chat::ChatArgs),
    /// Say what a question would cost, without asking it.
    Estimate(cmd::estimate::EstimateArgs),
    /// List, download, remove and describe models; works without a node.
    Models(cmd::models::ModelsArgs),
    /// The node at a glance: model, balance, limits, load.
    Status,
    /// Who the node and its personal agent are.
    Identity,
    /// List trades, or show one and verify its signatures here.
    Trades(cmd::trades::TradesArgs),
    /// List, create, fund, export and import agents.
    Agents(cmd::agents::AgentsArgs),
    /// List, create, rotate and revoke API keys.
    Keys(cmd::keys::KeysArgs),
    /// Freeze all spending at once, or lift the freeze.
    Kill(cmd::kill::KillArgs),
    /// Show or set the limits of the node, an agent or an API key.
    Policy(cmd::policy::PolicyArgs),
    /// List the requests that wait for a person, or answer one.
    Approve(cmd::approve::ApproveArgs),
    /// Show the mesh, invite others to it, change its witnesses, grant lines.
    Mesh(cmd::mesh::MeshArgs),
    /// List the nodes this one is connected to.
    Peers(cmd::peers::PeersArgs),
    /// List the nodes that serve models.
    Providers,
    /// Take no more jobs of other nodes; running ones go on elsewhere.
    Pause,
    /// Take jobs of other nodes again.
    Resume,
    /// Give TRM of the node's own account to another node.
    Transfer(cmd::transfer::TransferArgs),
    /// Have the running node dial the nodes of an invite to its mesh.
    Join(cmd::join::JoinArgs),
    /// Check everything on this machine and say how to repair it.
    Doctor(cmd::doctor::DoctorArgs),
    /// Show the settings and where each was set, or write a config file.
    Config(cmd::config::ConfigArgs),
    /// Print a completion script for a shell.
    Completions(cmd::completions::CompletionsArgs),
    /// Print a reference page as Markdown.
    #[command(name = "__reference", hide = true)]
    Reference(ReferenceArgs),
}

fn exit_codes() -> String {
    let mut text = String::from("Exit codes:");
    for (exit, meaning) in Exit::TABLE {
        text.push_str(&format!("\n  {:>3}  {meaning}", exit.code()));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
