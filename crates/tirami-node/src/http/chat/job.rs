//! One job in the book, from its hold to its charge. It always ends, also when its task is
//! dropped.

use tirami_core::{AgentId, Digest, DocumentId, Flop, JobId, Trm};
use tirami_kernel::Kernel;
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, FinishJob, Outcome, StartJob};
use tirami_ledger::documents::FinishReason;
use tirami_sdk::types::ErrorExtra;
use tokio::runtime;
use tokio::task::JoinHandle;

use super::quote::{self, Hint, Quote};
use crate::handle::{Handle, JobToken, SubmitError, Unsynced};
use crate::http::error::ApiError;
use crate::mesh::{Journeyed, Part, stream_digest};

/// A voucher is signed with the first delivered token and then after so many more.
const VOUCHER_TOKENS: u32 = 32;
/// How often a job without a named maximum is tried while others take the room it was to have.
const TRIES_MAX: u32 = 3;

/// An open job. Dropping it ends the job with what was delivered last.
pub(super) struct Job {
    open: Option<Open>,
    /// Cancelled when the kernel orders the job to end.
    pub(super) token: JobToken,
    /// The sync of the order, until it was waited for.
    unsynced: Option<Unsynced>,
    vouched: u32,
    voucher: Option<JoinHandle<()>>,
}

/// What is needed to end the job.
struct Open {
    handle: Handle,
    runtime: runtime::Handle,
    job: JobId,
    order: DocumentId,
    /// Who pays.
    agent: Option<AgentId>,
    /// It reads and says nothing, and is owed for that.
    only_reads: bool,
    build: String,
    /// Prompt tokens the engine did not have to read.
    cached_tokens: u32,
    /// Ids of all tokens handed to the body or on their way there.
    tokens: Vec<u32>,
    /// How many of them the body has taken.
    delivered: u32,
}

/// What a job came to.
#[derive(Debug, Clone)]
pub(super) struct Charged {
    pub(super) trade: DocumentId,
    pub(super) flop: Flop,
    pub(super) amount: Trm,
    pub(super) available: Trm,
    /// What other nodes did of it, in order; empty for a job that was done here.
    pub(super) parts: Vec<Part>,
    /// Nodes that could have answered.
    pub(super) candidates: u32,
    /// The trades before the last one, of a request for several answers.
    pub(super) earlier: Vec<DocumentId>,
    /// This node's engine gave up one of the answers before it made anything of it, and others
    /// made it.
    pub(super) moved: bool,
}

/// What a job is opened with besides its order.
pub(super) struct Opening {
    /// Whether the request names a maximum; otherwise it is what there is room for.
    pub(super) is_named: bool,
    /// Jobs that share the room, this one included; at least 1.
    pub(super) sharing: u32,
    pub(super) build: String,
}

impl Charged {
    /// A job that was done here for nothing.
    const fn here(trade: DocumentId) -> Self {
        Self {
            trade,
            flop: Flop::ZERO,
            amount: Trm::ZERO,
            available: Trm::ZERO,
            parts: Vec::new(),
            candidates: 1,
            earlier: Vec::new(),
            moved: false,
        }
    }

    /// What a job of other nodes came to.
    pub(super) fn of(journeyed: Journeyed) -> Self {
        let Journeyed { trade, flop, amount, available, parts, candidates } = journeyed;
        let gave_up = |part: &Part| part.here && part.charge.completion_tokens == 0;
        let moved = parts.len() > 1 && parts.first().is_some_and(gave_up);
        Self { trade, flop, amount, available, parts, candidates, earlier: Vec::new(), moved }
    }

    /// The trades of several answers, in order; empty for one.
    pub(super) fn trades(&self) -> Vec<String> {
        if self.earlier.is_empty() {
            return Vec::new();
        }
        self.earlier.iter().chain([&self.trade]).map(ToString::to_string).collect()
    }

    /// Both together; `later` was charged after `self`.
    pub(super) fn and(mut self, later: Self) -> Self {
        let flop = u128::from(self.flop.get()) + u128::from(later.flop.get());
        self.earlier.push(self.trade);
        self.earlier.extend(later.earlier);
        self.parts.extend(later.parts);
        Self {
            trade: later.trade,
            flop: Flop::saturating_from(flop),
            amount: self.amount.saturating_add(later.amount),
            available: later.available,
            parts: self.parts,
            candidates: self.candidates.max(later.candidates),
            earlier: self.earlier,
            moved: self.moved || later.moved,
        }
    }
}

impl Job {
    /// Holds the maximum and signs the order. Where the request names no maximum, the completion
    /// is as long as limits and TRM leave room for; `start` then says how long. The engine may
    /// begin at once; nobody is told anything before [`Job::synced`] or the job's end.
    pub(super) async fn open(
        handle: Handle,
        actor: Actor,
        start: &mut StartJob,
        opening: Opening,
    ) -> Result<Self, ApiError> {
        let Opening { is_named, sharing, build } = opening;
        // Before the start, so that no order to end it can be missed.
        let token = handle.job_token(start.job);
        let quote = Quote { handle: &handle, actor: &actor };
        if !is_named {
            start.completion_max = quote.share(start, sharing).await?;
        }
        let mut tries = 0;
        let (outcome, unsynced) = loop {
            tries += 1;
            let error = match handle.decide(actor.clone(), Command::StartJob(start.clone())).await {
                Ok(decided) => break decided,
                Err(error) => error,
            };
            if is_named {
                return Err(quote.hint(start, &error).await.on(error.into()));
            }
            // Somebody else may have taken the room in between.
            let room =
                if quote::is_about_room(&error) { quote.affordable(start).await? } else { 0 };
            if room == 0 || room >= start.completion_max || tries == TRIES_MAX {
                return Err(error.into());
            }
            start.completion_max = room;
        };
        if let Outcome::ApprovalPending { approval, expires_at, max_amount } = outcome {
            unsynced.synced().await?;
            let hint = if is_named { quote.room(start).await } else { Hint::default() };
            let error = approval_required(approval.get(), expires_at.ms(), max_amount);
            return Err(hint.on(error));
        }
        let Outcome::JobStarted { order, .. } = outcome else {
            return Err(gone());
        };
        let open = Open {
            handle,
            runtime: runtime::Handle::current(),
            job: start.job,
            order: order.id(),
            agent: quote::payer(&actor).map(|payer| payer.agent),
            only_reads: start.completion_max == 0,
            build,
            tokens: Vec::new(),
            delivered: 0,
            cached_tokens: 0,
        };
        let unsynced = Some(unsynced);
        Ok(Self { open: Some(open), token, unsynced, vouched: 0, voucher: None })
    }

    /// The order's id, while the job is open.
    pub(super) fn order(&self) -> Option<DocumentId> {
        self.open.as_ref().map(|open| open.order)
    }

    /// Waits until hold and order are durable.
    pub(super) async fn synced(&mut self) -> Result<(), ApiError> {
        match self.unsynced.take() {
            Some(unsynced) => Ok(unsynced.synced().await?),
            None => Ok(()),
        }
    }

    /// Notes how many of the prompt's tokens the engine had in its cache.
    pub(super) fn cached(&mut self, cached_tokens: u32) {
        if let Some(open) = &mut self.open {
            open.cached_tokens = cached_tokens;
        }
    }

    /// Counts tokens on their way to the body; gives how many there are in all.
    pub(super) fn produced(&mut self, tokens: &[u32]) -> u32 {
        let Some(open) = &mut self.open else { return 0 };
        open.tokens.extend_from_slice(tokens);
        count(&open.tokens)
    }

    /// Notes that the body has taken `delivered` tokens in all, and signs a voucher for them when
    /// enough are unvouched. It does not wait for the voucher; one is on its way at a time.
    pub(super) fn delivered(&mut self, delivered: u32) {
        let Some(open) = &mut self.open else { return };
        open.delivered = delivered.max(open.delivered);
        let due = if self.vouched == 0 { 1 } else { self.vouched + VOUCHER_TOKENS };
        if open.delivered < due || self.voucher.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.vouched = open.delivered;
        let command = Command::Deliver {
            job: open.job,
            completion_tokens: open.delivered,
            prompt_tokens: None,
            stream: first_digest(&open.tokens, open.delivered),
        };
        // In the queue before the job's end is.
        let signing = open.handle.submit(Actor::Node, command);
        self.voucher = Some(tokio::spawn(async move {
            // The next voucher is cumulative, so a lost one costs nothing.
            if let Err(error) = signing.await {
                tracing::debug!(?error, "a voucher was not signed");
            }
        }));
    }

    /// Charges `delivered` tokens and signs the receipt.
    pub(super) async fn finish(
        mut self,
        delivered: u32,
        finish: FinishReason,
    ) -> Result<Charged, ApiError> {
        let Some(mut open) = self.open.take() else {
            return Err(gone());
        };
        open.delivered = delivered.min(count(&open.tokens));
        // What is read for is delivered whole, or not at all.
        let finish = if open.only_reads { FinishReason::Stop } else { finish };
        let command = open.finish_command(finish);
        open.charged(command).await
    }

    /// Charges a job that only reads, whose result has the digest `output`, and signs the receipt.
    pub(super) async fn finish_reading(mut self, output: Digest) -> Result<Charged, ApiError> {
        let Some(open) = self.open.take() else {
            return Err(gone());
        };
        let command = Command::FinishJob(FinishJob {
            job: open.job,
            cached_tokens: 0,
            completion_tokens: 0,
            output,
            build: open.build.clone(),
            finish: FinishReason::Stop,
        });
        open.charged(command).await
    }

    /// Ends a job of which nothing was delivered.
    pub(super) async fn void(mut self, failed: bool) {
        let Some(open) = self.open.take() else { return };
        let command = Command::VoidJob { job: open.job, failed };
        match open.handle.insist(Actor::Node, command).await {
            Ok(_) | Err(SubmitError::Rejected(Rejection::UnknownJob { .. })) => {}
            Err(error) => tracing::error!(job = %open.job, ?error, "a job could not be ended"),
        }
    }
}

impl Open {
    /// What the job came to, when `command` ends it.
    async fn charged(self, command: Command) -> Result<Charged, ApiError> {
        match self.handle.insist(Actor::Node, command).await {
            Ok(Outcome::JobFinished { trade, flop, amount, available, .. }) => {
                Ok(Charged { trade, flop, amount, available, ..Charged::here(trade) })
            }
            // The answer has not a single token, so nothing is owed for it.
            Ok(Outcome::Done) => {
                Ok(Charged { available: self.available().await?, ..Charged::here(self.order) })
            }
            Ok(_) | Err(SubmitError::Rejected(Rejection::UnknownJob { .. })) => Err(gone()),
            Err(error) => {
                tracing::error!(job = %self.job, ?error, "a job could not be charged");
                Err(error.into())
            }
        }
    }

    /// What the payer has left.
    async fn available(&self) -> Result<Trm, ApiError> {
        let Some(agent) = self.agent else { return Ok(Trm::ZERO) };
        let read = move |kernel: &Kernel, _| {
            let account = kernel.ledger().book().agents().get(&agent);
            account.map_or(Trm::ZERO, |account| account.available())
        };
        Ok(self.handle.read(read).await?)
    }

    fn finish_command(&self, finish: FinishReason) -> Command {
        Command::FinishJob(FinishJob {
            job: self.job,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.delivered,
            output: first_digest(&self.tokens, self.delivered),
            build: self.build.clone(),
            finish,
        })
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let command = match open.delivered {
            0 => Command::VoidJob { job: open.job, failed: false },
            _ => open.finish_command(FinishReason::Cancelled),
        };
        let handle = open.handle.clone();
        open.runtime.spawn(async move {
            if let Err(error) = handle.insist(Actor::Node, command).await {
                tracing::debug!(?error, "a dropped job was not ended; its hold expires");
            }
        });
    }
}

fn count(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}

/// The digest of the first `count` token ids.
fn first_digest(tokens: &[u32], count: u32) -> Digest {
    stream_digest(&tokens[..tokens.len().min(count as usize)])
}

fn gone() -> ApiError {
    ApiError::server(
        axum::http::StatusCode::SERVICE_UNAVAILABLE,
        "job_ended",
        "the job was ended by the node before its answer was complete; only what was delivered is \
         charged; ask again",
    )
}

/// The code of a request that waits for the owner's word.
pub(super) const APPROVAL_REQUIRED: &str = "approval_required";

pub(super) fn approval_required(approval_id: u64, expires_at_ms: u64, max_amount: Trm) -> ApiError {
    ApiError::new(
        axum::http::StatusCode::FORBIDDEN,
        "approval_required",
        APPROVAL_REQUIRED,
        format!(
            "the request may cost up to {max_amount} TRM and waits for the owner's word; after \
             `tirami approve {approval_id}` send the identical request again"
        ),
    )
    .extra(ErrorExtra { approval_id, expires_at_ms, max_amount_trm: max_amount.into() })
}
