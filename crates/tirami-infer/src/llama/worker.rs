//! The engine's thread: started, given jobs, asked how busy it is, stopped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc as channel};
use std::thread::JoinHandle;
use std::time::Duration;

use llama_cpp_2::model::LlamaModel;

use super::LoadError;
use super::backend::Setting;
use super::queue::Queue;
use super::sequence::Job;
use super::steps::Steps;
use super::vision::Vision;
use crate::engine::{EngineLoad, Failure, Piece, Prompt, StartError};

/// How often a thread whose every reader is slow looks whether one has read.
const READERS_POLL: Duration = Duration::from_millis(2);

/// The thread and what it shares with those who submit.
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and those who submit share.
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// Told of every change to the queue.
    changed: Condvar,
    queue_max: usize,
    places: u32,
    pub(super) running: AtomicU32,
    pub(super) completion_tokens_total: AtomicU64,
    pub(super) guessed_tokens_total: AtomicU64,
    pub(super) prompt_tokens_total: AtomicU64,
}

/// What the thread does next.
pub(super) enum Next {
    /// A job that left the queue and is counted as running.
    Job(Box<Job>),
    /// Nobody waits for a place, or there is none.
    Nothing,
    /// The engine is to stop.
    Stop,
}

impl Shared {
    pub(super) fn new(places: u32, queue_max: usize) -> Self {
        Self {
            queue: Mutex::default(),
            changed: Condvar::new(),
            queue_max,
            places,
            running: AtomicU32::new(0),
            completion_tokens_total: AtomicU64::new(0),
            guessed_tokens_total: AtomicU64::new(0),
            prompt_tokens_total: AtomicU64::new(0),
        }
    }

    /// Says why the job of `prompt` could not be queued now.
    pub(super) fn check_room(&self, prompt: &Prompt) -> Result<(), StartError> {
        let mut queue = self.queue();
        let gives_way = |queue: &Queue| queue.would_give_way(prompt.scope, prompt.contributes);
        match self.is_full(&mut queue)? && !gives_way(&queue) {
            true => Err(busy(&queue)),
            false => Ok(()),
        }
    }

    /// Queues a job, or says why not. Where there is no room, a job of a consumer that has more of
    /// them ends.
    pub(super) fn submit(&self, job: Job) -> Result<(), StartError> {
        let mut queue = self.queue();
        if self.is_full(&mut queue)? {
            let Prompt { scope, contributes, .. } = job.prompt;
            let gone = queue.give_way(scope, contributes).ok_or_else(|| busy(&queue))?;
            gone.progress.failed(Failure::Full);
            // The channel is new, so there is room; a reader that has gone needs no answer.
            let _ = gone.sender.try_send(Piece::Failed { reason: Failure::Full.to_string() });
        }
        queue.push(job);
        drop(queue);
        self.changed.notify_one();
        Ok(())
    }

    fn is_full(&self, queue: &mut Queue) -> Result<bool, StartError> {
        if queue.stopped {
            return Err(StartError::Stopped);
        }
        if queue.len() >= self.queue_max {
            queue.forget_the_left();
        }
        // A free sequence makes room for one more than may wait.
        let running = self.running.load(Ordering::Relaxed) as usize;
        Ok(queue.len() >= self.queue_max.max(usize::from(running == 0)))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, if there is a free place for it. Waits for one while nothing is running.
    pub(super) fn next(&self, has_free: bool, is_running: bool) -> Next {
        let mut queue = self.queue();
        loop {
            if queue.stopped {
                return Next::Stop;
            }
            queue.forget_the_left();
            if let Some(job) = has_free.then(|| queue.pop()).flatten() {
                self.running.fetch_add(1, Ordering::Relaxed);
                return Next::Job(Box::new(job));
            }
            if is_running {
                return Next::Nothing;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Every sequence waits for its reader: look again soon, or at once when a job arrives.
    pub(super) fn wait_for_readers(&self) {
        let queue = self.queue();
        drop(self.changed.wait_timeout(queue, READERS_POLL));
    }

    /// Takes no more jobs; gives those that wait.
    pub(super) fn stop(&self) -> Vec<Job> {
        self.queue().stop()
    }
}

impl Worker {
    /// Starts the thread, does `meanwhile`, and waits until the thread has its context.
    ///
    /// `meanwhile` gives what every chat begins with, and what the caller wants from it.
    pub(super) fn start<T>(
        (model, vision): (Arc<LlamaModel>, Option<Arc<Vision>>),
        setting: Setting,
        queue_max: u32,
        meanwhile: impl FnOnce() -> Result<(T, Vec<u32>), LoadError>,
    ) -> Result<(Self, T), LoadError> {
        let shared = Arc::new(Shared::new(setting.sequences, queue_max as usize));
        let (ready, is_ready) = channel::channel();
        let (begins, beginning) = channel::channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("tirami-engine".to_owned())
            .spawn(move || run_thread((&model, vision), setting, &theirs, &(ready, beginning)))
            .map_err(LoadError::Thread)?;
        let worker = Self { shared, thread: Some(thread) };
        let (made, common) = meanwhile()?;
        // The thread waits for this; if it has ended, it says so itself.
        let _ = begins.send(common);
        let outcome =
            is_ready.recv().unwrap_or_else(|_| Err("the engine's thread ended at once".to_owned()));
        outcome.map(|()| (worker, made)).map_err(|reason| LoadError::Context {
            context_tokens: setting.context_tokens,
            sequences: setting.sequences,
            reason,
        })
    }

    pub(super) fn check_room(&self, prompt: &Prompt) -> Result<(), StartError> {
        self.shared.check_room(prompt)
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), StartError> {
        self.shared.submit(job)
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.shared.queue().stopped
    }

    pub(super) fn load(&self) -> EngineLoad {
        let shared = &self.shared;
        let queued = shared.queue().count();
        EngineLoad {
            places: shared.places,
            taken_by_others: 0,
            running: shared.running.load(Ordering::Relaxed),
            queued: u32::try_from(queued).unwrap_or(u32::MAX),
            completion_tokens_total: shared.completion_tokens_total.load(Ordering::Relaxed),
            guessed_tokens_total: shared.guessed_tokens_total.load(Ordering::Relaxed),
            prompt_tokens_total: shared.prompt_tokens_total.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Worker {
    /// Ends what runs with [`Piece::Failed`] and waits for the thread: at most one step.
    fn drop(&mut self) {
        self.shared.queue().stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic was caught inside and told to every reader.
            let _ = thread.join();
        }
    }
}

fn busy(queue: &Queue) -> StartError {
    StartError::Busy { queued: u32::try_from(queue.len()).unwrap_or(u32::MAX) }
}

fn run_thread(
    (model, vision): (&LlamaModel, Option<Arc<Vision>>),
    setting: Setting,
    shared: &Shared,
    (ready, beginning): &(channel::Sender<Result<(), String>>, channel::Receiver<Vec<u32>>),
) {
    let context = match setting.context(model) {
        Ok(context) => context,
        Err(reason) => {
            shared.stop();
            // The loader waits for this; it cannot be gone.
            let _ = ready.send(Err(reason));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    // A loader that fails meanwhile sends nothing and stops the thread.
    let common = beginning.recv().unwrap_or_default();
    let mut steps = Steps::new((model, vision), context, setting, shared, common);
    let outcome = catch_unwind(AssertUnwindSafe(|| steps.run()));
    let reason = match outcome {
        Ok(Ok(())) => "the engine was stopped".to_owned(),
        Ok(Err(reason)) => reason,
        Err(_) => "the engine's thread panicked; restart the node".to_owned(),
    };
    steps.end_all(&reason);
}
