//! Server-sent events: a parser that does not care where the network cuts them.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::Stream;

use crate::ClientError;
use crate::error::Refusal;
use crate::types::{ChatChunk, ErrorBody};

/// Bytes of one event at most; a longer one ends the stream with an error.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;

type Body = Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>> + Send>>;

/// The chunks of a streamed answer, in order. It ends after the node's `[DONE]`; an answer that
/// breaks off before that ends with an error, so half an answer is never taken for a whole one.
///
/// Dropping it tells the node to stop; what was delivered is charged, nothing else.
pub struct ChatStream {
    url: String,
    request_id: Option<String>,
    body: Body,
    parser: EventParser,
    ready: VecDeque<String>,
    done: bool,
}

impl ChatStream {
    pub(crate) fn new(url: String, request_id: Option<String>, body: Body) -> Self {
        let parser = EventParser::default();
        Self { url, request_id, body, parser, ready: VecDeque::new(), done: false }
    }

    fn chunk(&mut self, data: &str) -> Result<ChatChunk, ClientError> {
        match serde_json::from_str(data) {
            Ok(chunk) => Ok(chunk),
            Err(source) => {
                self.done = true;
                match serde_json::from_str::<ErrorBody>(data) {
                    Ok(body) => Err(ClientError::Refused(Box::new(Refusal::new(
                        None,
                        body,
                        self.request_id.clone(),
                        None,
                    )))),
                    Err(_) => Err(ClientError::Answer { reason: source.to_string() }),
                }
            }
        }
    }

    fn fail(&mut self, reason: &str) -> Option<Result<ChatChunk, ClientError>> {
        self.done = true;
        Some(Err(ClientError::Answer { reason: reason.to_owned() }))
    }
}

impl Stream for ChatStream {
    type Item = Result<ChatChunk, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.done {
                return Poll::Ready(None);
            }
            if let Some(data) = self.ready.pop_front() {
                if data == "[DONE]" {
                    self.done = true;
                    return Poll::Ready(None);
                }
                return Poll::Ready(Some(self.chunk(&data)));
            }
            match ready!(self.body.as_mut().poll_next(cx)) {
                Some(Ok(bytes)) => {
                    let Self { parser, ready, .. } = &mut *self;
                    if let Err(reason) = parser.push(&bytes, ready) {
                        return Poll::Ready(self.fail(reason));
                    }
                }
                Some(Err(source)) => {
                    self.done = true;
                    let url = self.url.clone();
                    return Poll::Ready(Some(Err(ClientError::Connection { url, source })));
                }
                None => {
                    return Poll::Ready(self.fail("the stream broke off before its end"));
                }
            }
        }
    }
}

/// Cuts a byte stream into the data of its events.
///
/// Lines end in LF, CR or CRLF, wherever the bytes are cut; several `data` lines of one event are
/// joined by LF; comments and other fields are skipped.
#[derive(Default)]
pub(crate) struct EventParser {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    after_cr: bool,
}

impl EventParser {
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        out: &mut VecDeque<String>,
    ) -> Result<(), &'static str> {
        for &byte in bytes {
            let after_cr = core::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => self.end_line(out)?,
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > EVENT_BYTES_MAX {
                return Err("an event of the stream is too long");
            }
        }
        Ok(())
    }

    fn end_line(&mut self, out: &mut VecDeque<String>) -> Result<(), &'static str> {
        let line = core::mem::take(&mut self.line);
        if line.is_empty() {
            if let Some(data) = self.data.take() {
                let text = String::from_utf8(data).map_err(|_| "the stream is not UTF-8")?;
                out.push_back(text);
            }
            return Ok(());
        }
        let Some(value) = line.strip_prefix(b"data:") else {
            return Ok(());
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Result<Vec<String>, &'static str> {
        let mut parser = EventParser::default();
        let mut out = VecDeque::new();
        for piece in pieces {
            parser.push(piece, &mut out)?;
        }
        Ok(out.into())
    }

    #[test]
    fn events_are_the_same_wherever_they_are_cut() {
        let text = "data: grüße 🦀\n\ndata:two\r\ndata: lines\r\n\r\n: comment\n\
                    event: x\ndata: three\r\rdata: [DONE]\n\n"
            .as_bytes();
        let whole = parse(&[text]).unwrap();
        assert_eq!(whole, ["grüße 🦀", "two\nlines", "three", "[DONE]"]);
        for cut in 0..text.len() {
            assert_eq!(parse(&[&text[..cut], &text[cut..]]).unwrap(), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(parse(&bytes).unwrap(), whole);
    }

    #[test]
    fn an_endless_event_and_broken_text_are_refused() {
        let long = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert!(parse(&[&long]).is_err());
        let line = [b"data:".as_slice(), &[b'x'; 1000], b"\n"].concat();
        let lines: Vec<&[u8]> = (0..1100).map(|_| line.as_slice()).collect();
        assert!(parse(&lines).is_err());
        assert!(parse(&[b"data: \xff\n\n"]).is_err());
    }
}
