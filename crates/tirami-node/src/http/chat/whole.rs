//! An answer in one piece. It is delivered when it is complete, so a client that leaves before
//! owes nothing.

use axum::response::Response;
use tirami_infer::engine::Piece;
use tirami_sdk::types::{ChatChoice, ChatMessage, ChatResponse};
use tokio::sync::oneshot;

use super::{Begun, Run, broken, cancelled, finish_name, finish_of, stopping};
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
    match run.begin().await {
        Ok(begun) => collect(begun, reply).await,
        Err(error) => {
            let _ = reply.send(Err(error));
        }
    }
}

async fn collect(begun: Begun, mut reply: Reply) {
    let Begun { app, mut job, mut generation, head, asked_at } = begun;
    let mut text = String::new();
    let mut count = 0;
    let error = loop {
        let piece = tokio::select! {
            biased;
            () = job.cancelled() => break Some(cancelled()),
            () = app.cut.cancelled() => break Some(stopping()),
            () = reply.closed() => break None,
            piece = generation.pieces.recv() => piece,
        };
        match piece {
            Some(Piece::Delta { tokens, text: more, .. }) => {
                if count == 0 {
                    app.metrics.first_token(asked_at.elapsed());
                }
                job.cached(generation.cached_tokens());
                count = job.produced(&tokens);
                job.received(count);
                text.push_str(&more);
            }
            Some(Piece::End { text: more, finish }) => {
                text.push_str(&more);
                drop(generation);
                app.metrics.answered(asked_at.elapsed(), count);
                let finish = finish_of(finish);
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
            failed => {
                if let Some(Piece::Failed { reason }) = failed {
                    tracing::warn!(reason, "the engine failed");
                }
                drop(generation);
                let error = job.failure();
                // Nothing of it was handed over, so nothing is owed here.
                job.void(true).await;
                let _ = reply.send(Err(error));
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
