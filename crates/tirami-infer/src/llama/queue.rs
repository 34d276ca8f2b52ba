//! Who waits for a place, and in which order.
//!
//! Those who contribute come first. Among them, and then among the others, the consumers take
//! turns: whoever asks for much at once waits longer for it than somebody who asks once.

use super::sequence::Job;

/// The jobs that wait, next first.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Vec<Waiting>,
    /// The turn that was given last, to those who contribute and to the others.
    turn: [u64; 2],
    /// No job is taken any more.
    pub(super) stopped: bool,
}

struct Waiting {
    job: Job,
    /// 0 for those who contribute.
    class: usize,
    turn: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many wait whose reader has not gone.
    pub(super) fn count(&self) -> usize {
        self.waiting.iter().filter(|waiting| !waiting.job.sender.is_closed()).count()
    }

    /// Takes a job in: in the turn after the one given last, and after its consumer's other jobs.
    pub(super) fn push(&mut self, job: Job) {
        let class = usize::from(!job.prompt.contributes);
        let is_same =
            |other: &&Waiting| other.class == class && other.job.prompt.scope == job.prompt.scope;
        let latest = self.waiting.iter().filter(is_same).map(|other| other.turn).max();
        let turn = latest.unwrap_or(self.turn[class]) + 1;
        let place =
            self.waiting.partition_point(|other| (other.class, other.turn) <= (class, turn));
        self.waiting.insert(place, Waiting { job, class, turn });
        self.number();
    }

    /// The next job.
    pub(super) fn pop(&mut self) -> Option<Job> {
        if self.waiting.is_empty() {
            return None;
        }
        let Waiting { job, class, turn } = self.waiting.remove(0);
        self.turn[class] = turn;
        job.progress.queued(0);
        self.number();
        Some(job)
    }

    /// Leaves out those whose reader has gone.
    pub(super) fn forget_the_left(&mut self) {
        self.waiting.retain(|waiting| !waiting.job.sender.is_closed());
    }

    /// Takes no more jobs; gives those that wait.
    pub(super) fn stop(&mut self) -> Vec<Job> {
        self.stopped = true;
        std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.job).collect()
    }

    /// Tells each who waits its place.
    fn number(&self) {
        for (place, waiting) in (1..).zip(&self.waiting) {
            waiting.job.progress.queued(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;
    use crate::engine::{Progress, Prompt, Sampling};

    /// A queue with jobs of `(consumer, contributes)`, each with its number as its only token.
    fn queue(jobs: &[(u64, bool)]) -> (Queue, Vec<mpsc::Receiver<crate::engine::Piece>>) {
        let mut queue = Queue::default();
        let mut readers = Vec::new();
        for (number, (scope, contributes)) in (0..).zip(jobs) {
            readers.push(push(&mut queue, number, *scope, *contributes));
        }
        (queue, readers)
    }

    fn push(
        queue: &mut Queue,
        number: u32,
        scope: u64,
        contributes: bool,
    ) -> mpsc::Receiver<crate::engine::Piece> {
        let (sender, reader) = mpsc::channel(1);
        let prompt = Prompt { scope, contributes, ..Prompt::from(vec![number]) };
        let progress = Arc::new(Progress::default());
        queue.push(Job { prompt, sampling: Sampling::default(), sender, progress });
        reader
    }

    fn order(queue: &mut Queue) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).map(|job| job.prompt.tokens[0]).collect()
    }

    #[test]
    fn consumers_take_turns_and_each_keeps_its_own_order() {
        let (mut queue, _readers) =
            queue(&[(1, false), (1, false), (1, false), (2, false), (3, false), (2, false)]);
        assert_eq!(order(&mut queue), [0, 3, 4, 1, 5, 2]);
    }

    #[test]
    fn who_contributes_comes_first() {
        let (mut queue, _readers) =
            queue(&[(1, false), (2, true), (3, false), (2, true), (4, true)]);
        assert_eq!(order(&mut queue), [1, 4, 3, 0, 2]);
    }

    #[test]
    fn who_asks_again_and_again_does_not_pass_by_who_waits() {
        let (mut queue, mut readers) = queue(&[(1, false), (1, false), (1, false)]);
        let mut got = Vec::new();
        for number in 3..6 {
            readers.push(push(&mut queue, number, 2, false));
            got.extend(queue.pop().map(|job| job.prompt.tokens[0]));
            got.extend(queue.pop().map(|job| job.prompt.tokens[0]));
        }
        assert_eq!(got, [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn everybody_knows_the_place() {
        let (mut queue, readers) = queue(&[(1, false), (1, false), (2, false)]);
        let places = |queue: &Queue| {
            let place = |waiting: &Waiting| waiting.job.progress.place();
            queue.waiting.iter().map(place).collect::<Vec<_>>()
        };
        assert_eq!(places(&queue), [1, 2, 3]);
        drop(readers.into_iter().next());
        queue.forget_the_left();
        assert_eq!((queue.len(), queue.count()), (0, 0));
    }
}
