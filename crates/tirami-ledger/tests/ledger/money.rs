//! Where each of the 25 scenarios of MONEY §13 is shown; fails when one of them is lost.

#![expect(clippy::disallowed_methods, reason = "the scenarios are files")]

use std::fs;
use std::path::{Path, PathBuf};

/// What shows a scenario: files of steps, or `file: test`, both below `tests`.
const SHOWN: [(u8, &[&str]); 19] = [
    (1, &["ledger/lattice/properties.rs: all_orders_of_six_dependent_entries_end_in_one_state"]),
    (
        2,
        &[
            "scenarios/lattice/a_payment_is_in_transit_until_its_payee_collects_it.txt",
            "scenarios/book_mesh/money_02_payment_in_transit.txt",
        ],
    ),
    (
        3,
        &[
            "scenarios/lattice/a_payment_is_collected_once.txt",
            "scenarios/lattice/only_the_payee_collects_a_payment.txt",
            "scenarios/book_mesh/money_03_collect_twice.txt",
        ],
    ),
    (4, &["scenarios/lattice/a_thousand_rivals_leave_at_most_one_final.txt"]),
    (5, &["scenarios/lattice/relays_behind_rivals_have_no_balance.txt"]),
    (6, &["scenarios/lattice/a_rival_of_an_old_final_entry_changes_nothing_and_is_recorded.txt"]),
    (7, &["scenarios/lattice/two_lying_witnesses_freeze_one_chain_and_are_named.txt"]),
    (
        8,
        &[
            "scenarios/lattice/rivals_that_split_the_witnesses_close_the_slot.txt",
            "scenarios/lattice/a_charter_change_reopens_a_closed_slot.txt",
        ],
    ),
    (
        9,
        &[
            "scenarios/lattice/a_partition_without_a_quorum_heals_in_order.txt",
            "scenarios/book_mesh/debts_survive_a_witness_that_is_away.txt",
        ],
    ),
    (10, &["scenarios/lattice/a_restored_backup_adopts_the_final_branch.txt"]),
    (11, &["scenarios/lattice/a_key_on_two_hosts_ends_in_one_branch.txt"]),
    (12, &["scenarios/lattice/no_rule_reads_the_time_in_an_entry.txt"]),
    (
        13,
        &[
            "scenarios/lattice/a_newcomer_that_settles_in_time_gives_the_guarantee_back.txt",
            "scenarios/lattice/a_settle_covered_too_late_is_a_default.txt",
        ],
    ),
    (14, &["scenarios/lattice/a_default_pays_the_debt_and_returns_the_rest.txt"]),
    (
        15,
        &["scenarios/lattice/\
             a_payment_out_of_the_welcome_line_after_the_deadline_is_not_collected.txt"],
    ),
    (16, &["scenarios/lattice/a_welcome_line_is_for_jobs_only.txt"]),
    (23, &["scenarios/book_mesh/money_23_silence_after_the_last_voucher.txt"]),
    (
        24,
        &[
            "scenarios/book_mesh/money_24_order_for_another.txt",
            "scenarios/book_mesh/money_24_replayed_job.txt",
            "scenarios/book_mesh/money_24_voucher_before_is_paid.txt",
        ],
    ),
    (
        25,
        &[
            "scenarios/book/money_25_abort_steps.txt",
            "scenarios/book/money_25_many_at_once.txt",
            "scenarios/book_mesh/money_25_consumer_aborts.txt",
            "scenarios/book_mesh/money_25_provider_aborts.txt",
        ],
    ),
];

/// Scenarios of entry kinds that this build does not know, and those kinds.
const LATER: [(u8, &str); 6] = [
    (17, "pledge"),
    (18, "pledge"),
    (19, "verdict"),
    (20, "verdict"),
    (21, "claim_yield"),
    (22, "claim_yield"),
];

#[test]
fn every_scenario_of_the_money_rules_is_shown_or_of_a_kind_that_does_not_exist() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for number in 1..=25 {
        let shown = SHOWN.iter().filter(|(shown, _)| *shown == number);
        let later = LATER.iter().find(|(later, _)| *later == number);
        let places: Vec<&str> = shown.flat_map(|(_, places)| *places).copied().collect();
        match later {
            None => assert!(!places.is_empty(), "scenario {number} is shown nowhere"),
            Some((_, kind)) => {
                assert!(!kinds().contains(&(*kind).to_owned()), "{kind} exists: show {number}");
            }
        }
        for place in places {
            check(&tests, number, place);
        }
    }
}

fn check(tests: &Path, number: u8, place: &str) {
    let Some((file, test)) = place.split_once(": ") else {
        assert!(tests.join(place).is_file(), "scenario {number}: {place} is gone");
        return;
    };
    let text = fs::read_to_string(tests.join(file)).unwrap();
    assert!(text.contains(&format!("fn {test}(")), "scenario {number}: {place} is gone");
}

/// The entry kinds of this build: one file each.
fn kinds() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lattice/kinds");
    let files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.iter().map(|file| file.file_stem().unwrap().to_string_lossy().into_owned()).collect()
}
