"""What dispatch needs besides the stores: keys, keysets, waiting callers, and somebody who counts."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from control_plane.engines.domain import EngineDenial
from control_plane.executions.domain import StoredBody, UnsignedOrder
from control_plane.executions.lifecycle import Execution
from control_plane.nodes.domain import NodeState
from shared.digests import Digest
from shared.ids import ExecutionId, KeyId, NodeId, OrderId, TenantId
from shared.receipts import AttemptIdentity
from shared.signatures import PublicKey


class Keysets(Protocol):
    """The newest root-signed keyset of the installation. The control plane only relays it (rule 12)."""

    async def newest(self) -> tuple[int, bytes]:
        """Return version and envelope.

        Raises:
            DatabaseUnavailableError: It cannot be read now.
        """

    async def freshness(self) -> bytes:
        """Return the newest statement of freshness; empty when there is none.

        Raises:
            DatabaseUnavailableError: It cannot be read now.
        """

    async def order_keys(self, at: datetime) -> dict[KeyId, PublicKey]:
        """Return the keys that may sign orders at this time.

        Raises:
            DatabaseUnavailableError: They cannot be read now.
        """


class Engines(Protocol):
    """Engines that the installation denies. Implemented by the store of denials."""

    async def denials(self) -> Sequence[EngineDenial]:
        """Return all.

        Raises:
            DatabaseUnavailableError: They cannot be read now.
        """


class Completions(Protocol):
    """Callers of this replica that wait for executions."""

    def complete(self, execution: Execution) -> None:
        """The execution changed and its change is committed; never blocks, never raises."""


class BodyStore(Protocol):
    """Uploaded outputs; the executions' store implements it."""

    async def find_output(self, execution_id: ExecutionId, commitment: Digest) -> StoredBody | None:
        """Return the unused uploaded body with this commitment of its tenant, without its content."""


class OrderLookup(Protocol):
    """Stored orders; the nodes' store implements it."""

    async def find_order(self, node_id: NodeId, order_digest: Digest) -> AttemptIdentity | None:
        """Return the attempt of a node's order; None when there is no such order."""

    async def unsigned_orders(self, node_id: NodeId, order_ids: Sequence[OrderId]) -> Sequence[UnsignedOrder]:
        """Return those of a node's orders whose batch has no signature on record."""


class Observer(Protocol):
    """Counts what happens; implemented by the metrics. Every method is cheap and never raises."""

    def stage(self, name: str, seconds: float, trace_id: str = "") -> None:
        """One stage of the path took this long: ``claim``, ``sign``, ``node``, ``finish``.

        `trace_id` names a trace that is kept and shows it.
        """

    def signature_failure(self, kind: str) -> None:
        """A signature from outside did not verify.

        Of a ``receipt``, ``spool_head`` or ``enrollment``; ``returned_order`` is the one that a node says its
        order came under.
        """

    def lease_expired(self, count: int) -> None:
        """Leases ran out."""

    def swept(self, outcome: str, tenant_id: TenantId, count: int) -> None:
        """So many executions of a tenant ended without a receipt: ``lost`` or ``expired``."""

    def session_opened(self, node_id: NodeId) -> None:
        """A session began."""

    def session_closed(self, node_id: NodeId) -> None:
        """A session ended."""

    def node_state(self, node_id: NodeId, state: NodeState) -> None:
        """A node was drained, quarantined or evicted."""


class SilentObserver:
    """An `Observer` for tools and tests that count nothing."""

    def stage(self, name: str, seconds: float, trace_id: str = "") -> None: ...
    def signature_failure(self, kind: str) -> None: ...
    def lease_expired(self, count: int) -> None: ...
    def swept(self, outcome: str, tenant_id: TenantId, count: int) -> None: ...
    def session_opened(self, node_id: NodeId) -> None: ...
    def session_closed(self, node_id: NodeId) -> None: ...
    def node_state(self, node_id: NodeId, state: NodeState) -> None: ...
