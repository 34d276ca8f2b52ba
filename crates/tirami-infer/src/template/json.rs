//! JSON in chat templates: values in their sender's order, and the filter `tojson` as the makers
//! of models know it.

use std::collections::BTreeMap;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use serde_json::Value as Json;

use super::PRIVATE_FIRST;

/// Depth of a value that is written.
const DEPTH_MAX: usize = 256;
/// Spaces by which a level is set in.
const INDENT_MAX: usize = 16;
/// Bytes that are written for one instruction.
const BYTES_FOR_FUEL: usize = 4;

/// A JSON value as a template's.
pub(super) fn of_json(value: Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(of_json).collect::<Vec<_>>()),
        Json::Object(fields) => {
            object(fields.into_iter().map(|(name, value)| (name, of_json(value))))
        }
    }
}

/// A JSON text with other texts and names in it, each as it reads; what is no JSON is one text.
/// Where all stay as they are the text does, too: a model was taught how its tools are written.
pub(super) fn reworded(text: &str, reword: &mut impl FnMut(&str) -> String) -> String {
    let mut is_changed = false;
    let mut noted = |text: &str| {
        let new = reword(text);
        is_changed |= new != text;
        new
    };
    let Ok(value) = serde_json::from_str(text) else { return reword(text) };
    let new = reworded_value(value, &mut noted);
    if is_changed { new.to_string() } else { text.to_owned() }
}

fn reworded_value(value: Json, reword: &mut impl FnMut(&str) -> String) -> Json {
    match value {
        Json::String(text) => Json::String(reword(&text)),
        Json::Array(items) => {
            Json::Array(items.into_iter().map(|item| reworded_value(item, reword)).collect())
        }
        Json::Object(fields) => {
            let field = |(name, value): (String, Json)| {
                let name = reword(&name);
                (name, reworded_value(value, reword))
            };
            Json::Object(fields.into_iter().map(field).collect())
        }
        other => other,
    }
}

/// An object whose fields keep their order; a map of the template engine sorts them.
pub(super) fn object<N: Into<String>>(fields: impl IntoIterator<Item = (N, Value)>) -> Value {
    let (mut names, mut values) = (Vec::new(), BTreeMap::new());
    for (name, value) in fields {
        let name = name.into();
        names.push(name.clone());
        values.insert(name, value);
    }
    Value::make_object_map(
        (names, values),
        |(names, _)| Box::new(names.iter().map(Value::from)),
        |(_, values), name| values.get(name.as_str()?).cloned(),
    )
}

/// The filter `tojson`: what Python's `json.dumps` writes, with `indent`, `separators`,
/// `ensure_ascii` and `sort_keys`. Nothing is escaped for HTML, which no model was trained on.
///
/// # Errors
///
/// An option that is none of these or out of its range, a value that is too deep, and the end of
/// the template's fuel.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let mut writer = Writer::new(state, indent, &options)?;
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.text)
}

/// Writes values as JSON and pays for it as it goes on.
struct Writer<'w> {
    state: &'w State<'w, 'w>,
    /// Spaces for each level; none where all stands in one line.
    indent: Option<usize>,
    between_items: String,
    after_name: String,
    is_ascii: bool,
    is_sorted: bool,
    text: String,
    /// Bytes of the text that are paid for.
    paid: usize,
}

impl<'w> Writer<'w> {
    fn new(
        state: &'w State<'w, 'w>,
        indent: Option<Value>,
        options: &Kwargs,
    ) -> Result<Self, Error> {
        let named = options.get::<Option<Value>>("indent")?;
        let indent = indent.or(named).filter(|indent| !indent.is_none());
        let indent = indent.map(usize::try_from).transpose()?;
        if indent.is_some_and(|indent| indent > INDENT_MAX) {
            return Err(wrong(format!("tojson sets in by at most {INDENT_MAX} spaces")));
        }
        let separators = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            None if indent.is_some() => [",", ": "].map(str::to_owned),
            None => [", ", ": "].map(str::to_owned),
            Some([item, name]) => [item.clone(), name.clone()],
            Some(_) => return Err(wrong("tojson has two separators".to_owned())),
        };
        let [between_items, after_name] = separators;
        let is = |name| options.get::<Option<bool>>(name).map(Option::unwrap_or_default);
        let (is_ascii, is_sorted) = (is("ensure_ascii")?, is("sort_keys")?);
        let (text, paid) = (String::new(), 0);
        Ok(Self { state, indent, between_items, after_name, is_ascii, is_sorted, text, paid })
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(wrong(format!("tojson writes at most {DEPTH_MAX} levels")));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text += &value.is_true().to_string(),
            ValueKind::Number if value.is_integer() => self.text += &value.to_string(),
            ValueKind::Number => {
                self.text += &Json::from(f64::try_from(value.clone())?).to_string();
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked();
                self.list(items.map(|item| item.map(|item| (None, item))), depth, ['[', ']'])?;
            }
            ValueKind::Map => self.map(value, depth)?,
            _ => self.string(value.as_str().unwrap_or(&value.to_string())),
        }
        self.pay()
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let field = |name: Result<Value, Error>| {
            let name = name?;
            let value = value.get_item(&name)?;
            Ok((Some(name_of(&name)), value))
        };
        let fields = value.try_iter()?.checked().map(field);
        if !self.is_sorted {
            return self.list(fields, depth, ['{', '}']);
        }
        let mut fields = fields.collect::<Result<Vec<_>, Error>>()?;
        fields.sort_by(|(one, _), (other, _)| one.cmp(other));
        self.list(fields.into_iter().map(Ok), depth, ['{', '}'])
    }

    /// The items of a list, or the fields of an object with their names.
    fn list(
        &mut self,
        items: impl Iterator<Item = Result<(Option<String>, Value), Error>>,
        depth: usize,
        [begin, end]: [char; 2],
    ) -> Result<(), Error> {
        self.text.push(begin);
        let mut is_empty = true;
        for item in items {
            let (name, value) = item?;
            if !is_empty {
                self.text += &self.between_items;
            }
            is_empty = false;
            self.line(depth + 1);
            if let Some(name) = name {
                self.string(&name);
                self.text += &self.after_name;
            }
            self.value(&value, depth + 1)?;
        }
        if !is_empty {
            self.line(depth);
        }
        self.text.push(end);
        Ok(())
    }

    /// Begins a line of this depth, where there are lines.
    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = Json::from(text).to_string();
        if !self.is_ascii {
            return self.text.push_str(&quoted);
        }
        for c in quoted.chars() {
            // What stands for something else has to be found again.
            if c.is_ascii() || c >= PRIVATE_FIRST {
                self.text.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                self.text += &format!("\\u{unit:04x}");
            }
        }
    }

    /// Pays for what was written since: a value may stand in itself very often.
    fn pay(&mut self) -> Result<(), Error> {
        let due = (self.text.len() - self.paid) / BYTES_FOR_FUEL;
        self.paid += due * BYTES_FOR_FUEL;
        self.state.consume_fuel(u64::try_from(due).unwrap_or(u64::MAX))
    }
}

/// A field's name; only texts are names.
fn name_of(name: &Value) -> String {
    match name.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => name.is_true().to_string(),
        _ => name.to_string(),
    }
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    fn written(source: &str, json: &str) -> Result<String, String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(10_000));
        environment.add_filter("tojson", tojson);
        let given = of_json(serde_json::from_str(json).unwrap());
        let context = BTreeMap::from([("it", given)]);
        environment.render_str(source, context).map_err(|error| error.kind().to_string())
    }

    #[test]
    fn values_are_written_as_a_models_makers_wrote_them() {
        let json =
            r#"{"z": "it's <b> & \"q\" \\ é", "a": [1, 2.5, -3, 1e20, null, true], "o": {}}"#;
        for (source, expected) in [
            (
                "{{ it | tojson }}",
                r#"{"z": "it's <b> & \"q\" \\ é", "a": [1, 2.5, -3, 1e+20, null, true], "o": {}}"#,
            ),
            ("{{ it.a[:2] | tojson(indent=2) }}", "[\n  1,\n  2.5\n]"),
            ("{{ it.o | tojson(indent=2) }}{{ [] | tojson(indent=0) }}", "{}[]"),
            ("{{ {'b': it.a[0]} | tojson(indent=4) }}", "{\n    \"b\": 1\n}"),
            ("{{ it.a[:2] | tojson(separators=(',', ':')) }}", "[1,2.5]"),
            ("{{ it.z | tojson(ensure_ascii=True) }}", r#""it's <b> & \"q\" \\ \u00e9""#),
            ("{{ it.z[-1:] | tojson(ensure_ascii=False) }}", "\"é\""),
            ("{{ (it | tojson(sort_keys=True))[:9] }}", r#"{"a": [1,"#),
            ("{{ {1: none} | tojson }}{{ {true: nope} | tojson }}", r#"{"1": null}{"true": null}"#),
            ("{% for name, value in it | items %}{{ name }}{% endfor %}", "zao"),
            (
                "{{ it | length }}{{ it is mapping }}{{ 'z' in it }}{{ 'x' in it }}",
                "3TrueTrueFalse",
            ),
            ("{% if it.o %}full{% else %}empty{% endif %}", "empty"),
        ] {
            assert_eq!(written(source, json).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_would_be_written_without_end_is_stopped() {
        let bomb = "{% set n = namespace(v=['x']) %}{% for i in range(60) %}\
                    {% set n.v = [n.v, n.v] %}{% endfor %}{{ n.v | tojson }}";
        let deep = "{% set n = namespace(v=1) %}{% for i in range(300) %}\
                    {% set n.v = [n.v] %}{% endfor %}{{ n.v | tojson }}";
        for source in [
            bomb,
            deep,
            "{{ it | tojson(indent=1000000000) }}",
            "{{ it | tojson(indent=-1) }}",
            "{{ it | tojson(separators=[',']) }}",
            "{{ it | tojson(colour='red') }}",
        ] {
            assert!(written(source, "[1]").is_err(), "{source}");
        }
    }
}
