//! What clients and owners ask of a node: mostly jobs, some management, some entries.

use tirami_core::{AgentId, Digest, HOUR_MS, JobId, ModelDigest, ModelShape, PartyId, Ppm, Trm};
use tirami_ledger::Rejection;
use tirami_ledger::book::{ApprovalId, KeyId, Limits, Scope, Target};
use tirami_ledger::command::{Actor, Command, FinishJob, Outcome, StartJob};
use tirami_ledger::documents::FinishReason;
use tirami_ledger::lattice::{Collect, EntryKind, Pay, PayItem, Transfer};

use crate::party::Job;
use crate::world::World;

/// Jobs that a party's clients run at once.
const JOBS_MAX: usize = 40;
/// Approvals that are answered at once.
const ANSWERS_MAX: usize = 4;

impl World {
    /// One thing that a client or the owner of a party does.
    pub(crate) fn work(&mut self, party: usize) -> Result<(), String> {
        let is_frozen = self.ledger(party).is_some_and(|ledger| ledger.book().kill().is_some());
        if is_frozen && self.dice.percent(10) {
            return self.turn_kill(party);
        }
        match self.dice.below(1_000) {
            0..300 => self.start_job(party),
            300..620 => self.deliver(party),
            620..890 => self.finish(party),
            890..930 => self.void(party),
            930..950 => self.fund(party),
            950..972 => self.manage(party),
            972..980 => self.answer_approvals(party),
            980..983 => self.turn_kill(party),
            _ => self.sign_something(party),
        }
    }

    fn payer(&mut self, party: usize) -> (Option<KeyId>, AgentId) {
        let node = &self.parties[party];
        let keyed = node.api_keys.get(self.dice.index(node.api_keys.len() * 2 + 1)).copied();
        let agent = node.agents[self.dice.index(node.agents.len())];
        keyed.map_or((None, agent), |(key, agent)| (Some(key), agent))
    }

    fn start_job(&mut self, party: usize) -> Result<(), String> {
        if self.parties[party].jobs.len() >= JOBS_MAX {
            return self.finish(party);
        }
        let (key, agent) = self.payer(party);
        let large = self.dice.percent(3);
        let requests = &self.parties[party].requests;
        // A request that waited for a person's word is repeated as it was.
        let request = match requests.get(self.dice.index(requests.len() * 4 + 1)) {
            Some(request) if large => *request,
            _ => Digest::from_bytes(self.dice.bytes()),
        };
        let used = &self.parties[party].used;
        let place = self.dice.index(used.len().max(1) * 50);
        let again = used.get(place).copied();
        let start = StartJob {
            job: JobId::from_bytes([0; 16]),
            model: ModelDigest::from_bytes([9; 32]),
            shape: shape(),
            request,
            seed: 7,
            prompt_tokens: self.dice.between_u32(1, 200),
            completion_max: self.dice.between_u32(1, if large { 4_000 } else { 200 }),
            continues: None,
        };
        let job = again.map_or_else(|| JobId::from_bytes(self.dice.bytes()), |(job, _)| job);
        let start = StartJob { job, ..start };
        let (request, completion_max) = (start.request, start.completion_max);
        let actor = Actor::Caller { key, agent: Some(agent), scope: Scope::Inference };
        let answer = self.submit(party, &actor, &Command::StartJob(start))?;
        let clock = self.parties[party].clock;
        let is_open = again.is_some_and(|(_, until)| clock < until);
        match answer {
            Some(Ok(Outcome::JobStarted { .. })) if is_open => {
                Err(format!("job {job} was started twice"))
            }
            Some(Ok(_)) if is_open => Err(format!("job {job} was asked about twice")),
            Some(Ok(Outcome::ApprovalPending { .. })) => {
                self.parties[party].requests.truncate(8);
                self.parties[party].requests.insert(0, request);
                Ok(())
            }
            // It may be one that runs.
            Some(Err(_)) => Ok(()),
            _ => {
                let node = &mut self.parties[party];
                if !is_open {
                    node.limits.insert(job, completion_max);
                }
                Ok(())
            }
        }
    }

    /// Takes a random job out of the list of the party's clients.
    fn take_job(&mut self, party: usize) -> Option<Job> {
        let jobs = &mut self.parties[party].jobs;
        (!jobs.is_empty()).then(|| jobs.swap_remove(self.dice.index(jobs.len())))
    }

    fn deliver(&mut self, party: usize) -> Result<(), String> {
        let Some(mut job) = self.take_job(party) else {
            return self.start_job(party);
        };
        let max = self.parties[party].limits.get(&job.job).copied().unwrap_or(1);
        let more = self.dice.between_u32(1, max.div_ceil(3).max(1));
        job.tokens = job.tokens.saturating_add(more).min(max);
        let command = Command::Deliver {
            job: job.job,
            completion_tokens: job.tokens,
            stream: Digest::from_bytes([3; 32]),
            prompt_tokens: None,
        };
        if let Some(Ok(_)) = self.by_node(party, &command)? {
            self.parties[party].jobs.push(job);
        }
        Ok(())
    }

    fn finish(&mut self, party: usize) -> Result<(), String> {
        let Some(job) = self.take_job(party) else {
            return self.start_job(party);
        };
        // Some clients just go away: the hold ends by itself.
        if self.dice.percent(2) {
            return Ok(());
        }
        let finish = FinishJob {
            job: job.job,
            cached_tokens: 0,
            completion_tokens: job.tokens,
            output: Digest::from_bytes([4; 32]),
            build: "sim".to_owned(),
            finish: match self.dice.below(20) {
                0 => FinishReason::Failed,
                1 | 2 => FinishReason::Cancelled,
                _ => FinishReason::Stop,
            },
        };
        let command = Command::FinishJob(finish);
        let first = self.by_node(party, &command)?;
        if matches!(first, Some(Ok(_))) && self.dice.percent(3) {
            let second = self.by_node(party, &command)?;
            if let Some(answer) = second
                && !matches!(answer, Err(Rejection::UnknownJob { .. }))
            {
                return Err(format!("job {} was finished twice: {answer:?}", job.job));
            }
        }
        Ok(())
    }

    fn void(&mut self, party: usize) -> Result<(), String> {
        let Some(job) = self.take_job(party) else {
            return self.start_job(party);
        };
        let failed = self.dice.percent(30);
        let answer = self.by_node(party, &Command::VoidJob { job: job.job, failed })?;
        if job.tokens > 0 && matches!(answer, Some(Ok(_))) {
            return Err(format!("job {} was voided although a voucher was signed", job.job));
        }
        if job.tokens > 0 && answer.is_some() {
            self.parties[party].jobs.push(job);
        }
        Ok(())
    }

    fn fund(&mut self, party: usize) -> Result<(), String> {
        let (_, agent) = self.payer(party);
        let amount = Trm::from_micro(self.dice.between(1, 40_000_000_000));
        let command = match self.dice.percent(75) {
            true => Command::FundAgent { agent, amount },
            false => Command::DefundAgent { agent, amount },
        };
        self.by_node(party, &command).map(drop)
    }

    fn manage(&mut self, party: usize) -> Result<(), String> {
        let (key, agent) = self.payer(party);
        let new = KeyId::new(self.dice.between_u32(0, u32::MAX - 1));
        let secret = Digest::from_bytes(self.dice.bytes());
        let command = match (self.dice.below(6), key) {
            (0 | 1, _) => Command::CreateKey {
                key: new,
                secret,
                label: "key".to_owned(),
                scope: Scope::Inference,
                agent: Some(agent),
                limits: Limits {
                    day_max: Some(Trm::from_micro(90_000_000_000)),
                    ..Limits::default()
                },
                expires_at: None,
            },
            (2, Some(old)) => {
                Command::RotateKey { old, new, secret, grace_ms: self.dice.below(HOUR_MS / 2) }
            }
            (3, Some(key)) => Command::RevokeKey { key },
            (4, _) => {
                Command::SetPrice { price: Ppm::new(self.dice.between_u32(500_000, 2_000_000)) }
            }
            (5, _) => Command::ResetBreaker { agent },
            _ => Command::SetLimits { target: Target::Agent(agent), limits: self.limits() },
        };
        let done = matches!(self.by_node(party, &command)?, Some(Ok(_)));
        let node = &mut self.parties[party];
        match command {
            Command::CreateKey { key, .. } if done => node.api_keys.push((key, agent)),
            Command::RotateKey { new, .. } if done => node.api_keys.push((new, agent)),
            _ => {}
        }
        let surplus = node.api_keys.len().saturating_sub(12);
        node.api_keys.drain(..surplus);
        Ok(())
    }

    fn limits(&mut self) -> Limits {
        let amount = |dice: &mut crate::dice::Dice, high| {
            dice.percent(40).then(|| Trm::from_micro(dice.between(high / 4, high)))
        };
        Limits {
            request_max: amount(&mut self.dice, 20_000_000_000),
            minute_max: amount(&mut self.dice, 6_000_000_000),
            hour_max: amount(&mut self.dice, 40_000_000_000),
            day_max: amount(&mut self.dice, 200_000_000_000),
            lifetime_max: None,
            approval_above: Some(Trm::from_micro(5_000_000_000)),
            breaker_errors: self.dice.percent(50).then_some(4),
            breaker_spends_per_minute: self.dice.percent(50).then_some(30),
            breaker_open_ms: Some(20_000),
        }
    }

    fn answer_approvals(&mut self, party: usize) -> Result<(), String> {
        let waiting = self.ledger(party).map(|ledger| ledger.book().approvals().keys().copied());
        let waiting: Vec<ApprovalId> = waiting.into_iter().flatten().take(ANSWERS_MAX).collect();
        for approval in waiting {
            let approve = self.dice.percent(70);
            self.by_node(party, &Command::DecideApproval { approval, approve })?;
        }
        Ok(())
    }

    fn turn_kill(&mut self, party: usize) -> Result<(), String> {
        let is_on = self.ledger(party).is_some_and(|ledger| ledger.book().kill().is_some());
        let on = !is_on && self.dice.percent(20);
        self.by_node(party, &Command::SetKill { on, reason: "drill".to_owned() }).map(drop)
    }

    fn sign_something(&mut self, party: usize) -> Result<(), String> {
        let payee = self.payee(party);
        let Some(ledger) = self.ledger(party) else {
            return Ok(());
        };
        let lattice = ledger.lattice();
        let due: Vec<_> = lattice.collectable(self.parties[party].id).map(|(id, _)| id).collect();
        let amount = Trm::from_micro(self.dice.between(1, 3_000_000_000));
        let kind: EntryKind = match self.dice.below(10) {
            0..4 if !due.is_empty() => {
                let ids = due.into_iter().take(1 + self.dice.index(20)).collect();
                Collect { ids, checkpoint: None }.into()
            }
            0..7 => Transfer { payee, amount }.into(),
            _ => {
                let items = (0..self.dice.between(1, 4)).map(|_| {
                    let job = JobId::from_bytes(self.dice.bytes());
                    PayItem { job, amount: Trm::from_micro(self.dice.between(1, 500_000_000)) }
                });
                let items = items.collect();
                Pay::new(payee, items, self.charter.params.fee_ppm).into()
            }
        };
        self.by_node(party, &Command::SignEntry { kind }).map(drop)
    }

    fn payee(&mut self, party: usize) -> PartyId {
        let place = self.dice.index(self.parties.len());
        let place = if place == party { (place + 1) % self.parties.len() } else { place };
        self.parties[place].id
    }
}

/// The model that all jobs run: a token costs some 2 TRM.
const fn shape() -> ModelShape {
    ModelShape {
        parameters_active: 1_000_000_000,
        layers: 16,
        attention_width: 2_048,
        context_max: 8_192,
    }
}
