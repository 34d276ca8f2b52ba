//! Price signals: what is dropped, and which of two is believed.

use tirami_core::{KeyError, MeshId, PartyId, Signed, SignedError, Timestamp};
use tirami_proto::{
    OFFERS_MAX, PRICE_SIGNAL_BYTES_MAX, PriceSignal, SIGNAL_AHEAD_MS_MAX, SIGNAL_LIFE_MS_MAX,
    SignalOrder, SignalRefusal,
};

use crate::samples::{MESH, announced, key, offer, price_signal};

const NOW_MS: u64 = 1_700_000_000_000;
const NOW: Timestamp = Timestamp::from_ms(NOW_MS);

fn changed(change: impl FnOnce(&mut PriceSignal)) -> Result<(), SignalRefusal> {
    let mut signal = price_signal(NOW_MS);
    change(&mut signal);
    PriceSignal::receive(MESH, &announced(signal), NOW).map(|_| ())
}

#[test]
fn a_signal_is_checked_in_this_order() {
    type Case = (&'static str, fn(&mut PriceSignal), Result<(), SignalRefusal>);
    let cases: [Case; 10] = [
        ("as it is", |_| (), Ok(())),
        (
            "as far ahead as clocks may be apart",
            |signal| signal.issued_at = NOW.plus_ms(SIGNAL_AHEAD_MS_MAX),
            Ok(()),
        ),
        (
            "from the future, and wrong otherwise",
            |signal| {
                signal.issued_at = NOW.plus_ms(SIGNAL_AHEAD_MS_MAX + 1);
                signal.models.reverse();
            },
            Err(SignalRefusal::FromFuture { ahead_ms: SIGNAL_AHEAD_MS_MAX + 1 }),
        ),
        ("ends now", |signal| signal.expires_at = NOW, Err(SignalRefusal::Expired)),
        (
            "ends before it begins",
            |signal| {
                signal.issued_at = NOW.plus_ms(2_000);
                signal.expires_at = NOW.plus_ms(1_000);
            },
            Err(SignalRefusal::Lifetime),
        ),
        (
            "lives as long as it may",
            |signal| signal.expires_at = NOW.plus_ms(SIGNAL_LIFE_MS_MAX),
            Ok(()),
        ),
        (
            "lives too long",
            |signal| signal.expires_at = NOW.plus_ms(SIGNAL_LIFE_MS_MAX + 1),
            Err(SignalRefusal::Lifetime),
        ),
        ("models out of order", |signal| signal.models.reverse(), Err(SignalRefusal::Models)),
        (
            "a model twice",
            |signal| signal.models = vec![offer(1), offer(1)],
            Err(SignalRefusal::Models),
        ),
        ("more free than there are", |signal| signal.slots_free = 5, Err(SignalRefusal::Slots)),
    ];
    for (what, change, expected) in cases {
        assert_eq!(changed(change), expected, "{what}");
    }
}

#[test]
fn a_foreign_signature_mesh_or_kind_is_refused() {
    let bad = Err(SignalRefusal::Signed(SignedError::Key(KeyError::BadSignature)));
    let sent = announced(price_signal(NOW_MS));
    let mesh = MeshId::from_bytes([1; 32]);
    assert_eq!(PriceSignal::receive(mesh, &sent, NOW).map(|_| ()), bad);
    assert!(changed(|signal| signal.provider = PartyId::from_bytes([2; 32])).is_err());
    let mut cut = sent.clone();
    cut.bytes.pop();
    let malformed = SignalRefusal::Signed(SignedError::Malformed { kind: "price-signal" });
    assert_eq!(PriceSignal::receive(MESH, &cut, NOW).map(|_| ()), Err(malformed));
}

#[test]
fn a_full_signal_fits_and_a_larger_one_is_refused_before_it_is_read() {
    let full = |signal: &mut PriceSignal| {
        signal.models = (0..OFFERS_MAX as u8).map(offer).collect();
    };
    assert_eq!(changed(full), Ok(()));
    let too_many = |signal: &mut PriceSignal| signal.models = (0..9).map(offer).collect();
    assert!(matches!(changed(too_many), Err(SignalRefusal::Signed(_))));
    let mut sent = announced(price_signal(NOW_MS));
    sent.bytes.resize(PRICE_SIGNAL_BYTES_MAX + 1, 0);
    let bytes = sent.bytes.len();
    let refused = PriceSignal::receive(MESH, &sent, NOW).map(|_| ());
    assert_eq!(refused, Err(SignalRefusal::TooLarge { bytes }));
}

#[test]
fn the_newest_signal_wins_and_contradictions_lose_both() {
    let sign = |signal| Signed::sign(MESH, &key(), signal).unwrap();
    let held = sign(price_signal(NOW_MS));
    let other = sign(PriceSignal { queue: 9, ..price_signal(NOW_MS) });
    let newer = sign(price_signal(NOW_MS + 1));
    assert_eq!(PriceSignal::order(&newer, &held), SignalOrder::Newer);
    assert_eq!(PriceSignal::order(&held, &newer), SignalOrder::Older);
    assert_eq!(PriceSignal::order(&held, &held), SignalOrder::Same);
    assert_eq!(PriceSignal::order(&other, &held), SignalOrder::Contradicts);
}
