//! Money counted a second time, from nothing but the final entries of the whole mesh.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{DocumentId, JobId, PartyId, Trm};
use tirami_ledger::lattice::{Entry, EntryKind, SignedEntry, Slot};

/// The union of all final entries seen anywhere, in an order in which each rests on earlier ones.
#[derive(Debug, Default)]
pub(super) struct Tally {
    finals: BTreeMap<Slot, DocumentId>,
    balances: BTreeMap<PartyId, i128>,
    transit: BTreeMap<DocumentId, (PartyId, Trm)>,
    collected: BTreeSet<DocumentId>,
    locked: BTreeMap<DocumentId, (PartyId, Trm)>,
    burned: i128,
    /// What was paid for a job: to whom, by whom.
    paid: BTreeMap<(PartyId, PartyId, JobId), Trm>,
}

impl Tally {
    /// Takes an entry that is final at an honest node.
    ///
    /// # Errors
    ///
    /// A rule of money that the entry breaks.
    pub(super) fn add(&mut self, entry: &SignedEntry) -> Result<bool, String> {
        let (id, body) = (entry.id(), entry.entry());
        let slot = body.slot();
        match self.finals.insert(slot, id) {
            Some(known) if known == id => return Ok(false),
            Some(known) => return Err(format!("{known} and {id} are final in one slot")),
            None => {}
        }
        self.count(id, body)?;
        let balance = self.balances.get(&body.chain).copied().unwrap_or_default();
        if balance != i128::from(body.balance) {
            return Err(format!("entry {id} leaves {balance} µTRM and says {}", body.balance));
        }
        Ok(true)
    }

    fn count(&mut self, id: DocumentId, body: &Entry) -> Result<(), String> {
        let balance = self.balances.entry(body.chain).or_default();
        match &body.kind {
            EntryKind::Pay(pay) => {
                let sum: i128 = pay.items.iter().map(|item| item.amount.signed()).sum();
                *balance -= sum + pay.fee.signed();
                self.burned += pay.fee.signed();
                let amount = Trm::from_micro(u64::try_from(sum).map_err(|e| e.to_string())?);
                self.transit.insert(id, (pay.payee, amount));
                for item in &pay.items {
                    let paid = self.paid.entry((pay.payee, body.chain, item.job)).or_default();
                    *paid = paid.saturating_add(item.amount);
                }
            }
            EntryKind::Transfer(transfer) => {
                *balance -= transfer.amount.signed();
                self.transit.insert(id, (transfer.payee, transfer.amount));
            }
            EntryKind::Collect(collect) => {
                for item in &collect.ids {
                    let (payee, amount) = self
                        .transit
                        .remove(item)
                        .ok_or_else(|| format!("{item} was collected and is not in transit"))?;
                    if payee != body.chain || !self.collected.insert(*item) {
                        return Err(format!("{item} was collected twice or by another"));
                    }
                    *balance += amount.signed();
                }
            }
            EntryKind::Sponsor(sponsor) => {
                *balance -= sponsor.amount.signed();
                self.locked.insert(id, (body.chain, sponsor.amount));
            }
            EntryKind::Unsponsor(back) => {
                let lock = self.locked.remove(&back.lock);
                let (sponsor, amount) = lock.ok_or("a lock was ended twice")?;
                if sponsor != body.chain {
                    return Err("a lock was taken back by another".to_owned());
                }
                *balance += amount.signed();
            }
            _ => {}
        }
        Ok(())
    }

    /// Nothing is minted in this mesh, so everything sums to zero (MONEY §12.1).
    pub(super) fn check(&self) -> Result<(), String> {
        let free: i128 = self.balances.values().sum();
        let transit: i128 = self.transit.values().map(|(_, amount)| amount.signed()).sum();
        let locked: i128 = self.locked.values().map(|(_, amount)| amount.signed()).sum();
        let sum = free + transit + locked + self.burned;
        if sum == 0 { Ok(()) } else { Err(format!("the mesh made {sum} µTRM out of nothing")) }
    }

    /// What `consumer` paid `provider` for `job` by final entries.
    pub(super) fn paid(&self, provider: PartyId, consumer: PartyId, job: JobId) -> Trm {
        self.paid.get(&(provider, consumer, job)).copied().unwrap_or_default()
    }

    /// Jobs paid for.
    pub(super) fn jobs_paid(&self) -> u64 {
        self.paid.len() as u64
    }

    pub(super) fn payments(&self) -> impl Iterator<Item = (PartyId, JobId, Trm)> {
        self.paid.iter().map(|((_, consumer, job), amount)| (*consumer, *job, *amount))
    }

    pub(super) fn finals(&self) -> usize {
        self.finals.len()
    }
}
