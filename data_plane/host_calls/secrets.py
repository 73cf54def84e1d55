"""Secrets of a run: handles for the guest, values for headers, and taking them out of what comes back."""

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, quote_plus

from shared.urls import Url

MIN_SECRET_CHARS: Final = 8
"""Shorter ones would be found in texts that have nothing to do with them."""
MAX_SECRET_CHARS: Final = 8192
SCRUBBED: Final = b"[secret]"
_HANDLE_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One secret and where it may go."""

    value: str = field(repr=False)
    urls: tuple[Url, ...]
    """Prefixes."""

    def may_go_to(self, url: Url) -> bool:
        return any(url.is_within(prefix) for prefix in self.urls)


def handle_of(key: bytes, name: str) -> str:
    """Return what the guest knows a secret by: the same in each attempt, of no use anywhere else."""
    word = hmac.new(key, b"secret\0" + name.encode(), hashlib.sha256).digest()[:_HANDLE_BYTES]
    return f"secret:{word.hex()}"


class Scrubber:
    """Takes injected values out of what a server sends back, in the forms in which servers echo."""

    def __init__(self) -> None:
        self._forms: set[bytes] = set()
        """In lower case: servers spell hexadecimal and percent-encoding as they like."""

    @property
    def is_armed(self) -> bool:
        """Whether any secret was injected."""
        return bool(self._forms)

    def add(self, value: str) -> None:
        """Look for this value from now on."""
        self._forms |= {form.lower() for form in _forms(value)}

    def scrub(self, data: bytes) -> bytes:
        """Return the data without any of the values."""
        lower = data.lower()
        # Looked for one by one: a pattern of all is tried at every byte, and everybody waits for that.
        found = [form for form in self._forms if form in lower]
        if not found:
            return data
        # The longest first: of two forms that begin alike the rest of the longer one must not stay.
        found.sort(key=len, reverse=True)
        return re.sub(b"|".join(map(re.escape, found)), SCRUBBED, data, flags=re.IGNORECASE)

    def scrub_text(self, text: str) -> str:
        """As `scrub`."""
        return self.scrub(text.encode()).decode(errors="replace")


def _forms(value: str) -> set[bytes]:
    raw = value.encode()
    texts = {
        value,
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        raw.hex(),
    }
    return {text.encode() for text in texts} | _base64_forms(raw)


def _base64_forms(raw: bytes) -> set[bytes]:
    """The characters that `raw` certainly makes inside base64, wherever it begins."""
    forms = set()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw).rstrip(b"=")
        first = (0, 2, 3)[before]
        last = len(encoded) - (1 if (before + len(raw)) % 3 else 0)
        core = encoded[first:last]
        forms |= {core, core.translate(bytes.maketrans(b"+/", b"-_"))}
    return forms
