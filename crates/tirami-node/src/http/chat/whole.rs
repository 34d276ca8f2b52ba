//! An answer in one piece. It is delivered when it is complete, so a client that leaves before
//! owes nothing.

use axum::response::Response;
use tirami_infer::calls::Said;
use tirami_infer::engine::TokenLogprobs;
use tirami_sdk::types::{CalledFunction, ChatChoice, ChatMessage, ChatResponse, Content, ToolCall};
use tokio::sync::oneshot;

use super::choices::{Step, call_id, shown};
use super::{Begun, Run, broken, cancelled, stopping};
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
    let Begun { app, mut choices, head, shape, asked_at } = begun;
    let mut has_token = false;
    let mut answers: Vec<Answer> = choices.all.iter().map(|_| Answer::default()).collect();
    let error = loop {
        let next = tokio::select! {
            biased;
            () = app.cut.cancelled() => break Some(stopping()),
            () = reply.closed() => break None,
            next = choices.next() => next,
        };
        if !has_token && choices.tokens() > 0 {
            has_token = true;
            app.metrics.first_token(asked_at.elapsed());
        }
        match next {
            Some((index, Step::Said { said, likely })) => {
                let choice = &mut choices.all[index];
                choice.job.received(choice.tokens);
                said.into_iter().for_each(|said| answers[index].took(said));
                answers[index].likely.extend(likely);
            }
            Some((_, Step::Ordered)) => break Some(cancelled()),
            Some((_, Step::Failed)) => {
                let error = choices.failure();
                // Nothing of it was handed over, so nothing is owed here.
                choices.void(true).await;
                let _ = reply.send(Err(error));
                return;
            }
            None => {
                app.metrics.answered(asked_at.elapsed(), choices.tokens());
                let (usage, finishes) = (head.usage(choices.tokens()), choices.finishes());
                let result = choices.finish().await;
                let choices = answers.into_iter().zip(finishes);
                let choices = choices.enumerate().map(|(index, (answer, finish))| ChatChoice {
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    logprobs: shown(answer.likely.clone(), shape.logprobs),
                    message: answer.message(&head.id, index),
                    finish_reason: finish.to_owned(),
                });
                let _ = reply.send(result.map(|charged| ChatResponse {
                    id: head.id.clone(),
                    object: "chat.completion".to_owned(),
                    created: head.created,
                    model: head.model.clone(),
                    system_fingerprint: head.build.clone(),
                    choices: choices.collect(),
                    usage,
                    x_tirami: Some(head.info(&charged)),
                }));
                return;
            }
        }
    };
    choices.void(false).await;
    if let Some(error) = error {
        let _ = reply.send(Err(error));
    }
}

/// What came of one answer.
#[derive(Default)]
struct Answer {
    text: String,
    calls: Vec<CalledFunction>,
    likely: Vec<TokenLogprobs>,
}

impl Answer {
    fn took(&mut self, said: Said) {
        match said {
            Said::Text(text) => self.text.push_str(&text),
            Said::Call { name, .. } => {
                self.calls.push(CalledFunction { name, arguments: String::new() });
            }
            Said::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
    }

    fn message(self, id: &str, choice: usize) -> ChatMessage {
        let mut message = ChatMessage::new("assistant", self.text);
        if !self.calls.is_empty() && message.content.as_ref().is_some_and(Content::is_empty) {
            message.content = None;
        }
        let calls = self.calls.into_iter().zip(0..).map(|(function, call)| ToolCall {
            id: call_id(id, choice, call),
            kind: "function".to_owned(),
            function,
        });
        message.tool_calls = calls.collect();
        message
    }
}
