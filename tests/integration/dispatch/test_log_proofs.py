"""What nodes are told of the transparency log, over the real call: only for who holds the lease."""

from typing import Any

import grpc
import pytest
from agentfactory.v1 import nodes_pb2, orders_pb2

from shared.checkpoints import Checkpoint, log_origin, parse_checkpoint, verify_log_signature
from shared.errors import InvalidInputError, PermissionDeniedError
from shared.log_leaf import Fact, policy_fact, template_fact
from shared.merkle import leaf_hash, verify_consistency, verify_inclusion
from shared.order_codec import decode_order
from shared.rpc.errors import error_of
from tests.fixtures.keys import ed25519_key
from tests.fixtures.scripted_node import ScriptedNode
from tests.integration.dispatch.stage import INSTALLATION, Replica
from tests.integration.dispatch.test_transfers import attempt_of, started


async def ask(
    node: ScriptedNode, attempt: nodes_pb2.AttemptRef | None = None, known_size: int = 0
) -> nodes_pb2.GetLogProofResponse:
    request = nodes_pb2.GetLogProofRequest(known_size=known_size, attempt=attempt)
    try:
        return await node.stub.GetLogProof(request, timeout=20)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


def verified(answer: nodes_pb2.GetLogProofResponse) -> Checkpoint:
    key = ed25519_key("log").public
    return verify_log_signature(
        parse_checkpoint(answer.checkpoint), origin=log_origin(INSTALLATION, 1), keys=[key]
    )


def assert_in(checkpoint: Checkpoint, fact: Fact, place: nodes_pb2.LogPlace) -> None:
    verify_inclusion(
        leaf=leaf_hash(fact.commitment(place.salt)),
        index=place.log_index,
        size=checkpoint.size,
        path=place.path,
        root=checkpoint.root,
    )


def facts_of(delivery: orders_pb2.OrderDelivery) -> tuple[Fact, Fact]:
    order = decode_order(delivery.order)
    return template_fact(order.tenant_id, order.template_digest), policy_fact(order.policy_digest)


async def test_what_an_order_is_made_from_is_in_the_log_when_its_node_asks(one: Replica):
    node, delivery = await started(one)
    answer = await ask(node, attempt_of(delivery))
    checkpoint = verified(answer)
    template, policy = facts_of(delivery)
    assert_in(checkpoint, template, answer.template)
    assert_in(checkpoint, policy, answer.policy)


async def test_a_later_answer_continues_what_the_node_knows(one: Replica):
    node, delivery = await started(one)
    known = verified(await ask(node, attempt_of(delivery)))
    other, second = await started(one)
    await ask(other, attempt_of(second))  # its enrollment and its session have grown the log
    answer = await ask(node, None, known.size)
    newest = verified(answer)
    assert newest.size >= known.size
    verify_consistency(
        first_size=known.size,
        second_size=newest.size,
        proof=answer.consistency,
        first_root=known.root,
        second_root=newest.root,
    )
    assert not answer.HasField("template")
    with pytest.raises(InvalidInputError):
        await ask(node, None, newest.size + 1000)


async def test_another_node_is_told_nothing_of_an_attempt(one: Replica):
    _, delivery = await started(one)
    other = await one.ready_node()
    with pytest.raises(PermissionDeniedError):
        await ask(other, attempt_of(delivery))


@pytest.mark.parametrize("change", [{"fencing_token": 2}, {"attempt_number": 2}])
async def test_nothing_is_told_of_another_attempt_than_the_leased_one(one: Replica, change: dict[str, Any]):
    node, delivery = await started(one)
    attempt = attempt_of(delivery)
    attempt.MergeFrom(nodes_pb2.AttemptRef(**change))
    with pytest.raises(PermissionDeniedError):
        await ask(node, attempt)


async def test_operators_see_what_a_node_has_seen_and_why_it_takes_no_orders(one: Replica):
    node = await one.ready_node()
    seen = nodes_pb2.LogSeen(size=7, root=bytes(32), problem="check 3: two\nlogs")
    await node.beat(log=seen)
    await one.heard(node)
    await one.dispatch.beat()
    session = (await one.nodes.find(node.node_id)).session
    assert (session.log.size, session.log.root) == (7, bytes(32))
    assert session.log.problem == "check 3: two\\x0alogs"
