//! Streams of frames: one message after the other over QUIC, within limits, with back-pressure.

use std::marker::PhantomData;
use std::time::Duration;

use crate::clock::now;
use bytes::Bytes;
use futures_util::Stream;
use iroh::endpoint::{ReadExactError, RecvStream, SendStream, VarInt};
use tirami_proto::{Frame, FrameError, Frames, TokenBucket, encode};

/// Bytes read at once; what a stranger announces is not believed beyond that.
const CHUNK_BYTES: usize = 16 * 1024;
/// Bytes of a frame that are let through together: what is only announced keeps no more from
/// others.
pub(super) const PART_BYTES: usize = 64 * 1024;
/// Frames of one stream that are read without giving way to others.
const FRAMES_AT_ONCE: u32 = 64;
/// How long the rest of a frame may take once it has begun.
const FRAME_WITHIN: Duration = Duration::from_secs(30);

/// Why a stream of frames cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other side, the connection or this side ended it.
    #[error("the connection to the other node ended: {0}")]
    Ended(String),
    /// The other side began a frame and did not end it.
    #[error("the other node began a message and did not end it")]
    Stalled,
    /// What came is no message of this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Waits before a frame is read.
pub(super) trait Gate: Send {
    /// Comes back when a frame of so many bytes may be begun.
    fn admit(&mut self, bytes: usize) -> impl Future<Output = ()> + Send;

    /// Comes back when the next so many bytes of it may be read; all before them have come.
    fn admit_part(&mut self, bytes: usize) -> impl Future<Output = ()> + Send {
        let _ = bytes;
        core::future::ready(())
    }
}

/// Lets everything through at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open;

impl Gate for Open {
    async fn admit(&mut self, _: usize) {}
}

/// Frames that the consumer of a running job may send each second: far more than it has to sign.
const JOB_FRAMES_PER_SECOND: u32 = 4_096;

/// Lets a job's frames through no faster than that; what comes faster waits in its own stream.
#[derive(Debug)]
pub(super) struct Pace(TokenBucket);

impl Pace {
    pub(super) fn of_job() -> Self {
        Self(TokenBucket::new(JOB_FRAMES_PER_SECOND, JOB_FRAMES_PER_SECOND, now()))
    }
}

impl Gate for Pace {
    async fn admit(&mut self, _: usize) {
        while let Err(wait_ms) = self.0.take(1, now()) {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }
}

/// The writing half. Sending waits while the other side does not read.
#[derive(Debug)]
pub struct FrameSender<T> {
    stream: SendStream,
    messages: PhantomData<fn(T)>,
}

impl<T: Frame> FrameSender<T> {
    pub(super) const fn new(stream: SendStream) -> Self {
        Self { stream, messages: PhantomData }
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// [`StreamError::Ended`]; nobody knows then how much arrived.
    pub async fn send(&mut self, message: &T) -> Result<(), StreamError> {
        self.send_bytes(Bytes::from(encode(message))).await
    }

    /// Sends messages that are to arrive together: one that is sent alone may be read alone.
    pub(super) async fn send_all(&mut self, messages: &[T]) -> Result<(), StreamError> {
        let frames: Vec<Vec<u8>> = messages.iter().map(encode).collect();
        self.send_bytes(Bytes::from(frames.concat())).await
    }

    pub(super) async fn send_bytes(&mut self, frame: Bytes) -> Result<(), StreamError> {
        let sent = self.stream.write_chunk(frame).await;
        sent.map_err(|error| StreamError::Ended(error.to_string()))
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) {
        // A stream that has ended already needs no end.
        drop(self.stream.finish());
    }

    /// Waits until the other side has everything, or will take no more.
    pub async fn flushed(&mut self) {
        drop(self.stream.stopped().await);
    }

    /// Drops what was not sent yet and tells the other side so.
    pub fn abort(&mut self) {
        drop(self.stream.reset(VarInt::from_u32(0)));
    }
}

/// The reading half.
#[derive(Debug)]
pub struct FrameReceiver<T> {
    stream: RecvStream,
    frames: Frames,
    max: usize,
    messages: PhantomData<fn() -> T>,
}

impl<T: Frame> FrameReceiver<T> {
    /// Frames of at most `max` bytes each.
    pub(super) const fn new(stream: RecvStream, max: usize) -> Self {
        Self { stream, frames: Frames::new(max), max, messages: PhantomData }
    }

    /// The next message; `None` after the last one. Dropping this future while it waits for a
    /// message loses nothing only if no further message is read.
    ///
    /// # Errors
    ///
    /// [`StreamError`]. After [`FrameError::Malformed`] the next message can still be read.
    pub async fn next(&mut self) -> Result<Option<T>, StreamError> {
        self.next_through(&mut Open).await
    }

    /// As [`FrameReceiver::next`], waiting at `gate` before a frame and before each part of it.
    pub(super) async fn next_through(
        &mut self,
        gate: &mut impl Gate,
    ) -> Result<Option<T>, StreamError> {
        loop {
            let mut length = [0; 4];
            match self.stream.read_exact(&mut length).await {
                Ok(()) => {}
                Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
                Err(error) => return Err(StreamError::Ended(error.to_string())),
            }
            let bytes = u32::from_be_bytes(length) as usize;
            if bytes <= self.max {
                gate.admit(bytes).await;
            }
            let body = self.body(length, bytes, gate);
            match tokio::time::timeout(FRAME_WITHIN, body).await {
                Ok(Ok(None)) => {}
                Ok(read) => return read,
                Err(_) => return Err(StreamError::Stalled),
            }
        }
    }

    /// Reads one frame; `None` when it is a message this version does not know.
    async fn body(
        &mut self,
        length: [u8; 4],
        bytes: usize,
        gate: &mut impl Gate,
    ) -> Result<Option<T>, StreamError> {
        self.frames.push(&length);
        let (mut left, mut admitted) = (bytes, 0);
        loop {
            if let Some(message) = self.frames.next()? {
                return Ok(Some(message));
            }
            if left == 0 {
                return Ok(None);
            }
            if admitted == 0 {
                admitted = left.min(PART_BYTES);
                gate.admit_part(admitted).await;
            }
            match self.stream.read_chunk(admitted.min(CHUNK_BYTES)).await {
                Ok(Some(chunk)) => {
                    left -= chunk.len();
                    admitted -= chunk.len();
                    self.frames.push(&chunk);
                }
                Ok(None) => return Err(StreamError::Ended("in the middle of a message".into())),
                Err(error) => return Err(StreamError::Ended(error.to_string())),
            }
        }
    }

    /// Tells the other side that nothing more is read.
    pub fn stop(&mut self) {
        drop(self.stream.stop(VarInt::from_u32(0)));
    }
}

/// The frames of a stream, let through at `gate`, until it ends or breaks; where it breaks, the
/// last one says how. Waiting for the next one can be given up.
pub(super) fn frames<T: Frame + Send>(
    receive: FrameReceiver<T>,
    gate: impl Gate,
) -> impl Stream<Item = Result<T, StreamError>> + Send
where
    FrameReceiver<T>: Send,
{
    futures_util::stream::unfold(Some((receive, gate, 0_u32)), |open| async move {
        let (mut receive, mut gate, n) = open?;
        if n % FRAMES_AT_ONCE == FRAMES_AT_ONCE - 1 {
            // A stream that always has a frame lets others run.
            tokio::task::yield_now().await;
        }
        match receive.next_through(&mut gate).await {
            Ok(frame) => frame.map(|frame| (Ok(frame), Some((receive, gate, n.wrapping_add(1))))),
            Err(error) => {
                tracing::debug!(%error, "the stream of a job broke");
                Some((Err(error), None))
            }
        }
    })
}
