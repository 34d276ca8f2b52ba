//! The variables that a template reads, and those it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::Environment;
use minijinja::value::{Object, Value};

use super::NAME;
use super::json::of_json;
use crate::engine::{PrepareError, VARIABLE_NAME_BYTES_MAX};

/// What every template is given.
const OWN: [&str; 5] = ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];
/// What every template may call, beside what its language has.
const CALLED: [&str; 2] = ["raise_exception", "strftime_now"];

/// What servers elsewhere that write chats with Hugging Face's `apply_chat_template` would take for
/// its own parameters: no variables of a template.
const OF_SERVERS: [&str; 12] = [
    "chat_template",
    "conversation",
    "conversations",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
];

/// Whether every template is given a variable of this name, or servers take it for something else,
/// so that no request can give it.
pub fn is_own(name: &str) -> bool {
    OWN.contains(&name) || CALLED.contains(&name) || OF_SERVERS.contains(&name)
}

/// The names that a template asked for.
pub(super) type Asked = Arc<Mutex<BTreeSet<String>>>;

/// What a template is given for one rendering.
#[derive(Debug, Default)]
pub(super) struct Given {
    values: BTreeMap<String, Value>,
    /// Where the names it asks for are noted.
    asked: Option<Asked>,
}

impl Given {
    /// These variables, each a JSON text.
    pub(super) fn of(variables: &BTreeMap<String, String>) -> Result<Self, PrepareError> {
        let value = |(name, text): (&String, &String)| match serde_json::from_str(text) {
            Ok(value) => Ok((name.clone(), of_json(value))),
            Err(_) => {
                let reason = format!("the variable {name} is no JSON");
                Err(PrepareError::Template { reason })
            }
        };
        let values = variables.iter().map(value).collect::<Result<_, _>>()?;
        Ok(Self { values, asked: None })
    }

    /// No variables, and a note of those that are asked for.
    pub(super) fn noting(asked: &Asked) -> Self {
        Self { values: BTreeMap::new(), asked: Some(Arc::clone(asked)) }
    }

    /// With what every template is given, in the order of [`OWN`].
    pub(super) fn with_own(mut self, own: [Value; OWN.len()]) -> Value {
        self.values.extend(OWN.map(str::to_owned).into_iter().zip(own));
        Value::from_object(self)
    }
}

impl Object for Given {
    fn get_value(self: &Arc<Self>, name: &Value) -> Option<Value> {
        let name = name.as_str()?;
        if let Some(asked) = &self.asked {
            asked.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        }
        self.values.get(name).cloned()
    }
}

/// The variables that the template reads and a request may give: those it `asked` for when it wrote
/// small conversations, and those in parts of it that were not come by. Of the latter, names that
/// it sets itself somewhere are left out: to see whether it reads them first takes a rendering.
pub(super) fn read_by(environment: &Environment<'_>, asked: &Asked) -> BTreeSet<String> {
    let found = environment.get_template(NAME).map_or_else(
        |_| BTreeSet::new(),
        |template| {
            let set = set_by(template.source());
            let found = template.undeclared_variables(false).into_iter();
            found.filter(|name| !set.contains(name.as_str())).collect()
        },
    );
    let asked = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
    let global = environment.globals().map(|(name, _)| name).collect::<BTreeSet<_>>();
    let may_be_given = |name: &String| {
        !is_own(name) && !global.contains(name.as_str()) && name.len() <= VARIABLE_NAME_BYTES_MAX
    };
    found.into_iter().chain(asked).filter(may_be_given).collect()
}

/// The names that a template's text sets.
fn set_by(source: &str) -> BTreeSet<&str> {
    let tags = source.split("{%").filter_map(|tag| tag.split_once("%}"));
    let targets = tags.filter_map(|(tag, _)| {
        let rest = tag.trim_start_matches(['-', '+']).trim_start().strip_prefix("set")?;
        let target = rest.split(['=', '|']).next()?;
        rest.starts_with(char::is_whitespace).then_some(target)
    });
    let is_no_part = |c: char| !c.is_alphanumeric() && c != '_';
    let names = targets.flat_map(|names| names.split(','));
    names.map(|name| name.trim_matches(is_no_part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_set_a_name_is_seen() {
        let source = "{% set a = 1 %}{%- set b='%' -%}{%+ set c %}x{% endset %}\
                      {%-set d | upper-%}x{% endset %}{% set e, (f,g) = h %}{% set ns.i = j %}\
                      {% settle k %}{{ set }}{% if l %}{% set m=n %}{% endif %}";
        let names = ["a", "b", "c", "d", "e", "f", "g", "m", "ns.i"];
        assert_eq!(set_by(source), BTreeSet::from(names));
    }
}
