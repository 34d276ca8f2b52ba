//! The places of a server elsewhere, given in the order of [`tirami_infer::queue`]: that of the
//! engines that run here.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tirami_infer::engine::{Progress, Prompt};
use tirami_infer::queue::{Queue, Waits};
use tokio::sync::oneshot;

/// Requests that may wait for a place, for each place.
const QUEUED_PER_PLACE: u32 = 4;

/// The places of a server, and who waits for one.
pub(super) struct Places {
    all: u32,
    open: Mutex<Open>,
}

struct Open {
    /// Places that nobody holds. While there are any, nobody waits.
    free: u32,
    queue: Queue<Asker>,
}

/// A request that waits for a place.
struct Asker {
    scope: u64,
    contributes: bool,
    progress: Arc<Progress>,
    /// Counts it among those of its model that wait.
    _waits: Waiting,
    /// Those of its model that hold a place.
    running: Arc<AtomicU32>,
    /// Where its place is handed over.
    call: oneshot::Sender<Held>,
}

impl Waits for Asker {
    fn scope(&self) -> u64 {
        self.scope
    }

    fn contributes(&self) -> bool {
        self.contributes
    }

    fn has_left(&self) -> bool {
        self.call.is_closed()
    }

    /// With a place here it is in the server's queue: that says nothing of itself, and the server
    /// may have to load the model.
    fn placed(&self, place: u32) {
        self.progress.queued(place.max(1));
    }
}

/// How many requests of one model wait for a place, and how many hold one.
#[derive(Debug, Default)]
pub(super) struct Standing {
    waiting: Arc<AtomicU32>,
    running: Arc<AtomicU32>,
}

impl Standing {
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }
}

/// One more that waits, until it is dropped.
struct Waiting(Arc<AtomicU32>);

impl Waiting {
    fn counted_by(counter: &Arc<AtomicU32>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    pub(super) fn new(all: u32) -> Self {
        Self { all, open: Mutex::new(Open { free: all, queue: Queue::default() }) }
    }

    pub(super) const fn all(&self) -> u32 {
        self.all
    }

    pub(super) fn free(&self) -> u32 {
        self.open().free
    }

    /// A turn for `prompt`, which `progress` is told of and `of_model` counts.
    ///
    /// # Errors
    ///
    /// How many wait already, when no more may.
    pub(super) fn enter(
        self: &Arc<Self>,
        prompt: &Prompt,
        progress: &Arc<Progress>,
        of_model: &Standing,
    ) -> Result<Turn, u32> {
        let (call, called) = oneshot::channel();
        let mut open = self.open();
        let waiting = u32::try_from(open.queue.len()).unwrap_or(u32::MAX);
        if open.free == 0 && waiting >= self.all.saturating_mul(QUEUED_PER_PLACE) {
            // Its turn ends, and says so.
            let gone = open.queue.give_way(prompt.scope, prompt.contributes);
            drop(gone.ok_or(waiting)?);
        }
        open.queue.push(Asker {
            scope: prompt.scope,
            contributes: prompt.contributes,
            progress: Arc::clone(progress),
            _waits: Waiting::counted_by(&of_model.waiting),
            running: Arc::clone(&of_model.running),
            call,
        });
        drop(open);
        self.give();
        Ok(Turn { places: Arc::clone(self), called })
    }

    /// Gives the free places to those whose turn it is.
    fn give(self: &Arc<Self>) {
        while let Some((call, running)) = self.take() {
            // One that left just now drops its place, and the next one gets it.
            drop(call.send(Held { places: Arc::clone(self), running }));
        }
    }

    /// Takes a free place for whose turn it is.
    fn take(&self) -> Option<(oneshot::Sender<Held>, Arc<AtomicU32>)> {
        let mut open = self.open();
        if open.free == 0 {
            return None;
        }
        let Asker { call, running, .. } = open.queue.pop()?;
        open.free -= 1;
        running.fetch_add(1, Ordering::Relaxed);
        Some((call, running))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn that is waited for. Dropping it leaves the queue at once.
pub(super) struct Turn {
    places: Arc<Places>,
    called: oneshot::Receiver<Held>,
}

impl Turn {
    /// The place, when it is free; none when another consumer's request took the place in the
    /// queue.
    pub(super) async fn comes(mut self) -> Option<Held> {
        (&mut self.called).await.ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.called.close();
        self.places.open().queue.forget_the_left();
    }
}

/// A place that is taken, until it is dropped.
pub(super) struct Held {
    places: Arc<Places>,
    /// Counts it among those of its model.
    running: Arc<AtomicU32>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut open = self.places.open();
        open.free += 1;
        self.running.fetch_sub(1, Ordering::Relaxed);
        drop(open);
        self.places.give();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One place, and turns of these `(consumer, contributes)`.
    fn turns(asked: &[(u64, bool)]) -> (Arc<Places>, Standing, Vec<Turn>) {
        let (places, of_model) = (Arc::new(Places::new(1)), Standing::default());
        let enter = |(scope, contributes): &(u64, bool)| {
            let (scope, contributes) = (*scope, *contributes);
            let prompt = Prompt { scope, contributes, ..Prompt::default() };
            places.enter(&prompt, &Arc::default(), &of_model).unwrap()
        };
        let turns = asked.iter().map(enter).collect();
        (places, of_model, turns)
    }

    /// The place that was handed over.
    fn taken(turn: &mut Turn) -> Option<Held> {
        turn.called.try_recv().ok()
    }

    #[test]
    fn a_place_goes_to_whose_turn_it_is() {
        let (places, of_model, mut turns) =
            turns(&[(1, false), (1, false), (1, false), (2, false), (3, true)]);
        assert_eq!((of_model.running(), of_model.waiting(), places.free()), (1, 4, 0));
        for next in [0, 4, 1, 3, 2] {
            let held = turns.iter_mut().map(taken).collect::<Vec<_>>();
            assert_eq!(held.iter().position(Option::is_some), Some(next));
        }
        assert_eq!((of_model.running(), of_model.waiting(), places.free()), (0, 0, 1));
    }

    #[test]
    fn a_consumer_with_many_waiting_gives_way_to_one_with_fewer() {
        let (places, of_model, mut turns) = turns(&[(1, false); 5]);
        let enter = |scope| {
            let prompt = Prompt { scope, ..Prompt::default() };
            places.enter(&prompt, &Arc::default(), &of_model)
        };
        let others = [enter(2), enter(2)].map(|turn| turn.ok().unwrap());
        assert!(enter(2).is_err() && enter(1).is_err(), "both have two now");
        assert_eq!(of_model.waiting(), 4);
        let ended = turns.iter_mut().map(|turn| turn.called.try_recv());
        let ended: Vec<bool> = ended
            .map(|called| called.err() == Some(oneshot::error::TryRecvError::Closed))
            .collect();
        assert_eq!(ended, [false, false, false, true, true], "the last ones ended");
        drop(others);
    }

    #[test]
    fn who_leaves_frees_the_place_in_the_queue_or_the_one_that_was_handed_over() {
        let (places, of_model, mut turns) = turns(&[(1, false); 5]);
        let prompt = Prompt { scope: 1, ..Prompt::default() };
        let one_more = places.enter(&prompt, &Arc::default(), &of_model);
        assert_eq!(one_more.err(), Some(4));
        drop(turns.remove(2));
        assert_eq!((of_model.running(), of_model.waiting()), (1, 3));
        // The first had not looked yet when it left: the second has its place.
        drop(turns.remove(0));
        assert_eq!((of_model.running(), of_model.waiting(), places.free()), (1, 2, 0));
        assert!(taken(&mut turns[0]).is_some());
    }
}
