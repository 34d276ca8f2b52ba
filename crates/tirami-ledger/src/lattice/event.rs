//! What happened to the lattice: facts that are stored and replayed.

use minicbor::{Decode, Encode};
use tirami_core::{DocumentId, PartyId, PublicKey};

use super::certificate::{Acknowledgement, Certificate};
use super::charter::CharterApproval;
use super::entry::SignedEntry;
use super::kinds::Effect;
use super::state::{ParkedEntry, Slot};

/// A change of the lattice. All of them are durable: replaying the events in order onto the same
/// beginning gives the same lattice, and checks no signature again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum LatticeEvent {
    /// An entry is valid and waits for its certificate.
    #[n(0)]
    EntryPending {
        /// The entry.
        #[n(0)]
        entry: SignedEntry,
        /// What it does.
        #[n(1)]
        effect: Effect,
    },
    /// An entry is final: it counts for everybody.
    #[n(1)]
    EntryFinal {
        /// The entry.
        #[n(0)]
        entry: SignedEntry,
        /// What it does.
        #[n(1)]
        effect: Effect,
        /// The charter version of its certificate.
        #[n(2)]
        charter_version: u32,
        /// The signers, by their place in that charter.
        #[n(3)]
        signers: u32,
        /// The certificate; none when a later entry's certificate stands for this one too.
        #[n(4)]
        certificate: Option<Certificate>,
    },
    /// A witness acknowledged an entry, known or not yet.
    #[n(2)]
    Acknowledged {
        /// The acknowledgement.
        #[n(0)]
        acknowledgement: Acknowledgement,
    },
    /// This node's witness acknowledged an entry; stored before anybody is told.
    #[n(3)]
    AcknowledgementMade {
        /// The acknowledgement.
        #[n(0)]
        acknowledgement: Acknowledgement,
        /// The slot that it takes.
        #[n(1)]
        slot: Slot,
    },
    /// A pending entry's certificate is known.
    #[n(4)]
    Certified {
        /// The entry.
        #[n(0)]
        entry: DocumentId,
        /// The charter version of the certificate.
        #[n(1)]
        charter_version: u32,
        /// The certificate.
        #[n(2)]
        certificate: Certificate,
        /// The signers, by their place in that charter.
        #[n(3)]
        signers: u32,
    },
    /// An entry waits for something it rests on.
    #[n(5)]
    Parked {
        /// What waits, and for what.
        #[n(0)]
        parked: ParkedEntry,
    },
    /// A parked entry waits no longer.
    #[n(6)]
    Unparked {
        /// Its number in the order of parking.
        #[n(0)]
        number: u64,
    },
    /// A pending entry, and every pending entry after it, is held no longer.
    #[n(7)]
    Discarded {
        /// The entry.
        #[n(0)]
        entry: DocumentId,
    },
    /// A chain's owner signed two entries for one slot.
    #[n(8)]
    DoubleSigned {
        /// The entry known first.
        #[n(0)]
        known: DocumentId,
        /// The other one, with its signature.
        #[n(1)]
        rival: SignedEntry,
    },
    /// This node's witness signed the next charter; it acknowledges nothing under the one before.
    #[n(9)]
    CharterApproved {
        /// The witness.
        #[n(0)]
        witness: PublicKey,
        /// The version it follows.
        #[n(1)]
        current: u32,
        /// The next charter.
        #[n(2)]
        charter: DocumentId,
    },
    /// The next charter is in force.
    #[n(10)]
    CharterAdopted {
        /// The charter's bytes, verbatim.
        #[cbor(n(0), with = "minicbor::bytes")]
        bytes: Vec<u8>,
        /// The charter's id.
        #[n(1)]
        id: DocumentId,
        /// A quorum of approvals of the witnesses before.
        #[n(2)]
        approvals: Vec<CharterApproval>,
    },
    /// The chains that a checkpoint covers are known.
    #[n(11)]
    CutKnown {
        /// The checkpoint.
        #[n(0)]
        checkpoint: DocumentId,
        /// The last entry covered of each chain, in the order of the chains.
        #[n(1)]
        heads: Vec<Slot>,
    },
    /// A successor of the charter in force is known, or more approvals of it.
    #[n(20)]
    CharterProposed {
        /// The charter's bytes, verbatim.
        #[cbor(n(0), with = "minicbor::bytes")]
        bytes: Vec<u8>,
        /// The charter's id.
        #[n(1)]
        id: DocumentId,
        /// The approvals that were not known before.
        #[n(2)]
        approvals: Vec<CharterApproval>,
    },
    /// The records of all chains' old entries are made again: one of `chain` has a rival.
    #[n(22)]
    Unrolled {
        /// The chain that contradicts itself.
        #[n(0)]
        chain: PartyId,
    },
    /// How long the node's own chain is elsewhere, and whether it still asks.
    #[n(21)]
    HighestNoted {
        /// The node's chain.
        #[n(0)]
        chain: PartyId,
        /// The sequence number its next entry has there.
        #[n(1)]
        next_seq: u64,
        /// Whether the node goes on asking and signs nothing.
        #[n(2)]
        asking: bool,
    },
}
