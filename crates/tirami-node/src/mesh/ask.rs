//! What is asked of the mesh, and what came of it.

use std::collections::BTreeSet;

use bytes::Bytes;
use tirami_core::{Digest, DocumentId, Flop, ModelDigest, ModelShape, Timestamp, Trm};
use tirami_infer::engine::Failure;
use tirami_kernel::scheduler::{Preferences, Query};
use tirami_ledger::command::Actor;

use super::own::OwnEngine;
use super::remote::Charge;
use super::retold::Retold;
use crate::handle::SubmitError;
use crate::http::ApiError;

/// Completion tokens ordered at most where the request names no maximum: providers lend new
/// consumers little.
pub(crate) const UNNAMED_MAX: u32 = 4_096;

/// What is asked of the mesh.
#[derive(Debug, Clone)]
pub(crate) struct MeshAsk {
    pub(crate) actor: Actor,
    /// The HTTP request's path and body; all answers to one request share the body.
    pub(crate) path: &'static str,
    pub(crate) body: Bytes,
    pub(crate) model: ModelDigest,
    /// The model's shape, where this node has the model.
    pub(crate) shape: Option<ModelShape>,
    pub(crate) seed: u32,
    /// Prompt tokens that are paid for at most.
    pub(crate) prompt_max: u32,
    /// Prompt tokens as far as they can be guessed.
    pub(crate) prompt_guess: u32,
    /// Completion tokens at most, if the request says so.
    pub(crate) completion_max: Option<u32>,
    pub(crate) preferences: Preferences,
    /// Digests of the conversation's beginnings, the longest first.
    pub(crate) prefixes: Vec<Digest>,
    /// This node's own engine, where it has the model and the request lets it answer.
    pub(crate) own: Option<OwnEngine>,
    /// What is to be told of the prompt.
    pub(crate) retold: Retold,
    /// Whether the answer begins with the text that is told of the prompt: this node does not know
    /// it itself.
    pub(crate) echoes: bool,
    /// The job at this node's own engine in whose place others are asked.
    pub(crate) gave_up: Option<GaveUp>,
}

/// A job of this node's own engine, which gave it up before it made anything of it.
#[derive(Debug, Clone)]
pub(crate) struct GaveUp {
    pub(crate) order: DocumentId,
    pub(crate) prompt_tokens: u32,
    /// Why, for people.
    pub(crate) reason: String,
}

impl MeshAsk {
    /// What the scheduler is asked.
    pub(crate) fn query(&self) -> Query {
        Query {
            model: self.model,
            shape: self.shape,
            prompt_tokens: self.prompt_guess,
            completion_tokens: self.completion_max.unwrap_or(UNNAMED_MAX),
            prefixes: self.prefixes.clone(),
            tried: BTreeSet::new(),
            preferences: self.preferences.clone(),
        }
    }
}

/// Why no provider answers, or none can go on.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RouteError {
    /// This node's own book refuses.
    #[error(transparent)]
    Book(SubmitError),
    /// A person has to agree first.
    #[error("the request waits for the owner's word")]
    Approval {
        /// The entry in the queue.
        approval: u64,
        /// When it lapses.
        expires_at: Timestamp,
        /// What the job may cost at most.
        max_amount: Trm,
    },
    /// Providers found the request itself invalid.
    #[error("{}", .0.message)]
    Invalid(Invalid),
    /// No provider can or wants to.
    #[error("{message}")]
    NoProvider {
        /// Why, provider by provider.
        message: String,
    },
    /// The provider was lost in the middle of the answer and no other can go on.
    #[error(
        "the provider was lost in the middle of the answer and no other one can go on with it; \
         {charged} TRM were charged for what was delivered of it; ask again: {reason}"
    )]
    Lost {
        /// What was charged.
        charged: Trm,
        /// Why no other goes on.
        reason: String,
    },
}

impl RouteError {
    /// Whether nothing but a person's word is missing.
    pub(crate) const fn waits_for_the_owner(&self) -> bool {
        matches!(self, Self::Approval { .. })
    }
}

/// What is wrong with a request, in the words of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// Which rule refuses it, for programs.
    pub(crate) code: String,
    /// Why, for people.
    pub(crate) message: String,
    /// The field at fault, if it is one.
    pub(crate) param: Option<String>,
}

impl Invalid {
    /// What an engine that failed found wrong with the request, where that was its reason.
    pub(crate) fn of(failure: &Failure) -> Option<Self> {
        if !matches!(failure, Failure::Costly | Failure::Invalid { .. }) {
            return None;
        }
        let error = ApiError::from(failure.clone());
        let error = &error.body().error;
        let (code, message) = (error.code.clone().unwrap_or_default(), error.message.clone());
        Some(Self { code, message, param: error.param.clone() })
    }
}

/// What a job across providers came to.
#[derive(Debug, Clone)]
pub(crate) struct Journeyed {
    /// The last trade.
    pub(crate) trade: DocumentId,
    pub(crate) flop: Flop,
    pub(crate) amount: Trm,
    pub(crate) available: Trm,
    /// Each provider's part, in order.
    pub(crate) parts: Vec<Part>,
    /// Providers that could have answered.
    pub(crate) candidates: u32,
}

/// One provider's part of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) charge: Charge,
    /// Why it was chosen.
    pub(crate) why: Vec<String>,
    /// Whether this node's own engine made it.
    pub(crate) here: bool,
    /// Whether it went on with an answer, so that its prompt was read before.
    pub(crate) repeats: bool,
}

/// The model that answers.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) model: ModelDigest,
    pub(crate) build: String,
}
