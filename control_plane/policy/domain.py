"""Questions a policy answers, what it is made of and what an answer is. No engine, no clock, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from shared.canonical import JsonObject, canonical_json
from shared.digests import Digest, sha256_digest
from shared.errors import PolicyInvalidError
from shared.ids import DecisionId, TenantId
from shared.limits import Limits, RequestedLimits
from shared.manifest import Capabilities

PACKAGE: Final = "agentfactory"
"""The Rego package whose rules answer the questions."""

MAX_BUNDLE_BYTES: Final = 1024 * 1024
"""Of all files and the data together."""

MAX_BUNDLE_FILES: Final = 64


class Question(StrEnum):
    """What is asked; the name of the entry point in the policy."""

    PUBLISH_TEMPLATE = "publish_template"
    CREATE_AGENT = "create_agent"
    EXECUTE = "execute"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBundle:
    """A policy as it is evaluated, whoever signed it: Rego files and data, known by one digest."""

    files: Mapping[str, str]
    """Path to Rego text."""
    data_json: str
    """Canonical JSON of one object, `data` in the policy."""
    digest: Digest
    """Of the canonical JSON ``{"data": <digest>, "files": {<path>: <digest>}}``."""

    @classmethod
    def of(cls, files: Mapping[str, str], data: JsonObject) -> "PolicyBundle":
        """Return the bundle of these files and this data.

        Raises:
            PolicyInvalidError: There is no file, or there are more files or bytes than a bundle may hold.
            InvalidInputError: The data has no canonical form.
        """
        if not 0 < len(files) <= MAX_BUNDLE_FILES:
            raise PolicyInvalidError(
                f"the bundle has {len(files)} Rego files, 1 to {MAX_BUNDLE_FILES} are possible"
            )
        contents = {path: files[path].encode() for path in sorted(files)}
        data_json = canonical_json(data)
        size_bytes = len(data_json) + sum(map(len, contents.values()))
        if size_bytes > MAX_BUNDLE_BYTES:
            raise PolicyInvalidError(f"the bundle has {size_bytes} bytes, the bound is {MAX_BUNDLE_BYTES}")
        digests = {path: sha256_digest(content) for path, content in contents.items()}
        return cls(
            files={path: files[path] for path in contents},
            data_json=data_json.decode(),
            digest=sha256_digest(canonical_json({"data": sha256_digest(data_json), "files": digests})),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an engine said."""

    value_json: str
    """JSON of the rule's value."""
    engine_decision_id: str = ""
    """The engine's own name for this answer, as in an OPA server's decision log; empty if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who asks."""

    identity: str
    tenant_id: TenantId
    roles: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInput:
    """Everything a decision depends on. Equal inputs get equal answers while the policy stays the same."""

    subject: Subject
    template_name: str
    template_version: str
    template_digest: Digest
    capabilities: Capabilities
    limits: RequestedLimits
    """As the manifest asks."""
    publisher_key_id: str = ""
    agent: str = ""
    """Name of the agent; empty when a template is published."""
    input_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One answer, recorded with the change it allowed or as the denial it is."""

    decision_id: DecisionId
    tenant_id: TenantId
    question: Question
    allowed: bool
    reason: str
    """Machine-readable, e.g. ``ALLOWED``, ``CAPABILITY_NOT_ALLOWED``."""
    input: bytes
    """Canonical JSON of the input."""
    policy_digest: Digest
    limits: Limits
    """What is granted: the smaller of asked and allowed, every value named. Meaningless when denied."""
    decided_at: datetime
