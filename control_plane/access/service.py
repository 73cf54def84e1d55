"""Lets callers in or refuses them, by the rules table and what their identity holds. Knows no gRPC object."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from control_plane.access.domain import Audit, Grant, Role, Rule
from control_plane.access.ports import DenialLog, GrantStore
from shared.clock import Clock
from shared.errors import AgentFactoryError, NodeEvictedError, PermissionDeniedError, UnauthenticatedError
from shared.ids import InstallationId, TenantId
from shared.logs import get_logger
from shared.rpc.identity import Admission, Caller, SpiffeId, parse_spiffe_id

logger = get_logger(__name__)

GRANT_LIFE: Final = timedelta(seconds=1)
"""How long a removed role or an evicted node may still pass."""

MAX_KNOWN: Final = 4096
"""Identities kept in memory; the oldest goes first."""

DEFAULT_TENANT: Final = TenantId("default")
ANONYMOUS: Final = "anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    caller: Caller
    roles: frozenset[Role]
    until: float
    """Monotonic seconds."""


class AccessService:
    """Implements `Gatekeeper`."""

    def __init__(
        self,
        *,
        rules: Mapping[str, Rule],
        installation: InstallationId,
        grants: GrantStore,
        denials: DenialLog,
        clock: Clock,
    ) -> None:
        self._rules = rules
        self._installation = installation
        self._grants = grants
        self._denials = denials
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def admit(self, method: str, identity: str | None) -> Admission:
        """Return the caller if the method's rule lets it in.

        Raises:
            PermissionDeniedError: The method has no rule, or the caller none of the rule's roles.
            UnauthenticatedError: There is no identity, or not one of this installation.
            NodeEvictedError: The node's identity was ended.
            DatabaseUnavailableError: What the identity holds cannot be read now.
        """
        rule = self._rules.get(method)
        if rule is None:
            raise PermissionDeniedError(f"no access rule for {method}: it is refused to everybody")
        known = self._known.get(identity) if identity is not None else None
        if known is None or known.until <= self._clock.monotonic():
            try:
                known = await self._look_up(rule, identity)
            except (UnauthenticatedError, PermissionDeniedError, NodeEvictedError) as error:
                await self._record(rule, method, None, identity or ANONYMOUS, error)
                raise
        if not rule.anonymous and known.roles.isdisjoint(rule.roles):
            refusal = PermissionDeniedError(
                f"{known.caller.identity} may not call {method}: it needs one of the roles "
                + ", ".join(sorted(rule.roles))
            )
            await self._record(rule, method, known.caller, known.caller.identity, refusal)
            raise refusal
        return Admission(caller=known.caller, deadline=rule.deadline)

    async def _look_up(self, rule: Rule, identity: str | None) -> _Known:
        if identity is None:
            if not rule.anonymous:
                raise UnauthenticatedError("the call carries no identity")
            return _anonymous()
        parsed = parse_spiffe_id(identity)
        if parsed.installation != self._installation:
            raise UnauthenticatedError(f"{identity} is not an identity of installation {self._installation}")
        grant = await self._grants.find(parsed)
        if grant is None and parsed.kind == "node":
            raise UnauthenticatedError(f"{identity} is not enrolled")
        if grant is not None and grant.evicted:
            raise NodeEvictedError(f"{identity} was evicted")
        return self._remember(identity, parsed, grant or Grant(tenant_id=DEFAULT_TENANT, roles=frozenset()))

    def _remember(self, identity: str, parsed: SpiffeId, grant: Grant) -> _Known:
        # A certificate of a node is a node and nothing else, whatever somebody bound to its name.
        roles = frozenset({Role.NODE}) if parsed.kind == "node" else grant.roles - {Role.NODE}
        known = _Known(
            caller=Caller(
                identity=identity,
                kind=parsed.kind,
                name=parsed.name,
                tenant_id=grant.tenant_id,
                roles=frozenset(str(role) for role in roles),
            ),
            roles=roles,
            until=self._clock.monotonic() + GRANT_LIFE.total_seconds(),
        )
        self._known.pop(identity, None)
        if len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[identity] = known
        return known

    async def _record(
        self, rule: Rule, method: str, known: Caller | None, actor: str, error: AgentFactoryError
    ) -> None:
        if rule.audit is Audit.NONE:
            return
        try:
            await self._denials.denied(
                actor=actor,
                known=known is not None,
                tenant_id=known.tenant_id if known is not None else DEFAULT_TENANT,
                method=method,
                reason=error.reason,
            )
        except AgentFactoryError:
            # The refusal stands; an audit log that is away must not turn it into another answer.
            logger.exception("denial not recorded", method=method, caller=actor, reason=error.reason)


def _anonymous() -> _Known:
    return _Known(
        caller=Caller(
            identity=ANONYMOUS, kind="anonymous", name=ANONYMOUS, tenant_id=DEFAULT_TENANT, roles=frozenset()
        ),
        roles=frozenset(),
        until=0.0,
    )
