//! The side of a job that computes and is paid.

use tirami_core::{JobId, Signed, decode_body};
use tirami_kernel::Input;
use tirami_kernel::mesh::MeshInput;
use tirami_ledger::Rejection;
use tirami_ledger::command::{AcceptOrder, Command, FinishJob, Outcome};
use tirami_ledger::documents::{FinishReason, Order, Receipt, Voucher};
use tirami_proto::{JobRequest, ToConsumer, ToProvider, WireDocument};

use super::Bug;
use super::consumer::{count, digest, token};
use super::members::{MODEL, SHAPE};
use super::node::Role;
use super::world::{Task, Then, World};

/// A consumer that signs nothing for so long is given up, in milliseconds.
const PATIENCE_MS: u64 = 4_000;
/// How long a consumer may wait until its chain is known, and how often that is looked at.
const MEET_WITHIN_MS: u64 = 3_000;
const MEET_MS: u64 = 100;
/// Tokens that are sent ahead of the vouchers at most.
const WINDOW: usize = 32;

/// A job that is served.
#[derive(Debug)]
pub(super) struct Serving {
    provider: usize,
    job: JobId,
    seed: u32,
    prompt: u32,
    /// Tokens of the answer that the consumer had before.
    base: u32,
    /// Tokens that are to be sent.
    total: usize,
    sent: Vec<u32>,
    vouched: usize,
    seen_at: u64,
    /// After so many tokens the engine dies.
    dies_at: Option<usize>,
    is_running: bool,
}

impl World {
    pub(super) fn at_provider(&mut self, stream: u64, frame: ToProvider) -> Result<(), String> {
        match frame {
            ToProvider::Request(request) => {
                self.requested(stream, request, self.now + MEET_WITHIN_MS)
            }
            ToProvider::Voucher(voucher) => self.voucher(stream, voucher),
            ToProvider::Cancel => self.abandon_serving(stream),
        }
    }

    pub(super) fn requested(
        &mut self,
        stream: u64,
        request: JobRequest,
        until: u64,
    ) -> Result<(), String> {
        let Some(at) = self.streams.get(&stream).map(|known| known.provider) else {
            return Ok(());
        };
        let Some(kernel) = &self.nodes[at].kernel else { return Ok(()) };
        let text = String::from_utf8(request.body.clone()).unwrap_or_default();
        let numbers: Vec<u32> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        let (Ok(order), &[prompt, wanted, seed]) =
            (decode_body::<Order>(&request.order.bytes), numbers.as_slice())
        else {
            return Ok(());
        };
        if !kernel.knows_consumer(order.consumer) && self.now < until {
            let task = Task::Requested { stream, request: Box::new(request), until };
            self.plan(MEET_MS, task);
            return self.give(at, Input::Mesh(MeshInput::FirstContact(order.consumer)));
        }
        let base = count(request.resumed.len());
        let Some(head_at) = kernel.head_at(order.consumer) else {
            self.refuse(stream, "order_stale_head");
            return Ok(());
        };
        let is_flaky = self.nodes[at].flaky && self.trading && self.dice.percent(60);
        let mut dies_at = is_flaky.then(|| self.dice.index(40));
        if self.config.bug == Bug::NeverBegins {
            dies_at = Some(0);
        }
        self.serving.insert(
            stream,
            Serving {
                provider: at,
                job: order.job,
                seed,
                prompt: prompt + base,
                base,
                total: (wanted - base) as usize,
                sent: Vec::new(),
                vouched: 0,
                seen_at: self.now,
                dies_at,
                is_running: false,
            },
        );
        let accept = AcceptOrder {
            checked: None,
            order: request.order.bytes,
            signature: request.order.signature,
            model: MODEL,
            shape: SHAPE,
            prompt_tokens: prompt + base,
            completion_max: wanted - base,
            head_at,
        };
        self.ask(at, Command::AcceptOrder(accept), Then::Accepted { stream })
    }

    fn refuse(&mut self, stream: u64, code: &str) {
        let (code, message) = (code.to_owned(), String::new());
        let refused = ToConsumer::Refused {
            code,
            message,
            retry_after_ms: Some(2_000),
            invalid: None,
            receipt: None,
        };
        self.send_to_consumer(stream, refused);
    }

    pub(super) fn accepted(
        &mut self,
        stream: u64,
        result: Result<Outcome, Rejection>,
    ) -> Result<(), String> {
        let now = self.now;
        let Some(serving) = self.serving.get_mut(&stream) else { return Ok(()) };
        let is_forged = self.forged_orders.contains(&stream);
        let accepts_forged = is_forged && self.config.bug == Bug::AcceptsForged;
        if is_forged && (result.is_ok() || accepts_forged) {
            return Err(format!("node {} accepts a forged order", serving.provider));
        }
        let (completion_max, window_tokens) = match result {
            Ok(Outcome::OrderAccepted { completion_max, window_tokens, .. }) => {
                (completion_max, window_tokens)
            }
            Err(_) if self.config.bug == Bug::ServesRefused => (count(serving.total), 32),
            Err(refused) => {
                self.serving.remove(&stream);
                self.refuse(stream, refused.code());
                return Ok(());
            }
            Ok(_) => return Err("an order was answered with something else".to_owned()),
        };
        serving.is_running = true;
        serving.seen_at = now;
        serving.total = serving.total.min(completion_max as usize);
        let prompt_tokens = serving.prompt;
        let accepted = ToConsumer::Accepted { prompt_tokens, completion_max, window_tokens };
        self.send_to_consumer(stream, accepted);
        let pause = self.dice.between(50, 300);
        self.plan(pause, Task::Generate { stream });
        self.plan(1_000, Task::LookAtServing { stream });
        Ok(())
    }

    /// The engine hands over some tokens, unless too many are not signed for.
    pub(super) fn generate(&mut self, stream: u64) -> Result<(), String> {
        let batch = self.dice.index(8) + 1;
        let pause = self.dice.between(60, 260);
        let Some(serving) = self.serving.get_mut(&stream) else { return Ok(()) };
        let sent = serving.sent.len();
        let batch = batch.min(serving.total - sent).min((serving.vouched + WINDOW) - sent);
        if serving.dies_at.is_some_and(|dies_at| sent + batch > dies_at) {
            // It says nothing more; the consumer has to notice.
            return Ok(());
        }
        if batch == 0 {
            return Ok(());
        }
        let seed = serving.seed ^ u32::from(self.config.bug == Bug::AnswersWrongly);
        let first = serving.base + count(sent);
        let tokens: Vec<u32> =
            (first..first + count(batch)).map(|place| token(seed, place)).collect();
        serving.sent.extend(&tokens);
        let (done, job) = (serving.sent.len() == serving.total, serving.job);
        let sent = count(serving.sent.len());
        if let Some(work) = self.work.get_mut(&job) {
            work.sent = work.sent.max(sent);
        }
        self.send_to_consumer(
            stream,
            ToConsumer::Tokens { tokens, text: String::new(), likelihoods: Vec::new() },
        );
        if done {
            self.finish(stream)
        } else {
            self.plan(pause, Task::Generate { stream });
            Ok(())
        }
    }

    fn voucher(&mut self, stream: u64, voucher: WireDocument) -> Result<(), String> {
        let Some(serving) = self.serving.get(&stream) else { return Ok(()) };
        let Ok(body) = decode_body::<Voucher>(&voucher.bytes) else { return Ok(()) };
        let tokens = (body.tokens as usize).min(serving.sent.len());
        let command = Command::TakeVoucher {
            bytes: voucher.bytes,
            signature: voucher.signature,
            stream: digest(&serving.sent[..tokens]),
            sent: count(serving.sent.len()),
        };
        self.ask(serving.provider, command, Then::Taken { stream, tokens })
    }

    pub(super) fn taken(
        &mut self,
        stream: u64,
        tokens: usize,
        result: &Result<Outcome, Rejection>,
    ) -> Result<(), String> {
        let now = self.now;
        let takes_all = self.config.bug == Bug::VouchersFall;
        let Some(serving) = self.serving.get_mut(&stream) else { return Ok(()) };
        if result.is_ok() || takes_all {
            if tokens < serving.vouched {
                return Err(format!("node {} takes a voucher that falls", serving.provider));
            }
            let waited = serving.sent.len() >= serving.vouched + WINDOW;
            serving.vouched = serving.vouched.max(tokens);
            serving.seen_at = now;
            if waited {
                self.plan(5, Task::Generate { stream });
            }
        }
        Ok(())
    }

    fn finish(&mut self, stream: u64) -> Result<(), String> {
        let Some(serving) = self.serving.get(&stream) else { return Ok(()) };
        let finish = FinishJob {
            job: serving.job,
            cached_tokens: 0,
            completion_tokens: count(serving.sent.len()),
            output: digest(&serving.sent),
            build: "sim 1".to_owned(),
            finish: FinishReason::Length,
        };
        let at = serving.provider;
        self.ask(at, Command::FinishServed(finish), Then::Finished { stream })
    }

    pub(super) fn finished(
        &mut self,
        stream: u64,
        result: Result<Outcome, Rejection>,
    ) -> Result<(), String> {
        let Some(serving) = self.serving.remove(&stream) else { return Ok(()) };
        let Ok(Outcome::JobServed { receipt: Some(receipt), .. }) = result else {
            return Ok(());
        };
        let mut receipt = *receipt;
        let node = &self.nodes[serving.provider];
        if node.role == Role::OverCounts {
            *self.counts.lies.entry("over-count").or_default() += 1;
            let mut body: Receipt = receipt.body().clone();
            match self.dice.below(3) {
                0 => body.completion_tokens += 7,
                1 => body.amount = body.amount.saturating_add(body.amount),
                _ => body.output = digest(&[1]),
            }
            let mesh = self.founding.lattice.mesh();
            receipt = Signed::sign(mesh, &node.key, body).map_err(|error| error.to_string())?;
        }
        let receipt =
            WireDocument { bytes: receipt.bytes().to_vec(), signature: receipt.signature() };
        let end = ToConsumer::End { text: String::new(), finish: 1, receipt, stop: None };
        self.send_to_consumer(stream, end);
        Ok(())
    }

    pub(super) fn look_at_serving(&mut self, stream: u64) -> Result<(), String> {
        let Some(serving) = self.serving.get(&stream) else { return Ok(()) };
        if self.now >= serving.seen_at + PATIENCE_MS {
            let reason = "the consumer signs nothing".to_owned();
            self.send_to_consumer(stream, ToConsumer::Failed { reason, invalid: None });
            return self.abandon_serving(stream);
        }
        self.plan(1_000, Task::LookAtServing { stream });
        Ok(())
    }

    pub(super) fn abandon_serving(&mut self, stream: u64) -> Result<(), String> {
        let Some(serving) = self.serving.remove(&stream) else { return Ok(()) };
        if !serving.is_running {
            return Ok(());
        }
        let forgets = self.config.bug == Bug::ForgetsWork;
        let sent = if forgets { 0 } else { count(serving.sent.len()) };
        let command = Command::AbandonServed { job: serving.job, sent };
        self.ask(serving.provider, command, Then::Nothing)
    }

    /// The power is gone: what was sent and not signed for is the provider's own loss.
    pub(super) fn forget_serving(&mut self, at: usize) {
        let lost = self.serving.iter().filter(|(_, serving)| serving.provider == at);
        let lost: Vec<u64> = lost.map(|(stream, _)| *stream).collect();
        for stream in lost {
            let Some(serving) = self.serving.remove(&stream) else { continue };
            self.excuse(serving.job, count(serving.vouched));
        }
    }
}
