//! `tirami keys`: API keys.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::json;
use tirami_core::Trm;
use tirami_sdk::types::{CreateKey, CreatedKey, KeyInfo, Limits, Scope};

use super::find;
use super::limits::LimitFlags;
use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{self, Output, moment, short};
use crate::settings::Global;

/// What to do with API keys.
#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the keys, without the keys themselves; so does no action.
    List,
    /// Make a key; it is shown once.
    Create(CreateArgs),
    /// Replace a key by one with the same rights; it is shown once.
    Rotate {
        /// The key's label, or the beginning of the eight characters that name it.
        id: String,
        /// How long the old key still works, such as 30s, 15m, 12h or 7d.
        #[arg(long, default_value = "0s", value_name = "TIME")]
        grace: Span,
    },
    /// End a key at once.
    Revoke {
        /// The key's label, or the beginning of the eight characters that name it.
        id: String,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// A label for people; 1 to 64 characters.
    label: String,
    /// What the key may do: read, inference, economy or admin; each includes those before it.
    #[arg(long, default_value = "inference", value_name = "SCOPE")]
    scope: Scope,
    /// The agent that pays: its name or DID [default: the personal agent, for scope inference].
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// When it stops working, such as 12h or 30d from now [default: never].
    #[arg(long, value_name = "TIME")]
    expires_in: Option<Span>,
    #[command(flatten)]
    limits: LimitFlags,
}

/// A length of time with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "it must be a number and s, m, h or d, such as 12h".to_owned();
        let unit = text.chars().last().ok_or_else(wrong)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let number: u64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
        let seconds = number.checked_mul(seconds).filter(|seconds| *seconds <= 100 * 31_557_600);
        seconds
            .map(|seconds| Self(Duration::from_secs(seconds)))
            .ok_or_else(|| "it must be at most 100 years".to_owned())
    }
}

impl Span {
    pub(super) fn ms(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: KeysArgs, out: Output) -> Result<Exit, Failure> {
    let client = connect(global, Need::Owner).await?;
    match args.action.unwrap_or(Action::List) {
        Action::List => {
            let keys = client.keys().await?;
            let answer_trm = client.pricing().await?.estimated_cost_1000_tokens.trm();
            out.answer(&keys, |out| list(&keys.keys, answer_trm, out));
        }
        Action::Create(args) => {
            let agent = match args.agent {
                None if args.scope == Scope::Inference => {
                    Some(client.status().await?.personal_agent)
                }
                None => None,
                Some(agent) => Some(find::agent(&client, &agent).await?),
            };
            let limits = args.limits.over(Limits::default());
            let request = CreateKey {
                label: args.label,
                scope: args.scope,
                agent,
                limits: (limits != Limits::default()).then_some(limits),
                expires_at_ms: args.expires_in.map(|span| now_ms().saturating_add(span.ms())),
            };
            created(&client.create_key(&request).await?, out);
        }
        Action::Rotate { id, grace } => {
            let id = find::key(&client, &id).await?;
            created(&client.rotate_key(&id, grace.ms()).await?, out);
        }
        Action::Revoke { id } => {
            let id = find::key(&client, &id).await?;
            client.revoke_key(&id).await?;
            out.answer(&json!({"id": id, "state": "revoked"}), |out| {
                out.line(format_args!("the key {id} no longer works"));
            });
        }
    }
    Ok(Exit::Done)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn created(created: &CreatedKey, out: Output) {
    out.answer(created, |out| {
        out.line(&created.key);
        out.note("this is the only time the key is shown; the node keeps a digest of it");
    });
}

fn list(keys: &[KeyInfo], answer: Trm, out: Output) {
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let never = || "never".to_owned();
            vec![
                key.id.clone(),
                key.state.clone(),
                key.scope.to_string(),
                key.agent.as_deref().map_or_else(|| "-".to_owned(), short),
                output::limit(key.limits.day_max, answer),
                key.spending.lifetime_trm.to_string(),
                key.expires_at_ms.map_or_else(never, moment),
                key.label.clone(),
            ]
        })
        .collect();
    out.table(
        &["id", "state", "scope", "agent", "day limit", "spent", "expires (UTC)", "label"],
        &["spent"],
        &rows,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_need_a_unit() {
        for (text, ms) in [("0s", 0), ("15m", 900_000), ("12h", 43_200_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(text.parse::<Span>().map(Span::ms), Ok(ms), "{text}");
        }
        for text in ["", "12", "h", "-1h", "1w", "999999999d", "1é"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
