//! One message of every kind, with every optional field filled.

use tirami_core::{
    Digest, DocumentId, MeshId, ModelDigest, ModelShape, PartyId, Ppm, PublicKey, SecretKey,
    Signature, Signed, Timestamp,
};
use tirami_proto::{
    FinalEntry, Goodbye, GoodbyeCode, Head, Hello, InvalidRequest, Invite, JobRequest, Likelihood,
    Likely, MeasuredSpeed, Message, Offer, PeerAddress, PriceSignal, ProviderOpinion, ToConsumer,
    ToProvider, Welcome, WireCharter, WireClaim, WireDocument, WireEntry, WirePlace, WireSlot,
    admission_proof,
};

/// The mesh of all samples.
pub(crate) const MESH: MeshId = MeshId::from_bytes([0x3e; 32]);

/// The key of the provider in all samples.
pub(crate) fn key() -> SecretKey {
    SecretKey::from_seed([7; 32])
}

fn party(n: u8) -> PartyId {
    PartyId::from_bytes([n; 32])
}

fn id(n: u8) -> DocumentId {
    DocumentId::from_bytes([n; 32])
}

fn signature(n: u8) -> Signature {
    Signature::from_bytes([n; 64])
}

fn entry(n: u8) -> WireEntry {
    WireEntry { bytes: vec![n, 1, 2], signature: signature(n) }
}

fn final_entry(n: u8, certificate: Option<Vec<u8>>) -> FinalEntry {
    FinalEntry { bytes: vec![n, 3, 4], signature: signature(n), certificate }
}

fn document(n: u8) -> WireDocument {
    WireDocument { bytes: vec![n, 5, 6], signature: signature(n) }
}

/// A peer with two ways to it.
pub(crate) fn peer() -> PeerAddress {
    let text = format!("{}@192.0.2.7:3001,https://relay.example/", "ab".repeat(32));
    text.parse().unwrap()
}

/// An invite to a private mesh.
pub(crate) fn invite() -> Invite {
    let other = PeerAddress { key: PublicKey::from_bytes([9; 32]), via: Vec::new() };
    Invite { mesh: MESH, peers: vec![peer(), other], secret: Some([5; 32]) }
}

/// A price signal of [`key`], signed at `issued_at_ms`.
pub(crate) fn price_signal(issued_at_ms: u64) -> PriceSignal {
    let issued_at = Timestamp::from_ms(issued_at_ms);
    PriceSignal {
        provider: key().public().party(),
        issued_at,
        expires_at: issued_at.plus_ms(45_000),
        price: Ppm::new(1_000_000),
        cached_price: Ppm::new(100_000),
        slots_free: 3,
        slots: 4,
        queue: 0,
        models: vec![offer(1), offer(2)],
        region: "eu-west".to_owned(),
        features: 1,
        addresses: vec!["192.0.2.7:3001".to_owned()],
        http_endpoint: Some("https://node.example/v1".to_owned()),
        serving: true,
    }
}

/// An offer of a small model.
pub(crate) fn offer(n: u8) -> Offer {
    Offer {
        model: ModelDigest::from_bytes([n; 32]),
        name: "smollm2:135m".to_owned(),
        quantisation: "Q4_1".to_owned(),
        context_tokens: 8_192,
        shape: ModelShape {
            parameters_active: 134_515_008,
            layers: 30,
            attention_width: 576,
            context_max: 8_192,
        },
        tokens_per_second_milli: 91_500,
        embedding_width: 0,
        image_tokens_max: 0,
        build: "llama.cpp b6000 cpu".to_owned(),
    }
}

/// A price signal as it travels.
pub(crate) fn announced(signal: PriceSignal) -> WireDocument {
    let signed = Signed::sign(MESH, &key(), signal).unwrap();
    WireDocument { bytes: signed.bytes().to_vec(), signature: signed.signature() }
}

/// Every message of the control stream.
pub(crate) fn control() -> Vec<(&'static str, Message)> {
    let mut all = opening();
    all.extend(witnessing());
    all.extend(syncing());
    all.extend(keeping());
    all
}

fn opening() -> Vec<(&'static str, Message)> {
    let hello = Hello {
        protocol_min: 1,
        protocol: 1,
        features: 5,
        mesh: MESH,
        charter_version: 2,
        admission: Some(admission_proof(&[5; 32], MESH, party(1), party(2))),
        addresses: vec!["192.0.2.7:3001".to_owned()],
        agent: "tirami 0.1.0".to_owned(),
    };
    let newcomer =
        Hello { charter_version: 0, admission: None, addresses: vec![], ..hello.clone() };
    let charters = vec![charter()];
    let your_address = Some("203.0.113.4:40000".to_owned());
    let welcome = Welcome { protocol: 1, features: 1, charters, your_address };
    let reason = "too many connections; come back later".to_owned();
    let goodbye = Goodbye { code: GoodbyeCode::TooMany, reason, retry_after_ms: 60_000 };
    vec![
        ("hello", Message::Hello(hello)),
        ("hello-newcomer", Message::Hello(newcomer)),
        ("welcome", Message::Welcome(welcome)),
        ("goodbye", Message::Goodbye(goodbye)),
        ("want-peers", Message::WantPeers),
        ("peers", Message::Peers(vec![peer()])),
        ("announce", Message::Announce(vec![announced(price_signal(1_700_000_000_000))])),
    ]
}

fn charter() -> WireCharter {
    let approvals = vec![vec![1, 2, 3], vec![4]];
    WireCharter { bytes: vec![8, 8], signature: Some(signature(8)), approvals }
}

fn witnessing() -> Vec<(&'static str, Message)> {
    let refused = Message::EntryRefused {
        entry: id(4),
        code: "slot_taken".to_owned(),
        reason: "another entry has this place".to_owned(),
        retry: false,
    };
    let highest = Message::Highest { chain: party(1), next_seq: 9, entry: Some(entry(8)) };
    let none = Message::Highest { chain: party(1), next_seq: 0, entry: None };
    vec![
        ("entry", Message::Entry(entry(3))),
        ("acknowledgement", Message::Acknowledgement(vec![1, 2, 3])),
        ("entry-refused", refused),
        ("charter-proposal", Message::CharterProposal { bytes: vec![1, 2] }),
        ("charter-approval", Message::CharterApproval { bytes: vec![3, 4] }),
        ("want-highest", Message::WantHighest { chain: party(1) }),
        ("highest", highest),
        ("highest-none", none),
        ("claim", Message::Claim(WireClaim { order: document(1), voucher: document(2) })),
        ("double-sign", Message::DoubleSign { first: entry(1), second: entry(2) }),
        ("want-sponsor", Message::WantSponsor),
        ("sponsor-task", Message::SponsorTask { challenge: Digest::from_bytes([5; 32]), bits: 22 }),
        (
            "sponsor-proof",
            Message::SponsorProof { challenge: Digest::from_bytes([5; 32]), nonce: 1 << 33 },
        ),
        (
            "sponsor-refused",
            Message::SponsorRefused {
                code: "faucet_day".to_owned(),
                reason: "ask again tomorrow".to_owned(),
            },
        ),
    ]
}

fn syncing() -> Vec<(&'static str, Message)> {
    let entries = vec![final_entry(1, None), final_entry(2, Some(vec![7, 7]))];
    let buckets = (0..64).map(|n| Digest::from_bytes([n; 32])).collect();
    let head = Head { chain: party(1), next_seq: 1_000_000, head: id(2) };
    let slots = vec![WireSlot { chain: party(1), seq: 4 }, WireSlot { chain: party(2), seq: 0 }];
    vec![
        ("finals", Message::Finals { chain: party(1), entries, more: true }),
        ("summary", Message::Summary { state: Digest::from_bytes([1; 32]), buckets }),
        ("want-heads", Message::WantHeads { bucket: 12 }),
        ("heads", Message::Heads { bucket: 12, heads: vec![head] }),
        ("want-range", Message::WantRange { chain: party(1), from_seq: 300, max: 256 }),
        ("want-cut", Message::WantCut { checkpoint: id(6) }),
        ("cut", Message::Cut { checkpoint: id(6), slots }),
        ("want-charters", Message::WantCharters { after_version: 1 }),
        ("charters", Message::Charters { charters: vec![charter()] }),
    ]
}

fn keeping() -> Vec<(&'static str, Message)> {
    let heads = vec![
        Head { chain: party(1), next_seq: 3, head: id(2) },
        Head { chain: party(2), next_seq: 0, head: id(0) },
    ];
    let beyond = vec![Head { chain: party(2), next_seq: 9, head: id(4) }];
    let places = vec![WirePlace { entry: id(5), chain: party(3), seq: 12 }];
    let model = ModelDigest::from_bytes([6; 32]);
    let speed = MeasuredSpeed { model, first_token_ms: 210, tokens_per_second_milli: 41_500 };
    let opinion = ProviderOpinion { provider: party(4), failure_ppm: 12_500, speeds: vec![speed] };
    vec![
        ("kept", Message::Kept { number: 7, heads }),
        ("beyond", Message::Beyond { number: 7, heads: beyond }),
        ("want-places", Message::WantPlaces { entries: vec![id(5), id(6)] }),
        ("want-mine", Message::WantMine { after: None }),
        ("want-mine-after", Message::WantMine { after: Some(id(5)) }),
        ("places", Message::Places { places, more: true }),
        ("opinions", Message::Opinions(vec![opinion])),
    ]
}

/// Every frame a consumer sends.
pub(crate) fn to_provider() -> Vec<(&'static str, ToProvider)> {
    let request = JobRequest {
        order: document(1),
        body: br#"{"model":"smollm2:135m"}"#.to_vec(),
        path: "/v1/chat/completions".to_owned(),
        resumed: vec![1, 49_151],
    };
    let plain = JobRequest { resumed: vec![], ..request.clone() };
    vec![
        ("request", ToProvider::Request(request)),
        ("request-plain", ToProvider::Request(plain)),
        ("voucher", ToProvider::Voucher(document(2))),
        ("cancel", ToProvider::Cancel),
    ]
}

/// Every frame a provider sends.
pub(crate) fn to_consumer() -> Vec<(&'static str, ToConsumer)> {
    let accepted =
        ToConsumer::Accepted { prompt_tokens: 40, completion_max: 512, window_tokens: 32 };
    let refused = |retry_after_ms| ToConsumer::Refused {
        code: "exposure".to_owned(),
        message: "the provider waits for earlier jobs to be paid".to_owned(),
        retry_after_ms,
        invalid: None,
        receipt: None,
    };
    let invalid = |param: Option<&str>| ToConsumer::Refused {
        code: "context_length_exceeded".to_owned(),
        message: "the context is shorter".to_owned(),
        retry_after_ms: None,
        invalid: Some(InvalidRequest { param: param.map(str::to_owned) }),
        receipt: None,
    };
    let replayed = ToConsumer::Refused {
        code: "order_replayed".to_owned(),
        message: "the job was ordered before".to_owned(),
        retry_after_ms: None,
        invalid: None,
        receipt: Some(document(4)),
    };
    let text = "hello".to_owned();
    let tokens = |likelihoods| ToConsumer::Tokens {
        tokens: vec![1, 28_120],
        text: text.clone(),
        likelihoods,
    };
    let likely = |bytes: &[u8], logprob: f32| Likely {
        bytes: bytes.to_vec(),
        logprob_bits: logprob.to_bits(),
    };
    let likelihood = Likelihood {
        chosen: likely(b"hello", -0.25),
        top: vec![likely(b"hello", -0.25), likely(&[0xf0, 0x9f], -2.0)],
    };
    let (plain, likelihoods) = (tokens(Vec::new()), tokens(vec![likelihood.clone()]));
    let prompt = |tokens, text: &[u8], likelihoods| ToConsumer::Prompt {
        tokens,
        text: text.to_vec(),
        likelihoods,
    };
    let end = |stop| ToConsumer::End { text: text.clone(), finish: 1, receipt: document(3), stop };
    let failed = |invalid: Option<&str>| ToConsumer::Failed {
        reason: "the engine stopped".to_owned(),
        invalid: invalid.map(str::to_owned),
    };
    vec![
        ("accepted", accepted),
        ("refused", refused(None)),
        ("refused-for-now", refused(Some(1_500))),
        ("refused-invalid", invalid(None)),
        ("refused-invalid-field", invalid(Some("max_tokens"))),
        ("refused-replayed", replayed),
        ("tokens", plain),
        ("tokens-likelihoods", likelihoods),
        ("end", end(None)),
        ("end-stopped", end(Some(2))),
        ("failed", failed(None)),
        ("failed-invalid", failed(Some("format_too_costly"))),
        ("working", ToConsumer::Working { read: 512, place_in_queue: 3 }),
        ("vector", ToConsumer::Vector { numbers: vec![0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf] }),
        ("prompt-text", prompt(2, &[0x68, 0x69, 0xf0], Vec::new())),
        ("prompt-likelihoods", prompt(1, &[], vec![likelihood])),
    ]
}
