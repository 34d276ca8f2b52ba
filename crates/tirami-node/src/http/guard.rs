//! Who calls: request ids, API keys, the loopback rule, and the scope each route needs.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tirami_core::{AgentId, Digest};
use tirami_ledger::book::{KeyId, Scope};
use tirami_ledger::command::Actor;
use tirami_sdk::endpoints::{Access, Operation};

use super::AppState;
use super::error::{ApiError, RefusalCode};
use super::query::Asked;
use super::{messages, views};

/// The header that names a request in answers, logs and reports.
const REQUEST_ID: &str = "x-request-id";
/// The same, as Anthropic's clients read it.
const MESSAGES_REQUEST_ID: &str = "request-id";
/// Characters of a request id that is echoed, at most.
const REQUEST_ID_MAX: usize = 128;

/// A caller that passed [`gate`]. A handler that needs to know who calls takes it as an argument;
/// there is no other way to make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    key: Option<KeyId>,
    agent: Option<AgentId>,
    scope: Scope,
}

impl Caller {
    /// The caller as the ledger knows it.
    pub(super) const fn actor(&self) -> Actor {
        Actor::Caller { key: self.key, agent: self.agent, scope: self.scope }
    }

    /// Who pays for what the caller asks; none for a key that is bound to no agent.
    pub(super) const fn agent(&self) -> Option<AgentId> {
        self.agent
    }

    /// What the caller may do.
    pub(super) const fn scope(&self) -> Scope {
        self.scope
    }

    /// The only agent the caller may look at; `None` when it may look at all: from the scope
    /// economy on, or with a key that is bound to no agent.
    pub(super) fn confined_to(&self) -> Option<AgentId> {
        self.agent.filter(|_| self.scope < Scope::Economy)
    }

    /// Whose figures are meant: the account asked for, else the caller's own agent, else the
    /// node's, which is `None`.
    ///
    /// # Errors
    ///
    /// 403 when the caller may not look at that account.
    pub(super) fn subject(&self, asked: Asked) -> Result<Option<AgentId>, ApiError> {
        let (named, account) = match asked {
            Asked::Nobody => return Ok(self.agent),
            Asked::Node => (None, "figures of the node's account"),
            Asked::Agent(agent) => (Some(agent), "figures of other agents"),
        };
        match self.confined_to() {
            Some(own) if named != Some(own) => Err(ApiError::forbidden(
                "insufficient_scope",
                format!("{account} need an API key with the scope economy"),
            )),
            _ => Ok(named),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Only a route declared public has none, and its handler asks for none.
        parts
            .extensions
            .get()
            .copied()
            .ok_or_else(|| ApiError::unauthorized("missing_api_key", "this route needs an API key"))
    }
}

/// Names every request, from the outside when the name is harmless.
pub(super) async fn name_request(request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).filter(|id| {
        let id = id.as_bytes();
        !id.is_empty() && id.len() <= REQUEST_ID_MAX && id.iter().all(u8::is_ascii_graphic)
    });
    let id = given.cloned().unwrap_or_else(new_request_id);
    let is_message = request.uri().path().starts_with(Operation::Messages.endpoint().path);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if is_message {
        headers.insert(MESSAGES_REQUEST_ID, id.clone());
    }
    headers.insert(REQUEST_ID, id);
    response
}

fn new_request_id() -> HeaderValue {
    let text = format!("req-{}", super::random_hex::<12>());
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("req-0"))
}

/// Lets a request through to the handler of `operation` when its row of the table allows it, and
/// counts it.
pub(super) async fn gate(
    State((app, operation)): State<(AppState, Operation)>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let started = Instant::now();
    let response = match admit(&app, operation, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => match operation {
            Operation::Messages | Operation::CountTokens => messages::refused(error),
            _ => error.into_response(),
        },
    };
    let code = response.extensions().get::<RefusalCode>().map(|code| code.0);
    app.metrics.request(operation.endpoint().id, response.status(), started.elapsed(), code);
    response
}

async fn admit(
    app: &AppState,
    operation: Operation,
    request: &mut Request<Body>,
) -> Result<(), ApiError> {
    let Access::Scope(needed) = operation.endpoint().access else {
        return Ok(());
    };
    let peer = request.extensions().get::<Peer>().copied();
    let caller = identify(app, peer, request.uri(), request.headers()).await?;
    let needed = views::ledger_scope(needed);
    if caller.scope < needed {
        return Err(ApiError::forbidden(
            "insufficient_scope",
            format!(
                "this needs an API key with the scope {needed}; the caller has {}",
                caller.scope
            ),
        ));
    }
    request.extensions_mut().insert(caller);
    Ok(())
}

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

async fn identify(
    app: &AppState,
    peer: Option<Peer>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Caller, ApiError> {
    let source = peer.map_or(IpAddr::from([0, 0, 0, 0]), |Peer(address)| address.ip());
    if let Some(text) = presented_key(headers)? {
        if let Some(caller) = authenticate(app, text).await? {
            return Ok(caller);
        }
        // Only wrong keys wait: a neighbour's mistakes must not lock out the owner, and a right
        // key of 32 random bytes cannot be found by trying.
        let now = Instant::now();
        if let Some(seconds) = app.throttle.wait_s(source, now) {
            return Err(ApiError::too_many(
                "too_many_failures",
                seconds,
                "too many wrong API keys came from this address; wait and check the key",
            ));
        }
        app.throttle.failed(source, now);
        return Err(ApiError::unauthorized(
            "invalid_api_key",
            "the API key is unknown, expired or revoked; check it or create a new one",
        ));
    }
    if !app.config.loopback || !source.to_canonical().is_loopback() {
        return Err(ApiError::unauthorized(
            "missing_api_key",
            "this needs an API key; send it as Authorization: Bearer <key>",
        ));
    }
    check_same_machine(uri, headers)?;
    Ok(Caller { key: None, agent: Some(app.personal_agent), scope: Scope::Inference })
}

/// The key of the `Authorization` or the `x-api-key` header. OpenAI's clients cannot leave the
/// header out, so an empty key is none.
fn presented_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let unreadable = || {
        ApiError::unauthorized(
            "invalid_api_key",
            "the API key is not readable; send it as Authorization: Bearer <key>",
        )
    };
    let key = if let Some(value) = headers.get(AUTHORIZATION) {
        let text = value.to_str().map_err(|_| unreadable())?.trim();
        let (scheme, key) = text.split_once(' ').unwrap_or((text, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unreadable());
        }
        key.trim()
    } else if let Some(value) = headers.get("x-api-key") {
        value.to_str().map_err(|_| unreadable())?.trim()
    } else {
        ""
    };
    Ok(Some(key).filter(|key| !key.is_empty()))
}

/// The caller with this API key; `None` when there is none. The book compares digests of whole
/// keys in constant time, so nothing about a right key can be learnt from how long a wrong one
/// takes.
async fn authenticate(app: &AppState, text: &str) -> Result<Option<Caller>, ApiError> {
    let Some(key) = key_id(text) else {
        return Ok(None);
    };
    let secret = Digest::of(text.as_bytes());
    let caller = app
        .handle
        .read(move |kernel, now| kernel.ledger().book().authenticate(now, key, secret).ok())
        .await?;
    Ok(caller.map(|caller| Caller {
        key: Some(caller.key),
        agent: caller.agent,
        scope: caller.scope,
    }))
}

/// The public name in a key's text, `tirami_<8 hex>_…`.
fn key_id(text: &str) -> Option<KeyId> {
    let id = text.strip_prefix("tirami_")?.get(..8)?;
    if text.as_bytes().get(15) != Some(&b'_') {
        return None;
    }
    id.parse().ok()
}

/// A browser on this machine may be showing a stranger's page. Without an API key only what
/// addresses this machine by a loopback name, and comes from no other origin, is served: a name
/// that was rebound to 127.0.0.1 shows in `Host`, a stranger's page in `Origin` or
/// `Sec-Fetch-Site`. A request line that names a host counts as `Host` does, and both must pass.
fn check_same_machine(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    // What a proxy passes on does not come from this machine's user, and of two values one is
    // somebody else's.
    let forwarded = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];
    let single = [HOST.as_str(), ORIGIN.as_str(), "sec-fetch-site"];
    let is_doubled = |name: &&str| headers.get_all(*name).iter().count() > 1;
    if forwarded.iter().any(|name| headers.contains_key(*name)) || single.iter().any(is_doubled) {
        return Err(ApiError::forbidden(
            "forbidden_host",
            "a request that was passed on by a proxy needs an API key",
        ));
    }
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(HOST.as_str()).unwrap_or_default();
    let named = uri.authority().map_or(host, |authority| authority.as_str());
    if !is_loopback_name(host) || !is_loopback_name(named) {
        return Err(ApiError::forbidden(
            "forbidden_host",
            "without an API key the Host must be localhost, 127.0.0.1 or [::1]",
        ));
    }
    let same_origin =
        |origin: &str| origin.strip_prefix("http://").is_some_and(|rest| rest == host);
    if text(ORIGIN.as_str()).is_some_and(|origin| !same_origin(origin)) {
        return Err(ApiError::forbidden(
            "forbidden_origin",
            "a page of another origin needs an API key, and its origin in cors_origins",
        ));
    }
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err(ApiError::forbidden(
            "forbidden_origin",
            "a page of another site needs an API key",
        ));
    }
    Ok(())
}

/// Whether `host`, with or without a port, is this machine by name.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => {
            return rest.split_once(']').is_some_and(|(ip, port)| {
                ip == "::1" && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
            });
        }
        None => match host.split_once(':') {
            Some((name, port)) if is_port(port) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1"
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_this_machines_own_pages_and_programs_come_in_without_a_key() {
        let path = Uri::from_static("/v1/models");
        for (good, pairs) in [
            (true, &[("host", "127.0.0.1:3000")][..]),
            (true, &[("host", "localhost")]),
            (true, &[("host", "LocalHost:1")]),
            (true, &[("host", "[::1]:3000")]),
            (true, &[("host", "localhost:3000"), ("origin", "http://localhost:3000")]),
            (true, &[("host", "localhost"), ("sec-fetch-site", "same-origin")]),
            (true, &[("host", "localhost"), ("sec-fetch-site", "none")]),
            (false, &[]),
            (false, &[("host", "localhost:+80")]),
            (false, &[("host", "localhost"), ("x-forwarded-for", "203.0.113.9")]),
            (false, &[("host", "")]),
            (false, &[("host", "evil.example:3000")]),
            (false, &[("host", "localhost.evil.example")]),
            (false, &[("host", "127.0.0.1.evil.example")]),
            (false, &[("host", "localhost:3000.evil.example")]),
            (false, &[("host", "[::1].evil.example")]),
            (false, &[("host", "10.0.0.1:3000")]),
            (false, &[("host", "localhost:3000"), ("origin", "http://localhost:5173")]),
            (false, &[("host", "localhost:3000"), ("origin", "https://localhost:3000")]),
            (false, &[("host", "localhost:3000"), ("origin", "http://evil.example")]),
            (false, &[("host", "localhost:3000"), ("origin", "null")]),
            (false, &[("host", "localhost"), ("sec-fetch-site", "cross-site")]),
            (false, &[("host", "localhost"), ("sec-fetch-site", "same-site")]),
        ] {
            assert_eq!(check_same_machine(&path, &headers(pairs)).is_ok(), good, "{pairs:?}");
        }
    }

    #[test]
    fn a_host_in_the_request_line_counts_as_host() {
        for (good, uri) in [
            (true, "http://localhost:3000/v1/models"),
            (true, "http://127.0.0.1/v1/models"),
            (false, "http://evil.example/v1/models"),
            (false, "http://localhost@evil.example/v1/models"),
            (false, "http://evil@localhost/v1/models"),
        ] {
            let pairs = headers(&[("host", "localhost:3000")]);
            let checked = check_same_machine(&uri.parse().unwrap(), &pairs);
            assert_eq!(checked.is_ok(), good, "{uri}");
        }
    }

    #[test]
    fn a_key_names_itself_in_its_first_characters() {
        assert_eq!(key_id("tirami_0000002a_secret"), Some(KeyId::new(42)));
        for text in
            ["", "tirami_", "tirami_0000002a", "tirami_0000002a-x", "sk-abc", "tirami_zzzzzzzz_x"]
        {
            assert_eq!(key_id(text), None, "{text}");
        }
    }

    #[test]
    fn a_key_is_read_from_either_header() {
        let bearer = headers(&[("authorization", "Bearer  abc ")]);
        assert_eq!(presented_key(&bearer).unwrap(), Some("abc"));
        let plain = headers(&[("x-api-key", "abc")]);
        assert_eq!(presented_key(&plain).unwrap(), Some("abc"));
        assert_eq!(presented_key(&headers(&[])).unwrap(), None);
        assert_eq!(presented_key(&headers(&[("authorization", "Bearer ")])).unwrap(), None);
        assert!(presented_key(&headers(&[("authorization", "Basic abc")])).is_err());
    }
}
