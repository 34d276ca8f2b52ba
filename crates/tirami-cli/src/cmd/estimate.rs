//! `tirami estimate`: what a question would cost, before it is asked.

use std::io::IsTerminal as _;

use clap::Args;
use tirami_sdk::types::{ChatMessage, Estimate, EstimateRequest};

use super::chat::{of_others, read_stdin};
use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{Output, count};
use crate::settings::Global;

/// What would be asked.
#[derive(Debug, Args)]
pub(crate) struct EstimateArgs {
    /// The question [default: what comes on stdin].
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,
    /// The model to ask [default: the one the node serves, else the first that others serve].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// How the model is to behave.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of the answer at most [default: what the context has room for].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: EstimateArgs, out: Output) -> Result<Exit, Failure> {
    let prompt = match args.prompt.join(" ") {
        given if !given.trim().is_empty() => given,
        _ if std::io::stdin().is_terminal() => {
            return Err(Failure::usage("name the question, such as `tirami estimate \"Hello\"`"));
        }
        _ => read_stdin()?,
    };
    let client = connect(global, Need::Personal).await?;
    let model = match args.model {
        None if client.pricing().await?.model.is_empty() => Some(of_others(&client).await?),
        given => given,
    };
    let system = args.system.map(|text| ChatMessage::new("system", text));
    let request = EstimateRequest {
        model,
        messages: system.into_iter().chain([ChatMessage::new("user", prompt)]).collect(),
        max_completion_tokens: args.max_tokens,
        ..EstimateRequest::default()
    };
    let estimate = client.estimate(&request).await?;
    out.answer(&estimate, |out| out.pairs(&rows(&estimate)));
    Ok(Exit::Done)
}

fn rows(estimate: &Estimate) -> Vec<(&'static str, String)> {
    let tokens = |number: u32| count(u64::from(number), "token");
    let mut rows = vec![
        ("model", estimate.model.clone()),
        (
            "at most",
            format!(
                "{} TRM ({} answers) for {}",
                estimate.max_cost_trm,
                answers(estimate.max_cost_answers),
                tokens(estimate.completion_max)
            ),
        ),
        (
            "the question",
            format!("{} TRM for {}", estimate.prompt_cost_trm, tokens(estimate.prompt_tokens)),
        ),
        (
            "100 tokens",
            format!(
                "{} TRM ({} answers) more",
                estimate.cost_per_100_tokens_trm,
                answers(estimate.cost_per_100_tokens_answers)
            ),
        ),
        ("work at most", format!("{} FLOP", estimate.max_flops)),
    ];
    if let Some(available) = estimate.available_trm {
        let enough = if estimate.affordable { "enough" } else { "not enough; give --max-tokens" };
        rows.push(("available", format!("{available} TRM, {enough}")));
    }
    rows
}

/// Part of an answer of 1 000 tokens, in thousandths.
fn answers(part: f64) -> String {
    format!("{part:.3}")
}
