"""Whether a filed decision is the permission of an order: check 6. Evaluates no policy."""

from shared.canonical import JsonObject, parse_canonical
from shared.decisions import EXECUTE
from shared.errors import MalformedError, UnknownKeyError, VerificationError
from shared.limits import requested_json
from shared.manifest import capabilities_json
from shared.orders import Order
from shared.packages import VerifiedManifest
from shared.receipt_file import FiledDecision
from shared.verification.same import as_json, require_same


def require_permission(decision: FiledDecision, order: Order, template: VerifiedManifest) -> None:
    """Return if the decision is the one that the order names, and allowed exactly what was ordered.

    What neither order nor template say (the caller's roles, the words of the reason) is covered by the
    decision's digest in the log.

    Raises:
        VerificationError: It denied, is about something else or malformed.
    """
    require_same("question", decision.question, EXECUTE)
    require_same("decision", decision.decision_id, order.decision_id)
    require_same("policy", decision.policy_digest, order.policy_digest)
    if not decision.result.allowed:
        raise VerificationError(f"the decision is no permission: {decision.result.reason}")
    require_same("granted limits", decision.result.limits, order.limits)
    asked = parse_canonical(decision.input)
    for name, expected in _expected_input(asked, order, template).items():
        require_same(f"input.{name}", as_json(asked.get(name)), as_json(expected))


def _expected_input(asked: JsonObject, order: Order, signed: VerifiedManifest) -> JsonObject:
    subject, template = asked.get("subject"), asked.get("template")
    if not isinstance(subject, dict) or not isinstance(template, dict):
        raise MalformedError("the decision's input lacks subject or template")
    publisher = template.get("publisher_key_id")
    if not isinstance(publisher, str) or publisher not in signed.publisher_key_ids:
        raise UnknownKeyError(f"the decision was about a template of publisher {str(publisher)[:80]!r}")
    return {
        "question": EXECUTE,
        "subject": {**subject, "identity": order.caller, "tenant_id": order.tenant_id},
        "template": {
            "name": signed.manifest.name,
            "version": signed.manifest.version,
            "digest": signed.digest,
            "publisher_key_id": publisher,
        },
        "agent": order.agent_name,
        "input_bytes": order.input_bytes,
        "capabilities": capabilities_json(order.capabilities),
        "limits": requested_json(signed.manifest.limits),
    }
