//! The bytes of one signed entry of every kind, so that the format cannot drift unnoticed.

use tirami_core::{Digest, DocumentId, JobId, Ppm, Timestamp, Trm};
use tirami_ledger::lattice::{
    Checkpoint, Collect, Decision, Ending, Enrol, Entry, EntryKind, Lattice, Line, Open, Params,
    Pay, PayItem, Rekey, Settle, Sponsor, Transfer, Unsponsor,
};

use super::world::{charter, found, key, party, sign, trm};

#[test]
fn entries_have_the_bytes_they_always_had() {
    let golden = include_str!("../../golden/entries.txt");
    // Without a welcome: the mesh then has the id it had before there was one.
    let mut charter = charter(1, 1, trm("1000"));
    charter.params.welcome = Trm::ZERO;
    let lattice = found(charter);
    let lines: Vec<String> = kinds().into_iter().map(|kind| line(&lattice, kind)).collect();
    let expected: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, expected, "the format of an entry changed:\n{}\n", lines.join("\n"));
}

/// `kind body id signature`, in hexadecimal.
fn line(lattice: &Lattice, kind: EntryKind) -> String {
    let name = kind.name();
    let first = name == "open";
    let entry = Entry {
        chain: party("ann"),
        seq: if first { 0 } else { 7 },
        prev: (!first).then_some(DocumentId::from_bytes([6; 32])),
        time_ms: Timestamp::from_ms(1_700_000_000_000),
        kind,
        balance: if first { 0 } else { -1_500_000 },
    };
    let sent = sign(lattice, &entry, &key("ann"));
    assert_eq!(minicbor::decode::<Entry>(&sent.bytes).unwrap(), entry);
    let hex: String = sent.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name} {hex} {} {}", sent.id, sent.signature)
}

fn kinds() -> [EntryKind; 13] {
    let id = |byte| DocumentId::from_bytes([byte; 32]);
    let items = [1_u8, 2].map(|n| PayItem {
        job: JobId::from_bytes([n; 16]),
        amount: Trm::from_micro(1_000_000 * u64::from(n)),
    });
    let checkpoint = Checkpoint {
        number: 3,
        previous: Some(id(5)),
        time: Timestamp::from_ms(1_700_000_600_000),
        cut: Digest::of(b"cut"),
        minted: Trm::ZERO,
        burned: trm("0.5"),
        loss: trm("0.25"),
        epoch: 0,
        params: Params { welcome: Trm::ZERO, ..Params::default() },
        decisions: Digest::of(b"decisions"),
        listed: Vec::new(),
    };
    let decided = |byte, covered, end| Decision { lock: id(byte), covered, end };
    let mut listing = checkpoint.clone();
    listing.params = Params::default();
    listing.listed = vec![
        decided(1, 0, None),
        decided(2, 7, Some(Ending::Settled)),
        decided(3, 300, Some(Ending::Defaulted { owed: trm("0.7") })),
    ];
    [
        Open { sponsor: None, enrol: Some(id(1)), recovery: Some(key("safe").public()) }.into(),
        Enrol { party: party("bob"), owner: "Bob's lab".to_owned(), line: trm("1000") }.into(),
        Line { enrol: id(1) }.into(),
        Pay::new(party("bob"), items.to_vec(), Ppm::new(1_000)).into(),
        Transfer { payee: party("bob"), amount: trm("12.5") }.into(),
        Collect { ids: vec![id(2), id(3)], checkpoint: None }.into(),
        checkpoint.into(),
        Rekey { key: key("new").public() }.into(),
        Sponsor { newcomer: party("new"), amount: trm("1000"), checkpoint: id(5) }.into(),
        Settle {}.into(),
        Unsponsor { lock: id(7), settle: id(8), checkpoint: id(5) }.into(),
        Collect { ids: vec![id(2)], checkpoint: Some(id(5)) }.into(),
        listing.into(),
    ]
}
