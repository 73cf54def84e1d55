"""Archives in an S3-compatible store: uploaded in parts as they are made, there once the last part is.

Region, endpoint and login are what the AWS SDK finds in its own variables and files (AWS_ENDPOINT_URL_S3, …).
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final, cast

from control_plane.backup.domain import Stored, is_archive
from shared.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    SettingsError,
    UnavailableError,
)

PART_BYTES: Final = 16 * 1024 * 1024
PARTS_OF_ONE_SIZE: Final = 1000
"""Parts double in size behind every thousand: a store takes 10,000 of them."""
MAX_ARCHIVES: Final = 100_000
CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60
ATTEMPTS: Final = 5
_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})


class S3Place:
    """Implements `ArchivePlace`."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """Make a client; it asks nothing yet.

        Raises:
            SettingsError: The SDK is not installed, or does not know the region or endpoint.
        """
        try:
            boto3, botocore = importlib.import_module("boto3"), importlib.import_module("botocore.exceptions")
            config = importlib.import_module("botocore.config").Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"max_attempts": ATTEMPTS, "mode": "standard"},
            )
        except ImportError as error:
            raise SettingsError(
                "the S3 client is not installed", hint="pip install 'agentfactory[s3]'"
            ) from error
        self._errors: tuple[type[Exception], ...] = (botocore.BotoCoreError, botocore.ClientError)
        try:
            self._client: Any = boto3.client("s3", config=config)
        except (*self._errors, ValueError) as error:
            raise SettingsError(f"the S3 client cannot be set up: {error}") from error
        self._bucket = bucket
        self._prefix = prefix

    @property
    def name(self) -> str:
        """See `ArchivePlace.name`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """See `ArchivePlace.writing`."""
        with self._told(name):
            if self._is_there(name):
                raise AlreadyExistsError(f"{name} exists in {self.name} and is not overwritten")
            upload_id = self._client.create_multipart_upload(**self._object(name))["UploadId"]
        upload = _Upload(self._client, {**self._object(name), "UploadId": upload_id})
        try:
            with self._told(name):
                yield cast("IO[bytes]", upload)
                upload.finish()
        except BaseException:
            with self._told(name):
                self._client.abort_multipart_upload(**self._object(name), UploadId=upload_id)
            raise

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """See `ArchivePlace.reading`."""
        with self._told(name):
            body = self._client.get_object(**self._object(name))["Body"]
        try:
            with self._told(name):
                yield body
        finally:
            body.close()

    def all(self) -> Sequence[Stored]:
        """See `ArchivePlace.all`."""
        found: list[Stored] = []
        with self._told(self.name):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._key("")):
                for one in page.get("Contents", ()):
                    name = str(one["Key"]).removeprefix(self._key(""))
                    if is_archive(name):
                        found.append(Stored(name=name, size_bytes=int(one["Size"])))
                if len(found) > MAX_ARCHIVES:
                    raise UnavailableError(f"{self.name} holds more than {MAX_ARCHIVES} backups")
        return sorted(found, key=lambda one: one.name, reverse=True)

    def remove(self, name: str) -> None:
        """See `ArchivePlace.remove`."""
        with self._told(name):
            self._client.delete_object(**self._object(name))

    def _is_there(self, name: str) -> bool:
        try:
            self._client.head_object(**self._object(name))
        except self._errors as error:
            if _code(error) in _MISSING:
                return False
            raise
        return True

    def _object(self, name: str) -> Mapping[str, str]:
        if not is_archive(name):
            raise InvalidInputError(f"{name[:80]!r} is no name of a backup", hint="agentfactory backup list")
        return {"Bucket": self._bucket, "Key": self._key(name)}

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            if _code(error) == "NoSuchKey":
                raise NotFoundError(f"there is no backup {what} in {self.name}") from error
            raise UnavailableError(f"{self.name} does not take or give {what}: {error}") from error


class _Upload:
    """Takes bytes; uploads a part whenever one is full."""

    def __init__(self, client: Any, upload: Mapping[str, str]) -> None:
        self._client = client
        self._upload = upload
        self._held = bytearray()
        self._parts: list[dict[str, object]] = []

    def write(self, data: bytes) -> int:
        self._held += data
        while len(self._held) >= self._size():
            size = self._size()
            self._send(bytes(self._held[:size]))
            del self._held[:size]
        return len(data)

    def finish(self) -> None:
        """Upload what is left, and make the object of all parts."""
        self._send(bytes(self._held))
        self._client.complete_multipart_upload(**self._upload, MultipartUpload={"Parts": self._parts})

    def _size(self) -> int:
        return PART_BYTES << (len(self._parts) // PARTS_OF_ONE_SIZE)

    def _send(self, part: bytes) -> None:
        number = len(self._parts) + 1
        answer = self._client.upload_part(**self._upload, PartNumber=number, Body=part)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})


def _code(error: Exception) -> str:
    """Return what the store called it; empty when it did not answer."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
