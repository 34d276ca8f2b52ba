//! What the node signs by itself: payments for jobs that others did, and the collection of what
//! others paid it. One entry at a time: each stands on the one before.

use tirami_core::{PartyId, Timestamp};

use super::chain::lattice_events;
use super::{Keyring, Ledger};
use crate::event::{BookEvent, Event};
use crate::lattice::{Collect, EntryKind, LatticeEvent, Pay};

impl Ledger {
    /// The next entry that is due: the payment that waits longest, else a collection.
    pub(super) fn settle(&self, now: Timestamp, keys: &Keyring) -> Vec<Event> {
        let draft = |kind: EntryKind| self.lattice.draft(self.party, now, kind);
        let drafted = if let Some((payee, items)) = self.book.due_payment(now) {
            let fee_ppm = self.lattice.charter().params.fee_ppm;
            draft(Pay::new(payee, items, fee_ppm).into())
        } else if let Some(collect) = self.due_collect(now) {
            draft(collect.into())
        } else if let Some(step) = self.welcome_step(now) {
            draft(step)
        } else {
            return Vec::new();
        };
        let signed = drafted.map_err(Into::into);
        match signed.and_then(|entry| self.signed_entry(&keys.node, entry)) {
            Ok((_, events)) => lattice_events(events),
            // Too many entries wait, or the node may not sign yet: the debts stay.
            Err(_) => vec![Event::Book(BookEvent::SettlingFailed { at: now })],
        }
    }

    /// As many payments to this node as one entry collects, once they have waited long enough.
    fn due_collect(&self, now: Timestamp) -> Option<Collect> {
        self.next_collect().filter(|due| *due <= now)?;
        self.lattice.next_collect(self.party)
    }

    /// When payments to this node are to be collected; none when there are none, or no chain to
    /// collect them on.
    pub(super) fn next_collect(&self) -> Option<Timestamp> {
        self.lattice.can_collect(self.party).then(|| self.book.next_collect())
    }

    /// What a final entry of another chain paid for jobs that this node served.
    pub(super) fn settled_by(&self, event: &Event) -> Vec<Event> {
        let Event::Lattice(event) = event else { return Vec::new() };
        let LatticeEvent::EntryFinal { entry, .. } = &**event else { return Vec::new() };
        let consumer: PartyId = entry.entry().chain;
        let EntryKind::Pay(pay) = &entry.entry().kind else { return Vec::new() };
        if pay.payee != self.party || !self.book.consumers().contains_key(&consumer) {
            return Vec::new();
        }
        let settled = |item: &crate::lattice::PayItem| BookEvent::ServedSettled {
            job: item.job,
            consumer,
            amount: item.amount,
            entry: entry.id(),
        };
        pay.items.iter().map(|item| Event::Book(settled(item))).collect()
    }
}
