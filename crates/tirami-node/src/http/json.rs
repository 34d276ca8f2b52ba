//! JSON in and out: bounded bodies, the right content type, and sentences for what is wrong.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::{AppState, HttpConfig};

/// An answer of 200 with `value` as JSON.
pub(super) fn ok(value: &impl Serialize) -> Response {
    response(StatusCode::OK, value)
}

/// An answer of 200 with JSON that is written.
pub(super) fn written(bytes: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], bytes).into_response()
}

/// An answer with `value` as JSON.
pub(super) fn response(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let kind = HeaderValue::from_static("application/json");
            (status, [(CONTENT_TYPE, kind)], bytes).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Bodies of all requests together, while they come and as long as somebody has them: 128 MiB. The
/// first [`STEP_BYTES`] of each are beside it, bounded by the connections: a short request, such as
/// the owner's to stop everything, never finds that others took the room.
const ROOM_STEPS: usize = (128 << 20) / STEP_BYTES;
/// Bytes of a body for which room is taken at a time, as they come.
const STEP_BYTES: usize = 64 * 1024;
/// A longer body is parsed on a thread that may be busy for a while, in bytes.
const AT_ONCE_BYTES_MAX: usize = 64 * 1024;
/// When a body may find room.
const SECONDS_UNTIL_ROOM: u64 = 2;
/// Values of one body at most, of all kinds: a value of two bytes takes 80 in memory. It leaves
/// room for the 300 000 tokens that may be embedded at a time.
const VALUES_MAX: usize = 400_000;
/// Fields and lists of one body at most: each takes up to half a KiB in memory. It leaves room for
/// 16 in each message of the longest chat.
const PARTS_MAX: usize = 65_536;

/// Room for the bodies of all requests, and turns for reading long ones. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Intake {
    room: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Intake {
    /// With half of the cores for reading.
    pub(super) fn new() -> Self {
        let turns = Arc::new(Semaphore::new(crate::mesh::understanding_max()));
        Self { room: Arc::new(Semaphore::new(ROOM_STEPS)), turns }
    }

    /// What of a body comes; the room it takes is free again when the last of its copies is gone.
    async fn gather(&self, body: Body, max: usize) -> Result<Bytes, ApiError> {
        let (mut pieces, mut bytes) = (body.into_data_stream(), Vec::<u8>::new());
        let (mut taken, mut room) = (0_usize, Vec::new());
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| {
                ApiError::malformed(format!("the body could not be read: {error}"))
            })?;
            let length = bytes.len().saturating_add(piece.len());
            if length > max {
                return Err(too_large(max));
            }
            let more = (length.saturating_sub(1) / STEP_BYTES).saturating_sub(taken);
            if more > 0 {
                let steps = u32::try_from(more).map_err(|_| too_large(max))?;
                let step = Arc::clone(&self.room).try_acquire_many_owned(steps);
                room.push(step.map_err(|_| no_room())?);
                taken += more;
            }
            bytes.extend_from_slice(&piece);
        }
        bytes.shrink_to_fit();
        Ok(Bytes::from_owner(Held { bytes, _room: room }))
    }
}

/// A body and the room it takes.
struct Held {
    bytes: Vec<u8>,
    _room: Vec<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn too_large(max: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "invalid_request_error",
        "body_too_large",
        format!("the body has more than {max} bytes; shorten it or raise body_max_bytes"),
    )
}

fn no_room() -> ApiError {
    ApiError::too_many(
        "bodies_full",
        SECONDS_UNTIL_ROOM,
        "the bodies of other requests take all the room there is; try again in 2 seconds",
    )
}

/// The body of a request that must be JSON, within the bounds of the node.
pub(super) async fn body(request: Request<Body>, app: &AppState) -> Result<Bytes, ApiError> {
    received(request, &app.config, &app.bodies).await
}

async fn received(
    request: Request<Body>,
    config: &HttpConfig,
    intake: &Intake,
) -> Result<Bytes, ApiError> {
    let (max, within) = (config.body_max_bytes, config.body_within);
    check_content_type(request.headers())?;
    let declared = request.headers().get(axum::http::header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > max) {
        return Err(too_large(max));
    }
    let read = intake.gather(request.into_body(), max);
    tokio::time::timeout(within, read).await.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "body_too_slow",
            format!("the body took longer than {} s; send it faster", within.as_secs()),
        ))
    })
}

/// A request's body as a `T`.
pub(super) async fn read<T: DeserializeOwned + Send + 'static>(
    request: Request<Body>,
    app: &AppState,
) -> Result<T, ApiError> {
    understood(app, body(request, app).await?, Ok::<T, ApiError>).await
}

/// What `read` makes of a body. A long one is parsed, looked at and dropped when it is its turn, on
/// a thread that may be busy for a while: no other request, nor another node, may wait for it.
pub(super) async fn understood<T, U>(
    app: &AppState,
    body: Bytes,
    read: impl FnOnce(T) -> Result<U, ApiError> + Send + 'static,
) -> Result<U, ApiError>
where
    T: DeserializeOwned,
    U: Send + 'static,
{
    if body.len() <= AT_ONCE_BYTES_MAX {
        return read(parse(&body)?);
    }
    let turns = Arc::clone(&app.bodies.turns);
    let turn = turns.acquire_owned().await.map_err(|_| unread())?;
    let reading = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        read(parse(&body)?)
    });
    reading.await.map_err(|_| unread())?
}

fn unread() -> ApiError {
    let message = "the body could not be read; the node's log says why";
    ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}

/// Reads JSON, with a sentence for what is wrong with it.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::malformed("the body is empty; send a JSON object"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        ApiError::malformed(format!(
            "the body is not UTF-8 from byte {} on; encode it as UTF-8",
            error.valid_up_to()
        ))
    })?;
    check_count(bytes)?;
    serde_json::from_str(text).map_err(|error| {
        ApiError::malformed(match error.classify() {
            serde_json::error::Category::Data => misunderstood(&error),
            _ => format!("the body is not JSON: {error}"),
        })
    })
}

/// Refuses what would take much more memory than it is long, before anything is made of it.
fn check_count(bytes: &[u8]) -> Result<(), ApiError> {
    let (mut values, mut parts, mut is_text) = (1_usize, 0_usize, false);
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => is_text = !is_text,
            b'\\' if is_text => {
                let _escaped = rest.next();
            }
            _ if is_text => {}
            b',' | b'{' => values += 1,
            b'[' => (values, parts) = (values + 1, parts + 1),
            b':' => parts += 1,
            _ => {}
        }
    }
    let refused = |what: String| Err(ApiError::bad_request("too_many_values", what));
    if values > VALUES_MAX {
        return refused(format!("the body has more than {VALUES_MAX} values; send it in parts"));
    }
    if parts > PARTS_MAX {
        let most = format!("the body has more than {PARTS_MAX} fields and lists; send it in parts");
        return refused(most);
    }
    Ok(())
}

/// Reads JSON that was parsed before.
pub(super) fn value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|error| ApiError::malformed(misunderstood(&error)))
}

fn misunderstood(error: &serde_json::Error) -> String {
    format!("the request is not understood: {error}")
}

/// A page of another origin may send forms and plain text without asking, but not JSON.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "invalid_request_error",
        "unsupported_media_type",
        "send the body as JSON with the header Content-Type: application/json",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: Body) -> Request<Body> {
        Request::builder().header(CONTENT_TYPE, "application/json").body(body).unwrap()
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_is_cut_at_the_limit() {
        let pieces = |count| {
            let piece = Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b' '; 64]));
            Body::from_stream(futures_util::stream::iter(vec![piece; count]))
        };
        let (config, intake) = (HttpConfig::new(256, true), Intake::new());
        let body = |count| received(request(pieces(count)), &config, &intake);
        assert_eq!(body(4).await.unwrap().len(), 256);
        let error = body(5).await.unwrap_err();
        assert_eq!(error.body().error.code.as_deref(), Some("body_too_large"));
        assert_eq!(error.into_response().status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    #[tokio::test]
    async fn a_body_keeps_its_room_as_long_as_anybody_has_it() {
        let intake = Intake::new();
        let kept = intake.gather(Body::from(vec![b' '; 3 * STEP_BYTES]), usize::MAX).await.unwrap();
        assert_eq!(intake.room.available_permits(), ROOM_STEPS - 2);
        let copy = kept.clone();
        drop(kept);
        let all = intake.room.available_permits();
        let _others = intake.room.try_acquire_many(u32::try_from(all).unwrap()).unwrap();
        let long = intake.gather(Body::from(vec![b' '; STEP_BYTES + 1]), usize::MAX).await;
        assert_eq!(long.unwrap_err().code(), "bodies_full");
        let short = intake.gather(Body::from(vec![b' '; STEP_BYTES]), usize::MAX).await;
        assert_eq!(short.unwrap().len(), STEP_BYTES);
        drop(copy);
        assert_eq!(intake.room.available_permits(), 2);
    }

    #[test]
    fn only_what_is_no_text_is_counted() {
        let list = |one: &str, count: usize| format!("[{}0]", format!("{one},").repeat(count));
        let code = |text: String| {
            parse::<serde_json::Value>(text.as_bytes()).err().map(|error| error.code())
        };
        // The list itself and its last entry count too.
        assert_eq!(code(list("0", VALUES_MAX - 2)), None);
        assert_eq!(code(list("0", VALUES_MAX - 1)), Some("too_many_values"));
        assert_eq!(code(list(r#"{"a":0}"#, PARTS_MAX - 1)), None);
        assert_eq!(code(list(r#"{"a":0}"#, PARTS_MAX)), Some("too_many_values"));
        assert_eq!(code(list("[]", PARTS_MAX)), Some("too_many_values"));
        let text = r#"\"[{,:\\"#.repeat(VALUES_MAX);
        assert_eq!(code(format!(r#"["{text}"]"#)), None);
    }
}
