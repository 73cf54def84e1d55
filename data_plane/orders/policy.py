"""The node's own policy: a Rego file of its operator, asked before each run. Nothing sent here can change it.

An error, no answer, or one of another shape is a denial.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from data_plane.orders.verifier import Check
from shared.canonical import canonical_json, parse_strict
from shared.digests import Digest, sha256_digest
from shared.errors import (
    AgentFactoryError,
    MalformedError,
    OrderRejectedError,
    PolicyInvalidError,
    RejectionReason,
    SettingsError,
)
from shared.limits import LIMIT_FIELDS
from shared.logs import get_logger
from shared.manifest import capabilities_json
from shared.orders import Order
from shared.policy_bundle import MAX_BUNDLE_BYTES
from shared.policy_folder import read_regular
from shared.rego import evaluate, load_rego

logger = get_logger(__name__)

RULE: Final = "data.agentfactory.accept_order"
SHIPPED: Final = "accept_order.rego"
UNDECIDED: Final = "POLICY_UNDECIDED"
MAX_REMEMBERED: Final = 4096
MAX_REASON_CHARS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the policy says of an order."""

    allowed: bool
    reason: str


class NodePolicy:
    """Asks the node's policy; remembers what it said, unless it looks at a clock or at randomness."""

    def __init__(self, *, source: str, data_json: str, path: str) -> None:
        """Prepare a policy.

        Raises:
            SettingsError: It is not Rego, or uses what this engine has not; the message names the place.
        """
        try:
            self._policy, self._is_pure = load_rego({path: source}, data_json)
        except PolicyInvalidError as error:
            raise SettingsError(str(error)) from error
        self._remembered: OrderedDict[tuple[Any, ...], Answer] = OrderedDict()
        self.digest: Digest = sha256_digest(source.encode() + data_json.encode())

    def check(self, order: Order) -> None:
        """Of check 17: let an order pass that the operator of this node wants to run.

        Raises:
            OrderRejectedError: The policy says no, or gives no answer; the reason is in it.
        """
        answer = self._answer(order)
        if not answer.allowed:
            raise OrderRejectedError(
                f"the policy of this node denies the order: {answer.reason} ({self.digest})",
                check=Check.NODE_POLICY,
                rejection=RejectionReason.POLICY,
            )

    def _answer(self, order: Order) -> Answer:
        if not self._is_pure:
            return self._asked(order)
        key = _key(order)
        answer = self._remembered.get(key)
        if answer is not None:
            self._remembered.move_to_end(key)
            return answer
        answer = self._asked(order)
        if answer.reason != UNDECIDED:
            self._remembered[key] = answer
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return answer

    def _asked(self, order: Order) -> Answer:
        try:
            said = evaluate(self._policy, RULE, canonical_json(document(order)).decode())
            return _answer_of(json.loads(said))
        except Exception as error:  # noqa: BLE001 - fail closed, whatever an engine raises
            logger.warning("the policy of this node gave no valid answer", error=str(error)[:512])
            return Answer(allowed=False, reason=UNDECIDED)


def document(order: Order) -> dict[str, Any]:
    """Return what the policy sees as ``input``: what an order says about its run, no id and no time."""
    return {
        "question": "accept_order",
        "installation": order.installation,
        "tenant_id": order.tenant_id,
        "caller": order.caller,
        "agent": order.agent_name,
        "template_digest": order.template_digest,
        "module_digest": order.module_digest,
        "profile": str(order.profile),
        "input_bytes": order.input_bytes,
        "capabilities": capabilities_json(order.capabilities),
        "limits": {name: getattr(order.limits, name) for name in LIMIT_FIELDS},
        "policy_digest": order.policy_digest,
        "retry_is_safe": order.retry_is_safe,
    }


def load_node_policy(policy_file: Path | None, data_file: Path | None) -> NodePolicy:
    """Return the operator's policy, or the shipped one, which accepts every valid order.

    Raises:
        SettingsError: A file cannot be read, is too large or not what it should be; data without a policy.
    """
    if policy_file is None:
        if data_file is not None:
            raise SettingsError("policy_data_file is set, but policy_file is not")
        shipped = (files("data_plane.orders") / SHIPPED).read_text(encoding="utf-8")
        return NodePolicy(source=shipped, data_json="{}", path=SHIPPED)
    try:
        source = read_regular(policy_file, MAX_BUNDLE_BYTES).decode()
        data = b"{}" if data_file is None else read_regular(data_file, MAX_BUNDLE_BYTES)
        data_json = canonical_json(parse_strict(data)).decode()
    except (AgentFactoryError, UnicodeDecodeError) as error:
        raise SettingsError(f"the policy of this node cannot be used: {error}") from error
    return NodePolicy(source=source, data_json=data_json, path=policy_file.name)


def _key(order: Order) -> tuple[Any, ...]:
    """What `document` is made of."""
    return (
        order.installation,
        order.tenant_id,
        order.caller,
        order.agent_name,
        order.template_digest,
        order.module_digest,
        order.profile,
        order.input_bytes,
        order.capabilities,
        order.limits,
        order.policy_digest,
        order.retry_is_safe,
    )


def _answer_of(said: Any) -> Answer:
    if not isinstance(said, dict):
        raise MalformedError("the answer is not an object")
    allowed, reason = said.get("allowed"), said.get("reason")
    if not isinstance(allowed, bool) or not isinstance(reason, str) or len(reason) > MAX_REASON_CHARS:
        raise MalformedError("the answer is not {allowed: bool, reason: string}")
    return Answer(allowed=allowed, reason=reason)
