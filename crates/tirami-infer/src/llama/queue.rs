//! The jobs that wait for the engine's thread, in the order of [`crate::queue`].

use super::sequence::Job;
use crate::queue::Waits;

/// The jobs that wait, next first.
pub(super) type Queue = crate::queue::Queue<Job>;

impl Waits for Job {
    fn scope(&self) -> u64 {
        self.prompt.scope
    }

    fn contributes(&self) -> bool {
        self.prompt.contributes
    }

    fn has_left(&self) -> bool {
        self.sender.is_closed()
    }

    fn placed(&self, place: u32) {
        self.progress.queued(place);
    }
}
