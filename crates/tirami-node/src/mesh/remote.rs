//! One job at another node, from its order to its charge: what the consumer's side of the stream
//! does.
//!
//! What was received is signed for as the client takes it, so that the provider never has to wait
//! and never works for long without a signature.

mod vectors;

use core::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use tirami_core::{Digest, DocumentId, Flop, JobId, PartyId, Ppm, Signed, Timestamp, Trm};
use tirami_infer::engine::TokenLogprobs;
use tirami_kernel::mesh::MeshInput;
use tirami_kernel::scheduler::{Observation, Observed};
use tirami_ledger::Rejection;
use tirami_ledger::book::START_WITHIN_MS;
use tirami_ledger::command::{Actor, Command, OrderJob, Outcome, StartJob};
use tirami_ledger::documents::{FinishReason, Voucher};
use tirami_proto::{InvalidRequest, JobRequest, ToConsumer, ToProvider, WireDocument, encode};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::ask::Invalid;
use super::frames::{Open, frames};
use super::retold::{Hearing, Retold, Told};
use super::serve::{BEAT, MEET_WITHIN, REQUEST_WITHIN};
use super::source::ordered;
use super::{FrameSender, JobStreams, OpenError, likelihood, stream_digest};
use crate::handle::{Handle, JobToken, SubmitError};

/// How long opening a job's stream may take: only those are asked that are connected.
const OPEN_WITHIN: Duration = Duration::from_secs(2);
/// A request is sent in pieces of so many bytes, each of which shows that the provider goes on
/// reading.
const PIECE_BYTES: usize = 64 * 1024;
/// How long a provider may take none of them: it may read other requests before this one. In all
/// it has [`REQUEST_WITHIN`], after which it gives up itself.
const PIECE_WITHIN: Duration = Duration::from_secs(5);
/// How long after the request was sent a provider may take to answer the order: it may have to
/// learn who asks, and it counts the prompt.
const ACCEPT_WITHIN: Duration = MEET_WITHIN.saturating_add(Duration::from_secs(2));
/// A provider from which nothing at all came for so long is lost.
const SILENCE_MAX: Duration = BEAT.saturating_mul(3);
/// A provider stands still that may send and makes no token for [`STALL_INTERVALS`] times what its
/// tokens took so far, within these bounds; before its first token, when it does not read on in the
/// prompt for the least of them, wherever in its queue it says that the job is.
pub(super) const STALL_MIN: Duration = Duration::from_secs(3);
const STALL_MAX: Duration = Duration::from_secs(4);
const STALL_INTERVALS: u32 = 8;
/// A provider that says it reads may take so many times the longest step it took so far.
const STALL_STEPS: u32 = 2;
/// How long the first token may take in all, and how much more for each token of the prompt: a
/// slow reader reads ten in a second. It counts from the end of the queue.
const PREFILL_MAX: Duration = Duration::from_secs(60);
const PREFILL_TOKEN: Duration = Duration::from_millis(100);
/// How long one token may take where nobody else is better.
const TOKEN_MAX: Duration = Duration::from_secs(60);
/// Frames without a token that are believed before the clock is asked: a provider sends one in each
/// [`BEAT`], and none of them may keep the clock from being asked at all.
const EMPTY_FRAMES_MAX: u32 = 64;
/// How long a job may wait in a provider's queue: its order is to begin by then.
const QUEUED_MAX: Duration = Duration::from_millis(START_WITHIN_MS);
/// Frames that wait to be sent to a provider at most.
const OUTGOING_MAX: usize = 4;
/// How long the last voucher may take to arrive.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// What an attempt needs of the node.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) handle: Handle,
    pub(crate) streams: JobStreams,
}

/// An order for one provider.
pub(super) struct Wanted {
    pub(super) actor: Actor,
    pub(super) start: StartJob,
    pub(super) provider: PartyId,
    pub(super) price: Ppm,
    /// The HTTP request's path and body.
    pub(super) path: &'static str,
    pub(super) body: Bytes,
    /// What other providers have delivered of the answer.
    pub(super) resumed: Vec<u32>,
    /// Digest of the whole conversation: who answered it has it cached.
    pub(super) prefix: Option<Digest>,
    /// What is to be told of the prompt.
    pub(super) retold: Retold,
}

/// Why an attempt did not begin. Nothing is charged.
pub(super) enum Unbegun {
    /// This node's own book refuses.
    Book(SubmitError),
    /// A person has to agree first.
    Approval { approval: u64, expires_at: Timestamp, max_amount: Trm },
    /// The provider refused, after it had the order for so long.
    Refused { code: String, message: String, invalid: Option<InvalidRequest>, kept: Duration },
    /// The provider did not answer.
    Lost { reason: String },
    /// The request was not taken in time: the fault of the provider, or of the line to it.
    Stuck { reason: String },
    /// This node has as many streams to the provider as it may have.
    Full { reason: String },
}

/// What comes next of an answer.
pub(super) enum Next {
    /// What is asked of the prompt, before the first token.
    Told(Told),
    Tokens {
        tokens: Vec<u32>,
        text: String,
        logprobs: Vec<TokenLogprobs>,
    },
    End {
        text: String,
        finish: FinishReason,
        /// The provider's; this node's engine gives none.
        receipt: Option<WireDocument>,
        /// Which stop text ended it, by its place.
        stop: Option<u32>,
    },
    /// The provider says that it lives and stands still: another one may be better.
    Slow {
        reason: String,
        /// It has not begun, so nobody but one with a free place is better.
        is_queued: bool,
    },
    /// The provider is lost.
    Lost {
        reason: String,
    },
    /// The provider said that it cannot go on.
    Failed {
        reason: String,
    },
    /// The request itself is at fault, so that nobody could go on.
    Invalid(Invalid),
    /// The kernel ordered the end.
    Ordered,
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) provider: PartyId,
    pub(crate) trade: DocumentId,
    pub(crate) flop: Flop,
    /// What the work costs, the mesh's fee included.
    pub(crate) amount: Trm,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    /// What the agent has left.
    pub(crate) available: Option<Trm>,
    /// How it ended, for people.
    pub(crate) ended: String,
}

pub(super) use vectors::Read;
pub(crate) use vectors::WantedVectors;

pub(super) type Signing = Pin<Box<dyn Future<Output = Result<Outcome, SubmitError>> + Send>>;

/// A job that runs at another node.
pub(super) struct Attempt {
    handle: Handle,
    job: JobId,
    order: DocumentId,
    provider: PartyId,
    start: StartJob,
    pub(super) prompt_tokens: u32,
    window: u32,
    outgoing: mpsc::Sender<ToProvider>,
    frames: BoxStream<'static, ToConsumer>,
    /// Ids of the tokens that came from this provider.
    pub(super) tokens: Vec<u32>,
    /// Cancelled when the kernel orders the end.
    pub(super) token: JobToken,
    /// Tokens the client has taken of them, those signed for, and the signature under way.
    delivered: u32,
    vouched: u32,
    signing: Option<Signing>,
    /// Tokens that the newest signature is for, whatever came of it.
    asked: u32,
    ordered_at: Instant,
    first_at: Option<Instant>,
    heard_at: Instant,
    token_at: Instant,
    /// How long a token may take, once the first one came.
    patience: Duration,
    prefill: Prefill,
    /// Frames without a token since the last one with some.
    empty_frames: u32,
    /// What it is to tell of the prompt, until all of it has come.
    hearing: Option<Hearing>,
    prefix: Option<Digest>,
}

/// How far a provider is before its first token, as it says.
struct Prefill {
    /// Since when it holds a place; while it waits, since the order.
    since: Instant,
    place_in_queue: u32,
    /// It came out of the queue, or read: it waits no more, whatever it says.
    has_begun: bool,
    read: u32,
    /// When it last read on, and the longest time between two such steps.
    step_at: Instant,
    longest: Duration,
    /// How long it may stand still.
    patience: Duration,
}

impl Prefill {
    const fn new(now: Instant) -> Self {
        Self {
            since: now,
            place_in_queue: 0,
            has_begun: false,
            read: 0,
            step_at: now,
            longest: Duration::ZERO,
            patience: STALL_MIN,
        }
    }

    /// It says that so many tokens of `most` are read. A place in its queue is only its word: that
    /// it moves up is no step.
    fn told(&mut self, now: Instant, (read, most): (u32, u32), place_in_queue: u32) {
        if place_in_queue > 0 && !self.has_begun {
            self.place_in_queue = place_in_queue;
            return;
        }
        let read = read.min(most);
        if self.place_in_queue > 0 {
            (self.since, self.step_at, self.has_begun) = (now, now, true);
        } else if read > self.read {
            self.longest = self.longest.max(now.duration_since(self.step_at));
            (self.step_at, self.has_begun) = (now, true);
        }
        self.place_in_queue = 0;
        self.read = self.read.max(read);
    }

    /// When it stands still, and when it is lost.
    fn deadlines(&self, prompt_tokens: u32) -> (Instant, Instant) {
        let still = self.step_at + self.patience.max(self.longest * STALL_STEPS);
        let most = match self.place_in_queue {
            0 => PREFILL_MAX + PREFILL_TOKEN * prompt_tokens,
            _ => QUEUED_MAX,
        };
        (still, self.since + most)
    }
}

impl Attempt {
    /// Signs an order, sends it, and waits until the provider takes it.
    pub(super) async fn begin(client: &Client, wanted: Wanted) -> Result<Self, Unbegun> {
        let Wanted { actor, start, provider, price, path, body, resumed, prefix, retold } = wanted;
        // Who goes on with an answer tells nothing of its prompt.
        let hears = retold.is_anything() && resumed.is_empty();
        let handle = client.handle.clone();
        // Before the order, so that no word to end it can be missed.
        let token = handle.job_token(start.job);
        let command = OrderJob { start: start.clone(), provider, price };
        let order = ordered(&handle, actor, Command::OrderJob(command)).await?;
        let ordered_at = Instant::now();
        let (body, path) = (body.to_vec(), path.to_owned());
        let request = JobRequest { order: wire(&order), body, path, resumed };
        let job = start.job;
        let opened = open(client, provider, request).await;
        let opened = opened.and_then(|opened| opened.checked(&start));
        let Opened { outgoing, frames, prompt_tokens, window } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                void(&handle, job).await;
                return Err(error);
            }
        };
        let now = Instant::now();
        Ok(Self {
            handle,
            job,
            order: order.id(),
            provider,
            start,
            prompt_tokens,
            window,
            outgoing,
            frames,
            tokens: Vec::new(),
            token,
            delivered: 0,
            vouched: 0,
            signing: None,
            asked: 0,
            ordered_at,
            first_at: None,
            heard_at: now,
            token_at: now,
            patience: STALL_MAX,
            prefill: Prefill::new(now),
            empty_frames: 0,
            hearing: hears.then(|| Hearing::new(prompt_tokens, retold)),
            prefix,
        })
    }

    pub(super) const fn job(&self) -> JobId {
        self.job
    }

    pub(super) const fn provider(&self) -> PartyId {
        self.provider
    }

    /// How long it has had the job.
    pub(super) fn kept(&self) -> Duration {
        self.ordered_at.elapsed()
    }

    /// What comes next. Waiting for it can be given up without loss.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = self.token.cancelled() => return Next::Ordered,
                signed = signed(&mut self.signing) => self.signed(signed),
                frame = self.frames.next() => {
                    if let Some(next) = self.heard(frame) {
                        return next;
                    }
                    self.empty_frames += 1;
                    if self.empty_frames > EMPTY_FRAMES_MAX && self.deadline() <= Instant::now() {
                        return self.overdue();
                    }
                }
                () = sleep_until(deadline) => return self.overdue(),
            }
        }
    }

    /// Nobody else is better: the provider may stand still for twice the time. While the job is in
    /// its queue it is asked again as soon, because a place may become free elsewhere.
    pub(super) fn wait_on(&mut self) {
        if self.first_at.is_some() {
            self.patience = 2 * self.patience.max(self.token_at.elapsed());
            return;
        }
        if self.prefill.place_in_queue == 0 {
            self.prefill.patience *= 2;
        }
        self.prefill.step_at = Instant::now();
    }

    fn overdue(&self) -> Next {
        let now = Instant::now();
        let lost = || Next::Lost { reason: "nothing came from it any more".to_owned() };
        if self.heard_at + SILENCE_MAX <= now {
            return lost();
        }
        if self.first_at.is_some() {
            let reason = "no token came from it any more".to_owned();
            let is_lost = self.token_at + TOKEN_MAX <= now;
            return if is_lost { lost() } else { Next::Slow { reason, is_queued: false } };
        }
        let (still, latest) = self.prefill.deadlines(self.prompt_tokens);
        if latest <= now || still > now {
            return lost();
        }
        let Prefill { place_in_queue, read, .. } = self.prefill;
        let is_queued = place_in_queue > 0;
        let reason = match is_queued {
            true => format!("it kept the job waiting at place {place_in_queue} of its queue"),
            false => format!("it stood still after reading {read} tokens of the prompt"),
        };
        Next::Slow { reason, is_queued }
    }

    /// How long the next token may take.
    fn token_patience(&self, first: Instant) -> Duration {
        let intervals = count(&self.tokens).saturating_sub(1);
        if intervals == 0 || self.patience > STALL_MAX {
            // The pace is not known yet, or there is nobody else.
            return self.patience.min(TOKEN_MAX);
        }
        let interval = self.token_at.duration_since(first) / intervals;
        (interval * STALL_INTERVALS).clamp(STALL_MIN, STALL_MAX)
    }

    /// Until then something has to come.
    fn deadline(&self) -> Instant {
        let silence = self.heard_at + SILENCE_MAX;
        let waits_for_me = count(&self.tokens).saturating_sub(self.vouched) >= self.window
            || (self.only_reads() && self.signing.is_some());
        if waits_for_me {
            return silence;
        }
        let stall = match self.first_at {
            None => {
                let (still, lost) = self.prefill.deadlines(self.prompt_tokens);
                still.min(lost)
            }
            Some(first) => self.token_at + self.token_patience(first),
        };
        silence.min(stall)
    }

    fn heard(&mut self, frame: Option<ToConsumer>) -> Option<Next> {
        let lost = |reason: &str| Some(Next::Lost { reason: reason.to_owned() });
        self.heard_at = Instant::now();
        let begins = matches!(frame, Some(ToConsumer::Tokens { .. } | ToConsumer::End { .. }));
        if begins && self.hearing.is_some() {
            return lost("it left out what it was to tell of the prompt");
        }
        match frame {
            None => lost("its connection ended"),
            Some(ToConsumer::Failed { reason, invalid: None }) => Some(Next::Failed { reason }),
            Some(ToConsumer::Failed { reason: message, invalid: Some(code) }) => {
                Some(Next::Invalid(Invalid { code, message, param: None }))
            }
            Some(ToConsumer::Tokens { tokens, text, likelihoods }) => {
                let most = self.start.completion_max as usize;
                if self.tokens.len().saturating_add(tokens.len()) > most {
                    // An order pays for a long prompt, and what a shorter one leaves of that could
                    // buy more tokens than were meant: the answer ends here.
                    let (text, finish) = (String::new(), FinishReason::Length);
                    return Some(Next::End { text, finish, receipt: None, stop: None });
                }
                if tokens.is_empty() && text.is_empty() {
                    return None;
                }
                if tokens.is_empty() {
                    return lost("it sent text without tokens");
                }
                self.token_at = self.heard_at;
                self.patience = STALL_MAX;
                self.first_at.get_or_insert(self.heard_at);
                self.empty_frames = 0;
                self.tokens.extend_from_slice(&tokens);
                let logprobs = likelihoods.into_iter().map(likelihood::heard).collect();
                Some(Next::Tokens { tokens, text, logprobs })
            }
            Some(ToConsumer::End { text, finish, receipt, stop }) => {
                let finish = match finish {
                    0 => FinishReason::Stop,
                    1 => FinishReason::Length,
                    _ => return lost("it ended the answer before its end"),
                };
                Some(Next::End { text, finish, receipt: Some(receipt), stop })
            }
            Some(ToConsumer::Working { read, place_in_queue }) => {
                let read = (read, self.prompt_tokens);
                self.prefill.told(self.heard_at, read, place_in_queue);
                None
            }
            Some(ToConsumer::Accepted { .. } | ToConsumer::Refused { .. }) => {
                lost("it answered the order twice")
            }
            Some(ToConsumer::Vector { .. }) => lost("it sent a vector instead of text"),
            Some(ToConsumer::Prompt { tokens, text, likelihoods }) => {
                let Some(hearing) = &mut self.hearing else {
                    return lost("it told of the prompt what nobody asked");
                };
                match hearing.add(tokens, text, likelihoods) {
                    Ok(true) => self.told(),
                    Ok(false) => {
                        // There are no more of them than tokens.
                        self.prefill.step_at = self.heard_at;
                        None
                    }
                    Err(reason) => lost(reason),
                }
            }
        }
    }

    /// All is told of the prompt. Where that is the whole job, it is signed for now.
    fn told(&mut self) -> Option<Next> {
        let told = self.hearing.take()?.told();
        self.prefill.step_at = self.heard_at;
        if self.only_reads() {
            self.sign();
        }
        Some(Next::Told(told))
    }

    /// Whether the job is to read its prompt and to make nothing.
    const fn only_reads(&self) -> bool {
        self.start.completion_max == 0
    }

    /// The client has taken `delivered` of this provider's tokens. Signs for them when half a
    /// window is not signed for; it does not wait, and one signature is under way at a time, which
    /// waits for room in the kernel's queue by itself.
    pub(super) fn deliver(&mut self, delivered: u32) {
        self.delivered = self.delivered.max(delivered.min(count(&self.tokens)));
        let due = if self.vouched == 0 { 1 } else { self.vouched + (self.window / 2).max(1) };
        if self.delivered < due || self.signing.is_some() {
            return;
        }
        self.sign();
    }

    /// Has a voucher signed for what was delivered.
    fn sign(&mut self) {
        let command = Command::Deliver {
            job: self.job,
            completion_tokens: self.delivered,
            stream: stream_digest(&self.tokens[..self.delivered as usize]),
            prompt_tokens: Some(self.prompt_tokens),
        };
        self.asked = self.delivered;
        let handle = self.handle.clone();
        self.signing = Some(Box::pin(async move { handle.insist(Actor::Node, command).await }));
    }

    fn signed(&mut self, signed: Result<Outcome, SubmitError>) {
        self.signing = None;
        match signed {
            Ok(Outcome::VoucherSigned { voucher }) => {
                self.vouched = self.vouched.max(voucher.body().tokens);
                self.post(&voucher);
                // Whoever only reads has waited for it.
                self.prefill.step_at = Instant::now();
                self.deliver(self.delivered);
            }
            Ok(_) => {}
            // The next one is cumulative, and for more tokens: one for the same would be refused
            // again and again.
            Err(error) => {
                tracing::debug!(job = %self.job, %error, "a voucher was not signed");
                if self.delivered > self.asked {
                    self.deliver(self.delivered);
                }
            }
        }
    }

    fn post(&self, voucher: &Signed<Voucher>) {
        // A provider that does not read is lost soon.
        drop(self.outgoing.try_send(ToProvider::Voucher(wire(voucher))));
    }

    async fn all_signed(&mut self) {
        while self.signing.is_some() {
            let outcome = signed(&mut self.signing).await;
            self.signing = None;
            if let Ok(Outcome::VoucherSigned { voucher }) = outcome {
                self.vouched = self.vouched.max(voucher.body().tokens);
                self.post(&voucher);
            }
        }
    }

    /// Charges a complete answer by its receipt; where that is not right, or `delivered` is less
    /// than all, by what was delivered.
    pub(super) async fn settle(mut self, receipt: WireDocument, delivered: u32) -> Charge {
        self.all_signed().await;
        let received = count(&self.tokens);
        // What only reads was signed for when it came.
        if !self.only_reads() && (received == 0 || delivered < received) {
            return self.abandon(delivered, "the client left".to_owned()).await;
        }
        let command = Command::SettleJob {
            job: self.job,
            receipt: receipt.bytes,
            signature: receipt.signature,
            completion_tokens: received,
            output: stream_digest(&self.tokens),
        };
        let settled = self.handle.insist(Actor::Node, command).await;
        match settled {
            Ok(outcome @ Outcome::JobFinished { .. }) => {
                if received > 0 {
                    let served = self.served();
                    observe(&self.handle, self.provider, served).await;
                }
                self.charge(outcome, received, "complete".to_owned())
            }
            Ok(Outcome::ReceiptRefused { refusal }) => {
                tracing::warn!(provider = %self.provider, %refusal, "a receipt was refused");
                observe(&self.handle, self.provider, Observed::Cheated).await;
                self.abandon(received, refusal.to_string()).await
            }
            other => {
                tracing::warn!(?other, "a job was not settled");
                self.abandon(received, "complete".to_owned()).await
            }
        }
    }

    /// Ends the job before its receipt, and charges `delivered` tokens.
    pub(super) async fn abandon(mut self, delivered: u32, ended: String) -> Charge {
        self.all_signed().await;
        let delivered = delivered.min(count(&self.tokens)).max(self.vouched);
        let command = Command::AbandonJob {
            job: self.job,
            completion_tokens: delivered,
            stream: stream_digest(&self.tokens[..delivered as usize]),
            prompt_tokens: Some(self.prompt_tokens),
            failed: false,
        };
        let outcome = self.handle.insist(Actor::Node, command).await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            // The kernel has charged or voided it already.
            Err(SubmitError::Rejected(Rejection::UnknownJob { .. })) => Outcome::Done,
            Err(error) => {
                tracing::error!(job = %self.job, %error, "a job could not be charged");
                Outcome::Done
            }
        };
        if let Outcome::JobFinished { voucher: Some(voucher), .. } = &outcome {
            self.post(voucher);
        }
        // The end of the stream says the same.
        drop(self.outgoing.try_send(ToProvider::Cancel));
        self.charge(outcome, delivered, ended)
    }

    fn charge(self, outcome: Outcome, completion_tokens: u32, ended: String) -> Charge {
        let charge = Charge {
            provider: self.provider,
            trade: self.order,
            flop: Flop::ZERO,
            amount: Trm::ZERO,
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            available: None,
            ended,
        };
        match outcome {
            Outcome::JobFinished { trade, flop, amount, fee, available, .. } => Charge {
                trade,
                flop,
                amount: amount.saturating_add(fee),
                available: Some(available),
                ..charge
            },
            _ => Charge { completion_tokens: 0, ..charge },
        }
    }

    fn served(&self) -> Observed {
        let ms = |from: Instant, to: Instant| {
            u32::try_from(to.duration_since(from).as_millis()).unwrap_or(u32::MAX)
        };
        let first = self.first_at.unwrap_or(self.token_at);
        Observed::Served {
            model: self.start.model,
            prefix: self.prefix,
            first_token_ms: ms(self.ordered_at, first),
            tokens: count(&self.tokens),
            tokens_ms: ms(first, self.token_at),
        }
    }
}

/// Tells the kernel what a provider did.
pub(super) async fn observe(handle: &Handle, provider: PartyId, outcome: Observed) {
    let observation = Observation { provider, outcome };
    // A kernel that has stopped ranks nobody.
    drop(handle.mesh_input(MeshInput::Observed(observation)).await);
}

/// A stream whose order is taken.
struct Opened {
    outgoing: mpsc::Sender<ToProvider>,
    frames: BoxStream<'static, ToConsumer>,
    prompt_tokens: u32,
    window: u32,
}

impl Opened {
    /// What the provider counted is within what was ordered.
    fn checked(self, start: &StartJob) -> Result<Self, Unbegun> {
        if self.prompt_tokens == 0 || self.prompt_tokens > start.prompt_tokens {
            let reason = "it counts more prompt tokens than were ordered, or none".to_owned();
            return Err(Unbegun::Lost { reason });
        }
        Ok(self)
    }
}

async fn open(client: &Client, provider: PartyId, request: JobRequest) -> Result<Opened, Unbegun> {
    let lost = |reason: String| Unbegun::Lost { reason };
    let opened = match timeout(OPEN_WITHIN, client.streams.open(provider)).await {
        Ok(opened) => opened,
        // It is there, so only a place for one more stream is missing.
        Err(_) if client.streams.rtt(provider).is_some() => Err(OpenError::Busy(provider)),
        Err(_) => Err(OpenError::Unreachable(provider)),
    };
    let mut stream = opened.map_err(|error| match error {
        OpenError::Busy(_) => Unbegun::Full { reason: error.to_string() },
        OpenError::Unreachable(_) => lost(error.to_string()),
    })?;
    hand_over(&mut stream.send, request).await?;
    let sent_at = Instant::now();
    let frames = frames(stream.receive, Open);
    let mut frames = frames.filter_map(|frame| core::future::ready(frame.ok())).boxed();
    let Ok(answer) = timeout(ACCEPT_WITHIN, frames.next()).await else {
        return Err(lost("it did not answer the order".to_owned()));
    };
    match answer {
        Some(ToConsumer::Accepted { prompt_tokens, window_tokens, .. }) => {
            let (outgoing, waiting) = mpsc::channel(OUTGOING_MAX);
            tokio::spawn(write(stream.send, waiting));
            Ok(Opened { outgoing, frames, prompt_tokens, window: window_tokens.max(1) })
        }
        Some(ToConsumer::Refused { code, message, invalid, .. }) => {
            Err(Unbegun::Refused { code, message, invalid, kept: sent_at.elapsed() })
        }
        Some(_) => Err(lost("it did not answer the order".to_owned())),
        None => Err(lost("its connection ended".to_owned())),
    }
}

/// Sends a request for as long as the provider goes on taking it.
async fn hand_over(send: &mut FrameSender<ToProvider>, request: JobRequest) -> Result<(), Unbegun> {
    let mut left = Bytes::from(encode(&ToProvider::Request(request)));
    let until = Instant::now() + REQUEST_WITHIN;
    while !left.is_empty() {
        let piece = left.split_to(left.len().min(PIECE_BYTES));
        let by = until.min(Instant::now() + PIECE_WITHIN);
        match timeout_at(by, send.send_bytes(piece)).await {
            Ok(sent) => sent.map_err(|error| Unbegun::Lost { reason: error.to_string() })?,
            Err(_) => {
                // Else what was written arrives late, and its end within the request reads as one
                // that was withheld.
                send.abort();
                let reason = "it did not take the request in time".to_owned();
                return Err(Unbegun::Stuck { reason });
            }
        }
    }
    Ok(())
}

/// Sends what waits, until the attempt is over or the provider gone.
async fn write(mut send: FrameSender<ToProvider>, mut waiting: mpsc::Receiver<ToProvider>) {
    while let Some(frame) = waiting.recv().await {
        if send.send(&frame).await.is_err() {
            return;
        }
    }
    send.finish();
    drop(timeout(LAST_WITHIN, send.flushed()).await);
}

/// Ends a job of which nothing was received.
async fn void(handle: &Handle, job: JobId) {
    let command = Command::AbandonJob {
        job,
        completion_tokens: 0,
        stream: Digest::of(&[]),
        prompt_tokens: None,
        failed: false,
    };
    match handle.insist(Actor::Node, command).await {
        Ok(_) | Err(SubmitError::Rejected(Rejection::UnknownJob { .. })) => {}
        Err(error) => tracing::error!(%job, %error, "a job could not be ended"),
    }
}

pub(super) async fn signed(signing: &mut Option<Signing>) -> Result<Outcome, SubmitError> {
    match signing {
        Some(signing) => signing.await,
        None => core::future::pending().await,
    }
}

fn count(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}

fn wire<T>(document: &Signed<T>) -> WireDocument
where
    T: tirami_core::Document,
{
    WireDocument { bytes: document.bytes().to_vec(), signature: document.signature() }
}
