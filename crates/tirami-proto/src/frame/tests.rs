//! Frames: chunks of any size, limits before memory, and what a newer version may send.

use super::*;
use crate::{Goodbye, GoodbyeCode, Message, ToConsumer, ToProvider};

fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn read(bytes: &[u8]) -> Result<Option<Message>, FrameError> {
    let mut frames = Frames::new(CONTROL_FRAME_BYTES_MAX);
    frames.push(bytes);
    frames.next()
}

fn goodbye() -> Message {
    let reason = "stopping".to_owned();
    Message::Goodbye(Goodbye { code: GoodbyeCode::Stopping, reason, retry_after_ms: 5 })
}

#[test]
fn messages_are_read_from_chunks_of_any_size() {
    let sent = [goodbye(), Message::WantPeers, Message::WantHeads { bucket: 63 }, goodbye()];
    let bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
    for size in 1..=bytes.len() {
        let mut frames = Frames::new(CONTROL_FRAME_BYTES_MAX);
        let mut got: Vec<Message> = Vec::new();
        for chunk in bytes.chunks(size) {
            frames.push(chunk);
            while let Some(message) = frames.next().unwrap() {
                got.push(message);
            }
        }
        assert_eq!(got, sent, "in chunks of {size}");
        assert_eq!(frames.pending_bytes(), 0);
    }
}

#[test]
fn what_a_newer_version_adds_is_skipped() {
    // Message 99, then a known message with a field 200 of nested things, then a plain one.
    let newer = frame(&[0x82, 0x18, 99, 0xa1, 0, 0x82, 1, 0xf6]);
    let field = frame(&[0x82, 8, 0xa2, 0, 7, 0x18, 200, 0x82, 0xa1, 0, 0x41, 1, 0xc1, 0x61, b'x']);
    let bytes = [newer, field, encode(&Message::WantPeers)].concat();
    let mut frames = Frames::new(CONTROL_FRAME_BYTES_MAX);
    frames.push(&bytes);
    assert_eq!(frames.next(), Ok(Some(Message::WantHeads { bucket: 7 })));
    assert_eq!(frames.next(), Ok(Some(Message::WantPeers)));
    assert_eq!(frames.next::<Message>(), Ok(None));
    assert_eq!(frames.skipped(), 1);
}

#[test]
fn a_goodbye_with_an_unknown_code_is_still_a_goodbye() {
    let bytes = frame(&[0x82, 2, 0xa1, 0, 0xa3, 0, 0x18, 77, 1, 0x60, 2, 0]);
    let reason = String::new();
    let expected = Goodbye { code: GoodbyeCode::Other, reason, retry_after_ms: 0 };
    assert_eq!(read(&bytes), Ok(Some(Message::Goodbye(expected))));
}

#[test]
fn a_frame_that_is_too_large_is_refused_from_its_length_alone() {
    let too_large = |bytes, max| Err(FrameError::TooLarge { bytes, max });
    let max = CONTROL_FRAME_BYTES_MAX;
    assert_eq!(read(&u32::MAX.to_be_bytes()), too_large(u32::MAX as usize, max));
    assert_eq!(read(&(max as u32 + 1).to_be_bytes()), too_large(max + 1, max));
    assert_eq!(read(&(max as u32).to_be_bytes()), Ok(None), "it may be a large one");
    // As soon as the number is there, the limit is that message's own.
    let mut bytes = (max as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0x82, 3]);
    assert_eq!(read(&bytes), too_large(max, 64 * 1024));
    // A voucher with the length of a request.
    let mut frames = Frames::new(JOB_FRAME_BYTES_MAX);
    frames.push(&(JOB_FRAME_BYTES_MAX as u32).to_be_bytes());
    frames.push(&[0x82, 1]);
    let refused = FrameError::TooLarge { bytes: JOB_FRAME_BYTES_MAX, max: TOKEN_FRAME_BYTES_MAX };
    assert_eq!(frames.next::<ToProvider>(), Err(refused));
    frames.push(&encode(&ToProvider::Cancel));
    assert_eq!(frames.next::<ToProvider>(), Err(refused), "the stream stays refused");
    assert_eq!(frames.pending_bytes(), 0, "and takes no more memory");
}

#[test]
fn a_malformed_frame_is_refused_and_the_next_one_read() {
    let deep = [vec![0x82, 8, 0xa1, 0x18, 99], vec![0x81; NESTING_MAX], vec![0]].concat();
    let cases: [(&str, &[u8]); 16] = [
        ("empty", &[]),
        ("not a list", &[0xa0]),
        ("a list of three", &[0x83, 22, 0xa0, 0]),
        ("no number", &[0x82, 0x60, 0xa0]),
        ("fields that are a list", &[0x82, 8, 0x81, 7]),
        ("bytes after the message", &[0x82, 22, 0xa0, 0]),
        ("a missing field", &[0x82, 8, 0xa0]),
        ("a field of the wrong type", &[0x82, 8, 0xa1, 0, 0x61, b'x']),
        ("a number that is too large", &[0x82, 8, 0xa1, 0, 0x19, 1, 0]),
        ("a list without a length", &[0x82, 22, 0xbf, 0xff]),
        ("a text without a length", &[0x82, 22, 0xa1, 9, 0x7f, 0xff]),
        ("a list longer than the frame", &[0x82, 22, 0xa1, 9, 0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0]),
        ("a text longer than the frame", &[0x82, 22, 0xa1, 9, 0x7a, 0xff, 0xff, 0xff, 0xff]),
        ("a text that is not UTF-8", &[0x82, 2, 0xa3, 0, 6, 1, 0x61, 0xff, 2, 0]),
        ("an unknown message with rubbish", &[0x82, 0x18, 99, 0xff]),
        ("too many levels", &deep),
    ];
    for (what, body) in cases {
        let mut frames = Frames::new(CONTROL_FRAME_BYTES_MAX);
        frames.push(&frame(body));
        frames.push(&encode(&Message::WantPeers));
        assert_eq!(frames.next::<Message>(), Err(FrameError::Malformed), "{what}");
        assert_eq!(frames.next(), Ok(Some(Message::WantPeers)), "after {what}");
    }
}

#[test]
fn nesting_up_to_the_limit_is_read() {
    let levels = NESTING_MAX - 2;
    let body = [vec![0x82, 22, 0xa1, 0x18, 99], vec![0x81; levels], vec![0]].concat();
    assert_eq!(read(&frame(&body)), Ok(Some(Message::WantPeers)));
}

#[test]
fn a_number_in_more_bytes_than_needed_does_not_lift_its_limit() {
    let mut body = vec![0x82, 0x1b, 0, 0, 0, 0, 0, 0, 0, 22, 0xa1, 0x18, 99, 0x5a];
    let padding = 100_000_u32;
    body.extend_from_slice(&padding.to_be_bytes());
    body.resize(body.len() + padding as usize, 0);
    assert_eq!(read(&frame(&body)), Err(FrameError::Malformed));
}

#[test]
fn memory_is_given_back_after_a_large_frame() {
    let mut frames = Frames::new(JOB_FRAME_BYTES_MAX);
    let text = "x".repeat(30_000);
    let message = ToConsumer::Tokens { tokens: vec![1; 1_000], text, likelihoods: Vec::new() };
    for _ in 0..20 {
        frames.push(&encode(&message));
        assert_eq!(frames.next::<ToConsumer>().unwrap().as_ref(), Some(&message));
    }
    assert_eq!(frames.next::<ToConsumer>(), Ok(None));
    assert!(frames.buffer.capacity() <= STALE_BYTES_MAX, "{}", frames.buffer.capacity());
}
