//! What a peer may send: how fast, and how often it may be wrong.
//!
//! Integers only, and the time is an argument. One [`PeerLimits`] and one [`Score`] have a fixed
//! size, so that a table of them is bounded by its number of peers.

use tirami_core::{HOUR_MS, Timestamp};

/// Frames a peer may send each second in the long run.
pub const FRAMES_PER_SECOND: u32 = 1_000;
/// Frames a peer may send at once after a pause.
pub const FRAMES_BURST: u32 = 4_000;
/// Bytes a peer may send each second in the long run.
pub const BYTES_PER_SECOND: u32 = 32 << 20;
/// Bytes a peer may send at once after a pause.
pub const BYTES_BURST: u32 = 64 << 20;
/// The score at which a peer is refused.
pub const SCORE_MAX: u32 = 100;
/// How long a peer is refused for the first time.
pub const REFUSAL_MS_MIN: u64 = 1_000;
/// How long a peer is refused at most.
pub const REFUSAL_MS_MAX: u64 = HOUR_MS;

/// A point of a score is forgotten after this time.
const POINT_MS: u64 = 1_000;
/// Without a further refusal for this long, the next one is half as long.
const STRIKE_MS: u64 = HOUR_MS;
/// Doublings after which a refusal is as long as it gets.
const STRIKES_MAX: u32 = 12;

/// A bucket that fills at a steady rate and is emptied by what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    per_second: u32,
    /// In thousandths, so that a millisecond's share is whole.
    capacity_milli: u64,
    level_milli: u64,
    at: Timestamp,
}

impl TokenBucket {
    /// A full bucket of `burst` that gains `per_second` each second, at least 1.
    pub const fn new(per_second: u32, burst: u32, now: Timestamp) -> Self {
        let capacity_milli = burst as u64 * 1_000;
        let per_second = if per_second == 0 { 1 } else { per_second };
        Self { per_second, capacity_milli, level_milli: capacity_milli, at: now }
    }

    /// Takes `amount` out.
    ///
    /// # Errors
    ///
    /// How many milliseconds it takes until there is enough; nothing was taken then. An amount
    /// beyond the burst is never there: [`u64::MAX`].
    pub fn take(&mut self, amount: u32, now: Timestamp) -> Result<(), u64> {
        self.fill(now);
        let wanted = u64::from(amount) * 1_000;
        if let Some(left) = self.level_milli.checked_sub(wanted) {
            self.level_milli = left;
            return Ok(());
        }
        if wanted > self.capacity_milli {
            return Err(u64::MAX);
        }
        Err((wanted - self.level_milli).div_ceil(u64::from(self.per_second)))
    }

    /// When it was made, last taken from or looked at.
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// Whether it holds its burst, as a new one would.
    pub fn is_full(&mut self, now: Timestamp) -> bool {
        self.fill(now);
        self.level_milli == self.capacity_milli
    }

    fn fill(&mut self, now: Timestamp) {
        // A clock that was set back fills nothing and starts again from there.
        let gained = now.since_ms(self.at).saturating_mul(u64::from(self.per_second));
        self.level_milli = self.level_milli.saturating_add(gained).min(self.capacity_milli);
        self.at = now;
    }
}

/// How fast one peer may send on its control stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    frames: TokenBucket,
    bytes: TokenBucket,
}

impl PeerLimits {
    /// The limits of a peer that has not sent anything yet.
    pub const fn new(now: Timestamp) -> Self {
        Self {
            frames: TokenBucket::new(FRAMES_PER_SECOND, FRAMES_BURST, now),
            bytes: TokenBucket::new(BYTES_PER_SECOND, BYTES_BURST, now),
        }
    }

    /// Accounts for a frame of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// How many milliseconds to wait before the peer is read again. The frame is accounted for
    /// only when it fits both limits.
    pub fn frame(&mut self, bytes: usize, now: Timestamp) -> Result<(), u64> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let before = self.frames;
        self.frames.take(1, now)?;
        self.bytes.take(bytes, now).inspect_err(|_| self.frames = before)
    }
}

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A frame that is no message.
    Malformed,
    /// A signature that does not fit.
    BadSignature,
    /// A message that breaks a rule an honest node would have checked.
    Invalid,
    /// A message nobody asked for, or out of turn.
    Unasked,
    /// More than the limits allow.
    TooFast,
}

impl Fault {
    /// How much the fault adds to the score.
    const fn points(self) -> u32 {
        match self {
            Self::BadSignature => 50,
            Self::Malformed => 25,
            Self::Invalid => 20,
            Self::TooFast => 10,
            Self::Unasked => 2,
        }
    }
}

/// How a peer has behaved. It rises with each fault, falls by one point a second, and at
/// [`SCORE_MAX`] the peer is refused: one second the first time, twice as long each further time,
/// up to an hour. Each hour without a refusal halves the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Score {
    points: u32,
    strikes: u32,
    /// Until when points and strikes have been counted down.
    at: Timestamp,
    refused_until: Timestamp,
}

impl Score {
    /// Records a fault. Whether the peer is to be refused from now on.
    pub fn fault(&mut self, fault: Fault, now: Timestamp) -> bool {
        self.fade(now);
        self.points = self.points.saturating_add(fault.points());
        if self.points < SCORE_MAX {
            return false;
        }
        let length_ms = (REFUSAL_MS_MIN << self.strikes.min(STRIKES_MAX)).min(REFUSAL_MS_MAX);
        self.refused_until = now.plus_ms(length_ms);
        self.strikes = (self.strikes + 1).min(STRIKES_MAX);
        self.points = 0;
        self.at = self.refused_until;
        true
    }

    /// For how many more milliseconds the peer is refused; `None` when it is not.
    pub fn refused_ms(&self, now: Timestamp) -> Option<u64> {
        let left = self.refused_until.since_ms(now).min(REFUSAL_MS_MAX);
        (left > 0).then_some(left)
    }

    /// Whether nothing is held against the peer, so that its score may be forgotten.
    pub fn is_clean(&mut self, now: Timestamp) -> bool {
        self.fade(now);
        self.points == 0 && self.strikes == 0 && self.refused_ms(now).is_none()
    }

    fn fade(&mut self, now: Timestamp) {
        let passed = now.since_ms(self.at);
        let points = u32::try_from(passed / POINT_MS).unwrap_or(u32::MAX);
        if self.points == 0 {
            let hours = u32::try_from(passed / STRIKE_MS).unwrap_or(u32::MAX);
            if hours > 0 {
                self.strikes = self.strikes.saturating_sub(hours);
                self.at = now;
            }
        } else if points > 0 {
            self.points = self.points.saturating_sub(points);
            self.at = now;
        }
    }
}
