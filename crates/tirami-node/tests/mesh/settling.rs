//! What is paid for answers, and when: a node without a model pays before it owes as much as it
//! may, and a provider tells what it was paid.

use std::thread::sleep;
use std::time::{Duration, Instant};

use tirami_core::{JobId, Ppm};
use tirami_ledger::book::{EXPOSURE_START_ANSWERS, SETTLE_MS};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{Pay, PayItem};
use tirami_proto::ToConsumer;

use crate::cheats::{received, vouched};
use crate::jobs_support::{Mesh, ask, micro, script};
use crate::orders::{Consumer, SHAPE};
use crate::support::{SOON, until};

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

#[test]
fn short_answers_of_one_provider_are_paid_by_one_entry() {
    let mesh = Mesh::of(&[script(5, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let (payer, payee) = (user.party(), provider.party());
    // Together they cost far less than what is paid at once.
    for _ in 0..5 {
        user.post(&ask(9, false));
    }
    let costs: Vec<u64> = user.trades().iter().map(|trade| micro(&trade["trm_amount"])).collect();
    let due: u64 = costs.iter().sum();
    assert!(costs.len() == 5 && due > 0, "{costs:?}");
    mesh.clock.pass_ms(SETTLE_MS);
    let paid = || {
        user.peer.read(move |kernel| {
            let entries = kernel.ledger().lattice().final_entries();
            let own = entries.filter(|(_, entry)| entry.slot.chain == payer);
            let payouts = own.filter_map(|(_, entry)| entry.effect.payout);
            let to_it = payouts.filter(|payout| payout.payee == payee);
            to_it.map(|payout| payout.amount.micro()).collect::<Vec<_>>()
        })
    };
    until("all is paid", SOON, || paid().iter().sum::<u64>() == due);
    assert_eq!(paid(), [due], "one payment of {costs:?}");
    // A job counts as paid where an entry names it.
    let unpaid = || provider.peer.read(|kernel| kernel.ledger().book().served().len());
    until("the provider sees each of them paid", SOON, || unpaid() == 0);
}

#[test]
fn a_trade_tells_what_was_paid_beyond_what_its_provider_can_prove() {
    let mesh = Mesh::of(&[script(4_000, Duration::ZERO)]);
    let (node, provider) = (mesh.add_user(), mesh.provider(0));
    let consumer = Consumer::chatting(&node, provider.party());
    let order = consumer.sign(consumer.order(1));
    let (mut stream, first) = consumer.send(order.clone());
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    node.peer.block_on(async {
        let tokens = received(&mut stream.receive, 20).await;
        stream.send.send(&consumer.voucher(&order, 1, &tokens[..10])).await.unwrap();
    });
    // As if the provider had been killed before it kept a voucher for the other ten.
    until("the voucher is taken", SOON, || vouched(provider) == Some(10));
    drop(stream);
    until("the job has ended", SOON, || provider.served_running() == 0);
    let cost = |tokens| SHAPE.work(0, tokens).cost_ceil(Ppm::ONE);
    let items = vec![PayItem { job: JobId::from_bytes([1; 16]), amount: cost(21) }];
    let kind = Pay::new(provider.party(), items, Ppm::ZERO).into();
    node.submit(Actor::Node, Command::SignEntry { kind });
    let told = || {
        let trade = &provider.trades()[0];
        let paid = trade.get("trm_paid").filter(|paid| !paid.is_null());
        (micro(&trade["trm_amount"]), paid.map(micro))
    };
    let paid = Some(cost(21).micro());
    until("the trade tells the payment", SOON, || told() == (cost(11).micro(), paid));
}
