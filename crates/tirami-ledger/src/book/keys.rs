//! API keys: who may call, for which agent, within which budget.
//!
//! A key and the keys it was rotated into share one budget, so rotating resets nothing and two
//! keys that work side by side during a grace period spend from the same limits.
//!
//! Ended keys stay listed until the book is full; then all of them are dropped at once when the
//! next key is created.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use tirami_core::{AgentId, DAY_MS, Digest, Timestamp};

use super::meter::Meter;
use super::{KeyId, Limits, Scope};
use crate::Rejection;
use crate::command::Actor;
use crate::event::BookEvent;

/// API keys one book keeps at most, ended ones included.
pub const KEYS_MAX: u32 = 10_000;
/// How long a rotated key may go on working, in milliseconds.
pub const GRACE_MAX_MS: u64 = 30 * DAY_MS;

/// A caller whose API key was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The key presented.
    pub key: KeyId,
    /// The agent that pays, if the key is bound to one.
    pub agent: Option<AgentId>,
    /// What the caller may do.
    pub scope: Scope,
}

impl From<Caller> for Actor {
    fn from(caller: Caller) -> Self {
        Self::Caller { key: Some(caller.key), agent: caller.agent, scope: caller.scope }
    }
}

/// What the book knows of an API key. The key text is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ApiKey {
    #[n(0)]
    secret: Digest,
    #[n(1)]
    label: String,
    #[n(2)]
    scope: Scope,
    #[n(3)]
    agent: Option<AgentId>,
    #[n(4)]
    created_at: Timestamp,
    #[n(5)]
    expires_at: Option<Timestamp>,
    #[n(6)]
    revoked_at: Option<Timestamp>,
    #[n(7)]
    budget: BudgetId,
}

impl ApiKey {
    /// The label for people.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What the key may do.
    pub const fn scope(&self) -> Scope {
        self.scope
    }

    /// The agent that pays for what the key does.
    pub const fn agent(&self) -> Option<AgentId> {
        self.agent
    }

    /// When it was created.
    pub const fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// When it stops working by itself.
    pub const fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// When a person ended it.
    pub const fn revoked_at(&self) -> Option<Timestamp> {
        self.revoked_at
    }

    /// Whether it works at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// Names a budget; counts from 0 and is never used twice.
pub(super) type BudgetId = u64;

/// The budget of a key and of the keys it was rotated into.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct KeyBudget {
    #[n(0)]
    pub(super) limits: Limits,
    #[n(1)]
    pub(super) meter: Meter,
    /// Keys that spend from it.
    #[n(2)]
    keys: u32,
}

/// All API keys and their budgets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Keys {
    #[n(0)]
    keys: BTreeMap<KeyId, ApiKey>,
    #[n(1)]
    budgets: BTreeMap<BudgetId, KeyBudget>,
    #[n(2)]
    next_budget: BudgetId,
}

impl Keys {
    pub(super) fn all(&self) -> &BTreeMap<KeyId, ApiKey> {
        &self.keys
    }

    pub(super) fn budget_of(&self, key: KeyId) -> Option<(BudgetId, &KeyBudget)> {
        let id = self.keys.get(&key)?.budget;
        self.budgets.get(&id).map(|budget| (id, budget))
    }

    pub(super) fn budget_mut(&mut self, id: BudgetId) -> Option<&mut KeyBudget> {
        self.budgets.get_mut(&id)
    }

    /// The key, if it works at `now`.
    pub(super) fn live(&self, now: Timestamp, key: KeyId) -> Result<&ApiKey, Rejection> {
        self.keys.get(&key).filter(|key| key.is_live(now)).ok_or(Rejection::KeyInvalid)
    }

    /// Checks a key text's digest in a time that does not depend on where it differs, nor on
    /// whether the key exists.
    pub(super) fn authenticate(
        &self,
        now: Timestamp,
        key: KeyId,
        secret: Digest,
    ) -> Result<Caller, Rejection> {
        let found = self.keys.get(&key);
        let expected = found.map_or(Digest::from_bytes([0; 32]), |found| found.secret);
        // Equality of blake3's own type runs in constant time.
        let same = blake3::Hash::from_bytes(*expected.as_bytes())
            == blake3::Hash::from_bytes(*secret.as_bytes());
        match found {
            Some(found) if same & found.is_live(now) => {
                Ok(Caller { key, agent: found.agent, scope: found.scope })
            }
            _ => Err(Rejection::KeyInvalid),
        }
    }

    pub(super) fn check_room(&self, now: Timestamp, key: KeyId) -> Result<(), Rejection> {
        if self.keys.contains_key(&key) {
            return Err(Rejection::Exists { what: "the API key" });
        }
        let full = self.keys.len() >= KEYS_MAX as usize;
        if full && self.keys.values().all(|key| key.is_live(now)) {
            return Err(Rejection::TooMany { what: "API keys", max: KEYS_MAX });
        }
        Ok(())
    }

    pub(super) fn rotate(
        &self,
        now: Timestamp,
        rotation: &Rotation,
    ) -> Result<[BookEvent; 2], Rejection> {
        let old = self.keys.get(&rotation.old).filter(|key| key.is_live(now));
        let old = old.ok_or(Rejection::UnknownKey)?;
        self.check_room(now, rotation.new)?;
        if rotation.grace_ms > GRACE_MAX_MS {
            return Err(Rejection::OutOfRange { field: "grace_ms", range: "at most 30 days" });
        }
        let ends = now.plus_ms(rotation.grace_ms);
        let limits = self.budgets.get(&old.budget).map(|budget| budget.limits).unwrap_or_default();
        Ok([
            BookEvent::KeyCreated {
                key: rotation.new,
                secret: rotation.secret,
                label: old.label.clone(),
                scope: old.scope,
                agent: old.agent,
                limits,
                expires_at: old.expires_at,
                at: now,
                replaces: Some(rotation.old),
            },
            BookEvent::KeyExpirySet {
                key: rotation.old,
                expires_at: old.expires_at.map_or(ends, |end| end.min(ends)),
            },
        ])
    }

    pub(super) fn insert(&mut self, key: KeyId, created: NewKey, replaces: Option<KeyId>) {
        if self.keys.len() >= KEYS_MAX as usize {
            self.drop_ended(created.at, replaces);
        }
        let shared = replaces.and_then(|old| self.keys.get(&old)).map(|old| old.budget);
        let budget = shared.unwrap_or_else(|| {
            let id = self.next_budget;
            self.next_budget = id.saturating_add(1);
            let fresh = KeyBudget { limits: created.limits, meter: Meter::default(), keys: 0 };
            self.budgets.insert(id, fresh);
            id
        });
        if let Some(budget) = self.budgets.get_mut(&budget) {
            budget.keys += 1;
        }
        self.keys.insert(
            key,
            ApiKey {
                secret: created.secret,
                label: created.label,
                scope: created.scope,
                agent: created.agent,
                created_at: created.at,
                expires_at: created.expires_at,
                revoked_at: None,
                budget,
            },
        );
    }

    pub(super) fn set_expiry(&mut self, key: KeyId, expires_at: Timestamp) {
        if let Some(key) = self.keys.get_mut(&key) {
            key.expires_at = Some(expires_at);
        }
    }

    pub(super) fn revoke(&mut self, key: KeyId, at: Timestamp) {
        if let Some(key) = self.keys.get_mut(&key) {
            key.revoked_at = Some(at);
        }
    }

    pub(super) fn set_limits(&mut self, key: KeyId, limits: Limits) {
        let budget = self.keys.get(&key).map(|key| key.budget);
        if let Some(budget) = budget.and_then(|id| self.budgets.get_mut(&id)) {
            budget.limits = limits;
        }
    }

    pub(super) fn is_consistent(&self) -> bool {
        let mut counted: BTreeMap<BudgetId, u32> = BTreeMap::new();
        for key in self.keys.values() {
            *counted.entry(key.budget).or_default() += 1;
        }
        self.keys.len() <= KEYS_MAX as usize
            && self.budgets.iter().all(|(_, budget)| budget.meter.is_consistent())
            && counted.into_iter().eq(self.budgets.iter().map(|(id, budget)| (*id, budget.keys)))
    }

    /// Drops the keys that ended by `now`, and the budgets nobody spends from any more.
    fn drop_ended(&mut self, now: Timestamp, keep: Option<KeyId>) {
        let Self { keys, budgets, .. } = self;
        keys.retain(|id, key| {
            let kept = key.is_live(now) || keep == Some(*id);
            if !kept && let Some(budget) = budgets.get_mut(&key.budget) {
                budget.keys = budget.keys.saturating_sub(1);
            }
            kept
        });
        budgets.retain(|_, budget| budget.keys > 0);
    }
}

/// A key about to be replaced.
pub(super) struct Rotation {
    pub(super) old: KeyId,
    pub(super) new: KeyId,
    pub(super) secret: Digest,
    pub(super) grace_ms: u64,
}

/// What a key is created with.
pub(super) struct NewKey {
    pub(super) secret: Digest,
    pub(super) label: String,
    pub(super) scope: Scope,
    pub(super) agent: Option<AgentId>,
    pub(super) limits: Limits,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) at: Timestamp,
}
