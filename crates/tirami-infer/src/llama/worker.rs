//! The generating thread: which sequences take part in the next step, and what becomes of them.
//!
//! A step is one pass that gives each running sequence its next token, then one pass over at most
//! [`PASS_TOKENS_MAX`] prompt tokens of one waiting sequence, in turn. So a long prompt delays
//! running streams by one short pass and no more, and each prompt is cut at the same places
//! whatever else runs.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc as channel};
use std::thread::JoinHandle;
use std::time::Duration;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::mpsc;

use super::LoadError;
use super::backend::{PASS_TOKENS_MAX, Setting};
use super::sampler::Sampler;
use super::text::AnswerText;
use super::tokens::piece;
use crate::engine::{EngineLoad, Finish, Piece, Prompt, Sampling, StartError};

/// How often a thread whose every reader is slow looks whether one has read.
const READERS_POLL: Duration = Duration::from_millis(2);

/// A request on its way to the thread.
pub(super) struct Job {
    pub(super) prompt: Prompt,
    pub(super) sampling: Sampling,
    pub(super) sender: mpsc::Sender<Piece>,
}

/// The thread and what it shares with those who submit.
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Told of every change to the queue.
    changed: Condvar,
    queue_max: usize,
    running: AtomicU32,
    completion_tokens_total: AtomicU64,
    prompt_tokens_total: AtomicU64,
}

struct Queue {
    waiting: VecDeque<Job>,
    /// No job is taken any more.
    stopped: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Starts the thread and waits until it has its context.
    pub(super) fn start(
        model: Arc<LlamaModel>,
        setting: Setting,
        queue_max: u32,
    ) -> Result<Self, LoadError> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { waiting: VecDeque::new(), stopped: false }),
            changed: Condvar::new(),
            queue_max: queue_max as usize,
            running: AtomicU32::new(0),
            completion_tokens_total: AtomicU64::new(0),
            prompt_tokens_total: AtomicU64::new(0),
        });
        let (ready, is_ready) = channel::channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("tirami-engine".to_owned())
            .spawn(move || run_thread(&model, setting, &theirs, &ready))
            .map_err(LoadError::Thread)?;
        let worker = Self { shared, thread: Some(thread) };
        let outcome =
            is_ready.recv().unwrap_or_else(|_| Err("the engine's thread ended at once".to_owned()));
        outcome.map(|()| worker).map_err(|reason| LoadError::Context {
            context_tokens: setting.context_tokens,
            sequences: setting.sequences,
            reason,
        })
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), StartError> {
        let mut queue = self.shared.queue();
        if queue.stopped {
            return Err(StartError::Stopped);
        }
        if queue.waiting.len() >= self.shared.queue_max {
            queue.waiting.retain(|job| !job.sender.is_closed());
        }
        // A free sequence makes room for one more than may wait.
        let running = self.shared.running.load(Ordering::Relaxed) as usize;
        let room = self.shared.queue_max.max(usize::from(running == 0));
        if queue.waiting.len() >= room {
            return Err(StartError::Busy {
                queued: u32::try_from(queue.waiting.len()).unwrap_or(u32::MAX),
            });
        }
        queue.waiting.push_back(job);
        drop(queue);
        self.shared.changed.notify_one();
        Ok(())
    }

    pub(super) fn load(&self) -> EngineLoad {
        let shared = &self.shared;
        let queued = shared.queue().waiting.iter().filter(|job| !job.sender.is_closed()).count();
        EngineLoad {
            running: shared.running.load(Ordering::Relaxed),
            queued: u32::try_from(queued).unwrap_or(u32::MAX),
            completion_tokens_total: shared.completion_tokens_total.load(Ordering::Relaxed),
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

fn run_thread(
    model: &LlamaModel,
    setting: Setting,
    shared: &Shared,
    ready: &channel::Sender<Result<(), String>>,
) {
    let context = match setting.context(model) {
        Ok(context) => context,
        Err(reason) => {
            shared.queue().stopped = true;
            // The loader waits for this; it cannot be gone.
            let _ = ready.send(Err(reason));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let mut steps = Steps {
        model,
        context,
        batch: LlamaBatch::new(PASS_TOKENS_MAX, 1),
        setting,
        shared,
        sequences: (0..setting.sequences).map(|_| None).collect(),
        turn: 0,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| steps.run()));
    let reason = match outcome {
        Ok(Ok(())) => "the engine was stopped".to_owned(),
        Ok(Err(reason)) => reason,
        Err(_) => "the engine's thread panicked; restart the node".to_owned(),
    };
    steps.end_all(&reason);
}

/// The thread's state.
struct Steps<'a> {
    model: &'a LlamaModel,
    context: LlamaContext<'a>,
    batch: LlamaBatch<'a>,
    setting: Setting,
    shared: &'a Shared,
    /// What runs in each place of the context.
    sequences: Vec<Option<Sequence>>,
    /// The place whose prompt is next.
    turn: usize,
}

/// A running generation.
struct Sequence {
    prompt: Vec<LlamaToken>,
    /// Prompt tokens in the cache.
    prefilled: usize,
    /// The token that was delivered last and is not in the cache.
    next: Option<LlamaToken>,
    produced: u32,
    completion_max: u32,
    sampler: Sampler,
    answer: AnswerText,
    sender: mpsc::Sender<Piece>,
}

impl Sequence {
    /// Whether the reader has room for what one step may deliver: a delta and an end. So an end
    /// or failure always finds room.
    fn has_room(&self) -> bool {
        self.sender.capacity() >= 2
    }

    fn is_prefilling(&self) -> bool {
        self.prefilled < self.prompt.len()
    }

    /// Sends to a reader that has room; one that is gone is noticed before the next step.
    fn send(&self, piece: Piece) {
        let _ = self.sender.try_send(piece);
    }
}

impl Steps<'_> {
    /// Steps until the engine is stopped.
    fn run(&mut self) -> Result<(), String> {
        loop {
            self.free_the_left();
            if !self.admit() {
                return Ok(());
            }
            let decoded = self.decode_step()?;
            let prefilled = self.prefill_step()?;
            if !decoded && !prefilled {
                self.wait_for_readers();
            }
        }
    }

    /// Ends sequences whose reader has gone.
    fn free_the_left(&mut self) {
        for place in 0..self.sequences.len() {
            if self.sequences[place].as_ref().is_some_and(|s| s.sender.is_closed()) {
                self.free(place);
            }
        }
    }

    fn free(&mut self, place: usize) {
        if self.sequences[place].take().is_some() {
            let sequence = u32::try_from(place).ok();
            // Removing a whole sequence always succeeds.
            let _ = self.context.clear_kv_cache_seq(sequence, None, None);
            self.shared.running.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Frees a sequence's place, then tells its reader, who so finds it free.
    fn end(&mut self, place: usize, last: Piece) {
        let sender = self.sequences[place].as_ref().map(|sequence| sequence.sender.clone());
        self.free(place);
        if let Some(sender) = sender {
            let _ = sender.try_send(last);
        }
    }

    /// Gives free places to those who wait; waits itself while there is nothing to do. False when
    /// the engine is to stop.
    fn admit(&mut self) -> bool {
        let shared = self.shared;
        let mut queue = shared.queue();
        loop {
            if queue.stopped {
                return false;
            }
            queue.waiting.retain(|job| !job.sender.is_closed());
            while let Some(place) = self.sequences.iter().position(Option::is_none) {
                let Some(job) = queue.waiting.pop_front() else {
                    break;
                };
                if let Some(sequence) = self.sequence(job) {
                    self.sequences[place] = Some(sequence);
                    shared.running.fetch_add(1, Ordering::Relaxed);
                }
            }
            if self.sequences.iter().any(Option::is_some) {
                return true;
            }
            queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A sequence at its beginning; a prompt the context cannot take is answered at once.
    fn sequence(&self, job: Job) -> Option<Sequence> {
        let Job { prompt, sampling, sender } = job;
        let known = 0..self.model.vocab().n_tokens();
        let tokens = prompt
            .tokens
            .iter()
            .map(|token| i32::try_from(*token).ok().filter(|token| known.contains(token)))
            .map(|token| token.map(LlamaToken))
            .collect::<Option<Vec<_>>>();
        let fits = |tokens: &Vec<_>| {
            !tokens.is_empty() && tokens.len() < self.setting.context_tokens as usize
        };
        let Some(tokens) = tokens.filter(fits) else {
            let reason = "the prompt is empty, too long or not of this model".to_owned();
            let _ = sender.try_send(Piece::Failed { reason });
            return None;
        };
        Some(Sequence {
            prompt: tokens,
            prefilled: 0,
            next: None,
            produced: 0,
            completion_max: sampling.completion_max.max(1),
            sampler: Sampler::new(&sampling),
            answer: AnswerText::new(&sampling.stop),
            sender,
        })
    }

    /// One token for each running sequence whose reader keeps up. False if there is none.
    fn decode_step(&mut self) -> Result<bool, String> {
        self.batch.clear();
        let mut places = Vec::new();
        for (place, sequence) in self.sequences.iter().enumerate() {
            let Some(sequence) = sequence.as_ref().filter(|sequence| sequence.has_room()) else {
                continue;
            };
            let Some(token) = sequence.next else { continue };
            // The delivered tokens but the last are in the cache.
            let position = sequence.prompt.len() + sequence.produced as usize - 1;
            add(&mut self.batch, token, position, place, true)?;
            places.push(place);
        }
        if places.is_empty() {
            return Ok(false);
        }
        self.pass()?;
        for (row, place) in places.into_iter().enumerate() {
            self.choose(place, row);
        }
        Ok(true)
    }

    /// The next part of one prompt. False if no sequence has any left.
    fn prefill_step(&mut self) -> Result<bool, String> {
        let count = self.sequences.len();
        let waiting =
            |place: &usize| self.sequences[*place].as_ref().is_some_and(Sequence::is_prefilling);
        let Some(place) = (0..count).map(|i| (self.turn + i) % count).find(waiting) else {
            return Ok(false);
        };
        self.turn = place + 1;
        self.batch.clear();
        let Some(sequence) = self.sequences[place].as_mut() else {
            return Ok(false);
        };
        let start = sequence.prefilled;
        let end = (start + PASS_TOKENS_MAX).min(sequence.prompt.len());
        for (position, token) in sequence.prompt.iter().enumerate().take(end).skip(start) {
            let last = position + 1 == sequence.prompt.len();
            add(&mut self.batch, *token, position, place, last)?;
        }
        sequence.prefilled = end;
        let complete = !sequence.is_prefilling();
        self.pass()?;
        self.shared.prompt_tokens_total.fetch_add((end - start) as u64, Ordering::Relaxed);
        if complete {
            self.choose(place, end - start - 1);
        }
        Ok(true)
    }

    fn pass(&mut self) -> Result<(), String> {
        self.context
            .decode(&mut self.batch)
            .map_err(|error| format!("the engine failed in a step: {error}; restart the node"))
    }

    /// Chooses a sequence's next token from row `row` of the last pass, and delivers it.
    fn choose(&mut self, place: usize, row: usize) {
        let Some(sequence) = self.sequences[place].as_mut() else {
            return;
        };
        let logits = self.context.get_logits_ith(i32::try_from(row).unwrap_or(i32::MAX));
        let token = sequence.sampler.pick(logits).and_then(|index| i32::try_from(index).ok());
        let Some(token) = token.map(LlamaToken) else {
            let reason = "the model computes no numbers; its file is damaged".to_owned();
            return self.end(place, Piece::Failed { reason });
        };
        if self.model.vocab().is_eog(token) {
            let text = sequence.answer.finish();
            let last = Piece::End { text, finish: Finish::Stop };
            return self.end(place, last);
        }
        sequence.produced += 1;
        self.shared.completion_tokens_total.fetch_add(1, Ordering::Relaxed);
        let certain = sequence.answer.push(&piece(self.model, token));
        let tokens = vec![token.0.cast_unsigned()];
        sequence.send(Piece::Delta { tokens, text: certain.text });
        let held = sequence.prompt.len() + sequence.produced as usize;
        if certain.stopped {
            self.end(place, Piece::End { text: String::new(), finish: Finish::Stop });
        } else if sequence.produced >= sequence.completion_max
            || held >= self.setting.context_tokens as usize
        {
            let text = sequence.answer.finish();
            self.end(place, Piece::End { text, finish: Finish::Length });
        } else {
            sequence.next = Some(token);
        }
    }

    /// Every sequence waits for its reader: look again soon, or at once when a job arrives.
    fn wait_for_readers(&self) {
        let queue = self.shared.queue();
        drop(self.shared.changed.wait_timeout(queue, READERS_POLL));
    }

    /// Tells everyone that nothing more comes.
    fn end_all(&mut self, reason: &str) {
        let waiting = {
            let mut queue = self.shared.queue();
            queue.stopped = true;
            std::mem::take(&mut queue.waiting)
        };
        let failed = || Piece::Failed { reason: reason.to_owned() };
        for job in waiting {
            let _ = job.sender.try_send(failed());
        }
        for sequence in self.sequences.iter_mut().filter_map(Option::take) {
            sequence.send(failed());
        }
        self.shared.running.store(0, Ordering::Relaxed);
    }
}

fn add(
    batch: &mut LlamaBatch<'_>,
    token: LlamaToken,
    position: usize,
    place: usize,
    logits: bool,
) -> Result<(), String> {
    let position = i32::try_from(position).map_err(|_| "a position above 2^31")?;
    let place = i32::try_from(place).map_err(|_| "a sequence above 2^31")?;
    batch.add(token, position, &[place], logits).map_err(|error| error.to_string())
}
