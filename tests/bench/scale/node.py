"""A node without a sandbox: the real protocol with real signatures, in a fraction of a node's memory and time.

It enrolls, says hello, beats, renews leases, verifies the batch signature once per message and each order's place
below it, fetches a module the first time it is ordered, and signs one gapless chain of receipts with Ed25519.
It echoes inputs instead of running anything, and keeps its receipts in memory: nothing here survives its process.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc, orders_pb2
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_der_x509_certificate

from data_plane.enrollment import PROOF_DOMAIN, make_csr
from data_plane.orders.domain import AttemptRef, attempt_of
from data_plane.orders.verifier import check_input
from data_plane.receipts.domain import SpoolHead
from data_plane.session.convert import attempt_to_proto, renewal_to_proto
from shared.clock import SystemClock, SystemRandom
from shared.digests import SALT_BYTES, Digest, commit_body, digest_from_raw, digest_to_raw, sha256_digest
from shared.errors import VerificationError
from shared.ids import BOOT, NODE, NodeId, new_id, parse_id
from shared.keyset import KeyPurpose, Keyset, verify_keyset
from shared.order_codec import decode_order
from shared.orders import ORDER_FORMAT, Order, VerifiedOrderRoot, verify_batch, verify_order_inclusion
from shared.outcomes import Outcome
from shared.receipt_codec import sign_receipt
from shared.receipts import (
    AttemptIdentity,
    EngineIdentity,
    ReceiptPredicate,
    predicate_type_for,
    receipt_hash,
)
from shared.resources import ResourcesUsed
from shared.rpc.channel import connect
from shared.rpc.errors import error_of
from shared.signatures import FileSigner, PrivateKey
from shared.trust import TrustRoots

ENGINE = nodes_pb2.EngineInfo(name="none", version="1", config_digest=sha256_digest(b"no engine"))
HEAD_DOMAIN = b"agentfactory-spool-head-v1"
CALL_SECONDS = 30.0
CONNECT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What an enrolled node holds, in memory."""

    node_id: NodeId
    receipt_key: PrivateKey
    tls_key_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)


async def enroll(stub: Any, token: str) -> Identity:
    """Make keys and exchange a token for a node's identity, over a stub of the enrollment port."""
    tls_key, receipt_key = ec.generate_private_key(ec.SECP256R1()), PrivateKey.generate_ed25519()
    csr = make_csr(tls_key)
    request = nodes_pb2.EnrollNodeRequest(
        token=token,
        csr_der=csr,
        receipt_public_key=receipt_key.public.spki_der,
        receipt_key_proof=receipt_key.sign(PROOF_DOMAIN + csr),
    )
    try:
        answer = await stub.EnrollNode(request, timeout=CALL_SECONDS, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    encoding = serialization.Encoding.PEM
    return Identity(
        node_id=parse_id(NODE, answer.node_id),
        receipt_key=receipt_key,
        tls_key_pem=tls_key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        certificate_pem=b"".join(
            load_der_x509_certificate(der).public_bytes(encoding) for der in answer.certificate_chain_der
        ),
    )


@dataclass(slots=True, kw_only=True)
class Counts:
    """What nodes did; one object serves many of them."""

    answered: int = 0
    acknowledged: int = 0
    fetched: int = 0
    batches: int = 0
    renewed: int = 0


class SimulatedNode:
    """One identity, its receipts and at most one session."""

    def __init__(
        self,
        identity: Identity,
        trust: TrustRoots,
        *,
        counts: Counts,
        slots: int = 4,
        zone: str = "",
        run_seconds: float = 0.0,
    ) -> None:
        self.identity = identity
        self.fetches: dict[Digest, int] = {}
        """How often each module was fetched."""
        self._trust = trust
        self._counts = counts
        self._slots = slots
        self._zone = zone
        self._run_seconds = run_seconds
        self._boot_id = new_id(BOOT, SystemClock(), SystemRandom())
        self._signer = FileSigner(key=identity.receipt_key)
        self._keyset: Keyset | None = None
        self._head = SpoolHead(sequence=0, hash=b"")
        self._signed_head = nodes_pb2.SpoolHead()
        self._unacknowledged: dict[int, nodes_pb2.ReceiptDelivery] = {}
        self._held: set[AttemptRef] = set()
        self._untold: list[Digest] = []
        self._beats = 0
        self._renewals = 0
        self._stub: nodes_pb2_grpc.NodeServiceAsyncStub | None = None
        self._call: Any = None
        self._writing = asyncio.Lock()
        """gRPC takes one message of a stream at a time."""

    @property
    def unacknowledged(self) -> int:
        """Receipts that the control plane has not put on record yet, as far as this node knows."""
        return len(self._unacknowledged)

    async def run(self, target: str, welcome: asyncio.Event | None = None) -> None:
        """Hold one session until the control plane ends it or this is cancelled; `welcome` is set in between.

        Raises:
            AgentFactoryError: The control plane refused, broke off, or sent what does not verify.
        """
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self._trust.ca_certificate_pem,
            private_key=self.identity.tls_key_pem,
            certificate_chain=self.identity.certificate_pem,
        )
        async with connect(target, credentials) as channel:
            self._stub = nodes_pb2_grpc.NodeServiceStub(channel)
            try:
                await self._serve(welcome)
            except grpc.aio.AioRpcError as error:
                raise error_of(error) from error

    async def _serve(self, welcome: asyncio.Event | None) -> None:
        assert self._stub is not None
        # A crowd that connects at once waits for the server's handshakes.
        self._call = self._stub.Session(wait_for_ready=True)
        try:
            await self._write(self._hello())
            first = await self._call.read()
            if first is grpc.aio.EOF or first.WhichOneof("message") != "welcome":
                raise VerificationError("the session did not begin with a welcome")
            self._take_keyset(first.welcome.keyset)
            every = first.welcome.heartbeat_every.ToTimedelta().total_seconds()
            if welcome is not None:
                welcome.set()
            beating = asyncio.create_task(self._beat(every))
            try:
                await self._send(list(self._unacknowledged.values()))
                async for message in self._messages():
                    await self._take(message)
            finally:
                beating.cancel()
        finally:
            self._call.cancel()

    async def _messages(self) -> AsyncIterator[nodes_pb2.SessionResponse]:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            yield message

    async def _write(self, message: nodes_pb2.SessionRequest) -> None:
        async with self._writing:
            await self._call.write(message)

    async def _take(self, message: nodes_pb2.SessionResponse) -> None:
        match message.WhichOneof("message"):
            case "order_batch":
                await self._take_orders(message.order_batch)
            case "receipt_ack":
                for sequence in message.receipt_ack.sequences:
                    self._counts.acknowledged += self._unacknowledged.pop(sequence, None) is not None
            case "keyset_update":
                self._take_keyset(message.keyset_update.keyset)
            case "lease_granted":
                # Simulated runs are too short to be stopped: what is not granted ends by itself.
                self._counts.renewed += len(message.lease_granted.attempts)
            case _:
                pass  # cancels and drains: nothing runs here that could be stopped

    def _take_keyset(self, envelope: bytes) -> None:
        self._keyset = verify_keyset(
            envelope,
            root_keys=self._trust.root_keys,
            minimum_version=self._keyset.version if self._keyset else 1,
            installation=self._trust.installation,
        )

    # --- orders and receipts

    async def _take_orders(self, batch: orders_pb2.OrderBatch) -> None:
        assert self._keyset is not None
        received_at = datetime.now(UTC)
        root = verify_batch(
            batch.envelope,
            keys=self._keyset.keys_for(KeyPurpose.ORDER, received_at),
            installation=self._trust.installation,
            minimum_epoch=self._keyset.epoch,
        )
        self._counts.batches += 1
        orders = [(delivery, self._verified(delivery, root)) for delivery in batch.orders]
        self._held.update(attempt_of(order) for _, order in orders)
        for _, order in orders:
            await self._fetch_once(order)
        if self._run_seconds:
            await asyncio.sleep(self._run_seconds)
        await self._send([await self._answer(delivery, order, received_at) for delivery, order in orders])

    def _verified(self, delivery: orders_pb2.OrderDelivery, root: VerifiedOrderRoot) -> Order:
        verify_order_inclusion(delivery.order, index=delivery.index, path=delivery.path, verified_root=root)
        order = decode_order(delivery.order)
        if (order.node_id, order.boot_id) != (self.identity.node_id, self._boot_id):
            raise VerificationError(f"order {order.id} is for another node or boot")
        check_input(order, delivery.input.salt, delivery.input.inline)
        return order

    async def _fetch_once(self, order: Order) -> None:
        if order.module_digest in self.fetches:
            return
        assert self._stub is not None
        self.fetches[order.module_digest] = self.fetches.get(order.module_digest, 0) + 1
        request = nodes_pb2.FetchArtifactRequest(
            attempt=attempt_to_proto(attempt_of(order)), template_digest=order.template_digest
        )
        module = hashlib.sha256()
        async for part in self._stub.FetchArtifact(request, timeout=CALL_SECONDS):
            module.update(part.chunk)
        if digest_from_raw(module.digest()) != order.module_digest:
            raise VerificationError(f"module {order.module_digest} is not what was fetched")
        self._untold.append(order.module_digest)
        self._counts.fetched += 1

    async def _answer(
        self, delivery: orders_pb2.OrderDelivery, order: Order, received_at: datetime
    ) -> nodes_pb2.ReceiptDelivery:
        output, salt = delivery.input.inline, os.urandom(SALT_BYTES)
        predicate = ReceiptPredicate(
            type=predicate_type_for(order.format),
            installation=order.installation,
            node_id=self.identity.node_id,
            boot_id=self._boot_id,
            sequence=self._head.sequence + 1,
            previous=digest_from_raw(self._head.hash) if self._head.sequence else None,
            order_digest=sha256_digest(delivery.order),
            attempt=AttemptIdentity(
                order_id=order.id,
                execution_id=order.execution_id,
                attempt_number=order.attempt_number,
                fencing_token=order.fencing_token,
            ),
            template_digest=order.template_digest,
            module_digest=order.module_digest,
            input_commitment=order.input_commitment,
            output_commitment=commit_body(output, salt),
            outcome=Outcome.SUCCEEDED,
            exit_code=0,
            resources=ResourcesUsed(output_bytes=len(output)),
            engine=EngineIdentity(
                name=ENGINE.name, version=ENGINE.version, config_digest=sha256_digest(b"no engine")
            ),
            received_at=received_at,
            started_at=received_at,
            finished_at=datetime.now(UTC),
        )
        envelope = await sign_receipt(predicate, self._signer)
        self._head = SpoolHead(sequence=predicate.sequence, hash=digest_to_raw(receipt_hash(envelope)))
        self._held.discard(attempt_of(order))
        body = orders_pb2.Body(salt=salt, size_bytes=len(output), inline=output)
        receipt = nodes_pb2.ReceiptDelivery(envelope=envelope, output=body)
        self._unacknowledged[predicate.sequence] = receipt
        self._counts.answered += 1
        return receipt

    async def _send(self, receipts: list[nodes_pb2.ReceiptDelivery]) -> None:
        if receipts:
            batch = nodes_pb2.ReceiptBatch(receipts=receipts)
            await self._write(nodes_pb2.SessionRequest(receipt_batch=batch))

    # --- what it says by itself

    def _hello(self) -> nodes_pb2.SessionRequest:
        hello = nodes_pb2.Hello(
            node_id=self.identity.node_id,
            boot_id=self._boot_id,
            accepts=[ORDER_FORMAT],
            engine=ENGINE,
            slots=self._slots,
            cached_digests=list(self.fetches),
            spool_head=self._proto_head(),
            zone=self._zone,
            keyset_version=self._keyset.version if self._keyset else 0,
        )
        hello.now.FromDatetime(datetime.now(UTC))
        return nodes_pb2.SessionRequest(hello=hello)

    async def _beat(self, every: float) -> None:
        assert self._keyset is not None
        while True:
            self._beats += 1
            told, self._untold = self._untold, []
            heartbeat = nodes_pb2.Heartbeat(
                number=self._beats,
                free_slots=max(0, self._slots - len(self._held)),
                capacity=self._slots,
                spool_head=self._proto_head(),
                keyset_version=self._keyset.version,
                cached_digests=told,
            )
            try:
                await self._write(nodes_pb2.SessionRequest(heartbeat=heartbeat))
                if self._held:
                    self._renewals += 1
                    await self._write(renewal_to_proto(self._renewals, list(self._held)))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the reader says why the stream is over
            await asyncio.sleep(every)

    def _proto_head(self) -> nodes_pb2.SpoolHead:
        head = self._head
        if self._signed_head.sequence != head.sequence or not self._signed_head.signature:
            parts = (
                HEAD_DOMAIN,
                self.identity.node_id.encode(),
                self._boot_id.encode(),
                head.sequence.to_bytes(8, "big"),
                head.hash,
            )
            self._signed_head = nodes_pb2.SpoolHead(
                sequence=head.sequence,
                hash=head.hash,
                signature=self.identity.receipt_key.sign(b"".join(parts)),
            )
        return self._signed_head
