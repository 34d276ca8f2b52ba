//! A client that is the same for all servers: one connection for each answer, its pieces timed.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::servers::Server;

/// An answer with the times at which its pieces came.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) sent: Instant,
    pub(crate) arrived: Vec<Instant>,
    pub(crate) text: String,
    /// Completion tokens, as the server counts them, or the pieces where it does not.
    pub(crate) tokens: usize,
    pub(crate) ended: Instant,
}

impl Answer {
    /// From the request to the first piece, in milliseconds.
    pub(crate) fn first_ms(&self) -> f64 {
        let first = self.arrived.first().expect("the answer is not empty");
        (*first - self.sent).as_secs_f64() * 1e3
    }

    /// Tokens after the first, per second.
    pub(crate) fn rate(&self) -> f64 {
        let [first, .., last] = self.arrived[..] else { panic!("the answer is too short") };
        (self.tokens - 1) as f64 / (last - first).as_secs_f64()
    }

    /// The longest time without a piece between two moments.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let gaps = self.arrived.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
        gaps.map(|pair| pair[1] - pair[0]).max().expect("the stream went on meanwhile")
    }
}

/// What a chat that begins with this question has before it: its own number, so that no request's
/// prompt begins like another's, as they would with the template's own words.
pub(crate) fn system_of(question: &str) -> String {
    let number = question.split(['.', ':']).next().unwrap_or_default();
    format!("{number} is what this request is called.")
}

/// One greedy answer to a chat of `(role, content)`.
pub(crate) fn ask(server: &Server, messages: &[(&str, &str)], tokens: u32) -> Answer {
    ask_until(server, messages, tokens, |_| false)
}

/// The same; the client leaves when `enough` says so, asked after each piece.
pub(crate) fn ask_until(
    server: &Server,
    messages: &[(&str, &str)],
    tokens: u32,
    mut enough: impl FnMut(usize) -> bool,
) -> Answer {
    let turn = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
    let system = system_of(messages.first().map_or("", |(_, question)| question));
    let all = [("system", system.as_str())].into_iter().chain(messages.iter().copied());
    let body = json!({
        "model": server.model,
        "messages": all.map(|one| turn(&one)).collect::<Vec<_>>(),
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let sent = Instant::now();
    let mut answer =
        Answer { sent, arrived: Vec::new(), text: String::new(), tokens: 0, ended: sent };
    let mut counted = None;
    for line in events(server, &body.to_string()).lines() {
        let line = line.expect("the stream can be read");
        let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else {
            continue;
        };
        let event: Value = serde_json::from_str(data).expect("an event is JSON");
        assert!(event.get("error").is_none(), "{}: {event}", server.name);
        if let Some(text) =
            event["choices"][0]["delta"]["content"].as_str().filter(|t| !t.is_empty())
        {
            answer.arrived.push(Instant::now());
            answer.text += text;
        }
        counted = event["usage"]["completion_tokens"].as_u64().or(counted);
        if enough(answer.arrived.len()) {
            break;
        }
    }
    answer.ended = Instant::now();
    answer.tokens = counted.map_or(answer.arrived.len(), |count| count as usize);
    answer
}

/// The body of an answer that was accepted.
fn events(server: &Server, body: &str) -> BufReader<Chunked<BufReader<TcpStream>>> {
    let mut stream = TcpStream::connect(&server.address).expect("the server listens");
    stream.set_nodelay(true).expect("a socket");
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        server.address,
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("the server reads");
    let mut inner = BufReader::new(stream);
    let mut is_chunked = false;
    let mut status = String::new();
    inner.read_line(&mut status).expect("a status line");
    loop {
        let mut line = String::new();
        inner.read_line(&mut line).expect("a header");
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        is_chunked |= line == "transfer-encoding: chunked";
    }
    let mut body = Chunked { inner, left: (!is_chunked).then_some(usize::MAX), ended: false };
    if !status.contains(" 200 ") {
        let mut text = String::new();
        let _ = body.read_to_string(&mut text);
        panic!("{}: {status}{text}", server.name);
    }
    BufReader::new(body)
}

/// A body in chunks, or one that ends with its connection.
struct Chunked<R> {
    inner: R,
    /// Bytes left of the chunk; none before the first.
    left: Option<usize>,
    ended: bool,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while !self.ended && self.left.is_none_or(|left| left == 0) {
            let mut line = String::new();
            if self.inner.read_line(&mut line)? == 0 {
                self.ended = true;
            }
            let size = line.trim();
            if !size.is_empty() {
                let size = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
                self.left = Some(size);
                self.ended = size == 0;
            }
        }
        if self.ended {
            return Ok(0);
        }
        let left = self.left.unwrap_or(0);
        let most = buffer.len().min(left);
        let count = self.inner.read(&mut buffer[..most])?;
        self.left = Some(left - count);
        self.ended = count == 0;
        Ok(count)
    }
}
