//! Frames: a message's length as four bytes, most significant first, then its CBOR.
//!
//! The CBOR is `[number, {field: value, …}]`. What a stranger sends is checked in this order, and
//! nothing is allocated for it before: the length against the stream's limit, the length against
//! the limit of that message, the shape of the CBOR (definite lengths that fit into the frame,
//! [`NESTING_MAX`] levels), then field by field.

use minicbor::{Decode, Encode};

/// Bytes of a frame on the control stream at most.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1 << 20;
/// Bytes of a frame on a job's stream at most: a request with its body.
pub const JOB_FRAME_BYTES_MAX: usize = 8 << 20;
/// Bytes of any other frame on a job's stream at most.
pub const TOKEN_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Levels of lists and maps in a frame at most.
pub const NESTING_MAX: usize = 16;

/// Bytes of the length before each frame.
const LENGTH_BYTES: usize = 4;
/// Bytes that show a frame's number: the list's header and a number below 256.
const NUMBER_BYTES: usize = 3;
/// Read bytes that may lie before the unread ones until they are moved away.
const STALE_BYTES_MAX: usize = 64 * 1024;

/// Messages that travel in frames.
pub trait Frame: Encode<()> + for<'b> Decode<'b, ()> {
    /// Bytes of the message with this number at most, without the length before it; `None` for
    /// numbers that this version does not know.
    fn bytes_max(number: u64) -> Option<usize>;
}

/// Why a frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It announces more bytes than it may have. The stream cannot be read on.
    #[error("a frame of {bytes} bytes was announced and {max} are allowed; the stream is closed")]
    TooLarge {
        /// Bytes that were announced.
        bytes: usize,
        /// Bytes that are allowed.
        max: usize,
    },
    /// Its bytes are not a message of this protocol. The frames after it can still be read.
    #[error("a frame is not a well-formed message; it was skipped")]
    Malformed,
}

/// A message as a frame, its length included.
///
/// Keeping within the limits of each field is up to whoever builds the message; a reader refuses
/// a frame that exceeds them.
pub fn encode<T: Frame>(message: &T) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH_BYTES];
    if minicbor::encode(message, &mut bytes).is_err() {
        // Writing to memory cannot fail and no message refuses to be written; an empty frame
        // would be refused by its reader.
        bytes.truncate(LENGTH_BYTES);
    }
    let length = u32::try_from(bytes.len() - LENGTH_BYTES).unwrap_or(u32::MAX);
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Cuts a stream of bytes into messages.
///
/// Push what was read, then call [`Frames::next`] until it gives `None`. It holds at most one
/// frame and what was pushed last.
///
/// # Examples
///
/// ```
/// use tirami_proto::{CONTROL_FRAME_BYTES_MAX, Frames, Message, encode};
/// let mut frames = Frames::new(CONTROL_FRAME_BYTES_MAX);
/// let bytes = encode(&Message::WantPeers);
/// frames.push(&bytes[..3]);
/// assert_eq!(frames.next::<Message>(), Ok(None));
/// frames.push(&bytes[3..]);
/// assert_eq!(frames.next::<Message>(), Ok(Some(Message::WantPeers)));
/// ```
#[derive(Debug)]
pub struct Frames {
    max: usize,
    buffer: Vec<u8>,
    /// How much of the buffer has been read.
    read: usize,
    broken: Option<FrameError>,
    skipped: u64,
}

impl Frames {
    /// Frames of at most `max` bytes each.
    pub const fn new(max: usize) -> Self {
        Self { max, buffer: Vec::new(), read: 0, broken: None, skipped: 0 }
    }

    /// Adds bytes of the stream. After [`FrameError::TooLarge`] they are ignored.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next message that is complete. Messages with unknown numbers are skipped.
    ///
    /// # Errors
    ///
    /// [`FrameError::Malformed`] once for each such frame; [`FrameError::TooLarge`] from then on.
    #[expect(clippy::should_implement_trait, reason = "an iterator could not name the message")]
    pub fn next<T: Frame>(&mut self) -> Result<Option<T>, FrameError> {
        loop {
            if let Some(broken) = self.broken {
                return Err(broken);
            }
            let Some(frame) = self.complete::<T>()? else {
                self.tidy();
                return Ok(None);
            };
            let bytes = &self.buffer[frame.clone()];
            self.read = frame.end;
            if !well_formed(bytes) {
                return Err(FrameError::Malformed);
            }
            let number = number_of(bytes).ok_or(FrameError::Malformed)?;
            match T::bytes_max(number) {
                None => self.skipped = self.skipped.saturating_add(1),
                // A number written in more bytes than it needs gets here with any length.
                Some(max) if bytes.len() > max => return Err(FrameError::Malformed),
                Some(_) => return decode_message(bytes).map(Some),
            }
        }
    }

    /// Messages skipped because their numbers are unknown.
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Bytes held of frames that are not complete yet.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len() - self.read
    }

    /// Where the next frame lies, without its length, if all of it is there.
    fn complete<T: Frame>(&mut self) -> Result<Option<core::ops::Range<usize>>, FrameError> {
        let unread = &self.buffer[self.read..];
        let Some((length, rest)) = unread.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let bytes = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        // The first bytes say which message it is, long before the frame is complete.
        let own = number_of(&rest[..rest.len().min(NUMBER_BYTES)]).and_then(T::bytes_max);
        let max = own.map_or(self.max, |own| own.min(self.max));
        if bytes > max {
            let error = FrameError::TooLarge { bytes, max };
            self.broken = Some(error);
            self.buffer = Vec::new();
            self.read = 0;
            return Err(error);
        }
        let start = self.read + LENGTH_BYTES;
        Ok((rest.len() >= bytes).then_some(start..start + bytes))
    }

    /// Gives back the memory of frames that were read.
    fn tidy(&mut self) {
        if self.read == self.buffer.len() {
            self.buffer.clear();
            self.buffer.shrink_to(STALE_BYTES_MAX);
            self.read = 0;
        } else if self.read > STALE_BYTES_MAX {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
    }
}

/// Reads exactly one message from the well-formed bytes of a frame.
fn decode_message<T: Frame>(bytes: &[u8]) -> Result<T, FrameError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let message = decoder.decode().map_err(|_| FrameError::Malformed)?;
    if decoder.position() == bytes.len() { Ok(message) } else { Err(FrameError::Malformed) }
}

/// The number of the message that begins with these bytes; `None` when they are not the beginning
/// of a message or too few.
fn number_of(bytes: &[u8]) -> Option<u64> {
    let mut decoder = minicbor::Decoder::new(bytes);
    (decoder.array().ok()? == Some(2)).then_some(())?;
    decoder.u64().ok()
}

/// Whether the bytes are exactly one CBOR item with definite lengths that fit into the bytes, not
/// nested deeper than [`NESTING_MAX`]. Takes no memory.
fn well_formed(bytes: &[u8]) -> bool {
    walk(bytes).is_some_and(<[u8]>::is_empty)
}

/// What is left after the first item.
fn walk(mut rest: &[u8]) -> Option<&[u8]> {
    // Items that are still to come on each level that is open.
    let mut open = [0_u64; NESTING_MAX];
    let mut level = 0;
    loop {
        let (major, argument, after) = header(rest)?;
        rest = after;
        let items = match major {
            2 | 3 => {
                rest = rest.get(usize::try_from(argument).ok()?..)?;
                0
            }
            4 => argument,
            5 => argument.checked_mul(2)?,
            // A tag stands before the item it belongs to.
            6 => continue,
            _ => 0,
        };
        // Each item has at least one byte.
        if items > rest.len() as u64 {
            return None;
        }
        if items > 0 {
            *open.get_mut(level)? = items;
            level += 1;
            continue;
        }
        while level > 0 {
            open[level - 1] -= 1;
            if open[level - 1] > 0 {
                break;
            }
            level -= 1;
        }
        if level == 0 {
            return Some(rest);
        }
    }
}

/// An item's major type, its argument, and what follows the header.
fn header(bytes: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let size = match first & 31 {
        small @ 0..=23 => return Some((first >> 5, u64::from(small), rest)),
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        // Indefinite lengths and reserved values.
        _ => return None,
    };
    let argument = rest.get(..size)?.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    Some((first >> 5, argument, &rest[size..]))
}

#[cfg(test)]
mod tests;
