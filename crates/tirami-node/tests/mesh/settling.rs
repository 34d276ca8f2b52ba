//! A node without a model, new to its provider: it pays before it owes as much as it may.

use std::thread::sleep;
use std::time::{Duration, Instant};

use tirami_ledger::book::EXPOSURE_START_ANSWERS;

use crate::jobs_support::{Mesh, ask, script};

/// How long a payment may take to become final: it would be made by itself after ten seconds, by
/// which as many answers as a provider lends at first are asked for.
const PAID_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn whoever_asks_one_thing_after_the_other_pays_in_time_to_be_served_on() {
    let mesh = Mesh::of(&[script(1_000, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let party = user.party();
    let owes_much = || {
        provider.peer.read(move |kernel| {
            let book = kernel.ledger().book();
            book.owed_by(party).micro() >= book.serving().exposure_start.micro() / 4
        })
    };
    // More than a provider lends to somebody new, and faster than what is owed is paid otherwise.
    for n in 1..=EXPOSURE_START_ANSWERS + 8 {
        user.post(&ask(1_000, false));
        let begun = Instant::now();
        while n % 4 == 0 && begun.elapsed() < PAID_WITHIN && owes_much() {
            sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(provider.refused(party, "order_exposure"), 0);
}
