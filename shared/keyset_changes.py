"""The next version of a keyset: keys added, ended or revoked. Pure: signs, stores and sends nothing.

Works on any machine, with nothing but the keyset that is in force.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from shared.errors import AlreadyExistsError, NotFoundError, WrongStateError
from shared.ids import KeyId
from shared.keyset import KeyPurpose, Keyset, KeysetEntry
from shared.signatures import PublicKey

BACKDATE: Final = timedelta(seconds=30)
"""Keys are valid from a little earlier: clocks may be apart by the skew that is allowed."""

Change = Callable[[Keyset], Keyset]
"""From a keyset to one that says more; versions are counted by `following` alone."""


def following(keyset: Keyset, *changes: Change, now: datetime) -> Keyset:
    """Return the next version, with the changes applied in turn; the same keyset when nothing changes."""
    changed = keyset
    for change in changes:
        changed = change(changed)
    if changed.entries == keyset.entries:
        return keyset
    return replace(changed, version=keyset.version + 1, issued_at=now)


def add_key(purpose: KeyPurpose, key: PublicKey, *, now: datetime, life: timedelta) -> Change:
    """List a key from now on. One that is listed and valid for the whole time is left as it is.

    Raises (when applied):
        AlreadyExistsError: The key is listed and revoked, or ends earlier: a key does not come back.
        InvalidInputError: Its algorithm is not one of the purpose.
    """
    entry = KeysetEntry(purpose=purpose, key=key, not_before=now - BACKDATE, not_after=now + life)

    def apply(keyset: Keyset) -> Keyset:
        found = next(
            (one for one in keyset.entries if (one.purpose, one.key_id) == (purpose, key.key_id)), None
        )
        if found is None:
            return replace(keyset, entries=(*keyset.entries, entry))
        if not found.is_valid(now):
            raise AlreadyExistsError(
                f"key {key.key_id} ({purpose}) was listed and counts no more", hint="make a new key"
            )
        return keyset

    return apply


def end_others(purpose: KeyPurpose, successor: KeyId, *, at: datetime) -> Change:
    """Let every other key of the purpose end at this time, if it would not end earlier."""

    def end(entry: KeysetEntry) -> KeysetEntry:
        is_other = entry.purpose is purpose and entry.key_id != successor
        if is_other and entry.not_before < at < entry.not_after:
            return replace(entry, not_after=at)
        return entry

    return lambda keyset: replace(keyset, entries=tuple(map(end, keyset.entries)))


def end_key(key_id: KeyId, *, at: datetime) -> Change:
    """Let one key end at this time, if it would not end earlier.

    Raises (when applied):
        NotFoundError: It is not listed.
        WrongStateError: It begins later than that.
    """

    def apply(keyset: Keyset) -> Keyset:
        entries = _entries_of(keyset, key_id)
        if any(entry.not_before >= at for entry in entries):
            raise WrongStateError(f"key {key_id} begins after {at}", hint="revoke it instead")
        ended = {id(one): replace(one, not_after=min(one.not_after, at)) for one in entries}
        return replace(keyset, entries=tuple(ended.get(id(one), one) for one in keyset.entries))

    return apply


def revoke_key(key_id: KeyId, *, at: datetime, log_position: int | None = None) -> Change:
    """Let a key's signatures count no more, whatever its purpose; one that is revoked earlier stays so.

    Raises (when applied):
        NotFoundError: It is not listed.
    """

    def revoke(entry: KeysetEntry) -> KeysetEntry:
        if entry.key_id != key_id or (entry.revoked_at is not None and entry.revoked_at <= at):
            return entry
        return replace(entry, revoked_at=at, revoked_log_position=log_position)

    def apply(keyset: Keyset) -> Keyset:
        _entries_of(keyset, key_id)
        return replace(keyset, entries=tuple(map(revoke, keyset.entries)))

    return apply


def drop_key(key_id: KeyId) -> Change:
    """Forget a key wholly. What it signed cannot be verified any more, by anybody.

    Raises (when applied):
        NotFoundError: It is not listed.
    """

    def apply(keyset: Keyset) -> Keyset:
        doomed = _entries_of(keyset, key_id)
        return replace(keyset, entries=tuple(one for one in keyset.entries if one not in doomed))

    return apply


def undone(older: Keyset, newer: Keyset) -> str:
    """Return what the newer keyset takes back of the older one's revocations; empty if nothing.

    The root may say what it likes; a revocation that is taken back is a mistake all the same.
    """
    now_listed = {(one.purpose, one.key_id): one for one in newer.entries}
    for entry in older.entries:
        found = now_listed.get((entry.purpose, entry.key_id))
        if entry.revoked_at is None or found is None:
            continue
        if found.revoked_at is None or found.revoked_at > entry.revoked_at:
            return f"key {entry.key_id} ({entry.purpose}) was revoked at {entry.revoked_at}"
    return ""


def differences(older: Keyset, newer: Keyset) -> list[str]:
    """Return what changes, in words, one line a key; a new root comes first."""
    before = {(one.purpose, one.key_id): one for one in older.entries}
    after = {(one.purpose, one.key_id): one for one in newer.entries}
    lines = []
    if newer.root_key_id != older.root_key_id:
        lines.append(f"root {older.root_key_id} hands over to {newer.root_key_id}")
    if newer.epoch != older.epoch:
        lines.append(f"epoch {older.epoch} becomes {newer.epoch}, as after a restore")
    lines += [
        f"+ {one.purpose} {one.key_id} until {one.not_after.isoformat()}"
        for name, one in after.items()
        if name not in before
    ]
    lines += [f"- {purpose} {key_id}" for purpose, key_id in before if (purpose, key_id) not in after]
    for name, one in after.items():
        was = before.get(name)
        if was is None or was == one:
            continue
        what = (
            f"revoked at {one.revoked_at.isoformat()}"
            if one.revoked_at is not None and one.revoked_at != was.revoked_at
            else f"valid {one.not_before.isoformat()} to {one.not_after.isoformat()}"
        )
        lines.append(f"~ {one.purpose} {one.key_id} {what}")
    return lines


def _entries_of(keyset: Keyset, key_id: KeyId) -> list[KeysetEntry]:
    found = [entry for entry in keyset.entries if entry.key_id == key_id]
    if not found:
        raise NotFoundError(f"keyset {keyset.version} lists no key {key_id}")
    return found
