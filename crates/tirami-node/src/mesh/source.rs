//! Who makes an answer at a time: another node, or this node's own engine.

use std::time::Duration;

use tirami_core::{JobId, PartyId, Signed};
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::documents::Order;
use tirami_proto::WireDocument;
use tokio::time::{Instant, sleep};

use super::own::OwnAttempt;
use super::remote::{Attempt, Charge, Next, Unbegun};
use crate::handle::{Handle, JobToken, SubmitError};

/// How long a job waits for room in the kernel's queue before its caller hears that the node is
/// busy: an answer on its way does not end because the queue was full for a moment.
const ROOM_WITHIN: Duration = Duration::from_secs(3);
/// The pause before a full queue is asked again.
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// Asks the kernel, again for a while where its queue is full.
pub(super) async fn patiently<T, F>(mut ask: impl FnMut() -> F) -> Result<T, SubmitError>
where
    F: Future<Output = Result<T, SubmitError>>,
{
    let until = Instant::now() + ROOM_WITHIN;
    loop {
        match ask().await {
            Err(SubmitError::Busy) if Instant::now() < until => sleep(ROOM_PAUSE).await,
            other => return other,
        }
    }
}

/// Holds the most that a job may cost and signs its order, wherever it is to run.
pub(super) async fn ordered(
    handle: &Handle,
    actor: Actor,
    command: Command,
) -> Result<Signed<Order>, Unbegun> {
    let decided = patiently(move || handle.submit(actor.clone(), command.clone())).await;
    match decided.map_err(Unbegun::Book)? {
        Outcome::JobOrdered { order, .. } | Outcome::JobStarted { order, .. } => Ok(*order),
        Outcome::ApprovalPending { approval, expires_at, max_amount } => {
            let approval = approval.get();
            Err(Unbegun::Approval { approval, expires_at, max_amount })
        }
        _ => {
            let reason = "the order was not signed".to_owned();
            Err(Unbegun::Book(SubmitError::Stopped { reason }))
        }
    }
}

/// An attempt that runs.
pub(super) enum Source {
    /// At another node.
    There(Box<Attempt>),
    /// Here.
    Here(Box<OwnAttempt>),
}

impl Source {
    pub(super) const fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    pub(super) const fn job(&self) -> JobId {
        match self {
            Self::There(attempt) => attempt.job(),
            Self::Here(own) => own.job(),
        }
    }

    pub(super) const fn provider(&self) -> PartyId {
        match self {
            Self::There(attempt) => attempt.provider(),
            Self::Here(own) => own.provider(),
        }
    }

    /// Tokens it reads before it makes the first.
    pub(super) const fn prompt_tokens(&self) -> u32 {
        match self {
            Self::There(attempt) => attempt.prompt_tokens,
            Self::Here(own) => own.prompt_tokens,
        }
    }

    /// How many tokens came from it.
    pub(super) fn made(&self) -> u32 {
        let tokens = match self {
            Self::There(attempt) => &attempt.tokens,
            Self::Here(own) => &own.tokens,
        };
        u32::try_from(tokens.len()).unwrap_or(u32::MAX)
    }

    pub(super) const fn token(&self) -> &JobToken {
        match self {
            Self::There(attempt) => &attempt.token,
            Self::Here(own) => &own.token,
        }
    }

    /// What comes next. Waiting for it can be given up without loss.
    pub(super) async fn next(&mut self) -> Next {
        match self {
            Self::There(attempt) => attempt.next().await,
            Self::Here(own) => own.next().await,
        }
    }

    /// The client has taken `delivered` of its tokens.
    pub(super) fn deliver(&mut self, delivered: u32) {
        match self {
            Self::There(attempt) => attempt.deliver(delivered),
            Self::Here(own) => own.deliver(delivered),
        }
    }

    /// Nobody else is better.
    pub(super) fn wait_on(&mut self) {
        if let Self::There(attempt) = self {
            attempt.wait_on();
        }
    }

    /// Charges a complete answer, or `delivered` tokens of it where that is less.
    pub(super) async fn complete(self, receipt: Option<WireDocument>, delivered: u32) -> Charge {
        match (self, receipt) {
            (Self::There(attempt), Some(receipt)) => attempt.settle(receipt, delivered).await,
            (source, _) => source.abandon(delivered, "complete".to_owned()).await,
        }
    }

    /// Ends it before its end, and charges `delivered` tokens.
    pub(super) async fn abandon(self, delivered: u32, ended: String) -> Charge {
        match self {
            Self::There(attempt) => attempt.abandon(delivered, ended).await,
            Self::Here(own) => own.finish(delivered, ended).await,
        }
    }
}
