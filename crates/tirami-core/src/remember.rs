//! Good signatures remembered on one thread, for a simulator that holds a thousand nodes.
//!
//! Whether a signature fits its key and message never changes, so a check that passed once need
//! not be computed again. A node checks each signature once anyway and remembers nothing; a
//! thousand nodes on one thread each check the same ones. Only checks that passed are remembered,
//! by a digest of all that was checked.

use core::any::Any;
use core::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use crate::{Digest, PublicKey, Signature};

/// Checks remembered at most; with more, all are forgotten.
pub const REMEMBERED_MAX: usize = 1 << 20;
/// Values of which there is one copy, at most; those that nobody holds make room.
const COPIES_MAX: usize = 1 << 16;

std::thread_local! {
    static GOOD: RefCell<Option<BTreeSet<[u8; 32]>>> = const { RefCell::new(None) };
    static COPIES: RefCell<BTreeMap<Digest, Weak<dyn Any + Send + Sync>>> =
        const { RefCell::new(BTreeMap::new()) };
}

/// The one copy on this thread of what has the digest `of` while signatures are remembered;
/// otherwise `value` by itself. Nobody can tell the difference but by the memory it takes.
pub fn one_copy<T: Any + Send + Sync>(of: Digest, value: T) -> Arc<T> {
    if !GOOD.with_borrow(Option::is_some) {
        return Arc::new(value);
    }
    COPIES.with_borrow_mut(|copies| {
        let known = copies.get(&of).and_then(Weak::upgrade);
        if let Some(known) = known.and_then(|known| known.downcast().ok()) {
            return known;
        }
        if copies.len() >= COPIES_MAX {
            copies.retain(|_, copy| copy.strong_count() > 0);
        }
        let new = Arc::new(value);
        if copies.len() < COPIES_MAX {
            let any: Arc<dyn Any + Send + Sync> = Arc::<T>::clone(&new);
            copies.insert(of, Arc::downgrade(&any));
        }
        new
    })
}

/// While it lives, this thread remembers the signatures it found good. Nothing does so by itself.
#[derive(Debug)]
pub struct RememberSignatures(());

impl RememberSignatures {
    /// Begins to remember, with nothing.
    #[must_use = "remembering ends when this is dropped"]
    pub fn on_this_thread() -> Self {
        GOOD.set(Some(BTreeSet::new()));
        Self(())
    }
}

impl Drop for RememberSignatures {
    fn drop(&mut self) {
        GOOD.set(None);
        COPIES.set(BTreeMap::new());
    }
}

/// The check of one signature, by a digest of everything it depends on.
pub(crate) struct Check([u8; 32]);

impl Check {
    /// None where nothing is remembered.
    pub(crate) fn of(key: &PublicKey, message: &[u8], signature: &Signature) -> Option<Self> {
        GOOD.with_borrow(Option::is_some).then(|| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(key.as_bytes()).update(signature.as_bytes()).update(message);
            Self(*hasher.finalize().as_bytes())
        })
    }

    pub(crate) fn passed_before(&self) -> bool {
        GOOD.with_borrow(|good| good.as_ref().is_some_and(|good| good.contains(&self.0)))
    }

    pub(crate) fn passed(self) {
        GOOD.with_borrow_mut(|good| {
            let Some(good) = good else { return };
            if good.len() >= REMEMBERED_MAX {
                good.clear();
            }
            good.insert(self.0);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyError, SecretKey};

    #[test]
    fn what_is_remembered_changes_no_answer() {
        let (key, other) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([2; 32]));
        let signature = key.sign(b"message");
        let bad = Err(KeyError::BadSignature);
        let all = || {
            assert_eq!(key.public().verify(b"message", &signature), Ok(()));
            assert_eq!(key.public().verify(b"massage", &signature), bad);
            assert_eq!(other.public().verify(b"message", &signature), bad);
            assert_eq!(key.public().verify(b"message", &other.sign(b"message")), bad);
        };
        let remembered = RememberSignatures::on_this_thread();
        all();
        all();
        let check = || Check::of(&key.public(), b"message", &signature);
        assert!(check().is_some_and(|check| check.passed_before()));
        let wrong = Check::of(&other.public(), b"message", &signature);
        assert!(wrong.is_some_and(|check| !check.passed_before()));
        drop(remembered);
        assert!(check().is_none());
        all();
    }

    #[test]
    fn what_is_the_same_is_there_once_while_signatures_are_remembered() {
        let copy = || one_copy(Digest::of(b"a"), "a".to_owned());
        assert!(!Arc::ptr_eq(&copy(), &copy()));
        let remembered = RememberSignatures::on_this_thread();
        let (one, other) = (copy(), copy());
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(*one_copy(Digest::of(b"b"), "b".to_owned()), "b");
        drop(remembered);
        assert!(!Arc::ptr_eq(&one, &copy()));
    }
}
