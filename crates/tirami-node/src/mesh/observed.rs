//! Where others see this node. One that says so could name anybody's address, and other nodes would
//! dial it: so a stranger is believed only together with another one from elsewhere.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::doors::Source;
use super::endpoint::canonical;

/// Addresses believed at the same time.
const BELIEVED_MAX: usize = 2;
/// Words of strangers that are remembered.
const HEARSAY_MAX: usize = 16;

/// The addresses at which others saw this node, the latest first.
#[derive(Debug, Default)]
pub(super) struct Observed {
    believed: Vec<SocketAddr>,
    hearsay: VecDeque<(SocketAddr, Source)>,
}

impl Observed {
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.believed
    }

    /// Somebody at `source` says that this node is at `seen`.
    pub(super) fn heard(&mut self, seen: SocketAddr, source: Source, is_member: bool) {
        let seen = canonical(seen);
        let another = |(known, from): &(SocketAddr, Source)| *known == seen && *from != source;
        if !is_member && !self.hearsay.iter().any(another) {
            self.hearsay.retain(|known| *known != (seen, source));
            self.hearsay.push_back((seen, source));
            if self.hearsay.len() > HEARSAY_MAX {
                self.hearsay.pop_front();
            }
            return;
        }
        self.believed.retain(|known| *known != seen);
        self.believed.insert(0, seen);
        self.believed.truncate(BELIEVED_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u8) -> Source {
        Source::of_ip([192, 0, 2, n].into())
    }

    #[test]
    fn a_stranger_is_believed_only_together_with_one_from_elsewhere() {
        let mut observed = Observed::default();
        let (own, victim) = (([198, 51, 100, 1], 1).into(), ([203, 0, 113, 9], 53).into());
        for _ in 0..5 {
            observed.heard(victim, source(1), false);
        }
        assert_eq!(observed.addresses(), []);
        observed.heard(own, source(2), false);
        observed.heard(own, source(3), false);
        assert_eq!(observed.addresses(), [own]);
        let other = ([198, 51, 100, 2], 7).into();
        observed.heard(other, source(1), true);
        assert_eq!(observed.addresses(), [other, own], "a member needs no witness");
    }
}
