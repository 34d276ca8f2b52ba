//! Sponsors' locks and the welcome lines they secure: what final entries say of each, and what
//! the next checkpoint has to decide (MONEY §5–7).
//!
//! A lock's facts are sets and single values that entries of several chains put in and take out
//! independently of each other, so the order in which the entries arrive is nothing.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use tirami_core::{DAY_MS, DocumentId, PartyId, Timestamp, Trm};

use super::Lattice;
use super::kinds::{Change, Collect, DECISIONS_MAX, Decision, Effect, Ending, Payout, item_id};
use super::rejection::AcknowledgeRefusal;
use super::shared::Shared;
use super::state::{Slot, Totals};

/// How long a newcomer has to settle, and how long it has to open its chain, by checkpoints.
pub(super) const WELCOME_MS: u64 = 3 * DAY_MS;

/// The most welcome lines that are open before a witness lets further sponsors wait.
pub const WELCOMES_MAX: usize = 4_096;

/// What final entries say of one `sponsor` entry.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Lock {
    /// Where the sponsor's entry stands.
    #[n(0)]
    pub(super) slot: Slot,
    #[n(1)]
    pub(super) newcomer: PartyId,
    #[n(2)]
    pub(super) amount: Trm,
    /// Whether the sponsor's entry counts.
    #[n(3)]
    counted: bool,
    /// Where the newcomer's counted `settle` stands.
    #[n(4)]
    pub(super) settle: Option<(u64, DocumentId)>,
    /// The time of the first checkpoint that lists it.
    #[n(5)]
    listed: Option<Timestamp>,
    /// The time of the first checkpoint that lists the newcomer's chain as begun.
    #[n(6)]
    opened: Option<Timestamp>,
    /// What the last listing said.
    #[n(7)]
    covered: u64,
    #[n(8)]
    ending: Option<Ending>,
    /// The last checkpoint that lists it.
    #[n(9)]
    by: Option<DocumentId>,
    /// The counted entries that ended the lock: one, unless a quorum lied.
    #[n(10)]
    ends: BTreeSet<DocumentId>,
    /// Every final `unsponsor` of it, counted or not.
    #[n(11)]
    unsponsored: BTreeSet<DocumentId>,
}

impl Lock {
    /// The time after which nothing is in time any more; none before a checkpoint lists it.
    fn deadline(&self) -> Option<Timestamp> {
        Some(self.opened.or(self.listed)?.plus_ms(WELCOME_MS))
    }

    /// Whether the sponsor's entry counts.
    pub(super) const fn is_counted(&self) -> bool {
        self.counted
    }

    /// How many entries that count ended the lock.
    pub(super) fn ended(&self) -> u8 {
        u8::try_from(self.ends.len()).unwrap_or(u8::MAX)
    }

    fn is_active(&self) -> bool {
        self.counted && self.ending.is_none()
    }

    /// What the lock adds to what is locked, and to loss: an end without a lock that counts, or a
    /// second end, is TRM that nobody had.
    fn terms(&self) -> (i128, i128) {
        let (base, ends) = (usize::from(self.counted), self.ends.len());
        let locked = if ends == 0 { self.amount.signed() * base as i128 } else { 0 };
        (locked, self.amount.signed() * ends.saturating_sub(base) as i128)
    }
}

/// A part of a lock in transit, which has an id of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Item {
    /// The checkpoint that ended the lock.
    #[n(0)]
    pub(super) source: DocumentId,
    #[n(1)]
    pub(super) payout: Payout,
}

/// A newcomer's welcome line, or what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The sponsor's lock.
    pub lock: DocumentId,
    /// Whose it is.
    pub sponsor: PartyId,
    /// Whom it welcomes.
    pub newcomer: PartyId,
    /// How much is locked, and how far below its line the newcomer may go.
    pub amount: Trm,
    /// Until when the newcomer has to settle, or while it has not opened its chain, to open it;
    /// none before a checkpoint lists it.
    pub deadline: Option<Timestamp>,
    /// The newcomer's final `settle`.
    pub settle: Option<DocumentId>,
    /// How a checkpoint ended it, and which one.
    pub end: Option<(Ending, DocumentId)>,
    /// Whether the sponsor took the lock back.
    pub returned: bool,
}

impl Shared {
    /// Takes the facts about locks that a final entry states; `counts` says if it counts.
    pub(super) fn put_locks(&mut self, id: DocumentId, slot: Slot, effect: &Effect, counts: bool) {
        match effect.change {
            Change::Sponsored { newcomer, amount } => {
                let lock = Lock {
                    slot,
                    newcomer,
                    amount,
                    counted: false,
                    settle: None,
                    listed: None,
                    opened: None,
                    covered: 0,
                    ending: None,
                    by: None,
                    ends: BTreeSet::new(),
                    unsponsored: BTreeSet::new(),
                };
                self.locks.entry(id).or_insert(lock);
                self.change_lock(id, |lock| lock.counted = counts);
                if self.unseen_locks.remove(&id) {
                    self.lock_seen(id, newcomer, amount);
                }
            }
            Change::Settled { lock } if counts => {
                self.change_lock(lock, |lock| lock.settle = Some((slot.seq, id)));
            }
            Change::Unsponsored { lock, .. } => self.change_lock(lock, |lock| {
                lock.unsponsored.insert(id);
                if counts {
                    lock.ends.insert(id);
                }
            }),
            Change::Checkpoint { time, .. } => {
                for decision in effect.decisions() {
                    self.list(id, time, decision, counts);
                }
            }
            _ => {}
        }
    }

    /// Takes back what a final entry that counted stated about locks.
    pub(super) fn take_back_locks(&mut self, id: DocumentId, effect: &Effect) {
        match effect.change {
            Change::Sponsored { .. } => self.change_lock(id, |lock| lock.counted = false),
            Change::Settled { lock } => self.change_lock(lock, |lock| lock.settle = None),
            Change::Unsponsored { lock, .. } => self.change_lock(lock, |lock| {
                lock.ends.remove(&id);
            }),
            Change::Checkpoint { .. } => {
                for decision in effect.decisions() {
                    self.unlist(id, decision);
                }
            }
            _ => {}
        }
    }

    /// A checkpoint lists a lock. What it ends goes in transit.
    pub(super) fn list(
        &mut self,
        id: DocumentId,
        time: Timestamp,
        decision: &Decision,
        counts: bool,
    ) {
        if !self.locks.contains_key(&decision.lock) {
            self.unseen_locks.insert(decision.lock);
            return;
        }
        for (item, payout) in self.items_of(id, decision) {
            self.items.insert(item, Item { source: id, payout });
            self.pays(item, payout, counts);
        }
        if counts {
            self.change_lock(decision.lock, |lock| {
                lock.note(id, time, decision);
                if matches!(decision.end, Some(Ending::Defaulted { .. })) {
                    lock.ends.insert(id);
                }
            });
        }
    }

    /// A checkpoint counts no more. What was collected of what it ended is loss.
    fn unlist(&mut self, id: DocumentId, decision: &Decision) {
        for (item, payout) in self.items_of(id, decision) {
            if self.payable.contains_key(&(payout.payee, item)) {
                self.totals.transit -= payout.amount.signed();
            } else {
                self.totals.loss += payout.amount.signed();
            }
        }
        // Only a contradiction on the clerk's chain comes here, so the listings left are read
        // again.
        let left: Vec<(DocumentId, Timestamp, Decision)> = self
            .checkpoints
            .iter()
            .filter(|((_, checkpoint), _)| *checkpoint != id)
            .filter_map(|((_, checkpoint), time)| {
                let listed = self.finals.get(checkpoint)?.effect.decision(decision.lock)?;
                Some((*checkpoint, *time, listed))
            })
            .collect();
        self.change_lock(decision.lock, |lock| {
            lock.ends.remove(&id);
            (lock.listed, lock.opened, lock.covered) = (None, None, 0);
            (lock.ending, lock.by) = (None, None);
            for (checkpoint, time, listed) in &left {
                lock.note(*checkpoint, *time, listed);
            }
        });
    }

    /// The items that a decision puts in transit.
    pub(super) fn items_of(
        &self,
        checkpoint: DocumentId,
        decision: &Decision,
    ) -> Vec<(DocumentId, Payout)> {
        let (Some(Ending::Defaulted { owed }), Some(lock)) =
            (decision.end, self.locks.get(&decision.lock))
        else {
            return Vec::new();
        };
        let rest = lock.amount.saturating_sub(owed);
        [(lock.newcomer, owed), (lock.slot.chain, rest)]
            .into_iter()
            .filter(|(_, amount)| !amount.is_zero())
            .map(|(payee, amount)| {
                (item_id(checkpoint, decision.lock, payee), Payout { payee, amount })
            })
            .collect()
    }

    pub(super) fn change_lock(&mut self, id: DocumentId, change: impl FnOnce(&mut Lock)) {
        let Some(lock) = self.locks.get_mut(&id) else {
            return;
        };
        let before = lock.terms();
        change(lock);
        let after = lock.terms();
        self.totals.locked += after.0 - before.0;
        self.totals.loss += after.1 - before.1;
        if lock.is_active() {
            self.active.insert(id)
        } else {
            self.active.remove(&id)
        };
    }

    /// What the locks come to, from the final entries alone: for checking the sums.
    pub(super) fn recount_locks(&self, naive: &mut Totals) {
        let counted = |id: &DocumentId| self.item_counts(*id);
        let mut ends = BTreeMap::<DocumentId, i128>::new();
        for (id, record) in self.finals.iter().filter(|(id, _)| counted(id)) {
            if let Change::Unsponsored { lock, .. } = record.effect.change {
                *ends.entry(lock).or_default() += 1;
            }
            let ended = |decision: &&Decision| {
                matches!(decision.end, Some(Ending::Defaulted { .. })) && counted(id)
            };
            for decision in record.effect.decisions().iter().filter(ended) {
                *ends.entry(decision.lock).or_default() += 1;
            }
        }
        for (id, record) in &self.finals {
            if let Change::Sponsored { amount, .. } = record.effect.change {
                let base = i128::from(counted(id));
                let ends = ends.get(id).copied().unwrap_or_default();
                naive.locked += if ends == 0 { base * amount.signed() } else { 0 };
                naive.loss += (ends - base).max(0) * amount.signed();
            }
        }
    }
}

impl Lock {
    fn note(&mut self, id: DocumentId, time: Timestamp, decision: &Decision) {
        self.listed = self.listed.or(Some(time));
        if decision.covered > 0 {
            self.opened = self.opened.or(Some(time));
        }
        self.covered = decision.covered;
        self.by = Some(id);
        self.ending = self.ending.or(decision.end);
    }
}

/// What there is to read about welcome lines.
impl Lattice {
    /// The welcome line that `party` began with, whatever became of it.
    pub fn welcome(&self, party: PartyId) -> Option<Welcome> {
        self.welcome_of(self.chain(party)?.state.sponsor?)
    }

    /// The welcome line that the `sponsor` entry `lock` secures.
    pub fn welcome_of(&self, lock: DocumentId) -> Option<Welcome> {
        let known = self.shared.locks.get(&lock)?;
        Some(Welcome {
            lock,
            sponsor: known.slot.chain,
            newcomer: known.newcomer,
            amount: known.amount,
            deadline: known.deadline(),
            settle: known.settle.map(|(_, id)| id),
            end: known.ending.zip(known.by),
            returned: !known.unsponsored.is_empty(),
        })
    }

    /// The welcome lines that `sponsor` secures, as far as their locks are not taken back.
    pub fn sponsored(&self, sponsor: PartyId) -> impl Iterator<Item = Welcome> {
        let (first, last) = (DocumentId::from_bytes([0; 32]), DocumentId::from_bytes([255; 32]));
        let own = self.shared.sponsors.range((sponsor, first)..=(sponsor, last));
        own.filter_map(|(_, lock)| self.welcome_of(*lock)).filter(|welcome| !welcome.returned)
    }

    /// What `party` was granted by final entries that it may name in `open` or `line`: enrolments
    /// with their lines, and welcome lines with their amounts.
    pub fn grants(&self, party: PartyId) -> impl Iterator<Item = (DocumentId, Grant)> {
        let (first, last) = (DocumentId::from_bytes([0; 32]), DocumentId::from_bytes([255; 32]));
        let granted = self.shared.granted.range((party, first)..=(party, last));
        granted.filter_map(|(_, id)| match self.final_entry(*id)?.effect.change {
            Change::Enrolled { line, .. } => Some((*id, Grant::Enrolment { line })),
            Change::Sponsored { amount, .. } => Some((*id, Grant::Welcome { amount })),
            _ => None,
        })
    }

    /// How far below zero `party` may go for jobs: its line, and its welcome line while it is
    /// open and what it pays now is sure to be covered in time, two checkpoints before the
    /// deadline.
    pub fn floor(&self, party: PartyId) -> Trm {
        let line = self.line(party);
        let Some(welcome) = self.welcome(party).filter(|welcome| welcome.end.is_none()) else {
            return line;
        };
        let now = self.last_checkpoint().map_or(Timestamp::default(), |(_, _, time)| time);
        let covered = now.plus_ms(self.checkpoint_ms_most().saturating_mul(2));
        let in_time = welcome.deadline.is_none_or(|deadline| covered <= deadline);
        let open = self.chain(party).map_or(Trm::ZERO, |chain| chain.state.welcome);
        if in_time { line.saturating_add(open) } else { line }
    }

    /// Whether a checkpoint says that `party` did not settle its welcome line in time.
    pub fn has_defaulted(&self, party: PartyId) -> bool {
        let Some(lock) = self.chain(party).and_then(|chain| chain.state.sponsor) else {
            return false;
        };
        let end = match self.welcome_of(lock) {
            Some(welcome) => welcome.end.map(|(end, _)| end),
            None => self.end_of_unseen(lock),
        };
        matches!(end, Some(Ending::Defaulted { .. }))
    }

    /// Whether [`Lattice::next_collect`] has anything. Ends at the first.
    pub fn can_collect(&self, party: PartyId) -> bool {
        let is_ready = |id| self.out_of_welcome(id).is_none() || self.covering(id).is_some();
        self.chain(party).is_some() && self.unclaimed(party).any(|(id, _)| is_ready(id))
    }

    /// The next `collect` of `party`: up to 256 of what it may collect now, first what needs no
    /// checkpoint, then what one checkpoint covers. `None` when there is nothing, or no chain.
    pub fn next_collect(&self, party: PartyId) -> Option<Collect> {
        self.chain(party)?;
        let ids: Vec<DocumentId> =
            self.collectable(party).map(|(id, _)| id).take(Collect::IDS_MAX).collect();
        if !ids.is_empty() {
            return Some(Collect { ids, checkpoint: None });
        }
        let mut covered = BTreeMap::<DocumentId, Vec<DocumentId>>::new();
        for (id, _) in self.unclaimed(party) {
            if let Some(checkpoint) = self.covering(id) {
                covered.entry(checkpoint).or_default().push(id);
            }
        }
        let (checkpoint, mut ids) = covered.into_iter().max_by_key(|(_, ids)| ids.len())?;
        ids.truncate(Collect::IDS_MAX);
        Some(Collect { ids, checkpoint: Some(checkpoint) })
    }

    /// The lock behind the welcome line that the payment `item` is out of.
    pub(super) fn out_of_welcome(&self, item: DocumentId) -> Option<DocumentId> {
        match self.final_entry(item)?.effect.change {
            Change::OutOfWelcome { lock } => Some(lock),
            _ => None,
        }
    }

    /// The checkpoint that covers a payment out of a welcome line in time.
    fn covering(&self, item: DocumentId) -> Option<DocumentId> {
        let lock = self.shared.locks.get(&self.out_of_welcome(item)?)?;
        let seq = self.final_entry(item)?.slot.seq;
        lock.by.filter(|_| lock.covered > seq)
    }

    /// Whom `item` pays and how much: `None` when it is no final entry and no part of a lock,
    /// `Some(None)` when the entry pays nobody.
    #[expect(clippy::option_option, reason = "unknown and paying nobody are two refusals")]
    pub(super) fn payout(&self, item: DocumentId) -> Option<Option<Payout>> {
        let entry = self.final_entry(item).map(|record| record.effect.payout);
        entry.or_else(|| self.shared.items.get(&item).map(|item| Some(item.payout)))
    }

    /// Whether `lock` was given back at or before `prev` on `chain`.
    pub(super) fn was_unsponsored(
        &self,
        lock: DocumentId,
        chain: PartyId,
        prev: Option<DocumentId>,
    ) -> bool {
        let known = self.shared.locks.get(&lock).map(|lock| &lock.unsponsored);
        let pending = self.pending_of(chain).filter(|pending| {
            matches!(pending.effect.change, Change::Unsponsored { lock: of, .. } if of == lock)
        });
        let mut ends = known.into_iter().flatten().copied();
        ends.any(|end| self.is_before(end, prev))
            || pending.map(|pending| pending.entry.id()).any(|end| self.is_before(end, prev))
    }
}

/// What a party was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The registrar's.
    Enrolment {
        /// How far the party may overdraw.
        line: Trm,
    },
    /// A sponsor's.
    Welcome {
        /// How far below its line the party may go for jobs.
        amount: Trm,
    },
}

/// What a checkpoint has to decide.
impl Lattice {
    /// What a checkpoint dated `time` over `cut` lists, in the order of the locks: at most
    /// [`DECISIONS_MAX`], those whose time runs out first. O(open welcome lines).
    ///
    /// # Errors
    ///
    /// [`AcknowledgeRefusal::CutUnknown`] when the cut of the last checkpoint dated at or before a
    /// deadline is not known here.
    pub(super) fn decisions_at(
        &self,
        time: Timestamp,
        cut: &BTreeMap<PartyId, u64>,
    ) -> Result<Vec<Decision>, AcknowledgeRefusal> {
        let mut found = Vec::new();
        for id in &self.shared.active {
            let Some(lock) = self.shared.locks.get(id) else {
                continue;
            };
            let sponsor = cut.get(&lock.slot.chain);
            if sponsor.is_none_or(|head| *head < lock.slot.seq) {
                continue;
            }
            if let Some(decision) = self.decide_lock(*id, lock, time, cut)? {
                let due = lock.deadline().unwrap_or(Timestamp::from_ms(u64::MAX));
                found.push((due, decision));
            }
        }
        found.sort_unstable_by_key(|(due, decision)| (*due, decision.lock));
        found.truncate(DECISIONS_MAX);
        let mut listed: Vec<Decision> = found.into_iter().map(|(_, decision)| decision).collect();
        listed.sort_unstable_by_key(|decision| decision.lock);
        Ok(listed)
    }

    fn decide_lock(
        &self,
        id: DocumentId,
        lock: &Lock,
        time: Timestamp,
        cut: &BTreeMap<PartyId, u64>,
    ) -> Result<Option<Decision>, AcknowledgeRefusal> {
        let begun = self.chain(lock.newcomer).filter(|chain| chain.state.sponsor == Some(id));
        let covered_by = |cut: &BTreeMap<PartyId, u64>| {
            let head = cut.get(&lock.newcomer).filter(|_| begun.is_some());
            head.map_or(0, |seq| seq.saturating_add(1))
        };
        let late = lock.deadline().filter(|deadline| time > *deadline);
        // "In time" is what the last checkpoint dated at or before the deadline covers.
        let covered = match late {
            None => covered_by(cut),
            Some(deadline) => covered_by(self.cut_at(deadline)?),
        };
        let settled = lock.settle.is_some_and(|(seq, _)| seq < covered);
        let end = match (settled, late) {
            // What opened in time and was left over begins its time now.
            (false, Some(_)) if lock.opened.is_none() && covered > 0 => None,
            (true, _) => Some(Ending::Settled),
            (false, Some(_)) => {
                let owed = self.owed(lock, covered);
                Some(Ending::Defaulted { owed })
            }
            (false, None) => None,
        };
        let news = end.is_some() || lock.listed.is_none() || covered > lock.covered;
        Ok(news.then_some(Decision { lock: id, covered, end }))
    }

    /// How far the newcomer was below its line after its first `covered` entries: what the lock
    /// makes good.
    fn owed(&self, lock: &Lock, covered: u64) -> Trm {
        let Some(seq) = covered.checked_sub(1) else {
            return Trm::ZERO;
        };
        let then = self.shared.line_and_balance(Slot { chain: lock.newcomer, seq });
        let now = || self.chain(lock.newcomer).map(|chain| (chain.line(), chain.balance()));
        let below =
            then.or_else(now).map_or(0, |(line, balance)| -line.signed() - i128::from(balance));
        Trm::from_micro(u64::try_from(below.max(0)).unwrap_or(u64::MAX)).min(lock.amount)
    }

    /// The cut of the last checkpoint dated at or before `deadline`.
    fn cut_at(&self, deadline: Timestamp) -> Result<&BTreeMap<PartyId, u64>, AcknowledgeRefusal> {
        let mut dated = self.shared.checkpoints.iter().rev();
        let last = dated.find(|(_, time)| **time <= deadline).map(|(place, _)| place);
        last.and_then(|place| self.cuts.get(place)).ok_or(AcknowledgeRefusal::CutUnknown)
    }
}
