//! How long an answer may take: the request's `timeout_ms`, counted from its arrival.
//!
//! Loading a model, waiting for a place, reading and writing all count, here and at other nodes.
//! When the time is up the engine is let go, which frees it within one step.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until};

use super::request::number;
use crate::http::error::ApiError;

/// The longest time a request may name, a day; without one there is no end to it.
const TIMEOUT_MS_MAX: u32 = 86_400_000;

/// When an answer has to be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// Reads the field of a request that has just come.
    pub(super) fn read(fields: &Map<String, Value>) -> Result<Self, ApiError> {
        let timeout = number(fields, "timeout_ms", 1, TIMEOUT_MS_MAX)?;
        Ok(Self(timeout.map(|ms| Instant::now() + Duration::from_millis(ms.into()))))
    }

    /// Waits for it; for ever where there is none.
    pub(super) async fn passed(self) {
        match self.0 {
            Some(at) => sleep_until(at).await,
            None => core::future::pending().await,
        }
    }

    /// What `work` gives, unless the time is up before.
    pub(super) async fn bound<T>(self, work: impl Future<Output = T>) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.passed() => Err(late()),
        }
    }
}

/// The time was up before anything of the answer was there.
pub(super) fn late() -> ApiError {
    ApiError::new(
        StatusCode::GATEWAY_TIMEOUT,
        "timeout_error",
        "deadline_exceeded",
        "the time that timeout_ms gives was over before the answer began; nothing was charged; \
         give it more time, or ask for less",
    )
}
