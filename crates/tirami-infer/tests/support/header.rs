//! Copies of the model whose header says something else.

#![allow(dead_code, unreachable_pub, reason = "each test file uses the part it needs")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

/// Where the number of keys stands, and where the keys begin.
const COUNT_AT: usize = 16;
const KEYS_AT: usize = 24;
/// Bytes of the file in which its keys are looked for.
const HEADER_BYTES: usize = 4 << 20;
/// What the place of a tensor is a multiple of.
const ALIGNMENT: usize = 32;
/// A key that nobody asks for.
const FILLER: &str = "filler";

/// A text as a key's value.
pub fn text(text: &str) -> Vec<u8> {
    [&8_u32.to_le_bytes()[..], &(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A number as a key's value.
pub fn number(number: u32) -> Vec<u8> {
    [4_u32.to_le_bytes(), number.to_le_bytes()].concat()
}

/// Yes or no as a key's value.
pub fn flag(flag: bool) -> Vec<u8> {
    [&7_u32.to_le_bytes()[..], &[u8::from(flag)]].concat()
}

fn named(key: &str) -> Vec<u8> {
    [&(key.len() as u64).to_le_bytes()[..], key.as_bytes()].concat()
}

/// Writes a copy of `model` to `path` in which these keys have these values.
pub fn copy_with(model: &Path, path: &Path, keys: &[(&str, Vec<u8>)]) {
    let mut file = std::fs::read(model).unwrap();
    let mut added = Vec::new();
    for (key, value) in keys {
        let name = named(key);
        let header = &file[..file.len().min(HEADER_BYTES)];
        // What it says so far gets a name that nobody asks for.
        let said = header.windows(name.len()).position(|bytes| bytes == name.as_slice());
        if let Some(at) = said {
            file[at + size_of::<u64>()] = b'-';
        }
        added.extend(name);
        added.extend(value);
    }
    // As many bytes are added as leave the tensors where they should be.
    let length = added.len() + named(FILLER).len() + text("").len();
    added.extend(named(FILLER));
    added.extend(text(&" ".repeat(length.next_multiple_of(ALIGNMENT) - length)));
    let count = u64::from_le_bytes(file[COUNT_AT..KEYS_AT].try_into().unwrap());
    let count = count + keys.len() as u64 + 1;
    let parts = [&file[..COUNT_AT], &count.to_le_bytes(), &added, &file[KEYS_AT..]];
    std::fs::write(path, parts.concat()).unwrap();
}
