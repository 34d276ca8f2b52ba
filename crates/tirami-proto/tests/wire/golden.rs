//! The bytes of one message of every kind, so that the language cannot drift unnoticed.

use std::collections::BTreeSet;

use tirami_core::Timestamp;
use tirami_proto::{Frame, Frames, Invite, JOB_FRAME_BYTES_MAX, PeerAddress, PriceSignal, encode};

use crate::samples;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// Compares `name hex` lines with those of a golden file, and reads the file's bytes back.
fn compare<T: Frame + PartialEq + std::fmt::Debug>(golden: &str, samples: Vec<(&str, T)>) {
    let line = |(name, message): &(&str, T)| format!("{name} {}", hex(&encode(message)));
    let lines: Vec<String> = samples.iter().map(line).collect();
    let expected: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, expected, "the bytes of a message changed:\n{}\n", lines.join("\n"));
    for ((name, message), line) in samples.iter().zip(expected) {
        let mut frames = Frames::new(JOB_FRAME_BYTES_MAX);
        frames.push(&bytes(line.split_once(' ').unwrap().1));
        assert_eq!(frames.next::<T>().unwrap().as_ref(), Some(message), "{name}");
        assert_eq!(frames.pending_bytes(), 0, "{name}");
    }
}

/// Every number below the first unknown one has a sample.
fn every_number_is_there<T: Frame>(samples: &[(&str, T)], kinds: u64) {
    let number = |(_, message): &(&str, T)| match encode(message)[5..] {
        [0x18, number, ..] | [number, ..] => u64::from(number),
        [] => unreachable!("a message has a number"),
    };
    let numbers: BTreeSet<u64> = samples.iter().map(number).collect();
    assert_eq!(numbers, (0..kinds).collect());
    assert!((0..kinds).all(|number| T::bytes_max(number).is_some()));
    assert_eq!(T::bytes_max(kinds), None);
}

#[test]
fn control_messages_have_the_bytes_they_always_had() {
    every_number_is_there(&samples::control(), 34);
    compare(include_str!("../golden/control.hex"), samples::control());
}

#[test]
fn job_frames_have_the_bytes_they_always_had() {
    every_number_is_there(&samples::to_provider(), 3);
    compare(include_str!("../golden/to-provider.hex"), samples::to_provider());
    every_number_is_there(&samples::to_consumer(), 8);
    compare(include_str!("../golden/to-consumer.hex"), samples::to_consumer());
}

#[test]
fn signals_addresses_and_invites_have_the_form_they_always_had() {
    let sent = samples::announced(samples::price_signal(1_700_000_000_000));
    let lines = [
        format!("price-signal {} {}", hex(&sent.bytes), sent.signature),
        format!("peer {}", samples::peer()),
        format!("invite {}", samples::invite()),
    ];
    let golden = include_str!("../golden/texts.txt");
    let expected: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.as_slice(), expected, "a form changed:\n{}\n", lines.join("\n"));

    let now = Timestamp::from_ms(1_700_000_001_000);
    assert!(PriceSignal::receive(samples::MESH, &sent, now).is_ok());
    let text = |n: usize| expected[n].split_once(' ').unwrap().1;
    assert_eq!(text(1).parse::<PeerAddress>(), Ok(samples::peer()));
    assert_eq!(text(2).parse::<Invite>(), Ok(samples::invite()));
}
