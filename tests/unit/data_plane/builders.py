"""A node's facts and orders for it, to change one thing in."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from data_plane.orders.domain import Delivery, InputBody
from data_plane.orders.verifier import NodeFacts
from data_plane.sandbox.domain import EngineInfo
from shared.digests import commit_body, sha256_digest
from shared.ids import InstallationId
from shared.limits import Limits
from shared.manifest import Profile
from shared.order_codec import encode_order
from shared.orders import Order
from shared.signatures import PrivateKey
from tests.fakes.clock import START
from tests.fixtures.keys import rsa_key, signer
from tests.fixtures.order_batches import sign_batch
from tests.unit.shared.builders import BOOT, INSTALLATION, NODE, an_order

ENGINE = EngineInfo(
    name="wasmer", version="7.4.2", config_digest=sha256_digest(b"engine"), cpu_features="avx,sse2"
)
ENGINES = {
    profile: replace(ENGINE, profile=profile, config_digest=sha256_digest(profile.encode()))
    for profile in Profile
} | {Profile.DEFAULT: ENGINE}
SALT = bytes(range(32))
INPUT = b"input"
PARAMETERS = b"{}"


def facts(**changes: Any) -> NodeFacts:
    values: dict[str, Any] = {
        "installation": InstallationId(INSTALLATION),
        "node_id": NODE,
        "boot_id": BOOT,
        "engines": {Profile.DEFAULT: ENGINE},
        "ceilings": Limits(),
        "max_order_life": timedelta(seconds=60),
        "max_skew": timedelta(seconds=30),
    }
    return NodeFacts(**values | changes)


def order(**changes: Any) -> Order:
    return an_order(**{"input_commitment": commit_body(INPUT, SALT), "input_bytes": len(INPUT)} | changes)


async def signed(
    *orders: Order, key: PrivateKey | None = None, epoch: int = 1, installation: str = INSTALLATION
) -> tuple[bytes, list[Delivery]]:
    """Return the envelope of these orders' root, and the deliveries."""
    contents = [encode_order(one) for one in orders]
    batch = await sign_batch(
        contents,
        signer(key or rsa_key("order")),
        installation=installation,
        epoch=epoch,
        issued_at=START,
    )
    deliveries = [
        Delivery(
            order=content,
            index=index,
            path=batch.paths[index],
            input=InputBody(salt=SALT, size_bytes=len(INPUT), inline=INPUT),
            parameters=PARAMETERS,
        )
        for index, content in enumerate(contents)
    ]
    return batch.envelope, deliveries
