//! What a book is about: the mesh, its first charter, the node's party. Written once, with the
//! file.

use std::path::Path;

use minicbor::{Decode, Encode};
use rusqlite::{Connection, OptionalExtension as _};
use tirami_core::{AgentId, MeshId, PartyId, Signature, Timestamp};

use super::StoreError;
use super::head::Checksum;
use super::row::decode;

/// The beginning of a book. The journal's checksums start from it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Genesis {
    /// The mesh.
    #[n(0)]
    pub mesh: MeshId,
    /// The node's party.
    #[n(1)]
    pub party: PartyId,
    /// The personal agent, who answers for callers without an API key.
    #[n(2)]
    pub personal: AgentId,
    /// The bytes of the mesh's first charter, verbatim.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub charter: Vec<u8>,
    /// The founder's signature over them.
    #[n(4)]
    pub charter_signature: Signature,
    /// When the book was begun.
    #[n(5)]
    pub created_at: Timestamp,
}

impl Genesis {
    fn encoded(&self) -> rusqlite::Result<Vec<u8>> {
        minicbor::to_vec(self)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.to_string().into()))
    }

    /// Writes the genesis and an empty journal's head into a new database.
    pub(super) fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        let body = self.encoded()?;
        let root = root(&body);
        let insert = "INSERT INTO meta (key, value) VALUES (?1, ?2)";
        db.execute(insert, ("genesis", &body))?;
        db.execute(insert, ("root", root))?;
        // For people with sqlite3; only the two above are read.
        db.execute(insert, ("mesh", self.mesh.to_string()))?;
        db.execute(insert, ("party", self.party.to_string()))?;
        db.execute(insert, ("personal_agent", self.personal.did()))?;
        db.execute(insert, ("created_at_ms", i64::try_from(self.created_at.ms()).unwrap_or(0)))?;
        db.execute("INSERT INTO head (one, n, checksum) VALUES (1, 0, ?1)", [root])?;
        Ok(())
    }

    /// Reads the genesis and the checksum from which the journal starts.
    pub(super) fn read(db: &Connection, path: &Path) -> Result<(Self, Checksum), StoreError> {
        let value = |key: &str| -> Result<Vec<u8>, StoreError> {
            db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
                .optional()
                .map_err(|error| StoreError::reading(path, error))?
                .ok_or_else(|| StoreError::damaged(path, format!("its {key} is missing")))
        };
        let body = value("genesis")?;
        let stored = value("root")?;
        let root = root(&body);
        match decode(&body) {
            Some(genesis) if stored == root => Ok((genesis, root)),
            _ => Err(StoreError::damaged(path, "its genesis does not fit its checksum")),
        }
    }
}

fn root(body: &[u8]) -> Checksum {
    let mut root = [0; 16];
    blake3::Hasher::new_derive_key("tirami journal 1").update(body).finalize_xof().fill(&mut root);
    root
}
