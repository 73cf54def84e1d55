"""What an execution was made of, as parts that travel one after another. No I/O."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from control_plane.executions.domain import BodyKind
from shared.digests import Digest
from shared.ids import BodyId


class PartKind(StrEnum):
    """What a part is."""

    MODULE = "module"
    PARAMETERS = "parameters"
    INPUT = "input"
    OUTPUT = "output"
    LOG = "log"
    RECORDING = "recording"


BODY_PARTS: Final = {
    PartKind.INPUT: BodyKind.INPUT,
    PartKind.OUTPUT: BodyKind.OUTPUT,
    PartKind.LOG: BodyKind.LOG,
    PartKind.RECORDING: BodyKind.RECORDING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """What the row of an execution says about its run."""

    module_digest: Digest
    module_bytes: int
    parameters: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The header of one part; its bytes follow."""

    kind: PartKind
    size_bytes: int
    salt: bytes = field(default=b"", repr=False)
    body_id: BodyId | None = None
