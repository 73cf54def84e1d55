"""Keys of bodies, from settings: their custodian, the keyring of this replica, and who administers them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from control_plane.body_keys.administration import BodyKeyAdministration
from control_plane.body_keys.files import FileWrapping
from control_plane.body_keys.ports import KeyWrapping
from control_plane.body_keys.service import BodyKeyring
from control_plane.body_keys.store import PostgresBodyKeyStore
from control_plane.wiring.base import Base
from control_plane.wiring.keys import vault_access


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyKeyParts:
    keyring: BodyKeyring
    administration: BodyKeyAdministration


@asynccontextmanager
async def open_body_keys(base: Base) -> AsyncIterator[BodyKeyParts]:
    """Open the custody of keys of bodies, for a block. A custodian that is away stops no start.

    Raises:
        SettingsError: The vault is not named as it must be.
        DatabaseUnavailableError: Postgres does not say whose bodies are encrypted.
    """
    async with _wrapping(base) as wrapping:
        store = PostgresBodyKeyStore(base.database)
        keyring = BodyKeyring(
            store=store,
            wrapping=wrapping,
            clock=base.clock,
            random=base.random,
            life=base.settings.body_key_life,
        )
        await keyring.read()  # before anything is stored
        yield BodyKeyParts(
            keyring=keyring,
            administration=BodyKeyAdministration(
                database=base.database,
                store=store,
                wrapping=wrapping,
                keyring=keyring,
                audit=base.audit,
                clock=base.clock,
                random=base.random,
            ),
        )


@asynccontextmanager
async def _wrapping(base: Base) -> AsyncIterator[KeyWrapping]:
    settings = base.settings
    if settings.custody == "files":
        yield FileWrapping(base.paths.order_key.parent)
        return
    # Whoever has no vault loads no client of one.
    from control_plane.body_keys.vault import VaultWrapping  # noqa: PLC0415
    from shared.vault import VaultClient  # noqa: PLC0415

    # A login of its own: what goes wrong with keys of bodies does not hold up the signing of orders.
    vault = VaultClient(vault_access(settings), clock=base.clock)
    try:
        yield VaultWrapping(vault, mount=settings.vault_transit_mount, prefix=settings.vault_key_prefix)
    finally:
        await vault.close()
