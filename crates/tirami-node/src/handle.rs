//! How the rest of the node speaks to the one task that owns the kernel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tirami_core::{JobId, MeshId, PartyId, SecretKey, Timestamp};
use tirami_kernel::Kernel;
use tirami_kernel::mesh::{MeshInput, PeerEvent};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, Outcome};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::owner::Owner;

/// Requests that may wait for the kernel. One more is answered with [`SubmitError::Busy`].
pub const INPUT_QUEUE_MAX: usize = 1_024;

/// Messages and other news of the mesh that may wait for the kernel; who has one more waits. They
/// have a queue of their own, so that no peer keeps the owner's requests waiting.
pub const PEER_QUEUE_MAX: usize = 256;

/// Pause before a full queue is asked again by who insists.
const INSIST_PAUSE: Duration = Duration::from_millis(5);

/// Why a command was not carried out, or nobody knows whether it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full. Nothing has changed.
    #[error("the node is busy: {INPUT_QUEUE_MAX} requests wait already; try again in a moment")]
    Busy,
    /// The node has stopped. The command may have been carried out if the node fails just then;
    /// what the store holds after the next start decides.
    #[error("{reason}")]
    Stopped {
        /// The sentence that stopped it.
        reason: String,
    },
    /// The ledger refused. Nothing has changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
}

/// What is told when a request's own batch is durable, or failed for the given reason.
pub(crate) type Tell = Box<dyn FnOnce(Result<(), &str>) + Send>;
/// Reads the kernel at once and tells what it read later: nobody may see what a crash takes back.
pub(crate) type Read = Box<dyn FnOnce(&Kernel, Timestamp) -> Tell + Send>;
/// Looks at the kernel and tells at once what it saw.
pub(crate) type Glance = Box<dyn FnOnce(&Kernel, Timestamp) + Send>;
/// Where the answer to a command goes.
pub(crate) type Reply = oneshot::Sender<Result<Outcome, SubmitError>>;

/// What is asked of the kernel's task.
pub(crate) enum Request {
    /// A command; `decided` hears of its success before it is synced.
    Command {
        actor: Actor,
        command: Box<Command>,
        decided: Option<oneshot::Sender<Outcome>>,
        reply: Reply,
    },
    AddAgentKey {
        key: SecretKey,
        tell: Tell,
    },
    Read(Read),
    Glance(Glance),
}

/// News of the mesh.
pub(crate) enum News {
    /// What happened on a connection, with the number of the connection.
    Peer { peer: PartyId, number: u64, event: PeerEvent },
    /// What the owner or the node itself says.
    Mesh(MeshInput),
}

/// Speaks to the kernel. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    news: mpsc::Sender<News>,
    jobs: JobTokens,
    failure: watch::Receiver<Option<String>>,
    party: PartyId,
    mesh: MeshId,
    owner: Arc<Owner>,
}

impl Handle {
    pub(crate) fn new(
        (requests, news): (mpsc::Sender<Request>, mpsc::Sender<News>),
        jobs: JobTokens,
        failure: watch::Receiver<Option<String>>,
        (party, mesh): (PartyId, MeshId),
    ) -> Self {
        Self { requests, news, jobs, failure, party, mesh, owner: Arc::default() }
    }

    /// Has a command decided. It takes its place in the queue at once; the answer comes after
    /// everything it changed is synced.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]; only after [`SubmitError::Stopped`] is it unknown whether it was done.
    pub fn submit(
        &self,
        actor: Actor,
        command: Command,
    ) -> impl Future<Output = Result<Outcome, SubmitError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let command = Box::new(command);
        let sent = self.send(Request::Command { actor, command, decided: None, reply });
        let handle = self.clone();
        async move {
            sent?;
            answer.await.unwrap_or_else(|_| Err(handle.stopped()))
        }
    }

    /// Has a command decided and does not wait for its sync, so that what nobody is told of yet
    /// can begin meanwhile. A refusal comes as from [`Handle::submit`].
    ///
    /// # Errors
    ///
    /// As [`Handle::submit`].
    pub(crate) async fn decide(
        &self,
        actor: Actor,
        command: Command,
    ) -> Result<(Outcome, Unsynced), SubmitError> {
        let (decided, outcome) = oneshot::channel();
        let (reply, answer) = oneshot::channel();
        let (command, decided) = (Box::new(command), Some(decided));
        self.send(Request::Command { actor, command, decided, reply })?;
        let unsynced = Unsynced { answer, handle: self.clone() };
        match outcome.await {
            Ok(outcome) => Ok((outcome, unsynced)),
            Err(_) => Err(match unsynced.synced().await {
                Err(error) => error,
                Ok(()) => self.stopped(),
            }),
        }
    }

    /// Has a command decided, however full the queue is: what ends a job must not be dropped
    /// because the node was busy for a moment.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Stopped`] or [`SubmitError::Rejected`].
    pub(crate) async fn insist(
        &self,
        actor: Actor,
        command: Command,
    ) -> Result<Outcome, SubmitError> {
        loop {
            match self.submit(actor.clone(), command.clone()).await {
                Err(SubmitError::Busy) => tokio::time::sleep(INSIST_PAUSE).await,
                other => return other,
            }
        }
    }

    /// Reads the kernel between two commands. `f` must be quick: everybody waits for it. The
    /// answer comes when all that `f` saw is synced.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Busy`] or [`SubmitError::Stopped`].
    pub async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Kernel, Timestamp) -> T + Send + 'static,
    ) -> Result<T, SubmitError> {
        let (sender, answer) = oneshot::channel();
        self.send(Request::Read(Box::new(move |kernel, now| {
            let read = f(kernel, now);
            Box::new(move |durable| {
                // Without an answer the asker hears that the node has stopped.
                if durable.is_ok() {
                    drop(sender.send(read));
                }
            })
        })))?;
        answer.await.map_err(|_| self.stopped())
    }

    /// Looks at the kernel between two commands, as [`Handle::read`] does, and waits for no sync.
    /// A crash may take back what is seen: it may say what is asked of the kernel next, which looks
    /// at everything again, and nobody outside may be told of it.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Busy`] or [`SubmitError::Stopped`].
    pub(crate) async fn glance<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Kernel, Timestamp) -> T + Send + 'static,
    ) -> Result<T, SubmitError> {
        let (sender, answer) = oneshot::channel();
        // Whoever does not wait any more does not need it.
        let look = move |kernel: &Kernel, now: Timestamp| drop(sender.send(f(kernel, now)));
        self.send(Request::Glance(Box::new(look)))?;
        answer.await.map_err(|_| self.stopped())
    }

    /// Lets the kernel sign with an agent's key. Its file is synced before this is called.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Busy`] or [`SubmitError::Stopped`].
    pub async fn add_agent_key(&self, key: SecretKey) -> Result<(), SubmitError> {
        let (sender, answer) = oneshot::channel();
        let tell = Box::new(move |durable: Result<(), &str>| {
            if durable.is_ok() {
                let _ = sender.send(());
            }
        });
        self.send(Request::AddAgentKey { key, tell })?;
        answer.await.map_err(|_| self.stopped())
    }

    /// A token that is cancelled when the kernel orders the job to end: kill switch, revoked key,
    /// expired hold. Take it before the job starts, so that no order is missed.
    pub fn job_token(&self, job: JobId) -> JobToken {
        let token = self.jobs.enter(job);
        JobToken { job, token, jobs: self.jobs.clone() }
    }

    /// Reports what happened on connection `number` to a peer; waits while the queue is full.
    pub(crate) async fn peer_input(
        &self,
        peer: PartyId,
        number: u64,
        event: PeerEvent,
    ) -> Result<(), SubmitError> {
        self.tell(News::Peer { peer, number, event }).await
    }

    /// Tells the kernel about the mesh; waits while the queue is full.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Stopped`].
    pub async fn mesh_input(&self, input: MeshInput) -> Result<(), SubmitError> {
        self.tell(News::Mesh(input)).await
    }

    async fn tell(&self, news: News) -> Result<(), SubmitError> {
        self.news.send(news).await.map_err(|_| self.stopped())
    }

    /// The owner's side of the node.
    pub(crate) const fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// The node's party.
    pub const fn party(&self) -> PartyId {
        self.party
    }

    /// The node's mesh.
    pub const fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Requests that wait for the kernel.
    pub fn queued(&self) -> usize {
        INPUT_QUEUE_MAX - self.requests.capacity().min(INPUT_QUEUE_MAX)
    }

    /// Whether the kernel still takes requests.
    pub fn is_running(&self) -> bool {
        !self.requests.is_closed() && self.failure.borrow().is_none()
    }

    fn send(&self, request: Request) -> Result<(), SubmitError> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SubmitError::Busy,
            mpsc::error::TrySendError::Closed(_) => self.stopped(),
        })
    }

    fn stopped(&self) -> SubmitError {
        let reason = self.failure.borrow().clone();
        let reason = reason.unwrap_or_else(|| "the node is stopping; start it again".to_owned());
        SubmitError::Stopped { reason }
    }
}

/// The sync of a decided command that nobody outside may hear of before.
pub(crate) struct Unsynced {
    answer: oneshot::Receiver<Result<Outcome, SubmitError>>,
    handle: Handle,
}

impl Unsynced {
    /// Waits until everything the command changed is synced, which now begins at once.
    ///
    /// # Errors
    ///
    /// [`SubmitError`].
    pub(crate) async fn synced(self) -> Result<(), SubmitError> {
        // Who reads waits for the sync of what was before. A full queue hurries by itself.
        drop(self.handle.send(Request::Read(Box::new(|_, _| Box::new(|_| ())))));
        self.answer.await.unwrap_or_else(|_| Err(self.handle.stopped())).map(drop)
    }
}

impl core::fmt::Debug for Handle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Handle").field("party", &self.party).finish_non_exhaustive()
    }
}

/// A running job's ear for the order to end. Dropping it ends the listening.
#[derive(Debug)]
pub struct JobToken {
    job: JobId,
    token: CancellationToken,
    jobs: JobTokens,
}

impl JobToken {
    /// Waits until the kernel orders the job to end.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Whether the kernel has ordered the job to end.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }
}

impl Drop for JobToken {
    fn drop(&mut self) {
        self.jobs.leave(self.job);
    }
}

/// The tokens of all running jobs, each with the number of those who hold it.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobTokens {
    tokens: Arc<Mutex<BTreeMap<JobId, (CancellationToken, usize)>>>,
}

impl JobTokens {
    fn enter(&self, job: JobId) -> CancellationToken {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, holders) = tokens.entry(job).or_default();
        *holders += 1;
        token.clone()
    }

    fn leave(&self, job: JobId) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, holders)) = tokens.get_mut(&job) {
            *holders -= 1;
            if *holders == 0 {
                tokens.remove(&job);
            }
        }
    }

    pub(crate) fn cancel(&self, jobs: &[JobId]) {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        for job in jobs {
            if let Some((token, _)) = tokens.get(job) {
                token.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_heard_until_its_last_token_is_dropped() {
        let jobs = JobTokens::default();
        let job = JobId::from_bytes([1; 16]);
        let token = |jobs: &JobTokens| JobToken { job, token: jobs.enter(job), jobs: jobs.clone() };
        let (one, other) = (token(&jobs), token(&jobs));
        drop(one);
        jobs.cancel(&[job, JobId::from_bytes([2; 16])]);
        assert!(other.is_cancelled());
        drop(other);
        assert!(jobs.tokens.lock().unwrap().is_empty());
        assert!(!token(&jobs).is_cancelled());
    }
}
