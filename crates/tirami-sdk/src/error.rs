//! Why a call failed, as a caller needs to know it.

use crate::types::{ErrorBody, ErrorExtra};

/// Why a call to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL is not an `http://` or `https://` address.
    #[error("{url} is not an address of a node; use a form like http://127.0.0.1:3000")]
    Url {
        /// The URL given.
        url: String,
    },
    /// The API key has characters that no header may carry.
    #[error("the API key has characters an API key never has; copy it again")]
    ApiKey,
    /// Nobody listens at the address.
    #[error("no node answers at {url}; start one with `tirami start`")]
    Unreachable {
        /// The node's base URL.
        url: String,
        /// What the connection said.
        #[source]
        source: reqwest::Error,
    },
    /// The connection failed before the answer was complete.
    #[error(
        "the connection to {url} broke: {source}; whether the node did what was asked is not known, \
         look before you ask again"
    )]
    Connection {
        /// The node's base URL.
        url: String,
        /// What the connection said.
        #[source]
        source: reqwest::Error,
    },
    /// The node refused the request or failed.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The answer is not what this version of the client understands.
    #[error("the node's answer is not understood: {reason}")]
    Answer {
        /// What does not fit.
        reason: String,
    },
}

/// A refusal in the node's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The HTTP status; `None` for an error inside a stream that had begun.
    pub status: Option<u16>,
    /// The error's type, such as `invalid_request_error`.
    pub kind: String,
    /// The stable code, such as `budget_limit`.
    pub code: Option<String>,
    /// What happened and what to do.
    pub message: String,
    /// The request's field at fault.
    pub param: Option<String>,
    /// The answer's `x-request-id`, for the node's owner.
    pub request_id: Option<String>,
    /// Seconds to wait before the same request may pass.
    pub retry_after_s: Option<u64>,
    /// What Tirami adds, such as the approval to wait for.
    pub extra: Option<ErrorExtra>,
}

impl Refusal {
    pub(crate) fn new(
        status: Option<u16>,
        body: ErrorBody,
        request_id: Option<String>,
        retry_after_s: Option<u64>,
    ) -> Self {
        let ErrorBody { error, x_tirami } = body;
        Self {
            status,
            kind: error.kind,
            code: error.code,
            message: error.message,
            param: error.param,
            request_id,
            retry_after_s,
            extra: x_tirami,
        }
    }
}

impl ClientError {
    /// The node's refusal, when it was one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        self.refusal()?.status
    }

    /// The stable code of a refusal.
    pub fn code(&self) -> Option<&str> {
        self.refusal()?.code.as_deref()
    }

    /// Whether the same call may succeed later without changing it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Connection { .. } => true,
            Self::Refused(refusal) => matches!(refusal.status, Some(429 | 502..=504)),
            Self::Url { .. } | Self::ApiKey | Self::Answer { .. } => false,
        }
    }
}
