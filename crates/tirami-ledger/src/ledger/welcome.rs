//! Lines as the node itself handles them: it takes up what the registrar granted it later, settles
//! its own welcome line in time, and takes back what it locked for newcomers that settled.

use tirami_core::{DAY_MS, Timestamp};

use super::Ledger;
use crate::lattice::{Change, Ending, EntryKind, Grant, Line, Settle, Unsponsor};

/// How long before its deadline a newcomer settles, in milliseconds: time enough for checkpoints
/// to cover it, and for the line to be of use before.
const SETTLE_AHEAD_MS: u64 = DAY_MS;

impl Ledger {
    /// The entry about a welcome line that is due on the node's chain.
    pub(super) fn welcome_step(&self, now: Timestamp) -> Option<EntryKind> {
        let fits = |kind: &EntryKind| self.lattice.draft(self.party, now, kind.clone()).is_ok();
        let step = self.own_line().or_else(|| self.own_settle(now));
        step.or_else(|| self.own_unsponsor()).filter(fits)
    }

    /// Whether something about lines is due on the node's chain, which
    /// [`crate::command::Command::Tick`] then signs. O(welcome lines that this node sponsored).
    pub fn welcome_due(&self, now: Timestamp) -> bool {
        let now = now.max(self.book.clock());
        self.book.may_settle(now)
            && self.lattice.chain(self.party).is_some()
            && self.check_may_sign().is_ok()
            && self.welcome_step(now).is_some()
    }

    /// An enrolment that grants this node more than it has.
    fn own_line(&self) -> Option<EntryKind> {
        let has = self.lattice.line(self.party);
        let more = self.lattice.grants(self.party).find_map(|(enrol, grant)| match grant {
            Grant::Enrolment { line } if line > has => Some(enrol),
            _ => None,
        })?;
        let mut pending = self.lattice.pending_of(self.party);
        let under_way = pending.any(|own| matches!(own.effect().change, Change::Line { .. }));
        (!under_way).then(|| Line { enrol: more }.into())
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
