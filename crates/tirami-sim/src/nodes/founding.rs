//! The mesh before the run begins: a charter, witnesses, and the chains of its first members.

use std::rc::Rc;

use tirami_core::{PartyId, Ppm, SecretKey, Signed, Timestamp, Trm};
use tirami_ledger::lattice::{
    Acknowledgement, Certificate, Charter, CharterProof, Enrol, EntryKind, Lattice, LatticeEvent,
    Line, Open, SignedEntry,
};
use tirami_proto::FinalEntry;

use crate::dice::Dice;

/// How far a member may overdraw.
pub(super) const LINE: Trm = Trm::from_micro(40_000_000_000);
/// Recent entries that a node keeps as records: few, so that entries grow old within a run.
const RECENT: u32 = 64;
/// What a sponsor locks for a newcomer at most.
pub(super) const WELCOME: Trm = Trm::from_micro(1_000_000_000);

/// A final entry of the founding, as it travels.
pub(super) struct Founded {
    pub(super) entry: SignedEntry,
    pub(super) wire: Rc<FinalEntry>,
}

/// What every member has before the run begins.
pub(super) struct Founding {
    /// The state of members.
    pub(super) lattice: Rc<Lattice>,
    /// The state of members that keep only some chains, but for their own.
    pub(super) offices: Rc<Lattice>,
    /// The state of those who have nothing but an invite.
    pub(super) bare: Rc<Lattice>,
    pub(super) entries: Vec<Founded>,
}

/// Founds a mesh whose first `witnesses` members are its witnesses; the first is clerk and
/// registrar.
///
/// # Errors
///
/// What no rule allows; the numbers here are all allowed.
pub(super) fn found(
    dice: &mut Dice,
    members: &[SecretKey],
    (witnesses, nodes): (usize, usize),
) -> Result<Founding, String> {
    let total = LINE.micro() * (nodes as u64 + 1);
    let mut charter = Charter::founder("sim", members[0].public(), Trm::from_micro(total));
    charter.witnesses = members.iter().take(witnesses).map(SecretKey::public).collect();
    charter.quorum = Charter::default_quorum(u8::try_from(witnesses).unwrap_or(u8::MAX));
    charter.params.line_default = LINE;
    charter.params.welcome = WELCOME;
    charter.params.fee_ppm = Ppm::new([0, 500, 20_000][dice.index(3)]);
    charter.params.checkpoint_ms = 60_000;
    let signed = Signed::sign(Charter::founding_mesh(), &members[0], charter)
        .map_err(|error| error.to_string())?;
    let lattice = Lattice::found(&signed).map_err(|error| error.to_string())?;
    let lattice = lattice.with_recent(RECENT);
    let history: Vec<CharterProof> = lattice.charters(0).collect();
    let bare = Lattice::from_history(lattice.mesh(), &history).map_err(|e| e.to_string())?;
    let bare = bare.with_recent(RECENT);
    let mut founder = Founder { lattice, witnesses: &members[..witnesses], entries: Vec::new() };
    let nobody = Open { sponsor: None, enrol: None, recovery: None };
    founder.write(&members[0], nobody.into())?;
    let mut grants = Vec::new();
    for member in members {
        let party = member.public().party();
        let enrol = Enrol { party, owner: party.to_string(), line: LINE };
        grants.push(founder.write(&members[0], enrol.into())?);
    }
    founder.write(&members[0], Line { enrol: grants[0] }.into())?;
    for (member, enrol) in members.iter().zip(grants).skip(1) {
        let open = Open { sponsor: None, enrol: Some(enrol), recovery: None };
        founder.write(member, open.into())?;
    }
    let Founder { lattice, entries, .. } = founder;
    let mut offices = bare.clone();
    let kept = lattice.offices();
    for founded in entries.iter().filter(|one| kept.contains(&one.entry.entry().chain)) {
        receive(&mut offices, &founded.wire)?;
    }
    let (lattice, offices) = (Rc::new(lattice), Rc::new(offices));
    Ok(Founding { lattice, offices, bare: Rc::new(bare), entries })
}

/// Takes an entry of the founding in.
///
/// # Errors
///
/// Why it cannot be.
pub(super) fn receive(lattice: &mut Lattice, wire: &FinalEntry) -> Result<(), String> {
    let certificate = wire.certificate.as_deref().ok_or("an entry without a certificate")?;
    let certificate: Certificate = minicbor::decode(certificate).map_err(|e| e.to_string())?;
    let events = lattice.receive_certified(&wire.bytes, wire.signature, &certificate);
    lattice.absorb(events.map_err(|error| error.to_string())?);
    Ok(())
}

struct Founder<'a> {
    lattice: Lattice,
    witnesses: &'a [SecretKey],
    entries: Vec<Founded>,
}

impl Founder<'_> {
    fn write(
        &mut self,
        key: &SecretKey,
        kind: EntryKind,
    ) -> Result<tirami_core::DocumentId, String> {
        let (chain, mesh): (PartyId, _) = (key.public().party(), self.lattice.mesh());
        let entry = self.lattice.draft(chain, Timestamp::default(), kind);
        let entry = entry.map_err(|error| error.to_string())?;
        let signed = Signed::sign(mesh, key, entry).map_err(|error| error.to_string())?;
        let received = self.lattice.receive_entry(signed.bytes(), signed.signature());
        self.absorb(received.map_err(|error| error.to_string())?);
        let quorum = usize::from(self.lattice.charter().quorum);
        for witness in self.witnesses.iter().take(quorum) {
            let ack = Acknowledgement::sign(mesh, 1, signed.id(), witness);
            let received = self.lattice.receive_acknowledgement(&ack);
            self.absorb(received.map_err(|error| error.to_string())?);
        }
        match self.lattice.final_entry(signed.id()) {
            Some(_) => Ok(signed.id()),
            None => Err("an entry of the founding did not become final".to_owned()),
        }
    }

    fn absorb(&mut self, events: Vec<LatticeEvent>) {
        for event in self.lattice.absorb(events) {
            if let Some((entry, wire)) = final_entry(&event) {
                self.entries.push(Founded { entry: entry.clone(), wire: Rc::new(wire) });
            }
        }
    }
}

/// The final entry that an event tells of, as it travels.
pub(super) fn final_entry(event: &LatticeEvent) -> Option<(&SignedEntry, FinalEntry)> {
    let LatticeEvent::EntryFinal { entry, certificate, .. } = event else {
        return None;
    };
    let certificate = certificate.as_ref().and_then(|known| minicbor::to_vec(known).ok());
    let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
    Some((entry, FinalEntry { bytes, signature, certificate }))
}
