//! Headers made by hand, and thousands of damaged ones.

use super::*;

/// A GGUF file under construction.
pub(crate) struct Maker {
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn typed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], bytes].concat()
}

pub(crate) fn texts(items: &[&str]) -> Vec<u8> {
    let count = (items.len() as u64).to_le_bytes();
    let items = items.iter().flat_map(|item| text(item)).collect::<Vec<_>>();
    typed(9, &[&8_u32.to_le_bytes()[..], &count[..], &items].concat())
}

pub(crate) fn integers(items: &[u32]) -> Vec<u8> {
    let count = (items.len() as u64).to_le_bytes();
    let items = items.iter().flat_map(|item| item.to_le_bytes()).collect::<Vec<_>>();
    typed(9, &[&5_u32.to_le_bytes()[..], &count[..], &items].concat())
}

impl Maker {
    /// A small complete model: two layers, width 8, three tokens.
    pub(crate) fn model() -> Self {
        let mut maker = Self { keys: Vec::new(), tensors: Vec::new() };
        maker.set("general.architecture", typed(8, &text("llama")));
        maker.set("general.file_type", typed(4, &3_u32.to_le_bytes()));
        for (key, number) in [
            ("block_count", 2),
            ("context_length", 64),
            ("embedding_length", 8),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", 4),
        ] {
            maker.number(key, number);
        }
        let epsilon = typed(6, &1e-5_f32.to_le_bytes());
        maker.set("llama.attention.layer_norm_rms_epsilon", epsilon);
        maker.set("tokenizer.ggml.model", typed(8, &text("gpt2")));
        maker.set("tokenizer.ggml.tokens", texts(&["a", "b", "ab"]));
        maker.set("tokenizer.ggml.merges", texts(&["a b", "b a", "a a"]));
        maker.set("tokenizer.ggml.token_type", integers(&[1, 1, 3]));
        maker.tensors = vec![
            ("token_embd.weight".to_owned(), vec![8, 3], 0),
            ("output_norm.weight".to_owned(), vec![8], 0),
            ("blk.0.ffn_up.weight".to_owned(), vec![32, 4], 3),
        ];
        maker
    }

    pub(crate) fn set(&mut self, key: &str, value: Vec<u8>) {
        self.keys.retain(|(other, _)| other != key);
        self.keys.push((key.to_owned(), value));
    }

    fn number(&mut self, key: &str, number: u32) {
        self.set(&format!("llama.{key}"), typed(4, &number.to_le_bytes()));
    }

    fn tensor(&mut self, name: &str, dimensions: &[u64]) {
        self.tensors.push((name.to_owned(), dimensions.to_vec(), 0));
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        let mut offset = 0_u64;
        for (name, dimensions, kind) in &self.tensors {
            bytes.extend(text(name));
            bytes.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            let elements = dimensions.iter().product::<u64>();
            let size = if *kind == 3 { elements / 32 * 20 } else { elements * 4 };
            offset += size.next_multiple_of(32);
        }
        bytes.resize(bytes.len().next_multiple_of(32) + offset as usize, 0);
        bytes
    }
}

fn open(bytes: &[u8]) -> Result<GgufFile, GgufError> {
    let header = Header::read(bytes, bytes.len() as u64)?;
    GgufFile::judge(&header, Vec::new(), bytes.len() as u64)
}

#[test]
fn the_numbers_of_a_model_come_from_its_header() {
    let file = open(&Maker::model().bytes()).unwrap();
    assert_eq!((file.architecture.as_str(), file.quantisation.as_str()), ("llama", "Q4_1"));
    let shape =
        ModelShape { parameters_active: 160, layers: 2, attention_width: 8, context_max: 64 };
    assert_eq!(file.shape, shape);
    assert_eq!(file.chat_template, None);
}

#[test]
fn a_table_that_is_only_looked_up_and_idle_experts_do_not_count() {
    let mut maker = Maker::model();
    maker.tensor("output.weight", &[8, 3]);
    assert_eq!(open(&maker.bytes()).unwrap().shape.parameters_active, 160);
    maker.tensor("blk.0.ffn_gate_exps.weight", &[8, 5, 4]);
    maker.number("expert_count", 4);
    maker.number("expert_used_count", 1);
    assert_eq!(open(&maker.bytes()).unwrap().shape.parameters_active, 200);
}

#[test]
fn a_longer_key_widens_the_attention() {
    let mut maker = Maker::model();
    maker.number("attention.key_length", 16);
    maker.number("attention.value_length", 16);
    maker.number("rope.dimension_count", 16);
    assert_eq!(open(&maker.bytes()).unwrap().shape.attention_width, 32);
}

#[test]
fn the_file_says_which_vectors_become_a_texts_own() {
    let open_with = |pooling: Option<u32>| {
        let mut maker = Maker::model();
        if let Some(kind) = pooling {
            maker.number("pooling_type", kind);
        }
        open(&maker.bytes())
    };
    for (kind, pooling, width) in [
        (None, Some(Pooling::Mean), 8),
        (Some(0), Some(Pooling::Mean), 8),
        (Some(1), Some(Pooling::Mean), 8),
        (Some(2), Some(Pooling::First), 8),
        (Some(3), Some(Pooling::Last), 8),
        (Some(4), None, 0),
    ] {
        let file = open_with(kind).unwrap();
        assert_eq!((file.pooling, file.embedding_width()), (pooling, width), "{kind:?}");
    }
    let refused = open_with(Some(5)).unwrap_err().to_string();
    assert_eq!(refused, "it is damaged: \"llama.pooling_type\" must be 0 to 4");
}

#[test]
fn what_the_engine_could_not_survive_is_refused() {
    type Change = fn(&mut Maker);
    let cases: &[(&str, Change)] = &[
        ("layers", |m| m.number("block_count", 0)),
        ("many layers", |m| m.number("block_count", 513)),
        ("heads", |m| m.number("attention.head_count", 0)),
        ("kv heads", |m| m.number("attention.head_count_kv", 3)),
        ("no kv heads", |m| m.number("attention.head_count_kv", 0)),
        ("rotation", |m| m.number("rope.dimension_count", 2)),
        ("value length", |m| m.number("attention.value_length", 5)),
        ("context", |m| m.number("context_length", 0)),
        ("experts", |m| m.number("expert_count", 4)),
        ("idle experts", |m| m.number("expert_used_count", 4)),
        ("groups", |m| m.number("expert_group_count", 4)),
        ("epsilon", |m| {
            m.set("llama.attention.layer_norm_rms_epsilon", typed(6, &(-1_f32).to_le_bytes()));
        }),
        ("scaling", |m| m.set("llama.rope.scaling.type", typed(8, &text("odd")))),
        ("pooling", |m| m.number("pooling_type", u32::MAX)),
        ("pooling's type", |m| m.set("llama.pooling_type", typed(5, &3_u32.to_le_bytes()))),
        ("causal", |m| m.set("llama.attention.causal", typed(7, &[0]))),
        ("alignment", |m| m.set("general.alignment", typed(4, &8_u32.to_le_bytes()))),
        ("twins", |m| m.set("tokenizer.ggml.tokens", texts(&["a", "b", "a"]))),
        ("bytes", |m| m.set("tokenizer.ggml.model", typed(8, &text("llama")))),
        ("tokenizer", |m| m.set("tokenizer.ggml.model", typed(8, &text("bert")))),
        ("architecture", |m| m.set("general.architecture", typed(8, &text("bert")))),
        ("norm", |m| m.tensors[1].2 = 1),
        ("weights", |m| m.tensors[2].2 = 26),
        ("rows", |m| m.tensors[2].1 = vec![31, 4]),
        ("same name", |m| m.tensor("output_norm.weight", &[8])),
        ("nothing", |m| m.tensors.clear()),
    ];
    for (name, change) in cases {
        let mut maker = Maker::model();
        change(&mut maker);
        let refused = open(&maker.bytes());
        assert!(refused.is_err(), "{name}");
        let sentence = refused.unwrap_err().to_string();
        assert!(
            sentence.starts_with("it ")
                || sentence.starts_with("its ")
                || sentence.starts_with("tensor"),
            "{name}: {sentence}"
        );
    }
}

#[test]
fn files_that_are_no_models_get_their_own_error() {
    let good = Maker::model().bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut copy = good.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        open(&copy)
    };
    assert_eq!(open(b""), Err(GgufError::NotGguf));
    assert_eq!(open(b"PK\x03\x04 and so on"), Err(GgufError::NotGguf));
    assert_eq!(with(4, &[0, 0, 0, 3]), Err(GgufError::BigEndian));
    assert_eq!(with(4, &[1, 0, 0, 0]), Err(GgufError::Version { version: 1 }));
    let many = with(8, &u64::MAX.to_le_bytes());
    assert!(matches!(many, Err(GgufError::TooMany { what: "tensors", .. })), "{many:?}");
    let many = with(16, &u64::MAX.to_le_bytes());
    assert!(matches!(many, Err(GgufError::TooMany { what: "keys", .. })), "{many:?}");
    // 80 bytes of the last tensor are padded to 96.
    let cut = open(&good[..good.len() - 17]);
    assert!(matches!(cut, Err(GgufError::TensorBeyondEnd { .. })), "{cut:?}");
    for length in 4..good.len() - 256 {
        let cut = open(&good[..length]);
        let truncated = matches!(cut, Err(GgufError::Truncated { .. }));
        assert!(
            truncated || matches!(cut, Err(GgufError::TensorBeyondEnd { .. })),
            "{length}: {cut:?}"
        );
    }
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let good = Maker::model().bytes();
    let mut state = 0x5eed_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=next() % 3 {
            let at = next() % bytes.len();
            match next() % 4 {
                0 => bytes[at] ^= 1 << (next() % 8),
                1 => bytes[at] = 0xff,
                2 => bytes.truncate(at.max(8)),
                _ => {
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].fill([0, 0xff, 0x7f][next() % 3]);
                }
            }
        }
        refused += usize::from(open(&bytes).is_err());
    }
    assert!((2_000..20_000).contains(&refused), "{refused}");
}

#[test]
fn the_parts_of_a_split_model_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let name = |i: usize| folder.path().join(format!("m-{i:05}-of-00002.gguf"));
    let part = |i: u16| {
        let mut maker = Maker::model();
        if i > 0 {
            maker.keys.clear();
            maker.tensors = vec![("output.weight".to_owned(), vec![8, 3], 0)];
        }
        maker.set("split.no", typed(2, &i.to_le_bytes()));
        maker.set("split.count", typed(2, &2_u16.to_le_bytes()));
        maker.bytes()
    };
    std::fs::write(name(1), part(0)).unwrap();
    let alone = GgufFile::open(&name(1));
    assert!(matches!(alone, Err(GgufError::Shard { count: 2, .. })), "{alone:?}");
    std::fs::write(name(2), part(1)).unwrap();
    for asked in [name(1), name(2)] {
        let file = GgufFile::open(&asked).unwrap();
        assert_eq!(file.paths, [name(1), name(2)]);
        assert_eq!(file.size_bytes, (part(0).len() + part(1).len()) as u64);
        assert_eq!(file.shape.parameters_active, 160);
        let whole = [part(0), part(1)].concat();
        let digest = blake3::hash(&whole);
        assert_eq!(file.digest().unwrap().as_bytes(), digest.as_bytes());
    }
    std::fs::write(name(2), part(0)).unwrap();
    assert!(GgufFile::open(&name(1)).is_err());
    std::fs::rename(name(1), folder.path().join("odd.gguf")).unwrap();
    assert!(GgufFile::open(&folder.path().join("odd.gguf")).is_err());
}
