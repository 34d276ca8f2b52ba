//! Short runs: same seed, same hash; every size of mesh; planted bugs are found.

use tirami_sim::{Config, Fault, run};

fn config(seed: u64) -> Config {
    Config { seed, events: 4_000, ..Config::default() }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (once, again) = (run(&config(7)).unwrap(), run(&config(7)).unwrap());
    assert_eq!(once, again);
    assert_ne!(once.state, run(&config(8)).unwrap().state);
}

#[test]
fn meshes_of_every_size_keep_their_invariants() {
    for witnesses in [1, 3, 4, 7] {
        let config = Config { witnesses: Some(witnesses), ..config(witnesses as u64) };
        let report = run(&config).unwrap();
        assert!(report.counts.jobs > 50, "{report}");
        assert!(report.checkpoints > 0, "{report}");
    }
}

#[test]
fn as_many_liars_as_the_charter_tolerates_change_nothing() {
    for (witnesses, liars) in [(4, 1), (7, 2)] {
        let config =
            Config { witnesses: Some(witnesses), liars: Some(liars), events: 8_000, ..config(20) };
        let report = run(&config).unwrap();
        assert!(report.within && report.counts.rivals > 0, "{report}");
        assert_eq!((report.contradictions, report.loss), (0, 0), "{report}");
    }
}

#[test]
fn more_liars_freeze_chains_and_the_loss_is_counted() {
    let contradictions = (30..36).map(|seed| {
        let config = Config { witnesses: Some(4), liars: Some(2), events: 8_000, ..config(seed) };
        let report = run(&config).unwrap();
        assert!(!report.within);
        report.contradictions
    });
    assert!(contradictions.sum::<usize>() > 0);
}

#[test]
fn a_planted_bug_is_found() {
    for (fault, said) in [
        (Fault::ReplyBeforeSync, &["not true any more"][..]),
        (Fault::DiskLosesSynced, &["not true any more", "synced batches are gone"][..]),
        (Fault::StaleSnapshot, &["its events"][..]),
    ] {
        let found = (1..40).find_map(|seed| run(&Config { fault, ..config(seed) }).err());
        let failure = found.unwrap_or_else(|| panic!("{fault:?} was not found"));
        let is_said = said.iter().any(|said| failure.what.contains(said));
        assert!(is_said, "{fault:?}: {failure}");
        // The same seed without the bug breaks nothing.
        let config = Config { fault: Fault::None, ..config(failure.seed) };
        assert_eq!(run(&config).err(), None);
    }
}
