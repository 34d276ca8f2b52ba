//! The accept loop: bounded connections, a deadline for headers, and a stop that lets running
//! answers end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
use super::{AppState, router};

/// Connections served at the same time; more wait in the system's queue.
pub const CONNECTIONS_MAX: usize = 4_096;
/// A connection must have sent its headers by then.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the last answers may take after their jobs have been ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after the system refused a connection, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    let (jobs, cut) = (app.jobs.clone(), app.cut.clone());
    let router = router(app);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = GracefulShutdown::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            break;
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let (router, watcher) = (router.clone(), connections.watcher());
                tokio::spawn(async move {
                    // A client that breaks off is no event for anybody else.
                    if let Err(error) = connection(socket, peer, router, watcher).await {
                        tracing::debug!(%peer, %error, "a connection ended");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
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

/// Answers one connection's requests, in HTTP/1.1, until either side ends it.
async fn connection(
    socket: TcpStream,
    peer: SocketAddr,
    router: Router,
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
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service);
    watcher.watch(connection).await
}
