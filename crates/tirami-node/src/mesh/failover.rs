//! A user's job across providers: when one is lost, the next goes on where it stopped, and the
//! user pays once for what was delivered.
//!
//! ```text
//! HTTP body ◄─pieces─ Journey ◄─frames─ one provider after the other
//!           ─taken──►         ─vouchers─►
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tirami_core::{Digest, DocumentId, Flop, JobId, ModelDigest, ModelShape, PartyId, Ppm, Trm};
use tirami_infer::engine::{Finish, Generation, PIECES_AHEAD_MAX, Piece, Progress};
use tirami_kernel::Kernel;
use tirami_kernel::scheduler::{Candidate, NO_DICE, Observed, Query};
use tirami_ledger::Rejection;
use tirami_ledger::book::Terms;
use tirami_ledger::command::StartJob;
use tirami_ledger::documents::FinishReason;
use tirami_proto::{InvalidRequest, Offer, WireDocument};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ask::{Invalid, Journeyed, MeshAsk, Part, RouteError, Served, UNNAMED_MAX};
use super::own::{OwnAttempt, OwnEngine};
use super::remote::{Attempt, Charge, Client, Next, STALL_MIN, Unbegun, Wanted, observe};
use super::source::{Source, patiently};
use crate::handle::{JobToken, SubmitError};
use crate::http::{Kind, payer};

/// An order that limits or TRM have no room for is not made shorter than this.
const SHORTEST: u32 = 16;
/// Providers that do not know this node's chain yet are asked again for so long.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// The pause before they are asked again.
const KNOWN_PAUSE: Duration = Duration::from_millis(250);
/// How long a provider that refused is left alone.
const REFUSED_MS: u64 = 2_000;
/// Providers that may take part in one answer at most: each of them is paid for its prompt.
pub(super) const ATTEMPTS_MAX: usize = 4;
/// Providers that have to find a request invalid before no other one is asked.
const INVALID_MAX: usize = 2;
/// Refusals told at most.
const REFUSALS_TOLD_MAX: usize = 4;

/// A job whose first provider has taken it.
pub(crate) struct Started {
    pub(crate) job: MeshJob,
    pub(crate) generation: Generation,
    pub(crate) served: Served,
    pub(crate) id: JobId,
    pub(crate) provider: PartyId,
    pub(crate) prompt_tokens: u32,
}

/// The HTTP side's hold on a journey. Dropping it ends the job with what was delivered last.
#[derive(Debug)]
pub(crate) struct MeshJob {
    shared: Arc<Shared>,
    produced: u32,
    delivered: watch::Sender<u32>,
    conclude: Option<oneshot::Sender<u32>>,
    result: oneshot::Receiver<Journeyed>,
}

#[derive(Debug, Default)]
struct Shared {
    ordered: CancellationToken,
    failure: OnceLock<RouteError>,
}

impl MeshJob {
    /// Waits until the kernel orders the end.
    pub(crate) async fn cancelled(&self) {
        self.shared.ordered.cancelled().await;
    }

    /// Counts tokens on their way to the body; gives how many there are in all.
    pub(crate) fn produced(&mut self, tokens: &[u32]) -> u32 {
        let more = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        self.produced = self.produced.saturating_add(more);
        self.produced
    }

    /// Notes that the body has taken `delivered` tokens in all.
    pub(crate) fn delivered(&self, delivered: u32) {
        self.delivered.send_if_modified(|known| {
            let is_more = delivered > *known;
            *known = delivered.max(*known);
            is_more
        });
    }

    /// Why the answer broke off, if the mesh is the reason.
    pub(crate) fn failure(&self) -> Option<&RouteError> {
        self.shared.failure.get()
    }

    /// Charges `delivered` tokens. `None` when the journey ended without a word.
    pub(crate) async fn finish(mut self, delivered: u32) -> Option<Journeyed> {
        if let Some(conclude) = self.conclude.take() {
            // A journey that is over has nothing to conclude.
            let _ = conclude.send(delivered);
        }
        (&mut self.result).await.ok()
    }
}

/// Finds a provider for the job and starts it there.
///
/// # Errors
///
/// [`RouteError`]; nothing is charged.
pub(crate) async fn begin(
    client: Client,
    ask: MeshAsk,
    tasks: &TaskTracker,
) -> Result<Started, RouteError> {
    let mut journey = Journey::new(client, ask);
    let (attempt, served) = journey.next_source().await?;
    let (out, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
    let (delivered, taken) = watch::channel(0);
    let (conclude, concluded) = oneshot::channel();
    let (told, result) = oneshot::channel();
    let (shared, progress) = (Arc::new(Shared::default()), Arc::new(Progress::default()));
    let started = Started {
        job: MeshJob {
            shared: Arc::clone(&shared),
            produced: 0,
            delivered,
            conclude: Some(conclude),
            result,
        },
        generation: Generation::new(pieces, Arc::clone(&progress)),
        served,
        id: attempt.job(),
        provider: attempt.provider(),
        prompt_tokens: attempt.prompt_tokens(),
    };
    let body = Body { out, taken, concluded, shared, progress };
    tasks.spawn(async move {
        let journeyed = journey.run(attempt, body).await;
        // Nobody may be left to hear it.
        drop(told.send(journeyed));
    });
    Ok(started)
}

/// The journey's ends of what connects it to the HTTP side.
struct Body {
    out: mpsc::Sender<Piece>,
    taken: watch::Receiver<u32>,
    concluded: oneshot::Receiver<u32>,
    shared: Arc<Shared>,
    progress: Arc<Progress>,
}

impl Body {
    /// Hands a piece over, unless the body is gone or the kernel orders the end.
    async fn send(&self, token: &JobToken, piece: Piece) -> Result<(), ()> {
        tokio::select! {
            biased;
            () = token.cancelled() => {
                self.shared.ordered.cancel();
                Err(())
            }
            sent = self.out.send(piece) => sent.map_err(drop),
        }
    }

    /// Breaks the answer off, and says why.
    async fn fails(&self, error: RouteError) {
        let reason = error.to_string();
        // There is one failure of a journey.
        let _ = self.shared.failure.set(error);
        let _ = self.out.send(Piece::Failed { reason }).await;
    }
}

/// How the flow of pieces ended.
enum End {
    /// All came, with the receipt of the last provider.
    Complete(Source, Option<WireDocument>),
    /// The client left, or the kernel ordered the end.
    Left(Source),
    /// No attempt is open.
    Closed,
}

/// A job on its way from provider to provider.
pub(super) struct Journey {
    client: Client,
    ask: MeshAsk,
    query: Query,
    request: Digest,
    /// Completion tokens at most, in all.
    completion_max: u32,
    candidates: Option<u32>,
    /// Why the provider of now was chosen.
    why: Vec<String>,
    /// This node's own engine was asked.
    own_tried: bool,
    /// A provider that was left because it stood still.
    slow: Option<PartyId>,
    /// All tokens of the answer so far.
    tokens: Vec<u32>,
    last: Option<JobId>,
    parts: Vec<Part>,
    refusals: BTreeMap<PartyId, String>,
    /// What those said that found the request itself invalid.
    invalid: Vec<(PartyId, Invalid)>,
    /// What those did that gave up before the first token, or did not take the request. It may be
    /// the request's fault: it is held against them when somebody answers it.
    unproven: BTreeMap<PartyId, Observed>,
}

impl Journey {
    pub(super) fn new(client: Client, ask: MeshAsk) -> Self {
        let completion_max = ask.completion_max.unwrap_or(UNNAMED_MAX);
        Self {
            client,
            query: ask.query(),
            request: Digest::of(&ask.body),
            completion_max,
            candidates: None,
            why: Vec::new(),
            own_tried: false,
            slow: None,
            tokens: Vec::new(),
            last: None,
            parts: Vec::new(),
            refusals: BTreeMap::new(),
            invalid: Vec::new(),
            unproven: BTreeMap::new(),
            ask,
        }
    }

    async fn run(mut self, attempt: Source, mut body: Body) -> Journeyed {
        let mut base = 0;
        let end = self.flow(attempt, &mut base, &mut body).await;
        // The pieces end here; the body takes what is left of them and says how far it came.
        let Body { out, taken, concluded, .. } = body;
        drop(out);
        let delivered = match concluded.await {
            Ok(delivered) => delivered,
            Err(_) => *taken.borrow(),
        };
        let mine = delivered.saturating_sub(base);
        match end {
            End::Complete(attempt, receipt) => {
                let here = attempt.is_here();
                let charge = attempt.complete(receipt, mine).await;
                self.note(charge, here);
            }
            End::Left(attempt) => {
                let here = attempt.is_here();
                let charge = attempt.abandon(mine, "the answer was broken off".to_owned()).await;
                self.note(charge, here);
            }
            End::Closed => {}
        }
        self.summed()
    }

    async fn flow(&mut self, mut attempt: Source, base: &mut u32, body: &mut Body) -> End {
        loop {
            let next = tokio::select! {
                biased;
                () = body.out.closed() => return End::Left(attempt),
                Ok(()) = body.taken.changed() => {
                    let taken = *body.taken.borrow_and_update();
                    attempt.deliver(taken.saturating_sub(*base));
                    continue;
                }
                next = attempt.next() => next,
            };
            let (reason, outcome) = match next {
                Next::Tokens { tokens, text, logprobs } => {
                    self.tokens.extend_from_slice(&tokens);
                    let piece = Piece::Delta { tokens, text, logprobs };
                    if body.send(attempt.token(), piece).await.is_err() {
                        return End::Left(attempt);
                    }
                    continue;
                }
                Next::End { text, finish, receipt, stop } => {
                    body.progress.stopped_by(stop);
                    let finish = match finish {
                        FinishReason::Length => Finish::Length,
                        _ => Finish::Stop,
                    };
                    let end = Piece::End { text, finish };
                    if body.send(attempt.token(), end).await.is_err() {
                        return End::Left(attempt);
                    }
                    self.observe_unproven().await;
                    return End::Complete(attempt, receipt);
                }
                Next::Ordered => {
                    body.shared.ordered.cancel();
                    return End::Left(attempt);
                }
                Next::Slow { reason, is_queued } => {
                    if !self.knows_better(attempt.provider(), is_queued).await {
                        attempt.wait_on();
                        continue;
                    }
                    self.slow = Some(attempt.provider());
                    // A queue is no failure.
                    (reason, (!is_queued).then_some(Observed::Failed))
                }
                Next::Lost { reason } => (reason, Some(Observed::Failed)),
                // Whoever was paid for its prompt and then gave up has failed.
                Next::Failed { reason } => match attempt.made() {
                    0 => {
                        if let Source::There(there) = &attempt {
                            self.gave_up(there.provider(), there.kept());
                        }
                        (reason, None)
                    }
                    _ => (reason, Some(Observed::Failed)),
                },
                Next::Invalid(invalid) => {
                    self.leave(attempt, invalid.message.clone(), None).await;
                    body.fails(RouteError::Invalid(invalid)).await;
                    return End::Closed;
                }
            };
            self.leave(attempt, reason, outcome).await;
            match self.go_on(body).await {
                Some(next) => attempt = next,
                None => return End::Closed,
            }
            *base = count(&self.tokens);
        }
    }

    /// Whether somebody else could take a job that stands still: one with a free place, where it
    /// only waits for one.
    async fn knows_better(&self, than: PartyId, is_queued: bool) -> bool {
        if self.parts.len() + 1 >= ATTEMPTS_MAX {
            return false;
        }
        if self.own().is_some_and(OwnEngine::rests) {
            return true;
        }
        let mut query = self.query.clone();
        query.tried.insert(than);
        let ranked = self.client.handle.read(move |kernel, now| {
            let candidates = kernel.rank(&query, now, NO_DICE).candidates;
            candidates.iter().any(|one| !is_queued || one.is_free())
        });
        ranked.await.unwrap_or_default()
    }

    /// Charges what a lost provider delivered. All of it is on its way to the body.
    async fn leave(&mut self, attempt: Source, reason: String, outcome: Option<Observed>) {
        let (provider, here) = (attempt.provider(), attempt.is_here());
        tracing::info!(%provider, reason, "a provider was lost in the middle of an answer");
        self.last = Some(attempt.job());
        if !here {
            self.query.tried.insert(provider);
            if let Some(outcome) = outcome {
                observe(&self.client.handle, provider, outcome).await;
            }
        }
        let delivered = attempt.made();
        let charge = attempt.abandon(delivered, reason).await;
        self.note(charge, here);
    }

    /// Notes that a provider that had taken the job delivered nothing of it, and what it did.
    pub(super) async fn lost(&mut self, job: JobId, charge: Charge, outcome: Option<Observed>) {
        let (provider, reason) = (charge.provider, charge.ended.clone());
        tracing::info!(%provider, reason, "a provider delivered nothing");
        self.query.tried.insert(provider);
        self.refusals.insert(provider, reason);
        // Its order needs no second word of the owner.
        self.last = Some(job);
        if let Some(outcome) = outcome {
            observe(&self.client.handle, provider, outcome).await;
        }
        self.note(charge, false);
    }

    /// Notes that a provider gave the job up before it delivered anything, after it had `kept` it
    /// for so long.
    pub(super) fn gave_up(&mut self, provider: PartyId, kept: Duration) {
        let outcome = match kept > STALL_MIN {
            // It kept others from it for longer than a job may stand still.
            true => Observed::Failed,
            false => Observed::Refused { retry_after_ms: REFUSED_MS },
        };
        self.unproven.insert(provider, outcome);
    }

    /// Who goes on, or the end of the answer.
    async fn go_on(&mut self, body: &Body) -> Option<Source> {
        let attempts_are_over = self.parts.len() >= ATTEMPTS_MAX;
        if count(&self.tokens) >= self.completion_max {
            // Only the end of it was lost.
            let end = Piece::End { text: String::new(), finish: Finish::Length };
            let _ = body.out.send(end).await;
            return None;
        }
        let next = match attempts_are_over {
            true => Err(none(&format!("{ATTEMPTS_MAX} providers were lost"))),
            false => self.next_source().await,
        };
        // One that was only slow is better than none.
        let next = match (next, self.slow.take()) {
            (Err(_), Some(slow)) if !attempts_are_over => {
                self.query.tried.remove(&slow);
                self.next_source().await
            }
            (next, _) => next,
        };
        match next {
            Ok((attempt, _)) => Some(attempt),
            Err(error) => {
                let charged = self.parts.iter().map(|part| part.charge.amount);
                let charged = charged.fold(Trm::ZERO, Trm::saturating_add);
                let lost = RouteError::Lost { charged, reason: error.to_string() };
                body.fails(lost).await;
                None
            }
        }
    }

    pub(super) fn note(&mut self, charge: Charge, here: bool) {
        let repeats = !self.parts.is_empty() && charge.completion_tokens > 0;
        self.parts.push(Part { charge, why: core::mem::take(&mut self.why), here, repeats });
    }

    pub(super) fn summed(self) -> Journeyed {
        let mut sum = Journeyed {
            trade: DocumentId::from_bytes([0; 32]),
            flop: Flop::ZERO,
            amount: Trm::ZERO,
            available: Trm::ZERO,
            parts: Vec::new(),
            candidates: self.candidates.unwrap_or_default(),
        };
        for part in self.parts {
            let charge = &part.charge;
            if charge.completion_tokens > 0 || sum.parts.is_empty() {
                sum.trade = charge.trade;
            }
            sum.flop =
                Flop::saturating_from(u128::from(sum.flop.get()) + u128::from(charge.flop.get()));
            sum.amount = sum.amount.saturating_add(charge.amount);
            sum.available = charge.available.unwrap_or(sum.available);
            sum.parts.push(part);
        }
        sum
    }

    /// Who takes the job from here on. This node's own engine comes first when it rests and the
    /// answer was begun elsewhere, and last when it is busy.
    async fn next_source(&mut self) -> Result<(Source, Served), RouteError> {
        if self.last.is_some()
            && self.own().is_some_and(OwnEngine::rests)
            && let Some(own) = self.own_attempt().await
        {
            return Ok(own);
        }
        match self.next_attempt().await {
            Ok((attempt, offer)) => {
                let served = Served { name: offer.name, model: offer.model, build: offer.build };
                Ok((Source::There(Box::new(attempt)), served))
            }
            Err(error) => self.own_attempt().await.ok_or(error),
        }
    }

    /// This node's own engine, while it was not asked.
    fn own(&self) -> Option<&OwnEngine> {
        self.ask.own.as_ref().filter(|_| !self.own_tried)
    }

    async fn own_attempt(&mut self) -> Option<(Source, Served)> {
        let engine = self.own()?.clone();
        self.own_tried = true;
        match self.begin_here(&engine).await {
            Ok(own) => {
                self.why = vec!["this node serves the model itself".to_owned()];
                let model = engine.model.info();
                let (name, build) = (model.name.clone(), model.build.clone());
                let served = Served { name, model: model.digest, build };
                Some((Source::Here(Box::new(own)), served))
            }
            Err(Unbegun::Refused { message, .. }) => {
                self.refusals.insert(self.client.handle.party(), message);
                None
            }
            Err(Unbegun::Book(error)) => {
                tracing::debug!(%error, "this node does not go on with an answer");
                None
            }
            Err(
                Unbegun::Approval { .. }
                | Unbegun::Lost { .. }
                | Unbegun::Stuck { .. }
                | Unbegun::Full { .. },
            ) => None,
        }
    }

    async fn begin_here(&mut self, engine: &OwnEngine) -> Result<OwnAttempt, Unbegun> {
        let payer = payer(&self.ask.actor);
        let given = (self.tokens.clone(), payer.map(|payer| payer.agent));
        let lease = engine.lease().await?;
        let Some(kind) = Kind::at(self.ask.path) else {
            let (code, message) = ("unknown_path", "this node's engine does not go on with it");
            let (code, message) = (code.to_owned(), message.to_owned());
            let kept = Duration::ZERO;
            return Err(Unbegun::Refused { code, message, invalid: None, kept });
        };
        let request = (kind, self.ask.body.clone());
        let asked = OwnEngine::understood(&lease, request, given).await?;
        let prompt_tokens = count(&asked.prompt.tokens).saturating_add(count(&self.tokens));
        let offered = (lease.model().digest, lease.model().shape, asked.completion_max);
        let start = self.start(offered, prompt_tokens, None).await?;
        let most = start.completion_max;
        let job = (self.ask.actor.clone(), start, asked, self.ask.seed);
        let own = OwnAttempt::begin(&self.client.handle, &lease, job).await?;
        self.completion_max = count(&self.tokens).saturating_add(most);
        Ok(own)
    }

    /// The best provider that takes the job from here on.
    pub(super) async fn next_attempt(&mut self) -> Result<(Attempt, Offer), RouteError> {
        let until = Instant::now() + KNOWN_WITHIN;
        loop {
            let (ranked, refusal) = self.ranked().await?;
            let (mut unknown, mut unaffordable) = (false, None);
            for (candidate, offer) in ranked {
                match self.attempt(&candidate, &offer).await {
                    Ok(attempt) => {
                        self.observe_wrong().await;
                        self.why = candidate.why.iter().map(ToString::to_string).collect();
                        return Ok((attempt, offer));
                    }
                    // Another one may cost less.
                    Err(Unbegun::Book(error)) if is_about_cost(&error) => {
                        unaffordable.get_or_insert(error);
                    }
                    Err(Unbegun::Book(error)) => return Err(RouteError::Book(error)),
                    Err(Unbegun::Approval { approval, expires_at, max_amount }) => {
                        return Err(RouteError::Approval { approval, expires_at, max_amount });
                    }
                    Err(other) => unknown |= self.refused(candidate.provider, other).await,
                }
                if self.invalid.len() >= INVALID_MAX {
                    break;
                }
            }
            if let Some((_, invalid)) = self.invalid.first()
                && (self.invalid.len() >= INVALID_MAX || self.invalid.len() == self.refusals.len())
                && !unknown
            {
                return Err(RouteError::Invalid(invalid.clone()));
            }
            if let Some(error) = unaffordable {
                return Err(RouteError::Book(error));
            }
            if !unknown || Instant::now() >= until {
                return Err(none(&self.why_none(&refusal)));
            }
            sleep(KNOWN_PAUSE).await;
        }
    }

    /// Notes that a provider does not take the job; whether it may when it has heard more.
    async fn refused(&mut self, provider: PartyId, why: Unbegun) -> bool {
        let (message, outcome) = match why {
            Unbegun::Refused { code, message, invalid, kept } => {
                tracing::debug!(%provider, code, message, "an order was refused");
                if matches!(code.as_str(), "order_unknown_consumer" | "order_stale_head") {
                    self.refusals.insert(provider, message);
                    return true;
                }
                if kept > STALL_MIN {
                    self.gave_up(provider, kept);
                }
                if let Some(InvalidRequest { param }) = invalid {
                    // The caller's mistake is held against no provider, or one caller would keep
                    // all others from it.
                    self.query.tried.insert(provider);
                    self.refusals.insert(provider, message.clone());
                    self.invalid.push((provider, Invalid { code, message, param }));
                    return false;
                }
                (message, Some(Observed::Refused { retry_after_ms: REFUSED_MS }))
            }
            Unbegun::Lost { reason } => (reason, Some(Observed::Failed)),
            Unbegun::Stuck { reason } => {
                self.unproven.insert(provider, Observed::Failed);
                (reason, None)
            }
            // It is this node that may not ask for more.
            Unbegun::Full { reason } => (reason, None),
            Unbegun::Book(_) | Unbegun::Approval { .. } => return false,
        };
        self.query.tried.insert(provider);
        self.refusals.insert(provider, message);
        if let Some(outcome) = outcome {
            observe(&self.client.handle, provider, outcome).await;
        }
        false
    }

    /// Another provider takes the request: those that found it invalid are left alone for a while.
    async fn observe_wrong(&mut self) {
        for (provider, _) in core::mem::take(&mut self.invalid) {
            let outcome = Observed::Refused { retry_after_ms: REFUSED_MS };
            observe(&self.client.handle, provider, outcome).await;
        }
    }

    /// Somebody answers the request: it was not at fault.
    pub(super) async fn observe_unproven(&mut self) {
        for (provider, outcome) in core::mem::take(&mut self.unproven) {
            observe(&self.client.handle, provider, outcome).await;
        }
    }

    fn why_none(&self, refusal: &str) -> String {
        if self.refusals.is_empty() {
            return refusal.to_owned();
        }
        let told = self.refusals.iter().take(REFUSALS_TOLD_MAX);
        let told: Vec<String> =
            told.map(|(provider, why)| format!("{:.8}: {why}", provider.to_string())).collect();
        format!("no provider took the job; nothing was charged for it; {}", told.join("; "))
    }

    async fn ranked(&mut self) -> Result<(Vec<(Candidate, Offer)>, String), RouteError> {
        let query = self.query.clone();
        let dice = u64::from_le_bytes(random()?);
        let read = move |kernel: &tirami_kernel::Kernel, now| {
            let ranking = kernel.rank(&query, now, dice);
            let refusal = ranking.refusal();
            let offer = |provider| kernel.mesh().signal(provider)?.offer(query.model).cloned();
            let known = ranking.candidates.into_iter();
            let known = known.filter_map(|one| offer(one.provider).map(|offer| (one, offer)));
            (known.collect::<Vec<_>>(), refusal)
        };
        let handle = &self.client.handle;
        let read = patiently(move || handle.read(read.clone())).await.map_err(RouteError::Book)?;
        self.candidates.get_or_insert(u32::try_from(read.0.len()).unwrap_or(u32::MAX));
        Ok(read)
    }

    async fn attempt(&mut self, candidate: &Candidate, offer: &Offer) -> Result<Attempt, Unbegun> {
        let prompt_tokens = self.ask.prompt_max.saturating_add(count(&self.tokens));
        // Texts are read each by itself.
        let shape = match self.completion_max {
            0 => offer.shape.without_attention(),
            _ => offer.shape,
        };
        let offered = (offer.model, shape, offer.context_tokens);
        let at = Some((candidate.provider, candidate.price));
        let start = self.start(offered, prompt_tokens, at).await?;
        let most = start.completion_max;
        let wanted = Wanted {
            actor: self.ask.actor.clone(),
            start,
            provider: candidate.provider,
            price: candidate.price,
            path: self.ask.path,
            body: self.ask.body.clone(),
            resumed: self.tokens.clone(),
            prefix: self.ask.prefixes.first().copied(),
        };
        let attempt = Attempt::begin(&self.client, wanted).await?;
        self.completion_max = count(&self.tokens).saturating_add(most);
        Ok(attempt)
    }

    /// The job of whoever goes on: no more tokens than are left of the answer. A request that
    /// names no maximum, and what is left of one that was begun elsewhere, is as long as limits
    /// and TRM leave room for.
    async fn start(
        &self,
        (model, shape, most): (ModelDigest, ModelShape, u32),
        prompt_tokens: u32,
        at: Option<(PartyId, Ppm)>,
    ) -> Result<StartJob, Unbegun> {
        let job = random().map_err(|error| match error {
            RouteError::Book(error) => Unbegun::Book(error),
            other => Unbegun::Lost { reason: other.to_string() },
        })?;
        let done = count(&self.tokens);
        let start = StartJob {
            job: JobId::from_bytes(job),
            model,
            shape,
            request: self.request,
            seed: self.ask.seed,
            prompt_tokens,
            completion_max: match self.completion_max {
                0 => 0,
                asked => asked.min(most).saturating_sub(done).max(1),
            },
            continues: self.last,
        };
        let Some(payer) = payer(&self.ask.actor) else { return Ok(start) };
        // A job that only reads is never shorter.
        let is_whole = self.ask.completion_max.is_some() && self.last.is_none();
        if is_whole || start.completion_max == 0 {
            return Ok(start);
        }
        let asked = start.clone();
        let room = move |kernel: &Kernel, now| {
            let (ledger, book) = (kernel.ledger(), kernel.ledger().book());
            let fee_ppm = ledger.lattice().charter().params.fee_ppm;
            let own = Terms::own(book.price());
            let there = |(party, price)| Terms { price, provider: Some((party, fee_ppm)) };
            book.affordable(now, payer, &asked, &at.map_or(own, there))
        };
        let handle = &self.client.handle;
        let room = patiently(move || handle.read(room.clone())).await.map_err(Unbegun::Book)?;
        // The refusal of a job that has hardly any room says more than its few tokens.
        let is_enough = room >= SHORTEST.min(start.completion_max);
        let completion_max = if is_enough { room } else { start.completion_max };
        Ok(StartJob { completion_max, ..start })
    }
}

/// Whether an order at another provider could pass.
const fn is_about_cost(error: &SubmitError) -> bool {
    matches!(
        error,
        SubmitError::Rejected(
            Rejection::RequestLimit { .. }
                | Rejection::BudgetLimit { .. }
                | Rejection::Insufficient { .. }
                | Rejection::OutOfRange { .. }
        )
    )
}

pub(super) fn none(message: &str) -> RouteError {
    RouteError::NoProvider { message: message.to_owned() }
}

fn random<const N: usize>() -> Result<[u8; N], RouteError> {
    crate::keys::random()
        .map_err(|error| RouteError::Book(SubmitError::Stopped { reason: error.to_string() }))
}

fn count(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}
