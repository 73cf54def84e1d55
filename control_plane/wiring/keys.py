"""Custody of keys, the signer of orders and the service of keys, from settings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from control_plane.dispatch.service import Dispatch
from control_plane.installation.files import read_root_key
from control_plane.keys.files import FileCustody
from control_plane.keys.metrics import KeyMetrics, MeasuredCustody
from control_plane.keys.ports import KeyCustody
from control_plane.keys.service import KeyService
from control_plane.keys.servicer import KeyServicer
from control_plane.keys.signer import OrderSigner
from control_plane.keys.store import PostgresKeyStore
from control_plane.settings import ControlSettings
from control_plane.wiring.base import Base
from shared.clock import Clock
from shared.errors import SettingsError, UnknownKeyError
from shared.keyset import KeyPurpose
from shared.paths import InstallationPaths
from shared.vault_access import VaultAccess


@asynccontextmanager
async def open_signer(base: Base) -> AsyncIterator[OrderSigner]:
    """Open the custody of keys and choose what signs orders, for the length of the block.

    A vault that does not answer, or holds no key of the keyset, stops no start: orders wait for it.

    Raises:
        SettingsError: The vault is not named as it must be.
        NotFoundError, KeyFileModeError, KeyFormatError: A key file is missing or not usable.
        UnknownKeyError: The keyset lists order keys, and none of those in files.
    """
    observer = KeyMetrics(base.registry, base.clock)
    async with _custody(base.settings, base.paths, base.clock) as custody:
        signer = OrderSigner(
            custody=MeasuredCustody(custody, observer),
            keysets=base.keysets,
            observer=observer,
            clock=base.clock,
        )
        await signer.refresh()
        if isinstance(custody, FileCustody):
            await _require_files(base, custody, signer)
        yield signer


def build_keys(base: Base, signer: OrderSigner, dispatch: Dispatch) -> KeyServicer:
    signer.listen_to(dispatch)
    return KeyServicer(
        KeyService(
            database=base.database,
            store=PostgresKeyStore(),
            custody=signer.custody,
            signing=signer,
            sessions=dispatch,
            audit=base.audit,
            root=read_root_key(base.paths),
            installation=base.found.installation,
            observer=signer.observer,
            clock=base.clock,
            random=base.random,
        )
    )


async def _require_files(base: Base, custody: FileCustody, signer: OrderSigner) -> None:
    await asyncio.to_thread(custody.require_usable, KeyPurpose.ORDER)
    keyset = await base.keysets.current()
    # Orders by keys that nodes do not know would be refused by every one of them: better not to start.
    if signer.key is None and keyset.keys_for(KeyPurpose.ORDER, base.clock.now()):
        raise UnknownKeyError(
            f"keyset {keyset.version} lists none of the order keys in {base.paths.order_key.parent}"
        )


@asynccontextmanager
async def _custody(
    settings: ControlSettings, paths: InstallationPaths, clock: Clock
) -> AsyncIterator[KeyCustody]:
    if settings.custody == "files":
        yield FileCustody(paths.order_key.parent)
        return
    # Whoever has no vault loads no client of one.
    from control_plane.keys.vault import VaultCustody  # noqa: PLC0415
    from shared.vault import VaultClient  # noqa: PLC0415

    vault = VaultClient(vault_access(settings), clock=clock)
    try:
        yield VaultCustody(vault, mount=settings.vault_transit_mount, prefix=settings.vault_key_prefix)
    finally:
        await vault.close()


def vault_access(settings: ControlSettings) -> VaultAccess:
    """Return where the vault is and who logs in there.

    Raises:
        SettingsError: It is not named as it must be.
    """
    if settings.vault_secret_id_file is None:
        raise SettingsError("custody is in a vault and AF_CONTROL_VAULT_SECRET_ID_FILE is not set")
    return VaultAccess(
        url=settings.vault_url,
        role_id=settings.vault_role_id,
        secret_id_file=settings.vault_secret_id_file,
        approle_mount=settings.vault_approle_mount,
        namespace=settings.vault_namespace,
        ca_file=settings.vault_ca_file,
        timeout=settings.vault_timeout,
    )
