//! Claims against silent consumers go to the witnesses, which hold back what the debtor signs next
//! (MONEY §8).

use tirami_core::{JobId, PartyId};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::documents::{Claim, SignedBytes};
use tirami_ledger::refusal::ClaimRefusal;
use tirami_proto::{Fault, Message, WireClaim, WireDocument};

use crate::kernel::{Effects, Kernel};

/// Claims told to one witness when it comes back.
const CLAIMS_MAX: usize = 1_024;

impl Kernel {
    /// This node made a claim.
    pub(super) fn claim_made(&self, job: JobId, effects: &mut Effects) {
        let served = self.ledger.book().served().get(&job);
        let Some(claim) = served.and_then(|served| served.claim()).map(wire_claim) else { return };
        for to in self.open_witnesses() {
            effects.send.push((to, Message::Claim(claim.clone())));
        }
    }

    /// Tells a witness every claim that is neither paid nor lapsed.
    pub(super) fn offer_claims(&self, to: PartyId, effects: &mut Effects) {
        if !self.is_witness(to) {
            return;
        }
        let served = self.ledger.book().served().values().filter(|served| served.claimed);
        let claims = served.filter_map(|served| served.claim()).map(wire_claim);
        effects.send.extend(claims.take(CLAIMS_MAX).map(|claim| (to, Message::Claim(claim))));
    }

    pub(super) fn take_claim(&mut self, from: PartyId, claim: WireClaim, effects: &mut Effects) {
        let (order, voucher) = (signed(claim.order), signed(claim.voucher));
        let command = Command::ReceiveClaim { order, voucher };
        match self.decide(&Actor::Node, &command) {
            Ok((events, _)) => self.take(events, effects),
            // A claim that is paid, has lapsed or is one too many is an honest mistake.
            Err(Rejection::Claim(ClaimRefusal::BadSignature)) => {
                self.fault(from, Fault::BadSignature, effects);
            }
            Err(Rejection::Claim(ClaimRefusal::Malformed)) => {
                self.fault(from, Fault::Invalid, effects);
            }
            Err(_) => {}
        }
    }
}

fn wire_claim(claim: Claim) -> WireClaim {
    WireClaim { order: wire(claim.order), voucher: wire(claim.voucher) }
}

fn wire(document: SignedBytes) -> WireDocument {
    WireDocument { bytes: document.bytes, signature: document.signature }
}

fn signed(document: WireDocument) -> SignedBytes {
    SignedBytes { bytes: document.bytes, signature: document.signature }
}
