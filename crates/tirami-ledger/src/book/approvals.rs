//! The approval queue: jobs that may cost more than a threshold wait for a person's word.
//!
//! A job is recognised by its agent and the digest of its request, so the client just repeats the
//! request after the approval. An approval is used once. Waiting, approved and denied entries all
//! lapse [`APPROVAL_LAPSE_MS`] after they were asked for.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use tirami_core::{AgentId, Digest, HOUR_MS, Timestamp, Trm};

use super::{ApprovalId, KeyId};
use crate::Rejection;
use crate::event::BookEvent;

/// Approvals in the queue at most, answered but unused ones included.
pub const APPROVALS_MAX: u32 = 256;
/// Approvals of one agent in the queue at most, so that one agent cannot fill it.
pub const AGENT_APPROVALS_MAX: u32 = 32;
/// An approval lapses this long after it was asked for, in milliseconds.
pub const APPROVAL_LAPSE_MS: u64 = HOUR_MS;

/// A person's word on an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ApprovalState {
    /// Nobody has answered yet.
    #[n(0)]
    Waiting,
    /// The job may run once.
    #[n(1)]
    Approved,
    /// The job may not run.
    #[n(2)]
    Denied,
}

/// An entry of the approval queue.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Approval {
    /// Who wants to spend.
    #[n(0)]
    pub agent: AgentId,
    /// The key used.
    #[n(1)]
    pub key: Option<KeyId>,
    /// blake3 of the request.
    #[n(2)]
    pub request: Digest,
    /// What the job may cost at most.
    #[n(3)]
    pub max_amount: Trm,
    /// When it was asked for.
    #[n(4)]
    pub at: Timestamp,
    /// When it lapses.
    #[n(5)]
    pub expires_at: Timestamp,
    /// What was answered.
    #[n(6)]
    pub state: ApprovalState,
}

/// All entries of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Approvals {
    #[n(0)]
    queue: BTreeMap<ApprovalId, Approval>,
    #[n(1)]
    next: u64,
}

impl Default for Approvals {
    fn default() -> Self {
        Self { queue: BTreeMap::new(), next: 1 }
    }
}

/// What the queue says about a job that is above the threshold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// It was approved; the approval is used up by the job.
    Approved(ApprovalId),
    /// It waits already.
    Waiting(Asked),
    /// It has to be asked for; an entry for the same request that no longer serves is closed.
    Ask { closes: Option<ApprovalId>, asked: Asked },
}

/// A waiting approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) approval: ApprovalId,
    pub(super) expires_at: Timestamp,
    pub(super) max_amount: Trm,
}

impl Approvals {
    pub(super) fn all(&self) -> &BTreeMap<ApprovalId, Approval> {
        &self.queue
    }

    pub(super) fn word(
        &self,
        now: Timestamp,
        agent: AgentId,
        request: Digest,
        needed: Trm,
    ) -> Result<Word, Rejection> {
        let same = |entry: &Approval| entry.agent == agent && entry.request == request;
        let found =
            self.queue.iter().find(|(_, entry)| same(entry)).map(|(id, entry)| (*id, entry));
        match found {
            Some((id, entry)) if now < entry.expires_at => match entry.state {
                ApprovalState::Denied => return Err(Rejection::ApprovalDenied { approval: id }),
                ApprovalState::Approved if entry.max_amount >= needed => {
                    return Ok(Word::Approved(id));
                }
                ApprovalState::Waiting if entry.max_amount >= needed => {
                    let (expires_at, max_amount) = (entry.expires_at, entry.max_amount);
                    return Ok(Word::Waiting(Asked { approval: id, expires_at, max_amount }));
                }
                ApprovalState::Approved | ApprovalState::Waiting => {}
            },
            _ => {}
        }
        let closes = found.map(|(id, _)| id);
        if closes.is_none() {
            self.check_room(agent)?;
        }
        let asked = Asked {
            approval: ApprovalId::new(self.next),
            expires_at: now.plus_ms(APPROVAL_LAPSE_MS),
            max_amount: needed,
        };
        Ok(Word::Ask { closes, asked })
    }

    /// What a request may cost at most that waits for a word or was approved; none when there is no
    /// such entry or it was denied.
    pub(super) fn granted(&self, now: Timestamp, agent: AgentId, request: Digest) -> Option<Trm> {
        let same = |entry: &&Approval| entry.agent == agent && entry.request == request;
        let found = self.queue.values().find(same)?;
        let stands = now < found.expires_at && found.state != ApprovalState::Denied;
        stands.then_some(found.max_amount)
    }

    fn check_room(&self, agent: AgentId) -> Result<(), Rejection> {
        if self.queue.len() >= APPROVALS_MAX as usize {
            return Err(Rejection::TooMany { what: "approvals", max: APPROVALS_MAX });
        }
        let own = self.queue.values().filter(|entry| entry.agent == agent).count();
        if own >= AGENT_APPROVALS_MAX as usize {
            let max = AGENT_APPROVALS_MAX;
            return Err(Rejection::TooMany { what: "approvals of one agent", max });
        }
        Ok(())
    }

    /// Checks that the approval waits for an answer.
    pub(super) fn check_waiting(
        &self,
        now: Timestamp,
        approval: ApprovalId,
    ) -> Result<(), Rejection> {
        match self.queue.get(&approval) {
            Some(entry) if entry.state == ApprovalState::Waiting && now < entry.expires_at => {
                Ok(())
            }
            _ => Err(Rejection::UnknownApproval { approval }),
        }
    }

    /// The end of every entry that lapsed by `now`.
    pub(super) fn lapsed(&self, now: Timestamp) -> impl Iterator<Item = BookEvent> {
        self.queue
            .iter()
            .filter(move |(_, entry)| entry.expires_at <= now)
            .map(|(id, _)| BookEvent::ApprovalClosed { approval: *id })
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.queue.values().map(|entry| entry.expires_at).min()
    }

    pub(super) fn insert(&mut self, id: ApprovalId, entry: Approval) {
        self.next = self.next.max(id.get().saturating_add(1));
        self.queue.insert(id, entry);
    }

    pub(super) fn answer(&mut self, id: ApprovalId, approve: bool) {
        if let Some(entry) = self.queue.get_mut(&id) {
            entry.state = if approve { ApprovalState::Approved } else { ApprovalState::Denied };
        }
    }

    pub(super) fn close(&mut self, id: ApprovalId) {
        self.queue.remove(&id);
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.queue.len() <= APPROVALS_MAX as usize
            && self.queue.keys().all(|id| id.get() < self.next)
    }
}
