//! Limits of a peer, its score, and who is admitted.

use tirami_core::{MeshId, PartyId, Timestamp};
use tirami_proto::{
    BYTES_BURST, BYTES_PER_SECOND, FRAMES_BURST, FRAMES_PER_SECOND, Fault, Hello, PROTOCOL,
    PeerLimits, REFUSAL_MS_MAX, Score, TokenBucket, admission_fits, admission_proof,
    common_version,
};

const fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(1_700_000_000_000 + ms)
}

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let mut bucket = TokenBucket::new(100, 10, at(0));
    assert!((0..10).all(|_| bucket.take(1, at(0)).is_ok()));
    assert_eq!(bucket.take(1, at(0)), Err(10), "10 ms until the next one");
    assert_eq!(bucket.take(1, at(9)), Err(1));
    assert_eq!(bucket.take(1, at(10)), Ok(()));
    assert_eq!(bucket.take(11, at(60_000)), Err(u64::MAX), "more than it ever holds");
    assert_eq!(bucket.take(10, at(60_000)), Ok(()), "a pause fills it, not more");
    assert_eq!(bucket.take(1, at(60_000)), Err(10));
}

#[test]
fn a_clock_that_is_set_back_gives_nothing_away() {
    let mut bucket = TokenBucket::new(100, 10, at(10_000));
    assert_eq!(bucket.take(10, at(10_000)), Ok(()));
    assert_eq!(bucket.take(1, at(0)), Err(10));
    assert_eq!(bucket.take(1, at(10)), Ok(()), "it fills again from there");
}

#[test]
fn ten_thousand_frames_a_second_pass_only_at_the_rate() {
    let mut limits = PeerLimits::new(at(0));
    let taken = (0..100_000).filter(|n| limits.frame(100, at(n / 10)).is_ok()).count();
    let most = FRAMES_BURST + 10 * FRAMES_PER_SECOND;
    assert!(taken <= most as usize && taken + 2 >= most as usize, "{taken} of at most {most}");
}

#[test]
fn large_frames_are_bounded_by_their_bytes() {
    let mut limits = PeerLimits::new(at(0));
    let taken = (0..2_000).filter(|n| limits.frame(1 << 20, at(*n)).is_ok()).count();
    let most = (BYTES_BURST + 2 * BYTES_PER_SECOND) as usize >> 20;
    assert!(taken <= most && taken + 2 >= most, "{taken} of at most {most}");
}

#[test]
fn a_refused_frame_is_not_counted() {
    let mut limits = PeerLimits::new(at(0));
    let bursts = BYTES_BURST as usize;
    assert_eq!(limits.frame(bursts, at(0)), Ok(()));
    assert!((0..10_000).all(|_| limits.frame(1 << 20, at(0)).is_err()));
    assert!((1..FRAMES_BURST).all(|_| limits.frame(0, at(0)).is_ok()), "frames are left");
}

#[test]
fn honest_slips_are_forgotten_and_floods_refused() {
    let mut score = Score::default();
    for second in 0..1_000 {
        let refused = score.fault(Fault::Unasked, at(second * 2_000));
        assert!(!refused, "a slip every other second");
    }
    let mut score = Score::default();
    let faults = (1..).find(|_| score.fault(Fault::Malformed, at(0)));
    assert_eq!(faults, Some(4));
    assert_eq!(score.refused_ms(at(0)), Some(1_000));
    assert_eq!(score.refused_ms(at(999)), Some(1));
    assert_eq!(score.refused_ms(at(1_000)), None);
}

#[test]
fn a_persistent_offender_is_refused_for_a_growing_time() {
    let mut score = Score::default();
    let mut now = 0;
    let mut lengths = Vec::new();
    for _ in 0..15 {
        while !score.fault(Fault::Malformed, at(now)) {}
        let length = score.refused_ms(at(now)).unwrap();
        lengths.push(length);
        now += length;
    }
    let expected: Vec<u64> = (0..15).map(|n| (1_000 << n).min(REFUSAL_MS_MAX)).collect();
    assert_eq!(lengths, expected);
    assert!(!score.is_clean(at(now)));
    let mut later = score;
    assert!(later.is_clean(at(now + 13 * 3_600_000)), "half a day later all is forgotten");
    while !score.fault(Fault::BadSignature, at(now + 3 * 3_600_000)) {}
    let less = score.refused_ms(at(now + 3 * 3_600_000)).unwrap();
    assert_eq!(less, 512_000, "three quiet hours take three doublings away");
}

#[test]
fn the_proof_of_admission_fits_one_secret_mesh_sender_and_receiver() {
    let (secret, mesh) = ([7; 32], MeshId::from_bytes([1; 32]));
    let [ann, bob, eve] = [2, 3, 4].map(|n| PartyId::from_bytes([n; 32]));
    let proof = admission_proof(&secret, mesh, ann, bob);
    assert!(admission_fits(&proof, &secret, mesh, ann, bob));
    assert!(!admission_fits(&proof, &[8; 32], mesh, ann, bob), "another secret");
    assert!(!admission_fits(&proof, &secret, MeshId::from_bytes([9; 32]), ann, bob));
    assert!(!admission_fits(&proof, &secret, mesh, eve, bob), "overheard by another sender");
    assert!(!admission_fits(&proof, &secret, mesh, ann, eve), "shown to another receiver");
    assert!(!admission_fits(&proof, &secret, mesh, bob, ann), "sent back");
}

#[test]
fn two_nodes_speak_the_newest_version_both_know() {
    let hello = |protocol_min, protocol| Hello {
        protocol_min,
        protocol,
        features: 0,
        mesh: MeshId::from_bytes([1; 32]),
        charter_version: 0,
        admission: None,
        addresses: Vec::new(),
        agent: String::new(),
    };
    let cases =
        [((1, 1), Some(1)), ((0, 9), Some(1)), ((2, 9), None), ((0, 0), None), ((9, 1), None)];
    for ((min, max), expected) in cases {
        assert_eq!(common_version(&hello(min, max)), expected, "{min}..={max}");
    }
    assert_eq!(PROTOCOL, 1);
}
