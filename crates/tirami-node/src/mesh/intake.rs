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
/// The same of all peers together, beside what each has to itself.
pub const REQUEST_BYTES_MAX: usize = 16 * JOB_FRAME_BYTES_MAX;
/// Room that each peer has to itself: requests of usual size wait for nobody else's large ones.
const REQUEST_BYTES_OWN: usize = 64 * 1024;
/// A frame takes at least so much room: of what is no request only so many are looked at.
pub const FRAME_BYTES_MIN: usize = 4 * 1024;
/// Streams of one peer whose request is awaited or looked at; the next wait for their turn, so that
/// whoever opens streams and says nothing is in nobody's way but its own.
pub const REQUESTS_PER_PEER_MAX: usize = 8;

/// The room of all peers.
#[derive(Debug)]
pub(super) struct Intake {
    all: Arc<Semaphore>,
    /// Those of which something is read.
    peers: Mutex<BTreeMap<PartyId, Weak<Own>>>,
}

/// The room of one peer.
#[derive(Debug)]
struct Own {
    bytes: Arc<Semaphore>,
    /// What it has to itself of them.
    alone: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(REQUEST_BYTES_MAX)), peers: Mutex::default() }
    }

    /// Room for a request of `peer` when it is its turn, no bytes taken yet.
    pub(super) async fn room(&self, peer: PartyId) -> Room {
        let own = self.own(peer);
        let taken = take(&own.turns, 1).await.into_iter().collect();
        Room { all: Arc::clone(&self.all), taken, newest: None, own }
    }

    fn own(&self, peer: PartyId) -> Arc<Own> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = peers.get(&peer).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            peers.retain(|_, own| own.strong_count() > 0);
            let own = Arc::new(Own {
                bytes: Arc::new(Semaphore::new(REQUEST_BYTES_PER_PEER_MAX)),
                alone: Arc::new(Semaphore::new(REQUEST_BYTES_OWN)),
                turns: Arc::new(Semaphore::new(REQUESTS_PER_PEER_MAX)),
            });
            peers.insert(peer, Arc::downgrade(&own));
            own
        })
    }
}

/// The room that one request takes. Dropping it makes room for others.
#[derive(Debug)]
pub(super) struct Room {
    own: Arc<Own>,
    all: Arc<Semaphore>,
    /// Of its own peer's: its turn, and the bytes of its frames.
    taken: Vec<OwnedSemaphorePermit>,
    /// The newest frame's place among those of others, or in what its peer has to itself: earlier
    /// ones were no request, and are dropped.
    newest: Option<OwnedSemaphorePermit>,
}

/// Takes room that is there or comes. The semaphores are never closed.
async fn take(room: &Arc<Semaphore>, permits: u32) -> Option<OwnedSemaphorePermit> {
    Arc::clone(room).acquire_many_owned(permits).await.ok()
}

impl Gate for Room {
    async fn admit(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes.max(FRAME_BYTES_MIN)).unwrap_or(u32::MAX);
        self.newest = None;
        self.taken.extend(take(&self.own.bytes, bytes).await);
        self.newest = match Arc::clone(&self.own.alone).try_acquire_many_owned(bytes) {
            Ok(alone) => Some(alone),
            Err(_) => take(&self.all, bytes).await,
        };
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
        let room = |n| intake.room(peer(n));
        let (mut one, mut two, mut three) = (room(1).await, room(1).await, room(1).await);
        assert!(fits(&mut one).await && fits(&mut two).await && !fits(&mut three).await);
        drop(one);
        assert!(fits(&mut three).await);
        let (mut others, mut admitted) = (Vec::new(), 0);
        for n in 2..=17 {
            let mut other = room(n).await;
            admitted += usize::from(fits(&mut other).await);
            others.push(other);
        }
        assert_eq!(admitted + 2, REQUEST_BYTES_MAX / JOB_FRAME_BYTES_MAX);
        let (mut usual, mut large) = (room(18).await, room(18).await);
        let at_once = timeout(Duration::from_millis(20), usual.admit(REQUEST_BYTES_OWN)).await;
        assert!(at_once.is_ok(), "a request of usual size waits for nobody else's");
        assert!(!fits(&mut large).await);
        drop((usual, large));
        drop((two, three, others));
        // What was no request holds nobody else up.
        let mut skipping = room(1).await;
        assert!(fits(&mut skipping).await && fits(&mut skipping).await);
        assert_eq!(intake.all.available_permits(), REQUEST_BYTES_MAX - JOB_FRAME_BYTES_MAX);
        drop(skipping);
        let mut turns = Vec::new();
        for _ in 0..REQUESTS_PER_PEER_MAX {
            turns.push(room(1).await);
        }
        assert_eq!(intake.peers.lock().unwrap().len(), 1, "nobody is remembered");
        let (mut full, mut frames) = (intake.room(peer(3)).await, 0);
        while timeout(Duration::from_millis(20), full.admit(1)).await.is_ok() {
            frames += 1;
        }
        assert_eq!(frames, REQUEST_BYTES_PER_PEER_MAX / FRAME_BYTES_MIN, "small frames count too");
        drop(full);
        let turn = || async { timeout(Duration::from_millis(20), room(1)).await.is_ok() };
        assert!(!turn().await);
        turns.pop();
        assert!(turn().await && timeout(Duration::from_millis(20), room(2)).await.is_ok());
    }
}
