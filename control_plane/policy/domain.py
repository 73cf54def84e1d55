"""Questions a policy answers, what it is made of and what an answer is. No engine, no clock, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from shared import decisions
from shared.canonical import JsonObject, canonical_json
from shared.digests import Digest, sha256_digest
from shared.errors import PolicyInvalidError
from shared.ids import DecisionId, TenantId
from shared.limits import Limits, RequestedLimits, requested_json
from shared.manifest import Capabilities, capabilities_json

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
    GRANT_CAPABILITIES = "grant_capabilities"
    """When an agent, or an execution of it, gets any."""
    PULL_ARTIFACT = "pull_artifact"
    """When a node fetches the module of an attempt that it holds."""
    ADMIT_NODE = "admit_node"
    """When a node enrolls, and when it opens a session."""
    READ_AUDIT = "read_audit"


GRANTING: Final = frozenset(map(Question, decisions.GRANTING))
"""Questions whose answer names every limit."""


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

    def document(self, question: Question) -> JsonObject:
        """Return what every input begins with."""
        return {
            "question": str(question),
            "subject": {
                "identity": self.identity,
                "tenant_id": self.tenant_id,
                "roles": sorted(self.roles),
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInput:
    """What is asked about a template, an agent or an execution: everything that the decision depends on."""

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

    def document(self, question: Question) -> JsonObject:
        """Return what the policy sees as ``input``."""
        return {
            **self.subject.document(question),
            "template": {
                "name": self.template_name,
                "version": self.template_version,
                "digest": self.template_digest,
                "publisher_key_id": self.publisher_key_id,
            },
            "agent": self.agent,
            "input_bytes": self.input_bytes,
            "capabilities": capabilities_json(self.capabilities),
            "limits": requested_json(self.limits),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInput:
    """What is asked about a node, and the module that it wants if it wants one."""

    subject: Subject
    node_id: str
    zone: str = ""
    stage: str = ""
    """``enroll`` or ``session`` when it is to be admitted."""
    module_digest: str = ""

    def document(self, question: Question) -> JsonObject:
        """Return what the policy sees as ``input``."""
        return {
            **self.subject.document(question),
            "node": {"node_id": self.node_id, "zone": self.zone, "stage": self.stage},
            "module": {"digest": self.module_digest},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditInput:
    """What is asked about the audit log."""

    subject: Subject
    method: str
    """E.g. ``ListAuditEntries``."""

    def document(self, question: Question) -> JsonObject:
        """Return what the policy sees as ``input``."""
        return {**self.subject.document(question), "audit": {"method": self.method}}


Asked = PolicyInput | NodeInput | AuditInput
"""Equal inputs get equal answers while a pure policy stays the same."""


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
    reasons: tuple[str, ...] = ()
    """Every reason of a denial."""
    input_digest: str = ""
    result_digest: str = ""
    """Of the canonical answer, granted limits included."""
    duration_us: int = 0
    """How long the caller waited for it; next to nothing when it was remembered."""
    engine: str = ""
    engine_decision_id: str = ""
