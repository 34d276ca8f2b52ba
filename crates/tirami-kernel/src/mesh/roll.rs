//! Who is enrolled: the registrar enrols whoever shows the mesh's secret, and a newcomer opens its
//! chain with its enrolment.

use std::collections::BTreeSet;

use tirami_core::{DocumentId, PartyId};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{Change, Enrol, Grant, Slot};
use tirami_proto::Message;

use crate::kernel::{Effects, Kernel};

/// Characters of a party's id that name its owner when the registrar enrols it by itself.
const LABEL_CHARACTERS: usize = 16;

/// Why an invited peer is not enrolled, for programs.
const INVITE_USED_UP: &str = "invite_used_up";

/// Who is enrolled on the registrar's chain, an index that is rebuilt after a start. Only the
/// registrar's node has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roll {
    registrar: Option<PartyId>,
    /// Entries of the registrar's chain that were looked at.
    next_seq: u64,
    enrolled: BTreeSet<PartyId>,
    /// A member's `sponsor` entry for this node.
    sponsor: Option<DocumentId>,
    /// Whether entries that were final before the start were searched for one.
    searched: bool,
}

impl Roll {
    /// A member sponsors this node; the first one counts.
    pub(super) fn sponsored(&mut self, sponsor: DocumentId) {
        self.sponsor.get_or_insert(sponsor);
    }
}

impl Kernel {
    /// The registrar's first enrolment of `party`.
    pub(super) fn enrolment(&self, party: PartyId) -> Option<DocumentId> {
        let lattice = self.ledger.lattice();
        let registrar = lattice.charter().registrar;
        let enrolments = lattice.grants(party).filter_map(|(id, grant)| {
            let Slot { chain, seq } = lattice.final_entry(id)?.slot;
            let is_enrolment = matches!(grant, Grant::Enrolment { .. });
            (is_enrolment && chain == registrar).then_some((seq, id))
        });
        enrolments.min().map(|(_, id)| id)
    }

    /// Brings the index up to the registrar's last final entry.
    pub(super) fn read_roll(&mut self) {
        let registrar = self.ledger.lattice().charter().registrar;
        let roll = &mut self.mesh.roll;
        if roll.registrar != Some(registrar) {
            let Roll { sponsor, searched, .. } = *roll;
            *roll = Roll { registrar: Some(registrar), sponsor, searched, ..Roll::default() };
        }
        let from_seq = self.mesh.roll.next_seq;
        let (unread, end) = self.enrolments_from(registrar, from_seq);
        let roll = &mut self.mesh.roll;
        roll.enrolled.extend(unread);
        roll.next_seq = end.max(roll.next_seq);
    }

    /// The final enrolments of the registrar from a place on, and the place after its last entry.
    fn enrolments_from(&self, registrar: PartyId, from_seq: u64) -> (Vec<PartyId>, u64) {
        let lattice = self.ledger.lattice();
        let end = lattice.chain(registrar).map_or(0, |chain| chain.next_seq());
        let ids =
            (from_seq..end).filter_map(|seq| lattice.final_at(Slot { chain: registrar, seq }));
        let enrolled = ids.filter_map(|id| match lattice.final_entry(id)?.effect.change {
            Change::Enrolled { party, .. } => Some(party),
            _ => None,
        });
        (enrolled.collect(), end)
    }

    /// Parties that are enrolled, or will be as soon as what this node signed is final.
    pub fn enrolled(&self) -> u64 {
        let (own, lattice) = (self.ledger.party(), self.ledger.lattice());
        let registrar = lattice.charter().registrar;
        let roll = Some(&self.mesh.roll).filter(|roll| roll.registrar == Some(registrar));
        let (unread, _) = self.enrolments_from(registrar, roll.map_or(0, |roll| roll.next_seq));
        let pending = lattice.pending_of(own).filter_map(|pending| match pending.effect().change {
            Change::Enrolled { party, .. } => Some(party),
            _ => None,
        });
        let known = |party: &PartyId| roll.is_some_and(|roll| roll.enrolled.contains(party));
        let more = unread.into_iter().chain(pending);
        let more: BTreeSet<PartyId> = more.filter(|party| !known(party)).collect();
        (roll.map_or(0, |roll| roll.enrolled.len()) + more.len()) as u64
    }

    /// Whether `party` is enrolled, or will be as soon as what this node signed is final.
    pub fn is_enrolled(&self, party: PartyId) -> bool {
        let pending = self.ledger.lattice().pending_of(self.ledger.party());
        let mut changes = pending.map(|pending| pending.effect().change);
        self.enrolment(party).is_some()
            || changes
                .any(|change| matches!(change, Change::Enrolled { party: p, .. } if p == party))
    }

    /// Enrols an invited party with the charter's default line, once, while the owner's invites
    /// have a use left. Where they have none, or the charter's `line_total` has no room, it is
    /// told why it gets no line: the registrar's owner may enrol it by hand.
    pub(super) fn enrol(&mut self, party: PartyId, effects: &mut Effects) {
        let (own, lattice) = (self.ledger.party(), self.ledger.lattice());
        if lattice.charter().registrar != own || lattice.chain(own).is_none() {
            return;
        }
        if self.is_enrolled(party) {
            return;
        }
        self.read_roll();
        let admission = self.mesh.settings.admission;
        let admission = admission.filter(|admission| self.clock < admission.expires_at);
        if admission.is_none_or(|admission| self.enrolled() >= admission.enrolled_max) {
            let reason = "the invite has expired or has no use left; ask the owner of the node that \
                          made it for another one, or to run tirami mesh enrol";
            return self.gets_no_line(party, INVITE_USED_UP, reason.to_owned(), effects);
        }
        let line = self.ledger.lattice().charter().params.line_default;
        let owner: String = party.to_string().chars().take(LABEL_CHARACTERS).collect();
        let kind = Enrol { party, owner, line }.into();
        match self.decide(&Actor::Node, &Command::SignEntry { kind }) {
            Ok((events, _)) => self.take(events, effects),
            Err(rejection) => {
                let reason = super::witness::sentence(&rejection.to_string());
                self.gets_no_line(party, rejection.code(), reason, effects);
            }
        }
    }

    /// Tells an invited peer once why it is not enrolled, and notes it for the owner.
    fn gets_no_line(
        &mut self,
        party: PartyId,
        code: &'static str,
        reason: String,
        effects: &mut Effects,
    ) {
        let Some(peer) = self.mesh.peers.get_mut(&party) else { return };
        if peer.is_open() && !peer.gets_no_line {
            peer.gets_no_line = true;
            effects.refused.push((party, code));
            let code = code.to_owned();
            effects.send.push((party, Message::SponsorRefused { code, reason }));
        }
    }

    /// What could not be signed when it was due: enrolments of invited peers, the own first entry.
    pub(super) fn beat_roll(&mut self, effects: &mut Effects) {
        if self.ledger.lattice().charter().registrar == self.ledger.party() {
            let invited = self.mesh.peers.iter().filter(|(_, peer)| peer.invited);
            let invited: Vec<PartyId> = invited.map(|(party, _)| *party).collect();
            for party in invited {
                self.enrol(party, effects);
            }
        }
        self.join(effects);
    }

    /// What lines call for on this node's chain: it falls due by what others sign, which no
    /// deadline of the ledger tells.
    pub(super) fn beat_welcome(&mut self, effects: &mut Effects) {
        if self.ledger.welcome_due(self.clock) {
            self.command(&Command::Tick, effects);
        }
    }

    /// A `sponsor` entry for this node among what was final before the start.
    fn search_sponsor(&mut self) {
        let mut grants = self.ledger.lattice().grants(self.ledger.party());
        let sponsored = grants.find(|(_, grant)| matches!(grant, Grant::Welcome { .. }));
        if let Some((id, _)) = sponsored {
            self.mesh.roll.sponsored(id);
        }
    }

    /// Opens this node's chain once it is enrolled or sponsored.
    pub(super) fn join(&mut self, effects: &mut Effects) {
        let (own, lattice) = (self.ledger.party(), self.ledger.lattice());
        let began = lattice.chain(own).is_some() || lattice.pending_of(own).next().is_some();
        if began || lattice.is_asking() || lattice.missing_own(own) > 0 {
            return;
        }
        if !core::mem::replace(&mut self.mesh.roll.searched, true) {
            self.search_sponsor();
        }
        let (enrol, sponsor) = (self.enrolment(own), self.mesh.roll.sponsor);
        // Whoever was paid for its work needs no line, but a chain to collect on.
        let has_earned = !self.ledger.book().earned_total().is_zero();
        if (enrol.is_some() || sponsor.is_some() || has_earned)
            && !self.command(&Command::Join { enrol, sponsor }, effects)
        {
            // A sponsor's lock may be unusable by now; the enrolment does not depend on it.
            self.mesh.roll.sponsor = None;
        }
    }
}
