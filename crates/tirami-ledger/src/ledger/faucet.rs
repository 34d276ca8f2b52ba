//! The faucet: newcomers that nobody knows are sponsored within bounds that the owner set. What
//! can be lost is what was locked.

use tirami_core::{PartyId, Timestamp};

use super::{Decision, Keyring, Ledger};
use crate::Rejection;
use crate::command::SponsorStranger;
use crate::event::{BookEvent, Event};
use crate::lattice::{Change, Sponsor};
use crate::refusal::FaucetRefusal;

impl Ledger {
    pub(super) fn sponsor_stranger(
        &self,
        now: Timestamp,
        keys: &Keyring,
        asked: &SponsorStranger,
    ) -> Result<Decision, Rejection> {
        let SponsorStranger { newcomer, source, amount, bounds } = *asked;
        self.check_stranger(now, asked)?;
        let (_, checkpoint, _) =
            self.lattice.last_checkpoint().ok_or(FaucetRefusal::NoCheckpoint)?;
        self.book.check_faucet(now, (amount, source), &bounds)?;
        let kind = Sponsor { newcomer, amount, checkpoint }.into();
        let mut decision = self.sign_entry(now, keys, &kind)?;
        let given = BookEvent::StrangerSponsored { newcomer, source, amount, at: now };
        decision.events.insert(0, Event::Book(given));
        Ok(decision)
    }

    /// Whether the faucet would sponsor the newcomer now. Signs nothing.
    ///
    /// # Errors
    ///
    /// Why not, but for what only signing shows.
    pub fn check_stranger(&self, now: Timestamp, asked: &SponsorStranger) -> Result<(), Rejection> {
        let now = now.max(self.book.clock());
        self.book.check_kill()?;
        self.check_may_sign()?;
        if asked.newcomer == self.party || self.is_begun(asked.newcomer) {
            return Err(FaucetRefusal::Known.into());
        }
        self.lattice.last_checkpoint().ok_or(FaucetRefusal::NoCheckpoint)?;
        self.book.check_faucet(now, (asked.amount, asked.source), &asked.bounds)?;
        let available = self.fundable();
        if available < asked.amount {
            return Err(FaucetRefusal::Empty.into());
        }
        Ok(())
    }

    /// Whether the party has a chain, an enrolment or a welcome line, or this node is giving it
    /// one.
    fn is_begun(&self, party: PartyId) -> bool {
        let lattice = &self.lattice;
        let mut pending = lattice.pending_of(self.party).map(|pending| pending.effect().change);
        let under_way = pending.any(|change| match change {
            Change::Sponsored { newcomer, .. } => newcomer == party,
            Change::Enrolled { party: enrolled, .. } => enrolled == party,
            _ => false,
        });
        under_way
            || lattice.grants(party).next().is_some()
            || lattice.chain(party).is_some()
            || lattice.pending_of(party).next().is_some()
    }
}
