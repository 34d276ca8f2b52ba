//! The projector of a model: what turns a picture into vectors that stand for tokens.
//!
//! A picture is one piece of work: it is unpacked, encoded and read into its sequence between two
//! steps of the engine, and running streams wait for it. How long that takes depends on the
//! projector, not on the prompt.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::mtmd::{
    MtmdBitmap, MtmdContext, MtmdContextParams, MtmdInputChunkType, MtmdInputChunks, MtmdInputText,
    mtmd_default_marker,
};

use super::backend::{Setting, log_pictures, take_complaint};
use crate::image::{IMAGE_TOKENS_MAX, Image, PIXEL_BYTES};

/// Sizes of pictures whose number of tokens is remembered.
const SIZES_MAX: usize = 1_024;
/// Sizes that are tried when a projector is loaded: those above are cut or made smaller by all
/// known ones, so one of them takes the most tokens.
const TRIED: [(u32, u32); 5] =
    [(2_048, 2_048), (2_896, 1_448), (1_448, 2_896), (4_096, 1_024), (1_024, 4_096)];

/// Why some projectors are refused, as the end of a sentence.
const ROWS_AND_COLUMNS: &str = "the model counts a picture's rows and columns as positions, which \
                                is not supported; use another model for pictures";
const BOTH_DIRECTIONS: &str = "the model reads a picture in both directions, which is not \
                               supported; use another model for pictures";

/// A loaded projector.
pub(super) struct Vision {
    /// Whoever counts a picture's tokens holds it for moments, the engine while it reads one.
    context: Mutex<MtmdContext>,
    /// Held by whoever unpacks a picture to count its tokens, so that there is one at a time.
    unpacking: Mutex<()>,
    /// Tokens of the picture that took the most of those tried.
    tokens_max: usize,
    /// Tokens of a picture by its size, on which alone they depend.
    sizes: Mutex<BTreeMap<(u32, u32), usize>>,
    pass_tokens: i32,
    /// The native context points into it, so it goes last.
    model: Arc<LlamaModel>,
}

/// What became of a picture.
pub(super) enum Reading {
    /// It is in the cache.
    Done,
    /// Somebody counts tokens: again in the next step.
    Later,
    /// It cannot be read.
    Failed(String),
}

impl Vision {
    /// Loads a projector and tries it.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as the end of a sentence.
    pub(super) fn open(
        path: &Path,
        model: &Arc<LlamaModel>,
        setting: &Setting,
    ) -> Result<Self, String> {
        log_pictures();
        take_complaint();
        let file = path.to_str().ok_or("its path is no text")?;
        let parameters = MtmdContextParams {
            use_gpu: setting.on_gpu(),
            print_timings: false,
            n_threads: i32::try_from(setting.threads).unwrap_or(i32::MAX),
            ..MtmdContextParams::default()
        };
        let context = MtmdContext::init_from_file(file, model, &parameters)
            .map_err(|error| take_complaint().unwrap_or_else(|| error.to_string()))?;
        if !context.support_vision() {
            return Err("it reads no pictures".to_owned());
        }
        if context.decode_use_mrope() {
            return Err(ROWS_AND_COLUMNS.to_owned());
        }
        if context.decode_use_non_causal() {
            return Err(BOTH_DIRECTIONS.to_owned());
        }
        let mut vision = Self {
            unpacking: Mutex::new(()),
            tokens_max: 0,
            context: Mutex::new(context),
            sizes: Mutex::default(),
            pass_tokens: i32::try_from(setting.pass_tokens()).unwrap_or(i32::MAX),
            model: Arc::clone(model),
        };
        for (width, height) in TRIED {
            let bytes = width as usize * height as usize * PIXEL_BYTES;
            let count = vision.counted((width, height), &vec![0; bytes])?;
            vision.tokens_max = vision.tokens_max.max(count);
        }
        Ok(vision)
    }

    /// Tokens that a picture takes at most, as far as was tried.
    pub(super) fn tokens_max(&self) -> u32 {
        u32::try_from(self.tokens_max).unwrap_or(u32::MAX)
    }

    /// Tokens of a picture, those that the model wants around it included. Unpacks it, which
    /// takes long for a large one.
    ///
    /// # Errors
    ///
    /// Why it cannot be read, as the end of a sentence.
    pub(super) fn count(&self, image: &Image) -> Result<usize, String> {
        let _one_at_a_time = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        // A size says nothing of whether the rest is whole.
        let pixels = image.pixels().map_err(|error| error.to_string())?;
        let tokens = self.counted(image.size(), &pixels)?;
        if tokens > IMAGE_TOKENS_MAX as usize {
            return Err(format!(
                "it takes {tokens} tokens, and at most {IMAGE_TOKENS_MAX} are read; make it smaller"
            ));
        }
        Ok(tokens)
    }

    fn counted(&self, size: (u32, u32), pixels: &[u8]) -> Result<usize, String> {
        let sizes = || self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sizes().get(&size) {
            return Ok(*count);
        }
        let context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        let chunks = self.cut(&context, size, pixels)?;
        drop(context);
        let count = chunks.total_tokens();
        let mut sizes = sizes();
        if sizes.len() >= SIZES_MAX {
            sizes.clear();
        }
        sizes.insert(size, count);
        Ok(count)
    }

    /// Reads a picture into the place of the cache, from `position` on.
    pub(super) fn read(
        &self,
        llama: &mut LlamaContext<'_>,
        (image, tokens): (&Image, usize),
        (position, place): (usize, usize),
    ) -> Reading {
        let mut context = match self.context.try_lock() {
            Ok(context) => context,
            Err(TryLockError::WouldBlock) => return Reading::Later,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
        };
        let mut read = || -> Result<(), String> {
            let pixels = image.pixels().map_err(|error| error.to_string())?;
            let chunks = self.cut(&context, image.size(), &pixels)?;
            drop(pixels);
            if chunks.total_tokens() != tokens {
                return Err("its number of tokens has changed".to_owned());
            }
            let number = |number: usize| i32::try_from(number).map_err(|error| error.to_string());
            let (start, place) = (number(position)?, number(place)?);
            let end = chunks
                .eval_chunks(&mut context, llama, start, place, self.pass_tokens, false)
                .map_err(|error| take_complaint().unwrap_or_else(|| error.to_string()))?;
            let is_whole = end == number(position + tokens)?;
            if is_whole { Ok(()) } else { Err("it was not read to its end".to_owned()) }
        };
        read().map_or_else(Reading::Failed, |()| Reading::Done)
    }

    /// The pieces of a picture, as the engine reads them.
    fn cut(
        &self,
        context: &MtmdContext,
        (width, height): (u32, u32),
        pixels: &[u8],
    ) -> Result<MtmdInputChunks, String> {
        // What was complained of before has nothing to do with this.
        take_complaint();
        let bitmap = MtmdBitmap::from_image_data(width, height, pixels)
            .map_err(|error| error.to_string())?;
        let text = MtmdInputText {
            text: mtmd_default_marker().to_owned(),
            add_special: false,
            parse_special: true,
        };
        let chunks = context
            .tokenize(text, &[&bitmap])
            .map_err(|error| take_complaint().unwrap_or_else(|| error.to_string()))?;
        let known = 0..self.model.vocab().n_tokens();
        for chunk in (0..chunks.len()).filter_map(|index| chunks.get(index)) {
            let of_vocabulary =
                chunk.text_tokens().is_none_or(|all| all.iter().all(|one| known.contains(&one.0)));
            if chunk.chunk_type() == MtmdInputChunkType::Audio || !of_vocabulary {
                return Err("the projector wants tokens that the model does not have; it belongs \
                            to another model"
                    .to_owned());
            }
        }
        if chunks.total_tokens() == 0 {
            return Err("the projector makes nothing of it".to_owned());
        }
        Ok(chunks)
    }
}

impl std::fmt::Debug for Vision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vision").finish_non_exhaustive()
    }
}
