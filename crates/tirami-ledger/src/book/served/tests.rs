//! What is owed, lost and won back by single jobs.

use tirami_core::Signature;

use super::*;

const CONSUMER: PartyId = PartyId::from_bytes([7; 32]);
const NOW: Timestamp = Timestamp::from_ms(1_000_000);
/// What the consumer may owe in these tests, in µTRM.
const EXPOSURE: u64 = 1_000;

fn micro(amount: u64) -> Trm {
    Trm::from_micro(amount)
}

fn job(number: u64) -> JobId {
    JobId::from_bytes(u128::from(number).to_be_bytes())
}

/// A node that serves, and what it knows of the consumer.
struct Node(Served);

impl Node {
    fn new() -> Self {
        let mut served = Served::default();
        served.policy.exposure_start = micro(EXPOSURE);
        served.policy.exposure_max = micro(EXPOSURE);
        served.policy.exposure_unknown_day = micro(100);
        served.policy.jobs_max = 1;
        Self(served)
    }

    fn known(&self) -> Consumer {
        assert!(self.0.is_consistent());
        self.0.consumers.get(&CONSUMER).copied().unwrap_or_default()
    }

    /// Takes an order for at most `max` and a voucher for `signed`.
    fn accept(&mut self, number: u64, max: u64, signed: u64, enrolled: bool) {
        let demand = Demand { consumer: CONSUMER, max_amount: micro(max), enrolled };
        assert_eq!(self.0.check_exposure(NOW, &demand), Ok(()), "job {number}");
        let bytes = SignedBytes { bytes: Vec::new(), signature: Signature::from_bytes([0; 64]) };
        let mut order = [0; 32];
        order[..8].copy_from_slice(&number.to_be_bytes());
        self.0.accept(
            NOW,
            &ServedAccepted {
                job: job(number),
                consumer: CONSUMER,
                order: DocumentId::from_bytes(order),
                order_bytes: bytes.clone(),
                model: ModelDigest::from_bytes([9; 32]),
                shape: ModelShape {
                    parameters_active: 1,
                    layers: 0,
                    attention_width: 0,
                    context_max: 1,
                },
                price: Ppm::ONE,
                prompt_tokens: 1,
                completion_max: 1,
                max_amount: demand.max_amount,
                claim_by: NOW.plus_ms(DAY_MS),
                enrolled,
                at: NOW,
            },
        );
        let head = VoucherHead { n: 0, amount: micro(signed), tokens: 1 };
        self.0.raise(job(number), head, &bytes);
    }

    /// Ends a job by its voucher; so much more was sent.
    fn end(&mut self, number: u64, unsigned: u64) {
        let mut ended = self.0.jobs[&job(number)].ended_by_voucher(job(number), NOW);
        ended.unsigned = micro(unsigned);
        self.0.finish(&ended);
    }

    fn pay(&mut self, number: u64, amount: u64) {
        self.0.pay(job(number), CONSUMER, micro(amount));
    }
}

#[test]
fn a_consumer_that_pays_nothing_leaves_room_for_others() {
    let [debtor, other] = [1, 2].map(|byte| PartyId::from_bytes([byte; 32]));
    let jobs = SERVED_UNPAID_PER_CONSUMER_MAX;
    let mut served = Served::default();
    served.policy.jobs_max = u32::MAX;
    served.consumers.insert(debtor, Consumer { jobs, ..Consumer::default() });
    let (now, max) = (Timestamp::from_ms(1), jobs);
    let what = "jobs that this consumer has not paid";
    assert_eq!(served.check_room(now, debtor), Err(OrderRefusal::TooMany { what, max }));
    assert_eq!(served.check_room(now, other), Ok(()));
    served.consumers.insert(debtor, Consumer { jobs: jobs - 1, ..Consumer::default() });
    assert_eq!(served.check_room(now, debtor), Ok(()));
}

#[test]
fn a_consumer_whose_jobs_end_at_once_leaves_room_for_others() {
    let [busy, other] = [1, 2].map(|byte| PartyId::from_bytes([byte; 32]));
    let mut served = Served::default();
    served.policy.jobs_max = 1;
    let until = NOW.plus_ms(START_WITHIN_MS);
    let end = |served: &mut Served, consumer, number: u32| {
        let done = Done { consumer, receipt: None, due: Trm::ZERO, until };
        served.done.insert(job(number.into()), done);
        served.done_until.insert((until, job(number.into())));
    };
    let max = SERVED_DONE_MAX / 4;
    for number in 1..3 * max {
        end(&mut served, busy, number);
    }
    assert_eq!(served.check_room(NOW, busy), Ok(()));
    end(&mut served, busy, 0);
    let what = "paid jobs of this consumer whose order could come again";
    assert_eq!(served.check_room(NOW, busy), Err(OrderRefusal::TooMany { what, max }));
    for number in 0..max {
        assert_eq!(served.check_room(NOW, other), Ok(()), "{number}");
        end(&mut served, other, 3 * max + number);
    }
    assert!(matches!(served.check_room(NOW, other), Err(OrderRefusal::TooMany { .. })));
    assert_eq!(served.check_room(until, busy), Ok(()));
    served.forget_passed(until);
    assert_eq!(served.done.len(), SERVED_DONE_MAX as usize - FORGOTTEN_PER_JOB);
    assert!(served.done.is_consistent() && served.done_until.len() == served.done.len());
    // A snapshot brings the counts back.
    let bytes = minicbor::to_vec(&served.done).unwrap();
    assert_eq!(minicbor::decode::<DoneJobs>(&bytes).unwrap(), served.done);
}

#[test]
fn what_is_paid_beyond_the_last_voucher_that_came_is_not_lost() {
    for is_paid_before_its_end in [false, true] {
        let mut node = Node::new();
        node.accept(1, 60, 20, false);
        if is_paid_before_its_end {
            node.pay(1, 36);
        }
        // 40 were sent, 20 of them after the voucher.
        node.end(1, 20);
        if !is_paid_before_its_end {
            assert_eq!((node.known().lost, node.known().owed), (micro(20), micro(40)));
            node.pay(1, 36);
        }
        let Consumer { owed, lost, settled, jobs, .. } = node.known();
        assert_eq!((owed, lost, settled, jobs), (micro(4), micro(4), 1, 0));
        assert_eq!(node.0.unknown_left(NOW), micro(96));
    }
}

#[test]
fn a_payment_beyond_what_its_job_lost_pays_off_older_losses() {
    let mut node = Node::new();
    node.accept(1, 60, 0, true);
    node.end(1, 30);
    node.accept(2, 60, 20, true);
    node.end(2, 10);
    node.pay(2, 35);
    assert_eq!((node.known().lost, node.known().owed), (micro(25), micro(25)));
}

#[test]
fn a_consumer_that_stops_some_answers_is_served_for_ever() {
    let mut node = Node::new();
    for number in 0..20_000 {
        node.accept(number, 300, 200, true);
        node.end(number, if number % 20 == 0 { 32 } else { 0 });
        node.pay(number, 200);
    }
    assert!(node.known().lost < micro(100));
}

#[test]
fn a_cheat_gets_its_exposure_and_a_hundredth_of_what_it_pays() {
    let mut node = Node::new();
    let (mut taken, mut paid) = (0, 0);
    for number in 0..5_000 {
        if node.known().owed <= micro(EXPOSURE - 200) {
            node.accept(number, 100, 0, true);
            node.end(number, 100);
            taken += 100;
        } else {
            node.accept(number, 100, 100, true);
            node.end(number, 0);
            node.pay(number, 100);
            paid += 100;
        }
        assert!(taken <= EXPOSURE + paid / 100, "{taken} for {paid}");
    }
    assert!(taken > EXPOSURE, "what it paid counts");
}

#[test]
fn what_is_paid_late_or_after_a_default_takes_nothing_off_what_was_lost() {
    let table = [(false, false, 41), (true, false, 50), (false, true, 50)];
    for (claimed, defaulted, lost) in table {
        let mut node = Node::new();
        node.accept(1, 50, 0, true);
        node.end(1, 50);
        node.accept(2, 900, 900, true);
        node.end(2, 0);
        if claimed {
            node.0.set_claimed(job(2));
        }
        if let Some(known) = node.0.consumers.get_mut(&CONSUMER) {
            known.defaulted = defaulted;
        }
        node.pay(2, 400);
        assert_eq!(node.known().lost, micro(50), "a part is not the whole");
        node.pay(2, 500);
        assert_eq!(node.known().lost, micro(lost));
    }
}

#[test]
fn a_paid_job_is_forgotten_when_its_order_is_late_and_one_that_is_not_paid_is_not() {
    let mut node = Node::new();
    for number in [1, 2] {
        node.accept(number, 10, 10, true);
        node.end(number, 0);
    }
    node.pay(1, 10);
    let again = |node: &Node, number| node.0.check_new(job(number), CONSUMER);
    let late = NOW.plus_ms(START_WITHIN_MS + ORDER_AHEAD_MAX_MS);
    node.0.forget_passed(Timestamp::from_ms(late.ms() - 1));
    let first = OrderRefusal::Replayed { receipt: None, due: micro(10) };
    assert_eq!(again(&node, 1), Err(first.clone()));
    node.0.forget_passed(late);
    assert_eq!((again(&node, 1), again(&node, 2)), (Ok(()), Err(first)));
    assert_eq!((node.0.done(), node.0.jobs.len()), (0, 1));
    // What is paid at last is late by then.
    node.pay(2, 10);
    assert_eq!(node.0.done(), 1);
    node.0.forget_passed(late);
    assert_eq!((again(&node, 2), node.0.done()), (Ok(()), 0));
    assert!(node.0.is_consistent());
}

#[test]
fn a_job_that_is_done_twice_is_remembered_once() {
    let mut node = Node::new();
    let until = NOW.plus_ms(1);
    node.0.done.insert(job(1), Done { consumer: CONSUMER, receipt: None, due: micro(1), until });
    node.0.done_until.insert((until, job(1)));
    node.accept(1, 10, 10, true);
    node.end(1, 0);
    node.pay(1, 10);
    assert!(node.0.is_consistent());
}
