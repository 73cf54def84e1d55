"""Use cases of nodes: tokens, enrollment, certificates, and what operators do to a node."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from control_plane.audit.domain import NewAuditEntry, node_actor
from control_plane.executions.ports import LeaseStore
from control_plane.keys.ports import CertificateAuthority, IssuedCertificate
from control_plane.nodes.domain import (
    ENROLL_PROOF_DOMAIN,
    EnrollmentToken,
    Node,
    NodeDuty,
    NodeState,
    hash_token,
)
from control_plane.nodes.ports import LiveSessions, NodeGate, NodeStore, RefusalLog
from control_plane.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from shared.clock import Clock, Random
from shared.errors import (
    AgentFactoryError,
    EnrollmentTokenInvalidError,
    InvalidInputError,
    KeyFormatError,
    SignatureInvalidError,
    UnauthenticatedError,
)
from shared.ids import AUDIT_ENTRY, NODE, BootId, InstallationId, NodeId, TenantId, new_id, parse_id
from shared.rpc.identity import node_spiffe_id
from shared.signatures import Algorithm, PublicKey

CERTIFICATE_LIFE: Final = timedelta(hours=24)
DEFAULT_TOKEN_LIFE: Final = timedelta(hours=1)
MAX_TOKEN_LIFE: Final = timedelta(days=7)
TOKEN_BYTES: Final = 32
TOKEN_PREFIX: Final = "aft_"  # noqa: S105 - how every token begins, no secret

_NO_BOOT: Final = BootId("")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token as its creator sees it, once."""

    secret: str
    expires_at: datetime
    max_uses: int

    def __repr__(self) -> str:
        return f"NewToken(secret='***', expires_at={self.expires_at!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentRequest:
    """What a machine sends to become a node."""

    token: str
    csr_der: bytes
    receipt_public_key: bytes
    receipt_key_proof: bytes
    zone: str = ""

    def __repr__(self) -> str:
        return "EnrollmentRequest(token='***')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """A new node and its first certificate."""

    node: Node
    certificate: IssuedCertificate


class NodeService:
    """What nodes ask for, and what operators ask about them."""

    def __init__(
        self,
        *,
        nodes: NodeStore,
        leases: LeaseStore,
        authority: CertificateAuthority,
        sessions: LiveSessions,
        installation: InstallationId,
        default_tenant: TenantId,
        refusals: RefusalLog,
        gate: NodeGate,
        clock: Clock,
        random: Random,
        certificate_life: timedelta = CERTIFICATE_LIFE,
    ) -> None:
        self._nodes = nodes
        self._leases = leases
        self._authority = authority
        self._sessions = sessions
        self._installation = installation
        self._default_tenant = default_tenant
        self._refusals = refusals
        self._gate = gate
        self._clock = clock
        self._random = random
        self._certificate_life = certificate_life

    # --- tokens and enrollment

    async def create_token(
        self,
        *,
        tenant_id: TenantId,
        actor: str,
        ttl: timedelta,
        zone: str,
        max_uses: int = 1,
        duty: NodeDuty = NodeDuty.RUN,
    ) -> NewToken:
        """Make an enrollment token. Zero `ttl` means one hour; only its hash is kept.

        Raises:
            InvalidInputError: The ttl is negative or above seven days; or it has several uses and no zone.
        """
        if max_uses > 1 and not zone:
            raise InvalidInputError("a token of several uses is bound to a zone, and none is named")
        ttl = ttl or DEFAULT_TOKEN_LIFE
        if not timedelta(0) < ttl <= MAX_TOKEN_LIFE:
            raise InvalidInputError(f"ttl must be within {MAX_TOKEN_LIFE.days} days, not {ttl}")
        raw = self._random.token_bytes(TOKEN_BYTES)
        secret = TOKEN_PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        now = self._clock.now()
        token = EnrollmentToken(
            token_hash=hash_token(secret),
            tenant_id=tenant_id,
            zone=zone,
            created_by=actor,
            created_at=now,
            expires_at=now + ttl,
            max_uses=max_uses,
            duty=duty,
        )
        await self._nodes.add_token(
            token,
            audit=self._entry(
                tenant_id,
                actor,
                "node.token_created",
                f"token:{token.token_hash[:16]}",
                zone=zone,
                max_uses=str(max_uses),
                duty=str(duty),
            ),
        )
        return NewToken(secret=secret, expires_at=token.expires_at, max_uses=max_uses)

    async def enroll(self, request: EnrollmentRequest) -> Enrolled:
        """Exchange a token and a certificate request for a node identity.

        1. The token is known, not used up, not expired, and good for the zone.
        2. The receipt key is an Ed25519 key.
        3. Its owner sent this: it signed the certificate request under its own domain.
        4. The authority accepts the certificate request.
        5. The token is used and the node added in one transaction: of two who race, one wins.

        Raises:
            EnrollmentTokenInvalidError: Check 1 or 5.
            KeyFormatError: Check 2.
            SignatureInvalidError: Check 3.
            InvalidInputError: Check 4.
            PolicyDeniedError: Policy admits no such node; the token stays usable.
            KeyUnavailableError: The authority does not answer.
        """
        token_hash = hash_token(request.token)
        token = await self._nodes.find_token(token_hash)
        try:
            return await self._enroll(request, token, token_hash)
        except (
            EnrollmentTokenInvalidError,
            InvalidInputError,
            KeyFormatError,
            SignatureInvalidError,
        ) as error:
            tenant_id = token.tenant_id if token is not None else self._default_tenant
            await self._refusals.record(
                self._denial(tenant_id, f"token:{token_hash[:16]}", "node.enroll_refused", error)
            )
            raise

    async def _enroll(
        self, request: EnrollmentRequest, token: EnrollmentToken | None, token_hash: str
    ) -> Enrolled:
        if token is None or not token.is_usable(self._clock.now()):
            raise EnrollmentTokenInvalidError("the enrollment token is unknown, used or expired")
        enrolled = await self._issue(request, token)
        await self._gate.admit(
            identity=f"token:{token_hash[:16]}",
            tenant_id=token.tenant_id,
            node_id=enrolled.node.node_id,
            zone=token.zone,
            stage="enroll",
        )
        await self._nodes.enroll(
            enrolled.node,
            token_hash=token_hash,
            audit=self._entry(
                token.tenant_id,
                f"token:{token_hash[:16]}",
                "node.enrolled",
                enrolled.node.node_id,
                receipt_key_id=enrolled.node.receipt_key_id,
                duty=str(enrolled.node.duty),
                certificate_serial=enrolled.certificate.serial,
            ),
        )
        return enrolled

    async def _issue(self, request: EnrollmentRequest, token: EnrollmentToken) -> Enrolled:
        zone = token.zone_of(request.zone)
        receipt_key = PublicKey.from_spki_der(request.receipt_public_key)
        if receipt_key.algorithm is not Algorithm.ED25519:
            raise KeyFormatError(f"a receipt key is Ed25519, not {receipt_key.algorithm}")
        receipt_key.verify(request.receipt_key_proof, ENROLL_PROOF_DOMAIN + request.csr_der)
        node_id = new_id(NODE, self._clock, self._random)
        certificate = await self._certificate(node_id, request.csr_der)
        node = Node(
            node_id=node_id,
            tenant_id=token.tenant_id,
            receipt_key_id=receipt_key.key_id,
            receipt_public_key=request.receipt_public_key,
            certificate_serial=certificate.serial,
            enrolled_at=self._clock.now(),
            zone=zone,
            duty=token.duty,
        )
        return Enrolled(node=node, certificate=certificate)

    async def _certificate(self, node_id: NodeId, csr_der: bytes) -> IssuedCertificate:
        return await self._authority.issue(
            csr_der,
            spiffe_id=node_spiffe_id(self._installation, node_id),
            ttl=self._certificate_life,
        )

    async def renew_certificate(self, node_id: NodeId, csr_der: bytes) -> IssuedCertificate:
        """Give a trusted node its next certificate; the one before stays valid until it expires.

        Raises:
            UnauthenticatedError: The node is not enrolled here.
            NodeQuarantinedError: It broke its receipt chain.
            NodeEvictedError: Its identity was ended.
            InvalidInputError: The authority refuses the certificate request.
        """
        node = await self._nodes.find(node_id)
        if node is None:
            raise UnauthenticatedError(f"node {node_id} is not enrolled here")
        actor = node_actor(node_id)
        try:
            node.require_trusted()
            certificate = await self._certificate(node_id, csr_der)
        except AgentFactoryError as error:
            await self._nodes.record(
                self._denial(node.tenant_id, node_id, "node.renew_refused", error, actor=actor)
            )
            raise
        await self._nodes.save_certificate(
            node_id,
            certificate.serial,
            audit=self._entry(
                node.tenant_id,
                actor,
                "node.certificate_renewed",
                node_id,
                certificate_serial=certificate.serial,
            ),
        )
        return certificate

    # --- what operators do

    async def admit_session(self, node_id: NodeId) -> None:
        """Let a node pass that policy gives a session. One that is not trusted is for its session to refuse.

        Raises:
            PolicyDeniedError: Policy says no.
        """
        node = await self._nodes.find(node_id)
        if node is None or node.state in {NodeState.QUARANTINED, NodeState.EVICTED}:
            return
        await self._gate.admit(
            identity=node_actor(node_id),
            tenant_id=node.tenant_id,
            node_id=node_id,
            zone=node.zone,
            stage="session",
        )

    async def get(self, tenant_id: TenantId, node_id: NodeId) -> Node:
        """Return one node.

        Raises:
            NotFoundError: The tenant has no such node.
        """
        return await self._nodes.get(tenant_id, node_id)

    async def list(
        self, tenant_id: TenantId, *, page_size: int, page_token: str
    ) -> tuple[Sequence[Node], str]:
        """Return a page of nodes, newest first, and the token of the next page; empty at the end.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """
        limit = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = parse_id(NODE, page_token) if page_token else None
        found = await self._nodes.list(tenant_id, after=after, limit=limit + 1)
        page = found[:limit]
        return page, page[-1].node_id if len(found) > limit else ""

    async def drain(self, tenant_id: TenantId, node_id: NodeId, *, actor: str) -> Node:
        """Give a node no more orders; what runs there ends. Repeats change nothing.

        Raises:
            NotFoundError: The tenant has no such node.
            NodeQuarantinedError: It gets no orders already, for another reason.
            NodeEvictedError: It is gone.
        """
        node = await self._nodes.get(tenant_id, node_id)
        if node.state is NodeState.DRAINING:
            return node
        entry = self._entry(tenant_id, actor, "node.drained", node_id)
        drained = await self._change(node, node.drain(), entry)
        drained.require_trusted()  # something stricter may have happened meanwhile
        return drained

    async def evict(self, tenant_id: TenantId, node_id: NodeId, *, actor: str, reason: str) -> Node:
        """End a node's identity at once; its attempts are lost. Repeats change nothing.

        Raises:
            NotFoundError: The tenant has no such node.
        """
        node = await self._nodes.get(tenant_id, node_id)
        if node.state is NodeState.EVICTED:
            return node
        entry = self._entry(tenant_id, actor, "node.evicted", node_id, reason=reason[:256])
        evicted = await self._change(node, node.evict(), entry)
        await self._leases.lose_attempts_of_other_boots(node_id, _NO_BOOT)
        return evicted

    async def _change(self, before: Node, after: Node, entry: NewAuditEntry) -> Node:
        details = {**entry.details, "from": before.state.value, "to": after.state.value}
        await self._nodes.save_state(after, audit=replace(entry, details=details))
        await self._sessions.node_changed(after.node_id)
        return await self._nodes.get(after.tenant_id, after.node_id)

    # --- audit

    def _entry(
        self,
        tenant_id: TenantId,
        actor: str,
        action: str,
        subject: str,
        *,
        result: str = "ok",
        **details: str,
    ) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=tenant_id,
            actor=actor,
            action=action,
            subject=subject,
            result=result,
            details=details,
        )

    def _denial(
        self,
        tenant_id: TenantId,
        subject: str,
        action: str,
        error: AgentFactoryError,
        *,
        actor: str = "anonymous",
    ) -> NewAuditEntry:
        return self._entry(tenant_id, actor, action, subject, result=error.reason, message=str(error)[:256])
