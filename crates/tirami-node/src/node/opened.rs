//! The data directory at a start: found or begun, checked, and replayed.

use std::path::Path;

use tirami_core::{MeshId, PublicKey, SecretKey, Signed, Trm};
use tirami_kernel::Kernel;
use tirami_ledger::lattice::{Charter, Lattice};
use tirami_ledger::{Keyring, Ledger};
use tirami_proto::Invite;

use super::StartError;
use crate::api_file::ApiFile;
use crate::clock::now;
use crate::handle::SubmitError;
use crate::keys::{self, KeyDir, KeyFileError};
use crate::mesh::{JoinError, MeshOptions, ask_to_join};
use crate::store::{DirLock, Found, Genesis, Opening, StoreError};

/// What people call a mesh of one until they give it a name.
const MESH_NAME: &str = "private mesh";
/// Newcomers whose default lines a founding charter has room for. It bounds what all
/// invited together can owe; a later version of the charter may allow more.
const INVITED_MAX: u64 = 64;

/// A data directory that was read and not yet written to, except for what a first start makes.
pub(super) struct Opened {
    pub(super) opening: Opening,
    pub(super) keys: KeyDir,
    pub(super) node: SecretKey,
    pub(super) kernel: Kernel,
    /// The mesh that was begun with the book.
    pub(super) founded: Option<Founded>,
}

/// A mesh that a start founded, and what it bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Founded {
    /// Its id.
    pub mesh: MeshId,
    /// Dishonest witnesses at most that change nothing.
    pub witnesses_tolerated: u64,
    /// Witnesses at most that may be away while payments become final.
    pub away_tolerated: u64,
}

impl Founded {
    fn of(lattice: &Lattice) -> Self {
        let charter = lattice.charter();
        Self {
            mesh: lattice.mesh(),
            witnesses_tolerated: charter.witnesses_tolerated() as u64,
            away_tolerated: charter.away_tolerated() as u64,
        }
    }
}

/// Opens the data directory, or begins it: with a mesh of one, or with the mesh of the invite.
pub(super) async fn opened(
    data_dir: &Path,
    line_total: Trm,
    mesh: &MeshOptions,
) -> Result<Opened, StartError> {
    let dir = data_dir.to_path_buf();
    let (found, keys) = blocking(move || look(&dir)).await?;
    let charter = match (&mesh.join, &found) {
        (Some(invite), Found::Nothing(_)) => {
            let bind = mesh.bind.unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
            let charter = ask_to_join(&keys.node_key()?, bind, &mesh.finding(), invite).await?;
            keep_secret(&keys, invite)?;
            Some(charter)
        }
        (Some(invite), Found::Book(opening)) => {
            let (found, wanted) = (opening.genesis().mesh, invite.mesh);
            if found != wanted {
                return Err(JoinError::OtherMesh { found, wanted }.into());
            }
            keep_secret(&keys, invite)?;
            None
        }
        (None, _) => None,
    };
    let dir = data_dir.to_path_buf();
    blocking(move || open(&dir, found, keys, line_total, charter)).await
}

fn keep_secret(keys: &KeyDir, invite: &Invite) -> Result<(), KeyFileError> {
    invite.secret.map_or(Ok(()), |secret| keys.keep_mesh_secret(secret))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(StartError::Store(StoreError::Closed)))
}

/// What the data directory holds.
fn look(data_dir: &Path) -> Result<(Found, KeyDir), StartError> {
    keys::create_data_dir(data_dir)
        .map_err(|source| StartError::DataDir { path: data_dir.to_path_buf(), source })?;
    let lock = DirLock::take(data_dir)?;
    ApiFile::remove_old(data_dir);
    let found = Opening::open(data_dir, lock)?;
    Ok((found, KeyDir::open(data_dir)?))
}

fn open(
    data_dir: &Path,
    found: Found,
    keys: KeyDir,
    line_total: Trm,
    charter: Option<Signed<Charter>>,
) -> Result<Opened, StartError> {
    let founds = charter.is_none() && matches!(found, Found::Nothing(_));
    let (opening, node) = match found {
        // A book without its key must not get a new one.
        Found::Book(_) if !keys.has_node_key() => {
            return Err(StartError::OtherKey { path: data_dir.to_path_buf() });
        }
        // The admin API key is the last thing a first start makes.
        Found::Book(opening) if opening.records() == 0 && keys::api_key_path(data_dir).exists() => {
            let what = "it is empty although this node was in use; its log is missing";
            return Err(opening.contradiction(what).into());
        }
        Found::Book(opening) => (*opening, keys.node_key()?),
        Found::Nothing(lock) => {
            let node = keys.node_key()?;
            let charter = match charter {
                Some(charter) => charter,
                None => mesh_of_one(&node, line_total)?,
            };
            let genesis = genesis(&keys, &node, &charter)?;
            (Opening::create(data_dir, &genesis, lock)?, node)
        }
    };
    let ledger = replay(&opening)?;
    let current = ledger.lattice().chain(ledger.party()).map(|chain| chain.key());
    if current.unwrap_or_else(|| PublicKey::from(ledger.party())) != node.public() {
        return Err(StartError::OtherKey { path: data_dir.to_path_buf() });
    }
    let mut keyring = Keyring::new(SecretKey::from_seed(node.seed()));
    keys.agents()?.into_iter().for_each(|key| keyring.add_agent(key));
    warn_of_missing_keys(&ledger, &keys)?;
    let founded = founds.then(|| Founded::of(ledger.lattice()));
    let kernel = Kernel::new(ledger, keyring);
    Ok(Opened { opening, keys, node, kernel, founded })
}

/// An agent without its key can be looked at but cannot spend.
fn warn_of_missing_keys(ledger: &Ledger, keys: &KeyDir) -> Result<(), KeyFileError> {
    let held = keys.agent_names()?;
    for agent in ledger.book().agents().keys().filter(|agent| !held.contains(agent)) {
        let path = keys.agent_path(*agent);
        tracing::warn!(
            agent = agent.did(),
            path = %path.display(),
            "the key of an agent is missing, so it cannot spend; restore the file from a backup, \
             or import the agent's bundle"
        );
    }
    Ok(())
}

/// The charter of a mesh of one, with room for the lines of those its owner invites.
fn mesh_of_one(node: &SecretKey, own_line: Trm) -> Result<Signed<Charter>, StartError> {
    let mut charter = Charter::founder(MESH_NAME, node.public(), own_line);
    let invited = charter.params.line_default.micro().saturating_mul(INVITED_MAX);
    charter.line_total = Trm::from_micro(own_line.micro().saturating_add(invited));
    Signed::sign(Charter::founding_mesh(), node, charter).map_err(|error| {
        // The charter of a mesh of one is a few hundred bytes long.
        StartError::Accounts(SubmitError::Stopped { reason: error.to_string() })
    })
}

/// The beginning of a book in the mesh that `charter` founds, and the agent of its owner. An
/// agent's key that a killed first start left behind is used.
fn genesis(
    keys: &KeyDir,
    node: &SecretKey,
    charter: &Signed<Charter>,
) -> Result<Genesis, StartError> {
    let personal = match keys.agents()?.into_iter().next() {
        Some(key) => key,
        None => {
            let key = keys::new_key()?;
            keys.keep_agent(&key)?;
            key
        }
    };
    Ok(Genesis {
        mesh: MeshId::from_bytes(*charter.id().as_bytes()),
        party: node.public().party(),
        personal: personal.public().agent(),
        charter: charter.bytes().to_vec(),
        charter_signature: charter.signature(),
        created_at: now(),
    })
}

/// The state at the end of the journal, from the newest snapshot or from the beginning.
fn replay(opening: &Opening) -> Result<Ledger, StoreError> {
    let mut ledger = match opening.snapshot() {
        Some(snapshot) => {
            let ledger = Ledger::restore(&snapshot.body)
                .map_err(|error| opening.contradiction(error.to_string()))?;
            if ledger.state_hash() != snapshot.state_hash {
                return Err(opening.contradiction("its snapshot does not have its state's hash"));
            }
            ledger
        }
        None => beginning(opening.genesis()).map_err(|what| opening.contradiction(what))?,
    };
    opening.replay(|event| ledger.apply(&event))?;
    ledger.check_invariants().map_err(|what| opening.contradiction(what))?;
    Ok(ledger)
}

fn beginning(genesis: &Genesis) -> Result<Ledger, String> {
    let charter = Signed::from_store(
        Charter::founding_mesh(),
        genesis.charter.clone(),
        genesis.charter_signature,
    );
    let charter = charter.map_err(|error| error.to_string())?;
    let lattice = Lattice::found(&charter).map_err(|error| error.to_string())?;
    if lattice.mesh() != genesis.mesh {
        return Err("its charter is of another mesh".to_owned());
    }
    Ok(Ledger::new(lattice, genesis.party))
}
