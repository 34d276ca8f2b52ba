//! One job on its way to its consumer: tokens out, vouchers in, the receipt at the end.

use core::pin::{Pin, pin};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tirami_core::{JobId, PartyId, Signature, Timestamp, decode_body};
use tirami_infer::engine::{Failure, Finish, Generation, Piece, TokenLogprobs};
use tirami_ledger::command::{Actor, Command, FinishJob, Outcome};
use tirami_ledger::documents::FinishReason;
use tirami_proto::{LIKELIHOODS_PER_FRAME_MAX, ToConsumer, ToProvider, WireDocument};
use tokio::time::{Instant, sleep_until, timeout};

use super::crowd::Place;
use super::{
    BEAT, FLUSH_WITHIN, LAST_VOUCHER_WITHIN, Server, VOUCHER_WITHIN, VOUCHERS_REFUSED_MAX,
    WINDOW_TOKENS_MAX, count, shortened, wanted_from,
};
use crate::handle::SubmitError;
use crate::mesh::retold::Retelling;
use crate::mesh::{FrameSender, Invalid, likelihood, stream_digest};
use crate::models::Lease;

/// A round trip counts as at most this long.
const RTT_MAX: Duration = Duration::from_secs(1);
/// How much longer a consumer may keep its place for each token it signed for, while others wait
/// for one.
const VOUCHED_TOKEN: Duration = Duration::from_millis(250);

/// A job whose order is taken.
pub(super) struct Begun {
    pub(super) job: JobId,
    /// Prompt tokens, completion tokens at most, and the window.
    pub(super) counts: (u32, u32, u32),
    pub(super) build: String,
    pub(super) start_by: Timestamp,
    pub(super) generation: Generation,
    /// What is to be told of the prompt before the answer, if anything.
    pub(super) retelling: Option<Retelling>,
    pub(super) engine: Lease,
    pub(super) place: Place,
}

impl Begun {
    pub(super) const fn accepted(&self) -> ToConsumer {
        let (prompt_tokens, completion_max, window_tokens) = self.counts;
        ToConsumer::Accepted { prompt_tokens, completion_max, window_tokens }
    }
}

/// The consumer is gone, or does not read.
pub(super) struct Gone;

type Taking = Pin<Box<dyn Future<Output = (u32, Result<Outcome, SubmitError>)> + Send>>;

/// One job on its way to its consumer.
pub(super) struct Serving<'a> {
    server: &'a Server,
    peer: PartyId,
    job: JobId,
    prompt_tokens: u32,
    generation: Option<Generation>,
    /// A piece of it that was looked at before its turn.
    ahead: Option<Piece>,
    /// What is to be told of the prompt, until it is.
    retelling: Option<Retelling>,
    /// The prompt is to be read and nothing to be made.
    only_reads: bool,
    /// A voucher was taken, durably.
    is_signed: bool,
    send: FrameSender<ToConsumer>,
    rtt: Duration,
    window: u32,
    build: String,
    /// Until then the engine has to begin.
    start_by: Timestamp,
    /// Ids of all tokens that were sent.
    sent: Vec<u32>,
    first_at: Option<Instant>,
    /// Tokens that the consumer signed for, durably.
    vouched: u32,
    /// The voucher that the ledger looks at, and the newest one after it.
    taking: Option<Taking>,
    waiting: Option<WireDocument>,
    beat_at: Instant,
    /// Until then a voucher has to come, when the window is used up.
    patience: Instant,
    /// Since when the job stands still because the consumer does not sign or read, and for how
    /// long it did so before, in all.
    held_since: Option<Instant>,
    held: Duration,
    /// Vouchers of it that the ledger refused.
    refused: u32,
    /// Keeps the model in memory, and knows who waits in its queue.
    engine: Lease,
    place: Place,
}

impl<'a> Serving<'a> {
    pub(super) fn new(
        (server, peer): (&'a Server, PartyId),
        begun: Begun,
        send: FrameSender<ToConsumer>,
        rtt: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            server,
            peer,
            job: begun.job,
            prompt_tokens: begun.counts.0,
            generation: Some(begun.generation),
            ahead: None,
            retelling: begun.retelling,
            only_reads: begun.counts.1 == 0,
            is_signed: false,
            send,
            rtt: rtt.min(RTT_MAX),
            window: begun.counts.2,
            build: begun.build,
            start_by: begun.start_by,
            sent: Vec::new(),
            first_at: None,
            vouched: 0,
            taking: None,
            waiting: None,
            beat_at: now + BEAT,
            patience: now + VOUCHER_WITHIN,
            held_since: None,
            held: Duration::ZERO,
            refused: 0,
            engine: begun.engine,
            place: begun.place,
        }
    }

    pub(super) async fn run(mut self, mut frames: Pin<&mut impl Stream<Item = ToProvider>>) {
        let mut halt = pin!(self.server.halt());
        loop {
            let has_room = self.unvouched() < self.window() && !self.waits_for_pay();
            self.stands_still(!has_room);
            let deadline = if has_room { self.beat_at } else { self.beat_at.min(self.patience) };
            // The frames come last: the window ends what goes before them, and nothing would end
            // frames that come without a pause.
            tokio::select! {
                biased;
                reason = &mut halt => return self.fail(gives_up(reason), frames).await,
                taken = taken(&mut self.taking) => {
                    if self.took(taken).await.is_err() {
                        return self.abandon().await;
                    }
                }
                piece = next_of(&mut self.generation, &mut self.ahead), if has_room => match piece {
                    Some(Piece::Delta { tokens, text, logprobs }) => {
                        if self.retell().await.is_err() {
                            return self.abandon().await;
                        }
                        let told = self.made(tokens, text, &logprobs);
                        if let Some((text, finish)) = self.end_at_hand() {
                            return self.finish(told, text, finish).await;
                        }
                        if self.say_all(&told).await.is_err() {
                            return self.abandon().await;
                        }
                    }
                    Some(Piece::End { text, finish }) => {
                        if self.retell().await.is_err() {
                            return self.abandon().await;
                        }
                        if self.only_reads && !self.is_signed {
                            self.patience = Instant::now() + VOUCHER_WITHIN;
                            self.ahead = Some(Piece::End { text, finish });
                            continue;
                        }
                        return self.finish(Vec::new(), text, finish).await;
                    }
                    failed => {
                        if let Some(Piece::Failed { reason }) = failed {
                            tracing::warn!(reason, "the engine failed");
                        }
                        let failure = self.generation.as_ref().and_then(Generation::failure);
                        let told = broken(failure);
                        return self.fail(told, frames).await;
                    }
                },
                () = sleep_until(deadline) => {
                    if self.waits_too_long().await {
                        let reason = "it was not begun by the time that its order names";
                        return self.fail(gives_up(reason), frames).await;
                    }
                    let is_late = !has_room && self.is_late();
                    let working = self.working();
                    if is_late || self.say(&working).await.is_err() {
                        return self.abandon().await;
                    }
                }
                frame = frames.next() => match frame {
                    Some(ToProvider::Voucher(voucher)) => self.offered(voucher),
                    Some(ToProvider::Cancel | ToProvider::Request(_)) | None => {
                        return self.abandon().await;
                    }
                },
            }
        }
    }

    /// Whether it still waits in the queue after its order's time to begin.
    async fn waits_too_long(&mut self) -> bool {
        if !self.waits() {
            return false;
        }
        let now = self.server.handle.read(|_, now| now).await;
        // It may have begun while the time was asked for.
        now.is_ok_and(|now| now > self.start_by) && self.waits()
    }

    fn waits(&self) -> bool {
        self.generation.as_ref().is_some_and(|waiting| waiting.place_in_queue() > 0)
    }

    /// That the job is not forgotten, and how far it is.
    fn working(&self) -> ToConsumer {
        let of = |told: fn(&Generation) -> u32| self.generation.as_ref().map_or(0, told);
        let read = of(Generation::read_tokens);
        ToConsumer::Working { read, place_in_queue: of(Generation::place_in_queue) }
    }

    fn unvouched(&self) -> u32 {
        count(&self.sent).saturating_sub(self.vouched)
    }

    /// Tokens that may be sent ahead of the vouchers: what the ledger says, or what the engine
    /// makes in two round trips.
    fn window(&self) -> u32 {
        let sent = u128::from(count(&self.sent));
        let elapsed = self.first_at.map_or(0, |first| first.elapsed().as_millis()).max(1);
        let in_flight = sent * 2 * self.rtt.as_millis() / elapsed;
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX).min(WINDOW_TOKENS_MAX);
        if self.first_at.is_some() { self.window.max(in_flight) } else { self.window }
    }

    /// Tells what is asked of the prompt, once.
    async fn retell(&mut self) -> Result<(), Gone> {
        let Some(retelling) = self.retelling.take() else { return Ok(()) };
        let scored = self.generation.as_ref().map(Generation::take_prompt_logprobs);
        let scored = scored.unwrap_or_default();
        let engine = self.engine.clone();
        for frame in retelling.frames(&*engine, &scored) {
            self.say(&frame).await?;
        }
        Ok(())
    }

    /// Whether a prompt that was only read is told, and its consumer has not signed for it.
    const fn waits_for_pay(&self) -> bool {
        self.only_reads && !self.is_signed && self.ahead.is_some()
    }

    /// Counts tokens; gives the frames that bring them.
    fn made(
        &mut self,
        tokens: Vec<u32>,
        text: String,
        logprobs: &[TokenLogprobs],
    ) -> Vec<ToConsumer> {
        if self.unvouched() == 0 {
            self.patience = Instant::now() + VOUCHER_WITHIN;
        }
        self.first_at.get_or_insert_with(Instant::now);
        // What is on its way counts: the consumer may sign for it before this call returns.
        self.sent.extend_from_slice(&tokens);
        let mut likelihoods: Vec<_> = logprobs.iter().map(likelihood::told).collect();
        // The last frame has the text; an engine makes one token at a time, so it is the only one.
        let (mut tokens, mut frames) = (tokens, Vec::new());
        while likelihoods.len() > LIKELIHOODS_PER_FRAME_MAX {
            let rest = likelihoods.split_off(LIKELIHOODS_PER_FRAME_MAX);
            let later = tokens.split_off(LIKELIHOODS_PER_FRAME_MAX.min(tokens.len()));
            let (text, likelihoods_now) = (String::new(), likelihoods);
            frames.push(ToConsumer::Tokens { tokens, text, likelihoods: likelihoods_now });
            (tokens, likelihoods) = (later, rest);
        }
        frames.push(ToConsumer::Tokens { tokens, text, likelihoods });
        frames
    }

    /// The end of the answer, where the engine made it with the tokens before it. Those wait for
    /// the receipt: a voucher for them alone would be signed, sent and checked for nothing. Where
    /// they use up the window the receipt waits for a voucher, as always.
    fn end_at_hand(&mut self) -> Option<(String, Finish)> {
        if self.unvouched() >= self.window() {
            return None;
        }
        match self.generation.as_mut()?.pieces.try_recv().ok()? {
            Piece::End { text, finish } => Some((text, finish)),
            other => {
                self.ahead = Some(other);
                None
            }
        }
    }

    pub(super) async fn say(&mut self, frame: &ToConsumer) -> Result<(), Gone> {
        self.say_all(core::slice::from_ref(frame)).await
    }

    /// Sends frames; waits while the consumer does not read, but not for ever, and no longer than
    /// it may keep its place where others wait for one.
    async fn say_all(&mut self, frames: &[ToConsumer]) -> Result<(), Gone> {
        let now = Instant::now();
        self.beat_at = now + BEAT;
        let stood_still = self.held_since.is_some();
        self.stands_still(true);
        let late_at = now + self.may_hold().saturating_sub(self.held());
        let (engine, place, stop) = (&self.engine, &self.place, &self.server.stop);
        let is_sent = tokio::select! {
            biased;
            sent = timeout(VOUCHER_WITHIN, self.send.send_all(frames)) => {
                matches!(sent, Ok(Ok(())))
            }
            () = wanted_from(late_at, || is_wanted(engine, place)) => false,
            () = stop.cancelled() => false,
        };
        self.stands_still(stood_still);
        if is_sent { Ok(()) } else { Err(Gone) }
    }

    /// Counts for how long the job stands still because of its consumer.
    fn stands_still(&mut self, does: bool) {
        if does {
            self.held_since.get_or_insert_with(Instant::now);
        } else if let Some(since) = self.held_since.take() {
            self.held += since.elapsed();
        }
    }

    /// For how long it stood still in all.
    fn held(&self) -> Duration {
        self.held + self.held_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// For how long it may while others wait for the place.
    fn may_hold(&self) -> Duration {
        VOUCHER_WITHIN + VOUCHED_TOKEN * self.vouched
    }

    /// Has the ledger look at a voucher. They are cumulative, so the newest is enough.
    fn offered(&mut self, voucher: WireDocument) {
        if self.taking.is_some() {
            self.waiting = Some(voucher);
            return;
        }
        let tokens = decode_body::<tirami_ledger::documents::Voucher>(&voucher.bytes)
            .map_or(0, |voucher| voucher.tokens);
        let known = self.sent.len().min(tokens as usize);
        let command = Command::TakeVoucher {
            bytes: voucher.bytes,
            signature: voucher.signature,
            stream: stream_digest(&self.sent[..known]),
            sent: count(&self.sent),
        };
        let handle = self.server.handle.clone();
        let taking = async move { (tokens, handle.insist(Actor::Node, command).await) };
        self.taking = Some(Box::pin(taking));
    }

    /// What the ledger said of a voucher. A consumer of which it refused too many is as good as
    /// gone.
    async fn took(
        &mut self,
        (tokens, taken): (u32, Result<Outcome, SubmitError>),
    ) -> Result<(), Gone> {
        self.taking = None;
        self.is_signed |= taken.is_ok();
        match taken {
            // The same word again buys no more time.
            Ok(_) if tokens > self.vouched => {
                self.vouched = tokens;
                self.patience = Instant::now() + VOUCHER_WITHIN;
            }
            Ok(_) => {}
            Err(error) => {
                self.refused += 1;
                self.server.voucher_refused((self.peer, self.job), &error).await;
            }
        }
        if self.refused >= VOUCHERS_REFUSED_MAX {
            return Err(Gone);
        }
        if let Some(next) = self.waiting.take() {
            self.offered(next);
        }
        Ok(())
    }

    async fn all_taken(&mut self) {
        while self.taking.is_some() {
            let taken = taken(&mut self.taking).await;
            if self.took(taken).await.is_err() {
                return;
            }
        }
    }

    /// Whether a consumer whose window is used up has kept its place for too long without signing,
    /// or by signing or reading too slowly while others wait for it.
    fn is_late(&self) -> bool {
        let is_slow = self.held() > self.may_hold();
        self.patience <= Instant::now() || (is_slow && is_wanted(&self.engine, &self.place))
    }

    /// The answer is complete: the receipt goes with its last text, and with the tokens before it
    /// that were not `told` yet.
    async fn finish(mut self, mut told: Vec<ToConsumer>, text: String, finish: Finish) {
        let ended = self.generation.take();
        let (cached, stop) = ended
            .map(|generation| (generation.cached_tokens(), generation.stopped_by()))
            .unwrap_or_default();
        while self.waiting.is_some() {
            let taken = taken(&mut self.taking).await;
            if self.took(taken).await.is_err() {
                return self.abandon().await;
            }
        }
        let finish = match finish {
            Finish::Stop => FinishReason::Stop,
            Finish::Length => FinishReason::Length,
        };
        let report = FinishJob {
            job: self.job,
            cached_tokens: cached.min(self.prompt_tokens),
            completion_tokens: count(&self.sent),
            output: stream_digest(&self.sent),
            build: core::mem::take(&mut self.build),
            finish,
        };
        // The last voucher comes to the ledger before the end; both become durable together.
        let (server, whose) = (self.server, (self.peer, self.job));
        let last = async {
            if let Some(taking) = &mut self.taking {
                let (_, taken) = taking.await;
                if let Err(error) = taken {
                    server.voucher_refused(whose, &error).await;
                }
            }
        };
        let end = self.server.end(Command::FinishServed(report));
        let (_, ended) = futures_util::future::join(last, end).await;
        self.taking = None;
        let receipt = match ended {
            Some(Outcome::JobServed { receipt: Some(receipt), .. }) => {
                WireDocument { bytes: receipt.bytes().to_vec(), signature: receipt.signature() }
            }
            // Nothing was delivered, nothing is owed.
            Some(Outcome::JobServed { receipt: None, .. }) => no_receipt(),
            _ => return self.send.abort(),
        };
        told.push(ToConsumer::End { text, finish: finish as u8, receipt, stop });
        if self.say_all(&told).await.is_ok() {
            self.close().await;
        }
    }

    /// The consumer can go on elsewhere, and may sign for what it received so far.
    async fn fail(
        mut self,
        failed: ToConsumer,
        mut frames: Pin<&mut impl Stream<Item = ToProvider>>,
    ) {
        self.generation = None;
        let told = timeout(LAST_VOUCHER_WITHIN, self.send.send(&failed)).await;
        if matches!(told, Ok(Ok(()))) {
            self.send.finish();
            let signing = async {
                while let Some(ToProvider::Voucher(voucher)) = frames.next().await {
                    self.offered(voucher);
                }
            };
            // Without it the voucher before it counts.
            drop(timeout(LAST_VOUCHER_WITHIN, signing).await);
        }
        self.abandon().await;
    }

    /// The consumer is gone: the engine is freed at once, and its highest voucher is due.
    pub(super) async fn abandon(mut self) {
        self.generation = None;
        self.all_taken().await;
        // What is only read is delivered as one.
        let is_read = self.only_reads && self.retelling.is_none();
        let (job, sent) = (self.job, count(&self.sent).max(u32::from(is_read)));
        self.server.end(Command::AbandonServed { job, sent }).await;
        self.close().await;
    }

    async fn close(mut self) {
        self.send.finish();
        drop(timeout(FLUSH_WITHIN, self.send.flushed()).await);
    }
}

/// That the job cannot go on here.
pub(super) fn gives_up(reason: &str) -> ToConsumer {
    ToConsumer::Failed { reason: shortened(reason), invalid: None }
}

/// That the engine failed, and whether it could anywhere.
pub(super) fn broken(failure: Option<&Failure>) -> ToConsumer {
    match failure.and_then(Invalid::of) {
        Some(Invalid { code, message, .. }) => {
            ToConsumer::Failed { reason: shortened(&message), invalid: Some(code) }
        }
        None => {
            let reason = failure.map(ToString::to_string);
            gives_up(reason.as_deref().unwrap_or("the model's engine failed"))
        }
    }
}

/// Whether somebody waits for the place: in the engine's queue, or because there is no other.
fn is_wanted(engine: &Lease, place: &Place) -> bool {
    place.is_wanted() || engine.load().queued > 0
}

async fn taken(taking: &mut Option<Taking>) -> (u32, Result<Outcome, SubmitError>) {
    match taking {
        Some(taking) => taking.await,
        None => core::future::pending().await,
    }
}

async fn next_of(generation: &mut Option<Generation>, ahead: &mut Option<Piece>) -> Option<Piece> {
    if ahead.is_some() {
        return ahead.take();
    }
    match generation {
        Some(generation) => generation.pieces.recv().await,
        None => core::future::pending().await,
    }
}

/// What stands in place of a receipt for a job that delivered nothing.
fn no_receipt() -> WireDocument {
    WireDocument { bytes: Vec::new(), signature: Signature::from_bytes([0; 64]) }
}
