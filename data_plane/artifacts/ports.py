"""What getting a module ready needs from the outside."""

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from data_plane.orders.domain import AttemptRef
from data_plane.sandbox.ports import ArtifactOpener
from shared.compiled import Target
from shared.digests import Digest
from shared.manifest import Manifest, Profile
from shared.orders import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedTemplate:
    """A template as it came over the wire. Nothing in it is verified."""

    envelope: bytes = field(repr=False)
    module: bytes = field(repr=False)


class TemplateSource(Protocol):
    """Where templates come from."""

    async def fetch_template(self, attempt: AttemptRef, template_digest: Digest) -> FetchedTemplate:
        """Fetch a template under the live lease of an attempt, within the format's bounds.

        Raises:
            UnavailableError: The source does not answer, or breaks off.
            MalformedError: It sends more, or something else, than a template.
            PermissionDeniedError: The lease is not live any more.
            NotFoundError: There is no such template.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledOffer:
    """What was compiled elsewhere, as it comes over the wire. Nothing in it is verified."""

    envelope: bytes = field(repr=False)
    """Of the template."""
    statement: bytes = field(repr=False)
    left_out: tuple[int, ...] = ()
    """Numbers of the pieces that do not come, because they were named as held."""
    pieces: AsyncIterator[bytes]
    """Compressed. Raises UnavailableError: the source broke off; MalformedError: what it sent is no piece."""


class CompiledSource(Protocol):
    """Where artifacts come from that were compiled elsewhere."""

    def fetch_compiled(
        self, attempt: AttemptRef, template_digest: Digest, target: Target, held: Collection[Digest]
    ) -> AbstractAsyncContextManager[CompiledOffer]:
        """Ask for one under the live lease of an attempt; nothing more comes once the block is left.

        Pieces that have one of the digests in `held`, packed, need not come: at most 512 are named.

        Raises:
            NotFoundError: There is none for this engine.
            UnavailableError, MalformedError, PermissionDeniedError: As `TemplateSource.fetch_template`.
        """


class ModuleObserver(Protocol):
    """Counts how modules come to this node. Every method is cheap and never raises."""

    def module_compiled(self) -> None:
        """This node compiled one itself."""

    def module_received(self) -> None:
        """One that was compiled elsewhere was taken."""

    def pieces_received(self, *, fetched: int, reused: int) -> None:
        """It was put together from so many pieces that came and so many that this node had."""

    def compiled_refused(self, reason: str) -> None:
        """One that was compiled elsewhere was not taken, for the reason of this error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModule:
    """A verified template, and the way to its compiled module."""

    manifest: Manifest
    open_artifact: ArtifactOpener
    vouched_by: str = ""
    """The compiler key whose word the compiled module is; empty: this node compiled it."""


class ModulePreparer(Protocol):
    """Makes the module of an order ready to be loaded."""

    async def prepare(self, order: Order) -> PreparedModule:
        """Checks 12 and 13. Cheap when the template and its artifact are here already.

        Raises:
            OrderRejectedError: One of the checks failed, or this node cannot do it now (busy).
        """

    def forget(self, module_digest: Digest, profile: Profile, *, vouched_by: str) -> None:
        """Drop a compiled module that a worker could not load; the next use compiles it here."""
