//! Which sequences take part in the next step, and what becomes of them.
//!
//! A step gives each running sequence its next token, in one pass or in several as [`Pace`] says,
//! then reads at most [`PASS_TOKENS_MAX`] given tokens of one waiting sequence, and copies at most
//! one place of the cache to another. So a long prompt delays running streams by one short pass
//! and no more, and a token's keys and values are the same bits wherever a prompt is cut. Where
//! more prompts wait than streams run, as many passes come between two tokens as prompts wait for
//! each stream, at most [`PROMPT_PASSES_MAX`]. A picture is one piece: streams wait until it is
//! encoded and read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::mpsc;

use super::backend::{PASS_TOKENS_MAX, Setting};
use super::lookup::{Guesses, Toll};
use super::pace::Pace;
use super::places::{Choice, Place, choose, copy_min};
use super::sequence::Sequence;
use super::vision::{Reading, Vision};
use super::worker::{Next, Shared};
use crate::engine::Piece;

/// Values of `general.file_type` with which short passes were measured to give the same bits as
/// single tokens: `Q4_0` and `Q4_1`.
const EXACT_FILE_TYPES: [u32; 2] = [2, 3];

/// Passes over prompts between two tokens of the running streams at most.
const PROMPT_PASSES_MAX: usize = 4;

/// The engine thread's state.
pub(super) struct Steps<'a> {
    model: &'a LlamaModel,
    /// What reads pictures; none where the model reads none.
    vision: Option<Arc<Vision>>,
    context: LlamaContext<'a>,
    batch: LlamaBatch<'a>,
    /// Tokens a pass may have while no stream runs.
    pass_tokens: usize,
    context_tokens: usize,
    shared: &'a Shared,
    /// What each place of the context holds.
    places: Vec<Place>,
    /// What runs in each place.
    sequences: Vec<Option<Sequence>>,
    /// How long passes take.
    pace: Pace,
    /// What guesses take.
    toll: Toll,
    /// Prompts are read in the order they came, every other time; else the one that has least left.
    oldest_is_next: bool,
    /// Places taken since the start.
    taken: u64,
    /// What every chat begins with.
    common: Vec<u32>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        (model, vision): (&'a LlamaModel, Option<Arc<Vision>>),
        context: LlamaContext<'a>,
        setting: Setting,
        shared: &'a Shared,
        common: Vec<u32>,
    ) -> Self {
        Self {
            model,
            vision,
            context,
            batch: LlamaBatch::new(setting.pass_tokens(), 1),
            pass_tokens: setting.pass_tokens(),
            context_tokens: setting.context_tokens as usize,
            shared,
            places: (0..setting.sequences).map(|_| Place::default()).collect(),
            sequences: (0..setting.sequences).map(|_| None).collect(),
            pace: Pace::default(),
            toll: Toll::new(if can_guess(model, &setting) {
                setting.guesses
            } else {
                Guesses::Never
            }),
            oldest_is_next: true,
            taken: 0,
            common,
        }
    }

    /// Steps until the engine is stopped.
    pub(super) fn run(&mut self) -> Result<(), String> {
        self.read_common()?;
        while self.step()? {}
        Ok(())
    }

    /// One step; waits while there is nothing to do. False when the engine is to stop.
    fn step(&mut self) -> Result<bool, String> {
        self.free_the_left();
        if !self.admit() {
            return Ok(false);
        }
        let decoded = self.decode_round()?;
        let most = if decoded { PASS_TOKENS_MAX } else { self.pass_tokens };
        let prefilled = self.prefill_step(most)?;
        if decoded && prefilled {
            let passes = self.prompts_for_each_stream();
            for _ in 1..passes {
                if self.is_picture_next() {
                    break;
                }
                self.prefill_step(most)?;
            }
        }
        if !decoded && !prefilled {
            self.shared.wait_for_readers();
        }
        Ok(true)
    }

    /// How many prompts wait for each stream that runs, at most [`PROMPT_PASSES_MAX`].
    fn prompts_for_each_stream(&self) -> usize {
        let all = self.sequences.iter().flatten();
        let (waiting, running): (Vec<_>, Vec<_>) = all.partition(|one| one.is_prefilling());
        (waiting.len() / running.len().max(1)).min(PROMPT_PASSES_MAX)
    }

    /// Whether a picture may be read next: it takes longer than many passes.
    fn is_picture_next(&self) -> bool {
        self.sequences.iter().flatten().any(|one| one.is_prefilling() && one.picture().is_some())
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
                    let copied = match Sequence::new(*job, self.model, self.context_tokens) {
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
        let wanted = (sequence.tokens(), sequence.scope());
        let chosen = choose(&self.places, wanted, &self.common, copy_min(self.context_tokens));
        let Some(Choice { place, mut cached, mut copy_from }) = chosen else {
            // There is a free place, or no job would have been taken.
            let reason = "the engine has no room; ask again".to_owned();
            return self.turn_away(sequence.sender(), Piece::Failed { reason });
        };
        if sequence.scores_prompt() {
            sequence.score(self.model, 0, None);
            (cached, copy_from) = (0, None);
        }
        let cached = self.prepare(place, sequence.before_picture(cached), copy_from);
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

    /// One token or more for each running sequence whose reader keeps up. False if there is none.
    fn decode_round(&mut self) -> Result<bool, String> {
        let is_ready = |sequence: &Sequence| !sequence.is_prefilling() && sequence.has_room();
        let ready = self.sequences.iter().enumerate();
        let ready = ready.filter(|(_, sequence)| sequence.as_ref().is_some_and(is_ready));
        let ready: Vec<usize> = ready.map(|(place, _)| place).collect();
        let mut rest = ready.as_slice();
        while !rest.is_empty() {
            let (group, others) = rest.split_at(self.pace.group(rest.len()));
            match group {
                [place] => self.decode_one(*place)?,
                _ => self.decode_group(group)?,
            }
            rest = others;
        }
        Ok(!ready.is_empty())
    }

    fn decode_group(&mut self, group: &[usize]) -> Result<(), String> {
        self.batch.clear();
        for place in group {
            self.add_newest(*place)?;
        }
        let began = Instant::now();
        self.pass()?;
        self.pace.note(group.len(), began.elapsed());
        for (row, place) in group.iter().enumerate() {
            self.read(*place, 1);
            self.choose(*place, row);
        }
        Ok(())
    }

    /// The next token of one sequence, and those after it that are guessed and chosen.
    fn decode_one(&mut self, place: usize) -> Result<(), String> {
        self.batch.clear();
        self.add_newest(place)?;
        let alone = self.pace.seconds(1).filter(|_| self.toll.allows_any());
        let Some(sequence) = self.sequences[place].as_mut() else { return Ok(()) };
        let guess = alone.map_or_else(Vec::new, |_| sequence.guess(&self.toll));
        self.toll.passed();
        for (position, token) in (sequence.in_cache() + 1..).zip(&guess) {
            add(&mut self.batch, *token, position, place, true)?;
        }
        let began = Instant::now();
        self.pass()?;
        let took = began.elapsed();
        let Some(alone) = alone.filter(|_| !guess.is_empty()) else {
            self.pace.note(1, took);
            self.read(place, 1);
            self.choose(place, 0);
            return Ok(());
        };
        self.toll.note(guess.len(), took.as_secs_f32(), alone);
        let mut kept = 0;
        for row in 0..=guess.len() {
            self.read(place, 1);
            self.choose(place, row);
            let newest = self.sequences[place].as_ref().and_then(|one| one.tokens().last());
            if row == guess.len() || newest != Some(&guess[row]) {
                break;
            }
            kept += 1;
        }
        self.shared.guessed_tokens_total.fetch_add(kept as u64, Ordering::Relaxed);
        // What was guessed wrong leaves the cache, also when the answer ended before it.
        let keep = u32::try_from(self.places[place].held.len()).ok();
        let id = u32::try_from(place).ok();
        match self.context.clear_kv_cache_seq(id, keep, None) {
            Ok(true) => Ok(()),
            _ => Err("the engine cannot forget a guess; restart the node".to_owned()),
        }
    }

    /// Adds the token that was delivered last: the only one that is not in the cache.
    fn add_newest(&mut self, place: usize) -> Result<(), String> {
        let Some(sequence) = &self.sequences[place] else { return Ok(()) };
        let position = sequence.in_cache();
        let Some(token) = sequence.tokens().get(position) else { return Ok(()) };
        add(&mut self.batch, *token, position, place, true)
    }

    /// The next part of one prompt, at most `most` tokens. False if no sequence has any left.
    fn prefill_step(&mut self, most: usize) -> Result<bool, String> {
        let sequences = self.sequences.iter().enumerate();
        let waiting = sequences.filter_map(|(place, sequence)| {
            let left = sequence.as_ref()?.unread_tokens();
            (left > 0).then_some((place, left))
        });
        // Whoever came first goes on at least every other time, so none waits for ever; and a
        // short prompt does not wait for a long one.
        let by_age = |(place, _): &(usize, usize)| self.places[*place].taken;
        let next = if self.oldest_is_next {
            waiting.min_by_key(by_age)
        } else {
            waiting.min_by_key(|one| (one.1, by_age(one)))
        };
        let Some((place, left)) = next else { return Ok(false) };
        self.oldest_is_next = !self.oldest_is_next;
        let Some(sequence) = &self.sequences[place] else { return Ok(false) };
        let scores = sequence.scores_prompt();
        // Each row of logits takes as much memory as the vocabulary has words.
        let most = if scores { most.min(PASS_TOKENS_MAX) } else { most };
        let count = left.min(most).min(sequence.tokens_to_picture());
        if count == 0 {
            return self.read_picture(place);
        }
        self.batch.clear();
        let start = sequence.in_cache();
        for (i, token) in sequence.tokens()[start..start + count].iter().enumerate() {
            add(&mut self.batch, *token, start + i, place, scores || i + 1 == left)?;
        }
        self.pass()?;
        if let Some(sequence) = self.sequences[place].as_ref().filter(|_| scores) {
            for (row, position) in (0..).zip(start + 1..=start + count) {
                let logits = self.context.get_logits_ith(row);
                sequence.score(self.model, position, Some(logits));
            }
        }
        self.read(place, count);
        self.shared.prompt_tokens_total.fetch_add(count as u64, Ordering::Relaxed);
        if count == left {
            self.choose(place, count - 1);
        }
        Ok(true)
    }

    /// The next picture of one prompt, as one piece. False while it has to wait.
    fn read_picture(&mut self, place: usize) -> Result<bool, String> {
        let picture = self.sequences[place].as_ref().and_then(Sequence::picture);
        let Some((picture, vision)) = picture.zip(self.vision.as_deref()) else {
            let reason = "the model reads no pictures".to_owned();
            self.end(place, Piece::Failed { reason });
            return Ok(true);
        };
        let (start, tokens) = (picture.start, picture.tokens);
        match vision.read(&mut self.context, (&picture.image, tokens), (start, place)) {
            Reading::Later => return Ok(false),
            Reading::Done => {
                self.read(place, tokens);
                self.shared.prompt_tokens_total.fetch_add(tokens as u64, Ordering::Relaxed);
            }
            Reading::Failed(reason) => {
                let reason = format!("a picture could not be read: {reason}");
                self.end(place, Piece::Failed { reason });
                // A part of it may be there.
                let keep = u32::try_from(start).ok();
                let id = u32::try_from(place).ok();
                if self.context.clear_kv_cache_seq(id, keep, None) != Ok(true) {
                    return Err("the engine cannot forget a picture; restart the node".to_owned());
                }
            }
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

/// Whether tokens may be guessed: the newest ones can be taken out of the cache without a trace,
/// and in the reproducible setting short passes were measured to give the same bits with the
/// quantisation. In the other setting no bits are promised, and answers are as likely as without,
/// because a guess is kept only where the sampler chooses it.
fn can_guess(model: &LlamaModel, setting: &Setting) -> bool {
    let text = |key: &str| model.meta_val_str(key).ok();
    let file_type = text("general.file_type").and_then(|number| number.parse::<u32>().ok());
    let window = text("general.architecture")
        .and_then(|architecture| text(&format!("{architecture}.attention.sliding_window")));
    let is_measured = file_type.is_some_and(|file_type| EXACT_FILE_TYPES.contains(&file_type));
    let keeps_all = !model.is_recurrent() && !model.is_hybrid() && window.is_none();
    keeps_all && (is_measured || !setting.reproducible) && !setting.on_gpu()
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

#[cfg(test)]
mod tests;
