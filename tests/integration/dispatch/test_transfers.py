"""Artifacts, inputs and outputs beside the session: only for who holds the lease (rule 6)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from agentfactory.v1 import nodes_pb2, orders_pb2

from control_plane.executions.encoding import capabilities_bytes
from control_plane.transfers import IDLE_DEADLINE
from shared.digests import commit_body, sha256_digest
from shared.errors import AgentFactoryError, InvalidInputError, PermissionDeniedError, ResourceExhaustedError
from shared.manifest import Capabilities
from shared.order_codec import decode_order
from shared.receipts import MAX_RECORDING_BYTES
from shared.rpc.errors import error_of
from tests.fixtures import dispatch as build
from tests.fixtures.scripted_node import ScriptedNode
from tests.integration.dispatch import stage
from tests.integration.dispatch.stage import ENVELOPE, MODULE, Replica, work

TEMPLATE = sha256_digest(b"template")
SALT = b"o" * 32
BIG = b"x" * (64 * 1024 + 1)


def attempt_of(delivery: orders_pb2.OrderDelivery) -> nodes_pb2.AttemptRef:
    order = decode_order(delivery.order)
    return nodes_pb2.AttemptRef(
        execution_id=order.execution_id,
        attempt_number=order.attempt_number,
        fencing_token=order.fencing_token,
    )


async def fetched(call: Any) -> list[Any]:
    try:
        return [part async for part in call]
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def artifact(node: ScriptedNode, attempt: nodes_pb2.AttemptRef, digest: str = TEMPLATE) -> list[Any]:
    return await fetched(
        node.stub.FetchArtifact(
            nodes_pb2.FetchArtifactRequest(attempt=attempt, template_digest=digest), timeout=10
        )
    )


async def upload(
    node: ScriptedNode,
    attempt: nodes_pb2.AttemptRef,
    content: bytes = BIG,
    *,
    size: int | None = None,
    commitment: str | None = None,
) -> None:
    header = nodes_pb2.UploadOutputHeader(
        attempt=attempt,
        commitment=commitment or commit_body(content, SALT),
        salt=SALT,
        size_bytes=len(content) if size is None else size,
    )

    async def parts() -> AsyncIterator[nodes_pb2.UploadOutputRequest]:
        yield nodes_pb2.UploadOutputRequest(header=header)
        for start in range(0, len(content), 1 << 16):
            yield nodes_pb2.UploadOutputRequest(chunk=content[start : start + (1 << 16)])

    try:
        await node.stub.UploadOutput(parts(), timeout=10)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def started(one: Replica, **changes: Any) -> tuple[ScriptedNode, orders_pb2.OrderDelivery]:
    node = await one.ready_node()
    await one.submit(work(**changes))
    return node, await node.next_order()


async def test_the_holder_of_the_lease_fetches_envelope_and_module(one: Replica):
    node, delivery = await started(one)
    parts = await artifact(node, attempt_of(delivery))
    assert parts[0].envelope == ENVELOPE
    assert b"".join(part.chunk for part in parts[1:]) == MODULE


async def test_another_node_fetches_nothing(one: Replica):
    _, delivery = await started(one)
    other = await one.ready_node()
    with pytest.raises(PermissionDeniedError):
        await artifact(other, attempt_of(delivery))
    with pytest.raises(PermissionDeniedError):
        await fetched(
            other.stub.FetchBody(nodes_pb2.FetchBodyRequest(attempt=attempt_of(delivery)), timeout=10)
        )


async def test_a_lease_for_one_template_fetches_no_other(one: Replica):
    node, delivery = await started(one)
    with pytest.raises(PermissionDeniedError):
        await artifact(node, attempt_of(delivery), sha256_digest(b"another template"))


async def test_after_the_end_nothing_is_fetched(one: Replica):
    node, delivery = await started(one)
    await node.answer(delivery)
    await node.next("receipt_ack")
    with pytest.raises(PermissionDeniedError):
        await artifact(node, attempt_of(delivery))


@pytest.mark.parametrize("change", [{"fencing_token": 2}, {"attempt_number": 2}])
async def test_another_attempt_than_the_leased_one_fetches_nothing(one: Replica, change: dict[str, int]):
    node, delivery = await started(one)
    attempt = attempt_of(delivery)
    attempt.MergeFrom(nodes_pb2.AttemptRef(**change))
    with pytest.raises(PermissionDeniedError):
        await artifact(node, attempt)


async def test_a_large_input_is_fetched_in_chunks(one: Replica):
    content = bytes(range(256)) * 8192 + b"end"
    body = build.replace(build.body(content), content=content)
    node, delivery = await started(one, input=body)
    assert delivery.input.inline == b""
    parts = await fetched(
        node.stub.FetchBody(nodes_pb2.FetchBodyRequest(attempt=attempt_of(delivery)), timeout=10)
    )
    assert b"".join(part.chunk for part in parts) == content
    assert len(parts) == 3


async def test_a_large_output_comes_before_its_receipt_and_belongs_to_the_result(one: Replica):
    node, delivery = await started(one)
    await upload(node, attempt_of(delivery))
    await upload(node, attempt_of(delivery))  # a repeat changes nothing
    receipt = await node.receipts.answer(delivery.order, output=BIG)
    receipt.output.inline = b""
    await node.deliver(receipt)
    ended = await one.waiting.ended(decode_order(delivery.order).execution_id)
    assert (ended.state, ended.output_bytes) == ("succeeded", len(BIG))
    assert ended.output_body_id is not None
    stored = await one.executions.read_body(
        build.TENANT, ended.output_body_id, offset_bytes=0, max_bytes=len(BIG) + 1
    )
    assert stored == BIG


async def test_a_receipt_whose_output_was_not_uploaded_is_not_acknowledged(one: Replica):
    node, delivery = await started(one)
    receipt = await node.receipts.answer(delivery.order, output=BIG)
    receipt.output.inline = b""
    await node.deliver(receipt)
    await upload(node, attempt_of(delivery))
    await node.deliver(receipt)
    assert list((await node.next("receipt_ack")).receipt_ack.sequences) == [1]
    assert (await one.get(decode_order(delivery.order).execution_id)).state == "succeeded"


async def test_a_late_output_of_an_own_attempt_is_taken_as_evidence(one: Replica):
    node, delivery = await started(one)
    await node.answer(delivery)
    await node.next("receipt_ack")
    await upload(node, attempt_of(delivery))


async def test_an_output_of_somebody_elses_attempt_is_refused(one: Replica):
    _, delivery = await started(one)
    other = await one.ready_node()
    with pytest.raises(PermissionDeniedError):
        await upload(other, attempt_of(delivery))


@pytest.mark.parametrize(
    "wrong",
    [{"size": len(BIG) - 1}, {"size": len(BIG) + 1}, {"commitment": commit_body(b"other", SALT)}],
)
async def test_an_output_that_is_not_what_its_header_says_is_refused(one: Replica, wrong: dict[str, Any]):
    node, delivery = await started(one)
    with pytest.raises(InvalidInputError, match=r"check [23]"):
        await upload(node, attempt_of(delivery), **wrong)


async def test_an_output_above_16_mib_is_refused_before_its_bytes(one: Replica):
    node, delivery = await started(one)
    with pytest.raises(AgentFactoryError) as refused:
        await upload(node, attempt_of(delivery), b"few", size=16 * 1024 * 1024 + 1)
    assert refused.value.reason == "INVALID_INPUT"


async def test_a_node_that_stalls_its_uploads_keeps_no_other_node_from_uploading(one: Replica):
    evil, delivery = await started(one)
    header = nodes_pb2.UploadOutputHeader(
        attempt=attempt_of(delivery), commitment="sha256:" + "0" * 64, salt=SALT, size_bytes=1000
    )
    stalled = [evil.stub.UploadOutput(timeout=30) for _ in range(12)]
    for call in stalled:
        await call.write(nodes_pb2.UploadOutputRequest(header=header))
    honest = await one.ready_node()
    await evil.beat(free_slots=0)
    await one.heard(evil)
    await one.submit(work())
    async with asyncio.timeout(IDLE_DEADLINE.total_seconds() / 2):  # before the silence ends the others
        await upload(honest, attempt_of(await honest.next_order()))
    for call in stalled:
        call.cancel()


async def test_a_node_that_does_not_read_its_module_keeps_no_other_from_reading(
    one: Replica, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stage, "MODULE", b"\0asm" + b"x" * (16 << 20))
    evil, delivery = await started(one)
    request = nodes_pb2.FetchArtifactRequest(attempt=attempt_of(delivery), template_digest=TEMPLATE)
    stalled = [evil.stub.FetchArtifact(request, timeout=30) for _ in range(12)]
    for call in stalled:
        await call.read()
    honest = await one.ready_node()
    await evil.beat(free_slots=0)
    await one.heard(evil)
    await one.submit(work())
    parts = await artifact(honest, attempt_of(await honest.next_order()))
    assert sum(len(part.chunk) for part in parts) == 4 + (16 << 20)
    for call in stalled:
        call.cancel()


async def test_an_attempt_has_an_output_a_log_and_a_recording_waiting_at_most(one: Replica):
    node, delivery = await started(one)
    for content in (b"1", b"2", b"3"):
        await upload(node, attempt_of(delivery), content * 70_000)
    with pytest.raises(ResourceExhaustedError):
        await upload(node, attempt_of(delivery), b"4" * 70_000)


async def test_an_output_above_the_limits_of_its_order_is_refused_before_its_bytes(one: Replica):
    node, delivery = await started(one)
    with pytest.raises(InvalidInputError, match=f"check 2: .* at most {1 << 20}$"):
        await upload(node, attempt_of(delivery), b"few", size=(1 << 20) + 1)


async def test_a_recording_may_be_larger_where_the_order_grants_host_calls(one: Replica):
    node = await one.ready_node(accepts=["agentfactory.order.v2"])
    await one.submit(work(capabilities=capabilities_bytes(Capabilities(kv=True))))
    attempt = attempt_of(await node.next_order())
    await upload(node, attempt, b"r" * ((1 << 20) + 1))
    with pytest.raises(InvalidInputError, match=f"check 2: .* at most {MAX_RECORDING_BYTES}$"):
        await upload(node, attempt, b"few", size=MAX_RECORDING_BYTES + 1)
