//! Plays scenario files between nodes. One token of the toy model costs 1 TRM at par.
//!
//! ```text
//! serve NODE [start= max= unknown= jobs= fresh=D] [paused] [blocked=NODE] [trusted=NODE]
//! price NODE PPM                  fee PPM (only as the first line)
//! order JOB [prompt=N] max=N [price=PPM] [to=NODE] [request=R] [continues=JOB] [as=NAME]
//! accept JOB [prompt=N] [max=N] [at=NODE] [model=other] [head=D] [forge=…]
//! deliver JOB N [prompt=N]        take JOB [voucher=N] [sent=N] [forge=…]
//! finish JOB N [prompt…] [cached=N]                     lost JOB
//! settle JOB N [forge=tokens|price|flop|output|order|key|mesh|prompt]     abandon JOB N [failed]
//! after D   tick NODE   sync [NODE]   tell NODE   claim   recover NODE   kill NODE on|off
//! pay NODE NODE JOB TRM           approve_above TRM   approve N   request_max TRM
//! check NODE|alice field=value…   check refused=CODE
//! ```
//! `order` keeps the signed order under the job's name, `deliver` the voucher under `JOB/N`,
//! `finish` the receipt; the verbs after them use what was kept. After `->` stands `ok` or a code,
//! then fields of the answer.

use std::collections::BTreeMap;

use tirami_core::{
    Digest, Document, DocumentId, Flop, MeshId, ModelDigest, Ppm, Signature, Signed, Trm,
};
use tirami_ledger::Rejection;
use tirami_ledger::book::{ApprovalId, Limits, ServingPolicy, Target};
use tirami_ledger::command::{AcceptOrder, Command, FinishJob, OrderJob, Outcome, StartJob};
use tirami_ledger::documents::{FinishReason, Order, Receipt, Voucher};
use tirami_ledger::lattice::{AcknowledgeRefusal, Pay, PayItem};

use super::nodes::{Mesh, SHAPE, alice, by_alice, job_of, key_of, party_of, policy, stream};
use crate::script::{Step, duration};

const MODEL: ModelDigest = ModelDigest::from_bytes([9; 32]);
type Answer = (String, BTreeMap<String, String>);

/// A scenario in progress.
pub(crate) struct Play {
    pub(crate) mesh: Mesh,
    orders: BTreeMap<String, Signed<Order>>,
    vouchers: BTreeMap<(String, u32), Signed<Voucher>>,
    receipts: BTreeMap<String, Signed<Receipt>>,
}

impl Play {
    pub(crate) fn new(fee_ppm: u32) -> Self {
        Self {
            mesh: Mesh::new(fee_ppm),
            orders: BTreeMap::new(),
            vouchers: BTreeMap::new(),
            receipts: BTreeMap::new(),
        }
    }

    /// Takes one step and checks its expectation.
    pub(crate) fn step(&mut self, step: &Step) {
        let line = step.line;
        let arg = |index: usize| step.args.get(index).map_or("", String::as_str);
        let answer = match step.verb.as_str() {
            "fee" => return,
            "after" => return self.mesh.now_ms += duration(arg(0)),
            "sync" if step.args.is_empty() => return self.mesh.sync(),
            "sync" => return self.mesh.send_entries(arg(0)),
            "tell" => return self.mesh.tell(arg(0)),
            "recover" => return self.mesh.crash(arg(0)),
            "check" => return self.check(step),
            "claim" => {
                let results = self.mesh.send_claims("p");
                answer(results.into_iter().last().unwrap_or(Ok(Outcome::Done)))
            }
            "order" => self.order(step),
            "deliver" => self.deliver(step),
            "finish" => self.finish(step),
            "abandon" => self.abandon(step),
            _ => {
                let (node, command) = self.command(step);
                answer(self.mesh.run(&node, &command))
            }
        };
        let expected = step.expect.as_deref().unwrap_or("ok");
        let mut words = expected.split_whitespace();
        assert_eq!(Some(answer.0.as_str()), words.next(), "line {line}: {:?}", answer.1);
        for word in words {
            let (field, value) = word.split_once('=').expect("field=value after the first word");
            let found = answer.1.get(field).map(String::as_str);
            assert_eq!(found, Some(value), "line {line}: {field} of {:?}", answer.1);
        }
    }

    fn command(&self, step: &Step) -> (String, Command) {
        let arg = |index: usize| step.args.get(index).map_or("", String::as_str);
        let node = |name: &str| name.to_owned();
        match step.verb.as_str() {
            "serve" => (node(arg(0)), Command::SetServing(serving(step))),
            "price" => (node(arg(0)), Command::SetPrice { price: Ppm::new(number(arg(1))) }),
            "accept" => self.accept(step),
            "take" => self.take(step),
            "settle" => (node("c"), self.settle(step)),
            "lost" => {
                let sent = step.args.get(1).map_or(0, |sent| number(sent));
                (node("p"), Command::AbandonServed { job: job_of(arg(0)), sent })
            }
            "tick" => (node(arg(0)), Command::Tick),
            "kill" => {
                let kill = Command::SetKill { on: arg(1) == "on", reason: "test".into() };
                (node(arg(0)), kill)
            }
            "pay" => {
                let item = PayItem { job: job_of(arg(2)), amount: arg(3).parse().unwrap() };
                let pay = Pay::new(party_of(arg(1)), vec![item], Ppm::ZERO);
                (node(arg(0)), Command::SignEntry { kind: pay.into() })
            }
            "approve_above" => {
                let approval_above = Some(arg(0).parse().unwrap());
                let limits = Limits { approval_above, ..Limits::default() };
                (node("c"), Command::SetLimits { target: Target::Node, limits })
            }
            "request_max" => {
                let request_max = Some(arg(0).parse().unwrap());
                let limits = Limits { request_max, ..Limits::default() };
                (node("c"), Command::SetLimits { target: Target::Node, limits })
            }
            "approve" => {
                let approval = ApprovalId::new(arg(0).parse().unwrap());
                (node("c"), Command::DecideApproval { approval, approve: true })
            }
            verb => panic!("line {}: no verb {verb}", step.line),
        }
    }

    fn order(&mut self, step: &Step) -> Answer {
        let named = |name: &str| step.named.get(name).map(String::as_str);
        let job = &step.args[0];
        let start = StartJob {
            job: job_of(job),
            model: MODEL,
            shape: SHAPE,
            request: Digest::of(named("request").unwrap_or(job).as_bytes()),
            seed: 7,
            prompt_tokens: named("prompt").map_or(1, number),
            completion_max: named("max").map_or(1, number),
            continues: named("continues").map(job_of),
        };
        let order = Command::OrderJob(OrderJob {
            start,
            provider: party_of(named("to").unwrap_or("p")),
            price: named("price").map_or(Ppm::ONE, |price| Ppm::new(number(price))),
        });
        let outcome = self.mesh.run_as("c", &by_alice(), &order);
        if let Ok(Outcome::JobOrdered { order, .. }) = &outcome {
            let name = named("as").unwrap_or(job);
            self.orders.insert(name.to_owned(), (**order).clone());
        }
        answer(outcome)
    }

    fn accept(&self, step: &Step) -> (String, Command) {
        let named = |name: &str| step.named.get(name).map(String::as_str);
        let order = &self.orders[&step.args[0]];
        let (bytes, signature) = match named("forge") {
            None => (order.bytes().to_vec(), order.signature()),
            Some("mesh") => forged(MeshId::from_bytes([7; 32]), "c", order.body().clone()),
            Some("key") => forged(self.mesh.mesh_id(), "q", order.body().clone()),
            Some("self") => {
                let body = Order { consumer: party_of("p"), ..order.body().clone() };
                forged(self.mesh.mesh_id(), "p", body)
            }
            Some(by @ ("x" | "stranger")) => {
                let body = Order { consumer: party_of(by), ..order.body().clone() };
                forged(self.mesh.mesh_id(), by, body)
            }
            Some("far") => {
                let claim_by = order.body().claim_by.plus_ms(25 * 3_600_000);
                forged(self.mesh.mesh_id(), "c", Order { claim_by, ..order.body().clone() })
            }
            Some("big") => {
                let max_amount = Trm::from_micro(order.body().max_amount.micro() * 10);
                forged(self.mesh.mesh_id(), "c", Order { max_amount, ..order.body().clone() })
            }
            Some("later") => {
                let start_by = tirami_core::Timestamp::from_ms(self.mesh.now_ms + 60_000);
                let claim_by = start_by.plus_ms(3_600_000);
                let body = Order { start_by, claim_by, ..order.body().clone() };
                forged(self.mesh.mesh_id(), "c", body)
            }
            Some("bytes") => (vec![1, 2, 3], order.signature()),
            Some(forge) => panic!("line {}: no forgery {forge}", step.line),
        };
        let head_age = named("head").map_or(0, duration);
        let accept = AcceptOrder {
            checked: None,
            order: bytes,
            signature,
            model: if named("model").is_some() { ModelDigest::from_bytes([8; 32]) } else { MODEL },
            shape: SHAPE,
            prompt_tokens: named("prompt").map_or(order.body().prompt_max, number),
            completion_max: named("max").map_or(1 << 20, number),
            head_at: tirami_core::Timestamp::from_ms(self.mesh.now_ms - head_age),
        };
        (named("at").unwrap_or("p").to_owned(), Command::AcceptOrder(accept))
    }

    fn deliver(&mut self, step: &Step) -> Answer {
        let tokens = number(&step.args[1]);
        let deliver = Command::Deliver {
            job: job_of(&step.args[0]),
            completion_tokens: tokens,
            stream: stream(tokens),
            prompt_tokens: step.named.get("prompt").map(|prompt| number(prompt)),
        };
        let outcome = self.mesh.run("c", &deliver);
        if let Ok(Outcome::VoucherSigned { voucher }) = &outcome {
            self.vouchers.insert((step.args[0].clone(), tokens), (**voucher).clone());
        }
        answer(outcome)
    }

    fn take(&self, step: &Step) -> (String, Command) {
        let named = |name: &str| step.named.get(name).map(String::as_str);
        let of_job = self.vouchers.iter().filter(|((job, _), _)| *job == step.args[0]);
        let (_, voucher) = match named("voucher") {
            None => of_job.max_by_key(|((_, tokens), _)| *tokens).unwrap(),
            Some(tokens) => {
                let key = (step.args[0].clone(), number(tokens));
                self.vouchers.get_key_value(&key).unwrap()
            }
        };
        let mesh = self.mesh.mesh_id();
        let body = voucher.body().clone();
        let (bytes, signature) = match named("forge") {
            None | Some("stream") => (voucher.bytes().to_vec(), voucher.signature()),
            Some("key") => forged(mesh, "q", body),
            Some("mesh") => forged(MeshId::from_bytes([7; 32]), "c", body),
            Some("falls") => {
                let amount = body.amount.saturating_sub(Trm::from_micro(1));
                forged(mesh, "c", Voucher { n: body.n + 1, amount, tokens: body.tokens, ..body })
            }
            Some("amount") => {
                let amount = body.amount.saturating_add(Trm::from_micro(1));
                forged(mesh, "c", Voucher { n: body.n + 1, amount, ..body })
            }
            Some("again") => forged(mesh, "c", Voucher { n: body.n + 1, ..body }),
            Some("order") => {
                forged(mesh, "c", Voucher { order: DocumentId::from_bytes([3; 32]), ..body })
            }
            Some(forge) => panic!("line {}: no forgery {forge}", step.line),
        };
        let tokens = voucher.body().tokens;
        let seen = if named("forge") == Some("stream") { tokens + 1 } else { tokens };
        let sent = named("sent").map_or(tokens, number);
        let take = Command::TakeVoucher { bytes, signature, stream: stream(seen), sent };
        (named("at").unwrap_or("p").to_owned(), take)
    }

    fn finish(&mut self, step: &Step) -> Answer {
        let tokens = number(&step.args[1]);
        let finish = Command::FinishServed(FinishJob {
            job: job_of(&step.args[0]),
            cached_tokens: step.named.get("cached").map_or(0, |text| number(text)),
            completion_tokens: tokens,
            output: stream(tokens),
            build: "test".into(),
            finish: FinishReason::Stop,
        });
        let node = step.named.get("at").map_or("p", String::as_str);
        let outcome = self.mesh.run(node, &finish);
        if let Ok(Outcome::JobServed { receipt: Some(receipt), .. }) = &outcome {
            self.receipts.insert(step.args[0].clone(), (**receipt).clone());
        }
        answer(outcome)
    }

    fn settle(&self, step: &Step) -> Command {
        let receipt = &self.receipts[&step.args[0]];
        let tokens = number(&step.args[1]);
        let mesh = self.mesh.mesh_id();
        let body = receipt.body().clone();
        let dearer = body.amount.saturating_add(Trm::from_micro(1));
        let (bytes, signature) = match step.named.get("forge").map(String::as_str) {
            None => (receipt.bytes().to_vec(), receipt.signature()),
            Some("tokens") => {
                let completion_tokens = body.completion_tokens + 1;
                let flop = SHAPE.work(0, body.prompt_tokens + completion_tokens);
                let amount = flop.cost_ceil(Ppm::ONE);
                forged(mesh, "p", Receipt { completion_tokens, flop, amount, ..body })
            }
            Some("prompt") => {
                let prompt_tokens = body.prompt_tokens + 1;
                forged(mesh, "p", Receipt { prompt_tokens, ..body })
            }
            Some("cached") => {
                let cached_tokens = body.prompt_tokens + 1;
                forged(mesh, "p", Receipt { cached_tokens, ..body })
            }
            Some("price") => forged(mesh, "p", Receipt { amount: dearer, ..body }),
            Some("flop") => {
                let flop = Flop::new(body.flop.get() + 1);
                forged(mesh, "p", Receipt { flop, ..body })
            }
            Some("output") => forged(mesh, "p", Receipt { output: stream(tokens + 1), ..body }),
            Some("order") => {
                forged(mesh, "p", Receipt { order: DocumentId::from_bytes([3; 32]), ..body })
            }
            Some("key") => forged(mesh, "q", body),
            Some("mesh") => forged(MeshId::from_bytes([7; 32]), "p", body),
            Some("bytes") => (vec![1, 2, 3], receipt.signature()),
            Some("build") => forged(mesh, "p", Receipt { build: "x".repeat(257), ..body }),
            Some(forge) => panic!("line {}: no forgery {forge}", step.line),
        };
        Command::SettleJob {
            job: job_of(&step.args[0]),
            receipt: bytes,
            signature,
            completion_tokens: tokens,
            output: stream(tokens),
        }
    }

    fn abandon(&mut self, step: &Step) -> Answer {
        let tokens = number(&step.args[1]);
        let abandon = Command::AbandonJob {
            job: job_of(&step.args[0]),
            completion_tokens: tokens,
            stream: stream(tokens),
            prompt_tokens: step.named.get("prompt").map(|text| number(text)),
            failed: step.args.get(2).is_some_and(|word| word == "failed"),
        };
        let outcome = self.mesh.run("c", &abandon);
        if let Ok(Outcome::JobFinished { voucher: Some(voucher), .. }) = &outcome {
            self.vouchers.insert((step.args[0].clone(), tokens), (**voucher).clone());
        }
        answer(outcome)
    }

    fn check(&self, step: &Step) {
        let found = match step.args.first().map(String::as_str) {
            None => self.mesh_fields(),
            Some("alice") => self.agent_fields(),
            Some(node) => self.node_fields(node),
        };
        for (field, value) in &step.named {
            assert_eq!(found.get(field), Some(value), "line {}: {field} of {found:?}", step.line);
        }
    }

    fn mesh_fields(&self) -> BTreeMap<String, String> {
        let refused = match &self.mesh.refused {
            None => "none",
            Some(Rejection::Acknowledge(AcknowledgeRefusal::UnpaidClaim { .. })) => "unpaid_claim",
            Some(Rejection::Acknowledge(AcknowledgeRefusal::PredecessorOpen)) => "predecessor",
            Some(other) => other.code(),
        };
        BTreeMap::from([("refused".into(), refused.into())])
    }

    fn agent_fields(&self) -> BTreeMap<String, String> {
        let account = &self.mesh.ledger("c").book().agents()[&alice()];
        BTreeMap::from([
            ("balance".into(), account.balance().to_string()),
            ("held".into(), account.held().to_string()),
        ])
    }

    fn node_fields(&self, name: &str) -> BTreeMap<String, String> {
        let ledger = self.mesh.ledger(name);
        let (book, lattice) = (ledger.book(), ledger.lattice());
        let consumer = book.consumers().get(&party_of("c")).copied().unwrap_or_default();
        let owner = ledger.party();
        let refused: u32 = book.receipts_refused().values().sum();
        let settled_claims = book.claims_against(party_of("c"), self.mesh.now()).count();
        BTreeMap::from([
            ("final".into(), Trm::signed_text(lattice.chain(owner).unwrap().balance().into())),
            ("signed".into(), Trm::signed_text(lattice.signed_balance(owner).into())),
            ("uncollected".into(), Trm::signed_text(lattice.uncollected_sum(owner))),
            ("transit".into(), Trm::signed_text(lattice.totals().transit)),
            ("burned".into(), Trm::signed_text(lattice.totals().burned)),
            ("own".into(), Trm::signed_text(ledger.own_balance())),
            ("fundable".into(), ledger.fundable().to_string()),
            ("debts".into(), book.debts().len().to_string()),
            ("open".into(), book.debts_open().to_string()),
            ("holds".into(), book.holds().len().to_string()),
            ("served".into(), book.served().len().to_string()),
            ("running".into(), book.served_running().to_string()),
            ("remembered".into(), book.jobs_remembered().to_string()),
            ("owed".into(), consumer.owed.to_string()),
            ("lost".into(), consumer.lost.to_string()),
            ("settled".into(), consumer.settled.to_string()),
            ("exposure".into(), book.exposure_of(party_of("c")).to_string()),
            ("earned".into(), book.earned_total().to_string()),
            ("log".into(), self.mesh.nodes[name].log.len().to_string()),
            ("jobs".into(), book.jobs_served().to_string()),
            ("unknown".into(), book.exposure_unknown_left(self.mesh.now()).to_string()),
            ("claims".into(), settled_claims.to_string()),
            ("cheats".into(), refused.to_string()),
        ])
    }
}

fn forged<T: Document>(mesh: MeshId, by: &str, body: T) -> (Vec<u8>, Signature) {
    let signed = Signed::sign(mesh, &key_of(by), body).unwrap();
    (signed.bytes().to_vec(), signed.signature())
}

fn serving(step: &Step) -> ServingPolicy {
    let amount = |name: &str, default: Trm| {
        step.named.get(name).map_or(default, |text| text.parse().unwrap())
    };
    let parties =
        |name: &str| step.named.get(name).map(|node| party_of(node)).into_iter().collect();
    let usual = policy();
    ServingPolicy {
        exposure_start: amount("start", usual.exposure_start),
        exposure_max: amount("max", usual.exposure_max),
        exposure_unknown_day: amount("unknown", usual.exposure_unknown_day),
        fresh_ms: step.named.get("fresh").map_or(usual.fresh_ms, |text| duration(text)),
        jobs_max: step.named.get("jobs").map_or(usual.jobs_max, |text| number(text)),
        paused: step.args.get(1).is_some_and(|word| word == "paused"),
        blocked: parties("blocked"),
        trusted: parties("trusted"),
        ..usual
    }
}

fn answer(result: Result<Outcome, Rejection>) -> Answer {
    let mut fields = BTreeMap::new();
    let mut put = |name: &str, value: String| fields.insert(name.to_owned(), value);
    let word = match result {
        Ok(Outcome::JobOrdered { order, available }) => {
            put("max", order.body().max_amount.to_string());
            put("available", available.to_string());
            "ok"
        }
        Ok(Outcome::VoucherSigned { voucher }) => {
            put("n", voucher.body().n.to_string());
            put("amount", voucher.body().amount.to_string());
            "ok"
        }
        Ok(Outcome::OrderAccepted { completion_max, .. }) => {
            put("max", completion_max.to_string());
            "ok"
        }
        Ok(Outcome::JobServed { receipt, due }) => {
            put("receipt", receipt.is_some().to_string());
            put("due", due.to_string());
            "ok"
        }
        Ok(Outcome::JobFinished { amount, fee, receipt, voucher, .. }) => {
            put("amount", amount.to_string());
            put("fee", fee.to_string());
            put("receipt", receipt.is_some().to_string());
            put("voucher", voucher.is_some().to_string());
            "ok"
        }
        Ok(Outcome::ReceiptRefused { refusal }) => refusal.code(),
        Ok(Outcome::ApprovalPending { .. }) => "pending",
        Ok(_) => "ok",
        Err(rejection) => {
            if let Rejection::Order(tirami_ledger::refusal::OrderRefusal::Replayed {
                receipt,
                due,
            }) = &rejection
            {
                put("due", due.to_string());
                put("receipt", receipt.is_some().to_string());
            }
            rejection.code()
        }
    };
    (word.to_owned(), fields)
}

fn number(text: &str) -> u32 {
    text.parse().unwrap()
}
