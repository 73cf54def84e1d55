"""What there is to compile and what was compiled, as values. No I/O."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from shared.compiled import CompiledStatement, pieces_in
from shared.digests import Digest
from shared.ids import CompiledArtifactId, KeyId, NodeId, TemplateVersionId, TenantId
from shared.manifest import Profile

MAX_AGE_OF_UPLOAD: Final = timedelta(hours=1)
"""What is not whole by then is dropped by the next upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A module that nobody compiled yet for an engine that somebody compiles for."""

    template_version_id: TemplateVersionId
    template_digest: Digest
    module_digest: Digest
    profile: Profile
    module_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A template version to compile the module of."""

    tenant_id: TenantId
    module_digest: Digest
    envelope: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCompiled:
    """An upload: what its signed statement says of it."""

    compiled_artifact_id: CompiledArtifactId
    statement: CompiledStatement
    envelope: bytes = field(repr=False)
    """The signed statement as it came."""
    key_id: KeyId
    node_id: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What is kept whole for one module and engine."""

    compiled_artifact_id: CompiledArtifactId
    envelope: bytes = field(repr=False)
    size_bytes: int

    @property
    def pieces(self) -> int:
        """How many pieces it has."""
        return pieces_in(self.size_bytes)
