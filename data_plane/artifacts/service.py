"""Makes the module of an order ready: fetches, verifies, compiles once, and vouches for it on every load.

Checks 12 and 13 of the node. The template is verified here with the same function as at the control
plane, under the publishers of the keyset that is in force now, not when it was fetched.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from data_plane.artifacts.cache import ArtifactCache
from data_plane.artifacts.elsewhere import CompiledElsewhere
from data_plane.artifacts.memory import memory_file
from data_plane.artifacts.ports import ModuleObserver, PreparedModule, TemplateSource
from data_plane.orders.domain import attempt_of
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.verifier import Check
from data_plane.sandbox.ports import Compiler
from shared.clock import Clock
from shared.digests import Digest
from shared.errors import (
    AgentFactoryError,
    ArtifactInvalidError,
    ModuleInvalidError,
    NotFoundError,
    OrderRejectedError,
    PackageAlteredError,
    RejectionReason,
    ResourceExhaustedError,
    UnknownPublisherError,
    VerificationError,
    WorkerCrashedError,
)
from shared.keyset import KeyPurpose
from shared.logs import get_logger
from shared.manifest import Profile
from shared.orders import Order
from shared.packages import VerifiedManifest, verify_manifest, verify_package

logger = get_logger(__name__)

MAX_TEMPLATES_IN_MEMORY: Final = 1024
MAX_FAILED_MODULES: Final = 1024
FAILURE_IS_REMEMBERED: Final = timedelta(minutes=10)
"""A module that took the compiler down is not compiled again for each order: that may cost minutes of CPU."""

MAX_COMPILATIONS: Final = 1
"""At once: a compilation takes a whole core from the guests."""


class ArtifactService:
    """A `ModulePreparer` over the disk cache, the control plane's templates and the jailed compiler."""

    def __init__(
        self,
        *,
        cache: ArtifactCache,
        source: TemplateSource,
        compiler: Compiler,
        keyset: NodeKeyset,
        observer: ModuleObserver,
        clock: Clock,
        elsewhere: CompiledElsewhere | None = None,
    ) -> None:
        """Without `elsewhere` every module is compiled on this node."""
        self._cache = cache
        self._source = source
        self._compiler = compiler
        self._keyset = keyset
        self._clock = clock
        self._observer = observer
        self._elsewhere = elsewhere
        self._templates: OrderedDict[Digest, VerifiedManifest] = OrderedDict()
        self._failed: OrderedDict[tuple[Digest, Profile], tuple[float, OrderRejectedError]] = OrderedDict()
        self._only_here: OrderedDict[tuple[Digest, Profile], None] = OrderedDict()
        """Modules of which the code that others compiled did not load."""
        self._locks: dict[Digest, tuple[asyncio.Lock, int]] = {}
        self._compilations = asyncio.Semaphore(MAX_COMPILATIONS)

    async def prepare(self, order: Order) -> PreparedModule:
        """Return the verified manifest and an opener of the artifact; see `ModulePreparer`.

        A module that did not compile is refused for ten minutes without a look at it.

        12. The template has the digest that the order names and a publisher of the keyset signed it.
        13. Its module is the one that the order names; it is compiled from exactly these bytes, for the
            order's profile, here or, if this node takes that, where a compiler key vouches for it.

        Raises:
            OrderRejectedError: One of the checks failed, or this node cannot do it now (busy).
        """
        template = self._known_template(order.template_digest)
        if template is None or not self._cache.holds(template.manifest.module.digest, order.profile):
            template = await self._obtain(order)
        vouched_by = self._cache.vouched_by(order.module_digest, order.profile) or ""
        if template.manifest.module.digest != order.module_digest:
            raise OrderRejectedError(
                f"template names module {template.manifest.module.digest}, the order {order.module_digest}",
                check=Check.MODULE,
                rejection=RejectionReason.DIGEST,
            )
        return PreparedModule(
            manifest=template.manifest,
            open_artifact=lambda: self._open(order, vouched_by),
            vouched_by=vouched_by,
        )

    async def _open(self, order: Order, vouched_by: str) -> int:
        digest, profile = order.module_digest, order.profile
        try:
            return await self._cache.open(digest, profile, vouched_by=vouched_by)
        except (NotFoundError, ArtifactInvalidError):
            # Evicted, or damaged and dropped: once more from the source, then it must be good.
            await self._obtain(order)
        if self._cache.vouched_by(digest, profile) not in {"", vouched_by}:
            # A worker counts as loaded on the word of `vouched_by`, or on this node's own; see the pool.
            self._cache.drop(digest, profile)
            await self._compile_again(order)
        return await self._cache.open(digest, profile, vouched_by=vouched_by)

    async def _compile_again(self, order: Order) -> None:
        try:
            async with self._alone(order.template_digest):
                await self._compile_fetched(order)
        except OrderRejectedError:
            raise
        except AgentFactoryError as error:
            raise _rejection(error) from error

    def forget(self, module_digest: Digest, profile: Profile, *, vouched_by: str) -> None:
        """Drop the artifact of a module that a worker could not load; the next use compiles it here.

        A compiler key vouched for it: the same would come again, so nobody is asked until the next start.
        """
        self._cache.drop(module_digest, profile)
        if not vouched_by:
            return
        self._observer.compiled_refused(ArtifactInvalidError.reason)
        logger.warning(
            "an artifact that was compiled elsewhere does not load",
            module_digest=module_digest,
            compiler_key_id=vouched_by,
        )
        self._only_here[module_digest, profile] = None
        while len(self._only_here) > MAX_FAILED_MODULES:
            self._only_here.popitem(last=False)

    def _known_template(self, template_digest: Digest) -> VerifiedManifest | None:
        template = self._templates.get(template_digest)
        if template is None:
            return None
        try:
            self._require_publisher(template)
        except VerificationError:
            del self._templates[template_digest]
            return None
        self._templates.move_to_end(template_digest)
        return template

    def _require_publisher(self, template: VerifiedManifest) -> None:
        now = self._clock.now()
        trusted = self._keyset.keys_for(KeyPurpose.PUBLISHER, now)
        if template.publisher_key_ids.isdisjoint(trusted):
            raise UnknownPublisherError("no signer of the template is a trusted publisher any more")

    async def _obtain(self, order: Order) -> VerifiedManifest:
        try:
            async with self._alone(order.template_digest):
                template = self._known_template(order.template_digest)
                if template is None:
                    template = await self._from_disk(order)
                if template is None or not self._cache.holds(template.manifest.module.digest, order.profile):
                    template = await self._from_source(order)
                self._remember(template)
                return template
        except OrderRejectedError:
            raise
        except AgentFactoryError as error:
            raise _rejection(error) from error
        except OSError as error:
            # A disk or a limit of this machine alone; another node may well have room.
            raise OrderRejectedError(
                f"the module cannot be kept: {error.strerror}",
                check=Check.MODULE,
                rejection=RejectionReason.BUSY,
            ) from error

    async def _from_disk(self, order: Order) -> VerifiedManifest | None:
        envelope = await self._cache.read_envelope(order.template_digest)
        if envelope is None:
            return None
        trusted = self._keyset.keys_for(KeyPurpose.PUBLISHER, self._clock.now())
        try:
            template = verify_manifest(envelope, publisher_keys=trusted)
        except VerificationError:
            logger.warning("a cached template does not verify", template=order.template_digest)
            return None
        return template if template.digest == order.template_digest else None

    async def _from_source(self, order: Order) -> VerifiedManifest:
        name = order.module_digest, order.profile
        self._refuse_failed(name)
        received = None
        if self._elsewhere is not None and name not in self._only_here and not self._cache.holds(*name):
            received = await self._elsewhere.obtain(order, self._cache.engine(order.profile))
        if received is None:
            return await self._compile_fetched(order)
        try:
            await self._cache.store_envelope(received.template.digest, received.envelope)
        except BaseException:
            os.close(received.artifact.descriptor)
            raise
        # Last: one that cannot be kept is gone soon, and whoever waits for it opens it first.
        await self._cache.keep(*name, received.artifact)
        self._observer.module_received()
        logger.info("a module that was compiled elsewhere was taken", module_digest=order.module_digest)
        return received.template

    async def _compile_fetched(self, order: Order) -> VerifiedManifest:
        fetched = await self._source.fetch_template(attempt_of(order), order.template_digest)
        trusted = self._keyset.keys_for(KeyPurpose.PUBLISHER, self._clock.now())
        # By the order's digest: another module under the signed name must fail on its bytes, not on a lookup.
        signed = verify_manifest(fetched.envelope, publisher_keys=trusted)
        if signed.digest != order.template_digest:
            raise PackageAlteredError(f"template is {signed.digest}, the order names {order.template_digest}")
        verified = verify_package(
            fetched.envelope, {signed.manifest.module.digest: fetched.module}, publisher_keys=trusted
        )
        if not self._cache.holds(signed.manifest.module.digest, order.profile):
            await self._compile((signed.manifest.module.digest, order.profile), verified.module)
        await self._cache.store_envelope(signed.digest, fetched.envelope)
        return signed

    async def _compile(self, name: tuple[Digest, Profile], module: bytes) -> None:
        try:
            await self._compile_once(*name, module)
        except (ModuleInvalidError, WorkerCrashedError) as error:
            failed = _rejection(error)
            self._failed[name] = (self._clock.monotonic(), failed)
            while len(self._failed) > MAX_FAILED_MODULES:
                self._failed.popitem(last=False)
            raise failed from error

    def _refuse_failed(self, name: tuple[Digest, Profile]) -> None:
        found = self._failed.get(name)
        if found is None:
            return
        failed_at, error = found
        if self._clock.monotonic() - failed_at < FAILURE_IS_REMEMBERED.total_seconds():
            raise OrderRejectedError(
                f"not tried again, it failed before: {error}", check=error.check, rejection=error.rejection
            )
        del self._failed[name]

    async def _compile_once(self, module_digest: Digest, profile: Profile, module: bytes) -> None:
        async with self._compilations:
            source = memory_file("module", module)
            try:
                artifact = os.memfd_create("artifact", os.MFD_CLOEXEC)
                try:
                    compiled = await self._compiler.compile(
                        module_fd=source, artifact_fd=artifact, profile=profile
                    )
                    await self._cache.store(module_digest, artifact, profile)
                finally:
                    os.close(artifact)
            finally:
                os.close(source)
        self._observer.module_compiled()
        logger.info(
            "a module was compiled",
            module_digest=module_digest,
            profile=profile,
            artifact_bytes=compiled.artifact_bytes,
        )

    def _remember(self, template: VerifiedManifest) -> None:
        self._templates[template.digest] = template
        self._templates.move_to_end(template.digest)
        while len(self._templates) > MAX_TEMPLATES_IN_MEMORY:
            self._templates.popitem(last=False)

    @asynccontextmanager
    async def _alone(self, digest: Digest) -> AsyncIterator[None]:
        """One fetch and compilation per template; who comes later waits and finds it done."""
        lock, users = self._locks.get(digest, (asyncio.Lock(), 0))
        self._locks[digest] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(digest)
            if users > 1:
                self._locks[digest] = (lock, users - 1)


def _rejection(error: AgentFactoryError) -> OrderRejectedError:
    text = f"{error.reason}: {error}"
    if isinstance(error, ModuleInvalidError | WorkerCrashedError):
        # A compiler that dies of a module dies of it on every node.
        return OrderRejectedError(text, check=Check.MODULE, rejection=RejectionReason.ARTIFACT)
    if isinstance(error, PackageAlteredError):
        return OrderRejectedError(text, check=Check.MODULE, rejection=RejectionReason.DIGEST)
    if isinstance(error, VerificationError):
        return OrderRejectedError(text, check=Check.TEMPLATE, rejection=RejectionReason.TEMPLATE)
    if isinstance(error, ResourceExhaustedError):
        # The disk of this node alone; another one may well have room.
        return OrderRejectedError(text, check=Check.MODULE, rejection=RejectionReason.BUSY)
    return OrderRejectedError(text, check=Check.TEMPLATE, rejection=RejectionReason.BUSY)
