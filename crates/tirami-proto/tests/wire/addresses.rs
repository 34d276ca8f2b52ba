//! Addresses of peers and invites: what people copy and paste.

use tirami_proto::{AddressError, Invite, InviteError, PeerAddress, VIA_MAX, Via};

use crate::samples;

fn parse(after_key: &str) -> Result<Vec<Via>, AddressError> {
    format!("{}{after_key}", "0a".repeat(32)).parse().map(|peer: PeerAddress| peer.via)
}

#[test]
fn an_address_survives_its_text() {
    let texts = [
        "",
        "@192.168.1.20:3001",
        "@[2001:db8::1]:3001",
        "@https://relay.example/",
        "@http://10.0.0.1:8080/relay",
        "@192.168.1.20:3001,https://relay.example/",
        "@localhost:3001",
        "@box-1.home.example:3001,192.168.1.20:3001",
    ];
    for text in texts {
        let text = format!("{}{text}", "0a".repeat(32));
        let peer: PeerAddress = text.parse().unwrap();
        assert_eq!(peer.to_string(), text);
    }
}

#[test]
fn other_texts_are_no_address() {
    let many = format!("@{}", ["10.0.0.1:1"; VIA_MAX + 1].join(","));
    let long = format!("@https://{}", "x".repeat(260));
    let endless = "@".repeat(10_000);
    let cases = [
        ("@", AddressError::Via),
        ("@192.168.1.20", AddressError::Via),
        ("@192.168.1.20:0", AddressError::Via),
        ("@0.0.0.0:3001", AddressError::Via),
        ("@192.168.1.20:99999", AddressError::Via),
        ("@relay.example", AddressError::Via),
        ("@relay.example:0", AddressError::Via),
        ("@relay..example:1", AddressError::Via),
        ("@relay.example.7:1", AddressError::Via),
        ("@:3001", AddressError::Via),
        ("@ftp://relay.example", AddressError::Via),
        ("@https://", AddressError::Via),
        ("@https://:80", AddressError::Via),
        ("@https:///path", AddressError::Via),
        ("@https://user@relay.example", AddressError::Via),
        ("@https://relay.example/a b", AddressError::Via),
        ("@https://relay.example/\n", AddressError::Via),
        ("@https://relay.exämple/", AddressError::Via),
        ("@10.0.0.1:1,", AddressError::Via),
        ("0", AddressError::Key),
        (many.as_str(), AddressError::TooLong),
        (long.as_str(), AddressError::Via),
        (endless.as_str(), AddressError::TooLong),
    ];
    for (text, error) in cases {
        assert_eq!(parse(text), Err(error), "{text:?}");
    }
    for text in ["", "@10.0.0.1:1", "node", &"g".repeat(64), &"AB".repeat(32)] {
        assert_eq!(text.parse::<PeerAddress>(), Err(AddressError::Key), "{text:?}");
    }
}

#[test]
fn a_name_is_the_owners_and_does_not_go_over_the_wire() {
    let text = format!("{}@box.example:3001,10.0.0.1:1", "0a".repeat(32));
    let peer: PeerAddress = text.parse().unwrap();
    assert!(matches!(peer.via[0], Via::Name(_)));
    let told: PeerAddress = minicbor::decode(&minicbor::to_vec(&peer).unwrap()).unwrap();
    assert_eq!(told.via, [Via::Ip(([10, 0, 0, 1], 1).into())]);
    // Nor is one taken from somebody who sends it all the same.
    assert_eq!("box.example:3001".parse::<Via>(), Err(AddressError::Via));
}

#[test]
fn an_invite_is_one_word_and_survives_copying() {
    let invite = samples::invite();
    let text = invite.to_string();
    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{text}");
    assert_eq!(text.parse::<Invite>().as_ref(), Ok(&invite));
    assert_eq!(format!("  {text}\n").parse::<Invite>().as_ref(), Ok(&invite));
    let public = Invite { secret: None, peers: Vec::new(), ..invite };
    assert_eq!(public.to_string().parse(), Ok(public));
}

#[test]
fn every_slip_in_an_invite_is_noticed() {
    let text = samples::invite().to_string();
    for at in "tirami-invite-".len()..text.len() {
        let mut slip = text.clone().into_bytes();
        slip[at] = if slip[at] == b'a' { b'b' } else { b'a' };
        let slip = String::from_utf8(slip).unwrap();
        assert_eq!(slip.parse::<Invite>(), Err(InviteError::Damaged), "at {at}");
        assert!(text[..at].parse::<Invite>().is_err(), "cut at {at}");
    }
    assert_eq!("tirami".parse::<Invite>(), Err(InviteError::Prefix));
    assert_eq!("tirami-invite-".parse::<Invite>(), Err(InviteError::Damaged));
    let long = format!("tirami-invite-{}", "a".repeat(100_000));
    assert_eq!(long.parse::<Invite>(), Err(InviteError::Damaged));
}

#[test]
fn an_invite_does_not_print_its_secret_by_accident() {
    let text = format!("{:?}", samples::invite());
    assert!(!text.contains("5, 5") && !text.contains("0505"), "{text}");
}
