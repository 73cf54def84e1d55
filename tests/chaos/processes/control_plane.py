"""``python -m tests.chaos.processes.control_plane``: a control plane whose key custody can be taken away."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from control_plane import __main__ as command
from control_plane import main
from control_plane.keys.domain import CustodyKey
from control_plane.keys.files import FileCustody
from control_plane.keys.signer import OrderSigner
from control_plane.wiring.base import Base
from control_plane.wiring.keys import open_signer
from shared.errors import KeyUnavailableError
from shared.signatures import Signature
from tests.chaos.processes.switches import Switch

KEYS_AWAY = "keys-away"


class Custody(FileCustody):
    """Signs while its custodian answers."""

    async def sign(self, key: CustodyKey, data: bytes) -> Signature:
        if Switch(KEYS_AWAY).is_on:
            raise KeyUnavailableError("the custodian of the order key does not answer")
        return await super().sign(key, data)


@asynccontextmanager
async def signing(base: Base) -> AsyncIterator[OrderSigner]:
    async with open_signer(base) as signer:
        signer.custody = Custody(base.paths.order_key.parent)
        yield signer


if __name__ == "__main__":
    vars(main).update(open_signer=signing)
    sys.exit(command.main())
