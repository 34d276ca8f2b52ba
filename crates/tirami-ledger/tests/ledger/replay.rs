//! What every ledger a test plays with must survive: its journal, and its snapshot.

use tirami_ledger::Ledger;
use tirami_ledger::event::Event;

/// Asserts that `log`, read from its bytes and applied to `genesis`, gives `ledger`, and that its
/// snapshot does.
pub(crate) fn check(genesis: &Ledger, log: &[Event], ledger: &Ledger) {
    let mut replayed = genesis.clone();
    for event in log {
        let bytes = minicbor::to_vec(event).unwrap();
        let read: Event = minicbor::decode(&bytes).unwrap();
        assert_eq!(&read, event, "the event does not survive its bytes");
        replayed.apply(&read);
    }
    assert_eq!(replayed.state_hash(), ledger.state_hash(), "replay differs");
    let restored = Ledger::restore(&ledger.snapshot()).unwrap();
    assert_eq!(&restored, ledger, "the snapshot does not restore the ledger");
}
