//! The digest of a model file, remembered for large files.

use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use tirami_core::{Digest, ModelDigest};

use crate::gguf::GgufFile;

/// Files below this many bytes are read every time; it takes less than a second.
pub const REMEMBERED_BYTES_MIN: u64 = 1 << 30;

/// blake3 of the file's bytes, or of all shards in order.
///
/// With a `cache` folder the digest of a large file is remembered there under its path, size and
/// time of change, and taken from there while none of them changes.
///
/// # Errors
///
/// The file system's error while reading the model. A cache that cannot be used costs only time.
pub fn file_digest(file: &GgufFile, cache: Option<&Path>) -> io::Result<ModelDigest> {
    let Some(cache) = cache.filter(|_| file.size_bytes >= REMEMBERED_BYTES_MIN) else {
        return file.digest();
    };
    remembered(file, cache)
}

fn remembered(file: &GgufFile, cache: &Path) -> io::Result<ModelDigest> {
    let entry = entry_path(file, cache)?;
    let known = std::fs::read_to_string(&entry).ok().and_then(|text| text.trim().parse().ok());
    if let Some(digest) = known {
        return Ok(digest);
    }
    let digest = file.digest()?;
    // A file that changed while it was read must not be remembered.
    if entry_path(file, cache)? == entry {
        let kept = std::fs::create_dir_all(cache)
            .and_then(|()| std::fs::write(&entry, format!("{digest}\n")));
        if let Err(error) = kept {
            tracing::debug!("cannot remember the model's digest: {error}");
        }
    }
    Ok(digest)
}

/// The name of the cache's entry, which changes with every file's path, size and time.
fn entry_path(file: &GgufFile, cache: &Path) -> io::Result<PathBuf> {
    let mut state = String::new();
    for path in &file.paths {
        let metadata = path.metadata()?;
        let changed = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = path.canonicalize()?;
        state += &format!("{}\n{}\n{}\n", path.display(), metadata.len(), changed.as_nanos());
    }
    Ok(cache.join(Digest::of(state.as_bytes()).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tirami_core::ModelShape;

    #[test]
    fn a_digest_is_remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("digests");
        let paths = ["a", "b"].map(|name| folder.path().join(name)).to_vec();
        std::fs::write(&paths[0], "one").unwrap();
        std::fs::write(&paths[1], "two").unwrap();
        let shape =
            ModelShape { parameters_active: 1, layers: 1, attention_width: 1, context_max: 1 };
        let file = GgufFile {
            paths,
            projector: None,
            size_bytes: 6,
            architecture: String::new(),
            quantisation: String::new(),
            shape,
            width: 8,
            cached_per_token: 0,
            vocabulary: 0,
            chat_template: None,
            pooling: None,
        };
        let digest = remembered(&file, &cache).unwrap();
        assert_eq!(digest.as_bytes(), Digest::of(b"onetwo").as_bytes());
        let entry = entry_path(&file, &cache).unwrap();
        std::fs::write(&entry, "07".repeat(32)).unwrap();
        assert_eq!(remembered(&file, &cache).unwrap(), ModelDigest::from_bytes([7; 32]));
        std::fs::write(&entry, "damaged").unwrap();
        assert_eq!(remembered(&file, &cache).unwrap(), digest);
        std::fs::write(&file.paths[1], "three").unwrap();
        assert_ne!(remembered(&file, &cache).unwrap(), digest);
    }
}
