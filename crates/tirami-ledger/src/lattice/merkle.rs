//! Roots over ordered lists, with leaves and nodes told apart.

use tirami_core::Digest;

use super::state::CutHead;

const LEAF: &[u8] = b"tirami/merkle-leaf/1";
const NODE: &[u8] = b"tirami/merkle-node/1";
const EMPTY: &[u8] = b"tirami/merkle-empty/1";

/// The root of `leaves`. A level with an odd number of nodes passes its last one up unchanged,
/// so no list shares its root with another: a leaf is never read as a node.
pub(super) fn root(leaves: impl Iterator<Item = Vec<u8>>) -> Digest {
    let mut level: Vec<Digest> = leaves.map(|leaf| hash(LEAF, &[&leaf])).collect();
    if level.is_empty() {
        return Digest::of(EMPTY);
    }
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => hash(NODE, &[left.as_bytes(), right.as_bytes()]),
                single => single[0],
            })
            .collect();
    }
    level[0]
}

/// The root of a cut, whose heads stand in the order of their chains.
pub(super) fn cut_root(heads: impl Iterator<Item = CutHead>) -> Digest {
    root(heads.map(|head| {
        let mut leaf = Vec::with_capacity(80);
        leaf.extend_from_slice(head.slot.chain.as_bytes());
        leaf.extend_from_slice(&head.slot.seq.to_be_bytes());
        leaf.extend_from_slice(head.id.as_bytes());
        leaf.extend_from_slice(&head.balance.to_be_bytes());
        // Few chains lock anything; a leaf's length says whether it does.
        if !head.locked.is_zero() {
            leaf.extend_from_slice(&head.locked.micro().to_be_bytes());
        }
        leaf
    }))
}

fn hash(domain: &[u8], parts: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(domain);
    for part in parts {
        hasher.update(part);
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_differ_have_different_roots() {
        let lists: [&[&[u8]]; 6] =
            [&[], &[b""], &[b"a"], &[b"a", b"b"], &[b"b", b"a"], &[b"a", b"b", b"b"]];
        let roots: std::collections::BTreeSet<_> =
            lists.iter().map(|list| root(list.iter().map(|leaf| leaf.to_vec()))).collect();
        assert_eq!(roots.len(), lists.len());
    }
}
