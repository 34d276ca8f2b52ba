//! A disk that forgets what was not synced, and may keep a torn piece of it.
//!
//! It stands for the store's contract: a batch is kept whole or not at all, in order, and for
//! good once a sync has returned. Batches are framed with their length and a checksum, so that a
//! reader drops a torn one and everything after it.

use minicbor::{Decoder, Encoder};
use tirami_core::Digest;
use tirami_ledger::event::Event;

use crate::dice::Dice;

/// Bytes before a batch: its length and the first bytes of its digest.
const HEADER_BYTES: usize = 4 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 8;

/// A whole state, and how far the log had come when it was taken.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) ledger: Vec<u8>,
    /// Batches that it contains.
    pub(crate) batches: u64,
    /// Bytes of the log that it contains.
    offset: usize,
}

/// What can be read after a start: the newest snapshot and every whole batch after it.
pub(crate) struct Recovered<'a> {
    pub(crate) snapshot: Option<&'a Snapshot>,
    pub(crate) tail: Vec<Vec<Event>>,
}

impl Recovered<'_> {
    /// Batches in snapshot and tail together.
    pub(crate) fn batches(&self) -> u64 {
        self.first() + self.tail.len() as u64
    }

    /// The number of the first batch in the tail.
    pub(crate) fn first(&self) -> u64 {
        self.snapshot.map_or(0, |snapshot| snapshot.batches)
    }
}

/// What is left after a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Only what was synced.
    Synced,
    /// All of it: the sync was over but for its answer.
    Whole,
    /// What was synced and a piece of the rest, the last batch of it torn.
    Torn,
    /// Not even all that was synced: the fault that the checks must find.
    Broken,
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    log: Vec<u8>,
    /// Where each batch ends in the log.
    ends: Vec<usize>,
    synced: usize,
    snapshot: Option<Snapshot>,
    staged: Option<Snapshot>,
}

impl Disk {
    /// Batches in the log, synced or not.
    pub(crate) fn batches(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Writes a batch behind the others; gives its number. It is not durable yet.
    pub(crate) fn append(&mut self, events: &[Event]) -> u64 {
        let payload = encode(events);
        let checksum = Digest::of(&payload);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.log.extend_from_slice(&length.to_le_bytes());
        self.log.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_BYTES]);
        self.log.extend_from_slice(&payload);
        self.ends.push(self.log.len());
        self.batches() - 1
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&mut self) {
        self.synced = self.log.len();
        if let Some(staged) = self.staged.take() {
            self.snapshot = Some(staged);
        }
    }

    /// Writes a snapshot of all batches so far beside the log; the next sync makes it durable.
    pub(crate) fn stage(&mut self, ledger: Vec<u8>) {
        let (batches, offset) = (self.batches(), self.log.len());
        self.staged = Some(Snapshot { ledger, batches, offset });
    }

    /// Loses power. Gives whether a batch was torn.
    pub(crate) fn cut(&mut self, dice: &mut Dice, cut: Cut) -> bool {
        self.staged = None;
        let before = self.log.len();
        let kept = match cut {
            Cut::Synced => self.synced,
            Cut::Whole => before,
            Cut::Torn => self.synced + dice.index(before - self.synced + 1),
            Cut::Broken => {
                let base = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.offset);
                let last = self.ends.iter().rev().find(|end| **end <= self.synced);
                last.copied().unwrap_or(base).saturating_sub(1).max(base)
            }
        };
        self.log.truncate(kept);
        // Sectors may reach the platter in any order: the end of a torn piece can be anything.
        if cut == Cut::Torn && kept > self.synced && dice.percent(50) {
            let garbled = dice.index((kept - self.synced).min(64) + 1);
            for byte in self.log.iter_mut().rev().take(garbled) {
                *byte = dice.bytes::<1>()[0];
            }
        }
        let trusted = kept.min(self.synced);
        self.ends.retain(|end| *end <= trusted);
        let (whole, _) = read(&self.log, self.ends.last().copied().unwrap_or(0));
        self.ends.extend(whole);
        let end = self.ends.last().copied().unwrap_or(0);
        let torn = end < self.log.len();
        self.log.truncate(end);
        self.synced = self.log.len();
        torn
    }

    /// What the synced part of the disk says. A start reads exactly this.
    pub(crate) fn recover(&self) -> Recovered<'_> {
        let from = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.offset);
        let (_, tail) = read(&self.log[..self.synced], from);
        Recovered { snapshot: self.snapshot.as_ref(), tail }
    }
}

/// Reads whole batches from `from` on: where each ends, and its events. Batches before a torn one
/// count; nothing after it does.
fn read(log: &[u8], from: usize) -> (Vec<usize>, Vec<Vec<Event>>) {
    let (mut ends, mut batches) = (Vec::new(), Vec::new());
    let mut at = from;
    while let Some((payload, end)) = frame(log, at) {
        let Some(events) = decode(payload) else { break };
        ends.push(end);
        batches.push(events);
        at = end;
    }
    (ends, batches)
}

fn frame(log: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let header = log.get(at..at + HEADER_BYTES)?;
    let (length, checksum) = header.split_at(4);
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let start = at + HEADER_BYTES;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    let payload = log.get(start..end)?;
    (Digest::of(payload).as_bytes()[..CHECKSUM_BYTES] == *checksum).then_some((payload, end))
}

fn encode(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    // Writing into a vector cannot fail.
    let _ = Encoder::new(&mut bytes).encode(events);
    bytes
}

fn decode(payload: &[u8]) -> Option<Vec<Event>> {
    let mut decoder = Decoder::new(payload);
    let events = decoder.decode().ok()?;
    (decoder.position() == payload.len()).then_some(events)
}

#[cfg(test)]
mod tests {
    use tirami_core::Ppm;
    use tirami_ledger::event::BookEvent;

    use super::*;

    fn batch(price: u32) -> Vec<Event> {
        vec![Event::Book(BookEvent::PriceSet { price: Ppm::new(price), at: None })]
    }

    #[test]
    fn a_torn_batch_is_dropped_whole_and_synced_ones_stay() {
        for seed in 0..200 {
            let mut dice = Dice::new(seed);
            let mut disk = Disk::default();
            disk.append(&batch(1));
            disk.append(&batch(2));
            disk.sync();
            disk.append(&batch(3));
            disk.append(&batch(4));
            disk.cut(&mut dice, Cut::Torn);
            let kept = disk.recover().tail;
            let all = [batch(1), batch(2), batch(3), batch(4)];
            assert!((2..=4).contains(&kept.len()), "seed {seed}");
            assert_eq!(kept, all[..kept.len()], "seed {seed}");
        }
    }

    #[test]
    fn a_snapshot_counts_only_once_it_is_synced() {
        let mut dice = Dice::new(1);
        let mut disk = Disk::default();
        disk.append(&batch(1));
        disk.stage(vec![7]);
        disk.cut(&mut dice, Cut::Whole);
        assert!(disk.recover().snapshot.is_none());
        disk.stage(vec![7]);
        disk.sync();
        disk.append(&batch(2));
        disk.sync();
        let recovered = disk.recover();
        assert_eq!((recovered.first(), recovered.batches()), (1, 2));
        assert_eq!(recovered.tail, [batch(2)]);
    }
}
