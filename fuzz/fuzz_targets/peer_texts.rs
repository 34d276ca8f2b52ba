//! Addresses of peers and invites, as people paste them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tirami_proto::{INVITE_PREFIX, Invite, PeerAddress, Via};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(via) = text.parse::<Via>() {
        assert_eq!(via.to_string().parse(), Ok(via));
    }
    let with_key = format!("{}@{text}", "ab".repeat(32));
    for text in [text, with_key.as_str()] {
        if let Ok(peer) = text.parse::<PeerAddress>() {
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
    }
    for text in [text.to_owned(), format!("{INVITE_PREFIX}{text}")] {
        if let Ok(invite) = text.parse::<Invite>() {
            assert_eq!(invite.to_string().parse(), Ok(invite));
        }
    }
});
