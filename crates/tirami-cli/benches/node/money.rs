//! Rates of the pure half: book pairs, whole jobs in the kernel, and entries from strangers.

use std::time::Instant;

use tirami_core::{
    AgentId, Digest, DocumentId, JobId, ModelDigest, ModelShape, PartyId, Ppm, SecretKey, Signed,
    Timestamp, Trm,
};
use tirami_ledger::book::{Admission, Book, End, Ending, Limits, Payer, Target, Terms};
use tirami_ledger::command::{Actor, Command, FinishJob, StartJob};
use tirami_ledger::documents::FinishReason;
use tirami_ledger::event::{BookEvent, Event};
use tirami_ledger::lattice::{
    Certificate, Charter, Enrol, Entry, EntryKind, Lattice, Line, Open, Transfer,
};

use crate::report::{Row, Table, median, percentile};

/// SmolLM2-135M, so that amounts are those of the other rows.
const SHAPE: ModelShape = ModelShape {
    parameters_active: 134_515_008,
    layers: 30,
    attention_width: 576,
    context_max: 2_048,
};
const ROUNDS: usize = 5;

/// A book with one agent that has plenty and generous limits.
pub(crate) fn book() -> (Book, Payer) {
    let agent = AgentId::from_bytes([7; 32]);
    let at = Timestamp::from_ms(1_700_000_000_000);
    let mut book = Book::default();
    book.apply(&BookEvent::AgentCreated { agent, name: "bench".into(), at });
    book.apply(&BookEvent::AgentFunded { agent, amount: Trm::from_micro(1 << 60), at });
    for target in [Target::Agent(agent), Target::Node] {
        book.apply(&BookEvent::LimitsSet { target, limits: generous() });
    }
    (book, Payer { key: None, agent })
}

/// Limits of every kind that are never reached, so that every check is made.
pub(crate) fn generous() -> Limits {
    let max = Some(Trm::MAX);
    Limits {
        request_max: max,
        minute_max: max,
        hour_max: max,
        day_max: max,
        lifetime_max: max,
        approval_above: max,
        breaker_errors: Some(u32::MAX),
        breaker_spends_per_minute: None,
        breaker_open_ms: None,
    }
}

/// Decides a hold and its posting; the events are in order.
pub(crate) fn pair(book: &mut Book, payer: Payer, number: u64) -> [BookEvent; 2] {
    let at = Timestamp::from_ms(1_700_000_000_000 + number / 100);
    let start = start_job(number);
    let terms = Terms { price: Ppm::ONE, provider: None };
    let Ok(Admission::Open(opening)) = book.admit(at, payer, &start, &terms) else {
        unreachable!("the bench's agent has plenty and generous limits")
    };
    let order = DocumentId::from_bytes([3; 32]);
    let opened = book.opened(opening, &start, order).next().expect("a hold");
    book.apply(&opened);
    let finish = finish_job(number);
    let Ok((hold, Ending::Charge(charge))) = book.finish(at, &finish) else {
        unreachable!("the hold was just opened")
    };
    let end = End {
        job: finish.job,
        completion_tokens: finish.completion_tokens,
        receipt: Some(order),
        finish: finish.finish,
    };
    let posted = book.posted(at, hold, charge, &end).next().expect("a charge");
    book.apply(&posted);
    [opened, posted]
}

fn job(number: u64) -> JobId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    JobId::from_bytes(bytes)
}

fn start_job(number: u64) -> StartJob {
    StartJob {
        job: job(number),
        model: ModelDigest::from_bytes([1; 32]),
        shape: SHAPE,
        request: Digest::from_bytes([2; 32]),
        seed: 1,
        prompt_tokens: 40,
        completion_max: 200,
        continues: None,
    }
}

fn finish_job(number: u64) -> FinishJob {
    FinishJob {
        job: job(number),
        cached_tokens: 0,
        completion_tokens: 120,
        output: Digest::from_bytes([4; 32]),
        build: String::new(),
        finish: FinishReason::Stop,
    }
}

/// Hold + post pairs per second in memory, on one core.
pub(crate) fn memory_pairs(table: &mut Table) {
    const PAIRS: u64 = 300_000;
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let (mut book, payer) = book();
        let started = Instant::now();
        for number in 0..PAIRS {
            std::hint::black_box(pair(&mut book, payer, number));
        }
        rates.push(PAIRS as f64 / started.elapsed().as_secs_f64());
    }
    table.push(Row {
        what: "(d) hold + post pairs in memory, one core".into(),
        measured: format!("{:.0} /s", median(&mut rates)),
        limit: "one core".into(),
        ratio: None,
        target: Some(("≥ 300 000 /s", median(&mut rates) >= 300_000.0)),
    });
}

/// Latency of the kernel's decisions while 1 000 jobs are open, signatures included.
pub(crate) fn decision_latency(table: &mut Table) {
    let (mut kernel, agent) = crate::report::bench_kernel();
    let caller = Actor::Caller {
        key: None,
        agent: Some(agent),
        scope: tirami_ledger::book::Scope::Inference,
    };
    let now = Timestamp::from_ms(1_700_000_100_000);
    let mut micros = Vec::new();
    let mut handle = |command: Command, micros: &mut Vec<f64>| {
        let starts = matches!(command, Command::StartJob(_));
        let actor = if starts { caller.clone() } else { Actor::Node };
        let input = crate::report::input(actor, command);
        let started = Instant::now();
        let effects = kernel.handle(now, input);
        micros.push(started.elapsed().as_secs_f64() * 1e6);
        assert!(matches!(effects.reply, Some((_, Ok(_)))), "{:?}", effects.reply);
    };
    let mut warm_up = Vec::new();
    for number in 0..1_000 {
        handle(Command::StartJob(start_job(number)), &mut warm_up);
    }
    for number in 1_000..21_000 {
        handle(Command::StartJob(start_job(number)), &mut micros);
        let stream = Digest::from_bytes([5; 32]);
        let deliver = Command::Deliver {
            job: job(number),
            completion_tokens: 32,
            stream,
            prompt_tokens: None,
        };
        handle(deliver, &mut micros);
        handle(Command::FinishJob(finish_job(number)), &mut micros);
    }
    let (p50, p99) = (percentile(&mut micros, 0.50), percentile(&mut micros, 0.99));
    table.push(Row {
        what: "(b) kernel decision, 1 000 jobs open, one signature each, p50 / p99".into(),
        measured: format!("{p50:.0} / {p99:.0} µs"),
        limit: format!("one Ed25519 signature: {:.0} µs", sign_micros()),
        ratio: None,
        target: Some(("p99 < 1 ms", p99 < 1_000.0)),
    });
}

fn sign_micros() -> f64 {
    const SIGNATURES: u32 = 5_000;
    let key = SecretKey::from_seed([1; 32]);
    let message = [9; 300];
    let started = Instant::now();
    for _ in 0..SIGNATURES {
        std::hint::black_box(key.sign(&message));
    }
    started.elapsed().as_secs_f64() * 1e6 / f64::from(SIGNATURES)
}

/// Entries of a stranger with their certificates, accepted per second, against the signatures
/// they carry verified one by one.
pub(crate) fn foreign_entries(table: &mut Table) {
    const ENTRIES: u64 = 10_000;
    let made = made_elsewhere(ENTRIES);
    let mesh = made.empty.mesh();
    let (mut accepted, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut lattice = made.empty.clone();
        let started = Instant::now();
        for (entry, certificate) in &made.entries {
            let events = lattice
                .receive_certified(entry.bytes(), entry.signature(), certificate)
                .expect("the entry is valid");
            lattice.absorb(events);
        }
        accepted.push(ENTRIES as f64 / started.elapsed().as_secs_f64());
        let known = made.empty.final_count();
        assert_eq!(lattice.final_count(), known + made.entries.len());

        let started = Instant::now();
        for (entry, certificate) in &made.entries {
            let message = tirami_core::signing_message("entry", mesh, entry.bytes());
            made.stranger.verify(&message, &entry.signature()).expect("signed");
            for acknowledgement in &certificate.acknowledgements {
                acknowledgement.verify(mesh).expect("signed");
            }
        }
        bare.push(ENTRIES as f64 / started.elapsed().as_secs_f64());
    }
    let (accepted, bare) = (median(&mut accepted), median(&mut bare));
    table.push(Row {
        what: "(e) foreign entries accepted (own signature + certificate of 1)".into(),
        measured: format!("{accepted:.0} /s"),
        limit: format!("2 strict verifications each: {bare:.0} /s"),
        ratio: Some(accepted / bare),
        target: Some(("≥ 0.7 × one by one", accepted / bare >= 0.7)),
    });
}

struct MadeElsewhere {
    empty: Lattice,
    stranger: tirami_core::PublicKey,
    entries: Vec<(Signed<Entry>, Certificate)>,
}

/// A mesh with one witness, and a member whose chain is `count` transfers long.
fn made_elsewhere(count: u64) -> MadeElsewhere {
    let founder = SecretKey::from_seed([1; 32]);
    let member = SecretKey::from_seed([2; 32]);
    let line = Trm::from_micro(1 << 50);
    let charter = Charter::founder("bench", founder.public(), line);
    let charter = Signed::sign(Charter::founding_mesh(), &founder, charter).expect("signed");
    let empty = Lattice::found(&charter).expect("founded");
    let mut lattice = empty.clone();
    let mut entries = Vec::new();
    let mut add = |key: &SecretKey, kind: EntryKind| {
        let now = Timestamp::from_ms(1_700_000_000_000);
        let draft = lattice.draft(key.public().party(), now, kind).expect("valid");
        let entry = Signed::sign(lattice.mesh(), key, draft).expect("signed");
        let events = lattice.receive_entry(entry.bytes(), entry.signature()).expect("valid");
        lattice.absorb(events);
        let (events, acknowledgement) =
            lattice.acknowledge(now, &founder, entry.id()).expect("acknowledged");
        lattice.absorb(events);
        let certificate = Certificate { acknowledgements: vec![acknowledgement] };
        let id = entry.id();
        entries.push((entry, certificate));
        id
    };
    add(&founder, EntryKind::Open(Open { sponsor: None, enrol: None, recovery: None }));
    let party = member.public().party();
    let enrol = Enrol { party, owner: "member".into(), line };
    let enrol = add(&founder, EntryKind::Enrol(enrol));
    add(&member, EntryKind::Open(Open { sponsor: None, enrol: None, recovery: None }));
    add(&member, EntryKind::Line(Line { enrol }));
    let payee = PartyId::from_bytes(*founder.public().as_bytes());
    for amount in 1..=count {
        let amount = Trm::from_micro(amount % 1_000 + 1);
        add(&member, EntryKind::Transfer(Transfer { payee, amount }));
    }
    // The member's own transfers are what is measured; its beginning is known before.
    let measured = entries.split_off(4);
    let mut empty = empty;
    for (entry, certificate) in &entries {
        let events =
            empty.receive_certified(entry.bytes(), entry.signature(), certificate).expect("valid");
        empty.absorb(events);
    }
    MadeElsewhere { empty, stranger: member.public(), entries: measured }
}

/// The events of `count` pairs, each as a batch of its own, as the store takes them.
pub(crate) fn batches(count: u64) -> Vec<Vec<Event>> {
    let (mut book, payer) = book();
    (0..count)
        .map(|number| pair(&mut book, payer, number).into_iter().map(Event::Book).collect())
        .collect()
}
