//! Invites: one word with the mesh, nodes to ask, and in a private mesh its secret.
//!
//! The word itself says nothing of how often it may be used: whoever has it could leave that out.
//! The registrar's node keeps the count, in a file of the data directory, and enrols nobody beyond
//! it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use tirami_core::{DAY_MS, Timestamp};
use tirami_kernel::mesh::{Admission, MeshInput};
use tirami_proto::{INVITE_PEERS_MAX, Invite, PeerAddress};

use super::{MeshError, Shared, lock};
use crate::clock::now;

/// Newcomers that one invite brings in, unless its owner says otherwise.
pub const INVITE_USES: u32 = 8;
/// How long an invite brings in newcomers, unless its owner says otherwise: a week.
pub const INVITE_LIFE_MS: u64 = 7 * DAY_MS;

/// The file in the data directory.
const FILE: &str = "admission";

/// Whom an invite brings in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// How many are enrolled.
    pub(crate) uses: u32,
    /// For how long.
    pub(crate) life_ms: u64,
    /// A secret in place of the one in earlier invites.
    pub(crate) secret: Option<[u8; 32]>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { uses: INVITE_USES, life_ms: INVITE_LIFE_MS, secret: None }
    }
}

/// An invite to the mesh of this node, with this node first and those it is connected to after.
pub(super) fn named(shared: &Shared) -> Invite {
    let mut peers = vec![shared.own_address()];
    let reached = shared.peers.reached().into_iter();
    peers.extend(reached.map(|(peer, way)| PeerAddress { key: peer.into(), via: vec![way] }));
    peers.truncate(INVITE_PEERS_MAX);
    let settings = &lock(&shared.settings).settings;
    let secret = if settings.public { None } else { settings.secret };
    Invite { mesh: shared.handle.mesh(), peers, secret }
}

/// Lets the registrar enrol as many newcomers as `terms` say, and makes the invite; says what is
/// then left. Durable when this returns; the kernel hears of it a moment later.
pub(super) async fn make(shared: &Shared, terms: Terms) -> Result<(Invite, Admission), MeshError> {
    let _turn = shared.inviting.lock().await;
    let enrolled = shared.handle.read(|kernel, _| kernel.enrolled()).await?;
    let (now, before) = (now(), lock(&shared.settings).settings.admission);
    let wanted = (terms.uses, now.plus_ms(terms.life_ms));
    let admission = Admission::extended(before, (enrolled, now), wanted);
    keep(shared, admission, terms.secret).await?;
    Ok((named(shared), admission))
}

/// The owner enrolled somebody, who is on the roll now: that takes no use from the invites.
pub(super) async fn enrolled_by_hand(shared: &Shared) -> Result<(), MeshError> {
    let _turn = shared.inviting.lock().await;
    let before = lock(&shared.settings).settings.admission;
    let Some(before) = before else { return Ok(()) };
    let enrolled_max = before.enrolled_max.saturating_add(1);
    keep(shared, Admission { enrolled_max, ..before }, None).await
}

async fn keep(
    shared: &Shared,
    admission: Admission,
    secret: Option<[u8; 32]>,
) -> Result<(), MeshError> {
    let path = shared.data_dir.join(FILE);
    write(&path, admission)
        .map_err(|error| MeshError::Invite { path, reason: error.to_string() })?;
    let settings = {
        let settings = &mut lock(&shared.settings).settings;
        settings.admission = Some(admission);
        settings.secret = secret.or(settings.secret);
        settings.clone()
    };
    shared.handle.mesh_input(MeshInput::Settings(settings)).await?;
    Ok(())
}

/// How many may still come. A missing or damaged file lets in nobody until the next invite.
pub(crate) fn admission(data_dir: &Path) -> Option<Admission> {
    let text = fs::read_to_string(data_dir.join(FILE)).ok()?;
    let (enrolled_max, expires_ms) = text.trim().split_once(' ')?;
    let expires_at = Timestamp::from_ms(expires_ms.parse().ok()?);
    Some(Admission { enrolled_max: enrolled_max.parse().ok()?, expires_at })
}

fn write(path: &Path, admission: Admission) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    writeln!(file, "{} {}", admission.enrolled_max, admission.expires_at.ms())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_still_come_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(admission(dir.path()), None);
        let known = Admission { enrolled_max: 9, expires_at: Timestamp::from_ms(1_234) };
        write(&dir.path().join(FILE), known).unwrap();
        assert_eq!(admission(dir.path()), Some(known));
        fs::write(dir.path().join(FILE), "many").unwrap();
        assert_eq!(admission(dir.path()), None);
    }
}
