//! What other programs use of this machine's processors, so that a node can serve on an idle
//! machine only. Its own work does not count: it would make the machine busy by serving.

use std::sync::Arc;
use std::{fmt, fs};

/// How much a new measurement counts, in percent.
const NEW_PERCENT: u64 = 20;

/// Processor time since the machine started, in ticks of the same length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    /// Of all processors together, idle or not.
    all: u64,
    /// Of these, used by anybody.
    busy: u64,
    /// Of these, used by this process.
    own: u64,
}

type Told = Arc<dyn Fn() -> Option<u32> + Send + Sync>;

/// What other programs use of the processors: what the system says, unless somebody else is asked.
#[derive(Clone, Default)]
pub struct OthersUse(Option<Told>);

impl OthersUse {
    /// What `percent` says; `None` where it is not known.
    pub fn new(percent: impl Fn() -> Option<u32> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(percent)))
    }
}

impl fmt::Debug for OthersUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OthersUse").field("is_told", &self.0.is_some()).finish()
    }
}

/// The machine, looked at again and again.
#[derive(Debug)]
pub(super) struct Machine {
    others_use: OthersUse,
    last: Option<Ticks>,
    /// What others use, in 1/1000 of a percent.
    others_milli: Option<u64>,
}

impl Machine {
    pub(super) const fn new(others_use: OthersUse) -> Self {
        Self { others_use, last: None, others_milli: None }
    }

    /// The percentage of all processors that other programs use, as it was lately; `None` where
    /// the system does not say.
    pub(super) fn look(&mut self) -> Option<u32> {
        if let Some(told) = &self.others_use.0 {
            return told();
        }
        let ticks = read()?;
        if let Some(milli) = self.last.and_then(|last| others_milli(last, ticks)) {
            let old = self.others_milli.unwrap_or(milli);
            self.others_milli = Some((old * (100 - NEW_PERCENT) + milli * NEW_PERCENT) / 100);
        }
        self.last = Some(ticks);
        u32::try_from(self.others_milli? / 1_000).ok()
    }
}

fn others_milli(last: Ticks, new: Ticks) -> Option<u64> {
    let all = new.all.checked_sub(last.all).filter(|all| *all > 0)?;
    let others = new.busy.checked_sub(last.busy)?.saturating_sub(new.own.checked_sub(last.own)?);
    Some(others.min(all) * 100_000 / all)
}

fn read() -> Option<Ticks> {
    let all = fs::read_to_string("/proc/stat").ok()?;
    let own = fs::read_to_string("/proc/self/stat").ok()?;
    parse(&all, &own)
}

/// `/proc/stat` begins with `cpu user nice system idle iowait irq softirq steal …`;
/// `/proc/self/stat` has user and system time as the 14th and 15th field, after a name in
/// parentheses that may hold blanks.
fn parse(all: &str, own: &str) -> Option<Ticks> {
    let line = all.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
    let idle = fields.get(3)?.saturating_add(*fields.get(4)?);
    let sum = fields.iter().fold(0_u64, |sum, field| sum.saturating_add(*field));
    let rest: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
    let time = |at: usize| rest.get(at)?.parse::<u64>().ok();
    let own = time(11)?.saturating_add(time(12)?);
    Some(Ticks { all: sum, busy: sum.saturating_sub(idle), own })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(user: u64, idle: u64) -> String {
        format!("cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\n")
    }

    fn own(time: u64) -> String {
        format!("7 (a (b) c) S 1 7 7 0 -1 0 0 0 0 0 {time} 0 0 0 20 0 9 0 5 0")
    }

    #[test]
    fn own_work_does_not_make_the_machine_busy() {
        let before = parse(&stat(1_000, 9_000), &own(100)).unwrap();
        for (user, idle, time, percent) in
            [(1_100, 9_100, 200, 0), (1_100, 9_100, 100, 50), (1_100, 9_100, 150, 25)]
        {
            let after = parse(&stat(user, idle), &own(time)).unwrap();
            assert_eq!(others_milli(before, after), Some(percent * 1_000));
        }
        assert_eq!(others_milli(before, before), None);
        assert_eq!(parse("", ""), None);
        assert_eq!(parse("cpu 1 2", &own(1)), None);
    }
}
