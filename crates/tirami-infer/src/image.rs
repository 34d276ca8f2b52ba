//! Pictures that come with a chat: what they are, judged by their header before anything large is
//! unpacked, and their pixels.
//!
//! They come from strangers, so they are read by decoders that cannot touch memory they do not
//! own, within bounds that are known before.

use std::io::Cursor;
use std::sync::Arc;

use png::Transformations;
use tirami_core::Digest;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Bytes of one picture's file at most.
pub const IMAGE_BYTES_MAX: usize = 16 << 20;
/// Pixels of one picture at most.
pub const IMAGE_PIXELS_MAX: u64 = 1 << 24;
/// How many times longer one side may be than the other.
pub const IMAGE_SIDES_MAX: u32 = 64;
/// Pictures of one chat at most.
pub const IMAGES_MAX: usize = 16;
/// Tokens one picture may take at most.
pub const IMAGE_TOKENS_MAX: u32 = 4_096;

/// Passes over a JPEG's pixels at most; usual files have about ten.
const SCANS_MAX: usize = 24;
/// Bytes the PNG decoder may take beside the pixels.
const PNG_BYTES_MAX: usize = 8 << 20;
/// Bytes of a pixel: red, green and blue.
pub(crate) const PIXEL_BYTES: usize = 3;

const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";
const JPEG_MAGIC: &[u8] = b"\xff\xd8\xff";

/// A PNG or JPEG file whose header was judged. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Image(Arc<File>);

#[derive(Debug)]
struct File {
    bytes: Vec<u8>,
    width: u32,
    height: u32,
    digest: Digest,
}

/// Why a file is no picture that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It is too long.
    #[error("it has more than {IMAGE_BYTES_MAX} bytes; make it smaller")]
    Bytes,
    /// It is neither PNG nor JPEG.
    #[error("it is neither PNG nor JPEG; convert it to one of them")]
    Format,
    /// It has too many pixels.
    #[error(
        "it has {width} × {height} pixels, and at most {IMAGE_PIXELS_MAX} in all are read; make \
         it smaller"
    )]
    Pixels {
        /// Pixels from left to right.
        width: u32,
        /// Pixels from top to bottom.
        height: u32,
    },
    /// It is too long and narrow.
    #[error(
        "it has {width} × {height} pixels, and one side may be {IMAGE_SIDES_MAX} times the other \
         at most; cut it"
    )]
    Sides {
        /// Pixels from left to right.
        width: u32,
        /// Pixels from top to bottom.
        height: u32,
    },
    /// It cannot be decoded.
    #[error("it is damaged: {reason}")]
    Damaged {
        /// The decoder's words.
        reason: String,
    },
}

impl Image {
    /// Judges the header of a file. What it says of its size is believed only as far as the bounds
    /// go.
    ///
    /// # Errors
    ///
    /// [`ImageError`], in the order of its variants.
    pub fn open(bytes: Vec<u8>) -> Result<Self, ImageError> {
        if bytes.len() > IMAGE_BYTES_MAX {
            return Err(ImageError::Bytes);
        }
        let (width, height) = if bytes.starts_with(PNG_MAGIC) {
            png_size(&bytes)?
        } else if bytes.starts_with(JPEG_MAGIC) {
            jpeg_size(&bytes)?
        } else {
            return Err(ImageError::Format);
        };
        if width == 0 || height == 0 {
            return Err(damaged("it has no pixels"));
        }
        if u64::from(width) * u64::from(height) > IMAGE_PIXELS_MAX {
            return Err(ImageError::Pixels { width, height });
        }
        if width.max(height).div_ceil(width.min(height)) > IMAGE_SIDES_MAX {
            return Err(ImageError::Sides { width, height });
        }
        let digest = Digest::of(&bytes);
        Ok(Self(Arc::new(File { bytes, width, height, digest })))
    }

    /// Pixels from left to right and from top to bottom, both at least 1.
    pub fn size(&self) -> (u32, u32) {
        (self.0.width, self.0.height)
    }

    /// blake3 of the file's bytes.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Red, green and blue of each pixel, row by row. Transparency is left out, as llama.cpp does.
    ///
    /// # Errors
    ///
    /// [`ImageError::Damaged`].
    pub fn pixels(&self) -> Result<Vec<u8>, ImageError> {
        let pixels = if self.0.bytes.starts_with(PNG_MAGIC) {
            png_pixels(&self.0.bytes)?
        } else {
            jpeg_pixels(&self.0.bytes)?
        };
        let count = u64::from(self.0.width) * u64::from(self.0.height);
        let is_whole = u64::try_from(pixels.len()) == Ok(count * PIXEL_BYTES as u64);
        if is_whole { Ok(pixels) } else { Err(damaged("its size is not what its header says")) }
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest == other.0.digest
    }
}

impl Eq for Image {}

fn damaged(reason: impl ToString) -> ImageError {
    ImageError::Damaged { reason: reason.to_string() }
}

fn png_decoder(bytes: &[u8], pixels: usize) -> png::Decoder<Cursor<&[u8]>> {
    let bytes_max = pixels.saturating_mul(8).saturating_add(PNG_BYTES_MAX);
    let limits = png::Limits { bytes: bytes_max };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    // What is not pixels may unpack to anything.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::normalize_to_color8());
    decoder
}

fn png_size(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    let mut decoder = png_decoder(bytes, 0);
    let header = decoder.read_header_info().map_err(damaged)?;
    Ok((header.width, header.height))
}

fn png_pixels(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let count = usize::try_from(IMAGE_PIXELS_MAX).unwrap_or(usize::MAX);
    let mut reader = png_decoder(bytes, count).read_info().map_err(damaged)?;
    let size = reader.output_buffer_size().ok_or_else(|| damaged("it is too large"))?;
    let mut buffer = vec![0; size];
    let frame = reader.next_frame(&mut buffer).map_err(damaged)?;
    buffer.truncate(frame.buffer_size());
    let channels = frame.color_type.samples();
    Ok(match channels {
        PIXEL_BYTES => buffer,
        1 | 2 => buffer.chunks_exact(channels).flat_map(|pixel| [pixel[0]; PIXEL_BYTES]).collect(),
        _ => {
            let colours = |pixel: &[u8]| [pixel[0], pixel[1], pixel[2]];
            buffer.chunks_exact(channels).flat_map(colours).collect()
        }
    })
}

fn jpeg_decoder(bytes: &[u8]) -> JpegDecoder<ZCursor<&[u8]>> {
    let side = usize::try_from(IMAGE_PIXELS_MAX).unwrap_or(usize::MAX);
    let options = DecoderOptions::default()
        .set_max_width(side)
        .set_max_height(side)
        .jpeg_set_max_scans(SCANS_MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    JpegDecoder::new_with_options(ZCursor::new(bytes), options)
}

fn jpeg_size(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    let mut decoder = jpeg_decoder(bytes);
    decoder.decode_headers().map_err(|error| damaged(format!("{error:?}")))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| damaged("it has no size"))?;
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    Ok((side(width), side(height)))
}

fn jpeg_pixels(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    jpeg_decoder(bytes).decode().map_err(|error| damaged(format!("{error:?}")))
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    fn png(width: u32, height: u32, colour: png::ColorType) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(colour);
        let bytes = (width * height) as usize * colour.samples();
        let pixels: Vec<u8> = (0..=255).cycle().take(bytes).collect();
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        file
    }

    /// 8 × 8 grey pixels.
    fn jpeg() -> Vec<u8> {
        let table = |class: u8| [&[0xff, 0xc4, 0, 20, class, 1][..], &[0; 16]].concat();
        [
            &[0xff, 0xd8, 0xff, 0xdb, 0, 67, 0][..],
            &[1; 64],
            &[0xff, 0xc0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0],
            &table(0),
            &table(0x10),
            &[0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0, 0x3f, 0xff, 0xd9],
        ]
        .concat()
    }

    #[test]
    fn pixels_are_red_green_and_blue_whatever_the_file_has() {
        let pixels = |file: Vec<u8>| Image::open(file).unwrap().pixels().unwrap();
        assert_eq!(pixels(png(2, 1, png::ColorType::Rgb)), [0, 1, 2, 3, 4, 5]);
        assert_eq!(pixels(png(2, 1, png::ColorType::Rgba)), [0, 1, 2, 4, 5, 6]);
        assert_eq!(pixels(png(2, 1, png::ColorType::Grayscale)), [0, 0, 0, 1, 1, 1]);
        assert_eq!(pixels(png(2, 1, png::ColorType::GrayscaleAlpha)), [0, 0, 0, 2, 2, 2]);
        assert_eq!(pixels(jpeg()), [128; 8 * 8 * 3]);
    }

    #[test]
    fn bounds_are_kept_before_anything_is_unpacked() {
        let said = |width: u32, height: u32| {
            let mut file = Vec::new();
            drop(png::Encoder::new(&mut file, width, height).write_header().unwrap());
            Image::open(file).map(drop)
        };
        assert_eq!(said(4_096, 4_096), Ok(()));
        let (width, height) = (4_097, 4_096);
        assert_eq!(said(width, height), Err(ImageError::Pixels { width, height }));
        assert_eq!(said(64, 1), Ok(()));
        let (width, height) = (1, 65);
        assert_eq!(said(width, height), Err(ImageError::Sides { width, height }));
        assert_eq!(Image::open(vec![0; IMAGE_BYTES_MAX + 1]), Err(ImageError::Bytes));
        assert_eq!(Image::open(Vec::new()), Err(ImageError::Format));
    }

    #[test]
    fn damaged_files_are_pictures_or_refused() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let files = [png(40, 30, png::ColorType::Rgb), jpeg()];
        for round in 0..4_000 {
            let mut file = files[round % 2].clone();
            for _ in 0..=random.next_u32() % 4 {
                let at = random.next_u32() as usize % file.len();
                file[at] = random.next_u32().to_le_bytes()[0];
            }
            file.truncate(file.len() - random.next_u32() as usize % 3 * 7);
            if let Ok(image) = Image::open(file) {
                let (width, height) = image.size();
                if let Ok(pixels) = image.pixels() {
                    assert_eq!(pixels.len(), width as usize * height as usize * PIXEL_BYTES);
                }
            }
        }
    }
}
