//! Room for requests of jobs while they are read: they are the only large thing that comes before
//! anybody has promised to pay for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tirami_core::PartyId;
use tirami_proto::JOB_FRAME_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::frames::Gate;

/// Bytes of requests of one peer that are read or looked at; what is beyond waits in its streams.
pub const REQUEST_BYTES_PER_PEER_MAX: usize = 2 * JOB_FRAME_BYTES_MAX;
/// The same of all peers together.
pub const REQUEST_BYTES_MAX: usize = 16 * JOB_FRAME_BYTES_MAX;

/// The room of all peers.
#[derive(Debug)]
pub(super) struct Intake {
    all: Arc<Semaphore>,
    /// Those of which something is read.
    peers: Mutex<BTreeMap<PartyId, Weak<Semaphore>>>,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(REQUEST_BYTES_MAX)), peers: Mutex::default() }
    }

    /// Room for a request of `peer`, none taken yet.
    pub(super) fn room(&self, peer: PartyId) -> Room {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = peers.get(&peer).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            peers.retain(|_, own| own.strong_count() > 0);
            let own = Arc::new(Semaphore::new(REQUEST_BYTES_PER_PEER_MAX));
            peers.insert(peer, Arc::downgrade(&own));
            own
        });
        Room { own, all: Arc::clone(&self.all), taken: Vec::new() }
    }
}

/// The room that one request takes. Dropping it makes room for others.
#[derive(Debug)]
pub(super) struct Room {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
    taken: Vec<OwnedSemaphorePermit>,
}

impl Gate for Room {
    async fn admit(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        for room in [&self.own, &self.all] {
            // Neither is ever closed.
            if let Ok(taken) = Arc::clone(room).acquire_many_owned(bytes).await {
                self.taken.push(taken);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn fits(room: &mut Room) -> bool {
        timeout(Duration::from_millis(20), room.admit(JOB_FRAME_BYTES_MAX)).await.is_ok()
    }

    #[tokio::test]
    async fn one_peer_takes_its_part_and_all_together_no_more_than_there_is() {
        let intake = Intake::new();
        let peer = |n: u8| PartyId::from_bytes([n; 32]);
        let (mut one, mut two, mut three) =
            (intake.room(peer(1)), intake.room(peer(1)), intake.room(peer(1)));
        assert!(fits(&mut one).await && fits(&mut two).await && !fits(&mut three).await);
        drop(one);
        assert!(fits(&mut three).await);
        let mut others: Vec<Room> = (2..=17).map(|n| intake.room(peer(n))).collect();
        let mut admitted = 0;
        for other in &mut others {
            admitted += usize::from(fits(other).await);
        }
        assert_eq!(admitted + 2, REQUEST_BYTES_MAX / JOB_FRAME_BYTES_MAX);
        drop((two, three, others));
        let _again = intake.room(peer(1));
        assert_eq!(intake.peers.lock().unwrap().len(), 1, "nobody is remembered");
    }
}
