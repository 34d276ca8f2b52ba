//! `tirami peers` and `tirami providers`: the other nodes.

use clap::Args;
use tirami_sdk::types::{Farewell, Peer, Provider};

use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::settings::Global;

/// What to show of the peers.
#[derive(Debug, Args)]
pub(crate) struct PeersArgs {
    /// Show what other nodes tried here and was refused, connected or not.
    #[arg(long)]
    refused: bool,
}
/// Farewells shown; `--json` has all that the node keeps.
const FAREWELLS_SHOWN: usize = 8;

/// Lists the nodes this one is connected to.
pub(crate) async fn peers(global: &Global, args: PeersArgs, out: Output) -> Result<Exit, Failure> {
    if args.refused {
        return refused(global, out).await;
    }
    let list = connect(global, Need::Personal).await?.peers().await?;
    out.answer(&list, |out| {
        let rows: Vec<_> = list.peers.iter().map(peer).collect();
        let head = ["node", "state", "address", "RTT ms", "models", "owes TRM", "software"];
        out.table(&head, &["RTT ms", "owes TRM"], &rows);
        let rows: Vec<_> = list.farewells.iter().take(FAREWELLS_SHOWN).map(farewell).collect();
        if !rows.is_empty() {
            out.line("");
            out.table(&["node", "what", "times", "why"], &["times"], &rows);
        }
    });
    if list.count == 0 {
        out.note("connected to nobody; `tirami mesh invite` makes the word with which others join");
    }
    Ok(Exit::Done)
}

async fn refused(global: &Global, out: Output) -> Result<Exit, Failure> {
    let list = connect(global, Need::Personal).await?.refusals().await?;
    out.answer(&list, |out| {
        let row = |row: &tirami_sdk::types::Refusal| {
            vec![output::short(&row.node_id), row.code.clone(), row.times.to_string()]
        };
        let rows: Vec<_> = list.refusals.iter().map(row).collect();
        out.table(&["node", "refused for", "times"], &["times"], &rows);
    });
    if list.count == 0 {
        out.note("nothing was refused to any other node");
    }
    Ok(Exit::Done)
}

/// Which connections ended with a word.
fn farewell(one: &Farewell) -> Vec<String> {
    let what = if one.by_peer { "sent this node away" } else { "sent away" };
    vec![
        output::short(&one.node_id),
        what.to_owned(),
        one.times.to_string(),
        output::plain(&one.reason),
    ]
}

fn peer(peer: &Peer) -> Vec<String> {
    let mut state = peer.state.clone();
    if peer.witness {
        state.push_str(", witness");
    }
    vec![
        output::short(&peer.node_id),
        state,
        peer.address.clone().unwrap_or_default(),
        peer.rtt_us.map(|us| format!("{}.{}", us / 1_000, us % 1_000 / 100)).unwrap_or_default(),
        output::plain(&peer.models.join(" ")),
        peer.owes_trm.to_string(),
        output::plain(&peer.agent),
    ]
}

/// Lists the nodes that serve models.
pub(crate) async fn providers(global: &Global, out: Output) -> Result<Exit, Failure> {
    let list = connect(global, Need::Personal).await?.providers().await?;
    out.answer(&list, |out| {
        let rows: Vec<_> = list.providers.iter().flat_map(models).collect();
        let head = ["node", "state", "model", "quantisation", "TRM/GFLOP", "free", "region"];
        out.table(&head, &["TRM/GFLOP", "free"], &rows);
    });
    if list.count == 0 {
        out.note("no node says that it serves a model");
    }
    Ok(Exit::Done)
}

/// One row for each model.
fn models(provider: &Provider) -> impl Iterator<Item = Vec<String>> {
    let state = match (provider.is_self, provider.connected, provider.serving) {
        (true, _, true) => "this node",
        (_, _, false) => "paused",
        (_, true, true) => "serving",
        (_, false, true) => "not connected",
    };
    provider.models.iter().map(move |model| {
        vec![
            output::short(&provider.node_id),
            state.to_owned(),
            output::plain(&model.model),
            output::plain(&model.quantisation),
            provider.price_trm.to_string(),
            format!("{}/{}", provider.slots_free, provider.slots),
            output::plain(&provider.region),
        ]
    })
}
