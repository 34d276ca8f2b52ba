//! Short runs of whole nodes: same seed, same hash; planted bugs are found.

use tirami_ledger::lattice::Keep;
use tirami_sim::{Bug, NodesConfig, NodesCounts, NodesReport, run_nodes};

fn config(seed: u64) -> NodesConfig {
    NodesConfig { seed, nodes: 16, seconds: 70, ..NodesConfig::default() }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let once = run_nodes(&config(7)).unwrap();
    assert_eq!(once, run_nodes(&config(7)).unwrap());
    assert!(once.counts.completed > 20, "{once}");
}

/// Takes something out of a run.
type Without = fn(&mut NodesCounts);

#[test]
fn a_run_says_when_it_handled_little_or_went_through_no_fault() {
    let whole = run_nodes(&config(7)).unwrap();
    let events = whole.counts.events;
    assert_eq!(whole.shortfall(events), None, "{whole}");
    let lacks = |report: &NodesReport, events, said: &str| {
        let shortfall = report.shortfall(events);
        assert!(shortfall.as_ref().is_some_and(|what| what.contains(said)), "{shortfall:?}");
    };
    lacks(&whole, events + 1, "at least expected");
    let faults: [(&str, Without); 3] = [
        ("no split", |counts| counts.splits = 0),
        ("no power cut", |counts| counts.crashes = 0),
        ("no failover", |counts| counts.failovers = 0),
    ];
    for (said, without) in faults {
        let mut report = whole.clone();
        without(&mut report.counts);
        lacks(&report, events, said);
    }
    let calm = run_nodes(&NodesConfig { calm: true, ..config(7) }).unwrap();
    lacks(&calm, 1, "no split");
}

#[test]
fn members_that_follow_few_chains_agree_with_the_witnesses() {
    for seed in 1..8 {
        let config = NodesConfig { keep: Keep::Own, nodes: 24, ..config(seed) };
        let report = run_nodes(&config).unwrap();
        assert!(report.counts.completed > 20, "{report}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for (bug, said) in [
        (Bug::ToldBeforeSync, "not true any more"),
        (Bug::LosesSynced, "not true any more"),
        (Bug::PaysAhead, "tokens that cost"),
        (Bug::ServesNothing, "after the"),
        (Bug::ServesRefused, "of work unpaid"),
        (Bug::ForgetsWork, "of work unpaid"),
        (Bug::LeavesHolds, "holds TRM for jobs that are over"),
        (Bug::NeverBegins, "were not answered"),
        (Bug::AnswersWrongly, "with another text"),
        (Bug::VouchersFall, "a voucher that falls"),
        (Bug::AcceptsForged, "a forged order"),
    ] {
        // What a consumer takes for nothing adds up slowly.
        let seconds = if said == "of work unpaid" { 240 } else { 40 };
        let planted = |seed| NodesConfig { bug, seconds, nodes: 24, ..config(seed) };
        let found = (1..24).find_map(|seed| run_nodes(&planted(seed)).err());
        let failure = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        assert!(failure.what.contains(said), "{bug:?}: {failure}");
    }
}

#[test]
fn as_many_dishonest_witnesses_as_the_charter_tolerates_change_nothing() {
    for (seed, witnesses, dishonest) in [(1, 1, 0), (2, 3, 0), (3, 4, 0), (4, 4, 1), (5, 7, 2)] {
        let config = NodesConfig {
            witnesses: Some(witnesses),
            dishonest: Some(dishonest),
            nodes: 24,
            ..config(seed)
        };
        let report = run_nodes(&config).unwrap();
        assert_eq!((report.witnesses, report.dishonest), (witnesses, dishonest), "{report}");
        assert!(report.counts.completed > 20, "{report}");
    }
}

#[test]
fn more_dishonest_witnesses_than_the_charter_tolerates_are_noticed() {
    let (witnesses, dishonest) = (Some(4), Some(2));
    let found = (1..8).find_map(|seed| {
        let seed = NodesConfig { nodes: 40, seconds: 40, ..config(seed) };
        run_nodes(&NodesConfig { witnesses, dishonest, bug: Bug::Conspire, ..seed }).err()
    });
    let failure = found.unwrap();
    assert!(failure.what.contains("final in one slot"), "{failure}");
    // As many as it tolerates can do the same and change nothing.
    let dishonest = Some(1);
    let seed = NodesConfig { nodes: 40, seconds: 40, ..config(failure.seed) };
    run_nodes(&NodesConfig { witnesses, dishonest, bug: Bug::Conspire, ..seed }).unwrap();
}
