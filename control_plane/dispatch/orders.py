"""Builds orders: bytes that authorise one attempt on one node until a time. Pure; signs and sends nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agentfactory.v1 import nodes_pb2, orders_pb2

from control_plane.dispatch.options import MAX_MESSAGE_BYTES, DispatchOptions
from control_plane.dispatch.session import LiveSession, Outgoing
from control_plane.executions.domain import INLINE_BODY_BYTES, Claimable, Placement, RunSpec, StoredBody
from control_plane.executions.encoding import capabilities_of_bytes, limits_of_bytes
from shared.digests import Digest, parse_digest
from shared.errors import InternalError
from shared.ids import OrderId
from shared.manifest import Profile
from shared.order_codec import encode_order, format_for, needs_current_order
from shared.orders import LLM_ORDER_FORMAT, OLDER_ORDER_FORMAT, ORDER_FORMATS, EngineConstraint, Order
from shared.receipts import AttemptIdentity, ExpectedReceipt, predicate_type_for

ORDER_TYPES: Final = ORDER_FORMATS
"""What a session may agree on (rule 11), newest first: the current one and N-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderParts:
    """What an order needs besides the work and the session: fresh values that are passed in."""

    order_id: OrderId
    nonce: bytes
    now: datetime
    traceparent: str = ""
    """Of the attempt; empty: that of the execution."""


def build_order(work: Claimable, session: LiveSession, parts: OrderParts, options: DispatchOptions) -> bytes:
    """Return the order for `work` on `session`: the bytes that will be a leaf of a signed batch.

    The order names the boot id, starts now and expires after at most `options.order_life`, earlier when the
    run deadline is earlier (rule 4). The first lease counts from the heartbeat that it echoes (rule 9).

    Raises:
        InvalidInputError: What the execution says cannot be said in an order; it can run nowhere.
    """
    return encode_order(_order(work, session, parts, options))


def is_for(session: LiveSession, run: RunSpec) -> bool:
    """Return whether the node offers the profile and accepts orders that can say what is allowed."""
    if run.profile not in session.profiles:
        return False
    if session.order_type == LLM_ORDER_FORMAT:
        return True
    capabilities = capabilities_of_bytes(run.capabilities)
    if capabilities.llm is not None:
        return False
    if session.order_type != OLDER_ORDER_FORMAT:
        return True
    return not needs_current_order(limits_of_bytes(run.limits), capabilities)


def _format(work: Claimable, session: LiveSession) -> str:
    return format_for(session.order_type, capabilities_of_bytes(work.run.capabilities))


def expected_receipt(
    work: Claimable, session: LiveSession, order_id: OrderId, order_digest: Digest, options: DispatchOptions
) -> ExpectedReceipt:
    """Return what a receipt for this order must say."""
    return ExpectedReceipt(
        type=predicate_type_for(_format(work, session)),
        installation=options.installation,
        node_id=session.node_id,
        boot_id=session.boot_id,
        order_digest=order_digest,
        attempt=AttemptIdentity(
            order_id=order_id,
            execution_id=work.run.execution_id,
            attempt_number=work.attempt_number,
            fencing_token=work.fencing_token,
        ),
        template_digest=work.run.template_digest,
        module_digest=work.run.module_digest,
        input_commitment=work.run.input.commitment,
    )


def _order(work: Claimable, session: LiveSession, parts: OrderParts, options: DispatchOptions) -> Order:
    run = work.run
    capabilities = capabilities_of_bytes(run.capabilities)
    return Order(
        format=_format(work, session),
        id=parts.order_id,
        installation=options.installation,
        epoch=options.epoch,
        tenant_id=run.tenant_id,
        caller=run.caller,
        agent_id=run.agent_id,
        agent_name=run.agent_name,
        parameters_digest=run.parameters_digest,
        execution_id=run.execution_id,
        attempt_number=work.attempt_number,
        fencing_token=work.fencing_token,
        node_id=session.node_id,
        boot_id=session.boot_id,
        template_digest=run.template_digest,
        module_digest=run.module_digest,
        input_commitment=run.input.commitment,
        input_bytes=run.input.size_bytes,
        media_type=run.media_type,
        profile=Profile(run.profile),
        seed=run.seed,
        clock_start_at=run.clock_start_at,
        engine=EngineConstraint(
            name=session.engine.name,
            version=session.engine.version,
            config_digest=session.profiles[Profile(run.profile)],
        ),
        limits=limits_of_bytes(run.limits),
        capabilities=capabilities,
        host_call_grants=capabilities.host_call_grants,
        decision_id=run.decision_id,
        policy_digest=parse_digest(run.policy_digest),
        traceparent=parts.traceparent or run.traceparent,
        not_before=parts.now,
        expires_at=min(parts.now + options.order_life, run.run_deadline_at),
        nonce=parts.nonce,
        lease=options.lease,
        heartbeat_number=session.heartbeat_number,
        retry_is_safe=run.retry_is_safe,
    )


def build_delivery(placement: Placement, run: RunSpec) -> orders_pb2.OrderDelivery:
    """Return an order with its place in the batch and what travels beside it.

    An input above 64 KiB stays away: the node fetches it (rule 10).
    """
    return orders_pb2.OrderDelivery(
        order=placement.order_content,
        index=placement.batch.leaf_index,
        path=placement.batch.path,
        input=_input(run.input),
        parameters=run.parameters,
    )


def _input(body: StoredBody) -> orders_pb2.Body:
    if body.size_bytes <= INLINE_BODY_BYTES and body.content is None:
        raise InternalError(f"body {body.body_id} is small and was not read along with its execution")
    inline = body.content if body.size_bytes <= INLINE_BODY_BYTES else None
    return orders_pb2.Body(salt=body.salt, size_bytes=body.size_bytes, inline=inline or b"")


def batch_messages(
    envelope: bytes, orders: Sequence[tuple[Placement, orders_pb2.OrderDelivery]]
) -> list[Outgoing]:
    """Return the messages that carry one node's orders of a batch, each within `MAX_MESSAGE_BYTES`."""
    groups: list[list[tuple[Placement, orders_pb2.OrderDelivery]]] = []
    room = 0
    for order in orders:
        size = order[1].ByteSize()
        if not groups or size > room:
            groups.append([])
            room = MAX_MESSAGE_BYTES
        groups[-1].append(order)
        room -= size
    return [
        Outgoing(
            message=nodes_pb2.SessionResponse(
                order_batch=orders_pb2.OrderBatch(
                    envelope=envelope, orders=[delivery for _, delivery in group]
                )
            ),
            placements=tuple(placement for placement, _ in group),
        )
        for group in groups
    ]
