//! What connects a job across providers to the answer's body: pieces one way, and how many of them
//! were taken the other way.

use std::sync::{Arc, OnceLock};

use tirami_infer::engine::{Generation, PIECES_AHEAD_MAX, Piece, Progress};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::ask::{Journeyed, RouteError};
use crate::handle::JobToken;

/// The HTTP side's hold on a journey. Dropping it ends the job with what was delivered last.
#[derive(Debug)]
pub(crate) struct MeshJob {
    shared: Arc<Shared>,
    /// It reads its prompt and makes nothing: what that says is delivered as one.
    only_reads: bool,
    produced: u32,
    delivered: watch::Sender<u32>,
    conclude: Option<oneshot::Sender<u32>>,
    result: oneshot::Receiver<Journeyed>,
}

#[derive(Debug, Default)]
struct Shared {
    ordered: CancellationToken,
    failure: OnceLock<RouteError>,
}

impl MeshJob {
    /// Waits until the kernel orders the end.
    pub(crate) async fn cancelled(&self) {
        self.shared.ordered.cancelled().await;
    }

    /// Counts tokens on their way to the body; gives how many there are in all.
    pub(crate) fn produced(&mut self, tokens: &[u32]) -> u32 {
        let more = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        self.produced = self.produced.saturating_add(more);
        self.produced
    }

    /// Notes that the body has taken `delivered` tokens in all.
    pub(crate) fn delivered(&self, delivered: u32) {
        self.delivered.send_if_modified(|known| {
            let is_more = delivered > *known;
            *known = delivered.max(*known);
            is_more
        });
    }

    /// Why the answer broke off, if the mesh is the reason.
    pub(crate) fn failure(&self) -> Option<&RouteError> {
        self.shared.failure.get()
    }

    /// Charges `delivered` tokens of an answer that was handed over. `None` when the journey ended
    /// without a word.
    pub(crate) async fn finish(self, delivered: u32) -> Option<Journeyed> {
        let only_reads = self.only_reads;
        self.concluded(delivered.max(u32::from(only_reads))).await
    }

    /// Ends a job of which nothing was handed over. Gives what was signed for by then and stays
    /// charged.
    pub(crate) async fn void(self) -> Option<Journeyed> {
        self.concluded(0).await.filter(|journeyed| !journeyed.amount.is_zero())
    }

    async fn concluded(mut self, delivered: u32) -> Option<Journeyed> {
        if let Some(conclude) = self.conclude.take() {
            // A journey that is over has nothing to conclude.
            let _ = conclude.send(delivered);
        }
        (&mut self.result).await.ok()
    }
}

/// Both ends of a job's body, what the HTTP side reads of it, and where the job's sum is told.
/// Where it `only_reads`, what it says is delivered as one.
pub(super) fn connected(
    only_reads: bool,
) -> ((MeshJob, Generation), (Body, oneshot::Sender<Journeyed>)) {
    let (out, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
    let (delivered, taken) = watch::channel(0);
    let (conclude, concluded) = oneshot::channel();
    let (told, result) = oneshot::channel();
    let (shared, progress) = (Arc::new(Shared::default()), Arc::new(Progress::default()));
    let job = MeshJob {
        shared: Arc::clone(&shared),
        only_reads,
        produced: 0,
        delivered,
        conclude: Some(conclude),
        result,
    };
    let generation = Generation::new(pieces, Arc::clone(&progress));
    let body = Body { out, taken, concluded, progress, shared };
    ((job, generation), (body, told))
}

/// The journey's ends of what connects it to the HTTP side.
pub(super) struct Body {
    pub(super) out: mpsc::Sender<Piece>,
    pub(super) taken: watch::Receiver<u32>,
    pub(super) concluded: oneshot::Receiver<u32>,
    pub(super) progress: Arc<Progress>,
    shared: Arc<Shared>,
}

impl Body {
    /// Hands a piece over, unless the body is gone or the kernel orders the end.
    pub(super) async fn send(&self, token: &JobToken, piece: Piece) -> Result<(), ()> {
        tokio::select! {
            biased;
            () = token.cancelled() => {
                self.ordered();
                Err(())
            }
            sent = self.out.send(piece) => sent.map_err(drop),
        }
    }

    /// The kernel orders the end.
    pub(super) fn ordered(&self) {
        self.shared.ordered.cancel();
    }

    /// Breaks the answer off, and says why.
    pub(super) async fn fails(&self, error: RouteError) {
        let reason = error.to_string();
        // There is one failure of a journey.
        let _ = self.shared.failure.set(error);
        // Whoever has stopped reading needs no reason.
        let _ = self.out.send(Piece::Failed { reason }).await;
    }
}
