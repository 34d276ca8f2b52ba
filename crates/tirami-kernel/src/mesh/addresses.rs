//! Where peers may be found, and which of them to dial next.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{Digest, PartyId, Timestamp};
use tirami_proto::{Goodbye, GoodbyeCode, PeerAddress, VIA_MAX, Via};

/// Addresses kept.
pub const ADDRESSES_KNOWN_MAX: usize = 1_024;
/// How long a dialled peer has until it counts as not reached.
const DIAL_MS: u64 = 5_000;
/// The first wait after a failure; each further one doubles it.
const BACK_OFF_MS: u64 = 500;
/// The longest wait for a peer that matters: a witness, a configured one, the only one.
const BACK_OFF_NEEDED_MS_MAX: u64 = 4_000;
/// The longest wait for any other.
const BACK_OFF_MS_MAX: u64 = 60_000;
/// How long a peer is left alone that said it will never talk to this node.
const UNWILLING_MS: u64 = 10 * 60_000;

/// All known addresses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    known: BTreeMap<PartyId, Known>,
    /// Parties whose addresses are kept, however often they failed.
    kept: BTreeSet<PartyId>,
}

#[derive(Debug, Clone)]
struct Known {
    /// With the ways that the owner gave before all others.
    address: PeerAddress,
    /// How many those are: whatever is told takes none of their places.
    given: usize,
    /// Given by the owner.
    pinned: bool,
    failures: u32,
    /// Whether the last dial did not reach it.
    missed: bool,
    next_at: Timestamp,
    /// Until when the peer asked to be left alone.
    hold_until: Timestamp,
    /// Spreads whom a node dials, so that the mesh is no clique.
    rank: [u8; 8],
}

impl Addresses {
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(crate) fn is_pinned(&self, party: PartyId) -> bool {
        self.known.get(&party).is_some_and(|known| known.pinned)
    }

    pub(crate) fn get(&self, party: PartyId) -> Option<&PeerAddress> {
        self.known.get(&party).map(|known| &known.address)
    }

    /// Whether it could not be reached, or asked to be left alone: others go first.
    pub(crate) fn is_missed(&self, party: PartyId, now: Timestamp) -> bool {
        self.known.get(&party).is_some_and(|known| known.missed || known.hold_until > now)
    }

    /// Takes an address. New ways to reach a known peer come first, after those the owner gave.
    pub(crate) fn add(&mut self, own: PartyId, address: &PeerAddress, pinned: bool) {
        let party = address.party();
        if party == own {
            return;
        }
        if let Some(known) = self.known.get_mut(&party) {
            return known.learn(&address.via, pinned);
        }
        if self.known.len() >= ADDRESSES_KNOWN_MAX && !self.forget_one() {
            return;
        }
        let mut seed = own.as_bytes().to_vec();
        seed.extend_from_slice(party.as_bytes());
        let mut rank = [0; 8];
        rank.copy_from_slice(&Digest::of(&seed).as_bytes()[..8]);
        let (next_at, hold_until) = (Timestamp::default(), Timestamp::default());
        let mut known = Known {
            address: PeerAddress { key: address.key, via: Vec::new() },
            given: 0,
            pinned,
            failures: 0,
            missed: false,
            next_at,
            hold_until,
            rank,
        };
        known.learn(&address.via, pinned);
        self.known.insert(party, known);
    }

    /// The peer was seen where its address says: it is dialled as soon as it may be.
    pub(crate) fn seen(&mut self, party: PartyId, now: Timestamp) {
        if let Some(known) = self.known.get_mut(&party) {
            known.next_at = known.next_at.min(now);
        }
    }

    /// Keeps the addresses of these parties from now on. In a mesh with more nodes than there is
    /// room for, a witness that was away would be the first one to be forgotten.
    pub(crate) fn keep(&mut self, parties: impl Iterator<Item = PartyId>) {
        self.kept = parties.collect();
    }

    /// Forgets the address that failed most; configured ones and those of witnesses are kept.
    fn forget_one(&mut self) -> bool {
        let is_kept = |party: &PartyId| self.kept.contains(party);
        let free = self.known.iter().filter(|(party, known)| !known.pinned && !is_kept(party));
        let worst = free.max_by_key(|(_, known)| (known.failures, known.rank)).map(|(p, _)| *p);
        worst.is_some_and(|party| self.known.remove(&party).is_some())
    }

    /// The peer accepted this node.
    pub(crate) fn reached(&mut self, party: PartyId) {
        if let Some(known) = self.known.get_mut(&party) {
            (known.failures, known.missed) = (0, false);
        }
    }

    /// The connection ended, or could not be made.
    pub(crate) fn lost(&mut self, party: PartyId, now: Timestamp) {
        if let Some(known) = self.known.get_mut(&party) {
            // It was dialled since it was reached.
            known.missed |= known.failures > 0;
            known.next_at = known.next_at.min(now.plus_ms(BACK_OFF_MS << known.failures.min(8)));
        }
    }

    /// The peer closed the connection for a reason.
    pub(crate) fn refused(&mut self, party: PartyId, goodbye: &Goodbye, now: Timestamp) {
        if let Some(known) = self.known.get_mut(&party) {
            let wait_ms = match goodbye.code {
                GoodbyeCode::Version
                | GoodbyeCode::WrongMesh
                | GoodbyeCode::NotAdmitted
                | GoodbyeCode::Blocked => UNWILLING_MS,
                _ => BACK_OFF_MS << known.failures.min(8),
            };
            known.failures = known.failures.saturating_add(1);
            known.hold_until = now.plus_ms(wait_ms.max(goodbye.retry_after_ms.min(UNWILLING_MS)));
        }
    }

    /// Whom to dial now: all that are `needed`, and others while `wanted` is above zero.
    pub(crate) fn due(
        &mut self,
        now: Timestamp,
        mut wanted: usize,
        skip: impl Fn(PartyId) -> bool,
        needed: impl Fn(PartyId) -> bool,
    ) -> Vec<PeerAddress> {
        let mut due: Vec<(bool, [u8; 8], PartyId)> = self
            .known
            .iter()
            .filter(|(_, known)| known.next_at.max(known.hold_until) <= now)
            .filter(|(party, _)| !skip(**party))
            .map(|(party, known)| (!(known.pinned || needed(*party)), known.rank, *party))
            .collect();
        due.sort_unstable();
        let mut dial = Vec::new();
        for (optional, _, party) in due {
            if optional && wanted == 0 {
                break;
            }
            wanted = wanted.saturating_sub(1);
            let Some(known) = self.known.get_mut(&party) else { continue };
            let longest_ms = if optional { BACK_OFF_MS_MAX } else { BACK_OFF_NEEDED_MS_MAX };
            let wait_ms = (BACK_OFF_MS << known.failures.min(12)).min(longest_ms);
            // Ranks differ: nodes that lost one peer do not all come back at once.
            let jitter_ms = u64::from(known.rank[7]);
            known.failures = known.failures.saturating_add(1);
            known.next_at = now.plus_ms(wait_ms.max(DIAL_MS.min(longest_ms)) + jitter_ms);
            dial.push(known.address.clone());
        }
        dial
    }
}

impl Known {
    fn learn(&mut self, ways: &[Via], pinned: bool) {
        let mut given = core::mem::take(&mut self.address.via);
        let mut told = given.split_off(self.given);
        let fresh = ways.iter().filter(|way| !given.contains(way));
        let mut fresh: Vec<Via> = fresh.cloned().collect();
        if fresh.iter().any(|way| !told.contains(way)) {
            self.failures = self.failures.min(1);
        }
        let ways = if pinned {
            told.retain(|way| !fresh.contains(way));
            &mut given
        } else {
            fresh.retain(|way| !told.contains(way));
            &mut told
        };
        fresh.append(ways);
        *ways = fresh;
        given.truncate(VIA_MAX);
        self.pinned |= pinned;
        self.given = given.len();
        given.append(&mut told);
        given.truncate(VIA_MAX);
        self.address.via = given;
    }
}

#[cfg(test)]
mod tests {
    use tirami_core::PublicKey;

    use super::*;

    #[test]
    fn whatever_is_told_takes_no_more_than_its_room_and_what_the_owner_gave_stays() {
        let own = PartyId::from_bytes([1; 32]);
        let address = |n: usize| {
            let mut key = [2; 32];
            key[..8].copy_from_slice(&(n as u64).to_be_bytes());
            PeerAddress { key: PublicKey::from_bytes(key), via: Vec::new() }
        };
        let way = |port: u16| Via::Ip(([192, 0, 2, 1], port).into());
        let given = [way(1), Via::Name("node.example.org:3001".to_owned())];
        let pinned = PeerAddress { via: given.to_vec(), ..address(0) };
        let mut addresses = Addresses::default();
        addresses.add(own, &pinned, true);
        // A witness that is away: it is dialled again and again in vain.
        let witness = address(1).party();
        addresses.keep([witness].into_iter());
        addresses.add(own, &address(1), false);
        for minute in 1..10 {
            let now = Timestamp::from_ms(minute * 60_000);
            let dialled = addresses.due(now, 0, |_| false, |party| party == witness);
            assert!(dialled.iter().any(|address| address.party() == witness), "{minute}");
        }
        for n in 2..2 * ADDRESSES_KNOWN_MAX {
            addresses.add(own, &address(n), false);
        }
        assert_eq!(addresses.known.len(), ADDRESSES_KNOWN_MAX);
        assert!(addresses.is_pinned(address(0).party()));
        assert!(addresses.get(witness).is_some());
        for port in 1..100 {
            addresses.add(own, &PeerAddress { via: vec![way(port)], ..address(0) }, false);
        }
        // What was told last comes after it, and what the owner adds before.
        let ways = |addresses: &Addresses| addresses.get(address(0).party()).unwrap().via.clone();
        assert_eq!(ways(&addresses).len(), VIA_MAX);
        assert_eq!(ways(&addresses)[..2], given);
        assert_eq!(ways(&addresses)[2..4], [way(99), way(98)]);
        addresses.add(own, &PeerAddress { via: vec![way(99), way(200)], ..address(0) }, true);
        for port in 300..400 {
            addresses.add(own, &PeerAddress { via: vec![way(port)], ..address(0) }, false);
        }
        assert_eq!(ways(&addresses).len(), VIA_MAX);
        assert_eq!(ways(&addresses)[..2], [way(99), way(200)]);
        assert_eq!(ways(&addresses)[2..4], given);
    }
}
