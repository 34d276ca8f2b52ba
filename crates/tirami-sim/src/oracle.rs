//! What a party was told, and an account of its book kept by other means than the book's.
//!
//! A reply that was delivered stays true: the batch behind it is on the disk after any crash.
//! The account is a plain sum over the batches that are durable; the replayed book must agree.

use std::collections::BTreeMap;

use tirami_core::{AgentId, DocumentId, JobId, Timestamp, Trm};
use tirami_ledger::book::{Book, KeyId, START_WITHIN_MS};
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::event::{BookEvent, Event};
use tirami_ledger::lattice::LatticeEvent;

/// What a delivered reply says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fact {
    Started { job: JobId, max: Trm, start_by: Timestamp },
    Delivered { job: JobId, tokens: u32 },
    Finished { job: JobId, amount: Trm },
    Ended { job: JobId },
    Funded { agent: AgentId, amount: Trm },
    Defunded { agent: AgentId, amount: Trm },
    KeyMade { key: KeyId },
    KeyRevoked { key: KeyId },
    Kill { on: bool },
    Signed { entry: DocumentId },
}

impl Fact {
    /// What the reply to `command` says; none when it says nothing that could be lost.
    pub(crate) fn of(command: &Command, outcome: &Outcome) -> Option<Self> {
        Some(match (command, outcome) {
            (_, Outcome::JobStarted { order, .. }) => Self::Started {
                job: order.body().job,
                max: order.body().max_amount,
                start_by: order.body().start_by,
            },
            (Command::FinishJob(finish), Outcome::JobFinished { amount, .. }) => {
                Self::Finished { job: finish.job, amount: *amount }
            }
            (Command::FinishJob(finish), _) => Self::Ended { job: finish.job },
            (Command::VoidJob { job, .. }, _) => Self::Ended { job: *job },
            (Command::Deliver { job, completion_tokens, .. }, _) => {
                Self::Delivered { job: *job, tokens: *completion_tokens }
            }
            (Command::FundAgent { agent, amount }, _) => {
                Self::Funded { agent: *agent, amount: *amount }
            }
            (Command::DefundAgent { agent, amount }, _) => {
                Self::Defunded { agent: *agent, amount: *amount }
            }
            (Command::CreateKey { key, .. }, _) => Self::KeyMade { key: *key },
            (Command::RotateKey { new, .. }, _) => Self::KeyMade { key: *new },
            (Command::RevokeKey { key }, _) => Self::KeyRevoked { key: *key },
            (Command::SetKill { on, .. }, _) => Self::Kill { on: *on },
            (Command::SignEntry { .. }, Outcome::Entry { entry, .. }) => {
                Self::Signed { entry: *entry }
            }
            _ => return None,
        })
    }

    /// Whether the reply rests on this batch.
    pub(crate) fn is_in(&self, batch: &[Event]) -> bool {
        batch.iter().any(|event| match event {
            Event::Book(event) => self.is_said_by(event),
            Event::Lattice(event) => match &**event {
                LatticeEvent::EntryPending { entry, .. }
                | LatticeEvent::EntryFinal { entry, .. } => {
                    *self == Self::Signed { entry: entry.id() }
                }
                _ => false,
            },
            Event::Document(_) => false,
        })
    }

    fn is_said_by(&self, event: &BookEvent) -> bool {
        match event {
            BookEvent::HoldOpened(opened) => {
                *self
                    == Self::Started {
                        job: opened.job,
                        max: opened.max_amount,
                        start_by: opened.at.plus_ms(START_WITHIN_MS),
                    }
            }
            BookEvent::VoucherRaised { job, tokens, .. } => {
                *self == Self::Delivered { job: *job, tokens: *tokens }
            }
            BookEvent::HoldPosted(posted) => {
                *self == Self::Finished { job: posted.job, amount: posted.amount }
            }
            BookEvent::HoldVoided { job, .. } => *self == Self::Ended { job: *job },
            BookEvent::AgentFunded { agent, amount, .. } => {
                *self == Self::Funded { agent: *agent, amount: *amount }
            }
            BookEvent::AgentDefunded { agent, amount, .. } => {
                *self == Self::Defunded { agent: *agent, amount: *amount }
            }
            BookEvent::KeyCreated { key, .. } => *self == Self::KeyMade { key: *key },
            BookEvent::KeyRevoked { key, .. } => *self == Self::KeyRevoked { key: *key },
            BookEvent::KillSet { on, .. } => *self == Self::Kill { on: *on },
            _ => false,
        }
    }
}

/// A hold as the account knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    agent: AgentId,
    max: Trm,
    voucher: Trm,
}

/// A plain account of a book: one addition for each event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    balances: BTreeMap<AgentId, i128>,
    open: BTreeMap<JobId, Open>,
    charged: i128,
    jobs_charged: u64,
}

impl Account {
    /// Adds a batch.
    ///
    /// # Errors
    ///
    /// The rule of the book that the batch breaks.
    pub(crate) fn add(&mut self, batch: &[Event]) -> Result<(), String> {
        for event in batch {
            if let Event::Book(event) = event {
                self.add_event(event)?;
            }
        }
        Ok(())
    }

    fn add_event(&mut self, event: &BookEvent) -> Result<(), String> {
        match event {
            BookEvent::AgentCreated { agent, .. } => {
                self.balances.entry(*agent).or_default();
            }
            BookEvent::AgentFunded { agent, amount, .. } => {
                *self.balances.entry(*agent).or_default() += amount.signed();
            }
            BookEvent::AgentDefunded { agent, amount, .. } => self.take(*agent, *amount)?,
            BookEvent::HoldOpened(opened) => {
                let hold = Open { agent: opened.agent, max: opened.max_amount, voucher: Trm::ZERO };
                if self.open.insert(opened.job, hold).is_some() {
                    return Err(format!("job {} was started twice", opened.job));
                }
                self.check_covered(opened.agent)?;
            }
            BookEvent::VoucherRaised { job, amount, .. } => {
                let hold = self.open.get_mut(job).ok_or_else(|| closed(*job))?;
                if *amount < hold.voucher || *amount > hold.max {
                    return Err(format!("a voucher of job {job} fell or exceeds its order"));
                }
                hold.voucher = *amount;
            }
            BookEvent::HoldPosted(posted) => {
                let hold = self.open.remove(&posted.job).ok_or_else(|| closed(posted.job))?;
                if posted.agent != hold.agent
                    || posted.amount > hold.max
                    || posted.amount < hold.voucher
                {
                    return Err(format!("job {} was charged beside its order", posted.job));
                }
                self.charged += posted.amount.signed();
                self.jobs_charged += 1;
                self.take(posted.agent, posted.amount)?;
            }
            BookEvent::HoldVoided { job, .. } | BookEvent::HoldExpired { job, .. } => {
                let hold = self.open.remove(job).ok_or_else(|| closed(*job))?;
                if !hold.voucher.is_zero() {
                    return Err(format!("job {job} ended free although a voucher was signed"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn take(&mut self, agent: AgentId, amount: Trm) -> Result<(), String> {
        *self.balances.entry(agent).or_default() -= amount.signed();
        self.check_covered(agent)
    }

    /// What an agent has is never less than what is set aside of it.
    fn check_covered(&self, agent: AgentId) -> Result<(), String> {
        let holds = self.open.values().filter(|hold| hold.agent == agent);
        let held: i128 = holds.map(|hold| hold.max.signed()).sum();
        if self.balances.get(&agent).copied().unwrap_or_default() < held {
            return Err(format!("agent {agent} spent more than it has"));
        }
        Ok(())
    }

    /// The sum of all agents' balances, in µTRM.
    pub(crate) fn total(&self) -> i128 {
        self.balances.values().sum()
    }

    /// Compares the account with a book.
    ///
    /// # Errors
    ///
    /// The first difference.
    pub(crate) fn check(&self, book: &Book) -> Result<(), String> {
        if self.balances.len() != book.agents().len() {
            return Err("the book has other agents than its events".to_owned());
        }
        for (agent, account) in book.agents() {
            let expected = self.balances.get(agent).copied();
            if expected != Some(account.balance().signed()) {
                return Err(format!(
                    "agent {agent} has {:?}, its events say {expected:?} µTRM",
                    account.balance()
                ));
            }
        }
        let holds = book.holds();
        let same = holds.len() == self.open.len()
            && holds.iter().zip(&self.open).all(|((job, hold), (id, open))| {
                job == id
                    && hold.agent == open.agent
                    && hold.max_amount == open.max
                    && hold.voucher.map_or(Trm::ZERO, |head| head.amount) == open.voucher
            });
        if !same {
            return Err("the book has other holds than its events".to_owned());
        }
        if book.charged_total().signed() != self.charged || book.jobs_charged() != self.jobs_charged
        {
            return Err("the book counted another sum of charges than its events".to_owned());
        }
        Ok(())
    }
}

fn closed(job: JobId) -> String {
    format!("job {job} is not open and was charged, vouched or ended once more")
}

/// A party's oracle.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Delivered replies whose batches lie after the newest snapshot, by batch.
    told: Vec<(u64, Fact)>,
    account: Account,
    /// Batches in the account.
    counted: u64,
}

impl Oracle {
    /// A reply was delivered that rests on the batch with this number.
    pub(crate) fn told(&mut self, batch: u64, fact: Fact) {
        self.told.push((batch, fact));
    }

    /// A batch has become durable.
    ///
    /// # Errors
    ///
    /// The rule of the book that it breaks.
    pub(crate) fn durable(&mut self, batch: u64, events: &[Event]) -> Result<(), String> {
        if batch == self.counted {
            self.counted += 1;
            self.account.add(events)?;
        }
        Ok(())
    }

    pub(crate) const fn account(&self) -> &Account {
        &self.account
    }

    /// Every reply delivered is still true of the batches from number `first` on.
    ///
    /// # Errors
    ///
    /// The reply that has become a lie.
    pub(crate) fn check_told(&self, first: u64, tail: &[Vec<Event>]) -> Result<(), String> {
        for (batch, fact) in &self.told {
            let Some(place) = batch.checked_sub(first) else {
                continue;
            };
            let stored = usize::try_from(place).ok().and_then(|place| tail.get(place));
            if !stored.is_some_and(|events| fact.is_in(events)) {
                return Err(format!("a delivered reply is not true any more: {fact:?}"));
            }
        }
        Ok(())
    }

    /// Forgets the replies about batches below `first`, which a snapshot now holds.
    pub(crate) fn forget_below(&mut self, first: u64) {
        self.told.retain(|(batch, _)| *batch >= first);
    }

    /// After a crash: the account goes on with what had become durable without an answer.
    ///
    /// # Errors
    ///
    /// A durable batch that is gone, or the rule that one breaks.
    pub(crate) fn catch_up(&mut self, first: u64, tail: &[Vec<Event>]) -> Result<(), String> {
        let batches = first + tail.len() as u64;
        if batches < self.counted {
            return Err(format!("{} synced batches are gone", self.counted - batches));
        }
        for (batch, events) in (first..).zip(tail) {
            self.durable(batch, events)?;
        }
        Ok(())
    }
}
