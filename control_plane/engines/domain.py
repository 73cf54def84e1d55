"""Engines that are denied, as values. No I/O."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from shared.digests import parse_digest
from shared.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRule:
    """Which engines are meant: what is empty is any."""

    name: str
    version: str = ""
    config_digest: str = ""

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not self.version.isprintable():
            raise InvalidInputError("name and version of an engine are printable")
        if self.config_digest:
            parse_digest(self.config_digest)

    def fits(self, *, name: str, version: str, config_digests: Collection[str]) -> bool:
        """Whether a node's engine is meant, under one of its configurations."""
        return (
            self.name == name
            and self.version in {"", version}
            and (not self.config_digest or self.config_digest in config_digests)
        )

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.version, self.config_digest)))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDenial:
    """One denied engine."""

    rule: EngineRule
    reason: str
    denied_by: str
    denied_at: datetime
