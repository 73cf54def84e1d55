"""Lets callers in or refuses them, by the rules table and what their identity holds. Knows no gRPC object."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from control_plane.access.domain import (
    CLOCK_LEEWAY,
    DEFAULT_TENANT,
    OF_NODES,
    Audit,
    Bound,
    Grant,
    Reach,
    Role,
    Rule,
    choose,
)
from control_plane.access.ports import BreakGlassLog, DenialLog, GrantStore, TokenVerifier
from shared.clock import Clock
from shared.errors import (
    AgentFactoryError,
    NodeEvictedError,
    PermissionDeniedError,
    TenantRequiredError,
    UnauthenticatedError,
)
from shared.ids import InstallationId, TenantId
from shared.logs import get_logger
from shared.rpc.identity import Admission, Caller, IdentityKind, Principal, parse_spiffe_id

logger = get_logger(__name__)

GRANT_LIFE: Final = timedelta(seconds=1)
"""How long a removed role or an evicted node may still pass."""

MAX_KNOWN: Final = 4096
"""Identities kept in memory; the oldest goes first."""

ANONYMOUS: Final = "anonymous"


_Key = tuple[str, frozenset[str], str]
"""Identity, groups and the tenant it chose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    caller: Caller
    roles: frozenset[Role]
    until: float
    """Monotonic seconds."""


class AccessService:
    """Implements `Gatekeeper` and `GrantMemory`."""

    def __init__(
        self,
        *,
        rules: Mapping[str, Rule],
        installation: InstallationId,
        grants: GrantStore,
        tokens: TokenVerifier,
        denials: DenialLog,
        alarm: BreakGlassLog,
        clock: Clock,
    ) -> None:
        self._rules = rules
        self._installation = installation
        self._grants = grants
        self._tokens = tokens
        self._denials = denials
        self._alarm = alarm
        self._clock = clock
        self._known: dict[_Key, _Known] = {}
        self._homes: dict[str, TenantId] = {}

    async def authenticate(self, method: str, token: str) -> Principal:
        """See `Gatekeeper.authenticate`. A refusal is recorded as one of nobody's.

        Raises:
            UnauthenticatedError: The token does not verify.
        """
        try:
            return await self._tokens.verify(token)
        except UnauthenticatedError as error:
            rule = self._rules.get(method)
            if rule is not None:
                await self._record(rule, method, None, ANONYMOUS, error)
            raise

    def forget(self) -> None:
        """See `GrantMemory.forget`."""
        self._known.clear()

    async def admit(self, method: str, principal: Principal | None, tenant: str = "") -> Admission:
        """Return the caller if the method's rule lets it in.

        Raises:
            PermissionDeniedError: The method has no rule, or the caller none of the rule's roles, or nothing
                in the tenant that it chose.
            TenantRequiredError: The caller chose no tenant, and none is its home.
            UnauthenticatedError: There is no identity, or not one of this installation.
            NodeEvictedError: The node's identity was ended.
            DatabaseUnavailableError: What the identity holds cannot be read now.
        """
        rule = self._rules.get(method)
        if rule is None:
            raise PermissionDeniedError(f"no access rule for {method}: it is refused to everybody")
        if rule.anonymous:
            return Admission(
                caller=_ANYBODY, deadline=rule.deadline, beyond_tenant=_is_beyond(rule, DEFAULT_TENANT)
            )
        try:
            known = await self._identified(rule, principal, tenant)
        except (UnauthenticatedError, PermissionDeniedError, NodeEvictedError, TenantRequiredError) as error:
            await self._record(rule, method, None, principal.identity if principal else ANONYMOUS, error)
            raise
        if not _opens(rule, known):
            refusal = PermissionDeniedError(
                f"{known.caller.identity} may not call {method}: it needs one of the roles "
                + ", ".join(sorted(rule.roles))
                + (f" in tenant {DEFAULT_TENANT}" if rule.of_installation else "")
            )
            await self._record(rule, method, known.caller, known.caller.identity, refusal)
            raise refusal
        if principal is not None and principal.break_glass:
            await self._alarm.used(principal, tenant_id=known.caller.tenant_id, method=method)
        return Admission(
            caller=known.caller,
            deadline=rule.deadline,
            identified_for=self._left(principal),
            beyond_tenant=_is_beyond(rule, known.caller.tenant_id),
        )

    def _left(self, principal: Principal | None) -> timedelta | None:
        if principal is None or principal.expires_at is None:
            return None
        return principal.expires_at + CLOCK_LEEWAY - self._clock.now()

    async def _identified(self, rule: Rule, principal: Principal | None, tenant: str) -> _Known:
        if principal is None:
            raise UnauthenticatedError("the call carries no identity")
        if principal.tenant and tenant and tenant != principal.tenant:
            raise PermissionDeniedError(f"the token counts in tenant {principal.tenant} only")
        wanted = tenant or principal.tenant
        key = (principal.identity, principal.groups, wanted)
        if principal.break_glass:
            grant = Grant(tenant_id=TenantId(wanted or DEFAULT_TENANT), roles=frozenset({Role.ADMIN}))
            return _known(key, "caller", principal.identity.partition("/")[2], grant, 0.0)
        known = self._known.get(key)
        if known is not None and self._clock.monotonic() < known.until:
            return known
        kind, name, held = await self._look_up(principal)
        if isinstance(held, Grant):
            return self._remember(key, kind, name, held)
        home = None if wanted else await self._home(principal.identity, held)
        if rule.identified and not wanted and held and home not in held:
            # It asks who it is, or brings a secret of the installation: no tenant is needed for that.
            return _known(key, kind, name, Grant(tenant_id=DEFAULT_TENANT, roles=frozenset()), 0.0)
        grant = choose(principal.identity, held, wanted, DEFAULT_TENANT, home)
        return self._remember(key, kind, name, grant)

    async def _home(self, identity: str, held: Bound) -> TenantId | None:
        """Return where calls count that name no tenant: the only one there was at the first such call."""
        known = self._homes.get(identity)
        if not held or known in held:
            return known
        home = await self._grants.home(identity)
        if home is None and len(held) == 1:
            (home,) = held
            await self._grants.settle(identity, home)
        if home is not None:
            if len(self._homes) >= MAX_KNOWN:
                self._homes.pop(next(iter(self._homes)))
            self._homes[identity] = home
        return home

    async def _look_up(self, principal: Principal) -> tuple[IdentityKind, str, Grant | Bound]:
        identity = principal.identity
        if principal.issuer:
            subjects = {identity, *principal.groups}
            return "caller", identity.partition("/")[2], await self._grants.bound(subjects)
        parsed = parse_spiffe_id(identity)
        if parsed.installation != self._installation:
            raise UnauthenticatedError(f"{identity} is not an identity of installation {self._installation}")
        if parsed.kind != "node":
            return parsed.kind, parsed.name, await self._grants.bound({identity})
        enrolled = await self._grants.node(parsed.name)
        if enrolled is None:
            raise UnauthenticatedError(f"{identity} is not enrolled")
        if enrolled.evicted:
            raise NodeEvictedError(f"{identity} was evicted")
        return parsed.kind, parsed.name, enrolled

    def _remember(self, key: _Key, kind: IdentityKind, name: str, grant: Grant) -> _Known:
        known = _known(key, kind, name, grant, self._clock.monotonic() + GRANT_LIFE.total_seconds())
        self._known.pop(key, None)
        if len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[key] = known
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


def _known(key: _Key, kind: IdentityKind, name: str, grant: Grant, until: float) -> _Known:
    # A certificate of a node is a node and nothing else, whatever somebody bound to its name.
    roles = grant.roles & OF_NODES if kind == "node" else grant.roles - OF_NODES
    return _Known(
        caller=Caller(
            identity=key[0],
            kind=kind,
            name=name,
            tenant_id=grant.tenant_id,
            roles=frozenset(str(role) for role in roles),
            groups=key[1],
        ),
        roles=roles,
        until=until,
    )


def _opens(rule: Rule, known: _Known) -> bool:
    if rule.identified and known.caller.kind != "node":
        return True
    if rule.of_installation and known.caller.tenant_id != DEFAULT_TENANT:
        return False
    return not known.roles.isdisjoint(rule.roles)


def _is_beyond(rule: Rule, tenant_id: TenantId) -> bool:
    if rule.reach is Reach.ADMINISTERED:
        return tenant_id == DEFAULT_TENANT
    return rule.reach is Reach.EVERY_TENANT


_ANYBODY: Final = Caller(
    identity=ANONYMOUS, kind="anonymous", name=ANONYMOUS, tenant_id=DEFAULT_TENANT, roles=frozenset()
)
