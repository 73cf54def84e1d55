"""`kv.get` and `kv.put` of one run: reads see its own writes, which count when its result does (rule 6)."""

import base64
from collections.abc import Iterable
from typing import Final

from agentfactory.v1 import nodes_pb2

from data_plane.host_calls.domain import KvWrite, Params, Refusal, refused
from data_plane.host_calls.ports import KvStore
from data_plane.orders.domain import AttemptRef

MAX_KEY_CHARS: Final = 256
MAX_VALUE_BYTES: Final = 64 * 1024
MAX_WRITTEN_KEYS: Final = 64
MAX_WRITTEN_BYTES: Final = 256 * 1024
"""Keys and values of one run's writes together."""


class KvBuffer:
    """What one run has written so far, over what its agent has kept."""

    def __init__(self, store: KvStore, attempt: AttemptRef) -> None:
        self._store = store
        self._attempt = attempt
        self._writes: dict[str, bytes | None] = {}

    async def get(self, params: Params) -> dict[str, object]:
        """`{"key"}` → `{"found", "value_base64"}`.

        Raises:
            HostCallRefusedError, UnavailableError: As `KvStore.get`.
        """
        key = _key(params)
        params.end()
        value = self._writes[key] if key in self._writes else await self._store.get(self._attempt, key)
        if value is None:
            return {"found": False}
        return {"found": True, "value_base64": base64.b64encode(value).decode()}

    def put(self, params: Params) -> dict[str, object]:
        """`{"key", "value_base64"}` → `{}`; without a value the key is removed.

        Raises:
            HostCallRefusedError: Too long, or more than one run may write (`QUOTA_EXHAUSTED`).
        """
        key, value = _key(params), params.content("value_base64")
        params.end()
        if value is not None and len(value) > MAX_VALUE_BYTES:
            raise refused(Refusal.INVALID_REQUEST, f"a value has at most {MAX_VALUE_BYTES} bytes")
        writes = {**self._writes, key: value}
        size = sum(len(name.encode()) + len(content or b"") for name, content in writes.items())
        if len(writes) > MAX_WRITTEN_KEYS or size > MAX_WRITTEN_BYTES:
            raise refused(
                Refusal.QUOTA_EXHAUSTED,
                f"a run writes at most {MAX_WRITTEN_KEYS} keys and {MAX_WRITTEN_BYTES} bytes",
            )
        self._writes = writes
        return {}

    @property
    def writes(self) -> tuple[KvWrite, ...]:
        """The last write of each key, in the order of the keys."""
        return tuple(KvWrite(key=key, value=value) for key, value in sorted(self._writes.items()))


def encode_writes(writes: Iterable[KvWrite]) -> bytes:
    """Return the deterministic encoding of writes, as receipts commit to it; none is empty."""
    message = nodes_pb2.KvWrites(
        writes=[
            nodes_pb2.KvWrite(key=write.key, deleted=True)
            if write.value is None
            else nodes_pb2.KvWrite(key=write.key, value=write.value)
            for write in writes
        ]
    )
    return bytes(message.SerializeToString(deterministic=True))


def _key(params: Params) -> str:
    key = params.text("key", max_chars=MAX_KEY_CHARS)
    # Postgres keeps no NUL in text; nobody needs the other control characters in a name.
    if not key or not key.isprintable():
        raise refused(Refusal.INVALID_REQUEST, "key is empty, or has a character that is not printable")
    return key
