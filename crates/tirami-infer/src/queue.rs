//! Who waits for a place of an engine, and in which order.
//!
//! Those who contribute come first. Among them, and then among the others, the consumers take
//! turns: whoever asks for much at once waits longer for it than somebody who asks once. Where no
//! more may wait, whoever has many waiting gives way to whoever has fewer.

use std::collections::BTreeMap;

/// A request that waits for a place.
pub trait Waits {
    /// Whose it is: see [`Prompt::scope`](crate::engine::Prompt::scope).
    fn scope(&self) -> u64;

    /// Whether it comes first: see [`Prompt::contributes`](crate::engine::Prompt::contributes).
    fn contributes(&self) -> bool;

    /// Whether nobody waits for its answer any more.
    fn has_left(&self) -> bool;

    /// Takes note of its place in the queue, from 1; 0 when it leaves the queue for a place.
    fn placed(&self, place: u32);
}

/// The requests that wait, next first. Whoever pushes bounds their number.
pub struct Queue<T> {
    waiting: Vec<Waiting<T>>,
    /// The turn that was given last, to those who contribute and to the others.
    turn: [u64; 2],
    /// Whether no request is taken any more; whoever pushes looks at it.
    pub stopped: bool,
}

struct Waiting<T> {
    one: T,
    /// 0 for those who contribute.
    class: usize,
    turn: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), turn: [0; 2], stopped: false }
    }
}

impl<T: Waits> Queue<T> {
    /// How many wait, those who have left and were not forgotten included.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait who have not left.
    pub fn count(&self) -> usize {
        self.waiting.iter().filter(|waiting| !waiting.one.has_left()).count()
    }

    /// Takes a request in: in the turn after the one given last, and after its consumer's others.
    pub fn push(&mut self, one: T) {
        let class = usize::from(!one.contributes());
        let scope = one.scope();
        let is_same = |other: &&Waiting<T>| other.class == class && other.one.scope() == scope;
        let latest = self.waiting.iter().filter(is_same).map(|other| other.turn).max();
        let turn = latest.unwrap_or(self.turn[class]) + 1;
        let place =
            self.waiting.partition_point(|other| (other.class, other.turn) <= (class, turn));
        self.waiting.insert(place, Waiting { one, class, turn });
        self.number();
    }

    /// Whether a request of another consumer would give way to one of `scope`.
    pub fn would_give_way(&self, scope: u64, contributes: bool) -> bool {
        self.gives_way(scope, contributes).is_some()
    }

    /// Takes out what gives way to a request of `scope`: the last one of the consumer that has most
    /// waiting, if it has more than this one would have. Those who contribute give way to each
    /// other only.
    pub fn give_way(&mut self, scope: u64, contributes: bool) -> Option<T> {
        let place = self.gives_way(scope, contributes)?;
        let Waiting { one, .. } = self.waiting.remove(place);
        self.number();
        Some(one)
    }

    fn gives_way(&self, scope: u64, contributes: bool) -> Option<usize> {
        let class = usize::from(!contributes);
        let those = || self.waiting.iter().filter(|waiting| waiting.class >= class);
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for waiting in those() {
            *counts.entry(waiting.one.scope()).or_default() += 1;
        }
        let own = counts.remove(&scope).unwrap_or_default();
        let fuller = counts.into_iter().filter(|(_, count)| *count > own + 1);
        let (most, _) = fuller.max_by_key(|(_, count)| *count)?;
        let is_last = |waiting: &Waiting<T>| waiting.class >= class && waiting.one.scope() == most;
        self.waiting.iter().rposition(is_last)
    }

    /// The next request, which leaves the queue.
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let Waiting { one, class, turn } = self.waiting.remove(0);
        self.turn[class] = turn;
        one.placed(0);
        self.number();
        Some(one)
    }

    /// Leaves out those who have left.
    pub fn forget_the_left(&mut self) {
        let before = self.len();
        self.waiting.retain(|waiting| !waiting.one.has_left());
        if self.len() < before {
            self.number();
        }
    }

    /// Takes no more requests; gives those that wait.
    pub fn stop(&mut self) -> Vec<T> {
        self.stopped = true;
        std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.one).collect()
    }

    /// Tells each who waits its place.
    fn number(&self) {
        for (place, waiting) in (1..).zip(&self.waiting) {
            waiting.one.placed(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    struct Asker {
        number: u32,
        scope: u64,
        contributes: bool,
        told: Rc<Told>,
    }

    #[derive(Default)]
    struct Told {
        place: Cell<u32>,
        has_left: Cell<bool>,
    }

    impl Waits for Asker {
        fn scope(&self) -> u64 {
            self.scope
        }

        fn contributes(&self) -> bool {
            self.contributes
        }

        fn has_left(&self) -> bool {
            self.told.has_left.get()
        }

        fn placed(&self, place: u32) {
            self.told.place.set(place);
        }
    }

    /// A queue with requests of `(consumer, contributes)`, numbered from 0, and what each is told.
    fn queue(asked: &[(u64, bool)]) -> (Queue<Asker>, Vec<Rc<Told>>) {
        let mut queue = Queue::default();
        let pushed = (0..)
            .zip(asked)
            .map(|(number, (scope, contributes))| push(&mut queue, number, *scope, *contributes));
        let told = pushed.collect();
        (queue, told)
    }

    fn push(queue: &mut Queue<Asker>, number: u32, scope: u64, contributes: bool) -> Rc<Told> {
        let told = Rc::<Told>::default();
        queue.push(Asker { number, scope, contributes, told: Rc::clone(&told) });
        told
    }

    fn order(queue: &mut Queue<Asker>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).map(|asker| asker.number).collect()
    }

    #[test]
    fn consumers_take_turns_and_each_keeps_its_own_order() {
        let (mut queue, _) =
            queue(&[(1, false), (1, false), (1, false), (2, false), (3, false), (2, false)]);
        assert_eq!(order(&mut queue), [0, 3, 4, 1, 5, 2]);
    }

    #[test]
    fn who_contributes_comes_first() {
        let (mut queue, _) = queue(&[(1, false), (2, true), (3, false), (2, true), (4, true)]);
        assert_eq!(order(&mut queue), [1, 4, 3, 0, 2]);
    }

    #[test]
    fn who_asks_again_and_again_does_not_pass_by_who_waits() {
        let (mut queue, _) = queue(&[(1, false), (1, false), (1, false)]);
        let mut got = Vec::new();
        for number in 3..6 {
            push(&mut queue, number, 2, false);
            got.extend(queue.pop().map(|asker| asker.number));
            got.extend(queue.pop().map(|asker| asker.number));
        }
        assert_eq!(got, [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn who_has_most_waiting_gives_way_where_that_is_fairer() {
        let (mut queue, _) =
            queue(&[(1, false), (2, false), (1, false), (1, false), (2, false), (3, false)]);
        // The consumer, and whose request gives way to it.
        for (scope, gives_way) in [(4, Some(3)), (1, None), (2, None), (3, None), (4, Some(4))] {
            assert_eq!(queue.would_give_way(scope, false), gives_way.is_some(), "{scope}");
            let gone = queue.give_way(scope, false).map(|asker| asker.number);
            assert_eq!(gone, gives_way, "{scope}");
        }
        assert_eq!(order(&mut queue), [0, 1, 5, 2]);
    }

    #[test]
    fn who_contributes_gives_way_to_nobody_who_does_not() {
        let asked = [(1, true), (1, true), (1, true), (2, false), (2, false)];
        let (mut queue, _) = queue(&asked);
        for (scope, contributes, gives_way) in
            [(3, false, Some(4)), (3, false, None), (4, true, Some(2))]
        {
            let gone = queue.give_way(scope, contributes).map(|asker| asker.number);
            assert_eq!(gone, gives_way, "{scope}");
        }
    }

    #[test]
    fn everybody_knows_the_place_and_who_has_left_takes_none() {
        let (mut queue, told) = queue(&[(1, false), (1, false), (2, false)]);
        let places = || told.iter().map(|told| told.place.get()).collect::<Vec<_>>();
        assert_eq!(places(), [1, 3, 2]);
        told[0].has_left.set(true);
        assert_eq!((queue.len(), queue.count()), (3, 2));
        queue.forget_the_left();
        assert_eq!((places(), queue.len()), (vec![1, 2, 1], 2));
        assert_eq!(queue.pop().map(|asker| asker.number), Some(2));
        assert_eq!(places(), [1, 1, 0]);
        assert_eq!(queue.stop().len(), 1);
        assert!(queue.stopped && queue.is_empty());
    }
}
