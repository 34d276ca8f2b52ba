//! One node: its kernel, its disk, what waits for the disk, and what it can show of others' chains.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use tirami_core::{PartyId, SecretKey, Timestamp};
use tirami_kernel::mesh::{MeshSettings, Serve};
use tirami_kernel::{Effects, Kernel};
use tirami_ledger::lattice::Lattice;
use tirami_ledger::{Keyring, Ledger};
use tirami_proto::{FinalEntry, Message};

use crate::disk::Disk;

/// What an owner makes of the production code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Honest,
    /// Its receipts say more than was delivered.
    OverCounts,
    /// It takes tokens and signs no voucher.
    NoVouchers,
    /// It signs vouchers and keeps its payments from the witnesses.
    NoPay,
    /// It signs two entries for one slot.
    DoubleSigns,
    /// It orders with orders that were used or are for others.
    Replays,
    /// It orders and vouches as no rule admits.
    Forges,
    /// It sends what no rule admits.
    Garbage,
    /// A witness that acknowledges everything, and lies about heads.
    AcknowledgesAll,
    /// A witness that acknowledges nothing.
    Refuses,
    /// A witness that is honest but for acknowledging the rivals of what it acknowledged.
    AcknowledgesRivals,
}

/// The roles of dishonest witnesses.
pub(super) const FALSE_WITNESSES: [Role; 3] =
    [Role::AcknowledgesAll, Role::Refuses, Role::AcknowledgesRivals];

/// The roles of liars that are no witness, in turn.
pub(super) const LIES: [Role; 7] = [
    Role::NoVouchers,
    Role::OverCounts,
    Role::NoPay,
    Role::DoubleSigns,
    Role::Garbage,
    Role::Replays,
    Role::Forges,
];

/// An effect that waits until everything before it is durable.
pub(super) struct Held {
    /// Batches that must be durable.
    pub(super) after: u64,
    pub(super) effects: Effects,
}

/// Final entries by chain, with their places.
pub(super) type Archive = BTreeMap<PartyId, Vec<(u64, Rc<FinalEntry>)>>;

pub(super) struct Node {
    pub(super) key: SecretKey,
    pub(super) agent: SecretKey,
    pub(super) party: PartyId,
    pub(super) role: Role,
    pub(super) settings: MeshSettings,
    /// Whether it has an engine.
    pub(super) serves: bool,
    /// Whether it often fails in the middle of an answer.
    pub(super) flaky: bool,
    /// Whether it has joined; it does nothing before.
    pub(super) joined: bool,
    /// How far its clock is ahead of the world's, in milliseconds.
    pub(super) skew_ms: u64,
    start: Rc<Lattice>,
    /// What it begins with besides `start`.
    pub(super) founded: Vec<Rc<FinalEntry>>,
    pub(super) kernel: Option<Kernel>,
    pub(super) disk: Disk,
    /// Counts power cuts: what was planned for an earlier life does not happen.
    pub(super) life: u64,
    pub(super) held: VecDeque<Held>,
    pub(super) sync_planned: bool,
    /// The batches that what left the node rests on.
    pub(super) told: u64,
    /// When it is woken, in the world's milliseconds.
    pub(super) wake_planned: Option<u64>,
    pub(super) doom: Option<Doom>,
    pub(super) archive: Archive,
    /// What the archive holds of the founding, one copy for all nodes.
    pub(super) founding: Rc<Archive>,
    /// What to do with the answers to commands.
    pub(super) requests: BTreeMap<u64, super::world::Then>,
    pub(super) requested: u64,
}

/// Where the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doom {
    /// Decided and nothing written.
    BeforeAppend,
    /// Written and not synced: a piece of it may be there.
    BeforeSync,
    /// Synced, and so many effects carried out.
    After(u64),
}

impl Node {
    pub(super) fn new(
        (key, agent): (SecretKey, SecretKey),
        start: Rc<Lattice>,
        settings: MeshSettings,
    ) -> Self {
        Self {
            party: key.public().party(),
            key,
            agent,
            role: Role::Honest,
            settings,
            serves: false,
            flaky: false,
            joined: false,
            skew_ms: 0,
            start,
            founded: Vec::new(),
            kernel: None,
            disk: Disk::default(),
            life: 0,
            held: VecDeque::new(),
            sync_planned: false,
            told: 0,
            wake_planned: None,
            doom: None,
            archive: Archive::new(),
            founding: Rc::default(),
            requests: BTreeMap::new(),
            requested: 0,
        }
    }

    pub(super) fn is_honest(&self) -> bool {
        self.role == Role::Honest
    }

    /// The node as its disk says it was.
    ///
    /// # Errors
    ///
    /// Why the snapshot cannot be read.
    pub(super) fn boot(&mut self) -> Result<(), String> {
        let recovered = self.disk.recover();
        let ledger = match recovered.snapshot {
            Some(snapshot) => Ledger::restore(&snapshot.ledger).map_err(|e| e.to_string())?,
            None => {
                let mut lattice = (*self.start).clone();
                for entry in &self.founded {
                    super::founding::receive(&mut lattice, entry)?;
                }
                Ledger::new(lattice, self.party)
            }
        };
        let mut keys = Keyring::new(self.key.clone());
        keys.add_agent(self.agent.clone());
        self.kernel = Some(Kernel::replay(ledger, keys, recovered.tail.into_iter().flatten()));
        Ok(())
    }

    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.kernel.as_ref().map(Kernel::ledger)
    }

    pub(super) fn lattice(&self) -> Option<&Lattice> {
        self.ledger().map(Ledger::lattice)
    }

    /// What a store answers: a run that ends with a certificate.
    pub(super) fn read(&self, serve: &Serve) -> Message {
        let archives = [&*self.founding, &self.archive].map(|one| one.get(&serve.chain));
        let all = archives.into_iter().flatten().flatten();
        let mut from: Vec<_> = all.filter(|(seq, _)| *seq >= serve.from_seq).collect();
        from.sort_by_key(|(seq, _)| *seq);
        let mut end = from.len().min(serve.max as usize);
        while end < from.len() && end > 0 && from[end - 1].1.certificate.is_none() {
            end += 1;
        }
        let entries = from[..end].iter().map(|(_, entry)| (**entry).clone()).collect();
        Message::Finals { chain: serve.chain, entries, more: end < from.len() }
    }

    pub(super) fn keep(&mut self, chain: PartyId, seq: u64, entry: Rc<FinalEntry>) {
        let mut founded = self.founding.get(&chain).into_iter().flatten();
        if !founded.any(|(known, old)| *known == seq && old.bytes == entry.bytes) {
            keep(&mut self.archive, chain, seq, entry);
        }
    }
}

/// Adds an entry to an archive, in the order of its chain; once.
pub(super) fn keep(archive: &mut Archive, chain: PartyId, seq: u64, entry: Rc<FinalEntry>) {
    let kept = archive.entry(chain).or_default();
    let at = kept.partition_point(|(known, _)| *known <= seq);
    let is_known = kept[..at].iter().rev().take_while(|(known, _)| *known == seq);
    if is_known.into_iter().all(|(_, known)| known.bytes != entry.bytes) {
        kept.insert(at, (seq, entry));
    }
}

/// A node's clock when the world's shows `now_ms`.
pub(super) fn local(now_ms: u64, skew_ms: u64) -> Timestamp {
    Timestamp::from_ms(super::world::EPOCH_MS + now_ms + skew_ms)
}
