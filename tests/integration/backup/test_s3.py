"""Archives in an S3-compatible store: a real server of its protocol on loopback."""

import os
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer

from control_plane.backup import s3
from control_plane.backup.domain import Stored
from control_plane.backup.ports import ArchivePlace
from control_plane.setup_backup import archive_place
from shared.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    SettingsError,
    UnavailableError,
)

NAME = "20260101T120000Z-bak_0190f5ac-0000-7000-8000-00000000000{}.afbackup"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def place(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> ArchivePlace:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "one",
        "AWS_SECRET_ACCESS_KEY": "two",
    }.items():
        monkeypatch.setenv(name, value)
    place = archive_place("s3://backups/of/local/")
    assert isinstance(place, s3.S3Place)
    place._client.create_bucket(Bucket="backups")
    for stored in place.all():
        place.remove(stored.name)
    return place


def test_what_was_written_in_parts_is_read_and_listed(place, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 1024 * 1024)
    content = os.urandom(12 * 1024 * 1024)
    for number in (1, 2):
        with place.writing(NAME.format(number)) as file:
            for at in range(0, len(content), 1_000_000):
                file.write(content[at : at + 1_000_000])
    with place.reading(NAME.format(1)) as file:
        assert file.read(10) + file.read() == content
    assert list(place.all()) == [Stored(name=NAME.format(one), size_bytes=len(content)) for one in (2, 1)]
    place.remove(NAME.format(1))
    place.remove(NAME.format(1))
    assert [one.name for one in place.all()] == [NAME.format(2)]
    assert place.name == "s3://backups/of/local"


def break_off(place: ArchivePlace) -> None:
    with place.writing(NAME.format(3)) as file:
        file.write(b"half")
        raise UnavailableError("the dump broke off")


def test_nothing_is_left_of_what_breaks_off(place):
    with pytest.raises(UnavailableError, match="broke off"):
        break_off(place)
    assert list(place.all()) == []
    assert "Uploads" not in place._client.list_multipart_uploads(Bucket="backups")


def test_nothing_is_overwritten_and_other_objects_are_left_alone(place):
    with place.writing(NAME.format(1)) as file:
        file.write(b"one")
    with pytest.raises(AlreadyExistsError), place.writing(NAME.format(1)):
        pass
    place._client.put_object(Bucket="backups", Key="of/local/notes.txt", Body=b"x")
    place._client.put_object(Bucket="backups", Key=NAME.format(4), Body=b"in another folder")
    assert [one.name for one in place.all()] == [NAME.format(1)]


def test_what_is_not_there_or_not_reached_is_said(place, monkeypatch):
    with pytest.raises(NotFoundError), place.reading(NAME.format(9)):
        pass
    with pytest.raises(InvalidInputError), place.reading("../other"):
        pass
    with pytest.raises(UnavailableError):
        archive_place("s3://nowhere").all()
    with pytest.raises(SettingsError):
        archive_place("s3://UPPER/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    with pytest.raises(UnavailableError):
        archive_place("s3://backups").all()
