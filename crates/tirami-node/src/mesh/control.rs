//! One connection, from its control stream to its end: what comes goes to the kernel, what the
//! kernel sends goes out, and who does not keep to the limits is waited for or sent away.

use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream};
use tirami_core::PartyId;
use tirami_kernel::mesh::{PeerEvent, Serve, Standing};
use tirami_proto::{
    BYTES_PER_SECOND, CONTROL_FRAME_BYTES_MAX, FrameError, Goodbye, GoodbyeCode, Message,
    PeerLimits, STREAM_CONTROL, TokenBucket, encode,
};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::doors::Source;
use super::endpoint::{party_of, source_of, way_of};
use super::frames::{FrameReceiver, FrameSender, Gate, StreamError};
use super::peers::{Close, Ends, Parcel, Queue};
use super::{Shared, jobs};
use crate::clock::now;
use crate::handle::SubmitError;

/// How long the other side may take to open its control stream.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long the last frame may take to arrive.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);
/// How long one frame may take to go out.
const WRITE_WITHIN: Duration = Duration::from_secs(20);
/// How long to wait for the end of a connection whose control stream has ended.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Frames that all peers together may send each second; beyond that each waits a little.
pub const ALL_FRAMES_PER_SECOND: u32 = 16_000;
/// Bytes that all peers together may send each second; beyond that each waits a little. That is
/// four peers at their limit, and all that a line of 1 Gbit/s brings: so only a flood on a faster
/// line is held back, and many senders take no more of the node's time than a few.
const ALL_BYTES_PER_SECOND: u32 = 4 * BYTES_PER_SECOND;

/// Runs a connection until it ends. `false` when it never got as far as the kernel.
pub(super) async fn run(mesh: Arc<Shared>, connection: Connection, outgoing: bool) -> bool {
    let peer = party_of(&connection);
    let standing = match mesh.handle.read(move |kernel, now| kernel.standing(peer, now)).await {
        Ok(Standing::Refused(_)) => {
            Close::Goodbye(GoodbyeCode::Misbehaved).now(&connection);
            return false;
        }
        Ok(standing) => standing,
        // Whoever has no answer for its owner has none for others.
        Err(_) => {
            Close::Goodbye(GoodbyeCode::TooMany).now(&connection);
            return false;
        }
    };
    let opened = timeout(OPEN_WITHIN, open(&connection, outgoing)).await;
    let Ok(Some((send, receive))) = opened else {
        Close::Form.now(&connection);
        return false;
    };
    let source = source_of(&connection);
    let mut ends = match mesh.peers.enter((peer, standing, source), &connection, outgoing) {
        Ok(ends) => ends,
        Err(close) => {
            close.now(&connection);
            // Where another connection stays, dialling was not in vain.
            return close == Close::Replaced;
        }
    };
    if let Some(before) = ends.before.take() {
        before.cancelled().await;
    }
    let is_member = standing >= Standing::Member;
    let link = Running { mesh, connection, peer, number: ends.number, source, is_member };
    link.run(ends, outgoing, send, receive).await;
    true
}

/// The control stream: whoever dialled opens it.
async fn open(connection: &Connection, outgoing: bool) -> Option<(SendStream, RecvStream)> {
    if outgoing {
        let (mut send, receive) = connection.open_bi().await.ok()?;
        // Until a byte is written the other side does not hear of the stream.
        send.write_all(&[STREAM_CONTROL]).await.ok()?;
        return Some((send, receive));
    }
    let (send, mut receive) = connection.accept_bi().await.ok()?;
    let mut kind = [0];
    receive.read_exact(&mut kind).await.ok()?;
    (kind == [STREAM_CONTROL]).then_some((send, receive))
}

struct Running {
    mesh: Arc<Shared>,
    connection: Connection,
    peer: PartyId,
    number: u64,
    source: Source,
    is_member: bool,
}

impl Running {
    async fn run(self, ends: Ends, outgoing: bool, send: SendStream, receive: RecvStream) {
        let Ends { parcels, queue, serves, accepted, ended, .. } = ends;
        let address = way_of(&self.connection).map(|way| way.to_string());
        let connected = PeerEvent::Connected { outgoing, address };
        if self.tell(connected).await.is_ok() {
            let mut tasks = JoinSet::new();
            let control = FrameSender::new(send);
            tasks.spawn(write(self.connection.clone(), control, parcels));
            let serving = serve(Arc::clone(&self.mesh), queue, serves);
            tasks.spawn(serving);
            let connection = self.connection.clone();
            let incoming = self.mesh.incoming.clone();
            tasks.spawn(jobs::accept(self.peer, connection, incoming, accepted));
            let control = FrameReceiver::new(receive, CONTROL_FRAME_BYTES_MAX);
            let closed = self.connection.closed();
            tokio::select! {
                () = self.read(control) => {}
                _ = closed => {}
            }
            // What was said last still goes out.
            if timeout(CLOSE_WITHIN, self.connection.closed()).await.is_err() {
                Close::Form.now(&self.connection);
            }
        } else {
            Close::Goodbye(GoodbyeCode::Stopping).now(&self.connection);
        }
        self.mesh.peers.leave(self.peer, self.number);
        // After the kernel's end nobody needs to hear of this one.
        drop(self.tell(PeerEvent::Disconnected).await);
        ended.cancel();
    }

    async fn tell(&self, event: PeerEvent) -> Result<(), SubmitError> {
        self.mesh.handle.peer_input(self.peer, self.number, event).await
    }

    /// Reads until the stream ends or the peer has to go.
    async fn read(&self, mut control: FrameReceiver<Message>) {
        let mut gate = Limits::new(self.mesh.together.clone());
        loop {
            match control.next_through(&mut gate).await {
                Ok(Some(message)) => {
                    self.mesh.overhear(self.peer, &message, (self.source, self.is_member));
                    if self.tell(PeerEvent::Message(Box::new(message))).await.is_err() {
                        return;
                    }
                }
                Ok(None) | Err(StreamError::Ended(_)) => return,
                Err(StreamError::Frame(FrameError::Malformed)) => {
                    // The kernel counts it, and sends the peer away when it is too much.
                    if self.tell(PeerEvent::Malformed).await.is_err() {
                        return;
                    }
                }
                Err(StreamError::Frame(FrameError::TooLarge { .. })) => {
                    // It goes in any case; what it did is counted for when it comes back.
                    drop(self.tell(PeerEvent::Malformed).await);
                    return self.send_away();
                }
                Err(StreamError::Stalled) => return self.send_away(),
            }
        }
    }

    fn send_away(&self) {
        let reason = "what this peer sent could not be read".to_owned();
        let goodbye = Goodbye { code: GoodbyeCode::Misbehaved, reason, retry_after_ms: 1_000 };
        self.mesh.peers.dismiss(self.peer, self.number, goodbye);
    }
}

/// Sends what waits, in order.
async fn write(
    connection: Connection,
    mut control: FrameSender<Message>,
    mut parcels: mpsc::Receiver<Parcel>,
) {
    while let Some(parcel) = parcels.recv().await {
        match parcel {
            Parcel::Frame(frame, permit) => {
                match timeout(WRITE_WITHIN, control.send_bytes(frame)).await {
                    Ok(Ok(())) => drop(permit),
                    Ok(Err(_)) => return,
                    Err(_) => return Close::Slow.now(&connection),
                }
            }
            Parcel::Last(frame, code) => {
                let last = async {
                    if control.send_bytes(frame).await.is_ok() {
                        control.finish();
                        control.flushed().await;
                    }
                };
                // It was a courtesy; the code says the same.
                let _ = timeout(GOODBYE_WITHIN, last).await;
                return Close::Goodbye(code).now(&connection);
            }
        }
    }
}

/// Reads the ranges a peer asked for and sends them, one after the other, as fast as it takes
/// them.
async fn serve(mesh: Arc<Shared>, queue: Queue, mut serves: mpsc::Receiver<Serve>) {
    while let Some(serve) = serves.recv().await {
        let read = mesh.reader.finals(serve.chain, serve.from_seq, serve.max).await;
        let (entries, more) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "final entries cannot be read for a peer");
                continue;
            }
        };
        let finals = Message::Finals { chain: serve.chain, entries, more };
        if queue.push(encode(&finals).into()).await.is_err() {
            return;
        }
    }
}

/// What all peers together may send. Whoever waits for it longest has the next turn, so that many
/// small frames keep no large one out.
#[derive(Debug, Clone)]
pub(super) struct Together {
    frames: Arc<Mutex<TokenBucket>>,
    bytes: Arc<Mutex<TokenBucket>>,
}

impl Together {
    /// What a node takes of all its peers.
    pub(super) fn new() -> Self {
        Self::of(ALL_FRAMES_PER_SECOND, ALL_BYTES_PER_SECOND)
    }

    fn of(frames_per_second: u32, bytes_per_second: u32) -> Self {
        // After a pause twice what a second gives comes at once.
        let bucket = |per_second: u32| {
            Arc::new(Mutex::new(TokenBucket::new(per_second, per_second.saturating_mul(2), now())))
        };
        Self { frames: bucket(frames_per_second), bytes: bucket(bytes_per_second) }
    }
}

/// How fast a peer is read. What comes faster waits in its own stream, where QUIC keeps it from
/// sending more.
struct Limits {
    peer: PeerLimits,
    together: Together,
}

impl Limits {
    /// Half of what the kernel allows: it never finds a peer too fast that was read no faster.
    fn new(together: Together) -> Self {
        Self { peer: PeerLimits::new(now()), together }
    }
}

impl Gate for Limits {
    /// What is only announced takes the peer's own bytes.
    async fn admit(&mut self, bytes: usize) {
        wait(|| self.peer.frame(bytes, now())).await;
        let mut frames = self.together.frames.lock().await;
        wait(|| frames.take(1, now())).await;
    }

    async fn admit_part(&mut self, bytes: usize) {
        let part = u32::try_from(bytes).unwrap_or(u32::MAX);
        let mut together = self.together.bytes.lock().await;
        wait(|| together.take(part, now())).await;
    }
}

/// Comes back when `take` found room; else it says for how many milliseconds to wait. What is
/// taken is far smaller than the burst, so the wait is short.
async fn wait(mut take: impl FnMut() -> Result<(), u64>) {
    while let Err(wait_ms) = take() {
        tokio::time::sleep(Duration::from_millis(wait_ms.min(1_000))).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::mesh::frames::PART_BYTES;

    /// A frame of so many bytes that comes as soon as it is let through.
    async fn frame(peer: &mut Limits, bytes: usize) {
        peer.admit(bytes).await;
        for at in (0..bytes).step_by(PART_BYTES) {
            peer.admit_part(PART_BYTES.min(bytes - at)).await;
        }
    }

    #[tokio::test]
    async fn many_peers_together_are_read_no_faster_than_all_may_send() {
        const FRAME: usize = 256 << 10;
        let begun = Instant::now();
        let together = Together::of(1_000, 1 << 20);
        let mut peers = [(); 4].map(|()| Limits::new(together.clone()));
        // 3 MiB, far below what each may: two come at once, the third takes a second.
        for _ in 0..3 {
            for peer in &mut peers {
                frame(peer, FRAME).await;
            }
        }
        assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
    }

    async fn flooding(mut peer: Limits) {
        loop {
            frame(&mut peer, 16 << 10).await;
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_large_frame_gets_its_turn_among_small_ones_without_end() {
        let together = Together::of(1_000_000, 1 << 20);
        let mut flood = JoinSet::new();
        for _ in 0..4 {
            flood.spawn(flooding(Limits::new(together.clone())));
        }
        // Until what may come at once has come.
        while together.bytes.lock().await.take(1 << 20, now()).is_ok() {}
        let mut peer = Limits::new(together);
        timeout(Duration::from_secs(20), frame(&mut peer, 1 << 20)).await.unwrap();
    }

    #[tokio::test]
    async fn large_frames_that_are_only_announced_keep_nobody_out() {
        let together = Together::of(1_000, 1 << 20);
        let announcing = async {
            // A minute of what all may send.
            for _ in 0..64 {
                Limits::new(together.clone()).admit(1 << 20).await;
            }
            frame(&mut Limits::new(together.clone()), 1 << 20).await;
        };
        timeout(Duration::from_secs(20), announcing).await.unwrap();
    }
}
