//! Lattices of some chains, compared with the lattice of all.

use std::collections::BTreeSet;

use tirami_core::{PartyId, Signature, decode_body};
use tirami_ledger::lattice::{Certificate, Entry, Keep, Lattice};

/// A final entry as it travels, with its certificate.
pub(crate) type Proven = (Vec<u8>, Signature, Certificate);

pub(crate) fn chain_of(entry: &Proven) -> PartyId {
    decode_body::<Entry>(&entry.0).unwrap().chain
}

/// Whoever holds the chains in `held` agrees on them with every other, in whichever order the
/// entries came, and with the lattice of all chains; and becomes that one once it gets the rest.
pub(crate) fn agrees(
    (empty, full): (&Lattice, &Lattice),
    finals: &[Proven],
    held: &BTreeSet<PartyId>,
    seed: u64,
) {
    let (part, rest): (Vec<Proven>, Vec<Proven>) =
        finals.iter().cloned().partition(|entry| held.contains(&chain_of(entry)));
    let mut hashes = BTreeSet::new();
    for seed in [seed | 1, seed.rotate_left(23) | 1] {
        let mut lattice = empty.clone().with_recent((seed % 9) as u32);
        lattice.set_keep(Keep::Own);
        feed(&mut lattice, &part, seed);
        assert_eq!(lattice.held(), (0, 0), "something waits for what is not held");
        assert_eq!(lattice.final_count(), part.len());
        hashes.insert(lattice.state_hash());
        for (party, chain) in lattice.chains() {
            let known = full.chain(party).unwrap();
            assert_eq!(chain.frozen(), known.frozen());
            let mut state = chain.state().clone();
            if state.unproven {
                assert!(lattice.unseen_lock(party).is_some());
                (state.unproven, state.welcome) = (false, known.state().welcome);
            }
            assert_eq!(&state, known.state(), "{party} stands otherwise");
            assert_eq!(lattice.has_defaulted(party), full.has_defaulted(party));
            assert!(lattice.floor(party) <= full.floor(party), "{party} may go too low");
        }
        feed(&mut lattice, &rest, seed);
        assert_eq!(lattice.state_hash(), full.state_hash());
        assert_eq!(lattice.totals(), full.totals());
        assert_eq!(lattice.totals().outside, 0);
    }
    assert_eq!(hashes.len(), 1, "two nodes that hold the same chains disagree");
}

fn feed(lattice: &mut Lattice, finals: &[Proven], mut dice: u64) {
    let mut order: Vec<&Proven> = finals.iter().collect();
    for index in (1..order.len()).rev() {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        order.swap(index, usize::try_from(dice % (index as u64 + 1)).unwrap());
    }
    for (bytes, signature, certificate) in order {
        let events = lattice.receive_certified(bytes, *signature, certificate).unwrap();
        lattice.absorb(events);
        lattice.check_invariants().unwrap();
    }
}
