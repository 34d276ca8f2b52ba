//! A stranger who knows the mesh's secret and sends whatever it likes, past any node's own code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "test files and a bench share this")]

use std::time::Duration;

use iroh::endpoint::Connection;
use tirami_core::SecretKey;
use tirami_proto::{Invite, Message, STREAM_CONTROL, encode};
use tokio::time::Instant;

use crate::raw::{connect, endpoint, hello};

/// Sends `frame` as fast as it is taken, up to 10 000 times each second, until the other side
/// closes; gives how many it sent.
async fn flood(connection: &Connection, hello: &Message, frame: &[u8], until: Instant) -> u64 {
    let mut sent = 0;
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return 0 };
    // What comes back is read, so that nothing but the sender's own haste is at fault.
    let reading =
        tokio::spawn(async move { while let Ok(Some(_)) = receive.read_chunk(65_536).await {} });
    if send.write_all(&[STREAM_CONTROL]).await.is_err()
        || send.write_all(&encode(hello)).await.is_err()
    {
        return 0;
    }
    let batch = frame.repeat(100);
    while Instant::now() < until {
        let paced = tokio::time::sleep(Duration::from_millis(10));
        match tokio::time::timeout_at(until, send.write_all(&batch)).await {
            Ok(Ok(())) => sent += 100,
            _ => break,
        }
        paced.await;
    }
    reading.abort();
    sent
}

/// Floods the node of `invite` with `frame` as the party of `key` until `until`, connecting again
/// whenever it is sent away; gives messages, connections, and how many of these ended with a
/// goodbye.
pub async fn flooding(
    key: SecretKey,
    invite: Invite,
    frame: Vec<u8>,
    until: Instant,
) -> (u64, u64, u64) {
    let endpoint = endpoint(&key, "127.0.0.1:0").await;
    let hello = Message::Hello(hello(&key, &invite));
    let (mut sent, mut connections, mut goodbyes) = (0, 0, 0);
    while Instant::now() < until {
        if let Some(connection) = connect(&endpoint, &invite).await {
            connections += 1;
            sent += flood(&connection, &hello, &frame, until).await;
            let ended = connection.close_reason().map(|reason| reason.to_string());
            goodbyes += u64::from(ended.is_some_and(|reason| reason.contains("goodbye")));
            connection.close(0_u32.into(), b"");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    endpoint.close().await;
    (sent, connections, goodbyes)
}

/// A frame that is no message.
pub fn malformed() -> Vec<u8> {
    let mut frame = 40_u32.to_be_bytes().to_vec();
    frame.extend_from_slice(&[0xff; 40]);
    frame
}
