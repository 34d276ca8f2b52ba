//! What other nodes tried here and was refused, for the owner to see.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use tirami_core::{PartyId, Timestamp};

/// Rows kept at most; the one that was added to least lately gives way. About 150 bytes each.
pub const REFUSED_MAX: usize = 4_096;
/// Characters of a refusal's code at most.
pub const REFUSED_CODE_MAX: usize = 64;

/// How often one party was refused for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Refused {
    /// How often.
    #[n(0)]
    pub count: u64,
    /// The first time.
    #[n(1)]
    pub first_at: Timestamp,
    /// The last time.
    #[n(2)]
    pub last_at: Timestamp,
}

/// All refusals, by party and code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Refusals {
    #[n(0)]
    rows: BTreeMap<PartyId, BTreeMap<String, Refused>>,
    /// Follows from `rows`.
    #[n(1)]
    count: u32,
}

impl Refusals {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (PartyId, &str, &Refused)> {
        let rows = self.rows.iter();
        rows.flat_map(|(party, codes)| {
            codes.iter().map(|(code, refused)| (*party, code.as_str(), refused))
        })
    }

    pub(super) fn note(&mut self, now: Timestamp, party: PartyId, (code, more): (&str, u32)) {
        let known = self.rows.get_mut(&party).and_then(|codes| codes.get_mut(code));
        if let Some(row) = known {
            row.count = row.count.saturating_add(more.into());
            row.last_at = now;
            return;
        }
        if self.count as usize >= REFUSED_MAX {
            self.forget();
        }
        let row = Refused { count: more.into(), first_at: now, last_at: now };
        self.rows.entry(party).or_default().insert(code.to_owned(), row);
        self.count = self.count.saturating_add(1);
    }

    fn forget(&mut self) {
        let oldest = self.all().min_by_key(|(_, _, refused)| refused.last_at);
        let Some((party, code)) = oldest.map(|(party, code, _)| (party, code.to_owned())) else {
            return;
        };
        if let Some(codes) = self.rows.get_mut(&party) {
            codes.remove(&code);
            if codes.is_empty() {
                self.rows.remove(&party);
            }
            self.count = self.count.saturating_sub(1);
        }
    }

    pub(super) fn is_consistent(&self) -> bool {
        let count: usize = self.rows.values().map(BTreeMap::len).sum();
        count == self.count as usize && count <= REFUSED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_add_up_and_the_least_recent_gives_way() {
        let party = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
            PartyId::from_bytes(bytes)
        };
        let at = |n: usize| Timestamp::from_ms(n as u64);
        let mut refusals = Refusals::default();
        for n in 0..REFUSED_MAX {
            refusals.note(at(n), party(n), ("order_price", 1));
        }
        refusals.note(at(REFUSED_MAX), party(0), ("order_price", 2));
        refusals.note(at(REFUSED_MAX), party(0), ("order_model", 1));
        let of = |n: usize| {
            let rows = refusals.all().filter(move |(known, _, _)| *known == party(n));
            rows.map(|(_, code, row)| (code.to_owned(), row.count)).collect::<Vec<_>>()
        };
        assert_eq!(of(0), [("order_model".to_owned(), 1), ("order_price".to_owned(), 3)]);
        assert_eq!(of(1), []);
        assert_eq!(of(2).len(), 1);
        assert!(refusals.is_consistent());
    }
}
