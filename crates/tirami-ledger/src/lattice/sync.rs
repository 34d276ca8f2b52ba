//! What two nodes compare to find where their chains differ: heads, buckets of chains, one root.
//!
//! Nothing of it is kept: a chain's head is there anyway, and hashing the heads of 1 000 chains
//! costs less than verifying one signature. A sum that every entry updates would have to be
//! kilobytes long, since chains cost nothing and two sets of heads with one short sum can be found.

use tirami_core::{BUCKETS, Digest, DocumentId, PartyId};

use super::Lattice;
use super::state::Chain;

/// What a node says of its chains to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The digest of all buckets: the same on two nodes exactly if all their heads are.
    pub root: Digest,
    /// The digest of each of the [`BUCKETS`] buckets.
    pub buckets: Vec<Digest>,
}

/// Where a chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The chain.
    pub chain: PartyId,
    /// The sequence number its next entry has: the number of final entries that count.
    pub next_seq: u64,
    /// Its last entry.
    pub head: DocumentId,
}

impl Lattice {
    /// The digests of all buckets and of all of them together. O(chains), 72 bytes hashed of each.
    /// The same as long as [`Lattice::final_count`] is.
    pub fn summary(&self) -> Summary {
        let buckets: Vec<Digest> = (0..BUCKETS).map(|bucket| self.bucket_digest(bucket)).collect();
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tirami/buckets/1");
        hasher.update(self.mesh.as_bytes());
        for bucket in &buckets {
            hasher.update(bucket.as_bytes());
        }
        Summary { root: Digest::from_bytes(*hasher.finalize().as_bytes()), buckets }
    }

    /// The digest over chain, next sequence number and head of each chain in a bucket, and over
    /// what froze it. O(its chains).
    pub fn bucket_digest(&self, bucket: u8) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tirami/bucket/1");
        for head in self.bucket_heads(bucket) {
            hasher.update(head.chain.as_bytes());
            hasher.update(&head.next_seq.to_be_bytes());
            hasher.update(head.head.as_bytes());
            let frozen = self.chain(head.chain).and_then(Chain::frozen);
            for rival in frozen.into_iter().flat_map(|frozen| &frozen.entries) {
                hasher.update(rival.as_bytes());
            }
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    /// The heads of the chains in a bucket, in the order of the chains.
    pub fn bucket_heads(&self, bucket: u8) -> impl Iterator<Item = Head> {
        let (mut first, mut last) = ([0; 32], [255; 32]);
        let bucket = bucket % BUCKETS;
        first[0] = bucket << 2;
        last[0] = bucket << 2 | 3;
        let within = PartyId::from_bytes(first)..=PartyId::from_bytes(last);
        self.shared.chains.range(within).filter_map(|(party, chain)| head_of(*party, chain))
    }

    /// The heads of all chains, in the order of the chains.
    pub fn chain_heads(&self) -> impl Iterator<Item = Head> {
        self.shared.chains.iter().filter_map(|(party, chain)| head_of(*party, chain))
    }
}

fn head_of(chain: PartyId, known: &Chain) -> Option<Head> {
    Some(Head { chain, next_seq: known.next_seq(), head: known.head()? })
}
