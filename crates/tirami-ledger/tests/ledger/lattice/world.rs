//! A mesh in one lattice for scenarios: named parties, named entries, honest and forging witnesses.

pub(crate) mod partial;

use std::collections::BTreeMap;

use tirami_core::{
    Digest, Document, DocumentId, PartyId, PublicKey, SecretKey, Signature, Signed, Timestamp, Trm,
    signing_message,
};
use tirami_ledger::lattice::{
    Acknowledgement, Certificate, Change, Charter, Entry, EntryKind, Lattice, LatticeEvent,
};

/// The key that belongs to a name.
pub(crate) fn key(name: &str) -> SecretKey {
    SecretKey::from_seed(*Digest::of(name.as_bytes()).as_bytes())
}

/// The party with that name.
pub(crate) fn party(name: &str) -> PartyId {
    key(name).public().party()
}

/// The TRM a text stands for.
pub(crate) fn trm(text: &str) -> Trm {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A signed entry as it travels.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) id: DocumentId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) signature: Signature,
}

/// Signs `entry` for the mesh of `lattice`.
pub(crate) fn sign(lattice: &Lattice, entry: &Entry, by: &SecretKey) -> Sent {
    let bytes = minicbor::to_vec(entry).unwrap();
    let message = signing_message(Entry::KIND, lattice.mesh(), &bytes);
    let id = DocumentId::from_bytes(*blake3::hash(&message).as_bytes());
    Sent { id, bytes, signature: by.sign(&message) }
}

/// A certificate by these witnesses, whatever they may have promised.
pub(crate) fn certificate(
    lattice: &Lattice,
    version: u32,
    id: DocumentId,
    by: &[&str],
) -> Certificate {
    let ack = |name: &&str| Acknowledgement::sign(lattice.mesh(), version, id, &key(name));
    Certificate { acknowledgements: by.iter().map(ack).collect() }
}

/// The lattice of a mesh with `charter`, signed by its first witness `w1`.
pub(crate) fn found(charter: Charter) -> Lattice {
    let signed = Signed::sign(Charter::founding_mesh(), &key("w1"), charter).unwrap();
    Lattice::found(&signed).unwrap()
}

/// A charter with witnesses `w1` … `wn`; `w1` is the founder, clerk and registrar.
pub(crate) fn charter(witnesses: u8, quorum: u8, line_total: Trm) -> Charter {
    let mut charter = Charter::founder("test", key("w1").public(), line_total);
    charter.witnesses = (1..=witnesses).map(|n| key(&format!("w{n}")).public()).collect();
    charter.quorum = quorum;
    charter
}

/// A lattice with everything ever applied to it.
pub(crate) struct World {
    pub(crate) lattice: Lattice,
    pub(crate) first: Lattice,
    pub(crate) events: Vec<LatticeEvent>,
    pub(crate) entries: BTreeMap<String, Sent>,
    pub(crate) now: Timestamp,
}

impl World {
    pub(crate) fn new(lattice: Lattice) -> Self {
        let first = lattice.clone();
        let (events, entries) = (Vec::new(), BTreeMap::new());
        Self { lattice, first, events, entries, now: Timestamp::from_ms(1_000_000) }
    }

    /// Applies events and what follows from them.
    pub(crate) fn absorb(&mut self, events: Vec<LatticeEvent>) {
        let applied = self.lattice.absorb(events);
        self.events.extend(applied);
    }

    /// The names of the witnesses in force.
    pub(crate) fn witnesses(&self) -> Vec<String> {
        self.lattice.charter().witnesses.iter().map(|witness| self.name_of(*witness)).collect()
    }

    /// The name behind a key.
    pub(crate) fn name_of(&self, wanted: PublicKey) -> String {
        let names = (1..=31).map(|n| format!("w{n}"));
        let others = ["ann", "bob", "cat", "dan", "eve", "new", "newer", "safe"].map(str::to_owned);
        let mut names = names.chain(others);
        names.find(|name| key(name).public() == wanted).unwrap_or_else(|| wanted.to_string())
    }

    /// The next entry of a chain, written by hand: its own arithmetic, not the lattice's.
    pub(crate) fn write(&self, chain: PartyId, kind: EntryKind) -> Entry {
        let (seq, prev, before) = match self.lattice.pending_of(chain).last() {
            Some(last) => {
                let entry = last.entry().entry();
                (entry.seq + 1, Some(last.entry().id()), entry.balance)
            }
            None => self
                .lattice
                .chain(chain)
                .map_or((0, None, 0), |chain| (chain.next_seq(), chain.head(), chain.balance())),
        };
        let balance = i128::from(before) + self.delta(chain, &kind);
        let balance = i64::try_from(balance).unwrap_or(i64::MAX);
        Entry { chain, seq, prev, time_ms: self.now, kind, balance }
    }

    fn delta(&self, chain: PartyId, kind: &EntryKind) -> i128 {
        match kind {
            EntryKind::Pay(pay) => {
                let items = pay.items.iter().map(|item| item.amount.signed()).sum::<i128>();
                -items - pay.fee.signed()
            }
            EntryKind::Transfer(transfer) => -transfer.amount.signed(),
            EntryKind::Collect(collect) => {
                let paid = |id| Some(self.lattice.final_entry(id)?.effect.payout?.amount);
                let part = |id| {
                    let mut parts = self.lattice.uncollected(chain);
                    parts.find(|(part, _)| *part == id).map(|(_, amount)| amount)
                };
                let amount = |id: &DocumentId| paid(*id).or_else(|| part(*id));
                collect.ids.iter().filter_map(|id| Some(amount(id)?.signed())).sum()
            }
            EntryKind::Sponsor(sponsor) => -sponsor.amount.signed(),
            EntryKind::Unsponsor(unsponsor) => {
                match self.lattice.final_entry(unsponsor.lock).map(|lock| lock.effect.change) {
                    Some(Change::Sponsored { amount, .. }) => amount.signed(),
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// What became of a named entry.
    pub(crate) fn status(&self, id: DocumentId) -> &'static str {
        let lattice = &self.lattice;
        match (lattice.final_entry(id), lattice.pending_entry(id)) {
            (Some(record), _) if lattice.final_at(record.slot) == Some(id) => "final",
            (Some(_), _) => "uncounted",
            (_, Some(pending)) if pending.is_lost() => "lost",
            (_, Some(_)) => "pending",
            _ if lattice.held().1 > 0 => "parked",
            _ => "unknown",
        }
    }

    /// Every final entry with a certificate, as a newcomer would get them.
    pub(crate) fn certified(&self) -> Vec<(Vec<u8>, Signature, Option<Certificate>)> {
        self.events
            .iter()
            .filter_map(|event| match event {
                LatticeEvent::EntryFinal { entry, certificate, .. } => {
                    Some((entry.bytes().to_vec(), entry.signature(), certificate.clone()))
                }
                _ => None,
            })
            .collect()
    }
}

/// The state's bytes.
pub(crate) fn encoded(lattice: &Lattice) -> Vec<u8> {
    minicbor::to_vec(lattice).unwrap()
}
