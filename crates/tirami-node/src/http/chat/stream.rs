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
use tirami_infer::calls::Said;
use tirami_infer::engine::TokenLogprobs;
use tirami_ledger::documents::FinishReason;
use tirami_sdk::types::{ChatChunk, ChatChunkChoice, ChatDelta, FunctionDelta, ToolCallDelta};
use tokio::sync::{Notify, mpsc, oneshot};

use super::choices::{Choices, Step, call_id, shown};
use super::{Begun, Head, Run, Shape, broken, cancelled, stopping};
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
    let Begun { app, choices, head, shape, asked_at } = match run.begin().await {
        Ok(begun) => begun,
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    let (frames, body) = frames(app.config.stall_max, choices.all.len());
    if opened.send(Ok(body)).is_err() {
        choices.void(false).await;
        return;
    }
    let handed = vec![0; choices.all.len()];
    let pump = Pump { app, choices, frames, head, shape, asked_at, handed };
    pump.run(include_usage).await;
}

/// How the flow of pieces ended.
enum End {
    /// All was handed over.
    Complete,
    /// The engine failed.
    Failed,
    /// The client left or takes nothing.
    Gone,
    /// The node ended the job.
    Ordered(ApiError),
}

/// Moves the answers from the engine to the body.
struct Pump {
    app: AppState,
    choices: Choices,
    frames: Frames,
    head: Head,
    shape: Shape,
    asked_at: Instant,
    /// Of each answer's tokens, those whose text is with the body or on its way there.
    handed: Vec<u32>,
}

impl Pump {
    async fn run(mut self, include_usage: bool) {
        let end = match self.begin().await {
            Ok(()) => self.flow().await,
            Err(end) => end,
        };
        // The engine is freed before anything else is waited for.
        self.choices.stop();
        self.app.metrics.answered(self.asked_at.elapsed(), self.choices.tokens());
        let Self { choices, frames, head, .. } = self;
        match end {
            End::Complete => {
                let (usage, finishes) = (head.usage(choices.tokens()), choices.finishes());
                match choices.finish().await {
                    Ok(charged) => {
                        let ends = finishes.into_iter().zip(0..).map(|(finish, index)| {
                            let finish_reason = Some(finish.to_owned());
                            ChatChunkChoice { index, finish_reason, ..ChatChunkChoice::default() }
                        });
                        let ends = ends.map(|end| chunk(&head, vec![end]));
                        let usage = include_usage
                            .then(|| ChatChunk { usage: Some(usage), ..chunk(&head, Vec::new()) });
                        let mut last: Vec<_> = ends.chain(usage).collect();
                        if let Some(last) = last.last_mut() {
                            last.x_tirami = Some(head.info(&charged));
                        }
                        for chunk in &last {
                            frames.last(chunk).await;
                        }
                        frames.done().await;
                    }
                    Err(error) => frames.last(error.body()).await,
                }
            }
            End::Failed => {
                let error = choices.failure();
                settle(choices, &frames.close(), FinishReason::Failed).await;
                frames.last(error.body()).await;
            }
            End::Gone => settle(choices, &frames.close(), FinishReason::Cancelled).await,
            End::Ordered(error) => {
                settle(choices, &frames.close(), FinishReason::Cancelled).await;
                frames.last(error.body()).await;
            }
        }
    }

    /// Says who speaks, of each answer.
    async fn begin(&self) -> Result<(), End> {
        for (choice, index) in (0..self.choices.all.len()).zip(0..) {
            let role = Some("assistant".to_owned());
            let delta = ChatDelta { role, content: Some(String::new()), tool_calls: Vec::new() };
            let first = ChatChunkChoice { index, delta, ..ChatChunkChoice::default() };
            self.send(first, (choice, 0)).await?;
        }
        Ok(())
    }

    async fn flow(&mut self) -> End {
        let mut has_token = false;
        loop {
            let next = tokio::select! {
                biased;
                () = self.app.cut.cancelled() => return End::Ordered(stopping()),
                () = self.frames.sender.closed() => return End::Gone,
                () = self.frames.taken.notified() => {
                    self.note_delivered();
                    continue;
                }
                next = self.choices.next() => next,
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    self.frames.keep_alive();
                    continue;
                }
            };
            if !has_token && self.choices.tokens() > 0 {
                has_token = true;
                self.app.metrics.first_token(self.asked_at.elapsed());
            }
            match next {
                Some((_, Step::Ordered)) => return End::Ordered(cancelled()),
                Some((_, Step::Failed)) => {
                    return self.drained().await.err().unwrap_or(End::Failed);
                }
                Some((index, Step::Said { said, likely })) => {
                    if let Err(end) = self.said(index, said, likely).await {
                        return end;
                    }
                    self.note_delivered();
                }
                None => {
                    return self.drained().await.err().unwrap_or(End::Complete);
                }
            }
        }
    }

    /// Hands over what came of an answer.
    async fn said(
        &mut self,
        index: usize,
        said: Vec<Said>,
        likely: Vec<TokenLogprobs>,
    ) -> Result<(), End> {
        if said.is_empty() {
            return Ok(());
        }
        let tokens = self.choices.all[index].tokens;
        let piece = ChatChunkChoice {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            delta: delta(said, &self.head.id, index),
            finish_reason: None,
            logprobs: shown(likely, self.shape.logprobs),
        };
        self.send(piece, (index, tokens)).await?;
        self.handed[index] = tokens;
        Ok(())
    }

    fn note_delivered(&mut self) {
        for (index, choice) in self.choices.all.iter_mut().enumerate() {
            let delivered = self.frames.delivered(index);
            choice.job.delivered(delivered);
            if delivered == self.handed[index] {
                // What is held back may begin a stop text; it counts as received.
                choice.job.received(choice.tokens);
            }
        }
    }

    /// Hands a chunk to the body, waiting while a slow client has [`FRAMES_AHEAD_MAX`] before it.
    async fn send(
        &self,
        piece: ChatChunkChoice,
        (choice, tokens): (usize, u32),
    ) -> Result<(), End> {
        let bytes = event(&chunk(&self.head, vec![piece]));
        for permit in self.room(1).await? {
            permit.send(Frame { bytes: bytes.clone(), choice, tokens });
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
            () = self.choices.cancelled() => Err(End::Ordered(cancelled())),
            () = self.app.cut.cancelled() => Err(End::Ordered(stopping())),
            room = self.frames.sender.reserve_many(frames) => room.map_err(|_| End::Gone),
            () = tokio::time::sleep(self.frames.stall_max) => Err(End::Gone),
        }
    }
}

/// What is new, in one piece: of each call one entry, which the clients put together by its index.
fn delta(said: Vec<Said>, answer: &str, choice: usize) -> ChatDelta {
    let mut delta = ChatDelta::default();
    for said in said {
        match said {
            Said::Text(text) => delta.content.get_or_insert_default().push_str(&text),
            Said::Call { index, name } => delta.tool_calls.push(ToolCallDelta {
                index,
                id: Some(call_id(answer, choice, index)),
                kind: Some("function".to_owned()),
                function: FunctionDelta { name: Some(name), arguments: String::new() },
            }),
            Said::Arguments { index, text } => {
                match delta.tool_calls.last_mut().filter(|last| last.index == index) {
                    Some(last) => last.function.arguments.push_str(&text),
                    None => delta.tool_calls.push(ToolCallDelta {
                        index,
                        function: FunctionDelta { name: None, arguments: text },
                        ..ToolCallDelta::default()
                    }),
                }
            }
        }
    }
    delta
}

/// Charges what was delivered of each answer; nothing delivered, nothing owed.
async fn settle(choices: Choices, delivered: &[u32], finish: FinishReason) {
    for (choice, delivered) in choices.all.into_iter().zip(delivered) {
        // One of several may have been complete.
        let is_whole = choice.finish != FinishReason::Failed && *delivered == choice.tokens;
        let finish = if is_whole { choice.finish } else { finish };
        if *delivered == 0 {
            choice.job.void(finish == FinishReason::Failed).await;
        } else {
            // Nobody is left to tell; the job's own log line says what went wrong.
            let _ = choice.job.finish(*delivered, finish).await;
        }
    }
}

fn chunk(head: &Head, choices: Vec<ChatChunkChoice>) -> ChatChunk {
    ChatChunk {
        id: head.id.clone(),
        object: "chat.completion.chunk".to_owned(),
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: head.build.clone(),
        choices,
        usage: None,
        x_tirami: None,
    }
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
    /// The answer it belongs to.
    choice: usize,
    /// Completion tokens of that answer delivered in all once the body has taken this frame; 0
    /// for a frame that is none of its text.
    tokens: u32,
}

/// Completion tokens the body has taken of each answer.
type Delivered = Arc<[AtomicU32]>;

/// The task's end of a stream.
struct Frames {
    sender: mpsc::Sender<Frame>,
    delivered: Delivered,
    /// The body has taken a frame.
    taken: Arc<Notify>,
    /// A client that takes nothing for so long is taken for gone.
    stall_max: Duration,
}

/// The body's end.
struct FrameStream {
    receiver: mpsc::Receiver<Frame>,
    delivered: Delivered,
    taken: Arc<Notify>,
}

/// In the count of delivered tokens: no more text may be handed over.
const CLOSED: u32 = 1 << 31;

fn frames(stall_max: Duration, choices: usize) -> (Frames, FrameStream) {
    let (sender, receiver) = mpsc::channel(FRAMES_AHEAD_MAX);
    let delivered: Delivered = (0..choices).map(|_| AtomicU32::new(0)).collect();
    let taken = Arc::new(Notify::new());
    (
        Frames { sender, delivered: delivered.clone(), taken: taken.clone(), stall_max },
        FrameStream { receiver, delivered, taken },
    )
}

impl Frames {
    /// Completion tokens the body has taken of an answer.
    fn delivered(&self, choice: usize) -> u32 {
        self.delivered[choice].load(Ordering::Acquire) & !CLOSED
    }

    /// Ends the text: what the body has not taken by now it never will. Gives the final counts.
    fn close(&self) -> Vec<u32> {
        let close = |count: &AtomicU32| count.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED;
        self.delivered.iter().map(close).collect()
    }

    fn keep_alive(&self) {
        // A full channel is news enough.
        let bytes = Bytes::from_static(b": alive\n\n");
        let _ = self.sender.try_send(Frame { bytes, choice: 0, tokens: 0 });
    }

    async fn last(&self, value: &impl Serialize) {
        self.raw(event(value)).await;
    }

    async fn done(&self) {
        self.raw(Bytes::from_static(b"data: [DONE]\n\n")).await;
    }

    async fn raw(&self, bytes: Bytes) {
        // The job has ended; a client that takes no more is not waited for.
        let _ =
            self.sender.send_timeout(Frame { bytes, choice: 0, tokens: 0 }, self.stall_max).await;
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
                let count = &self.delivered[frame.choice];
                if count.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_err() {
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
        Frame { bytes: Bytes::from_static(text.as_bytes()), choice: 0, tokens }
    }

    #[tokio::test]
    async fn what_the_body_has_not_taken_is_not_delivered_and_never_will_be() {
        let (frames, mut body) = frames(Duration::from_secs(1), 1);
        frames.sender.try_send(frame("one", 1)).unwrap();
        frames.sender.try_send(frame("two", 2)).unwrap();
        assert_eq!(frames.delivered(0), 0);
        assert_eq!(body.next().await.unwrap().unwrap(), "one");
        assert_eq!(frames.delivered(0), 1);
        assert_eq!(frames.close(), [1]);
        frames.sender.try_send(frame("error", 0)).unwrap();
        assert_eq!(body.next().await.unwrap().unwrap(), "error");
        assert_eq!(frames.close(), [1]);
    }

    #[tokio::test]
    async fn a_slow_client_keeps_few_frames_in_memory() {
        let (frames, _body) = frames(Duration::from_secs(1), 1);
        let sent = (1..).take_while(|n| frames.sender.try_send(frame("x", *n)).is_ok()).count();
        assert_eq!(sent, FRAMES_AHEAD_MAX);
    }
}
