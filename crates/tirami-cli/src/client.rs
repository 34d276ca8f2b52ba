//! Which node the commands talk to, and with which API key.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use tirami_node::api_file::{read_api_address, url_from_here};
use tirami_node::config::{Key, Resolved};
use tirami_node::keys::API_KEY_FILE;
use tirami_sdk::{Client, ClientError};

use crate::exit::{Exit, Failure};
use crate::settings::Global;

/// The HTTP status of a node that wants an API key.
const MISSING_KEY: u16 = 401;

/// What a command needs from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// What a caller on the node's own machine may do without an API key: look, and ask models
    /// on the personal agent's account.
    Personal,
    /// More than that: other agents, keys, limits.
    Owner,
}

/// A client of the node the flags, the environment, the settings or the data directory name.
///
/// The admin key never leaves the machine unasked. On the machine it is used where it is needed:
/// for what only the owner may do, and where the node wants a key from everybody, which is told
/// by the settings or by the node itself.
pub(crate) async fn connect(global: &Global, need: Need) -> Result<Client, Failure> {
    let resolved = global.resolve(&[])?;
    let address = address_of(&resolved);
    let config = resolved.config;
    let named = global.url.clone().filter(|url| !url.is_empty());
    let is_own = match &named {
        Some(url) => is_this_machine(url),
        None => is_own_address(address.ip()),
    };
    let url = named.unwrap_or_else(|| url_from_here(address));
    if let Some(key) = global.api_key.as_deref().filter(|key| !key.is_empty()) {
        return Ok(Client::new(&url, Some(key))?);
    }
    let keyless = Client::new(&url, None)?;
    if !is_own {
        return Ok(keyless);
    }
    if need == Need::Personal && config.bind.is_loopback() {
        match keyless.status().await {
            Err(error) if error.status() == Some(MISSING_KEY) => {}
            Err(error @ ClientError::Unreachable { .. }) => return Err(error.into()),
            _ => return Ok(keyless),
        }
    }
    match key_file(&config.data_dir)? {
        Some(key) => Ok(Client::new(&url, Some(&key))?),
        // The node says itself which scope it wants.
        None if need == Need::Owner => Ok(keyless),
        None => Err(Failure::new(
            Exit::Refused,
            format_args!(
                "the node at {url} wants an API key and there is none in {}; give one with \
                 --api-key, or name the node's data directory with --data-dir",
                config.data_dir.join(API_KEY_FILE).display()
            ),
        )),
    }
}

/// Where the node of these settings listens. Where they leave that open, its data directory says
/// where the one that runs does.
fn address_of(resolved: &Resolved) -> SocketAddr {
    let config = &resolved.config;
    let is_chosen = resolved.is_set(Key::Bind) || resolved.is_set(Key::Port);
    let is_known = is_chosen && config.port != 0;
    let found = if is_known { None } else { read_api_address(&config.data_dir) };
    found.unwrap_or_else(|| config.address())
}

/// Whether `address` is one of this machine's; only then can a socket be bound to it.
fn is_own_address(address: IpAddr) -> bool {
    is_local(address) || UdpSocket::bind((address, 0)).is_ok()
}

/// An unspecified address, as a destination, is this machine.
fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

fn key_file(data_dir: &Path) -> Result<Option<String>, Failure> {
    let path = data_dir.join(API_KEY_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::new(
            Exit::Config,
            format_args!(
                "cannot read the admin API key in {} ({error}); give one with --api-key",
                path.display()
            ),
        )),
    }
}

fn is_this_machine(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    // Who hides another host behind a user name gets no key.
    !authority.contains('@') && (host == "localhost" || host.parse::<IpAddr>().is_ok_and(is_local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_gets_the_admin_key_unasked() {
        for url in [
            "http://127.0.0.1:3000",
            "http://localhost",
            "http://[::1]:3000/v1",
            "http://0.0.0.0:3000",
        ] {
            assert!(is_this_machine(url), "{url}");
        }
        for url in [
            "http://10.0.0.1:3000",
            "http://localhost.example:3000",
            "http://127.0.0.1@elsewhere:80",
            "http://127.0.0.1:80@elsewhere",
            "http://[2001:db8::1]",
            "http://192.0.2.1:3000",
            "",
        ] {
            assert!(!is_this_machine(url), "{url}");
        }
    }

    #[test]
    fn an_address_is_this_machines_where_a_socket_can_be_bound_to_it() {
        assert!(is_own_address("::".parse().unwrap()));
        // An address that no machine has.
        assert!(!is_own_address("192.0.2.1".parse().unwrap()));
    }
}
