"""Root keys that hand over, for tests: statements, and keysets with the chain that leads to their root."""

from shared.roots import Handover, RelayedKeyset, encode_relayed, sign_handover
from shared.signatures import PrivateKey
from tests.fakes.clock import START
from tests.fixtures.keys import signer
from tests.unit.shared.builders import INSTALLATION


async def handover(
    old: PrivateKey,
    new: PrivateKey,
    *,
    by: tuple[PrivateKey, PrivateKey] | None = None,
    installation: str = INSTALLATION,
) -> bytes:
    """A statement by which one root hands over to another; signed by others if `by` says so."""
    statement = Handover(
        installation=installation, old_root_key_id=old.key_id, new_root=new.public, issued_at=START
    )
    first, second = by or (old, new)
    return await sign_handover(statement, old=signer(first), new=signer(second))


def with_chain(envelope: bytes, *handovers: bytes) -> bytes:
    """A keyset's envelope as it is relayed."""
    return encode_relayed(RelayedKeyset(envelope=envelope, handovers=handovers))
