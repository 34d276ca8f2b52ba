//! The small types the book's commands, events and rejections share.

use core::fmt;
use core::str::FromStr;

use minicbor::{Decode, Encode};
use tirami_core::{AgentId, Trm};

/// What a caller may do. Each scope includes those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Scope {
    /// Look at balances, trades and status.
    #[n(0)]
    Read,
    /// Ask models, spending the bound agent's TRM.
    #[n(1)]
    Inference,
    /// Move TRM between accounts and manage the agents' budgets.
    #[n(2)]
    Economy,
    /// Everything: keys, limits, approvals, the kill switch.
    #[n(3)]
    Admin,
}

impl Scope {
    /// All scopes, the least first.
    pub const ALL: [Self; 4] = [Self::Read, Self::Inference, Self::Economy, Self::Admin];

    /// The scope's name in JSON and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Inference => "inference",
            Self::Economy => "economy",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names an API key without being the key: the first eight hexadecimal characters of its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct KeyId(#[n(0)] u32);

impl KeyId {
    /// The id with this number.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// The text is not eight lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of an API key has eight hexadecimal digits, such as 00c0ffee")]
pub struct KeyIdError;

impl FromStr for KeyId {
    type Err = KeyIdError;

    /// Exactly what [`KeyId`]'s `Display` writes: a key has one name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 8 || !text.bytes().all(is_digit) {
            return Err(KeyIdError);
        }
        u32::from_str_radix(text, 16).map(Self).map_err(|_| KeyIdError)
    }
}

/// The number of an approval; counts from 1 and is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct ApprovalId(#[n(0)] u64);

impl ApprovalId {
    /// The approval with this number.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Whose limits are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Target {
    /// The whole node: all agents together.
    #[n(0)]
    Node,
    /// One agent, through whichever key.
    #[n(1)]
    Agent(#[n(0)] AgentId),
    /// One API key.
    #[n(2)]
    Key(#[n(0)] KeyId),
}

/// At which level a limit stopped a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The API key.
    Key,
    /// The agent.
    Agent,
    /// The node.
    Node,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "the API key",
            Self::Agent => "the agent",
            Self::Node => "the node",
        })
    }
}

/// The stretch of time a budget covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// The last 60 seconds, sliding.
    Minute,
    /// The last 60 minutes, sliding by minutes.
    Hour,
    /// The last 24 hours, sliding by hours.
    Day,
    /// For ever.
    Lifetime,
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Lifetime => "lifetime",
        })
    }
}

/// What may be spent. `None` is no limit at this level; other levels still apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Limits {
    /// One request, at most.
    #[n(0)]
    pub request_max: Option<Trm>,
    /// The sliding minute (velocity), spent and held together.
    #[n(1)]
    pub minute_max: Option<Trm>,
    /// The sliding hour.
    #[n(2)]
    pub hour_max: Option<Trm>,
    /// The sliding day.
    #[n(3)]
    pub day_max: Option<Trm>,
    /// For ever.
    #[n(4)]
    pub lifetime_max: Option<Trm>,
    /// A request that may cost more waits for a person.
    #[n(5)]
    pub approval_above: Option<Trm>,
    /// So many failed jobs in a row open the agent's circuit breaker. Only an agent's or the
    /// node's limits carry it; the smaller number counts.
    #[n(6)]
    pub breaker_errors: Option<u32>,
    /// So many jobs within a sliding minute open it.
    #[n(7)]
    pub breaker_spends_per_minute: Option<u32>,
    /// How long it stays open, in milliseconds; 300 000 when not set.
    #[n(8)]
    pub breaker_open_ms: Option<u64>,
}

impl Limits {
    /// The budget for `period`; `None` is no limit.
    pub const fn of(&self, period: Period) -> Option<Trm> {
        match period {
            Period::Minute => self.minute_max,
            Period::Hour => self.hour_max,
            Period::Day => self.day_max,
            Period::Lifetime => self.lifetime_max,
        }
    }
}
