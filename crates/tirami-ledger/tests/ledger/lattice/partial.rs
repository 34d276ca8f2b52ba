//! What a certificate stands for at a node that holds some chains, and what it does not.

use tirami_core::{DocumentId, Timestamp};
use tirami_ledger::lattice::{
    Collect, Entry, EntryKind, EntryRejection, Keep, Lattice, Open, Transfer,
};

use super::world::{Sent, certificate, charter, found, key, party, sign, trm};

const PAID: DocumentId = DocumentId::from_bytes([7; 32]);

fn light() -> Lattice {
    let mut lattice = found(charter(1, 1, trm("1000")));
    lattice.set_keep(Keep::Own);
    lattice
}

fn write(lattice: &Lattice, seq: u64, prev: Option<DocumentId>, kind: EntryKind, b: i64) -> Sent {
    let time_ms = Timestamp::from_ms(seq);
    let entry = Entry { chain: party("bob"), seq, prev, time_ms, kind, balance: b };
    sign(lattice, &entry, &key("bob"))
}

fn certified(lattice: &mut Lattice, sent: &Sent) -> Result<(), EntryRejection> {
    let proof = certificate(lattice, 1, sent.id, &["w1"]);
    let events = lattice.receive_certified(&sent.bytes, sent.signature, &proof)?;
    lattice.absorb(events);
    lattice.check_invariants().unwrap();
    Ok(())
}

fn plain(lattice: &mut Lattice, sent: &Sent) {
    let events = lattice.receive_entry(&sent.bytes, sent.signature).unwrap();
    lattice.absorb(events);
    lattice.check_invariants().unwrap();
}

/// bob opens, collects what somebody paid whose chain is not held, and gives a part of it away.
fn run(lattice: &Lattice) -> [Sent; 3] {
    let open = Open { sponsor: None, enrol: None, recovery: None };
    let open = write(lattice, 0, None, open.into(), 0);
    let collect = Collect { ids: vec![PAID], checkpoint: None };
    let collect = write(lattice, 1, Some(open.id), collect.into(), 40_000_000);
    let gift = Transfer { payee: party("cat"), amount: trm("10") };
    let gift = write(lattice, 2, Some(collect.id), gift.into(), 30_000_000);
    [open, collect, gift]
}

#[test]
fn a_certificate_stands_for_the_entries_before_and_for_what_they_name() {
    let mut lattice = light();
    let [open, collect, gift] = run(&lattice);
    certified(&mut lattice, &open).unwrap();
    plain(&mut lattice, &collect);
    assert_eq!((lattice.final_count(), lattice.held()), (1, (0, 0)), "nothing stands for it yet");
    certified(&mut lattice, &gift).unwrap();
    assert_eq!(lattice.final_count(), 1, "what is before it is not known");
    plain(&mut lattice, &collect);
    assert_eq!((lattice.final_count(), lattice.held()), (3, (0, 0)));
    assert_eq!(lattice.chain(party("bob")).unwrap().balance(), 30_000_000);
    assert_eq!(lattice.totals().outside, 40_000_000);

    // A node that keeps all waits for what is named.
    let mut full = light();
    full.set_keep(Keep::All);
    for sent in [&open, &gift, &collect] {
        certified(&mut full, sent).unwrap();
    }
    assert_eq!(full.final_count(), 1);
}

#[test]
fn what_can_be_computed_is_judged_all_the_same() {
    let mut lattice = light();
    let [open, collect, gift] = run(&lattice);
    certified(&mut lattice, &open).unwrap();
    let ids = || Collect { ids: vec![PAID], checkpoint: None };
    let nothing = write(&lattice, 1, Some(open.id), ids().into(), 0);
    let refused = certified(&mut lattice, &nothing).unwrap_err();
    assert_eq!(refused, EntryRejection::WrongBalance { expected: 1, given: 0 });
    certified(&mut lattice, &collect).unwrap();
    certified(&mut lattice, &gift).unwrap();
    let again = write(&lattice, 3, Some(gift.id), ids().into(), 70_000_000);
    let refused = certified(&mut lattice, &again).unwrap_err();
    assert_eq!(refused, EntryRejection::AlreadyCollected { entry: PAID });
    let much = Transfer { payee: party("cat"), amount: trm("31") };
    let much = write(&lattice, 3, Some(gift.id), much.into(), -1_000_000);
    let refused = certified(&mut lattice, &much).unwrap_err();
    assert_eq!(refused, EntryRejection::BelowFloor { short_micro: 1_000_000 });
}

#[test]
fn a_certificate_of_a_charter_nobody_knows_keeps_no_genuine_one_out() {
    let mut lattice = light();
    let [open, collect, gift] = run(&lattice);
    certified(&mut lattice, &open).unwrap();
    // Whoever pushes entries may push this: nobody can check it.
    let bogus = certificate(&lattice, 99, gift.id, &["w1"]);
    let parked = lattice.receive_certified(&gift.bytes, gift.signature, &bogus).unwrap();
    lattice.absorb(parked);
    certified(&mut lattice, &gift).unwrap();
    plain(&mut lattice, &collect);
    assert_eq!((lattice.final_count(), lattice.held()), (3, (0, 0)));
}
