//! What a URL carries, with a sentence for what is wrong in it.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use tirami_core::AgentId;

use super::error::ApiError;

/// The parameters of a request's URL.
pub(super) struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Query(pairs) = Query::try_from_uri(&parts.uri).map_err(|error| {
            ApiError::malformed(format!("the query is not understood: {error}"))
        })?;
        Ok(Self(pairs))
    }
}

/// The segment of a path that a route leaves open.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let segment = Path::<String>::from_request_parts(parts, state).await;
        let Path(segment) = segment
            .map_err(|error| ApiError::malformed(format!("the path is not understood: {error}")))?;
        Ok(Self(segment))
    }
}

/// Whose figures are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nobody is named.
    Nobody,
    /// The node's own account.
    Node,
    /// An agent.
    Agent(AgentId),
}

impl Parameters {
    /// A whole number; `None` when it is not given.
    pub(super) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| ApiError::invalid(name, format!("{name} must be a whole number")))
    }

    /// One of two words; `None` when it is not given.
    pub(super) fn choice(
        &self,
        name: &str,
        words: [&'static str; 2],
    ) -> Result<Option<&'static str>, ApiError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let found = words.into_iter().find(|word| *word == text);
        let [one, other] = words;
        let wrong = || ApiError::invalid(name, format!("{name} must be {one} or {other}"));
        found.map(Some).ok_or_else(wrong)
    }

    /// Whose figures the parameter `agent` asks for.
    pub(super) fn account(&self) -> Result<Asked, ApiError> {
        match self.text("agent") {
            None => Ok(Asked::Nobody),
            Some("node") => Ok(Asked::Node),
            Some(did) => agent("agent", did).map(Asked::Agent),
        }
    }

    /// A text; `None` when it is not given.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a DID given as `param`.
pub(super) fn agent(param: &str, did: &str) -> Result<AgentId, ApiError> {
    AgentId::from_did(did).map_err(|error| ApiError::invalid(param, error.to_string()))
}
