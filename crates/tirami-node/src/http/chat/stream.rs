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
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use tirami_core::Trm;
use tirami_ledger::documents::FinishReason;
use tokio::sync::{Notify, mpsc, oneshot};

use super::choices::{Choices, Step, after};
use super::deadline::{Deadline, late};
use super::form::{Form, News};
use super::{Begun, Head, Run, broken, cancelled, keep, stopping};
use crate::http::AppState;
use crate::http::error::ApiError;

/// Frames that wait for a slow client at most.
const FRAMES_AHEAD_MAX: usize = 8;
/// So often a stream without news says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How much longer a client may keep the engine waiting for each token it took, while others wait
/// for a place.
const TAKEN_TOKEN: Duration = Duration::from_millis(250);
/// So often it is looked whether others wait, once a client has kept the engine waiting for too
/// long.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn answer(run: Run) -> Result<Response, ApiError> {
    let (opened, body) = oneshot::channel();
    let jobs = run.app.jobs.clone();
    jobs.spawn(work(run, opened));
    let frames = body.await.unwrap_or_else(|_| Err(broken()))?;
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(frames)).into_response())
}

async fn work(run: Run, opened: oneshot::Sender<Result<FrameStream, ApiError>>) {
    let Begun { app, mut choices, head, form, deadline, asked_at } = match run.begin_in_time().await
    {
        Ok(begun) => begun,
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    if let Err(error) = choices.synced().await {
        choices.void(false).await;
        let _ = opened.send(Err(error));
        return;
    }
    let (frames, body) = frames(app.config.stall_max, choices.all.len());
    if opened.send(Ok(body)).is_err() {
        choices.void(false).await;
        return;
    }
    let (handed, waited) = (vec![0; choices.all.len()], Duration::ZERO);
    Pump { app, choices, frames, head, form, deadline, asked_at, handed, waited }.run().await;
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
    /// The request's time is up.
    Late,
}

/// Moves the answers from the engine to the body.
struct Pump {
    app: AppState,
    choices: Choices,
    frames: Frames,
    head: Head,
    form: Box<dyn Form>,
    deadline: Deadline,
    asked_at: Instant,
    /// Of each answer's tokens, those whose text is with the body or on its way there.
    handed: Vec<u32>,
    /// How long the client was waited for in all.
    waited: Duration,
}

impl Pump {
    async fn run(mut self) {
        let end = match self.begin().await {
            Ok(()) => self.flow().await,
            Err(end) => end,
        };
        let end = match end {
            End::Late => self.late().await,
            end => end,
        };
        // The engine is freed before anything else is waited for.
        self.choices.stop();
        self.app.metrics.answered(self.asked_at.elapsed(), self.choices.tokens());
        let Self { app, choices, frames, head, mut form, .. } = self;
        let error = match end {
            End::Complete => match choices.finish(&head).await {
                Ok(end) => {
                    keep(&app, &mut *form, (&head, &end)).await;
                    for bytes in form.ends(&head, &end) {
                        frames.last(bytes).await;
                    }
                    return;
                }
                Err(error) => error,
            },
            End::Failed => {
                let error = choices.failure();
                settle(choices, &frames.close(), FinishReason::Failed).await;
                error
            }
            End::Gone => {
                settle(choices, &frames.close(), FinishReason::Cancelled).await;
                return;
            }
            End::Ordered(error) => {
                settle(choices, &frames.close(), FinishReason::Cancelled).await;
                error
            }
            End::Late => {
                after(late(), settle(choices, &frames.close(), FinishReason::Cancelled).await)
            }
        };
        frames.last(form.breaks(&head, &error)).await;
    }

    async fn begin(&mut self) -> Result<(), End> {
        for choice in 0..self.choices.all.len() {
            let bytes = self.form.begins(&self.head, choice);
            if !bytes.is_empty() {
                self.send(bytes, (choice, 0)).await?;
            }
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
                () = self.deadline.passed() => return End::Late,
                () = self.frames.taken.notified() => {
                    self.note_delivered();
                    continue;
                }
                next = self.choices.next() => next,
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    self.frames.keep_alive(self.form.waits());
                    continue;
                }
            };
            if let Some(served) = self.choices.moved() {
                self.head.is_made_by(served);
            }
            if !has_token && self.choices.tokens() > 0 {
                has_token = true;
                self.app.metrics.first_token(self.asked_at.elapsed());
            }
            match next {
                Some((_, Step::Ordered)) => return End::Ordered(cancelled()),
                Some((_, Step::Failed)) => {
                    return self.drained().await.err().unwrap_or(End::Failed);
                }
                Some((index, Step::Told(news))) => {
                    if let Err(end) = self.told(index, news).await {
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
    async fn told(&mut self, index: usize, news: News) -> Result<(), End> {
        if news.said.is_empty() {
            return Ok(());
        }
        let tokens = self.choices.all[index].tokens;
        let bytes = self.form.says(&self.head, index, news);
        let sent = self.send(bytes, (index, tokens)).await;
        match sent {
            Ok(()) => self.handed[index] = tokens,
            // Without this piece the answer is not whole, also where it was the last.
            Err(_) => self.choices.all[index].is_cut = true,
        }
        sent
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

    /// Hands a frame to the body, waiting while a slow client has [`FRAMES_AHEAD_MAX`] before it.
    async fn send(&mut self, bytes: Bytes, (choice, tokens): (usize, u32)) -> Result<(), End> {
        let began = Instant::now();
        let room = tokio::select! {
            biased;
            () = self.deadline.passed() => return Err(End::Late),
            room = self.room(1) => room?,
        };
        for permit in room {
            permit.send(Frame { bytes: bytes.clone(), choice, tokens });
        }
        self.waited = self.waited.saturating_add(began.elapsed());
        Ok(())
    }

    /// Ends the answers for want of time. What was handed over is what there is of them.
    async fn late(&mut self) -> End {
        if !self.choices.cut(&self.handed) {
            return End::Late;
        }
        self.drained().await.err().unwrap_or(End::Complete)
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
            () = self.stands_in_the_way() => Err(End::Ordered(too_slow())),
        }
    }

    /// Waits until a client that was waited for too long in all keeps a place that others wait for.
    async fn stands_in_the_way(&self) {
        let began = Instant::now();
        loop {
            let taken = (0..self.choices.all.len()).map(|choice| self.frames.delivered(choice));
            let for_taken = TAKEN_TOKEN.saturating_mul(taken.fold(0, u32::saturating_add));
            let may_wait = self.frames.stall_max.saturating_add(for_taken);
            let left = may_wait.saturating_sub(self.waited.saturating_add(began.elapsed()));
            if left.is_zero() && self.choices.have_a_place() && self.others_wait() {
                return;
            }
            tokio::time::sleep(left.max(LOOK_EVERY)).await;
        }
    }

    /// Whether others wait for a place of this node's engine of the model.
    fn others_wait(&self) -> bool {
        let model = self.app.models.find(&self.head.digest);
        model.is_some_and(|model| model.load().queued > 0)
    }
}

/// The client took its answer too slowly.
fn too_slow() -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        "timeout_error",
        "reader_too_slow",
        "the answer was taken too slowly while others waited for a place; only what was delivered \
         is charged; read it faster, or ask for it whole",
    )
}

/// Charges what was delivered of each answer; nothing delivered, nothing owed. Gives what stays
/// charged for those of which nothing was: other nodes were paid for what they had made.
async fn settle(choices: Choices, delivered: &[u32], finish: FinishReason) -> Trm {
    let mut undelivered = Trm::ZERO;
    for (choice, delivered) in choices.all.into_iter().zip(delivered) {
        // One of several may have been complete.
        let is_whole = choice.finish != FinishReason::Failed && *delivered == choice.tokens;
        let finish = if is_whole { choice.finish } else { finish };
        if *delivered == 0 {
            let has_failed = finish == FinishReason::Failed && !choice.had_no_room();
            let charged = choice.job.void(has_failed).await;
            let charged = charged.map_or(Trm::ZERO, |charged| charged.amount);
            undelivered = undelivered.saturating_add(charged);
        } else {
            // Nobody is left to tell; the job's own log line says what went wrong.
            let _ = choice.job.finish(*delivered, finish).await;
        }
    }
    undelivered
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
    /// A client that takes nothing for so long is taken for gone; so long, and longer for what it
    /// took, all waiting for it may be while others wait.
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

    fn keep_alive(&self, bytes: Bytes) {
        // A full channel is news enough.
        let _ = self.sender.try_send(Frame { bytes, choice: 0, tokens: 0 });
    }

    async fn last(&self, bytes: Bytes) {
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
