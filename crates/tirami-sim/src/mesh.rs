//! Founding a mesh: who takes part, who witnesses, who lies, and the first entries.

use tirami_core::{Ppm, SecretKey, Signed, Trm};
use tirami_ledger::Keyring;
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::lattice::{Charter, Enrol, EntryKind, Lattice, Line, Open};

use crate::Config;
use crate::dice::Dice;
use crate::foes::Foes;
use crate::law::Law;
use crate::machine::Machine;
use crate::party::Party;
use crate::world::World;

/// How far a party may overdraw.
const LINE: Trm = Trm::from_micro(1_000_000_000_000);
/// How far an owner without a node may overdraw.
const ROGUE_LINE: Trm = Trm::from_micro(5_000_000_000);
/// Recent entries that a party keeps as records: few, so that entries grow old within a run.
const RECENT: u32 = 64;
const AGENT_FUNDS: Trm = Trm::from_micro(20_000_000_000);

/// A mesh before its first entry.
pub(crate) struct Mesh {
    pub(crate) founded: Lattice,
    pub(crate) charter: Charter,
    pub(crate) parties: Vec<Party>,
    pub(crate) foes: Foes,
    pub(crate) law: Law,
}

impl Mesh {
    /// Draws a mesh that fits the configuration.
    ///
    /// # Errors
    ///
    /// When the configuration names numbers that no charter allows.
    pub(crate) fn draw(config: &Config, dice: &mut Dice) -> Result<Self, String> {
        let drawn = [1, 3, 4, 4, 7][dice.index(5)];
        let witnesses = config.witnesses.unwrap_or(drawn);
        let count = usize::try_from(dice.between(4, 8)).unwrap_or(4);
        let count = config.parties.unwrap_or(count).max(witnesses);
        let keys: Vec<SecretKey> = (0..count).map(|_| dice.key()).collect();
        let rogues: Vec<SecretKey> = (0..dice.between(3, 8)).map(|_| dice.key()).collect();
        let charter = charter(dice, &keys, (witnesses, rogues.len()))?;
        let signed = Signed::sign(Charter::founding_mesh(), &keys[0], charter.clone())
            .map_err(|error| error.to_string())?;
        let founded = Lattice::found(&signed).map_err(|error| error.to_string())?;
        let founded = founded.with_recent(RECENT);
        let tolerated = charter.witnesses_tolerated();
        let liars = config.liars.unwrap_or_else(|| match dice.percent(20) {
            true => dice.index(witnesses - tolerated) + tolerated + 1,
            false => dice.index(tolerated + 1),
        });
        let liars: Vec<SecretKey> =
            keys.iter().take(witnesses).rev().take(liars).cloned().collect();
        let mut law = Law::default();
        law.within = liars.len() <= tolerated;
        law.liars = liars.iter().map(SecretKey::public).collect();
        let mut owners = rogues;
        if count > witnesses && dice.percent(30) {
            // The last party's key also signs somewhere else, as after a restored backup.
            owners.extend(keys.last().cloned());
        }
        law.double_signers = owners.iter().map(|key| key.public().party()).collect();
        let parties = keys.into_iter().map(|key| party(dice, &founded, key)).collect();
        Ok(Self { founded, charter, parties, foes: Foes::new(owners, liars), law })
    }
}

fn charter(
    dice: &mut Dice,
    keys: &[SecretKey],
    (witnesses, rogues): (usize, usize),
) -> Result<Charter, String> {
    let lines = LINE.micro() * keys.len() as u64 + ROGUE_LINE.micro() * rogues as u64;
    let mut charter = Charter::founder("sim", keys[0].public(), Trm::from_micro(lines));
    charter.witnesses = keys.iter().take(witnesses).map(SecretKey::public).collect();
    charter.quorum = Charter::default_quorum(u8::try_from(witnesses).unwrap_or(u8::MAX));
    charter.params.fee_ppm = Ppm::new([0, 500, 20_000][dice.index(3)]);
    charter.params.checkpoint_ms = [60_000, 300_000, 600_000][dice.index(3)];
    charter.validate().map_err(|error| error.to_string())?;
    Ok(charter)
}

fn party(dice: &mut Dice, founded: &Lattice, key: SecretKey) -> Party {
    let mut keys = Keyring::new(key);
    for _ in 0..dice.between(2, 4) {
        keys.add_agent(dice.key());
    }
    let party = keys.node.public().party();
    let machine = Machine::new(founded, party, &keys);
    Party::new(keys, machine)
}

impl World {
    /// Writes everybody's first entries and fills the books, without any fault.
    pub(crate) fn boot(&mut self) -> Result<(), String> {
        let members: Vec<_> = self.parties.iter().map(|party| (party.id, LINE)).collect();
        let rogues = self.foes.owners().filter(|owner| members.iter().all(|(id, _)| id != owner));
        let rogues: Vec<_> = rogues.map(|owner| (owner, ROGUE_LINE)).collect();
        for party in 0..self.parties.len() {
            self.began(party)?;
        }
        if self.charter.witnesses.len() == 1 {
            let line = LINE;
            self.must(0, &Command::OpenChain { line })?;
        } else {
            self.sign(0, Open { sponsor: None, enrol: None, recovery: None })?;
            self.settle()?;
            let enrol = self.enrol(members[0])?;
            self.settle()?;
            self.sign(0, Line { enrol })?;
        }
        self.settle()?;
        let mut grants = Vec::new();
        for member in members.iter().skip(1).chain(&rogues) {
            grants.push(self.enrol(*member)?);
        }
        self.settle()?;
        // A node opens its chain itself once it learns that it is enrolled.
        let owners = grants.split_off(members.len() - 1);
        let granted = rogues.iter().map(|(owner, _)| *owner).zip(owners);
        self.foes.grants = granted.collect();
        self.settle()?;
        for index in 0..self.parties.len() {
            for agent in self.parties[index].agents.clone() {
                let name = "agent".to_owned();
                self.must(index, &Command::CreateAgent { agent, name })?;
                self.must(index, &Command::FundAgent { agent, amount: AGENT_FUNDS })?;
            }
        }
        Ok(())
    }

    fn enrol(
        &mut self,
        (party, line): (tirami_core::PartyId, Trm),
    ) -> Result<tirami_core::DocumentId, String> {
        self.sign(0, Enrol { party, owner: party.to_string(), line })
    }

    fn sign(
        &mut self,
        party: usize,
        kind: impl Into<EntryKind>,
    ) -> Result<tirami_core::DocumentId, String> {
        match self.must(party, &Command::SignEntry { kind: kind.into() })? {
            Outcome::Entry { entry, .. } => Ok(entry),
            other => Err(format!("signing an entry was answered with {other:?}")),
        }
    }

    fn must(&mut self, party: usize, command: &Command) -> Result<Outcome, String> {
        match self.by_node(party, command)? {
            Some(Ok(outcome)) => Ok(outcome),
            other => Err(format!("while founding the mesh: {other:?}")),
        }
    }
}
