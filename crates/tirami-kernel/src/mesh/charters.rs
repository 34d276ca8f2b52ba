//! Charter changes over the wire (MONEY §2): proposals, approvals, versions that others lack.
//!
//! A witness approves nothing by itself: whoever may change the witnesses owns the mesh. A draft
//! that came from a peer waits for [`Command::ApproveCharter`].
//!
//! A draft is not signed, so it goes from its author's node to that node's peers and no further:
//! the connection says whose it is, and nobody can fill the mesh with drafts by another's hands.
//! The first witness that approves it carries it on.

use std::collections::BTreeMap;

use tirami_core::{DAY_MS, PartyId, Timestamp};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::lattice::{Charter, CharterApproval, CharterError, CharterProof};
use tirami_proto::{CHARTERS_PER_FRAME_MAX, Fault, Message, WireCharter};

use super::{Mesh, Standing, sync::fault_of};
use crate::kernel::{Effects, Kernel};

/// Drafts of charters of other nodes kept that no witness approved yet, one of each node. At most
/// 16 KiB each.
pub const DRAFTS_MAX: usize = 64;
/// How long a draft is kept, in milliseconds. Its author can draft it again.
const DRAFT_LIFE_MS: u64 = DAY_MS;
/// Entries that a new witness takes over from the witnesses before.
const CARRIED_MAX: usize = 512;
/// Bytes of charters in one answer after the first one.
const CHARTERS_BYTES_MAX: usize = 900 * 1024;
/// The least time between two questions for charters to one peer.
const ASK_MS_MIN: u64 = 1_000;

/// Drafts by who sent them, this node's own under its party.
pub(crate) type Drafts = BTreeMap<PartyId, Draft>;

/// A successor of the charter in force that nobody approved yet.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    bytes: Vec<u8>,
    since: Timestamp,
}

impl Draft {
    fn is_old(&self, now: Timestamp) -> bool {
        now >= self.since.plus_ms(DRAFT_LIFE_MS)
    }
}

impl Mesh {
    /// Successors of the charter in force that were proposed and that no witness approved yet, as
    /// bytes for [`Command::ApproveCharter`].
    pub fn charter_drafts(&self) -> impl Iterator<Item = &[u8]> {
        self.drafts.values().map(|draft| draft.bytes.as_slice())
    }
}

impl Kernel {
    /// Versions of the charter above `version`, as they travel.
    pub(super) fn charters_after(&self, version: u32) -> Vec<WireCharter> {
        let proofs = self.ledger.lattice().charters(version);
        let wire = proofs.take(CHARTERS_PER_FRAME_MAX).map(wire_charter);
        within_frame(wire.collect())
    }

    pub(super) fn ask_charters(&mut self, from: PartyId, effects: &mut Effects) {
        let (after_version, now) = (self.ledger.lattice().charter().version, self.clock);
        let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
        if peer.charters_asked_at.is_none_or(|at| now >= at.plus_ms(ASK_MS_MIN)) {
            peer.charters_asked_at = Some(now);
            effects.send.push((from, Message::WantCharters { after_version }));
        }
    }

    pub(super) fn tell_charters(&mut self, to: PartyId, after_version: u32, effects: &mut Effects) {
        if !self.may_answer(to, CHARTERS_BYTES_MAX as u32) {
            return;
        }
        let charters = self.charters_after(after_version);
        effects.send.push((to, Message::Charters { charters }));
    }

    /// Takes versions and successors with as many approvals as came along.
    pub(super) fn take_charters(
        &mut self,
        from: PartyId,
        charters: &[WireCharter],
        effects: &mut Effects,
    ) {
        let before = self.ledger.lattice().charter().version;
        for charter in charters {
            let approvals = charter.approvals.iter();
            let approvals: Result<Vec<CharterApproval>, _> =
                approvals.map(|bytes| minicbor::decode(bytes)).collect();
            let Ok(approvals) = approvals else {
                self.fault(from, Fault::Malformed, effects);
                return;
            };
            let version = tirami_core::decode_body::<Charter>(&charter.bytes).map(|c| c.version);
            if version.is_ok_and(|version| version <= self.ledger.lattice().charter().version) {
                continue;
            }
            self.receive_charter(from, (charter.bytes.clone(), approvals), effects);
        }
        // There may be more versions than fit one frame.
        let after = self.ledger.lattice().charter().version;
        let hello = self.mesh.peers.get(&from).and_then(|peer| peer.hello.as_ref());
        if after > before && hello.is_some_and(|hello| hello.charter_version > after) {
            effects.send.push((from, Message::WantCharters { after_version: after }));
        }
    }

    fn receive_charter(
        &mut self,
        from: PartyId,
        (bytes, approvals): (Vec<u8>, Vec<CharterApproval>),
        effects: &mut Effects,
    ) {
        let command = Command::ReceiveCharter { bytes, approvals };
        match self.decide(&Actor::Node, &command) {
            Ok((events, _)) => self.take(events, effects),
            Err(rejection) => {
                if let Some(fault) = fault_of(&rejection) {
                    self.fault(from, fault, effects);
                }
            }
        }
    }

    /// A peer's draft, which wants approvals. Only a member's is kept, and only one that can follow
    /// the charter in force.
    pub(super) fn take_draft(&mut self, from: PartyId, bytes: Vec<u8>, effects: &mut Effects) {
        let Ok(charter) = tirami_core::decode_body::<Charter>(&bytes) else {
            self.fault(from, Fault::Malformed, effects);
            return;
        };
        // A draft and the version that it would have followed pass each other on their way.
        let next = self.ledger.lattice().charter().version.saturating_add(1);
        if charter.version != next || self.standing(from, self.clock) < Standing::Member {
            return;
        }
        match self.check_draft(&bytes) {
            Ok(true) => self.keep_draft(from, bytes),
            Ok(false) => {}
            Err(_) => self.fault(from, Fault::Invalid, effects),
        }
    }

    /// Whether a successor of the charter in force waits for its first approval.
    fn check_draft(&self, bytes: &[u8]) -> Result<bool, Rejection> {
        let receive = Command::ReceiveCharter { bytes: bytes.to_vec(), approvals: Vec::new() };
        match self.decide(&Actor::Node, &receive) {
            // All it lacks are approvals.
            Err(Rejection::Charter(CharterError::TooFew { .. })) => Ok(true),
            Err(rejection) => Err(rejection),
            Ok(_) => Ok(false),
        }
    }

    /// Keeps the last draft of each sender. Its own a node always keeps; of the others one that
    /// finds no room is dropped, unless it is a witness's or a trusted party's: then the newest of
    /// somebody who counts less makes room.
    fn keep_draft(&mut self, sender: PartyId, bytes: Vec<u8>) {
        self.forget_drafts();
        let (own, now) = (self.ledger.party(), self.clock);
        if self.mesh.drafts.get(&sender).is_some_and(|known| known.bytes == bytes) {
            return;
        }
        let others = self.mesh.drafts.keys().filter(|party| **party != own).count();
        let is_new = sender != own && !self.mesh.drafts.contains_key(&sender);
        if is_new && others >= DRAFTS_MAX {
            let needed = |party: PartyId| self.standing(party, now) == Standing::Needed;
            let less = self.mesh.drafts.iter();
            let less = less.filter(|(party, _)| **party != own && !needed(**party));
            let newest = less.max_by_key(|(_, draft)| draft.since).map(|(party, _)| *party);
            let Some(newest) = newest.filter(|_| needed(sender)) else { return };
            self.mesh.drafts.remove(&newest);
        }
        self.mesh.drafts.insert(sender, Draft { bytes, since: now });
    }

    pub(super) fn forget_drafts(&mut self) {
        let now = self.clock;
        self.mesh.drafts.retain(|_, draft| !draft.is_old(now));
    }

    /// A single approval of a successor that is known here.
    pub(super) fn take_approval(&mut self, from: PartyId, bytes: &[u8], effects: &mut Effects) {
        let Ok(approval) = minicbor::decode::<CharterApproval>(bytes) else {
            self.fault(from, Fault::Malformed, effects);
            return;
        };
        let lattice = self.ledger.lattice();
        let known = lattice.proposals().find(|(id, ..)| *id == approval.charter);
        if let Some(bytes) = known.map(|(_, bytes, _)| bytes.to_vec()) {
            self.receive_charter(from, (bytes, vec![approval]), effects);
        }
    }

    /// Refuses a draft that no other node would take, so that its author hears of it.
    pub(crate) fn check_drafted(&self, outcome: &Outcome) -> Result<(), Rejection> {
        let own = self.ledger.party();
        let is_draft = matches!(outcome, Outcome::Charter { approval: None, .. });
        if is_draft && self.standing(own, self.clock) < Standing::Member {
            let reason = "only members draft changes of the charter, and this node has no line; \
                          nothing was drafted; ask the registrar's owner to enrol it";
            return Err(Rejection::Contradicts { reason });
        }
        Ok(())
    }

    /// What an own command made: a draft to be proposed.
    pub(crate) fn charter_made(&mut self, outcome: &Outcome, effects: &mut Effects) {
        if let Outcome::Charter { bytes, approval: None } = outcome {
            for to in self.mesh.others() {
                effects.send.push((to, Message::CharterProposal { bytes: bytes.clone() }));
            }
            self.keep_draft(self.ledger.party(), bytes.clone());
        }
    }

    /// Tells a peer of this node's own draft, and of successors that were approved.
    pub(super) fn tell_proposals(&mut self, to: PartyId, effects: &mut Effects) {
        self.forget_drafts();
        if let Some(Draft { bytes, .. }) = self.mesh.drafts.get(&self.ledger.party()) {
            effects.send.push((to, Message::CharterProposal { bytes: bytes.clone() }));
        }
        let charters: Vec<WireCharter> = self.approved_successors();
        if !charters.is_empty() {
            effects.send.push((to, Message::Charters { charters }));
        }
    }

    fn approved_successors(&self) -> Vec<WireCharter> {
        let proposals = self.ledger.lattice().proposals();
        let wire = proposals.map(|(_, bytes, approvals)| WireCharter {
            bytes: bytes.to_vec(),
            signature: None,
            approvals: approvals.filter_map(|approval| minicbor::to_vec(approval).ok()).collect(),
        });
        within_frame(wire.take(CHARTERS_PER_FRAME_MAX).collect())
    }

    /// More approvals of a successor are known: pass them on.
    pub(super) fn spread_proposals(&mut self, effects: &mut Effects) {
        let charters = self.approved_successors();
        if charters.is_empty() {
            return;
        }
        for to in self.mesh.others() {
            effects.send.push((to, Message::Charters { charters: charters.clone() }));
        }
    }

    /// A new version is in force: pass it on, take over what the witnesses before acknowledged,
    /// and ask the new ones.
    pub(super) fn charter_adopted(&mut self, effects: &mut Effects) {
        let version = self.ledger.lattice().charter().version;
        self.mesh.drafts.clear();
        let charters = self.charters_after(version.saturating_sub(1));
        for to in self.mesh.others() {
            effects.send.push((to, Message::Charters { charters: charters.clone() }));
        }
        let own = self.keys.node.public();
        if self.is_witness(own.party()) {
            let carried = self.ledger.lattice().carried().take(CARRIED_MAX);
            let carried: Vec<_> =
                carried.map(|entry| (entry.bytes().to_vec(), entry.signature())).collect();
            for (bytes, signature) in carried {
                self.command(&Command::ReceiveEntry { bytes, signature }, effects);
            }
            let open = self.ledger.lattice().unacknowledged(own).take(CARRIED_MAX);
            for entry in open.collect::<Vec<_>>() {
                self.acknowledge_carried(entry, effects);
            }
        }
        for peer in self.mesh.peers.values_mut() {
            (peer.offered_seq, peer.offered_at) = (0, None);
        }
        for to in self.open_witnesses() {
            self.ask_highest(to, effects);
        }
        self.offer_entries(true, effects);
    }

    /// Acknowledges an entry nobody asks for now; owner and witnesses hear of it.
    fn acknowledge_carried(&mut self, entry: tirami_core::DocumentId, effects: &mut Effects) {
        let Ok((events, outcome)) = self.decide(&Actor::Node, &Command::Acknowledge { entry })
        else {
            return;
        };
        self.take(events, effects);
        let Outcome::Entry { acknowledgement: Some(acknowledgement), .. } = outcome else { return };
        let Ok(bytes) = minicbor::to_vec(*acknowledgement) else { return };
        let owner = self.ledger.lattice().pending_entry(entry);
        let owner = owner.map(|pending| pending.entry().entry().chain);
        let mut to = self.open_witnesses();
        to.extend(owner.filter(|owner| self.mesh.is_open(*owner) && !to.contains(owner)));
        effects.send.extend(to.into_iter().map(|to| (to, Message::Acknowledgement(bytes.clone()))));
    }
}

/// As many as fit one frame, at least the first.
fn within_frame(mut charters: Vec<WireCharter>) -> Vec<WireCharter> {
    let (mut bytes, mut first) = (0, true);
    charters.retain(|charter| {
        let approvals: usize = charter.approvals.iter().map(|approval| approval.len() + 8).sum();
        bytes += charter.bytes.len() + approvals + 128;
        core::mem::take(&mut first) || bytes <= CHARTERS_BYTES_MAX
    });
    charters
}

fn wire_charter(proof: CharterProof) -> WireCharter {
    let approvals = proof.approvals.iter();
    WireCharter {
        bytes: proof.bytes,
        signature: proof.signature,
        approvals: approvals.filter_map(|approval| minicbor::to_vec(approval).ok()).collect(),
    }
}
