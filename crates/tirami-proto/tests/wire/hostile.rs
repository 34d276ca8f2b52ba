//! Bytes of strangers: nothing panics, what is read survives, and memory follows what was sent.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use tirami_core::{Timestamp, decode_body};
use tirami_proto::{
    CONTROL_FRAME_BYTES_MAX, Frame, FrameError, Frames, Invite, JOB_FRAME_BYTES_MAX, Message,
    PeerAddress, PriceSignal, ToConsumer, ToProvider, WireDocument, encode,
};

use crate::samples;

const MUTATIONS: usize = 3_000;

/// Counts what this thread allocates: the largest sum held at one time.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get() + layout.size();
        HELD.set(held);
        PEAK.set(PEAK.get().max(held));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `f` held at one time.
fn peak(f: impl FnOnce()) -> usize {
    let before = HELD.get();
    PEAK.set(before);
    f();
    PEAK.get() - before
}

fn below(dice: &mut ChaCha8Rng, bound: usize) -> usize {
    (dice.next_u64() % bound.max(1) as u64) as usize
}

/// Changes a few bytes, cuts, doubles or moves a part.
fn mutate(dice: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=below(dice, 3) {
        let at = below(dice, bytes.len());
        match below(dice, 6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, dice.next_u32() as u8),
            2 if !bytes.is_empty() => bytes[at] ^= 1 << below(dice, 8),
            3 if !bytes.is_empty() => bytes[at] = [0x9b, 0xbb, 0x5b, 0x7f, 0xff, 0][below(dice, 6)],
            4 => {
                let part = bytes[at..(at + below(dice, 40)).min(bytes.len())].to_vec();
                let to = below(dice, bytes.len());
                bytes.splice(to..to, part);
            }
            _ => drop(bytes.drain(at..(at + below(dice, 8)).min(bytes.len()))),
        }
    }
}

/// Reads all frames there are, in chunks; what was read must survive being written.
fn read_all<T: Frame + PartialEq + std::fmt::Debug>(bytes: &[u8], chunk: usize, max: usize) {
    let mut frames = Frames::new(max);
    for chunk in bytes.chunks(chunk) {
        frames.push(chunk);
        loop {
            match frames.next::<T>() {
                Ok(Some(message)) => {
                    let mut again = Frames::new(max);
                    again.push(&encode(&message));
                    assert_eq!(again.next::<T>().unwrap().unwrap(), message);
                }
                Ok(None) | Err(FrameError::TooLarge { .. }) => break,
                Err(FrameError::Malformed) => {}
            }
        }
    }
}

fn torture<T: Frame + PartialEq + std::fmt::Debug>(samples: &[(&str, T)], max: usize) {
    for (seed, (_, message)) in (0..).zip(samples) {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let frame = encode(message);
        for _ in 0..MUTATIONS {
            let mut body = frame[4..].to_vec();
            mutate(&mut dice, &mut body);
            let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
            bytes.extend_from_slice(&body);
            // Sometimes the length lies too.
            if below(&mut dice, 4) == 0 {
                mutate(&mut dice, &mut bytes);
            }
            bytes.extend_from_slice(&frame);
            read_all::<T>(&bytes, 1 + below(&mut dice, 300), max);
        }
    }
}

#[test]
fn mutated_control_messages_are_read_or_refused() {
    torture(&samples::control(), CONTROL_FRAME_BYTES_MAX);
}

#[test]
fn mutated_job_frames_are_read_or_refused() {
    torture(&samples::to_provider(), JOB_FRAME_BYTES_MAX);
    torture(&samples::to_consumer(), JOB_FRAME_BYTES_MAX);
}

#[test]
fn mutated_signals_are_read_or_refused() {
    let sent = samples::announced(samples::price_signal(1_700_000_000_000));
    let mut dice = ChaCha8Rng::seed_from_u64(1);
    let now = Timestamp::from_ms(1_700_000_001_000);
    for _ in 0..10 * MUTATIONS {
        let mut bytes = sent.bytes.clone();
        mutate(&mut dice, &mut bytes);
        if let Ok(signal) = decode_body::<PriceSignal>(&bytes) {
            let _ = signal.check(now);
        }
        let same = bytes == sent.bytes;
        let mutated = WireDocument { bytes, signature: sent.signature };
        let read = PriceSignal::receive(samples::MESH, &mutated, now);
        assert_eq!(read.is_ok(), same, "only the signed bytes pass");
    }
}

#[test]
fn mutated_texts_are_read_or_refused() {
    let mut dice = ChaCha8Rng::seed_from_u64(2);
    let (peer, invite) = (samples::peer().to_string(), samples::invite().to_string());
    for _ in 0..10 * MUTATIONS {
        let mut bytes = peer.clone().into_bytes();
        mutate(&mut dice, &mut bytes);
        if let Ok(peer) = String::from_utf8_lossy(&bytes).parse::<PeerAddress>() {
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
        let mut bytes = invite.clone().into_bytes();
        mutate(&mut dice, &mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(text.parse::<Invite>().is_ok(), text.trim().eq_ignore_ascii_case(&invite));
    }
}

#[test]
fn noise_is_refused() {
    let mut dice = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..MUTATIONS {
        let mut bytes = vec![0; below(&mut dice, 400)];
        dice.fill_bytes(&mut bytes);
        bytes.iter_mut().take(3).for_each(|byte| *byte = 0);
        read_all::<Message>(&bytes, 64, CONTROL_FRAME_BYTES_MAX);
        read_all::<ToProvider>(&bytes, 64, JOB_FRAME_BYTES_MAX);
        read_all::<ToConsumer>(&bytes, 64, JOB_FRAME_BYTES_MAX);
    }
}

/// A list of `count` one-byte items in field `field` of message `number`.
fn long_list(number: u8, field: u8, count: u32) -> Vec<u8> {
    let mut body = [head(number), vec![0xa1, field, 0x9a]].concat();
    body.extend_from_slice(&count.to_be_bytes());
    body.resize(body.len() + count as usize, 0x60);
    let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// The numbers of all messages: those that may come at all.
fn numbers() -> impl Iterator<Item = u8> {
    (0..=u8::MAX).take_while(|number| Message::bytes_max(u64::from(*number)).is_some())
}

/// A message's first bytes: a pair that begins with its number.
fn head(number: u8) -> Vec<u8> {
    if number < 24 { vec![0x82, number] } else { vec![0x82, 0x18, number] }
}

#[test]
fn no_length_takes_memory_before_it_is_checked() {
    // Lengths that lie, in a frame of a few bytes.
    for number in numbers() {
        for header in [0x5b, 0x7b, 0x9b, 0xbb] {
            let lying = [0xa1, 0, header, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3];
            let body = [head(number), lying.to_vec()].concat();
            let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
            bytes.extend_from_slice(&body);
            let taken = peak(|| read_all::<Message>(&bytes, bytes.len(), 1 << 20));
            assert!(taken < 1_024, "message {number}, header {header:x}: {taken} bytes");
        }
    }
    let length = (JOB_FRAME_BYTES_MAX as u32).to_be_bytes();
    assert!(peak(|| read_all::<ToProvider>(&length, 4, JOB_FRAME_BYTES_MAX)) < 1_024);
    assert!(peak(|| read_all::<Message>(&[0xff; 4], 4, 1 << 20)) < 1_024);
}

#[test]
fn lists_of_nothing_take_no_more_memory_than_their_frame() {
    for number in numbers() {
        for field in 0..4 {
            let bytes = long_list(number, field, 60_000);
            let taken = peak(|| read_all::<Message>(&bytes, bytes.len(), 1 << 20));
            let most = 2 * bytes.len() + 16 * 1_024;
            assert!(taken < most, "message {number}, field {field}: {taken} bytes");
        }
    }
}
