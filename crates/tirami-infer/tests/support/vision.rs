//! A small projector made here, and pictures, so that a text model can be shown to read pictures:
//! what it sees in them means nothing, but it depends on every pixel.

#![allow(dead_code, unreachable_pub, reason = "each test file uses the part it needs")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

/// Pixels of a side as the projector sees a picture, and tokens a picture so takes: one for each
/// patch of 14 × 14.
const SIDE: u32 = 56;
const PATCH: u32 = 14;
/// Tokens of each picture.
pub const PICTURE_TOKENS: u32 = (SIDE / PATCH) * (SIDE / PATCH);
/// Numbers that stand for a patch within the encoder, and for a token of SmolLM2-135M.
const INNER: u64 = 32;
const OUTER: u64 = 576;
const FEED_FORWARD: u64 = 64;
/// The encoder's layers; of this kind of projector the last one is not used.
const LAYERS: u32 = 2;

/// A GGUF file under construction.
#[derive(Default)]
struct Maker {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
    state: u64,
}

impl Maker {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        self.keys.extend((name.len() as u64).to_le_bytes());
        self.keys.extend(name.as_bytes());
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
    }

    fn text(&mut self, name: &str, text: &str) {
        self.key(name, 8, &[&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat());
    }

    fn number(&mut self, name: &str, number: u32) {
        self.key(name, 4, &number.to_le_bytes());
    }

    fn reals(&mut self, name: &str, reals: [f32; 3]) {
        let items = reals.map(f32::to_le_bytes).concat();
        self.key(name, 9, &[&6_u32.to_le_bytes()[..], &3_u64.to_le_bytes(), &items].concat());
    }

    /// A tensor of numbers between `-most` and `most`, always the same ones.
    fn tensor(&mut self, name: &str, dimensions: &[u64], most: f32) {
        self.tensors.extend((name.len() as u64).to_le_bytes());
        self.tensors.extend(name.as_bytes());
        self.tensors.extend(u32::try_from(dimensions.len()).unwrap().to_le_bytes());
        self.tensors.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        self.tensors.extend(0_u32.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.tensor_count += 1;
        for _ in 0..dimensions.iter().product::<u64>() {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let part = f32::from(u16::try_from(self.state >> 48).unwrap()) / 65_535.0;
            self.data.extend(((2.0 * part - 1.0) * most).to_le_bytes());
        }
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.key_count.to_le_bytes());
        bytes.extend([self.keys, self.tensors].concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(self.data);
        bytes
    }
}

/// A projector for SmolLM2-135M; another `seed` makes another one.
pub fn projector(seed: u64) -> Vec<u8> {
    projector_of(seed, OUTER)
}

/// One for a model with so many numbers for a token.
pub fn projector_of(seed: u64, outer: u64) -> Vec<u8> {
    let mut maker = Maker { state: seed, ..Maker::default() };
    maker.text("general.architecture", "clip");
    maker.text("clip.projector_type", "mlp");
    maker.key("clip.has_vision_encoder", 7, &[1]);
    maker.key("clip.use_gelu", 7, &[1]);
    let small = |number: u64| u32::try_from(number).unwrap();
    for (name, number) in [
        ("embedding_length", small(INNER)),
        ("feed_forward_length", small(FEED_FORWARD)),
        ("projection_dim", small(outer)),
        ("block_count", LAYERS),
        ("attention.head_count", 2),
        ("image_size", SIDE),
        ("patch_size", PATCH),
    ] {
        maker.number(&format!("clip.vision.{name}"), number);
    }
    maker.key("clip.vision.attention.layer_norm_epsilon", 6, &1e-5_f32.to_le_bytes());
    maker.reals("clip.vision.image_mean", [0.5; 3]);
    maker.reals("clip.vision.image_std", [0.25; 3]);
    let patch = u64::from(PATCH);
    maker.tensor("v.patch_embd.weight", &[patch, patch, 3, INNER], 0.1);
    maker.tensor("v.position_embd.weight", &[INNER, u64::from(PICTURE_TOKENS)], 0.5);
    for layer in 0..LAYERS {
        for name in ["attn_q", "attn_k", "attn_v", "attn_out"] {
            maker.tensor(&format!("v.blk.{layer}.{name}.weight"), &[INNER, INNER], 0.3);
        }
        let (up, down) = ([INNER, FEED_FORWARD], [FEED_FORWARD, INNER]);
        maker.tensor(&format!("v.blk.{layer}.ffn_up.weight"), &up, 0.3);
        maker.tensor(&format!("v.blk.{layer}.ffn_down.weight"), &down, 0.3);
    }
    maker.tensor("mm.0.weight", &[INNER, outer], 0.3);
    maker.tensor("mm.0.bias", &[outer], 0.1);
    maker.tensor("mm.2.weight", &[outer, outer], 0.05);
    maker.tensor("mm.2.bias", &[outer], 0.1);
    maker.bytes()
}

/// Lays a copy of the model into `folder` as NAME.gguf, with the projector beside it.
pub fn lay_beside(model: &Path, folder: &Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(format!("{name}.gguf"));
    std::fs::copy(model, &path).unwrap();
    std::fs::write(folder.join(format!("mmproj-{name}.gguf")), projector(1)).unwrap();
    path
}

/// A PNG of `width` × `height` pixels, in colours that `seed` says.
pub fn png(width: u32, height: u32, seed: u8) -> Vec<u8> {
    let pixel = |at: u32| {
        let at = at.to_le_bytes();
        [at[0] ^ seed, at[1].wrapping_mul(31).wrapping_add(seed), seed.wrapping_mul(97)]
    };
    let pixels: Vec<u8> = (0..width * height).flat_map(pixel).collect();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    file
}
