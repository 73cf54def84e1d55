"""Tokens with which machines become nodes: one-time ones, and those that lie on every machine of a zone."""

import asyncio

import pytest
from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc

from shared.errors import (
    AgentFactoryError,
    EnrollmentTokenInvalidError,
    InvalidInputError,
    PermissionDeniedError,
)
from tests.integration.access.stage import call, running_plane


@pytest.fixture
async def plane(tmp_path, postgres_18):
    async with running_plane(tmp_path, postgres_18) as plane:
        yield plane


async def make(plane, **fields):
    async with plane.administrator() as channel:
        fleet = nodes_pb2_grpc.FleetServiceStub(channel)
        request = nodes_pb2.CreateEnrollmentTokenRequest(**fields)
        return await call(fleet.CreateEnrollmentToken, request)


async def enrolled(plane):
    return await plane.rows("SELECT node_id, zone FROM nodes")


async def test_a_token_of_several_uses_enrolls_so_many_nodes_of_its_zone_and_no_more(plane):
    made = await make(plane, zone="eu-1", max_uses=3)
    assert made.max_uses == 3
    for zone in ("", "us-1", "eu-11"):
        with pytest.raises(EnrollmentTokenInvalidError, match="zone"):
            await plane.use_token(made.token, zone)
    assert await enrolled(plane) == []
    # A refusal used nothing up; of five that race, three win.
    results = await asyncio.gather(
        *(plane.use_token(made.token, "eu-1") for _ in range(5)), return_exceptions=True
    )
    lost = [result for result in results if isinstance(result, BaseException)]
    assert [type(one) for one in lost] == [EnrollmentTokenInvalidError] * 2
    nodes = await enrolled(plane)
    assert len({node["node_id"] for node in nodes}) == 3
    assert {node["zone"] for node in nodes} == {"eu-1"}
    [row] = await plane.rows("SELECT uses, used_at FROM enrollment_tokens")
    assert row["uses"] == 3
    assert row["used_at"] is not None


async def test_an_expired_token_of_several_uses_enrolls_nobody(plane):
    made = await make(plane, zone="eu-1", max_uses=3)
    await plane.use_token(made.token, "eu-1")
    await plane.rows("UPDATE enrollment_tokens SET expires_at = now()")
    with pytest.raises(EnrollmentTokenInvalidError):
        await plane.use_token(made.token, "eu-1")


async def test_a_one_time_token_is_for_its_zone_or_for_any(plane):
    with pytest.raises(EnrollmentTokenInvalidError, match="zone"):
        await plane.use_token((await make(plane, zone="eu-1")).token, "us-1")
    # Nodes of the build before name no zone.
    await plane.use_token((await make(plane, zone="eu-1")).token)
    free = await make(plane)
    await plane.use_token(free.token, "us-1")
    with pytest.raises(EnrollmentTokenInvalidError):
        await plane.use_token(free.token, "us-1")
    assert {node["zone"] for node in await enrolled(plane)} == {"eu-1", "us-1"}


async def test_a_token_of_several_uses_needs_a_zone(plane):
    with pytest.raises(InvalidInputError, match="zone"):
        await make(plane, max_uses=2)


TARGET = nodes_pb2.CompilationTarget(
    profile=1, engine_name="e", engine_version="1", config_digest="sha256:" + "0" * 64, cpu_features="sse2"
)


async def refusals(plane, credentials) -> list[type]:
    """Call what compiles and what runs, and return how each was refused."""
    refused = []
    async with plane.node(credentials) as channel:
        compiling, running = (
            nodes_pb2_grpc.CompileServiceStub(channel),
            nodes_pb2_grpc.NodeServiceStub(channel),
        )
        for method, request in (
            (compiling.ListCompilations, nodes_pb2.ListCompilationsRequest(targets=[TARGET])),
            (running.GetLogProof, nodes_pb2.GetLogProofRequest()),
        ):
            try:
                await call(method, request)
                refused.append(None)
            except AgentFactoryError as error:
                refused.append(type(error))
    return refused


async def test_a_node_may_do_what_its_token_was_made_for_and_nothing_else(plane):
    _, compiler = await plane.enroll(duty=nodes_pb2.NODE_DUTY_COMPILE)
    _, runner = await plane.enroll(duty=nodes_pb2.NODE_DUTY_RUN)
    _, older = await plane.enroll()  # by whoever knows of no duties

    assert await refusals(plane, compiler) == [None, PermissionDeniedError]
    for credentials in (runner, older):
        listing, proof = await refusals(plane, credentials)
        assert listing is PermissionDeniedError
        assert proof is not PermissionDeniedError


async def test_a_token_for_an_unknown_duty_is_refused(plane):
    with pytest.raises(InvalidInputError):
        await make(plane, duty=7)
