import json
from datetime import UTC, datetime, timedelta

import pytest

from data_plane.sandbox import messages
from data_plane.sandbox.domain import (
    MAX_LOG_LINE_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    EngineInfo,
    HostReply,
    Preopen,
    RunRequest,
)
from shared.errors import (
    ArtifactInvalidError,
    DiskFullError,
    InvalidInputError,
    ModuleInvalidError,
    WorkerCrashedError,
)
from shared.limits import Limits
from shared.outcomes import LimitName, Outcome

ENGINE = EngineInfo(name="e", version="1", config_digest="sha256:00", cpu_features="sse2")
RESOURCES = {
    "wall_us": 1500, "cpu_us": 1000, "peak_memory_bytes": 65536, "stdout_bytes": 3, "stderr_bytes": 4,
    "peak_open_files": 3, "random_bytes": 0, "table_elements": 0, "log_lines": 1, "scratch_bytes": 0, "fuel": 0, "host_calls": 0, "host_call_bytes": 0, "host_call_us": 0,
    "scratch_inodes": 0,
}  # fmt: skip


def outcome(**fields):
    return json.dumps({"outcome": "succeeded", "resources": RESOURCES, **fields}).encode()


def result(payload):
    return messages.result_of(messages.parse_outcome(payload), stdout=b"out", stderr=b"err", engine=ENGINE)


def test_a_run_is_spelled_with_every_limit():
    request = RunRequest(
        args=("a", "ü"),
        env=(("K", "V"),),
        limits=Limits(wall_ms=2000, cpu_ms=1),
        seed=bytes(range(32)),
        clock=datetime(1970, 1, 1, 0, 0, 1, 500, tzinfo=UTC),
        preopens=(Preopen(host_path="/host", guest_path="/guest", writable=True),),
    )
    assert json.loads(messages.run_payload(request)) == {
        "args": ["a", "ü"],
        "env": [["K", "V"]],
        "limits": {
            "wall_ms": 2000,
            "cpu_ms": 1,
            "memory_bytes": 67108864,
            "output_bytes": 1048576,
            "log_bytes": 262144,
            "open_files": 32,
            "table_elements": 1_000_000,
            "random_bytes": 67108864,
            "log_lines": 65_536,
            "scratch_bytes": 0,
            "scratch_inodes": 0,
            "fuel": 20_000_000_000,
            "host_calls": 1_000,
            "host_call_bytes": 16 * 1024 * 1024,
            "host_call_ms": 10_000,
        },
        "seed": bytes(range(32)).hex(),
        "clock": 1_000_500_000,
        "preopens": [{"guest_path": "/guest", "writable": True}],
    }


def test_host_paths_never_reach_the_worker():
    request = RunRequest(preopens=(Preopen(host_path="/secret/host", guest_path="/g"),))
    assert b"/secret/host" not in messages.run_payload(request)


def test_an_outcome_becomes_a_result():
    found = result(outcome(exit_code=0))
    assert (found.outcome, found.exit_code, found.stdout, found.stderr) == (
        Outcome.SUCCEEDED,
        0,
        b"out",
        b"err",
    )
    assert found.resources.wall == timedelta(microseconds=1500)
    assert (found.resources.output_bytes, found.resources.log_bytes) == (3, 4)
    assert result(outcome(outcome="killed", limit="memory_bytes")).limit is LimitName.MEMORY_BYTES
    assert result(outcome(outcome="trapped", trap={"name": "T", "message": "m"})).trap.name == "T"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"outcome": "succeeded"}',
        outcome(outcome="great"),
        outcome(limit="patience"),
        outcome(trap={}),
        outcome(trap=7),
        outcome(resources={"wall_us": "x"}),
        outcome(resources=None),
        outcome(outcome="rejected-not"),
        outcome(outcome="cancelled"),
        outcome(exit_code=1),
        outcome(),
        outcome(outcome="failed", exit_code=0),
        outcome(outcome="failed", exit_code="x"),
        outcome(outcome="failed", exit_code=True),
        outcome(outcome="failed", exit_code=-1),
        outcome(outcome="failed", exit_code=2**32),
        outcome(outcome="trapped", trap={"name": 1, "message": []}),
        *(
            outcome(exit_code=0, resources=RESOURCES | {name: value})
            for name in RESOURCES
            for value in (-1, 1.5, "1", True, None, 2**53, 10**30)
        ),
    ],
)
def test_what_is_no_outcome_is_never_taken_for_one(payload):
    with pytest.raises(WorkerCrashedError):
        result(payload)


def test_half_a_surrogate_pair_reaches_no_receipt():
    trap = {"name": "\ud800", "message": "m"}
    assert result(outcome(outcome="trapped", trap=trap)).trap.name == "?"
    with pytest.raises(WorkerCrashedError, match=r"^\?x*$") as caught:
        messages.parse_outcome(json.dumps({"outcome": "rejected", "message": "\ud800" + "x" * 9999}).encode())
    assert len(str(caught.value)) == messages.MAX_TEXT_CHARS


@pytest.mark.parametrize("code", [1, 255, 2**31, 2**32 - 1])
def test_each_exit_code_of_wasi_is_one(code):
    assert result(outcome(outcome="failed", exit_code=code)).exit_code == code


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("artifact_invalid", ArtifactInvalidError),
        ("engine_mismatch", ArtifactInvalidError),
        ("invalid_module", ModuleInvalidError),
        ("artifact_too_large", ModuleInvalidError),
        ("invalid_request", InvalidInputError),
        ("disk_full", DiskFullError),
        ("protocol", WorkerCrashedError),
        ("something new", WorkerCrashedError),
        (None, WorkerCrashedError),
        (["a"], WorkerCrashedError),
    ],
)
def test_each_refusal_has_its_error(reason, error):
    with pytest.raises(error, match="why"):
        messages.parse_outcome(
            json.dumps({"outcome": "rejected", "reason": reason, "message": "why"}).encode()
        )


@pytest.mark.parametrize(
    "value", [None, [], {}, {"name": 1, "version": "", "config_digest": "", "cpu_features": ""}]
)
def test_what_names_no_engine_is_refused(value):
    with pytest.raises(WorkerCrashedError, match="no engine"):
        messages.engine_from_json(value)


def test_an_engine_survives_the_round_trip():
    assert messages.engine_from_json(messages.engine_to_json(ENGINE)) == ENGINE


def host_call(used: bytes, request: bytes = b"{}", size: int | None = None) -> bytes:
    return (len(used) if size is None else size).to_bytes(4, "little") + used + request


def test_a_host_call_is_what_was_used_and_the_guests_bytes():
    used, request = messages.parse_host_call(host_call(json.dumps(RESOURCES).encode(), b"\xff{}"))
    assert (used.wall, used.log_lines, request) == (timedelta(microseconds=1500), 1, b"\xff{}")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\1\0",
        host_call(b""),
        host_call(b"[]"),
        host_call(b"{}"),
        host_call(json.dumps(RESOURCES | {"wall_us": -1}).encode()),
        host_call(json.dumps(RESOURCES | {"host_calls": True}).encode()),
        host_call(b"{}", size=2**32 - 1),
        host_call(json.dumps(RESOURCES).encode(), bytes(MAX_REQUEST_BYTES + 1)),
    ],
)
def test_a_host_call_of_a_worker_that_lies_is_none(payload):
    with pytest.raises(WorkerCrashedError):
        messages.parse_host_call(payload)


def test_a_reply_larger_than_a_worker_takes_is_a_defect_of_the_node():
    largest = HostReply(response=bytes(MAX_RESPONSE_BYTES), log=bytes(MAX_LOG_LINE_BYTES))
    assert messages.reply_payload(largest).startswith(MAX_LOG_LINE_BYTES.to_bytes(4, "little"))
    for change in ({"response": bytes(MAX_RESPONSE_BYTES + 1)}, {"log": bytes(MAX_LOG_LINE_BYTES + 1)}):
        with pytest.raises(ValueError, match="host reply"):
            messages.reply_payload(HostReply(**{"response": b"", **change}))
