//! A small HTTP client for one local node: one request per connection, bodies read to the end.
//!
//! Requests are HTTP/1.0, so that an answer, streamed or not, ends with the connection and
//! needs no unpacking.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::json::Json;
use crate::{Failure, Outcome};

/// How long the node may stay silent before the demo gives up on it.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A node's API as its owner sees it.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// `host:port`.
    pub(crate) address: String,
    /// The API key sent with each request; without one the node's loopback rules apply.
    pub(crate) key: Option<String>,
}

impl Api {
    /// Gets a path as JSON; any status but 2xx is a failure that shows the body.
    pub(crate) fn get(&self, path: &str) -> Outcome<Json> {
        self.send("GET", path, None)?.json(path)
    }

    /// Posts JSON and reads JSON; any status but 2xx is a failure that shows the body.
    pub(crate) fn post(&self, path: &str, body: &str) -> Outcome<Json> {
        self.send("POST", path, Some(body))?.json(path)
    }

    /// Posts JSON and hands over the data of each server-sent event until the stream ends.
    ///
    /// A connection that breaks ends the stream like any other end: the caller kills nodes.
    pub(crate) fn post_events(
        &self,
        path: &str,
        body: &str,
        mut event: impl FnMut(&str) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut answer = self.send("POST", path, Some(body))?;
        if answer.status != 200 {
            return answer.json(path).map(|_| ());
        }
        let mut line = String::new();
        while answer.body.read_line(&mut line).is_ok_and(|read| read > 0) {
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                event(data)?;
            }
            line.clear();
        }
        Ok(())
    }

    fn send(&self, method: &str, path: &str, body: Option<&str>) -> Outcome<Answer> {
        self.try_send(method, path, body).map_err(|error| {
            Failure::new(format!("no answer to {method} {path} from {}: {error}", self.address))
        })
    }

    fn try_send(&self, method: &str, path: &str, body: Option<&str>) -> std::io::Result<Answer> {
        let mut connection = TcpStream::connect(&self.address)?;
        connection.set_read_timeout(Some(SILENCE_MAX))?;
        let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\n", self.address);
        if let Some(key) = &self.key {
            head.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        let body = body.unwrap_or("");
        if !body.is_empty() {
            head.push_str("Content-Type: application/json\r\n");
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        connection.write_all(head.as_bytes())?;
        let mut reader = BufReader::new(connection);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        while line.trim_end() != "" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                break;
            }
        }
        Ok(Answer { status, body: reader })
    }
}

struct Answer {
    status: u16,
    body: BufReader<TcpStream>,
}

impl Answer {
    fn json(mut self, path: &str) -> Outcome<Json> {
        let mut text = String::new();
        self.body
            .read_to_string(&mut text)
            .map_err(|error| Failure::new(format!("the answer to {path} broke off: {error}")))?;
        if !(200..300).contains(&self.status) {
            return Err(Failure::new(format!("{path} answered {}: {text}", self.status)));
        }
        Json::parse(&text)
    }
}
