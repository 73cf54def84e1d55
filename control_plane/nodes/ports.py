"""What the use cases of nodes need from the outside."""

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from control_plane.audit.domain import NewAuditEntry
from control_plane.compiled.domain import Compiled
from control_plane.nodes.domain import NOTHING_SEEN, EngineInfo, EnrollmentToken, LogSeen, Node, SandboxLayer
from shared.compiled import Target
from shared.digests import Digest
from shared.ids import BootId, ExecutionId, NodeId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpening:
    """What a session's record is made from."""

    node_id: NodeId
    boot_id: BootId
    replica_id: str
    engine: EngineInfo
    slots: int
    sandbox_layers: tuple[SandboxLayer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionBeat:
    """One open session of this replica, for the record that it lives."""

    node_id: NodeId
    session_epoch: int
    free_slots: int
    log: LogSeen = NOTHING_SEEN


class NodeStore(Protocol):
    """Keeps nodes, tokens and sessions. Every change commits together with its audit entry."""

    async def add_token(self, token: EnrollmentToken, *, audit: NewAuditEntry) -> None:
        """Keep a new token."""

    async def find_token(self, token_hash: str) -> EnrollmentToken | None:
        """Return the token with this hash."""

    async def enroll(self, node: Node, *, token_hash: str, audit: NewAuditEntry) -> None:
        """Use the token and add the node, in one transaction.

        Raises:
            EnrollmentTokenInvalidError: The token is unknown, used or expired by the database's time.
        """

    async def get(self, tenant_id: TenantId, node_id: NodeId) -> Node:
        """Return the node with its newest session.

        Raises:
            NotFoundError: The tenant has no such node.
        """

    async def find(self, node_id: NodeId) -> Node | None:
        """Return the node of a certificate, whatever its tenant."""

    async def list(self, tenant_id: TenantId, *, after: NodeId | None, limit: int) -> Sequence[Node]:
        """Return up to `limit` nodes, newest first, older than `after`."""

    async def save_state(self, node: Node, *, audit: NewAuditEntry) -> None:
        """Write the node's state and tell every replica, unless its state became as strict by now.

        What was decided on an older state lifts nothing: see `NodeState.may_follow`.

        Raises:
            NotFoundError: There is no such node.
        """

    async def save_certificate(self, node_id: NodeId, serial: str, *, audit: NewAuditEntry) -> None:
        """Write the serial of a renewed certificate."""

    async def record(self, audit: NewAuditEntry) -> None:
        """Keep a denial that changes nothing else."""

    async def open_session(self, opening: SessionOpening, *, audit: NewAuditEntry) -> int:
        """Return the session's epoch, higher than any before of this node, and tell every replica.

        Raises:
            NodeQuarantinedError: The node's state does not allow a session.
            NodeEvictedError: The same.
        """

    async def close_sessions(self, closed: Sequence[tuple[NodeId, int]]) -> None:
        """Mark sessions, by node and epoch, as closed, each if it is still its node's newest."""

    async def beat(self, beats: Sequence[SessionBeat]) -> Sequence[NodeId]:
        """Note that sessions live; return the nodes whose newest session is another one by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptOwner:
    """Whose an attempt is, and what its order lets it hand in."""

    tenant_id: TenantId
    output_bytes: int
    log_bytes: int
    recording_bytes: int
    """Zero: its guest makes no host calls that are recorded."""


class RefusalLog(Protocol):
    """Keeps refusals of peers that nobody knows, within bounds. Implemented by control_plane/audit."""

    async def record(self, audit: NewAuditEntry) -> None:
        """Keep a refusal, or count it when there are too many."""


class AttemptOwners(Protocol):
    """Whose an attempt is or was: the right to hand in a late output as evidence (rule 6)."""

    async def owner_of_attempt(
        self, node_id: NodeId, execution_id: ExecutionId, fencing_token: int
    ) -> AttemptOwner:
        """Return whose an attempt is that this node was given, live or not.

        Raises:
            PermissionDeniedError: The attempt was never this node's.
        """


class TemplateContents(Protocol):
    """Signed templates and their modules, as they were published. Implemented by control_plane/templates."""

    async def envelope(self, tenant_id: TenantId, template_digest: Digest) -> bytes:
        """Return the template's DSSE envelope.

        Raises:
            NotFoundError: The tenant has no such template version.
            TemplateRevokedError: It is revoked.
        """

    async def module(self, module_digest: Digest, *, offset_bytes: int, max_bytes: int) -> bytes:
        """Return a piece of the module's exact bytes; empty behind its end.

        Raises:
            NotFoundError: There is no such module.
        """


class CompiledContents(Protocol):
    """What compiling nodes made of modules. Implemented by control_plane/compiled."""

    async def find(self, module_digest: Digest, target: Target) -> Compiled | None:
        """Return what a module was compiled to for an engine, by a key that counts now."""

    async def held(self, compiled: Compiled, digests: Collection[Digest]) -> tuple[int, ...]:
        """Return the numbers of those pieces that have one of these digests, compressed; ascending.

        Raises:
            VerificationError: The key that vouches for it stopped counting meanwhile.
        """

    def pieces(self, compiled: Compiled, *, without: Collection[int] = ()) -> AsyncGenerator[bytes, None]:
        """Yield an artifact's pieces, compressed, but for some.

        Raises:
            NotFoundError: It was dropped meanwhile.
        """


class LiveSessions(Protocol):
    """The sessions of this replica, as far as an operator's command concerns them. Dispatch implements it."""

    async def node_changed(self, node_id: NodeId) -> None:
        """The node's state changed in the database: act on it if its session is here."""


class NodeGate(Protocol):
    """Asks policy about nodes; every decision is recorded. Implemented by control_plane/policy."""

    async def admit(
        self, *, identity: str, tenant_id: TenantId, node_id: NodeId, zone: str, stage: str
    ) -> None:
        """Let a node pass that may enroll (``enroll``), or open a session (``session``).

        Raises:
            PolicyDeniedError: It may not.
        """

    async def pull(
        self, *, identity: str, tenant_id: TenantId, node_id: NodeId, module_digest: Digest
    ) -> None:
        """Let a node pass that may fetch the module of an attempt that it holds.

        Raises:
            PolicyDeniedError: It may not.
        """
