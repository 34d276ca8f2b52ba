//! GGUF files: judged before the engine sees them.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tirami_infer::gguf::GgufFile;

/// One file for each process, written again for each input.
static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("tirami-fuzz-{}.gguf", std::process::id())));

fuzz_target!(|data: &[u8]| {
    if std::fs::write(&*PATH, data).is_ok() {
        let _ = GgufFile::open(&PATH);
    }
});
