//! The side of a job that asks and pays: ordering, vouching, settling, going on elsewhere.

use std::collections::BTreeSet;

use tirami_core::{Digest, JobId, PartyId};
use tirami_kernel::Input;
use tirami_kernel::mesh::MeshInput;
use tirami_kernel::scheduler::{Observation, Observed, Preferences, Query};
use tirami_ledger::Rejection;
use tirami_ledger::book::Scope;
use tirami_ledger::command::{Actor, Command, OrderJob, Outcome, StartJob};
use tirami_proto::{JobRequest, ToConsumer, ToProvider, WireDocument, encode};

use super::Bug;
use super::links::Pair;
use super::members::{MODEL, SHAPE};
use super::node::{Role, local};
use super::watch::Work;
use super::world::{Task, Then, World};

/// A stream on which nothing came for so long is given up, in milliseconds.
const STALLED_MS: u64 = 3_000;
/// A job that is not answered by then has failed, in milliseconds.
const PATIENCE_MS: u64 = 90_000;
/// An agent with less is given more, in µTRM.
const LOW_MICRO: u64 = 600_000_000;

/// The stream of a job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    pub(super) consumer: usize,
    pub(super) provider: usize,
    pub(super) job: u64,
    /// When the last frame of each direction arrives.
    last: [u64; 2],
}

/// A question of a client, answered by one provider or several in turn.
#[derive(Debug)]
pub(super) struct Job {
    node: usize,
    prompt: u32,
    wanted: u32,
    seed: u32,
    tokens: Vec<u32>,
    tried: BTreeSet<PartyId>,
    last: Option<JobId>,
    attempt: Option<Attempt>,
    began: u64,
    /// Whether it looked for a provider when none ran on its side of a split.
    cut_off: bool,
}

#[derive(Debug)]
struct Attempt {
    id: JobId,
    provider: usize,
    stream: u64,
    /// Tokens that were there before it.
    base: usize,
    counted: Option<u32>,
    asked_at: u64,
    first_at: Option<u64>,
    seen_at: u64,
    /// Whether its end was decided.
    ending: bool,
}

impl World {
    /// A client asks something of its node. Whether it could, or has to come back soon because
    /// its agent had nothing to pay with.
    pub(super) fn begin_job(&mut self, at: usize) -> Result<bool, String> {
        let agent = self.nodes[at].agent.public().agent();
        let Some(ledger) = self.nodes[at].ledger() else { return Ok(true) };
        let fundable = ledger.fundable();
        let Some(account) = ledger.book().agents().get(&agent) else {
            return self.settle_in(at).map(|()| false);
        };
        if account.available().micro() < LOW_MICRO {
            let most = fundable.micro().min(5_000_000_000);
            let amount = tirami_core::Trm::from_micro(most);
            if amount.is_zero() {
                return Ok(true);
            }
            let fund = Command::FundAgent { agent, amount };
            return self.ask(at, fund, Then::Nothing).map(|()| false);
        }
        self.jobs_numbered += 1;
        let job = Job {
            node: at,
            prompt: self.dice.between_u32(5, 60),
            wanted: self.dice.between_u32(10, 110),
            seed: self.dice.between_u32(0, u32::MAX - 1),
            tokens: Vec::new(),
            tried: BTreeSet::new(),
            last: None,
            attempt: None,
            began: self.now,
            cut_off: false,
        };
        if self.nodes[at].is_honest() {
            self.counts.jobs += 1;
        }
        self.jobs.insert(self.jobs_numbered, job);
        self.order(self.jobs_numbered).map(|()| true)
    }

    /// Looks for a provider and signs an order for it.
    pub(super) fn order(&mut self, number: u64) -> Result<(), String> {
        let now = self.now;
        let dice = self.dice.below(u64::MAX);
        let Some(job) = self.jobs.get_mut(&number) else { return Ok(()) };
        if job.attempt.is_some() {
            return Ok(());
        }
        let at = job.node;
        if now > job.began + PATIENCE_MS {
            return self.end_job(number, false);
        }
        // Nobody can answer a node on whose side of the split no provider runs.
        let answers = |(other, node): (usize, &super::node::Node)| {
            other != at
                && node.serves
                && node.kernel.is_some()
                && self.links.reaches(at, other)
                && node.role != Role::OverCounts
        };
        let cut_off = !self.nodes.iter().enumerate().any(answers);
        let Some(job) = self.jobs.get_mut(&number) else { return Ok(()) };
        job.cut_off |= cut_off;
        let base = u32::try_from(job.tokens.len()).unwrap_or(u32::MAX);
        let query = Query {
            shape: None,
            model: MODEL,
            prompt_tokens: job.prompt + base,
            completion_tokens: job.wanted - base,
            prefixes: Vec::new(),
            tried: job.tried.clone(),
            preferences: Preferences::default(),
        };
        let node = &self.nodes[at];
        let clock = local(now, node.skew_ms);
        let Some(kernel) = &node.kernel else { return self.end_job(number, true) };
        let ranking = kernel.rank(&query, clock, dice);
        let Some(best) = ranking.candidates.first() else {
            job.tried.clear();
            self.plan(1_000, Task::Again { job: number });
            return Ok(());
        };
        let (provider, price, party) = (self.by_party[&best.provider], best.price, best.provider);
        if base > 0 {
            self.counts.failovers += 1;
        }
        let id = JobId::from_bytes(self.dice.bytes());
        self.jobs_numbered += 1;
        let stream = self.jobs_numbered;
        job.attempt = Some(Attempt {
            id,
            provider,
            stream,
            base: job.tokens.len(),
            counted: None,
            asked_at: now,
            first_at: None,
            seen_at: now,
            ending: false,
        });
        let start = StartJob {
            job: id,
            model: MODEL,
            shape: SHAPE,
            request: Digest::of(&job.seed.to_le_bytes()),
            seed: job.seed,
            prompt_tokens: job.prompt + base,
            completion_max: job.wanted - base,
            continues: job.last,
        };
        let prompt = start.prompt_tokens;
        let order = OrderJob { start, provider: party, price };
        self.streams.insert(stream, Stream { consumer: at, provider, job: number, last: [0; 2] });
        let work = Work { consumer: at, provider, prompt, price, sent: 0, delivered: 0 };
        self.work.insert(id, work);
        let agent = Some(self.nodes[at].agent.public().agent());
        let actor = Actor::Caller { key: None, agent, scope: Scope::Inference };
        self.ask_as(at, actor, Command::OrderJob(order), Then::Ordered { job: number })
    }

    pub(super) fn ordered(
        &mut self,
        number: u64,
        result: Result<Outcome, Rejection>,
    ) -> Result<(), String> {
        let Some(job) = self.jobs.get(&number) else { return Ok(()) };
        let (seed, prompt, wanted) = (job.seed, job.prompt, job.wanted);
        let resumed = job.tokens.clone();
        let Some(attempt) = &job.attempt else { return Ok(()) };
        let stream = attempt.stream;
        let Ok(Outcome::JobOrdered { order, .. }) = result else {
            // No money, or too much at once: nothing the mesh could do about.
            return self.end_job(number, true);
        };
        let order = WireDocument { bytes: order.bytes().to_vec(), signature: order.signature() };
        self.note_order(stream, &order);
        let body = format!("{prompt} {wanted} {seed}").into_bytes();
        let path = "/v1/chat/completions".to_owned();
        let request = JobRequest { order, body, path, resumed };
        self.plan(1_000, Task::LookAtAttempt { stream });
        self.send_to_provider(stream, ToProvider::Request(request))
    }

    pub(super) fn at_consumer(&mut self, stream: u64, frame: ToConsumer) -> Result<(), String> {
        let now = self.now;
        let Some(job) = self.attempt_on(stream) else { return Ok(()) };
        let Some(attempt) = job.attempt.as_mut().filter(|attempt| !attempt.ending) else {
            return Ok(());
        };
        attempt.seen_at = now;
        match frame {
            ToConsumer::Accepted { prompt_tokens, .. } => {
                attempt.counted = Some(prompt_tokens);
                Ok(())
            }
            ToConsumer::Refused { retry_after_ms, code, .. } => {
                *self.counts.refusals.entry(code).or_default() += 1;
                let retry_after_ms = retry_after_ms.unwrap_or(10_000);
                self.give_up(stream, Observed::Refused { retry_after_ms })
            }
            ToConsumer::Tokens { tokens, .. } => {
                attempt.first_at.get_or_insert(now);
                job.tokens.extend(tokens);
                job.tokens.truncate(job.wanted as usize);
                let received = job.tokens.len() - attempt.base;
                let id = attempt.id;
                if let Some(work) = self.work.get_mut(&id) {
                    work.delivered = count(received);
                }
                self.vouch(stream)
            }
            ToConsumer::End { receipt, .. } => self.settle(stream, receipt),
            ToConsumer::Failed { .. } => self.give_up(stream, Observed::Failed),
            // No job of this world asks for vectors, nor what is in its prompt.
            ToConsumer::Working { .. } | ToConsumer::Vector { .. } | ToConsumer::Prompt { .. } => {
                Ok(())
            }
        }
    }

    fn attempt_on(&mut self, stream: u64) -> Option<&mut Job> {
        let known = self.streams.get(&stream)?;
        let job = self.jobs.get_mut(&known.job)?;
        let is_current = job.attempt.as_ref().is_some_and(|attempt| attempt.stream == stream);
        is_current.then_some(job)
    }

    /// Signs for what came.
    fn vouch(&mut self, stream: u64) -> Result<(), String> {
        let ahead = if self.config.bug == Bug::PaysAhead { 6 } else { 0 };
        let Some(job) = self.attempt_on(stream) else { return Ok(()) };
        let (at, wanted) = (job.node, job.wanted as usize);
        let Some(attempt) = &job.attempt else { return Ok(()) };
        let received = &job.tokens[attempt.base..];
        let completion_tokens = count((received.len() + ahead).min(wanted - attempt.base));
        let command = Command::Deliver {
            job: attempt.id,
            completion_tokens,
            stream: digest(received),
            prompt_tokens: attempt.counted,
        };
        if self.nodes[at].role == Role::NoVouchers {
            *self.counts.lies.entry("no voucher").or_default() += 1;
            return Ok(());
        }
        self.ask(at, command, Then::Vouched { stream })
    }

    pub(super) fn vouched(
        &mut self,
        stream: u64,
        result: Result<Outcome, Rejection>,
    ) -> Result<(), String> {
        let Ok(Outcome::VoucherSigned { voucher }) = result else { return Ok(()) };
        let (bytes, signature) = (voucher.bytes().to_vec(), voucher.signature());
        self.send_to_provider(stream, ToProvider::Voucher(WireDocument { bytes, signature }))?;
        let Some(at) = self.streams.get(&stream).map(|known| known.consumer) else {
            return Ok(());
        };
        match self.fallen(at, &voucher)? {
            Some(less) => self.send_to_provider(stream, ToProvider::Voucher(less)),
            None => Ok(()),
        }
    }

    fn settle(&mut self, stream: u64, receipt: WireDocument) -> Result<(), String> {
        let leaves = self.config.bug == Bug::LeavesHolds;
        let Some(job) = self.attempt_on(stream) else { return Ok(()) };
        let at = job.node;
        let Some(attempt) = job.attempt.as_mut() else { return Ok(()) };
        attempt.ending = true;
        if leaves {
            return self.next_step(stream);
        }
        let received = &job.tokens[attempt.base..];
        let command = Command::SettleJob {
            job: attempt.id,
            receipt: receipt.bytes,
            signature: receipt.signature,
            completion_tokens: count(received.len()),
            output: digest(received),
        };
        self.ask(at, command, Then::Settled { stream })
    }

    pub(super) fn settled(
        &mut self,
        stream: u64,
        result: Result<Outcome, Rejection>,
    ) -> Result<(), String> {
        let now = self.now;
        let Some(job) = self.attempt_on(stream) else { return Ok(()) };
        let Some(attempt) = job.attempt.as_ref() else { return Ok(()) };
        match result {
            Ok(Outcome::ReceiptRefused { .. }) => {
                *self.counts.lies.entry("receipt refused").or_default() += 1;
                return self.give_up(stream, Observed::Cheated);
            }
            Err(_) => return self.give_up(stream, Observed::Failed),
            Ok(_) => {}
        }
        let first_at = attempt.first_at.unwrap_or(now);
        let outcome = Observed::Served {
            model: MODEL,
            prefix: None,
            first_token_ms: u32::try_from(first_at - attempt.asked_at).unwrap_or(u32::MAX),
            tokens: count(job.tokens.len() - attempt.base),
            tokens_ms: u32::try_from(now - first_at).unwrap_or(u32::MAX),
        };
        let (at, provider) = (job.node, attempt.provider);
        self.observe(at, provider, outcome)?;
        self.next_step(stream)
    }

    fn observe(&mut self, at: usize, provider: usize, outcome: Observed) -> Result<(), String> {
        let provider = self.nodes[provider].party;
        let observation = Observation { provider, outcome };
        self.give(at, Input::Mesh(MeshInput::Observed(observation)))
    }

    /// The provider is lost, refuses or cheats: what came is charged, and another goes on.
    fn give_up(&mut self, stream: u64, outcome: Observed) -> Result<(), String> {
        let Some(job) = self.attempt_on(stream) else { return Ok(()) };
        let Some(attempt) = job.attempt.as_mut() else { return Ok(()) };
        attempt.ending = true;
        let (at, provider) = (job.node, attempt.provider);
        let received = &job.tokens[attempt.base..];
        let command = Command::AbandonJob {
            job: attempt.id,
            completion_tokens: count(received.len()),
            stream: digest(received),
            prompt_tokens: None,
            failed: false,
        };
        self.observe(at, provider, outcome)?;
        self.ask(at, command, Then::Abandoned { stream })
    }

    pub(super) fn abandoned(
        &mut self,
        stream: u64,
        result: Result<Outcome, Rejection>,
    ) -> Result<(), String> {
        if let Ok(Outcome::JobFinished { voucher: Some(voucher), .. }) = result {
            let (bytes, signature) = (voucher.bytes().to_vec(), voucher.signature());
            let last = ToProvider::Voucher(WireDocument { bytes, signature });
            self.send_to_provider(stream, last)?;
        }
        self.send_to_provider(stream, ToProvider::Cancel)?;
        self.next_step(stream)
    }

    /// An attempt has ended: the job is done, or goes on elsewhere.
    fn next_step(&mut self, stream: u64) -> Result<(), String> {
        let Some(number) = self.streams.get(&stream).map(|known| known.job) else {
            return Ok(());
        };
        let Some(job) = self.attempt_on(stream) else { return Ok(()) };
        let Some(attempt) = job.attempt.take() else { return Ok(()) };
        job.last = Some(attempt.id);
        if job.tokens.len() >= job.wanted as usize {
            let (seed, at) = (job.seed, job.node);
            let right = (0..).map(|place| token(seed, place)).take(job.tokens.len());
            if !right.eq(job.tokens.iter().copied()) {
                return Err(format!("node {at} was answered with another text"));
            }
            return self.end_job(number, false);
        }
        let provider = self.nodes[attempt.provider].party;
        if let Some(job) = self.jobs.get_mut(&number) {
            job.tried.insert(provider);
        }
        self.order(number)
    }

    fn end_job(&mut self, number: u64, excused: bool) -> Result<(), String> {
        let Some(job) = self.jobs.remove(&number) else { return Ok(()) };
        if self.nodes[job.node].is_honest() {
            if job.tokens.len() >= job.wanted as usize {
                self.counts.completed += 1;
            } else if excused || job.cut_off {
                self.counts.excused += 1;
            } else {
                self.counts.failed += 1;
            }
        }
        Ok(())
    }

    pub(super) fn look_at_attempt(&mut self, stream: u64) -> Result<(), String> {
        let now = self.now;
        let Some(job) = self.attempt_on(stream) else { return Ok(()) };
        let Some(attempt) = job.attempt.as_ref().filter(|attempt| !attempt.ending) else {
            return Ok(());
        };
        if now >= attempt.seen_at + STALLED_MS {
            return self.give_up(stream, Observed::Failed);
        }
        self.plan(1_000, Task::LookAtAttempt { stream });
        Ok(())
    }

    /// Sends a frame to the provider of a job, unless the stream breaks.
    fn send_to_provider(&mut self, stream: u64, frame: ToProvider) -> Result<(), String> {
        self.count_job_frame(encode(&frame).len());
        if let Some(at) = self.frame_arrives(stream, 0) {
            self.plan_at(at, Task::ToProvider { stream, frame: Box::new(frame) });
        }
        Ok(())
    }

    /// A stream that belongs to no job of a client.
    pub(super) fn foreign_stream(&mut self, consumer: usize, provider: usize) -> u64 {
        self.jobs_numbered += 1;
        let stream = Stream { consumer, provider, job: 0, last: [0; 2] };
        self.streams.insert(self.jobs_numbered, stream);
        self.jobs_numbered
    }

    pub(super) fn send_to_consumer(&mut self, stream: u64, frame: ToConsumer) {
        self.count_job_frame(encode(&frame).len());
        if let Some(at) = self.frame_arrives(stream, 1) {
            self.plan_at(at, Task::ToConsumer { stream, frame: Box::new(frame) });
        }
    }

    /// When the next frame of a direction arrives; never on a stream that is broken.
    fn frame_arrives(&mut self, stream: u64, direction: usize) -> Option<u64> {
        let known = self.streams.get(&stream)?;
        let (consumer, provider) = (known.consumer, known.provider);
        let open = self.links.is_open(consumer, provider);
        if !open || !self.links.reaches(consumer, provider) {
            self.counts.lost += 1;
            return None;
        }
        if self.trading && !self.config.calm && self.dice.one_in(1_500) {
            self.kill_link(super::links::pair(consumer, provider));
            return None;
        }
        let delay = self.dice.between(4, 40);
        let known = self.streams.get_mut(&stream)?;
        let at = (self.now + delay).max(known.last[direction]);
        known.last[direction] = at;
        Some(at)
    }

    /// A connection is gone, and with it every job on it.
    pub(super) fn streams_broken(&mut self, between: Pair) -> Result<(), String> {
        let all = self
            .streams
            .iter()
            .filter(|(_, stream)| super::links::pair(stream.consumer, stream.provider) == between);
        let broken: Vec<u64> = all.map(|(number, _)| *number).collect();
        for stream in broken {
            if self.serving.contains_key(&stream) {
                self.abandon_serving(stream)?;
            }
            let current = self.attempt_on(stream).and_then(|job| job.attempt.as_ref());
            if current.is_some_and(|attempt| !attempt.ending) {
                self.give_up(stream, Observed::Failed)?;
            } else if current.is_none() {
                self.streams.remove(&stream);
            }
        }
        Ok(())
    }

    /// A node lost power: what it knew of its jobs is gone.
    pub(super) fn forget_streams(&mut self, at: usize) {
        let lost: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| job.node == at).map(|(number, _)| *number).collect();
        for number in lost {
            // A client that asked a node without power asks nobody.
            let _ended = self.end_job(number, true);
        }
        self.forget_serving(at);
    }

    /// Whether clients still wait.
    pub(super) fn is_busy(&self) -> bool {
        self.jobs.values().any(|job| self.nodes[job.node].is_honest())
    }
}

/// The token at a place of the answer to a seeded request, the same at every provider.
pub(super) fn token(seed: u32, place: u32) -> u32 {
    let mixed = (u64::from(seed) << 32 | u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 33).unwrap_or_default()
}

pub(super) fn digest(tokens: &[u32]) -> Digest {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    Digest::of(&bytes)
}

pub(super) fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
