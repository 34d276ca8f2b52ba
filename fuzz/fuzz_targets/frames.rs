//! What the targets of all streams share: a stream in chunks, and what was read survives writing.

use tirami_proto::{Frame, FrameError, Frames, encode};

/// Reads a stream of frames in chunks whose size the first byte decides.
pub(crate) fn read<T: Frame + PartialEq + std::fmt::Debug>(data: &[u8], max: usize) {
    let Some((chunk, stream)) = data.split_first() else { return };
    let mut frames = Frames::new(max);
    for chunk in stream.chunks(usize::from(*chunk) + 1) {
        frames.push(chunk);
        loop {
            match frames.next::<T>() {
                Ok(Some(message)) => again(&message, max),
                Err(FrameError::Malformed) => {}
                Ok(None) | Err(FrameError::TooLarge { .. }) => break,
            }
        }
        assert!(frames.pending_bytes() <= max + 4);
    }
    // The same bytes as the body of one frame, so that the fuzzer need not learn lengths.
    let mut whole = Frames::new(max);
    whole.push(&u32::try_from(stream.len()).unwrap_or(u32::MAX).to_be_bytes());
    whole.push(stream);
    if let Ok(Some(message)) = whole.next::<T>() {
        again(&message, max);
    }
}

fn again<T: Frame + PartialEq + std::fmt::Debug>(message: &T, max: usize) {
    let mut frames = Frames::new(max);
    frames.push(&encode(message));
    let read = frames.next::<T>();
    assert!(read.as_ref().is_ok_and(|read| read.as_ref() == Some(message)), "{message:?}");
}
