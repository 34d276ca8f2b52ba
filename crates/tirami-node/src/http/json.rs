//! JSON in and out: bounded bodies, the right content type, and sentences for what is wrong.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::HttpConfig;
use super::error::ApiError;

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

/// The body of a request that must be JSON, within the bounds of `config`.
pub(super) async fn body(request: Request<Body>, config: &HttpConfig) -> Result<Bytes, ApiError> {
    let (max, within) = (config.body_max_bytes, config.body_within);
    check_content_type(request.headers())?;
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            "body_too_large",
            format!("the body has more than {max} bytes; shorten it or raise body_max_bytes"),
        )
    };
    let declared = request.headers().get(axum::http::header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(request.into_body(), max);
    match tokio::time::timeout(within, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::malformed(format!("the body could not be read: {error}"))),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "body_too_slow",
            format!("the body took longer than {} s; send it faster", within.as_secs()),
        )),
    }
}

/// A request's body as a `T`.
pub(super) async fn read<T: DeserializeOwned>(
    request: Request<Body>,
    config: &HttpConfig,
) -> Result<T, ApiError> {
    parse(&body(request, config).await?)
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
    serde_json::from_str(text).map_err(|error| {
        ApiError::malformed(match error.classify() {
            serde_json::error::Category::Data => misunderstood(&error),
            _ => format!("the body is not JSON: {error}"),
        })
    })
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

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.to_string() == "length limit exceeded" {
            return true;
        }
        source = error.source();
    }
    false
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
        let config = HttpConfig::new(256, true);
        assert_eq!(body(request(pieces(4)), &config).await.unwrap().len(), 256);
        let error = body(request(pieces(5)), &config).await.unwrap_err();
        assert_eq!(error.body().error.code.as_deref(), Some("body_too_large"));
        assert_eq!(error.into_response().status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
