"""Secrets that are not kept as they must be are no secrets."""

import json
import os

import pytest

from data_plane.host_calls.secrets_file import NoSecrets, SecretsFile
from shared.errors import KeyFileModeError, KeyFormatError, NotFoundError, UnavailableError
from shared.ids import TenantId

TENANT = TenantId("tenant-a")
VALUE = "a-secret-value"


def write(path, content, mode=0o600):
    new = path.with_suffix(".new")
    new.write_text(content if isinstance(content, str) else json.dumps(content))
    new.chmod(mode)
    new.rename(path)
    return SecretsFile(path)


def one(**changes):
    return {"tenant-a": {"api": {"value": VALUE, "urls": ["https://api.test/"]} | changes}}


async def test_secret_of_a_tenant(tmp_path):
    secrets = write(tmp_path / "secrets", one())
    secret = await secrets.find(TENANT, "api")
    assert secret.value == VALUE
    assert [str(url) for url in secret.urls] == ["https://api.test/"]
    assert await secrets.find(TENANT, "other") is None
    assert await secrets.find(TenantId("tenant-b"), "api") is None
    assert await NoSecrets().find(TENANT, "api") is None


async def test_changed_file_counts_at_once(tmp_path):
    secrets = write(tmp_path / "secrets", one())
    await secrets.find(TENANT, "api")
    write(tmp_path / "secrets", one(value="another-value"))
    assert (await secrets.find(TENANT, "api")).value == "another-value"


async def test_file_that_is_lost_or_opened_to_others_gives_no_old_values(tmp_path):
    path = tmp_path / "secrets"
    secrets = write(path, one())
    await secrets.find(TENANT, "api")
    os.utime(path, ns=(1, 1))
    path.chmod(0o644)
    with pytest.raises(UnavailableError):
        await secrets.find(TENANT, "api")
    path.unlink()
    with pytest.raises(UnavailableError):
        await secrets.find(TENANT, "api")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_file_that_others_may_read(tmp_path, mode):
    with pytest.raises(KeyFileModeError):
        write(tmp_path / "secrets", one(), mode).load()


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError):
        SecretsFile(tmp_path / "none").load()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        {"tenant-a": []},
        {"tenant-a": {"api": VALUE}},
        {"tenant-a": {"api": {"value": VALUE}}},
        one(urls=[]),
        one(urls=["https://api.test/%2f"]),
        one(value="short"),
        one(value=VALUE + "\r\nx: y"),
        one(value=VALUE + "ü"),
        one(value=1),
        one(more=1),
        {"tenant-a": {"API": one()["tenant-a"]["api"]}},
    ],
)
def test_content_that_is_refused_and_not_repeated(tmp_path, content):
    with pytest.raises(KeyFormatError) as error:
        write(tmp_path / "secrets", content).load()
    assert VALUE not in str(error.value)
