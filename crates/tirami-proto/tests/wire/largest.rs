//! Every message filled to its bounds still fits its frame, so no honest sender is refused.

use tirami_core::{
    BUCKETS, Digest, DocumentId, ModelDigest, PartyId, PublicKey, SIGNED_BYTES_MAX, Signature,
};
use tirami_proto::{
    ADDRESS_BYTES_MAX, ADDRESSES_MAX, AGENT_BYTES_MAX, ANNOUNCED_PER_FRAME_MAX, APPROVAL_BYTES_MAX,
    BODY_BYTES_MAX, CERTIFICATE_BYTES_MAX, CONTROL_FRAME_BYTES_MAX, CUT_SLOTS_MAX,
    FINALS_PER_FRAME_MAX, FinalEntry, Frame, Frames, HEADS_PER_FRAME_MAX, Head, Hello,
    JOB_FRAME_BYTES_MAX, JobRequest, KEPT_PER_FRAME_MAX, LIKELIEST_MAX, LIKELIHOODS_PER_FRAME_MAX,
    Likelihood, Likely, MeasuredSpeed, Message, OFFERS_MAX, OPINIONS_PER_FRAME_MAX, PATH_BYTES_MAX,
    PEERS_PER_FRAME_MAX, PLACES_ASKED_MAX, PLACES_MAX, PRICE_SIGNAL_BYTES_MAX, PeerAddress,
    ProviderOpinion, RELAY_BYTES_MAX, RESUMED_TOKENS_MAX, TEXT_BYTES_MAX, TOKEN_BYTES_MAX,
    TOKENS_PER_FRAME_MAX, ToConsumer, ToProvider, VECTOR_WIDTH_MAX, VIA_MAX, Via, WireCharter,
    WireClaim, WireDocument, WireEntry, WirePlace, WireSlot, encode,
};

use crate::samples;

const SIGNATURE: Signature = Signature::from_bytes([0xff; 64]);
const PARTY: PartyId = PartyId::from_bytes([0xff; 32]);
const ID: DocumentId = DocumentId::from_bytes([0xff; 32]);

fn entry() -> WireEntry {
    WireEntry { bytes: vec![0xff; SIGNED_BYTES_MAX], signature: SIGNATURE }
}

fn document(bytes: usize) -> WireDocument {
    WireDocument { bytes: vec![0xff; bytes], signature: SIGNATURE }
}

fn final_entry() -> FinalEntry {
    let certificate = Some(vec![0xff; CERTIFICATE_BYTES_MAX]);
    FinalEntry { bytes: vec![0xff; SIGNED_BYTES_MAX], signature: SIGNATURE, certificate }
}

fn peer() -> PeerAddress {
    let url = format!("https://{}", "r".repeat(RELAY_BYTES_MAX - 8));
    PeerAddress { key: PublicKey::from_bytes([0xff; 32]), via: vec![Via::Relay(url); VIA_MAX] }
}

fn arrives<T: Frame + PartialEq>(what: &str, message: &T, max: usize) {
    let mut frames = Frames::new(max);
    frames.push(&encode(message));
    let read = frames.next::<T>();
    assert!(
        read.as_ref().is_ok_and(|read| read.as_ref() == Some(message)),
        "{what}: {:?}",
        read.err()
    );
}

#[test]
fn the_largest_control_messages_fit() {
    let hello = Hello {
        protocol_min: u16::MAX,
        protocol: u16::MAX,
        features: u64::MAX,
        mesh: samples::MESH,
        charter_version: u32::MAX,
        admission: Some([0xff; 32]),
        addresses: vec!["x".repeat(ADDRESS_BYTES_MAX); ADDRESSES_MAX],
        agent: "x".repeat(AGENT_BYTES_MAX),
    };
    let head = Head { chain: PARTY, next_seq: u64::MAX, head: ID };
    let slot = WireSlot { chain: PARTY, seq: u64::MAX };
    let place = WirePlace { entry: ID, chain: PARTY, seq: u64::MAX };
    let digest = Digest::from_bytes([0xff; 32]);
    let speed = MeasuredSpeed {
        model: ModelDigest::from_bytes([0xff; 32]),
        first_token_ms: u32::MAX,
        tokens_per_second_milli: u32::MAX,
    };
    let opinion =
        ProviderOpinion { provider: PARTY, failure_ppm: u32::MAX, speeds: vec![speed; OFFERS_MAX] };
    let charter = WireCharter {
        bytes: vec![0xff; SIGNED_BYTES_MAX],
        signature: None,
        approvals: vec![vec![0xff; APPROVAL_BYTES_MAX]],
    };
    let claim =
        WireClaim { order: document(SIGNED_BYTES_MAX), voucher: document(SIGNED_BYTES_MAX) };
    let highest = Message::Highest { chain: PARTY, next_seq: u64::MAX, entry: Some(entry()) };
    let heads = vec![head; HEADS_PER_FRAME_MAX];
    let all = [
        ("hello", Message::Hello(hello)),
        ("entry", Message::Entry(entry())),
        ("acknowledgement", Message::Acknowledgement(vec![0xff; CERTIFICATE_BYTES_MAX])),
        ("summary", Message::Summary { state: digest, buckets: vec![digest; BUCKETS.into()] }),
        ("heads", Message::Heads { bucket: 63, heads }),
        ("cut", Message::Cut { checkpoint: ID, slots: vec![slot; CUT_SLOTS_MAX] }),
        ("charters", Message::Charters { charters: vec![charter] }),
        ("proposal", Message::CharterProposal { bytes: vec![0xff; SIGNED_BYTES_MAX] }),
        ("approval", Message::CharterApproval { bytes: vec![0xff; APPROVAL_BYTES_MAX] }),
        ("highest", highest),
        ("claim", Message::Claim(claim)),
        ("double-sign", Message::DoubleSign { first: entry(), second: entry() }),
        (
            "announce",
            Message::Announce(vec![document(PRICE_SIGNAL_BYTES_MAX); ANNOUNCED_PER_FRAME_MAX]),
        ),
        ("peers", Message::Peers(vec![peer(); PEERS_PER_FRAME_MAX])),
        (
            "sponsor-refused",
            Message::SponsorRefused {
                code: "x".repeat(64),
                reason: "x".repeat(tirami_proto::REASON_BYTES_MAX),
            },
        ),
        ("kept", Message::Kept { number: u32::MAX, heads: vec![head; KEPT_PER_FRAME_MAX] }),
        ("beyond", Message::Beyond { number: u32::MAX, heads: vec![head; KEPT_PER_FRAME_MAX] }),
        ("want-places", Message::WantPlaces { entries: vec![ID; PLACES_ASKED_MAX] }),
        ("places", Message::Places { places: vec![place; PLACES_MAX], more: true }),
        ("opinions", Message::Opinions(vec![opinion; OPINIONS_PER_FRAME_MAX])),
    ];
    for (what, message) in &all {
        arrives(what, message, CONTROL_FRAME_BYTES_MAX);
    }
}

#[test]
fn entries_are_counted_no_smaller_than_they_are() {
    let one = |entry: &FinalEntry| {
        let finals = |count| Message::Finals {
            chain: PARTY,
            entries: vec![entry.clone(); count],
            more: false,
        };
        encode(&finals(9)).len() - encode(&finals(8)).len()
    };
    let small = FinalEntry { bytes: vec![1], signature: SIGNATURE, certificate: None };
    for entry in [small, final_entry()] {
        assert!(one(&entry) <= entry.wire_bytes());
    }
    let small = FinalEntry { bytes: vec![1; 200], signature: SIGNATURE, certificate: None };
    let entries = vec![small; FINALS_PER_FRAME_MAX];
    arrives(
        "finals",
        &Message::Finals { chain: PARTY, entries, more: true },
        CONTROL_FRAME_BYTES_MAX,
    );
}

#[test]
fn the_largest_job_frames_fit() {
    let request = JobRequest {
        order: document(SIGNED_BYTES_MAX),
        body: vec![0xff; BODY_BYTES_MAX],
        path: "x".repeat(PATH_BYTES_MAX),
        resumed: vec![u32::MAX; RESUMED_TOKENS_MAX],
    };
    arrives("request", &ToProvider::Request(request), JOB_FRAME_BYTES_MAX);
    let voucher = ToProvider::Voucher(document(SIGNED_BYTES_MAX));
    arrives("voucher", &voucher, JOB_FRAME_BYTES_MAX);
    let tokens = vec![u32::MAX; TOKENS_PER_FRAME_MAX];
    let likely = Likely { bytes: vec![0xff; TOKEN_BYTES_MAX], logprob_bits: u32::MAX };
    let likelihood = Likelihood { chosen: likely.clone(), top: vec![likely; LIKELIEST_MAX] };
    let likelihoods = vec![likelihood; LIKELIHOODS_PER_FRAME_MAX];
    let text = vec![0xff; TEXT_BYTES_MAX];
    let prompt = ToConsumer::Prompt { tokens: u32::MAX, text, likelihoods: likelihoods.clone() };
    arrives("prompt", &prompt, JOB_FRAME_BYTES_MAX);
    let text = "x".repeat(TEXT_BYTES_MAX);
    let tokens = ToConsumer::Tokens { tokens, text, likelihoods };
    arrives("tokens", &tokens, JOB_FRAME_BYTES_MAX);
    let receipt = document(SIGNED_BYTES_MAX);
    let (text, finish, stop) = ("x".repeat(TEXT_BYTES_MAX), u8::MAX, Some(u32::MAX));
    let end = ToConsumer::End { text, finish, receipt, stop };
    arrives("end", &end, JOB_FRAME_BYTES_MAX);
    let vector = ToConsumer::Vector { numbers: vec![0xff; 4 * VECTOR_WIDTH_MAX] };
    arrives("vector", &vector, JOB_FRAME_BYTES_MAX);
}
