//! The network: it delays, loses, doubles, reorders, and splits in two.

use tirami_core::{DocumentId, Signature};
use tirami_ledger::lattice::{Acknowledgement, Certificate, Slot};

use crate::dice::Dice;

/// What one node tells another.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// An entry that somebody signed.
    Entry { bytes: Vec<u8>, signature: Signature },
    /// A witness's promise.
    Acknowledgement(Acknowledgement),
    /// An entry and the acknowledgements known of it, which are no certificate.
    Proof { acks: Vec<Acknowledgement>, bytes: Vec<u8>, signature: Signature },
    /// An entry and its certificate.
    Certified { bytes: Vec<u8>, signature: Signature, certificate: Certificate },
    /// The chains that a checkpoint covers.
    Cut { checkpoint: DocumentId, slots: Vec<Slot> },
}

/// Chance in percent that a message is lost.
const LOSS: u64 = 6;
/// Chance in percent that a message comes twice.
const DOUBLE: u64 = 4;

#[derive(Debug, Default)]
pub(crate) struct Network {
    /// The parties on the far side of the split; empty while there is none.
    far: Vec<bool>,
}

impl Network {
    pub(crate) fn split(&mut self, dice: &mut Dice, parties: usize) {
        self.far = (0..parties).map(|_| dice.percent(50)).collect();
    }

    pub(crate) fn heal(&mut self) {
        self.far.clear();
    }

    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        self.far.get(from) == self.far.get(to)
    }

    /// How long a message takes, for each time it arrives; nothing when it is lost.
    pub(crate) fn delays(&self, dice: &mut Dice, from: usize, to: usize) -> Vec<u64> {
        if !self.reaches(from, to) || dice.percent(LOSS) {
            return Vec::new();
        }
        let times = if dice.percent(DOUBLE) { 2 } else { 1 };
        (0..times)
            .map(|_| if dice.percent(5) { dice.between(200, 5_000) } else { dice.between(1, 200) })
            .collect()
    }
}
