"""Who may call what, from settings."""

import asyncio
import ssl
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

from control_plane.access.administration import AccessAdministration
from control_plane.access.denials import AuditedBreakGlass, AuditedDenials
from control_plane.access.domain import TokenIssuer, is_trusted_url
from control_plane.access.jwks import IssuerKeys, KeySource
from control_plane.access.jwks_files import FileKeys
from control_plane.access.rules import RULES
from control_plane.access.service import AccessService
from control_plane.access.servicer import AccessServicer
from control_plane.access.store import PostgresAccessStore, PostgresGrantStore
from control_plane.access.tokens import JwtVerifier, KnownIssuer
from control_plane.body_keys.administration import BodyKeyAdministration
from control_plane.settings import TokenIssuerSettings
from control_plane.wiring.base import Base
from shared import local_tokens
from shared.errors import SettingsError

_LOCAL_KEYS_MAX_AGE = timedelta(days=7)
"""The file lies beside the other keys of this process: while it cannot be read, nothing else is to be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The gatekeeper, and what runs beside it."""

    gatekeeper: AccessService
    servicer: AccessServicer
    keyrings: tuple[IssuerKeys, ...]

    async def run(self) -> NoReturn:
        """Keep the keys of all issuers."""
        async with asyncio.TaskGroup() as group:
            for keys in self.keyrings:
                group.create_task(keys.run())
            await asyncio.Event().wait()
        raise AssertionError("the keys of issuers are read for ever")


def build_access(base: Base, body_keys: BodyKeyAdministration) -> Access:
    issuers = _issuers(base)
    keyrings = [
        IssuerKeys(name=issuer.name, source=source, max_age=max_age, clock=base.clock)
        for issuer, source, max_age in issuers
    ]
    grants = PostgresGrantStore(base.database)
    denials = AuditedDenials(refusals=base.refusals, clock=base.clock, random=base.random)
    gatekeeper = AccessService(
        rules=RULES,
        installation=base.found.installation,
        grants=grants,
        tokens=JwtVerifier(
            issuers=[
                KnownIssuer(issuer=issuer, keys=keys)
                for (issuer, _, _), keys in zip(issuers, keyrings, strict=True)
            ],
            clock=base.clock,
        ),
        denials=denials,
        alarm=AuditedBreakGlass(audit=base.audit, counter=base.metrics, clock=base.clock, random=base.random),
        clock=base.clock,
    )
    return Access(
        gatekeeper=gatekeeper,
        servicer=AccessServicer(_administration(base, grants, denials, gatekeeper, body_keys)),
        keyrings=tuple(keyrings),
    )


def _administration(
    base: Base,
    grants: PostgresGrantStore,
    denials: AuditedDenials,
    gatekeeper: AccessService,
    body_keys: BodyKeyAdministration,
) -> AccessAdministration:
    store = PostgresAccessStore()
    return AccessAdministration(
        database=base.database,
        bindings=store,
        tenants=store,
        secrets=store,
        grants=grants,
        memory=gatekeeper,
        denials=denials,
        body_keys=body_keys,
        audit=base.audit,
        rules=RULES,
        installation=base.found.installation,
        clock=base.clock,
        random=base.random,
    )


def _issuers(base: Base) -> list[tuple[TokenIssuer, KeySource, timedelta]]:
    settings = base.settings.token_issuers
    found = [(_issuer(each), _source(each), each.keys_max_age) for each in settings]
    if base.paths.token_keys.exists():
        found.append((_local_issuer(base), FileKeys(base.paths.token_keys), _LOCAL_KEYS_MAX_AGE))
    for what in ("name", "issuer"):
        values = [getattr(issuer, what) for issuer, _, _ in found]
        if len(set(values)) != len(values):
            raise SettingsError(f"two token issuers have the same {what}")
    return found


def _local_issuer(base: Base) -> TokenIssuer:
    installation = base.found.installation
    return TokenIssuer(
        name=local_tokens.ISSUER_NAME,
        issuer=local_tokens.issuer_of(installation),
        audience=local_tokens.audience_of(installation),
        algorithms=frozenset({local_tokens.ALGORITHM}),
        max_life=local_tokens.MAX_LIFE,
        max_break_glass_life=local_tokens.MAX_BREAK_GLASS_LIFE,
    )


def _issuer(settings: TokenIssuerSettings) -> TokenIssuer:
    return TokenIssuer(
        name=settings.name,
        issuer=settings.issuer,
        audience=settings.audience,
        algorithms=frozenset(settings.algorithms),
        groups_claim=settings.groups_claim,
        max_life=settings.max_life,
    )


def _source(settings: TokenIssuerSettings) -> KeySource:
    if settings.jwks_file is not None:
        return FileKeys(settings.jwks_file)
    # Whoever asks no issuer loads no HTTP library.
    from control_plane.access.jwks_http import DiscoveredKeys, HttpKeys  # noqa: PLC0415

    try:
        trusted = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise SettingsError(f"cannot read {settings.ca_file} of token issuer {settings.name}") from error
    if settings.jwks_url is not None:
        return HttpKeys(url=settings.jwks_url, trusted=trusted)
    if not is_trusted_url(settings.issuer):
        raise SettingsError(
            f"token issuer {settings.name} has no https address to discover its keys at",
            hint="name its jwks_url or jwks_file",
        )
    return DiscoveredKeys(issuer=settings.issuer, trusted=trusted)
