//! Why an answer of a server elsewhere broke off: what whoever asked is told of it, and what the
//! node's log says.

use tirami_infer::engine::Failure;
use tirami_sdk::upstream::UpstreamError;

/// An answer that broke off.
#[derive(Debug)]
pub(super) struct Broken {
    /// What kind of failure it is; none where whoever asked can do nothing about it.
    pub(super) failure: Option<Failure>,
    /// One sentence for the node's owner.
    pub(super) reason: String,
}

impl Broken {
    /// One of this kind, said as it is said to whoever asked.
    pub(super) fn of(failure: Failure) -> Self {
        Self { reason: failure.to_string(), failure: Some(failure) }
    }
}

impl From<String> for Broken {
    fn from(reason: String) -> Self {
        Self { failure: None, reason }
    }
}

impl From<UpstreamError> for Broken {
    fn from(error: UpstreamError) -> Self {
        let reason = error.to_string();
        let failure = match error {
            UpstreamError::Unreachable { .. } => Some(Failure::Unreachable),
            UpstreamError::Refused { status, reason } => refused(status, reason),
            UpstreamError::BrokenOff { .. } => Some(Failure::BrokenOff),
            UpstreamError::Answer { .. } => None,
        };
        Self { failure, reason }
    }
}

/// What a server means by a status. Its words are told on only where they are about the request:
/// the others are about the node, and for its owner.
fn refused(status: u16, words: String) -> Option<Failure> {
    Some(match status {
        400 | 413 | 422 => {
            let message = if words.is_empty() { "it does not say why".to_owned() } else { words };
            Failure::Invalid { message }
        }
        401 | 403 => Failure::Misconfigured,
        404 => Failure::UnknownModel,
        429 | 503 => Failure::Full,
        // What stands before the server does not reach it, or waits in vain.
        502 => Failure::Unreachable,
        504 => Failure::Slow,
        _ => return None,
    })
}
