"""Every error this system raises on purpose, with its machine-readable reason. Maps nothing to gRPC or HTTP.

A class's docstring says when it is raised. `shared/rpc/status.py` holds the one table from class to status.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """What is wrong with one field of a request. Holds kinds and sizes, never the value."""

    field: str
    """Which: the name of a field of the request, and the way into it as a JSON pointer (RFC 6901)."""
    description: str
    """What was expected there, and what was found."""


class AgentFactoryError(Exception):
    """Base of every error this system raises on purpose."""

    reason: ClassVar[str]
    """Stable name for machines, upper snake case, unique per class."""

    hint: str | None = None
    """What the reader can do next; the class's default unless the raiser knows better."""

    retry_after: timedelta | None = None
    """When the same request may well succeed; None: nobody knows, or it will not by waiting."""

    violations: Sequence[FieldViolation] = ()
    """What is wrong field by field, where the error is about several."""

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: timedelta | None = None
    ) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint
        self.retry_after = retry_after


# --- requests ---


class InvalidInputError(AgentFactoryError):
    """A field is missing, malformed or outside its bounds."""

    reason = "INVALID_INPUT"
    hint = "correct the named field and send the request again"

    def __init__(
        self, message: str, *, hint: str | None = None, violations: Sequence[FieldViolation] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.violations = tuple(violations)


class NotFoundError(AgentFactoryError):
    """The named resource does not exist, or the caller may not know that it does."""

    reason = "NOT_FOUND"
    hint = "check the name or id"


class AlreadyExistsError(AgentFactoryError):
    """The name is taken by something else than what was sent."""

    reason = "ALREADY_EXISTS"
    hint = "choose another name or version; published versions never change"


class ConflictError(AgentFactoryError):
    """The resource changed between read and write."""

    reason = "CONFLICT"
    hint = "read the resource again and repeat the change"


class IdempotencyConflictError(AgentFactoryError):
    """The request id was used before with another request."""

    reason = "IDEMPOTENCY_CONFLICT"
    hint = "use a new request id for a new request"


class WrongStateError(AgentFactoryError):
    """The transition is not allowed from the current state."""

    reason = "WRONG_STATE"


# --- who may do what ---


class UnauthenticatedError(AgentFactoryError):
    """The caller presented no identity, or one that does not verify."""

    reason = "UNAUTHENTICATED"
    hint = "present a client certificate of this installation or a valid token"


class PermissionDeniedError(AgentFactoryError):
    """The caller's roles do not allow this method."""

    reason = "PERMISSION_DENIED"
    hint = "ask an administrator for the role that the message names"


class TenantRequiredError(InvalidInputError):
    """The caller chose no tenant, and none is its home; the message names those that it is bound in."""

    reason = "TENANT_REQUIRED"
    hint = "name one of them: metadata 'af-tenant', or --tenant on the command line"


class PolicyDeniedError(AgentFactoryError):
    """A policy decision said no; the message names the decision and its reason."""

    reason = "POLICY_DENIED"
    hint = "the decision id leads to the recorded reason"


class PolicyInvalidError(AgentFactoryError):
    """A policy bundle is too large, is not Rego, or uses what the engine in use has not."""

    reason = "POLICY_INVALID"
    hint = "correct the named places; what only the embedded engine lacks, an OPA server has"


class PolicyUndecidedError(AgentFactoryError):
    """A policy engine gave no answer: undefined, failed, too slow, or away. It means denied."""

    reason = "POLICY_UNDECIDED"


class EnrollmentTokenInvalidError(AgentFactoryError):
    """The enrollment token is unknown, used, expired, or not for this node's zone."""

    reason = "ENROLLMENT_TOKEN_INVALID"
    hint = "create a new token with 'agentfactory node token'"


class NodeQuarantinedError(AgentFactoryError):
    """The node broke its receipt chain (or sent two receipts for one sequence) and gets no orders."""

    reason = "NODE_QUARANTINED"
    hint = "look at the node's receipts, then evict it and enroll it anew"


class EngineDeniedError(AgentFactoryError):
    """The node runs agents with an engine that the installation denies; the message says why."""

    reason = "ENGINE_DENIED"
    hint = "upgrade the node; 'agentfactory engine list' shows what is denied"


class NodeEvictedError(AgentFactoryError):
    """The node's identity was ended by an operator or by a lost spool."""

    reason = "NODE_EVICTED"
    hint = "enroll the node again with a new token"


class SessionSupersededError(AgentFactoryError):
    """A newer session of the same node has taken over; the newest wins."""

    reason = "SESSION_SUPERSEDED"


class ClockSkewError(AgentFactoryError):
    """A peer's clock is further off than the named bound."""

    reason = "CLOCK_SKEW"
    hint = "synchronise the clock of that machine (NTP)"


# --- availability ---


class UnavailableError(AgentFactoryError):
    """A needed part is away for now; nothing was promised."""

    reason = "UNAVAILABLE"
    hint = "retry with backoff and the same request id"


class DatabaseUnavailableError(UnavailableError):
    """Postgres does not answer, or a commit's fate could not be learnt."""

    reason = "DATABASE_UNAVAILABLE"
    hint = "check that Postgres runs and that the database URL is right; service resumes by itself"


class KeyUnavailableError(UnavailableError):
    """The custodian of a signing key does not answer; nothing is signed meanwhile."""

    reason = "KEY_UNAVAILABLE"
    hint = "check the key custody (key file or Vault); service resumes by itself"


class ResourceExhaustedError(AgentFactoryError):
    """A named bound (queue, rate, size) is reached."""

    reason = "RESOURCE_EXHAUSTED"
    hint = "retry later with backoff, or ask the operator to raise the named bound"


class LlmQuotaExhaustedError(ResourceExhaustedError):
    """The tenant has used up what it may of language models today."""

    reason = "LLM_QUOTA_EXHAUSTED"
    hint = "come again tomorrow (UTC), or ask the operator to raise the tenant's quota"


class DeadlineExceededError(AgentFactoryError):
    """The deadline passed before the answer was there."""

    reason = "DEADLINE_EXCEEDED"
    hint = "an accepted execution goes on: find it by its request id"


class DiskFullError(ResourceExhaustedError):
    """A write failed because a disk, or the bound on a folder, is full."""

    reason = "DISK_FULL"
    hint = "free space in the named folder or lower its bound"


class SpoolFullError(ResourceExhaustedError):
    """The receipt spool has no room to reserve; the node takes no orders until receipts are acknowledged."""

    reason = "SPOOL_FULL"
    hint = "restore the connection to the control plane, or raise the spool's bound"


class SpoolLockedError(AgentFactoryError):
    """Another process holds the receipt spool's exclusive lock."""

    reason = "SPOOL_LOCKED"
    hint = "stop the other node process that uses this data folder"


class SpoolCorruptError(AgentFactoryError):
    """The spool's files contradict themselves beyond a torn tail; the node's identity ends."""

    reason = "SPOOL_CORRUPT"
    hint = "keep the folder as evidence and enroll the node anew"


class WorkerCrashedError(AgentFactoryError):
    """A sandbox worker died or broke its protocol, not the guest in it."""

    reason = "WORKER_CRASHED"
    hint = "see the node's log; a module that does this repeatedly is quarantined"


class ArtifactInvalidError(AgentFactoryError):
    """Compiled code is damaged, or was made by another engine or for another CPU; it is never run."""

    reason = "ARTIFACT_INVALID"
    hint = "remove it from the node's cache; the module is compiled anew"


class PortInUseError(AgentFactoryError):
    """An address to listen on is taken."""

    reason = "PORT_IN_USE"
    hint = "stop the other process or set another address"


class SettingsError(AgentFactoryError):
    """A setting is unknown, missing or has a bad value; the process does not start."""

    reason = "SETTINGS"


class InternalError(AgentFactoryError):
    """A bug of ours; details are in the log only."""

    reason = "INTERNAL"
    hint = "report it with the time and the request id"


# --- signatures and keys ---


class VerificationError(AgentFactoryError):
    """Signed bytes failed a check that has no class of its own; the message numbers the check."""

    reason = "VERIFICATION_FAILED"


class UnsignedError(VerificationError):
    """There is no signature where one is required."""

    reason = "UNSIGNED"
    hint = "sign it first ('agentfactory template sign' for templates)"


class SignatureInvalidError(VerificationError):
    """A signature by a known key does not cover these bytes, or too few trusted keys signed."""

    reason = "SIGNATURE_INVALID"
    hint = "the bytes or the signature were altered: get them again from their publisher"


class UnknownKeyError(VerificationError):
    """No signature names a key that is trusted for this purpose at this time."""

    reason = "UNKNOWN_KEY"
    hint = "check that the keyset in use lists the signer's key for this purpose"


class UnknownPublisherError(UnknownKeyError):
    """A template is signed, but by nobody in the list of trusted publishers."""

    reason = "UNKNOWN_PUBLISHER"
    hint = "add the publisher's public key to the trusted publishers, if it is to be trusted"


class KeyRevokedError(VerificationError):
    """The key was trusted once and is revoked."""

    reason = "KEY_REVOKED"


class PayloadTypeError(VerificationError):
    """The signed payload is of another type than the one expected here."""

    reason = "PAYLOAD_TYPE"


class UnknownFieldError(VerificationError):
    """A signed payload carries a field that this version does not know."""

    reason = "UNKNOWN_FIELD"
    hint = "upgrade this side, or sign a payload of a version that it accepts"


class UnsupportedVersionError(VerificationError):
    """The peer, a payload or a file speaks a version that this build does not."""

    reason = "UNSUPPORTED_VERSION"
    hint = "upgrade the older side; the current and the previous version are supported"


class MalformedError(VerificationError):
    """Bytes do not decode as what they should be, or exceed a bound of their format."""

    reason = "MALFORMED"


class ProofInvalidError(VerificationError):
    """A Merkle inclusion or consistency proof does not lead to the root."""

    reason = "PROOF_INVALID"


class LogForkedError(VerificationError):
    """A checkpoint of the log does not continue one that was verified before: there are two logs."""

    reason = "LOG_FORKED"


class EvidenceMismatchError(VerificationError):
    """Two parts of a receipt file, each well signed, are not about the same."""

    reason = "EVIDENCE_MISMATCH"


class EvidenceMissingError(VerificationError):
    """A receipt file lacks a part that would prove what it says."""

    reason = "EVIDENCE_MISSING"


class RollbackError(VerificationError):
    """A version, epoch or checkpoint is older than one already seen."""

    reason = "ROLLBACK"


class KeyFormatError(AgentFactoryError):
    """A key does not decode, or is of a kind or strength that is refused."""

    reason = "KEY_FORMAT"
    hint = "use RSA of at least 2048 bits with exponent 65537, or Ed25519, in PEM"


class KeyFileModeError(AgentFactoryError):
    """A private key file may be read by others than its owner."""

    reason = "KEY_FILE_MODE"


# --- templates ---


class ManifestInvalidError(VerificationError):
    """The manifest, agent.toml or a schema in it breaks a rule of the format."""

    reason = "MANIFEST_INVALID"


class PackageTooLargeError(VerificationError):
    """A file of a template package is larger than its bound."""

    reason = "PACKAGE_TOO_LARGE"


class PackageTruncatedError(VerificationError):
    """A file of a template package is missing or ends early."""

    reason = "PACKAGE_TRUNCATED"
    hint = "the transfer or the disk lost bytes: get the package again"


class PackageAlteredError(VerificationError):
    """A file of a template package is not the one that was signed."""

    reason = "PACKAGE_ALTERED"
    hint = "get the package again from its publisher"


class DecompressionBombError(VerificationError):
    """Compressed bytes unpack to more than the bound of their format."""

    reason = "DECOMPRESSION_BOMB"


class ModuleInvalidError(VerificationError):
    """The module is not WebAssembly that the engine accepts, or imports what is not offered."""

    reason = "MODULE_INVALID"


class ParentMissingError(ManifestInvalidError):
    """The template that another one extends is not published here, or is another one under its name."""

    reason = "PARENT_MISSING"
    hint = "publish the parent first, or build the template again against the parent that is published"


class TemplateCycleError(ManifestInvalidError):
    """A template extends itself, through others or at once."""

    reason = "TEMPLATE_CYCLE"
    hint = "take the version that the message names twice out of the chain"


class TemplateWidensError(ManifestInvalidError):
    """A template asks for more than the one that it extends; the message names each place."""

    reason = "TEMPLATE_WIDENS"
    hint = "ask for no more than the parent does, or extend another one"


class TemplateRetiredError(AgentFactoryError):
    """The template version is closed to new agents."""

    reason = "TEMPLATE_RETIRED"
    hint = "use a newer version of the template"


class TemplateRevokedError(AgentFactoryError):
    """The template version is forbidden; nothing of it starts."""

    reason = "TEMPLATE_REVOKED"


class StoppedError(AgentFactoryError):
    """An emergency stop holds the tenant or the template; nothing new of it starts until it is lifted."""

    reason = "STOPPED"
    hint = "wait until an operator lifts the stop ('agentfactory stop list' shows it)"


# --- host calls ---


class HostCallRefusedError(AgentFactoryError):
    """A host call of a guest is denied, or came to nothing; the guest gets the reason as a value."""

    reason = "HOST_CALL_REFUSED"

    def __init__(self, message: str, *, refusal: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.refusal = refusal
        """Why, for the guest and the receipt: upper snake case, e.g. `NOT_GRANTED` or `LEASE_NOT_HELD`."""


# --- orders and receipts ---


class RejectionReason(StrEnum):
    """Why a node refused an order, by the name that its signed rejection receipt carries."""

    SIGNATURE = "signature"
    FORMAT = "format"
    AUDIENCE = "audience"
    TIME = "time"
    REPLAY = "replay"
    FENCING = "fencing"
    TEMPLATE = "template"
    DIGEST = "digest"
    ENGINE = "engine"
    POLICY = "policy"
    LIMITS = "limits"
    ARTIFACT = "artifact"
    QUARANTINE = "quarantine"
    BUSY = "busy"
    DRAINING = "draining"
    STALE = "stale"
    SPOOL = "spool"

    @property
    def concerns_node_alone(self) -> bool:
        """Whether another node may well accept: excludes the node, does not count as an attempt (rule 1)."""
        return self in _NODE_ALONE


_NODE_ALONE = frozenset(
    {
        RejectionReason.BUSY,
        RejectionReason.DRAINING,
        RejectionReason.STALE,
        RejectionReason.SPOOL,
        RejectionReason.ENGINE,
        RejectionReason.TIME,  # by this node's clock, which may be the one that is wrong
    }
)


class OrderRejectedError(AgentFactoryError):
    """The order failed one of the node's numbered checks; it becomes a signed rejection receipt."""

    reason = "ORDER_REJECTED"

    def __init__(
        self, message: str, *, check: int, rejection: RejectionReason, hint: str | None = None
    ) -> None:
        super().__init__(f"check {check}: {message}", hint=hint)
        self.check = check
        self.rejection = rejection


class NotReplayableError(AgentFactoryError):
    """Running the execution again would prove nothing; the message says why."""

    reason = "NOT_REPLAYABLE"
    hint = "docs/replay.md says what can be replayed"


class ReceiptInvalidError(VerificationError):
    """A receipt does not match its node, its order or its own format; the message numbers the check."""

    reason = "RECEIPT_INVALID"


class ReceiptConflictError(VerificationError):
    """A node sent two different receipts for one sequence number."""

    reason = "RECEIPT_CONFLICT"
    hint = "the node is quarantined: both receipts are kept as evidence"
