//! An answer in one piece. It is delivered when it is complete, so a client that leaves before
//! owes nothing.

use axum::response::Response;
use tokio::sync::oneshot;

use super::choices::{Step, after};
use super::{Begun, Run, broken, cancelled, keep, late, stopping};
use crate::http::error::ApiError;
use crate::http::json;

type Reply = oneshot::Sender<Result<Vec<u8>, ApiError>>;

pub(super) async fn answer(run: Run) -> Result<Response, ApiError> {
    let (reply, answer) = oneshot::channel();
    let jobs = run.app.jobs.clone();
    jobs.spawn(work(run, reply));
    match answer.await {
        Ok(result) => result.map(json::written),
        Err(_) => Err(broken()),
    }
}

async fn work(run: Run, reply: Reply) {
    match run.begin_in_time().await {
        Ok(begun) => collect(begun, reply).await,
        Err(error) => {
            let _ = reply.send(Err(error));
        }
    }
}

async fn collect(begun: Begun, mut reply: Reply) {
    let Begun { app, mut choices, mut head, mut form, deadline, asked_at } = begun;
    let mut has_token = false;
    // Of each answer's tokens, those whose text is certain.
    let mut certain = vec![0; choices.all.len()];
    let error = loop {
        let next = tokio::select! {
            biased;
            () = app.cut.cancelled() => break Some(stopping()),
            () = reply.closed() => break None,
            () = deadline.passed() => {
                if !choices.cut(&certain) {
                    break Some(late());
                }
                None
            }
            next = choices.next() => next,
        };
        if let Some(served) = choices.moved() {
            head.is_made_by(served);
        }
        if !has_token && choices.tokens() > 0 {
            has_token = true;
            app.metrics.first_token(asked_at.elapsed());
        }
        match next {
            Some((index, Step::Told(news))) => {
                let choice = &mut choices.all[index];
                choice.job.received(choice.tokens);
                if !news.said.is_empty() {
                    certain[index] = choice.tokens;
                }
                form.gathers(index, news);
            }
            Some((_, Step::Ordered)) => break Some(cancelled()),
            Some((_, Step::Failed)) => {
                let error = choices.failure();
                // Nothing of it was handed over, so nothing is owed here.
                let has_failed = choices.has_failed();
                let charged = choices.void(has_failed).await;
                let _ = reply.send(Err(after(error, charged)));
                return;
            }
            None => {
                app.metrics.answered(asked_at.elapsed(), choices.tokens());
                let ended = choices.finish(&head).await;
                let told = match ended {
                    Ok(end) => {
                        keep(&app, &mut *form, (&head, &end)).await;
                        Ok(form.whole(&head, &end))
                    }
                    Err(error) => Err(error),
                };
                let _ = reply.send(told);
                return;
            }
        }
    };
    let charged = choices.void(false).await;
    if let Some(error) = error {
        let _ = reply.send(Err(after(error, charged)));
    }
}
