//! Signed bytes: what a signature covers, and documents that are known to be signed.

use minicbor::{Decode, Encode};

use crate::{DocumentId, KeyError, MeshId, PublicKey, SecretKey, Signature};

/// The largest body of a signed document or entry, in bytes (MONEY §3).
pub const SIGNED_BYTES_MAX: usize = 16 * 1024;

/// A body that can be signed: CBOR with numbered fields, of a named kind.
///
/// Unknown fields are covered by the signature and ignored on reading.
pub trait Document: Encode<()> + for<'b> Decode<'b, ()> {
    /// The kind in the signed bytes, for example `order`. It never changes.
    const KIND: &'static str;
}

/// Why bytes are not a signed document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// The body is larger than [`SIGNED_BYTES_MAX`].
    #[error("a signed body has at most {SIGNED_BYTES_MAX} bytes, this one has {bytes}")]
    TooLarge {
        /// Bytes of the refused body.
        bytes: usize,
    },
    /// The body is not the CBOR of its kind.
    #[error("the bytes are not a well-formed {kind}")]
    Malformed {
        /// The kind that was expected.
        kind: &'static str,
    },
    /// The key or the signature is wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A document together with the exact bytes that were signed.
///
/// A value exists only if the signature was made or verified here, or if it was read back from
/// the node's own checksummed store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    id: DocumentId,
    body: T,
    bytes: Vec<u8>,
    signature: Signature,
}

/// That a key's signature over one document was verified. It cannot be made up: only verifying
/// makes one, and it counts for nothing but the same key, bytes and signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    key: PublicKey,
    id: DocumentId,
    signature: Signature,
}

impl Checked {
    /// Verifies as [`Signed::verify`] does, for whoever needs the document later.
    ///
    /// # Errors
    ///
    /// The first of [`SignedError`]'s variants that applies.
    pub fn verify<T: Document>(
        mesh: MeshId,
        key: PublicKey,
        bytes: Vec<u8>,
        signature: Signature,
    ) -> Result<Self, SignedError> {
        let id = Signed::<T>::verify(mesh, key, bytes, signature)?.id();
        Ok(Self { key, id, signature })
    }
}

impl<T: Document> Signed<T> {
    /// Signs `body` for `mesh`.
    ///
    /// # Errors
    ///
    /// [`SignedError::TooLarge`] when the body's bytes exceed [`SIGNED_BYTES_MAX`].
    pub fn sign(mesh: MeshId, key: &SecretKey, body: T) -> Result<Self, SignedError> {
        let bytes = encode_body(&body)?;
        let message = signing_message(T::KIND, mesh, &bytes);
        let signature = key.sign(&message);
        Ok(Self { id: id_of(&message), body, bytes, signature })
    }

    /// Checks the size, the form and the signature of bytes from a stranger.
    ///
    /// # Errors
    ///
    /// The first of [`SignedError`]'s variants that applies.
    pub fn verify(
        mesh: MeshId,
        key: PublicKey,
        bytes: Vec<u8>,
        signature: Signature,
    ) -> Result<Self, SignedError> {
        Self::verify_unless(None, mesh, key, bytes, signature)
    }

    /// As [`Signed::verify`]; a signature that `checked` stands for is not computed again.
    ///
    /// # Errors
    ///
    /// The first of [`SignedError`]'s variants that applies.
    pub fn verify_unless(
        checked: Option<Checked>,
        mesh: MeshId,
        key: PublicKey,
        bytes: Vec<u8>,
        signature: Signature,
    ) -> Result<Self, SignedError> {
        let body = decode_body(&bytes)?;
        let message = signing_message(T::KIND, mesh, &bytes);
        let id = id_of(&message);
        if checked != Some(Checked { key, id, signature }) {
            key.verify(&message, &signature)?;
        }
        Ok(Self { id, body, bytes, signature })
    }

    /// Takes bytes back from the node's own store, whose checksum stands for the signature.
    ///
    /// # Errors
    ///
    /// [`SignedError::Malformed`] or [`SignedError::TooLarge`] when the store holds something else.
    pub fn from_store(
        mesh: MeshId,
        bytes: Vec<u8>,
        signature: Signature,
    ) -> Result<Self, SignedError> {
        let body = decode_body(&bytes)?;
        let id = id_of(&signing_message(T::KIND, mesh, &bytes));
        Ok(Self { id, body, bytes, signature })
    }
}

impl<T> Signed<T> {
    /// blake3 of the signed bytes, without the signature.
    pub const fn id(&self) -> DocumentId {
        self.id
    }

    /// What was signed.
    pub const fn body(&self) -> &T {
        &self.body
    }

    /// The body's bytes, verbatim.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The signature.
    pub const fn signature(&self) -> Signature {
        self.signature
    }
}

/// The bytes a signature covers: `"tirami/<kind>/1" ‖ mesh id ‖ body` (MONEY §1).
pub fn signing_message(kind: &str, mesh: MeshId, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(9 + kind.len() + 32 + body.len());
    message.extend_from_slice(b"tirami/");
    message.extend_from_slice(kind.as_bytes());
    message.extend_from_slice(b"/1");
    message.extend_from_slice(mesh.as_bytes());
    message.extend_from_slice(body);
    message
}

/// Reads a body without checking a signature, to learn whose key has to verify it.
///
/// # Errors
///
/// [`SignedError::TooLarge`] or [`SignedError::Malformed`].
pub fn decode_body<T: Document>(bytes: &[u8]) -> Result<T, SignedError> {
    if bytes.len() > SIGNED_BYTES_MAX {
        return Err(SignedError::TooLarge { bytes: bytes.len() });
    }
    let malformed = SignedError::Malformed { kind: T::KIND };
    let mut decoder = minicbor::Decoder::new(bytes);
    let body = decoder.decode().map_err(|_| malformed.clone())?;
    // Trailing bytes would be signed and unread: two readers could see two documents.
    if decoder.position() == bytes.len() { Ok(body) } else { Err(malformed) }
}

fn encode_body<T: Document>(body: &T) -> Result<Vec<u8>, SignedError> {
    let bytes = minicbor::to_vec(body).map_err(|_| SignedError::Malformed { kind: T::KIND })?;
    if bytes.len() > SIGNED_BYTES_MAX {
        return Err(SignedError::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}

fn id_of(message: &[u8]) -> DocumentId {
    DocumentId::from_bytes(*blake3::hash(message).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
    #[cbor(map)]
    struct Note {
        #[n(0)]
        text: String,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
    #[cbor(map)]
    struct LongerNote {
        #[n(0)]
        text: String,
        #[n(1)]
        colour: u8,
    }

    impl Document for Note {
        const KIND: &'static str = "note";
    }
    impl Document for LongerNote {
        const KIND: &'static str = "note";
    }

    const MESH: MeshId = MeshId::from_bytes([3; 32]);

    fn note() -> Signed<Note> {
        let key = SecretKey::from_seed([1; 32]);
        Signed::sign(MESH, &key, Note { text: "hello".into() }).unwrap()
    }

    #[test]
    fn a_signed_note_is_verified_from_its_bytes() {
        let note = note();
        let key = SecretKey::from_seed([1; 32]).public();
        let read = Signed::verify(MESH, key, note.bytes().to_vec(), note.signature());
        assert_eq!(read, Ok(note));
    }

    #[test]
    fn another_mesh_key_or_byte_is_refused() {
        let note = note();
        let key = SecretKey::from_seed([1; 32]).public();
        let bad = Err(SignedError::Key(KeyError::BadSignature));
        let mesh = MeshId::from_bytes([4; 32]);
        assert_eq!(Signed::<Note>::verify(mesh, key, note.bytes().to_vec(), note.signature()), bad);
        let mut bytes = note.bytes().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(Signed::<Note>::verify(MESH, key, bytes, note.signature()), bad);
    }

    #[test]
    fn what_was_checked_counts_for_the_same_key_bytes_and_signature_only() {
        let (note, key) = (note(), SecretKey::from_seed([1; 32]));
        let other = Signed::sign(MESH, &key, Note { text: "bye".into() }).unwrap();
        let (bytes, signature) = (note.bytes().to_vec(), note.signature());
        let checked = Checked::verify::<Note>(MESH, key.public(), bytes.clone(), signature);
        let again = |key: PublicKey, bytes: &[u8], signature| {
            let checked = checked.clone().ok();
            Signed::<Note>::verify_unless(checked, MESH, key, bytes.to_vec(), signature)
        };
        assert_eq!(again(key.public(), &bytes, signature), Ok(note));
        let stranger = SecretKey::from_seed([2; 32]).public();
        let bad = Err(SignedError::Key(KeyError::BadSignature));
        assert_eq!(again(stranger, &bytes, signature), bad);
        assert_eq!(again(key.public(), other.bytes(), signature), bad);
        assert_eq!(again(key.public(), &bytes, other.signature()), bad);
        let forged = Checked::verify::<Note>(MESH, key.public(), bytes, other.signature());
        assert_eq!(forged, Err(SignedError::Key(KeyError::BadSignature)));
    }

    #[test]
    fn unknown_fields_are_signed_and_ignored() {
        let key = SecretKey::from_seed([1; 32]);
        let longer = Signed::sign(MESH, &key, LongerNote { text: "hi".into(), colour: 3 }).unwrap();
        let read =
            Signed::<Note>::verify(MESH, key.public(), longer.bytes().to_vec(), longer.signature())
                .unwrap();
        assert_eq!(read.body().text, "hi");
        assert_eq!(read.id(), longer.id());
    }

    #[test]
    fn trailing_bytes_and_oversized_bodies_are_refused() {
        let mut bytes = note().bytes().to_vec();
        bytes.push(0);
        let malformed = SignedError::Malformed { kind: "note" };
        assert_eq!(decode_body::<Note>(&bytes), Err(malformed));
        let large = vec![0; SIGNED_BYTES_MAX + 1];
        assert!(matches!(decode_body::<Note>(&large), Err(SignedError::TooLarge { .. })));
    }
}
