//! `tirami approve`: the requests that wait for a person.

use clap::Args;
use serde_json::json;

use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{Output, moment, short};
use crate::settings::Global;

/// Which request, and what to answer.
#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    /// The approval's number [default: list those that wait].
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// Deny it instead.
    #[arg(long, requires = "id")]
    deny: bool,
    /// List those that were answered and not used yet too.
    #[arg(long, conflicts_with = "deny")]
    all: bool,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: ApproveArgs, out: Output) -> Result<Exit, Failure> {
    let id = match args.id.as_deref() {
        None if !args.deny => return list(global, args.all, out).await,
        Some(text) => text.parse::<u64>().map_err(|_| {
            Failure::usage(format_args!(
                "{text:?} is no approval; `tirami approve` lists those that wait"
            ))
        })?,
        None => {
            return Err(Failure::usage("name the approval to deny; `tirami approve` lists them"));
        }
    };
    let client = connect(global, Need::Owner).await?;
    client.decide_approval(id, !args.deny).await?;
    out.answer(&json!({"id": id, "approved": !args.deny}), |out| {
        out.line(if args.deny {
            format!("approval {id} is denied")
        } else {
            format!("approval {id} is given; the same request passes once when it is repeated")
        });
    });
    Ok(Exit::Done)
}

async fn list(global: &Global, all: bool, out: Output) -> Result<Exit, Failure> {
    let client = connect(global, Need::Owner).await?;
    let approvals = if all { client.all_approvals().await? } else { client.approvals().await? };
    out.answer(&approvals, |out| {
        if approvals.approvals.is_empty() {
            out.line("nothing waits for approval");
            return;
        }
        let rows: Vec<Vec<String>> = approvals
            .approvals
            .iter()
            .map(|approval| {
                vec![
                    approval.id.to_string(),
                    approval.state.clone(),
                    short(&approval.agent),
                    approval.key.clone().unwrap_or_else(|| "-".to_owned()),
                    approval.max_amount_trm.to_string(),
                    moment(approval.asked_at_ms),
                    moment(approval.expires_at_ms),
                ]
            })
            .collect();
        out.table(
            &["id", "state", "agent", "key", "TRM at most", "asked (UTC)", "lapses (UTC)"],
            &["id", "TRM at most"],
            &rows,
        );
        out.note("answer with `tirami approve ID`, or `tirami approve ID --deny`");
    });
    Ok(Exit::Done)
}
