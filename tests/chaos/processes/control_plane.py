"""``python -m tests.chaos.processes.control_plane``: a control plane whose key custody can be taken away."""

import sys

from control_plane import __main__ as command
from control_plane import main
from control_plane.wiring.base import Base, order_signer
from shared.errors import KeyUnavailableError
from shared.signatures import FileSigner, Signature
from tests.chaos.processes.switches import Switch

KEYS_AWAY = "keys-away"


class Custody(FileSigner):
    """Signs while its custodian answers."""

    async def sign(self, data: bytes) -> Signature:
        if Switch(KEYS_AWAY).is_on:
            raise KeyUnavailableError("the custodian of the order key does not answer")
        return await FileSigner.sign(self, data)


async def custody(base: Base) -> FileSigner:
    return Custody(key=(await order_signer(base)).key)


if __name__ == "__main__":
    vars(main).update(order_signer=custody)
    sys.exit(command.main())
