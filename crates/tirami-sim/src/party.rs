//! A party: a node's machine, its disk and keys, and what the run knows about it.

use std::collections::{BTreeMap, VecDeque};

use tirami_core::{AgentId, Digest, DocumentId, JobId, PartyId, PublicKey, Signature, Timestamp};
use tirami_ledger::Keyring;
use tirami_ledger::book::KeyId;
use tirami_ledger::event::Event;
use tirami_ledger::lattice::{Acknowledgement, Certificate, LatticeEvent, SignedEntry, Slot};

use crate::disk::Disk;
use crate::machine::Machine;
use crate::oracle::{Fact, Oracle};

/// Where the power is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CrashPoint {
    /// Decided, and nothing written.
    BeforeAppend,
    /// Written, not synced.
    BeforeSync,
    /// While the disk syncs: a piece may stay.
    DuringSync,
    /// Durable, and nobody told.
    BeforeReply,
}

/// Something decided that leaves the node once its batch is durable.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) batch: u64,
    pub(crate) fact: Option<Fact>,
    pub(crate) events: Vec<Event>,
}

/// A job that a client of the party runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) job: JobId,
    pub(crate) tokens: u32,
}

/// A certified entry as the store keeps it, and what waits for a certificate.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    pub(crate) finals: BTreeMap<DocumentId, (Vec<u8>, Signature)>,
    /// The final entries in the order in which they became so here.
    pub(crate) order: Vec<(DocumentId, Slot)>,
    pub(crate) acks: BTreeMap<DocumentId, BTreeMap<PublicKey, Acknowledgement>>,
    /// Of entries that a later one's certificate does not stand for.
    pub(crate) certificates: BTreeMap<DocumentId, Certificate>,
    /// How many cuts of checkpoints became known.
    pub(crate) cuts: usize,
}

impl Archive {
    pub(crate) fn add(&mut self, event: &LatticeEvent) {
        match event {
            LatticeEvent::EntryFinal { entry, certificate, .. } => {
                self.add_final(entry);
                if let Some(certificate) = certificate {
                    self.add_certificate(entry.id(), certificate);
                }
            }
            LatticeEvent::Certified { entry, certificate, .. } => {
                self.add_certificate(*entry, certificate)
            }
            LatticeEvent::CutKnown { .. } => self.cuts += 1,
            LatticeEvent::Acknowledged { acknowledgement }
            | LatticeEvent::AcknowledgementMade { acknowledgement, .. } => {
                self.add_ack(acknowledgement);
            }
            _ => {}
        }
    }

    fn add_final(&mut self, entry: &SignedEntry) {
        let stored = (entry.bytes().to_vec(), entry.signature());
        if self.finals.insert(entry.id(), stored).is_none() {
            self.order.push((entry.id(), entry.entry().slot()));
        }
    }

    fn add_certificate(&mut self, entry: DocumentId, certificate: &Certificate) {
        let acks = certificate.acknowledgements.iter();
        acks.for_each(|ack| self.add_ack(ack));
        self.certificates.insert(entry, certificate.clone());
    }

    fn add_ack(&mut self, ack: &Acknowledgement) {
        self.acks.entry(ack.entry).or_default().insert(ack.witness, *ack);
    }

    pub(crate) fn acks_of(&self, entry: DocumentId) -> Vec<Acknowledgement> {
        self.acks.get(&entry).into_iter().flat_map(|acks| acks.values().copied()).collect()
    }
}

/// A party of the run.
#[derive(Debug)]
pub(crate) struct Party {
    pub(crate) id: PartyId,
    pub(crate) keys: Keyring,
    /// None while the node is down.
    pub(crate) machine: Option<Machine>,
    pub(crate) disk: Disk,
    pub(crate) oracle: Oracle,
    pub(crate) archive: Archive,
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) sync_planned: bool,
    /// Where the power will be lost at the next sync.
    pub(crate) doom: Option<CrashPoint>,
    /// Counts starts, so that what was planned in an earlier life is void.
    pub(crate) life: u64,
    /// Batches when the newest snapshot was staged.
    pub(crate) staged_at: u64,
    pub(crate) agents: Vec<AgentId>,
    pub(crate) api_keys: Vec<(KeyId, AgentId)>,
    pub(crate) jobs: Vec<Job>,
    /// Jobs that were started lately, and until when none of them may be started again.
    pub(crate) used: VecDeque<(JobId, Timestamp)>,
    /// Completion tokens that each job may have.
    pub(crate) limits: BTreeMap<JobId, u32>,
    pub(crate) requests: Vec<Digest>,
    /// The time the node's clock showed last.
    pub(crate) clock: Timestamp,
}

impl Party {
    pub(crate) fn new(keys: Keyring, machine: Machine) -> Self {
        Self {
            id: keys.node.public().party(),
            agents: keys.agents.keys().copied().collect(),
            keys,
            machine: Some(machine),
            disk: Disk::default(),
            oracle: Oracle::default(),
            archive: Archive::default(),
            waiting: VecDeque::new(),
            sync_planned: false,
            doom: None,
            life: 0,
            staged_at: 0,
            api_keys: Vec::new(),
            jobs: Vec::new(),
            used: VecDeque::new(),
            limits: BTreeMap::new(),
            requests: Vec::new(),
            clock: Timestamp::default(),
        }
    }

    pub(crate) fn key(&self) -> PublicKey {
        self.keys.node.public()
    }
}
