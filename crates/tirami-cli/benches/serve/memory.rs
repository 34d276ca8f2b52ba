//! Resident memory while many streams run.

use crate::bench::Bench;
use crate::report::Row;
use crate::servers::{Server, node_llama_cpp, tirami};
use crate::streams::ask_together;

const STREAMS: u32 = 16;
const CONTEXT_TOKENS: u32 = 1_024;

/// Each contender has room for 16 sequences of 1 024 tokens and has run so many at once.
pub(crate) fn at_sixteen_streams(bench: &mut Bench) {
    let questions: Vec<_> = (0..STREAMS).map(|_| bench.question()).collect();
    let weigh = |server: Server| {
        ask_together(&server, &questions);
        server.resident_mib()
    };
    let measured = weigh(tirami(STREAMS, CONTEXT_TOKENS));
    let peer = node_llama_cpp(STREAMS, CONTEXT_TOKENS).map(weigh);
    let beside: Vec<_> = peer.map(|peer| ("node-llama-cpp".to_owned(), peer)).into_iter().collect();
    let met = beside.iter().all(|(_, peer)| measured <= 1.1 * peer);
    bench.table.push(Row {
        what: format!(
            "resident memory after {STREAMS} streams, {CONTEXT_TOKENS} tokens of room each"
        ),
        unit: "MiB",
        measured,
        beside,
        target: Some(("≤ 1.1 × peer".to_owned(), met)),
    });
}
