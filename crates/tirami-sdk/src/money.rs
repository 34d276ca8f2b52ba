//! TRM in JSON: exact decimal numbers, never a float on the way.
//!
//! JSON numbers are kept as their text, so that a reader with 53-bit floats is the only one who
//! loses digits; for it, totals carry a `_micro` string beside them.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::value::RawValue;
use tirami_core::{Trm, TrmError};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};

/// An amount of TRM in JSON: written as a number, read from a number or a string, with at most
/// six decimal places and without an exponent.
///
/// # Examples
///
/// ```
/// use tirami_sdk::Amount;
/// let amount: Amount = serde_json::from_str("18446744073709.551615")?;
/// assert_eq!(amount.trm().micro(), u64::MAX);
/// assert_eq!(serde_json::to_string(&amount)?, "18446744073709.551615");
/// assert_eq!(serde_json::from_str::<Amount>("\"0.27\"")?.to_string(), "0.27");
/// assert!(serde_json::from_str::<Amount>("0.0000001").is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(pub Trm);

impl Amount {
    /// The amount.
    pub const fn trm(self) -> Trm {
        self.0
    }

    /// The amount in µTRM as text, for readers whose numbers are floats.
    pub fn micro_text(self) -> String {
        self.0.micro().to_string()
    }
}

impl From<Trm> for Amount {
    fn from(trm: Trm) -> Self {
        Self(trm)
    }
}

impl FromStr for Amount {
    type Err = TrmError;

    fn from_str(text: &str) -> Result<Self, TrmError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write_number(self.0.to_string(), serializer)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer)?.parse().map(Self).map_err(de::Error::custom)
    }
}

/// A number of TRM that may be negative, such as the balance of an overdrawn chain; otherwise as
/// [`Amount`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SignedAmount {
    micro: i128,
}

impl SignedAmount {
    /// An amount of `micro` µTRM.
    pub const fn from_micro(micro: i128) -> Self {
        Self { micro }
    }

    /// The amount in µTRM.
    pub const fn micro(self) -> i128 {
        self.micro
    }

    /// The amount in µTRM as text, for readers whose numbers are floats.
    pub fn micro_text(self) -> String {
        self.micro.to_string()
    }
}

impl FromStr for SignedAmount {
    type Err = TrmError;

    fn from_str(text: &str) -> Result<Self, TrmError> {
        Trm::parse_signed(text).map(|micro| Self { micro: i128::from(micro) })
    }
}

impl fmt::Display for SignedAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&Trm::signed_text(self.micro))
    }
}

impl fmt::Debug for SignedAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} TRM")
    }
}

impl Serialize for SignedAmount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write_number(self.to_string(), serializer)
    }
}

impl<'de> Deserialize<'de> for SignedAmount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn write_number<S: Serializer>(text: String, serializer: S) -> Result<S::Ok, S::Error> {
    RawValue::from_string(text).map_err(ser::Error::custom)?.serialize(serializer)
}

/// The digits of a JSON number or of a JSON string.
fn read_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    let text = raw.get();
    if text.starts_with('"') {
        return serde_json::from_str(text).map_err(de::Error::custom);
    }
    Ok(text.to_owned())
}

fn schema(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::Number))
        .description(Some(description))
        .into()
}

impl utoipa::PartialSchema for Amount {
    fn schema() -> RefOr<Schema> {
        schema("TRM, an exact decimal number with at most six places; a string is read as well.")
    }
}

impl utoipa::ToSchema for Amount {}

impl utoipa::PartialSchema for SignedAmount {
    fn schema() -> RefOr<Schema> {
        schema("TRM, possibly negative; an exact decimal number with at most six places.")
    }
}

impl utoipa::ToSchema for SignedAmount {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Bill {
        amount_trm: Amount,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit_trm: Option<Amount>,
        balance_trm: SignedAmount,
    }

    #[test]
    fn amounts_keep_every_digit() {
        let text = r#"{"amount_trm":9007199254740.993001,"limit_trm":0.1,"balance_trm":-0.000001}"#;
        let bill: Bill = serde_json::from_str(text).unwrap();
        assert_eq!(bill.amount_trm.trm().micro(), 9_007_199_254_740_993_001);
        assert_eq!(bill.balance_trm.micro(), -1);
        assert_eq!(serde_json::to_string(&bill).unwrap(), text);
    }

    #[test]
    fn a_missing_limit_is_none_and_null_too() {
        let bill: Bill = serde_json::from_str(r#"{"amount_trm":"1","balance_trm":2}"#).unwrap();
        assert_eq!(bill.limit_trm, None);
        let bill: Bill =
            serde_json::from_str(r#"{"amount_trm":1,"limit_trm":null,"balance_trm":2}"#).unwrap();
        assert_eq!(bill.limit_trm, None);
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in
            ["1e3", "-1", "true", "[]", "\"\"", "0.1234567", "\"1,5\"", "18446744073709551616"]
        {
            assert!(serde_json::from_str::<Amount>(text).is_err(), "{text}");
        }
    }
}
