//! Journal rows: how an event becomes columns and back, and the checksum that ties each row to
//! all before it.

use minicbor::Encode;
use tirami_core::{DocumentId, JobId, Signature};
use tirami_ledger::event::{BookEvent, DocumentKind, DocumentRecord, Event};

use super::head::Checksum;
use super::names;

/// The journal's tables. The number stands in every checksum and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Entries = 1,
    Documents = 2,
    BookEvents = 3,
}

impl Table {
    pub(super) const fn from_number(number: i64) -> Option<Self> {
        match number {
            1 => Some(Self::Entries),
            2 => Some(Self::Documents),
            3 => Some(Self::BookEvents),
            _ => None,
        }
    }
}

/// The columns of one row. Which of the optional ones a table has is its own matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cells<'a> {
    pub(super) table: Table,
    pub(super) n: u64,
    pub(super) kind: &'a str,
    /// The chain of an entry, the id of a document.
    pub(super) key: Option<&'a [u8]>,
    /// The job of a document.
    pub(super) job: Option<&'a [u8]>,
    /// The place of an entry in its chain, the time of a book event.
    pub(super) number: Option<i64>,
    pub(super) body: &'a [u8],
    pub(super) signature: Option<&'a [u8]>,
}

impl Cells<'_> {
    /// The running checksum including this row. It covers every column, so a flipped bit, a lost
    /// row and a row out of place all show.
    pub(super) fn checksum(&self, before: &Checksum) -> Checksum {
        let mut hasher = blake3::Hasher::new();
        let mut fixed = [0; 16 + 1 + 8 + 9];
        fixed[..16].copy_from_slice(before);
        fixed[16] = self.table as u8;
        fixed[17..25].copy_from_slice(&self.n.to_le_bytes());
        fixed[25] = u8::from(self.number.is_some());
        fixed[26..].copy_from_slice(&self.number.unwrap_or(0).to_le_bytes());
        hasher.update(&fixed);
        let kind = Some(self.kind.as_bytes());
        for column in [kind, self.key, self.job, Some(self.body), self.signature] {
            // An absent column differs from an empty one by its length.
            let length = column.map_or(u32::MAX, |bytes| bytes.len() as u32);
            hasher.update(&length.to_le_bytes());
            hasher.update(column.unwrap_or_default());
        }
        let mut checksum = [0; 16];
        hasher.finalize_xof().fill(&mut checksum);
        checksum
    }

    /// The event that was written as this row; `None` when it is no event.
    pub(super) fn event(&self) -> Option<Event> {
        match self.table {
            Table::Entries => decode(self.body).map(Event::Lattice),
            Table::BookEvents => decode(self.body).map(Event::Book),
            Table::Documents => Some(Event::Document(DocumentRecord {
                id: DocumentId::from_bytes(self.key?.try_into().ok()?),
                kind: document_kind(self.kind)?,
                job: JobId::from_bytes(self.job?.try_into().ok()?),
                bytes: self.body.to_vec(),
                signature: Signature::from_bytes(self.signature?.try_into().ok()?),
            })),
        }
    }
}

/// Reads a value that must fill `body` to the last byte.
pub(super) fn decode<'b, T: minicbor::Decode<'b, ()>>(body: &'b [u8]) -> Option<T> {
    let mut decoder = minicbor::Decoder::new(body);
    let value = decoder.decode().ok()?;
    (decoder.position() == body.len()).then_some(value)
}

/// The row of `event` as number `n`. Bodies that are not kept verbatim are written to `body`.
pub(super) fn cells<'a>(
    n: u64,
    event: &'a Event,
    body: &'a mut Vec<u8>,
) -> rusqlite::Result<Cells<'a>> {
    Ok(match event {
        Event::Lattice(lattice) => {
            let (kind, slot) = names::lattice(lattice);
            Cells {
                table: Table::Entries,
                n,
                kind,
                key: slot.as_ref().map(|(chain, _)| chain.as_bytes().as_slice()),
                job: None,
                number: slot.map(|(_, seq)| i64::try_from(seq).unwrap_or(i64::MAX)),
                body: encode(lattice, body)?,
                signature: None,
            }
        }
        Event::Document(record) => Cells {
            table: Table::Documents,
            n,
            kind: names::document(record.kind),
            key: Some(record.id.as_bytes()),
            job: Some(record.job.as_bytes()),
            number: None,
            body: &record.bytes,
            signature: Some(record.signature.as_bytes()),
        },
        Event::Book(book) => book_cells(n, book, body)?,
    })
}

fn book_cells<'a>(n: u64, event: &BookEvent, body: &'a mut Vec<u8>) -> rusqlite::Result<Cells<'a>> {
    let (kind, at) = names::book(event);
    Ok(Cells {
        table: Table::BookEvents,
        n,
        kind,
        key: None,
        job: None,
        number: at.map(|at| i64::try_from(at.ms()).unwrap_or(i64::MAX)),
        body: encode(event, body)?,
        signature: None,
    })
}

fn encode<'a>(value: &impl Encode<()>, body: &'a mut Vec<u8>) -> rusqlite::Result<&'a [u8]> {
    body.clear();
    match minicbor::encode(value, &mut *body) {
        Ok(()) => Ok(body),
        Err(error) => Err(rusqlite::Error::ToSqlConversionFailure(error.to_string().into())),
    }
}

fn document_kind(name: &str) -> Option<DocumentKind> {
    [DocumentKind::Order, DocumentKind::Voucher, DocumentKind::Receipt, DocumentKind::Claim]
        .into_iter()
        .find(|kind| names::document(*kind) == name)
}
