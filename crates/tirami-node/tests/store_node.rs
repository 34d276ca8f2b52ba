//! A whole node: its first start, killed anywhere, and every start after it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod store_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use store_support::Dice;
use tirami_core::Digest;
use tirami_infer::fake::{FakeEngine, FakeScript};
use tirami_node::config::Config;
use tirami_node::mesh::MeshOptions;
use tirami_node::node::{Node, NodeOptions, RunningNode, StartError};
use tirami_node::store::StoreError;
use tirami_node::store::doctor::doctor;

const STARTED_DIR: &str = "STORE_TEST_STARTED_DIR";
const KILLS: u64 = 25;

async fn node(data_dir: &Path) -> Result<RunningNode, StartError> {
    let script = FakeScript { tokens_per_answer: 5, delay: Duration::ZERO, fail_after: None };
    Node::start(NodeOptions {
        data_dir: data_dir.to_path_buf(),
        bind: ([127, 0, 0, 1], 0).into(),
        engine: Arc::new(FakeEngine::new(script)),
        config: Config::defaults(data_dir),
        mesh: MeshOptions::default(),
    })
    .await
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn agent_keys(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.join("keys")).unwrap().map(|file| file.unwrap().path());
    let is_agent = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().contains("agent-");
    files.filter(|path| is_agent(path) && path.extension().unwrap() == "key").collect()
}

/// What a node must have after a complete start, whatever happened before.
async fn check_complete(dir: &Path, node: &RunningNode) -> Digest {
    assert_eq!(agent_keys(dir).len(), 1);
    let personal = node.personal_agent();
    let token = fs::read_to_string(dir.join("api_token")).unwrap();
    let read = move |kernel: &tirami_kernel::Kernel, now| {
        let (ledger, book) = (kernel.ledger(), kernel.ledger().book());
        ledger.check_invariants().unwrap();
        assert!(ledger.lattice().chain(ledger.party()).is_some());
        assert_eq!(book.agents().len(), 1);
        let account = &book.agents()[&personal];
        assert!(!account.available().is_zero());
        assert!(account.limits().request_max.is_some());
        let secret = Digest::of(token.trim_end().as_bytes());
        let keys: Vec<_> = book.keys().values().filter(|key| key.is_live(now)).collect();
        assert_eq!((keys.len(), keys[0].agent()), (1, Some(personal)));
        (ledger.state_hash(), secret)
    };
    node.handle().read(read).await.unwrap().0
}

#[test]
fn a_node_comes_back_with_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("new/data");
    runtime().block_on(async {
        let first = node(dir).await.unwrap();
        let state = check_complete(dir, &first).await;
        let error = node(dir).await.unwrap_err();
        assert!(matches!(error, StartError::Store(StoreError::Locked { .. })), "{error}");
        let token = fs::read(dir.join("api_token")).unwrap();
        first.shutdown().await.unwrap();
        let again = node(dir).await.unwrap();
        assert_eq!(check_complete(dir, &again).await, state);
        assert_eq!(fs::read(dir.join("api_token")).unwrap(), token);
        again.shutdown().await.unwrap();
    });
    assert!(doctor(dir).is_healthy());
}

#[test]
fn a_book_without_its_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        node(dir.path()).await.unwrap().shutdown().await.unwrap();
        let key = dir.path().join("keys/node.key");
        fs::remove_file(&key).unwrap();
        assert!(matches!(node(dir.path()).await, Err(StartError::OtherKey { .. })));
        assert!(!key.exists());
    });
}

/// The process that is killed.
#[test]
fn starts_and_stays() {
    let Ok(dir) = std::env::var(STARTED_DIR) else {
        return;
    };
    runtime().block_on(async {
        let node = node(Path::new(&dir)).await.unwrap();
        let _ = node.failed().await;
    });
}

#[test]
fn a_first_start_killed_anywhere_is_completed_by_the_next() {
    let mut dice = Dice(5);
    let mut unfinished = 0;
    for _ in 0..KILLS {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        // Twice, so that a start that completes another is killed too.
        for _ in 0..2 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "starts_and_stays"])
                .env(STARTED_DIR, &data)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(2_000 + dice.below(60_000)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        unfinished += u32::from(!data.join("api_token").exists());
        runtime().block_on(async {
            let node = node(&data).await.unwrap();
            check_complete(&data, &node).await;
            node.shutdown().await.unwrap();
        });
        let report = doctor(&data);
        assert!(report.is_healthy(), "{report:?}");
    }
    println!("{unfinished} of {KILLS} were killed before their last step");
}
