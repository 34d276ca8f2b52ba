//! Ranking: what an observer of jobs would choose, what strangers cannot buy, what is refused.

use tirami_core::{ModelShape, Trm};
use tirami_proto::{MeasuredSpeed, OPINIONS_PER_FRAME_MAX, ProviderOpinion};

use super::*;

const MODEL: ModelDigest = ModelDigest::from_bytes([1; 32]);
const NOW: Timestamp = Timestamp::from_ms(1_700_000_000_000);
/// A draw that does not explore.
const PLAIN: u64 = 999_999;

fn party(n: u16) -> PartyId {
    let mut bytes = [7; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    PartyId::from_bytes(bytes)
}

fn signal(n: u16) -> PriceSignal {
    let shape =
        ModelShape { parameters_active: 1_000, layers: 1, attention_width: 1, context_max: 4_096 };
    PriceSignal {
        provider: party(n),
        issued_at: NOW,
        expires_at: NOW.plus_ms(45_000),
        price: Ppm::ONE,
        cached_price: Ppm::new(100_000),
        slots_free: 2,
        slots: 4,
        queue: 0,
        models: vec![Offer {
            model: MODEL,
            name: "m".to_owned(),
            quantisation: "Q4_1".to_owned(),
            context_tokens: 4_096,
            shape,
            tokens_per_second_milli: 10_000,
            embedding_width: 0,
            image_tokens_max: 0,
            build: String::new(),
        }],
        region: String::new(),
        features: 0,
        addresses: Vec::new(),
        http_endpoint: None,
        serving: true,
    }
}

/// Some providers and what is known of them.
struct World {
    signals: Vec<PriceSignal>,
    unreachable: BTreeSet<PartyId>,
    trusted: BTreeSet<PartyId>,
    opinions: Opinions,
    now: Timestamp,
    query: Query,
}

impl World {
    fn of(count: u16) -> Self {
        Self {
            signals: (0..count).map(signal).collect(),
            unreachable: BTreeSet::new(),
            trusted: BTreeSet::new(),
            opinions: Opinions::default(),
            now: NOW,
            query: Query {
                model: MODEL,
                shape: None,
                prompt_tokens: 100,
                completion_tokens: 200,
                prefixes: Vec::new(),
                tried: BTreeSet::new(),
                preferences: Preferences::default(),
            },
        }
    }

    fn saw(&mut self, n: u16, outcome: Observed) {
        self.opinions.observe(&Observation { provider: party(n), outcome }, self.now);
    }

    /// A job with this time to the first token and this many tokens per second.
    fn served(&mut self, n: u16, first_token_ms: u32, per_second: u32) {
        let (tokens, tokens_ms) = (101, 100_000 / per_second);
        let prefix = None;
        self.saw(n, Observed::Served { model: MODEL, prefix, first_token_ms, tokens, tokens_ms });
    }

    fn later(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    fn rank(&self, dice: u64) -> Ranking {
        let providers = self.signals.iter().map(|signal| Provider {
            signal,
            connected: !self.unreachable.contains(&signal.provider),
            trusted: self.trusted.contains(&signal.provider),
            running: 0,
        });
        rank(providers, &self.opinions, &self.query, self.now, dice)
    }

    fn order(&self) -> Vec<u16> {
        let ranking = self.rank(PLAIN);
        ranking.candidates.iter().map(|candidate| number(candidate.provider)).collect()
    }

    fn first(&self) -> u16 {
        self.order()[0]
    }
}

fn number(party: PartyId) -> u16 {
    u16::from_be_bytes([party.as_bytes()[0], party.as_bytes()[1]])
}

#[test]
fn one_failure_outweighs_one_success() {
    let cases = [("sf", 1), ("fs", 1), ("ssf", 1), ("fss", 1), ("fsss", 1), ("ssss", 0), ("f", 1)];
    for (history, expected) in cases {
        let mut world = World::of(2);
        // Both are measured alike; then the first one has a history and the other none.
        (0..2).for_each(|n| world.served(n, 200, 20));
        for event in history.chars() {
            match event {
                's' => world.served(0, 200, 20),
                _ => world.saw(0, Observed::Failed),
            }
        }
        let candidates = world.rank(PLAIN).candidates;
        let best: Vec<u16> = candidates
            .iter()
            .filter(|candidate| candidate.score == 1_000_000)
            .map(|candidate| number(candidate.provider))
            .collect();
        assert_eq!(best, [expected], "after {history}");
    }
}

#[test]
fn a_provider_that_turned_slow_loses_its_place_within_a_minute() {
    for interval_ms in [200, 1_000, 5_000, 15_000, 30_000, 59_000] {
        let mut world = World::of(2);
        for _ in 0..50 {
            world.served(0, 100, 40);
            world.served(1, 200, 25);
            world.later(interval_ms);
        }
        assert_eq!(world.first(), 0, "jobs each {interval_ms} ms");
        let mut passed = 0;
        while world.first() == 0 {
            world.served(0, 2_000, 4);
            world.later(interval_ms);
            passed += interval_ms;
            assert!(passed <= 60_000, "still first after {passed} ms, jobs each {interval_ms} ms");
        }
    }
}

#[test]
fn one_failure_is_forgiven_within_a_minute_and_many_are_not() {
    let after = |failures: u32| {
        let mut world = World::of(2);
        world.served(1, 200, 20);
        world.served(0, 100, 40);
        (0..failures).for_each(|_| world.saw(0, Observed::Failed));
        (1..=600).find(|_| {
            world.later(1_000);
            world.first() == 0
        })
    };
    assert_eq!(after(0), Some(1));
    assert!(after(1).is_some_and(|seconds| seconds <= 60), "{:?}", after(1));
    assert!(after(4).is_none_or(|seconds| seconds > 120), "{:?}", after(4));
    let mut world = World::of(2);
    world.served(1, 200, 20);
    world.served(0, 100, 40);
    world.saw(0, Observed::Cheated);
    world.later(300_000);
    assert_eq!(world.first(), 1, "a cheat is remembered longer");
}

#[test]
fn at_most_one_job_in_twenty_explores() {
    let mut world = World::of(4);
    world.served(0, 100, 40);
    let draws = 100_000_u64;
    let mut explored = [0_u64; 4];
    for draw in 0..draws {
        let dice = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8;
        let best = &world.rank(dice).candidates[0];
        let reason = best.why.contains(&Reason::Explored);
        assert_eq!(reason, best.provider != party(0));
        explored[usize::from(number(best.provider))] += u64::from(reason);
    }
    let all: u64 = explored.iter().sum();
    assert!(all <= draws * 52 / 1_000, "{all} of {draws}");
    assert!(explored[1..].iter().all(|count| *count > draws / 100), "{explored:?}");

    let spared: [Named<World>; 5] = [
        ("an order", |world| world.query.preferences.order = vec![party(0)]),
        ("a sort", |world| world.query.preferences.sort = Some(Sort::Latency)),
        ("a job that failed once", |world| world.query.tried.extend([party(1)])),
        ("others measured lately", |world| (1..4).for_each(|n| world.served(n, 900, 9))),
        ("others full", |world| world.signals[1..].iter_mut().for_each(|s| s.slots_free = 0)),
    ];
    for (what, change) in spared {
        let mut world = World::of(4);
        world.served(0, 100, 40);
        change(&mut world);
        let first = world.rank(0).candidates[0].provider;
        assert_eq!(first, party(0), "{what}");
    }
}

#[test]
fn a_provider_that_became_fast_is_found_by_exploring() {
    let mut world = World::of(3);
    world.served(0, 400, 20);
    world.served(1, 900, 5);
    world.served(2, 900, 5);
    let mut seconds = 0_u64;
    while world.first() != 2 {
        seconds += 1;
        assert!(seconds < 600, "never found");
        world.later(1_000);
        let dice = seconds.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8;
        match number(world.rank(dice).candidates[0].provider) {
            0 => world.served(0, 400, 20),
            1 => world.served(1, 900, 5),
            _ => world.served(2, 100, 60),
        }
    }
}

#[test]
fn what_a_provider_says_of_itself_can_only_hurt_it() {
    let boasts: [Named<PriceSignal>; 3] = [
        ("speed", |signal| signal.models[0].tokens_per_second_milli = u32::MAX),
        ("room", |signal| (signal.slots, signal.slots_free) = (u16::MAX, u16::MAX)),
        ("features", |signal| signal.features = u64::MAX),
    ];
    for (what, boast) in boasts {
        let mut world = World::of(2);
        boast(&mut world.signals[1]);
        let scores: Vec<u64> = world.rank(PLAIN).candidates.iter().map(|c| c.score).collect();
        assert_eq!(scores, [1_000_000, 1_000_000], "{what} gains nothing");
    }
    let confessions: [Named<PriceSignal>; 3] = [
        ("slow", |signal| signal.models[0].tokens_per_second_milli = 2_000),
        ("full", |signal| signal.slots_free = 0),
        ("dear", |signal| signal.price = Ppm::new(2_000_000)),
    ];
    for (what, confess) in confessions {
        let mut world = World::of(2);
        confess(&mut world.signals[0]);
        assert_eq!(world.order(), [1, 0], "{what} is believed");
    }
}

#[test]
fn a_crowd_of_fresh_keys_does_not_take_the_jobs_of_a_slow_honest_provider() {
    let mut world = World::of(200);
    (0..10).for_each(|_| world.served(0, 4_000, 3));
    for signal in &mut world.signals[1..] {
        signal.price = Ppm::ZERO;
        signal.models[0].tokens_per_second_milli = 100_000;
    }
    assert_eq!(world.first(), 0);
    let draws = (0..10_000_u64).map(|draw| draw.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8);
    let lost = draws.filter(|dice| world.rank(*dice).candidates[0].provider != party(0)).count();
    assert!(lost <= 550, "{lost} of 10 000");
    // Once it fails, strangers are better than nothing.
    (0..2).for_each(|_| world.saw(0, Observed::Failed));
    assert_ne!(world.first(), 0);
}

#[test]
fn each_of_these_makes_a_provider_better() {
    let cases: [Named<World>; 6] = [
        ("sooner", |world| world.served(1, 50, 20)),
        ("faster", |world| world.served(1, 400, 60)),
        ("cheaper", |world| world.signals[1].price = Ppm::new(500_000)),
        ("room", |world| world.signals[0].slots_free = 0),
        ("cached prompt", |world| {
            let digest = Digest::of(b"prompt");
            let served = Observed::Served {
                model: MODEL,
                prefix: Some(digest),
                first_token_ms: 400,
                tokens: 101,
                tokens_ms: 5_000,
            };
            world.saw(1, served);
            world.query.prefixes = vec![Digest::of(b"longer prompt"), digest];
            world.query.completion_tokens = 10;
        }),
        ("trade both ways", |world| {
            let trm = |trm| Trm::from_trm(trm).unwrap();
            world.saw(1, Observed::Traded { bought: trm(100_000), sold: trm(90_000) });
            world.saw(0, Observed::Traded { bought: trm(100_000), sold: Trm::ZERO });
        }),
    ];
    for (what, change) in cases {
        let mut world = World::of(2);
        (0..2).for_each(|n| world.served(n, 400, 20));
        change(&mut world);
        let candidates = world.rank(PLAIN).candidates;
        assert!(candidates.iter().all(|c| c.provider == party(1) || c.score < 1_000_000), "{what}");
        let mine = candidates.iter().find(|c| c.provider == party(1)).unwrap();
        assert_eq!(mine.score, 1_000_000, "{what}");
    }
}

#[test]
fn jobs_of_this_node_count_even_if_the_provider_hides_them() {
    let world = World::of(2);
    let providers = world.signals.iter().map(|signal| {
        let running = if signal.provider == party(0) { 4 } else { 0 };
        Provider { signal, connected: true, trusted: false, running }
    });
    let ranking = rank(providers, &world.opinions, &world.query, NOW, PLAIN);
    assert_eq!(ranking.candidates[0].provider, party(1));
    assert!(ranking.candidates[1].why.contains(&Reason::Busy { queue: 0 }));
}

/// What the requester may ask for.
fn wishes() -> Vec<Constraint> {
    vec![
        ("none", |_| (), &[0, 1, 2, 3]),
        ("order", |w| w.query.preferences.order = vec![party(2), party(1)], &[2, 1, 0, 3]),
        (
            "order without fallbacks",
            |w| {
                w.query.preferences.order = vec![party(3), party(1)];
                w.query.preferences.allow_fallbacks = false;
            },
            &[3, 1],
        ),
        ("no fallbacks", |w| w.query.preferences.allow_fallbacks = false, &[0]),
        (
            "no fallbacks after the first choice",
            |w| {
                w.query.preferences.allow_fallbacks = false;
                w.query.tried.insert(party(0));
            },
            &[],
        ),
        (
            "a low price for too much work",
            |w| {
                w.signals[0].models[0].shape.parameters_active *= 1_000;
                w.signals[0].price = Ppm::new(w.signals[0].price.get() / 2);
            },
            &[1, 2, 3, 0],
        ),
        (
            "another shape than the file's",
            |w| {
                w.query.shape = Some(w.signals[0].models[0].shape);
                w.signals[1].models[0].shape.layers += 1;
            },
            &[0, 2, 3],
        ),
        ("only", |w| w.query.preferences.only = vec![party(3), party(2)], &[2, 3]),
        ("ignore", |w| w.query.preferences.ignore = vec![party(0)], &[1, 2, 3]),
        (
            "quantisations",
            |w| {
                w.signals[2].models[0].quantisation = "BF16".to_owned();
                w.query.preferences.quantizations = vec!["int8".to_owned(), "bf16".to_owned()];
            },
            &[2],
        ),
        (
            "trusted",
            |w| {
                w.trusted.insert(party(3));
                w.query.preferences.data = Data::Trusted;
            },
            &[3],
        ),
    ]
}

/// What the requester pays at most.
fn prices() -> Vec<Constraint> {
    vec![
        (
            "price",
            |w| {
                w.signals[0].price = Ppm::new(1_000_001);
                w.query.preferences.max_price = Some(Ppm::ONE);
            },
            &[1, 2, 3],
        ),
        (
            "price, of too much work",
            |w| {
                w.signals[0].models[0].shape.parameters_active *= 1_000;
                w.signals[0].price = Ppm::new(500_000);
                w.query.preferences.max_price = Some(Ppm::ONE);
            },
            &[1, 2, 3],
        ),
        (
            "price, of too much work where the context is long",
            |w| {
                w.signals[0].models[0].shape.attention_width = 3;
                w.signals[0].price = Ppm::new(900_000);
                w.query.preferences.max_price = Some(Ppm::ONE);
            },
            &[1, 2, 3],
        ),
        (
            "price, when only too much work is cheap enough",
            |w| {
                w.signals[0].models[0].shape.parameters_active *= 1_000;
                w.signals[0].price = Ppm::new(500_000);
                w.query.preferences.max_price = Some(Ppm::new(600_000));
            },
            &[],
        ),
        (
            "price, by a shape that this node knows",
            |w| {
                w.query.shape = Some(w.signals[0].models[0].shape);
                w.signals[0].models[0].shape.parameters_active = 1;
                w.signals[1].price = Ppm::new(1_000_001);
                w.query.preferences.max_price = Some(Ppm::ONE);
            },
            &[2, 3],
        ),
    ]
}

/// Speed, what to sort by, and what the provider's state excludes.
fn states() -> Vec<Constraint> {
    vec![
        ("throughput", |w| w.query.preferences.min_throughput_milli = Some(15_000), &[0, 1]),
        (
            "throughput, with one that was never measured",
            |w| {
                w.signals.push(signal(4));
                w.signals[4].models[0].tokens_per_second_milli = 99_000;
                w.query.preferences.min_throughput_milli = Some(15_000);
            },
            &[0, 1, 4],
        ),
        (
            "sort by price",
            |w| {
                w.signals[3].price = Ppm::new(900_000);
                w.query.preferences.sort = Some(Sort::Price);
            },
            &[3, 0, 1, 2],
        ),
        (
            "sort by throughput",
            |w| {
                w.served(3, 9_000, 400);
                w.query.preferences.sort = Some(Sort::Throughput);
            },
            &[3, 0, 1, 2],
        ),
        (
            "sort by latency",
            |w| {
                w.later(31_000);
                w.served(3, 20, 1);
                w.query.preferences.sort = Some(Sort::Latency);
            },
            &[3, 0, 1, 2],
        ),
        ("lost", |w| w.unreachable.extend([party(0)]), &[1, 2, 3]),
        ("paused", |w| w.signals[0].serving = false, &[1, 2, 3]),
        ("another model", |w| w.signals[0].models.clear(), &[1, 2, 3]),
        ("a short context", |w| w.signals[0].models[0].context_tokens = 100, &[1, 2, 3]),
        ("tried", |w| w.query.tried.extend([party(0)]), &[1, 2, 3]),
    ]
}

#[test]
fn constraints_come_before_everything_measured() {
    for (what, change, expected) in [wishes(), prices(), states()].concat() {
        let mut world = World::of(4);
        world.served(0, 100, 40);
        world.served(1, 200, 20);
        world.served(2, 500, 10);
        world.served(3, 1_000, 5);
        change(&mut world);
        assert_eq!(world.order(), expected, "{what}");
        let ranking = world.rank(PLAIN);
        let excluded: u32 = ranking.excluded.values().sum();
        let listed = ranking.candidates.len() as u32;
        let cut = if what == "no fallbacks" { 3 } else { 0 };
        assert_eq!(listed + excluded + cut, ranking.asked, "{what}: all are accounted for");
    }
}

#[test]
fn whoever_names_too_little_work_and_fails_is_no_measure_for_the_price_of_others() {
    let mut world = World::of(2);
    world.query.preferences.max_price = Some(Ppm::ONE);
    world.signals[1].models[0].shape.parameters_active = 1;
    assert_eq!(world.order(), [1], "it may be so");
    assert_eq!(world.rank(PLAIN).excluded.get(&Exclusion::Price), Some(&1));
    world.saw(1, Observed::Failed);
    assert_eq!(world.order(), [1, 0]);
}

#[test]
fn whoever_answered_before_is_a_measure_for_the_price_of_others_while_it_is_busy() {
    let mut world = World::of(2);
    world.query.preferences.max_price = Some(Ppm::ONE);
    world.signals[0].models[0].shape.parameters_active *= 1_000;
    world.saw(1, Observed::Refused { retry_after_ms: 2_000 });
    assert_eq!(world.order(), [0], "nothing is known of the other one");
    world.later(2_000);
    world.served(1, 200, 20);
    world.saw(1, Observed::Refused { retry_after_ms: 2_000 });
    assert!(world.order().is_empty());
    world.query.preferences.ignore = vec![party(1)];
    assert_eq!(world.order(), [0], "the requester knows better");
}

#[test]
fn a_candidate_says_what_work_it_offers() {
    let mut world = World::of(1);
    let shape = world.signals[0].models[0].shape;
    assert_eq!(world.rank(PLAIN).candidates[0].work, shape.work(0, 300));
    // What is only read is read each text by itself.
    world.query.completion_tokens = 0;
    assert_eq!(world.rank(PLAIN).candidates[0].work, shape.without_attention().work(0, 100));
}

#[test]
fn a_provider_that_asks_to_wait_is_left_alone_for_at_most_a_minute() {
    for (asked, waits) in [(500, 500), (u64::MAX, 60_000)] {
        let mut world = World::of(1);
        world.saw(0, Observed::Refused { retry_after_ms: asked });
        world.later(waits - 1);
        assert_eq!(world.rank(PLAIN).excluded.get(&Exclusion::Waiting), Some(&1));
        world.later(1);
        assert_eq!(world.order(), [0]);
    }
}

#[test]
fn who_finds_nobody_is_told_why() {
    let mut world = World::of(0);
    assert!(world.rank(PLAIN).refusal().starts_with("no provider: none is known to this node"));
    world = World::of(5);
    world.signals[0].models.clear();
    world.signals[1].models.clear();
    world.unreachable.insert(party(2));
    world.query.preferences.max_price = Some(Ppm::new(10));
    assert_eq!(
        world.rank(PLAIN).refusal(),
        "no provider: 5 asked, 5 excluded because: not connected (1), does not serve this model \
         (2), price above provider.max_price (2); nothing was charged"
    );
}

#[test]
fn equals_are_chosen_by_the_dice_and_the_dice_can_be_replayed() {
    let world = World::of(4);
    let mut firsts = [0_u32; 4];
    for draw in 0..4_000_u64 {
        // No draw below the share that explores.
        let dice = draw * 1_000_000 + PLAIN;
        assert_eq!(world.rank(dice), world.rank(dice));
        firsts[usize::from(number(world.rank(dice).candidates[0].provider))] += 1;
    }
    assert!(firsts.iter().all(|count| (850..1_150).contains(count)), "{firsts:?}");
}

#[test]
fn every_candidate_says_why() {
    let mut world = World::of(2);
    world.served(0, 120, 40);
    world.saw(0, Observed::Failed);
    world.query.preferences.order = vec![party(1), party(0)];
    let ranking = world.rank(PLAIN);
    let why = |at: usize| -> Vec<String> {
        ranking.candidates[at].why.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        why(0),
        [
            "named as number 1 in provider.order",
            "not measured yet",
            "2 of 4 places free",
            "asks 1 TRM for 10^9 FLOP"
        ]
    );
    assert_eq!(
        why(1),
        [
            "named as number 2 in provider.order",
            "first token after 120 ms and 40.0 tokens/s, measured over 1 job",
            "failed lately, counted as 28.3 % of jobs",
            "2 of 4 places free",
            "asks 1 TRM for 10^9 FLOP"
        ]
    );
}

#[test]
fn opinions_are_bounded() {
    let mut world = World::of(1);
    for n in 0..PARTIES_MAX as u32 + 100 {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let outcome = Observed::Served {
            model: MODEL,
            prefix: Some(Digest::of(&bytes)),
            first_token_ms: 1,
            tokens: 0,
            tokens_ms: 0,
        };
        let observation = Observation { provider: PartyId::from_bytes(bytes), outcome };
        world.opinions.observe(&observation, world.now);
        world.later(1);
    }
    let (parties, prefixes) = world.opinions.sizes();
    assert_eq!((parties, prefixes), (PARTIES_MAX, PREFIXES_MAX));
    let extremes = [0, 1, u32::MAX];
    for (first_token_ms, tokens, tokens_ms) in
        extremes.into_iter().flat_map(|a| extremes.map(|b| (a, b, a ^ b)))
    {
        let prefix = None;
        world.saw(0, Observed::Served { model: MODEL, prefix, first_token_ms, tokens, tokens_ms });
        world.saw(0, Observed::Traded { bought: Trm::MAX, sold: Trm::MAX });
        world.signals[0].price = Ppm::new(u32::MAX);
        world.signals[0].queue = u16::MAX;
        world.query.completion_tokens = u32::MAX;
        assert_eq!(world.order(), [0], "no number is too large");
    }
}

impl World {
    /// What node `speaker` says of provider `n`: time to the first token, tokens per second, and
    /// failures in ppm.
    fn hears(&mut self, speaker: u16, n: u16, (first, per_second, failure_ppm): (u32, u32, u32)) {
        let speed = MeasuredSpeed {
            model: MODEL,
            first_token_ms: first,
            tokens_per_second_milli: per_second * 1_000,
        };
        let said = ProviderOpinion { provider: party(n), failure_ppm, speeds: vec![speed] };
        self.opinions.hear(party(speaker), vec![said], self.now);
    }

    /// The speaker paid this node, in µTRM.
    fn paid(&mut self, speaker: u16, micro: u64) {
        let (bought, sold) = (Trm::ZERO, Trm::from_micro(micro));
        self.saw(speaker, Observed::Traded { bought, sold });
    }

    /// This node paid the speaker, in µTRM.
    fn bought(&mut self, speaker: u16, micro: u64) {
        let (bought, sold) = (Trm::from_micro(micro), Trm::ZERO);
        self.saw(speaker, Observed::Traded { bought, sold });
    }

    fn heard_of(&self, n: u16) -> u32 {
        let ranking = self.rank(PLAIN);
        let of = ranking.candidates.iter().find(|candidate| candidate.provider == party(n));
        let heard = of.unwrap().why.iter().find_map(|why| match why {
            Reason::Heard { nodes } => Some(*nodes),
            _ => None,
        });
        heard.unwrap_or_default()
    }
}

#[test]
fn what_others_say_counts_by_what_they_paid_and_only_of_who_was_never_measured() {
    const MUCH: u64 = 100_000_000_000;
    let mut world = World::of(3);
    for signal in &mut world.signals {
        signal.models[0].tokens_per_second_milli = 60_000;
    }
    let tell = |world: &mut World| {
        world.hears(10, 2, (100, 50, 0));
        world.hears(10, 1, (1_000, 10, 900_000));
    };
    tell(&mut world);
    assert_eq!([0, 1, 2].map(|n| world.heard_of(n)), [0; 3], "who paid nothing has no voice");

    world.paid(10, 1_000_000);
    tell(&mut world);
    assert_eq!([0, 1, 2].map(|n| world.heard_of(n)), [0, 1, 1]);
    let scores: Vec<u64> = world.rank(PLAIN).candidates.iter().map(|one| one.score).collect();
    assert!(scores[2] > 980_000, "who paid little says little: {scores:?}");

    world.paid(10, MUCH);
    assert_eq!(world.order(), [2, 0, 1]);
    world.paid(11, 10 * MUCH);
    world.hears(11, 1, (100, 50, 0));
    world.hears(11, 2, (20_000, 1, 0));
    assert_eq!([0, 1, 2].map(|n| world.heard_of(n)), [0, 2, 2]);
    assert_ne!(world.first(), 2, "another one knows better");

    world.paid(0, MUCH);
    world.hears(0, 0, (1, 1_000, 0));
    assert_eq!(world.heard_of(0), 0, "nobody is asked about itself");

    world.served(1, 900, 12);
    assert_eq!((world.first(), world.heard_of(1)), (1, 0), "what this node saw itself counts");
    assert_eq!(world.heard_of(2), 2);
    world.later(OPINION_LIFE_MS);
    assert_eq!(world.heard_of(2), 0, "what is old is forgotten");
}

#[test]
fn whoever_is_said_to_be_fast_is_no_faster_than_it_says_itself() {
    let mut world = World::of(2);
    world.signals[0].models[0].tokens_per_second_milli = 500;
    world.paid(10, 100_000_000_000);
    world.hears(10, 0, (1, 1_000, 0));
    assert_eq!(world.order(), [1, 0]);
}

#[test]
fn whoever_was_only_paid_has_no_voice() {
    let mut world = World::of(2);
    world.bought(10, 100_000_000_000);
    world.hears(10, 0, (u32::MAX, 0, 1_000_000));
    assert_eq!(world.heard_of(0), 0);
    let scores: Vec<u64> = world.rank(PLAIN).candidates.iter().map(|one| one.score).collect();
    assert_eq!(scores, [1_000_000, 1_000_000]);
    world.paid(10, 100_000_000_000);
    world.hears(10, 0, (u32::MAX, 0, 1_000_000));
    assert_eq!((world.heard_of(0), world.order()), (1, vec![1, 0]));
}

#[test]
fn whoever_is_spoken_ill_of_counts_as_little_more_than_four_times_slower() {
    let mut world = World::of(2);
    world.paid(10, 1_000_000_000_000_000);
    world.hears(10, 0, (u32::MAX, 0, u32::MAX));
    assert_eq!(world.order(), [1, 0]);
    let score = world.rank(PLAIN).candidates[1].score;
    assert!((200_000..250_000).contains(&score), "{score}");
}

#[test]
fn a_node_tells_what_it_saw_since_it_last_told() {
    let mut world = World::of(3);
    world.paid(2, 7);
    world.served(0, 100, 50);
    let since = world.now;
    world.later(1_000);
    world.saw(1, Observed::Failed);
    let told = |since| {
        let told = world.opinions.tell(since);
        told.iter().map(|one| (number(one.provider), one.speeds.len())).collect::<Vec<_>>()
    };
    assert_eq!(told(Timestamp::default()), [(1, 0), (0, 1)], "the newest first");
    assert_eq!(told(since.plus_ms(1)), [(1, 0)]);
    assert_eq!(told(since.plus_ms(1_001)), []);
    let opinion = &world.opinions.tell(Timestamp::default())[0];
    assert!(u64::from(opinion.failure_ppm) > FAILURE_NEUTRAL_PPM);
}

#[test]
fn what_is_heard_is_bounded_and_those_that_paid_most_are_heard() {
    let mut world = World::of(1);
    let extra = 6_u16;
    let speakers = u16::try_from(SPEAKERS_MAX).unwrap() + extra;
    for speaker in 0..speakers {
        world.paid(1_000 + speaker, 1 + u64::from(speaker));
        for n in 0..70 {
            world.hears(1_000 + speaker, n, (u32::MAX, 4_000_000, u32::MAX));
        }
    }
    assert_eq!(world.opinions.heard(), (SPEAKERS_MAX, SPEAKERS_MAX * OPINIONS_PER_FRAME_MAX));
    // The one that paid least takes nobody's place.
    world.hears(1_000, 69, (1, 1, 1));
    world.paid(2_000, 1);
    world.hears(2_000, 69, (1, 1, 1));
    assert_eq!(world.opinions.heard().0, SPEAKERS_MAX);
    assert_eq!(world.heard_of(0), 0, "the oldest of each were forgotten");
    assert_eq!(world.order(), [0], "no number is too large");
}

/// A change that has a name.
type Named<T> = (&'static str, fn(&mut T));
/// A change of the world and the order that is expected then.
type Constraint = (&'static str, fn(&mut World), &'static [u16]);
