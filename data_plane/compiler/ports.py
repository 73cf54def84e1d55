"""What compiling for others needs from the outside."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from data_plane.artifacts.ports import FetchedTemplate
from shared.compiled import Target
from shared.digests import Digest
from shared.manifest import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """A module that somebody says is to be compiled. Nothing in it is verified."""

    template_digest: Digest
    module_digest: Digest
    profile: Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page of them."""

    compilations: tuple[Compilation, ...]
    next_page_token: str
    keyset: bytes = field(repr=False)
    """The newest root-signed keyset, as it is relayed."""


class CompileDesk(Protocol):
    """Where there is something to compile, and where the product goes."""

    async def list(self, targets: Sequence[Target], page_token: str) -> Listing:
        """Return a page of what nobody compiled yet for any of the targets.

        Raises:
            UnavailableError: The control plane does not answer.
            AgentFactoryError: It refuses; the class says why.
        """

    async def fetch(self, template_digest: Digest) -> FetchedTemplate:
        """Fetch a template, within the format's bounds.

        Raises:
            MalformedError: More came, or something else, than a template.
            AgentFactoryError: As `list`.
        """

    async def hand_in(self, statement: bytes, pieces: AsyncIterator[bytes]) -> bool:
        """Hand in what a module was compiled to; False: there was one already.

        Raises:
            AgentFactoryError: As `list`.
        """
