//! Strangers in a public mesh: what a faucet gives them, what becomes of it, and what it costs.

use tirami_core::{HOUR_MS, JobId, MINUTE_MS, PartyId, Ppm, Timestamp};
use tirami_kernel::Input;
use tirami_kernel::command::{Command, FaucetBounds};
use tirami_kernel::lattice::{Ending, Pay, PayItem, Welcome};
use tirami_kernel::mesh::{Faucet, PeerEvent};
use tirami_proto::{Message, Work};

use crate::harness::{Net, trm};

/// A founder that lets strangers in and gives them 100 TRM each, 250 TRM a day.
fn with_faucet() -> Net {
    let mut net = Net::found(1);
    let bounds = FaucetBounds { day_max: trm(250), source_max: 4 };
    net.nodes[0].settings.public = true;
    net.nodes[0].settings.faucet = Some(Faucet { amount: trm(100), work_bits: 8, bounds });
    net.settings(0);
    net
}

fn welcome(net: &Net, party: PartyId) -> Welcome {
    net.nodes[0].lattice().welcome(party).expect("a welcome line")
}

/// Lets time pass, and what fell due happen.
fn pass(net: &mut Net, ms: u64) {
    net.now_ms += ms;
    net.run_ms(3_000);
}

fn pay(net: &mut Net, from: usize, to: usize, amount: u64) {
    let job = JobId::from_bytes([from as u8; 16]);
    let items = vec![PayItem { job, amount: trm(amount) }];
    let kind = Pay::new(net.party(to), items, Ppm::ZERO).into();
    net.ok(from, Command::SignEntry { kind });
}

#[test]
fn a_faucet_gives_strangers_a_beginning_and_loses_only_what_they_do_not_settle() {
    let mut net = with_faucet();
    let strangers: Vec<usize> = (0..3).map(|_| net.stranger(&[0])).collect();
    net.run_ms(60_000);
    let begun = |net: &Net, node: usize| net.nodes[0].lattice().chain(net.party(node)).is_some();
    let lucky: Vec<usize> = strangers.iter().copied().filter(|node| begun(&net, *node)).collect();
    assert_eq!(lucky.len(), 2, "the day has room for two");
    let late = strangers.iter().copied().find(|node| !lucky.contains(node)).unwrap();
    assert!(net.nodes[late].kernel.mesh().sponsor_refused().is_some());
    assert_eq!(net.nodes[lucky[0]].kernel.ledger().fundable(), trm(100));

    // Both ask and pay; one of them also earns.
    let before = net.nodes[0].kernel.ledger().own_balance();
    pay(&mut net, lucky[0], 0, 60);
    pay(&mut net, lucky[1], 0, 40);
    net.transfer(0, lucky[0], 90);
    pass(&mut net, 11 * MINUTE_MS);
    pass(&mut net, 11 * MINUTE_MS);
    let [good, bad] = [net.party(lucky[0]), net.party(lucky[1])];
    assert_eq!(net.nodes[0].lattice().signed_balance(good), 30_000_000);
    assert_eq!(net.nodes[0].lattice().signed_balance(bad), -40_000_000);

    // A day before its time ends the one settles by itself, and the lock comes back.
    pass(&mut net, 48 * HOUR_MS);
    pass(&mut net, 11 * MINUTE_MS);
    net.run_ms(2_000);
    let settled = welcome(&net, good);
    assert!(matches!(settled.end, Some((Ending::Settled, _))) && settled.returned, "{settled:?}");
    // The other one cannot, and its lock pays for it.
    pass(&mut net, 25 * HOUR_MS);
    pass(&mut net, 2 * MINUTE_MS);
    let owed = trm(40);
    let ended = welcome(&net, bad).end.map(|(end, _)| end);
    assert_eq!(ended, Some(Ending::Defaulted { owed }));
    assert!(net.nodes[0].lattice().has_defaulted(bad));
    net.converge_ms(10_000);
    // After a day there was room again, and the one that was late had asked again by itself.
    assert!(begun(&net, late), "the one that was late has begun");
    // 100 TRM came in, 90 were given away, of the two locks 40 TRM are lost, a third is open.
    let now = net.nodes[0].kernel.ledger().own_balance();
    assert_eq!(now - before, (60 + 40 - 90 + 100 + 60 - 100) * 1_000_000);
}

/// Gives the founder a message of `from`; what it says to that.
fn tell(net: &mut Net, from: usize, message: Message) -> Vec<Message> {
    let (now, peer) = (Timestamp::from_ms(net.now_ms), net.party(from));
    let event = PeerEvent::Message(Box::new(message));
    let effects = net.nodes[0].kernel.handle(now, Input::Peer { peer, event });
    effects.send.into_iter().filter(|(to, _)| *to == peer).map(|(_, message)| message).collect()
}

/// The work that the founder asks of `newcomer` now.
fn work(net: &mut Net, newcomer: usize) -> Work {
    let said = tell(net, newcomer, Message::WantSponsor);
    let task = said.into_iter().find_map(|message| match message {
        Message::SponsorTask { challenge, bits } => Some((challenge, bits)),
        _ => None,
    });
    let (challenge, bits) = task.expect("a task");
    let (sponsor, newcomer) = (net.party(0), net.party(newcomer));
    Work { mesh: net.nodes[0].lattice().mesh(), sponsor, newcomer, challenge, bits }
}

#[test]
fn nobody_is_sponsored_for_a_wrong_number_the_challenge_of_another_key_or_an_old_one() {
    let mut net = with_faucet();
    let (one, other) = (net.stranger(&[0]), net.stranger(&[0]));
    // They are connected, and do not ask by themselves yet.
    net.run_ms(3_000);
    let nonce = |work: &Work| work.search(0, 1 << 20).expect("one in 256 fits");
    let proof = |work: &Work, nonce| Message::SponsorProof { challenge: work.challenge, nonce };
    let refused = |said: Vec<Message>| {
        let mut codes = said.into_iter().filter_map(|message| match message {
            Message::SponsorRefused { code, .. } => Some(code),
            _ => None,
        });
        codes.next()
    };
    // Says it as a peer does, so that what follows from it is stored and done; a sponsor locks
    // money.
    let is_sponsored = |net: &mut Net, node: usize, message: Message| {
        let locked = |net: &Net| net.nodes[0].lattice().totals().locked;
        let before = locked(net);
        let event = PeerEvent::Message(Box::new(message));
        let peer = net.party(node);
        net.give(0, Input::Peer { peer, event });
        net.give(0, Input::Tick);
        locked(net) > before
    };
    let task = work(&mut net, one);
    let own = work(&mut net, other);

    let stolen = Work { newcomer: net.party(other), ..task };
    let said = tell(&mut net, other, proof(&stolen, nonce(&stolen)));
    assert_eq!(refused(said).as_deref(), Some("faucet_work"));
    let taken = is_sponsored(&mut net, other, proof(&stolen, nonce(&stolen)));
    assert!(!taken, "by the challenge of another key");
    assert!(is_sponsored(&mut net, other, proof(&own, nonce(&own))), "by its own work");

    let wrong = (0..).find(|nonce| !task.fits(*nonce)).unwrap();
    let faults = net.nodes[0].kernel.mesh().faults();
    tell(&mut net, one, proof(&task, wrong));
    assert_eq!(net.nodes[0].kernel.mesh().faults(), faults + 1);
    assert!(!is_sponsored(&mut net, one, proof(&task, wrong)), "by a wrong number");

    net.now_ms += 22 * MINUTE_MS;
    let said = tell(&mut net, one, proof(&task, nonce(&task)));
    assert_eq!(refused(said).as_deref(), Some("faucet_work"));
    assert!(!is_sponsored(&mut net, one, proof(&task, nonce(&task))), "by an old challenge");
}

#[test]
fn an_enrolment_that_comes_later_is_taken_up_by_itself() {
    let mut net = with_faucet();
    let stranger = net.stranger(&[0]);
    net.run_ms(20_000);
    let party = net.party(stranger);
    assert!(net.nodes[0].lattice().line(party).is_zero());
    let enrol = tirami_kernel::lattice::Enrol { party, owner: "ada".to_owned(), line: trm(70) };
    net.ok(0, Command::SignEntry { kind: enrol.into() });
    net.run_ms(3_000);
    assert_eq!(net.nodes[0].lattice().line(party), trm(70));
}
