//! The course of a run: trade, then rest, and what must be true when everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{DAY_MS, Digest, HOUR_MS, PartyId};
use tirami_kernel::{Input, Kernel};
use tirami_ledger::lattice::{Chain, Keep};

use super::node::local;
use super::report::NodesReport;
use super::world::World;

/// After a heal everybody knows everything within so long, in milliseconds.
const CONVERGE_MS: u64 = 10_000;
/// How long debts, collects and claims take until nothing is left to do.
const SETTLE_MS: u64 = 300_000;
/// How long the nodes take to find each other: not counted as the cost of trade.
const CONNECT_MS: u64 = 10_000;
/// How often it is looked whether the mesh agrees.
const LOOK_MS: u64 = 250;
/// Of 10 000 jobs that can be answered, so many are.
const COMPLETION: u64 = 9_900;

/// What was known anywhere when the network healed.
#[derive(Debug)]
pub(super) struct Healed {
    at: u64,
    heads: BTreeMap<PartyId, u64>,
    nodes: Vec<Up>,
}

/// A node that was up when the network healed.
#[derive(Debug)]
struct Up {
    at: usize,
    life: u64,
    /// The chains that it followed, when it keeps only some.
    followed: Option<BTreeSet<PartyId>>,
}

impl World {
    pub(super) fn play(&mut self) -> Result<NodesReport, String> {
        let end = self.config.seconds * 1_000;
        let begin = CONNECT_MS.min(end / 2);
        self.trade_until(begin)?;
        let before = self.counts.cost();
        self.trade_until(end)?;
        self.counts.paid = self.tally.jobs_paid();
        self.counts.kinds = self.tally.kinds().clone();
        let cost = self.counts.cost().since(before, end - begin);
        let connections = self.links.len();
        let virtual_ms = self.now;
        let state = self.come_to_rest()?;
        self.check_end()?;
        Ok(NodesReport {
            seed: self.config.seed,
            nodes: self.nodes.len(),
            keep: self.config.keep,
            liars: self.nodes.iter().filter(|node| !node.is_honest()).count(),
            witnesses: self.founding.lattice.charter().witnesses.len(),
            dishonest: self.law.liars.len(),
            virtual_ms,
            connections,
            cost,
            finals: self.tally.finals(),
            counts: self.counts.clone(),
            state,
        })
    }

    fn trade_until(&mut self, end: u64) -> Result<(), String> {
        while self.now < end {
            self.run_until((self.now + LOOK_MS).min(end))?;
            self.look_at_heal()?;
        }
        Ok(())
    }

    /// The network heals: remembers what is known anywhere. No storm until it is known everywhere.
    pub(super) fn note_heal(&mut self) -> Option<Healed> {
        self.links.storm = false;
        let mut heads = BTreeMap::<PartyId, u64>::new();
        let honest = self.nodes.iter().enumerate().filter(|(_, node)| node.is_honest());
        let mut nodes = Vec::new();
        for (at, node) in honest {
            let Some(kernel) = &node.kernel else { continue };
            let lattice = kernel.ledger().lattice();
            let followed = || {
                let held = lattice.chains().map(|(party, _)| party);
                held.filter(|party| kernel.follows(*party)).collect()
            };
            let followed = (kernel.keeps() == Keep::Own).then(followed);
            nodes.push(Up { at, life: node.life, followed });
            for (party, chain) in lattice.chains() {
                let most = heads.entry(party).or_default();
                *most = chain.next_seq().max(*most);
            }
        }
        Some(Healed { at: self.now, heads, nodes })
    }

    fn look_at_heal(&mut self) -> Result<(), String> {
        // While all who keep all chains are without power there is nobody to learn from.
        let mut honest = self.nodes.iter().filter(|node| node.is_honest());
        let keeps_all =
            honest.any(|node| node.lattice().is_some_and(|lattice| lattice.keeps() == Keep::All));
        let Some(healed) = &mut self.healed else { return Ok(()) };
        if !keeps_all {
            healed.at = self.now;
        }
        let behind = healed.nodes.iter().find_map(|Up { at, life, followed }| {
            let node = &self.nodes[*at];
            let kernel = node.kernel.as_ref().filter(|_| node.life == *life)?;
            let lattice = kernel.ledger().lattice();
            let lacks = healed.heads.iter().find(|(party, next)| {
                let next_seq = lattice.chain(**party).map_or(0, |chain| chain.next_seq());
                let follows = |followed: &BTreeSet<PartyId>| {
                    followed.contains(*party) && kernel.follows(**party)
                };
                next_seq < **next && followed.as_ref().is_none_or(follows)
            })?;
            Some((*at, *lacks.0))
        });
        let took = self.now - healed.at;
        match behind {
            None => {
                self.counts.converged_ms = self.counts.converged_ms.max(took);
                self.healed = None;
                self.links.storm = !self.config.calm && self.trading;
                Ok(())
            }
            Some((at, party)) if took > CONVERGE_MS => Err(format!(
                "{took} ms after the heal node {at} does not know what others know of chain {}; {}",
                self.by_party.get(&party).map_or(usize::MAX, |at| *at),
                self.fetching(at)
            )),
            Some(_) => Ok(()),
        }
    }

    /// What a node that lacks something does about it.
    fn fetching(&self, at: usize) -> String {
        let Some(kernel) = &self.nodes[at].kernel else { return "it is down".to_owned() };
        let open = kernel.mesh().peers().filter(|(_, peer)| peer.is_open()).count();
        let witnesses = kernel.ledger().lattice().charter().witnesses.iter();
        let witnesses = witnesses.filter(|key| kernel.mesh().is_open(key.party())).count();
        format!(
            "it has {open} peers, {witnesses} of them witnesses, lacks {} entries it knows of and \
             waits for {} pages",
            kernel.entries_behind(),
            kernel.mesh().pages_asked()
        )
    }

    /// No more trade, no more faults: everything open is finished and everybody agrees.
    fn come_to_rest(&mut self) -> Result<Digest, String> {
        self.trading = false;
        self.split(true);
        for node in &mut self.nodes {
            node.doom = None;
        }
        self.healed = self.note_heal();
        let began = self.now;
        while self.healed.is_some() {
            self.run_until(self.now + LOOK_MS)?;
            self.look_at_heal()?;
        }
        loop {
            let unquiet = match self.agreed() {
                Some(state) if self.config.calm => return Ok(state),
                Some(state) => match self.unquiet() {
                    None => {
                        self.counts.settled_ms = self.now - began;
                        return Ok(state);
                    }
                    Some(what) => what,
                },
                None => "honest nodes do not agree".to_owned(),
            };
            if self.now > began + SETTLE_MS {
                return Err(format!("{SETTLE_MS} ms after the end of trade {unquiet}"));
            }
            self.run_until(self.now + LOOK_MS)?;
        }
    }

    /// The state that all honest nodes have which keep all chains; what others follow is as there.
    fn agreed(&self) -> Option<Digest> {
        let honest = self.nodes.iter().filter(|node| node.is_honest());
        let known: Option<Vec<&Kernel>> = honest.map(|node| node.kernel.as_ref()).collect();
        let (all, some): (Vec<_>, Vec<_>) =
            known?.into_iter().partition(|kernel| kernel.keeps() == Keep::All);
        let first = all.first()?.ledger().lattice();
        let state = first.state_hash();
        let same = |kernel: &&Kernel| {
            let heads = kernel.ledger().lattice().chain_heads();
            let mut followed = heads.filter(|head| kernel.follows(head.chain));
            followed.all(|head| first.chain(head.chain).and_then(Chain::head) == Some(head.head))
        };
        let agree = all.iter().all(|kernel| kernel.ledger().lattice().state_hash() == state);
        (agree && some.iter().all(same)).then_some(state)
    }

    /// What an honest node still has to do.
    fn unquiet(&self) -> Option<String> {
        if self.is_busy() {
            return Some("clients still wait".to_owned());
        }
        self.nodes.iter().enumerate().filter(|(_, node)| node.is_honest()).find_map(|(at, node)| {
            let ledger = node.ledger()?;
            let (lattice, book) = (ledger.lattice(), ledger.book());
            if let Some(pending) = lattice.pending_of(node.party).next() {
                let (entry, version) = (pending.entry().entry(), lattice.charter().version);
                let (seq, kind) = (entry.seq, entry.kind.name());
                let (acks, quorum) =
                    (pending.acknowledged_by(version).count(), lattice.charter().quorum);
                return Some(format!(
                    "{kind} {seq} of node {at} is not final with {acks} of {quorum}"
                ));
            }
            if let Some((job, debt)) = book.debts().iter().next() {
                return Some(format!("node {at} has not paid job {job}: {debt:?}"));
            }
            if lattice.chain(node.party).is_none() {
                return Some(format!("node {at} has no chain"));
            }
            if !book.holds().is_empty() {
                return Some(format!("node {at} holds TRM for jobs that are over"));
            }
            None
        })
    }

    fn check_end(&mut self) -> Result<(), String> {
        for at in 0..self.nodes.len() {
            self.audit(at)?;
        }
        self.check_money()?;
        if self.config.calm {
            return Ok(());
        }
        // A day and an hour later nothing is held and nothing is served.
        let later = self.now + DAY_MS + HOUR_MS;
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let Some(kernel) =
                node.kernel.as_mut().filter(|_| node.role == super::node::Role::Honest)
            else {
                continue;
            };
            let _ended = kernel.handle(local(later, node.skew_ms), Input::Tick);
            let book = kernel.ledger().book();
            if !book.holds().is_empty() || book.served_running() > 0 {
                return Err(format!("node {at} holds or serves after every claim time"));
            }
            kernel.ledger().check_invariants().map_err(|what| format!("node {at}: {what}"))?;
        }
        let completion = self.counts.completion();
        if completion < COMPLETION {
            return Err(format!(
                "of {} jobs {} were not answered: {completion} of 10 000 were",
                self.counts.jobs, self.counts.failed
            ));
        }
        Ok(())
    }
}
