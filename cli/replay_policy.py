"""Makes the policy decision of an order again, offline, from its recorded input and bundle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from control_plane.policy.answers import ask
from control_plane.policy.domain import PolicyBundle, Question
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.trial import load_rules
from data_plane.replay.domain import Step, StepResult
from shared.canonical import canonical_json, parse_canonical
from shared.digests import Digest
from shared.errors import MalformedError, PackageAlteredError, PolicyInvalidError
from shared.keyset import KeyPurpose, Keyset
from shared.orders import Order
from shared.policy_bundle import DATA_FILE, check_files, rules_of, verify_policy
from shared.receipt_file import FiledDecision

if TYPE_CHECKING:
    from agentfactory.v1 import policy_pb2

STEP: Final = "policy decision"
MAX_POLICY_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPolicy:
    """A bundle as it was kept."""

    version: int
    """0: it came with the control plane, unsigned; its digest is over its contents."""
    envelope: bytes = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)


def encode_policy(answer: "policy_pb2.GetPolicyBundleResponse") -> bytes:
    """Return a bundle as replay bundles carry it."""
    return canonical_json(
        {
            "version": answer.bundle.version,
            "envelope": answer.bundle.envelope.decode(),
            "files": {file.path: file.content.decode() for file in answer.files},
        }
    )


def decode_policy(data: bytes) -> RecordedPolicy:
    """Return what `encode_policy` was given.

    Raises:
        MalformedError: It is something else.
    """
    document = parse_canonical(data, max_bytes=MAX_POLICY_BYTES)
    version, envelope, files = (document.pop(name, None) for name in ("version", "envelope", "files"))
    is_text = isinstance(files, dict) and all(isinstance(text, str) for text in files.values())
    if type(version) is not int or not isinstance(envelope, str) or not is_text or document:
        raise MalformedError("policy: it is not {version, envelope, files}")
    assert isinstance(files, dict)
    contents = {path: str(text).encode() for path, text in files.items()}
    check_files(contents)
    return RecordedPolicy(version=version, envelope=envelope.encode(), files=contents)


async def decide_again(order: Order, decision: FiledDecision, policy: bytes, keyset: Keyset) -> Step:
    """Return whether a decision that a verified receipt holds comes out as recorded.

    1. The policy is the one that order and decision name: signed by a policy key that the keyset lists, or
       of the digest of what came with the control plane.
    2. Its answer to the recorded input is the recorded one.

    Raises:
        VerificationError: Check 1 does not hold.
    """
    if not policy:
        words = "the policy is not here: only auditors, operators and admins of the installation may see it"
        return Step(name=STEP, result=StepResult.SKIPPED, words=words)
    kept = decode_policy(policy)
    digest = _digest_of(kept, keyset)
    if not digest == order.policy_digest == decision.policy_digest:
        raise PackageAlteredError(f"check 1: the order names policy {order.policy_digest}, got {digest}")
    try:
        engine = await load_rules(EmbeddedPolicyEngines(), kept.files, digest)
    except PolicyInvalidError as error:
        words = f"the embedded engine does not take this policy ({error}): ask an OPA server"
        return Step(name=STEP, result=StepResult.SKIPPED, words=words)
    question = Question(decision.question)
    answer = await ask(engine, question, decision.input.decode())
    recorded = decision.result
    then = f"{'allowed' if recorded.allowed else 'denied'}: {recorded.reason}"
    if answer.result_digest(question) == recorded.digest(decision.question):
        return Step(name=STEP, result=StepResult.SAME, words=f"{then}, by policy {digest[:19]}")
    now = f"{'allowed' if answer.allowed else 'denied'}: {answer.reason}"
    return Step(name=STEP, result=StepResult.DIFFERENT, words=f"{then} then, {now} now")


def _digest_of(policy: RecordedPolicy, keyset: Keyset) -> Digest:
    if policy.version:
        keys = {entry.key_id: entry.key for entry in keyset.entries if entry.purpose is KeyPurpose.POLICY}
        return verify_policy(policy.envelope, policy.files, keys=keys).digest
    data = json.loads(policy.files.get(DATA_FILE, b"{}"))
    return PolicyBundle.of(rules_of(policy.files), data).digest
