"""What host calls need from outside the node's process: the control plane's word, names and secrets."""

from typing import Protocol

from data_plane.orders.domain import AttemptRef


class KvStore(Protocol):
    """The committed values that an agent keeps between its runs."""

    async def get(self, attempt: AttemptRef, key: str) -> bytes | None:
        """Return the committed value of a key of the attempt's agent; None when it has none.

        Raises:
            HostCallRefusedError: The attempt's lease is not held any more, or there are too many calls.
            UnavailableError: The control plane cannot be asked now.
        """
        ...


class UnsafeIntents(Protocol):
    """Announces that an attempt is about to have an effect outside (design.md, rule 6)."""

    async def declare(self, attempt: AttemptRef) -> None:
        """Return once it is on record that the attempt makes an unsafe call; a repeat changes nothing.

        Raises:
            HostCallRefusedError: The attempt's lease is not held any more, or there are too many calls.
            UnavailableError: The control plane cannot be asked now.
        """
        ...
