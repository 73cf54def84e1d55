"""Policy and the gate in front of rare changes, from settings."""

import ssl

from control_plane.policy.builtin import builtin_policy
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.gate import PolicyGate
from control_plane.policy.opa_server import OpaPolicyEngines, TokenFile
from control_plane.policy.ports import PolicyEngines
from control_plane.policy.service import PolicyService
from control_plane.settings import ControlSettings
from control_plane.wiring.base import Base
from control_plane.wiring.stores import Stores
from shared.errors import SettingsError


def build_engines(settings: ControlSettings) -> PolicyEngines:
    """Return what loads bundles: OPA servers where some are named, else the engine in this process.

    Raises:
        SettingsError: The file of the token or of the certificates cannot be read.
    """
    if not settings.opa_urls:
        return EmbeddedPolicyEngines()
    try:
        return OpaPolicyEngines(
            settings.opa_urls,
            timeout=settings.opa_timeout,
            token=TokenFile(settings.opa_token_file) if settings.opa_token_file else None,
            ca_file=settings.opa_ca_file,
        )
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"the files for the OPA servers cannot be read: {error}") from error


async def build_policy(base: Base) -> PolicyService:
    """Load the policy in force.

    Raises:
        PolicyInvalidError: The engine cannot read it.
        UnavailableError: No OPA server serves it.
        SettingsError: As `build_engines`.
    """
    return PolicyService(
        engine=await build_engines(base.settings).load(builtin_policy(base.settings.allowed_http)),
        observer=base.metrics,
        clock=base.clock,
        random=base.random,
    )


def build_gate(base: Base, stores: Stores, policy: PolicyService) -> PolicyGate:
    return PolicyGate(
        policy=policy,
        decisions=stores.decisions,
        audit=base.audit,
        database=base.database,
        clock=base.clock,
        random=base.random,
    )
