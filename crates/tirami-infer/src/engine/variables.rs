//! What a chat template is told besides the messages.

use std::collections::{BTreeMap, BTreeSet};

use super::PrepareError;

/// Bytes of a variable's name at most; the names that templates read are a word or three.
pub const VARIABLE_NAME_BYTES_MAX: usize = 64;
/// Names that a refusal tells at most, so that it stays a sentence.
const TOLD_MAX: usize = 16;

/// The variable by which templates of models that think are told whether they should.
const THINKS: &str = "enable_thinking";
/// The one by which others are told how much.
const EFFORT: &str = "reasoning_effort";
/// Efforts with which nothing is thought.
const NO_EFFORT: [&str; 2] = ["none", "minimal"];

/// What a model's chat template is told besides the messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    /// Values by name, each as JSON text. One that the template does not read is refused.
    pub named: BTreeMap<String, String>,
    /// Whether the model should think; only a template that reads it is told.
    pub thinks: Option<bool>,
    /// How much it should, in OpenAI's word, such as `none` or `high`; only a template that reads
    /// it is told.
    pub effort: Option<String>,
}

impl Variables {
    /// Whether nothing is told.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The values, as JSON texts by name, for a template that reads the names in `reads`. What is
    /// named goes before what follows from how much to think.
    ///
    /// # Errors
    ///
    /// [`PrepareError::Variable`] for one that is named and not read.
    pub fn given(
        &self,
        reads: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, String>, PrepareError> {
        if let Some(name) = self.named.keys().find(|name| !reads.contains(*name)) {
            return Err(PrepareError::Variable { name: name.clone(), reads: told(reads) });
        }
        let mut given = self.named.clone();
        let effort = self.effort.as_deref();
        let thinks = self.thinks.or(effort.map(|effort| !NO_EFFORT.contains(&effort)));
        let efforts = [
            (THINKS, thinks.map(serde_json::Value::from)),
            (EFFORT, effort.map(serde_json::Value::from)),
        ];
        for (name, value) in efforts {
            if let Some(value) = value
                && reads.contains(name)
            {
                given.entry(name.to_owned()).or_insert_with(|| value.to_string());
            }
        }
        Ok(given)
    }

    /// The same with other JSON texts and another word for how much to think.
    pub(crate) fn reworded(
        &self,
        json: impl Fn(&str) -> String,
        word: impl Fn(&str) -> String,
    ) -> Self {
        let named = self.named.iter().map(|(name, value)| (name.clone(), json(value)));
        Self {
            named: named.collect(),
            thinks: self.thinks,
            effort: self.effort.as_deref().map(word),
        }
    }
}

/// The names in words.
fn told(reads: &BTreeSet<String>) -> String {
    let names = reads.iter().take(TOLD_MAX).map(String::as_str).collect::<Vec<_>>();
    match reads.len() {
        0 => "no variables".to_owned(),
        1..=TOLD_MAX => names.join(", "),
        _ => format!("{} and others", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn named(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn how_much_to_think_is_told_where_it_is_read_and_what_is_named_goes_before_it() {
        let all = reads(&[THINKS, EFFORT]);
        let asked = |thinks, effort: Option<&str>| Variables {
            thinks,
            effort: effort.map(str::to_owned),
            ..Variables::default()
        };
        for (asked, thinks, effort) in [
            (asked(None, None), None, None),
            (asked(Some(false), None), Some("false"), None),
            (asked(Some(true), None), Some("true"), None),
            (asked(None, Some("none")), Some("false"), Some("\"none\"")),
            (asked(None, Some("minimal")), Some("false"), Some("\"minimal\"")),
            (asked(None, Some("high")), Some("true"), Some("\"high\"")),
            (asked(Some(false), Some("high")), Some("false"), Some("\"high\"")),
        ] {
            let given = asked.given(&all).unwrap();
            let of = |name: &str| given.get(name).map(String::as_str);
            assert_eq!((of(THINKS), of(EFFORT)), (thinks, effort), "{asked:?}");
            assert_eq!(asked.given(&reads(&["day"])), Ok(BTreeMap::new()), "{asked:?}");
            let both = Variables { named: named(THINKS, "null"), ..asked };
            assert_eq!(both.given(&all).unwrap()[THINKS], "null");
        }
    }

    #[test]
    fn what_is_named_and_not_read_is_refused_with_what_is_read() {
        let many = (0..=TOLD_MAX).map(|number| format!("v{number:02}")).collect::<BTreeSet<_>>();
        let last = format!("v{:02} and others", TOLD_MAX - 1);
        for (reads, told) in
            [(reads(&[]), "no variables"), (reads(&["b", "a"]), "a, b"), (many, last.as_str())]
        {
            let asked = Variables { named: named("colour", "1"), ..Variables::default() };
            let refused = asked.given(&reads).unwrap_err().to_string();
            assert!(refused.contains("colour") && refused.ends_with(told), "{refused}");
        }
    }
}
