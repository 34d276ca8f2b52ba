//! An answer in one piece. It is delivered when it is complete, so a client that leaves before
//! owes nothing.

use std::time::Instant;

use axum::http::StatusCode;
use axum::response::Response;
use tirami_infer::engine::{Finish, Generation, Piece};
use tirami_ledger::documents::FinishReason;
use tirami_sdk::types::{ChatChoice, ChatMessage, ChatResponse};
use tokio::sync::oneshot;

use super::job::Job;
use super::{Head, Run};
use crate::http::AppState;
use crate::http::error::ApiError;
use crate::http::json;

type Reply = oneshot::Sender<Result<ChatResponse, ApiError>>;

pub(super) async fn answer(run: Run) -> Result<Response, ApiError> {
    let (reply, answer) = oneshot::channel();
    let jobs = run.app.jobs.clone();
    jobs.spawn(work(run, reply));
    match answer.await {
        Ok(result) => result.map(|answer| json::ok(&answer)),
        Err(_) => Err(broken()),
    }
}

async fn work(run: Run, reply: Reply) {
    let asked_at = Instant::now();
    let head = run.head();
    let Run { app, actor, start, prompt, sampling, .. } = run;
    let job = match Job::open(app.handle.clone(), actor, start, head.build.clone()).await {
        Ok(job) => job,
        Err(error) => {
            let _ = reply.send(Err(error));
            return;
        }
    };
    match super::start(&app, job, prompt, sampling).await {
        Ok((job, generation)) => collect(app, job, generation, (head, asked_at), reply).await,
        Err(error) => {
            let _ = reply.send(Err(error));
        }
    }
}

async fn collect(
    app: AppState,
    mut job: Job,
    mut generation: Generation,
    (head, asked_at): (Head, Instant),
    mut reply: Reply,
) {
    let mut text = String::new();
    let mut count = 0;
    let error = loop {
        let piece = tokio::select! {
            biased;
            () = job.token.cancelled() => break Some(cancelled()),
            () = app.cut.cancelled() => break Some(stopping()),
            () = reply.closed() => break None,
            piece = generation.pieces.recv() => piece,
        };
        match piece {
            Some(Piece::Delta { tokens, text: more }) => {
                if count == 0 {
                    app.metrics.first_token(asked_at.elapsed());
                }
                count = job.produced(&tokens);
                text.push_str(&more);
            }
            Some(Piece::End { text: more, finish }) => {
                text.push_str(&more);
                drop(generation);
                app.metrics.answered(asked_at.elapsed(), count);
                let finish = match finish {
                    Finish::Stop => FinishReason::Stop,
                    Finish::Length => FinishReason::Length,
                };
                let result = job.finish(count, finish).await;
                let _ = reply.send(result.map(|charged| ChatResponse {
                    id: head.id.clone(),
                    object: "chat.completion".to_owned(),
                    created: head.created,
                    model: head.model.clone(),
                    system_fingerprint: head.build.clone(),
                    choices: vec![ChatChoice {
                        index: 0,
                        message: ChatMessage::new("assistant", text),
                        finish_reason: finish_name(finish).to_owned(),
                        logprobs: None,
                    }],
                    usage: head.usage(count),
                    x_tirami: Some(head.info(&charged)),
                }));
                return;
            }
            Some(Piece::Failed { reason }) => {
                tracing::warn!(reason, "the engine failed");
                drop(generation);
                job.void(true).await;
                let _ = reply.send(Err(engine_failed()));
                return;
            }
            None => {
                job.void(true).await;
                let _ = reply.send(Err(engine_failed()));
                return;
            }
        }
    };
    // The engine is freed before anything else is waited for.
    drop(generation);
    job.void(false).await;
    if let Some(error) = error {
        let _ = reply.send(Err(error));
    }
}

pub(super) fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled | FinishReason::Failed => "stop",
    }
}

pub(super) fn engine_failed() -> ApiError {
    ApiError::server(
        StatusCode::INTERNAL_SERVER_ERROR,
        "engine_failed",
        "the model's engine failed while answering; the node's log says why",
    )
}

pub(super) fn cancelled() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "cancelled",
        "job_cancelled",
        "the node ended the job: the kill switch was turned on, the API key was revoked, or the \
         job's time ran out",
    )
}

pub(super) fn stopping() -> ApiError {
    ApiError::server(
        StatusCode::SERVICE_UNAVAILABLE,
        "stopping",
        "the node is stopping; ask again when it has started",
    )
}

pub(super) fn broken() -> ApiError {
    ApiError::server(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "the job ended without a word; the node's log says why",
    )
}
