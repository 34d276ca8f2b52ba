//! A stranger who knows the mesh's secret and sends whatever it likes, past any node's own code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, unreachable_pub, reason = "test files and a bench share this")]

use std::time::Duration;

use iroh::endpoint::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tirami_core::SecretKey;
use tirami_proto::{GoodbyeCode, Invite, STREAM_CONTROL, STREAM_JOB, encode};
use tokio::time::{Instant, timeout_at};

use crate::raw::{connect, endpoint, first_words, let_in};

/// What one party sends again and again.
#[derive(Debug, Clone)]
pub enum Flood {
    /// This frame, on its control stream.
    Control(Vec<u8>),
    /// On streams of jobs, one after the other and over again: what each begins with, and the
    /// frame that follows.
    Jobs(Vec<Talk>),
}

/// What a stream begins with, and the frame that follows.
pub type Talk = (Vec<u8>, Vec<u8>);

/// Sends `frame` as fast as it is taken, up to 10 000 times each second, until the other side
/// takes no more; gives how many it sent.
async fn repeat(send: &mut SendStream, frame: &[u8], until: Instant) -> u64 {
    let (batch, mut sent) = (frame.repeat(100), 0);
    while Instant::now() < until {
        let paced = tokio::time::sleep(Duration::from_millis(10));
        match timeout_at(until, send.write_all(&batch)).await {
            Ok(Ok(())) => sent += 100,
            _ => break,
        }
        paced.await;
    }
    sent
}

/// What comes back is read, so that nothing but the sender's own haste is at fault.
async fn drain(mut receive: RecvStream) {
    while let Ok(Some(_)) = receive.read_chunk(65_536).await {}
}

async fn on_control(connection: &Connection, first: &[u8], frame: &[u8], until: Instant) -> u64 {
    let Ok((mut send, receive)) = connection.open_bi().await else { return 0 };
    let reading = tokio::spawn(drain(receive));
    if send.write_all(first).await.is_err() {
        return 0;
    }
    let sent = repeat(&mut send, frame, until).await;
    reading.abort();
    sent
}

/// Each stream takes the next of `jobs`.
async fn on_jobs(
    connection: &Connection,
    (key, invite): (&SecretKey, &Invite),
    (jobs, next): (&[Talk], &mut usize),
    until: Instant,
) -> u64 {
    let entering = let_in(connection.clone(), key, invite);
    let Ok(Some(_control)) = timeout_at(until, entering).await else { return 0 };
    let mut sent = 0;
    while let Ok(Ok((mut send, receive))) = timeout_at(until, connection.open_bi()).await {
        let reading = tokio::spawn(drain(receive));
        let (begin, frame) = &jobs[*next % jobs.len()];
        *next += 1;
        let first = [&[STREAM_JOB][..], begin].concat();
        if send.write_all(&first).await.is_ok() {
            sent += repeat(&mut send, frame, until).await;
        }
        reading.abort();
        if Instant::now() >= until {
            break;
        }
    }
    sent
}

/// Floods the node of `invite` with `frame` on the control stream; see [`flooding_with`].
pub async fn flooding(
    key: SecretKey,
    invite: Invite,
    frame: Vec<u8>,
    until: Instant,
) -> (u64, u64, u64) {
    flooding_with(key, invite, Flood::Control(frame), until).await
}

/// Floods the node of `invite` as the party of `key` until `until`, connecting again whenever it is
/// sent away; gives messages, connections, and how many of these ended with a goodbye because it
/// misbehaved.
pub async fn flooding_with(
    key: SecretKey,
    invite: Invite,
    flood: Flood,
    until: Instant,
) -> (u64, u64, u64) {
    let endpoint = endpoint(&key, "127.0.0.1:0").await;
    let [hello, welcome] = first_words(&key, &invite).map(|word| encode(&word));
    let first = [&[STREAM_CONTROL][..], &hello, &welcome].concat();
    let (mut sent, mut connections, mut goodbyes, mut next) = (0, 0, 0, 0);
    while Instant::now() < until {
        if let Some(connection) = connect(&endpoint, &invite).await {
            connections += 1;
            sent += match &flood {
                Flood::Control(frame) => on_control(&connection, &first, frame, until).await,
                Flood::Jobs(jobs) => {
                    let jobs = (jobs.as_slice(), &mut next);
                    on_jobs(&connection, (&key, &invite), jobs, until).await
                }
            };
            goodbyes += u64::from(connection.close_reason().is_some_and(|end| misbehaved(&end)));
            connection.close(0_u32.into(), b"");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    endpoint.close().await;
    (sent, connections, goodbyes)
}

/// Whether the other side ended a connection because this one misbehaved.
fn misbehaved(end: &ConnectionError) -> bool {
    let code = VarInt::from_u32(GoodbyeCode::Misbehaved as u32);
    matches!(end, ConnectionError::ApplicationClosed(close) if close.error_code == code)
}

/// A frame that is no message.
pub fn malformed() -> Vec<u8> {
    let mut frame = 40_u32.to_be_bytes().to_vec();
    frame.extend_from_slice(&[0xff; 40]);
    frame
}

/// A frame of a kind that only a later version knows, with so many bytes in it.
pub fn unknown(bytes: u16) -> Vec<u8> {
    // A list of two: the number 200, and bytes.
    let mut inside = vec![0x82, 0x18, 200, 0x59];
    inside.extend_from_slice(&bytes.to_be_bytes());
    inside.resize(inside.len() + usize::from(bytes), 0);
    let length = u32::try_from(inside.len()).unwrap().to_be_bytes();
    [&length[..], &inside].concat()
}
