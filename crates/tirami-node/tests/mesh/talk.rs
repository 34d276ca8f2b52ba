//! Peers that talk without use on the stream of a job: a consumer to its provider, and a provider
//! to its consumer.

use core::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use iroh::Endpoint;
use iroh::endpoint::SendStream;
use serde_json::json;
use tirami_core::{Ppm, SecretKey};
use tirami_kernel::scheduler::FAILURE_NEUTRAL_PPM;
use tirami_node::mesh::IncomingJob;
use tirami_proto::{Invite, ToConsumer, ToProvider, encode};
use tokio::time::{sleep, timeout};

use crate::blame::failures;
use crate::cheats::offer;
use crate::engines::Odd;
use crate::flood::{malformed, unknown};
use crate::jobs_support::{Mesh, ask, script, words};
use crate::orders::{CHAT, Consumer};
use crate::raw::{self, Answers, Control, connect, endpoint, let_in};
use crate::support::{SOON, until};

/// Frames of one job that its provider reads in a second, and at once after a pause.
const JOB_FRAMES_PER_SECOND: u64 = 4_096;

/// A job on a connection of whoever brought its order, which says on it what it likes.
struct Job {
    _endpoint: Endpoint,
    _control: Control,
    send: SendStream,
    answers: Answers,
}

impl Job {
    /// Brings the order with number `n`, which the provider takes.
    async fn begin(consumer: &Consumer<'_>, invite: &Invite, n: u8) -> Self {
        let key = SecretKey::from_seed([80 + n; 32]);
        let endpoint = endpoint(&key, "127.0.0.1:0").await;
        let connection = connect(&endpoint, invite).await.unwrap();
        let control = let_in(connection.clone(), &key, invite).await.unwrap();
        let (mut send, mut answers) = raw::job(&connection).await.unwrap();
        let order = consumer.sign(consumer.order(n));
        send.write_all(&encode(&consumer.request(CHAT, order))).await.unwrap();
        let first = answers.next().await;
        assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
        Self { _endpoint: endpoint, _control: control, send, answers }
    }

    /// Sends `frame` again and again until the provider has said three times that it lives; gives
    /// how many it took.
    async fn flood(&mut self, frame: &[u8]) -> u64 {
        let (sent, alive, answers) = (Cell::new(0), Cell::new(0), &mut self.answers);
        let send = &mut self.send;
        let flooding = async {
            while alive.get() < 3 {
                send.write_all(frame).await.expect("the job goes on");
                sent.set(sent.get() + 1);
            }
        };
        let reading = async {
            while alive.get() < 3 {
                let said = answers.next().await.expect("the job goes on");
                alive.set(alive.get() + u32::from(matches!(said, ToConsumer::Working { .. })));
            }
        };
        let both = async { tokio::join!(flooding, reading) };
        timeout(SOON, both).await.expect("the provider has time for a word");
        sent.get()
    }
}

#[test]
fn a_running_job_reads_words_of_later_versions_slowly_and_ends_with_what_has_no_place_in_it() {
    let mesh = Mesh::of(&[script(4_000, Duration::ZERO)]);
    mesh.generous();
    let node = mesh.add_user();
    let provider = mesh.provider(0);
    let consumer = Consumer::chatting(&node, provider.party());
    let invite = provider.peer.node.invite().unwrap();
    let again = encode(&consumer.request(CHAT, consumer.sign(consumer.order(9))));
    let rows = [
        ("no message", malformed()),
        ("a request", again),
        ("the word that nothing more is wanted", encode(&ToProvider::Cancel)),
    ];
    for (n, (what, last)) in rows.into_iter().enumerate() {
        let begun = Instant::now();
        let mut job = node.peer.block_on(Job::begin(&consumer, &invite, n as u8 + 1));
        let taken = node.peer.block_on(job.flood(&unknown(1_000)));
        let seconds = begun.elapsed().as_secs() + 1;
        // As many as in a second are taken at the beginning, and less than that waits unread.
        let most = JOB_FRAMES_PER_SECOND * (seconds + 2);
        println!("{taken} frames in {seconds} s");
        assert!(taken <= most, "{taken} frames in {seconds} s");
        assert_eq!(provider.served_running(), 1, "before {what}");
        node.peer.block_on(async {
            job.send.write_all(&last).await.unwrap();
            let ended = async { while job.answers.next().await.is_some() {} };
            timeout(SOON, ended).await.expect(what);
        });
        until("the engine rests", SOON, || provider.running() == 0);
        until("the job has ended", SOON, || provider.served_running() == 0);
    }
}

#[test]
fn a_provider_that_talks_without_a_token_is_left_for_one_that_answers() {
    let mesh = Mesh::of(&[script(5, Duration::ZERO)]);
    let talker = mesh.add_user();
    let party = talker.party();
    let mut incoming = talker.peer.node.incoming_jobs().unwrap();
    offer(&talker, Ppm::ONE);
    until("the offer is known", SOON, || {
        mesh.user().peer.read(move |kernel| kernel.mesh().signal(party).is_some())
    });
    let mut request = ask(9, false);
    request["provider"] = json!({"order": [party.to_string()]});
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| {
            talker.peer.block_on(async {
                let mut job = incoming.recv().await.unwrap();
                let request = job.receive.next().await;
                assert!(matches!(request, Ok(Some(ToProvider::Request(_)))), "{request:?}");
                let (prompt_tokens, completion_max, window_tokens) = (1, 9, 32);
                let taken = ToConsumer::Accepted { prompt_tokens, completion_max, window_tokens };
                job.send.send(&taken).await.unwrap();
                let (tokens, text, likelihoods) = (Vec::new(), String::new(), Vec::new());
                let talk = [
                    ToConsumer::Working { read: 0, place_in_queue: 0 },
                    ToConsumer::Tokens { tokens, text, likelihoods },
                ];
                let mut said = 0_u32;
                for frame in talk.iter().cycle() {
                    if job.send.send(frame).await.is_err() {
                        break;
                    }
                    said += 1;
                }
                said
            })
        });
        let answer = mesh.user().post(&request);
        assert_eq!(answer["choices"][0]["message"]["content"], words(5), "{answer}");
        let attempts = &answer["x_tirami"]["route"]["attempts"];
        assert_eq!(attempts[0]["provider"], party.to_string(), "{attempts}");
        assert_eq!(attempts[0]["completion_tokens"], 0, "{attempts}");
        assert_eq!(attempts[1]["provider"], mesh.provider(0).party().to_string(), "{attempts}");
        assert!(talking.join().unwrap() > 64, "it did not talk all the time");
    });
    until("no hold is left", SOON, || mesh.user().open_holds() == 0);
}

/// Takes a job and says ten times in a second that it moves up in the queue, from place 300 on; it
/// gives the job up when it had it for so long. Gives the place that the job was at in the end.
async fn counts_down(mut job: IncomingJob, within: Duration) -> u32 {
    let request = job.receive.next().await;
    assert!(matches!(request, Ok(Some(ToProvider::Request(_)))), "{request:?}");
    let accepted = ToConsumer::Accepted { prompt_tokens: 1, completion_max: 9, window_tokens: 32 };
    job.send.send(&accepted).await.unwrap();
    let begun = Instant::now();
    for place_in_queue in (1..=300).rev() {
        if begun.elapsed() >= within {
            let failed = ToConsumer::Failed { reason: "told to".to_owned(), invalid: None };
            job.send.send(&failed).await.unwrap();
            while let Ok(Some(_)) = job.receive.next().await {}
            return place_in_queue;
        }
        let waits = ToConsumer::Working { read: 0, place_in_queue };
        if job.send.send(&waits).await.is_err() {
            return place_in_queue;
        }
        sleep(Duration::from_millis(100)).await;
    }
    0
}

#[test]
fn a_queue_that_moves_keeps_no_job_from_a_free_provider_and_giving_it_up_late_is_a_failure() {
    // With a free provider beside it, and with one that is as busy.
    for (is_free, within) in [(true, Duration::MAX), (false, Duration::from_secs(4))] {
        let other = Odd::new(5, 0);
        other.places.store(1, Ordering::Relaxed);
        other.queued.store(u32::from(!is_free), Ordering::Relaxed);
        let mesh = Mesh::with(vec![other]);
        let (user, talker) = (mesh.user(), mesh.add_user());
        let (party, other) = (talker.party(), mesh.provider(0).party());
        let mut incoming = talker.peer.node.incoming_jobs().unwrap();
        offer(&talker, Ppm::ONE);
        until("both offers are known", SOON, || {
            user.peer.read(move |kernel| {
                let signal = |party| kernel.mesh().signal(party);
                let free = signal(other).map(|signal| signal.slots_free > 0);
                signal(party).is_some() && free == Some(is_free)
            })
        });
        let mut request = ask(9, false);
        request["provider"] = json!({"order": [party.to_string()]});
        let place = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                talker
                    .peer
                    .block_on(async { counts_down(incoming.recv().await.unwrap(), within).await })
            });
            let answer = user.post(&request);
            assert_eq!(answer["choices"][0]["message"]["content"], words(5), "{answer}");
            let attempts = &answer["x_tirami"]["route"]["attempts"];
            assert_eq!(attempts[0]["provider"], party.to_string(), "{attempts}");
            assert_eq!(attempts[1]["provider"], other.to_string(), "{attempts}");
            let ended = attempts[0]["ended"].as_str().unwrap();
            let why = if is_free { "of its queue" } else { "told to" };
            assert!(ended.contains(why), "{ended}");
            waiting.join().unwrap()
        });
        assert!(place > 100, "it had the job until place {place}");
        if is_free {
            // A queue is no failure.
            assert_eq!(failures(user, party), FAILURE_NEUTRAL_PPM);
        } else {
            let failed = || failures(user, party) > FAILURE_NEUTRAL_PPM;
            until("it has failed", SOON, failed);
        }
        until("no hold is left", SOON, || user.open_holds() == 0);
    }
}
