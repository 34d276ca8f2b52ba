//! A node that is asked for more than its kernel can take: the kernel's queue is full, for a moment
//! or again and again, while jobs run at other nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tirami_core::{Digest, JobId, Timestamp};
use tirami_infer::engine::Engine;
use tirami_kernel::Kernel;
use tirami_ledger::command::{Actor, Command};
use tirami_node::handle::{Handle, INPUT_QUEUE_MAX};

use crate::engines::Odd;
use crate::jobs_support::{Mesh, Stream, TestNode, ask, script, words};
use crate::support::{SOON, until};

/// Jobs that need signatures at the same time: one may have been signed for just before.
const JOBS: usize = 4;
/// In turns the queue is full for so long, and has room for so long.
const FULL: Duration = Duration::from_millis(40);
const ROOM: Duration = Duration::from_millis(20);

/// Fills the kernel's queue with words about a job that nobody knows.
fn fill(handle: &Handle) {
    while handle.queued() < INPUT_QUEUE_MAX {
        let command = Command::AbandonJob {
            job: JobId::from_bytes([7; 16]),
            completion_tokens: 0,
            stream: Digest::of(&[]),
            prompt_tokens: None,
            failed: false,
        };
        // It has its place; nobody waits for the answer.
        drop(handle.submit(Actor::Node, command));
    }
}

/// Holds the kernel up until what is given back is dropped.
fn held_up(node: &TestNode) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (holds, held) = mpsc::channel();
    let handle = node.peer.node.handle();
    let wait = move |_: &Kernel, _: Timestamp| {
        holds.send(()).unwrap();
        // Nothing is ever said: the other end is dropped.
        let _ = released.recv();
    };
    node.peer.block_on(async { drop(tokio::spawn(async move { handle.read(wait).await })) });
    held.recv_timeout(SOON).unwrap();
    release
}

#[test]
fn a_full_queue_holds_up_nothing_but_what_waits_for_the_kernel() {
    let mesh = Mesh::of(&[script(400, Duration::from_millis(5))]);
    mesh.generous();
    let user = mesh.user();
    let handle = user.peer.node.handle();
    let mut streams: Vec<Stream> = (0..JOBS).map(|_| Stream::open(user, &ask(400, true))).collect();
    streams.iter_mut().for_each(|stream| stream.until_words(5));
    let release = held_up(user);
    fill(&handle);
    // Meanwhile the tokens come that have to be signed for.
    thread::sleep(Duration::from_millis(500));
    let (says, said) = mpsc::channel();
    user.peer.block_on(async { drop(tokio::spawn(async move { says.send(()) })) });
    let runs = said.recv_timeout(SOON).is_ok();
    drop(release);
    assert!(runs, "the node does nothing else any more");
    for stream in streams {
        assert_eq!(stream.rest().text, words(400));
    }
    until("the queue is empty", SOON, || handle.queued() == 0);
    until("no hold is left", SOON, || user.open_holds() == 0);
}

#[test]
fn an_answer_goes_on_elsewhere_although_the_queue_is_full_most_of_the_time() {
    let (fails, goes_on) = (Odd::new(130, 20), Odd::new(130, 20));
    fails.fail_after.store(60, Ordering::Relaxed);
    let engines: Vec<Arc<dyn Engine>> = vec![fails, goes_on];
    let mesh = Mesh::with(engines);
    mesh.generous();
    let user = mesh.user();
    let party = |n: usize| json!(mesh.provider(n).party().to_string());
    let mut request = ask(200, true);
    request["provider"] = json!({"order": [party(0)]});
    let mut stream = Stream::open(user, &request);
    stream.until_words(5);
    let (handle, is_over) = (user.peer.node.handle(), AtomicBool::new(false));
    let answer = thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            while !is_over.load(Ordering::Relaxed) && begun.elapsed() < SOON {
                let turn = Instant::now();
                while turn.elapsed() < FULL {
                    fill(&handle);
                    thread::yield_now();
                }
                thread::sleep(ROOM);
            }
        });
        let answer = stream.rest();
        is_over.store(true, Ordering::Relaxed);
        answer
    });
    assert_eq!(answer.text, words(130), "{answer:?}");
    let attempts = &answer.info()["route"]["attempts"];
    assert_eq!((&attempts[0]["provider"], &attempts[1]["provider"]), (&party(0), &party(1)));
    until("the queue is empty", SOON, || handle.queued() == 0);
    until("no hold is left", SOON, || user.open_holds() == 0);
}
