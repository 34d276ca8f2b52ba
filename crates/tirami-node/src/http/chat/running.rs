//! A job that runs, here or at another node, as the two kinds of answers see it.

use tirami_ledger::documents::FinishReason;

use super::job::{Charged, Job};
use super::{broken, mesh_error};
use crate::http::error::ApiError;
use crate::mesh::MeshJob;

/// An open job. Dropping it ends the job with what was delivered last.
pub(super) enum Running {
    /// This node's engine does it.
    Here(Box<Job>),
    /// Other nodes do it.
    Mesh(MeshJob),
    /// This node's engine gave it up, and others are looked for: nothing is open.
    Moving,
}

impl Running {
    /// Waits until the kernel orders the end.
    pub(super) async fn cancelled(&self) {
        match self {
            Self::Here(job) => job.token.cancelled().await,
            Self::Mesh(job) => job.cancelled().await,
            // What is ordered next is refused where it may not be.
            Self::Moving => core::future::pending().await,
        }
    }

    /// Waits until the order is durable, so that answers may be handed over.
    pub(super) async fn synced(&mut self) -> Result<(), ApiError> {
        match self {
            Self::Here(job) => job.synced().await,
            // It was before another node heard of it.
            Self::Mesh(_) | Self::Moving => Ok(()),
        }
    }

    /// Notes how many of the prompt's tokens the engine had in its cache.
    pub(super) fn cached(&mut self, cached_tokens: u32) {
        if let Self::Here(job) = self {
            job.cached(cached_tokens);
        }
    }

    /// Counts tokens on their way to the body; gives how many there are in all.
    pub(super) fn produced(&mut self, tokens: &[u32]) -> u32 {
        match self {
            Self::Here(job) => job.produced(tokens),
            Self::Mesh(job) => job.produced(tokens),
            Self::Moving => 0,
        }
    }

    /// Notes that the body has taken `delivered` tokens in all.
    pub(super) fn delivered(&mut self, delivered: u32) {
        match self {
            Self::Here(job) => job.delivered(delivered),
            Self::Mesh(job) => job.delivered(delivered),
            Self::Moving => {}
        }
    }

    /// Notes that this node has received `received` tokens and holds no text back that could be
    /// handed over. Another node is paid for what it sent, so that it goes on.
    pub(super) fn received(&mut self, received: u32) {
        if let Self::Mesh(job) = self {
            job.delivered(received);
        }
    }

    /// Why the answer broke off.
    pub(super) fn failure(&self) -> ApiError {
        match self {
            Self::Mesh(job) => job.failure().map_or_else(super::engine_failed, mesh_error),
            Self::Here(_) | Self::Moving => super::engine_failed(),
        }
    }

    /// Ends the job and charges `delivered` tokens.
    pub(super) async fn finish(
        self,
        delivered: u32,
        finish: FinishReason,
    ) -> Result<Charged, ApiError> {
        match self {
            Self::Here(job) => job.finish(delivered, finish).await,
            Self::Mesh(job) => job.finish(delivered).await.map(Charged::of).ok_or_else(broken),
            Self::Moving => Err(broken()),
        }
    }

    /// Ends a job of which nothing was handed over. Gives what was signed for to another node and
    /// stays charged.
    pub(super) async fn void(self, failed: bool) -> Option<Charged> {
        match self {
            Self::Here(job) => {
                job.void(failed).await;
                None
            }
            Self::Mesh(job) => job.void().await.map(Charged::of),
            Self::Moving => None,
        }
    }
}
