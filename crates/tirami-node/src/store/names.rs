//! The readable columns of the journal: what a record is called, where and when it belongs.
//!
//! The names are stored and never change.

use tirami_core::{PartyId, Timestamp};
use tirami_ledger::event::{BookEvent, DocumentKind};
use tirami_ledger::lattice::LatticeEvent;

/// The name of a document's kind.
pub(super) const fn document(kind: DocumentKind) -> &'static str {
    match kind {
        DocumentKind::Order => "order",
        DocumentKind::Voucher => "voucher",
        DocumentKind::Receipt => "receipt",
        DocumentKind::Claim => "claim",
    }
}

/// The name of a lattice event, and the place in a chain it is about when it has one.
pub(super) fn lattice(event: &LatticeEvent) -> (&'static str, Option<(&PartyId, u64)>) {
    use LatticeEvent as E;
    match event {
        E::EntryPending { entry, .. } => {
            ("entry_pending", Some((&entry.entry().chain, entry.entry().seq)))
        }
        E::EntryFinal { entry, .. } => {
            ("entry_final", Some((&entry.entry().chain, entry.entry().seq)))
        }
        E::Acknowledged { .. } => ("acknowledged", None),
        E::AcknowledgementMade { slot, .. } => {
            ("acknowledgement_made", Some((&slot.chain, slot.seq)))
        }
        E::Certified { .. } => ("certified", None),
        E::Parked { .. } => ("parked", None),
        E::Unparked { .. } => ("unparked", None),
        E::Discarded { .. } => ("discarded", None),
        E::DoubleSigned { rival, .. } => {
            ("double_signed", Some((&rival.entry().chain, rival.entry().seq)))
        }
        E::CharterApproved { .. } => ("charter_approved", None),
        E::CharterAdopted { .. } => ("charter_adopted", None),
        E::CutKnown { .. } => ("cut_known", None),
        E::CharterProposed { .. } => ("charter_proposed", None),
        E::Unrolled { chain } => ("unrolled", Some((chain, 0))),
        E::HighestNoted { chain, next_seq, .. } => ("highest_noted", Some((chain, *next_seq))),
    }
}

/// The name of the book event that is a trade.
pub(super) const TRADE: &str = "hold_posted";
/// The kind of a record that is a trade of another node's with this one.
pub(super) const SERVED: &str = "served_finished";

/// The name of a book event, and when it happened where it says so.
pub(super) const fn book(event: &BookEvent) -> (&'static str, Option<Timestamp>) {
    use BookEvent as E;
    match event {
        E::AgentCreated { at, .. } => ("agent_created", Some(*at)),
        E::AgentFunded { at, .. } => ("agent_funded", Some(*at)),
        E::AgentDefunded { at, .. } => ("agent_defunded", Some(*at)),
        E::KeyCreated { at, .. } => ("key_created", Some(*at)),
        E::KeyExpirySet { .. } => ("key_expiry_set", None),
        E::KeyRevoked { at, .. } => ("key_revoked", Some(*at)),
        E::LimitsSet { .. } => ("limits_set", None),
        E::PriceSet { at, .. } => ("price_set", *at),
        E::KillSet { at, .. } => ("kill_set", Some(*at)),
        E::BreakerOpened { .. } => ("breaker_opened", None),
        E::BreakerReset { .. } => ("breaker_reset", None),
        E::ApprovalRequested { at, .. } => ("approval_requested", Some(*at)),
        E::ApprovalDecided { at, .. } => ("approval_decided", Some(*at)),
        E::ApprovalClosed { .. } => ("approval_closed", None),
        E::HoldOpened(opened) => ("hold_opened", Some(opened.at)),
        E::VoucherRaised { .. } => ("voucher_raised", None),
        E::HoldPosted(posted) => (TRADE, Some(posted.at)),
        E::HoldVoided { at, .. } => ("hold_voided", Some(*at)),
        E::HoldExpired { at, .. } => ("hold_expired", Some(*at)),
        E::ServedAccepted(accepted) => ("served_accepted", Some(accepted.at)),
        E::VoucherTaken { .. } => ("voucher_taken", None),
        E::ServedFinished(finished) if finished.amount.is_zero() => {
            ("served_unpaid", Some(finished.at))
        }
        E::ServedFinished(finished) => (SERVED, Some(finished.at)),
        E::ServedSettled { .. } => ("served_settled", None),
        E::ServedLapsed { at, .. } => ("served_lapsed", Some(*at)),
        E::ClaimMade { at, .. } => ("claim_made", Some(*at)),
        E::ClaimNoted { at, .. } => ("claim_noted", Some(*at)),
        E::ClaimOutweighed { .. } => ("claim_outweighed", None),
        E::ReceiptRefused { at, .. } => ("receipt_refused", Some(*at)),
        E::Refused { at, .. } => ("refused", Some(*at)),
        E::StrangerSponsored { at, .. } => ("stranger_sponsored", Some(*at)),
        E::ServingSet(_) => ("serving_set", None),
        E::SettlingFailed { at } => ("settling_failed", Some(*at)),
    }
}
