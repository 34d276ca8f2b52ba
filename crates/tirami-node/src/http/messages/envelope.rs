//! Refusals in Anthropic's envelope.

use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use tirami_sdk::types::{MessageError, MessageErrorDetail};

use crate::http::chat::form::written;
use crate::http::error::ApiError;

/// The same refusal, as Anthropic's clients read it: status and headers stay.
pub(in crate::http) fn refused(error: ApiError) -> Response {
    let body = MessageError {
        kind: "error".to_owned(),
        error: detail(&error),
        x_tirami: error.body().x_tirami.clone(),
    };
    let (mut parts, _) = error.into_response().into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    debug_assert!(parts.headers.contains_key(CONTENT_TYPE));
    Response::from_parts(parts, written(&body).into())
}

pub(super) fn detail(error: &ApiError) -> MessageErrorDetail {
    let known = &error.body().error;
    MessageErrorDetail {
        kind: kind(error.status()).to_owned(),
        message: known.message.clone(),
        param: known.param.clone(),
        code: known.code.clone(),
    }
}

/// The class that Anthropic has for a status.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::PAYMENT_REQUIRED => "billing_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}
