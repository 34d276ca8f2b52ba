//! Who waits for a place for a job, and who has places: one consumer keeps them from others no
//! longer than it uses them, and no more than half of them while another one waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tirami_core::PartyId;
use tirami_ledger::refusal::OrderRefusal;
use tokio::time::Instant;

/// How long a consumer that found all places taken counts as one that waits: by then it has asked
/// again, or somebody else.
const WAITS_FOR: Duration = Duration::from_secs(10);

/// The consumers that have places or want one.
#[derive(Debug, Default)]
pub(crate) struct Crowd(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Who found all places taken last, and who did last beside that one: so it is known of every
    /// consumer whether another one waits.
    turned_away: [Option<(PartyId, Instant)>; 2],
    /// Places of each consumer that has any: no more in all than streams are served.
    taken: BTreeMap<PartyId, u32>,
}

impl Seen {
    fn waits_beside(&self, consumer: PartyId) -> bool {
        let mut seen = self.turned_away.iter().flatten();
        seen.any(|(party, at)| *party != consumer && at.elapsed() < WAITS_FOR)
    }
}

impl Crowd {
    /// Notes that a consumer found all places taken.
    pub(super) fn turned_away(&self, consumer: PartyId) {
        let mut seen = self.lock();
        let [last, before] = &mut seen.turned_away;
        if let Some(last) = last.replace((consumer, Instant::now()))
            && last.0 != consumer
        {
            *before = Some(last);
        }
    }

    /// A place for a job of a consumer, of so many there are.
    ///
    /// # Errors
    ///
    /// While others wait one consumer has no more than half of the places, and at least one.
    pub(super) fn place(
        self: &Arc<Self>,
        consumer: PartyId,
        places: u32,
    ) -> Result<Place, OrderRefusal> {
        let mut seen = self.lock();
        let max = (places / 2).max(1);
        if seen.waits_beside(consumer) && seen.taken.get(&consumer).is_some_and(|own| *own >= max) {
            let what = "jobs at once for this consumer while others wait";
            return Err(OrderRefusal::TooMany { what, max });
        }
        let own = seen.taken.entry(consumer).or_default();
        *own = own.saturating_add(1);
        for one in &mut seen.turned_away {
            // Whoever has found a place waits for none.
            if one.is_some_and(|(party, _)| party == consumer) {
                *one = None;
            }
        }
        Ok(Place { crowd: Arc::clone(self), consumer })
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place for a job. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    consumer: PartyId,
}

impl Place {
    /// Whether another consumer waits for a place.
    pub(super) fn is_wanted(&self) -> bool {
        self.crowd.lock().waits_beside(self.consumer)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut seen = self.crowd.lock();
        if let Some(own) = seen.taken.get_mut(&self.consumer) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                seen.taken.remove(&self.consumer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTIES: [PartyId; 3] =
        [PartyId::from_bytes([1; 32]), PartyId::from_bytes([2; 32]), PartyId::from_bytes([3; 32])];

    #[test]
    fn while_others_wait_one_consumer_has_half_of_the_places() {
        let [one, other, third] = PARTIES;
        let crowd = Arc::new(Crowd::default());
        let mut places = [0; 4].map(|_| crowd.place(one, 4).unwrap()).into_iter();
        // Whoever finds its own jobs in its way is no other consumer.
        crowd.turned_away(one);
        let place = places.next().unwrap();
        assert!(!place.is_wanted() && crowd.place(one, 4).is_ok());
        crowd.turned_away(other);
        crowd.turned_away(one);
        crowd.turned_away(one);
        assert!(place.is_wanted() && crowd.place(one, 4).is_err());
        drop((place, places.next()));
        let refused = crowd.place(one, 4).unwrap_err();
        assert!(matches!(refused, OrderRefusal::TooMany { max: 2, .. }), "{refused}");
        drop(places.next());
        let half = crowd.place(one, 4).unwrap();
        // Whoever has found a place waits no more.
        assert!(half.is_wanted() && !crowd.place(other, 4).unwrap().is_wanted());
        assert!(!half.is_wanted());
        crowd.turned_away(third);
        for (_, at) in crowd.lock().turned_away.iter_mut().flatten() {
            *at -= WAITS_FOR;
        }
        assert!(!half.is_wanted() && crowd.place(one, 4).is_ok());
        crowd.turned_away(other);
        assert!(crowd.place(third, 1).is_ok(), "everybody may have one");
        drop((half, places));
        assert!(crowd.lock().taken.is_empty(), "nobody is remembered");
    }
}
