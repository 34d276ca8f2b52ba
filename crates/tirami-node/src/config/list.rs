//! Settings that are lists: what they are made of.

use tirami_core::PartyId;
use tirami_proto::{PeerAddress, Via};

use super::field::Value;

/// What a list is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// `PUBKEY`, `PUBKEY@IP:PORT`, `PUBKEY@HOST:PORT` or `PUBKEY@RELAY_URL`.
    Peer,
    /// The name of a party.
    Party,
    /// The URL of a relay.
    Relay,
    /// Where pages in a browser come from: scheme, host, and port.
    Site,
}

/// Items a list may have.
pub const LIST_MAX: usize = 256;

impl Item {
    /// Reads items that stand between commas or blanks; `None` when one of them is no such item
    /// or there are too many.
    pub(super) fn parse_all(self, text: &str) -> Option<Value> {
        let items: Vec<String> = text
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|item| !item.is_empty())
            .map(ToOwned::to_owned)
            .collect();
        let fits = items.len() <= LIST_MAX && items.iter().all(|item| self.is(item));
        fits.then_some(Value::List(items))
    }

    fn is(self, text: &str) -> bool {
        match self {
            Self::Peer => text.parse::<PeerAddress>().is_ok(),
            Self::Party => text.parse::<PartyId>().is_ok(),
            Self::Relay => is_url(text),
            Self::Site => is_site(text),
        }
    }

    pub(super) const fn allowed(self) -> &'static str {
        match self {
            Self::Peer => {
                "a list of peers: PUBKEY, PUBKEY@IP:PORT, PUBKEY@HOST:PORT or PUBKEY@RELAY_URL"
            }
            Self::Party => "a list of parties, each 64 characters of 0-9 and a-f",
            Self::Relay => "a list of URLs that begin with https:// or http://",
            Self::Site => {
                "a list of origins such as https://app.example or http://localhost:5173, without a \
                 path, and without port 80 of http and 443 of https"
            }
        }
    }
}

pub(super) fn is_url(text: &str) -> bool {
    matches!(text.parse(), Ok(Via::Relay(_)))
}

/// Whether a browser may name an origin so: in small letters, without a path, and without the port
/// that its scheme has anyway.
fn is_site(text: &str) -> bool {
    let is_name = |name: &str, marks: &[u8]| {
        let is_part =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || marks.contains(&byte);
        !name.is_empty() && name.bytes().all(is_part)
    };
    let Some((scheme, place)) = text.split_once("://") else { return false };
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (place, None),
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = address.map_or_else(|| is_name(host, b"-._"), |host| is_name(host, b":."));
    let usual = match scheme {
        "http" => "80",
        "https" => "443",
        _ => "",
    };
    let is_port = |port: &str| {
        let number = port.parse::<u16>().ok();
        port != usual && number.is_some_and(|number| number.to_string() == port)
    };
    is_name(scheme, b"+-.") && is_host && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_a_browser_writes_it() {
        for site in [
            "https://app.example",
            "http://localhost:5173",
            "https://app.example:80",
            "http://127.0.0.1:8080",
            "http://[::1]",
            "http://[::1]:3000",
            "chrome-extension://abcdefgh",
        ] {
            assert!(is_site(site), "{site}");
        }
        for no_site in [
            "https://app.example:443",
            "http://x:80",
            "http://[::1]:80",
            "https://a:b:c",
            "https://a:b:8080",
            "https://a:",
            "https://a:x",
            "https://a:08080",
            "https://a:+8080",
            "https://a:65536",
            "https://App.example",
            "https://a/",
            "https://",
            "://a",
            "app.example",
            "*",
        ] {
            assert!(!is_site(no_site), "{no_site}");
        }
    }
}
