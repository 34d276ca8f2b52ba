//! What a person calls an agent, an API key or a trade: its whole id, the beginning of it, or a
//! name. What could be two things is refused.

use tirami_sdk::Client;

use crate::exit::{Exit, Failure};

/// Trades of one page of a search.
const PAGE: u32 = 1_000;
/// Pages a trade is searched in, newest first.
const PAGES_MAX: u32 = 50;
/// Characters of a trade's id, and of a DID behind its prefix.
const ID_CHARS: usize = 64;
/// What every DID of an agent begins with.
const DID: &str = "did:tirami:";

/// Something that can be named.
struct Candidate {
    id: String,
    name: String,
}

/// The DID of the agent meant by `text`: its DID, the beginning of it with or without
/// `did:tirami:`, or its name.
pub(crate) async fn agent(client: &Client, text: &str) -> Result<String, Failure> {
    if is_whole_did(text) {
        return Ok(text.to_owned());
    }
    let none =
        || absent(format_args!("no agent is called {text:?}; `tirami agents list` shows all"));
    pick(text, &agents(client).await?)?.ok_or_else(none)
}

/// The id of the API key meant by `text`: its id, the beginning of it, or its label.
pub(crate) async fn key(client: &Client, text: &str) -> Result<String, Failure> {
    let none =
        || absent(format_args!("no API key is called {text:?}; `tirami keys list` shows all"));
    pick(text, &keys(client).await?)?.ok_or_else(none)
}

/// Whose limits are meant by `text`: `node`, an agent, or an API key.
pub(crate) async fn target(client: &Client, text: &str) -> Result<String, Failure> {
    if text == "node" || is_whole_did(text) {
        return Ok(text.to_owned());
    }
    let mut all = agents(client).await?;
    all.extend(keys(client).await?);
    pick(text, &all)?.ok_or_else(|| {
        absent(format_args!(
            "{text:?} is no agent or API key of this node; name `node`, one of `tirami agents \
             list` or one of `tirami keys list`"
        ))
    })
}

/// The id of the trade meant by `text`: its id or the beginning of it.
pub(crate) async fn trade(client: &Client, text: &str) -> Result<String, Failure> {
    if text.len() >= ID_CHARS {
        return Ok(text.to_owned());
    }
    let mut found = Vec::new();
    let mut before = None;
    for _ in 0..PAGES_MAX {
        let page = client.trades(None, Some(PAGE), before).await?;
        let ids = page.trades.into_iter().map(|trade| trade.trade_id);
        found.extend(ids.map(|id| Candidate { id, name: String::new() }));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let none = || absent(format_args!("no trade begins with {text:?}; `tirami trades` lists them"));
    pick(text, &found)?.ok_or_else(none)
}

async fn agents(client: &Client) -> Result<Vec<Candidate>, Failure> {
    let agents = client.agents().await?.agents.into_iter();
    Ok(agents.map(|agent| Candidate { id: agent.did, name: agent.name }).collect())
}

/// A label means a key that still works; a key that does not has its id.
async fn keys(client: &Client) -> Result<Vec<Candidate>, Failure> {
    let keys = client.keys().await?.keys.into_iter().map(|key| {
        let name = if key.state == "active" { key.label } else { String::new() };
        Candidate { id: key.id, name }
    });
    Ok(keys.collect())
}

fn is_whole_did(text: &str) -> bool {
    text.strip_prefix(DID).is_some_and(|id| id.len() == ID_CHARS)
}

/// The one candidate `text` means: by its whole id, else by its whole name, else by the beginning
/// of either.
fn pick(text: &str, candidates: &[Candidate]) -> Result<Option<String>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let begins = |id: &str| {
        id.starts_with(text) || id.strip_prefix(DID).is_some_and(|id| id.starts_with(text))
    };
    let ways: [&dyn Fn(&Candidate) -> bool; 3] =
        [&|one| one.id == text, &|one| one.name == text, &|one| {
            begins(&one.id) || one.name.starts_with(text)
        }];
    for way in ways {
        let found: Vec<&Candidate> = candidates.iter().filter(|one| way(one)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Ok(Some(one.id.clone())),
            [one, other, ..] => {
                return Err(Failure::usage(format_args!(
                    "{text:?} could be {} or {}; write more of the id",
                    one.id, other.id
                )));
            }
        }
    }
    Ok(None)
}

fn absent(message: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Refused, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_or_a_name_is_enough_while_it_means_one_thing() {
        let one = |id: &str, name: &str| Candidate { id: id.into(), name: name.into() };
        let all = [
            one("did:tirami:aa11", "writer"),
            one("did:tirami:ab22", "reader"),
            one("did:tirami:bb33", "reader"),
            one("did:tirami:cc44", "aa"),
        ];
        let cases = [
            ("did:tirami:aa11", Ok(Some("did:tirami:aa11"))),
            ("did:tirami:ab", Ok(Some("did:tirami:ab22"))),
            ("bb", Ok(Some("did:tirami:bb33"))),
            ("writer", Ok(Some("did:tirami:aa11"))),
            ("wri", Ok(Some("did:tirami:aa11"))),
            // A whole name comes before the beginning of an id.
            ("aa", Ok(Some("did:tirami:cc44"))),
            ("a", Err("\"a\" could be did:tirami:aa11 or did:tirami:ab22; write more of the id")),
            (
                "reader",
                Err("\"reader\" could be did:tirami:ab22 or did:tirami:bb33; write more of the id"),
            ),
            (
                "did:tirami:",
                Err(
                    "\"did:tirami:\" could be did:tirami:aa11 or did:tirami:ab22; write more of the id",
                ),
            ),
            ("zz", Ok(None)),
            ("", Ok(None)),
        ];
        for (text, expected) in cases {
            let found = pick(text, &all).map_err(|failure| failure.message);
            let expected = expected.map(|id| id.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
