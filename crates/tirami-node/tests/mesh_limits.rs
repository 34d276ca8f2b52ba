//! What one node can make another one do: streams of jobs, frames without sense, far too many.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "mesh/flood.rs"]
mod flood;
#[path = "mesh/jobs_support.rs"]
mod jobs_support;
#[path = "mesh/orders.rs"]
mod orders;
#[path = "mesh/raw.rs"]
mod raw;
#[path = "mesh/support.rs"]
mod support;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flood::{Flood, flooding_with, malformed, unknown};
use iroh::Endpoint;
use jobs_support::{TestNode, ask, script};
use orders::{CHAT, Consumer, key_of};
use raw::{Control, UNREAD_BYTES, connect, endpoint, first_words, let_in};
use support::{Peer, SOON, joining, on_loopback, until};
use tirami_core::{DocumentId, PartyId, SecretKey, Signature, bucket_of};
use tirami_infer::fake::FakeEngine;
use tirami_node::mesh::{
    FRAME_BYTES_MIN, REQUEST_BYTES_MAX, REQUEST_BYTES_PER_PEER_MAX, REQUESTS_PER_PEER_MAX,
    SERVED_STREAMS_MAX, STREAMS_PER_PEER_MAX, StreamError,
};
use tirami_proto::{
    FRAMES_BURST, FRAMES_PER_SECOND, FrameError, Head, Invite, JOB_FRAME_BYTES_MAX, JobRequest,
    Message, STREAM_CONTROL, STREAM_JOB, ToConsumer, ToProvider, WireDocument, encode,
};
use tokio::task::JoinSet;

fn request(bytes: usize) -> ToProvider {
    let signature = Signature::from_bytes([0; 64]);
    ToProvider::Request(JobRequest {
        order: WireDocument { bytes: vec![1; 100], signature },
        body: vec![7; bytes],
        path: "/v1/chat/completions".to_owned(),
        resumed: Vec::new(),
    })
}

#[test]
fn a_job_has_a_stream_of_its_own_and_its_frames_have_a_limit() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::with_engine(dirs[0].path(), on_loopback(), None);
    let two = Peer::start(dirs[1].path(), joining(one.node.invite().unwrap()));
    until("they are connected", SOON, || one.sees(&two) && two.sees(&one));
    let (streams, mut incoming) =
        (two.node.job_streams().unwrap(), one.node.incoming_jobs().unwrap());
    assert!(one.node.incoming_jobs().is_none());
    two.block_on(async {
        let mut consumer = streams.open(one.party()).await.unwrap();
        let sending = request(6 << 20);
        let (sent, provider) = tokio::join!(consumer.send.send(&sending), async {
            let mut provider = incoming.recv().await.unwrap();
            assert_eq!(provider.peer, two.party());
            let received = provider.receive.next().await.unwrap();
            assert_eq!(received.as_ref(), Some(&sending));
            provider
        });
        sent.unwrap();
        let mut provider = provider;
        let tokens =
            ToConsumer::Tokens { tokens: vec![1, 2], text: "ab".into(), likelihoods: Vec::new() };
        provider.send.send(&tokens).await.unwrap();
        assert_eq!(consumer.receive.next().await, Ok(Some(tokens)));
        provider.send.finish();
        assert_eq!(consumer.receive.next().await, Ok(None));

        // Larger than any frame: refused by its length, before it is there.
        let mut consumer = streams.open(one.party()).await.unwrap();
        let sending = request(JOB_FRAME_BYTES_MAX + 1);
        let mut provider = None;
        tokio::select! {
            _ = consumer.send.send(&sending) => {}
            () = async {
                let mut job = incoming.recv().await.unwrap();
                let refused = job.receive.next().await;
                let too_large = matches!(
                    refused,
                    Err(StreamError::Frame(FrameError::TooLarge { .. }))
                );
                assert!(too_large, "{refused:?}");
                provider = Some(job);
            } => {}
        }
        assert!(provider.is_some());
    });
    two.stop();
    one.stop();
}

/// Two connected nodes, their folders, and the invite of the first.
fn pair() -> ([tempfile::TempDir; 2], [Peer; 2], Invite) {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = Peer::start(dirs[0].path(), on_loopback());
    let invite = one.node.invite().unwrap();
    let two = Peer::start(dirs[1].path(), joining(invite.clone()));
    until("they are connected", SOON, || one.sees(&two) && two.sees(&one));
    (dirs, [one, two], invite)
}

/// A member that opens many streams, announces a long request on each and keeps back its last byte.
#[test]
fn requests_that_never_end_take_their_senders_room_and_nobody_elses() {
    let (_dirs, [one, two], invite) = pair();
    let before = resident_mib();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let whole = Arc::new(AtomicUsize::new(0));
    let (held, told) = std::sync::mpsc::channel();
    let attack = runtime.spawn(withhold(invite, Arc::clone(&whole), held));
    // As many as have room arrive; the others do not get beyond their streams.
    for _ in 0..2 {
        told.recv_timeout(SOON).unwrap();
    }
    let streams = two.node.job_streams().unwrap();
    let refused = two.block_on(async {
        let mut consumer = streams.open(one.party()).await.unwrap();
        consumer.send.send(&request(1 << 20)).await.unwrap();
        consumer.receive.next().await.unwrap()
    });
    assert!(matches!(refused, Some(ToConsumer::Refused { .. })), "{refused:?}");
    let whole = whole.load(Ordering::Relaxed);
    assert!(whole * LONG_BYTES <= REQUEST_BYTES_PER_PEER_MAX, "{whole} requests");
    let grown = resident_mib().saturating_sub(before);
    println!("memory grew by {grown} MiB");
    attack.abort();
    runtime.shutdown_background();
    two.stop();
    one.stop();
}

/// Members that announce more long requests than there is room for, and one that announces short
/// ones; next to nothing of any of them comes.
#[test]
fn requests_that_are_announced_and_withheld_take_nobodys_room_and_are_their_senders_fault() {
    let (_dirs, [one, two], invite) = pair();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let begun = |bytes| {
        let mut begun = vec![STREAM_JOB];
        begun.extend_from_slice(&encode(&request(bytes))[..100]);
        begun
    };
    let (long, short) = (begun(JOB_FRAME_BYTES_MAX - FRAME_BYTES_MIN), begun(1_000));
    let per_peer = REQUEST_BYTES_PER_PEER_MAX / JOB_FRAME_BYTES_MAX;
    let peers = REQUEST_BYTES_MAX / REQUEST_BYTES_PER_PEER_MAX + 1;
    let (withheld, sly) = runtime.block_on(async {
        let (mut members, mut streams) = (Vec::new(), Vec::new());
        for n in 0..=peers {
            let key = SecretKey::from_seed([100 + n as u8; 32]);
            members.push(member(&key, &invite).await);
        }
        let sly = members.pop().unwrap();
        let long = members.iter().flat_map(|one| vec![(one, &long); per_peer]);
        let short = [(&sly, &short); REQUESTS_PER_PEER_MAX];
        for ((_, control), begun) in long.chain(short) {
            let (mut send, receive) = control.connection.open_bi().await.unwrap();
            send.write_all(begun).await.unwrap();
            streams.push((send, receive));
        }
        ((members, streams), sly)
    });
    // Time for what was announced to arrive.
    std::thread::sleep(Duration::from_millis(500));
    let streams = two.node.job_streams().unwrap();
    let answer = two.block_on(async {
        let asking = async {
            let mut consumer = streams.open(one.party()).await.unwrap();
            consumer.send.send(&request(1 << 20)).await.unwrap();
            consumer.receive.next().await.unwrap()
        };
        // Sooner than what is withheld is given up.
        tokio::time::timeout(Duration::from_secs(8), asking).await.expect("there is room")
    });
    let Some(ToConsumer::Refused { code, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!(code, "order_malformed", "its order was looked at");
    let reason = runtime.block_on(async {
        tokio::time::timeout(SOON, sly.1.connection.closed()).await.expect("it is sent away")
    });
    assert!(reason.to_string().contains("goodbye"), "{reason}");
    drop(withheld);
    runtime.shutdown_background();
    two.stop();
    one.stop();
}

/// A consumer that sends what is no message on the streams of its jobs while they run.
#[test]
fn what_is_no_message_on_the_stream_of_a_job_that_runs_ends_its_senders_connection() {
    let engine = FakeEngine::new(script(4_000, Duration::ZERO));
    let one = TestNode::start(on_loopback(), Some(Arc::new(engine)));
    one.generous();
    let invite = one.peer.node.invite().unwrap();
    let payer = TestNode::start(joining(invite.clone()), None);
    until("the payer has a line", SOON, || {
        payer.peer.is_member() && !one.peer.line_of(payer.party()).is_zero()
    });
    let body = serde_json::to_vec(&ask(3_000, false)).unwrap();
    let consumer = Consumer::new(&payer, one.party(), body);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reason = runtime.block_on(async {
        let (_endpoint, control) = member(&SecretKey::from_seed([63; 32]), &invite).await;
        for n in 1..=8 {
            let Some((mut send, mut answers)) = raw::job(&control.connection).await else { break };
            let order = consumer.sign(consumer.order(n));
            if send.write_all(&encode(&consumer.request(CHAT, order))).await.is_err() {
                break;
            }
            match answers.next().await {
                Some(ToConsumer::Accepted { .. }) => {}
                None => break,
                other => panic!("{other:?}"),
            }
            // The other side may have ended it.
            drop(send.write_all(&malformed()).await);
            while answers.next().await.is_some() {}
        }
        tokio::time::timeout(SOON, control.connection.closed()).await.expect("it is sent away")
    });
    assert!(reason.to_string().contains("goodbye"), "{reason}");
    until("nothing runs", SOON, || one.served_running() == 0);
    runtime.shutdown_background();
}

/// Members that open all the streams they may, more than are served at once, and say nothing.
#[test]
fn silent_streams_take_nobodys_place() {
    let (_dirs, [one, two], invite) = pair();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let silent = runtime.block_on(async {
        let (mut members, mut silent) = (Vec::new(), Vec::new());
        for n in 0..5 {
            let (endpoint, control) = member(&SecretKey::from_seed([70 + n; 32]), &invite).await;
            for _ in 1..STREAMS_PER_PEER_MAX {
                let (mut send, receive) = control.connection.open_bi().await.unwrap();
                send.write_all(&[STREAM_JOB]).await.unwrap();
                silent.push((send, receive));
            }
            members.push((endpoint, control));
        }
        (members, silent)
    });
    assert!(silent.1.len() > SERVED_STREAMS_MAX, "{}", silent.1.len());
    let streams = two.node.job_streams().unwrap();
    let answer = two.block_on(async {
        let mut consumer = streams.open(one.party()).await.unwrap();
        consumer.send.send(&request(100)).await.unwrap();
        consumer.receive.next().await.unwrap()
    });
    let Some(ToConsumer::Refused { code, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!(code, "order_malformed", "its order was looked at");
    drop(silent);
    runtime.shutdown_background();
    two.stop();
    one.stop();
}

/// Members that send on the streams of jobs what is no request, or orders that are none.
#[test]
fn what_is_no_order_on_the_stream_of_a_job_ends_its_senders_connection() {
    let dir = tempfile::tempdir().unwrap();
    let one = Peer::start(dir.path(), on_loopback());
    let invite = one.node.invite().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let voucher = WireDocument { bytes: vec![1; 100], signature: Signature::from_bytes([0; 64]) };
    let frames = [
        encode(&request(100)),
        malformed(),
        encode(&ToProvider::Cancel),
        encode(&ToProvider::Voucher(voucher)),
        // A word of a later version is none, and excuses nothing.
        [unknown(10), malformed()].concat(),
    ];
    for (n, frame) in frames.into_iter().enumerate() {
        let key = SecretKey::from_seed([90 + n as u8; 32]);
        let reason = runtime.block_on(async {
            let (_endpoint, control) = member(&key, &invite).await;
            let sending = async {
                while let Ok((mut send, mut receive)) = control.connection.open_bi().await {
                    let sent = [&[STREAM_JOB][..], &frame].concat();
                    // The other side may end the stream before it has read all of it.
                    drop(send.write_all(&sent).await);
                    drop(receive.read_to_end(1 << 20).await);
                }
            };
            tokio::time::timeout(SOON, sending).await.expect("the connection ends");
            control.connection.closed().await.to_string()
        });
        assert!(reason.contains("goodbye"), "frame {n}: {reason}");
        let party = key.public().party().to_string();
        until("the owner reads that it misbehaved", SOON, || {
            let peers = one.block_on(async { one.client().peers().await.unwrap() });
            peers.farewells.iter().any(|gone| gone.node_id == party && gone.code == "misbehaved")
        });
    }
    runtime.shutdown_background();
    one.stop();
}

/// A member that sends words of later versions where its requests are awaited: they are no fault,
/// and cost the node little.
#[test]
fn words_of_later_versions_before_a_request_are_read_up_to_a_bound_and_their_streams_end() {
    let (_dirs, [one, two], invite) = pair();
    let before = resident_mib();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (frame, sent) = (unknown(1_000), Arc::new(AtomicUsize::new(0)));
    let (_endpoint, control) =
        runtime.block_on(async { member(&SecretKey::from_seed([62; 32]), &invite).await });
    let mut streams = JoinSet::new();
    for _ in 0..REQUESTS_PER_PEER_MAX {
        let (connection, frame) = (control.connection.clone(), frame.clone());
        let sent = Arc::clone(&sent);
        let flood = async move {
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            send.write_all(&[STREAM_JOB]).await.unwrap();
            while send.write_all(&frame).await.is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        };
        streams.spawn_on(flood, runtime.handle());
    }
    // So many are read of one peer, whatever their size; less than that waits in its streams.
    let read_max = REQUEST_BYTES_PER_PEER_MAX / FRAME_BYTES_MIN;
    until("they are read", SOON, || sent.load(Ordering::Relaxed) >= read_max);
    let jobs = two.node.job_streams().unwrap();
    let refused = two.block_on(async {
        let mut consumer = jobs.open(one.party()).await.unwrap();
        consumer.send.send(&request(100)).await.unwrap();
        consumer.receive.next().await.unwrap()
    });
    let Some(ToConsumer::Refused { code, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(code, "order_malformed", "its order was looked at");
    let ended = async { tokio::time::timeout(SOON, streams.join_all()).await };
    runtime.block_on(ended).expect("all streams end");
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent <= 2 * read_max, "{sent} of {read_max} frames");
    assert!(control.connection.close_reason().is_none(), "later versions are welcome");
    let grown = resident_mib().saturating_sub(before);
    println!("{sent} frames were taken, memory grew by {grown} MiB");
    assert!(grown < 100, "{grown} MiB");
    runtime.shutdown_background();
    two.stop();
    one.stop();
}

const LONG_BYTES: usize = 6 << 20;

/// Joins as a peer that is let in.
async fn member(key: &SecretKey, invite: &Invite) -> (Endpoint, Control) {
    let endpoint = endpoint(key, "127.0.0.1:0").await;
    let connection = connect(&endpoint, invite).await.unwrap();
    let control = let_in(connection, key, invite).await.unwrap();
    (endpoint, control)
}

/// Sends all but the last byte of long requests on many streams; counts those that went out.
async fn withhold(invite: Invite, whole: Arc<AtomicUsize>, held: std::sync::mpsc::Sender<()>) {
    let (_endpoint, control) = member(&SecretKey::from_seed([61; 32]), &invite).await;
    let frame = Arc::new(encode(&request(LONG_BYTES)));
    let mut streams = JoinSet::new();
    for _ in 0..24 {
        let (mut send, receive) = control.connection.open_bi().await.unwrap();
        let (frame, whole, held) = (Arc::clone(&frame), Arc::clone(&whole), held.clone());
        streams.spawn(async move {
            let _open = receive;
            let long = &frame[..frame.len() - 1];
            if send.write_all(&[STREAM_JOB]).await.is_ok() && send.write_all(long).await.is_ok() {
                whole.fetch_add(1, Ordering::Relaxed);
                let _ = held.send(());
            }
            core::future::pending::<()>().await;
        });
    }
    streams.join_all().await;
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() / 1_024
}

/// What a flood that nothing holds up sends at least, on a machine that is busy with much else.
const FLOOD_MIN: u64 = 2_000;
/// What one sends at least that is cut off as soon as it is read.
const CUT_OFF_MIN: u64 = 100;
/// How long each of them lasts.
const FLOOD_LASTS: Duration = Duration::from_secs(8);
/// How much longer than twice as long as before another peer may wait beside a flood.
const WAIT_MORE: Duration = Duration::from_millis(50);
/// The same for the answers that come last of a hundred: a machine of two cores on which other
/// tests run stands still now and then, for seconds at worst.
const LATE_MORE: Duration = Duration::from_secs(5);
/// Answers that are waited for before the floods.
const CALM_ANSWERS: usize = 200;

/// What is sent again and again at the same time as others.
struct Row {
    what: &'static str,
    /// What each party sends.
    floods: Vec<Flood>,
    sent_min: u64,
    /// Whether they are sent away for it.
    offends: bool,
}

/// What a node takes at most of such frames while a flood lasts: on each connection as many as may
/// come at once, and what it leaves unread.
fn taken_max(frame: &[u8], connections: u64) -> u64 {
    let unread = (UNREAD_BYTES / frame.len()) as u64;
    let steadily = u64::from(FRAMES_PER_SECOND) * (FLOOD_LASTS.as_secs() + 1);
    connections * (u64::from(FRAMES_BURST) + unread) + steadily
}

fn on_control_streams() -> Vec<Row> {
    let row = |what, frame, offends| {
        let floods = vec![Flood::Control(frame)];
        Row { what, floods, sent_min: FLOOD_MIN, offends }
    };
    vec![
        row("frames that are no messages", malformed(), true),
        row("questions for peers", encode(&Message::WantPeers), false),
        row("questions for heads", encode(&Message::WantHeads { bucket: 3 }), false),
        row("words of later versions", unknown(1_000), false),
    ]
}

/// What stands on the streams of jobs of `payer`, or of nobody.
fn on_streams_of_jobs(payer: &TestNode, provider: PartyId) -> Vec<Row> {
    let consumer = |key| {
        let body = serde_json::to_vec(&ask(3_000, false)).unwrap();
        Consumer { node: payer, key, provider, body }
    };
    let (payer, forger) = (consumer(key_of(payer)), consumer(SecretKey::from_seed([9; 32])));
    let forged = |numbers: Range<u8>| {
        let jobs = numbers.map(|n| {
            let order = payer.sign(payer.order(n));
            let voucher = forger.voucher(&order, 1, &[0]);
            (encode(&payer.request(CHAT, order)), encode(&voucher))
        });
        Flood::Jobs(jobs.collect())
    };
    let alone = |frame| Flood::Jobs(vec![(Vec::new(), frame)]);
    vec![
        Row {
            what: "frames that are no messages, on streams of jobs",
            floods: vec![alone(malformed()), alone(malformed())],
            sent_min: CUT_OFF_MIN,
            offends: true,
        },
        Row {
            what: "words of later versions in place of requests",
            floods: vec![alone(unknown(1_000))],
            sent_min: FLOOD_MIN,
            offends: false,
        },
        Row {
            what: "vouchers that somebody else signed",
            floods: vec![forged(1..100), forged(100..200)],
            sent_min: CUT_OFF_MIN,
            offends: true,
        },
    ]
}

#[test]
fn ten_thousand_messages_a_second_leave_memory_bounded_and_the_owner_served() {
    // Longer than any window, for those whose jobs wait for vouchers.
    let engine = FakeEngine::new(script(4_000, Duration::ZERO));
    let one = TestNode::start(on_loopback(), Some(Arc::new(engine)));
    one.generous();
    let invite = one.peer.node.invite().unwrap();
    let (two, request) = (TestNode::start(joining(invite.clone()), None), ask(5, false));
    let payer = TestNode::start(joining(invite.clone()), None);
    until("another peer is answered", SOON, || two.raw(&request).0 == 200);
    until("the payer has a line", SOON, || {
        payer.peer.is_member() && !one.peer.line_of(payer.party()).is_zero()
    });
    let wait = || {
        let asked = Instant::now();
        two.post(&request);
        asked.elapsed()
    };
    let calm = middle_and_late((0..CALM_ANSWERS).map(|_| wait()).collect());
    let before = resident_mib();

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/health", one.url);
    let mut parties = 40;
    let rows: [&dyn Fn() -> Vec<Row>; 2] =
        [&on_control_streams, &|| on_streams_of_jobs(&payer, one.party())];
    for rows in rows {
        let rows = rows();
        let until = Instant::now() + FLOOD_LASTS;
        let mut begin = |flood: &Flood| {
            parties += 1;
            let key = SecretKey::from_seed([parties; 32]);
            runtime.spawn(flooding_with(key, invite.clone(), flood.clone(), until.into()))
        };
        let floods: Vec<Vec<_>> =
            rows.iter().map(|row| row.floods.iter().map(&mut begin).collect()).collect();
        let (mut slowest, mut loud) = (Duration::ZERO, Vec::new());
        while Instant::now() < until {
            let asked = Instant::now();
            let health = http.get(&url).timeout(Duration::from_secs(5));
            let answer = runtime.block_on(async { health.send().await }).unwrap();
            assert!(answer.status().is_success(), "{}", answer.status());
            slowest = slowest.max(asked.elapsed());
            loud.push(wait());
            std::thread::sleep(Duration::from_millis(10));
        }
        for (row, flood) in rows.iter().zip(floods) {
            let ended = flood.into_iter().map(|party| runtime.block_on(party).unwrap());
            let (sent, connections, goodbyes) = ended
                .reduce(|one, other| (one.0 + other.0, one.1 + other.1, one.2 + other.2))
                .unwrap();
            let what = row.what;
            println!("{what}: {sent} in {connections} connections, {goodbyes} with a goodbye");
            assert!(connections > 0 && sent >= row.sent_min, "{what}: {sent} in {connections}");
            assert_eq!(goodbyes > 0, row.offends, "{what}: {goodbyes} were sent away");
            if let [Flood::Control(frame)] = row.floods.as_slice() {
                let most = taken_max(frame, connections);
                assert!(sent <= most, "{what}: {sent} of at most {most} in {connections}");
            }
        }
        println!("{} answers of each kind, the owner's slowest after {slowest:?}", loud.len());
        assert!(loud.len() > 20);
        let loud = middle_and_late(loud);
        println!("another peer's answers, middle and late: {calm:?}, flooded {loud:?}");
        assert!(loud.0 <= 2 * calm.0 + WAIT_MORE, "{calm:?}, flooded {loud:?}");
        assert!(loud.1 <= 2 * calm.1 + LATE_MORE, "{calm:?}, flooded {loud:?}");
    }
    let metrics = one.text("/metrics");
    let refused = "tirami_peer_refusals_total{code=\"voucher_bad_signature\"}";
    assert!(metrics.contains(refused), "no voucher was looked at: {metrics}");
    let grown = resident_mib().saturating_sub(before);
    println!("memory grew by {grown} MiB");
    assert!(grown < 100, "{grown} MiB");
}

/// The median and the 99th percentile.
fn middle_and_late(mut waits: Vec<Duration>) -> (Duration, Duration) {
    waits.sort_unstable();
    (waits[waits.len() / 2], waits[waits.len() * 99 / 100])
}

/// Joins as a peer that knows of five entries of its own chain and gives none of them.
async fn tell_of_what_is_missing(invite: &Invite) {
    let key = SecretKey::from_seed([60; 32]);
    let (endpoint, chain) = (endpoint(&key, "127.0.0.1:0").await, key.public().party());
    let connection = connect(&endpoint, invite).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let [hello, welcome] = first_words(&key, invite).map(|word| encode(&word));
    send.write_all(&[&[STREAM_CONTROL][..], &hello, &welcome].concat()).await.unwrap();
    let reading =
        tokio::spawn(async move { while let Ok(Some(_)) = receive.read_chunk(65_536).await {} });
    let head = Head { chain, next_seq: 5, head: DocumentId::from_bytes([5; 32]) };
    let heads = encode(&Message::Heads { bucket: bucket_of(chain), heads: vec![head] });
    while send.write_all(&heads).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    reading.abort();
}

#[test]
fn a_node_that_knows_of_entries_it_lacks_says_for_how_long() {
    let dir = tempfile::tempdir().unwrap();
    let one = Peer::start(dir.path(), on_loopback());
    let token = std::fs::read_to_string(dir.path().join("api_token")).unwrap();
    let url = format!("http://{}", one.node.api);
    let client = tirami_sdk::Client::new(&url, Some(token.trim())).unwrap();
    let seconds = |metrics: String| {
        let line = metrics.lines().find(|line| line.starts_with("tirami_convergence_lag_seconds "));
        line.and_then(|line| line.split_once(' ')?.1.parse::<f64>().ok()).unwrap()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert_eq!(client.network().await.unwrap().lag_ms, 0);
        let invite = one.node.invite().unwrap();
        let told = tokio::spawn(async move { tell_of_what_is_missing(&invite).await });
        let until = Instant::now() + SOON;
        loop {
            let network = client.network().await.unwrap();
            let lag_s = seconds(client.metrics().await.unwrap());
            if network.lag_ms > 1_000 && lag_s > 1.0 {
                assert_eq!(network.entries_behind, 5);
                break;
            }
            assert!(Instant::now() < until, "{network:?} {lag_s}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        told.abort();
        while client.network().await.unwrap().lag_ms > 0 {
            assert!(Instant::now() < until, "nobody is ahead any more");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(seconds(client.metrics().await.unwrap()) == 0.0);
    });
    one.stop();
}
