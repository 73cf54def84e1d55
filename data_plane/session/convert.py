"""Proto of the session to domain and back."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from agentfactory.v1 import nodes_pb2, orders_pb2

from data_plane.orders.domain import AttemptRef, Delivery, InputBody
from data_plane.orders.log_check import LogSeen
from data_plane.orders.log_view import LogOffer, Place
from data_plane.receipts.domain import INLINE_BODY_BYTES, SpooledBody, SpooledReceipt, SpoolHead
from data_plane.receipts.issuer import SignedHead
from data_plane.sandbox.domain import EngineInfo, LayerState
from shared.compiled import Target
from shared.digests import Digest
from shared.ids import BootId, ExecutionId, NodeId
from shared.manifest import Profile
from shared.order_codec import PROFILE_NUMBERS

MAX_LAYER_DETAIL_CHARS: Final = 256
"""Bound of a layer's explanation in a Hello."""


def delivery_from_proto(message: orders_pb2.OrderDelivery) -> Delivery:
    body = message.input
    return Delivery(
        order=message.order,
        index=message.index,
        path=tuple(message.path),
        input=InputBody(
            salt=body.salt,
            size_bytes=body.size_bytes,
            inline=body.inline if body.size_bytes <= INLINE_BODY_BYTES else None,
        ),
        parameters=message.parameters,
    )


def attempt_from_proto(message: nodes_pb2.AttemptRef) -> AttemptRef:
    return AttemptRef(
        execution_id=ExecutionId(message.execution_id),
        attempt_number=message.attempt_number,
        fencing_token=message.fencing_token,
    )


def attempt_to_proto(attempt: AttemptRef) -> nodes_pb2.AttemptRef:
    return nodes_pb2.AttemptRef(
        execution_id=attempt.execution_id,
        attempt_number=attempt.attempt_number,
        fencing_token=attempt.fencing_token,
    )


def head_from_proto(message: nodes_pb2.SpoolHead) -> SpoolHead:
    return SpoolHead(sequence=message.sequence, hash=message.hash)


def head_to_proto(signed: SignedHead) -> nodes_pb2.SpoolHead:
    return nodes_pb2.SpoolHead(
        sequence=signed.head.sequence, hash=signed.head.hash, signature=signed.signature
    )


def hello_to_proto(
    *,
    node_id: NodeId,
    boot_id: BootId,
    accepts: Sequence[str],
    engines: Mapping[Profile, EngineInfo],
    slots: int,
    cached: Iterable[Digest],
    now: datetime,
    head: SignedHead,
    zone: str,
    keyset_version: int,
    layers: Iterable[LayerState],
) -> nodes_pb2.SessionRequest:
    engine = engines.get(Profile.DEFAULT) or next(iter(engines.values()))
    hello = nodes_pb2.Hello(
        node_id=node_id,
        boot_id=boot_id,
        accepts=accepts,
        engine=nodes_pb2.EngineInfo(
            name=engine.name, version=engine.version, config_digest=engine.config_digest
        ),
        profile_engines=[
            nodes_pb2.ProfileEngine(profile=PROFILE_NUMBERS[profile], config_digest=one.config_digest)
            for profile, one in engines.items()
        ],
        slots=slots,
        cached_digests=cached,
        spool_head=head_to_proto(head),
        zone=zone,
        keyset_version=keyset_version,
        sandbox_layers=[
            nodes_pb2.SandboxLayer(
                name=state.layer, active=state.active, detail=state.detail[:MAX_LAYER_DETAIL_CHARS]
            )
            for state in layers
        ],
    )
    hello.now.FromDatetime(now)
    return nodes_pb2.SessionRequest(hello=hello)


def log_to_proto(seen: LogSeen | None) -> nodes_pb2.LogSeen | None:
    if seen is None:
        return None
    return nodes_pb2.LogSeen(size=seen.size, root=seen.root, problem=seen.problem)


def log_offer_from_proto(message: nodes_pb2.GetLogProofResponse) -> LogOffer:
    template = message.template if message.HasField("template") else None
    policy = message.policy if message.HasField("policy") else None
    return LogOffer(
        checkpoint=message.checkpoint,
        consistency=tuple(message.consistency),
        places=(_place_from_proto(template), _place_from_proto(policy)),
    )


def _place_from_proto(message: nodes_pb2.LogPlace | None) -> Place | None:
    if message is None:
        return None
    return Place(log_index=message.log_index, salt=message.salt, path=tuple(message.path))


def receipts_to_proto(receipts: Sequence[SpooledReceipt]) -> nodes_pb2.SessionRequest:
    places: dict[bytes, int] = {b"": 0}
    deliveries = [
        nodes_pb2.ReceiptDelivery(
            envelope=receipt.envelope,
            output=_body_to_proto(receipt.output),
            log=_body_to_proto(receipt.log),
            recording=_body_to_proto(receipt.recording),
            kv_writes=nodes_pb2.KvWrites.FromString(receipt.kv_writes) if receipt.kv_writes else None,
            order_envelope=places.setdefault(receipt.order_envelope, len(places)),
        )
        for receipt in receipts
    ]
    return nodes_pb2.SessionRequest(
        receipt_batch=nodes_pb2.ReceiptBatch(receipts=deliveries, order_envelopes=list(places)[1:])
    )


def started_to_proto(attempts: Iterable[AttemptRef]) -> nodes_pb2.SessionRequest:
    started = nodes_pb2.AttemptStarted(attempts=map(attempt_to_proto, attempts))
    return nodes_pb2.SessionRequest(attempt_started=started)


def renewal_to_proto(number: int, attempts: Iterable[AttemptRef]) -> nodes_pb2.SessionRequest:
    renewal = nodes_pb2.LeaseRenewal(number=number, attempts=map(attempt_to_proto, attempts))
    return nodes_pb2.SessionRequest(lease_renewal=renewal)


def _body_to_proto(body: SpooledBody | None) -> orders_pb2.Body | None:
    if body is None:
        return None
    return orders_pb2.Body(salt=body.salt, size_bytes=body.size_bytes, inline=body.inline or b"")


def target_to_proto(target: Target) -> nodes_pb2.CompilationTarget:
    return nodes_pb2.CompilationTarget(
        profile=PROFILE_NUMBERS[target.profile],
        engine_name=target.engine_name,
        engine_version=target.engine_version,
        config_digest=target.config_digest,
        cpu_features=target.cpu_features,
    )
