//! The peers file: addresses of nodes that were reached, so that a restart needs no bootstrap.
//!
//! It is a convenience, not a record: a missing, old or damaged file only makes a start slower.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use tirami_core::PartyId;
use tirami_proto::{PeerAddress, VIA_MAX, Via};

/// Peers kept, the latest first.
pub const REMEMBERED_MAX: usize = 256;
/// Bytes of the file that are read at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
const FILE: &str = "peers";

/// Peers that were reached, the latest first.
#[derive(Debug)]
pub(super) struct Remembered {
    path: PathBuf,
    peers: Vec<PeerAddress>,
    changed: bool,
}

impl Remembered {
    /// Reads the file of a data directory. Lines that are no addresses are left out.
    pub(super) fn read(data_dir: &Path) -> Self {
        let path = data_dir.join(FILE);
        let mut text = String::new();
        let read =
            File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the remembered peers cannot be read");
            }
            _ => {}
        }
        let peers = text.lines().filter_map(|line| line.parse().ok()).take(REMEMBERED_MAX);
        Self { peers: peers.collect(), path, changed: false }
    }

    pub(super) fn peers(&self) -> &[PeerAddress] {
        &self.peers
    }

    pub(super) fn get(&self, party: PartyId) -> Option<&PeerAddress> {
        self.peers.iter().find(|peer| peer.party() == party)
    }

    /// The peer was reached through `way`: it comes first, and so does this way.
    pub(super) fn reached(&mut self, party: PartyId, way: Via) {
        if self
            .peers
            .first()
            .is_some_and(|first| first.party() == party && first.via.first() == Some(&way))
        {
            return;
        }
        let at = self.peers.iter().position(|peer| peer.party() == party);
        let mut peer = match at {
            Some(at) => self.peers.remove(at),
            None => PeerAddress { key: party.into(), via: Vec::new() },
        };
        peer.via.retain(|known| *known != way);
        peer.via.insert(0, way);
        peer.via.truncate(VIA_MAX);
        self.peers.insert(0, peer);
        self.peers.truncate(REMEMBERED_MAX);
        self.changed = true;
    }

    /// Forgets a peer that does not belong here.
    pub(super) fn forget(&mut self, party: PartyId) {
        let before = self.peers.len();
        self.peers.retain(|peer| peer.party() != party);
        self.changed |= self.peers.len() != before;
    }

    /// What is to be written, when something changed since this was last asked.
    pub(super) fn take_changed(&mut self) -> Option<(PathBuf, String)> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let lines = self.peers.iter().map(|peer| format!("{peer}\n"));
        Some((self.path.clone(), lines.collect()))
    }
}

/// Replaces the file. A failure costs nothing but the memory of peers, so it is only told.
pub(super) fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let written = File::create(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&new, path));
    if let Err(error) = written {
        tracing::warn!(%error, "the peers cannot be remembered");
    }
}

#[cfg(test)]
mod tests {
    use tirami_core::SecretKey;

    use super::*;

    #[test]
    fn the_latest_peer_and_its_latest_way_come_first_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let party = |seed: u8| SecretKey::from_seed([seed; 32]).public().party();
        let way = |port: u16| Via::Ip(([192, 0, 2, 1], port).into());
        let mut peers = Remembered::read(dir.path());
        for (seed, port) in [(1, 1), (2, 2), (1, 3), (3, 3)] {
            peers.reached(party(seed), way(port));
        }
        peers.forget(party(3));
        let (path, text) = peers.take_changed().unwrap();
        write(&path, &format!("{text}no address\n"));
        assert_eq!(peers.take_changed(), None);
        let again = Remembered::read(dir.path());
        assert_eq!(again.peers(), peers.peers());
        assert_eq!(again.peers()[0].via, [way(3), way(1)]);
        assert_eq!(again.get(party(2)).unwrap().via, [way(2)]);
    }

    #[test]
    fn many_peers_leave_the_file_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut peers = Remembered::read(dir.path());
        for n in 0..2 * REMEMBERED_MAX as u16 {
            let mut bytes = [7; 32];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            peers.reached(PartyId::from_bytes(bytes), Via::Ip(([192, 0, 2, 1], 1 + n).into()));
        }
        assert_eq!(peers.peers().len(), REMEMBERED_MAX);
    }
}
