//! Short runs of whole nodes: same seed, same hash; planted bugs are found.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use tirami_sim::{Bug, NodesConfig, run_nodes};

fn config(seed: u64) -> NodesConfig {
    NodesConfig { seed, nodes: 16, seconds: 70, ..NodesConfig::default() }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let once = run_nodes(&config(7)).unwrap();
    assert_eq!(once, run_nodes(&config(7)).unwrap());
    assert!(once.counts.completed > 20, "{once}");
}

#[test]
fn planted_bugs_are_found() {
    for (bug, said) in [
        (Bug::ToldBeforeSync, "not true any more"),
        (Bug::PaysAhead, "tokens that cost"),
        (Bug::ServesNothing, "after the"),
        (Bug::ServesRefused, "of work unpaid"),
        (Bug::ForgetsWork, "of work unpaid"),
    ] {
        // What a consumer takes for nothing adds up slowly.
        let seconds = if said == "of work unpaid" { 240 } else { 70 };
        let planted = |seed| NodesConfig { bug, seconds, nodes: 30, ..config(seed) };
        let found = (1..8).find_map(|seed| run_nodes(&planted(seed)).err());
        let failure = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        assert!(failure.what.contains(said), "{bug:?}: {failure}");
    }
}
