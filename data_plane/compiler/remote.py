"""The control plane as a compiling node's gRPC client sees it. Every failure comes out as a typed error."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from itertools import cycle
from typing import Final

import grpc
from agentfactory.v1 import common_pb2, nodes_pb2, nodes_pb2_grpc

from data_plane.artifacts.ports import FetchedTemplate
from data_plane.compiler.ports import Compilation, Listing
from data_plane.identity import Certificate
from data_plane.session.convert import target_to_proto
from shared.compiled import Target
from shared.digests import Digest, parse_digest
from shared.dsse import MAX_ENVELOPE_BYTES
from shared.errors import InvalidInputError, MalformedError
from shared.manifest import MAX_MODULE_BYTES
from shared.order_codec import PROFILES_BY_NUMBER
from shared.rpc.channel import connect
from shared.rpc.errors import error_of

LIST_DEADLINE: Final = timedelta(seconds=10)
FETCH_DEADLINE: Final = timedelta(seconds=60)
HAND_IN_DEADLINE: Final = timedelta(minutes=4)
RENEW_DEADLINE: Final = timedelta(seconds=20)
PAGE_SIZE: Final = 50


class RemoteDesk:
    """Implements `CompileDesk` over one channel at a time; a failure leads to the next control plane."""

    def __init__(
        self,
        *,
        targets: Sequence[str],
        authority: Callable[[], bytes],
        tls_key_pem: bytes,
        certificate: Certificate,
    ) -> None:
        self._targets = cycle(targets)
        self._authority = authority
        self._tls_key_pem = tls_key_pem
        self.certificate = certificate
        self._channel: grpc.aio.Channel | None = None

    async def use_certificate(self, certificate: Certificate) -> None:
        """Present another certificate from the next call on."""
        self.certificate = certificate
        await self.close()

    async def close(self) -> None:
        """Let go of the connection; the next call makes another one, to the next control plane."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def list(self, targets: Sequence[Target], page_token: str) -> Listing:
        """See `CompileDesk.list`."""
        request = nodes_pb2.ListCompilationsRequest(
            targets=map(target_to_proto, targets),
            page=common_pb2.PageRequest(page_size=PAGE_SIZE, page_token=page_token),
        )
        try:
            answer = await (await self._desk()).ListCompilations(
                request, timeout=LIST_DEADLINE.total_seconds()
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        return Listing(
            compilations=tuple(map(_compilation, answer.compilations)),
            next_page_token=answer.next_page_token,
            keyset=answer.keyset,
        )

    async def fetch(self, template_digest: Digest) -> FetchedTemplate:
        """See `CompileDesk.fetch`."""
        request = nodes_pb2.FetchModuleRequest(template_digest=template_digest)
        call = (await self._desk()).FetchModule(request, timeout=FETCH_DEADLINE.total_seconds())
        envelope, module = b"", bytearray()
        try:
            async for part in call:
                if part.WhichOneof("part") == "envelope" and not envelope and not module:
                    envelope = part.envelope
                else:
                    module += part.chunk
                if len(envelope) > MAX_ENVELOPE_BYTES or len(module) > MAX_MODULE_BYTES:
                    raise MalformedError("the control plane sent more than a template")
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()
        return FetchedTemplate(envelope=envelope, module=bytes(module))

    async def hand_in(self, statement: bytes, pieces: AsyncIterator[bytes]) -> bool:
        """See `CompileDesk.hand_in`."""

        async def parts() -> AsyncIterator[nodes_pb2.UploadCompiledArtifactRequest]:
            yield nodes_pb2.UploadCompiledArtifactRequest(statement=statement)
            async for piece in pieces:
                yield nodes_pb2.UploadCompiledArtifactRequest(chunk=piece)

        try:
            answer = await (await self._desk()).UploadCompiledArtifact(
                parts(), timeout=HAND_IN_DEADLINE.total_seconds()
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        return answer.stored

    async def renew_certificate(self, csr_der: bytes) -> tuple[bytes, ...]:
        """Return a new certificate chain, leaf first, DER.

        Raises:
            AgentFactoryError: The control plane refused, or does not answer.
        """
        stub: nodes_pb2_grpc.NodeServiceAsyncStub = nodes_pb2_grpc.NodeServiceStub(await self._connected())
        request = nodes_pb2.RenewNodeCertificateRequest(csr_der=csr_der)
        try:
            response = await stub.RenewNodeCertificate(request, timeout=RENEW_DEADLINE.total_seconds())
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        return tuple(response.certificate_chain_der)

    async def _desk(self) -> "nodes_pb2_grpc.CompileServiceAsyncStub":
        return nodes_pb2_grpc.CompileServiceStub(await self._connected())

    async def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=await asyncio.to_thread(self._authority),
                private_key=self._tls_key_pem,
                certificate_chain=self.certificate.chain_pem,
            )
            self._channel = connect(next(self._targets), credentials)
        return self._channel


def _compilation(message: nodes_pb2.Compilation) -> Compilation:
    profile = PROFILES_BY_NUMBER.get(message.profile)
    try:
        if profile is not None:
            return Compilation(
                template_digest=parse_digest(message.template_digest),
                module_digest=parse_digest(message.module_digest),
                profile=profile,
            )
    except InvalidInputError as error:
        raise MalformedError(f"the control plane lists what is no module: {error}") from error
    raise MalformedError(f"the control plane lists a module of profile {message.profile}")
