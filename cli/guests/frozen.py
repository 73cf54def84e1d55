"""What a start must not read, because the answer would be saved with it and be the same in every run."""

from enum import StrEnum
from typing import Final


class Frozen(StrEnum):
    """Something of a run that code outside functions asked for at build time."""

    CLOCK = "clock"
    RANDOM = "random"
    ENVIRONMENT = "environment"
    HOST_CALL = "host_call"


WORDS: Final = {
    Frozen.CLOCK: "the agent reads the clock while it is loaded: every run would see the time of the build",
    Frozen.RANDOM: "the agent draws random numbers while it is loaded: every run would have the same",
    Frozen.ENVIRONMENT: "the agent reads its environment while it is loaded: that would be in the template",
    Frozen.HOST_CALL: "the agent calls its host while it is loaded: there is no host at build time",
}
HINT: Final = "move it into run() or a function that run() calls"
