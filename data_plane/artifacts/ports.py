"""What getting a module ready needs from the outside."""

from dataclasses import dataclass, field
from typing import Protocol

from data_plane.orders.domain import AttemptRef
from data_plane.sandbox.ports import ArtifactOpener
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
class PreparedModule:
    """A verified template, and the way to its compiled module."""

    manifest: Manifest
    open_artifact: ArtifactOpener


class ModulePreparer(Protocol):
    """Makes the module of an order ready to be loaded."""

    async def prepare(self, order: Order) -> PreparedModule:
        """Checks 12 and 13. Cheap when the template and its artifact are here already.

        Raises:
            OrderRejectedError: One of the checks failed, or this node cannot do it now (busy).
        """

    def forget(self, module_digest: Digest, profile: Profile) -> None:
        """Drop a compiled module that a worker could not load; the next use compiles it again."""
