//! The accept loop: bounded connections, deadlines for headers and for slow readers, and a stop
//! that lets running answers end.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::guard::Peer;
use super::stall::Unstalled;
use super::throttle::network;
use super::{AppState, HttpConfig, router};

/// How long the last answers may take after their jobs have been ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The least and the most pause after the system gave no connection, for example for want of file
/// descriptors; it doubles each time.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// So often at most the log says that no connection could be accepted.
const TROUBLE_EVERY: Duration = Duration::from_secs(60);
/// File descriptors that connections leave to the store, the key files and the log, at least; a
/// quarter of what there is when that is more.
const FILES_KEPT: usize = 64;
/// The part of all connections that one address may have, so that no client keeps all others out.
const SHARE: usize = 4;
/// Connections that one address may have even where [`SHARE`] makes fewer: a browser, or a proxy
/// for some callers.
const SHARE_MIN: usize = 64;

/// Serves until `stop` is cancelled. Then nothing new is accepted, running jobs may go on for
/// `drain`, and what still runs is ended and charged what it delivered. When this returns, no job
/// of this interface is open.
///
/// # Errors
///
/// When the listener has no address; later failures of single connections end only those.
pub async fn serve(
    listener: TcpListener,
    app: AppState,
    stop: CancellationToken,
    drain: Duration,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving HTTP");
    let (jobs, cut, config) = (app.jobs.clone(), app.cut.clone(), app.config.clone());
    let (router, connections) = (router(app), GracefulShutdown::new());
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = accept(&listener, &router, config, &connections) => {}
    }
    drop(listener);
    jobs.close();
    let closing = tokio::spawn(connections.shutdown());
    if tokio::time::timeout(drain, jobs.wait()).await.is_err() {
        cut.cancel();
        jobs.wait().await;
    }
    if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
        tracing::debug!("some connections were cut");
    }
    Ok(())
}

/// Accepts connections until it is dropped.
async fn accept(
    listener: &TcpListener,
    router: &Router,
    config: HttpConfig,
    connections: &GracefulShutdown,
) {
    let bound = connections_bound(config.connections_max, open_files_max());
    if bound < config.connections_max {
        tracing::info!(bound, "fewer connections at once: the limit of open files is low");
    }
    let slots = Arc::new(Semaphore::new(bound));
    let mut shares = Shares::of(bound);
    let mut trouble = Trouble::default();
    // The semaphore is never closed.
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match listener.accept().await {
            Ok((socket, peer)) => {
                trouble.is_over();
                let Some(share) = shares.take(peer.ip()) else {
                    tracing::debug!(%peer, "a connection was closed: its address has enough");
                    continue;
                };
                let (router, watcher) = (router.clone(), connections.watcher());
                let config = config.clone();
                tokio::spawn(async move {
                    // A client that breaks off is no event for anybody else.
                    if let Err(error) = connection(socket, peer, (router, config), watcher).await {
                        tracing::debug!(%peer, %error, "a connection ended");
                    }
                    drop((slot, share));
                });
            }
            Err(error) if concerns_one_client(&error) => {}
            Err(error) => {
                let (pause, tell) = trouble.after_a_failure(Instant::now());
                if let Some(times) = tell {
                    tracing::warn!(%error, times, "no connection could be accepted; going on");
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Answers one connection's requests, in HTTP/1.1, until either side ends it.
async fn connection(
    socket: TcpStream,
    peer: SocketAddr,
    (router, config): (Router, HttpConfig),
    watcher: Watcher,
) -> hyper::Result<()> {
    // Pieces of an answer are small and must not wait for each other.
    let _ = socket.set_nodelay(true);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_within)
        .serve_connection(TokioIo::new(Unstalled::new(socket, config.stall_max)), service);
    watcher.watch(connection).await
}

/// The connections of each address.
#[derive(Debug)]
struct Shares {
    /// Connections of one address at most.
    most: usize,
    /// Each connection has a clone.
    held: BTreeMap<IpAddr, Arc<()>>,
}

impl Shares {
    fn of(bound: usize) -> Self {
        Self { most: (bound / SHARE).max(SHARE_MIN), held: BTreeMap::new() }
    }

    /// What a connection of `source` holds while it is open; none where there are enough.
    fn take(&mut self, source: IpAddr) -> Option<Arc<()>> {
        self.held.retain(|_, held| Arc::strong_count(held) > 1);
        let held = self.held.entry(network(source)).or_default();
        (Arc::strong_count(held) <= self.most).then(|| Arc::clone(held))
    }
}

/// A client that was gone before it was accepted says nothing about the next one.
fn concerns_one_client(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::Interrupted)
}

/// How many connections there may be when `wanted` are and a process may open `files` files.
fn connections_bound(wanted: usize, files: Option<u64>) -> usize {
    let Some(files) = files.and_then(|files| usize::try_from(files).ok()) else {
        return wanted.max(1);
    };
    let room = files.saturating_sub(FILES_KEPT.max(files / 4));
    wanted.min(room).max(1)
}

/// How many files the process may open; `None` when there is no bound or it is not known.
fn open_files_max() -> Option<u64> {
    #[cfg(unix)]
    {
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// The system giving no connections: how long to pause, and when to speak of it.
#[derive(Debug, Default)]
struct Trouble {
    pause: Duration,
    told_at: Option<Instant>,
    /// Failures since the log last spoke of them.
    untold: u64,
}

impl Trouble {
    const fn is_over(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// The pause, and when the log is to speak, of how many failures.
    fn after_a_failure(&mut self, now: Instant) -> (Duration, Option<u64>) {
        let (least, most) = ACCEPT_PAUSE;
        self.pause = (self.pause * 2).clamp(least, most);
        self.untold += 1;
        let is_due = |told_at| now.saturating_duration_since(told_at) >= TROUBLE_EVERY;
        if !self.told_at.is_none_or(is_due) {
            return (self.pause, None);
        }
        self.told_at = Some(now);
        (self.pause, Some(std::mem::take(&mut self.untold)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_to_everything_else() {
        for (wanted, files, bound) in [
            (4_096, None, 4_096),
            (4_096, Some(u64::MAX), 4_096),
            (4_096, Some(1_048_576), 4_096),
            (4_096, Some(1_024), 768),
            (4_096, Some(128), 64),
            (10, Some(1_024), 10),
            (4_096, Some(64), 1),
            (4_096, Some(0), 1),
            (0, None, 1),
        ] {
            assert_eq!(connections_bound(wanted, files), bound, "{wanted} {files:?}");
        }
        #[cfg(unix)]
        assert!(open_files_max().is_none_or(|files| files > 0));
    }

    #[test]
    fn no_address_has_more_than_its_share_of_the_connections() {
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for (bound, most) in [(4_096, 1_024), (256, 64), (3, 64)] {
            let mut shares = Shares::of(bound);
            let mut held: Vec<_> = (0..most).filter_map(|_| shares.take(one)).collect();
            assert_eq!((held.len(), shares.take(one)), (most, None), "{bound}");
            assert!(shares.take(other).is_some(), "{bound}");
            held.pop();
            assert!(shares.take(one).is_some(), "{bound}");
            drop(held);
            assert!(shares.take(other).is_some(), "{bound}");
            assert_eq!(shares.held.len(), 1, "{bound}");
        }
    }

    #[test]
    fn a_lack_of_descriptors_neither_spins_nor_floods_the_log() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        let (mut now, mut told, mut failures) = (start, Vec::new(), 0);
        while now - start < Duration::from_secs(150) {
            let (pause, tell) = trouble.after_a_failure(now);
            failures += 1;
            told.extend(tell);
            now += pause;
        }
        assert_eq!((told.len(), told[0]), (3, 1), "{told:?}");
        assert!(failures < 160, "{failures}");
        trouble.is_over();
        assert_eq!(trouble.after_a_failure(now).0, ACCEPT_PAUSE.0);
    }
}
