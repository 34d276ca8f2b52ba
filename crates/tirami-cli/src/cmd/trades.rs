//! `tirami trades`: what was charged, and the proof of it.

use clap::{Args, Subcommand};
use serde_json::json;
use tirami_sdk::types::{Trade, TradeDetail};
use tirami_sdk::verify_trade;

use super::find;
use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{Output, count, moment, short};
use crate::settings::Global;

/// What to look at.
#[derive(Debug, Args)]
pub(crate) struct TradesArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List trades, newest first.
    List(ListArgs),
    /// Show a trade and verify its signatures on this machine.
    Show {
        /// The trade's id, or the beginning of it.
        id: String,
    },
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only trades of this agent: its name or DID.
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// So many at most.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on after a page: the number that was given as `next`.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    before: Option<i64>,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: TradesArgs, out: Output) -> Result<Exit, Failure> {
    let client = connect(global, Need::Owner).await?;
    match args.action {
        None => list(&client, &ListArgs { agent: None, limit: 20, before: None }, out).await,
        Some(Action::List(args)) => list(&client, &args, out).await,
        Some(Action::Show { id }) => {
            let detail = client.trade(&find::trade(&client, &id).await?).await?;
            show(&detail, out)
        }
    }
}

async fn list(client: &tirami_sdk::Client, args: &ListArgs, out: Output) -> Result<Exit, Failure> {
    let agent = match &args.agent {
        Some(agent) => Some(find::agent(client, agent).await?),
        None => None,
    };
    let page = client.trades(agent.as_deref(), Some(args.limit), args.before).await?;
    out.answer(&page, |out| {
        let rows: Vec<Vec<String>> = page.trades.iter().map(row).collect();
        out.table(
            &["when (UTC)", "trade", "consumer", "tokens", "TRM", "end"],
            &["tokens", "TRM"],
            &rows,
        );
        match page.next {
            Some(next) => out.note(format_args!("more: tirami trades list --before {next}")),
            None => out.note(count(page.count, "trade")),
        }
    });
    Ok(Exit::Done)
}

fn row(trade: &Trade) -> Vec<String> {
    vec![
        moment(trade.at_ms),
        trade.trade_id.clone(),
        short(&trade.consumer),
        format!("{}+{}", trade.prompt_tokens, trade.completion_tokens),
        trade.trm_paid.unwrap_or(trade.trm_amount).to_string(),
        trade.finish.clone(),
    ]
}

/// Shows a trade with what its signatures prove; a trade that proves nothing is a failure.
fn show(detail: &TradeDetail, out: Output) -> Result<Exit, Failure> {
    let proof = verify_trade(detail);
    let trade = &detail.trade;
    let answer = json!({
        "trade": detail,
        "verified_here": proof.is_ok(),
        "problem": proof.as_ref().err().map(ToString::to_string),
    });
    out.answer(&answer, |out| {
        let mut rows = vec![
            ("trade", trade.trade_id.clone()),
            ("job", trade.job_id.clone()),
            ("when", format!("{} UTC", moment(trade.at_ms))),
            ("consumer", trade.consumer.clone()),
            ("provider", trade.provider.clone()),
            ("model", trade.model_id.clone()),
            (
                "tokens",
                format!("{} read, {} written", trade.prompt_tokens, trade.completion_tokens),
            ),
            ("work", format!("{} FLOP", trade.flops)),
            ("charged", format!("{} TRM", trade.trm_amount)),
            ("end", trade.finish.clone()),
        ];
        if let Some(paid) = trade.trm_paid {
            let why = "by a later voucher than the one that this node holds";
            rows.push(("paid", format!("{paid} TRM, {why}")));
        }
        if let Ok(proof) = &proof {
            let second = if proof.receipt {
                "receipt signed by the provider"
            } else {
                "voucher signed by the consumer (the provider gave no receipt)"
            };
            rows.push(("verified", format!("here: order signed by the consumer, {second}")));
        }
        out.pairs(&rows);
    });
    match proof {
        Ok(_) => Ok(Exit::Done),
        Err(error) => Err(Failure::new(
            Exit::Unexpected,
            format_args!("the trade does not verify: {error}; run `tirami doctor` on the node"),
        )),
    }
}
