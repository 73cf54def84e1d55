"""Receipts of older engines: the worker that a receipt names is found by what it is, and run only as what it was archived."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from agentfactory_engine import worker_path

from data_plane.replay.workers import WorkerEngine, archive_worker, find_worker
from data_plane.sandbox.domain import EngineInfo
from data_plane.sandbox.engine import read_engines
from shared.digests import Digest
from shared.errors import NotFoundError, PackageAlteredError
from shared.manifest import Profile
from shared.outcomes import Outcome
from shared.receipts import EngineIdentity
from tests.integration.replay.test_second_engine import ACTOR, calls_of, request_of


@pytest.fixture(scope="module")
def engines() -> Mapping[Profile, EngineInfo]:
    return asyncio.run(read_engines(worker_path()))


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The worker of another release: this one, but for what it says of its configuration."""
    changed = tmp_path / "older"
    changed.write_bytes(Path(worker_path()).read_bytes().replace(b"opt=speed", b"opt=spee0"))
    changed.chmod(0o755)
    return changed


def identity(engine: EngineInfo) -> EngineIdentity:
    return EngineIdentity(
        name=engine.name, version=engine.version, config_digest=Digest(engine.config_digest)
    )


async def test_the_worker_that_a_receipt_names_is_found_in_the_archive_and_runs(
    tmp_path: Path, older: Path, engines: Mapping[Profile, EngineInfo]
) -> None:
    archive = tmp_path / "archive"
    digest = archive_worker(older, archive)
    assert archive_worker(older, archive) == digest
    before = await WorkerEngine.open(str(older))
    wanted = identity(before.engine(Profile.PORTABLE))
    assert wanted != identity(engines[Profile.PORTABLE])

    found = await find_worker(wanted, installed=worker_path(), archive=archive)
    installed = await find_worker(
        identity(engines[Profile.PORTABLE]), installed=worker_path(), archive=archive
    )

    assert Path(found.path).name == digest.replace(":", "-")
    assert installed.path == worker_path()
    request = request_of(b"output 3")
    result = await found.run(ACTOR, request, calls_of(request))
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, b"abc")
    assert identity(result.engine) == wanted


async def test_a_worker_that_nobody_kept_is_named(tmp_path: Path) -> None:
    wanted = EngineIdentity(
        name="wasmer-cranelift", version="0.0.1", config_digest=Digest("sha256:" + "0" * 64)
    )
    with pytest.raises(NotFoundError, match=r"0\.0\.1"):
        await find_worker(wanted, installed=worker_path(), archive=tmp_path / "nothing")


async def test_a_file_that_is_not_the_one_of_its_name_is_not_run(tmp_path: Path, older: Path) -> None:
    archive = tmp_path / "archive"
    name = archive_worker(older, archive).replace(":", "-")
    with (archive / name).open("ab") as file:
        file.write(b"x")
    wanted = EngineIdentity(name="any", version="1", config_digest=Digest("sha256:" + "0" * 64))
    with pytest.raises(PackageAlteredError):
        await find_worker(wanted, installed=worker_path(), archive=archive)
