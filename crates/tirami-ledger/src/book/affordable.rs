//! How many completion tokens a job may ask for so that nothing stands in its way. Read beside
//! [`Book::admit`], which alone decides.

use tirami_core::{Timestamp, Trm};

use super::admit::{Admission, Payer, Terms, check_request, threshold};
use super::{Book, Period};
use crate::command::StartJob;

impl Book {
    /// The most completion tokens, from 1 to `start.completion_max`, whose cost every limit of
    /// key, agent and node, the approval threshold and the agent's available TRM leave room for;
    /// 1 when they leave room for none. What was approved for the same request, or for the job that
    /// this one goes on with, counts instead of the threshold, and a threshold that not even one
    /// token stays below counts not at all: a person is asked anyway.
    ///
    /// What else may refuse the job (breaker, kill switch, scope) is not looked at; see
    /// [`Book::would_open`].
    pub fn affordable(&self, now: Timestamp, payer: Payer, start: &StartJob, terms: &Terms) -> u32 {
        let now = now.max(self.clock);
        let (Ok(account), Ok(())) = (self.account(payer.agent), check_request(start)) else {
            return start.completion_max.max(1);
        };
        let before = self.holds.before(now, payer, start).ok().flatten();
        let spent = before.map_or(Trm::ZERO, |before| before.spent);
        let cost = |completion: u32| terms.needed(start, completion);
        let budgets = self.budgets(payer, account);
        let rooms = budgets.iter().flatten().map(|budget| budget.room(now, spent));
        let room = rooms.fold(account.available(), Trm::min);
        let granted = self.approvals.granted(now, payer.agent, start.request);
        let granted = before.map(|before| before.max_amount).max(granted);
        let above = threshold(&budgets);
        let word = match granted {
            Some(granted) => above.map(|above| above.max(granted)),
            None => above.filter(|above| cost(1) <= *above),
        };
        let allowed = word.map_or(room, |word| room.min(word.saturating_sub(spent)));
        let (mut least, mut most) = (1, start.completion_max);
        while least < most {
            let middle = least + (most - least).div_ceil(2);
            if cost(middle) <= allowed {
                least = middle;
            } else {
                most = middle - 1;
            }
        }
        least
    }

    /// Whether the job would run at once, without anybody's word.
    pub fn would_open(
        &self,
        now: Timestamp,
        payer: Payer,
        start: &StartJob,
        terms: &Terms,
    ) -> bool {
        let admitted = self.admit(now.max(self.clock), payer, start, terms);
        self.kill.is_none() && matches!(admitted, Ok(Admission::Open(_)))
    }

    /// Whether `count` such jobs would run at once beside each other, without anybody's word. The
    /// breaker's count of jobs in a minute is not looked at beyond the first.
    pub fn would_open_all(
        &self,
        now: Timestamp,
        payer: Payer,
        start: &StartJob,
        (terms, count): (&Terms, u32),
    ) -> bool {
        if !self.would_open(now, payer, start, terms) {
            return false;
        }
        let Ok(account) = self.account(payer.agent) else { return false };
        let now = now.max(self.clock);
        let one = terms.needed(start, start.completion_max);
        let needed = Trm::from_micro(one.micro().saturating_mul(u64::from(count)));
        let budgets = self.budgets(payer, account);
        needed <= account.available()
            && budgets.iter().flatten().all(|budget| {
                PERIODS.iter().all(|period| budget.check(*period, now, needed).is_ok())
            })
    }
}

const PERIODS: [Period; 4] = [Period::Minute, Period::Hour, Period::Day, Period::Lifetime];

impl super::meter::Budget<'_> {
    /// What one more job may cost at most, for an answer that has cost `spent` so far.
    fn room(&self, now: Timestamp, spent: Trm) -> Trm {
        let request = self.limits.request_max.unwrap_or(Trm::MAX).saturating_sub(spent);
        let left = |period| {
            let max = self.limits.of(period)?;
            Some(max.saturating_sub(self.meter.used(period, now)))
        };
        PERIODS.into_iter().filter_map(left).fold(request, Trm::min)
    }
}

#[cfg(test)]
mod tests {
    use tirami_core::{AgentId, Digest, DocumentId, JobId, ModelDigest, ModelShape};

    use super::*;
    use crate::book::{ApprovalId, Limits, Target};
    use crate::event::BookEvent;

    const AGENT: AgentId = AgentId::from_bytes([1; 32]);
    const PAYER: Payer = Payer { key: None, agent: AGENT };
    const OWN: Terms = Terms::own(tirami_core::Ppm::ONE);
    const NOW: Timestamp = Timestamp::from_ms(1_000_000);

    fn trm(amount: u64) -> Trm {
        Trm::from_micro(amount * 1_000_000)
    }

    /// One token costs one TRM; the prompt has two.
    fn start(completion_max: u32) -> StartJob {
        let shape = ModelShape {
            parameters_active: 500_000_000,
            layers: 0,
            attention_width: 0,
            context_max: 1 << 20,
        };
        StartJob {
            job: JobId::from_bytes([7; 16]),
            model: ModelDigest::from_bytes([0; 32]),
            shape,
            request: Digest::of(b"request"),
            seed: 0,
            prompt_tokens: 2,
            completion_max,
            continues: None,
        }
    }

    fn book(funds: u64) -> Book {
        let mut book = Book::default();
        book.apply(&BookEvent::AgentCreated { agent: AGENT, name: "a".into(), at: NOW });
        book.apply(&BookEvent::AgentFunded { agent: AGENT, amount: trm(funds), at: NOW });
        book
    }

    fn limit(book: &mut Book, target: Target, limits: Limits) {
        book.apply(&BookEvent::LimitsSet { target, limits });
    }

    #[test]
    fn every_limit_bounds_the_completion_and_one_token_less_than_it_passes() {
        let some = |amount| Some(trm(amount));
        let agent = Target::Agent(AGENT);
        for (target, limits, most) in [
            (agent, Limits::default(), 98),
            (agent, Limits { request_max: some(12), ..Limits::default() }, 10),
            (agent, Limits { minute_max: some(13), ..Limits::default() }, 11),
            (agent, Limits { hour_max: some(14), ..Limits::default() }, 12),
            (agent, Limits { day_max: some(15), ..Limits::default() }, 13),
            (agent, Limits { lifetime_max: some(16), ..Limits::default() }, 14),
            (agent, Limits { approval_above: some(17), ..Limits::default() }, 15),
            (Target::Node, Limits { day_max: some(9), ..Limits::default() }, 7),
        ] {
            let mut book = book(100);
            limit(&mut book, target, limits);
            let what = format!("{target:?} {limits:?}");
            assert_eq!(book.affordable(NOW, PAYER, &start(4_000), &OWN), most, "{what}");
            assert_eq!(
                book.affordable(NOW, PAYER, &start(5), &OWN),
                5,
                "{what}: never more than asked"
            );
            assert!(book.would_open(NOW, PAYER, &start(most), &OWN), "{what}");
            assert!(!book.would_open(NOW, PAYER, &start(most + 1), &OWN), "{what}");
            // Several share the room, but what bounds one request bounds each of them.
            let (half, each) = (start(most / 2 - 1), limits.request_max.or(limits.approval_above));
            assert!(book.would_open_all(NOW, PAYER, &half, (&OWN, 2)), "{what}");
            let all = book.would_open_all(NOW, PAYER, &start(most), (&OWN, 2));
            assert_eq!(all, each.is_some(), "{what}");
        }
    }

    #[test]
    fn what_is_spent_and_held_is_no_room() {
        let mut book = book(100);
        limit(&mut book, Target::Node, Limits { day_max: Some(trm(60)), ..Limits::default() });
        let Ok(Admission::Open(opening)) = book.admit(NOW, PAYER, &start(38), &OWN) else {
            panic!("the job was refused");
        };
        let order = DocumentId::from_bytes([3; 32]);
        let events: Vec<_> = book.opened(opening, &start(38), order).collect();
        events.iter().for_each(|event| book.apply(event));
        let other = StartJob { job: JobId::from_bytes([8; 16]), ..start(4_000) };
        assert_eq!(book.affordable(NOW, PAYER, &other, &OWN), 18);
        assert_eq!(book.affordable(NOW.plus_ms(26 * 3_600_000), PAYER, &other, &OWN), 58);
    }

    #[test]
    fn without_room_it_is_one_token_which_is_then_refused() {
        let poor = book(2);
        assert_eq!(poor.affordable(NOW, PAYER, &start(100), &OWN), 1);
        assert!(!poor.would_open(NOW, PAYER, &start(1), &OWN));
        let nobody = Payer { key: None, agent: AgentId::from_bytes([9; 32]) };
        assert_eq!(poor.affordable(NOW, nobody, &start(0), &OWN), 1);
        assert!(!poor.would_open(NOW, nobody, &start(1), &OWN));
    }

    #[test]
    fn a_job_that_needs_a_word_anyway_may_ask_for_all_and_gets_what_was_granted() {
        let mut book = book(100);
        let above = Limits { approval_above: Some(trm(2)), ..Limits::default() };
        limit(&mut book, Target::Node, above);
        assert_eq!(book.affordable(NOW, PAYER, &start(50), &OWN), 50);
        assert!(!book.would_open(NOW, PAYER, &start(50), &OWN));
        let Ok(Admission::Wait(waiting)) = book.admit(NOW, PAYER, &start(50), &OWN) else {
            panic!("no word was asked for");
        };
        let asked: Vec<_> = book.asked(&waiting, &start(50)).collect();
        asked.iter().for_each(|event| book.apply(event));
        let approval = ApprovalId::new(1);
        book.apply(&BookEvent::ApprovalDecided { approval, approve: true, at: NOW });
        assert_eq!(book.affordable(NOW, PAYER, &start(90), &OWN), 50, "no more than was granted");
        assert!(book.would_open(NOW, PAYER, &start(50), &OWN));
    }
}
