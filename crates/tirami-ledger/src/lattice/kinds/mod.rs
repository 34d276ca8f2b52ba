//! The table of entry kinds (MONEY §5). A new kind is one file here and one row of the table.

mod decision;

use std::borrow::Cow;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Encode, Encoder};
use tirami_core::{DocumentId, PartyId, PublicKey, Timestamp, Trm};

use super::Lattice;
use super::charter::Charter;
use super::rejection::EntryRejection;
use super::state::{ChainState, FinalEntry};

pub(super) use checkpoint::epoch;
pub(super) use decision::{DECISIONS_MAX, decisions_root, item_id};
pub use decision::{Decision, Ending};

macro_rules! kinds {
    ($($number:literal $file:ident $Kind:ident $(($item:ident))? #[doc = $doc:literal])+) => {
        $(mod $file; pub use $file::{$Kind $(, $item)?};)+

        /// What an entry does. The number is the one in the signed bytes and never changes.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum EntryKind {
            $(#[doc = $doc] $Kind($Kind),)+
        }

        impl EntryKind {
            /// The kind's number in the signed bytes.
            pub const fn number(&self) -> u8 {
                match self { $(Self::$Kind(_) => $number,)+ }
            }

            /// The kind's name, as in MONEY §5.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$Kind(_) => stringify!($file),)+ }
            }

            /// The rules of the kind.
            pub(super) fn rules(&self) -> &dyn Rules {
                match self { $(Self::$Kind(fields) => fields,)+ }
            }

            /// The fields of a kind; `None` when this build does not know the kind.
            pub(super) fn decode_fields(
                kind: u32,
                bytes: &[u8],
            ) -> Result<Option<Self>, DecodeError> {
                match kind {
                    $($number => minicbor::decode(bytes).map(|fields| Some(Self::$Kind(fields))),)+
                    _ => Ok(None),
                }
            }

            pub(super) fn encode_fields<W: Write>(
                &self,
                e: &mut Encoder<W>,
            ) -> Result<(), EncodeError<W::Error>> {
                match self { $(Self::$Kind(fields) => e.encode(fields)?,)+ };
                Ok(())
            }
        }

        $(impl From<$Kind> for EntryKind {
            fn from(fields: $Kind) -> Self {
                Self::$Kind(fields)
            }
        })+
    };
}

kinds! {
    0 open Open #[doc = "A party begins its chain."]
    1 enrol Enrol #[doc = "The registrar grants a party a right to overdraw."]
    2 line Line #[doc = "A party takes up an enrolment after it began."]
    3 pay Pay (PayItem) #[doc = "A consumer pays a provider for jobs."]
    4 transfer Transfer #[doc = "A party gives TRM to another."]
    5 collect Collect #[doc = "A payee takes final payments onto its chain."]
    6 checkpoint Checkpoint #[doc = "The clerk states time, heads and supply."]
    7 rekey Rekey #[doc = "A party changes its key."]
    8 sponsor Sponsor #[doc = "A member locks TRM so that a newcomer may begin below zero."]
    9 settle Settle #[doc = "A newcomer gives its welcome line back."]
    10 unsponsor Unsponsor #[doc = "A sponsor takes its lock back."]
}

/// What a kind decides.
pub(super) trait Rules {
    /// The entries that must be final before this one can be judged.
    fn names(&self) -> Cow<'_, [DocumentId]>;

    /// Those of them that say something a certificate alone does not tell: they are on chains
    /// that every node keeps.
    fn needs(&self) -> Cow<'_, [DocumentId]> {
        Cow::Borrowed(&[])
    }

    /// What the entry does, given its causal past and nothing else.
    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection>;

    /// Another key that may sign this entry instead of the chain's current one.
    fn other_signer(&self, _state: &ChainState) -> Option<PublicKey> {
        None
    }
}

/// The causal past of an entry: its chain before it, final entries it names, its charter.
pub(super) struct Past<'a> {
    pub(super) chain: PartyId,
    pub(super) prev: Option<DocumentId>,
    pub(super) state: &'a ChainState,
    pub(super) charter: &'a Charter,
    pub(super) lattice: &'a Lattice,
    /// What the entry says its balance is, when a certificate stands for what it names and this
    /// node does not hold: such entries are not looked at, all others are.
    pub(super) vouched: Option<i64>,
}

impl<'a> Past<'a> {
    /// A named entry; `None` when a certificate stands for it and it is not held here.
    pub(super) fn vouched(&self, id: DocumentId) -> Result<Option<&'a FinalEntry>, EntryRejection> {
        match (self.lattice.final_entry(id), self.vouched) {
            (None, None) => Err(EntryRejection::Missing { entry: id }),
            (known, _) => Ok(known),
        }
    }

    /// A named entry, which is final.
    pub(super) fn named(&self, id: DocumentId) -> Result<&'a FinalEntry, EntryRejection> {
        self.lattice.final_entry(id).ok_or(EntryRejection::Missing { entry: id })
    }

    /// The enrolment of this party that `id` names: the line granted.
    pub(super) fn grant(&self, id: DocumentId) -> Result<Trm, EntryRejection> {
        match self.named(id)?.effect.change {
            Change::Enrolled { party, line } if party == self.chain => Ok(line),
            _ => Err(EntryRejection::NotMyGrant { entry: id }),
        }
    }

    /// The welcome line of this party that `id` secures; zero while the lock is not held here.
    pub(super) fn welcome(&self, id: DocumentId) -> Result<Trm, EntryRejection> {
        match self.vouched(id)?.map(|lock| lock.effect.change) {
            None => Ok(Trm::ZERO),
            Some(Change::Sponsored { newcomer, amount }) if newcomer == self.chain => Ok(amount),
            _ => Err(EntryRejection::NotMyGrant { entry: id }),
        }
    }

    /// The amount of the payment to this party that `id` names, if it was not collected before.
    /// One paid out of a welcome line has to be covered in time by `checkpoint`. `None` when a
    /// certificate stands for it and it is not held here.
    pub(super) fn item(
        &self,
        id: DocumentId,
        checkpoint: Option<DocumentId>,
    ) -> Result<Option<Trm>, EntryRejection> {
        let Some(payout) = self.lattice.payout(id) else {
            if self.lattice.was_collected_unseen(id, self.chain, self.prev) {
                return Err(EntryRejection::AlreadyCollected { entry: id });
            }
            return self.vouched(id).map(|_| None);
        };
        let payout = payout.filter(|payout| payout.payee == self.chain);
        let payout = payout.ok_or(EntryRejection::NotMyItem { entry: id })?;
        if let Some(record) = self.lattice.final_entry(id)
            && let Change::OutOfWelcome { lock } = record.effect.change
        {
            let known = checkpoint.map(|checkpoint| self.vouched(checkpoint)).transpose()?;
            let listed = known.flatten().and_then(|known| known.effect.decision(lock));
            let unseen = matches!(known, Some(None));
            if !unseen && listed.is_none_or(|listed| listed.covered <= record.slot.seq) {
                return Err(EntryRejection::NotCovered { entry: id });
            }
        }
        if self.lattice.was_collected(id, self.chain, self.prev) {
            return Err(EntryRejection::AlreadyCollected { entry: id });
        }
        Ok(Some(payout.amount))
    }

    /// The balance less `debit`, if the line allows it.
    pub(super) fn debit(&self, debit: i128) -> Result<i128, EntryRejection> {
        let after = i128::from(self.state.balance) - debit;
        let short = -self.state.line.signed() - after;
        if short > 0 {
            return Err(EntryRejection::BelowFloor { short_micro: short.unsigned_abs() });
        }
        Ok(after)
    }

    /// The balance less `debit`, if line and welcome line together allow it, and whether it is
    /// out of the welcome line: below what the line alone allows.
    pub(super) fn debit_for_jobs(&self, debit: i128) -> Result<(i128, Change), EntryRejection> {
        let after = i128::from(self.state.balance) - debit;
        if after >= -self.state.line.signed() {
            return Ok((after, Change::None));
        }
        let short = -self.state.line.signed() - self.state.welcome.signed() - after;
        let vouched = self.state.unproven && self.vouched.is_some();
        match self.state.sponsor {
            Some(lock) if short <= 0 || vouched => Ok((after, Change::OutOfWelcome { lock })),
            Some(lock) if self.state.unproven => Err(EntryRejection::Missing { entry: lock }),
            _ => Err(EntryRejection::BelowFloor { short_micro: short.unsigned_abs() }),
        }
    }

    /// The balance as it is.
    pub(super) fn balance(&self) -> i128 {
        i128::from(self.state.balance)
    }
}

/// What an entry does and where it leaves the balance.
pub(super) struct Outcome {
    pub(super) balance: i128,
    pub(super) effect: Effect,
}

impl Outcome {
    /// No money moves; the chain's state changes.
    pub(super) fn change(past: &Past<'_>, change: Change) -> Self {
        Self { balance: past.balance(), effect: Effect { change, ..Effect::default() } }
    }
}

/// What a final entry does to the lattice: the closed vocabulary of all kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Effect {
    /// µTRM that cease to exist.
    #[n(0)]
    pub burned: Trm,
    /// TRM put in transit under the entry's id.
    #[n(1)]
    pub payout: Option<Payout>,
    /// The items taken out of transit.
    #[n(2)]
    pub collected: Vec<DocumentId>,
    /// What changes about the chain besides its balance.
    #[n(3)]
    pub change: Change,
    /// What few kinds need.
    #[n(4)]
    pub extra: Option<Box<Extra>>,
}

impl Effect {
    /// What a checkpoint decided about the locks it lists.
    pub fn decisions(&self) -> &[Decision] {
        match self.extra.as_deref() {
            Some(Extra::Decided(listed)) => listed,
            _ => &[],
        }
    }

    /// What a checkpoint decided about one lock.
    pub(super) fn decision(&self, lock: DocumentId) -> Option<Decision> {
        let listed = self.decisions();
        let at = listed.binary_search_by_key(&lock, |decision| decision.lock).ok()?;
        listed.get(at).copied()
    }

    /// The welcome line that an `open` takes up: its lock and amount.
    pub(super) fn lent(&self) -> Option<(DocumentId, Trm)> {
        match self.extra.as_deref() {
            Some(Extra::Lent { lock, amount }) => Some((*lock, *amount)),
            _ => None,
        }
    }
}

/// Parts of an effect that few entries have.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Extra {
    /// A newcomer begins with a welcome line.
    #[n(0)]
    Lent {
        /// The sponsor's lock behind it.
        #[n(0)]
        lock: DocumentId,
        /// How far the balance may go below the line, for jobs.
        #[n(1)]
        amount: Trm,
    },
    /// What a checkpoint decided.
    #[n(1)]
    Decided(#[n(0)] Vec<Decision>),
}

/// TRM on their way to a payee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Payout {
    /// Who may collect them.
    #[n(0)]
    pub payee: PartyId,
    /// How much.
    #[n(1)]
    pub amount: Trm,
}

/// What an entry changes about its chain besides the balance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub enum Change {
    /// Nothing.
    #[default]
    #[n(0)]
    None,
    /// The chain begins.
    #[n(1)]
    Opened {
        /// Its line.
        #[n(0)]
        line: Trm,
        /// The key that may replace its key.
        #[n(1)]
        recovery: Option<PublicKey>,
    },
    /// The registrar granted a line.
    #[n(2)]
    Enrolled {
        /// To whom.
        #[n(0)]
        party: PartyId,
        /// How much.
        #[n(1)]
        line: Trm,
    },
    /// The chain's line is at least this.
    #[n(3)]
    Line {
        /// The line granted.
        #[n(0)]
        line: Trm,
    },
    /// The chain's key is another one.
    #[n(4)]
    Key {
        /// The new key.
        #[n(0)]
        key: PublicKey,
    },
    /// The clerk stated a checkpoint.
    #[n(5)]
    Checkpoint {
        /// Its number.
        #[n(0)]
        number: u64,
        /// Its time.
        #[n(1)]
        time: Timestamp,
        /// The root of its cut.
        #[n(2)]
        cut: tirami_core::Digest,
        /// Its epoch.
        #[cbor(n(3), default)]
        epoch: u8,
    },
    /// TRM of the chain are locked for a newcomer, under the entry's id.
    #[n(6)]
    Sponsored {
        /// The newcomer.
        #[n(0)]
        newcomer: PartyId,
        /// How much.
        #[n(1)]
        amount: Trm,
    },
    /// The newcomer's welcome line is closed.
    #[n(7)]
    Settled {
        /// The lock behind it.
        #[n(0)]
        lock: DocumentId,
    },
    /// A lock of the chain is free again.
    #[n(8)]
    Unsponsored {
        /// The lock.
        #[n(0)]
        lock: DocumentId,
        /// How much it held.
        #[n(1)]
        amount: Trm,
    },
    /// The payment leaves the balance below the line: it is out of the welcome line.
    #[n(9)]
    OutOfWelcome {
        /// The lock behind it.
        #[n(0)]
        lock: DocumentId,
    },
}

/// Refuses a list of items that is empty, too long, or names one twice.
fn each_once<T: Ord>(items: impl Iterator<Item = T>, max: usize) -> Result<(), EntryRejection> {
    let mut items: Vec<T> = items.collect();
    let count = items.len();
    items.sort_unstable();
    items.dedup();
    if items.is_empty() || count > max || items.len() < count {
        return Err(EntryRejection::ItemCount { count, max });
    }
    Ok(())
}
