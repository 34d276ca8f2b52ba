//! Work that a newcomer shows to a faucet: a number that is hard to find and easy to check, worth
//! something to one sponsor, for one newcomer, for a while.

use tirami_core::{Digest, MeshId, PartyId};

/// The most work that a newcomer does for one welcome line, in bits: each doubles it.
pub const WORK_BITS_MAX: u8 = 30;

/// What has to be found a number for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// The mesh.
    pub mesh: MeshId,
    /// Who asks for it.
    pub sponsor: PartyId,
    /// Who does it.
    pub newcomer: PartyId,
    /// The sponsor's challenge.
    pub challenge: Digest,
    /// How many bits of the digest have to be zero.
    pub bits: u8,
}

impl Work {
    /// Whether `nonce` is such a number.
    pub fn fits(&self, nonce: u64) -> bool {
        let mut hasher = self.hasher();
        hasher.update(&nonce.to_be_bytes());
        zeros(hasher.finalize().as_bytes()) >= u32::from(self.bits)
    }

    /// Tries `count` numbers from `first` on.
    pub fn search(&self, first: u64, count: u64) -> Option<u64> {
        let begun = self.hasher();
        (first..first.saturating_add(count)).find(|nonce| {
            let mut hasher = begun.clone();
            hasher.update(&nonce.to_be_bytes());
            zeros(hasher.finalize().as_bytes()) >= u32::from(self.bits)
        })
    }

    fn hasher(&self) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tirami/faucet/1");
        hasher.update(self.mesh.as_bytes()).update(self.sponsor.as_bytes());
        hasher.update(self.newcomer.as_bytes()).update(self.challenge.as_bytes());
        hasher
    }
}

/// Zero bits before the first other one.
fn zeros(digest: &[u8; 32]) -> u32 {
    let whole = digest.iter().take_while(|byte| **byte == 0).count();
    let part = digest.get(whole).map_or(0, |byte| byte.leading_zeros());
    u32::try_from(whole * 8).unwrap_or(u32::MAX).saturating_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_found_fits_and_is_worth_nothing_for_anybody_else() {
        let work = Work {
            mesh: MeshId::from_bytes([1; 32]),
            sponsor: PartyId::from_bytes([2; 32]),
            newcomer: PartyId::from_bytes([3; 32]),
            challenge: Digest::from_bytes([4; 32]),
            bits: 12,
        };
        let nonce = work.search(0, 1 << 20).expect("one in 4096 fits");
        assert!(work.fits(nonce));
        assert!(work.search(0, nonce).is_none());
        let others = [
            Work { mesh: MeshId::from_bytes([9; 32]), ..work },
            Work { sponsor: PartyId::from_bytes([9; 32]), ..work },
            Work { newcomer: PartyId::from_bytes([9; 32]), ..work },
            Work { challenge: Digest::from_bytes([9; 32]), ..work },
        ];
        assert!(others.iter().all(|other| !other.fits(nonce)));
        assert!(Work { bits: 0, ..work }.fits(7));
    }

    #[test]
    fn zero_bits_are_counted_over_bytes() {
        let mut digest = [0; 32];
        assert_eq!(zeros(&digest), 256);
        digest[2] = 0x10;
        assert_eq!(zeros(&digest), 19);
    }
}
