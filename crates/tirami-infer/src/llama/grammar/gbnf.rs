//! The text of a grammar, as the native engine writes and reads it.

/// What stands behind a text of JSON that is a literal.
const TEXT_END: &str = r#"") "\"""#;

/// `rules` with `prefix` before the name of each rule. A literal whose text `is_name` of a rule
/// that stands elsewhere becomes that name.
pub(super) fn renamed(rules: &str, prefix: &str, is_name: impl Fn(&str) -> bool) -> String {
    let mut renamed = String::with_capacity(2 * rules.len());
    let mut rest = rules;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => through(rest, '"'),
            '[' => through(rest, ']'),
            // How often something is repeated.
            '{' => through(rest, '}'),
            c if is_of_name(c) => rest.find(|c| !is_of_name(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        let literal = token.strip_prefix('"').and_then(|token| token.strip_suffix('"'));
        if let Some(name) = literal.filter(|literal| is_name(literal)) {
            renamed.push_str(name);
            continue;
        }
        if is_of_name(first) {
            renamed.push_str(prefix);
        }
        renamed.push_str(token);
    }
    renamed
}

/// `rules` with literals that begin with `begin` in place of the texts of JSON of which the native
/// engine makes these. No other literal begins so without a quote.
pub(super) fn unquoted(rules: &str, begin: &str) -> String {
    let before = format!(r#""\"" ("{begin}"#);
    let mut parts = rules.split(&before);
    let mut unquoted = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(TEXT_END).unwrap_or((part, ""));
        unquoted.extend(["\"", begin, name, "\"", rest]);
    }
    unquoted
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

/// Bytes of what `text` begins with, through the `end` that no backslash stands before.
fn through(text: &str, end: char) -> usize {
    let mut is_escaped = false;
    let ends = |(_, c): &(usize, char)| {
        let ends = *c == end && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        ends
    };
    let found = text.char_indices().skip(1).find(ends);
    found.map_or(text.len(), |(at, c)| at + c.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_the_literals_that_stand_in_them() {
        for (rules, expected) in [
            (r#"a ::= "\"" ("v-0-root") "\"" b"#, r#"a ::= "v-0-root" b"#),
            (
                r#"a ::= "\"" ("v-0-root") "\"" "\"" ("v-1-root") "\"""#,
                r#"a ::= "v-0-root" "v-1-root""#,
            ),
            (r#"a ::= "\"" ("w-0") "\"" | b"#, r#"a ::= "\"" ("w-0") "\"" | b"#),
            (r#"a ::= "\"v-0-root\"""#, r#"a ::= "\"v-0-root\"""#),
            ("", ""),
        ] {
            assert_eq!(unquoted(rules, "v-"), expected, "{rules}");
        }
    }

    #[test]
    fn names_are_renamed_and_nothing_else() {
        for (rules, expected) in [
            ("root ::= a-b | 0 a-b\n", "x-root ::= x-a-b | x-0 x-a-b\n"),
            (r#"a ::= "root \" b" space "\\" b"#, r#"x-a ::= "root \" b" x-space "\\" x-b"#),
            (r#"c ::= [^"\\\]a-z] [b]d"#, r#"x-c ::= [^"\\\]a-z] [b]x-d"#),
            (
                r#"n ::= ("-"? n-part){0,15} [0-9]{2}+"#,
                r#"x-n ::= ("-"? x-n-part){0,15} [0-9]{2}+"#,
            ),
            (r#"p ::= "\"" ("mark") "\"""#, r#"x-p ::= "\"" (mark) "\"""#),
            (r#"p ::= "\"mark\"" "mark " mark"#, r#"x-p ::= "\"mark\"" "mark " x-mark"#),
            (r#"é ::= "é" [é"#, r#"é ::= "é" [é"#),
            (r#"a ::= "b"#, r#"x-a ::= "b"#),
            ("", ""),
        ] {
            assert_eq!(renamed(rules, "x-", |literal| literal == "mark"), expected, "{rules}");
        }
    }
}
