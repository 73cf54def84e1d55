"""Proves to nodes that what they are told to run is in the log, and gives them its newest checkpoint."""

from dataclasses import dataclass

from control_plane.executions.domain import AttemptRef
from control_plane.executions.ports import LeaseStore
from control_plane.log.domain import InclusionProof
from control_plane.log.service import LogService
from shared.ids import NodeId
from shared.log_leaf import policy_fact, template_fact


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofForNode:
    """What a node is told; it believes none of it before it has verified it."""

    checkpoint: bytes
    consistency: tuple[bytes, ...]
    template: InclusionProof | None = None
    policy: InclusionProof | None = None


class NodeProofs:
    """What nodes may ask of the log."""

    def __init__(self, *, log: LogService, leases: LeaseStore) -> None:
        self._log = log
        self._leases = leases

    async def prove(self, node_id: NodeId, known_size: int, attempt: AttemptRef | None) -> ProofForNode:
        """Return the newest checkpoint, and where an attempt's template and policy are under it.

        What is recorded and not in the log yet is integrated now. A policy that has decided is recorded by
        its first use: the one that a control plane comes with is activated by nobody.

        Raises:
            PermissionDeniedError: The node holds no live lease of the attempt.
            NotFoundError: There is no checkpoint yet.
            InvalidInputError: The log is shorter than what the node knows of it.
        """
        if attempt is None:
            view = await self._log.view(known_size, ())
            return ProofForNode(checkpoint=view.checkpoint, consistency=view.consistency)
        live = await self._leases.live_attempt(node_id, attempt)
        template = template_fact(live.tenant_id, live.template_digest).subject
        policy = policy_fact(live.policy_digest).subject
        if not await self._log.covers((template, policy)):
            await self._log.note_policy(live.policy_digest)
            await self._log.include((template, policy))
        view = await self._log.view(known_size, (template, policy))
        return ProofForNode(
            checkpoint=view.checkpoint,
            consistency=view.consistency,
            template=view.proofs.get(template),
            policy=view.proofs.get(policy),
        )
