//! The examination of a data directory: everything that can be verified is, nothing is changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tirami_core::{
    AgentId, Digest, Document as _, DocumentId, JobId, PartyId, PublicKey, Signed, decode_body,
};
use tirami_ledger::Ledger;
use tirami_ledger::documents::{Claim, Order, Receipt, Voucher};
use tirami_ledger::event::{DocumentKind, DocumentRecord, Event};
use tirami_ledger::lattice::{
    Certificate, Charter, Entry, EntryKind, Lattice, LatticeEvent, SignedEntry,
};

use super::head::{self, Head};
use super::schema::Standing;
use super::trade::{NOBODY, trade_of};
use super::{Genesis, STORE_FILE, StoreError, check_note, check_pages, journal, schema};
use crate::keys;

/// One thing that was examined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was examined, in a few words.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

/// What an examination found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The checks, in the order they were made. A check that needs an earlier one that failed is
    /// left out.
    pub checks: Vec<Check>,
    /// What to do, one sentence each; empty when everything is as it should be.
    pub advice: Vec<String>,
}

impl Report {
    /// Whether every check is as it should be.
    pub fn is_healthy(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    fn add(&mut self, name: &'static str, result: Result<String, String>) -> bool {
        let ok = result.is_ok();
        let (Ok(detail) | Err(detail)) = result;
        self.checks.push(Check { name, ok, detail });
        ok
    }

    fn advise(&mut self, advice: impl Into<String>) {
        self.advice.push(advice.into());
    }
}

/// Checks whose own advice mends what they find, without a backup of the whole directory.
const MENDED_IN_PLACE: [&str; 3] = [KEY_FILES, AGENTS_KEYS, HEAD_NOTE];
const KEY_FILES: &str = "key files";
const AGENTS_KEYS: &str = "agents' keys";
const HEAD_NOTE: &str = "note of the head";
/// With less on its file system a data directory has room for little more than a checkpoint of
/// its book.
#[cfg(unix)]
const FREE_MIB_MIN: u64 = 100;
/// Agents that one check names at most.
const NAMED_MAX: usize = 8;

/// Examines a data directory. Blocks for as long as it takes: a long journal is read and replayed
/// from its beginning. A running node is not disturbed.
pub fn doctor(data_dir: &Path) -> Report {
    let mut report = Report::default();
    examine_files(data_dir, &mut report);
    #[cfg(unix)]
    examine_space(data_dir, &mut report);
    let path = data_dir.join(STORE_FILE);
    let opened = super::exists(data_dir, &path).and_then(|exists| {
        if !exists {
            return Ok(None);
        }
        // The note first, as when a node starts; what is wrong with it is told below.
        let note = head::read_note(data_dir);
        let db = schema::check(&path).and_then(|standing| {
            if standing == Standing::Older {
                let what = "it is of an older version; the next start brings it up to date";
                return Err(StoreError::NotABook { path: path.clone(), what: what.to_owned() });
            }
            schema::open_reading(&path).map_err(|error| StoreError::sqlite(&path, error))
        })?;
        Ok(Some((note, db)))
    });
    match opened {
        Ok(None) => {
            report.add("account book", Ok("there is none yet; `tirami start` creates it".into()));
        }
        Ok(Some((note, db))) => {
            report.add("account book", Ok(format!("{} can be opened", path.display())));
            Examination { data_dir, path, db, note }.run(&mut report);
        }
        Err(error) => {
            report.add("account book", Err(error.to_string()));
        }
    }
    if report.checks.iter().any(|check| !check.ok && !MENDED_IN_PLACE.contains(&check.name)) {
        report.advise(
            "Do not start the node on this directory: copy it away first, then restore the newest \
             backup of the whole directory and run `tirami doctor` again.",
        );
    }
    report
}

fn examine_files(data_dir: &Path, report: &mut Report) {
    if !report.add(KEY_FILES, keys::examine(data_dir)) {
        report.advise(
            "Give the key files and api_token to their owner only: chmod 700 keys, chmod 600 \
             keys/* api_token. If a key file is damaged, restore it from a backup.",
        );
    }
}

/// Little room is nothing wrong with the directory, so it is only advised upon.
#[cfg(unix)]
fn examine_space(data_dir: &Path, report: &mut Report) {
    let Ok(found) = rustix::fs::statvfs(data_dir) else {
        return;
    };
    let free_mib = found.f_bavail.saturating_mul(found.f_frsize) >> 20;
    report.add("free space", Ok(format!("{free_mib} MiB on the file system of the directory")));
    if free_mib < FREE_MIB_MIN {
        report.advise(format!(
            "Make room on that file system: below {FREE_MIB_MIN} MiB it is soon full, and a node \
             whose disk is full stops."
        ));
    }
}

struct Examination<'a> {
    data_dir: &'a Path,
    path: PathBuf,
    db: Connection,
    note: Result<Option<Head>, StoreError>,
}

impl Examination<'_> {
    fn run(&self, report: &mut Report) {
        // One view of the database, also while a node writes to it.
        if let Err(error) = self.db.execute_batch("BEGIN") {
            report.add("pages and indexes", Err(error.to_string()));
            return;
        }
        let pages = check_pages(&self.db, &self.path);
        report.add("pages and indexes", said(pages, "every page and index is well-formed"));
        let (genesis, root, head) = match self.beginning() {
            Ok(beginning) => beginning,
            Err(error) => {
                report.add("journal", Err(error.to_string()));
                return;
            }
        };
        let note = self.note(head, report);
        let from = Head { n: 0, checksum: root };
        let chain = journal::check_chain(&self.db, &self.path, from, head, |_, _| Ok(()));
        let chain =
            chain.and_then(|()| check_note(&self.db, &self.path, self.data_dir, note, head, root));
        let whole = format!("{} records, each fits its checksum, none is missing", head.n);
        if report.add("journal", said(chain, whole)) {
            self.replay(&genesis, report);
            report.add("index of trades", self.trades());
        }
    }

    /// Looks at the note by itself; whether the journal reaches it is asked of the journal.
    fn note(&self, head: Head, report: &mut Report) -> Option<Head> {
        let path = head::note_path(self.data_dir);
        let found = match &self.note {
            Ok(Some(note)) => Ok(format!("record {} was acknowledged", note.n)),
            Ok(None) if head.n == 0 => Ok("there is none yet, and no record".to_owned()),
            Ok(None) => Err(format!("{} is gone; nothing was changed", path.display())),
            Err(error) => Err(error.to_string()),
        };
        if !report.add(HEAD_NOTE, found) {
            report.advise(format!(
                "{} says up to where the book was acknowledged, so that an older copy of it is \
                 noticed. When every other check is as it should be and this is your newest copy, \
                 remove the file if it is there and start the node: it is written anew.",
                path.display()
            ));
        }
        self.note.as_ref().ok().copied().flatten()
    }

    /// Compares the book's agents with the key files.
    fn agents(&self, ledger: &Ledger, report: &mut Report) {
        let agents = ledger.book().agents();
        let (missing, extra) = match keys::compare_agents(self.data_dir, agents.keys()) {
            Ok(compared) => compared,
            Err(error) => {
                report.add(AGENTS_KEYS, Err(error.to_string()));
                return;
            }
        };
        let names = |agents: &[AgentId]| {
            let shown: Vec<_> = agents.iter().take(NAMED_MAX).map(AgentId::did).collect();
            let more = if agents.len() > NAMED_MAX { " and others" } else { "" };
            format!("{}{more}", shown.join(", "))
        };
        if missing.is_empty() {
            let mut good = format!("each of {} agents has its key", agents.len());
            if !extra.is_empty() {
                let note = "key files without an account, which do no harm";
                good.push_str(&format!("; {} {note}: {}", extra.len(), names(&extra)));
            }
            report.add(AGENTS_KEYS, Ok(good));
            return;
        }
        let count = missing.len();
        let what = format!("{count} agents have no key file and cannot spend: {}", names(&missing));
        report.add(AGENTS_KEYS, Err(what));
        report.advise(
            "Restore keys/agent-<id>.key of each agent named from a backup, or import its bundle \
             with `tirami agents import`. The agents' TRM are safe meanwhile: defund them to use \
             the TRM elsewhere.",
        );
    }

    fn beginning(&self) -> Result<(Genesis, head::Checksum, Head), StoreError> {
        let (genesis, root) = Genesis::read(&self.db, &self.path)?;
        Ok((genesis, root, journal::read_head(&self.db, &self.path)?))
    }

    /// Replays everything from the beginning, verifying each signature on the way.
    fn replay(&self, genesis: &Genesis, report: &mut Report) {
        let snapshots = match journal::read_snapshots(&self.db, &self.path, u32::MAX) {
            Ok(snapshots) => snapshots,
            Err(error) => {
                report.add("snapshots", Err(error.to_string()));
                Vec::new()
            }
        };
        let mut wanted: BTreeMap<u64, Digest> =
            snapshots.iter().map(|(snapshot, _)| (snapshot.n, snapshot.state_hash)).collect();
        let mut replay = match Replay::begin(genesis) {
            Ok(replay) => replay,
            Err(reason) => {
                report.add("charter", Err(reason));
                return;
            }
        };
        report.add("charter", Ok(format!("mesh {}, signed by its founder", genesis.mesh)));
        let count = wanted.len();
        let mut differing = Vec::new();
        let read = journal::each_row(&self.db, &self.path, 0, |cells, _| {
            if let Some(hash) = wanted.remove(&(cells.n - 1)) {
                differing.extend((replay.ledger.state_hash() != hash).then_some(cells.n - 1));
            }
            replay.take(cells.n, journal::event_of(&self.path, &cells)?);
            Ok(())
        });
        if let Err(error) = read {
            report.add("replay", Err(error.to_string()));
            return;
        }
        let state_hash = replay.ledger.state_hash();
        differing
            .extend(wanted.into_iter().filter(|(_, hash)| *hash != state_hash).map(|(n, _)| n));
        report.add(
            "snapshots",
            match differing.first() {
                None => Ok(format!("{count}, each equals a replay from the beginning")),
                Some(n) => Err(format!("the snapshot at record {n} differs from a replay")),
            },
        );
        replay.report(report);
        self.agents(&replay.ledger, report);
        let sums = replay.ledger.check_invariants();
        report.add("invariants", sums.map(|()| format!("all hold; state hash {state_hash}")));
    }

    /// Compares the index of trades with the journal, both ways.
    fn trades(&self) -> Result<String, String> {
        let compare = || -> rusqlite::Result<(u64, u64)> {
            let mut statement = self.db.prepare(
                "SELECT body, trade, agent, amount_micro, trades.at_ms FROM book_events
                 LEFT JOIN trades ON trades.n = book_events.n
                 WHERE kind IN ('hold_posted', 'served_finished')",
            )?;
            let mut rows = statement.query([])?;
            let (mut trades, mut wrong) = (0, 0);
            while let Some(row) = rows.next()? {
                trades += 1;
                let indexed = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
                let event = super::row::decode(row.get_ref(0)?.as_blob()?);
                let Some(trade) = event.and_then(|event| trade_of(&event, NOBODY, 0)) else {
                    wrong += 1;
                    continue;
                };
                let should = (
                    Some(trade.trade.as_bytes().to_vec()),
                    Some(trade.payer.as_bytes().to_vec()),
                    Some(journal::signed(trade.amount.micro())),
                    Some(journal::signed(trade.at.ms())),
                );
                wrong += u64::from(indexed != should);
            }
            let indexed: i64 =
                self.db.query_row("SELECT count(*) FROM trades", [], |row| row.get(0))?;
            Ok((trades, wrong + journal::unsigned(indexed).abs_diff(trades)))
        };
        match compare() {
            Ok((trades, 0)) => Ok(format!("{trades} trades, as in the journal")),
            Ok((_, wrong)) => Err(format!("{wrong} trades differ from the journal")),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn said(result: Result<(), StoreError>, good: impl Into<String>) -> Result<String, String> {
    result.map(|()| good.into()).map_err(|error| error.to_string())
}

/// A ledger that grows from the journal, and what is wrong with the signatures on the way.
struct Replay {
    ledger: Ledger,
    /// Every key a chain ever had, its recovery key included.
    keys: BTreeMap<PartyId, Vec<PublicKey>>,
    charters: BTreeMap<u32, Charter>,
    /// Who signed an order, and who is to serve it. By its id, and by its job for vouchers.
    orders: BTreeMap<DocumentId, (PartyId, PartyId)>,
    jobs: BTreeMap<JobId, DocumentId>,
    entries: Tally,
    documents: Tally,
}

#[derive(Default)]
struct Tally {
    good: u64,
    first_bad: Option<u64>,
}

impl Tally {
    fn count(&mut self, n: u64, good: bool) {
        if good {
            self.good += 1;
        } else {
            self.first_bad.get_or_insert(n);
        }
    }

    fn verdict(&self, what: &str) -> Result<String, String> {
        match self.first_bad {
            None => Ok(format!("{} {what}, each verified", self.good)),
            Some(n) => Err(format!("record {n} carries a signature that does not verify")),
        }
    }
}

impl Replay {
    fn begin(genesis: &Genesis) -> Result<Self, String> {
        let charter = Signed::<Charter>::from_store(
            Charter::founding_mesh(),
            genesis.charter.clone(),
            genesis.charter_signature,
        )
        .map_err(|error| error.to_string())?;
        let lattice = Lattice::found(&charter).map_err(|error| error.to_string())?;
        if lattice.mesh() != genesis.mesh {
            return Err("the charter is of another mesh".to_owned());
        }
        Ok(Self {
            ledger: Ledger::new(lattice, genesis.party),
            keys: BTreeMap::new(),
            charters: BTreeMap::from([(1, charter.body().clone())]),
            orders: BTreeMap::new(),
            jobs: BTreeMap::new(),
            entries: Tally::default(),
            documents: Tally::default(),
        })
    }

    fn take(&mut self, n: u64, event: Event) {
        match &event {
            Event::Lattice(event) => self.check_lattice(n, event),
            Event::Document(record) => {
                let good = self.document_is_good(record).unwrap_or(false);
                self.documents.count(n, good);
            }
            Event::Book(_) => {}
        }
        self.ledger.apply(&event);
    }

    fn report(&self, report: &mut Report) {
        report.add("entries", self.entries.verdict("entries and certificates"));
        report.add("documents", self.documents.verdict("orders, vouchers and receipts"));
    }

    fn check_lattice(&mut self, n: u64, event: &LatticeEvent) {
        match event {
            LatticeEvent::EntryPending { entry, .. }
            | LatticeEvent::DoubleSigned { rival: entry, .. } => {
                let good = self.entry_is_good(entry);
                self.entries.count(n, good);
            }
            LatticeEvent::EntryFinal { entry, certificate, .. } => {
                let good = self.entry_is_good(entry)
                    && certificate.as_ref().is_none_or(|c| self.certificate_is_good(entry.id(), c));
                self.entries.count(n, good);
            }
            LatticeEvent::Certified { entry, certificate, .. } => {
                let good = self.certificate_is_good(*entry, certificate);
                self.entries.count(n, good);
            }
            LatticeEvent::Acknowledged { acknowledgement }
            | LatticeEvent::AcknowledgementMade { acknowledgement, .. } => {
                let good = acknowledgement.verify(self.ledger.lattice().mesh()).is_ok();
                self.entries.count(n, good);
            }
            LatticeEvent::CharterAdopted { bytes, .. } => {
                if let Ok(charter) = decode_body::<Charter>(bytes) {
                    self.charters.insert(charter.version, charter);
                }
            }
            _ => {}
        }
    }

    fn entry_is_good(&mut self, entry: &SignedEntry) -> bool {
        let mesh = self.ledger.lattice().mesh();
        let message = tirami_core::signing_message(Entry::KIND, mesh, entry.bytes());
        let chain = entry.entry().chain;
        let keys = self.keys.entry(chain).or_insert_with(|| vec![PublicKey::from(chain)]);
        let good = *Digest::of(&message).as_bytes() == *entry.id().as_bytes()
            && keys.iter().any(|key| key.verify(&message, &entry.signature()).is_ok());
        match &entry.entry().kind {
            EntryKind::Open(open) => keys.extend(open.recovery),
            EntryKind::Rekey(rekey) => keys.push(rekey.key),
            _ => {}
        }
        good
    }

    fn certificate_is_good(&self, entry: DocumentId, certificate: &Certificate) -> bool {
        let version = certificate.charter_version();
        let Some(charter) = version.and_then(|version| self.charters.get(&version)) else {
            return false;
        };
        let mesh = self.ledger.lattice().mesh();
        let signers: std::collections::BTreeSet<_> = certificate
            .acknowledgements
            .iter()
            .filter(|ack| ack.entry == entry && charter.witnesses.contains(&ack.witness))
            .filter(|ack| ack.verify(mesh).is_ok())
            .map(|ack| ack.witness)
            .collect();
        signers.len() >= usize::from(charter.quorum)
    }

    /// `None` when the document speaks of an order that is not there.
    fn document_is_good(&mut self, record: &DocumentRecord) -> Option<bool> {
        let mesh = self.ledger.lattice().mesh();
        let DocumentRecord { id, kind, job, bytes, signature } = record;
        let bytes = bytes.clone();
        let found = match kind {
            DocumentKind::Order => {
                let order: Order = decode_body(&bytes).ok()?;
                self.orders.insert(*id, (order.consumer, order.provider));
                self.jobs.insert(*job, *id);
                let key = PublicKey::from(order.consumer);
                let signed = Signed::<Order>::verify(mesh, key, bytes, *signature);
                signed.ok().filter(|_| order.job == *job)?.id()
            }
            DocumentKind::Voucher => {
                let order = self.jobs.get(job)?;
                let key = PublicKey::from(self.orders.get(order)?.0);
                let signed = Signed::<Voucher>::verify(mesh, key, bytes, *signature);
                signed.ok().filter(|voucher| voucher.body().order == *order)?.id()
            }
            DocumentKind::Receipt => {
                let order = self.jobs.remove(job)?;
                let (_, provider) = self.orders.remove(&order)?;
                let key = self.ledger.lattice().chain(provider).map(|chain| chain.key());
                let key = key.unwrap_or_else(|| PublicKey::from(provider));
                let signed = Signed::<Receipt>::verify(mesh, key, bytes, *signature);
                signed.ok().filter(|receipt| receipt.body().order == order)?.id()
            }
            DocumentKind::Claim => {
                let own = self.ledger.party();
                let key = self.ledger.lattice().chain(own).map(|chain| chain.key());
                let key = key.unwrap_or_else(|| PublicKey::from(own));
                Signed::<Claim>::verify(mesh, key, bytes, *signature).ok()?.id()
            }
        };
        Some(found == *id)
    }
}
