//! Which node the commands talk to, and with which API key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use tirami_node::config::Config;
use tirami_sdk::Client;

use crate::exit::{Exit, Failure};
use crate::settings::Global;

/// The file in the data directory that has the admin API key.
pub(crate) const API_KEY_FILE: &str = "api_token";

/// What a command needs from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// What a caller on the node's own machine may do without an API key: look, and ask models
    /// on the personal agent's account.
    Personal,
    /// More than that: other agents, keys, limits.
    Owner,
}

/// A client of the node the flags, the environment or the settings name.
pub(crate) fn connect(global: &Global, need: Need) -> Result<Client, Failure> {
    let config = global.resolve(&[])?.config;
    let url = match global.url.as_deref().filter(|url| !url.is_empty()) {
        Some(url) => url.to_owned(),
        None => url_of(&config),
    };
    let given = global.api_key.as_deref().filter(|key| !key.is_empty()).map(ToOwned::to_owned);
    // The admin key never leaves the machine unasked, and a node that listens elsewhere than on
    // loopback wants a key from everybody.
    let own = is_loopback(&url) && (need == Need::Owner || !config.bind.is_loopback());
    let key = match given {
        Some(key) => Some(key),
        None if own => key_file(&config.data_dir)?,
        None => None,
    };
    Ok(Client::new(&url, key.as_deref())?)
}

/// Where a node with these settings is reached from this machine.
fn url_of(config: &Config) -> String {
    let address = match config.bind {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address => address,
    };
    format!("http://{}", std::net::SocketAddr::new(address, config.port))
}

fn key_file(data_dir: &Path) -> Result<Option<String>, Failure> {
    let path = data_dir.join(API_KEY_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // Without the file the node says itself which scope it wants.
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

fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    // Who hides another host behind a user name gets no key.
    !authority.contains('@')
        && (host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_gets_the_admin_key_unasked() {
        for url in ["http://127.0.0.1:3000", "http://localhost", "http://[::1]:3000/v1"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in [
            "http://10.0.0.1:3000",
            "http://localhost.example:3000",
            "http://127.0.0.1@elsewhere:80",
            "http://127.0.0.1:80@elsewhere",
            "http://[2001:db8::1]",
            "",
        ] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn a_node_on_all_addresses_is_reached_on_loopback() {
        let mut config = Config::defaults(Path::new("/"));
        assert_eq!(url_of(&config), "http://127.0.0.1:3000");
        config.bind = "::".parse().unwrap();
        assert_eq!(url_of(&config), "http://[::1]:3000");
    }
}
