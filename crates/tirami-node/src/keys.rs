//! The secret keys of a data directory: made once, synced before use, readable by nobody else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tirami_core::{AgentId, JobId, SecretKey};
use tirami_ledger::book::KeyId;
use zeroize::Zeroizing;

use crate::store::sync_dir;

const KEYS_DIR: &str = "keys";
const NODE_KEY: &str = "node.key";
/// The secret that lets newcomers into a private mesh.
const MESH_SECRET: &str = "mesh.secret";
/// The admin API key's file in the data directory.
pub const API_KEY_FILE: &str = "api_token";

/// Why a secret file cannot be used or made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyFileError {
    /// Somebody else could read it.
    #[error(
        "{path} can be read by others (mode {mode:o}); nothing was signed with it; \
         run `chmod {wanted:o} {path}`, and replace the secret if somebody may have seen it"
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// It does not hold a key.
    #[error(
        "{path} does not hold a secret key (64 hexadecimal characters); it was left as it is; \
         restore it from a backup"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// It holds the key of somebody else.
    #[error("{path} holds another key than its name says; restore it from a backup")]
    WrongKey {
        /// The file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{path} could not be {what}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a participle.
        what: &'static str,
        /// The operating system's reason.
        source: Arc<io::Error>,
    },
    /// The system gives no randomness.
    #[error("the system gave no random bytes for a new key; start again when it does")]
    Random,
}

impl KeyFileError {
    fn io(path: &Path, what: &'static str, error: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), what, source: Arc::new(error) }
    }
}

/// `N` bytes from the operating system's generator.
///
/// # Errors
///
/// [`KeyFileError::Random`] when it has none.
pub fn random<const N: usize>() -> Result<[u8; N], KeyFileError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| KeyFileError::Random)?;
    Ok(bytes)
}

/// The id of a new job: the time in milliseconds in six bytes, and ten random ones, as in a UUID of
/// version 7 (RFC 9562). Ids of the same time stand side by side in every index, so that a job
/// changes a page of it that others have just changed.
///
/// # Errors
///
/// [`KeyFileError::Random`] when the system has no randomness.
pub(crate) fn job_id() -> Result<JobId, KeyFileError> {
    let mut bytes = random::<16>()?;
    let [_, _, time @ ..] = crate::clock::now().ms().to_be_bytes();
    bytes[..time.len()].copy_from_slice(&time);
    Ok(JobId::from_bytes(bytes))
}

/// A new secret key.
///
/// # Errors
///
/// [`KeyFileError::Random`] when the system has no randomness.
pub fn new_key() -> Result<SecretKey, KeyFileError> {
    Ok(SecretKey::from_seed(random()?))
}

/// A new API key: its public name and the secret text, which is shown once.
pub struct ApiKeyText {
    /// The eight characters after `tirami_`.
    pub key: KeyId,
    /// `tirami_<8 hex>_<43 characters of URL-safe base64>`.
    pub text: Zeroizing<String>,
}

/// Draws an API key of 256 random bits.
///
/// # Errors
///
/// [`KeyFileError::Random`] when the system has no randomness.
pub fn new_api_key() -> Result<ApiKeyText, KeyFileError> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let key = KeyId::new(u32::from_le_bytes(random()?));
    let secret = Zeroizing::new(random::<32>()?);
    let mut text = Zeroizing::new(format!("tirami_{key}_"));
    for group in secret.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - group.len()));
        for place in 0..=group.len() {
            let digit = bits >> (18 - 6 * place) & 63;
            text.push(char::from(ALPHABET[digit as usize]));
        }
    }
    Ok(ApiKeyText { key, text })
}

/// The keys of a data directory.
#[derive(Debug, Clone)]
pub struct KeyDir {
    dir: PathBuf,
}

impl KeyDir {
    /// Opens the directory of keys, creating it for its owner only.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`] when it cannot be made or others can enter it.
    pub fn open(data_dir: &Path) -> Result<Self, KeyFileError> {
        let dir = data_dir.join(KEYS_DIR);
        match create_private_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(KeyFileError::io(&dir, "created", error));
            }
            _ => {}
        }
        sync_dir(data_dir).map_err(|error| KeyFileError::io(data_dir, "synced", error))?;
        check_private(&dir, 0o700)?;
        Ok(Self { dir })
    }

    /// Whether the node has a key.
    pub(crate) fn has_node_key(&self) -> bool {
        self.dir.join(NODE_KEY).exists()
    }

    /// The node's key, made now if there is none.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`] when the file is exposed, damaged, or cannot be made.
    pub fn node_key(&self) -> Result<SecretKey, KeyFileError> {
        let path = self.dir.join(NODE_KEY);
        if path.exists() {
            return read_key(&path);
        }
        let key = new_key()?;
        write_key(&path, &key)?;
        Ok(key)
    }

    /// The secret that lets newcomers into the mesh, made now if there is none.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`] when the file is exposed, damaged, or cannot be made.
    pub fn mesh_secret(&self) -> Result<[u8; 32], KeyFileError> {
        let path = self.dir.join(MESH_SECRET);
        if path.exists() {
            return Ok(read_key(&path)?.seed());
        }
        let secret = random()?;
        self.keep_mesh_secret(secret)?;
        Ok(secret)
    }

    /// Keeps the secret of the mesh in place of any other: synced when this returns.
    ///
    /// # Errors
    ///
    /// [`KeyFileError::Io`] when it cannot be written.
    pub fn keep_mesh_secret(&self, secret: [u8; 32]) -> Result<(), KeyFileError> {
        write_key(&self.dir.join(MESH_SECRET), &SecretKey::from_seed(secret))
    }

    /// Replaces the secret of the mesh by a new one: synced when this returns.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`] when none can be made or written; the old one stays.
    pub fn renew_mesh_secret(&self) -> Result<[u8; 32], KeyFileError> {
        let secret = random()?;
        self.keep_mesh_secret(secret)?;
        Ok(secret)
    }

    /// Keeps an agent's key: synced when this returns.
    ///
    /// # Errors
    ///
    /// [`KeyFileError::Io`] when it cannot be written.
    pub fn keep_agent(&self, key: &SecretKey) -> Result<(), KeyFileError> {
        let path = self.agent_path(key.public().agent());
        if path.exists() {
            return read_key(&path).map(drop);
        }
        write_key(&path, key)
    }

    /// An agent's key; `None` when it is not here.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`] when the file is exposed or damaged.
    pub fn agent(&self, agent: AgentId) -> Result<Option<SecretKey>, KeyFileError> {
        let path = self.agent_path(agent);
        if path.exists() { read_key(&path).map(Some) } else { Ok(None) }
    }

    /// The agents whose key files are here, by the names of the files.
    ///
    /// # Errors
    ///
    /// [`KeyFileError::Io`] when the directory cannot be listed.
    pub(crate) fn agent_names(&self) -> Result<BTreeSet<AgentId>, KeyFileError> {
        let failed = |error| KeyFileError::io(&self.dir, "listed", error);
        let files = fs::read_dir(&self.dir).map_err(failed)?;
        files
            .filter_map(|file| file.map(|file| agent_of(&file.path())).map_err(failed).transpose())
            .collect()
    }

    /// The keys of all agents, in the order of their names.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`] of the first file that cannot be used.
    pub fn agents(&self) -> Result<Vec<SecretKey>, KeyFileError> {
        let failed = |error| KeyFileError::io(&self.dir, "listed", error);
        let mut keys = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if agent_of(&path).is_some() {
                keys.push(read_key(&path)?);
            }
        }
        keys.sort_by_key(|key| key.public());
        Ok(keys)
    }

    pub(crate) fn agent_path(&self, agent: AgentId) -> PathBuf {
        self.dir.join(format!("agent-{agent}.key"))
    }
}

/// Where the admin API key of a data directory is.
pub fn api_key_path(data_dir: &Path) -> PathBuf {
    data_dir.join(API_KEY_FILE)
}

/// The admin API key; `None` when there is no file.
///
/// # Errors
///
/// [`KeyFileError`] when the file is exposed or cannot be read.
pub fn read_api_key(data_dir: &Path) -> Result<Option<Zeroizing<String>>, KeyFileError> {
    let path = api_key_path(data_dir);
    if !path.exists() {
        return Ok(None);
    }
    read_private(&path).map(|text| Some(Zeroizing::new(text.trim_end().to_owned())))
}

/// Keeps the admin API key: synced when this returns.
///
/// # Errors
///
/// [`KeyFileError::Io`] when it cannot be written.
pub fn write_api_key(data_dir: &Path, key: &str) -> Result<(), KeyFileError> {
    write_private(&api_key_path(data_dir), &format!("{key}\n"))
}

/// Looks at every secret file of a data directory and changes nothing.
pub(crate) fn examine(data_dir: &Path) -> Result<String, String> {
    let dir = data_dir.join(KEYS_DIR);
    if !dir.exists() {
        return Ok("there are none yet; `tirami start` creates them".to_owned());
    }
    let examine = || -> Result<usize, KeyFileError> {
        check_private(&dir, 0o700)?;
        let keys = KeyDir { dir: dir.clone() };
        read_key(&dir.join(NODE_KEY))?;
        read_api_key(data_dir)?;
        Ok(keys.agents()?.len())
    };
    match examine() {
        Ok(agents) => Ok(format!("the node's key and the keys of {agents} agents are in order")),
        Err(error) => Err(error.to_string()),
    }
}

/// Compares the key files of a data directory with the agents of its book: the agents whose key
/// is missing, and those that have a key but no account.
///
/// # Errors
///
/// [`KeyFileError::Io`] when the directory cannot be listed.
pub(crate) fn compare_agents<'a>(
    data_dir: &Path,
    agents: impl Iterator<Item = &'a AgentId>,
) -> Result<(Vec<AgentId>, Vec<AgentId>), KeyFileError> {
    let keys = KeyDir { dir: data_dir.join(KEYS_DIR) };
    let mut held = if keys.dir.exists() { keys.agent_names()? } else { BTreeSet::new() };
    let missing = agents.filter(|agent| !held.remove(agent)).copied().collect();
    Ok((missing, held.into_iter().collect()))
}

/// Creates the data directory itself, for its owner only, or makes one that is there private.
/// Whatever comes first in a new directory calls this.
///
/// # Errors
///
/// The operating system's.
pub fn create_data_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return make_private(dir);
    }
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match create_private_dir(dir) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => make_private(dir),
        other => other,
    }
}

/// Takes every right of others to a file or directory that was there before.
///
/// # Errors
///
/// The operating system's.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode & !0o077))?;
        }
    }
    Ok(())
}

/// How a file is opened that only its owner may read, should it have to be made.
pub(crate) fn private_file() -> fs::OpenOptions {
    let mut options = File::options();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn create_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

#[cfg(unix)]
fn check_private(path: &Path, wanted: u32) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt as _;
    let file = fs::metadata(path).map_err(|error| KeyFileError::io(path, "examined", error))?;
    let mode = file.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(KeyFileError::Exposed { path: path.to_path_buf(), mode, wanted })
    }
}

/// Other systems keep a user's directory from others by itself.
#[cfg(not(unix))]
fn check_private(_: &Path, _: u32) -> Result<(), KeyFileError> {
    Ok(())
}

fn read_private(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    check_private(path, 0o600)?;
    let text = fs::read_to_string(path).map(Zeroizing::new);
    text.map_err(|error| KeyFileError::io(path, "read", error))
}

/// Writes a file whole or not at all, and its name into the directory, before it returns.
fn write_private(path: &Path, text: &str) -> Result<(), KeyFileError> {
    let failed = |error| KeyFileError::io(path, "written", error);
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = private_file().create_new(true).open(&new).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    match path.parent() {
        Some(dir) => sync_dir(dir).map_err(failed),
        None => Ok(()),
    }
}

fn write_key(path: &Path, key: &SecretKey) -> Result<(), KeyFileError> {
    let seed = Zeroizing::new(key.seed());
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in seed.iter() {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text.push('\n');
    write_private(path, &text)
}

fn read_key(path: &Path) -> Result<SecretKey, KeyFileError> {
    let text = read_private(path)?;
    let malformed = || KeyFileError::Malformed { path: path.to_path_buf() };
    let text = text.strip_suffix('\n').unwrap_or(&text).as_bytes();
    if text.len() != 64 {
        return Err(malformed());
    }
    let mut seed = Zeroizing::new([0; 32]);
    for (byte, pair) in seed.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or_else(malformed);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    let key = SecretKey::from_seed(*seed);
    match agent_of(path) {
        Some(agent) if agent != key.public().agent() => {
            Err(KeyFileError::WrongKey { path: path.to_path_buf() })
        }
        _ => Ok(key),
    }
}

/// The agent whose key a file is by its name.
fn agent_of(path: &Path) -> Option<AgentId> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("agent-")?.strip_suffix(".key")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_key_has_its_name_and_256_random_bits() {
        let (one, other) = (new_api_key().unwrap(), new_api_key().unwrap());
        assert_ne!(one.text, other.text);
        let parts: Vec<&str> = one.text.splitn(3, '_').collect();
        assert_eq!((parts[0], parts[1]), ("tirami", one.key.to_string().as_str()));
        assert_eq!(parts[2].len(), 43);
    }

    #[test]
    fn keys_are_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyDir::open(dir.path()).unwrap();
        let node = keys.node_key().unwrap();
        assert_eq!(KeyDir::open(dir.path()).unwrap().node_key().unwrap().public(), node.public());
        let agent = new_key().unwrap();
        keys.keep_agent(&agent).unwrap();
        keys.keep_agent(&agent).unwrap();
        let found: Vec<_> = keys.agents().unwrap().iter().map(SecretKey::public).collect();
        assert_eq!(found, [agent.public()]);
        assert!(examine(dir.path()).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyDir::open(dir.path()).unwrap();
        keys.node_key().unwrap();
        let path = dir.path().join("keys/node.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = keys.node_key().unwrap_err();
        assert!(matches!(error, KeyFileError::Exposed { mode: 0o644, .. }), "{error}");
        assert!(error.to_string().contains("chmod 600"));
        assert!(examine(dir.path()).is_err());
        fs::set_permissions(dir.path().join("keys"), fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(KeyDir::open(dir.path()), Err(KeyFileError::Exposed { .. })));
    }

    #[test]
    fn a_damaged_key_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyDir::open(dir.path()).unwrap();
        keys.node_key().unwrap();
        let path = dir.path().join("keys/node.key");
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in ["", "\n", &whole[..63], &whole.replace(&whole[..1], "x"), "é"] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(keys.node_key(), Err(KeyFileError::Malformed { .. })), "{damaged:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn a_key_under_the_name_of_another_agent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyDir::open(dir.path()).unwrap();
        let (one, other) = (new_key().unwrap(), new_key().unwrap());
        keys.keep_agent(&one).unwrap();
        let path = |key: &SecretKey| keys.agent_path(key.public().agent());
        fs::rename(path(&one), path(&other)).unwrap();
        assert!(matches!(keys.agents(), Err(KeyFileError::WrongKey { .. })));
    }
}
