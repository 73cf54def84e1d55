"""The other side of the node's protocol, scripted: a real gRPC server with real keys, and no database.

It signs what it is told to and records what it hears. A test tells it what to send, and what to get wrong.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import grpc
from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc, orders_pb2

from control_plane.keys.ca import BuiltinCertificateAuthority, chain_pem, new_private_key, private_key_pem
from shared import ids
from shared.clock import SystemClock, SystemRandom
from shared.digests import Digest, commit_body, sha256_digest
from shared.ids import BootId, NodeId, TenantId
from shared.keyset import KeyPurpose, Keyset, KeysetEntry, sign_keyset
from shared.limits import Limits
from shared.log_leaf import policy_fact, template_fact
from shared.manifest import Manifest, ModuleFile, Profile
from shared.order_codec import encode_order
from shared.orders import Order
from shared.packages import make_package, sign_package
from shared.paths import NodePaths
from shared.receipt_codec import VerifiedReceipt, verify_receipt
from shared.signatures import PrivateKey, PublicKey
from shared.trust import TrustRoots, encode_trust
from tests.fakes.scripted_log import ScriptedLog
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.fixtures.order_batches import sign_batch

INSTALLATION = "scripted"
TENANT = TenantId("default")
BOUND = timedelta(seconds=30)
"""Longest wait of a test for something that must come."""

SERVER_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4 * 1024 * 1024))


@dataclass(frozen=True, kw_only=True)
class Template:
    """A published template."""

    digest: Digest
    module_digest: Digest
    envelope: bytes
    module: bytes
    manifest: Manifest


async def publish(module: bytes, *, publisher: PrivateKey | None = None, **changes: Any) -> Template:
    """Sign a module as a template."""
    manifest = Manifest(
        name="actor",
        version="1.0.0",
        media_type="application/json",
        module=ModuleFile(file_name="actor.wasm", digest=sha256_digest(module), size_bytes=len(module)),
    )
    manifest = replace(manifest, **changes)
    package = make_package(manifest, module)
    signed = await sign_package(package, [signer(publisher or rsa_key("publisher"))])
    return Template(
        digest=package.digest,
        module_digest=manifest.module.digest,
        envelope=signed.envelope,
        module=module,
        manifest=manifest,
    )


@dataclass(kw_only=True)
class Job:
    """One order on its way to a node, before it is signed: change what the test is about."""

    order: Order
    input: bytes
    salt: bytes
    parameters: bytes = b"{}"

    @property
    def attempt(self) -> nodes_pb2.AttemptRef:
        return nodes_pb2.AttemptRef(
            execution_id=self.order.execution_id,
            attempt_number=self.order.attempt_number,
            fencing_token=self.order.fencing_token,
        )


@dataclass(kw_only=True)
class Heard:
    """One session, as this side sees it."""

    hello: nodes_pb2.Hello
    outgoing: "asyncio.Queue[nodes_pb2.SessionResponse | None]" = field(default_factory=asyncio.Queue)
    heartbeats: list[nodes_pb2.Heartbeat] = field(default_factory=list)
    started: list[nodes_pb2.AttemptRef] = field(default_factory=list)
    renewals: list[nodes_pb2.LeaseRenewal] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class ScriptedControlPlane(nodes_pb2_grpc.NodeServiceServicer):
    """Serves `NodeService` for any number of nodes; an async context manager."""

    def __init__(self) -> None:
        self.clock, self.random = SystemClock(), SystemRandom()
        self.authority = BuiltinCertificateAuthority.create(installation=INSTALLATION, clock=self.clock)
        self.root, self.order_key = rsa_key("root"), rsa_key("order")
        self.publisher = rsa_key("publisher")
        self.epoch = 1
        self.keyset_version = 1
        self.keyset_envelope = b""
        self.lease, self.heartbeat_every = timedelta(seconds=4), timedelta(milliseconds=200)
        self.accepted: dict[NodeId, nodes_pb2.SpoolHead] = {}
        self.templates: dict[str, Template] = {}
        self.inputs: dict[str, bytes] = {}
        self.outputs: dict[str, bytes] = {}
        self.receipts: dict[tuple[NodeId, int], VerifiedReceipt] = {}
        self.deliveries: dict[str, nodes_pb2.ReceiptDelivery] = {}
        self.receipt_keys: dict[NodeId, PublicKey] = {}
        self.sessions: list[Heard] = []
        self.log = ScriptedLog(INSTALLATION)
        self.logs: dict[NodeId, ScriptedLog] = {}
        """What nodes are told instead of `log`, by node."""
        self.spoil_log: Callable[[nodes_pb2.GetLogProofResponse], None] = lambda _answer: None
        """What a test gets wrong in an answer about the log."""
        self.log_refusal: tuple[grpc.StatusCode, str] | None = None
        self.orders: dict[str, Order] = {}
        self.fetches = 0
        self.leaf_ttl = timedelta(hours=24)
        """Of certificates that `enroll_folder` writes; renewed ones live for a day."""
        self.renewals = 0
        self.forged_name = ""
        self.forged_csr = b""
        """Whom, and for which key, certificates are issued instead."""
        self.acknowledges = True
        self.kv_values: dict[str, bytes] = {}
        self.unsafe_intents: list[str] = []
        self.host_call_denial = ""
        """What every question of a guest is denied for; empty: none is."""
        self.grants = True
        self.spoil_welcome: Callable[[nodes_pb2.Welcome], None] = lambda _welcome: None
        """What a test gets wrong in a welcome."""
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    # --- life

    async def __aenter__(self) -> Self:
        if not self.keyset_envelope:
            await self.issue_keyset()
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port again after `stop`."""
        key = new_private_key()
        leaf = self.authority.sign_leaf(
            key.public_key(),
            spiffe_id=f"spiffe://{INSTALLATION}/service/control-plane",
            ttl=timedelta(days=1),
            server_names=("localhost", "127.0.0.1"),
        )
        credentials = grpc.ssl_server_credentials(
            [(private_key_pem(key), chain_pem(leaf.chain_der))],
            root_certificates=self.authority.certificate_pem,
            require_client_auth=True,
        )
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        nodes_pb2_grpc.add_NodeServiceServicer_to_server(self, self._server)
        self.port = self._server.add_secure_port(f"localhost:{self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Go away at once, as a killed process would."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def issue_keyset(self, *extra: KeysetEntry, root: PrivateKey | None = None, **changes: Any) -> None:
        """Sign the keyset that welcomes carry from now on."""
        now = self.clock.now()

        def entry(purpose: KeyPurpose, key: PrivateKey) -> KeysetEntry:
            return KeysetEntry(
                purpose=purpose,
                key=key.public,
                not_before=now - timedelta(days=1),
                not_after=now + timedelta(days=1),
            )

        root = root or self.root
        named = extra or (
            entry(KeyPurpose.ORDER, self.order_key),
            entry(KeyPurpose.PUBLISHER, self.publisher),
        )
        if not any(one.purpose is KeyPurpose.LOG for one in named):
            named = (*named, entry(KeyPurpose.LOG, self.log.key))
        keyset = Keyset(
            version=self.keyset_version,
            installation=INSTALLATION,
            epoch=self.epoch,
            root_key_id=root.key_id,
            issued_at=now,
            entries=named,
        )
        self.keyset_envelope = await sign_keyset(replace(keyset, **changes), [signer(root)])

    def enroll_folder(self, folder: Path, name: str = "node") -> NodeId:
        """Write what enrollment would have written into a node's folder."""
        from data_plane.enrollment import make_csr  # noqa: PLC0415 - the fake serves both planes' tests
        from data_plane.identity import write_certificate, write_identity  # noqa: PLC0415

        paths = NodePaths(data_dir=folder)
        folder.mkdir(parents=True, exist_ok=True)
        node_id = ids.new_id(ids.NODE, self.clock, self.random)
        key, receipt_key = new_private_key(), ed25519_key(f"{name}-receipts")
        assert make_csr(key)
        leaf = self.authority.sign_leaf(
            key.public_key(), spiffe_id=f"spiffe://{INSTALLATION}/node/{node_id}", ttl=self.leaf_ttl
        )
        paths.trust.write_bytes(encode_trust(self.trust))
        for path, pem in ((paths.key, private_key_pem(key)), (paths.receipt_key, receipt_key.to_pem())):
            path.write_bytes(pem)
            path.chmod(0o600)
        write_certificate(paths.certificate, tuple(leaf.chain_der))
        write_identity(paths, node_id=node_id, installation=self.trust.installation)
        self.receipt_keys[node_id] = receipt_key.public
        return node_id

    @property
    def trust(self) -> TrustRoots:
        return TrustRoots(
            installation=ids.InstallationId(INSTALLATION),
            root_key=self.root.public,
            ca_certificate_pem=self.authority.certificate_pem,
        )

    # --- what a test says

    async def session(self, count: int = 1) -> Heard:
        """Wait for the n-th session since the start, with its first heartbeat."""
        return await self.wait_for(lambda: self._session(count))

    def _session(self, count: int) -> Heard | None:
        found = self.sessions[count - 1] if len(self.sessions) >= count else None
        return found if found is not None and found.heartbeats else None

    async def wait_for(self, found: Callable[[], Any]) -> Any:
        """Wait, within the bound, until `found` returns something."""
        async with asyncio.timeout(BOUND.total_seconds()), self.changed:
            while True:
                result = found()
                if result:
                    return result
                await self.changed.wait()

    def job(self, session: Heard, template: Template, input_: bytes, **changes: Any) -> Job:
        """Return an order for that session's node, right in every field but `changes`."""
        salt = self.random.token_bytes(32)
        now = self.clock.now()
        order = Order(
            id=ids.new_id(ids.ORDER, self.clock, self.random),
            installation=INSTALLATION,
            epoch=self.epoch,
            tenant_id=TENANT,
            caller=f"spiffe://{INSTALLATION}/caller/test",
            agent_id=ids.new_id(ids.AGENT, self.clock, self.random),
            agent_name="actor",
            parameters_digest=sha256_digest(b"{}"),
            execution_id=ids.new_id(ids.EXECUTION, self.clock, self.random),
            attempt_number=1,
            fencing_token=1,
            node_id=NodeId(session.hello.node_id),
            boot_id=BootId(session.hello.boot_id),
            template_digest=template.digest,
            module_digest=template.module_digest,
            input_commitment=commit_body(input_, salt),
            input_bytes=len(input_),
            media_type="application/json",
            profile=Profile.DEFAULT,
            seed=self.random.token_bytes(32),
            clock_start_at=now,
            limits=Limits(),
            decision_id=ids.new_id(ids.DECISION, self.clock, self.random),
            policy_digest=sha256_digest(b"policy"),
            traceparent="",
            not_before=now,
            expires_at=now + timedelta(seconds=60),
            nonce=self.random.token_bytes(16),
            lease=self.lease,
            heartbeat_number=session.heartbeats[-1].number,
            retry_is_safe=False,
        )
        self.templates[template.digest] = template
        return Job(order=replace(order, **changes), input=input_, salt=salt)

    async def send(self, session: Heard, *jobs: Job, key: PrivateKey | None = None) -> None:
        """Sign these orders as one batch and send it."""
        encoded = [encode_order(job.order) for job in jobs]
        batch = await sign_batch(
            encoded,
            signer(key or self.order_key),
            installation=INSTALLATION,
            epoch=self.epoch,
            issued_at=self.clock.now(),
        )
        for job in jobs:
            self.inputs[job.order.execution_id] = job.input
            self.orders[job.order.execution_id] = job.order
        message = orders_pb2.OrderBatch(
            envelope=batch.envelope,
            orders=[
                delivery_of(job, content, index, batch.paths[index])
                for index, (job, content) in enumerate(zip(jobs, encoded, strict=True))
            ],
        )
        self.say(session, nodes_pb2.SessionResponse(order_batch=message))

    def say(self, session: Heard, message: nodes_pb2.SessionResponse | None) -> None:
        """Send a message; None ends the stream."""
        session.outgoing.put_nowait(message)

    async def receipt_of(self, job: Job) -> VerifiedReceipt:
        """Wait for the receipt of this order."""
        digest = sha256_digest(encode_order(job.order))
        return await self.receipt_for(digest)

    async def receipt_for(self, order_digest: Digest) -> VerifiedReceipt:
        def found() -> VerifiedReceipt | None:
            return next(
                (one for one in self.receipts.values() if one.predicate.order_digest == order_digest), None
            )

        receipt: VerifiedReceipt = await self.wait_for(found)
        return receipt

    def output_of(self, receipt: VerifiedReceipt) -> bytes:
        """Return the output that came with a receipt, inline or uploaded."""
        delivery = self.deliveries[receipt.hash]
        commitment = receipt.predicate.output_commitment
        content = delivery.output.inline
        if delivery.output.size_bytes > 64 * 1024:
            content = self.outputs[commitment]
        assert commit_body(content, delivery.output.salt) == commitment
        return content

    async def certify(self, csr_der: bytes, node_id: str) -> Any:
        """Issue a certificate for a node, or the wrong one that a test asks for."""
        name = self.forged_name or node_id
        return await self.authority.issue(
            self.forged_csr or csr_der,
            spiffe_id=f"spiffe://{INSTALLATION}/node/{name}",
            ttl=timedelta(hours=24),
        )

    # --- what a node hears

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[nodes_pb2.SessionResponse]:  # noqa: N802 - the contract names it
        if self.refusal is not None:
            await context.abort(*self.refusal)
        first = await anext(aiter(requests))
        heard = Heard(hello=first.hello)
        async with self.changed:
            self.sessions.append(heard)
            self.changed.notify_all()
        welcome = nodes_pb2.Welcome(
            session_epoch=len(self.sessions),
            keyset=self.keyset_envelope,
            last_accepted=self.accepted.get(NodeId(heard.hello.node_id)),
            order_type="agentfactory.order.v2",
        )
        welcome.heartbeat_every.FromTimedelta(self.heartbeat_every)
        welcome.lease.FromTimedelta(self.lease)
        self.spoil_welcome(welcome)
        yield nodes_pb2.SessionResponse(welcome=welcome)
        reader = asyncio.create_task(self._read(heard, requests))
        try:
            while (message := await heard.outgoing.get()) is not None:
                yield message
        finally:
            reader.cancel()
            heard.closed.set()

    async def _read(self, heard: Heard, requests: Any) -> None:
        async for request in requests:
            async with self.changed:
                self._take(heard, request)
                self.changed.notify_all()
        heard.closed.set()
        heard.outgoing.put_nowait(None)

    def _take(self, heard: Heard, request: nodes_pb2.SessionRequest) -> None:
        match request.WhichOneof("message"):
            case "heartbeat":
                heard.heartbeats.append(request.heartbeat)
            case "attempt_started":
                heard.started.extend(request.attempt_started.attempts)
            case "lease_renewal":
                heard.renewals.append(request.lease_renewal)
                if self.grants:
                    granted = nodes_pb2.LeaseGranted(
                        number=request.lease_renewal.number, attempts=request.lease_renewal.attempts
                    )
                    self.say(heard, nodes_pb2.SessionResponse(lease_granted=granted))
            case "receipt_batch":
                self._take_receipts(heard, request.receipt_batch)
            case "host_call":
                self._take_host_call(heard, request.host_call)

    def _take_host_call(self, heard: Heard, call: nodes_pb2.HostCall) -> None:
        reply = nodes_pb2.HostReply(number=call.number)
        if self.host_call_denial:
            reply.denied.reason = self.host_call_denial
        elif call.WhichOneof("call") == "unsafe_intent":
            self.unsafe_intents.append(call.attempt.execution_id)
            reply.unsafe_intent_recorded.SetInParent()
        else:
            value = self.kv_values.get(call.kv_get.key)
            reply.kv_value.found = value is not None
            reply.kv_value.value = value or b""
        self.say(heard, nodes_pb2.SessionResponse(host_reply=reply))

    def _take_receipts(self, heard: Heard, batch: nodes_pb2.ReceiptBatch) -> None:
        node_id = NodeId(heard.hello.node_id)
        sequences = []
        for delivery in batch.receipts:
            receipt = verify_receipt(delivery.envelope, node_id=node_id, node_key=self.receipt_keys[node_id])
            self.receipts[node_id, receipt.predicate.sequence] = receipt
            self.deliveries[receipt.hash] = delivery
            sequences.append(receipt.predicate.sequence)
        if self.acknowledges:
            ack = nodes_pb2.ReceiptAck(sequences=sequences)
            self.say(heard, nodes_pb2.SessionResponse(receipt_ack=ack))

    async def FetchArtifact(  # noqa: N802 - the contract names it
        self, request: Any, context: Any
    ) -> AsyncIterator[nodes_pb2.FetchArtifactResponse]:
        self.fetches += 1
        template = self.templates.get(request.template_digest)
        if template is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such template")
        yield nodes_pb2.FetchArtifactResponse(envelope=template.envelope)
        for start in range(0, len(template.module), 100_000):
            yield nodes_pb2.FetchArtifactResponse(chunk=template.module[start : start + 100_000])

    async def FetchBody(self, request: Any, context: Any) -> AsyncIterator[nodes_pb2.FetchBodyResponse]:  # noqa: N802 - the contract names it
        content = self.inputs[request.attempt.execution_id]
        for start in range(0, len(content), 100_000):
            yield nodes_pb2.FetchBodyResponse(chunk=content[start : start + 100_000])

    async def UploadOutput(self, requests: Any, context: Any) -> nodes_pb2.UploadOutputResponse:  # noqa: N802 - the contract names it
        header, content = None, b""
        async for part in requests:
            if part.WhichOneof("part") == "header":
                header = part.header
            else:
                content += part.chunk
        assert header is not None
        assert len(content) == header.size_bytes
        self.outputs[header.commitment] = content
        return nodes_pb2.UploadOutputResponse()

    async def GetLogProof(  # noqa: N802 - the contract names it
        self, request: Any, context: Any
    ) -> nodes_pb2.GetLogProofResponse:
        if self.log_refusal is not None:
            await context.abort(*self.log_refusal)
        node_id = context.auth_context()["peer_spiffe_id"][0].decode().rpartition("/")[2]
        log, facts = self.logs.get(NodeId(node_id), self.log), ()
        if request.HasField("attempt"):
            order = self.orders[request.attempt.execution_id]
            facts = (template_fact(order.tenant_id, order.template_digest), policy_fact(order.policy_digest))
        answer = await log.answer(request.known_size, facts, epoch=self.epoch)
        self.spoil_log(answer)
        return answer

    async def RenewNodeCertificate(  # noqa: N802 - the contract names it
        self, request: Any, context: Any
    ) -> nodes_pb2.RenewNodeCertificateResponse:
        node_id = context.auth_context()["peer_spiffe_id"][0].decode().rpartition("/")[2]
        self.renewals += 1
        leaf = await self.certify(request.csr_der, node_id)
        return nodes_pb2.RenewNodeCertificateResponse(certificate_chain_der=leaf.chain_der)


def delivery_of(job: Job, content: bytes, index: int, path: tuple[bytes, ...]) -> orders_pb2.OrderDelivery:
    """Return an order as it travels."""
    inline = job.input if len(job.input) <= 64 * 1024 else b""
    return orders_pb2.OrderDelivery(
        order=content,
        index=index,
        path=path,
        input=orders_pb2.Body(salt=job.salt, size_bytes=len(job.input), inline=inline),
        parameters=job.parameters,
    )
