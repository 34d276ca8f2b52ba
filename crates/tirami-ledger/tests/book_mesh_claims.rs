//! Claims that a hostile provider shows: none binds for longer than an order may be claimed, and
//! none keeps the claims of others out.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod book_mesh;

use book_mesh::{Mesh, job_of, key_of, party_of, stream, trm};
use tirami_core::{DAY_MS, Digest, ModelDigest, Ppm, Signed};
use tirami_ledger::Rejection;
use tirami_ledger::book::PROVIDER_CLAIMS_MAX;
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::documents::{Order, SignedBytes, Voucher};
use tirami_ledger::refusal::ClaimRefusal;

/// A claim of `provider` against `consumer` that lasts so long.
fn claim(
    mesh: &mut Mesh,
    (consumer, provider): (&str, &str),
    job: &str,
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
    let voucher = Voucher { order: order.id(), n: 0, amount: trm(2), tokens: 1, stream: stream(1) };
    let voucher = Signed::sign(mesh.mesh_id(), &key_of(consumer), voucher).unwrap();
    let (order, voucher) = (SignedBytes::from(&order), SignedBytes::from(&voucher));
    mesh.run("w", &Command::ReceiveClaim { order, voucher })
}

#[test]
fn a_claim_lasts_no_longer_than_an_order_may_be_claimed() {
    let mut mesh = Mesh::quick(0);
    let longest = DAY_MS + 60_000;
    let refused = claim(&mut mesh, ("c", "p"), "late", longest + 1);
    assert_eq!(refused, Err(Rejection::Claim(ClaimRefusal::Malformed)));
    assert_eq!(claim(&mut mesh, ("c", "p"), "in time", longest), Ok(Outcome::Done));
}

#[test]
fn one_provider_does_not_fill_the_room_for_claims() {
    let mut mesh = Mesh::quick(0);
    for number in 0..PROVIDER_CLAIMS_MAX {
        let consumer = if number % 2 == 0 { "c" } else { "x" };
        let noted = claim(&mut mesh, (consumer, "p"), &number.to_string(), DAY_MS);
        assert_eq!(noted, Ok(Outcome::Done));
    }
    let refused = claim(&mut mesh, ("c", "p"), "one more", DAY_MS);
    let what = "claims of one provider";
    let full = ClaimRefusal::TooMany { what, max: PROVIDER_CLAIMS_MAX };
    assert_eq!(refused, Err(Rejection::Claim(full)));
    assert_eq!(claim(&mut mesh, ("c", "q"), "one more", DAY_MS), Ok(Outcome::Done));
}
