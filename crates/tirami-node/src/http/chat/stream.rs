//! An answer piece by piece, as server-sent events.
//!
//! What counts as delivered is what the HTTP body has taken. At most [`FRAMES_AHEAD_MAX`] frames
//! wait for a slow client; then the engine waits too.

use core::convert::Infallible;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;
use tirami_infer::engine::{Generation, Piece};
use tirami_ledger::documents::FinishReason;
use tirami_sdk::types::{ChatChunk, ChatChunkChoice, ChatDelta};
use tokio::sync::{Notify, mpsc, oneshot};

use super::running::Running;
use super::{Begun, Head, Run, broken, cancelled, finish_name, finish_of, stopping};
use crate::http::AppState;
use crate::http::error::ApiError;

/// Frames that wait for a slow client at most.
const FRAMES_AHEAD_MAX: usize = 8;
/// So often a stream without news says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) async fn answer(run: Run, include_usage: bool) -> Result<Response, ApiError> {
    let (opened, body) = oneshot::channel();
    let jobs = run.app.jobs.clone();
    jobs.spawn(work(run, include_usage, opened));
    let frames = body.await.unwrap_or_else(|_| Err(broken()))?;
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(frames)).into_response())
}

async fn work(
    run: Run,
    include_usage: bool,
    opened: oneshot::Sender<Result<FrameStream, ApiError>>,
) {
    let Begun { app, job, generation, head, asked_at } = match run.begin().await {
        Ok(begun) => begun,
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    let (frames, body) = frames(app.config.stall_max);
    if opened.send(Ok(body)).is_err() {
        drop(generation);
        job.void(false).await;
        return;
    }
    let pump = Pump { app, job, frames, head, asked_at, tokens: 0, handed: 0 };
    pump.run(generation, include_usage).await;
}

/// How the flow of pieces ended.
enum End {
    /// All was handed over.
    Complete(FinishReason),
    /// The engine failed.
    Failed,
    /// The client left or takes nothing.
    Gone,
    /// The node ended the job.
    Ordered(ApiError),
}

/// Moves one answer from the engine to the body.
struct Pump {
    app: AppState,
    job: Running,
    frames: Frames,
    head: Head,
    asked_at: Instant,
    /// Completion tokens produced so far.
    tokens: u32,
    /// Of these, those whose text is with the body or on its way there.
    handed: u32,
}

impl Pump {
    async fn run(mut self, mut generation: Generation, include_usage: bool) {
        let first = ChatDelta { role: Some("assistant".to_owned()), content: Some(String::new()) };
        let end = match self.send(&self.chunk(first, None), 0).await {
            Ok(()) => self.flow(&mut generation).await,
            Err(end) => end,
        };
        // The engine is freed before anything else is waited for.
        drop(generation);
        self.app.metrics.answered(self.asked_at.elapsed(), self.tokens);
        let Self { job, frames, head, tokens, .. } = self;
        match end {
            End::Complete(finish) => match job.finish(tokens, finish).await {
                Ok(charged) => {
                    let chunk = |choices| ChatChunk { choices, ..empty_chunk(&head) };
                    let mut last = chunk(vec![choice(ChatDelta::default(), Some(finish))]);
                    if include_usage {
                        frames.last(&last).await;
                        last = chunk(Vec::new());
                        last.usage = Some(head.usage(tokens));
                    }
                    last.x_tirami = Some(head.info(&charged));
                    frames.last(&last).await;
                    frames.done().await;
                }
                Err(error) => frames.last(error.body()).await,
            },
            End::Failed => {
                let error = job.failure();
                settle(job, frames.close(), FinishReason::Failed).await;
                frames.last(error.body()).await;
            }
            End::Gone => settle(job, frames.close(), FinishReason::Cancelled).await,
            End::Ordered(error) => {
                settle(job, frames.close(), FinishReason::Cancelled).await;
                frames.last(error.body()).await;
            }
        }
    }

    async fn flow(&mut self, generation: &mut Generation) -> End {
        loop {
            let piece = tokio::select! {
                biased;
                () = self.job.cancelled() => return End::Ordered(cancelled()),
                () = self.app.cut.cancelled() => return End::Ordered(stopping()),
                () = self.frames.sender.closed() => return End::Gone,
                () = self.frames.taken.notified() => {
                    self.note_delivered();
                    continue;
                }
                piece = generation.pieces.recv() => piece,
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    self.frames.keep_alive();
                    continue;
                }
            };
            let (tokens, text, finish) = match piece {
                Some(Piece::Delta { tokens, text, .. }) => (tokens, text, None),
                Some(Piece::End { text, finish }) => (Vec::new(), text, Some(finish)),
                Some(Piece::Failed { reason }) => {
                    tracing::warn!(reason, "the engine failed");
                    return self.drained().await.err().unwrap_or(End::Failed);
                }
                None => return self.drained().await.err().unwrap_or(End::Failed),
            };
            if self.tokens == 0 && !tokens.is_empty() {
                self.app.metrics.first_token(self.asked_at.elapsed());
            }
            self.job.cached(generation.cached_tokens());
            self.tokens = self.tokens.max(self.job.produced(&tokens));
            if !text.is_empty() {
                let delta = ChatDelta { role: None, content: Some(text) };
                if let Err(end) = self.send(&self.chunk(delta, None), self.tokens).await {
                    return end;
                }
                self.handed = self.tokens;
            }
            self.note_delivered();
            if let Some(finish) = finish {
                return match self.drained().await {
                    Ok(()) => End::Complete(finish_of(finish)),
                    Err(end) => end,
                };
            }
        }
    }

    fn note_delivered(&mut self) {
        let delivered = self.frames.delivered();
        self.job.delivered(delivered);
        if delivered == self.handed {
            // What is held back may begin a stop text; it counts as received.
            self.job.received(self.tokens);
        }
    }

    /// Hands a chunk to the body, waiting while a slow client has [`FRAMES_AHEAD_MAX`] before it.
    async fn send(&self, chunk: &ChatChunk, tokens: u32) -> Result<(), End> {
        let permit = self.room(1).await?;
        for permit in permit {
            permit.send(Frame { bytes: event(chunk), tokens });
        }
        Ok(())
    }

    /// Waits until the body has taken everything.
    async fn drained(&self) -> Result<(), End> {
        self.room(FRAMES_AHEAD_MAX).await.map(drop)
    }

    async fn room(&self, frames: usize) -> Result<mpsc::PermitIterator<'_, Frame>, End> {
        tokio::select! {
            biased;
            () = self.job.cancelled() => Err(End::Ordered(cancelled())),
            () = self.app.cut.cancelled() => Err(End::Ordered(stopping())),
            room = self.frames.sender.reserve_many(frames) => room.map_err(|_| End::Gone),
            () = tokio::time::sleep(self.frames.stall_max) => Err(End::Gone),
        }
    }

    fn chunk(&self, delta: ChatDelta, finish: Option<FinishReason>) -> ChatChunk {
        ChatChunk { choices: vec![choice(delta, finish)], ..empty_chunk(&self.head) }
    }
}

/// Charges what was delivered; nothing delivered, nothing owed.
async fn settle(job: Running, delivered: u32, finish: FinishReason) {
    if delivered == 0 {
        return job.void(finish == FinishReason::Failed).await;
    }
    // Nobody is left to tell; the job's own log line says what went wrong.
    let _ = job.finish(delivered, finish).await;
}

fn empty_chunk(head: &Head) -> ChatChunk {
    ChatChunk {
        id: head.id.clone(),
        object: "chat.completion.chunk".to_owned(),
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: head.build.clone(),
        choices: Vec::new(),
        usage: None,
        x_tirami: None,
    }
}

fn choice(delta: ChatDelta, finish: Option<FinishReason>) -> ChatChunkChoice {
    let finish_reason = finish.map(|finish| finish_name(finish).to_owned());
    ChatChunkChoice { index: 0, delta, finish_reason }
}

fn event(value: &impl Serialize) -> Bytes {
    let mut bytes = b"data: ".to_vec();
    // Chunks and errors are plain data and always serialise.
    let _ = serde_json::to_writer(&mut bytes, value);
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}

/// One event on its way to the body.
struct Frame {
    bytes: Bytes,
    /// Completion tokens delivered in all once the body has taken this frame; 0 for a frame
    /// that is none of the answer's text.
    tokens: u32,
}

/// The task's end of a stream.
struct Frames {
    sender: mpsc::Sender<Frame>,
    delivered: Arc<AtomicU32>,
    /// The body has taken a frame.
    taken: Arc<Notify>,
    /// A client that takes nothing for so long is taken for gone.
    stall_max: Duration,
}

/// The body's end.
struct FrameStream {
    receiver: mpsc::Receiver<Frame>,
    delivered: Arc<AtomicU32>,
    taken: Arc<Notify>,
}

/// In the count of delivered tokens: no more text may be handed over.
const CLOSED: u32 = 1 << 31;

fn frames(stall_max: Duration) -> (Frames, FrameStream) {
    let (sender, receiver) = mpsc::channel(FRAMES_AHEAD_MAX);
    let (delivered, taken) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    (
        Frames { sender, delivered: delivered.clone(), taken: taken.clone(), stall_max },
        FrameStream { receiver, delivered, taken },
    )
}

impl Frames {
    /// Completion tokens the body has taken.
    fn delivered(&self) -> u32 {
        self.delivered.load(Ordering::Acquire) & !CLOSED
    }

    /// Ends the text: what the body has not taken by now it never will. Gives the final count.
    fn close(&self) -> u32 {
        self.delivered.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED
    }

    fn keep_alive(&self) {
        // A full channel is news enough.
        let bytes = Bytes::from_static(b": alive\n\n");
        let _ = self.sender.try_send(Frame { bytes, tokens: 0 });
    }

    async fn last(&self, value: &impl Serialize) {
        self.raw(event(value)).await;
    }

    async fn done(&self) {
        self.raw(Bytes::from_static(b"data: [DONE]\n\n")).await;
    }

    async fn raw(&self, bytes: Bytes) {
        // The job has ended; a client that takes no more is not waited for.
        let _ = self.sender.send_timeout(Frame { bytes, tokens: 0 }, self.stall_max).await;
    }
}

impl Stream for FrameStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let frame = match self.receiver.poll_recv(cx) {
                Poll::Ready(Some(frame)) => frame,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            if frame.tokens > 0 {
                let open = |count: u32| (count & CLOSED == 0).then_some(frame.tokens);
                if self.delivered.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_err() {
                    continue;
                }
                self.taken.notify_one();
            }
            return Poll::Ready(Some(Ok(frame.bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    fn frame(text: &'static str, tokens: u32) -> Frame {
        Frame { bytes: Bytes::from_static(text.as_bytes()), tokens }
    }

    #[tokio::test]
    async fn what_the_body_has_not_taken_is_not_delivered_and_never_will_be() {
        let (frames, mut body) = frames(Duration::from_secs(1));
        frames.sender.try_send(frame("one", 1)).unwrap();
        frames.sender.try_send(frame("two", 2)).unwrap();
        assert_eq!(frames.delivered(), 0);
        assert_eq!(body.next().await.unwrap().unwrap(), "one");
        assert_eq!(frames.delivered(), 1);
        assert_eq!(frames.close(), 1);
        frames.sender.try_send(frame("error", 0)).unwrap();
        assert_eq!(body.next().await.unwrap().unwrap(), "error");
        assert_eq!(frames.close(), 1);
    }

    #[tokio::test]
    async fn a_slow_client_keeps_few_frames_in_memory() {
        let (frames, _body) = frames(Duration::from_secs(1));
        let sent = (1..).take_while(|n| frames.sender.try_send(frame("x", *n)).is_ok()).count();
        assert_eq!(sent, FRAMES_AHEAD_MAX);
    }
}
