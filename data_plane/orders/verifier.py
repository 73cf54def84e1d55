"""The checks that every order passes before it may run here. Pure: no network, no files, no memory.

The node trusts nobody. Each check has a number; the first one that fails becomes a signed rejection with it.
The list, in this order:

1. The root of the order's batch is signed by an order key of the keyset (`verify_root`).
2. The exact bytes of the order are a leaf under that root (`verify_order`, to check 8).
3. The bytes decode, without unknown fields at any depth (never parsed before check 2).
4. The format is of a version that this node accepts.
5. It is of this installation, and of the epoch that was signed, which is the keyset's.
6. It is for this node.
7. It is for this boot of the node.
8. It is valid now, within the allowed skew, and its whole life is within the bound.
9. Its nonce was not seen before (`OrderLedger`).
10. Its fencing point is not stale (`OrderLedger`).
11. This node has room for it: a slot, a living lease, spool space, no drain (`Slots`, `Leases`, `Spool`).
12. The template is signed by a publisher of the keyset (`ArtifactService`).
13. The module is the one that order and template name, byte for byte, and compiles (`ArtifactService`).
14. The input matches the commitment in the order (`check_input`).
15. The parameters match the digest in the order (`check_parameters`).
16. The engine under the order's profile, if it is offered here, is one that the order allows
    (`check_engine`).
17. The node's own policy allows its limits, capabilities and grants (`check_node_policy`) and whatever
    else its operator looks at (`NodePolicy`), and the module has not crashed too many workers here
    (`Quarantine`).
18. The keyset that decided check 1 is known to be the newest (`Freshness`). Asked before check 1; numbered
    last, because numbers stand in receipts.
19. The input fits the schema that the signed template has for it (`check_input_schema`).
20. Template and policy are in the transparency log, of which there is one (`LogCheck`). Before check 12.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from data_plane.orders.domain import Delivery
from data_plane.sandbox.domain import EngineInfo, LayerState
from shared.digests import SALT_BYTES, commit_body, same_digest, sha256_digest
from shared.errors import (
    AgentFactoryError,
    InvalidInputError,
    OrderRejectedError,
    ProofInvalidError,
    RejectionReason,
    UnsupportedVersionError,
    VerificationError,
)
from shared.ids import BootId, InstallationId, KeyId, NodeId
from shared.json_bodies import check_body
from shared.limits import Limits
from shared.manifest import Capabilities, LlmCapability, Manifest, Profile
from shared.order_codec import decode_order
from shared.orders import Order, VerifiedOrderRoot, verify_batch, verify_order_inclusion
from shared.signatures import PublicKey


class Check(IntEnum):
    """The numbers of the checks, as they stand in rejections and receipts."""

    ROOT_SIGNATURE = 1
    INCLUSION = 2
    FORMAT = 3
    VERSION = 4
    INSTALLATION = 5
    NODE = 6
    BOOT = 7
    TIME = 8
    NONCE = 9
    FENCING = 10
    ROOM = 11
    TEMPLATE = 12
    MODULE = 13
    INPUT = 14
    PARAMETERS = 15
    ENGINE = 16
    NODE_POLICY = 17
    FRESHNESS = 18
    INPUT_SCHEMA = 19
    LOG = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What this node is and what its operator allows it. Nothing an order says can change it."""

    installation: InstallationId
    node_id: NodeId
    boot_id: BootId
    engines: Mapping[Profile, EngineInfo]
    """What the engine is under each profile that this node offers."""
    ceilings: Limits
    max_order_life: timedelta
    max_skew: timedelta
    layers: tuple[LayerState, ...] = ()
    """What holds around its workers, for operators."""


def verify_root(
    envelope: bytes,
    *,
    keys: Mapping[KeyId, PublicKey],
    installation: InstallationId,
    epoch: int,
) -> VerifiedOrderRoot:
    """Check 1, and of check 5 what the root says. The cost is one RSA verification per batch.

    Only a keyset moves a node to another epoch: orders that are ahead of it are as wrong as those behind.

    Raises:
        OrderRejectedError: No order key of the keyset signed it, it does not decode, it is of another
            installation or another epoch than the keyset in force.
    """
    try:
        root = verify_batch(envelope, keys=keys, installation=installation, minimum_epoch=epoch)
        if root.epoch > epoch:
            raise VerificationError(f"orders are of epoch {root.epoch}, the keyset in force of {epoch}")
    except AgentFactoryError as error:
        raise _rejected(Check.ROOT_SIGNATURE, RejectionReason.SIGNATURE, error) from error
    return root


def verify_order(delivery: Delivery, *, root: VerifiedOrderRoot, facts: NodeFacts, now: datetime) -> Order:
    """Checks 2 to 8. What is returned is what the control plane signed, for this node, now.

    Replay and fencing need memory: the caller passes the order to `OrderLedger.accept` next.

    Raises:
        OrderRejectedError: One check failed; it carries the number and the reason.
    """
    try:
        verify_order_inclusion(delivery.order, index=delivery.index, path=delivery.path, verified_root=root)
    except ProofInvalidError as error:
        raise _rejected(Check.INCLUSION, RejectionReason.SIGNATURE, error) from error
    try:
        order = decode_order(delivery.order)
    except UnsupportedVersionError as error:
        raise _rejected(Check.VERSION, RejectionReason.FORMAT, error) from error
    except AgentFactoryError as error:
        raise _rejected(Check.FORMAT, RejectionReason.FORMAT, error) from error
    _check_audience(order, root, facts)
    _check_time(order, facts, now)
    return order


def check_input(order: Order, salt: bytes, content: bytes) -> None:
    """Check 14.

    Raises:
        OrderRejectedError: Size, salt or content are not the ones that the order commits to.
    """
    fits = len(content) == order.input_bytes and len(salt) == SALT_BYTES
    if fits and same_digest(commit_body(content, salt), order.input_commitment):
        return
    raise OrderRejectedError(
        f"input of {len(content)} bytes does not match the commitment to {order.input_bytes}",
        check=Check.INPUT,
        rejection=RejectionReason.DIGEST,
    )


def check_parameters(order: Order, parameters: bytes) -> None:
    """Check 15.

    Raises:
        OrderRejectedError: The parameters are not the ones whose digest the order names.
    """
    if not same_digest(sha256_digest(parameters), order.parameters_digest):
        raise OrderRejectedError(
            f"parameters of {len(parameters)} bytes do not match {order.parameters_digest}",
            check=Check.PARAMETERS,
            rejection=RejectionReason.DIGEST,
        )


def check_engine(order: Order, facts: NodeFacts) -> None:
    """Check 16: the engine under the order's profile.

    Raises:
        OrderRejectedError: The profile is not offered here, or the order names another engine, version or
            configuration.
    """
    engine = facts.engines.get(order.profile)
    if engine is None:
        raise OrderRejectedError(
            f"profile {order.profile} is not offered by this node",
            check=Check.ENGINE,
            rejection=RejectionReason.ENGINE,
        )
    wanted = order.engine
    pairs = (
        (wanted.name, engine.name),
        (wanted.version, engine.version),
        (wanted.config_digest, engine.config_digest),
    )
    for named, here in pairs:
        if named is not None and named != here:
            raise OrderRejectedError(
                f"order wants engine {named!r}, this node has {here!r}",
                check=Check.ENGINE,
                rejection=RejectionReason.ENGINE,
            )


def check_node_policy(order: Order, *, manifest: Manifest) -> None:
    """Check 17: what this node's operator and the template's publisher allow, whatever was ordered.

    Limits above the node's ceilings are no refusal: the smaller one is enforced (`Limits.limited_by`).

    Raises:
        OrderRejectedError: A profile, capability or host call that is not allowed here, or that the signed
            template does not ask for.
    """
    if order.profile is not manifest.profile:
        raise _policy(f"order has profile {order.profile}, the template {manifest.profile}")
    _check_capabilities(order.capabilities, manifest.capabilities)
    # Fewer are no contradiction: orders of version 1 name none at all.
    surplus = sorted(set(order.host_call_grants) - set(order.capabilities.host_call_grants))
    if surplus:
        raise _policy(f"host call {surplus[0]!r} is granted without the capability it needs")


async def check_input_schema(manifest: Manifest, content: bytes) -> None:
    """Check 18: what the template's publisher lets in, whoever accepted the execution.

    Raises:
        OrderRejectedError: The input is no JSON that fits. The message names no place in it: a receipt stays
            when the input is erased.
    """
    try:
        await check_body(manifest.input_schema, content, "input")
    except InvalidInputError as error:
        raise OrderRejectedError(
            "INPUT_INVALID: the input does not fit its template's schema",
            check=Check.INPUT_SCHEMA,
            rejection=RejectionReason.POLICY,
        ) from error


def _check_capabilities(granted: Capabilities, asked: Capabilities) -> None:
    """Every part of what was granted, against what the publisher signed."""
    surplus = set(granted.http) - set(asked.http)
    if surplus:
        raise _policy(f"order grants {len(surplus)} http capabilities that the template does not ask for")
    if granted.kv and not asked.kv:
        raise _policy("order grants values of its own, which the template does not ask for")
    secrets = sorted(set(granted.secrets) - set(asked.secrets))
    if secrets:
        raise _policy(f"order grants secret {secrets[0]}, which the template does not ask for")
    if granted.record_host_calls and not asked.record_host_calls:
        raise _policy("order wants host calls recorded, which the template does not ask for")
    if granted.llm is not None and not _is_within_llm(granted.llm, asked.llm):
        raise _policy("order grants more of language models than the template asks for")


def _is_within_llm(granted: LlmCapability, asked: LlmCapability | None) -> bool:
    if asked is None or not set(granted.models) <= set(asked.models):
        return False
    has_less_cost = not asked.max_cost_micros or 0 < granted.max_cost_micros <= asked.max_cost_micros
    return granted.max_tokens <= asked.max_tokens and has_less_cost


def _check_audience(order: Order, root: VerifiedOrderRoot, facts: NodeFacts) -> None:
    pairs = (
        (Check.INSTALLATION, "installation", order.installation, facts.installation),
        (Check.INSTALLATION, "epoch", order.epoch, root.epoch),
        (Check.NODE, "node", order.node_id, facts.node_id),
        (Check.BOOT, "boot", order.boot_id, facts.boot_id),
    )
    for check, name, named, here in pairs:
        if named != here:
            reason = RejectionReason.STALE if check is Check.BOOT else RejectionReason.AUDIENCE
            raise OrderRejectedError(
                f"order is for {name} {named}, not {here}", check=check, rejection=reason
            )


def _check_time(order: Order, facts: NodeFacts, now: datetime) -> None:
    problem = ""
    # Differences only: a time near the first or last year moved by the skew would be no time any more.
    if order.expires_at - order.not_before > facts.max_order_life:
        problem = f"order lives from {order.not_before} to {order.expires_at}, over {facts.max_order_life}"
    elif order.not_before - now > facts.max_skew:
        problem = f"order begins at {order.not_before}, it is {now}"
    elif now - order.expires_at >= facts.max_skew:
        problem = f"order has expired at {order.expires_at}, it is {now}"
    if problem:
        raise OrderRejectedError(problem, check=Check.TIME, rejection=RejectionReason.TIME)


def _policy(problem: str) -> OrderRejectedError:
    return OrderRejectedError(problem, check=Check.NODE_POLICY, rejection=RejectionReason.POLICY)


def _rejected(check: Check, reason: RejectionReason, error: AgentFactoryError) -> OrderRejectedError:
    return OrderRejectedError(f"{error.reason}: {error}", check=check, rejection=reason)
