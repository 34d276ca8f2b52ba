//! One file from an HTTP server to disk: resumed, verified, and only then under its name.
//!
//! Bytes go to `FILE.part`, the server's version mark to `FILE.part.etag`, and `FILE.lock` keeps
//! a second download of the same file away. `FILE` itself appears whole or not at all.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use sha2::{Digest as _, Sha256};

/// Attempts in a row that may bring nothing.
pub const ATTEMPTS_MAX: u32 = 5;
/// Redirections one attempt follows.
pub const REDIRECTS_MAX: usize = 5;
/// The largest file that is downloaded.
pub const DOWNLOAD_BYTES_MAX: u64 = 1 << 40;
/// How often a lock is tried that another process removes.
const LOCK_TRIES: u32 = 8;
/// A server that sends nothing for this long is given up for this attempt.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes on disk.
    pub received_bytes: u64,
    /// Bytes of the whole file, once known.
    pub total_bytes: Option<u64>,
}

/// What the file must be; what is `None` is taken from the server's own claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Bytes of the file.
    pub size_bytes: Option<u64>,
    /// sha256 in lower-case hex.
    pub sha256: Option<String>,
}

/// Why there is no file. Nothing stands under its name.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Another process is downloading the same file.
    #[error("{} is being downloaded by another process; wait for it", .0.display())]
    Busy(PathBuf),
    /// The address is not one to download from.
    #[error("{0} is not an address to download from")]
    Address(String),
    /// The server has no such file or does not give it.
    #[error("the server answered {status} for {url}; check the model's name and your access")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The address.
        url: String,
    },
    /// The connection failed again and again.
    #[error("the download stopped after {attempts} attempts: {reason}; run it again to go on")]
    GaveUp {
        /// Attempts in a row that brought nothing.
        attempts: u32,
        /// The last attempt's failure.
        reason: String,
    },
    /// The file has another length than it must have.
    #[error("the file has {found} bytes instead of {expected}; it was discarded, try again")]
    Length {
        /// Bytes it must have.
        expected: u64,
        /// Bytes received or announced.
        found: u64,
    },
    /// The bytes are not the right ones.
    #[error("the file's sha256 is {found} instead of {expected}; it was discarded, try again")]
    Corrupt {
        /// The right digest.
        expected: String,
        /// The digest of what was received.
        found: String,
    },
    /// The server names no digest to verify the file with.
    #[error("the server does not say what {url} must be, so it cannot be verified")]
    Unverifiable {
        /// The address.
        url: String,
    },
    /// The disk refuses.
    #[error("cannot write {}: {source}", .path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// The file system's error.
        source: io::Error,
    },
}

/// Downloads `url` to `target` and verifies it.
///
/// # Errors
///
/// [`DownloadError`]; `target` exists only after success. What arrived of a good file is kept
/// beside it, and the next call goes on from there.
pub async fn download(
    url: &str,
    target: &Path,
    expected: Expected,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(), DownloadError> {
    let _lock = lock(target)?;
    let mut transfer = Transfer {
        url: Url::parse(url).map_err(|_| DownloadError::Address(url.to_owned()))?,
        client: client()?,
        part: beside(target, ".part"),
        mark: beside(target, ".part.etag"),
        expected,
        progress,
    };
    let mut attempts = 0;
    loop {
        let before = transfer.part_bytes();
        match transfer.attempt().await {
            Ok(()) => return transfer.finish(target).await,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(reason)) => {
                attempts = if transfer.part_bytes() > before { 1 } else { attempts + 1 };
                if attempts >= ATTEMPTS_MAX {
                    return Err(DownloadError::GaveUp { attempts, reason });
                }
                tracing::debug!("download attempt {attempts}: {reason}");
                tokio::time::sleep(Duration::from_millis(100) * 3_u32.pow(attempts - 1)).await;
            }
        }
    }
}

/// `FILE` and an ending.
pub(crate) fn beside(target: &Path, ending: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Holds the file's lock until dropped. The lock file stays until the model is removed; it is
/// empty.
pub(crate) fn lock(target: &Path) -> Result<File, DownloadError> {
    let path = beside(target, ".lock");
    let disk = |source| DownloadError::Disk { path: path.clone(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(disk)?;
    }
    for _ in 0..LOCK_TRIES {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(disk)?;
        match file.try_lock() {
            Ok(()) if stands_at(&file, &path) => return Ok(file),
            // Who removed the model removed this lock file in the same moment.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => break,
            Err(TryLockError::Error(source)) => return Err(disk(source)),
        }
    }
    Err(DownloadError::Busy(target.to_owned()))
}

/// Whether `path` still names the open file.
#[cfg(unix)]
fn stands_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number =
        |metadata: io::Result<std::fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    number(file.metadata()) == number(path.metadata())
}

/// An open file cannot be removed.
#[cfg(not(unix))]
fn stands_at(_: &File, _: &Path) -> bool {
    true
}

/// sha256 of a file in lower-case hex.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Puts a finished file under its name so that a crash leaves the whole file or none.
pub(crate) fn land(part: &Path, target: &Path) -> Result<(), DownloadError> {
    let move_it = || {
        File::open(part)?.sync_all()?;
        std::fs::rename(part, target)?;
        match target.parent() {
            Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    move_it().map_err(|source| DownloadError::Disk { path: target.to_owned(), source })
}

fn client() -> Result<Client, DownloadError> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another part of the process may have chosen already; any choice serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(SILENCE_MAX)
        .user_agent(concat!("tirami/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| DownloadError::GaveUp { attempts: 1, reason: in_full(&error) })
}

/// An error with its causes, which is where HTTP clients put what matters.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

enum Failure {
    /// Trying again may help.
    Passing(String),
    Final(DownloadError),
}

impl From<DownloadError> for Failure {
    fn from(error: DownloadError) -> Self {
        Self::Final(error)
    }
}

struct Transfer<'a> {
    url: Url,
    client: Client,
    part: PathBuf,
    mark: PathBuf,
    expected: Expected,
    progress: &'a (dyn Fn(Progress) + Send + Sync),
}

impl Transfer<'_> {
    fn part_bytes(&self) -> u64 {
        self.part.metadata().map_or(0, |metadata| metadata.len())
    }

    fn disk(&self) -> impl Fn(io::Error) -> Failure {
        let path = self.part.clone();
        move |source| Failure::Final(DownloadError::Disk { path: path.clone(), source })
    }

    fn discard(&self) {
        // What is not there needs no removal.
        let _ = std::fs::remove_file(&self.part);
        let _ = std::fs::remove_file(&self.mark);
    }

    /// One connection: asks for what is missing and writes what comes.
    async fn attempt(&mut self) -> Result<(), Failure> {
        let mark = std::fs::read_to_string(&self.mark).unwrap_or_default();
        let mut have = if mark.is_empty() { 0 } else { self.part_bytes() };
        if have > 0 && self.expected.size_bytes == Some(have) {
            return Ok(());
        }
        let mut response = self.request(have, &mark).await?;
        let continues = response.status() == StatusCode::PARTIAL_CONTENT
            && range_start(response.headers()) == Some(have);
        match response.status() {
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT if continues => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.discard();
                return Err(Failure::Passing("the server sent another part".to_owned()));
            }
            status if status.is_server_error() || [408, 425, 429].contains(&status.as_u16()) => {
                return Err(Failure::Passing(format!("the server answered {status}")));
            }
            status => {
                let (status, url) = (status.as_u16(), self.url.to_string());
                return Err(DownloadError::Refused { status, url }.into());
            }
        }
        if !continues {
            have = 0;
        }
        self.check_announced(have, &response)?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.part)
            .map_err(self.disk())?;
        file.set_len(have).map_err(self.disk())?;
        file.seek(SeekFrom::Start(have)).map_err(self.disk())?;
        let strong = |mark: &&HeaderValue| !mark.as_bytes().starts_with(b"W/");
        let mark = response.headers().get(ETAG).filter(strong).map(HeaderValue::as_bytes);
        std::fs::write(&self.mark, mark.unwrap_or_default()).map_err(self.disk())?;
        self.receive(&mut response, &mut file, have).await
    }

    /// Follows redirections and keeps what the servers on the way say about the file.
    async fn request(&mut self, have: u64, mark: &str) -> Result<Response, Failure> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.client.get(url.clone());
            if have > 0 {
                request = request.header(RANGE, format!("bytes={have}-")).header(IF_RANGE, mark);
            }
            let response =
                request.send().await.map_err(|error| Failure::Passing(in_full(&error)))?;
            self.note_claims(response.headers());
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let next = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let next = next.and_then(|next| url.join(next).ok());
            // A redirection must not leave an encrypted connection.
            let next = next.filter(|next| next.scheme() == "https" || url.scheme() == "http");
            url = next.ok_or_else(|| DownloadError::Address(url.to_string()))?;
        }
        Err(DownloadError::Address(format!("{} (too many redirections)", self.url)).into())
    }

    /// The hub names the size and sha256 of a large file when it redirects to it.
    fn note_claims(&mut self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if self.expected.size_bytes.is_none() {
            self.expected.size_bytes = text("x-linked-size").and_then(|size| size.parse().ok());
        }
        if self.expected.sha256.is_none() {
            let digest = text("x-linked-etag").map(|etag| etag.trim_matches('"'));
            let is_sha256 =
                |digest: &&str| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
            self.expected.sha256 = digest.filter(is_sha256).map(str::to_ascii_lowercase);
        }
    }

    /// Refuses a file whose announced length is wrong before anything is written.
    fn check_announced(&mut self, have: u64, response: &Response) -> Result<(), Failure> {
        let url = || self.url.to_string();
        if self.expected.sha256.is_none() {
            return Err(DownloadError::Unverifiable { url: url() }.into());
        }
        let announced = response.content_length().map(|rest| have.saturating_add(rest));
        let expected = self.expected.size_bytes.or(announced).unwrap_or(DOWNLOAD_BYTES_MAX);
        if expected > DOWNLOAD_BYTES_MAX || announced.is_some_and(|found| found != expected) {
            self.discard();
            let found = announced.unwrap_or(expected);
            let expected = expected.min(DOWNLOAD_BYTES_MAX);
            return Err(DownloadError::Length { expected, found }.into());
        }
        Ok(())
    }

    async fn receive(
        &self,
        response: &mut Response,
        file: &mut File,
        mut have: u64,
    ) -> Result<(), Failure> {
        let total_bytes = self.expected.size_bytes;
        let most = total_bytes.unwrap_or(DOWNLOAD_BYTES_MAX);
        let tell = |received_bytes| (self.progress)(Progress { received_bytes, total_bytes });
        tell(have);
        loop {
            let chunk = response.chunk().await;
            match chunk.map_err(|error| Failure::Passing(in_full(&error)))? {
                None if total_bytes.is_none_or(|total| total == have) => return Ok(()),
                None => return Err(Failure::Passing("the connection ended early".to_owned())),
                Some(bytes) => {
                    have += bytes.len() as u64;
                    if have > most {
                        self.discard();
                        return Err(DownloadError::Length { expected: most, found: have }.into());
                    }
                    file.write_all(&bytes).map_err(self.disk())?;
                    tell(have);
                }
            }
        }
    }

    async fn finish(&self, target: &Path) -> Result<(), DownloadError> {
        let expected = self.expected.sha256.clone().unwrap_or_default();
        let (part, to) = (self.part.clone(), target.to_owned());
        let disk = |source| DownloadError::Disk { path: self.part.clone(), source };
        let found = tokio::task::spawn_blocking(move || sha256_of(&part))
            .await
            .map_err(|error| disk(io::Error::other(error)))?
            .map_err(disk)?;
        if found != expected {
            self.discard();
            return Err(DownloadError::Corrupt { expected, found });
        }
        land(&self.part, &to)?;
        let _ = std::fs::remove_file(&self.mark);
        Ok(())
    }
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}
