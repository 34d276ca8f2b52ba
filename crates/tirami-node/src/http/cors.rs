//! Pages of other origins that the owner lets in: what a browser has to hear before it sends their
//! requests and shows them the answers. Each of them needs an API key all the same.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Methods that routes have.
const METHODS: &str = "GET, POST, DELETE";
/// Headers of answers that clients read.
const EXPOSED: &str = "request-id, retry-after, x-request-id";
/// Seconds for which a browser need not ask again.
const MAX_AGE_S: u64 = 600;

/// Answers a browser that asks whether a page of an origin in the list may send a request, and lets
/// such a page read answers. For any other origin nothing changes.
pub(super) async fn share(
    State(origins): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(origin) = listed(&origins, request.headers()) else {
        return next.run(request).await;
    };
    let is_question = request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if is_question {
        let wanted = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(MAX_AGE_S));
        // Clients have headers of their own; what a header may do is decided when it comes.
        if let Some(wanted) = wanted {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted);
        }
        response
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    headers.append(VARY, HeaderValue::from_static("origin"));
    response
}

/// The request's origin, where it is in the list.
fn listed(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let is_listed = origins.iter().any(|one| one.as_bytes() == origin.as_bytes());
    is_listed.then(|| origin.clone())
}
