"""gRPC adapter of keys: parse, one use case, convert."""

from datetime import datetime
from typing import Any, Final

from agentfactory.v1 import keys_pb2, keys_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.keys.domain import KeyReport, KeyState
from control_plane.keys.service import KeyService
from shared.keyset import KeyPurpose
from shared.rpc.identity import caller

PURPOSES: Final = {
    purpose: keys_pb2.KeyPurpose.Value(f"KEY_PURPOSE_{purpose.upper()}") for purpose in KeyPurpose
}
PURPOSES_BY_NUMBER: Final = {number: purpose for purpose, number in PURPOSES.items()}
STATES: Final = {state: keys_pb2.KeyState.Value(f"KEY_STATE_{state.upper()}") for state in KeyState}


class KeyServicer(keys_pb2_grpc.KeyServiceServicer):
    """Serves `KeyService`."""

    def __init__(self, service: KeyService) -> None:
        self._service = service

    async def ListKeys(self, _request: keys_pb2.ListKeysRequest, _: Any) -> keys_pb2.ListKeysResponse:
        found = await self._service.list_keys()
        return keys_pb2.ListKeysResponse(
            keys=[key_to_proto(report) for report in found.keys],
            keyset_version=found.keyset_version,
            acknowledged_version=found.acknowledged_version,
            custody_problem=found.custody_problem,
            fresh_at=_timestamp(found.fresh_at),
        )

    async def GetKeyset(self, _request: keys_pb2.GetKeysetRequest, _: Any) -> keys_pb2.GetKeysetResponse:
        newest = await self._service.newest()
        return keys_pb2.GetKeysetResponse(
            version=newest.version, envelope=newest.envelope, freshness=newest.freshness
        )

    async def PublishKeyset(
        self, request: keys_pb2.PublishKeysetRequest, _: Any
    ) -> keys_pb2.PublishKeysetResponse:
        version = await self._service.publish(caller().identity, request.envelope)
        return keys_pb2.PublishKeysetResponse(version=version)

    async def CreateKey(self, request: keys_pb2.CreateKeyRequest, _: Any) -> keys_pb2.CreateKeyResponse:
        made = await self._service.create(caller().identity, PURPOSES_BY_NUMBER[request.purpose])
        return keys_pb2.CreateKeyResponse(key=key_to_proto(made))

    async def PublishFreshness(
        self, request: keys_pb2.PublishFreshnessRequest, _: Any
    ) -> keys_pb2.PublishFreshnessResponse:
        return keys_pb2.PublishFreshnessResponse(
            accepted=await self._service.put_freshness(request.statement)
        )


def key_to_proto(report: KeyReport) -> keys_pb2.Key:
    """Return the message of a key."""
    entry = report.entry
    return keys_pb2.Key(
        key_id=report.key_id,
        purpose=PURPOSES[report.purpose],
        state=STATES[report.state],
        public_key_der=report.public.spki_der,
        algorithm=report.public.algorithm,
        not_before=_timestamp(None if entry is None else entry.not_before),
        not_after=_timestamp(None if entry is None else entry.not_after),
        revoked_at=_timestamp(None if entry is None else entry.revoked_at),
        custody_name=report.custody_name,
        custody_version=report.custody_version,
    )


def _timestamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
