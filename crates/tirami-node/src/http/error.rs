//! Refusals as OpenAI's error envelope. The one place where the ledger's and the engine's
//! refusals become HTTP statuses.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tirami_core::Timestamp;
use tirami_infer::engine::{Failure, PrepareError, StartError};
use tirami_ledger::Rejection;
use tirami_ledger::book::Period;
use tirami_ledger::lattice::EntryRejection;
use tirami_sdk::types::{ErrorBody, ErrorDetail, ErrorExtra};

use super::json;
use crate::handle::SubmitError;
use crate::models::LeaseError;

/// A refusal that knows its status.
#[derive(Debug, Clone)]
pub(crate) struct ApiError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    status: StatusCode,
    code: &'static str,
    retry_after_s: Option<u64>,
    body: ErrorBody,
}

/// The code of a refusal, put into the answer's extensions for the metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusalCode(pub(crate) &'static str);

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        kind: &str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let error = ErrorDetail {
            message: message.into(),
            kind: kind.to_owned(),
            param: None,
            code: Some(code.to_owned()),
        };
        Self(Box::new(Inner {
            status,
            code,
            retry_after_s: None,
            body: ErrorBody { error, x_tirami: None },
        }))
    }

    /// 400: a field of the request is not what it must be.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_value", message).param(param)
    }

    /// 400: what is asked is wrong in a way that has its own name.
    pub(crate) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, message)
    }

    /// 400: the request as a whole is not understood.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_request", message)
    }

    /// 400: a provider found the request invalid and says so in its own words. What is no code or
    /// no name of a field is left out.
    pub(crate) fn of_provider(code: &str, message: &str, param: Option<&str>) -> Self {
        let is_name = |text: &&str| {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.[]".contains(&byte);
            !text.is_empty() && text.bytes().all(is_part)
        };
        let mut error = Self::malformed(message);
        if let Some(code) = Some(code).filter(is_name) {
            error.0.body.error.code = Some(code.to_owned());
        }
        error.0.body.error.param = param.filter(is_name).map(str::to_owned);
        error
    }

    /// 400: OpenAI has this field and it would change the answer, but it is not built here.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "unsupported_parameter", message).param(param)
    }

    /// 404: there is no such thing.
    pub(crate) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", code, message)
    }

    /// 401: who calls is not known.
    pub(crate) fn unauthorized(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", code, message)
    }

    /// 403: who calls may not do this.
    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", code, message)
    }

    /// 429: the same request may pass after `retry_after_s` seconds.
    pub(crate) fn too_many(
        code: &'static str,
        retry_after_s: u64,
        message: impl Into<String>,
    ) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message)
            .retry_after(retry_after_s)
    }

    /// 500 or 503: the node is at fault.
    pub(crate) fn server(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::new(status, "server_error", code, message)
    }

    pub(crate) fn param(mut self, param: &str) -> Self {
        self.0.body.error.param = Some(param.to_owned());
        self
    }

    /// Adds to the sentence.
    pub(crate) fn add(mut self, more: &str) -> Self {
        self.0.body.error.message.push_str(more);
        self
    }

    /// Says the same with another sentence.
    pub(crate) fn reworded(mut self, message: String) -> Self {
        self.0.body.error.message = message;
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    pub(crate) fn extra(mut self, extra: ErrorExtra) -> Self {
        self.0.body.x_tirami = Some(extra);
        self
    }

    /// Which refusal it is, for programs.
    pub(crate) fn code(&self) -> &'static str {
        self.0.code
    }

    /// The status it is told with.
    pub(crate) fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The envelope, for an error inside a stream that has begun.
    pub(crate) fn body(&self) -> &ErrorBody {
        &self.0.body
    }
}

const INVALID: &str = "invalid_request_error";
const SECONDS_UNTIL_ROOM: u64 = 1;
/// When a model that others are in use for may find room in memory.
const SECONDS_UNTIL_MEMORY: u64 = 5;
/// When a server elsewhere that is full, or is not reached, may be worth asking again.
const SECONDS_UNTIL_SERVER: u64 = 5;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Inner { status, code, retry_after_s, body } = *self.0;
        let mut response = json::response(status, &body);
        let headers = response.headers_mut();
        if let Some(seconds) = retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tirami\""));
        }
        response.extensions_mut().insert(RefusalCode(code));
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Busy => Self::too_many(
                "busy",
                SECONDS_UNTIL_ROOM,
                "the node has too much to decide at once; try again in a second",
            ),
            SubmitError::Stopped { reason } => Self::server(
                StatusCode::SERVICE_UNAVAILABLE,
                "stopped",
                format!("the node has stopped: {reason}"),
            ),
            SubmitError::Rejected(rejection) => Self::from(rejection),
        }
    }
}

/// The table of the ledger's refusals.
impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let (status, kind) = match &rejection {
            Rejection::KillSwitch { .. } => (StatusCode::FORBIDDEN, "kill_switch"),
            Rejection::Scope { .. } | Rejection::NoAgent => {
                (StatusCode::FORBIDDEN, "permission_error")
            }
            Rejection::KeyInvalid => (StatusCode::UNAUTHORIZED, "authentication_error"),
            Rejection::UnknownAgent { .. }
            | Rejection::UnknownKey
            | Rejection::UnknownJob { .. }
            | Rejection::UnknownApproval { .. } => (StatusCode::NOT_FOUND, "not_found_error"),
            Rejection::Exists { .. } | Rejection::Contradicts { .. } => {
                (StatusCode::CONFLICT, "conflict_error")
            }
            Rejection::Entry(EntryRejection::BelowFloor { .. }) => {
                (StatusCode::PAYMENT_REQUIRED, "insufficient_quota")
            }
            Rejection::OutOfRange { .. }
            | Rejection::Entry(_)
            | Rejection::Order(_)
            | Rejection::Voucher(_)
            | Rejection::Claim(_)
            | Rejection::Faucet(_)
            | Rejection::Acknowledge(_)
            | Rejection::Charter(_)
            | Rejection::Cut(_) => (StatusCode::BAD_REQUEST, INVALID),
            Rejection::RequestLimit { .. }
            | Rejection::BudgetLimit { period: Period::Lifetime, .. } => {
                (StatusCode::FORBIDDEN, "limit_error")
            }
            // Alone it is more than the whole budget: waiting does not help.
            Rejection::BudgetLimit { max, needed, .. } if needed > max => {
                (StatusCode::FORBIDDEN, "limit_error")
            }
            Rejection::TooMany { .. }
            | Rejection::BudgetLimit { .. }
            | Rejection::BreakerOpen { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            Rejection::ApprovalDenied { .. } => (StatusCode::FORBIDDEN, "approval_denied"),
            Rejection::Insufficient { .. } => (StatusCode::PAYMENT_REQUIRED, "insufficient_quota"),
            Rejection::KeyNotHeld => (StatusCode::CONFLICT, "conflict_error"),
            Rejection::RolledBack { .. } | Rejection::Unconfirmed => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable_error")
            }
        };
        let error = Self::new(status, kind, rejection.code(), rejection.to_string());
        match retry_after_s(&rejection) {
            Some(seconds) => error.retry_after(seconds),
            None => error,
        }
    }
}

/// Seconds until the same request may pass: when the breaker closes, or when enough has left the
/// sliding window.
fn retry_after_s(rejection: &Rejection) -> Option<u64> {
    match rejection {
        Rejection::TooMany { .. } => Some(SECONDS_UNTIL_ROOM),
        Rejection::BudgetLimit { room_at, .. } => room_at.map(seconds_until),
        Rejection::BreakerOpen { until, .. } => Some(seconds_until(*until)),
        _ => None,
    }
}

fn seconds_until(at: Timestamp) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let left = u128::from(at.ms()).saturating_sub(now);
    u64::try_from(left.div_ceil(1_000)).unwrap_or(u64::MAX).max(1)
}

impl From<PrepareError> for ApiError {
    fn from(error: PrepareError) -> Self {
        let code = match &error {
            PrepareError::Variable { name, .. } => {
                let param = format!("chat_template_kwargs.{name}");
                return Self::unsupported(&param, format!("{error}; leave it out"));
            }
            PrepareError::Template { .. } | PrepareError::Tokens { .. } | PrepareError::Empty => {
                "invalid_value"
            }
            PrepareError::ContextLength { .. } => "context_length_exceeded",
            PrepareError::Image { .. } => "invalid_image",
            PrepareError::NoImages => return Self::unsupported("messages", error.to_string()),
            PrepareError::Format { .. } | PrepareError::Unsupported { .. } => {
                return Self::invalid("response_format", error.to_string());
            }
        };
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, error.to_string()).param("messages")
    }
}

impl From<LeaseError> for ApiError {
    fn from(error: LeaseError) -> Self {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match error {
            LeaseError::Busy { .. } => {
                Self::too_many("engine_busy", SECONDS_UNTIL_ROOM, error.to_string())
            }
            LeaseError::InUse { .. } => {
                Self::new(StatusCode::CONFLICT, INVALID, "model_in_use", error.to_string())
            }
            LeaseError::NoRoom { .. } => Self::server(unavailable, "no_memory", error.to_string())
                .retry_after(SECONDS_UNTIL_MEMORY),
            LeaseError::TooLarge { .. } => {
                Self::server(unavailable, "model_too_large", error.to_string())
            }
            LeaseError::Failed { .. } => {
                Self::server(unavailable, "model_load_failed", error.to_string())
            }
        }
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Busy { .. } => {
                Self::too_many("engine_busy", SECONDS_UNTIL_ROOM, error.to_string())
            }
            StartError::Unsupported { param: Some(param), .. } => Self::unsupported(
                param,
                format!("{error}; nothing was charged; leave {param} out or ask another model"),
            ),
            StartError::Unsupported { param: None, .. } => Self::new(
                StatusCode::BAD_REQUEST,
                INVALID,
                "unsupported",
                format!("{error}; nothing was charged; leave it out or ask another model"),
            ),
            StartError::Stopped => {
                Self::server(StatusCode::SERVICE_UNAVAILABLE, "engine_stopped", error.to_string())
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let told =
            |advice: &str| format!("{failure}; only what was delivered is charged; {advice}");
        match &failure {
            Failure::Unreachable => Self::server(
                StatusCode::SERVICE_UNAVAILABLE,
                "engine_unreachable",
                told("ask again in some seconds, or ask another model"),
            )
            .retry_after(SECONDS_UNTIL_SERVER),
            Failure::Full => Self::too_many(
                "engine_busy",
                SECONDS_UNTIL_SERVER,
                told("ask again in some seconds, or ask another model"),
            ),
            Failure::FullFor { seconds } => {
                let advice = format!("ask again in {seconds} seconds, or ask another model");
                Self::too_many("engine_busy", *seconds, told(&advice))
            }
            Failure::Misconfigured => Self::server(
                StatusCode::INTERNAL_SERVER_ERROR,
                "engine_misconfigured",
                told("the node's owner must act: the node's log says what the server answered"),
            ),
            Failure::UnknownModel => {
                let advice = "ask another model; the node's owner can offer this one again";
                Self::not_found("model_not_found", told(advice)).param("model")
            }
            Failure::NoEndpoint { .. } => {
                let advice = "ask another model; its owner can say in `serves` what the server has";
                Self::bad_request("unsupported", told(advice))
            }
            Failure::Invalid { .. } => Self::malformed(told("change the request")),
            Failure::BrokenOff => {
                Self::server(StatusCode::BAD_GATEWAY, "engine_broke_off", told("ask again"))
            }
            Failure::Slow => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "timeout_error",
                "engine_slow",
                told("ask again, or ask for less"),
            ),
            Failure::Costly => Self::new(
                StatusCode::BAD_REQUEST,
                INVALID,
                "format_too_costly",
                told("make the schema simpler: fewer alternatives that begin alike"),
            ),
        }
    }
}
