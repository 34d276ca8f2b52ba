//! A naive book: plain vectors, every sum recomputed, nothing kept twice. Amounts are whole TRM.

use super::world::LINE_TRM;

pub(crate) const AGENTS: usize = 2;

/// Limits in whole TRM, as the model keeps them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Max {
    pub(crate) request: Option<u64>,
    pub(crate) minute: Option<u64>,
    pub(crate) hour: Option<u64>,
    pub(crate) day: Option<u64>,
    pub(crate) life: Option<u64>,
    pub(crate) approval: Option<u64>,
    pub(crate) errors: Option<u64>,
    pub(crate) spends: Option<u64>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Wait { ms: u64 },
    Fund { agent: usize, amount: u64 },
    Defund { agent: usize, amount: u64 },
    Limit { level: usize, agent: usize, max: Max },
    Kill { on: bool },
    Reset { agent: usize },
    Start { agent: usize, by_key: bool, prompt: u64, max: u64, request: u8 },
    Deliver { hold: usize, tokens: u64 },
    Finish { hold: usize, tokens: u64, failed: bool },
    Void { hold: usize, failed: bool },
    Answer { approval: usize, approve: bool },
    Recover,
    Tick,
}

#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) job: u64,
    pub(crate) agent: usize,
    pub(crate) prompt: u64,
    pub(crate) completion_max: u64,
    pub(crate) voucher: Option<u64>,
    pub(crate) ends: u64,
}

/// Something that was or may be spent.
#[derive(Debug, Clone)]
pub(crate) struct Spend {
    pub(crate) job: u64,
    pub(crate) agent: usize,
    pub(crate) by_key: bool,
    pub(crate) at: u64,
    pub(crate) amount: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) id: u64,
    pub(crate) agent: usize,
    pub(crate) request: u8,
    pub(crate) amount: u64,
    pub(crate) lapses: u64,
    pub(crate) answer: Option<bool>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Agent {
    pub(crate) balance: u64,
    pub(crate) key_max: Max,
    pub(crate) max: Max,
    pub(crate) errors: u64,
    pub(crate) started: Vec<u64>,
    pub(crate) broken_until: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) now: u64,
    pub(crate) agents: [Agent; AGENTS],
    pub(crate) node_max: Max,
    pub(crate) holds: Vec<Hold>,
    pub(crate) spends: Vec<Spend>,
    pub(crate) asks: Vec<Ask>,
    pub(crate) asked: u64,
    pub(crate) jobs: u64,
    pub(crate) killed: bool,
    /// What the last step must answer: `ok`, `pending` or a rejection's code.
    pub(crate) answer: &'static str,
}

pub(crate) fn smaller(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().min()
}

impl Model {
    pub(crate) fn held(&self, agent: usize) -> u64 {
        let own = self.holds.iter().filter(|hold| hold.agent == agent);
        own.map(|hold| hold.prompt + hold.completion_max).sum()
    }

    /// Spent and held by a level (0 key, 1 agent, 2 node) in the buckets that reach into a window.
    pub(crate) fn used(&self, level: usize, agent: usize, (width, buckets): (u64, u64)) -> u64 {
        let counts = |spend: &&Spend| {
            let in_time = spend.at / width + buckets >= self.now / width;
            let at_level = match level {
                0 => spend.agent == agent && spend.by_key,
                1 => spend.agent == agent,
                _ => true,
            };
            in_time && at_level
        };
        self.spends.iter().filter(counts).map(|spend| spend.amount).sum()
    }

    pub(crate) fn levels(&self, agent: usize, by_key: bool) -> Vec<(usize, Max)> {
        let mut levels = vec![(1, self.agents[agent].max), (2, self.node_max)];
        if by_key {
            levels.insert(0, (0, self.agents[agent].key_max));
        }
        levels
    }

    pub(crate) fn fundable(&self) -> u64 {
        LINE_TRM + self.charged() - self.funded()
    }

    pub(crate) fn funded(&self) -> u64 {
        self.agents.iter().map(|agent| agent.balance).sum::<u64>() + self.charged()
    }

    /// Charged ever: what was spent and is not held any more.
    pub(crate) fn charged(&self) -> u64 {
        let open = |job: u64| self.holds.iter().any(|hold| hold.job == job);
        self.spends.iter().filter(|spend| !open(spend.job)).map(|spend| spend.amount).sum()
    }

    pub(crate) fn start(
        &mut self,
        agent: usize,
        by_key: bool,
        cost: (u64, u64),
        request: u8,
    ) -> &'static str {
        let needed = cost.0 + cost.1;
        if self.killed {
            return "kill_switch";
        }
        let levels = self.levels(agent, by_key);
        if levels.iter().any(|(_, max)| max.request.is_some_and(|max| needed > max)) {
            return "request_limit";
        }
        let over = |model: &Self, window, of: fn(&Max) -> Option<u64>| {
            levels.iter().any(|(level, max)| {
                of(max).is_some_and(|max| model.used(*level, agent, window) + needed > max)
            })
        };
        if over(self, (60_000, 60), |max| max.hour)
            || over(self, (3_600_000, 24), |max| max.day)
            || over(self, (u64::MAX, 1), |max| max.life)
        {
            return "budget_limit";
        }
        if over(self, (1_000, 60), |max| max.minute) {
            return "velocity_limit";
        }
        if self.now < self.agents[agent].broken_until {
            return "breaker_open";
        }
        let mut used_ask = None;
        let threshold = levels.iter().filter_map(|(_, max)| max.approval).min();
        if threshold.is_some_and(|above| needed > above) {
            match self.ask(agent, request, needed) {
                Ok(ask) => used_ask = Some(ask),
                Err(answer) => return answer,
            }
        }
        if self.held(agent) + needed > self.agents[agent].balance {
            return "insufficient_balance";
        }
        self.asks.retain(|ask| Some(ask.id) != used_ask);
        self.open(agent, by_key, cost);
        "ok"
    }

    pub(crate) fn ask(
        &mut self,
        agent: usize,
        request: u8,
        needed: u64,
    ) -> Result<u64, &'static str> {
        let place = self.asks.iter().position(|ask| ask.agent == agent && ask.request == request);
        if let Some(ask) = place.map(|place| &self.asks[place])
            && self.now < ask.lapses
        {
            match ask.answer {
                Some(false) => return Err("approval_denied"),
                Some(true) if ask.amount >= needed => return Ok(ask.id),
                None if ask.amount >= needed => return Err("pending"),
                _ => {}
            }
        }
        if let Some(place) = place {
            self.asks.remove(place);
        }
        self.asked += 1;
        let lapses = self.now + 3_600_000;
        self.asks.push(Ask {
            id: self.asked,
            agent,
            request,
            amount: needed,
            lapses,
            answer: None,
        });
        Err("pending")
    }

    pub(crate) fn open(
        &mut self,
        agent: usize,
        by_key: bool,
        (prompt, completion_max): (u64, u64),
    ) {
        let (now, job) = (self.now, self.jobs);
        let amount = prompt + completion_max;
        let ends = now + 3_600_000;
        self.holds.push(Hold { job, agent, prompt, completion_max, voucher: None, ends });
        self.spends.push(Spend { job, agent, by_key, at: now, amount });
        let most = smaller(self.agents[agent].max.spends, self.node_max.spends);
        let account = &mut self.agents[agent];
        account.started.push(now);
        let lately = account.started.iter().filter(|at| *at / 1_000 + 60 >= now / 1_000).count();
        if most.is_some_and(|most| lately as u64 >= most) {
            account.trip(now);
        }
    }

    /// Ends the hold at a place with a charge; `None` is a void.
    pub(crate) fn end(&mut self, place: usize, charge: Option<u64>) {
        let hold = self.holds.remove(place);
        let charge = charge.unwrap_or(0);
        self.agents[hold.agent].balance -= charge;
        let spend = self.spends.iter_mut().find(|spend| spend.job == hold.job).unwrap();
        spend.amount = charge;
    }

    pub(crate) fn failed(&mut self, agent: usize) {
        let most = smaller(self.agents[agent].max.errors, self.node_max.errors);
        self.agents[agent].errors += 1;
        if most.is_some_and(|most| self.agents[agent].errors >= most) {
            self.agents[agent].trip(self.now);
        }
    }

    pub(crate) fn deliver(&mut self, place: usize, tokens: u64) -> &'static str {
        let now = self.now;
        let Some(hold) = self.holds.get_mut(place) else {
            return "unknown_job";
        };
        if tokens == 0 || !hold.allows(now, tokens) {
            return "contradicts";
        }
        hold.voucher = Some(tokens);
        "ok"
    }

    pub(crate) fn finish(&mut self, place: usize, tokens: u64, failed: bool) -> &'static str {
        let Some(hold) = self.holds.get(place).cloned() else {
            return "unknown_job";
        };
        if !hold.allows(self.now, tokens) {
            return "contradicts";
        }
        self.end(place, (tokens > 0).then_some(hold.prompt + tokens));
        if failed {
            self.failed(hold.agent);
        } else if tokens > 0 {
            self.agents[hold.agent].errors = 0;
        }
        "ok"
    }

    /// Ends holds by their vouchers: all of them, or those whose time ran out.
    pub(crate) fn settle(&mut self, all: bool) {
        for place in (0..self.holds.len()).rev() {
            let hold = self.holds[place].clone();
            if all || hold.ends <= self.now {
                self.end(place, hold.voucher.map(|tokens| hold.prompt + tokens));
            }
        }
    }

    pub(crate) fn take(&mut self, step: &Step) -> &'static str {
        match *step {
            Step::Wait { ms } => self.now += ms,
            Step::Fund { amount, .. } | Step::Defund { amount, .. } if self.killed => {
                let _ = amount;
                return "kill_switch";
            }
            Step::Fund { amount, .. } if amount > self.fundable() => return "insufficient_balance",
            Step::Fund { agent, amount } => self.agents[agent].balance += amount,
            Step::Defund { agent, amount } => {
                if amount > self.agents[agent].balance - self.held(agent) {
                    return "insufficient_balance";
                }
                self.agents[agent].balance -= amount;
            }
            Step::Limit { level: 0, agent, max } => {
                self.agents[agent].key_max = Max { errors: None, spends: None, ..max };
            }
            Step::Limit { level: 1, agent, max } => self.agents[agent].max = max,
            Step::Limit { max, .. } => self.node_max = max,
            Step::Kill { on } => self.killed = on,
            Step::Reset { agent } => self.agents[agent].trip(0),
            Step::Start { agent, by_key, prompt, max, request } => {
                self.jobs += 1;
                return self.start(agent, by_key, (prompt, max), request);
            }
            Step::Deliver { hold, tokens } => return self.deliver(hold, tokens),
            Step::Finish { hold, tokens, failed } => return self.finish(hold, tokens, failed),
            Step::Void { hold, failed } => match self.holds.get(hold).cloned() {
                None => return "unknown_job",
                Some(Hold { voucher: Some(_), .. }) => return "contradicts",
                Some(Hold { agent, .. }) => {
                    self.end(hold, None);
                    if failed {
                        self.failed(agent);
                    }
                }
            },
            Step::Answer { approval, approve } => {
                let now = self.now;
                let ask = self.asks.get_mut(approval);
                match ask.filter(|ask| ask.answer.is_none() && now < ask.lapses) {
                    Some(ask) => ask.answer = Some(approve),
                    None => return "unknown_approval",
                }
            }
            Step::Recover => self.settle(true),
            Step::Tick => {
                self.settle(false);
                let now = self.now;
                self.asks.retain(|ask| now < ask.lapses);
            }
        }
        "ok"
    }
}

impl Agent {
    pub(crate) fn trip(&mut self, now: u64) {
        self.started.clear();
        self.errors = 0;
        self.broken_until = if now == 0 { 0 } else { now + 300_000 };
    }
}

impl Hold {
    pub(crate) fn allows(&self, now: u64, tokens: u64) -> bool {
        now < self.ends && tokens <= self.completion_max && tokens >= self.voucher.unwrap_or(0)
    }
}
