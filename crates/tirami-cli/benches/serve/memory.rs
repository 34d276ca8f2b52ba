//! Resident memory while many streams run.

use crate::bench::Bench;
use crate::report::Row;
use crate::servers::{Server, llama_server, node_llama_cpp, tirami};
use crate::streams::ask_together;

const STREAMS: u32 = 16;
const CONTEXT_TOKENS: u32 = 1_024;

/// Each contender has room for 16 sequences of 1 024 tokens and has run so many at once.
pub(crate) fn at_sixteen_streams(bench: &mut Bench) {
    let questions: Vec<_> = (0..STREAMS).map(|_| bench.question()).collect();
    let weigh = |server: Server| -> f64 {
        ask_together(&server, &questions);
        server.resident_mib()
    };
    let measured = weigh(tirami(STREAMS, CONTEXT_TOKENS, true));
    let peers = [llama_server, node_llama_cpp].map(|start| {
        let server = start(STREAMS, CONTEXT_TOKENS).ok()?;
        Some((server.name.to_owned(), weigh(server)))
    });
    let beside: Vec<_> = peers.into_iter().flatten().collect();
    let met = beside.iter().all(|(_, peer)| measured <= 1.1 * peer);
    bench.table.push(Row {
        what: format!(
            "resident memory after {STREAMS} streams, {CONTEXT_TOKENS} tokens of room each"
        ),
        unit: "MiB",
        measured,
        beside,
        target: Some(("≤ 1.1 × peer".to_owned(), met)),
        why: "the node keeps its accounts, and room for the tokens of every sequence, from the \
              start on",
    });
}
