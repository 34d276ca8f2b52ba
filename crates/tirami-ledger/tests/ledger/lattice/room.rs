//! What is held although it is not final is bounded, and strangers cannot fill it: not against the
//! node's own entries, not against other chains, and not in the store.

use tirami_core::{Digest, DocumentId, Timestamp};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{
    Certificate, Enrol, Entry, EntryKind, EntryRejection, HELD_MAX, Lattice, LatticeEvent,
    OWN_HELD_MAX, Open, PARKED_PER_CHAIN_MAX, PARKED_UNPROVEN_MAX, RIVALS_MAX, Rekey, Transfer,
};
use tirami_ledger::{Context, Keyring, Ledger, Rejection};

use super::world::{Sent, certificate, charter, found, key, party, sign, trm};

const NOW: Timestamp = Timestamp::from_ms(1_000_000);

fn open(lattice: &Lattice, name: &str) -> Sent {
    let kind = Open { sponsor: None, enrol: None, recovery: None }.into();
    write(lattice, name, (0, None), kind)
}

/// The entry after `prev` that changes the key of `name` to itself: always valid.
fn next(lattice: &Lattice, name: &str, seq: u64, prev: DocumentId) -> Sent {
    let kind = Rekey { key: key(name).public() }.into();
    write(lattice, name, (seq, Some(prev)), kind)
}

fn write(
    lattice: &Lattice,
    name: &str,
    (seq, prev): (u64, Option<DocumentId>),
    kind: EntryKind,
) -> Sent {
    let entry = Entry { chain: party(name), seq, prev, time_ms: NOW, kind, balance: 0 };
    sign(lattice, &entry, &key(name))
}

fn unknown(number: u64) -> DocumentId {
    DocumentId::from_bytes(*Digest::of(&number.to_be_bytes()).as_bytes())
}

fn receive(lattice: &mut Lattice, sent: &Sent) -> Result<Vec<LatticeEvent>, EntryRejection> {
    let events = lattice.receive_entry(&sent.bytes, sent.signature)?;
    Ok(lattice.absorb(events))
}

fn finalize(lattice: &mut Lattice, sent: &Sent, by: &[&str]) {
    let certificate = certificate(lattice, 1, sent.id, by);
    let events = lattice.receive_certified(&sent.bytes, sent.signature, &certificate).unwrap();
    lattice.absorb(events);
    assert!(lattice.final_entry(sent.id).is_some());
}

/// A lattice with two witnesses, both needed, that is full of the opens of strangers.
fn full(acknowledged: bool) -> Lattice {
    let mut lattice = found(charter(2, 2, trm("1000")));
    let first = open(&lattice, "w1");
    finalize(&mut lattice, &first, &["w1", "w2"]);
    for number in 0..HELD_MAX {
        let sent = open(&lattice, &format!("stranger {number}"));
        receive(&mut lattice, &sent).unwrap();
        if acknowledged {
            let (events, _) = lattice.acknowledge(NOW, &key("w1"), sent.id).unwrap();
            lattice.absorb(events);
        }
    }
    assert_eq!(lattice.held(), (HELD_MAX, 0));
    lattice
}

#[test]
fn strangers_never_keep_a_node_from_signing() {
    for acknowledged in [false, true] {
        let mut ledger = Ledger::new(full(acknowledged), party("w1"));
        let keys = Keyring::new(key("w1"));
        let context = Context { now: NOW, keys: &keys };
        let mut signed = 0;
        let refused = loop {
            let grant = Enrol { party: party("ann"), owner: String::new(), line: trm("0.001") };
            let sign = Command::SignEntry { kind: grant.into() };
            match ledger.decide(&context, &Actor::Node, &sign) {
                Ok(decision) if signed < 2 * OWN_HELD_MAX => {
                    ledger.absorb(&context, decision.events);
                    signed += 1;
                }
                other => break other,
            }
            // A snapshot keeps whose node it is.
            if signed == 1 {
                ledger = Ledger::restore(&ledger.snapshot()).unwrap();
            }
        };
        let own = ledger.lattice().pending_of(party("w1")).count();
        assert_eq!(own, signed);
        ledger.check_invariants().unwrap();
        if acknowledged {
            // A promise is kept, so at last there is no room.
            assert!(matches!(refused, Err(Rejection::Entry(EntryRejection::Full))));
            assert_eq!(ledger.lattice().held().0, HELD_MAX + OWN_HELD_MAX);
        } else {
            assert!(refused.is_ok());
            assert_eq!(ledger.lattice().held().0, HELD_MAX);
        }
    }
}

#[test]
fn an_entry_that_a_later_certificate_stands_for_has_a_place_beside_rivals() {
    let mut lattice = found(charter(2, 2, trm("1000")));
    let first = open(&lattice, "ann");
    finalize(&mut lattice, &first, &["w1", "w2"]);
    let in_one_slot = |lattice: &Lattice, n: u64| {
        let kind = Rekey { key: key("ann").public() }.into();
        let (chain, prev, time_ms) = (party("ann"), Some(first.id), NOW.plus_ms(n));
        let entry = Entry { chain, seq: 1, prev, time_ms, kind, balance: 0 };
        sign(lattice, &entry, &key("ann"))
    };
    for n in 1..=RIVALS_MAX as u64 {
        let rival = in_one_slot(&lattice, n);
        receive(&mut lattice, &rival).unwrap();
    }
    let covered = in_one_slot(&lattice, 0);
    let full = Err(EntryRejection::TooManyRivals { seq: 1 });
    assert_eq!(receive(&mut lattice, &covered), full);
    // A certificate of another entry, or one of too few, stands for nothing.
    let after = next(&lattice, "ann", 2, covered.id);
    let few = certificate(&lattice, 1, after.id, &["w1"]);
    assert!(lattice.receive_certified(&after.bytes, after.signature, &few).is_err());
    assert_eq!(receive(&mut lattice, &covered), full);
    let enough = certificate(&lattice, 1, after.id, &["w1", "w2"]);
    let events = lattice.receive_certified(&after.bytes, after.signature, &enough).unwrap();
    lattice.absorb(events);
    let other = in_one_slot(&lattice, 99);
    assert_eq!(receive(&mut lattice, &other), full);
    receive(&mut lattice, &covered).unwrap();
    for sent in [&covered, &after] {
        assert!(lattice.final_entry(sent.id).is_some());
    }
    lattice.check_invariants().unwrap();
}

#[test]
fn when_there_is_no_room_a_chain_that_has_more_gives_way() {
    let mut lattice = full(false);
    let before = lattice.clone();
    // A chain that has as many as any other gets no more.
    let first = open(&lattice, "stranger 7");
    let second = next(&lattice, "stranger 7", 1, first.id);
    assert_eq!(receive(&mut lattice, &second), Err(EntryRejection::Full));
    // A chain that has none pushes out the only one of another.
    let ann = open(&lattice, "ann");
    let events = receive(&mut lattice, &ann).unwrap();
    assert_eq!(lattice.held(), (HELD_MAX, 0));
    assert!(lattice.pending_entry(ann.id).is_some());
    let ann = next(&lattice, "ann", 1, ann.id);
    assert_eq!(receive(&mut lattice, &ann), Err(EntryRejection::Full));
    let discarded = events.iter().filter(|e| matches!(e, LatticeEvent::Discarded { .. })).count();
    assert_eq!(discarded, 1);
    // Replaying gives the same.
    let mut replayed = before;
    events.iter().for_each(|event| replayed.apply(event));
    assert!(replayed == lattice);
    lattice.check_invariants().unwrap();
}

#[test]
fn a_branch_of_the_heaviest_chain_goes_and_what_was_promised_stays() {
    let mut lattice = found(charter(2, 2, trm("1000")));
    let mut last = open(&lattice, "eve");
    let first = last.id;
    receive(&mut lattice, &last).unwrap();
    for seq in 1..=3 {
        last = next(&lattice, "eve", seq, last.id);
        receive(&mut lattice, &last).unwrap();
    }
    // One of it is promised: it stays, what rests on it goes.
    let (events, _) = lattice.acknowledge(NOW, &key("w1"), first).unwrap();
    lattice.absorb(events);
    for number in 4..HELD_MAX {
        let sent = open(&lattice, &format!("stranger {number}"));
        receive(&mut lattice, &sent).unwrap();
    }
    let bob = open(&lattice, "bob");
    receive(&mut lattice, &bob).unwrap();
    assert_eq!(lattice.held(), (HELD_MAX - 2, 0));
    assert!(lattice.pending_entry(first).is_some() && lattice.pending_entry(last.id).is_none());
    lattice.check_invariants().unwrap();
}

#[test]
fn one_chain_fills_no_more_than_its_part() {
    let mut lattice = found(charter(1, 1, trm("1000")));
    let mut last = open(&lattice, "eve");
    let mut taken = 0;
    while receive(&mut lattice, &last).is_ok() {
        taken += 1;
        last = next(&lattice, "eve", taken, last.id);
    }
    assert_eq!(taken as usize, tirami_ledger::lattice::CHAIN_HELD_MAX);
    let ann = open(&lattice, "ann");
    receive(&mut lattice, &ann).unwrap();
}

#[test]
fn entries_that_rest_on_nothing_leave_no_trace() {
    let mut lattice = found(charter(1, 1, trm("1000")));
    let empty = lattice.clone();
    // Nobody knows the chain: it is taken from its beginning.
    for number in 0..100 {
        let sent = next(&lattice, &format!("stranger {number}"), 5, unknown(number));
        assert_eq!(receive(&mut lattice, &sent), Ok(Vec::new()));
    }
    assert!(lattice == empty);
    // A chain that is known, and a signature that is not its own.
    let ann = open(&lattice, "ann");
    finalize(&mut lattice, &ann, &["w1"]);
    let known = lattice.clone();
    for number in 0..100 {
        let kind = Transfer { payee: party("bob"), amount: trm("1") }.into();
        let prev = Some(unknown(number));
        let entry = Entry { chain: party("ann"), seq: 5, prev, time_ms: NOW, kind, balance: 0 };
        let sent = sign(&lattice, &entry, &key("eve"));
        assert_eq!(receive(&mut lattice, &sent), Ok(Vec::new()));
    }
    assert!(lattice == known);
}

#[test]
fn what_is_parked_is_bounded_by_chain_and_in_all_and_gives_way_to_what_is_certified() {
    let mut lattice = found(charter(1, 1, trm("1000")));
    let chains = PARKED_UNPROVEN_MAX / PARKED_PER_CHAIN_MAX + 2;
    for chain in 0..chains {
        let name = format!("member {chain}");
        let first = open(&lattice, &name);
        finalize(&mut lattice, &first, &["w1"]);
        for number in 0..PARKED_PER_CHAIN_MAX as u64 + 3 {
            let sent = next(&lattice, &name, 5 + number, unknown(number));
            receive(&mut lattice, &sent).unwrap();
        }
        let wanted = ((chain + 1) * PARKED_PER_CHAIN_MAX).min(PARKED_UNPROVEN_MAX);
        assert_eq!(lattice.held(), (0, wanted));
    }
    // Without a certificate nothing more comes in, and nothing is written about it.
    let more = next(&lattice, "member 0", 99, unknown(99));
    assert_eq!(receive(&mut lattice, &more), Ok(Vec::new()));
    // A certificate is evidence, also of a chain that nobody knows yet; a wrong one is refused.
    let far = next(&lattice, "bob", 3, unknown(3));
    let proof = certificate(&lattice, 1, far.id, &["w1"]);
    let events = lattice.receive_certified(&far.bytes, far.signature, &proof).unwrap();
    assert!(matches!(events[..], [LatticeEvent::Parked { .. }]));
    lattice.absorb(events);
    let far = next(&lattice, "bob", 4, unknown(4));
    let Certificate { mut acknowledgements } = certificate(&lattice, 1, far.id, &["w1"]);
    acknowledgements.iter_mut().for_each(|ack| ack.signature = far.signature);
    let proof = Certificate { acknowledgements };
    let refused = lattice.receive_certified(&far.bytes, far.signature, &proof).err();
    let refused = refused.expect("a certificate that nobody signed");
    assert!(matches!(refused, EntryRejection::BadAcknowledgement { .. }));
    lattice.check_invariants().unwrap();
}
