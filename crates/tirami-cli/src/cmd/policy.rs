//! `tirami policy`: the limits of the node, an agent or an API key.

use clap::{Args, Subcommand};
use tirami_sdk::Client;
use tirami_sdk::types::{Limits, LimitsReport, PolicyRequest, PolicyStatus};

use super::find;
use super::limits::{LimitFlags, of_report, rows};
use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::settings::Global;

/// What to do with limits.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show limits in TRM and in answers of 1000 tokens.
    Show {
        /// `node`, an agent's name or DID, or an API key's label or id.
        #[arg(default_value = "node")]
        target: String,
    },
    /// Set limits; what is not given stays as it is.
    Set {
        /// `node`, an agent's name or DID, or an API key's label or id.
        target: String,
        /// Remove all limits of the target first.
        #[arg(long)]
        clear: bool,
        #[command(flatten)]
        limits: LimitFlags,
    },
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: PolicyArgs, out: Output) -> Result<Exit, Failure> {
    let (client, status) = match args.action {
        Action::Show { target } => {
            let client = connect(global, Need::Owner).await?;
            let target = find::target(&client, &target).await?;
            let policy = current(&client, &target).await?;
            (client, PolicyStatus { target, policy })
        }
        Action::Set { target, clear, limits } => {
            if limits.is_empty() && !clear {
                return Err(Failure::usage("name a limit to set, such as --day-max 1000"));
            }
            let client = connect(global, Need::Owner).await?;
            let target = find::target(&client, &target).await?;
            let old = if clear {
                Limits::default()
            } else {
                of_report(&current(&client, &target).await?)
            };
            let request = PolicyRequest { target, limits: limits.over(old) };
            let status = client.set_policy(&request).await?;
            (client, status)
        }
    };
    let answer_trm = client.pricing().await?.estimated_cost_1000_tokens.trm();
    out.answer(&status, |out| {
        out.line(out.bold(&status.target));
        out.pairs(&rows(&status.policy, answer_trm));
    });
    Ok(Exit::Done)
}

async fn current(client: &Client, target: &str) -> Result<LimitsReport, Failure> {
    if target == "node" {
        return Ok(client.safety(None).await?.node_policy);
    }
    let found = if target.starts_with("did:") {
        let agents = client.agents().await?.agents;
        agents.into_iter().find(|agent| agent.did == target).map(|agent| agent.limits)
    } else {
        let keys = client.keys().await?.keys;
        keys.into_iter().find(|key| key.id == target).map(|key| key.limits)
    };
    found.ok_or_else(|| {
        Failure::new(
            Exit::Refused,
            format_args!(
                "{target:?} is no agent or API key of this node; name `node`, a DID of \
                 `tirami agents list` or an id of `tirami keys list`"
            ),
        )
    })
}
