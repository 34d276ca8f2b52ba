//! A job between two nodes whose consumer falls silent: the claim reaches the witness, and the
//! debtor pays when it is back.

use tirami_core::{Digest, JobId, ModelDigest, ModelShape, Ppm};
use tirami_kernel::Input;
use tirami_kernel::book::{Scope, ServingPolicy};
use tirami_kernel::command::{AcceptOrder, Actor, Command, OrderJob, Outcome, StartJob};

use crate::harness::{Net, key, trm};

const MODEL: ModelDigest = ModelDigest::from_bytes([9; 32]);
pub(crate) const JOB: JobId = JobId::from_bytes([5; 16]);
/// One token is 1 TRM at the price of one.
const SHAPE: ModelShape = ModelShape {
    parameters_active: 500_000_000,
    layers: 0,
    attention_width: 0,
    context_max: 1_024,
};

fn claims(net: &Net) -> usize {
    let now = net.nodes[0].kernel.clock();
    net.nodes[0].kernel.ledger().book().claims_against(net.party(1), now).count()
}

/// Node 1 orders a job of node 2 and signs for five tokens.
pub(crate) fn vouched(net: &mut Net) {
    let agent = key(99);
    let id = agent.public().agent();
    net.give(1, Input::AddAgentKey(agent));
    net.ok(1, Command::CreateAgent { agent: id, name: "alice".to_owned() });
    net.ok(1, Command::FundAgent { agent: id, amount: trm(500) });
    let serving = ServingPolicy {
        exposure_start: trm(400),
        exposure_max: trm(400),
        exposure_unknown_day: trm(400),
        jobs_max: 8,
        paused: false,
        ..ServingPolicy::default()
    };
    net.ok(2, Command::SetServing(serving));
    net.run_ms(31_000);
    let start = StartJob {
        job: JOB,
        model: MODEL,
        shape: SHAPE,
        request: Digest::of(b"request"),
        seed: 0,
        prompt_tokens: 3,
        completion_max: 10,
        continues: None,
    };
    let order = OrderJob { start, provider: net.party(2), price: Ppm::ONE };
    let caller = Actor::Caller { key: None, agent: Some(id), scope: Scope::Inference };
    let Ok(Outcome::JobOrdered { order, .. }) = net.ask(1, caller, Command::OrderJob(order)) else {
        panic!("not ordered");
    };
    let head_at = net.nodes[2].kernel.head_at(net.party(1)).expect("compared with the witness");
    net.ok(
        2,
        Command::AcceptOrder(AcceptOrder {
            checked: None,
            order: order.bytes().to_vec(),
            signature: order.signature(),
            model: MODEL,
            shape: SHAPE,
            prompt_tokens: 3,
            completion_max: 10,
            head_at,
        }),
    );
    let stream = Digest::of(b"five tokens");
    let deliver =
        Command::Deliver { job: JOB, completion_tokens: 5, stream, prompt_tokens: Some(3) };
    let Outcome::VoucherSigned { voucher } = net.ok(1, deliver) else { panic!("no voucher") };
    let (bytes, signature) = (voucher.bytes().to_vec(), voucher.signature());
    net.ok(2, Command::TakeVoucher { bytes, signature, stream, sent: 5 });
}

#[test]
fn a_claim_reaches_the_witness_and_ends_when_the_debtor_has_paid() {
    let mut net = Net::of(3);
    vouched(&mut net);
    net.stop(1);
    net.ok(2, Command::AbandonServed { job: JOB, sent: 5 });
    assert_eq!(claims(&net), 0);
    net.run_ms(11 * 60_000);
    assert_eq!(claims(&net), 1, "the witness has not heard of the claim");
    net.start(1, None);
    net.ok(1, Command::Recover);
    net.run_ms(60_000);
    assert_eq!(claims(&net), 0);
    let earned = net.nodes[2].kernel.ledger().book().earned_total();
    assert_eq!(earned, trm(8));
    net.converge_ms(120_000);
}
