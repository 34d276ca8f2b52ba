//! Room for requests of jobs while they are read: they are the only large thing that comes before
//! anybody has promised to pay for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tirami_core::PartyId;
use tirami_proto::JOB_FRAME_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::frames::Gate;

/// Bytes of requests of one peer that are read or looked at; what is beyond waits in its streams.
/// A request takes this room when its length is announced: that is in nobody else's way.
pub const REQUEST_BYTES_PER_PEER_MAX: usize = 2 * JOB_FRAME_BYTES_MAX;
/// The same of all peers together, beside what each has to itself. A request takes this room as it
/// comes. A place for one request is a part of it, which whoever finds no other room gets: of
/// requests that came in part and wait for each other's room one goes on.
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
    all: Arc<All>,
    /// Those of which something is read.
    peers: Mutex<BTreeMap<PartyId, Weak<Own>>>,
}

/// What all peers share.
#[derive(Debug)]
struct All {
    bytes: Arc<Semaphore>,
    /// The place for one request that finds no other room.
    last: Arc<Semaphore>,
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
        let bytes = Arc::new(Semaphore::new(REQUEST_BYTES_MAX - JOB_FRAME_BYTES_MAX));
        let all = Arc::new(All { bytes, last: Arc::new(Semaphore::new(1)) });
        Self { all, peers: Mutex::default() }
    }

    /// Room for a request of `peer` when it is its turn, no bytes taken yet.
    pub(super) async fn room(&self, peer: PartyId) -> Room {
        let own = self.own(peer);
        let taken = take(&own.turns, 1).await.into_iter().collect();
        let all = Arc::clone(&self.all);
        Room { own, all, taken, newest: Vec::new(), has_whole: false, waits: false }
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
    all: Arc<All>,
    /// Of its own peer's: its turn, and the bytes of its frames.
    taken: Vec<OwnedSemaphorePermit>,
    /// The newest frame's place among those of others, or in what its peer has to itself: earlier
    /// ones were no request, and are dropped.
    newest: Vec<OwnedSemaphorePermit>,
    /// Whether that is room for all of the newest frame.
    has_whole: bool,
    waits: bool,
}

impl Room {
    /// Whether its sender is waited for, and no room, and has sent nothing whole: words of later
    /// versions before the request are no fault, however long they are.
    pub(super) const fn is_withheld(&self) -> bool {
        // The turn, and one frame.
        !self.waits && self.taken.len() <= 2
    }
}

/// Takes room that is there or comes. The semaphores are never closed.
async fn take(room: &Arc<Semaphore>, permits: u32) -> Option<OwnedSemaphorePermit> {
    Arc::clone(room).acquire_many_owned(permits).await.ok()
}

/// The room that so many bytes take.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.max(FRAME_BYTES_MIN)).unwrap_or(u32::MAX)
}

impl Gate for Room {
    async fn admit(&mut self, bytes: usize) {
        self.newest.clear();
        self.waits = true;
        self.taken.extend(take(&self.own.bytes, permits(bytes)).await);
        self.waits = false;
        let alone = Arc::clone(&self.own.alone).try_acquire_many_owned(permits(bytes));
        self.has_whole = alone.is_ok();
        self.newest.extend(alone);
    }

    async fn admit_part(&mut self, bytes: usize) {
        if self.has_whole {
            return;
        }
        self.waits = true;
        tokio::select! {
            biased;
            part = take(&self.all.bytes, permits(bytes)) => self.newest.extend(part),
            whole = take(&self.all.last, 1) => {
                self.newest.extend(whole);
                self.has_whole = true;
            }
        }
        self.waits = false;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::mesh::frames::PART_BYTES;

    /// Whether there is room for a frame of so many bytes, all of which come.
    async fn takes(room: &mut Room, bytes: usize) -> bool {
        let coming = async {
            room.admit(bytes).await;
            for at in (0..bytes).step_by(PART_BYTES) {
                room.admit_part(PART_BYTES.min(bytes - at)).await;
            }
        };
        timeout(Duration::from_millis(20), coming).await.is_ok()
    }

    async fn fits(room: &mut Room) -> bool {
        takes(room, JOB_FRAME_BYTES_MAX).await
    }

    fn left(intake: &Intake) -> usize {
        let last = intake.all.last.available_permits();
        intake.all.bytes.available_permits() + last * JOB_FRAME_BYTES_MAX
    }

    #[tokio::test]
    async fn requests_that_came_in_part_do_not_wait_for_each_other_for_ever() {
        let intake = Intake::new();
        // Twice as much as there is room for, which comes part by part.
        let mut rooms = Vec::new();
        for n in 0..32 {
            let mut room = intake.room(PartyId::from_bytes([n; 32])).await;
            room.admit(JOB_FRAME_BYTES_MAX).await;
            rooms.push(room);
        }
        let parts = JOB_FRAME_BYTES_MAX / PART_BYTES;
        let coming = rooms.into_iter().map(|mut room| async move {
            for _ in 0..parts {
                room.admit_part(PART_BYTES).await;
                tokio::task::yield_now().await;
            }
        });
        let all = futures_util::future::join_all(coming);
        timeout(Duration::from_secs(10), all).await.expect("one after the other they go on");
        assert_eq!(left(&intake), REQUEST_BYTES_MAX);
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
        let at_once = takes(&mut usual, REQUEST_BYTES_OWN).await;
        assert!(at_once, "a request of usual size waits for nobody else's");
        assert!(!fits(&mut large).await && !large.is_withheld());
        drop((usual, large));
        drop((two, three, others));
        // What was no request holds nobody else up.
        let mut skipping = room(1).await;
        assert!(fits(&mut skipping).await && fits(&mut skipping).await);
        assert!(!skipping.is_withheld());
        assert_eq!(left(&intake), REQUEST_BYTES_MAX - JOB_FRAME_BYTES_MAX);
        drop(skipping);
        // What is only announced takes room of its sender's.
        let (mut announced, mut withheld) = (room(1).await, room(1).await);
        for room in [&mut announced, &mut withheld] {
            room.admit(JOB_FRAME_BYTES_MAX).await;
            room.admit_part(PART_BYTES).await;
            assert!(room.is_withheld());
        }
        assert_eq!(left(&intake), REQUEST_BYTES_MAX - 2 * PART_BYTES);
        let mut third = room(1).await;
        assert!(!fits(&mut third).await && !third.is_withheld());
        drop((announced, withheld, third));
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
