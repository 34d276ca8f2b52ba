//! Reading ranges of final entries, as other nodes ask for them.

use rusqlite::Connection;
use tirami_core::PartyId;
use tirami_ledger::lattice::LatticeEvent;
use tirami_proto::{CONTROL_FRAME_BYTES_MAX, FINALS_PER_FRAME_MAX, FinalEntry};

use super::journal::signed;
use super::reader::Shared;
use super::row::decode;
use super::{StoreError, StoreReader};

/// Bytes of entries in one answer: a frame, with room for what stands around them.
const ANSWER_BYTES_MAX: usize = CONTROL_FRAME_BYTES_MAX - 1_024;

const FINALS: &str = "
    SELECT n, seq, body FROM entries
    WHERE kind = 'entry_final' AND chain = ?1 AND seq >= ?2 ORDER BY seq, n LIMIT ?3";

impl StoreReader {
    /// Final entries of a chain from `from_seq` on, in order, about `max` of them and never more
    /// than one frame holds, and whether there are more. Rivals that are final in one slot come
    /// one after the other.
    ///
    /// The last one has a certificate, which stands for those before it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the file cannot be read.
    pub async fn finals(
        &self,
        chain: PartyId,
        from_seq: u64,
        max: u32,
    ) -> Result<(Vec<FinalEntry>, bool), StoreError> {
        self.blocking(move |shared, db| shared.finals(db, chain, from_seq, max)).await
    }
}

impl Shared {
    fn finals(
        &self,
        db: &Connection,
        chain: PartyId,
        from_seq: u64,
        max: u32,
    ) -> Result<(Vec<FinalEntry>, bool), StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        let max = (max.max(1) as usize).min(FINALS_PER_FRAME_MAX);
        let mut statement = db.prepare_cached(FINALS).map_err(failed)?;
        let most = FINALS_PER_FRAME_MAX as i64 + 1;
        let mut rows =
            statement.query((chain.as_bytes(), signed(from_seq), most)).map_err(failed)?;
        let mut answer = Answer::default();
        while let Some(row) = rows.next().map_err(failed)? {
            let seq: i64 = row.get(1).map_err(failed)?;
            if answer.is_enough(max, seq) {
                return Ok(answer.end(true));
            }
            let body = row.get_ref(2).and_then(|body| Ok(body.as_blob()?)).map_err(failed)?;
            let Some(LatticeEvent::EntryFinal { entry, certificate, .. }) = decode(body) else {
                let n: i64 = row.get(0).map_err(failed)?;
                let what = format!("record {n} is no final entry although its kind says so");
                return Err(StoreError::damaged(&self.path, what));
            };
            let certificate = certificate.and_then(|one| minicbor::to_vec(one).ok());
            let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
            if !answer.take(FinalEntry { bytes, signature, certificate }, seq) {
                return Ok(answer.end(true));
            }
        }
        Ok(answer.end(false))
    }
}

/// What has been read of a range.
#[derive(Default)]
struct Answer {
    entries: Vec<FinalEntry>,
    bytes: usize,
    /// The place of the last one.
    seq: i64,
    /// So many end with a certificate.
    certified: usize,
}

impl Answer {
    /// Whether what was read may end before an entry at `seq`.
    fn is_enough(&self, max: usize, seq: i64) -> bool {
        let ends = self.certified == self.entries.len() && seq != self.seq;
        self.entries.len() >= FINALS_PER_FRAME_MAX || (ends && self.entries.len() >= max)
    }

    /// `false` when the frame is full.
    fn take(&mut self, entry: FinalEntry, seq: i64) -> bool {
        let bytes = entry.wire_bytes();
        if self.bytes + bytes > ANSWER_BYTES_MAX {
            return false;
        }
        self.bytes += bytes;
        self.seq = seq;
        let is_certified = entry.certificate.is_some();
        self.entries.push(entry);
        if is_certified {
            self.certified = self.entries.len();
        }
        true
    }

    fn end(mut self, more: bool) -> (Vec<FinalEntry>, bool) {
        let left_out = self.certified < self.entries.len();
        self.entries.truncate(self.certified);
        (self.entries, more || left_out)
    }
}
