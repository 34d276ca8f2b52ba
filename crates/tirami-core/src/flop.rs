//! Amounts of useful work, counted in floating-point operations.

use core::fmt;

use minicbor::{Decode, Encode};

use crate::{Ppm, Trm};

/// FLOP that cost 1 TRM at par.
const FLOP_PER_TRM: u128 = 1_000_000_000;

/// An amount of work in floating-point operations. 10⁹ FLOP are 1 TRM at par.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Flop(#[n(0)] u64);

impl Flop {
    /// No work.
    pub const ZERO: Self = Self(0);

    /// `flop` floating-point operations.
    pub const fn new(flop: u64) -> Self {
        Self(flop)
    }

    /// `flop` operations, at most 2⁶⁴ − 1.
    pub fn saturating_from(flop: u128) -> Self {
        Self(u64::try_from(flop).unwrap_or(u64::MAX))
    }

    /// The number of operations.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// What the work costs at `price` (µTRM for 10⁹ FLOP), rounded **up** to a whole µTRM and at
    /// most [`Trm::MAX`].
    ///
    /// # Examples
    ///
    /// ```
    /// use tirami_core::{Flop, Ppm, Trm};
    /// assert_eq!(Flop::new(1_000_000_000).cost_ceil(Ppm::ONE), Trm::from_trm(1).unwrap());
    /// assert_eq!(Flop::new(1).cost_ceil(Ppm::ONE), Trm::from_micro(1));
    /// ```
    pub fn cost_ceil(self, price: Ppm) -> Trm {
        let micro = (u128::from(self.0) * u128::from(price.get())).div_ceil(FLOP_PER_TRM);
        Trm::from_micro(u64::try_from(micro).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Flop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Flop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} FLOP", self.0)
    }
}
