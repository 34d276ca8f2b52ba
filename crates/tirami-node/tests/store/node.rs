//! A whole node: its first start, killed anywhere, and every start after it.

#[cfg(target_os = "linux")]
#[path = "../../../../tests/skipped.rs"]
mod skipped;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::support::Dice;
use tirami_core::Digest;
use tirami_infer::engine::Engine;
use tirami_infer::fake::{FakeEngine, FakeScript};
use tirami_node::config::Config;
use tirami_node::mesh::MeshOptions;
use tirami_node::models::Models;
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
        models: Models::from_iter([Arc::new(FakeEngine::new(script)) as Arc<dyn Engine>]),
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
        let error = loop {
            match node(dir.path()).await.unwrap_err() {
                // A child that another test begins holds the lock until it runs its program.
                StartError::Store(StoreError::Locked { .. }) => {}
                error => break error,
            }
        };
        assert!(matches!(error, StartError::OtherKey { .. }), "{error}");
        assert!(!key.exists());
    });
}

#[test]
fn the_doctor_compares_agents_with_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let data = &dir.path().join("data");
    runtime().block_on(async {
        node(data).await.unwrap().shutdown().await.unwrap();
    });
    let check = || {
        let report = doctor(data);
        let found = report.checks.iter().find(|check| check.name == "agents' keys");
        (found.unwrap().clone(), report)
    };
    assert!(check().0.ok);
    let key = agent_keys(data).remove(0);
    let extra = tirami_node::keys::new_key().unwrap();
    tirami_node::keys::KeyDir::open(data).unwrap().keep_agent(&extra).unwrap();
    let (found, report) = check();
    assert!(found.ok && report.is_healthy(), "{report:?}");
    assert!(found.detail.contains(&extra.public().agent().did()), "{found:?}");

    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let (found, report) = check();
    assert!(!found.ok && !report.is_healthy());
    let named = key.file_stem().unwrap().to_str().unwrap().replace("agent-", "");
    assert!(found.detail.contains(&named), "{found:?}");
    assert!(report.advice.iter().any(|advice| advice.contains("tirami agents import")));
    // The node starts, so that everybody else can go on.
    runtime().block_on(async {
        node(data).await.unwrap().shutdown().await.unwrap();
    });
    fs::write(&key, kept).unwrap();
    #[cfg(unix)]
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert!(check().1.is_healthy());
}

/// A small file system of its own, gone when dropped.
#[cfg(target_os = "linux")]
struct SmallDisk(PathBuf);

#[cfg(target_os = "linux")]
impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount(at: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(at);
        let mounted = mount.stdout(Stdio::null()).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_path_buf()))
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_under_a_serving_node_stops_it_with_a_sentence() {
    use std::io::Write as _;
    use tirami_sdk::Client;
    use tirami_sdk::types::ChatRequest;
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path()) else {
        skipped::skipped("this user may not mount a file system");
        return;
    };
    let data = &disk.0.join("data");
    let filler = disk.0.join("filler");
    let (state, trades) = runtime().block_on(async {
        let node = node(data).await.unwrap();
        let client = Client::new(&format!("http://{}", node.api), None).unwrap();
        let mut request = ChatRequest::new("fake").user("hi");
        request.max_tokens = Some(1);
        client.chat(&request).await.unwrap();
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[1; 4_096]).is_ok() {}
        let mut trades = 1;
        let error = loop {
            match client.chat(&request).await {
                Ok(_) => trades += 1,
                Err(error) => break error,
            }
            assert!(trades < 10_000, "the disk never fills up");
        };
        assert_eq!((error.status(), error.code()), (Some(503), Some("stopped")), "{error}");
        assert!(error.to_string().contains("the disk is full"), "{error}");
        // What the process prints before it ends with a failure.
        let said = tokio::time::timeout(Duration::from_secs(10), node.failed()).await.unwrap();
        assert!(said.contains("the disk is full") && said.contains("nothing acknowledged is lost"));
        assert!(!client.ready().await.is_ok_and(|ready| ready.ready));
        let stopped = node.shutdown().await;
        assert!(matches!(stopped, Err(StoreError::Full { .. })), "{stopped:?}");
        (said, trades)
    });
    assert!(state.contains("free some space"));
    fs::remove_file(&filler).unwrap();
    runtime().block_on(async {
        let node = node(data).await.unwrap();
        let client = Client::new(&format!("http://{}", node.api), None).unwrap();
        let network = client.network().await.unwrap();
        assert!(network.conserved);
        let status = client.status().await.unwrap();
        // One may have been durable whose answer was not given.
        assert!((trades..=trades + 1).contains(&status.total_trades), "{trades} {status:?}");
        assert_eq!(status.open_holds, 0);
        node.shutdown().await.unwrap();
    });
    assert!(doctor(data).is_healthy());
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
                .args(["--exact", "node::starts_and_stays"])
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
