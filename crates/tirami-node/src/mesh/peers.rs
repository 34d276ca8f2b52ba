//! The table of connections: one for each peer, a bounded queue before each, and who may have one.
//!
//! The driver hands everything for peers to [`Peers::carry`], which never waits: a peer that does
//! not take what is sent to it loses its connection, and nobody else notices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::endpoint::{Connection, VarInt};
use tirami_core::PartyId;
use tirami_kernel::mesh::{Serve, Standing};
use tirami_proto::{Goodbye, GoodbyeCode, Message, PeerAddress, TokenBucket, Via, Work, encode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::doors::Source;
use crate::clock::now;

/// Connections overall: as many as the kernel has peers, for every member of a mesh is connected
/// to its witnesses.
pub const CONNECTIONS_MAX: usize = tirami_kernel::mesh::PEERS_MAX;
/// Frames that may wait for one peer.
pub const QUEUE_FRAMES_MAX: usize = 4_096;
/// Bytes that may wait for one peer.
pub const QUEUE_BYTES_MAX: u32 = 2 << 20;
/// Questions of one peer for ranges that may wait; it asks again for what was dropped.
const SERVES_MAX: usize = 64;
/// Addresses that may wait to be dialled.
pub(super) const DIALS_MAX: usize = 256;
/// Connections of strangers on which this node has not said welcome yet.
pub const INTRODUCING_MAX: usize = 64;
/// Of them, those from one address.
pub const INTRODUCING_PER_SOURCE_MAX: usize = 16;
/// When a peer that had to make room may come back.
const ROOM_RETRY_MS: u64 = 60_000;
/// Farewells logged each second in the long run, and at once: what a stranger does fills no log.
const LOGGED_PER_SECOND: u32 = 1;
const LOGGED_BURST: u32 = 20;
/// Two connections between the same nodes that are made within this time were dialled by both at
/// once.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Why a connection is closed, as the application's code in QUIC; a [`GoodbyeCode`] is its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    Goodbye(GoodbyeCode),
    /// Another connection to the same node took its place.
    Replaced,
    /// It did not take what was sent to it.
    Slow,
    /// It did not keep to the form of the protocol.
    Form,
}

impl Close {
    pub(super) fn now(self, connection: &Connection) {
        let (code, reason): (u32, &[u8]) = match self {
            Self::Goodbye(code) => (code as u32, b"goodbye"),
            Self::Replaced => (16, b"another connection took its place"),
            Self::Slow => (17, b"it did not take what was sent to it"),
            Self::Form => (18, b"it broke the form of the protocol"),
        };
        connection.close(VarInt::from_u32(code), reason);
    }
}

/// What goes to one peer.
pub(super) enum Parcel {
    Frame(Bytes, OwnedSemaphorePermit),
    /// The last one; then the connection is closed.
    Last(Bytes, GoodbyeCode),
}

/// Whatever waits to be sent to one peer.
#[derive(Clone)]
pub(super) struct Queue {
    parcels: mpsc::Sender<Parcel>,
    room: Arc<Semaphore>,
}

/// The queue is full, or its reader is gone.
pub(super) struct Full;

impl Queue {
    pub(super) fn new() -> (Self, mpsc::Receiver<Parcel>) {
        let (parcels, waiting) = mpsc::channel(QUEUE_FRAMES_MAX);
        (Self { parcels, room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX as usize)) }, waiting)
    }

    fn put(&self, frame: Bytes) -> Result<(), Full> {
        let room = Arc::clone(&self.room);
        let permit = room.try_acquire_many_owned(frame.len() as u32).map_err(|_| Full)?;
        self.parcels.try_send(Parcel::Frame(frame, permit)).map_err(|_| Full)
    }

    /// Waits for room.
    pub(super) async fn push(&self, frame: Bytes) -> Result<(), Full> {
        let room = Arc::clone(&self.room);
        let permit = room.acquire_many_owned(frame.len() as u32).await.map_err(|_| Full)?;
        self.parcels.send(Parcel::Frame(frame, permit)).await.map_err(|_| Full)
    }

    fn end(&self, goodbye: Goodbye) -> Result<(), Full> {
        let code = goodbye.code;
        let last = Parcel::Last(encode(&Message::Goodbye(goodbye)).into(), code);
        self.parcels.try_send(last).map_err(|_| Full)
    }
}

/// One connection.
pub(super) struct Link {
    /// Tells it from earlier and later ones to the same peer.
    pub(super) number: u64,
    pub(super) outgoing: bool,
    pub(super) connection: Connection,
    pub(super) queue: Queue,
    pub(super) serves: mpsc::Sender<Serve>,
    /// Whether this node said welcome.
    pub(super) accepted: Arc<AtomicBool>,
    /// Cancelled when the kernel has heard of the end.
    pub(super) ended: CancellationToken,
    standing: Standing,
    source: Source,
    since: Instant,
    /// The way last remembered.
    noted: Option<Via>,
}

/// What a link's own tasks hold.
pub(super) struct Ends {
    pub(super) number: u64,
    pub(super) parcels: mpsc::Receiver<Parcel>,
    pub(super) queue: Queue,
    pub(super) serves: mpsc::Receiver<Serve>,
    pub(super) accepted: Arc<AtomicBool>,
    pub(super) ended: CancellationToken,
    /// Ends when the connection that this one replaces is gone.
    pub(super) before: Option<CancellationToken>,
}

/// What the kernel wants done, stamped with the connections it meant.
#[derive(Default)]
pub(crate) struct Outgoing {
    pub(crate) send: Vec<(PartyId, u64, Message)>,
    pub(crate) connect: Vec<PeerAddress>,
    pub(crate) disconnect: Vec<(PartyId, u64, Goodbye)>,
    pub(crate) serve: Vec<(u64, Serve)>,
    pub(crate) work: Vec<Work>,
}

/// What takes longer than handing on a message.
#[derive(Debug)]
pub(crate) enum Errand {
    Dial(PeerAddress),
    Work(Work),
}

impl Outgoing {
    pub(crate) fn is_empty(&self) -> bool {
        let Self { send, connect, disconnect, serve, work } = self;
        send.is_empty()
            && connect.is_empty()
            && disconnect.is_empty()
            && serve.is_empty()
            && work.is_empty()
    }
}

/// All connections.
pub(crate) struct Peers {
    own: PartyId,
    table: Mutex<Table>,
    errands: mpsc::Sender<Errand>,
    numbers: AtomicU64,
}

struct Table {
    links: BTreeMap<PartyId, Link>,
    dialling: BTreeSet<PartyId>,
    logged: TokenBucket,
    closed: bool,
    /// [`CONNECTIONS_MAX`], outside tests.
    links_max: usize,
}

impl Peers {
    /// No connections yet. What the kernel wants dialled or worked on comes out of the receiver.
    pub(crate) fn new(own: PartyId) -> (Arc<Self>, mpsc::Receiver<Errand>) {
        let (errands, wanted) = mpsc::channel(DIALS_MAX);
        let logged = TokenBucket::new(LOGGED_PER_SECOND, LOGGED_BURST, now());
        let (links, dialling) = (BTreeMap::new(), BTreeSet::new());
        let links_max = CONNECTIONS_MAX;
        let table = Mutex::new(Table { links, dialling, logged, closed: false, links_max });
        (Arc::new(Self { own, table, errands, numbers: AtomicU64::new(1) }), wanted)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number no connection has had.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Does what the kernel wants. Never waits.
    pub(crate) fn carry(&self, outgoing: Outgoing) {
        let Outgoing { send, connect, disconnect, serve, work } = outgoing;
        let mut table = self.table();
        // One announcement goes to many peers; it is encoded once.
        let mut last: Option<(Message, Bytes)> = None;
        for (peer, number, message) in send {
            let Some(link) = table.link(peer, number) else { continue };
            let frame = match &last {
                Some((same, frame)) if *same == message => frame.clone(),
                _ => Bytes::from(encode(&message)),
            };
            if matches!(message, Message::Welcome(_)) {
                link.accepted.store(true, Ordering::Release);
            }
            if link.queue.put(frame.clone()).is_err() {
                tracing::debug!(%peer, "the peer does not take what is sent to it");
                Close::Slow.now(&link.connection);
            }
            last = Some((message, frame));
        }
        for (number, serve) in serve {
            if let Some(link) = table.link(serve.peer, number) {
                // One question too many is dropped; the peer asks again.
                let _ = link.serves.try_send(serve);
            }
        }
        for (peer, number, goodbye) in disconnect {
            // An empty reason answers the other side's own.
            if !goodbye.reason.is_empty() && table.may_log() {
                let (code, reason) = (goodbye.code, &goodbye.reason);
                tracing::info!(%peer, ?code, reason, "a peer was sent away");
            }
            if let Some(link) = table.link(peer, number) {
                link.dismiss(goodbye);
            }
        }
        drop(table);
        let dials = connect.into_iter().map(Errand::Dial);
        for errand in dials.chain(work.into_iter().map(Errand::Work)) {
            // The kernel asks again for what was not done.
            drop(self.errands.try_send(errand));
        }
    }

    /// Whether the peer has a connection.
    pub(super) fn is_connected(&self, peer: PartyId) -> bool {
        self.table().links.contains_key(&peer)
    }

    /// The connection to a peer, once both sides accepted each other.
    pub(super) fn accepted(&self, peer: PartyId) -> Option<Connection> {
        let table = self.table();
        let link = table.links.get(&peer)?;
        link.accepted.load(Ordering::Acquire).then(|| link.connection.clone())
    }

    /// Logs that a peer ended the connection, unless too much is logged already. One that stops, or
    /// only came for the charter, asks nothing of the owner.
    pub(super) fn was_sent_away(&self, peer: PartyId, goodbye: &Goodbye) {
        let (code, reason) = (goodbye.code, &goodbye.reason);
        if code == GoodbyeCode::Stopping {
            tracing::debug!(%peer, ?code, reason, "a peer ended the connection");
        } else if self.table().may_log() {
            tracing::info!(%peer, ?code, reason, "a peer ended the connection");
        }
    }

    /// Enters a connection whose control stream is open. Where there is no place left, a party of
    /// lower standing makes room.
    ///
    /// # Errors
    ///
    /// Why it is to be closed instead.
    pub(super) fn enter(
        &self,
        (peer, standing, source): (PartyId, Standing, Source),
        connection: &Connection,
        outgoing: bool,
    ) -> Result<Ends, Close> {
        let mut table = self.table();
        if table.closed {
            return Err(Close::Goodbye(GoodbyeCode::Stopping));
        }
        let before = match table.links.get(&peer) {
            Some(known) if self.keeps(peer, known, outgoing) => return Err(Close::Replaced),
            Some(known) => {
                Close::Replaced.now(&known.connection);
                Some(known.ended.clone())
            }
            None => {
                table.make_room(standing, source)?;
                None
            }
        };
        let (queue, parcels) = Queue::new();
        let (serve, serves) = mpsc::channel(SERVES_MAX);
        let (accepted, ended) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let number = self.number();
        let link = Link {
            number,
            outgoing,
            connection: connection.clone(),
            queue: queue.clone(),
            serves: serve,
            accepted: Arc::clone(&accepted),
            ended: ended.clone(),
            standing,
            source,
            since: Instant::now(),
            noted: None,
        };
        table.links.insert(peer, link);
        Ok(Ends { number, parcels, queue, serves, accepted, ended, before })
    }

    /// Whether a new connection has to go rather than the known one. Both nodes decide alike.
    fn keeps(&self, peer: PartyId, known: &Link, outgoing: bool) -> bool {
        let dialler = |outgoing: bool| if outgoing { self.own } else { peer };
        known.outgoing != outgoing
            && known.since.elapsed() < AT_ONCE
            && known.connection.close_reason().is_none()
            && dialler(known.outgoing) < dialler(outgoing)
    }

    /// Removes a connection, unless another one already took its place.
    pub(super) fn leave(&self, peer: PartyId, number: u64) {
        let mut table = self.table();
        if table.link(peer, number).is_some() {
            table.links.remove(&peer);
        }
    }

    /// Begins to dial a peer. `false` when it is connected or is being dialled.
    pub(super) fn begin_dial(&self, peer: PartyId) -> bool {
        let mut table = self.table();
        !table.closed
            && peer != self.own
            && !table.links.contains_key(&peer)
            && table.dialling.insert(peer)
    }

    /// The dialling of a peer has ended.
    pub(super) fn end_dial(&self, peer: PartyId) {
        self.table().dialling.remove(&peer);
    }

    /// Ends the connection to a peer with a word.
    pub(super) fn dismiss(&self, peer: PartyId, number: u64, goodbye: Goodbye) {
        if let Some(link) = self.table().link(peer, number) {
            link.dismiss(goodbye);
        }
    }

    /// Accepted peers that are reached another way than was last noted, with that way.
    pub(super) fn new_ways(&self, way: impl Fn(&Connection) -> Option<Via>) -> Vec<(PartyId, Via)> {
        let mut table = self.table();
        let links = table.links.iter_mut();
        let accepted = links.filter(|(_, link)| link.accepted.load(Ordering::Acquire));
        let changed = accepted.filter_map(|(peer, link)| {
            let way = way(&link.connection)?;
            (link.noted.as_ref() != Some(&way)).then(|| {
                link.noted = Some(way.clone());
                (*peer, way)
            })
        });
        changed.collect()
    }

    /// Peers that were accepted, with the way to reach each.
    pub(super) fn reached(&self) -> Vec<(PartyId, Via)> {
        let table = self.table();
        let noted =
            table.links.iter().filter_map(|(peer, link)| Some((*peer, link.noted.clone()?)));
        noted.collect()
    }

    /// Takes no connection any more and says goodbye to everybody. Gives what ends with the last.
    pub(super) fn close(&self) -> Vec<CancellationToken> {
        let mut table = self.table();
        table.closed = true;
        let goodbye = Goodbye {
            code: GoodbyeCode::Stopping,
            reason: "the node is being stopped".to_owned(),
            retry_after_ms: 0,
        };
        table.links.values().for_each(|link| link.dismiss(goodbye.clone()));
        table.links.values().map(|link| link.ended.clone()).collect()
    }
}

impl Table {
    fn link(&self, peer: PartyId, number: u64) -> Option<&Link> {
        self.links.get(&peer).filter(|link| link.number == number)
    }

    fn may_log(&mut self) -> bool {
        self.logged.take(1, now()).is_ok()
    }

    /// A place for a newcomer. Strangers who have not introduced themselves push out each other
    /// only; when all places are taken, whoever counts more pushes out whoever counts least.
    fn make_room(&mut self, standing: Standing, source: Source) -> Result<(), Close> {
        if standing < Standing::Member {
            let introducing = self.links.iter().filter(|(_, link)| link.is_introducing());
            let mut waiting: Vec<(Instant, PartyId, bool)> = introducing
                .map(|(party, link)| (link.since, *party, link.source == source))
                .collect();
            waiting.sort_unstable();
            let same = waiting.iter().filter(|(_, _, same)| *same).count();
            let leaves = if same >= INTRODUCING_PER_SOURCE_MAX {
                waiting.iter().find(|(_, _, same)| *same)
            } else if waiting.len() >= INTRODUCING_MAX {
                waiting.first()
            } else {
                None
            };
            if let Some((_, oldest, _)) = leaves {
                self.send_away(*oldest);
            }
        }
        if self.links.len() < self.links_max {
            return Ok(());
        }
        let least = self.links.iter().min_by_key(|(_, link)| {
            (link.standing, link.accepted.load(Ordering::Acquire), link.since)
        });
        match least {
            Some((party, link)) if link.standing < standing => {
                let party = *party;
                self.send_away(party);
                Ok(())
            }
            _ => Err(Close::Goodbye(GoodbyeCode::TooMany)),
        }
    }

    fn send_away(&mut self, party: PartyId) {
        if let Some(link) = self.links.remove(&party) {
            let reason = "this node needs the place for somebody else; try another one".to_owned();
            let code = GoodbyeCode::TooMany;
            link.dismiss(Goodbye { code, reason, retry_after_ms: ROOM_RETRY_MS });
        }
    }
}

impl Link {
    fn is_introducing(&self) -> bool {
        self.standing < Standing::Member && !self.accepted.load(Ordering::Acquire)
    }

    fn dismiss(&self, goodbye: Goodbye) {
        let code = goodbye.code;
        if self.queue.end(goodbye).is_err() {
            Close::Goodbye(code).now(&self.connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use tirami_core::SecretKey;
    use tirami_proto::ALPN;

    use super::super::endpoint::{dialled, open, own_address};
    use super::super::finding::Finding;
    use super::*;

    fn party(number: u8) -> PartyId {
        PartyId::from_bytes([number; 32])
    }

    #[tokio::test]
    async fn when_all_places_are_taken_whoever_counts_more_gets_that_of_whoever_counts_least() {
        let [here, there] = [1, 2].map(|seed| SecretKey::from_seed([seed; 32]));
        let (bind, finding) = ((([127, 0, 0, 1], 0).into(), false), Finding::default());
        let (here, _) = open(&here, bind, &finding).await.unwrap();
        let (there, relays) = open(&there, bind, &finding).await.unwrap();
        let address = dialled(&own_address(&here, &[]), &relays).unwrap();
        let arrives = async { here.accept().await.unwrap().await.unwrap() };
        let (connection, _dialled) = tokio::join!(arrives, there.connect(address, ALPN));

        let (peers, _errands) = Peers::new(party(0));
        peers.table().links_max = 2;
        let enter = |number: u8, standing| {
            let entered = peers.enter((party(number), standing, Source::Relay), &connection, false);
            let links: Vec<PartyId> = peers.table().links.keys().copied().collect();
            (entered, links)
        };
        let full = || Some(Close::Goodbye(GoodbyeCode::TooMany));
        let (stranger, _) = enter(1, Standing::Stranger);
        let (member, links) = enter(2, Standing::Member);
        assert_eq!(links, [party(1), party(2)]);
        let (mut stranger, member) = (stranger.ok().unwrap(), member.ok().unwrap());
        member.accepted.store(true, Ordering::Release);

        let (refused, links) = enter(3, Standing::Stranger);
        assert_eq!((refused.err(), links), (full(), vec![party(1), party(2)]));
        let (later, links) = enter(4, Standing::Member);
        assert_eq!(links, [party(2), party(4)], "a member pushes out a stranger");
        let heard = stranger.parcels.try_recv();
        assert!(matches!(heard, Ok(Parcel::Last(_, GoodbyeCode::TooMany))));
        for standing in [Standing::Refused(1), Standing::Stranger, Standing::Member] {
            let (refused, links) = enter(5, standing);
            assert_eq!((refused.err(), links), (full(), vec![party(2), party(4)]), "{standing:?}");
        }
        // Of two members the one that this node has not accepted yet.
        let (witness, links) = enter(6, Standing::Needed);
        assert_eq!(links, [party(2), party(6)], "a witness pushes out a member");
        let (last, links) = enter(7, Standing::Needed);
        assert_eq!(links, [party(6), party(7)]);
        let (refused, links) = enter(8, Standing::Needed);
        assert_eq!((refused.err(), links), (full(), vec![party(6), party(7)]));
        drop((stranger, member, later, witness, last));
    }
}
