"""Merkle trees as in RFC 9162 section 2.1, over SHA-256: roots, inclusion and consistency proofs, subtrees.

Pure functions on hashes; what a leaf means and who signed a root is others' business.
Subtrees are those of the Merkle tree certificates draft (draft-ietf-plants-merkle-tree-certs, section 4): a
range ``[start, end)`` that begins at a multiple of the power of two that covers it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.errors import InvalidInputError, ProofInvalidError

HASH_BYTES: Final = 32

MAX_TREE_SIZE: Final = 2**63 - 1
MAX_BATCH_LEAVES: Final = 256
"""Orders per batch."""

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root of no leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTree:
    """A small tree with the inclusion path of every leaf, in the order of the leaves."""

    root: bytes
    paths: tuple[tuple[bytes, ...], ...]


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of one leaf's data: ``sha256(0x00 || data)``."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: ``sha256(0x01 || left || right)``."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_hash(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the root over these leaf hashes; `EMPTY_ROOT` for none."""
    if not leaf_hashes:
        return EMPTY_ROOT
    level = list(leaf_hashes)
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def batch_paths(leaves: Sequence[bytes]) -> BatchTree:
    """Return the root over the leaves' *data* and each one's path. O(n log n).

    Raises:
        InvalidInputError: There are no leaves, or more than 256.
    """
    if not 1 <= len(leaves) <= MAX_BATCH_LEAVES:
        raise InvalidInputError(f"a batch has 1 to {MAX_BATCH_LEAVES} leaves, not {len(leaves)}")
    level = [leaf_hash(leaf) for leaf in leaves]
    paths: list[list[bytes]] = [[] for _ in leaves]
    height = 0
    while len(level) > 1:
        for index, path in enumerate(paths):
            sibling = (index >> height) ^ 1
            # The last node of an odd level moves up unhashed and meets no sibling there.
            if sibling < len(level):
                path.append(level[sibling])
        level = _parents(level)
        height += 1
    return BatchTree(root=level[0], paths=tuple(tuple(path) for path in paths))


def inclusion_path(leaf_hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the proof that leaf `index` is in the tree of these leaves (RFC 9162 section 2.1.3.1).

    Raises:
        InvalidInputError: There is no such leaf.
    """
    if not 0 <= index < len(leaf_hashes):
        raise InvalidInputError(f"no leaf {index} in a tree of {len(leaf_hashes)}")
    path: list[bytes] = []
    level = list(leaf_hashes)
    while len(level) > 1:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        level = _parents(level)
        index >>= 1
    return tuple(path)


def verify_inclusion(*, leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Return if, and only if, the path leads from the leaf *hash* at `index` to the root of a tree of `size`.

    RFC 9162 section 2.1.3.2.

    Raises:
        ProofInvalidError: It does not, or a number or a hash is out of range.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise ProofInvalidError(f"no leaf {index} in a tree of {size}")
    _check_hashes(leaf, root, *path)
    position, last, value = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise ProofInvalidError("inclusion proof is too long")
        if position & 1 or position == last:
            value = node_hash(sibling, value)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ProofInvalidError("inclusion proof is too short")
    if value != root:
        raise ProofInvalidError("inclusion proof does not lead to the root")


def consistency_proof(leaf_hashes: Sequence[bytes], first_size: int) -> tuple[bytes, ...]:
    """Return the proof that the tree of the first `first_size` leaves is a prefix (RFC 9162 section 2.1.4.1).

    Raises:
        InvalidInputError: `first_size` is not between 1 and the number of leaves.
    """
    if not 1 <= first_size <= len(leaf_hashes):
        raise InvalidInputError(f"no first tree of {first_size} within {len(leaf_hashes)} leaves")
    return subtree_consistency_proof(leaf_hashes, 0, first_size)


def verify_consistency(
    *, first_size: int, second_size: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes
) -> None:
    """Return if, and only if, the second tree is the first one with leaves appended.

    RFC 9162 section 2.1.4.2. An empty first tree is a prefix of everything, which proves nothing: refused.

    Raises:
        ProofInvalidError: It is not, or a number or a hash is out of range.
    """
    if first_size == 0:
        raise ProofInvalidError("consistency with the empty tree proves nothing")
    verify_subtree_consistency(
        start=0, end=first_size, size=second_size, proof=proof, subtree_root=first_root, root=second_root
    )


def is_subtree(start: int, end: int) -> bool:
    """Whether ``[start, end)`` is a subtree: not empty, and aligned to the power of two that covers it."""
    return 0 <= start < end <= MAX_TREE_SIZE and start % (1 << (end - start - 1).bit_length()) == 0


def verify_subtree_inclusion(
    *, leaf: bytes, index: int, start: int, end: int, path: Sequence[bytes], root: bytes
) -> None:
    """Return if, and only if, the leaf hash is at `index` (of the whole log) in the subtree ``[start, end)``.

    Raises:
        ProofInvalidError: It is not, or the range is not a subtree.
    """
    if not is_subtree(start, end):
        raise ProofInvalidError(f"[{start}, {end}) is not a subtree")
    verify_inclusion(leaf=leaf, index=index - start, size=end - start, path=path, root=root)


def subtree_consistency_proof(leaf_hashes: Sequence[bytes], start: int, end: int) -> tuple[bytes, ...]:
    """Return the proof that the subtree ``[start, end)`` is in the tree of these leaves.

    Raises:
        InvalidInputError: The range is not a subtree within the leaves.
    """
    if not is_subtree(start, end) or end > len(leaf_hashes):
        raise InvalidInputError(f"[{start}, {end}) is not a subtree of {len(leaf_hashes)} leaves")
    return tuple(_subproof(leaf_hashes, start, end, known=True))


def verify_subtree_consistency(  # noqa: C901, PLR0912 - one loop, as its sources write it
    *, start: int, end: int, size: int, proof: Sequence[bytes], subtree_root: bytes, root: bytes
) -> None:
    """Return if, and only if, the subtree ``[start, end)`` with its root is part of the tree of `size`.

    With ``start == 0`` this is RFC 9162 section 2.1.4.2; the general form is section 4.4.3 of the draft. An
    empty range, with `EMPTY_ROOT` and an empty proof, is part of every tree and says nothing about `root`.

    Raises:
        ProofInvalidError: It is not, or the range is not a subtree of the tree.
    """
    if 0 <= start == end <= size and subtree_root == EMPTY_ROOT and not proof:
        return
    if not is_subtree(start, end) or not end <= size <= MAX_TREE_SIZE:
        raise ProofInvalidError(f"[{start}, {end}) is not a subtree of a tree of {size}")
    if (start, end) == (0, size):
        if proof or subtree_root != root:
            raise ProofInvalidError("the same tree has two roots, or a proof that is not empty")
        return
    _check_hashes(subtree_root, root, *proof)
    # Positions, one level at a time, of the subtree's first and last node and of the tree's last node.
    first, last, tree_last = start, end - 1, size - 1
    while first != last and (last & 1 or last == tree_last):
        first, last, tree_last = first >> 1, last >> 1, tree_last >> 1
    nodes = iter(proof)
    if first == last:
        inner = outer = subtree_root
    else:
        seed = next(nodes, None)
        if seed is None:
            raise ProofInvalidError("consistency proof is empty")
        inner = outer = seed
    for node in nodes:
        if tree_last == 0:
            raise ProofInvalidError("consistency proof is too long")
        if last & 1 or last == tree_last:
            if first < last:
                inner = node_hash(node, inner)
            outer = node_hash(node, outer)
            while not last & 1 and last:
                first, last, tree_last = first >> 1, last >> 1, tree_last >> 1
        else:
            outer = node_hash(outer, node)
        first, last, tree_last = first >> 1, last >> 1, tree_last >> 1
    if tree_last != 0:
        raise ProofInvalidError("consistency proof is too short")
    if inner != subtree_root or outer != root:
        raise ProofInvalidError("consistency proof does not lead to both roots")


def split_hashes(joined: bytes) -> tuple[bytes, ...]:
    """Return the hashes that were stored behind each other, as the path of a proof is."""
    return tuple(joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES))


def _parents(level: Sequence[bytes]) -> list[bytes]:
    parents = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    if len(level) & 1:
        parents.append(level[-1])
    return parents


def _subproof(leaves: Sequence[bytes], start: int, end: int, *, known: bool) -> list[bytes]:
    """SUBPROOF of the RFC, for a range: `known` while the verifier already holds the range's own root."""
    size = len(leaves)
    if (start, end) == (0, size):
        return [] if known else [root_hash(leaves)]
    split = 1 << (size - 1).bit_length() - 1
    if end <= split:
        return [*_subproof(leaves[:split], start, end, known=known), root_hash(leaves[split:])]
    if start >= split:
        return [
            *_subproof(leaves[split:], start - split, end - split, known=known),
            root_hash(leaves[:split]),
        ]
    # A subtree that crosses the split begins at 0: its left half is the whole left tree.
    return [*_subproof(leaves[split:], 0, end - split, known=False), root_hash(leaves[:split])]


def _check_hashes(*hashes: bytes) -> None:
    if any(len(value) != HASH_BYTES for value in hashes):
        raise ProofInvalidError(f"a hash in the proof does not have {HASH_BYTES} bytes")
