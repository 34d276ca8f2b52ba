//! Amounts of TRM in whole micro-TRM, rates in parts per million, and their exact decimal text.

use core::fmt;
use core::str::FromStr;

use minicbor::{Decode, Encode};

/// How many µTRM make one TRM.
pub const TRM_MICRO: u64 = 1_000_000;

/// An amount of TRM, counted in µTRM (1 TRM = 10⁶ µTRM = 10⁹ FLOP at par).
///
/// The text form is an exact decimal number of TRM with at most six places and no exponent.
///
/// # Examples
///
/// ```
/// use tirami_core::Trm;
/// let amount: Trm = "0.27".parse()?;
/// assert_eq!(amount.micro(), 270_000);
/// assert_eq!(amount.to_string(), "0.27");
/// # Ok::<(), tirami_core::TrmError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Trm(#[n(0)] u64);

impl Trm {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest amount that can be written, 2⁶⁴ − 1 µTRM.
    pub const MAX: Self = Self(u64::MAX);

    /// An amount of `micro` µTRM.
    pub const fn from_micro(micro: u64) -> Self {
        Self(micro)
    }

    /// An amount of `trm` whole TRM; `None` when it exceeds [`Trm::MAX`].
    pub const fn from_trm(trm: u64) -> Option<Self> {
        match trm.checked_mul(TRM_MICRO) {
            Some(micro) => Some(Self(micro)),
            None => None,
        }
    }

    /// The amount in µTRM.
    pub const fn micro(self) -> u64 {
        self.0
    }

    /// The amount in µTRM as a signed number wide enough for any sum.
    pub const fn signed(self) -> i128 {
        self.0 as i128
    }

    /// Whether nothing is left.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` when it exceeds [`Trm::MAX`].
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(micro) => Some(Self(micro)),
            None => None,
        }
    }

    /// The difference, or `None` when it would be negative.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(micro) => Some(Self(micro)),
            None => None,
        }
    }

    /// The sum, at most [`Trm::MAX`].
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self × rate`, rounded **up** to a whole µTRM and at most [`Trm::MAX`].
    pub fn mul_ceil(self, rate: Ppm) -> Self {
        let product = u128::from(self.0) * u128::from(rate.get());
        Self(u64::try_from(product.div_ceil(u128::from(Ppm::ONE.get()))).unwrap_or(u64::MAX))
    }

    /// `self × rate`, rounded **down** to a whole µTRM and at most [`Trm::MAX`].
    pub fn mul_floor(self, rate: Ppm) -> Self {
        let product = u128::from(self.0) * u128::from(rate.get());
        Self(u64::try_from(product / u128::from(Ppm::ONE.get())).unwrap_or(u64::MAX))
    }

    /// The exact decimal text of a signed number of µTRM, for balances that may be negative.
    pub fn signed_text(micro: i128) -> String {
        let sign = if micro < 0 { "-" } else { "" };
        format!("{sign}{}", decimal(micro.unsigned_abs()))
    }

    /// Reads the exact decimal text of a signed number of TRM as µTRM.
    ///
    /// # Errors
    ///
    /// As [`Trm::from_str`]; also when the number does not fit `i64` µTRM.
    pub fn parse_signed(text: &str) -> Result<i64, TrmError> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let micro = i64::try_from(digits.parse::<Self>()?.0).map_err(|_| TrmError::TooLarge)?;
        Ok(if negative { -micro } else { micro })
    }
}

fn decimal(micro: u128) -> String {
    let unit = u128::from(TRM_MICRO);
    let (whole, rest) = (micro / unit, micro % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let places = format!("{rest:06}");
    format!("{whole}.{}", places.trim_end_matches('0'))
}

impl fmt::Display for Trm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&decimal(u128::from(self.0)))
    }
}

impl fmt::Debug for Trm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} TRM")
    }
}

impl FromStr for Trm {
    type Err = TrmError;

    fn from_str(text: &str) -> Result<Self, TrmError> {
        let (whole, places) = text.split_once('.').unwrap_or((text, ""));
        let dotted = text.contains('.');
        let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || (dotted && places.is_empty()) {
            return Err(TrmError::NotDecimal);
        }
        if !digits_only(whole) || !digits_only(places) {
            return Err(TrmError::NotDecimal);
        }
        if places.len() > 6 {
            return Err(TrmError::TooFine);
        }
        let whole: u64 = whole.parse().map_err(|_| TrmError::TooLarge)?;
        let micro: u64 = format!("{places:0<6}").parse().map_err(|_| TrmError::TooLarge)?;
        whole
            .checked_mul(TRM_MICRO)
            .and_then(|sum| sum.checked_add(micro))
            .map(Self)
            .ok_or(TrmError::TooLarge)
    }
}

/// Why a text is not an amount of TRM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrmError {
    /// It has something else than digits and one dot between digits.
    #[error("an amount of TRM is a decimal number such as 12.5")]
    NotDecimal,
    /// It has more than six decimal places.
    #[error("an amount of TRM has at most six decimal places")]
    TooFine,
    /// It exceeds [`Trm::MAX`].
    #[error("the amount exceeds 18446744073709.551615 TRM")]
    TooLarge,
}

/// A rate in parts per million; [`Ppm::ONE`] is a factor of one.
///
/// As a price it is µTRM for 10⁹ FLOP, so [`Ppm::ONE`] is par: 1 TRM for 10⁹ FLOP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Ppm(#[n(0)] u32);

impl Ppm {
    /// A factor of zero.
    pub const ZERO: Self = Self(0);
    /// A factor of one; as a price, par.
    pub const ONE: Self = Self(1_000_000);

    /// A rate of `ppm` parts per million.
    pub const fn new(ppm: u32) -> Self {
        Self(ppm)
    }

    /// The rate in parts per million.
    pub const fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_and_read_as_exact_decimals() {
        for (micro, text) in [
            (0, "0"),
            (1, "0.000001"),
            (270_000, "0.27"),
            (1_000_000, "1"),
            (1_000_000_500_000, "1000000.5"),
            (u64::MAX, "18446744073709.551615"),
        ] {
            assert_eq!(Trm::from_micro(micro).to_string(), text);
            assert_eq!(text.parse(), Ok(Trm::from_micro(micro)));
        }
    }

    #[test]
    fn texts_that_are_no_amount_are_refused_with_the_reason() {
        for (text, error) in [
            ("", TrmError::NotDecimal),
            (".5", TrmError::NotDecimal),
            ("5.", TrmError::NotDecimal),
            ("-1", TrmError::NotDecimal),
            ("+1", TrmError::NotDecimal),
            ("1e3", TrmError::NotDecimal),
            ("1.2.3", TrmError::NotDecimal),
            ("0.0000001", TrmError::TooFine),
            ("18446744073709.551616", TrmError::TooLarge),
        ] {
            assert_eq!(text.parse::<Trm>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn rates_round_in_the_direction_their_name_says() {
        let third = Ppm::new(333_333);
        assert_eq!(Trm::from_micro(10).mul_floor(third).micro(), 3);
        assert_eq!(Trm::from_micro(10).mul_ceil(third).micro(), 4);
        assert_eq!(Trm::MAX.mul_ceil(Ppm::new(2_000_000)), Trm::MAX);
    }

    #[test]
    fn negative_balances_keep_their_sign_below_one_trm() {
        assert_eq!(Trm::signed_text(-1), "-0.000001");
        assert_eq!(Trm::parse_signed("-0.000001"), Ok(-1));
        assert_eq!(Trm::parse_signed("12.5"), Ok(12_500_000));
    }
}
