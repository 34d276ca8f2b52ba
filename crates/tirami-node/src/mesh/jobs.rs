//! Streams of jobs: one for each, beside the control stream, past the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use tirami_core::PartyId;
use tirami_proto::{
    JOB_FRAME_BYTES_MAX, STREAM_CONTROL, STREAM_JOB, TOKEN_FRAME_BYTES_MAX, ToConsumer, ToProvider,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::endpoint::{STREAMS_PER_PEER_MAX, rtt_of};
use super::frames::{FrameReceiver, FrameSender};
use super::peers::Close;

/// Jobs of other nodes that may wait to be taken. One more is told that the node is busy.
pub const INCOMING_JOBS_MAX: usize = 64;
/// How long a new stream may take to say what it is.
const KIND_WITHIN: Duration = Duration::from_secs(5);
/// How long opening a stream may take when the node has to be dialled first.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How often to look whether the node is connected.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The code of a stream that is turned away.
const BUSY: VarInt = VarInt::from_u32(1);

/// Why no stream to a provider could be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not connected and could not be reached.
    #[error("the node {0} cannot be reached at this time")]
    Unreachable(PartyId),
    /// It runs as many jobs of this node as it may.
    #[error("the node {0} has as many jobs of this node as it takes at the same time")]
    Busy(PartyId),
}

/// One job's stream, seen from the consumer. Dropping it tells the provider to stop.
#[derive(Debug)]
pub struct JobStream {
    /// To the provider.
    pub send: FrameSender<ToProvider>,
    /// From the provider.
    pub receive: FrameReceiver<ToConsumer>,
}

/// One job's stream, seen from the provider.
#[derive(Debug)]
pub struct IncomingJob {
    /// Who is on the other side: the key its connection proved. The order says who pays.
    pub peer: PartyId,
    /// How long a round trip to it takes.
    pub rtt: Duration,
    /// To the consumer.
    pub send: FrameSender<ToConsumer>,
    /// From the consumer.
    pub receive: FrameReceiver<ToProvider>,
}

/// Opens streams to providers. Cheap to clone.
#[derive(Clone)]
pub struct JobStreams {
    shared: Arc<Shared>,
}

impl JobStreams {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// How long a round trip to `peer` takes; nothing while it is not connected.
    pub(crate) fn rtt(&self, peer: PartyId) -> Option<Duration> {
        self.shared.peers.accepted(peer).map(|connection| rtt_of(&connection))
    }

    /// What other machines need to join the mesh of this node, on these terms.
    pub(crate) async fn invite(
        &self,
        terms: super::Terms,
    ) -> Result<(tirami_proto::Invite, tirami_kernel::mesh::Admission), super::MeshError> {
        super::invite::make(&self.shared, terms).await
    }

    /// The owner enrolled somebody by hand, which takes no use from its invites.
    pub(crate) async fn enrolled_by_hand(&self) -> Result<(), super::MeshError> {
        super::invite::enrolled_by_hand(&self.shared).await
    }

    /// Opens a stream to `peer`, dialling it first where it is known but not connected.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; nothing was sent.
    pub async fn open(&self, peer: PartyId) -> Result<JobStream, OpenError> {
        let until = Instant::now() + OPEN_WITHIN;
        let connection = self.connection(peer, until).await.ok_or(OpenError::Unreachable(peer))?;
        let opening = async {
            let (mut send, receive) = connection.open_bi().await.ok()?;
            send.write_all(&[STREAM_JOB]).await.ok()?;
            Some((send, receive))
        };
        let (send, receive) = match tokio::time::timeout_at(until, opening).await {
            Ok(Some(opened)) => opened,
            Ok(None) => return Err(OpenError::Unreachable(peer)),
            Err(_) => return Err(OpenError::Busy(peer)),
        };
        let receive = FrameReceiver::new(receive, TOKEN_FRAME_BYTES_MAX);
        Ok(JobStream { send: FrameSender::new(send), receive })
    }

    async fn connection(&self, peer: PartyId, until: Instant) -> Option<Connection> {
        let peers = &self.shared.peers;
        if let Some(connection) = peers.accepted(peer) {
            return Some(connection);
        }
        Shared::dial_known(&self.shared, peer);
        while Instant::now() < until {
            sleep(LOOK_EVERY).await;
            if let Some(connection) = peers.accepted(peer) {
                return Some(connection);
            }
        }
        None
    }
}

impl core::fmt::Debug for JobStreams {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("JobStreams").finish_non_exhaustive()
    }
}

/// Takes the streams a peer opens until its connection ends.
pub(super) async fn accept(
    peer: PartyId,
    connection: Connection,
    incoming: mpsc::Sender<IncomingJob>,
    accepted: Arc<AtomicBool>,
) {
    let mut kinds = JoinSet::new();
    while let Ok((send, receive)) = connection.accept_bi().await {
        while kinds.try_join_next().is_some() {}
        if kinds.len() >= STREAMS_PER_PEER_MAX as usize {
            turn_away(send, receive);
            continue;
        }
        let (connection, incoming) = (connection.clone(), incoming.clone());
        let accepted = Arc::clone(&accepted);
        kinds.spawn(async move {
            let mut receive = receive;
            let mut kind = [0];
            let read = timeout(KIND_WITHIN, receive.read_exact(&mut kind)).await;
            if !matches!(read, Ok(Ok(()))) {
                return turn_away(send, receive);
            }
            match kind {
                [STREAM_CONTROL] => Close::Form.now(&connection),
                [STREAM_JOB] if accepted.load(Ordering::Acquire) => {
                    hand_over((peer, rtt_of(&connection)), send, receive, &incoming);
                }
                // Nobody who is not let in has a job done, and kinds of later versions are not
                // known here.
                _ => turn_away(send, receive),
            }
        });
    }
}

fn hand_over(
    (peer, rtt): (PartyId, Duration),
    send: SendStream,
    receive: RecvStream,
    incoming: &mpsc::Sender<IncomingJob>,
) {
    let receive = FrameReceiver::new(receive, JOB_FRAME_BYTES_MAX);
    let job = IncomingJob { peer, rtt, send: FrameSender::new(send), receive };
    if let Err(refused) = incoming.try_send(job) {
        let mut job = refused.into_inner();
        job.send.abort();
        job.receive.stop();
    }
}

fn turn_away(mut send: SendStream, mut receive: RecvStream) {
    // A stream that has ended needs no end.
    let _ = (send.reset(BUSY), receive.stop(BUSY));
}
