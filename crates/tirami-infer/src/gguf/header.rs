//! The bytes of a GGUF header, read without trusting any of them.
//!
//! Every count and length is compared with what is left of the file and with a named bound
//! before memory is taken for it. No bytes make this code panic.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use super::GgufError;
use super::types::{TensorType, tensor_type};

/// Keys a header may have.
pub const KEYS_MAX: u64 = 65_536;
/// Tensors a file may have.
pub const TENSORS_MAX: u64 = 65_536;
/// Bytes of a key.
pub const KEY_BYTES_MAX: u64 = 65_535;
/// Bytes of a text value, such as a chat template.
pub const TEXT_BYTES_MAX: u64 = 16 << 20;
/// Elements of an array value, such as the vocabulary or its merges.
pub const ARRAY_ITEMS_MAX: u64 = 8 << 20;
/// Bytes of the whole header, vocabulary included.
pub const HEADER_BYTES_MAX: u64 = 512 << 20;
/// Bytes of a tensor's name; the engine keeps one more for the end.
pub const TENSOR_NAME_BYTES_MAX: u64 = 63;

/// Type numbers of values.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// A value of the header.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Real(f64),
    Bool(bool),
    Text(Vec<u8>),
    Numbers(NumberArray),
    Texts(Vec<Vec<u8>>),
}

/// An array of numbers: its element type, as in the file, and its elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NumberArray {
    pub(super) item_type: u32,
    pub(super) items: Vec<f64>,
}

/// One tensor as the header describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dimensions: Vec<u64>,
    pub(super) kind: TensorType,
    pub(super) elements: u64,
    pub(super) bytes: u64,
    pub(super) offset: u64,
}

/// A header, and where the tensors begin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header {
    /// The value of each key with its type number.
    pub(super) values: BTreeMap<String, (u32, Value)>,
    pub(super) tensors: Vec<Tensor>,
}

impl Header {
    /// Reads the header of a file of `file_bytes` bytes and checks that its tensors lie in it.
    pub(super) fn read(reader: impl Read, file_bytes: u64) -> Result<Self, GgufError> {
        let mut bytes = Bytes { reader, position: 0, file_bytes };
        let (tensor_count, key_count) = bytes.preamble()?;
        let mut values = BTreeMap::new();
        for _ in 0..key_count {
            let key = bytes.text(KEY_BYTES_MAX)?;
            let key = String::from_utf8(key).map_err(|_| GgufError::Text { what: "a key" })?;
            let kind = bytes.u32()?;
            let value = bytes.value(kind)?;
            if key.is_empty() || values.insert(key.clone(), (kind, value)).is_some() {
                return Err(GgufError::Twice { name: key });
            }
        }
        let alignment = alignment(&values)?;
        let mut names = BTreeSet::new();
        let mut tensors = Vec::new();
        let mut offset = 0_u64;
        for _ in 0..tensor_count {
            let tensor = bytes.tensor()?;
            if !names.insert(tensor.name.clone()) {
                return Err(GgufError::Twice { name: tensor.name });
            }
            if tensor.offset != offset {
                return Err(GgufError::Offset { name: tensor.name });
            }
            offset = offset
                .checked_add(tensor.bytes)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| GgufError::TensorSize { name: tensor.name.clone() })?;
            tensors.push(tensor);
        }
        let start = bytes.position.checked_next_multiple_of(alignment);
        for tensor in &tensors {
            let end = start
                .and_then(|start| start.checked_add(tensor.offset))
                .and_then(|start| start.checked_add(tensor.bytes));
            if end.is_none_or(|end| end > file_bytes) {
                return Err(GgufError::TensorBeyondEnd {
                    name: tensor.name.clone(),
                    needed_bytes: end.unwrap_or(u64::MAX),
                    file_bytes,
                });
            }
        }
        Ok(Self { values, tensors })
    }
}

/// The alignment of tensors; the engine maps them in place and needs 32 bytes at least.
fn alignment(values: &BTreeMap<String, (u32, Value)>) -> Result<u64, GgufError> {
    match values.get("general.alignment") {
        None => Ok(32),
        Some((4, Value::Unsigned(alignment)))
            if alignment.is_power_of_two() && (32..=65_536).contains(alignment) =>
        {
            Ok(*alignment)
        }
        Some(_) => Err(GgufError::BadValue {
            key: "general.alignment".to_owned(),
            expected: "a power of two between 32 and 65536",
        }),
    }
}

/// A reader that knows how much of the file is left.
struct Bytes<R> {
    reader: R,
    position: u64,
    file_bytes: u64,
}

impl<R: Read> Bytes<R> {
    fn preamble(&mut self) -> Result<(u64, u64), GgufError> {
        let magic: [u8; 4] = match self.take() {
            Err(GgufError::Truncated { .. }) => return Err(GgufError::NotGguf),
            other => other?,
        };
        if &magic != b"GGUF" {
            return Err(GgufError::NotGguf);
        }
        let version = self.u32()?;
        match version {
            2 | 3 => {}
            0x0200_0000 | 0x0300_0000 => return Err(GgufError::BigEndian),
            _ => return Err(GgufError::Version { version }),
        }
        let tensor_count = self.u64()?;
        let key_count = self.u64()?;
        bounded("tensors", tensor_count, TENSORS_MAX)?;
        bounded("keys", key_count, KEYS_MAX)?;
        Ok((tensor_count, key_count))
    }

    /// Fails unless `count` bytes are left in the file and in the header's bound.
    fn claim(&mut self, count: u64) -> Result<(), GgufError> {
        let end = self.position.checked_add(count);
        let end = end
            .filter(|end| *end <= self.file_bytes)
            .ok_or(GgufError::Truncated { file_bytes: self.file_bytes })?;
        bounded("header bytes", end, HEADER_BYTES_MAX)?;
        self.position = end;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|e| read_error(e, self.file_bytes))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self, bytes_max: u64) -> Result<Vec<u8>, GgufError> {
        let length = self.u64()?;
        bounded("bytes of a text", length, bytes_max)?;
        self.claim(length)?;
        let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
        self.reader.read_exact(&mut text).map_err(|e| read_error(e, self.file_bytes))?;
        Ok(text)
    }

    fn value(&mut self, kind: u32) -> Result<Value, GgufError> {
        match kind {
            TEXT => self.text(TEXT_BYTES_MAX).map(Value::Text),
            ARRAY => self.array(),
            _ => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.take()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.take()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.take()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.take()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.take()?))),
            6 => Value::Real(f64::from(f32::from_le_bytes(self.take()?))),
            7 => Value::Bool(u8::from_le_bytes(self.take()?) != 0),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.take()?)),
            12 => Value::Real(f64::from_le_bytes(self.take()?)),
            _ => return Err(GgufError::ValueType { kind }),
        })
    }

    fn array(&mut self) -> Result<Value, GgufError> {
        let item_type = self.u32()?;
        let count = self.u64()?;
        bounded("items of an array", count, ARRAY_ITEMS_MAX)?;
        let item_bytes_min = match item_type {
            TEXT => 8,
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => return Err(GgufError::ValueType { kind: item_type }),
        };
        if count.saturating_mul(item_bytes_min) > self.file_bytes.saturating_sub(self.position) {
            return Err(GgufError::Truncated { file_bytes: self.file_bytes });
        }
        if item_type == TEXT {
            let texts = (0..count).map(|_| self.text(TEXT_BYTES_MAX));
            return texts.collect::<Result<_, _>>().map(Value::Texts);
        }
        let mut items = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        for _ in 0..count {
            items.push(number(&self.scalar(item_type)?));
        }
        Ok(Value::Numbers(NumberArray { item_type, items }))
    }

    fn tensor(&mut self) -> Result<Tensor, GgufError> {
        let name = self.text(TENSOR_NAME_BYTES_MAX)?;
        let name =
            String::from_utf8(name).map_err(|_| GgufError::Text { what: "a tensor's name" })?;
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(GgufError::TensorSize { name });
        }
        let mut dimensions = Vec::new();
        for _ in 0..rank {
            dimensions.push(self.u64()?);
        }
        let kind = self.u32()?;
        let kind =
            tensor_type(kind).ok_or_else(|| GgufError::TensorType { name: name.clone(), kind })?;
        let offset = self.u64()?;
        let elements = dimensions
            .iter()
            .try_fold(1_u64, |product, size| product.checked_mul(*size))
            .filter(|elements| (1..=i64::MAX as u64).contains(elements));
        let row = dimensions.first().copied().unwrap_or(0);
        let bytes = elements
            .filter(|_| row.is_multiple_of(kind.block_elements))
            .and_then(|elements| (elements / kind.block_elements).checked_mul(kind.block_bytes));
        match (elements, bytes) {
            (Some(elements), Some(bytes)) => {
                Ok(Tensor { name, dimensions, kind, elements, bytes, offset })
            }
            _ => Err(GgufError::TensorSize { name }),
        }
    }
}

fn bounded(what: &'static str, count: u64, max: u64) -> Result<(), GgufError> {
    if count > max { Err(GgufError::TooMany { what, count, max }) } else { Ok(()) }
}

fn read_error(error: io::Error, file_bytes: u64) -> GgufError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        GgufError::Truncated { file_bytes }
    } else {
        GgufError::Io(error.to_string())
    }
}

/// A number as the header's arrays keep it; exact up to 2⁵³, far above any size or count.
#[expect(clippy::cast_precision_loss, reason = "only sizes and small constants stand in arrays")]
fn number(value: &Value) -> f64 {
    match value {
        Value::Unsigned(n) => *n as f64,
        Value::Signed(n) => *n as f64,
        Value::Real(n) => *n,
        Value::Bool(yes) => f64::from(u8::from(*yes)),
        Value::Text(_) | Value::Texts(_) | Value::Numbers(_) => f64::NAN,
    }
}
