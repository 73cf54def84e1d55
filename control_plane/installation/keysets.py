"""Which keys a keyset of this installation lists. Pure: signs and stores nothing."""

from dataclasses import replace
from datetime import datetime, timedelta

from control_plane.installation.domain import (
    BACKDATE,
    LOG_KEY_LIFE,
    ORDER_KEY_LIFE,
    POLICY_KEY_LIFE,
    PUBLISHER_KEY_LIFE,
)
from shared.errors import WrongStateError
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, Keyset, KeysetEntry
from shared.signatures import PublicKey


def first_keyset(
    *,
    installation: InstallationId,
    root: PublicKey,
    order: PublicKey,
    policy: PublicKey,
    log: PublicKey,
    now: datetime,
) -> Keyset:
    """Return version 1: the keys for orders, policies and the log, no publisher yet."""
    return Keyset(
        version=1,
        installation=installation,
        epoch=1,
        root_key_id=root.key_id,
        issued_at=now,
        entries=(
            _entry(KeyPurpose.ORDER, order, now, ORDER_KEY_LIFE),
            _entry(KeyPurpose.POLICY, policy, now, POLICY_KEY_LIFE),
            _entry(KeyPurpose.LOG, log, now, LOG_KEY_LIFE),
        ),
    )


def with_publisher(keyset: Keyset, publisher: PublicKey, now: datetime) -> Keyset:
    """Return the next version that trusts this publisher, or the same keyset when it does so already.

    Raises:
        WrongStateError: It did once, and the key has ended or was revoked.
    """
    if publisher.key_id in keyset.keys_for(KeyPurpose.PUBLISHER, now):
        return keyset
    if any((one.purpose, one.key_id) == (KeyPurpose.PUBLISHER, publisher.key_id) for one in keyset.entries):
        raise WrongStateError(
            f"publisher key {publisher.key_id} has ended or was revoked", hint="make a new one: keys init"
        )
    return replace(
        keyset,
        version=keyset.version + 1,
        issued_at=now,
        entries=(*keyset.entries, _entry(KeyPurpose.PUBLISHER, publisher, now, PUBLISHER_KEY_LIFE)),
    )


def with_log_key(keyset: Keyset, log: PublicKey, now: datetime) -> Keyset:
    """Return the next version that lists a log key, or the same keyset when it lists one.

    For installations that are older than the log.
    """
    if any(entry.purpose is KeyPurpose.LOG for entry in keyset.entries):
        return keyset
    return replace(
        keyset,
        version=keyset.version + 1,
        issued_at=now,
        entries=(*keyset.entries, _entry(KeyPurpose.LOG, log, now, LOG_KEY_LIFE)),
    )


def _entry(purpose: KeyPurpose, key: PublicKey, now: datetime, life: timedelta) -> KeysetEntry:
    return KeysetEntry(purpose=purpose, key=key, not_before=now - BACKDATE, not_after=now + life)
