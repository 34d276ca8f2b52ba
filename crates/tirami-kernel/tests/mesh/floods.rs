//! What one party can make a witness keep, and what one question can make it say.

use tirami_core::{
    Digest, Document as _, DocumentId, JobId, SecretKey, Timestamp, Trm, signing_message,
};
use tirami_kernel::Input;
use tirami_kernel::command::Command;
use tirami_kernel::event::Event;
use tirami_kernel::lattice::{CharterChange, Entry, LatticeEvent, Pay, PayItem, Rekey};
use tirami_kernel::mesh::{CHAIN_BYTES, PeerEvent};
use tirami_proto::{Message, WireEntry, encode};

use crate::harness::Net;

/// The next entry of node 1's chain after `prev`: it has a key that it had before, and 15 000 bytes
/// in a field that nobody knows.
fn padded(net: &Net, seq: u64, prev: Option<DocumentId>) -> (WireEntry, DocumentId) {
    let (lattice, secret): (_, &SecretKey) = (net.nodes[0].lattice(), &net.nodes[1].key);
    let chain = net.party(1);
    let entry = Entry {
        chain,
        seq,
        prev,
        time_ms: Timestamp::default(),
        kind: Rekey { key: secret.public() }.into(),
        balance: lattice.chain(chain).unwrap().balance(),
    };
    let mut bytes = minicbor::to_vec(&entry).unwrap();
    // One more field: its number, and bytes whose length stands in two.
    bytes[0] += 1;
    bytes.extend([7, 0x59]);
    bytes.extend(15_000_u16.to_be_bytes());
    bytes.resize(bytes.len() + 15_000, 0);
    let message = signing_message(Entry::KIND, lattice.mesh(), &bytes);
    let id = DocumentId::from_bytes(*Digest::of(&message).as_bytes());
    (WireEntry { bytes, signature: secret.sign(&message) }, id)
}

/// Bytes of node 1's entries that are final at the witness, from `seq` on.
fn final_bytes(net: &Net, seq: u64) -> usize {
    let chain = net.party(1);
    let events = net.nodes[0].store.iter().filter_map(|event| match event {
        Event::Lattice(event) => Some(&**event),
        _ => None,
    });
    let finals = events.filter_map(|event| match event {
        LatticeEvent::EntryFinal { entry, .. } => Some(entry),
        _ => None,
    });
    let own = finals.filter(|entry| entry.entry().chain == chain && entry.entry().seq >= seq);
    own.map(|entry| entry.bytes().len()).sum()
}

/// So many payments of `from` to `to`, each for 64 jobs of 1 µTRM.
fn pay(net: &mut Net, (from, to): (usize, usize), rounds: std::ops::Range<u32>) {
    for round in rounds {
        let item = |n: u8| {
            let [a, b, c, d] = round.to_be_bytes();
            let job = JobId::from_bytes([a, b, c, d, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            PayItem { job, amount: Trm::from_micro(1) }
        };
        let fee_ppm = net.nodes[0].lattice().charter().params.fee_ppm;
        let kind = Pay::new(net.party(to), (0..64).map(item).collect(), fee_ppm).into();
        net.ok(from, Command::SignEntry { kind });
        if round % 20 == 19 {
            net.run_ms(20);
        }
    }
}

#[test]
fn free_entries_of_one_chain_wait_for_room_and_payments_of_others_do_not() {
    let mut net = Net::of(4);
    net.stop(1);
    let offer = |net: &mut Net, entry| {
        let event = PeerEvent::Message(Box::new(Message::Entry(entry)));
        let peer = net.party(2);
        net.give(0, Input::Peer { peer, event });
    };
    let begin = net.nodes[0].lattice().chain(net.party(1)).unwrap().state().clone();
    let mut prev = begin.head;
    for seq in begin.next..begin.next + 1_000 {
        let (entry, id) = padded(&net, seq, prev);
        offer(&mut net, entry);
        prev = Some(id);
    }
    let burst = CHAIN_BYTES.1 as usize;
    let kept = final_bytes(&net, begin.next);
    assert!((burst / 2..=burst).contains(&kept), "{kept} bytes");
    net.transfer(2, 3, 5);
    net.run_ms(500);
    assert_eq!(net.nodes[2].lattice().pending_of(net.party(2)).count(), 0);

    // It was put off, not refused.
    net.run_ms(60_000);
    let now = net.nodes[0].lattice().chain(net.party(1)).unwrap().state().clone();
    let (entry, _) = padded(&net, now.next, now.head);
    offer(&mut net, entry);
    assert!(final_bytes(&net, begin.next) > kept);
}

#[test]
fn payments_between_members_never_wait_however_many_there_are() {
    let mut net = Net::of(3);
    let begin = net.nodes[1].lattice().chain(net.party(1)).unwrap().next_seq();
    pay(&mut net, (1, 2), 0..1_000);
    // One that was put off would be offered again two seconds later.
    net.run_ms(200);
    assert_eq!(net.nodes[1].lattice().pending_of(net.party(1)).count(), 0);
    assert!(final_bytes(&net, begin) > CHAIN_BYTES.1 as usize);
}

#[test]
fn who_asks_for_a_chains_highest_entry_is_answered_within_a_budget() {
    let mut net = Net::of(5);
    let witnesses = (0..3).map(|node| net.nodes[node].key.public()).collect();
    let change = CharterChange { witnesses: Some(witnesses), ..CharterChange::default() };
    net.ok(0, Command::ProposeCharter(Box::new(change)));
    net.run_ms(3_000);
    // Without the others nothing becomes final that this witness acknowledged.
    net.stop(1);
    net.stop(2);
    pay(&mut net, (3, 4), 0..60);
    net.run_ms(1_000);
    let chain = net.party(3);
    assert_eq!(net.nodes[0].lattice().pending_of(chain).count(), 60);
    let asked = |from| {
        let mut witness = net.nodes[0].kernel.clone();
        let (mut entries, mut bytes) = (0, 0);
        for _ in 0..1_000 {
            let event = PeerEvent::Message(Box::new(Message::WantHighest { chain }));
            let input = Input::Peer { peer: from, event };
            let effects = witness.handle(Timestamp::from_ms(net.now_ms), input);
            for (_, message) in effects.send.iter().filter(|(to, _)| *to == from) {
                bytes += encode(message).len();
                entries += usize::from(matches!(message, Message::Entry(_)));
            }
        }
        (entries, bytes)
    };
    let (entries, bytes) = asked(chain);
    assert!(entries >= 59, "its owner gets what it lost");
    assert!(bytes < 65 << 20, "{bytes} bytes");
    let (entries, bytes) = asked(net.party(4));
    assert_eq!(entries, 0, "another one's are nobody's business");
    assert!(bytes < 1 << 20, "{bytes} bytes");
}
