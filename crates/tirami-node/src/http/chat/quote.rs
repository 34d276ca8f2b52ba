//! What room limits and TRM leave a job: the completion's length where the request names none,
//! and the length a refused request could have had.

use tirami_core::Digest;
use tirami_kernel::Kernel;
use tirami_ledger::Rejection;
use tirami_ledger::book::{Payer, Terms};
use tirami_ledger::command::{Actor, StartJob};

use crate::handle::{Handle, SubmitError};
use crate::http::error::ApiError;

/// Who pays for what `actor` asks; none when it is bound to no agent.
pub(crate) const fn payer(actor: &Actor) -> Option<Payer> {
    match actor {
        Actor::Caller { key, agent: Some(agent), .. } => Some(Payer { key: *key, agent: *agent }),
        Actor::Caller { agent: None, .. } | Actor::Node => None,
    }
}

/// Asks the book about a job that is not open.
pub(super) struct Quote<'a> {
    pub(super) handle: &'a Handle,
    pub(super) actor: &'a Actor,
}

/// How long a completion could be that would run at once, when a shorter one would.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Hint(Option<u32>);

impl Quote<'_> {
    /// The longest completion there is room for, from 1 to the one in `start`.
    pub(super) async fn affordable(&self, start: &StartJob) -> Result<u32, ApiError> {
        let Some(payer) = payer(self.actor) else {
            return Ok(start.completion_max);
        };
        let start = start.clone();
        let read = move |kernel: &Kernel, now| {
            let book = kernel.ledger().book();
            book.affordable(now, payer, &start, &Terms::own(book.price()))
        };
        Ok(self.handle.read(read).await?)
    }

    /// The same for one of several jobs alike that share the room.
    pub(super) async fn share(&self, start: &StartJob, sharing: u32) -> Result<u32, ApiError> {
        let longest = start.completion_max.saturating_mul(sharing);
        let together = StartJob { completion_max: longest, ..start.clone() };
        let room = self.affordable(&together).await? / sharing.max(1);
        Ok(room.clamp(1, start.completion_max))
    }

    /// What would help against `error`.
    pub(super) async fn hint(&self, start: &StartJob, error: &SubmitError) -> Hint {
        if is_about_room(error) { self.room(start).await } else { Hint::default() }
    }

    /// The longest completion with which `start` would run at once.
    pub(super) async fn room(&self, start: &StartJob) -> Hint {
        let Some(payer) = payer(self.actor) else {
            return Hint::default();
        };
        // A shorter one is another request, about which nobody was asked yet.
        let request = Digest::of(start.request.as_bytes());
        let start = StartJob { request, ..start.clone() };
        let read = move |kernel: &Kernel, now| {
            let book = kernel.ledger().book();
            let completion_max = book.affordable(now, payer, &start, &Terms::own(book.price()));
            let shorter = StartJob { completion_max, ..start };
            book.would_open(now, payer, &shorter, &Terms::own(book.price()))
                .then_some(completion_max)
        };
        // The refusal is true without it.
        Hint(self.handle.read(read).await.ok().flatten())
    }
}

impl Hint {
    /// Adds what helps to a refusal.
    pub(super) fn on(self, error: ApiError) -> ApiError {
        match self.0 {
            None => error,
            Some(most) => {
                error.add(&format!("; set max_tokens to at most {most}")).param("max_tokens")
            }
        }
    }
}

/// Whether a shorter completion could have passed.
pub(super) const fn is_about_room(error: &SubmitError) -> bool {
    matches!(
        error,
        SubmitError::Rejected(
            Rejection::RequestLimit { .. }
                | Rejection::BudgetLimit { .. }
                | Rejection::Insufficient { .. }
        )
    )
}
