"""The transparency log, from settings."""

from control_plane.keys.signer import OrderSigner
from control_plane.log.keys import CustodyLogKeys
from control_plane.log.service import LogService
from control_plane.log.store import PostgresLogStore
from control_plane.wiring.base import Base
from shared.checkpoints import log_origin


def build_log(base: Base, signer: OrderSigner) -> LogService:
    return LogService(
        database=base.database,
        store=PostgresLogStore(),
        origin=log_origin(base.found.installation, base.found.epoch),
        keys=CustodyLogKeys(custody=signer.custody, keysets=base.keysets, clock=base.clock),
        observer=base.metrics,
        random=base.random,
    )
