//! Claims that a hostile provider shows: none binds for longer than an order may be claimed, and
//! none keeps the claims of others out.

use tirami_core::{DAY_MS, Digest, ModelDigest, Ppm, Signed};
use tirami_ledger::Rejection;
use tirami_ledger::book::PROVIDER_CLAIMS_MAX;
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::documents::{Order, SignedBytes, Voucher};
use tirami_ledger::refusal::ClaimRefusal;

use super::nodes::{Mesh, job_of, key_of, party_of, stream, trm};

/// A claim of `provider` against `consumer` that lasts so long.
fn claim(
    mesh: &mut Mesh,
    (consumer, provider): (&str, &str),
    (job, amount): (&str, u64),
    lasts_ms: u64,
) -> Result<Outcome, Rejection> {
    let order = Order {
        consumer: party_of(consumer),
        provider: party_of(provider),
        job: job_of(job),
        model: ModelDigest::from_bytes([9; 32]),
        request: Digest::of(b"request"),
        seed: 0,
        price: Ppm::ONE,
        cached_price: Ppm::ONE,
        prompt_max: 1,
        max_amount: trm(5),
        start_by: mesh.now(),
        claim_by: mesh.now().plus_ms(lasts_ms),
    };
    let order = Signed::sign(mesh.mesh_id(), &key_of(consumer), order).unwrap();
    let voucher =
        Voucher { order: order.id(), n: 0, amount: trm(amount), tokens: 1, stream: stream(1) };
    let voucher = Signed::sign(mesh.mesh_id(), &key_of(consumer), voucher).unwrap();
    let (order, voucher) = (SignedBytes::from(&order), SignedBytes::from(&voucher));
    mesh.run("w", &Command::ReceiveClaim { order, voucher })
}

#[test]
fn a_claim_lasts_no_longer_than_an_order_may_be_claimed() {
    let mut mesh = Mesh::quick(0);
    let longest = DAY_MS + 60_000;
    let refused = claim(&mut mesh, ("c", "p"), ("late", 2), longest + 1);
    assert_eq!(refused, Err(Rejection::Claim(ClaimRefusal::Malformed)));
    assert_eq!(claim(&mut mesh, ("c", "p"), ("in time", 2), longest), Ok(Outcome::Done));
}

#[test]
fn claims_against_who_has_nothing_give_way() {
    let mut mesh = Mesh::quick(0);
    for number in 0..PROVIDER_CLAIMS_MAX {
        let noted = claim(&mut mesh, ("x", "p"), (&number.to_string(), 5), DAY_MS);
        assert_eq!(noted, Ok(Outcome::Done));
    }
    // Nobody enrolled x, so claims against it are worth nothing.
    let refused = claim(&mut mesh, ("x", "p"), ("one more", 5), DAY_MS);
    assert!(matches!(refused, Err(Rejection::Claim(ClaimRefusal::TooMany { .. }))), "{refused:?}");
    assert_eq!(claim(&mut mesh, ("c", "p"), ("one more", 1), DAY_MS), Ok(Outcome::Done));
    let (against, now) = (mesh.ledger("w").book(), mesh.now());
    assert_eq!(against.claims_against(party_of("c"), now).count(), 1);
    let kept = against.claims_against(party_of("x"), now).count();
    assert_eq!(kept, PROVIDER_CLAIMS_MAX as usize - 1);
}
