//! What peers that are let in may say together, however little each of them says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tirami_core::SecretKey;
use tirami_node::mesh::ALL_FRAMES_PER_SECOND;
use tirami_proto::FRAMES_BURST;
use tokio::task::JoinSet;

use crate::flood::unknown;
use crate::raw::{UNREAD_BYTES, connect, endpoint, let_in};
use crate::support::{Peer, SOON, on_loopback};

/// Peers that together have more to say than the node reads of all at once, while none of them has
/// more to say than it reads of one.
#[test]
fn many_peers_together_are_read_no_faster_than_the_node_reads_all_of_them() {
    const TALKERS: u8 = 24;
    let dir = tempfile::tempdir().unwrap();
    let one = Peer::with_engine(dir.path(), on_loopback(), None);
    let invite = one.node.invite().unwrap();
    let frame = unknown(200);
    let said = Arc::new(frame.repeat(FRAMES_BURST as usize));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let took = runtime.block_on(async {
        let mut members = Vec::new();
        for n in 0..TALKERS {
            let key = SecretKey::from_seed([130 + n; 32]);
            let endpoint = endpoint(&key, "127.0.0.1:0").await;
            let connection = connect(&endpoint, &invite).await.unwrap();
            members.push((endpoint, let_in(connection, &key, &invite).await.unwrap()));
        }
        let (begun, mut talking) = (Instant::now(), JoinSet::new());
        for (endpoint, mut control) in members {
            let said = Arc::clone(&said);
            talking.spawn(async move {
                let is_sent = control.send_raw(&said).await;
                (endpoint, control, is_sent)
            });
        }
        let talked = tokio::time::timeout(SOON, talking.join_all()).await.expect("all is read");
        let took = begun.elapsed();
        assert!(talked.iter().all(|(.., is_sent)| *is_sent), "somebody was sent away");
        took
    });
    let each = FRAMES_BURST as usize - UNREAD_BYTES / frame.len();
    // After a pause as many come at once as in two seconds.
    let steadily = usize::from(TALKERS) * each - 2 * ALL_FRAMES_PER_SECOND as usize;
    let least = Duration::from_millis(1_000 * steadily as u64 / u64::from(ALL_FRAMES_PER_SECOND));
    println!("{} at once were read after {took:?}", usize::from(TALKERS) * FRAMES_BURST as usize);
    assert!(took > least * 9 / 10, "{took:?}, and not {least:?}");
    runtime.shutdown_background();
    one.stop();
}
