//! Rust source as the checks see it: code without its strings and comments, and its functions.

/// One file, taken apart. All texts have the same lines and columns as the file.
pub(crate) struct RustSource {
    /// The file with comments, string contents and character literals blanked.
    pub(crate) code: String,
    /// The file with everything but comments blanked.
    pub(crate) comments: String,
}

/// A function with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    /// The function's name.
    pub(crate) name: String,
    /// The line its `fn` stands on, from 1.
    pub(crate) line: usize,
    /// Lines from `fn` to the closing brace that hold code.
    pub(crate) code_lines: usize,
}

/// What a character belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

impl RustSource {
    /// Takes a file apart.
    pub(crate) fn read(text: &str) -> Self {
        let characters: Vec<char> = text.chars().collect();
        let kinds = kinds(&characters);
        let keep = |wanted: Kind| {
            characters
                .iter()
                .zip(&kinds)
                .map(|(&c, &kind)| if c == '\n' || kind == wanted { c } else { ' ' })
                .collect()
        };
        Self { code: keep(Kind::Code), comments: keep(Kind::Comment) }
    }

    /// All functions that have a body, in order.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let words = words(&self.code);
        words
            .iter()
            .zip(words.iter().skip(1))
            .filter(|(word, _)| word.text == "fn")
            // Otherwise it is the type of a function.
            .filter(|(word, name)| self.code[word.at + 2..name.at].trim().is_empty())
            .filter_map(|(word, name)| {
                let end = body_end(&self.code, name.at + name.text.len())?;
                let line = 1 + self.code[..word.at].matches('\n').count();
                let lines = self.code[word.at..end].lines();
                let code_lines = lines.filter(|line| !line.trim().is_empty()).count();
                Some(Function { name: name.text.to_owned(), line, code_lines })
            })
            .collect()
    }
}

/// A word of code and its byte position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word<'a> {
    pub(crate) text: &'a str,
    pub(crate) at: usize,
}

/// All identifiers, keywords and numbers of a text.
pub(crate) fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut start = None;
    for (at, character) in text.char_indices().chain([(text.len(), ' ')]) {
        match (start, character.is_alphanumeric() || character == '_') {
            (None, true) => start = Some(at),
            (Some(begin), false) => {
                words.push(Word { text: &text[begin..at], at: begin });
                start = None;
            }
            _ => {}
        }
    }
    words
}

/// The byte after the brace that closes the body, or nothing for a function without one.
fn body_end(code: &str, from: usize) -> Option<usize> {
    let mut nesting = 0_i32;
    let mut braces = 0_i32;
    for (at, character) in code[from..].char_indices() {
        match character {
            '(' | '[' => nesting += 1,
            ')' | ']' => nesting -= 1,
            ';' if nesting == 0 && braces == 0 => return None,
            '{' if nesting == 0 => braces += 1,
            '}' if nesting == 0 => {
                braces -= 1;
                if braces == 0 {
                    return Some(from + at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn kinds(text: &[char]) -> Vec<Kind> {
    let mut kinds = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let (length, kind) = token(text, at);
        let end = text.len().min(at + length.max(1));
        // The quotes stay code, so that an attribute keeps its shape.
        kinds.extend(text[at..end].iter().map(|&character| match kind {
            Kind::Literal if character == '"' => Kind::Code,
            _ => kind,
        }));
        at = end;
    }
    kinds
}

/// How long the comment or literal at `at` is; one character of code otherwise.
fn token(text: &[char], at: usize) -> (usize, Kind) {
    let next = |offset: usize| text.get(at + offset).copied().unwrap_or('\0');
    let word_before = at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_');
    match (text[at], next(1)) {
        ('/', '/') => (length_until(text, at, |c| c == '\n'), Kind::Comment),
        ('/', '*') => (block_comment(text, at), Kind::Comment),
        ('"', _) => (string(text, at), Kind::Literal),
        ('r', '"' | '#') if !word_before => match raw_string(text, at + 1) {
            Some(length) => (1 + length, Kind::Literal),
            None => (1, Kind::Code),
        },
        ('b', 'r') if !word_before => match raw_string(text, at + 2) {
            Some(length) => (2 + length, Kind::Literal),
            None => (2, Kind::Code),
        },
        ('\'', '\\') => (2 + length_until(text, at + 2, |c| c == '\'').max(1) + 1, Kind::Literal),
        ('\'', _) if next(2) == '\'' => (3, Kind::Literal),
        _ => (1, Kind::Code),
    }
}

fn length_until(text: &[char], at: usize, stop: impl Fn(char) -> bool) -> usize {
    text[at.min(text.len())..].iter().take_while(|&&c| !stop(c)).count()
}

fn block_comment(text: &[char], at: usize) -> usize {
    let mut depth = 0_u32;
    let mut position = at;
    while position < text.len() {
        match (text[position], text.get(position + 1)) {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ => {
                position += 1;
                continue;
            }
        }
        position += 2;
        if depth == 0 {
            break;
        }
    }
    position - at
}

fn string(text: &[char], at: usize) -> usize {
    let mut position = at + 1;
    while position < text.len() && text[position] != '"' {
        position += if text[position] == '\\' { 2 } else { 1 };
    }
    position + 1 - at
}

/// The length of `#*"…"#*` at `at`, if there is one.
fn raw_string(text: &[char], at: usize) -> Option<usize> {
    let hashes = length_until(text, at, |c| c != '#');
    if text.get(at + hashes) != Some(&'"') {
        return None;
    }
    let mut position = at + hashes + 1;
    while position < text.len() {
        let closes =
            text[position] == '"' && length_until(text, position + 1, |c| c != '#') >= hashes;
        position += 1;
        if closes {
            return Some(position + hashes - at);
        }
    }
    Some(text.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_taken_out_of_the_code() {
        for (text, code) in [
            ("a(\"fn x {\") // b", "a(\"      \")     "),
            ("r#\"x\"y\"#; 'c'; '\\''; 'a: 1", "  \" \" \" ;    ;     ; 'a: 1"),
            ("/* a /* b */ c */ d", "                  d"),
            ("br\"x\" + number", "  \" \" + number"),
        ] {
            assert_eq!(RustSource::read(text).code, code, "{text}");
        }
        let source = RustSource::read("let a = 1; // why #12\n\"// no\"");
        assert_eq!(source.comments.trim(), "// why #12");
    }

    #[test]
    fn functions_are_measured_without_blank_lines_and_comments() {
        let text = "\
trait T { fn declared(&self) -> [u8; 4]; }
struct S { f: fn(&u8) -> u8 }

fn first<F: Fn(u8) -> u8>(f: F) -> u8
where
    F: Clone,
{
    // A comment with a brace }

    let s = \"}\";
    f(s.len() as u8)
}
fn second() {}
";
        let functions = RustSource::read(text).functions();
        let measured: Vec<(&str, usize, usize)> =
            functions.iter().map(|f| (f.name.as_str(), f.line, f.code_lines)).collect();
        assert_eq!(measured, [("first", 4, 7), ("second", 13, 1)]);
    }
}
