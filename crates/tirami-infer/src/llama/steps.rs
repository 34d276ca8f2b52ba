//! Which sequences take part in the next step, and what becomes of them.
//!
//! A step is one pass that gives each running sequence its next token, then one pass over at most
//! [`PASS_TOKENS_MAX`] given tokens of one waiting sequence, in turn, and at most one copy from
//! one place of the cache to another. So a long prompt delays running streams by one short pass
//! and no more, and a token's keys and values are the same bits wherever a prompt is cut.

use std::sync::atomic::Ordering;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::mpsc;

use super::backend::{PASS_TOKENS_MAX, Setting};
use super::places::{Choice, Place, choose};
use super::sequence::Sequence;
use super::worker::{Next, Shared};
use crate::engine::Piece;

/// The engine thread's state.
pub(super) struct Steps<'a> {
    model: &'a LlamaModel,
    context: LlamaContext<'a>,
    batch: LlamaBatch<'a>,
    context_tokens: usize,
    shared: &'a Shared,
    /// What each place of the context holds.
    places: Vec<Place>,
    /// What runs in each place.
    sequences: Vec<Option<Sequence>>,
    /// The place whose prompt is next.
    turn: usize,
    /// Places taken since the start.
    taken: u64,
    /// What every chat begins with.
    common: Vec<u32>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        model: &'a LlamaModel,
        context: LlamaContext<'a>,
        setting: Setting,
        shared: &'a Shared,
        common: Vec<u32>,
    ) -> Self {
        Self {
            model,
            context,
            batch: LlamaBatch::new(PASS_TOKENS_MAX, 1),
            context_tokens: setting.context_tokens as usize,
            shared,
            places: (0..setting.sequences).map(|_| Place::default()).collect(),
            sequences: (0..setting.sequences).map(|_| None).collect(),
            turn: 0,
            taken: 0,
            common,
        }
    }

    /// Steps until the engine is stopped.
    pub(super) fn run(&mut self) -> Result<(), String> {
        self.read_common()?;
        loop {
            self.free_the_left();
            if !self.admit() {
                return Ok(());
            }
            let decoded = self.decode_step()?;
            let prefilled = self.prefill_step()?;
            if !decoded && !prefilled {
                self.shared.wait_for_readers();
            }
        }
    }

    /// Reads the beginning of all chats before the first of them comes: one pass.
    fn read_common(&mut self) -> Result<(), String> {
        let known = 0..self.model.vocab().n_tokens().cast_unsigned();
        let most = PASS_TOKENS_MAX.min(self.context_tokens - 1);
        self.common.truncate(most);
        if self.common.is_empty() || !self.common.iter().all(|token| known.contains(token)) {
            self.common.clear();
            return Ok(());
        }
        self.batch.clear();
        for (position, token) in self.common.iter().enumerate() {
            add(&mut self.batch, *token, position, 0, false)?;
        }
        self.pass()?;
        if let Some(place) = self.places.first_mut() {
            place.held.clone_from(&self.common);
        }
        Ok(())
    }

    /// Ends sequences whose reader has gone.
    fn free_the_left(&mut self) {
        for place in 0..self.sequences.len() {
            if self.sequences[place].as_ref().is_some_and(Sequence::is_left) {
                self.free(place);
            }
        }
    }

    /// Frees a place, which keeps what it holds.
    fn free(&mut self, place: usize) {
        if self.sequences[place].take().is_some() {
            self.places[place].busy = false;
            self.shared.running.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Frees a sequence's place, then tells its reader, who so finds it free.
    fn end(&mut self, place: usize, last: Piece) {
        let sender = self.sequences[place].as_ref().map(|sequence| sequence.sender().clone());
        self.free(place);
        if let Some(sender) = sender {
            let _ = sender.try_send(last);
        }
    }

    /// Gives free places to those who wait; waits itself while there is nothing to do. False when
    /// the engine is to stop.
    fn admit(&mut self) -> bool {
        loop {
            let running = self.sequences.iter().flatten().count();
            let has_free = running < self.sequences.len();
            match self.shared.next(has_free, running > 0) {
                Next::Stop => return false,
                Next::Nothing => return true,
                Next::Job(job) => {
                    let sender = job.sender.clone();
                    let copied = match Sequence::new(job, self.model, self.context_tokens) {
                        Ok(sequence) => self.place(sequence),
                        Err(last) => self.turn_away(&sender, last),
                    };
                    // The others who wait come with the next step.
                    if copied {
                        return true;
                    }
                }
            }
        }
    }

    /// Puts a sequence where most of it is cached. True if another place had to be copied.
    fn place(&mut self, mut sequence: Sequence) -> bool {
        let chosen = choose(&self.places, sequence.tokens(), sequence.scope(), &self.common);
        let Some(Choice { place, cached, copy_from }) = chosen else {
            // There is a free place, or no job would have been taken.
            let reason = "the engine has no room; ask again".to_owned();
            return self.turn_away(sequence.sender(), Piece::Failed { reason });
        };
        let cached = self.prepare(place, cached, copy_from);
        self.taken += 1;
        let held = sequence.tokens()[..cached].to_vec();
        self.places[place] = Place { held, scope: sequence.scope(), taken: self.taken, busy: true };
        sequence.found(cached);
        self.sequences[place] = Some(sequence);
        copy_from.is_some()
    }

    /// Ends a job that took no place; nothing was copied for it.
    fn turn_away(&self, sender: &mpsc::Sender<Piece>, last: Piece) -> bool {
        // A job is counted as running from the moment it leaves the queue.
        self.shared.running.fetch_sub(1, Ordering::Relaxed);
        // The channel is new, so there is room; a reader that has gone needs no answer.
        let _ = sender.try_send(last);
        false
    }

    /// Leaves the first `cached` tokens of `copy_from` or of the place itself in the place; gives
    /// how many are there.
    fn prepare(&mut self, place: usize, cached: usize, copy_from: Option<usize>) -> usize {
        let id = |place: usize| u32::try_from(place).ok();
        if let Some((from, to)) = copy_from.and_then(id).zip(id(place)) {
            let ids = (from.cast_signed(), to.cast_signed());
            // Places are at most 32, and the copy is of the whole place.
            let _ = self.context.copy_kv_cache_seq(ids.0, ids.1, None, None);
        }
        let keep = u32::try_from(cached).ok();
        if cached > 0 && self.context.clear_kv_cache_seq(id(place), keep, None) == Ok(true) {
            return cached;
        }
        // Removing a whole sequence always succeeds.
        let _ = self.context.clear_kv_cache_seq(id(place), None, None);
        0
    }

    /// One token for each running sequence whose reader keeps up. False if there is none.
    fn decode_step(&mut self) -> Result<bool, String> {
        self.batch.clear();
        let mut places = Vec::new();
        for (place, sequence) in self.sequences.iter().enumerate() {
            let Some(sequence) = sequence
                .as_ref()
                .filter(|sequence| !sequence.is_prefilling() && sequence.has_room())
            else {
                continue;
            };
            // The token that was delivered last is the only one that is not in the cache.
            let position = sequence.in_cache();
            let Some(token) = sequence.tokens().get(position) else { continue };
            add(&mut self.batch, *token, position, place, true)?;
            places.push(place);
        }
        if places.is_empty() {
            return Ok(false);
        }
        self.pass()?;
        for (row, place) in places.into_iter().enumerate() {
            self.read(place, 1);
            self.choose(place, row);
        }
        Ok(true)
    }

    /// The next part of one prompt. False if no sequence has any left.
    fn prefill_step(&mut self) -> Result<bool, String> {
        let count = self.sequences.len();
        let waiting =
            |place: &usize| self.sequences[*place].as_ref().is_some_and(Sequence::is_prefilling);
        let next = (0..count).map(|i| (self.turn + i) % count).find(waiting);
        let Some((place, sequence)) =
            next.and_then(|place| Some((place, self.sequences[place].as_ref()?)))
        else {
            return Ok(false);
        };
        self.turn = place + 1;
        self.batch.clear();
        let given = sequence.given_tokens();
        let start = sequence.in_cache();
        let end = (start + PASS_TOKENS_MAX).min(given);
        for (position, token) in sequence.tokens().iter().enumerate().take(end).skip(start) {
            add(&mut self.batch, *token, position, place, position + 1 == given)?;
        }
        self.pass()?;
        self.read(place, end - start);
        self.shared.prompt_tokens_total.fetch_add((end - start) as u64, Ordering::Relaxed);
        if end == given {
            self.choose(place, end - start - 1);
        }
        Ok(true)
    }

    fn pass(&mut self) -> Result<(), String> {
        self.context
            .decode(&mut self.batch)
            .map_err(|error| format!("the engine failed in a step: {error}; restart the node"))
    }

    /// Notes that the next `count` tokens of a sequence are in the cache.
    fn read(&mut self, place: usize, count: usize) {
        if let Some(sequence) = self.sequences[place].as_mut() {
            let (start, end) = (sequence.in_cache(), sequence.in_cache() + count);
            self.places[place].held.extend_from_slice(&sequence.tokens()[start..end]);
            sequence.read(end);
        }
    }

    /// Chooses a sequence's next token from row `row` of the last pass, and delivers it.
    fn choose(&mut self, place: usize, row: usize) {
        let Some(sequence) = self.sequences[place].as_mut() else {
            return;
        };
        let logits = self.context.get_logits_ith(i32::try_from(row).unwrap_or(i32::MAX));
        let before = sequence.tokens().len();
        let last = sequence.advance(self.model, logits);
        let produced = (sequence.tokens().len() - before) as u64;
        self.shared.completion_tokens_total.fetch_add(produced, Ordering::Relaxed);
        if let Some(last) = last {
            self.end(place, last);
        }
    }

    /// Tells every reader that nothing more comes.
    pub(super) fn end_all(&mut self, reason: &str) {
        let failed = || Piece::Failed { reason: reason.to_owned() };
        for job in self.shared.stop() {
            let _ = job.sender.try_send(failed());
        }
        for sequence in self.sequences.iter_mut().filter_map(Option::take) {
            let _ = sequence.sender().try_send(failed());
        }
        self.shared.running.store(0, Ordering::Relaxed);
    }
}

fn add(
    batch: &mut LlamaBatch<'_>,
    token: u32,
    position: usize,
    place: usize,
    logits: bool,
) -> Result<(), String> {
    let position = i32::try_from(position).map_err(|_| "a position above 2^31")?;
    let place = i32::try_from(place).map_err(|_| "a sequence above 2^31")?;
    let token = LlamaToken(token.cast_signed());
    batch.add(token, position, &[place], logits).map_err(|error| error.to_string())
}
