"""Feeds what a worker might say to the node's decoder and parsers: refused by the one error, or within every bound."""

import copy
import json
import random
from contextlib import suppress
from typing import Any, Final

from data_plane.host_calls.domain import parse_call
from data_plane.sandbox import messages
from data_plane.sandbox.domain import MAX_REQUEST_BYTES, EngineInfo, RunResult
from data_plane.sandbox.frames import MAX_FRAME_BYTES, Frame, FrameDecoder, FrameKind, encode
from shared.digests import sha256_digest
from shared.errors import AgentFactoryError, HostCallRefusedError
from tests.fuzz.streams import ODD_VALUES
from tests.fuzz.worker import FindingError

RESOURCES: Final = (
    "wall_us", "cpu_us", "peak_memory_bytes", "stdout_bytes", "stderr_bytes", "peak_open_files", "random_bytes",
    "table_elements", "log_lines", "scratch_bytes", "scratch_inodes", "fuel", "host_calls", "host_call_bytes",
    "host_call_us",
)  # fmt: skip
NESTED_BYTES: Final = 200_000
_ENGINE: Final = EngineInfo(name="e", version="1", config_digest="c", cpu_features="")
_ODD: Final = (*ODD_VALUES, "\ud800", "x" * 5000, ["a"] * 3, {"name": "n", "message": "m"})


def draw(source: random.Random) -> bytes:
    """Return bytes as a worker might send them."""
    data = b"".join(encode(*_frame(source)) for _ in range(source.randint(1, 4)))
    if source.random() < 0.3:
        altered = bytearray(data)
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(altered))
            altered[at : at + source.choice((0, 1, 4))] = source.randbytes(source.choice((0, 1, 4)))
        data = bytes(altered)
    return data


def judge(data: bytes, source: random.Random) -> None:
    """Decode and parse ``data``, cut anyhow.

    Raises:
        FindingError: An error that callers do not expect, or a value beyond its bound.
    """
    decoder = FrameDecoder()
    frames: list[Frame] = []
    try:
        position = 0
        while position < len(data):
            size = source.randint(1, len(data))
            frames += decoder.feed(data[position : position + size])
            position += size
    except AgentFactoryError:
        pass
    except Exception as error:
        raise FindingError(f"the decoder raised {error!r}") from error
    for frame in frames:
        if len(frame.payload) >= MAX_FRAME_BYTES:
            raise FindingError("a frame beyond its bound")
        for parse in (_result, messages.ready_layers, _compiled, _called):
            _try(parse, frame.payload)


def _try(parse: Any, payload: bytes) -> None:
    try:
        value = parse(payload)
    except AgentFactoryError as error:
        text = str(error)
    except Exception as error:
        raise FindingError(f"{parse.__name__} raised {error!r}") from error
    else:
        text = repr(value)
        if isinstance(value, RunResult) and value.trap is not None:
            text = value.trap.name + value.trap.message
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FindingError(f"{parse.__name__} lets text through that no receipt can carry") from error
    if len(text) > 4 * messages.MAX_TEXT_CHARS:
        raise FindingError(f"{parse.__name__} lets {len(text)} characters through")


def _result(payload: bytes) -> RunResult:
    return messages.result_of(messages.parse_outcome(payload), stdout=b"", stderr=b"", engine=_ENGINE)


def _called(payload: bytes) -> object:
    used, request = messages.parse_host_call(payload)
    if len(request) > MAX_REQUEST_BYTES:
        raise ValueError(f"a request of {len(request)} bytes")
    with suppress(HostCallRefusedError):
        parse_call(request, index=0, digest=sha256_digest(request))
    return used


def _compiled(payload: bytes) -> object:
    return messages.compiled_of(messages.parse_outcome(payload))


def _frame(source: random.Random) -> tuple[FrameKind, bytes]:
    kind = source.choice(list(FrameKind))
    if source.random() < 0.05:
        return kind, b"[" * source.randint(1, NESTED_BYTES)
    if source.random() < 0.1:
        return kind, source.randbytes(source.randint(0, 200))
    if source.random() < 0.25:
        return FrameKind.HOST_CALL, _host_call(source)
    message = source.choice((_outcome, _ready))(source)
    for _ in range(source.randint(0, 2)):
        place = source.choice([message, *(value for value in message.values() if isinstance(value, dict))])
        if place:
            place[source.choice(list(place))] = copy.deepcopy(source.choice(_ODD))
    return kind, json.dumps(message, ensure_ascii=source.random() < 0.9).encode(errors="replace")


def _host_call(source: random.Random) -> bytes:
    """Resources behind their length, and a request; both may be anything, and the length a lie."""
    used = dict.fromkeys(RESOURCES, 1)
    if source.random() < 0.4:
        used[source.choice(RESOURCES)] = copy.deepcopy(source.choice(_ODD))
    if source.random() < 0.1:
        del used[source.choice(RESOURCES)]
    known = json.dumps(used).encode(errors="replace")
    length = source.choice((len(known),) * 8 + (0, len(known) - 1, len(known) + 1, 2**31, 2**32 - 1))
    request: object = {"method": source.choice(("log", "kv.get", "x")), "params": source.choice((*_ODD, {}))}
    text = json.dumps(source.choice((request, *_ODD)))
    if source.random() < 0.1:
        text = "[" * source.randint(1, NESTED_BYTES)
    return length.to_bytes(4, "little") + known + text.encode(errors="replace")


def _outcome(source: random.Random) -> dict[str, Any]:
    return {
        "outcome": source.choice(("succeeded", "failed", "trapped", "killed", "rejected", "lost")),
        "exit_code": source.choice((0, 1, None)),
        "limit": source.choice((None, "wall_ms", "patience")),
        "trap": source.choice((None, {"name": "Trap", "message": "text"})),
        "reason": source.choice((None, "protocol", "jail", "invalid_request")),
        "message": source.choice((None, "text")),
        "resources": dict.fromkeys(RESOURCES, 1),
        "compiled": {
            "engine": {"name": "e", "version": "1", "config_digest": "c", "cpu_features": ""},
            "artifact_bytes": 1,
            "compile_us": 1,
        },
    }


def _ready(source: random.Random) -> dict[str, Any]:
    names = ("seccomp", "namespaces", "landlock", "moat")
    layer = {"name": source.choice(names), "active": source.choice((True, False, 1)), "detail": "text"}
    return {"engine": {}, "jail": source.choice(([layer] * source.randint(0, 3), layer, None))}
