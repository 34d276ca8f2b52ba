//! Claims as others see them: who hears of one, and what hostile ones do.

use tirami_core::{Digest, JobId, ModelDigest, ModelShape, PartyId, Ppm, Signed, Timestamp, Trm};
use tirami_kernel::Input;
use tirami_kernel::command::Command;
use tirami_kernel::documents::{Order, Voucher};
use tirami_kernel::event::{BookEvent, Event};
use tirami_kernel::lattice::Rekey;
use tirami_kernel::mesh::{CLAIMS_TAKEN, PeerEvent};
use tirami_ledger::refusal::OrderRefusal;
use tirami_proto::{Message, WireClaim, WireDocument, encode};

use crate::harness::{Net, key, trm};
use crate::jobs::{JOB, vouched};

const HOUR_MS: u64 = 3_600_000;

fn order(net: &Net, consumer: PartyId, provider: PartyId) -> Order {
    let now = Timestamp::from_ms(net.now_ms);
    Order {
        consumer,
        provider,
        job: JobId::from_bytes([9; 16]),
        model: ModelDigest::from_bytes([9; 32]),
        request: Digest::of(b"request"),
        seed: 0,
        price: Ppm::ONE,
        cached_price: Ppm::ONE,
        prompt_max: 1,
        max_amount: trm(100),
        start_by: now.plus_ms(60_000),
        claim_by: now.plus_ms(HOUR_MS),
    }
}

/// Whether `provider` would serve `consumer`, both by their numbers.
pub(crate) fn would_take(
    net: &Net,
    (consumer, provider): (usize, usize),
) -> Result<(), OrderRefusal> {
    let order = order(net, net.party(consumer), net.party(provider));
    let now = Timestamp::from_ms(net.now_ms);
    let shape =
        ModelShape { parameters_active: 1, layers: 1, attention_width: 1, context_max: 100 };
    net.nodes[provider].kernel.ledger().check_consumer(now, &order, now, Some((shape, 1)))
}

/// What node 1 signed for a job of `provider`, as its first key signs.
fn claim(net: &Net, provider: usize, job: u16, (micro, lasts_ms): (u64, u64)) -> WireClaim {
    let (mesh, secret) = (net.nodes[0].lattice().mesh(), &net.nodes[1].key);
    let mut order = order(net, net.party(1), net.party(provider));
    let [high, low] = job.to_be_bytes();
    order.job = JobId::from_bytes([high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    order.claim_by = Timestamp::from_ms(net.now_ms + lasts_ms);
    let order = Signed::sign(mesh, secret, order).unwrap();
    let (amount, stream) = (Trm::from_micro(micro), Digest::of(b"stream"));
    let voucher = Voucher { order: order.id(), n: 0, amount, tokens: 1, stream };
    let voucher = Signed::sign(mesh, secret, voucher).unwrap();
    WireClaim {
        order: WireDocument { bytes: order.bytes().to_vec(), signature: order.signature() },
        voucher: WireDocument { bytes: voucher.bytes().to_vec(), signature: voucher.signature() },
    }
}

/// Node 0, the witness, gets a claim from the node `from`.
fn show(net: &mut Net, from: usize, claim: WireClaim) {
    let event = PeerEvent::Message(Box::new(Message::Claim(claim)));
    let peer = net.party(from);
    net.give(0, Input::Peer { peer, event });
}

/// Claims against node 1 at the witness so many milliseconds from now.
fn claims_in(net: &Net, ms: u64) -> usize {
    let at = Timestamp::from_ms(net.now_ms + ms);
    net.nodes[0].kernel.ledger().book().claims_against(net.party(1), at).count()
}

fn noted(net: &Net) -> usize {
    let noted = |event: &&Event| matches!(event, Event::Book(BookEvent::ClaimNoted { .. }));
    net.nodes[0].store.iter().filter(noted).count()
}

#[test]
fn a_consumer_that_changes_its_key_makes_no_offender_of_its_provider() {
    let mut net = Net::of(3);
    vouched(&mut net);
    let (consumer, new) = (net.party(1), key(77).public());
    net.ok(1, Command::SignEntry { kind: Rekey { key: new }.into() });
    net.run_ms(2_000);
    for node in &net.nodes {
        assert_eq!(node.lattice().chain(consumer).unwrap().key(), new);
    }
    net.stop(1);
    net.ok(2, Command::AbandonServed { job: JOB, sent: 5 });
    let faults = net.nodes[0].kernel.mesh().faults();
    net.run_ms(11 * 60_000);
    net.split(&[&[0], &[2]]);
    net.run_ms(1_000);
    net.split(&[]);
    net.run_ms(60_000);
    // What the old key signed is void, so it is not shown to anybody.
    assert_eq!(net.sent.get("claim"), None);
    // Whoever has not heard of the new key shows it, and again.
    for job in 0..8 {
        let claim = claim(&net, 2, job, (1_000_000, HOUR_MS));
        show(&mut net, 2, claim);
    }
    assert_eq!(noted(&net), 0);
    assert_eq!(net.nodes[0].kernel.mesh().faults(), faults);
    assert!(net.nodes[0].kernel.mesh().is_open(net.party(2)));
    net.transfer(2, 0, 1);
    net.run_ms(1_000);
    assert_eq!(net.nodes[2].lattice().pending_of(net.party(2)).count(), 0);
}

#[test]
fn one_peer_makes_few_records_of_claims_and_keeps_nobody_elses_out() {
    let mut net = Net::of(4);
    for more in 0..1_000 {
        let raised = claim(&net, 2, 0, (1_000_000 + more, HOUR_MS));
        show(&mut net, 2, raised);
    }
    assert_eq!(noted(&net), 1, "less than a tenth more is worth no record");
    // Each is worth more than all before it, so there is always one that gives way.
    for job in 1..4_000 {
        let other = claim(&net, 2, job, (2_000_000 + u64::from(job), HOUR_MS));
        show(&mut net, 2, other);
    }
    let (_, burst) = CLAIMS_TAKEN;
    assert_eq!(noted(&net), burst as usize);
    let other = claim(&net, 3, 0, (9_000_000, HOUR_MS));
    show(&mut net, 3, other);
    assert_eq!(noted(&net), burst as usize + 1);
    assert_eq!(net.nodes[0].kernel.ledger().check_invariants(), Ok(()));
}

#[test]
fn no_other_order_of_the_debtor_ends_what_is_claimed() {
    for short_first in [true, false] {
        let mut net = Net::of(3);
        let honest = (5_000_000, HOUR_MS);
        let lie = (50_000_000, 1_000);
        let claims = if short_first { [lie, honest] } else { [honest, lie] };
        for said in claims {
            let claim = claim(&net, 2, 7, said);
            show(&mut net, 2, claim);
        }
        assert_eq!(claims_in(&net, 30 * 60_000), 1, "the short one first: {short_first}");
    }
}

#[test]
fn providers_that_are_no_witnesses_hear_of_a_claim_and_refuse_the_debtor() {
    let mut net = Net::of(5);
    vouched(&mut net);
    net.stop(1);
    // One of them is away when the others hear of it.
    net.stop(4);
    net.ok(2, Command::AbandonServed { job: JOB, sent: 5 });
    net.run_ms(11 * 60_000);
    net.start(4, None);
    net.run_ms(12 * 60_000);
    for provider in [3, 4] {
        let refused = would_take(&net, (1, provider));
        let is_claimed = matches!(refused, Err(OrderRefusal::UnpaidClaim { .. }));
        assert!(is_claimed, "node {provider}: {refused:?}");
    }
}

/// Claims that the witness sends to node 3 while it handles an input, and their bytes.
fn told_by_witness(net: &mut Net, input: Input) -> (usize, usize) {
    let (to, now) = (net.party(3), Timestamp::from_ms(net.now_ms));
    let effects = net.nodes[0].kernel.handle(now, input);
    let told = effects.send.iter().filter(|(party, _)| *party == to);
    let told = told.filter(|(_, message)| matches!(message, Message::Claim(_)));
    let bytes: Vec<usize> = told.map(|(_, message)| encode(message).len()).collect();
    (bytes.len(), bytes.iter().sum())
}

fn from_node(net: &Net, node: usize, claim: WireClaim) -> Input {
    let event = PeerEvent::Message(Box::new(Message::Claim(claim)));
    Input::Peer { peer: net.party(node), event }
}

#[test]
fn a_claim_that_lapses_at_once_is_not_passed_on_and_one_that_lasts_is_told_after_it() {
    let mut net = Net::of(4);
    let short = from_node(&net, 2, claim(&net, 2, 0, (1_000_000, 3_000)));
    assert_eq!(told_by_witness(&mut net, short).0, 0);
    let lasting = from_node(&net, 2, claim(&net, 2, 0, (2_000_000, HOUR_MS)));
    assert_eq!(told_by_witness(&mut net, lasting).0, 1);
}

#[test]
fn many_claims_at_once_are_passed_on_a_little_at_a_time() {
    let mut net = Net::of(4);
    let (mut told, mut bytes) = (0, 0);
    for job in 0..1_000 {
        let one = from_node(&net, 2, claim(&net, 2, job, (1_000_000 + u64::from(job), HOUR_MS)));
        let (count, more) = told_by_witness(&mut net, one);
        (told, bytes) = (told + count, bytes + more);
    }
    assert!(bytes <= 256 << 10, "{bytes} bytes between two beats");
    assert!(told > 200, "{told}");
    let before = told;
    for _ in 0..4 {
        net.now_ms += 500;
        told += told_by_witness(&mut net, Input::Tick).0;
    }
    assert!(told > before, "the rest was not passed on");
}
