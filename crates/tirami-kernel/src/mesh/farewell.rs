//! Who was sent away lately, who sent this node away, and why: for the owner to read.

use std::collections::VecDeque;

use tirami_core::{PartyId, Timestamp};
use tirami_proto::{Goodbye, GoodbyeCode};

/// Farewells kept.
pub const FAREWELLS_MAX: usize = 64;

/// The end of a connection, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Farewell {
    /// The other side.
    pub peer: PartyId,
    /// Whether the other side ended it.
    pub said_by_peer: bool,
    /// Why.
    pub code: GoodbyeCode,
    /// The same for people, in the words of whoever ended it.
    pub reason: String,
    /// When it happened last.
    pub at: Timestamp,
    /// How often in a row.
    pub times: u64,
}

/// The latest farewells, and how many there were.
#[derive(Debug, Clone, Default)]
pub(super) struct Farewells {
    /// The oldest first.
    kept: VecDeque<Farewell>,
    count: u64,
}

impl Farewells {
    pub(super) fn latest_first(&self) -> impl Iterator<Item = &Farewell> {
        self.kept.iter().rev()
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Notes one. The same again is counted, so that one peer does not fill the list.
    pub(super) fn note(
        &mut self,
        peer: PartyId,
        said_by_peer: bool,
        goodbye: &Goodbye,
        at: Timestamp,
    ) {
        self.count = self.count.saturating_add(1);
        let same = |known: &Farewell| {
            known.peer == peer && known.said_by_peer == said_by_peer && known.code == goodbye.code
        };
        let before = self.kept.iter().position(same).and_then(|at| self.kept.remove(at));
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        if self.kept.len() >= FAREWELLS_MAX {
            self.kept.pop_front();
        }
        let (code, reason) = (goodbye.code, goodbye.reason.clone());
        self.kept.push_back(Farewell { peer, said_by_peer, code, reason, at, times });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_again_is_counted_and_many_others_push_out_the_oldest() {
        let mut list = Farewells::default();
        let party = |n: usize| PartyId::from_bytes([n as u8; 32]);
        let goodbye = |code| Goodbye { code, reason: "why".to_owned(), retry_after_ms: 0 };
        for at in 0..3 {
            list.note(party(1), true, &goodbye(GoodbyeCode::Version), Timestamp::from_ms(at));
        }
        list.note(party(1), true, &goodbye(GoodbyeCode::Stopping), Timestamp::from_ms(9));
        let seen: Vec<_> =
            list.latest_first().map(|one| (one.code, one.times, one.at.ms())).collect();
        assert_eq!(seen, [(GoodbyeCode::Stopping, 1, 9), (GoodbyeCode::Version, 3, 2)]);
        for n in 2..2 + FAREWELLS_MAX {
            list.note(party(n), false, &goodbye(GoodbyeCode::Other), Timestamp::from_ms(10));
        }
        assert_eq!(list.latest_first().count(), FAREWELLS_MAX);
        assert!(list.latest_first().all(|one| one.peer != party(1)));
        assert_eq!(list.count(), 4 + FAREWELLS_MAX as u64);
    }
}
