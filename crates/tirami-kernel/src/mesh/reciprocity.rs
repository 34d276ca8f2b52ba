//! Who serves whom: what is traded with each node counts for choosing providers, and a busy node
//! whose owner wants so keeps its last places for nodes that served it.

use tirami_core::{PartyId, Trm};
use tirami_ledger::Rejection;
use tirami_ledger::command::Outcome;
use tirami_ledger::event::BookEvent;
use tirami_ledger::refusal::OrderRefusal;

use crate::kernel::Kernel;
use crate::scheduler::{Observation, Observed};

/// What a job at another node cost, or what another node paid.
pub(super) fn traded(event: &BookEvent) -> Option<Observation> {
    let (provider, bought, sold) = match event {
        BookEvent::HoldPosted(posted) => (posted.provider?, posted.amount, Trm::ZERO),
        BookEvent::ServedSettled { consumer, amount, .. } => (*consumer, Trm::ZERO, *amount),
        _ => return None,
    };
    Some(Observation { provider, outcome: Observed::Traded { bought, sold } })
}

impl Kernel {
    /// Refuses an order that the ledger would take when the places left are kept for others.
    pub(crate) fn check_reserved(&self, outcome: &Outcome) -> Result<(), Rejection> {
        let Outcome::OrderAccepted { consumer, .. } = outcome else { return Ok(()) };
        let book = self.ledger.book();
        let above = book.serving().contributors_above as usize;
        let is_busy = above > 0 && book.served_running() >= above;
        if is_busy && !self.has_served_us(*consumer) {
            return Err(OrderRefusal::Reserved.into());
        }
        Ok(())
    }

    /// Whether `party` answered for this node since its start, and was charged for.
    pub fn has_served_us(&self, party: PartyId) -> bool {
        !self.mesh.opinions.bought(party).is_zero()
    }
}
