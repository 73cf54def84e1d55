"""Merkle proofs against the plain recursive definition, and against whatever else a forger could send."""

import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared import merkle
from shared.errors import InvalidInputError, ProofInvalidError

leaf_lists = st.lists(st.binary(max_size=8), min_size=1, max_size=70)


def definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162 section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + definition(leaves[:k]) + definition(leaves[k:])).digest()


def hashes(leaves: list[bytes]) -> list[bytes]:
    return [merkle.leaf_hash(leaf) for leaf in leaves]


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_root_is_the_one_of_the_definition(leaves):
    assert merkle.root_hash(hashes(leaves)) == definition(leaves)


@given(leaf_lists)
def test_every_path_of_a_batch_leads_to_the_root(leaves):
    tree = merkle.batch_paths(leaves)
    assert tree.root == definition(leaves)
    for index, leaf in enumerate(leaves):
        assert tree.paths[index] == merkle.inclusion_path(hashes(leaves), index)
        merkle.verify_inclusion(
            leaf=merkle.leaf_hash(leaf), index=index, size=len(leaves), path=tree.paths[index], root=tree.root
        )


@given(leaf_lists, st.data())
def test_inclusion_proof_serves_one_leaf_at_one_place_only(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = list(merkle.inclusion_path(hashes(leaves), index))
    claim = {
        "leaf": merkle.leaf_hash(leaves[index]),
        "index": index,
        "size": len(leaves),
        "path": path,
        "root": definition(leaves),
    }
    other = data.draw(st.binary(min_size=32, max_size=32))
    assume(other not in (*path, claim["leaf"], claim["root"]))
    wrong = [
        {"leaf": other},
        {"root": other},
        {"path": [*path, other]},
        {"path": [other, *path]},
        {"index": len(leaves)},
        {"index": -1},
        {"leaf": claim["leaf"][:-1]},
    ]
    wrong += [{"path": [*path[:at], other, *path[at + 1 :]]} for at in range(len(path))]
    wrong += [{"path": path[:-1]}, {"path": path[1:]}] if path else []
    for changes in wrong:
        with pytest.raises(ProofInvalidError):
            merkle.verify_inclusion(**{**claim, **changes})


@given(leaf_lists, st.data())
def test_consistency_holds_for_every_prefix_and_for_no_other_root(leaves, data):
    first = data.draw(st.integers(1, len(leaves)))
    proof = list(merkle.consistency_proof(hashes(leaves), first))
    claim = {
        "first_size": first,
        "second_size": len(leaves),
        "proof": proof,
        "first_root": definition(leaves[:first]),
        "second_root": definition(leaves),
    }
    merkle.verify_consistency(**claim)
    other = bytes(32)
    wrong = [{"first_root": other}, {"second_root": other}, {"proof": [*proof, other]}, {"first_size": 0}]
    wrong += [{"proof": [*proof[:at], other, *proof[at + 1 :]]} for at in range(len(proof))]
    wrong += [{"proof": proof[:-1]}, {"proof": proof[1:]}] if proof else []
    for changes in wrong:
        with pytest.raises(ProofInvalidError):
            merkle.verify_consistency(**{**claim, **changes})


@given(st.integers(1, 40), st.data())
def test_subtree_is_consistent_with_its_tree_and_holds_its_leaves(size, data):
    leaves = hashes([bytes([n]) for n in range(size)])
    ranges = [(a, b) for a in range(size) for b in range(a + 1, size + 1) if merkle.is_subtree(a, b)]
    start, end = data.draw(st.sampled_from(ranges))
    root, subtree_root = merkle.root_hash(leaves), merkle.root_hash(leaves[start:end])
    proof = merkle.subtree_consistency_proof(leaves, start, end)
    claim = {"start": start, "end": end, "size": size, "proof": proof}
    merkle.verify_subtree_consistency(**claim, subtree_root=subtree_root, root=root)
    for roots in ((bytes(32), root), (subtree_root, bytes(32))):
        with pytest.raises(ProofInvalidError):
            merkle.verify_subtree_consistency(**claim, subtree_root=roots[0], root=roots[1])
    index = data.draw(st.integers(start, end - 1))
    merkle.verify_subtree_inclusion(
        leaf=leaves[index],
        index=index,
        start=start,
        end=end,
        path=merkle.inclusion_path(leaves[start:end], index - start),
        root=subtree_root,
    )


def test_proof_that_ends_below_or_goes_above_the_root_of_its_size_is_refused():
    a, b, c, d = hashes([b"a", b"b", b"c", b"d"])
    ab, abcd = merkle.node_hash(a, b), merkle.root_hash([a, b, c, d])
    with pytest.raises(ProofInvalidError, match="too short"):
        merkle.verify_inclusion(leaf=a, index=0, size=4, path=[b], root=ab)
    with pytest.raises(ProofInvalidError, match="too long"):
        merkle.verify_inclusion(leaf=a, index=0, size=2, path=[b, merkle.node_hash(c, d)], root=abcd)
    with pytest.raises(ProofInvalidError, match="too short"):
        merkle.verify_consistency(first_size=2, second_size=5, proof=[], first_root=ab, second_root=ab)
    with pytest.raises(ProofInvalidError, match="too long"):
        merkle.verify_consistency(
            first_size=2, second_size=3, proof=[c, d], first_root=ab, second_root=merkle.root_hash([ab, c, d])
        )


def test_what_cannot_be_proved_is_refused():
    leaves = hashes([b"a", b"b"])
    for call in (
        lambda: merkle.inclusion_path(leaves, 2),
        lambda: merkle.consistency_proof(leaves, 0),
        lambda: merkle.consistency_proof(leaves, 3),
        lambda: merkle.subtree_consistency_proof(leaves, 1, 3),
        lambda: merkle.batch_paths([]),
        lambda: merkle.batch_paths([b""] * 257),
    ):
        with pytest.raises(InvalidInputError):
            call()


def test_leaf_and_node_hashes_are_apart():
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)
