//! An agent's key on its way to another node: encrypted under a passphrase, and nothing else.
//!
//! Argon2id (64 MiB, 3 passes) makes guessing passphrases expensive; XChaCha20-Poly1305 makes a
//! changed bundle useless. The agent's DID and name are authenticated with the key.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use data_encoding::HEXLOWER;
use tirami_core::SecretKey;
use tirami_sdk::types::{Bundle, Cryption};
use zeroize::Zeroizing;

use crate::keys;

/// Characters a passphrase has at least.
pub const PASSPHRASE_MIN_CHARS: usize = 8;
/// Bytes a passphrase has at most.
pub const PASSPHRASE_MAX_BYTES: usize = 1_024;
/// What bundles say they are.
const FORMAT: &str = "tirami/agent-bundle/1";
const ALGORITHM: &str = "argon2id+xchacha20poly1305";
/// Cost of a passphrase in new bundles.
const MEMORY_KIB: u32 = 64 * 1_024;
const PASSES: u32 = 3;
const LANES: u32 = 1;
/// A bundle from a stranger may ask for this much at most.
const MEMORY_KIB_MAX: u32 = 256 * 1_024;
const PASSES_MAX: u32 = 10;
const LANES_MAX: u32 = 4;

/// Why a bundle was not made or not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The passphrase is too short or too long.
    #[error(
        "the passphrase must have at least {PASSPHRASE_MIN_CHARS} characters and at most \
         {PASSPHRASE_MAX_BYTES} bytes"
    )]
    Passphrase,
    /// The bundle asks for a computation outside what is allowed.
    #[error("the bundle's {field} must be {range}")]
    Parameters {
        /// The parameter.
        field: &'static str,
        /// The allowed range in words.
        range: &'static str,
    },
    /// The passphrase is wrong or the bundle is damaged; which of the two cannot be told.
    #[error("the passphrase is wrong or the bundle is damaged")]
    Unusable,
    /// The system gives no randomness.
    #[error("the system gave no random bytes; try again when it does")]
    Random,
}

/// Encrypts an agent's key. Takes a second and 64 MiB.
///
/// # Errors
///
/// [`BundleError::Passphrase`] or [`BundleError::Random`].
pub fn seal(key: &SecretKey, name: &str, passphrase: &str) -> Result<Bundle, BundleError> {
    let salt: [u8; 16] = keys::random().map_err(|_| BundleError::Random)?;
    let nonce: [u8; 24] = keys::random().map_err(|_| BundleError::Random)?;
    let mut bundle = Bundle {
        format: FORMAT.to_owned(),
        did: key.public().agent().did(),
        name: name.to_owned(),
        cryption: Cryption {
            algorithm: ALGORITHM.to_owned(),
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            lanes: LANES,
            salt: HEXLOWER.encode(&salt),
            nonce: HEXLOWER.encode(&nonce),
        },
        ciphertext: String::new(),
    };
    let seed = Zeroizing::new(key.seed());
    let associated = associated(&bundle);
    let payload = Payload { msg: seed.as_slice(), aad: &associated };
    let ciphertext = cipher(&bundle.cryption, &salt, passphrase)?
        .encrypt(&XNonce::from(nonce), payload)
        .map_err(|_| BundleError::Unusable)?;
    bundle.ciphertext = HEXLOWER.encode(&ciphertext);
    Ok(bundle)
}

/// Decrypts a bundle. Takes as long as its maker chose, within bounds.
///
/// # Errors
///
/// The first of [`BundleError`]'s variants that applies.
pub fn open(bundle: &Bundle, passphrase: &str) -> Result<SecretKey, BundleError> {
    let cryption = &bundle.cryption;
    let outside = |field, range| Err(BundleError::Parameters { field, range });
    if bundle.format != FORMAT {
        return outside("format", FORMAT);
    }
    if cryption.algorithm != ALGORITHM {
        return outside("algorithm", ALGORITHM);
    }
    if !(8 * 1_024..=MEMORY_KIB_MAX).contains(&cryption.memory_kib) {
        return outside("memory_kib", "from 8192 to 262144");
    }
    if !(1..=PASSES_MAX).contains(&cryption.passes) {
        return outside("passes", "from 1 to 10");
    }
    if !(1..=LANES_MAX).contains(&cryption.lanes) {
        return outside("lanes", "from 1 to 4");
    }
    let salt: [u8; 16] = array(&cryption.salt)?;
    let nonce: [u8; 24] = array(&cryption.nonce)?;
    let ciphertext: [u8; 48] = array(&bundle.ciphertext)?;
    let payload = Payload { msg: &ciphertext, aad: &associated(bundle) };
    let seed = cipher(cryption, &salt, passphrase)?
        .decrypt(&XNonce::from(nonce), payload)
        .map(Zeroizing::new)
        .map_err(|_| BundleError::Unusable)?;
    let seed: [u8; 32] = seed.as_slice().try_into().map_err(|_| BundleError::Unusable)?;
    let key = SecretKey::from_seed(seed);
    if key.public().agent().did() == bundle.did { Ok(key) } else { Err(BundleError::Unusable) }
}

fn cipher(
    cryption: &Cryption,
    salt: &[u8; 16],
    passphrase: &str,
) -> Result<XChaCha20Poly1305, BundleError> {
    let chars = passphrase.chars().count();
    if chars < PASSPHRASE_MIN_CHARS || passphrase.len() > PASSPHRASE_MAX_BYTES {
        return Err(BundleError::Passphrase);
    }
    let params =
        Params::new(cryption.memory_kib, cryption.passes, cryption.lanes, Some(32)).map_err(
            |_| BundleError::Parameters { field: "parameters", range: "what Argon2id allows" },
        )?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, key.as_mut_slice())
        .map_err(|_| BundleError::Unusable)?;
    Ok(XChaCha20Poly1305::new(&(*key).into()))
}

/// What the key is bound to: a bundle with another name or DID on it does not open.
fn associated(bundle: &Bundle) -> Vec<u8> {
    [&bundle.format, &bundle.did, &bundle.name].map(String::as_str).join("\n").into_bytes()
}

fn array<const N: usize>(text: &str) -> Result<[u8; N], BundleError> {
    if text.len() != N * 2 {
        return Err(BundleError::Unusable);
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(BundleError::Unusable);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_opens_with_its_passphrase_only_and_only_unchanged() {
        let key = SecretKey::from_seed([7; 32]);
        let bundle = seal(&key, "ann", "correct horse").unwrap();
        assert_eq!(open(&bundle, "correct horse").unwrap().public(), key.public());
        assert_eq!(open(&bundle, "wrong horse").unwrap_err(), BundleError::Unusable);
        type Change = fn(&mut Bundle);
        let changes: [Change; 5] = [
            |bundle| bundle.name = "bob".into(),
            |bundle| bundle.did = "did:tirami:00".into(),
            |bundle| bundle.ciphertext.replace_range(0..1, "x"),
            |bundle| bundle.ciphertext.truncate(10),
            |bundle| bundle.cryption.salt = "00".repeat(16),
        ];
        for change in changes {
            let mut changed = bundle.clone();
            change(&mut changed);
            assert_eq!(open(&changed, "correct horse").unwrap_err(), BundleError::Unusable);
        }
    }

    #[test]
    fn a_bundle_cannot_ask_for_all_memory_or_for_hours() {
        let key = SecretKey::from_seed([7; 32]);
        let bundle = seal(&key, "ann", "correct horse").unwrap();
        type Change = fn(&mut Cryption);
        let changes: [Change; 6] = [
            |cryption| cryption.memory_kib = u32::MAX,
            |cryption| cryption.memory_kib = 0,
            |cryption| cryption.passes = u32::MAX,
            |cryption| cryption.passes = 0,
            |cryption| cryption.lanes = 255,
            |cryption| cryption.algorithm = "none".into(),
        ];
        for change in changes {
            let mut changed = bundle.clone();
            change(&mut changed.cryption);
            let error = open(&changed, "correct horse").unwrap_err();
            assert!(matches!(error, BundleError::Parameters { .. }), "{error}");
        }
    }

    #[test]
    fn short_passphrases_are_refused() {
        let key = SecretKey::from_seed([7; 32]);
        assert_eq!(seal(&key, "ann", "1234567").unwrap_err(), BundleError::Passphrase);
    }
}
