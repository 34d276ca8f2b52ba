//! The answers of one request: each a job of its own, and all of them together.

use core::pin::Pin;
use core::task::{Context, Poll};

use futures_util::future::{poll_fn, select_all};
use tirami_core::Trm;
use tirami_infer::calls::{CallReader, Said};
use tirami_infer::engine::{Failure, Generation, Piece, TokenLogprobs};
use tirami_ledger::documents::FinishReason;
use tirami_sdk::types::TiramiInfo;
use tokio::sync::oneshot;

use super::form::{Ended, Finished, News};
use super::job::Charged;
use super::moved::{Elsewhere, Found};
use super::running::Running;
use super::{Head, alone, broken, finish_name, finish_of, mesh_error};
use crate::http::error::ApiError;
use crate::mesh::{RouteError, Served, Started};

/// One answer on its way.
pub(super) struct Choice {
    pub(super) job: Running,
    /// None once it has ended, and while another node is looked for.
    generation: Option<Generation>,
    /// Who may answer when this node's engine gives it up, with the prompt's tokens.
    elsewhere: Option<(Elsewhere, u32)>,
    /// The search for them.
    search: Option<oneshot::Receiver<Found>>,
    /// The model of the node that was found, until that is told.
    served: Option<Served>,
    /// The owner's word that making it there waits for.
    waits_for: Option<RouteError>,
    /// Whether it is the first answer to its subject; in the usage this one reads the prompt.
    is_first: bool,
    /// Prompt tokens that were in the cache of this node's engine.
    cached: u32,
    /// Completion tokens produced so far.
    pub(super) tokens: u32,
    pub(super) finish: FinishReason,
    /// What kind of failure ended it, where its engine says so.
    failure: Option<Failure>,
    /// The stop text that ended it, by its place.
    stop: Option<u32>,
    /// Its time was up before its end.
    pub(super) is_cut: bool,
    /// Of tokens whose text is held back.
    likely: Vec<TokenLogprobs>,
    /// Of the prompt's tokens, where they are wanted, until they are told.
    scored: Vec<TokenLogprobs>,
    /// Finds calls of tools in the text; none where no tool may be called.
    reader: Option<CallReader>,
}

/// What comes next of one answer.
pub(super) enum Step {
    /// What became certain, which may be nothing.
    Told(News),
    /// Its engine failed.
    Failed,
    /// The kernel ordered the end of one of the jobs, which ends all.
    Ordered,
}

impl Choice {
    /// Whether there was no room for it where it should have been computed.
    pub(super) fn had_no_room(&self) -> bool {
        matches!(self.failure, Some(Failure::Full | Failure::FullFor { .. }))
    }

    pub(super) fn new(job: Running, generation: Generation) -> Self {
        Self {
            job,
            generation: Some(generation),
            elsewhere: None,
            search: None,
            served: None,
            waits_for: None,
            is_first: true,
            cached: 0,
            tokens: 0,
            finish: FinishReason::Failed,
            failure: None,
            stop: None,
            is_cut: false,
            likely: Vec::new(),
            scored: Vec::new(),
            reader: None,
        }
    }

    /// Where this node's engine gives up an answer to a prompt of so many tokens before it makes
    /// anything of it, it goes on elsewhere.
    pub(super) fn or(self, elsewhere: Option<Elsewhere>, prompt_tokens: u32) -> Self {
        let elsewhere = elsewhere.map(|elsewhere| (elsewhere, prompt_tokens));
        Self { elsewhere, ..self }
    }

    /// The answer may have calls of these tools; none for no calls.
    pub(super) fn with_tools(self, names: &[String]) -> Self {
        let reader = (!names.is_empty()).then(|| CallReader::new(names.to_vec()));
        Self { reader, ..self }
    }

    /// The answer's place among those to its subject.
    pub(super) fn at(self, index: u32) -> Self {
        Self { is_first: index == 0, ..self }
    }

    /// Why the answer ended, as the interface says it.
    fn finished(&self) -> Finished {
        // A stop text within a call leaves one that cannot be made.
        let has_calls =
            self.reader.as_ref().is_some_and(|of| of.calls() > 0 && !of.is_within_call());
        let reason = match finish_name(self.finish) {
            "stop" if has_calls => "tool_calls",
            name => name,
        };
        Finished { reason, stop: self.stop }
    }

    fn took(&mut self, piece: Option<Piece>) -> Step {
        if let Some(generation) = &self.generation {
            self.cached = generation.cached_tokens();
            self.job.cached(self.cached);
            self.stop = generation.stopped_by();
            self.scored.extend(generation.take_prompt_logprobs());
        }
        match piece {
            Some(Piece::Delta { tokens, text, logprobs }) => {
                self.elsewhere = None;
                self.tokens = self.tokens.max(self.job.produced(&tokens));
                self.likely.extend(logprobs);
                let said = self.read(&text);
                self.certain(said)
            }
            Some(Piece::End { text, finish }) => {
                self.generation = None;
                self.finish = finish_of(finish);
                let mut said = self.read(&text);
                said.extend(self.reader.iter_mut().flat_map(CallReader::finish));
                self.certain(said)
            }
            Some(Piece::Failed { reason }) => {
                tracing::warn!(reason, "the engine failed");
                self.failure = self.generation.take().and_then(|ended| ended.failure().cloned());
                if self.is_moving(reason) { Step::Told(News::default()) } else { Step::Failed }
            }
            None => {
                self.generation = None;
                Step::Failed
            }
        }
    }

    /// Whether another node is looked for now: this node's engine had no room for the answer, and
    /// others may make it. Nothing of it was delivered, so they make all of it.
    fn is_moving(&mut self, reason: String) -> bool {
        if !self.had_no_room() || self.tokens > 0 {
            return false;
        }
        let Some((elsewhere, prompt_tokens)) = self.elsewhere.take() else { return false };
        match core::mem::replace(&mut self.job, Running::Moving) {
            Running::Here(job) => {
                self.search = Some(elsewhere.search(*job, (prompt_tokens, reason)));
                true
            }
            other => {
                self.job = other;
                false
            }
        }
    }

    /// What came of the search. Where nobody was found, that there was no room is the reason to
    /// tell, unless the owner's word is all that is missing: who asks has to hear of that.
    fn found(&mut self, found: Option<Found>) -> Step {
        self.search = None;
        match found {
            Some(Ok(Started { job, generation, served, .. })) => {
                (self.job, self.generation) = (Running::Mesh(job), Some(generation));
                self.served = Some(served);
                self.failure = None;
                Step::Told(News::default())
            }
            Some(Err(error)) => {
                tracing::info!(%error, "no other node answers either");
                self.waits_for = Some(error).filter(RouteError::waits_for_the_owner);
                Step::Failed
            }
            None => Step::Failed,
        }
    }

    /// Its job, and where what comes of it comes from.
    fn parts(&mut self) -> (&Running, Flow<'_>) {
        let Self { job, generation, search, .. } = self;
        (job, Flow { generation, search })
    }

    fn has_ended(&self) -> bool {
        self.generation.is_none() && self.search.is_none()
    }

    fn read(&mut self, text: &str) -> Vec<Said> {
        match &mut self.reader {
            Some(reader) => reader.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Said::Text(text.to_owned())],
        }
    }

    /// What is held back may be a stop text, which is no part of the answer.
    fn certain(&mut self, said: Vec<Said>) -> Step {
        let mut likely = core::mem::take(&mut self.scored);
        if !said.is_empty() {
            likely.append(&mut self.likely);
        }
        Step::Told(News { said, likely })
    }
}

/// What came of one answer.
enum Came {
    /// From whoever makes it; nothing where that is gone.
    Piece(Option<Piece>),
    /// The search for another node is over.
    Found(Box<Option<Found>>),
}

/// Where what comes of one answer comes from.
struct Flow<'a> {
    generation: &'a mut Option<Generation>,
    search: &'a mut Option<oneshot::Receiver<Found>>,
}

impl Flow<'_> {
    /// What comes next; nothing comes of an answer that has ended.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Came> {
        if let Some(search) = self.search.as_mut() {
            return Pin::new(search).poll(context).map(|found| Came::Found(Box::new(found.ok())));
        }
        match self.generation.as_mut() {
            Some(generation) => generation.pieces.poll_recv(context).map(Came::Piece),
            None => Poll::Pending,
        }
    }
}

/// All answers of a request.
pub(super) struct Choices {
    pub(super) all: Vec<Choice>,
    /// Whose turn it is to be looked at first.
    turn: usize,
}

impl Choices {
    pub(super) fn new(all: Vec<Choice>) -> Self {
        Self { all, turn: 0 }
    }

    /// Waits until the orders are durable, so that answers may be handed over.
    pub(super) async fn synced(&mut self) -> Result<(), ApiError> {
        for choice in &mut self.all {
            choice.job.synced().await?;
        }
        Ok(())
    }

    /// What comes next, and of which answer; none when all have ended. Waiting for it can be given
    /// up without loss.
    pub(super) async fn next(&mut self) -> Option<(usize, Step)> {
        if self.all.iter().all(Choice::has_ended) {
            return None;
        }
        let (count, first) = (self.all.len(), self.turn);
        let (jobs, mut flows): (Vec<_>, Vec<_>) = self.all.iter_mut().map(Choice::parts).unzip();
        let came = poll_fn(|context| {
            for index in (first..first + count).map(|index| index % count) {
                if let Poll::Ready(came) = flows[index].poll(context) {
                    return Poll::Ready((index, came));
                }
            }
            Poll::Pending
        });
        let (index, came) = tokio::select! {
            biased;
            () = cancelled(jobs) => return Some((0, Step::Ordered)),
            came = came => came,
        };
        self.turn = (index + 1) % count;
        let choice = &mut self.all[index];
        let step = match came {
            Came::Piece(piece) => choice.took(piece),
            Came::Found(found) => choice.found(*found),
        };
        Some((index, step))
    }

    /// The model that makes the first answer from here on, where that moved to another node.
    pub(super) fn moved(&mut self) -> Option<Served> {
        self.all.first_mut()?.served.take()
    }

    /// Waits until the kernel orders the end of one of them, which ends all.
    pub(super) async fn cancelled(&self) {
        cancelled(self.all.iter().map(|choice| &choice.job)).await;
    }

    /// Completion tokens of all answers.
    pub(super) fn tokens(&self) -> u32 {
        self.all.iter().fold(0, |sum, choice| sum.saturating_add(choice.tokens))
    }

    /// Prompt tokens that were cached, of each subject once.
    fn cached(&self) -> u32 {
        let first = self.all.iter().filter(|choice| choice.is_first);
        first.fold(0, |sum, choice| sum.saturating_add(choice.cached))
    }

    /// Ends, for want of time, what has not ended; of each answer `certain` tokens count. False
    /// when none of them is complete or has any.
    pub(super) fn cut(&mut self, certain: &[u32]) -> bool {
        for (choice, certain) in self.all.iter_mut().zip(certain) {
            if choice.generation.take().is_some() || choice.search.take().is_some() || choice.is_cut
            {
                choice.tokens = *certain;
                choice.finish = FinishReason::Length;
                choice.is_cut = true;
            }
        }
        self.tokens() > 0 || self.all.iter().any(|choice| !choice.is_cut)
    }

    /// Whether one of them may still have a place of this node's engine.
    pub(super) fn have_a_place(&self) -> bool {
        let has =
            |choice: &Choice| choice.generation.is_some() && matches!(choice.job, Running::Here(_));
        self.all.iter().any(has)
    }

    /// Frees the engine before anything else is waited for.
    pub(super) fn stop(&mut self) {
        self.all.iter_mut().for_each(|choice| {
            (choice.generation, choice.search) = (None, None);
        });
    }

    /// Whether what failed is held against the agent's jobs: not where there was no room.
    pub(super) fn has_failed(&self) -> bool {
        !self.all.iter().any(Choice::had_no_room)
    }

    /// Why the answers broke off.
    pub(super) fn failure(&self) -> ApiError {
        if let Some(error) = self.all.iter().find_map(|choice| choice.waits_for.as_ref()) {
            let answers = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
            return alone(mesh_error(error), answers);
        }
        // The others of them may only not have ended yet.
        if let Some(failure) = self.all.iter().find_map(|choice| choice.failure.clone()) {
            return failure.into();
        }
        let failed = self.all.iter().find(|choice| choice.finish == FinishReason::Failed);
        failed.map_or_else(broken, |choice| choice.job.failure())
    }

    /// Charges complete answers.
    pub(super) async fn finish(self, head: &Head) -> Result<Ended, ApiError> {
        let usage = head.usage(self.tokens(), self.cached());
        let finishes = self.all.iter().map(Choice::finished).collect();
        let is_cut = self.all.iter().any(|choice| choice.is_cut);
        let charged = self.charge().await?;
        let ended_by = is_cut.then(|| "deadline".to_owned());
        Ok(Ended { finishes, usage, info: TiramiInfo { ended_by, ..head.info(&charged) } })
    }

    async fn charge(self) -> Result<Charged, ApiError> {
        let mut sum: Option<Result<Charged, ApiError>> = None;
        for choice in self.all {
            let charged = if choice.is_cut && choice.tokens == 0 {
                // Of the others some were delivered; nothing of this one, so nothing more is owed.
                match choice.job.void(false).await {
                    Some(charged) => Ok(charged),
                    None => continue,
                }
            } else {
                choice.job.finish(choice.tokens, choice.finish).await
            };
            sum = Some(match sum {
                None => charged,
                Some(sum) => sum.and_then(|sum| charged.map(|charged| sum.and(charged))),
            });
        }
        sum.unwrap_or_else(|| Err(broken()))
    }

    /// Ends answers of which nothing was handed over. Gives what stays charged: other nodes were
    /// paid for what they had read or made.
    pub(super) async fn void(mut self, failed: bool) -> Trm {
        self.stop();
        let mut sum = Trm::ZERO;
        for choice in self.all {
            let charged = choice.job.void(failed).await;
            sum = sum.saturating_add(charged.map_or(Trm::ZERO, |charged| charged.amount));
        }
        sum
    }
}

/// What error messages say where that is so.
const NOTHING: &str = "nothing was charged;";

/// The error of a request of which nothing was handed over and for which other nodes were paid.
pub(super) fn after(error: ApiError, charged: Trm) -> ApiError {
    if charged.is_zero() {
        return error;
    }
    let paid = format!("{charged} TRM were charged for what other nodes had read or made by then");
    let message = &error.body().error.message;
    let message = match message.contains(NOTHING) {
        true => message.replace(NOTHING, &format!("{paid};")),
        false => format!("{message}; in all {paid}"),
    };
    error.reworded(message)
}

/// The same where it is not known yet: of several answers one may be done while another waits for
/// whoever takes it.
pub(super) fn after_others(error: ApiError) -> ApiError {
    let message = &error.body().error.message;
    let paid = "nothing is charged but what other nodes had read by then;";
    let message = message.replace(NOTHING, paid);
    error.reworded(message)
}

async fn cancelled(jobs: impl IntoIterator<Item = &Running>) {
    select_all(jobs.into_iter().map(|job| Box::pin(job.cancelled()))).await;
}

/// Names a call: the same in all pieces of an answer, and in no other answer.
pub(in crate::http) fn call_id(answer: &str, choice: usize, call: u32) -> String {
    let job: String = answer.chars().filter(char::is_ascii_hexdigit).rev().take(20).collect();
    format!("call_{job}_{choice}_{call}")
}
