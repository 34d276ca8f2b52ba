//! What one hop costs: the first token, and tokens per second, through a node without a model
//! beside the same question asked at the provider itself.

use std::time::{Duration, Instant};

use crate::jobs_support::{Mesh, Stream, TestNode, ask, script};
use crate::report::{Row, Table, median};

const FIRST_ROUNDS: usize = 61;
const SPEED_ROUNDS: usize = 9;
const TOKENS: u32 = 400;
/// The most a hop may add to the first token, beside one round trip.
const FIRST_MAX_MS: f64 = 5.0;
const SPEED_MIN: f64 = 0.98;

/// Rows (a) to (c).
pub(crate) fn overhead(table: &Table) {
    let mesh = Mesh::of(&[script(TOKENS, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let (mut local, mut hop) = (Vec::new(), Vec::new());
    // The first answers open connections and fill caches.
    for round in 0..FIRST_ROUNDS + 5 {
        let (here, there) = (first_token_ms(provider), first_token_ms(user));
        if round >= 5 {
            local.push(here);
            hop.push(there);
        }
    }
    let (local, hop) = (median(&mut local), median(&mut hop));
    table.push(Row {
        what: "(a) first token through one hop, on top of the provider's own".into(),
        measured: format!("{:.2} ms", hop - local),
        limit: format!("asked at the provider itself: {local:.2} ms"),
        ratio: None,
        target: Some(("≤ 1 RTT + 5 ms", hop - local <= FIRST_MAX_MS)),
    });
    let what = "(c) the same from an engine without any pause; not judged: where tokens take no \
                time it measures the work for each token, not a hop";
    speed(table, &mesh, what, None);
    drop(mesh);
    // As fast as a small model on a good graphics card.
    let mesh = Mesh::of(&[script(TOKENS, Duration::from_millis(2))]);
    let what = "(b) tokens/s through one hop, an engine of one token in 2 ms";
    speed(table, &mesh, what, Some(SPEED_MIN));
}

fn speed(table: &Table, mesh: &Mesh, what: &str, least: Option<f64>) {
    let (mut local, mut hop) = (Vec::new(), Vec::new());
    for round in 0..=SPEED_ROUNDS {
        let (here, there) = (tokens_per_second(mesh.provider(0)), tokens_per_second(mesh.user()));
        if round > 0 {
            local.push(here);
            hop.push(there);
        }
    }
    let (local, hop) = (median(&mut local), median(&mut hop));
    table.push(Row {
        what: what.into(),
        measured: format!("{hop:.0} tokens/s"),
        limit: format!("asked at the provider itself: {local:.0} tokens/s"),
        ratio: Some(hop / local),
        target: least.map(|least| ("≥ 0.98 × local", hop / local >= least)),
    });
}

fn first_token_ms(node: &TestNode) -> f64 {
    let asked = Instant::now();
    let mut stream = Stream::open(node, &ask(4, true));
    stream.until_words(1);
    let took = asked.elapsed().as_secs_f64() * 1e3;
    drop(stream.rest());
    took
}

/// Tokens after the first, per second until the whole answer with its charge is there.
fn tokens_per_second(node: &TestNode) -> f64 {
    let mut stream = Stream::open(node, &ask(TOKENS, true));
    stream.until_words(1);
    let first = Instant::now();
    let answer = stream.rest();
    let took = first.elapsed().as_secs_f64();
    assert_eq!(answer.text.matches("word").count(), TOKENS as usize, "{answer:?}");
    f64::from(TOKENS - 1) / took
}
