//! What the targets of single values share: what was read is the same when it was written.

use std::fmt::Debug;

use minicbor::{Decode, Encode};

pub(crate) fn again<T>(value: &T)
where
    T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug,
{
    let bytes = minicbor::to_vec(value).unwrap_or_default();
    assert_eq!(minicbor::decode::<T>(&bytes).ok().as_ref(), Some(value));
}
