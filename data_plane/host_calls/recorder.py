"""What a run's host calls asked and were answered: a canonical JSON line each, beside the receipt (rule 17).

Digests are of the bytes that the guest sent and got: before secrets were injected, after they were taken out.
"""

import base64
import zlib
from typing import Final

from data_plane.host_calls.domain import UNKNOWN_METHOD, Refusal, refused
from data_plane.sandbox.domain import MAX_RESPONSE_BYTES
from shared.canonical import JsonObject, canonical_json
from shared.digests import Digest, sha256_digest
from shared.receipts import MAX_RECORDING_BYTES

_LINE_BYTES: Final = 512
"""More than a line without bytes takes."""
_ZLIB_LEVEL: Final = 1


class Recorder:
    """Gathers the lines of one run."""

    def __init__(self, *, is_on: bool, keeps_bytes: bool) -> None:
        self._is_on = is_on
        """Off where nothing outside is granted: then no call needs more than the order to be repeated."""
        self._keeps_bytes = keeps_bytes
        self._lines: list[bytes] = []
        self._size = 0
        self.plain_bytes = 0
        """Of requests and responses that are kept."""
        self.packed_bytes = 0
        """What they take, compressed."""

    def require_room(self, request: bytes) -> None:
        """Refuse a call that could not be recorded: what leaves no trace is not done.

        Raises:
            HostCallRefusedError: The recording is full (`RECORDING_FULL`).
        """
        wanted = _LINE_BYTES + (2 * (len(request) + MAX_RESPONSE_BYTES) if self._keeps_bytes else 0)
        if self._size + wanted > MAX_RECORDING_BYTES:
            raise refused(
                Refusal.RECORDING_FULL, f"the recording of this run has {MAX_RECORDING_BYTES} bytes"
            )

    def add(
        self,
        *,
        index: int,
        method: str | None,
        request: bytes,
        digest: Digest,
        response: bytes,
        status: str,
        is_scrubbed: bool = False,
    ) -> None:
        """Write one call down."""
        if not self._is_on:
            return
        line: JsonObject = {
            "index": index,
            "method": method or UNKNOWN_METHOD,
            "request_digest": digest,
            "response_digest": sha256_digest(response),
            "status": status,
        }
        if is_scrubbed:
            # What the guest saw is not what the server sent, so a replay cannot ask the server again.
            line["scrubbed"] = True
        if self._keeps_bytes:
            for name, data in (("request", request), ("response", response)):
                packed = zlib.compress(data, _ZLIB_LEVEL)
                self.plain_bytes += len(data)
                self.packed_bytes += len(packed)
                line[name] = base64.b64encode(packed).decode()
        encoded = canonical_json(line) + b"\n"
        self._lines.append(encoded)
        self._size += len(encoded)

    @property
    def content(self) -> bytes:
        """All lines."""
        return b"".join(self._lines)
