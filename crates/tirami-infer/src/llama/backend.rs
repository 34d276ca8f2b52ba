//! The native library: started once, its log caught, its settings in one place.

use std::ffi::{CStr, c_char, c_void};
use std::num::NonZeroU32;
use std::sync::{LazyLock, Mutex, PoisonError};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;

use super::lookup::Guesses;

/// Tokens in one pass at most, in the reproducible setting and while streams run. Below the size
/// at which the engine's attention changes its order of additions, so a token's logits are the
/// same bits in a long pass, a short one or alone.
pub const PASS_TOKENS_MAX: usize = 32;

/// Tokens in one pass where nothing has to be reproducible and nobody else waits.
const PASS_TOKENS_QUICK: usize = 512;

/// The engine rounds a sequence's room up to this many tokens.
pub(super) const ROOM_STEP: u32 = 256;

static BACKEND: LazyLock<Option<LlamaBackend>> = LazyLock::new(|| {
    // SAFETY: the callback is a plain function, keeps no pointer it is given, and needs no data.
    unsafe { llama_cpp_sys_2::llama_log_set(Some(keep_log), std::ptr::null_mut()) };
    LlamaBackend::init().ok()
});

/// The last complaint of the native library, for the sentence about a file it refuses.
static COMPLAINT: Mutex<Option<String>> = Mutex::new(None);

/// The started library; none when another part of the process holds it.
pub(super) fn backend() -> Option<&'static LlamaBackend> {
    BACKEND.as_ref()
}

/// More layers than any model has: all of them.
const ALL_LAYERS: u32 = 10_000;

/// The layers that are put on a GPU: as many as asked for, or else all, where the library was
/// built with a GPU back-end and finds a GPU; else none, whatever is asked.
pub(super) fn gpu_layers(asked: Option<u32>) -> u32 {
    let has_gpu = backend().is_some_and(LlamaBackend::supports_gpu_offload);
    if has_gpu { asked.unwrap_or(ALL_LAYERS) } else { 0 }
}

/// Has the log of what reads pictures caught as well.
pub(super) fn log_pictures() {
    // SAFETY: as above, the callback keeps nothing and needs no data.
    unsafe { llama_cpp_sys_2::mtmd_helper_log_set(Some(keep_log), std::ptr::null_mut()) };
}

/// Takes the last complaint.
pub(super) fn take_complaint() -> Option<String> {
    COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

unsafe extern "C" fn keep_log(
    level: llama_cpp_sys_2::ggml_log_level,
    text: *const c_char,
    _: *mut c_void,
) {
    if text.is_null() {
        return;
    }
    // SAFETY: the library passes a text that ends with a zero byte and lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim_end();
    if text.is_empty() {
        return;
    }
    tracing::debug!(target: "llama.cpp", "{text}");
    if level == llama_cpp_sys_2::GGML_LOG_LEVEL_ERROR {
        let mut complaint = COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner);
        // The first complaint names the cause; those after it only say that loading failed.
        complaint.get_or_insert_with(|| text.to_owned());
    }
}

/// How a context is set up; the same for serving and for measuring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) threads: u32,
    pub(super) context_tokens: u32,
    pub(super) sequences: u32,
    pub(super) gpu_layers: u32,
    /// Whether a token's logits are the same bits in every pass.
    pub(super) reproducible: bool,
    /// When tokens are guessed, where a guess changes no answer that has to stay the same.
    pub(super) guesses: Guesses,
}

impl Setting {
    pub(super) const fn on_gpu(&self) -> bool {
        self.gpu_layers > 0
    }

    /// Tokens one pass may have.
    pub(super) const fn pass_tokens(&self) -> usize {
        if self.reproducible { PASS_TOKENS_MAX } else { PASS_TOKENS_QUICK }
    }

    /// What of the setting changes the bits of an answer, for receipts.
    pub(super) fn label(&self) -> String {
        let device = if self.on_gpu() { "gpu" } else { "cpu" };
        let values = if self.reproducible && !self.on_gpu() { "bf16" } else { "f16" };
        format!("{device} kv=f16/{values} ubatch={}", self.pass_tokens())
    }

    /// A context with separate room for each sequence.
    ///
    /// Each sequence's cache is its own and is filled in order, so what other sequences do moves
    /// nothing in it and its additions keep their order. In the reproducible setting keys and
    /// values have different types of 16 bits: with equal ones the engine's attention divides a
    /// long cache among the threads when one sequence is alone, and works in tiles where a pass
    /// has 64 tokens or more, and the number of threads, of sequences and of tokens changes the
    /// bits.
    pub(super) fn context<'m>(&self, model: &'m LlamaModel) -> Result<LlamaContext<'m>, String> {
        self.context_with(model, |parameters| parameters)
    }

    /// The same context with something changed that does not change its numbers.
    pub(super) fn context_with<'m>(
        &self,
        model: &'m LlamaModel,
        change: impl FnOnce(LlamaContextParams) -> LlamaContextParams,
    ) -> Result<LlamaContext<'m>, String> {
        let backend = backend().ok_or("the native library could not be started")?;
        let room = self.context_tokens.next_multiple_of(ROOM_STEP);
        let cells = room.checked_mul(self.sequences).ok_or("the context is too large")?;
        let threads = i32::try_from(self.threads).unwrap_or(i32::MAX);
        let pass = u32::try_from(self.pass_tokens()).unwrap_or(u32::MAX);
        let is_mixed = self.reproducible && !self.on_gpu();
        let values = if is_mixed { KvCacheType::BF16 } else { KvCacheType::F16 };
        let parameters = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(cells))
            .with_n_batch(pass)
            .with_n_ubatch(pass)
            .with_n_seq_max(self.sequences)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_kv_unified(false)
            .with_type_k(KvCacheType::F16)
            .with_type_v(values)
            .with_no_perf(true);
        model
            .new_context(backend, change(parameters))
            .map_err(|error| take_complaint().unwrap_or_else(|| error.to_string()))
    }
}
