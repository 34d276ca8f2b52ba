//! Jobs between nodes where one of them lies: test doubles that speak the protocol against real
//! nodes.

use core::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::engines::Odd;
use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::orders::{CHAT, Consumer, MODEL, SHAPE, key_of, output, wire};
use crate::support::{SOON, joining, until};
use futures_util::future::join_all;
use tirami_core::{
    Digest, JobId, MINUTE_MS, ModelDigest, PartyId, Ppm, SecretKey, Signed, Timestamp, Trm,
};
use tirami_infer::engine::Engine;
use tirami_infer::fake::FakeEngine;
use tirami_kernel::mesh::{MeshInput, OwnOffer};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::documents::{FinishReason, Order, Receipt, Voucher};
use tirami_ledger::lattice::{Pay, PayItem, Transfer};
use tirami_node::mesh::{FrameReceiver, IncomingJob, JobStream, MeshOptions, WINDOW_TOKENS_MAX};
use tirami_proto::{Offer, ToConsumer, ToProvider, WireDocument};

/// Says that it serves, without an engine.
pub(crate) fn offer(node: &TestNode, price: Ppm) {
    let offered = Offer {
        model: MODEL,
        name: "fake".to_owned(),
        quantisation: "F32".to_owned(),
        context_tokens: 4_096,
        shape: SHAPE,
        tokens_per_second_milli: 1_000_000,
        embedding_width: 0,
        image_tokens_max: 0,
        build: "lies".to_owned(),
    };
    let offer = OwnOffer {
        price,
        cached_price: price,
        slots_free: 4,
        slots: 4,
        queue: 0,
        models: vec![offered],
        region: String::new(),
        http_endpoint: None,
        serving: true,
    };
    let handle = node.peer.node.handle();
    node.peer.block_on(handle.mesh_input(MeshInput::Offer(Some(offer)))).unwrap();
}

/// Answers one job with three tokens, and a receipt that `lie` has changed.
pub(crate) async fn lie(mut job: IncomingJob, key: SecretKey, node: tirami_core::MeshId, lie: Lie) {
    let Some(ToProvider::Request(request)) = job.receive.next().await.unwrap() else { panic!() };
    let order: Order = tirami_core::decode_body(&request.order.bytes).unwrap();
    let id = Signed::<Order>::verify(
        node,
        order.consumer.into(),
        request.order.bytes.clone(),
        request.order.signature,
    )
    .unwrap()
    .id();
    let accepted = ToConsumer::Accepted { prompt_tokens: 1, completion_max: 9, window_tokens: 32 };
    job.send.send(&accepted).await.unwrap();
    let tokens = vec![0, 1, 2];
    let frame = ToConsumer::Tokens {
        tokens: tokens.clone(),
        text: "word word word ".to_owned(),
        likelihoods: Vec::new(),
    };
    job.send.send(&frame).await.unwrap();
    let flop = SHAPE.work(0, 4);
    let mut receipt = Receipt {
        order: id,
        prompt_tokens: 1,
        cached_tokens: 0,
        completion_tokens: 3,
        flop,
        amount: flop.cost_ceil(order.price),
        output: output(&tokens),
        build: "lies".to_owned(),
        finish: FinishReason::Stop,
    };
    lie(&mut receipt);
    let receipt = wire(&Signed::sign(node, &key, receipt).unwrap());
    let end = ToConsumer::End { text: String::new(), finish: 0, receipt, stop: None };
    job.send.send(&end).await.unwrap();
    while let Ok(Some(_)) = job.receive.next().await {}
}

type Lie = fn(&mut Receipt);

/// A request for the vector of a text of three tokens.
const EMBEDDED: &[u8] = br#"{"model": "fake", "input": "abc"}"#;

/// What a cheat changes about its order.
type Change = fn(&mut Order);

#[test]
fn a_receipt_that_lies_is_refused_recorded_and_only_what_came_is_charged() {
    let mesh = Mesh::of(&[]);
    let liar = mesh.add_user();
    let party = liar.party();
    let mut incoming = liar.peer.node.incoming_jobs().unwrap();
    offer(&liar, Ppm::ONE);
    until("the offer is known", SOON, || {
        mesh.user().peer.read(move |kernel| kernel.mesh().signal(party).is_some())
    });
    let honest = SHAPE.work(0, 4).cost_ceil(Ppm::ONE).micro();
    let lies: [(Lie, &str); 5] = [
        (|_| {}, "complete"),
        (|receipt| receipt.completion_tokens = 9, "another number of tokens"),
        (|receipt| receipt.amount = Trm::from_micro(receipt.amount.micro() + 1), "amount"),
        (|receipt| receipt.order = tirami_core::DocumentId::from_bytes([1; 32]), "another order"),
        (|receipt| receipt.output = Digest::of(b"other"), "another answer"),
    ];
    for (n, (change, ended)) in lies.into_iter().enumerate() {
        let (key, id) = (key_of(&liar), liar.peer.node.handle().mesh());
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                liar.peer.block_on(async {
                    lie(incoming.recv().await.unwrap(), key, id, change).await;
                });
            });
            let answer = mesh.user().post(&ask(9, false));
            assert_eq!(answer["choices"][0]["message"]["content"], "word word word ");
            let attempt = &answer["x_tirami"]["route"]["attempts"][0];
            assert!(attempt["ended"].as_str().unwrap().contains(ended), "{attempt}");
            let charged: tirami_sdk::Amount = attempt["trm_cost"].to_string().parse().unwrap();
            assert_eq!(charged.trm().micro(), honest, "{ended}");
            serving.join().unwrap();
        });
        assert_eq!(mesh.user().refused(party, "receipts") as usize, n);
    }
}

/// The tokens that come next, as soon as there are `wanted` of them.
pub(crate) async fn received(frames: &mut FrameReceiver<ToConsumer>, wanted: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    while tokens.len() < wanted {
        match frames.next().await {
            Ok(Some(ToConsumer::Tokens { tokens: more, .. })) => tokens.extend(more),
            other => panic!("{other:?}"),
        }
    }
    tokens
}

/// The most tokens that a consumer signed for at `provider`.
pub(crate) fn vouched(provider: &TestNode) -> Option<u32> {
    provider.peer.read(|kernel| {
        let served = kernel.ledger().book().served().values();
        served.filter_map(|job| job.voucher.map(|voucher| voucher.tokens)).max()
    })
}

#[test]
fn vectors_that_are_taken_and_not_signed_for_are_lost_with_their_consumer() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let node = mesh.add_user();
    let provider = mesh.provider(0);
    let consumer = Consumer::new(&node, provider.party(), EMBEDDED.to_vec());
    let order = consumer.sign(consumer.order(1));
    let (mut stream, first) = consumer.send_to("/v1/embeddings", order);
    let Some(ToConsumer::Accepted { prompt_tokens: 3, completion_max: 0, .. }) = first else {
        panic!("{first:?}");
    };
    let vector = node.peer.block_on(stream.receive.next()).unwrap();
    let Some(ToConsumer::Vector { numbers }) = vector else { panic!("{vector:?}") };
    assert_eq!(numbers.len(), 8 * 4);
    drop(stream);
    let (party, read) = (node.party(), SHAPE.without_attention().work(0, 3).cost_ceil(Ppm::ONE));
    until("the loss is noted", SOON, || {
        provider.peer.read(move |kernel| {
            let consumers = kernel.ledger().book().consumers();
            consumers.get(&party).is_some_and(|known| known.lost == read && known.jobs == 0)
        })
    });
    assert!(provider.trades().is_empty());
}

#[test]
fn vouchers_for_vectors_that_are_refused_end_the_job_before_its_time() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let node = mesh.add_user();
    let provider = mesh.provider(0);
    let consumer = Consumer::new(&node, provider.party(), EMBEDDED.to_vec());
    let order = consumer.sign(consumer.order(1));
    let (mut stream, first) = consumer.send_to("/v1/embeddings", order.clone());
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    let read = SHAPE.without_attention().work(0, 3).cost_ceil(Ppm::ONE);
    node.peer.block_on(async {
        let vector = stream.receive.next().await.unwrap();
        assert!(matches!(vector, Some(ToConsumer::Vector { .. })), "{vector:?}");
        for n in 1..=8 {
            // It pays for all, and says that something else came.
            let voucher = consumer.voucher_with(&order, n, &[], |voucher| voucher.amount = read);
            stream.send.send(&voucher).await.unwrap();
        }
        let ended = async { while let Ok(Some(_)) = stream.receive.next().await {} };
        tokio::time::timeout(SOON, ended).await.expect("the job ends");
    });
    until("the job has ended", SOON, || provider.served_running() == 0);
    let code = "voucher_stream_differs";
    until("it is recorded", SOON, || provider.refused(node.party(), code) > 0);
}

#[test]
fn an_order_that_can_pay_for_nothing_is_refused_before_its_request_is_read() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let node = mesh.add_user();
    let consumer = Consumer::new(&node, mesh.provider(0).party(), b"no request".to_vec());
    let rows: [(Change, &str); 5] = [
        (|order| (order.price, order.cached_price) = (Ppm::new(0), Ppm::new(0)), "order_price"),
        (|order| order.max_amount = Trm::from_micro(1), "order_max_too_small"),
        (|order| order.start_by = Timestamp::from_ms(1), "order_expired"),
        (|order| order.claim_by = order.claim_by.plus_ms(1 << 40), "order_too_far"),
        (|order| order.model = ModelDigest::from_bytes([1; 32]), "order_model"),
    ];
    for path in [CHAT, "/v1/embeddings"] {
        let code = |change: Change| {
            let mut order = consumer.order(1);
            change(&mut order);
            match consumer.send_to(path, consumer.sign(order)).1 {
                Some(ToConsumer::Refused { code, .. }) => code,
                other => panic!("{other:?}"),
            }
        };
        for (change, refused) in rows {
            assert_eq!(code(change), refused, "{path}");
        }
        let code = code(|_| {});
        assert!(!code.starts_with("order_"), "its request is read: {code}");
    }
}

/// The receipt at the end of a job.
async fn receipt_of(frames: &mut FrameReceiver<ToConsumer>) -> WireDocument {
    loop {
        if let Some(ToConsumer::End { receipt, .. }) = frames.next().await.unwrap() {
            break receipt;
        }
    }
}

#[test]
fn orders_that_are_replayed_for_others_too_late_or_too_cheap_are_refused() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let node = mesh.add_user();
    let consumer = Consumer::new(
        &node,
        mesh.provider(0).party(),
        serde_json::to_vec(&ask(4_000, false)).unwrap(),
    );
    let changed = |change: Change| {
        let mut order = consumer.order(2);
        change(&mut order);
        consumer.code(consumer.sign(order))
    };
    assert_eq!(changed(|order| order.provider = order.consumer), "order_not_for_me");
    assert_eq!(changed(|order| order.start_by = Timestamp::from_ms(1)), "order_expired");
    assert_eq!(changed(|order| order.claim_by = order.claim_by.plus_ms(1 << 40)), "order_too_far");
    assert_eq!(changed(|order| order.price = Ppm::new(1)), "order_price");
    assert_eq!(changed(|order| order.prompt_max = 0), "order_prompt_too_long");
    assert_eq!(changed(|order| order.model = ModelDigest::from_bytes([1; 32])), "order_model");
    assert_eq!(changed(|order| order.request = Digest::of(b"x")), "order_other_request");
    assert_eq!(changed(|order| order.max_amount = Trm::from_micro(u64::MAX / 4)), "order_balance");
    let mut forged = consumer.sign(consumer.order(3));
    forged.signature = tirami_core::Signature::from_bytes([9; 64]);
    assert_eq!(consumer.code(forged), "order_bad_signature");

    let order = consumer.sign(consumer.order(4));
    let (mut stream, first) = consumer.send(order.clone());
    assert!(matches!(first, Some(ToConsumer::Accepted { prompt_tokens: 1, .. })), "{first:?}");
    assert_eq!(consumer.code(order.clone()), "order_replayed");
    // Whoever missed the end of it gets its receipt by asking again, also with another order.
    let receipt = node.peer.block_on(receipt_of(&mut stream.receive));
    for again in [order, consumer.sign(Order { seed: 8, ..consumer.order(4) })] {
        match consumer.send(again).1 {
            Some(ToConsumer::Refused { code, receipt: first, .. }) => {
                assert_eq!((code.as_str(), first), ("order_replayed", Some(receipt.clone())));
            }
            other => panic!("{other:?}"),
        }
    }

    // Every reason is kept for the owner, with who tried.
    let provider = mesh.provider(0);
    for code in [
        "order_not_for_me",
        "order_expired",
        "order_price",
        "order_bad_signature",
        "order_replayed",
        "order_other_request",
    ] {
        until("it is recorded", SOON, || provider.refused(node.party(), code) > 0);
    }
    assert_eq!(provider.refused(mesh.user().party(), "order_price"), 0);
}

#[test]
fn an_order_that_comes_again_when_its_job_is_forgotten_gets_the_first_receipt() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let node = mesh.add_user();
    let (provider, clock) = (mesh.provider(0), &mesh.clock);
    let body = serde_json::to_vec(&ask(9, false)).unwrap();
    let consumer = Consumer::new(&node, provider.party(), body.clone());
    let asked = |n| Order {
        start_by: clock.now().plus_ms(60_000),
        claim_by: clock.now().plus_ms(3_600_000),
        ..consumer.order(n)
    };
    let done = |order: WireDocument| {
        let (mut stream, first) = consumer.send(order);
        assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
        node.peer.block_on(receipt_of(&mut stream.receive))
    };
    let order = consumer.sign(asked(1));
    let receipt = done(order.clone());
    let due = tirami_core::decode_body::<Receipt>(&receipt.bytes).unwrap().amount;
    let items = vec![PayItem { job: JobId::from_bytes([1; 16]), amount: due }];
    let pay = Pay::new(provider.party(), items, Ppm::ZERO);
    node.submit(Actor::Node, Command::SignEntry { kind: pay.into() });
    let unpaid = || provider.peer.read(|kernel| kernel.ledger().book().served().len());
    until("the job is paid", SOON, || unpaid() == 0);
    let remembered = || provider.peer.read(|kernel| kernel.ledger().book().jobs_remembered());
    assert_eq!(remembered(), 1);

    // Its order is late now, and the next job makes the ledger forget it.
    clock.pass_ms(7 * MINUTE_MS);
    done(consumer.sign(asked(2)));
    assert_eq!(remembered(), 0);
    let made = || provider.engine.as_ref().unwrap().load().completion_tokens_total;
    let before = (made(), provider.trades().len(), unpaid());
    for again in [order, consumer.sign(Order { seed: 8, ..asked(1) })] {
        match consumer.send(again).1 {
            Some(ToConsumer::Refused { code, receipt: first, .. }) => {
                assert_eq!((code.as_str(), first), ("order_replayed", Some(receipt.clone())));
            }
            other => panic!("{other:?}"),
        }
    }
    // Whoever else names the job learns nothing of it.
    let other = Consumer::new(mesh.user(), provider.party(), body);
    match other.send(other.sign(other.order(1))).1 {
        Some(ToConsumer::Refused { code, receipt: None, .. }) => assert_eq!(code, "order_expired"),
        other => panic!("{other:?}"),
    }
    assert_eq!((made(), provider.trades().len(), unpaid()), before);
    until("it is recorded", SOON, || provider.refused(node.party(), "order_replayed") > 0);
}

/// The tokens that come next, or the receipt after the last of them.
async fn come(frames: &mut FrameReceiver<ToConsumer>) -> Result<Vec<u32>, WireDocument> {
    loop {
        match frames.next().await.unwrap() {
            Some(ToConsumer::Tokens { tokens, .. }) => return Ok(tokens),
            Some(ToConsumer::End { receipt, .. }) => return Err(receipt),
            Some(ToConsumer::Working { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_receipt_of_a_job_with_many_vouchers_is_found_where_its_order_comes_again() {
    let mesh = Mesh::of(&[script(400, Duration::ZERO)]);
    let node = mesh.add_user();
    let provider = mesh.provider(0);
    let consumer = Consumer::chatting(&node, provider.party());
    let order = consumer.sign(consumer.order(1));
    let (JobStream { mut send, mut receive }, first) = consumer.send(order.clone());
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    let mut tokens = Vec::new();
    // More documents than are looked at from one end.
    for n in 1..=70 {
        while tokens.len() < n as usize {
            tokens.extend(node.peer.block_on(come(&mut receive)).unwrap());
        }
        let voucher = consumer.voucher(&order, n, &tokens[..n as usize]);
        node.peer.block_on(send.send(&voucher)).unwrap();
        until("the voucher is taken", SOON, || vouched(provider) == Some(n));
    }
    let mut n = 70;
    let receipt = loop {
        match node.peer.block_on(come(&mut receive)) {
            Ok(more) => tokens.extend(more),
            Err(receipt) => break receipt,
        }
        n += 1;
        // It may be the last one, which the receipt need not wait for.
        drop(node.peer.block_on(send.send(&consumer.voucher(&order, n, &tokens))));
    };
    assert_eq!(tokens.len(), 400);
    match consumer.send(order).1 {
        Some(ToConsumer::Refused { code, receipt: first, .. }) => {
            assert_eq!((code.as_str(), first), ("order_replayed", Some(receipt)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn orders_of_other_meshes_and_keys_and_beyond_what_is_lent_are_refused_and_recorded() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let node = mesh.add_user();
    let provider = mesh.provider(0);
    let consumer =
        Consumer::new(&node, provider.party(), serde_json::to_vec(&ask(4_000, false)).unwrap());
    let signed_for = |mesh, order: Order| wire(&Signed::sign(mesh, &consumer.key, order).unwrap());
    let other = tirami_core::MeshId::from_bytes([7; 32]);
    assert_eq!(consumer.code(signed_for(other, consumer.order(1))), "order_bad_signature");
    let mut foreign = consumer.order(2);
    foreign.consumer = mesh.user().party();
    assert_eq!(consumer.code(consumer.sign(foreign)), "order_bad_signature");
    let mut unknown = consumer.order(3);
    unknown.consumer = PartyId::from_bytes([9; 32]);
    assert_eq!(consumer.code(consumer.sign(unknown)), "order_unknown_consumer");
    let lent = provider.peer.read(|kernel| kernel.ledger().book().serving().exposure_start);
    let mut dear = consumer.order(4);
    dear.max_amount = Trm::from_micro(lent.micro() + 1);
    assert_eq!(consumer.code(consumer.sign(dear)), "order_exposure");

    // A provider that wants fresher word of the consumer's head than there can be.
    let mut policy = provider.peer.read(|kernel| kernel.ledger().book().serving().clone());
    policy.fresh_ms = 0;
    provider.submit(Actor::Node, Command::SetServing(policy));
    assert_eq!(consumer.code(consumer.sign(consumer.order(5))), "order_stale_head");
    let recorded = ["order_unknown_consumer", "order_exposure", "order_stale_head"];
    for code in recorded {
        until("it is recorded", SOON, || provider.refused(node.party(), code) > 0);
    }
    let metrics = provider.text("/metrics");
    assert!(metrics.contains("tirami_peer_refusals_total{code=\"order_exposure\"} 1"), "{metrics}");
    assert_eq!(provider.peer.read(|kernel| kernel.ledger().book().served().len()), 0);
}

#[test]
fn a_consumer_that_keeps_silent_is_claimed_held_back_and_refused_until_it_pays() {
    // Longer than any window: the job is not over while there are vouchers to come.
    let mesh = Mesh::of(&[script(4_000, Duration::ZERO)]);
    let node = mesh.add_user();
    let (provider, witness) = (mesh.provider(0), mesh.user());
    let (party, clock) = (node.party(), &mesh.clock);
    let consumer = Consumer::chatting(&node, provider.party());
    let order = consumer.sign(consumer.order(1));
    let (mut stream, first) = consumer.send(order.clone());
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    let mut tokens = Vec::new();
    node.peer.block_on(async {
        tokens = received(&mut stream.receive, 20).await;
        // One that falls is refused and recorded, and the one before it stands.
        stream.send.send(&consumer.voucher(&order, 1, &tokens[..20])).await.unwrap();
        stream.send.send(&consumer.voucher(&order, 2, &tokens[..10])).await.unwrap();
    });
    until("the falling voucher is recorded", SOON, || provider.refused(party, "voucher_falls") > 0);
    drop(stream);
    until("the job has ended", SOON, || provider.served_running() == 0);

    // Ten minutes later its provider shows the voucher to the witness.
    clock.pass_ms(11 * MINUTE_MS);
    let claims = || {
        let read = move |kernel: &tirami_kernel::Kernel| {
            kernel.ledger().book().claims_against(party, kernel.clock()).count()
        };
        witness.peer.read(read)
    };
    until("the witness knows the claim", SOON, || claims() == 1);
    clock.pass_ms(11 * MINUTE_MS);
    let asked = |n| Order {
        start_by: clock.now().plus_ms(60_000),
        claim_by: clock.now().plus_ms(3_600_000),
        ..consumer.order(n)
    };
    until("its orders are refused", SOON, || {
        consumer.code(consumer.sign(asked(2))) == "order_unpaid_claim"
    });
    // The witness holds what it signs, and lets a run through that pays.
    let sign = |kind| node.submit(Actor::Node, Command::SignEntry { kind });
    let gift = Transfer { payee: witness.party(), amount: Trm::from_micro(1) };
    sign(gift.into());
    let pending = || {
        let own = move |kernel: &tirami_kernel::Kernel| {
            kernel.ledger().lattice().pending_of(party).count()
        };
        node.peer.read(own)
    };
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(pending(), 1, "the debtor's entry waits");
    let due = SHAPE.work(0, 21).cost_ceil(Ppm::ONE);
    let items = vec![PayItem { job: JobId::from_bytes([1; 16]), amount: due }];
    sign(Pay::new(provider.party(), items, Ppm::ZERO).into());
    until("both are final", SOON, || pending() == 0);
    until("the claim is answered", SOON, || claims() == 0);
    let mut accepted = None;
    until("it is served again", SOON, || {
        accepted = consumer.send(consumer.sign(asked(3))).1;
        matches!(accepted, Some(ToConsumer::Accepted { .. }))
    });
}

#[test]
fn a_provider_killed_in_the_middle_claims_its_last_voucher_from_a_silent_consumer() {
    let mesh = Mesh::of(&[]);
    let (node, witness, clock) = (mesh.add_user(), mesh.user(), &mesh.clock);
    let start_in = |dir| {
        let invite = witness.peer.node.invite().unwrap();
        let options = MeshOptions { clock: clock.clock(), ..joining(invite) };
        let engine = FakeEngine::new(script(4_000, Duration::ZERO));
        TestNode::start_in(dir, options, Some(Arc::new(engine)))
    };
    let provider = start_in(tempfile::tempdir().unwrap());
    let (party, id) = (node.party(), provider.party());
    until("its offer is known", SOON, || node.knows(id));
    let consumer = Consumer::chatting(&node, id);
    let order = consumer.sign(consumer.order(1));
    let (mut stream, first) = consumer.send(order.clone());
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    let mut tokens = Vec::new();
    node.peer.block_on(async {
        tokens = received(&mut stream.receive, 20).await;
        stream.send.send(&consumer.voucher(&order, 1, &tokens[..20])).await.unwrap();
    });
    until("the voucher is taken", SOON, || vouched(&provider) == Some(20));
    assert_eq!(provider.served_running(), 1);
    let dir = provider.killed();
    drop(stream);

    let provider = start_in(dir);
    until("the job has ended", SOON, || provider.served_running() == 0);
    clock.pass_ms(11 * MINUTE_MS);
    let claimed = || {
        let read = move |kernel: &tirami_kernel::Kernel| {
            let claims = kernel.ledger().book().claims_against(party, kernel.clock());
            claims.map(|(_, left)| left).collect::<Vec<_>>()
        };
        witness.peer.read(read)
    };
    until("the witness knows the claim", SOON, || !claimed().is_empty());
    assert_eq!(claimed(), [SHAPE.work(0, 21).cost_ceil(Ppm::ONE)]);
}

#[test]
fn a_consumer_that_signs_nothing_gets_one_window_and_keeps_no_engine_busy() {
    let mesh = Mesh::of(&[script(4_000, Duration::ZERO)]);
    let node = mesh.add_user();
    let provider = mesh.provider(0);
    let consumer = Consumer::chatting(&node, provider.party());
    let order = consumer.sign(consumer.order(5));
    let (mut stream, first) = consumer.send(order.clone());
    let Some(ToConsumer::Accepted { window_tokens, .. }) = first else { panic!("{first:?}") };
    assert!((1..=WINDOW_TOKENS_MAX).contains(&window_tokens));
    let receive = |stream: &mut JobStream, wanted: usize| {
        node.peer.block_on(received(&mut stream.receive, wanted))
    };
    let mut tokens = receive(&mut stream, window_tokens as usize);
    std::thread::sleep(Duration::from_millis(500));
    let made = || provider.engine.as_ref().unwrap().load().completion_tokens_total;
    // The window grows with the time that a round trip takes; what the engine made ahead waits in
    // its own bounded queue.
    let ahead = u64::from(WINDOW_TOKENS_MAX) + tirami_infer::engine::PIECES_AHEAD_MAX as u64 + 1;
    assert!(made() <= ahead, "{}", made());

    // A voucher over what was not sent is worth nothing; a right one moves the window.
    let id = Signed::<Order>::verify(
        node.peer.node.handle().mesh(),
        node.party().into(),
        order.bytes.clone(),
        order.signature,
    )
    .unwrap()
    .id();
    let voucher = |n: u32, count: u32, tokens: &[u32]| {
        let voucher = Voucher {
            order: id,
            n,
            amount: SHAPE.work(0, 1 + count).cost_ceil(Ppm::ONE),
            tokens: count,
            stream: output(tokens),
        };
        let mesh = node.peer.node.handle().mesh();
        ToProvider::Voucher(wire(&Signed::sign(mesh, &consumer.key, voucher).unwrap()))
    };
    node.peer.block_on(async {
        stream.send.send(&voucher(0, 3_000, &tokens)).await.unwrap();
        stream.send.send(&voucher(1, 20, &tokens[..20])).await.unwrap();
    });
    let more = receive(&mut stream, 20);
    tokens.extend(more);
    until("the right voucher counts", SOON, || vouched(provider) == Some(20));

    drop(stream);
    until("the engine rests", Duration::from_secs(3), || provider.running() == 0);
    until("the job has ended", SOON, || provider.served_running() == 0);
    let due = provider.peer.read(|kernel| {
        let served = kernel.ledger().book().served().values();
        served.filter_map(|job| job.end.map(|end| end.due)).max()
    });
    assert_eq!(due, Some(SHAPE.work(0, 21).cost_ceil(Ppm::ONE)));
}

#[test]
fn a_consumer_that_floods_its_job_keeps_nobody_waiting_and_loses_it() {
    let mesh = Mesh::of(&[script(4_000, Duration::ZERO)]);
    let node = mesh.add_user();
    let provider = mesh.provider(0);
    let consumer = Consumer::chatting(&node, provider.party());
    let order = consumer.sign(consumer.order(1));
    let (stream, first) = consumer.send(order.clone());
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    let JobStream { mut send, mut receive } = stream;
    let mut tokens = Vec::new();
    node.peer.block_on(async {
        tokens = received(&mut receive, 20).await;
        // The same word again and again buys nothing, and the provider still says that it lives.
        let again = consumer.voucher(&order, 1, &tokens[..20]);
        let alive = Cell::new(0);
        let reading = async {
            while alive.get() < 3 {
                let frame = receive.next().await.unwrap().expect("the job goes on");
                let is_word = matches!(frame, ToConsumer::Working { .. });
                alive.set(alive.get() + u32::from(is_word));
            }
        };
        // To the end of a frame, or the next one would begin in its middle.
        let flooding = async {
            while alive.get() < 3 {
                send.send(&again).await.unwrap();
            }
        };
        let both = async { tokio::join!(reading, flooding) };
        tokio::time::timeout(SOON, both).await.expect("the provider has time for a word");
        // Vouchers that no honest consumer signs end the job.
        let ended = async { while let Ok(Some(_)) = receive.next().await {} };
        let wrong = consumer.voucher(&order, 2, &tokens[..1].repeat(3_000));
        let flooding = async { while send.send(&wrong).await.is_ok() {} };
        let both = async { tokio::join!(ended, flooding) };
        tokio::time::timeout(SOON, both).await.expect("the job ends");
    });
    until("the engine rests", SOON, || provider.running() == 0);
    until("the job has ended", SOON, || provider.served_running() == 0);
    let code = "voucher_more_than_sent";
    until("it is recorded", SOON, || provider.refused(node.party(), code) > 0);
}

/// Longer than a consumer keeps its place by signing too slowly, on a busy machine.
pub(crate) const LOSES_WITHIN: Duration = Duration::from_secs(180);

/// Signs for `more` tokens with every fifth word that the provider lives, or for as many as came.
/// Says whether the job still runs, some words after another one's job was `lost`.
pub(crate) async fn signs_slowly(
    consumer: &Consumer<'_>,
    (order, stream): (&WireDocument, &mut JobStream),
    more: usize,
    lost: &Cell<bool>,
) -> bool {
    let (mut tokens, mut signed, mut words, mut since) = (Vec::new(), 0_usize, 0, 0);
    while since < 10 {
        match stream.receive.next().await {
            Ok(Some(ToConsumer::Tokens { tokens: came, .. })) => tokens.extend(came),
            Ok(Some(ToConsumer::Working { .. })) => {
                words += 1;
                since += u32::from(lost.get());
                if words % 5 == 0 {
                    signed = tokens.len().min(signed.saturating_add(more));
                    let voucher = consumer.voucher(order, words / 5, &tokens[..signed]);
                    // The provider may have ended the job; that is what is read next.
                    drop(stream.send.send(&voucher).await);
                }
            }
            Ok(None) => {
                lost.set(true);
                return false;
            }
            other => panic!("{other:?}"),
        }
    }
    true
}

#[test]
fn who_signs_slowly_loses_its_place_to_those_who_wait_for_it_and_to_nobody_else() {
    let rows = [
        ("a token at a time, and somebody waits", 1, 1, false),
        ("a token at a time, and nobody waits", 1, 0, true),
        ("as rarely, for all that came, and somebody waits", usize::MAX, 1, true),
    ];
    let engines = rows.map(|_| Odd::new(4_000, 0));
    let mesh = Mesh::with(engines.iter().map(|one| Arc::clone(one) as Arc<dyn Engine>).collect());
    let node = mesh.add_user();
    let mut jobs = Vec::new();
    for (n, (_, _, waiting, _)) in rows.into_iter().enumerate() {
        let consumer = Consumer::chatting(&node, mesh.provider(n).party());
        let order = consumer.sign(consumer.order(n as u8 + 1));
        let (stream, first) = consumer.send(order.clone());
        assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
        engines[n].queued.store(waiting, Ordering::Relaxed);
        jobs.push((consumer, order, stream));
    }
    let lost = Cell::new(false);
    let kept = node.peer.block_on(async {
        let signing = jobs.iter_mut().zip(rows);
        let signing = signing.map(|((consumer, order, stream), (_, more, ..))| {
            signs_slowly(consumer, (&*order, stream), more, &lost)
        });
        tokio::time::timeout(LOSES_WITHIN, join_all(signing)).await.expect("one loses its place")
    });
    for (n, ((what, .., keeps), kept)) in rows.into_iter().zip(kept).enumerate() {
        assert_eq!(kept, keeps, "{what}");
        let provider = mesh.provider(n);
        until("its engine is free, or busy with it", SOON, || {
            (provider.running() == 1, provider.served_running() == 1) == (keeps, keeps)
        });
    }
}
