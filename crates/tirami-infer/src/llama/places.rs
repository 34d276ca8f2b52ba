//! Which place of the cache a request takes, and how much of its prompt is there already.
//!
//! A place keeps what its last sequence left, so that a chat's next turn finds its history. The
//! memory is the context's own: a place that is needed is the one that was used longest ago.

/// Tokens a copy from another place must save at least.
const COPY_TOKENS_MIN: usize = 16;
/// A copy moves the whole place, which takes about as long as to read one token for each so many
/// that a place holds.
const COPY_TOKENS_SHARE: usize = 256;

/// Tokens a copy must save where a place holds `context_tokens`.
pub(super) fn copy_min(context_tokens: usize) -> usize {
    (context_tokens / COPY_TOKENS_SHARE).max(COPY_TOKENS_MIN)
}

/// What is known of a place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Tokens whose keys and values are in the cache, from the sequence's first on.
    pub(super) held: Vec<u32>,
    /// Whose they are.
    pub(super) scope: u64,
    /// When the place was taken last, counted in takings; 0 for never.
    pub(super) taken: u64,
    /// A sequence runs in it.
    pub(super) busy: bool,
}

/// Where a sequence goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) place: usize,
    /// Tokens of the sequence that are in the cache, once `copy_from` is copied.
    pub(super) cached: usize,
    pub(super) copy_from: Option<usize>,
}

/// The place for a sequence that begins with `tokens`, of which the last must be read in any case.
/// `common` is the beginning that all scopes share; a copy saves at least `copy_min` tokens. None
/// while every place is busy.
pub(super) fn choose(
    places: &[Place],
    (tokens, scope): (&[u32], u64),
    common: &[u32],
    copy_min: usize,
) -> Option<Choice> {
    let most = tokens.len().saturating_sub(1);
    let open_to_all = same(common, tokens);
    let shared = |place: &Place| {
        let open = if place.scope == scope { usize::MAX } else { open_to_all };
        same(&place.held, tokens).min(open).min(most)
    };
    let free = || places.iter().enumerate().filter(|(_, place)| !place.busy);
    let source = (0..places.len()).max_by_key(|i| (shared(&places[*i]), places[*i].taken))?;
    let found = shared(&places[source]);
    // Whoever goes on where a place ended takes it; another would throw most of it away.
    let goes_on = free()
        .filter(|(_, place)| shared(place) > 0 && 2 * shared(place) >= place.held.len())
        .max_by_key(|(_, place)| (shared(place), place.taken));
    if let Some((place, known)) = goes_on
        && shared(known) + copy_min > found
    {
        return Some(Choice { place, cached: shared(known), copy_from: None });
    }
    let oldest = |(_, place): &(usize, &Place)| place.taken;
    let elsewhere = free().filter(|(i, _)| *i != source).min_by_key(oldest);
    let (place, known) = elsewhere.or_else(|| free().min_by_key(oldest))?;
    if place != source && found >= copy_min {
        return Some(Choice { place, cached: found, copy_from: Some(source) });
    }
    Some(Choice { place, cached: shared(known), copy_from: None })
}

/// Length of the common beginning.
pub(super) fn same(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` tokens of text number `text`, which all begin with the tokens 0, 1, 2.
    fn tokens(text: u32, count: u32) -> Vec<u32> {
        (0..count).map(|i| if i < 3 { i } else { text * 10_000 + i }).collect()
    }

    fn place(text: u32, count: u32, taken: u64) -> Place {
        Place { held: tokens(text, count), scope: 7, taken, busy: false }
    }

    fn chosen(places: &[Place], tokens: &[u32], scope: u64) -> (usize, usize, Option<usize>) {
        let choice = choose(places, (tokens, scope), &[0, 1, 2], 64).unwrap();
        (choice.place, choice.cached, choice.copy_from)
    }

    #[test]
    fn a_next_turn_finds_its_history() {
        let places = [place(1, 100, 1), place(2, 100, 2), Place::default()];
        assert_eq!(chosen(&places, &tokens(1, 150), 7), (0, 100, None));
        assert_eq!(chosen(&places, &tokens(2, 150), 7), (1, 100, None));
        // The last token is always read.
        assert_eq!(chosen(&places, &tokens(2, 100), 7), (1, 99, None));
    }

    #[test]
    fn another_text_takes_the_place_used_longest_ago() {
        let places = [place(1, 100, 3), place(2, 100, 2)];
        assert_eq!(chosen(&places, &tokens(3, 50), 7), (1, 3, None));
        let places = [place(1, 100, 1), Place::default()];
        assert_eq!(chosen(&places, &tokens(3, 50), 7), (1, 0, None));
    }

    #[test]
    fn a_history_in_a_busy_place_is_copied_when_it_is_long() {
        let busy = |place: Place| Place { busy: true, ..place };
        let places = [busy(place(1, 100, 1)), place(2, 100, 2)];
        assert_eq!(chosen(&places, &tokens(1, 150), 7), (1, 100, Some(0)));
        let places = [busy(place(1, 60, 1)), place(2, 100, 2)];
        assert_eq!(chosen(&places, &tokens(1, 150), 7), (1, 3, None));
        assert_eq!(choose(&[busy(place(1, 60, 1))], (&[1], 7), &[], 64), None);
    }

    #[test]
    fn a_short_common_beginning_does_not_cost_a_long_history() {
        let places = [place(1, 500, 1), Place::default()];
        // 100 of 500 tokens are common: they are copied and the rest of the history stays.
        let mut branch = tokens(1, 100);
        branch.extend([9, 9]);
        assert_eq!(chosen(&places, &branch, 7), (1, 100, Some(0)));
        assert_eq!(chosen(&places[..1], &branch, 7), (0, 100, None));
    }

    #[test]
    fn strangers_share_only_what_all_chats_begin_with() {
        let places = [place(1, 100, 1)];
        assert_eq!(chosen(&places, &tokens(1, 150), 8), (0, 3, None));
        let both = [place(1, 100, 1), Place::default()];
        assert_eq!(chosen(&both, &tokens(1, 150), 8), (1, 0, None));
    }
}
