//! The invariants of MONEY §12, recomputed from the final entries without any running sum.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{DocumentId, PartyId, Trm};

use super::Lattice;
use super::kinds::Change;
use super::pending::{HELD_MAX, OWN_HELD_MAX};
use super::state::{ChainState, Slot, Totals};

impl Lattice {
    /// Recomputes everything that can be recomputed and compares it. O(everything): for tests,
    /// the simulator and the doctor.
    ///
    /// # Errors
    ///
    /// A sentence that says which invariant is broken and where.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut naive = Totals::default();
        for party in self.shared.chains.keys() {
            self.check_chain(*party, &mut naive)?;
        }
        self.check_transit(&mut naive)?;
        self.check_unseen_locks()?;
        self.shared.recount_locks(&mut naive);
        if naive != self.shared.totals {
            return Err(format!("totals are {:?}, recomputed {naive:?}", self.shared.totals));
        }
        let Totals { free, locked, transit, minted, burned, loss, outside } = naive;
        if free + locked + transit != minted - burned + loss + outside {
            return Err(format!("TRM is not conserved: {naive:?}"));
        }
        if loss != 0 && self.contradictions().next().is_none() {
            return Err("there is loss without a contradiction".to_owned());
        }
        if minted > self.charter().params.cap.signed() {
            return Err("more was minted than the cap".to_owned());
        }
        self.check_lines()?;
        self.check_held()
    }

    /// A chain's counted entries link, add up to its state, and stay above its floor.
    fn check_chain(&self, party: PartyId, naive: &mut Totals) -> Result<(), String> {
        let chain = self.shared.chains.get(&party).ok_or("a chain vanished")?;
        let mut state = ChainState::before_first(party);
        for (slot, id) in self.shared.counted(party) {
            let record = self.shared.record(id, slot).ok_or("a counted entry has no record")?;
            let links = record.slot == slot && record.prev == state.head;
            if !links || slot.seq != state.next || !chain.counts(slot.seq) {
                return Err(format!("slot {} of {party} does not follow", slot.seq));
            }
            state = state.after(id, record.balance, &record.effect);
            let is_last_step = chain.trail.next() == state.next;
            let said = (record.burned_so_far, record.locked) == (state.burned, state.locked);
            if !said || is_last_step && chain.trail.state() != Some(&state) {
                return Err(format!("what is kept of slot {} of {party} is wrong", slot.seq));
            }
            let floor = -state.line.signed() - state.welcome.signed();
            if !state.unproven && i128::from(state.balance) < floor {
                return Err(format!("{party} is below its floor at {}", slot.seq));
            }
            naive.burned += record.effect.burned.signed();
        }
        if state != chain.state {
            return Err(format!("the state of {party} is not that of its entries"));
        }
        if let Some(frozen) = &chain.frozen {
            let rivals =
                self.shared.finals.iter().filter(|(_, record)| {
                    record.slot.chain == party && record.slot.seq == frozen.seq
                });
            let rivals: BTreeSet<DocumentId> = rivals.map(|(id, _)| *id).collect();
            if rivals != frozen.entries || rivals.len() < 2 || frozen.seq != state.next {
                return Err(format!("{party} is frozen for no reason"));
            }
        }
        naive.free += i128::from(state.balance);
        Ok(())
    }

    /// Each payment is collected at most once; what is not collected is payable.
    fn check_transit(&self, naive: &mut Totals) -> Result<(), String> {
        let (mut payable, mut unseen) = (BTreeMap::new(), BTreeMap::new());
        // Where each item was paid.
        let mut paid = BTreeMap::<DocumentId, Slot>::new();
        let all: BTreeMap<_, _> = self.shared.records().collect();
        for (id, record) in &all {
            paid.insert(*id, record.slot);
            if let Some(payout) = record.effect.payout {
                payable.insert((payout.payee, *id), payout.amount);
                if self.shared.counts(record.slot) {
                    naive.transit += payout.amount.signed();
                }
            }
            for decision in record.effect.decisions() {
                for (item, payout) in self.shared.items_of(*id, decision) {
                    paid.insert(item, record.slot);
                    payable.insert((payout.payee, item), payout.amount);
                    if self.shared.counts(record.slot) {
                        naive.transit += payout.amount.signed();
                    }
                }
            }
        }
        let counted = self.shared.chains.keys().flat_map(|chain| self.shared.counted(*chain));
        for (slot, id) in counted {
            let record = all.get(&id).ok_or("a counted entry has no record")?;
            let gained = i128::from(record.balance) - self.shared.balance_before(record);
            let (mut seen, mut some_unseen) = (0, false);
            for item in &record.effect.collected {
                let Some(source) = paid.get(item) else {
                    some_unseen = true;
                    unseen.insert(*item, slot.chain);
                    continue;
                };
                let amount = payable.remove(&(slot.chain, *item)).ok_or_else(|| {
                    format!("{id} collects {item}, which is not its to collect or was collected")
                })?;
                seen += amount.signed();
                if self.shared.counts(*source) {
                    naive.transit -= amount.signed();
                } else {
                    naive.loss += amount.signed();
                }
            }
            if some_unseen {
                naive.outside += gained - seen;
            }
        }
        if unseen != self.shared.unseen {
            return Err("what was collected unseen is not what is kept of it".to_owned());
        }
        if payable != self.shared.payable {
            return Err("what is payable is not what was paid and not collected".to_owned());
        }
        let mut sums = BTreeMap::<PartyId, i128>::new();
        for ((payee, _), amount) in &payable {
            *sums.entry(*payee).or_default() += amount.signed();
        }
        let kept = self.shared.payable_sums.iter().map(|(payee, sum)| (*payee, sum.0));
        if !kept.eq(sums) {
            return Err("the sums of what is payable are wrong".to_owned());
        }
        Ok(())
    }

    /// Locks that are spoken of and not held are known to be so.
    fn check_unseen_locks(&self) -> Result<(), String> {
        let mut named = BTreeSet::new();
        for record in self.shared.finals.values() {
            let lent = record.effect.lent().filter(|(_, amount)| amount.is_zero());
            named.extend(lent.map(|(lock, _)| lock));
            named.extend(record.effect.decisions().iter().map(|listed| listed.lock));
        }
        named.retain(|lock| !self.shared.locks.contains_key(lock));
        if named != self.shared.unseen_locks {
            return Err("the locks not held are not those that are spoken of".to_owned());
        }
        Ok(())
    }

    /// The lines in force sum to at most what the registrars were allowed to enrol.
    fn check_lines(&self) -> Result<(), String> {
        let mut allowed = BTreeMap::<PartyId, Trm>::new();
        for record in self.charters.values() {
            let limit = allowed.entry(record.charter.registrar).or_default();
            *limit = (*limit).max(record.charter.line_total);
        }
        // The grants of a registrar's frozen chain stand on both its branches.
        let frozen = |party: &PartyId| self.chain(*party).is_some_and(|c| c.frozen.is_some());
        if allowed.keys().any(frozen) {
            return Ok(());
        }
        let allowed: i128 = allowed.values().map(|limit| limit.signed()).sum();
        let lines: i128 = self.shared.chains.values().map(|c| c.state.line.signed()).sum();
        if lines > allowed {
            return Err(format!("lines sum to {lines}, {allowed} are allowed"));
        }
        Ok(())
    }

    /// What is held is within its bound, in exactly one place, and not final.
    fn check_held(&self) -> Result<(), String> {
        let (pending, parked) = self.held();
        if pending + parked > HELD_MAX + OWN_HELD_MAX {
            return Err(format!("{pending} pending and {parked} parked entries are too many"));
        }
        let places = self.pending.live.len() + self.pending.lost.len();
        if places != pending {
            return Err("a pending entry has no place or two".to_owned());
        }
        for (id, pending) in &self.pending.entries {
            let place = (pending.entry.entry().slot(), *id);
            let set = if pending.lost { &self.pending.lost } else { &self.pending.live };
            if !set.contains(&place) || self.shared.finals.contains_key(id) {
                return Err(format!("pending {id} is misplaced"));
            }
            if let Change::Opened { .. } = pending.effect.change
                && place.0.seq != 0
            {
                return Err(format!("pending {id} opens a chain that is open"));
            }
        }
        let claims = self.pending.entries.values().map(|p| p.effect.collected.len()).sum::<usize>();
        if claims != self.pending.claims.values().map(BTreeSet::len).sum::<usize>() {
            return Err("the claims of pending entries do not add up".to_owned());
        }
        Ok(())
    }
}
