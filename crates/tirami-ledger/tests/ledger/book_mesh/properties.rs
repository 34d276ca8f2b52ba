//! Random interleavings of jobs between real ledgers: messages are lost, nodes crash and start
//! again, the witness is away. After every step each node's money is whole, no provider risks more
//! than its exposure and no consumer is charged for more than it received; in the end everything
//! is settled.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tirami_core::{Digest, JobId, ModelDigest, Ppm, Signed, Timestamp};
use tirami_ledger::Rejection;
use tirami_ledger::command::{AcceptOrder, Command, FinishJob, OrderJob, Outcome, StartJob};
use tirami_ledger::documents::{FinishReason, Order, Receipt};
use tirami_ledger::event::{BookEvent, Event};

use super::nodes::{Mesh, SHAPE, START_MS, by_alice, job_of, party_of, stream, trm};

const PROVIDERS: [&str; 2] = ["p", "q"];
const MODEL: ModelDigest = ModelDigest::from_bytes([9; 32]);

#[derive(Debug, Clone)]
enum Step {
    Order {
        to: usize,
        prompt: u32,
        max: u32,
    },
    /// The order reaches its provider; it may do so more than once.
    Accept {
        job: usize,
    },
    /// The provider sends tokens, of which the consumer receives some and signs for them; the
    /// voucher may be lost.
    Deliver {
        job: usize,
        sent: u32,
        lost_tokens: u32,
        voucher_lost: bool,
    },
    /// The provider ends the job; the receipt may be lost.
    Finish {
        job: usize,
        receipt_lost: bool,
    },
    Settle {
        job: usize,
    },
    Abandon {
        job: usize,
    },
    Lose {
        job: usize,
    },
    Tick {
        node: usize,
    },
    SendEntries,
    Tell {
        node: usize,
    },
    Claim,
    Crash {
        node: usize,
    },
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let job = 0..8_usize;
    prop_oneof![
        4 => (0..2_usize, 1..5_u32, 1..40_u32)
            .prop_map(|(to, prompt, max)| Step::Order { to, prompt, max }),
        5 => job.clone().prop_map(|job| Step::Accept { job }),
        8 => (job.clone(), 1..20_u32, 0..4_u32, any::<bool>()).prop_map(
            |(job, sent, lost_tokens, voucher_lost)| Step::Deliver {
                job, sent, lost_tokens, voucher_lost
            }
        ),
        4 => (job.clone(), any::<bool>())
            .prop_map(|(job, receipt_lost)| Step::Finish { job, receipt_lost }),
        4 => job.clone().prop_map(|job| Step::Settle { job }),
        2 => job.clone().prop_map(|job| Step::Abandon { job }),
        2 => job.prop_map(|job| Step::Lose { job }),
        5 => (0..4_usize).prop_map(|node| Step::Tick { node }),
        3 => Just(Step::SendEntries),
        3 => (0..3_usize).prop_map(|node| Step::Tell { node }),
        1 => Just(Step::Claim),
        1 => (0..4_usize).prop_map(|node| Step::Crash { node }),
        4 => prop_oneof![Just(1_000), Just(11_000), Just(61_000), Just(700_000)]
            .prop_map(|ms| Step::Wait { ms }),
    ]
}

/// A job as the wire knows it.
struct Job {
    id: JobId,
    provider: &'static str,
    order: Signed<Order>,
    sent: u32,
    received: u32,
    max: u32,
    receipt: Option<Signed<Receipt>>,
}

struct Run {
    mesh: Mesh,
    jobs: Vec<Job>,
    /// Events of `c` that were checked.
    checked: usize,
    received: BTreeMap<JobId, u32>,
}

impl Run {
    fn new(fee_ppm: u32) -> Self {
        let mesh = Mesh::quick(fee_ppm);
        let checked = mesh.nodes["c"].log.len();
        Self { mesh, jobs: Vec::new(), checked, received: BTreeMap::new() }
    }

    /// The `back`th of the newest jobs.
    fn at(&self, back: usize) -> Option<usize> {
        self.jobs.len().checked_sub(back + 1)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Order { to, prompt, max } => self.order(PROVIDERS[to], prompt, max),
            Step::Accept { job } => self.accept(job),
            Step::Deliver { job, sent, lost_tokens, voucher_lost } => {
                self.deliver(job, sent, lost_tokens, voucher_lost);
            }
            Step::Finish { job, receipt_lost } => self.finish(job, receipt_lost),
            Step::Settle { job } => self.settle(job),
            Step::Abandon { job } => {
                if let Some(job) = self.at(job) {
                    self.abandon(job);
                }
            }
            Step::Lose { job } => {
                if let Some(job) = self.at(job) {
                    self.lose(job);
                }
            }
            Step::Tick { node } => {
                self.mesh.run(["c", "p", "q", "w"][node], &Command::Tick).unwrap();
            }
            Step::SendEntries => self.mesh.send_entries("c"),
            Step::Tell { node } => self.mesh.tell(["c", "p", "q"][node]),
            Step::Claim => {
                for name in PROVIDERS {
                    self.mesh.send_claims(name);
                }
            }
            Step::Crash { node } => self.mesh.crash(["c", "p", "q", "w"][node]),
            Step::Wait { ms } => self.mesh.now_ms += ms,
        }
        self.check();
    }

    fn order(&mut self, provider: &'static str, prompt: u32, max: u32) {
        let id = job_of(&format!("job {}", self.jobs.len()));
        let order = Command::OrderJob(OrderJob {
            start: StartJob {
                job: id,
                model: MODEL,
                shape: SHAPE,
                request: Digest::of(b"request"),
                seed: 7,
                prompt_tokens: prompt,
                completion_max: max,
                continues: None,
            },
            provider: party_of(provider),
            price: Ppm::ONE,
        });
        match self.mesh.run_as("c", &by_alice(), &order) {
            Ok(Outcome::JobOrdered { order, .. }) => {
                let (order, receipt) = (*order, None);
                let (sent, received) = (0, 0);
                self.jobs.push(Job { id, provider, order, sent, received, max, receipt });
            }
            other => assert!(matches!(other, Err(Rejection::Insufficient { .. })), "{other:?}"),
        }
    }

    fn accept(&mut self, back: usize) {
        let Some(index) = self.at(back) else { return };
        let job = &self.jobs[index];
        let accept = Command::AcceptOrder(AcceptOrder {
            checked: None,
            order: job.order.bytes().to_vec(),
            signature: job.order.signature(),
            model: MODEL,
            shape: SHAPE,
            prompt_tokens: job.order.body().prompt_max,
            completion_max: job.max,
            head_at: Timestamp::from_ms(self.mesh.now_ms),
        });
        let answer = self.mesh.run(job.provider, &accept);
        assert!(matches!(answer, Ok(_) | Err(Rejection::Order(_))), "{answer:?}");
    }

    fn is_served(&self, job: &Job) -> bool {
        let served = self.mesh.ledger(job.provider).book().served().get(&job.id);
        served.is_some_and(|served| served.end.is_none())
    }

    fn deliver(&mut self, back: usize, sent: u32, lost_tokens: u32, voucher_lost: bool) {
        let Some(index) = self.at(back).filter(|index| self.is_served(&self.jobs[*index])) else {
            return;
        };
        let job = &mut self.jobs[index];
        job.sent = (job.sent + sent).min(job.max);
        job.received = job.received.max(job.sent.saturating_sub(lost_tokens));
        let (id, received, sent, provider) = (job.id, job.received, job.sent, job.provider);
        self.received.insert(id, received);
        let deliver = Command::Deliver {
            job: id,
            completion_tokens: received,
            stream: stream(received),
            prompt_tokens: None,
        };
        let Ok(Outcome::VoucherSigned { voucher }) = self.mesh.run("c", &deliver) else { return };
        if voucher_lost {
            return;
        }
        let take = Command::TakeVoucher {
            bytes: voucher.bytes().to_vec(),
            signature: voucher.signature(),
            stream: stream(voucher.body().tokens),
            sent,
        };
        self.mesh.run(provider, &take).unwrap();
    }

    fn finish(&mut self, back: usize, receipt_lost: bool) {
        let Some(index) = self.at(back).filter(|index| self.is_served(&self.jobs[*index])) else {
            return;
        };
        let job = &mut self.jobs[index];
        let finish = Command::FinishServed(FinishJob {
            job: job.id,
            cached_tokens: 0,
            completion_tokens: job.sent,
            output: stream(job.sent),
            build: "test".into(),
            finish: FinishReason::Stop,
        });
        let outcome = self.mesh.run(job.provider, &finish).unwrap();
        if let Outcome::JobServed { receipt: Some(receipt), .. } = outcome
            && !receipt_lost
        {
            job.receipt = Some(*receipt);
        }
    }

    fn settle(&mut self, back: usize) {
        let Some(index) = self.at(back) else { return };
        let job = &self.jobs[index];
        let Some(receipt) = &job.receipt else { return };
        let settle = Command::SettleJob {
            job: job.id,
            receipt: receipt.bytes().to_vec(),
            signature: receipt.signature(),
            completion_tokens: job.received,
            output: stream(job.received),
        };
        let honest = receipt.body().completion_tokens == job.received;
        match self.mesh.run("c", &settle) {
            Ok(Outcome::JobFinished { .. }) => assert!(honest, "paid for what did not come"),
            Ok(Outcome::ReceiptRefused { .. }) => assert!(!honest),
            Err(Rejection::UnknownJob { .. } | Rejection::Contradicts { .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    fn abandon(&mut self, index: usize) {
        let job = &self.jobs[index];
        let abandon = Command::AbandonJob {
            job: job.id,
            completion_tokens: job.received,
            stream: stream(job.received),
            prompt_tokens: None,
            failed: false,
        };
        let answer = self.mesh.run("c", &abandon);
        let gone = matches!(
            answer,
            Ok(_) | Err(Rejection::UnknownJob { .. } | Rejection::Contradicts { .. })
        );
        assert!(gone, "{answer:?}");
    }

    fn lose(&mut self, index: usize) {
        let job = &self.jobs[index];
        let answer = self.mesh.run(job.provider, &Command::AbandonServed { job: job.id, sent: 0 });
        assert!(matches!(answer, Ok(_) | Err(Rejection::UnknownJob { .. })), "{answer:?}");
    }

    /// Nobody is charged for more than it received, and each job at most once.
    fn check(&mut self) {
        let log = &self.mesh.nodes["c"].log;
        for event in &log[self.checked..] {
            if let Event::Book(BookEvent::HoldPosted(posted)) = event {
                let received = self.received.get(&posted.job).copied().unwrap_or_default();
                assert!(posted.completion_tokens <= received, "charged for what did not come");
                let prompt = u64::from(posted.prompt_tokens);
                assert_eq!(posted.amount, trm(prompt + u64::from(posted.completion_tokens)));
            }
        }
        self.checked = log.len();
    }

    /// Everybody gives up what runs, everything is paid or lapses.
    fn settle_all(&mut self) {
        for index in 0..self.jobs.len() {
            self.abandon(index);
            self.lose(index);
        }
        for _ in 0..12 {
            self.mesh.now_ms += 11_000;
            for name in ["c", "p", "q", "w"] {
                self.mesh.run(name, &Command::Tick).unwrap();
                self.mesh.sync();
            }
        }
        self.mesh.now_ms += 3_600_000;
        for _ in 0..4 {
            self.mesh.now_ms += 61_000;
            for name in ["c", "p", "q", "w"] {
                self.mesh.run(name, &Command::Tick).unwrap();
                self.mesh.sync();
            }
        }
        self.check();
    }

    fn check_settled(&self) {
        let consumer = self.mesh.ledger("c").book();
        assert!(consumer.holds().is_empty(), "a hold is stuck");
        assert!(consumer.debts().is_empty(), "a debt is not paid: {:?}", consumer.debts());
        let mut paid = 0;
        for event in &self.mesh.nodes["c"].log {
            if let Event::Book(BookEvent::HoldPosted(posted)) = event {
                paid += posted.amount.micro();
            }
        }
        let (mut earned, mut lost) = (0, 0);
        for name in PROVIDERS {
            let book = self.mesh.ledger(name).book();
            assert!(book.served().is_empty(), "a served job is stuck");
            earned += book.earned_total().micro();
            let known = book.consumers().get(&party_of("c")).copied().unwrap_or_default();
            assert_eq!(known.owed, known.lost);
            assert!(!known.defaulted, "an honest consumer pays what it signed for");
            assert!(known.lost <= book.exposure_of(party_of("c")));
            lost += known.lost.micro();
            assert_eq!(self.mesh.ledger(name).lattice().uncollected_sum(party_of(name)), 0);
        }
        assert_eq!(earned, paid, "what the consumer paid is what the providers earned");
        assert!(lost <= 2 * 1_000_000_000);
        let states: Vec<Digest> =
            self.mesh.nodes.values().map(|node| node.ledger.lattice().state_hash()).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "the nodes differ");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_lost_nobody_pays_too_much_and_everything_settles(
        steps in prop::collection::vec(step(), 1..90),
        fee_ppm in prop_oneof![Just(0_u32), Just(3_333)],
    ) {
        let mut run = Run::new(fee_ppm);
        assert!(run.mesh.now_ms >= START_MS);
        for step in &steps {
            run.step(step);
        }
        run.settle_all();
        run.check_settled();
    }
}
