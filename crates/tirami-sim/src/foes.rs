//! Dishonest owners and witnesses: two entries for one slot, promises to both, forgeries.

use std::collections::BTreeMap;

use tirami_core::{Document, DocumentId, PartyId, SecretKey, Signed, Timestamp, Trm};
use tirami_ledger::command::Command;
use tirami_ledger::lattice::{Acknowledgement, Collect, Entry, EntryKind, Lattice, Open, Transfer};

use crate::network::Message;
use crate::world::World;

/// The year 2100, in milliseconds since the Unix epoch.
const YEAR_2100_MS: u64 = 4_102_444_800_000;

/// Owners that sign what they like, and witnesses that promise what they like.
pub(crate) struct Foes {
    owners: Vec<SecretKey>,
    liars: Vec<SecretKey>,
    /// The enrolments of owners without a node.
    pub(crate) grants: BTreeMap<PartyId, DocumentId>,
}

impl Foes {
    pub(crate) fn new(owners: Vec<SecretKey>, liars: Vec<SecretKey>) -> Self {
        Self { owners, liars, grants: BTreeMap::new() }
    }

    pub(crate) fn owners(&self) -> impl Iterator<Item = PartyId> {
        self.owners.iter().map(|key| key.public().party())
    }
}

impl World {
    /// A dishonest owner signs something on what one of the parties knows of its chain.
    pub(crate) fn foe_acts(&mut self) -> Result<(), String> {
        let key = self.foes.owners[self.dice.index(self.foes.owners.len())].clone();
        let view = self.dice.index(self.parties.len());
        let Some(first) = self.draft(view, &key) else {
            return Ok(());
        };
        match self.dice.below(10) {
            0 => self.forge(&key, first),
            1..5 => self.send_all(&key, first),
            _ => self.double_sign(&key, view, first),
        }
    }

    fn draft(&mut self, view: usize, key: &SecretKey) -> Option<Entry> {
        let chain = key.public().party();
        let time = match self.dice.below(4) {
            0 => Timestamp::default(),
            1 => Timestamp::from_ms(YEAR_2100_MS),
            _ => self.parties[view].clock,
        };
        let amount = Trm::from_micro(self.dice.between(1, 400_000_000));
        let payee = self.parties[self.dice.index(self.parties.len())].id;
        let greedy = self.dice.percent(20);
        let ledger = self.parties[view].machine.as_ref()?.ledger();
        let lattice = ledger.lattice();
        let begun = lattice.chain(chain).is_some() || lattice.pending_of(chain).next().is_some();
        let due = lattice.collectable(chain).map(|(id, _)| id).take(5).collect::<Vec<_>>();
        let kind: EntryKind = if !begun {
            let enrol = self.foes.grants.get(&chain).copied();
            Open { sponsor: None, enrol, recovery: None }.into()
        } else if greedy && !due.is_empty() {
            Collect { ids: due, checkpoint: None }.into()
        } else {
            Transfer { payee, amount }.into()
        };
        lattice.draft(chain, time, kind).ok()
    }

    /// An ordinary entry, however odd its time.
    fn send_all(&mut self, key: &SecretKey, entry: Entry) -> Result<(), String> {
        let Some(signed) = self.sign_entry(key, entry) else {
            return Ok(());
        };
        self.lie(&signed);
        for to in 0..self.parties.len() {
            self.send_from_nowhere(to, &signed);
        }
        Ok(())
    }

    /// Two entries for one slot, each shown to about half of the parties, then often to all.
    fn double_sign(&mut self, key: &SecretKey, view: usize, first: Entry) -> Result<(), String> {
        let Some(mut second) = self.draft(view, key) else {
            return Ok(());
        };
        if second == first {
            second.time_ms = second.time_ms.plus_ms(1);
        }
        let (Some(first), Some(second)) =
            (self.sign_entry(key, first), self.sign_entry(key, second))
        else {
            return Ok(());
        };
        self.counts.rivals += 1;
        self.lie(&first);
        self.lie(&second);
        for to in 0..self.parties.len() {
            let (near, far) =
                if self.dice.percent(50) { (&first, &second) } else { (&second, &first) };
            self.send_from_nowhere(to, near);
            if self.dice.percent(40) {
                self.send_from_nowhere(to, far);
            }
        }
        Ok(())
    }

    /// Something no rule admits: too much, a wrong balance, another's signature.
    fn forge(&mut self, key: &SecretKey, mut entry: Entry) -> Result<(), String> {
        let other = SecretKey::from_seed(self.dice.bytes());
        // An id covers no signature: what is forged must be nothing that its owner ever signs.
        entry.time_ms = Timestamp::from_ms(self.dice.between(1, YEAR_2100_MS - 1));
        let key = match self.dice.below(3) {
            0 => {
                entry.balance = entry.balance.saturating_add(1);
                key
            }
            1 => {
                let payee = self.parties[0].id;
                let micro = u64::MAX / 4;
                entry.kind = Transfer { payee, amount: Trm::from_micro(micro) }.into();
                entry.balance = entry.balance.saturating_sub(i64::try_from(micro).unwrap_or(0));
                key
            }
            _ => &other,
        };
        let Some(signed) = self.sign_entry(key, entry) else {
            return Ok(());
        };
        self.counts.forged += 1;
        self.law.forged.insert(signed.id());
        self.lie(&signed);
        for party in 0..self.parties.len() {
            let command = receive(&signed);
            if let Some(Ok(_)) = self.by_node(party, &command)? {
                let ledger = self.ledger(party);
                let taken =
                    ledger.is_some_and(|l| l.lattice().pending_entry(signed.id()).is_some());
                if taken {
                    return Err("a forged entry was taken as valid".to_owned());
                }
            }
        }
        Ok(())
    }

    /// Every dishonest witness promises the entry its slot, to everybody, whatever it promised
    /// before.
    fn lie(&mut self, entry: &Signed<Entry>) {
        for liar in self.foes.liars.clone() {
            let (mesh, version) = (self.founded.mesh(), self.charter.version);
            let ack = Acknowledgement::sign(mesh, version, entry.id(), &liar);
            for to in 0..self.parties.len() {
                if self.dice.percent(80) {
                    self.send(to, to, &Message::Acknowledgement(ack));
                }
            }
        }
    }

    /// A dishonest owner reaches everybody, with some delay.
    fn send_from_nowhere(&mut self, to: usize, entry: &Signed<Entry>) {
        let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
        self.send(to, to, &Message::Entry { bytes, signature });
    }

    fn sign_entry(&self, key: &SecretKey, entry: Entry) -> Option<Signed<Entry>> {
        sign(&self.founded, key, entry)
    }
}

fn sign<T: Document>(founded: &Lattice, key: &SecretKey, body: T) -> Option<Signed<T>> {
    Signed::sign(founded.mesh(), key, body).ok()
}

fn receive(entry: &Signed<Entry>) -> Command {
    Command::ReceiveEntry { bytes: entry.bytes().to_vec(), signature: entry.signature() }
}
