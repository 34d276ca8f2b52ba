//! What is remembered of jobs that are over does not grow with their number.

use tirami_core::{Digest, JobId, ModelDigest, Ppm};
use tirami_ledger::book::{ORDER_AHEAD_MAX_MS, START_WITHIN_MS};
use tirami_ledger::command::{AcceptOrder, Command, FinishJob, OrderJob, Outcome, StartJob};
use tirami_ledger::documents::FinishReason;

use super::nodes::{Mesh, SHAPE, by_alice, job_of, party_of, stream};

const MODEL: ModelDigest = ModelDigest::from_bytes([9; 32]);
/// Jobs of this test, and the time between two of them: 25 minutes in all.
const JOBS: u64 = 300;
const EVERY_MS: u64 = 5_000;

/// `p` does a job for `c`, which has its receipt then and owes it.
fn done(mesh: &mut Mesh, job: JobId) {
    let start = StartJob {
        job,
        model: MODEL,
        shape: SHAPE,
        request: Digest::of(b"request"),
        seed: 7,
        prompt_tokens: 1,
        completion_max: 1,
        continues: None,
    };
    let order = Command::OrderJob(OrderJob { start, provider: party_of("p"), price: Ppm::ONE });
    let ordered = mesh.run_as("c", &by_alice(), &order).unwrap();
    let Outcome::JobOrdered { order, .. } = ordered else { panic!("{ordered:?}") };
    let accept = Command::AcceptOrder(AcceptOrder {
        checked: None,
        order: order.bytes().to_vec(),
        signature: order.signature(),
        model: MODEL,
        shape: SHAPE,
        prompt_tokens: 1,
        completion_max: 1,
        head_at: mesh.now(),
    });
    mesh.run("p", &accept).unwrap();
    let finish = Command::FinishServed(FinishJob {
        job,
        cached_tokens: 0,
        completion_tokens: 1,
        output: stream(1),
        build: "test".into(),
        finish: FinishReason::Stop,
    });
    let served = mesh.run("p", &finish).unwrap();
    let Outcome::JobServed { receipt: Some(receipt), .. } = served else { panic!("{served:?}") };
    let settle = Command::SettleJob {
        job,
        receipt: receipt.bytes().to_vec(),
        signature: receipt.signature(),
        completion_tokens: 1,
        output: stream(1),
    };
    mesh.run("c", &settle).unwrap();
}

#[test]
fn both_nodes_remember_paid_jobs_as_long_as_their_orders_could_be_started() {
    let mut mesh = Mesh::quick(0);
    let within = |ms: u64| usize::try_from(ms / EVERY_MS + 1).unwrap();
    let at_most =
        [("c", within(START_WITHIN_MS)), ("p", within(START_WITHIN_MS + ORDER_AHEAD_MAX_MS))];
    for number in 0..JOBS {
        mesh.now_ms += EVERY_MS;
        done(&mut mesh, job_of(&number.to_string()));
        mesh.run("c", &Command::Tick).unwrap();
        mesh.sync();
        for (name, most) in at_most {
            let remembered = mesh.ledger(name).book().jobs_remembered();
            assert!(remembered <= most, "{name} remembers {remembered} after job {number}");
        }
    }
    for (name, most) in at_most {
        let remembered = mesh.ledger(name).book().jobs_remembered();
        assert!(remembered > most / 2, "{name} remembers {remembered} of {most}");
        mesh.crash(name);
    }
    assert_eq!(mesh.ledger("p").book().jobs_served(), JOBS);
}
