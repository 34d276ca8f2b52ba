//! The seam to the production code: one node's kernel behind its one door.

use tirami_core::{Digest, PartyId, Timestamp};
use tirami_kernel::{Effects, Input, Kernel, RequestId};
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_ledger::event::Event;
use tirami_ledger::lattice::Lattice;
use tirami_ledger::{Keyring, Ledger, Rejection};

use crate::disk::Recovered;

/// What a kernel's answer is made of: what has to be stored, and the reply.
pub(crate) type Decided = (Vec<Event>, Result<Outcome, Rejection>);

/// A running node's decisions.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    kernel: Kernel,
    requests: u64,
}

impl Machine {
    pub(crate) fn new(founded: &Lattice, party: PartyId, keys: &Keyring) -> Self {
        let ledger = Ledger::new(founded.clone(), party);
        Self { kernel: Kernel::new(ledger, keys.clone()), requests: 0 }
    }

    /// Gives a command to the kernel.
    ///
    /// # Errors
    ///
    /// When the kernel answers somebody else, nobody, or asks to be woken at a time that has come.
    pub(crate) fn submit(
        &mut self,
        now: Timestamp,
        actor: &Actor,
        command: &Command,
    ) -> Result<Decided, String> {
        self.requests += 1;
        let request = RequestId::new(self.requests);
        let input = Input::Command { request, actor: actor.clone(), command: command.clone() };
        let Effects { append, reply, wake_at, .. } = self.kernel.handle(now, input);
        let clock = self.kernel.clock();
        if wake_at.is_some_and(|due| due <= clock) {
            return Err(format!("at {clock:?} the kernel asks to be woken at {wake_at:?}"));
        }
        match reply {
            Some((answered, outcome)) if answered == request => Ok((append, outcome)),
            other => Err(format!("request {request:?} was answered with {other:?}")),
        }
    }

    /// The node as a start finds it on its disk, and then after `more`.
    ///
    /// # Errors
    ///
    /// Why the snapshot cannot be read.
    pub(crate) fn replay<'a>(
        (founded, party, keys): (&Lattice, PartyId, &Keyring),
        disk: &'a Recovered<'_>,
        more: impl IntoIterator<Item = &'a Event>,
    ) -> Result<Self, String> {
        let ledger = match disk.snapshot {
            Some(snapshot) => {
                Ledger::restore(&snapshot.ledger).map_err(|error| error.to_string())?
            }
            None => Ledger::new(founded.clone(), party),
        };
        let events = disk.tail.iter().flatten().chain(more).cloned();
        Ok(Self { kernel: Kernel::replay(ledger, keys.clone(), events), requests: 0 })
    }

    pub(crate) const fn ledger(&self) -> &Ledger {
        self.kernel.ledger()
    }

    pub(crate) const fn clock(&self) -> Timestamp {
        self.kernel.clock()
    }

    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.kernel.snapshot()
    }

    pub(crate) fn state_hash(&self) -> Digest {
        self.ledger().state_hash()
    }
}
