//! Durable rates: book pairs through the store's group commit, beside an append and a sync.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use tirami_core::{SecretKey, Signed, Timestamp, Trm};
use tirami_ledger::event::Event;
use tirami_ledger::lattice::Charter;
use tirami_node::store::{DirLock, Genesis, Opening, StoreStats};
use tokio::sync::oneshot;

use crate::money::batches;
use crate::report::{Row, Table, median};

const PAIRS: u64 = 51_200;
/// Pairs that the kernel's task hands to the writer at once under load.
const GROUP: usize = 256;
const ROUNDS: usize = 3;

/// Hold + post pairs per second, each synced before it counts.
pub(crate) async fn durable_pairs(table: &mut Table) {
    let groups: Vec<Vec<Event>> = batches(PAIRS).chunks(GROUP).map(<[_]>::concat).collect();
    let (mut stored, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        stored.push(PAIRS as f64 / store(dir.path(), &groups).await);
        raw.push(PAIRS as f64 / append_and_sync(dir.path(), &groups));
    }
    let (stored, raw) = (median(&mut stored), median(&mut raw));
    table.push(Row {
        what: format!("(c) durable hold + post pairs, {GROUP} to a commit"),
        measured: format!("{stored:.0} /s"),
        limit: format!("the same bytes appended and synced: {raw:.0} /s"),
        ratio: Some(stored / raw),
        target: Some(("≥ 30 000 /s", stored >= 30_000.0)),
    });
}

async fn store(data_dir: &Path, groups: &[Vec<Event>]) -> f64 {
    let key = SecretKey::from_seed([1; 32]);
    let charter = Charter::founder("bench", key.public(), Trm::from_micro(1 << 60));
    let charter = Signed::sign(Charter::founding_mesh(), &key, charter).expect("signed");
    let genesis = Genesis {
        mesh: tirami_core::MeshId::from_bytes(*charter.id().as_bytes()),
        party: key.public().party(),
        personal: key.public().agent(),
        charter: charter.bytes().to_vec(),
        charter_signature: charter.signature(),
        created_at: Timestamp::from_ms(1_700_000_000_000),
    };
    let lock = DirLock::take(data_dir).expect("locked");
    let opening = Opening::create(data_dir, &genesis, lock).expect("created");
    let (store, _reader) = opening.start(StoreStats::default()).expect("started");
    let groups = groups.to_vec();
    let started = Instant::now();
    let mut waiting = Vec::new();
    for group in groups {
        let (done, is_done) = oneshot::channel();
        let tell = Box::new(move |result| drop(done.send(result)));
        store.append(group, tell).await.expect("queued");
        waiting.push(is_done);
    }
    for is_done in waiting {
        is_done.await.expect("answered").expect("durable");
    }
    let seconds = started.elapsed().as_secs_f64();
    store.close().expect("closed");
    seconds
}

fn append_and_sync(dir: &Path, groups: &[Vec<Event>]) -> f64 {
    let groups: Vec<Vec<u8>> =
        groups.iter().map(|group| minicbor::to_vec(group).expect("encoded")).collect();
    let mut file = File::create(dir.join("floor")).expect("a file");
    let started = Instant::now();
    for group in &groups {
        file.write_all(group).expect("written");
        file.sync_data().expect("synced");
    }
    started.elapsed().as_secs_f64()
}
