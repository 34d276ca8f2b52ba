//! Reading of texts, byte strings and lists whose length is checked before memory is taken.
//!
//! The functions are named in `#[cbor(decode_with = "…")]`. Byte strings have to be written with
//! [`write_bytes`] and its relatives, or they would become lists of numbers.

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encoder};

/// A text of at most `MAX` bytes.
pub(crate) fn text<C, const MAX: usize>(
    d: &mut Decoder<'_>,
    _: &mut C,
) -> Result<String, DecodeError> {
    let text = d.str()?;
    if text.len() > MAX { Err(too_long()) } else { Ok(text.to_owned()) }
}

/// A text of at most `MAX` bytes, or nothing.
pub(crate) fn some_text<C, const MAX: usize>(
    d: &mut Decoder<'_>,
    c: &mut C,
) -> Result<Option<String>, DecodeError> {
    if absent(d)? { Ok(None) } else { text::<C, MAX>(d, c).map(Some) }
}

/// A byte string of at most `MAX` bytes.
pub(crate) fn bytes<C, const MAX: usize>(
    d: &mut Decoder<'_>,
    _: &mut C,
) -> Result<Vec<u8>, DecodeError> {
    let bytes = d.bytes()?;
    if bytes.len() > MAX { Err(too_long()) } else { Ok(bytes.to_vec()) }
}

/// A byte string of at most `MAX` bytes, or nothing.
pub(crate) fn some_bytes<C, const MAX: usize>(
    d: &mut Decoder<'_>,
    c: &mut C,
) -> Result<Option<Vec<u8>>, DecodeError> {
    if absent(d)? { Ok(None) } else { bytes::<C, MAX>(d, c).map(Some) }
}

/// A list of at most `MAX` items.
pub(crate) fn list<'b, C, T: Decode<'b, C>, const MAX: u64>(
    d: &mut Decoder<'b>,
    c: &mut C,
) -> Result<Vec<T>, DecodeError> {
    let count = length(d, MAX)?;
    (0..count).map(|_| T::decode(d, c)).collect()
}

/// A list of at most `COUNT` texts of at most `MAX` bytes.
pub(crate) fn texts<C, const COUNT: u64, const MAX: usize>(
    d: &mut Decoder<'_>,
    c: &mut C,
) -> Result<Vec<String>, DecodeError> {
    let count = length(d, COUNT)?;
    (0..count).map(|_| text::<C, MAX>(d, c)).collect()
}

/// A list of at most `COUNT` byte strings of at most `MAX` bytes.
pub(crate) fn byte_strings<C, const COUNT: u64, const MAX: usize>(
    d: &mut Decoder<'_>,
    c: &mut C,
) -> Result<Vec<Vec<u8>>, DecodeError> {
    let count = length(d, COUNT)?;
    (0..count).map(|_| bytes::<C, MAX>(d, c)).collect()
}

/// Writes a byte string.
pub(crate) fn write_bytes<C, W: Write>(
    bytes: &[u8],
    e: &mut Encoder<W>,
    _: &mut C,
) -> Result<(), EncodeError<W::Error>> {
    e.bytes(bytes)?;
    Ok(())
}

/// Writes a byte string, or nothing.
pub(crate) fn write_some_bytes<C, W: Write>(
    bytes: &Option<Vec<u8>>,
    e: &mut Encoder<W>,
    _: &mut C,
) -> Result<(), EncodeError<W::Error>> {
    match bytes {
        Some(bytes) => e.bytes(bytes)?,
        None => e.null()?,
    };
    Ok(())
}

/// 32 bytes, or nothing.
pub(crate) fn some_key<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Option<[u8; 32]>, DecodeError> {
    if absent(d)? {
        return Ok(None);
    }
    let bytes = d.bytes()?.try_into();
    bytes.map(Some).map_err(|_| DecodeError::message("not 32 bytes"))
}

/// Writes 32 bytes, or nothing.
pub(crate) fn write_some_key<C, W: Write>(
    key: &Option<[u8; 32]>,
    e: &mut Encoder<W>,
    _: &mut C,
) -> Result<(), EncodeError<W::Error>> {
    match key {
        Some(key) => e.bytes(key)?,
        None => e.null()?,
    };
    Ok(())
}

/// Writes a list of byte strings.
pub(crate) fn write_byte_strings<C, W: Write>(
    list: &[Vec<u8>],
    e: &mut Encoder<W>,
    _: &mut C,
) -> Result<(), EncodeError<W::Error>> {
    e.array(list.len() as u64)?;
    list.iter().try_for_each(|bytes| e.bytes(bytes).map(|_| ()))
}

/// What stands for a field that was left out.
pub(crate) const fn none<T>() -> Option<Option<T>> {
    Some(None)
}

/// Whether a field is to be left out.
pub(crate) const fn is_none<T>(value: &Option<T>) -> bool {
    value.is_none()
}

fn length(d: &mut Decoder<'_>, max: u64) -> Result<u64, DecodeError> {
    match d.array()? {
        Some(count) if count <= max => Ok(count),
        Some(_) => Err(too_long()),
        None => Err(DecodeError::message("a list without a length")),
    }
}

fn absent(d: &mut Decoder<'_>) -> Result<bool, DecodeError> {
    let null = d.datatype()? == minicbor::data::Type::Null;
    if null {
        d.null()?;
    }
    Ok(null)
}

fn too_long() -> DecodeError {
    DecodeError::message("longer than this protocol allows")
}
