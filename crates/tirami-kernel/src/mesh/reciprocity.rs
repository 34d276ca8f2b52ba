//! Who serves whom: what is traded with each node counts for choosing providers, and a busy node
//! whose owner wants so keeps its last places for nodes that served it.

use tirami_core::{MINUTE_MS, PartyId, Timestamp, Trm};
use tirami_ledger::Rejection;
use tirami_ledger::command::Outcome;
use tirami_ledger::event::BookEvent;
use tirami_ledger::refusal::OrderRefusal;

use tirami_proto::Message;

use crate::kernel::{Effects, Kernel};
use crate::scheduler::{Observation, Observed};

/// How often a node tells others what it saw of providers, in milliseconds.
pub(super) const OPINIONS_MS: u64 = MINUTE_MS;
/// What a node has paid a peer that it tells: whom a node uses is nobody's affair for a token, and
/// its voice would count for little there.
const TELL_FROM: Trm = Trm::from_micro(100_000_000);

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
        if self.keeps_places_from(*consumer) {
            return Err(OrderRefusal::Reserved.into());
        }
        Ok(())
    }

    /// Whether the places left are kept for others than `consumer`.
    pub fn keeps_places_from(&self, consumer: PartyId) -> bool {
        let book = self.ledger.book();
        let above = book.serving().contributors_above as usize;
        above > 0 && book.served_running() >= above && !self.has_served_us(consumer)
    }

    /// Tells the peers that this node has paid what its own jobs showed, once again what it told
    /// last: one that was away hears it too. Others would not listen.
    pub(super) fn tell_opinions(&mut self, now: Timestamp, effects: &mut Effects) {
        let told_at = self.mesh.opinions_told_at;
        if told_at.plus_ms(OPINIONS_MS) > now {
            return;
        }
        self.mesh.opinions_told_at = now;
        let since = Timestamp::from_ms(told_at.ms().saturating_sub(OPINIONS_MS));
        let news = self.mesh.opinions.tell(since);
        for to in self.mesh.open_peers() {
            let mut said = news.clone();
            said.retain(|opinion| opinion.provider != to);
            if !said.is_empty() && self.mesh.opinions.bought(to) >= TELL_FROM {
                effects.send.push((to, Message::Opinions(said)));
            }
        }
    }

    /// Whether `party` answered for this node since its start, and was charged for.
    pub fn has_served_us(&self, party: PartyId) -> bool {
        !self.mesh.opinions.bought(party).is_zero()
    }
}
