//! The bytes of documents and events, which never change: a store written by this build is read by
//! every later one.

use std::fmt::Write as _;

use tirami_core::{
    AgentId, Digest, DocumentId, Flop, JobId, MeshId, ModelDigest, PartyId, Ppm, SecretKey,
    Signature, Signed, Timestamp, Trm,
};
use tirami_ledger::book::{ApprovalId, KeyId, Limits, Scope, ServingPolicy, Target};
use tirami_ledger::command::{Actor, Command, FinishJob};
use tirami_ledger::documents::{Claim, FinishReason, SignedBytes};
use tirami_ledger::event::{
    Before, BookEvent, BreakerCause, DocumentKind, DocumentRecord, Event, HoldOpened, HoldPosted,
    RemoteTerms, ServedAccepted, ServedFinished,
};
use tirami_ledger::refusal::ReceiptRefusal;

use crate::book::world::{TOKEN_IS_ONE_TRM, World, a_job, agent_key};

const AGENT: AgentId = AgentId::from_bytes([1; 32]);
const AT: Timestamp = Timestamp::from_ms(2);
const KEY: KeyId = KeyId::new(3);
const APPROVAL: ApprovalId = ApprovalId::new(4);
const JOB: JobId = JobId::from_bytes([5; 16]);
const AMOUNT: Trm = Trm::from_micro(6);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Compares lines of name and hex with the golden file.
fn golden(found: &[(String, String)], file: &str) {
    let found: String = found.iter().map(|(name, hex)| format!("{name} {hex}\n")).collect();
    assert_eq!(found, file, "the stored form changed; old stores could not be read any more");
}

#[test]
fn documents_keep_their_bytes() {
    let mut world = with_a_job();
    let deliver = Command::Deliver {
        job: JOB,
        completion_tokens: 2,
        stream: Digest::of(b"stream"),
        prompt_tokens: None,
    };
    world.run(&Actor::Node, &deliver).unwrap();
    world.run(&Actor::Node, &finish()).unwrap();
    let documents = world.log.iter().filter_map(|event| match event {
        Event::Document(record) => Some((format!("{:?}", record.kind), hex(&record.bytes))),
        _ => None,
    });
    golden(&documents.collect::<Vec<_>>(), include_str!("../golden/documents.txt"));
}

#[test]
fn events_keep_their_bytes() {
    let named = |event: Event| match &event {
        Event::Book(inner) => (format!("{inner:?}"), event),
        other => (format!("{other:?}"), event),
    };
    let found = kept(one_event_of_each_kind().into_iter().map(named));
    golden(&found, include_str!("../golden/events.txt"));
}

#[test]
fn events_between_nodes_keep_their_bytes() {
    let named = |event| (format!("{event:?}"), Event::Book(event));
    let found = kept(events_between_nodes().into_iter().map(named));
    golden(&found, include_str!("../golden/events_between_nodes.txt"));
}

/// The kind of each event, by the words it is shown with, and its bytes, which have to be read
/// back.
fn kept(events: impl Iterator<Item = (String, Event)>) -> Vec<(String, String)> {
    let kept = |(shown, event): (String, Event)| {
        let bytes = minicbor::to_vec(&event).unwrap();
        assert_eq!(minicbor::decode::<Event>(&bytes).unwrap(), event);
        let end = shown.find([' ', '(']).unwrap_or(shown.len());
        (shown[..end].to_owned(), hex(&bytes))
    };
    events.map(kept).collect()
}

#[test]
fn a_claim_keeps_its_bytes_and_its_id() {
    let claim = Claim { order: signed_bytes(21), voucher: signed_bytes(22) };
    let key = SecretKey::from_seed([1; 32]);
    let signed = Signed::sign(MeshId::from_bytes([3; 32]), &key, claim).unwrap();
    let found = [
        ("body".to_owned(), hex(signed.bytes())),
        ("id".to_owned(), signed.id().to_string()),
        ("signature".to_owned(), signed.signature().to_string()),
    ];
    golden(&found, include_str!("../golden/claim.txt"));
}

fn signed_bytes(byte: u8) -> SignedBytes {
    SignedBytes { bytes: vec![byte, byte], signature: Signature::from_bytes([byte; 64]) }
}

/// A world whose agent `alice` has 100 TRM and an open job.
fn with_a_job() -> World {
    let mut world = World::new();
    world.keys.add_agent(agent_key("alice"));
    let agent = agent_key("alice").public().agent();
    let amount = Trm::from_trm(100).unwrap();
    let start = Command::StartJob(a_job(JOB));
    let caller = Actor::Caller { key: None, agent: Some(agent), scope: Scope::Inference };
    let create = Command::CreateAgent { agent, name: "alice".to_owned() };
    world.run(&Actor::Node, &create).unwrap();
    world.run(&Actor::Node, &Command::FundAgent { agent, amount }).unwrap();
    world.run(&caller, &start).unwrap();
    world
}

fn finish() -> Command {
    Command::FinishJob(FinishJob {
        job: JOB,
        cached_tokens: 1,
        completion_tokens: 4,
        output: Digest::of(b"output"),
        build: "engine 1.0 cpu".to_owned(),
        finish: FinishReason::Stop,
    })
}

fn one_event_of_each_kind() -> Vec<Event> {
    let book = accounts_and_keys().into_iter().chain(control()).chain(jobs());
    let mut events: Vec<Event> = book.map(Event::Book).collect();
    events.push(Event::Document(DocumentRecord {
        id: DocumentId::from_bytes([12; 32]),
        kind: DocumentKind::Voucher,
        job: JOB,
        bytes: vec![21, 22],
        signature: Signature::from_bytes([23; 64]),
    }));
    events
}

fn accounts_and_keys() -> Vec<BookEvent> {
    let (agent, at, key, amount) = (AGENT, AT, KEY, AMOUNT);
    let limits = Limits { request_max: Some(amount), breaker_errors: Some(7), ..Limits::default() };
    vec![
        BookEvent::AgentCreated { agent, name: "n".into(), at },
        BookEvent::AgentFunded { agent, amount, at },
        BookEvent::AgentDefunded { agent, amount, at },
        BookEvent::KeyCreated {
            key,
            secret: Digest::from_bytes([8; 32]),
            label: "l".into(),
            scope: Scope::Economy,
            agent: Some(agent),
            limits,
            expires_at: Some(at),
            at,
            replaces: Some(KeyId::new(9)),
        },
        BookEvent::KeyExpirySet { key, expires_at: at },
        BookEvent::KeyRevoked { key, at },
        BookEvent::LimitsSet { target: Target::Agent(agent), limits },
        BookEvent::PriceSet { price: Ppm::new(10), at: None },
        BookEvent::KillSet { on: true, reason: "r".into(), at },
    ]
}

fn control() -> Vec<BookEvent> {
    let (agent, at, approval, amount) = (AGENT, AT, APPROVAL, AMOUNT);
    vec![
        BookEvent::BreakerOpened { agent, cause: BreakerCause::Spends, until: at },
        BookEvent::BreakerReset { agent },
        BookEvent::ApprovalRequested {
            approval,
            agent,
            key: None,
            request: Digest::from_bytes([11; 32]),
            max_amount: amount,
            at,
            expires_at: at,
        },
        BookEvent::ApprovalDecided { approval, approve: true, at },
        BookEvent::ApprovalClosed { approval },
    ]
}

fn jobs() -> Vec<BookEvent> {
    let (agent, at, key, job, amount) = (AGENT, AT, KEY, JOB, AMOUNT);
    vec![
        BookEvent::HoldOpened(HoldOpened {
            job,
            agent,
            key: Some(key),
            order: DocumentId::from_bytes([12; 32]),
            model: ModelDigest::from_bytes([13; 32]),
            shape: TOKEN_IS_ONE_TRM,
            price: Ppm::ONE,
            prompt_tokens: 14,
            completion_max: 15,
            max_amount: amount,
            claim_by: at,
            at,
            remote: None,
            before: None,
        }),
        BookEvent::VoucherRaised { job, n: 16, amount, tokens: 17, prompt_tokens: None },
        BookEvent::HoldPosted(HoldPosted {
            job,
            agent,
            order: DocumentId::from_bytes([12; 32]),
            receipt: Some(DocumentId::from_bytes([18; 32])),
            model: ModelDigest::from_bytes([13; 32]),
            prompt_tokens: 14,
            completion_tokens: 19,
            flop: Flop::new(20),
            amount,
            finish: FinishReason::Failed,
            at,
            provider: None,
            fee: None,
        }),
        BookEvent::HoldVoided { job, failed: true, at },
        BookEvent::HoldExpired { job, at },
    ]
}

fn events_between_nodes() -> Vec<BookEvent> {
    let (at, job, amount) = (AT, JOB, AMOUNT);
    let provider = PartyId::from_bytes([2; 32]);
    let prompt_tokens = Some(18);
    let mut events = jobs();
    for event in &mut events {
        match event {
            BookEvent::HoldOpened(opened) => {
                let (fee_ppm, request) = (Ppm::new(24), Digest::from_bytes([25; 32]));
                let max_amount = amount;
                opened.remote = Some(RemoteTerms { provider, max_amount, fee_ppm, request });
            }
            BookEvent::HoldPosted(posted) => {
                (posted.provider, posted.fee) = (Some(provider), Some(Trm::from_micro(26)));
            }
            _ => {}
        }
    }
    events.retain(|event| matches!(event, BookEvent::HoldOpened(_) | BookEvent::HoldPosted(_)));
    let opened = events.iter().find_map(|event| match event {
        BookEvent::HoldOpened(opened) => Some(opened.clone()),
        _ => None,
    });
    let opened = opened.unwrap();
    // Stores have them without the request, too.
    let goes_on = [None, Some(Digest::from_bytes([25; 32]))].map(|request| {
        let before = Some(Before { spent: Trm::from_micro(27), max_amount: amount, request });
        BookEvent::HoldOpened(HoldOpened { before, ..opened.clone() })
    });
    events.extend([
        BookEvent::VoucherRaised { job, n: 16, amount, tokens: 17, prompt_tokens },
        BookEvent::PriceSet { price: Ppm::new(10), at: Some(at) },
    ]);
    events.extend(served());
    events.extend(claims_and_policy());
    events.extend(goes_on);
    events
}

fn served() -> Vec<BookEvent> {
    let (at, job, amount) = (AT, JOB, AMOUNT);
    let consumer = PartyId::from_bytes([1; 32]);
    let order = DocumentId::from_bytes([12; 32]);
    vec![
        BookEvent::ServedAccepted(ServedAccepted {
            job,
            consumer,
            order,
            order_bytes: signed_bytes(21),
            model: ModelDigest::from_bytes([13; 32]),
            shape: TOKEN_IS_ONE_TRM,
            price: Ppm::ONE,
            prompt_tokens: 14,
            completion_max: 15,
            max_amount: amount,
            claim_by: at,
            enrolled: true,
            at,
        }),
        BookEvent::VoucherTaken { job, n: 16, amount, tokens: 17, voucher: signed_bytes(22) },
        BookEvent::ServedFinished(ServedFinished {
            job,
            consumer,
            order,
            receipt: Some(DocumentId::from_bytes([18; 32])),
            model: ModelDigest::from_bytes([13; 32]),
            prompt_tokens: 14,
            completion_tokens: 19,
            flop: Flop::new(20),
            amount,
            finish: FinishReason::Length,
            at,
            unsigned: Trm::ZERO,
        }),
        BookEvent::ServedSettled { job, consumer, amount, entry: order },
        BookEvent::ServedLapsed { job, at },
    ]
}

fn claims_and_policy() -> Vec<BookEvent> {
    let (at, job, amount) = (AT, JOB, AMOUNT);
    let (consumer, provider) = (PartyId::from_bytes([1; 32]), PartyId::from_bytes([2; 32]));
    vec![
        BookEvent::ClaimMade { job, at },
        BookEvent::ClaimNoted { consumer, provider, job, amount, claim_by: at, at },
        BookEvent::ClaimOutweighed { consumer, provider, job },
        BookEvent::ReceiptRefused { job, provider, refusal: ReceiptRefusal::Tokens, at },
        BookEvent::ServingSet(ServingPolicy {
            exposure_start: amount,
            exposure_max: amount,
            exposure_unknown_day: amount,
            fresh_ms: 27,
            jobs_max: 28,
            paused: true,
            blocked: [consumer].into(),
            trusted: [provider].into(),
            ..ServingPolicy::default()
        }),
        BookEvent::SettlingFailed { at },
        BookEvent::Refused { party: consumer, code: "order_price".to_owned(), more: 3, at },
        BookEvent::StrangerSponsored { newcomer: consumer, source: 7, amount, at },
    ]
}
