//! Welcome lines as the node itself handles them: it settles its own in time, and takes back what
//! it locked for newcomers that settled.

use tirami_core::Timestamp;

use super::Ledger;
use crate::lattice::{Ending, EntryKind, Settle, Unsponsor};

/// How long before its deadline a newcomer settles, in milliseconds: time enough for checkpoints
/// to cover it, and for the line to be of use before.
const SETTLE_AHEAD_MS: u64 = 24 * 3_600_000;

impl Ledger {
    /// The entry about a welcome line that is due on the node's chain.
    pub(super) fn welcome_step(&self, now: Timestamp) -> Option<EntryKind> {
        let fits = |kind: &EntryKind| self.lattice.draft(self.party, now, kind.clone()).is_ok();
        self.own_settle(now).or_else(|| self.own_unsponsor()).filter(fits)
    }

    fn own_settle(&self, now: Timestamp) -> Option<EntryKind> {
        let welcome = self.lattice.welcome(self.party)?;
        let deadline = welcome.deadline.filter(|_| welcome.end.is_none())?;
        let near = now.plus_ms(SETTLE_AHEAD_MS) >= deadline;
        (near && self.lattice.signed_balance(self.party) >= 0).then(|| Settle {}.into())
    }

    fn own_unsponsor(&self) -> Option<EntryKind> {
        self.lattice.sponsored(self.party).find_map(|welcome| {
            let (Ending::Settled, checkpoint) = welcome.end? else {
                return None;
            };
            let settle = welcome.settle?;
            Some(Unsponsor { lock: welcome.lock, settle, checkpoint }.into())
        })
    }
}
