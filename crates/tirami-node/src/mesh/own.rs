//! This node's own engine as one of those that make an answer: when a provider is lost, or none
//! takes the job, a node that has the model goes on itself.

use std::time::Duration;

use bytes::Bytes;
use tirami_core::{AgentId, DocumentId, Flop, JobId, PartyId, Trm};
use tirami_infer::engine::{Finish, Generation, Piece};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, FinishJob, Outcome, StartJob};
use tirami_ledger::documents::FinishReason;
use tirami_proto::InvalidRequest;

use super::ask::Invalid;
use super::remote::{Charge, Next, Signing, Unbegun, signed};
use super::retold::{Told, text_of};
use super::source::ordered;
use super::stream_digest;
use crate::handle::{Handle, JobToken, SubmitError};
use crate::http::{ApiError, Asked, Kind, understand};
use crate::models::{Lease, Model, Models};

/// A voucher is signed with the first delivered token and then after so many more.
const VOUCHER_TOKENS: u32 = 32;

/// The engine of a node that has the model which is asked for, where the request lets it answer.
#[derive(Debug, Clone)]
pub(crate) struct OwnEngine {
    pub(crate) models: Models,
    pub(crate) model: Model,
}

impl OwnEngine {
    /// Whether it is in memory and has nothing to do.
    pub(super) fn rests(&self) -> bool {
        let load = self.model.load();
        self.model.is_loaded() && load.running == 0 && load.queued == 0
    }

    /// The engine, loaded first where it is not in memory.
    pub(super) async fn lease(&self) -> Result<Lease, Unbegun> {
        let leased = self.models.lease(&self.model, None).await;
        leased.map_err(|error| refused("engine_unavailable", &error.to_string()))
    }

    /// The request as the engine runs it, the answer so far before it.
    pub(super) async fn understood(
        engine: &Lease,
        (kind, body): (Kind, Bytes),
        (resumed, agent): (Vec<u32>, Option<AgentId>),
    ) -> Result<Asked, Unbegun> {
        let engine = engine.clone();
        // A long text keeps a core busy for a while; no other job may wait for it.
        let understood =
            tokio::task::spawn_blocking(move || understand(&*engine, kind, &body)).await;
        let mut asked = match understood {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => return Err(not_understood(&error)),
            Err(_) => return Err(refused("prepare_failed", "the prompt could not be prepared")),
        };
        // What an answer tells of its prompt was told when it began.
        asked.sampling.scores_prompt &= resumed.is_empty();
        asked.prompt.resumed = resumed;
        asked.prompt.scope = scope(agent);
        asked.prompt.contributes = true;
        Ok(asked)
    }
}

/// Whose cached prompts a request may use: an agent's own, so that the time an answer takes tells
/// nobody what others asked.
pub(crate) fn scope(agent: Option<AgentId>) -> u64 {
    agent.map_or(0, |agent| {
        agent.as_bytes().iter().take(8).fold(0, |scope, byte| (scope << 8) | u64::from(*byte))
    })
}

/// A job that this node's engine does.
pub(super) struct OwnAttempt {
    handle: Handle,
    job: JobId,
    order: DocumentId,
    pub(super) prompt_tokens: u32,
    build: String,
    generation: Option<Generation>,
    /// The text of the prompt, empty where it is not asked for, until what is asked of the prompt
    /// is told; none where nothing is.
    retold: Option<Vec<u8>>,
    /// What came from the engine before it was.
    held: Option<Piece>,
    /// It is to read its prompt and to make nothing.
    only_reads: bool,
    /// Ids of the tokens that this engine made.
    pub(super) tokens: Vec<u32>,
    /// Cancelled when the kernel orders the end.
    pub(super) token: JobToken,
    delivered: u32,
    vouched: u32,
    signing: Option<Signing>,
    finish: FinishReason,
}

impl OwnAttempt {
    /// Holds the maximum, signs the order, and starts the engine.
    pub(super) async fn begin(
        handle: &Handle,
        engine: &Lease,
        (actor, start, asked, seed): (Actor, StartJob, Asked, u32),
    ) -> Result<Self, Unbegun> {
        let token = handle.job_token(start.job);
        let (job, prompt_tokens) = (start.job, start.prompt_tokens);
        let Asked { prompt, mut sampling, retold, .. } = asked;
        let is_told = retold.is_anything() && prompt.resumed.is_empty();
        let retold = is_told.then(|| match retold.text {
            true => text_of(&**engine, &prompt.tokens),
            false => Vec::new(),
        });
        sampling.seed = seed;
        // The engine counts what it resumes.
        sampling.completion_max = start.completion_max.saturating_add(count(&prompt.resumed));
        let only_reads = start.completion_max == 0;
        let order = ordered(handle, actor, Command::StartJob(start)).await?.id();
        let mut own = Self {
            handle: handle.clone(),
            job,
            order,
            prompt_tokens,
            build: engine.model().build.clone(),
            generation: None,
            retold,
            held: None,
            only_reads,
            tokens: Vec::new(),
            token,
            delivered: 0,
            vouched: 0,
            signing: None,
            finish: FinishReason::Cancelled,
        };
        match engine.start(prompt, sampling).await {
            Ok(generation) => {
                own.generation = Some(generation);
                Ok(own)
            }
            Err(error) => {
                own.end(0, false).await;
                Err(refused("engine_busy", &error.to_string()))
            }
        }
    }

    pub(super) const fn job(&self) -> JobId {
        self.job
    }

    pub(super) const fn provider(&self) -> PartyId {
        self.handle.party()
    }

    /// What comes next. Waiting for it can be given up without loss.
    pub(super) async fn next(&mut self) -> Next {
        let Some(generation) = &mut self.generation else {
            return Next::Failed { reason: "this node's engine was stopped".to_owned() };
        };
        loop {
            let piece = match self.held.take() {
                Some(held) => Some(held),
                None => tokio::select! {
                    biased;
                    () = self.token.cancelled() => return Next::Ordered,
                    signed = signed(&mut self.signing) => {
                        self.signing = None;
                        note(&mut self.vouched, signed);
                        continue;
                    }
                    piece = generation.pieces.recv() => piece,
                },
            };
            if matches!(piece, Some(Piece::Delta { .. } | Piece::End { .. }))
                && let Some(text) = self.retold.take()
            {
                self.held = piece;
                return Next::Told(Told { text, likely: generation.take_prompt_logprobs() });
            }
            return match piece {
                Some(Piece::Delta { tokens, text, logprobs }) => {
                    self.tokens.extend_from_slice(&tokens);
                    Next::Tokens { tokens, text, logprobs }
                }
                Some(Piece::End { text, finish }) => {
                    self.finish = match finish {
                        Finish::Stop => FinishReason::Stop,
                        Finish::Length => FinishReason::Length,
                    };
                    let stop = generation.stopped_by();
                    Next::End { text, finish: self.finish, receipt: None, stop }
                }
                Some(Piece::Failed { reason }) => {
                    let invalid = generation.failure().and_then(Invalid::of);
                    invalid.map_or(Next::Failed { reason }, Next::Invalid)
                }
                None => Next::Failed { reason: "this node's engine ended".to_owned() },
            };
        }
    }

    /// The client has taken `delivered` of this engine's tokens: signs for them now and then.
    pub(super) fn deliver(&mut self, delivered: u32) {
        self.delivered = self.delivered.max(delivered.min(count(&self.tokens)));
        let due = if self.vouched == 0 { 1 } else { self.vouched + VOUCHER_TOKENS };
        if self.delivered < due || self.signing.is_some() {
            return;
        }
        let command = Command::Deliver {
            job: self.job,
            completion_tokens: self.delivered,
            stream: stream_digest(&self.tokens[..self.delivered as usize]),
            prompt_tokens: None,
        };
        self.signing = Some(Box::pin(self.handle.submit(Actor::Node, command)));
    }

    /// Ends the job and charges `delivered` tokens; nothing delivered, nothing owed.
    pub(super) async fn finish(mut self, delivered: u32, ended: String) -> Charge {
        // A voucher must not come to the ledger after the end.
        if self.signing.is_some() {
            let last = signed(&mut self.signing).await;
            note(&mut self.vouched, last);
        }
        let all = count(&self.tokens);
        // What is read for is delivered as one.
        let is_read = self.only_reads && delivered > 0;
        let delivered = delivered.min(all).max(self.vouched);
        if delivered < all {
            self.finish = FinishReason::Cancelled;
        }
        if is_read {
            self.finish = FinishReason::Stop;
        }
        let outcome = self.end(delivered, is_read).await;
        let charge = Charge {
            provider: self.provider(),
            trade: self.order,
            flop: Flop::ZERO,
            amount: Trm::ZERO,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: 0,
            available: None,
            ended,
        };
        match outcome {
            Some(Outcome::JobFinished { trade, flop, amount, fee, available, .. }) => Charge {
                trade,
                flop,
                amount: amount.saturating_add(fee),
                completion_tokens: delivered,
                available: Some(available),
                ..charge
            },
            _ => charge,
        }
    }

    async fn end(&mut self, delivered: u32, is_read: bool) -> Option<Outcome> {
        let cached = self.generation.take().map_or(0, |generation| generation.cached_tokens());
        let command = match delivered {
            0 if !is_read => Command::VoidJob { job: self.job, failed: false },
            completion_tokens => Command::FinishJob(FinishJob {
                job: self.job,
                cached_tokens: cached.min(self.prompt_tokens),
                completion_tokens,
                output: stream_digest(&self.tokens[..completion_tokens as usize]),
                build: self.build.clone(),
                finish: self.finish,
            }),
        };
        match self.handle.insist(Actor::Node, command).await {
            Ok(outcome) => Some(outcome),
            // The kernel has charged or voided it already.
            Err(SubmitError::Rejected(Rejection::UnknownJob { .. })) => None,
            Err(error) => {
                tracing::error!(job = %self.job, %error, "a job could not be charged");
                None
            }
        }
    }
}

/// Notes what a voucher signed for; the next one is cumulative, so a lost one costs nothing.
fn note(vouched: &mut u32, signed: Result<Outcome, SubmitError>) {
    match signed {
        Ok(Outcome::VoucherSigned { voucher }) => *vouched = (*vouched).max(voucher.body().tokens),
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "a voucher was not signed"),
    }
}

/// What a caller by HTTP would be told.
fn not_understood(error: &ApiError) -> Unbegun {
    let at_fault = error.status().is_client_error();
    let error = &error.body().error;
    let code = error.code.clone().unwrap_or_else(|| "invalid_request".to_owned());
    let invalid = at_fault.then(|| InvalidRequest { param: error.param.clone() });
    let (message, kept) = (error.message.clone(), Duration::ZERO);
    Unbegun::Refused { code, message, invalid, kept }
}

fn refused(code: &str, message: &str) -> Unbegun {
    let (code, message) = (code.to_owned(), message.to_owned());
    Unbegun::Refused { code, message, invalid: None, kept: Duration::ZERO }
}

fn count(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}
