//! The file that says where the API of a running node listens, so that commands of its machine
//! find the node by its data directory alone.
//!
//! It is a convenience, not a record: where it is missing, damaged or old, a command asks where the
//! settings say. A node that was killed leaves its file, and any program may have its port then, so
//! the file is believed only while a node holds the lock of the directory; a start removes the old
//! one as soon as it holds it.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::keys::private_file;
use crate::store::DirLock;

/// The file in the data directory.
const FILE: &str = "api_url";
/// Bytes of the file that are read at most: more than any URL of an address has.
const FILE_BYTES_MAX: u64 = 128;
/// What stands before the address.
const SCHEME: &str = "http://";

/// Where a node that listens on `address` is reached from its own machine.
pub fn url_from_here(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("{SCHEME}{}", SocketAddr::new(ip, address.port()))
}

/// Where the node that runs with this data directory is reached, as it wrote; none where it wrote
/// nothing or runs no more.
pub fn read_api_address(data_dir: &Path) -> Option<SocketAddr> {
    if !DirLock::is_held(data_dir) {
        return None;
    }
    let mut text = String::new();
    let file = File::open(data_dir.join(FILE)).ok()?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim_end().strip_prefix(SCHEME)?.parse().ok()
}

/// The file of a node that runs.
#[derive(Debug)]
pub(crate) struct ApiFile {
    path: PathBuf,
}

impl ApiFile {
    /// Writes down that the API listens on `address`. A failure costs nothing but that commands
    /// have to be told, so it is only logged.
    pub(crate) fn write(data_dir: &Path, address: SocketAddr) -> Self {
        let path = data_dir.join(FILE);
        if let Err(error) = replace(&path, &format!("{}\n", url_from_here(address))) {
            tracing::warn!(%error, "where the API listens cannot be written down");
        }
        Self { path }
    }

    /// Removes what a node that was killed has left.
    pub(crate) fn remove_old(data_dir: &Path) {
        Self { path: data_dir.join(FILE) }.remove();
    }

    /// Removes it: the API listens no more.
    pub(crate) fn remove(self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the file of where the API listened cannot be removed");
            }
            _ => {}
        }
    }
}

/// Whole or not at all. It is not synced: after a power cut no node listens there.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = private_file().create(true).truncate(true).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_says_where_its_node_is_reached_until_that_stops() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        assert_eq!(read_api_address(dir.path()), None);
        for (listens, reached) in [
            ("127.0.0.1:3007", "127.0.0.1:3007"),
            ("0.0.0.0:3007", "127.0.0.1:3007"),
            ("[::]:65535", "[::1]:65535"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ] {
            let file = ApiFile::write(dir.path(), listens.parse().unwrap());
            assert_eq!(read_api_address(dir.path()), Some(reached.parse().unwrap()));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing beside the lock");
            file.remove();
            assert_eq!(read_api_address(dir.path()), None);
        }
        for damaged in ["", "http://", "http://localhost:1", "127.0.0.1:1", "http://1.2.3.4:99999"]
        {
            fs::write(dir.path().join(FILE), damaged).unwrap();
            assert_eq!(read_api_address(dir.path()), None, "{damaged}");
        }
        ApiFile::write(dir.path(), "127.0.0.1:3007".parse().unwrap());
        drop(lock);
        assert_eq!(read_api_address(dir.path()), None, "the node was killed");
        let _lock = DirLock::take(dir.path()).unwrap();
        ApiFile::remove_old(dir.path());
        assert_eq!(read_api_address(dir.path()), None, "another one starts");
    }
}
