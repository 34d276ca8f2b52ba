//! Who may stand in the door: handshakes under way, before anybody knows whose they are.
//!
//! Nothing tells a member from a stranger yet. So no address holds more than a few places, and when
//! all are taken the handshake that has taken longest makes room: an honest one needs a round trip.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use iroh::endpoint::IncomingAddr;
use tokio_util::sync::CancellationToken;

/// Handshakes at the same time.
pub const HANDSHAKES_MAX: usize = 64;
/// Handshakes at the same time from one address.
pub const HANDSHAKES_PER_SOURCE_MAX: usize = 16;

/// Where a connection comes from, as far as limits tell addresses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// An address; of IPv6 the network, as one machine has many addresses in it.
    Ip(IpAddr),
    /// Somebody behind a relay.
    Relay,
}

impl Source {
    pub(super) fn of(address: &IncomingAddr) -> Self {
        match address {
            IncomingAddr::Ip(address) => Self::of_ip(address.ip()),
            _ => Self::Relay,
        }
    }

    pub(super) fn of_ip(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                let [a, b, c, d, ..] = address.segments();
                Self::Ip(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            address => Self::Ip(address),
        }
    }
}

/// The handshakes under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Doors {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// The oldest first.
    places: VecDeque<(u64, Source, CancellationToken)>,
    numbered: u64,
}

/// A place in the door. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    doors: Doors,
    number: u64,
    /// Cancelled when somebody else needs the place.
    pub(super) taken: CancellationToken,
}

impl Doors {
    /// A place for a handshake from `source`. Whoever has held one longest, first from the same
    /// address, makes room.
    pub(super) fn enter(&self, source: Source) -> Place {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let same: Vec<usize> = (0..open.places.len())
            .filter(|at| open.places.get(*at).is_some_and(|(_, other, _)| *other == source))
            .collect();
        let leaves = if same.len() >= HANDSHAKES_PER_SOURCE_MAX {
            same.first().copied()
        } else {
            (open.places.len() >= HANDSHAKES_MAX).then_some(0)
        };
        if let Some((_, _, oldest)) = leaves.and_then(|at| open.places.remove(at)) {
            oldest.cancel();
        }
        open.numbered += 1;
        let (number, taken) = (open.numbered, CancellationToken::new());
        open.places.push_back((number, source, taken.clone()));
        Place { doors: self.clone(), number, taken }
    }

    /// Whether half of the places are taken.
    pub(super) fn is_busy(&self) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.places.len() >= HANDSHAKES_MAX / 2
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.doors.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.places.retain(|(number, _, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u16) -> Source {
        Source::of_ip(Ipv6Addr::new(0x2001, 0xdb8, 0, n, 1, 2, 3, 4).into())
    }

    fn held(doors: &Doors, sources: impl Iterator<Item = Source>) -> Vec<Place> {
        sources.map(|source| doors.enter(source)).collect()
    }

    fn lost(places: &[Place]) -> Vec<usize> {
        let lost = places.iter().enumerate().filter(|(_, place)| place.taken.is_cancelled());
        lost.map(|(at, _)| at).collect()
    }

    #[test]
    fn one_address_holds_a_few_places_and_pushes_out_only_itself() {
        let doors = Doors::default();
        let other = doors.enter(source(7));
        // Addresses of one network are one machine, as far as anybody can tell.
        let near = |n: u16| Source::of_ip(Ipv6Addr::new(1, 2, 3, 4, n, 0, 0, 9).into());
        let mut places = held(&doors, (0..HANDSHAKES_PER_SOURCE_MAX as u16).map(near));
        assert!(lost(&places).is_empty());
        let _late = doors.enter(near(99));
        assert_eq!(lost(&places), [0]);
        places.truncate(2);
        let _later = doors.enter(near(100));
        assert_eq!(lost(&places), [0], "a place that was given back is free");
        assert!(!other.taken.is_cancelled());
    }

    #[test]
    fn when_all_places_are_taken_the_one_held_longest_is_given_away() {
        let doors = Doors::default();
        let places = held(&doors, (0..HANDSHAKES_MAX as u16).map(source));
        assert!(doors.is_busy());
        let _late = doors.enter(source(1_000));
        assert_eq!(lost(&places), [0]);
    }
}
