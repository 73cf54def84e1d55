"""What a node says that it holds, as it comes."""

import os

import pytest
from agentfactory.v1 import nodes_pb2

from control_plane.compiled.convert import held_from_proto
from data_plane.artifacts.pieces import MAX_HELD
from shared.digests import DIGEST_BYTES, digest_to_raw, sha256_digest
from shared.errors import InvalidInputError
from shared.rpc.validation import validate


def test_digests_come_one_behind_the_other():
    digests = [sha256_digest(b"one"), sha256_digest(b"two")]

    assert held_from_proto(b"".join(map(digest_to_raw, digests))) == frozenset(digests)
    assert held_from_proto(b"") == frozenset()


@pytest.mark.parametrize("size", [1, DIGEST_BYTES - 1, DIGEST_BYTES + 1])
def test_what_is_no_list_of_digests_is_refused(size):
    with pytest.raises(InvalidInputError, match="held_pieces"):
        held_from_proto(os.urandom(size))


def test_a_node_may_name_all_that_it_remembers_and_nobody_more():
    request = nodes_pb2.FetchCompiledArtifactRequest(
        attempt=nodes_pb2.AttemptRef(
            execution_id="exe_0190f0a0-0000-7000-8000-000000000000", attempt_number=1, fencing_token=1
        ),
        template_digest=sha256_digest(b"template"),
        target=nodes_pb2.CompilationTarget(
            profile=1, engine_name="wasmer", engine_version="7", config_digest=sha256_digest(b"config")
        ),
        held_pieces=bytes(MAX_HELD * DIGEST_BYTES),
    )
    validate(request)

    request.held_pieces += b"x"
    with pytest.raises(InvalidInputError, match="held_pieces"):
        validate(request)
