//! Reading JSON without a dependency. Numbers keep their text, so that money stays exact.

use crate::{Failure, Outcome};

/// How deep a document may nest.
const DEPTH_MAX: usize = 64;

/// A JSON value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it was written.
    Number(String),
    /// A string, unescaped.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object, in the order it was written.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Parses one value and nothing after it.
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
        let value = reader.value(0)?;
        reader.skip_space();
        if reader.at == text.len() { Ok(value) } else { Err(reader.wrong("text after the value")) }
    }

    /// The value at a path of object keys and list positions, such as `choices.0.delta`.
    pub(crate) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |value, key| match value {
            Self::Object(fields) => fields.iter().find(|(name, _)| name == key).map(|(_, v)| v),
            Self::List(items) => items.get(key.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The string at a path.
    pub(crate) fn text(&self, path: &str) -> Outcome<&str> {
        match self.at(path) {
            Some(Self::Text(text)) => Ok(text),
            other => Err(Failure::new(format!("`{path}` is {other:?}, expected a string"))),
        }
    }

    /// The list at a path.
    pub(crate) fn list(&self, path: &str) -> Outcome<&[Self]> {
        match self.at(path) {
            Some(Self::List(items)) => Ok(items),
            other => Err(Failure::new(format!("`{path}` is {other:?}, expected a list"))),
        }
    }

    /// The whole number at a path.
    pub(crate) fn whole(&self, path: &str) -> Outcome<i128> {
        match self.at(path) {
            Some(Self::Number(text) | Self::Text(text)) => text
                .parse()
                .map_err(|_| Failure::new(format!("`{path}` is {text}, expected a whole number"))),
            other => Err(Failure::new(format!("`{path}` is {other:?}, expected a number"))),
        }
    }

    /// The TRM at a path, in µTRM, exactly.
    pub(crate) fn micro_trm(&self, path: &str) -> Outcome<i128> {
        match self.at(path) {
            Some(Self::Number(text) | Self::Text(text)) => micro(text).ok_or_else(|| {
                Failure::new(format!("`{path}` is {text}, expected TRM with at most six places"))
            }),
            other => Err(Failure::new(format!("`{path}` is {other:?}, expected TRM"))),
        }
    }
}

/// Reads a decimal number of TRM as µTRM.
fn micro(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (whole, places) = digits.split_once('.').unwrap_or((digits, ""));
    if places.len() > 6 || whole.is_empty() {
        return None;
    }
    let padded = format!("{whole}{places:0<6}");
    Some(sign * padded.parse::<i128>().ok()?)
}

/// µTRM as a decimal number of TRM, without needless zeros.
pub(crate) fn trm(micro: i128) -> String {
    let sign = if micro < 0 { "-" } else { "" };
    let (whole, rest) = (micro.abs() / 1_000_000, micro.abs() % 1_000_000);
    let text = format!("{sign}{whole}.{rest:06}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A string as a JSON literal.
pub(crate) fn literal(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", control as u32)),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn wrong(&self, what: &str) -> Failure {
        Failure::new(format!("not JSON: {what} at byte {}", self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.bytes[self.at..].starts_with(word.as_bytes());
        if found {
            self.at += word.len();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Outcome<Json> {
        if depth > DEPTH_MAX {
            return Err(self.wrong("nested too deep"));
        }
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(b'-' | b'0'..=b'9') => Ok(Json::Number(self.number())),
            _ if self.take("null") => Ok(Json::Null),
            _ if self.take("true") => Ok(Json::Bool(true)),
            _ if self.take("false") => Ok(Json::Bool(false)),
            _ => Err(self.wrong("no value")),
        }
    }

    fn object(&mut self, depth: usize) -> Outcome<Json> {
        let mut fields = Vec::new();
        self.at += 1;
        self.skip_space();
        if self.take("}") {
            return Ok(Json::Object(fields));
        }
        loop {
            self.skip_space();
            let name = self.string()?;
            self.skip_space();
            if !self.take(":") {
                return Err(self.wrong("no `:` after a key"));
            }
            fields.push((name, self.value(depth + 1)?));
            self.skip_space();
            if self.take("}") {
                return Ok(Json::Object(fields));
            }
            if !self.take(",") {
                return Err(self.wrong("no `,` or `}`"));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Outcome<Json> {
        let mut items = Vec::new();
        self.at += 1;
        self.skip_space();
        if self.take("]") {
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_space();
            if self.take("]") {
                return Ok(Json::List(items));
            }
            if !self.take(",") {
                return Err(self.wrong("no `,` or `]`"));
            }
        }
    }

    fn number(&mut self) -> String {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()
    }

    fn string(&mut self) -> Outcome<String> {
        if !self.take("\"") {
            return Err(self.wrong("no string"));
        }
        let mut out = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.wrong("a string that does not end")),
                Some(b'"') => break,
                Some(b'\\') => {
                    self.at += 1;
                    let character = self.escape()?;
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(byte) => {
                    out.push(byte);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        String::from_utf8(out).map_err(|_| self.wrong("a string that is not UTF-8"))
    }

    fn escape(&mut self) -> Outcome<char> {
        let code = self.peek().ok_or_else(|| self.wrong("an escape without a letter"))?;
        self.at += 1;
        Ok(match code {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => return self.unicode(),
            other => char::from(other),
        })
    }

    fn unicode(&mut self) -> Outcome<char> {
        let first = self.hex4()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first).ok_or_else(|| self.wrong("half a character"));
        }
        if !self.take("\\u") {
            return Err(self.wrong("half a character"));
        }
        let second = self.hex4()?;
        let joined = 0x10000 + ((first - 0xd800) << 10) + (second.wrapping_sub(0xdc00) & 0x3ff);
        char::from_u32(joined).ok_or_else(|| self.wrong("half a character"))
    }

    fn hex4(&mut self) -> Outcome<u32> {
        let digits = self.bytes.get(self.at..self.at + 4).and_then(|d| std::str::from_utf8(d).ok());
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        self.at += 4;
        code.ok_or_else(|| self.wrong("an escape without four digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_path() -> Outcome<()> {
        let text = r#" {"a":[{"b":"x\n\u00e9\ud83d\ude00"},2.50],"t":true,"n":null,"e":{}} "#;
        let json = Json::parse(text)?;
        assert_eq!(json.text("a.0.b")?, "x\né😀");
        assert_eq!(json.micro_trm("a.1")?, 2_500_000);
        assert_eq!(json.at("t"), Some(&Json::Bool(true)));
        assert_eq!(json.at("e.x"), None);
        assert_eq!(json.list("a")?.len(), 2);
        Ok(())
    }

    #[test]
    fn broken_text_is_refused() {
        for text in ["", "{", "[1", "{\"a\" 1}", "\"x", "nul", "1 2", "[1,]", "\"\\ud800x\""] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
        assert!(Json::parse(&"[".repeat(10_000)).is_err());
    }

    #[test]
    fn money_is_exact_both_ways() {
        for (text, exact) in [
            ("0", 0),
            ("1", 1_000_000),
            ("-2.000001", -2_000_001),
            ("9007199254740993.5", 9_007_199_254_740_993_500_000),
        ] {
            assert_eq!(micro(text), Some(exact));
            assert_eq!(trm(exact), text);
        }
        assert_eq!(micro("0.0000001"), None);
        assert_eq!(micro(".5"), None);
    }

    #[test]
    fn literals_read_back() {
        let text = "a \"quoted\" \\ line\nwith a tab\t";
        assert_eq!(Json::parse(&literal(text)), Ok(Json::Text(text.to_owned())));
    }
}
