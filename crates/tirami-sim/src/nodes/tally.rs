//! Money counted a second time, from nothing but the final entries of the whole mesh.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{DocumentId, JobId, PartyId, Ppm, Timestamp, Trm};
use tirami_ledger::lattice::{Checkpoint, Entry, EntryKind, Open, Pay, Slot};

/// The union of all final entries seen anywhere, in an order in which each rests on earlier ones.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The charter's sum of lines and its fee, once the mesh is founded.
    pub(super) params: Option<(Trm, Ppm)>,
    finals: BTreeMap<Slot, DocumentId>,
    balances: BTreeMap<PartyId, i128>,
    /// How far each party may overdraw, and how much further for jobs while it is a newcomer.
    lines: BTreeMap<PartyId, (Trm, Trm)>,
    enrolled: BTreeMap<DocumentId, (PartyId, Trm)>,
    sponsored: BTreeMap<DocumentId, (PartyId, Trm)>,
    transit: BTreeMap<DocumentId, (PartyId, Trm)>,
    collected: BTreeSet<DocumentId>,
    locked: BTreeMap<DocumentId, (PartyId, Trm)>,
    burned: i128,
    checkpoint: Option<(u64, Timestamp)>,
    /// What was paid for a job: to whom, by whom.
    paid: BTreeMap<(PartyId, PartyId, JobId), Trm>,
    kinds: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Takes an entry that is final at an honest node.
    ///
    /// # Errors
    ///
    /// A rule of money that the entry breaks.
    pub(super) fn add(&mut self, id: DocumentId, body: &Entry) -> Result<bool, String> {
        let slot = body.slot();
        match self.finals.insert(slot, id) {
            Some(known) if known == id => return Ok(false),
            Some(known) => return Err(format!("{known} and {id} are final in one slot")),
            None => {}
        }
        *self.kinds.entry(body.kind.name()).or_default() += 1;
        self.count(id, body)?;
        let balance = self.balances.get(&body.chain).copied().unwrap_or_default();
        if balance != i128::from(body.balance) {
            return Err(format!("entry {id} leaves {balance} µTRM and says {}", body.balance));
        }
        self.check_floor(body, balance)?;
        Ok(true)
    }

    /// MONEY §12.3: the welcome line is for jobs, everything else stays within the line.
    fn check_floor(&self, body: &Entry, balance: i128) -> Result<(), String> {
        let (line, welcome) = self.lines.get(&body.chain).copied().unwrap_or_default();
        let gives = matches!(body.kind, EntryKind::Transfer(_) | EntryKind::Sponsor(_));
        let floor = line.signed() + if gives { 0 } else { welcome.signed() };
        if balance < -floor {
            return Err(format!("{} overdraws {balance} µTRM beyond {floor}", body.kind.name()));
        }
        Ok(())
    }

    fn count(&mut self, id: DocumentId, body: &Entry) -> Result<(), String> {
        let chain = body.chain;
        match &body.kind {
            EntryKind::Pay(pay) => self.pay(id, chain, pay)?,
            EntryKind::Transfer(transfer) => {
                *self.balance(chain) -= transfer.amount.signed();
                self.transit.insert(id, (transfer.payee, transfer.amount));
            }
            EntryKind::Collect(collect) => {
                for item in &collect.ids {
                    let (payee, amount) = self
                        .transit
                        .remove(item)
                        .ok_or_else(|| format!("{item} was collected and is not in transit"))?;
                    if payee != chain || !self.collected.insert(*item) {
                        return Err(format!("{item} was collected twice or by another"));
                    }
                    *self.balance(chain) += amount.signed();
                }
            }
            EntryKind::Sponsor(sponsor) => {
                *self.balance(chain) -= sponsor.amount.signed();
                self.locked.insert(id, (chain, sponsor.amount));
                self.sponsored.insert(id, (sponsor.newcomer, sponsor.amount));
            }
            EntryKind::Unsponsor(back) => {
                let lock = self.locked.remove(&back.lock);
                let (sponsor, amount) = lock.ok_or("a lock was ended twice")?;
                if sponsor != chain {
                    return Err("a lock was taken back by another".to_owned());
                }
                *self.balance(chain) += amount.signed();
            }
            EntryKind::Open(open) => self.open(chain, open)?,
            EntryKind::Enrol(enrol) => {
                self.enrolled.insert(id, (enrol.party, enrol.line));
                self.check_lines()?;
            }
            EntryKind::Line(line) => {
                let granted = self.granted(line.enrol, chain)?;
                let own = self.lines.entry(chain).or_default();
                own.0 = own.0.max(granted);
            }
            EntryKind::Settle(_) => {
                self.lines.entry(chain).or_default().1 = Trm::ZERO;
                if *self.balance(chain) < 0 {
                    return Err("a newcomer settled below zero".to_owned());
                }
            }
            EntryKind::Checkpoint(checkpoint) => self.note_checkpoint(checkpoint)?,
            EntryKind::Rekey(_) => {}
        }
        Ok(())
    }

    fn balance(&mut self, chain: PartyId) -> &mut i128 {
        self.balances.entry(chain).or_default()
    }

    fn pay(&mut self, id: DocumentId, chain: PartyId, pay: &Pay) -> Result<(), String> {
        let sum: i128 = pay.items.iter().map(|item| item.amount.signed()).sum();
        let amount = Trm::from_micro(u64::try_from(sum).map_err(|e| e.to_string())?);
        if let Some((_, fee_ppm)) = self.params
            && pay.fee != amount.mul_ceil(fee_ppm)
        {
            return Err(format!("a payment of {amount} burns {}", pay.fee));
        }
        *self.balance(chain) -= sum + pay.fee.signed();
        self.burned += pay.fee.signed();
        self.transit.insert(id, (pay.payee, amount));
        for item in &pay.items {
            let paid = self.paid.entry((pay.payee, chain, item.job)).or_default();
            *paid = paid.saturating_add(item.amount);
        }
        Ok(())
    }

    fn open(&mut self, chain: PartyId, open: &Open) -> Result<(), String> {
        let line = open.enrol.map_or(Ok(Trm::ZERO), |enrol| self.granted(enrol, chain))?;
        let welcome = match open.sponsor.map(|lock| self.sponsored.get(&lock)) {
            None => Trm::ZERO,
            Some(Some((newcomer, amount))) if *newcomer == chain => *amount,
            Some(_) => return Err("a newcomer begins with a lock for another".to_owned()),
        };
        self.lines.insert(chain, (line, welcome));
        Ok(())
    }

    fn granted(&self, enrol: DocumentId, chain: PartyId) -> Result<Trm, String> {
        let granted = self.enrolled.get(&enrol).filter(|(party, _)| *party == chain);
        granted.map(|(_, line)| *line).ok_or_else(|| "a line was granted to another".to_owned())
    }

    fn check_lines(&self) -> Result<(), String> {
        let sum: i128 = self.enrolled.values().map(|(_, line)| line.signed()).sum();
        match self.params {
            Some((total, _)) if sum > total.signed() => {
                Err(format!("lines of {sum} µTRM are more than the charter's {total}"))
            }
            _ => Ok(()),
        }
    }

    /// The mesh's clock goes forward; nothing is minted and nothing lost in these runs.
    fn note_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), String> {
        let Checkpoint { number, time, minted, loss, .. } = checkpoint;
        let (before, last) = self.checkpoint.unwrap_or_default();
        if *number != before + 1 || *time <= last {
            return Err(format!("checkpoint {number} follows checkpoint {before}"));
        }
        self.checkpoint = Some((*number, *time));
        if minted.is_zero() && loss.is_zero() {
            return Ok(());
        }
        Err(format!("checkpoint {number} mints {minted} and loses {loss}"))
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

    /// Final entries, by kind.
    pub(super) const fn kinds(&self) -> &BTreeMap<&'static str, u64> {
        &self.kinds
    }

    /// A payment that was collected, and one that is in transit to somebody.
    pub(super) fn some_payments(&self) -> [Option<DocumentId>; 2] {
        [self.collected.last().copied(), self.transit.keys().next_back().copied()]
    }
}

#[cfg(test)]
mod tests {
    use tirami_core::Digest;
    use tirami_ledger::lattice::{Collect, Enrol, Line, PayItem, Settle, Sponsor, Transfer};

    use super::*;

    const REGISTRAR: PartyId = PartyId::from_bytes([1; 32]);
    const ANN: PartyId = PartyId::from_bytes([2; 32]);
    const BOB: PartyId = PartyId::from_bytes([3; 32]);

    /// A mesh of a registrar and of Ann, who may overdraw 100.
    struct Chains {
        tally: Tally,
        next: BTreeMap<PartyId, u64>,
        entries: u8,
    }

    fn trm(micro: u64) -> Trm {
        Trm::from_micro(micro)
    }

    impl Chains {
        fn new() -> Self {
            let tally = Tally { params: Some((trm(150), Ppm::ZERO)), ..Tally::default() };
            let mut chains = Self { tally, next: BTreeMap::new(), entries: 0 };
            let nobody = || Open { sponsor: None, enrol: None, recovery: None };
            chains.good(REGISTRAR, nobody(), 0);
            let enrol = chains.good(REGISTRAR, enrol(ANN, 100), 0);
            chains.good(ANN, Open { enrol: Some(enrol), ..nobody() }, 0);
            chains.good(BOB, nobody(), 0);
            chains
        }

        fn add(
            &mut self,
            chain: PartyId,
            kind: impl Into<EntryKind>,
            balance: i64,
        ) -> (DocumentId, Result<bool, String>) {
            let seq = self.next.entry(chain).or_default();
            let (kind, time_ms) = (kind.into(), Timestamp::default());
            let entry = Entry { chain, seq: *seq, prev: None, time_ms, kind, balance };
            *seq += 1;
            self.entries += 1;
            let id = DocumentId::from_bytes([self.entries; 32]);
            (id, self.tally.add(id, &entry))
        }

        fn good(&mut self, chain: PartyId, kind: impl Into<EntryKind>, balance: i64) -> DocumentId {
            let (id, added) = self.add(chain, kind, balance);
            assert_eq!(added, Ok(true));
            id
        }

        fn bad(&mut self, chain: PartyId, kind: impl Into<EntryKind>, balance: i64, said: &str) {
            let (_, added) = self.add(chain, kind, balance);
            let what = added.expect_err(said);
            assert!(what.contains(said), "{what}, not: {said}");
        }
    }

    fn enrol(party: PartyId, line: u64) -> Enrol {
        Enrol { party, owner: String::new(), line: trm(line) }
    }

    fn transfer(payee: PartyId, amount: u64) -> Transfer {
        Transfer { payee, amount: trm(amount) }
    }

    fn collect(id: DocumentId) -> Collect {
        Collect { ids: vec![id], checkpoint: None }
    }

    fn checkpoint(number: u64, minted: u64) -> Checkpoint {
        Checkpoint {
            number,
            previous: None,
            time: Timestamp::from_ms(number * 1_000),
            cut: Digest::of(b""),
            minted: trm(minted),
            burned: Trm::ZERO,
            loss: Trm::ZERO,
            epoch: 0,
            params: tirami_ledger::lattice::Params::default(),
            decisions: Digest::of(b""),
            listed: Vec::new(),
        }
    }

    #[test]
    fn each_rule_of_money_is_missed_when_it_is_broken() {
        let mut chains = Chains::new();
        chains.good(ANN, transfer(BOB, 40), -40);
        assert_eq!(chains.tally.check(), Ok(()));
        chains.bad(ANN, transfer(BOB, 10), -40, "and says -40");

        let mut chains = Chains::new();
        chains.bad(ANN, transfer(BOB, 101), -101, "overdraws");
        chains.bad(REGISTRAR, enrol(BOB, 51), 0, "more than the charter's");

        let mut chains = Chains::new();
        let sent = chains.good(ANN, transfer(BOB, 40), -40);
        chains.bad(ANN, collect(sent), 0, "by another");
        let mut chains = Chains::new();
        let sent = chains.good(ANN, transfer(BOB, 40), -40);
        chains.good(BOB, collect(sent), 40);
        chains.bad(BOB, collect(sent), 80, "not in transit");

        let mut chains = Chains::new();
        let grant = chains.good(REGISTRAR, enrol(ANN, 10), 0);
        chains.bad(BOB, Line { enrol: grant }, 0, "granted to another");
        chains.good(REGISTRAR, checkpoint(1, 0), 0);
        chains.bad(REGISTRAR, checkpoint(1, 0), 0, "follows checkpoint 1");
        chains.bad(REGISTRAR, checkpoint(2, 5), 0, "mints");
    }

    #[test]
    fn a_slot_has_one_entry_and_a_job_its_fee() {
        let mut chains = Chains::new();
        chains.good(ANN, transfer(BOB, 1), -1);
        chains.next.insert(ANN, 1);
        chains.bad(ANN, transfer(BOB, 2), -3, "final in one slot");

        let mut chains = Chains::new();
        chains.tally.params = Some((trm(150), Ppm::new(100_000)));
        let items = vec![PayItem { job: JobId::from_bytes([1; 16]), amount: trm(20) }];
        chains.good(ANN, Pay { payee: BOB, items: items.clone(), fee: trm(2) }, -22);
        assert_eq!(chains.tally.check(), Ok(()));
        chains.bad(ANN, Pay { payee: BOB, items, fee: trm(1) }, -43, "burns");
        chains.tally.burned = 0;
        assert!(chains.tally.check().is_err_and(|what| what.contains("out of nothing")));
    }

    #[test]
    fn a_lock_ends_once_and_a_welcome_line_is_for_jobs() {
        use tirami_ledger::lattice::Unsponsor;
        let newcomer = PartyId::from_bytes([4; 32]);
        let mut chains = Chains::new();
        let any = DocumentId::from_bytes([99; 32]);
        let lock = chains.good(ANN, Sponsor { newcomer, amount: trm(30), checkpoint: any }, -30);
        let open = Open { sponsor: Some(lock), enrol: None, recovery: None };
        let mut other = Chains::new();
        other.tally.sponsored.insert(lock, (ANN, trm(30)));
        other.bad(newcomer, open.clone(), 0, "a lock for another");
        chains.good(newcomer, open, 0);
        let items = vec![PayItem { job: JobId::from_bytes([1; 16]), amount: trm(30) }];
        chains.good(newcomer, Pay { payee: BOB, items, fee: Trm::ZERO }, -30);
        chains.bad(newcomer, Settle {}, -30, "below zero");
        let back = || Unsponsor { lock, settle: any, checkpoint: any };
        chains.bad(BOB, back(), 30, "by another");

        let mut chains = Chains::new();
        let lock = chains.good(ANN, Sponsor { newcomer, amount: trm(30), checkpoint: any }, -30);
        let back = || Unsponsor { lock, settle: any, checkpoint: any };
        let open = Open { sponsor: Some(lock), enrol: None, recovery: None };
        chains.good(newcomer, open, 0);
        chains.bad(newcomer, transfer(BOB, 1), -1, "overdraws");
        chains.good(ANN, back(), 0);
        chains.bad(ANN, back(), 30, "ended twice");
    }
}
