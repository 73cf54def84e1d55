"""Template versions as values. No I/O."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from shared.digests import Digest
from shared.errors import InvalidInputError, TemplateRetiredError, TemplateRevokedError
from shared.ids import KeyId, TemplateVersionId, TenantId
from shared.manifest import Profile


class TemplateState(StrEnum):
    """What a version may still be used for. Only forward: active → retired → revoked."""

    ACTIVE = "active"
    RETIRED = "retired"
    """No new agents and no new executions; what runs goes on to its end."""
    REVOKED = "revoked"
    """Nothing of it starts, and what runs is stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateVersion:
    """One immutable signed recipe. Only its state ever changes."""

    template_version_id: TemplateVersionId
    tenant_id: TenantId
    name: str
    version: str
    digest: Digest
    """SHA-256 of the canonical manifest."""
    module_digest: Digest
    module_bytes: int
    publisher_key_id: KeyId
    state: TemplateState
    manifest: bytes = field(repr=False)
    envelope: bytes = field(repr=False)
    """Exactly as published; empty in lists."""
    ancestors: tuple[Digest, ...] = ()
    """The versions that it extends, the nearest first. Their state is never ahead of its own."""
    profile: Profile = Profile.DEFAULT
    """Its manifest's; of versions from before schema 0027 the default one."""
    published_by: str
    published_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRef:
    """Names one version: by name and version, by digest, or by name and channel."""

    name: str = ""
    version: str = ""
    digest: str = ""
    channel: str = ""
    """The version at which it points now."""

    def __post_init__(self) -> None:
        ways = [bool(self.version), bool(self.digest), bool(self.channel)]
        if sum(ways) != 1 or bool(self.name) == bool(self.digest):
            raise InvalidInputError(
                "a template is named by name and version, by name and channel, or by digest alone"
            )

    def __str__(self) -> str:
        return self.digest or f"{self.name} {self.version or self.channel}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplatePage:
    """One page of versions, newest first."""

    versions: tuple[TemplateVersion, ...]
    next_page_token: str
    """Empty when this is the last one."""


def require_open(version: TemplateVersion) -> None:
    """Let versions pass that new agents and executions may use.

    Raises:
        TemplateRetiredError: It is retired.
        TemplateRevokedError: It is revoked.
    """
    name = f"template {version.name} {version.version}"
    if version.state is TemplateState.RETIRED:
        raise TemplateRetiredError(f"{name} is retired")
    if version.state is TemplateState.REVOKED:
        raise TemplateRevokedError(f"{name} is revoked")
