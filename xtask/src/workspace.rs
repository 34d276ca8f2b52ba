//! Where things are: the workspace's root, its crates, its files and its build output.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Failure, Outcome};

/// Folders that hold no source of ours.
const NOT_SOURCE: [&str; 4] = ["target", ".git", ".cache", "node_modules"];

/// The root of the workspace: the folder above this crate.
pub(crate) fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_path_buf()
}

/// Where cargo puts its output: `CARGO_TARGET_DIR`, else `target` in the root.
pub(crate) fn target_dir() -> PathBuf {
    let root = root();
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir),
        None => root.join("target"),
    }
}

/// An executable of this workspace as the release profile leaves it.
pub(crate) fn release_binary(name: &str) -> PathBuf {
    target_dir().join("release").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// Reads a text file; the failure names it.
pub(crate) fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))
}

/// Writes a file and the folders above it; the failure names it.
pub(crate) fn write(path: &Path, text: &str) -> Outcome<()> {
    write_bytes(path, text.as_bytes())
}

/// The same for what is no text.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, bytes))
        .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
}

/// Copies a text file of this name from one folder into another.
pub(crate) fn copy_text(from: &Path, to: &Path, name: &str) -> Outcome<()> {
    write(&to.join(name), &read(&from.join(name))?)
}

/// All files of the workspace, as paths relative to `root` with `/`, in order.
///
/// Build output and version control are left out, so the answer does not need git.
pub(crate) fn files(root: &Path) -> Outcome<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .map_err(|error| Failure::new(format!("cannot list {}: {error}", folder.display())))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if !NOT_SOURCE.iter().any(|skipped| name == *skipped) {
                    folders.push(path);
                }
            } else if let Ok(relative) = path.strip_prefix(root) {
                found.push(relative.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The folders of the workspace's packages, relative to the root: `crates/*` and `xtask`.
pub(crate) fn packages(files: &[String]) -> Vec<String> {
    files
        .iter()
        .filter_map(|file| file.strip_suffix("/Cargo.toml"))
        .filter(|folder| *folder == "xtask" || folder.starts_with("crates/"))
        .map(str::to_owned)
        .collect()
}
