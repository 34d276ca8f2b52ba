//! Why an answer of a server elsewhere broke off: what whoever asked is told of it, and what the
//! node's log says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tirami_infer::engine::Failure;
use tirami_sdk::upstream::{UpstreamEndpoint, UpstreamError};
use tokio::time::{Instant, sleep, timeout_at};

/// How long a server that is full is left alone, at first and at most.
const FULL_PAUSE: Duration = Duration::from_millis(500);
const FULL_PAUSE_MAX: Duration = Duration::from_secs(8);

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

    /// What a server's refusal means, where `endpoint` was asked for the model it calls `model`.
    fn at((endpoint, model): (UpstreamEndpoint, &str), error: UpstreamError) -> Self {
        let is_missing = match &error {
            UpstreamError::Refused { status: 405 | 501, .. } => true,
            // All such servers have chats; and one that has the endpoint names the model it lacks.
            UpstreamError::Refused { status: 404, reason, .. } => {
                endpoint != UpstreamEndpoint::Chat && !reason.contains(model)
            }
            _ => false,
        };
        let reason = error.to_string();
        match is_missing {
            true => Self { failure: Some(Failure::NoEndpoint { path: endpoint.path() }), reason },
            false => error.into(),
        }
    }
}

/// Asks a server, again and again while it is full; until `latest` it has to answer. `what` is
/// the endpoint, and what the server calls the model. Whether the server `stands` still is told
/// in the log once, until it answers again.
pub(super) async fn patiently<T, F: Future<Output = Result<T, UpstreamError>>>(
    latest: Instant,
    what: (UpstreamEndpoint, &str),
    stands: &AtomicBool,
    ask: impl Fn() -> F,
) -> Result<T, Broken> {
    let mut pause = FULL_PAUSE;
    loop {
        let asked = timeout_at(latest, ask()).await;
        let error = match asked.map_err(|_| Broken::of(Failure::Slow))? {
            Ok(answer) => {
                stands.store(false, Ordering::Relaxed);
                return Ok(answer);
            }
            Err(error) => error,
        };
        // It is full, by others' requests too: this one waits as it would in its queue.
        let wait = match &error {
            UpstreamError::Refused { status: 429 | 503, retry_after, .. } => {
                retry_after.map_or(pause, |after| after.max(FULL_PAUSE))
            }
            _ => return Err(Broken::at(what, error)),
        };
        if wait >= latest.saturating_duration_since(Instant::now()) {
            return Err(Broken::at(what, error));
        }
        if !stands.swap(true, Ordering::Relaxed) {
            let (model, seconds) = (what.1, wait.as_secs_f32());
            tracing::warn!(model, seconds, %error, "the server is full: it is asked again");
        }
        sleep(wait).await;
        pause = FULL_PAUSE_MAX.min(2 * pause);
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
            UpstreamError::Refused { status, reason, retry_after } => {
                refused(status, reason, retry_after)
            }
            UpstreamError::BrokenOff { .. } => Some(Failure::BrokenOff),
            UpstreamError::Answer { .. } => None,
        };
        Self { failure, reason }
    }
}

/// What a server means by a status. Its words are told on only where they are about the request:
/// the others are about the node, and for its owner.
fn refused(status: u16, words: String, retry_after: Option<Duration>) -> Option<Failure> {
    Some(match status {
        400 | 413 | 422 => {
            let message = if words.is_empty() { "it does not say why".to_owned() } else { words };
            Failure::Invalid { message }
        }
        401 | 403 => Failure::Misconfigured,
        404 => Failure::UnknownModel,
        429 | 503 => retry_after.map_or(Failure::Full, |after| {
            let seconds = after.as_secs().max(1);
            Failure::FullFor { seconds }
        }),
        // What stands before the server does not reach it, or waits in vain.
        502 => Failure::Unreachable,
        504 => Failure::Slow,
        _ => return None,
    })
}
