"""The control plane as the node's gRPC client sees it: one channel at a time, to one of several targets.

Fetches and uploads run beside the session on the same channel. Every failure comes out as a typed error.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import cycle
from typing import Any, Final

import grpc
from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc

from data_plane.artifacts.ports import CompiledOffer, FetchedTemplate
from data_plane.identity import Certificate
from data_plane.orders.domain import AttemptRef
from data_plane.orders.log_view import LogOffer
from data_plane.receipts.domain import SpooledBody
from data_plane.session.convert import attempt_to_proto, log_offer_from_proto, target_to_proto
from shared.compiled import MAX_PIECE_BYTES, MAX_PIECES, MAX_STATEMENT_BYTES, Target
from shared.digests import Digest, digest_to_raw
from shared.dsse import MAX_ENVELOPE_BYTES
from shared.errors import MalformedError, UnavailableError
from shared.manifest import MAX_MODULE_BYTES
from shared.rpc.channel import connect
from shared.rpc.errors import error_of

FETCH_TEMPLATE_DEADLINE: Final = timedelta(seconds=60)
FETCH_COMPILED_DEADLINE: Final = timedelta(seconds=20)
"""Compiling it here would not take much longer."""
FETCH_INPUT_DEADLINE: Final = timedelta(seconds=30)
READ_LOG_DEADLINE: Final = timedelta(seconds=3)
"""Below a lease: an order that waits for it is given back before its lease runs out."""
UPLOAD_DEADLINE: Final = timedelta(seconds=30)
RENEW_DEADLINE: Final = timedelta(seconds=20)
CONNECT_DEADLINE: Final = timedelta(seconds=10)
CHANNEL_GRACE: Final = timedelta(seconds=1)
UPLOAD_CHUNK_BYTES: Final = 256 * 1024


class GrpcStream:
    """A `Stream` over a gRPC call; errors come out typed."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def write(self, message: nodes_pb2.SessionRequest) -> None:
        """Send one message.

        Raises:
            AgentFactoryError: The call is over; the class says why, as far as the peer did.
        """
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        except asyncio.InvalidStateError as error:
            raise UnavailableError("the session stream is closed") from error

    async def __aiter__(self) -> AsyncIterator[nodes_pb2.SessionResponse]:
        try:
            async for message in self._call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    async def close(self) -> None:
        """Say that nothing more comes, and let go."""
        if not self._call.done():
            try:
                async with asyncio.timeout(CHANNEL_GRACE.total_seconds()):
                    await self._call.done_writing()
            except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # it is cancelled next: the goodbye is a courtesy
        self._call.cancel()


class ControlPlaneLink:
    """A node's way to the control plane."""

    def __init__(
        self,
        *,
        targets: Sequence[str],
        authority: Callable[[], bytes],
        tls_key_pem: bytes,
        certificate: Certificate,
    ) -> None:
        """Talk to these; the authority (PEM) that their certificates are by is asked for at each session."""
        if not targets:
            raise ValueError("a node needs at least one control plane to talk to")
        self._targets = cycle(targets)
        self._authority = authority
        self._tls_key_pem = tls_key_pem
        self._certificate = certificate
        self._channel: grpc.aio.Channel | None = None
        self._stub: nodes_pb2_grpc.NodeServiceAsyncStub | None = None
        self.target = ""

    @property
    def certificate(self) -> Certificate:
        """What is presented."""
        return self._certificate

    def use_certificate(self, certificate: Certificate) -> None:
        """Present another certificate from the next `open_session` on."""
        self._certificate = certificate

    async def open_session(self) -> GrpcStream:
        """Connect to the next target and start a session there.

        Raises:
            UnavailableError: It does not answer in time.
        """
        await self.close()
        self.target = next(self._targets)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=await asyncio.to_thread(self._authority),
            private_key=self._tls_key_pem,
            certificate_chain=self._certificate.chain_pem,
        )
        self._channel = connect(self.target, credentials)
        await _connected_channel(self._channel, self.target)
        self._stub = nodes_pb2_grpc.NodeServiceStub(self._channel)
        return GrpcStream(self._stub.Session())

    async def close(self) -> None:
        """Close the channel; what runs on it gets a moment to end."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close(CHANNEL_GRACE.total_seconds())

    async def fetch_template(self, attempt: AttemptRef, template_digest: Digest) -> FetchedTemplate:
        """Fetch envelope and module; see `TemplateSource`."""
        request = nodes_pb2.FetchArtifactRequest(
            attempt=attempt_to_proto(attempt), template_digest=template_digest
        )
        call = self._connected().FetchArtifact(request, timeout=FETCH_TEMPLATE_DEADLINE.total_seconds())
        envelope, module = b"", bytearray()
        try:
            async for part in call:
                if part.WhichOneof("part") == "envelope" and not envelope and not module:
                    envelope = part.envelope
                    _bounded("template envelope", len(envelope), MAX_ENVELOPE_BYTES)
                else:
                    module += part.chunk
                    _bounded("module", len(module), MAX_MODULE_BYTES)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()
        return FetchedTemplate(envelope=envelope, module=bytes(module))

    @asynccontextmanager
    async def fetch_compiled(
        self, attempt: AttemptRef, template_digest: Digest, target: Target, held: Collection[Digest]
    ) -> AsyncIterator[CompiledOffer]:
        """Ask for what was compiled elsewhere; see `CompiledSource`."""
        request = nodes_pb2.FetchCompiledArtifactRequest(
            attempt=attempt_to_proto(attempt),
            template_digest=template_digest,
            target=target_to_proto(target),
            held_pieces=b"".join(map(digest_to_raw, held)),
        )
        call = self._connected().FetchCompiledArtifact(
            request, timeout=FETCH_COMPILED_DEADLINE.total_seconds()
        )
        parts = aiter(call)
        try:
            first = await anext(parts, None)
            if first is None or first.WhichOneof("part") != "head":
                raise MalformedError("the control plane sent no statement before an artifact")
            _bounded("template envelope", len(first.head.envelope), MAX_ENVELOPE_BYTES)
            _bounded("statement", len(first.head.statement), MAX_STATEMENT_BYTES)
            _bounded("list of pieces", len(first.head.left_out), MAX_PIECES)
            yield CompiledOffer(
                envelope=first.head.envelope,
                statement=first.head.statement,
                left_out=tuple(first.head.left_out),
                pieces=_pieces(parts),
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()

    async def fetch_input(self, attempt: AttemptRef, size_bytes: int) -> bytes:
        """Fetch an input of exactly this size; see `InputSource`."""
        request = nodes_pb2.FetchBodyRequest(attempt=attempt_to_proto(attempt))
        call = self._connected().FetchBody(request, timeout=FETCH_INPUT_DEADLINE.total_seconds())
        content = bytearray()
        try:
            async for part in call:
                content += part.chunk
                _bounded("input", len(content), size_bytes)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()
        if len(content) != size_bytes:
            raise UnavailableError(f"input ended after {len(content)} of {size_bytes} bytes")
        return bytes(content)

    async def upload_body(self, attempt: AttemptRef, body: SpooledBody, content: bytes) -> None:
        """Send an output or log above 64 KiB; see `OutputSink`."""

        async def parts() -> AsyncIterator[nodes_pb2.UploadOutputRequest]:
            header = nodes_pb2.UploadOutputHeader(
                attempt=attempt_to_proto(attempt),
                commitment=body.commitment,
                salt=body.salt,
                size_bytes=body.size_bytes,
            )
            yield nodes_pb2.UploadOutputRequest(header=header)
            for start in range(0, len(content), UPLOAD_CHUNK_BYTES):
                yield nodes_pb2.UploadOutputRequest(chunk=content[start : start + UPLOAD_CHUNK_BYTES])

        try:
            await self._connected().UploadOutput(parts(), timeout=UPLOAD_DEADLINE.total_seconds())
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    async def read_log(self, known_size: int, attempt: AttemptRef | None) -> LogOffer:
        """Read the transparency log; see `LogSource`."""
        request = nodes_pb2.GetLogProofRequest(
            known_size=known_size, attempt=None if attempt is None else attempt_to_proto(attempt)
        )
        try:
            answer = await self._connected().GetLogProof(request, timeout=READ_LOG_DEADLINE.total_seconds())
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        return log_offer_from_proto(answer)

    async def renew_certificate(self, csr_der: bytes) -> tuple[bytes, ...]:
        """Return a new certificate chain, leaf first, DER.

        Raises:
            AgentFactoryError: The control plane refused, or does not answer.
        """
        request = nodes_pb2.RenewNodeCertificateRequest(csr_der=csr_der)
        try:
            response = await self._connected().RenewNodeCertificate(
                request, timeout=RENEW_DEADLINE.total_seconds()
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        return tuple(response.certificate_chain_der)

    def _connected(self) -> "nodes_pb2_grpc.NodeServiceAsyncStub":
        if self._stub is None:
            raise UnavailableError("no session with a control plane is open")
        return self._stub


async def _connected_channel(channel: grpc.aio.Channel, target: str) -> None:
    """Wait until the channel is ready; a refused connection ends the wait at once, for the next target."""
    try:
        async with asyncio.timeout(CONNECT_DEADLINE.total_seconds()):
            state = channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise UnavailableError(f"{target} cannot be reached, or its certificate is not trusted")
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError as error:
        raise UnavailableError(
            f"{target} did not answer within {CONNECT_DEADLINE.total_seconds():g} s"
        ) from error


async def _pieces(
    parts: AsyncIterator[nodes_pb2.FetchCompiledArtifactResponse],
) -> AsyncIterator[bytes]:
    try:
        async for part in parts:
            if part.WhichOneof("part") != "chunk" or len(part.chunk) > MAX_PIECE_BYTES:
                raise MalformedError("the control plane sent what is no piece of an artifact")
            yield part.chunk
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


def _bounded(what: str, size: int, bound: int) -> None:
    if size > bound:
        raise MalformedError(f"the control plane sent more than {bound} bytes of a {what}")
