//! The time that following the grammar of one answer may take.
//!
//! The native engine follows all ways through a grammar at once, and looks at the whole vocabulary
//! for each of them. The answers that run beside one wait meanwhile, so what an answer's grammar
//! took is counted, and the answer ends where that is too much.

use std::time::Duration;

/// Time an answer has before its first token, and what it may save: so long may it keep the others
/// waiting at once.
const SAVED_MAX: Duration = Duration::from_secs(1);
/// Time each token brings at least: so long may it keep them waiting from token to token.
const FOR_TOKEN: Duration = Duration::from_millis(100);
/// Looks at the whole vocabulary that a token brings time for, where these take longer: a large
/// vocabulary on a slow machine is no fault of a schema's, and an ordinary one has few ways.
const SCANS_FOR_TOKEN: u32 = 8;

/// What is left of the time.
#[derive(Debug)]
pub(super) struct Allowance {
    left: Duration,
    for_token: Duration,
}

impl Allowance {
    /// That of an answer whose model's vocabulary is looked at once in `scan`.
    pub(super) fn new(scan: Duration) -> Self {
        let for_token = FOR_TOKEN.max(scan.saturating_mul(SCANS_FOR_TOKEN));
        Self { left: SAVED_MAX.max(for_token), for_token }
    }

    #[cfg(test)]
    pub(super) const fn none() -> Self {
        Self { left: Duration::ZERO, for_token: FOR_TOKEN }
    }

    #[cfg(test)]
    pub(super) const fn left(&self) -> Duration {
        self.left
    }

    /// Whether nothing is left; then nothing comes any more.
    pub(super) const fn is_spent(&self) -> bool {
        self.left.is_zero()
    }

    /// Does some work, whose time is taken off.
    pub(super) fn spend<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = computed();
        let done = work();
        self.left = self.left.saturating_sub(computed().saturating_sub(began));
        done
    }

    /// A token was made.
    pub(super) fn earn(&mut self) {
        if !self.is_spent() {
            let most = SAVED_MAX.max(self.for_token);
            self.left = self.left.saturating_add(self.for_token).min(most);
        }
    }
}

/// How long some work takes this thread.
pub(super) fn taken(work: impl FnOnce()) -> Duration {
    let began = computed();
    work();
    computed().saturating_sub(began)
}

/// How long this thread has computed: a busy machine does not make an answer's grammar costly.
#[cfg(unix)]
fn computed() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// How long this thread has computed or waited, where only that is known.
#[cfg(not(unix))]
fn computed() -> Duration {
    use std::sync::LazyLock;
    use std::time::Instant;

    static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGINNING.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute(time: Duration) {
        let began = computed();
        while computed().saturating_sub(began) < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn work_is_taken_off_tokens_bring_some_and_what_is_spent_stays_spent() {
        let mut allowance = Allowance::new(Duration::ZERO);
        allowance.earn();
        assert_eq!(allowance.left, SAVED_MAX, "no more is saved");
        allowance.spend(|| compute(FOR_TOKEN));
        assert!(allowance.left <= SAVED_MAX - FOR_TOKEN && !allowance.is_spent());
        let left = allowance.left;
        allowance.earn();
        assert_eq!(allowance.left, (left + FOR_TOKEN).min(SAVED_MAX));
        assert_eq!(allowance.spend(|| 7), 7);
        allowance.spend(|| compute(SAVED_MAX));
        allowance.earn();
        assert!(allowance.is_spent());
    }

    #[test]
    fn a_token_brings_time_for_some_looks_at_the_vocabulary() {
        for (scan, for_token, saved) in [(0, 100, 1_000), (10, 100, 1_000), (400, 3_200, 3_200)] {
            let millis = Duration::from_millis;
            let mut allowance = Allowance::new(millis(scan));
            assert_eq!((allowance.for_token, allowance.left), (millis(for_token), millis(saved)));
            allowance.left = millis(1);
            allowance.earn();
            assert_eq!(allowance.left, millis(for_token + 1).min(millis(saved)));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_thread_that_waits_spends_nothing_of_it() {
        let mut allowance = Allowance::new(Duration::ZERO);
        let began = std::time::Instant::now();
        allowance.spend(|| std::thread::sleep(Duration::from_millis(300)));
        let waited = began.elapsed();
        assert!(SAVED_MAX - allowance.left < waited / 2, "{allowance:?} after {waited:?}");
    }
}
