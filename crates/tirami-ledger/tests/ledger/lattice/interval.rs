//! How much time passes between two checkpoints.

use tirami_core::{DocumentId, Trm};
use tirami_ledger::lattice::{Enrol, EntryKind, Open};

use super::world::{World, charter, found, key, party, sign, trm};

/// A mesh with so many parties beside the clerk that have a line, and so many chains that nobody
/// granted anything.
fn mesh((parties, free): (u32, u32), checkpoint_ms: u64) -> World {
    let mut charter = charter(1, 1, trm("1000"));
    charter.params.checkpoint_ms = checkpoint_ms;
    let mut world = World::new(found(charter));
    open(&mut world, "w1");
    for number in 0..parties {
        let name = format!("party {number}");
        let line = Trm::from_micro(1);
        let enrol = Enrol { party: party(&name), owner: name.clone(), line };
        let enrol = write(&mut world, "w1", enrol.into());
        let kind = Open { sponsor: None, enrol: Some(enrol), recovery: None }.into();
        write(&mut world, &name, kind);
    }
    (0..free).for_each(|number| open(&mut world, &format!("free {number}")));
    world
}

fn open(world: &mut World, name: &str) {
    write(world, name, Open { sponsor: None, enrol: None, recovery: None }.into());
}

/// Writes, receives and acknowledges an entry.
fn write(world: &mut World, name: &str, kind: EntryKind) -> DocumentId {
    let entry = world.lattice.draft(party(name), world.now, kind).unwrap();
    let sent = sign(&world.lattice, &entry, &key(name));
    let received = world.lattice.receive_entry(&sent.bytes, sent.signature).unwrap();
    world.absorb(received);
    let (events, _) = world.lattice.acknowledge(world.now, &key("w1"), sent.id).unwrap();
    world.absorb(events);
    assert!(world.lattice.final_entry(sent.id).is_some());
    sent.id
}

#[test]
fn an_hour_passes_between_checkpoints_of_more_than_a_thousand_parties() {
    for (parties, checkpoint_ms, wait_ms) in [
        ((1_000, 0), 600_000, 600_000),
        ((1_001, 0), 600_000, 3_600_000),
        // Chains that cost nothing are no parties.
        ((1_000, 10), 600_000, 600_000),
        // A charter that says something else means it.
        ((1_001, 0), 60_000, 60_000),
    ] {
        let mut world = mesh(parties, checkpoint_ms);
        let first = world.lattice.draft_checkpoint(world.now).unwrap();
        write(&mut world, "w1", first.kind);
        let due = world.now.plus_ms(wait_ms);
        assert_eq!(world.lattice.next_checkpoint(), due, "{parties:?} parties");
        open(&mut world, "late");
        let before = tirami_core::Timestamp::from_ms(due.ms() - 1);
        assert!(world.lattice.draft_checkpoint(before).is_none(), "{parties:?} parties");
        assert!(world.lattice.draft_checkpoint(due).is_some(), "{parties:?} parties");
    }
}
