//! The work that a faucet asks for, on a thread of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tirami_kernel::mesh::MeshInput;
use tirami_proto::Work;
use tokio_util::sync::CancellationToken;

use super::Shared;

/// How long is searched at most; the sponsor's task is void soon after.
const SEARCH_WITHIN: Duration = Duration::from_secs(8 * 60);
/// Numbers tried between two looks at the clock.
const AT_ONCE: u64 = 1 << 16;

/// Does the work and tells the kernel.
pub(super) async fn run(shared: Arc<Shared>, work: Work) {
    let stop = shared.stop.clone();
    tracing::info!(sponsor = %work.sponsor, bits = work.bits, "working for a welcome line");
    let searched = tokio::task::spawn_blocking(move || search(&work, &stop)).await;
    let nonce = searched.ok().flatten();
    let Work { sponsor, challenge, .. } = work;
    // A kernel that has stopped needs no line.
    drop(shared.handle.mesh_input(MeshInput::Worked { sponsor, challenge, nonce }).await);
}

fn search(work: &Work, stop: &CancellationToken) -> Option<u64> {
    let started = Instant::now();
    let mut first = 0;
    while started.elapsed() < SEARCH_WITHIN && !stop.is_cancelled() {
        if let Some(nonce) = work.search(first, AT_ONCE) {
            return Some(nonce);
        }
        first += AT_ONCE;
    }
    None
}
