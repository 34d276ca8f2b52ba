//! The rules of MONEY §3–5 a second time, naively: from the set of final entries, by recursion.
//!
//! Nothing here is kept between two questions, so there is nothing that could be updated wrongly.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{DocumentId, PartyId};
use tirami_ledger::lattice::{Entry, EntryKind, Totals};

/// A set of final entries.
pub(crate) struct Model<'a> {
    pub(crate) entries: BTreeMap<DocumentId, &'a Entry>,
    pub(crate) registrar: PartyId,
    pub(crate) line_total: i128,
    pub(crate) fee_ppm: i128,
}

/// What the set comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) balances: BTreeMap<PartyId, i64>,
    pub(crate) payable: BTreeMap<PartyId, i128>,
    pub(crate) frozen: BTreeMap<PartyId, (u64, BTreeSet<DocumentId>)>,
    pub(crate) totals: Totals,
}

#[derive(Default)]
struct Own {
    free: i128,
    line: i128,
    enrolled: i128,
    got: BTreeSet<DocumentId>,
}

impl Model<'_> {
    /// The entries of the set that are valid.
    pub(crate) fn valid(&self) -> BTreeSet<DocumentId> {
        let mut known = BTreeMap::new();
        self.entries.keys().filter(|id| self.is_valid(**id, &mut known)).copied().collect()
    }

    pub(crate) fn sums(&self) -> Sums {
        let valid = self.valid();
        let mut slots = BTreeMap::<(PartyId, u64), BTreeSet<DocumentId>>::new();
        for id in &valid {
            let entry = self.entries[id];
            slots.entry((entry.chain, entry.seq)).or_default().insert(*id);
        }
        let mut sums = Sums::default();
        for ((chain, seq), ids) in &slots {
            if ids.len() > 1 {
                sums.frozen.entry(*chain).or_insert((*seq, ids.clone()));
            }
        }
        let counts = |id: &DocumentId| {
            let entry = self.entries[id];
            sums.frozen.get(&entry.chain).is_none_or(|(seq, _)| entry.seq < *seq)
        };
        let (counted, other): (BTreeSet<_>, BTreeSet<_>) = valid.iter().partition(|id| counts(id));
        let got: BTreeSet<DocumentId> =
            counted.iter().flat_map(|id| collected(&self.entries[id].kind)).collect();
        for id in counted.iter().chain(&other) {
            let entry = self.entries[id];
            let Some((payee, amount)) = payout(&entry.kind) else {
                continue;
            };
            let counts = counted.contains(id);
            match (got.contains(id), counts) {
                (true, true) => {}
                (true, false) => sums.totals.loss += amount,
                (false, counts) => {
                    *sums.payable.entry(payee).or_default() += amount;
                    sums.totals.transit += if counts { amount } else { 0 };
                }
            }
        }
        let mut heads = BTreeMap::<PartyId, (u64, i64)>::new();
        for entry in counted.iter().map(|id| self.entries[id]) {
            let head = heads.entry(entry.chain).or_default();
            *head = (*head).max((entry.seq, entry.balance));
            if let EntryKind::Pay(pay) = &entry.kind {
                sums.totals.burned += pay.fee.signed();
            }
        }
        sums.balances = heads.into_iter().map(|(chain, (_, balance))| (chain, balance)).collect();
        sums.totals.free = sums.balances.values().map(|balance| i128::from(*balance)).sum();
        sums
    }

    fn is_valid(&self, id: DocumentId, known: &mut BTreeMap<DocumentId, bool>) -> bool {
        if let Some(answer) = known.get(&id) {
            return *answer;
        }
        // Hashes have no cycles; marking first only guards against a broken test.
        known.insert(id, false);
        let answer = self.judge(id, known).unwrap_or(false);
        known.insert(id, answer);
        answer
    }

    fn judge(&self, id: DocumentId, known: &mut BTreeMap<DocumentId, bool>) -> Option<bool> {
        let entry = *self.entries.get(&id)?;
        let opens = matches!(entry.kind, EntryKind::Open(_));
        if opens != (entry.seq == 0) || opens != entry.prev.is_none() {
            return Some(false);
        }
        if let Some(prev) = entry.prev {
            let before = self.entries.get(&prev)?;
            let follows = before.chain == entry.chain && before.seq + 1 == entry.seq;
            if !follows || !self.is_valid(prev, known) {
                return Some(false);
            }
        }
        for named in names(&entry.kind) {
            if !self.is_valid(named, known) {
                return Some(false);
            }
        }
        let own = self.own(entry.prev);
        let after = self.after(entry, &own)?;
        Some(after == i128::from(entry.balance))
    }

    /// The balance after `entry`, if its kind's rule allows it.
    fn after(&self, entry: &Entry, own: &Own) -> Option<i128> {
        let debit = |amount: i128| {
            let after = own.free - amount;
            (after >= -own.line).then_some(after)
        };
        let grant = |id: &DocumentId| match &self.entries[id].kind {
            EntryKind::Enrol(enrol) => enrol.party == entry.chain,
            _ => false,
        };
        match &entry.kind {
            EntryKind::Open(open) => open.enrol.iter().all(grant).then_some(0),
            EntryKind::Line(line) => grant(&line.enrol).then_some(own.free),
            EntryKind::Enrol(enrol) => {
                let fits = own.enrolled + enrol.line.signed() <= self.line_total;
                (entry.chain == self.registrar && fits).then_some(own.free)
            }
            EntryKind::Pay(pay) => {
                let sum: i128 = pay.items.iter().map(|item| item.amount.signed()).sum();
                let fee = (sum * self.fee_ppm + 999_999) / 1_000_000;
                let sound = pay.fee.signed() == fee && pay.payee != entry.chain;
                debit(sum + fee).filter(|_| sound)
            }
            EntryKind::Transfer(transfer) => {
                debit(transfer.amount.signed()).filter(|_| transfer.payee != entry.chain)
            }
            EntryKind::Collect(collect) => {
                let mut free = own.free;
                for id in &collect.ids {
                    let (payee, amount) = payout(&self.entries[id].kind)?;
                    if payee != entry.chain || own.got.contains(id) {
                        return None;
                    }
                    free += amount;
                }
                Some(free)
            }
            _ => None,
        }
    }

    /// A chain's own past, folded.
    fn own(&self, prev: Option<DocumentId>) -> Own {
        let mut past = Vec::new();
        let mut at = prev;
        while let Some(entry) = at.and_then(|id| self.entries.get(&id)) {
            past.push(*entry);
            at = entry.prev;
        }
        let line = |id: &DocumentId| match &self.entries[id].kind {
            EntryKind::Enrol(enrol) => enrol.line.signed(),
            _ => 0,
        };
        let mut own = Own::default();
        for entry in past.into_iter().rev() {
            own.free = i128::from(entry.balance);
            own.got.extend(collected(&entry.kind));
            match &entry.kind {
                EntryKind::Open(open) => own.line = open.enrol.as_ref().map_or(0, line),
                EntryKind::Line(fields) => own.line = own.line.max(line(&fields.enrol)),
                EntryKind::Enrol(enrol) => own.enrolled += enrol.line.signed(),
                _ => {}
            }
        }
        own
    }
}

fn names(kind: &EntryKind) -> Vec<DocumentId> {
    match kind {
        EntryKind::Open(open) => open.enrol.into_iter().collect(),
        EntryKind::Line(line) => vec![line.enrol],
        other => collected(other),
    }
}

fn collected(kind: &EntryKind) -> Vec<DocumentId> {
    match kind {
        EntryKind::Collect(collect) => collect.ids.clone(),
        _ => Vec::new(),
    }
}

/// Whom the entry pays, and how much.
pub(crate) fn payout(kind: &EntryKind) -> Option<(PartyId, i128)> {
    match kind {
        EntryKind::Pay(pay) => {
            Some((pay.payee, pay.items.iter().map(|item| item.amount.signed()).sum()))
        }
        EntryKind::Transfer(transfer) => Some((transfer.payee, transfer.amount.signed())),
        _ => None,
    }
}
