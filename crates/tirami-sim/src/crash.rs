//! Power cuts, starts, and snapshots.

use tirami_ledger::command::Command;
use tirami_ledger::event::Event;

use crate::Fault;
use crate::disk::Cut;
use crate::machine::Machine;
use crate::party::CrashPoint;
use crate::world::{Task, World};

impl World {
    /// A party loses power. `unwritten` was decided and applied, and is not on the disk.
    ///
    /// Before the cut the disk is replayed: with what was written since the last sync it must
    /// give exactly the state that the running node had.
    pub(crate) fn crash(
        &mut self,
        party: usize,
        point: CrashPoint,
        unwritten: &[Event],
    ) -> Result<(), String> {
        let node = &mut self.parties[party];
        let Some(live) = node.machine.take() else {
            return Ok(());
        };
        let recovered = node.disk.recover();
        let durable = recovered.batches();
        let unsynced = node.waiting.iter().filter(|waiting| waiting.batch >= durable);
        let unsynced = unsynced.flat_map(|waiting| &waiting.events).chain(unwritten);
        let start = (&self.founded, node.id, &node.keys);
        let replayed = Machine::replay(start, &recovered, unsynced)?;
        if replayed.state_hash() != live.state_hash() {
            return Err(format!("party {party} replays its disk to another state"));
        }
        let cut = match point {
            _ if self.config.fault == Fault::DiskLosesSynced => Cut::Broken,
            CrashPoint::BeforeAppend | CrashPoint::BeforeReply => Cut::Synced,
            CrashPoint::BeforeSync if self.dice.percent(40) => Cut::Synced,
            CrashPoint::DuringSync if self.dice.percent(20) => Cut::Whole,
            CrashPoint::BeforeSync | CrashPoint::DuringSync => Cut::Torn,
        };
        self.counts.crashes += 1;
        self.counts.torn += u64::from(node.disk.cut(&mut self.dice, cut));
        node.waiting.clear();
        node.jobs.clear();
        node.requests.clear();
        node.sync_planned = false;
        node.doom = None;
        node.life += 1;
        node.staged_at = node.staged_at.min(node.disk.batches());
        let down = self.dice.between(200, 30_000);
        self.plan(down, Task::Start { party });
        Ok(())
    }

    /// A party starts from its disk; everything it was ever told must still be true.
    pub(crate) fn start(&mut self, party: usize) -> Result<(), String> {
        let node = &mut self.parties[party];
        if node.machine.is_some() {
            return Ok(());
        }
        let mut recovered = node.disk.recover();
        let first = recovered.first();
        self.counts.from_snapshot += u64::from(recovered.snapshot.is_some());
        node.oracle.check_told(first, &recovered.tail)?;
        node.oracle.catch_up(first, &recovered.tail)?;
        if self.config.fault == Fault::StaleSnapshot {
            recovered.tail.clear();
        }
        let start = (&self.founded, node.id, &node.keys);
        let machine = Machine::replay(start, &recovered, [])?;
        node.oracle.account().check(machine.ledger().book())?;
        node.machine = Some(machine);
        let tail = recovered.tail;
        for events in &tail {
            self.learn(party, events)?;
        }
        self.audit(party)?;
        self.began(party)?;
        self.by_node(party, &Command::Recover)?;
        Ok(())
    }

    /// A node that is not alone signs nothing until witnesses told it where its chain ends. In
    /// this world, which has no wire, its disk knows: no cut takes what anybody was told.
    pub(crate) fn began(&mut self, party: usize) -> Result<(), String> {
        self.by_node(party, &Command::ConfirmHighest)?;
        Ok(())
    }

    /// Writes a snapshot beside the log. It must read back to the same bytes, and what was told
    /// about the batches that it replaces must be true.
    pub(crate) fn stage_snapshot(&mut self, party: usize) -> Result<(), String> {
        let node = &mut self.parties[party];
        let Some(machine) = &node.machine else {
            return Ok(());
        };
        let recovered = node.disk.recover();
        let start = (&self.founded, node.id, &node.keys);
        let replayed = Machine::replay(start, &recovered, [])?;
        let snapshot = machine.snapshot();
        if replayed.snapshot() != snapshot {
            return Err(format!("party {party} replays its disk to another snapshot"));
        }
        node.oracle.check_told(recovered.first(), &recovered.tail)?;
        let first = recovered.first();
        node.oracle.forget_below(first);
        node.staged_at = node.disk.batches();
        node.disk.stage(snapshot);
        Ok(())
    }
}
