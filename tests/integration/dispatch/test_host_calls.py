"""Host calls of a session over a real channel and a real database."""

import asyncio
import time

import pytest
from agentfactory.v1 import nodes_pb2, orders_pb2

from control_plane.dispatch.host_calls import MAX_OPEN_HOST_CALLS, MAX_READS_AT_ONCE
from control_plane.executions.domain import BodyKind
from control_plane.executions.encoding import capabilities_bytes
from shared.digests import commit_body, sha256_digest
from shared.errors import InvalidInputError, ReceiptInvalidError
from shared.manifest import Capabilities
from shared.order_codec import decode_order
from shared.outcomes import Outcome
from tests.fixtures import dispatch as build
from tests.fixtures.scripted_node import ScriptedNode
from tests.integration.dispatch.stage import Replica, replica, work

KV = capabilities_bytes(Capabilities(kv=True))
V2 = ["agentfactory.order.v2"]


def attempt_of(delivery: orders_pb2.OrderDelivery) -> nodes_pb2.AttemptRef:
    order = decode_order(delivery.order)
    return nodes_pb2.AttemptRef(
        execution_id=order.execution_id,
        attempt_number=order.attempt_number,
        fencing_token=order.fencing_token,
    )


async def running(one: Replica, node: ScriptedNode, **changes) -> orders_pb2.OrderDelivery:
    """Have an execution that may use kv run on this node."""
    await one.submit(work(capabilities=KV, **changes))
    return await node.next_order()


async def answer(node, delivery, *, writes=None, recording=None, digest=None, **changes):
    """Send a receipt with what the run wrote and did."""
    message = nodes_pb2.KvWrites(
        writes=[nodes_pb2.KvWrite(key=key, value=value) for key, value in sorted((writes or {}).items())]
    )
    if writes:
        said = digest or sha256_digest(message.SerializeToString(deterministic=True))
        changes.setdefault("kv_writes_digest", said)
    if recording is not None:
        changes["recording_commitment"] = commit_body(recording, b"r" * 32)
    receipt = await node.receipts.answer(delivery.order, **changes)
    receipt.kv_writes.CopyFrom(message)
    if recording is not None:
        receipt.recording.CopyFrom(
            orders_pb2.Body(salt=b"r" * 32, size_bytes=len(recording), inline=recording)
        )
    await node.deliver(receipt)
    return decode_order(delivery.order).execution_id


async def get(node, number, attempt, key="n"):
    await node.send(
        host_call=nodes_pb2.HostCall(number=number, attempt=attempt, kv_get=nodes_pb2.KvGet(key=key))
    )


async def declare(node, number, attempt):
    await node.send(
        host_call=nodes_pb2.HostCall(number=number, attempt=attempt, unsafe_intent=nodes_pb2.UnsafeIntent())
    )


async def reply(node):
    return (await node.next("host_reply")).host_reply


async def test_a_run_reads_what_the_accepted_result_of_an_earlier_one_wrote(one: Replica):
    node = await one.ready_node(accepts=V2)
    ended = await answer(node, await running(one, node), writes={"n": b"1"})
    assert (await one.waiting.ended(ended)).state == "succeeded"
    await node.beat()

    attempt = attempt_of(await running(one, node))
    await get(node, 7, attempt)
    first = await reply(node)
    await get(node, 8, attempt, key="other")
    second = await reply(node)

    assert (first.number, first.kv_value.found, first.kv_value.value) == (7, True, b"1")
    assert (second.number, second.WhichOneof("reply"), second.kv_value.found) == (8, "kv_value", False)


async def test_rule_6_a_node_is_told_nothing_about_the_attempts_of_another(one: Replica):
    holder = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, holder))
    other = await one.ready_node(accepts=V2)

    await get(other, 1, attempt)
    await declare(other, 2, attempt)
    refused = [await reply(other), await reply(other)]
    await get(holder, 1, attempt)

    assert [one.denied.reason for one in refused] == ["LEASE_NOT_HELD"] * 2
    assert (await reply(holder)).WhichOneof("reply") == "kv_value"


async def test_rule_6_an_unsafe_call_is_on_record_before_the_reply_leaves(one: Replica):
    node = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, node))

    await declare(node, 1, attempt)
    said = await reply(node)

    assert said.WhichOneof("reply") == "unsafe_intent_recorded"
    found = await one.get(attempt.execution_id)
    assert found.attempts[0].unsafe_call_at is not None


async def test_rule_6_a_node_that_dies_after_its_intent_ends_the_execution(one: Replica):
    node = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, node))
    await declare(node, 1, attempt)
    await reply(node)
    await node.close()

    again = one.client(node.node_id)  # the same node, started anew
    await again.connect(accepts=V2)

    await one.until(lambda: _has(one, attempt, "lost"))
    assert (await one.get(attempt.execution_id)).reason == "RETRY_UNSAFE"


async def test_rule_6_a_node_that_dies_before_its_intent_leaves_a_retry(one: Replica):
    node = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, node))
    await get(node, 1, attempt)
    await reply(node)
    await node.close()
    again = one.client(node.node_id)
    await again.connect(accepts=V2)
    await one.until(lambda: _has(one, attempt, "pending"))


async def _has(one: Replica, attempt, state) -> bool:
    return (await one.get(attempt.execution_id)).state == state


@pytest.mark.parametrize("retry_is_safe", [True, False])
async def test_rule_6_an_intent_is_asked_again_on_another_replica(one: Replica, database_url, retry_is_safe):
    node = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, node, retry_is_safe=retry_is_safe))
    await declare(node, 1, attempt)
    await reply(node)
    await node.close()
    async with replica(database_url, name="replica-2") as two:
        moved = ScriptedNode(
            two.identities.node_channel(two.target, node.node_id),
            node.node_id,
            boot=node.boot_id,
            receipts=node.receipts,
        )
        await moved.connect(accepts=V2)
        await declare(moved, 1, attempt)
        assert (await reply(moved)).WhichOneof("reply") == "unsafe_intent_recorded"
        rows = await two.fetch("SELECT count(*) AS n FROM audit_entries WHERE action = 'attempt.unsafe_call'")
        assert rows[0]["n"] == 1


async def test_a_key_that_no_text_can_hold_is_denied_and_the_session_goes_on(one: Replica):
    node = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, node))
    await get(node, 1, attempt, key="a\0b")
    await get(node, 2, attempt)
    assert {(one.number, one.denied.reason) for one in [await reply(node), await reply(node)]} == {
        (1, "INVALID_KEY"),
        (2, ""),
    }


@pytest.mark.parametrize(
    "changes", [{"fencing_token": 2**64 - 1}, {"attempt_number": 2**32 - 1}, {"execution_id": "exe_\0"}]
)
async def test_an_attempt_that_cannot_be_is_denied_and_fails_nobody_elses_question(one: Replica, changes):
    node = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, node))
    lie = nodes_pb2.AttemptRef()
    lie.CopyFrom(attempt)
    for name, value in changes.items():
        setattr(lie, name, value)
    await get(node, 1, lie)
    await declare(node, 2, lie)
    await get(node, 3, attempt)
    replies = {one.number: one for one in [await reply(node) for _ in range(3)]}
    assert [replies[number].denied.reason for number in (1, 2)] == ["LEASE_NOT_HELD"] * 2
    assert replies[3].WhichOneof("reply") == "kv_value"


async def test_a_question_without_a_call_ends_the_session(one: Replica):
    node = await one.ready_node(accepts=V2)
    await node.send(host_call=nodes_pb2.HostCall(number=1, attempt=nodes_pb2.AttemptRef(execution_id="e")))
    assert isinstance(await node.end(), InvalidInputError)


async def test_more_questions_than_the_bound_are_denied_and_all_are_answered(one: Replica):
    node = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, node))
    async with _held_back(one):
        for number in range(1, MAX_OPEN_HOST_CALLS + 3):
            await get(node, number, attempt)
        denied = [await reply(node) for _ in range(2)]
    answered = [await reply(node) for _ in range(MAX_OPEN_HOST_CALLS)]

    assert {one.denied.reason for one in denied} == {"TOO_MANY_HOST_CALLS"}
    assert sorted(one.number for one in answered) == list(range(1, MAX_OPEN_HOST_CALLS + 1))
    await get(node, 999, attempt)
    assert (await reply(node)).WhichOneof("reply") == "kv_value"


class _held_back:  # noqa: N801 - reads like a function
    """Nobody can read values for the length of the block: the table is locked."""

    def __init__(self, one: Replica) -> None:
        self._transaction = one.database.transaction()

    async def __aenter__(self) -> None:
        tx = await self._transaction.__aenter__()
        await tx.connection.exec_driver_sql("LOCK TABLE kv_entries IN ACCESS EXCLUSIVE MODE")

    async def __aexit__(self, *_: object) -> None:
        await self._transaction.__aexit__(None, None, None)


async def test_questions_of_one_moment_share_a_query(one: Replica, monkeypatch):
    node = await one.ready_node(accepts=V2)
    attempt = attempt_of(await running(one, node))
    groups: list[int] = []
    reads = one.dispatch._host_calls._reads
    flush = reads._flush

    async def counted(items):
        groups.append(len(items))
        return await flush(items)

    monkeypatch.setattr(reads, "_flush", counted)
    async with _held_back(one):
        for number in range(200):
            await get(node, number, attempt)
        await one.until(lambda: len(reads._waiting) + sum(groups) == 200)  # all have come
    for _ in range(200):
        await reply(node)
    assert sum(groups) == 200
    assert len(groups) <= 200 // MAX_READS_AT_ONCE + 3
    assert max(groups) <= MAX_READS_AT_ONCE


async def test_a_flood_of_questions_delays_no_renewal(one: Replica):
    """As many questions as a session may have open, each for the largest value, at every moment."""
    node = await one.ready_node(accepts=V2)
    ended = await answer(node, await running(one, node), writes={"n": b"x" * 65_536})
    await one.waiting.ended(ended)
    await node.beat()
    await one.heard(node)
    attempt = attempt_of(await running(one, node))
    alone = [await _round(node, attempt, number) for number in range(1, 11)]

    for number in range(MAX_OPEN_HOST_CALLS):
        await get(node, number, attempt)
    beside = [await _round(node, attempt, number) for number in range(11, 31)]

    # Half a lease, on a machine that may be busy; a node counts its lease from before it asks.
    assert max(beside) < 2.0, (max(alone), max(beside))


async def _round(node, attempt, number) -> float:
    """How long a renewal takes, in and out; every value that comes meanwhile is asked for again."""
    started = time.monotonic()
    await node.send(lease_renewal=nodes_pb2.LeaseRenewal(number=number, attempts=[attempt]))
    async with asyncio.timeout(30):
        while (message := await node._read()) is not None and message.WhichOneof(
            "message"
        ) != "lease_granted":
            if message.host_reply.number:
                await get(node, message.host_reply.number, attempt)
    assert message is not None
    assert message.lease_granted.number == number
    return time.monotonic() - started


# --- what comes with a receipt


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"n": b"2"}, {"kv_writes_digest": sha256_digest(b"other")}),
        ({"n": b"2"}, {"kv_writes_digest": None}),
        ({}, {"kv_writes_digest": sha256_digest(b"")}),
        ({"a\0b": b"2"}, {}),
    ],
)
async def test_values_that_are_not_what_the_receipt_says_are_refused(one: Replica, sent, said):
    node = await one.ready_node(accepts=V2)
    ended = await answer(node, await running(one, node), writes=sent, **said)
    assert isinstance(await node.end(), ReceiptInvalidError)
    assert (await one.get(ended)).state == "pending"
    assert await one.fetch("SELECT 1 FROM kv_entries") == []


async def test_a_recording_is_kept_and_must_be_what_the_receipt_commits_to(one: Replica):
    node = await one.ready_node(accepts=V2)
    ended = await answer(node, await running(one, node), recording=b'{"index":1}\n')
    done = await one.waiting.ended(ended)
    assert done.recording_bytes == 12
    body = await one.executions.body_of(build.TENANT, ended, BodyKind.RECORDING)
    kept = await one.executions.read_body(build.TENANT, body.body_id, offset_bytes=0, max_bytes=99)
    assert kept == b'{"index":1}\n'

    await node.beat()
    delivery = await running(one, node)
    receipt = await node.receipts.answer(delivery.order, recording_commitment=commit_body(b"said", b"r" * 32))
    receipt.recording.CopyFrom(orders_pb2.Body(salt=b"r" * 32, size_bytes=4, inline=b"sent"))
    await node.deliver(receipt)
    assert isinstance(await node.end(), ReceiptInvalidError)


async def test_a_failed_run_reports_what_it_wrote_and_nothing_is_kept(one: Replica):
    node = await one.ready_node(accepts=V2)
    ended = await answer(
        node, await running(one, node), writes={"n": b"2"}, outcome=Outcome.FAILED, exit_code=3
    )
    assert (await one.waiting.ended(ended)).state == "failed"
    assert await one.fetch("SELECT 1 FROM kv_entries") == []


async def test_an_execution_without_host_calls_costs_one_statement_and_none_of_kv(one: Replica, monkeypatch):
    node = await one.ready_node(accepts=V2)
    statements: list[str] = []
    finishing = one.leases._finishing
    held = finishing._connection
    raw = await held._connected()
    fetch = raw.fetch

    async def counted(query, *arguments):
        statements.append(query)
        return await fetch(query, *arguments)

    monkeypatch.setattr(held, "_raw", _Counting(raw, counted))
    await one.submit(work())
    ended = await node.answer(await node.next_order())
    await node.next("receipt_ack")
    assert ended.envelope
    assert len(statements) == 1
    assert "kv_" not in statements[0]


class _Counting:
    """A connection whose `fetch` is counted."""

    def __init__(self, raw, fetch) -> None:
        self._raw, self.fetch = raw, fetch

    def __getattr__(self, name):
        return getattr(self._raw, name)
