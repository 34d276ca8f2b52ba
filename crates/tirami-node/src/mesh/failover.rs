//! A user's job across providers: when one is lost, the next goes on where it stopped, and the
//! user pays once for what was delivered.
//!
//! ```text
//! HTTP body ◄─pieces─ Journey ◄─frames─ one provider after the other
//!           ─taken──►         ─vouchers─►
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use tirami_core::{Digest, DocumentId, Flop, JobId, ModelDigest, ModelShape, PartyId, Ppm, Trm};
use tirami_infer::engine::{Finish, Generation, Piece};
use tirami_kernel::Kernel;
use tirami_kernel::scheduler::{Candidate, NO_DICE, Observed, Query};
use tirami_ledger::Rejection;
use tirami_ledger::book::Terms;
use tirami_ledger::command::StartJob;
use tirami_ledger::documents::FinishReason;
use tirami_proto::{InvalidRequest, Offer, WireDocument};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use super::ask::{GaveUp, Invalid, Journeyed, MeshAsk, Part, RouteError, Served, UNNAMED_MAX};
use super::body::{Body, MeshJob, connected};
use super::own::{OwnAttempt, OwnEngine};
use super::remote::{Attempt, Charge, Client, Next, STALL_MIN, Unbegun, Wanted, observe};
use super::retold::Told;
use super::source::{Source, patiently};
use crate::handle::{JobToken, SubmitError};
use crate::http::{Kind, payer};
use crate::keys::{self, KeyFileError};
use crate::models::{SERVES_ITSELF, why_here};

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
/// Parties that have to find a request invalid before no other one is asked: one of them may lie,
/// and each one more costs its caller time.
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
    let only_reads = journey.completion_max == 0;
    let (attempt, served) = journey.next_source().await?;
    let ((job, generation), (body, told)) = connected(only_reads);
    let (id, provider) = (attempt.job(), attempt.provider());
    let prompt_tokens = attempt.prompt_tokens();
    let started = Started { job, generation, served, id, provider, prompt_tokens };
    tasks.spawn(async move {
        let journeyed = journey.run(attempt, body).await;
        // Nobody may be left to hear it.
        drop(told.send(journeyed));
    });
    Ok(started)
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
    /// What is asked of the prompt is told.
    is_told: bool,
    last: Option<JobId>,
    parts: Vec<Part>,
    refusals: BTreeMap<PartyId, String>,
    /// What those said that found the request itself invalid, and were not contradicted by a token.
    invalid: Vec<Invalid>,
    /// What those did that gave up before the first token, found the request invalid or did not
    /// take it. It may be the request's fault: it is held against them when somebody answers it.
    unproven: BTreeMap<PartyId, Observed>,
}

impl Journey {
    pub(super) fn new(client: Client, ask: MeshAsk) -> Self {
        let completion_max = ask.completion_max.unwrap_or(UNNAMED_MAX);
        let parts = ask.gave_up.as_ref().map(|gave_up| given_up(client.handle.party(), gave_up));
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
            is_told: false,
            last: None,
            parts: parts.into_iter().collect(),
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
                Next::Told(told) => {
                    if self.tell(told, attempt.token(), body).await.is_err() {
                        return End::Left(attempt);
                    }
                    continue;
                }
                Next::Tokens { tokens, text, logprobs } => {
                    // Whoever found the request invalid is contradicted.
                    self.invalid.clear();
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
                    body.ordered();
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
                Next::Failed { reason } => {
                    let outcome = self.failed(&attempt);
                    (reason, outcome)
                }
                Next::Invalid(invalid) => {
                    let reason = invalid.message.clone();
                    let by = attempt.provider();
                    let began = attempt.made() == count(&self.tokens);
                    if attempt.is_here() || (began && self.finds_invalid(by, invalid.clone())) {
                        self.leave(attempt, reason, None).await;
                        body.fails(RouteError::Invalid(invalid)).await;
                        return End::Closed;
                    }
                    // Of an answer that somebody else began it is a failure like any other.
                    (reason, (!began).then_some(Observed::Failed))
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

    /// Hands over what is asked of the prompt, the first time that it is told.
    async fn tell(&mut self, told: Told, by: &JobToken, body: &Body) -> Result<(), ()> {
        if core::mem::replace(&mut self.is_told, true) {
            return Ok(());
        }
        body.progress.scored(told.likely);
        if !self.ask.echoes || told.text.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&told.text).into_owned();
        let (tokens, logprobs) = (Vec::new(), Vec::new());
        body.send(by, Piece::Delta { tokens, text, logprobs }).await
    }

    /// What is held at once against whoever cannot go on.
    fn failed(&mut self, attempt: &Source) -> Option<Observed> {
        // Whoever was paid for its prompt and then gave up has failed.
        if attempt.made() > 0 {
            return Some(Observed::Failed);
        }
        if let Source::There(there) = attempt {
            self.gave_up(there.provider(), there.kept());
        }
        None
    }

    /// Notes that whoever took the job finds the request itself at fault. Whether that is the last
    /// word: that of a second party, where nothing of the answer came from anybody. Else it counts
    /// as a failure, as soon as somebody answers.
    pub(super) fn finds_invalid(&mut self, provider: PartyId, invalid: Invalid) -> bool {
        self.unproven.insert(provider, Observed::Failed);
        self.refusals.insert(provider, invalid.message.clone());
        self.invalid.push(invalid);
        self.is_invalid()
    }

    /// Whether enough of them found the request invalid. What one engine lacks another one may
    /// have: of that, as many have to say it as may be asked for an answer.
    fn is_invalid(&self) -> bool {
        let lacks = |invalid: &&Invalid| invalid.code.starts_with("unsupported");
        let lacking = self.invalid.iter().filter(lacks).count();
        let is_enough =
            self.invalid.len() - lacking >= INVALID_MAX || self.invalid.len() >= ATTEMPTS_MAX;
        self.tokens.is_empty() && is_enough
    }

    /// Whether somebody else could take a job that stands still: one with a free place, where it
    /// only waits for one.
    async fn knows_better(&self, than: PartyId, is_queued: bool) -> bool {
        if self.attempts() + 1 >= ATTEMPTS_MAX {
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
        let attempts_are_over = self.attempts() >= ATTEMPTS_MAX;
        let is_read = self.completion_max > 0 || self.is_told;
        if count(&self.tokens) >= self.completion_max && is_read {
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
            // Nobody is left to contradict.
            Err(error @ RouteError::Invalid(_)) => {
                body.fails(error).await;
                None
            }
            Err(error) => {
                let charged = self.parts.iter().map(|part| part.charge.amount);
                let charged = charged.fold(Trm::ZERO, Trm::saturating_add);
                let ended = self.parts.last().map_or("", |part| &*part.charge.ended);
                let lost = RouteError::Lost { charged, reason: format!("{ended}; {error}") };
                body.fails(lost).await;
                None
            }
        }
    }

    /// Attempts that are over. What this node's engine gave up before is none.
    fn attempts(&self) -> usize {
        self.parts.len().saturating_sub(usize::from(self.ask.gave_up.is_some()))
    }

    pub(super) fn note(&mut self, charge: Charge, here: bool) {
        let repeats = self.attempts() > 0 && charge.completion_tokens > 0;
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
            let is_paid = charge.completion_tokens > 0 || !charge.amount.is_zero();
            if is_paid || sum.parts.is_empty() {
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
            Err(error) if self.is_invalid() => Err(error),
            Err(error) => self.own_attempt().await.ok_or(error),
        }
    }

    /// This node's own engine, while it was not asked. One that gave the job up comes again only
    /// after somebody else.
    fn own(&self) -> Option<&OwnEngine> {
        let may = !self.own_tried && (self.ask.gave_up.is_none() || self.last.is_some());
        self.ask.own.as_ref().filter(|_| may)
    }

    async fn own_attempt(&mut self) -> Option<(Source, Served)> {
        let engine = self.own()?.clone();
        self.own_tried = true;
        match self.begin_here(&engine).await {
            Ok(own) => {
                let model = engine.model.info();
                self.why = vec![why_here(&model.build).to_owned()];
                let (name, build) = (model.name.clone(), model.build.clone());
                let served = Served { name, model: model.digest, build };
                Some((Source::Here(Box::new(own)), served))
            }
            Err(Unbegun::Refused { code, message, invalid, .. }) => {
                self.refusals.insert(self.client.handle.party(), message.clone());
                let invalid = invalid.filter(|_| self.tokens.is_empty());
                let invalid = invalid.map(|InvalidRequest { param }| param);
                self.invalid.extend(invalid.map(|param| Invalid { code, message, param }));
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
            if let Some(invalid) = self.invalid.first().filter(|_| self.is_invalid()) {
                return Err(RouteError::Invalid(invalid.clone()));
            }
            let (ranked, refusal) = self.ranked().await?;
            let (mut unknown, mut unaffordable) = (false, None);
            for (candidate, offer) in ranked {
                match self.attempt(&candidate, &offer).await {
                    Ok(attempt) => {
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
                if self.is_invalid() {
                    break;
                }
            }
            if let Some(invalid) = self.invalid.first()
                && (self.is_invalid() || self.invalid.len() == self.refusals.len())
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
                // After the first token it is a refusal like any other.
                let invalid = invalid.filter(|_| self.tokens.is_empty());
                if kept > STALL_MIN || invalid.is_some() {
                    self.gave_up(provider, kept);
                }
                if let Some(InvalidRequest { param }) = invalid {
                    // The caller's mistake is held against no provider, or one caller would keep
                    // all others from it.
                    self.query.tried.insert(provider);
                    self.refusals.insert(provider, message.clone());
                    self.invalid.push(Invalid { code, message, param });
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
        let drawn = keys::random().map_err(|error| RouteError::Book(no_randomness(&error)))?;
        let dice = u64::from_le_bytes(drawn);
        let read = move |kernel: &tirami_kernel::Kernel, now| {
            let ranking = kernel.rank(&query, now, dice);
            let refusal = ranking.refusal();
            let offer = |provider| kernel.mesh().signal(provider)?.offer(query.model).cloned();
            let known = ranking.candidates.into_iter();
            let known = known.filter_map(|one| offer(one.provider).map(|offer| (one, offer)));
            (known.collect::<Vec<_>>(), refusal)
        };
        let handle = &self.client.handle;
        let read =
            patiently(move || handle.glance(read.clone())).await.map_err(RouteError::Book)?;
        self.candidates.get_or_insert(u32::try_from(read.0.len()).unwrap_or(u32::MAX));
        Ok(read)
    }

    async fn attempt(&mut self, candidate: &Candidate, offer: &Offer) -> Result<Attempt, Unbegun> {
        let prompt_tokens = self.ask.prompt_max.saturating_add(count(&self.tokens));
        // Texts are read each by itself.
        let shape = match self.completion_max {
            0 if !self.ask.retold.likelihoods => offer.shape.without_attention(),
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
            retold: self.ask.retold,
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
        let job = keys::job_id().map_err(|error| Unbegun::Book(no_randomness(&error)))?;
        let done = count(&self.tokens);
        let start = StartJob {
            job,
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

/// The part that this node's own engine has in an answer of which it made nothing.
fn given_up(here: PartyId, gave_up: &GaveUp) -> Part {
    let charge = Charge {
        provider: here,
        trade: gave_up.order,
        flop: Flop::ZERO,
        amount: Trm::ZERO,
        prompt_tokens: gave_up.prompt_tokens,
        completion_tokens: 0,
        available: None,
        ended: gave_up.reason.clone(),
    };
    Part { charge, why: vec![SERVES_ITSELF.to_owned()], here: true, repeats: false }
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

fn no_randomness(error: &KeyFileError) -> SubmitError {
    SubmitError::Stopped { reason: error.to_string() }
}

fn count(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}
