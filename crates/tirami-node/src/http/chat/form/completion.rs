//! OpenAI's older completions: texts that are continued as they stand.

use bytes::Bytes;
use tirami_infer::calls::Said;
use tirami_infer::engine::{Likely, TokenLogprobs};
use tirami_sdk::types::{CompletionChoice, CompletionLogprobs, CompletionResponse};

use super::{DONE, Ended, Form, Gathered, Head, News, event, written};
use crate::http::error::ApiError;

/// A text's continuations as OpenAI tells them; a piece of a stream has the shape of the whole.
pub(in crate::http::chat) struct CompletionForm {
    pub(in crate::http::chat) include_usage: bool,
    pub(in crate::http::chat) logprobs: bool,
    /// What each answer begins with, before what the model says; empty for no such thing.
    pub(in crate::http::chat) echo: Vec<String>,
    /// Characters that each answer's tokens have so far.
    pub(in crate::http::chat) offsets: Vec<u32>,
    pub(in crate::http::chat) gathered: Gathered,
}

impl Form for CompletionForm {
    fn prefix(&self) -> &'static str {
        "cmpl-"
    }

    fn begins(&mut self, head: &Head, choice: usize) -> Bytes {
        match self.echo.get(choice).filter(|echo| !echo.is_empty()) {
            None => Bytes::new(),
            Some(echo) => {
                let text = echo.clone();
                event(&response(head, vec![CompletionChoice { text, ..piece(choice) }]))
            }
        }
    }

    fn says(&mut self, head: &Head, choice: usize, news: News) -> Bytes {
        let text = text_of(news.said);
        let logprobs = self.shown(choice, news.likely);
        event(&response(head, vec![CompletionChoice { text, logprobs, ..piece(choice) }]))
    }

    fn ends(&mut self, head: &Head, end: &Ended) -> Vec<Bytes> {
        let ends = end.finishes.iter().enumerate().map(|(choice, finished)| {
            let finish_reason = Some(finished.reason.to_owned());
            response(head, vec![CompletionChoice { finish_reason, ..piece(choice) }])
        });
        let usage = self
            .include_usage
            .then(|| CompletionResponse { usage: Some(end.usage), ..response(head, Vec::new()) });
        let mut last: Vec<_> = ends.chain(usage).collect();
        if let Some(last) = last.last_mut() {
            last.x_tirami = Some(end.info.clone());
        }
        last.iter().map(event).chain([DONE]).collect()
    }

    fn breaks(&mut self, _: &Head, error: &ApiError) -> Bytes {
        event(error.body())
    }

    fn gathers(&mut self, choice: usize, news: News) {
        self.gathered.add(choice, news);
    }

    fn whole(&mut self, head: &Head, end: &Ended) -> Vec<u8> {
        let choices = end.finishes.iter().enumerate().map(|(choice, finished)| {
            let answer = self.gathered.take(choice);
            let echo = self.echo.get(choice).cloned().unwrap_or_default();
            CompletionChoice {
                text: echo + &answer.text,
                logprobs: self.shown(choice, answer.likely),
                finish_reason: Some(finished.reason.to_owned()),
                ..piece(choice)
            }
        });
        let choices = choices.collect();
        written(&CompletionResponse {
            usage: Some(end.usage),
            x_tirami: Some(end.info.clone()),
            ..response(head, choices)
        })
    }
}

impl CompletionForm {
    /// The likelihoods as the interface shows them; none where none were asked for.
    fn shown(&mut self, choice: usize, likely: Vec<TokenLogprobs>) -> Option<CompletionLogprobs> {
        if !self.logprobs {
            return None;
        }
        let offset = self.offsets.get_mut(choice)?;
        let mut shown = CompletionLogprobs::default();
        for TokenLogprobs { chosen, top } in likely {
            shown.text_offset.push(*offset);
            *offset = offset.saturating_add(characters(&chosen.bytes));
            // The chosen token is told even where it is none of the likeliest.
            let told = top.iter().chain([&chosen]);
            let told = told.map(|one| (token_text(one), one.logprob.into()));
            // Before the first token of a text stands nothing that could make it likely.
            let is_first = shown.tokens.is_empty() && !self.echo.is_empty();
            shown.top_logprobs.push((!is_first).then(|| told.collect()));
            shown.tokens.push(token_text(&chosen));
            shown.token_logprobs.push((!is_first).then(|| chosen.logprob.into()));
        }
        Some(shown)
    }
}

/// Characters that begin in these bytes.
fn characters(bytes: &[u8]) -> u32 {
    let begins = |byte: &&u8| *byte & 0xc0 != 0x80;
    u32::try_from(bytes.iter().filter(begins).count()).unwrap_or(u32::MAX)
}

/// A token's text; a part of a character is spelt by its bytes, so that tokens stay distinct.
fn token_text(token: &Likely) -> String {
    match str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let bytes = token.bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", bytes.collect::<String>())
        }
    }
}

fn text_of(said: Vec<Said>) -> String {
    let mut texts = said.into_iter().filter_map(|said| match said {
        Said::Text(text) => Some(text),
        // No tool can be called.
        Said::Call { .. } | Said::Arguments { .. } => None,
    });
    let first = texts.next().unwrap_or_default();
    texts.fold(first, |all, text| all + &text)
}

fn response(head: &Head, choices: Vec<CompletionChoice>) -> CompletionResponse {
    CompletionResponse {
        id: head.id.clone(),
        object: "text_completion".to_owned(),
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: head.build.clone(),
        choices,
        usage: None,
        x_tirami: None,
    }
}

fn piece(choice: usize) -> CompletionChoice {
    let index = u32::try_from(choice).unwrap_or(u32::MAX);
    CompletionChoice { index, ..CompletionChoice::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_characters_and_no_two_tokens_have_one_name() {
        let token = |bytes: &[u8]| Likely { bytes: bytes.to_vec(), logprob: -1.0 };
        let of = |bytes: &[u8]| TokenLogprobs { chosen: token(bytes), top: vec![token(b"x")] };
        let mut form = CompletionForm {
            include_usage: false,
            logprobs: true,
            echo: Vec::new(),
            offsets: vec![0],
            gathered: Gathered::default(),
        };
        let likely = vec![of("né".as_bytes()), of(&[0xf0, 0x9f]), of(&[0x98, 0x80])];
        let shown = form.shown(0, likely).unwrap();
        assert_eq!(shown.text_offset, [0, 2, 3]);
        assert_eq!(shown.tokens, ["né", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80"]);
        let top = shown.top_logprobs[1].as_ref().unwrap();
        assert_eq!(top.keys().collect::<Vec<_>>(), ["bytes:\\xf0\\x9f", "x"]);
        assert_eq!(form.shown(0, vec![of(b"!")]).unwrap().text_offset, [3]);
    }
}
