"""The template manifest: what an agent is made of and what it may ask for, as signed canonical JSON.

Owns the format and its rules. Who signed it and whether its files are there is `packages`; how authors write
it is `agent_toml`.
"""

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from shared.canonical import canonical_json, parse_canonical
from shared.digests import Digest
from shared.errors import MalformedError, ManifestInvalidError, PackageTooLargeError
from shared.fields import Fields
from shared.schemas import JsonSchema

FORMAT: Final = "agentfactory.template.v1"
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_DECODED_MANIFESTS: Final = 64
"""Remembered by their exact bytes: a manifest never changes, and its schemas are read only once."""

MAX_MODULE_BYTES: Final = 64 * 1024 * 1024
MAX_HTTP_CAPABILITIES: Final = 64
MAX_URL_CHARS: Final = 2048

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
VERSION: Final = re.compile(  # Semantic Versioning 2.0.0
    r"(?=.{1,128}\Z)(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
MEDIA_TYPE: Final = re.compile(r"(?=.{1,127}\Z)[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")
FILE_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
HTTP_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_URL = re.compile(r"https?://[\x21-\x7e]+")


class Profile(StrEnum):
    """Which engine configuration runs the agent."""

    DEFAULT = "default"
    DETERMINISTIC = "deterministic"
    PORTABLE = "portable"


class Retry(StrEnum):
    """Whether a lost attempt that made an unsafe call may be tried again."""

    SAFE = "safe"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedLimits:
    """What a manifest or a policy asks for; None means not named."""

    wall_ms: int | None = None
    cpu_ms: int | None = None
    memory_bytes: int | None = None
    output_bytes: int | None = None
    log_bytes: int | None = None
    open_files: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedLimits:
    """What one run may use. Every limit is named and enforced."""

    wall_ms: int = 10_000
    cpu_ms: int = 10_000
    memory_bytes: int = 64 * 1024 * 1024
    output_bytes: int = 1024 * 1024
    log_bytes: int = 256 * 1024
    open_files: int = 32

    def limited_by(self, requested: RequestedLimits) -> "GrantedLimits":
        """Return the smaller of both, limit by limit; a limit that is not requested stays."""
        named = {limit.name: getattr(requested, limit.name) for limit in fields(requested)}
        return GrantedLimits(
            **{
                name: getattr(self, name) if value is None else min(getattr(self, name), value)
                for name, value in named.items()
            }
        )


MAX_LIMITS: Final = GrantedLimits(
    wall_ms=3_600_000,
    cpu_ms=3_600_000,
    memory_bytes=4 * 1024 * 1024 * 1024,
    output_bytes=16 * 1024 * 1024,
    log_bytes=1024 * 1024,
    open_files=1024,
)
"""What a manifest may ask for at most."""

DEFAULT_LIMITS: Final = GrantedLimits()
"""What applies to limits that nobody names."""


def grant_limits(requested: RequestedLimits, ceiling: GrantedLimits = MAX_LIMITS) -> GrantedLimits:
    """Return what is granted: the requested limit, or the default where none is, never above the ceiling."""
    wanted = {
        limit.name: getattr(requested, limit.name) or getattr(DEFAULT_LIMITS, limit.name)
        for limit in fields(requested)
    }
    return ceiling.limited_by(RequestedLimits(**wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCapability:
    """One HTTP destination an agent may call: a method, and a prefix of the URL."""

    method: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an agent may reach outside its sandbox. Empty means nothing."""

    http: tuple[HttpCapability, ...] = ()


NO_CAPABILITIES: Final = Capabilities()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFile:
    """The module of a template: its name at the author's, and its exact bytes."""

    file_name: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One immutable template version."""

    name: str
    version: str
    media_type: str
    module: ModuleFile
    parameters_schema: JsonSchema | None = None
    input_schema: JsonSchema | None = None
    output_schema: JsonSchema | None = None
    limits: RequestedLimits = RequestedLimits()
    capabilities: Capabilities = NO_CAPABILITIES
    profile: Profile = Profile.DEFAULT
    retry: Retry = Retry.UNSAFE


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the canonical JSON of a manifest; its SHA-256 is the template's digest.

    Raises:
        PackageTooLargeError: It has more than 256 KiB.
    """
    schemas = {
        "parameters": manifest.parameters_schema,
        "input": manifest.input_schema,
        "output": manifest.output_schema,
    }
    encoded = canonical_json(
        {
            "type": FORMAT,
            "name": manifest.name,
            "version": manifest.version,
            "media_type": manifest.media_type,
            "module": {
                "file_name": manifest.module.file_name,
                "digest": manifest.module.digest,
                "size_bytes": manifest.module.size_bytes,
            },
            "schemas": {name: schema.to_object() for name, schema in schemas.items() if schema is not None},
            "limits": {
                limit.name: value
                for limit in fields(manifest.limits)
                if (value := getattr(manifest.limits, limit.name)) is not None
            },
            "capabilities": {
                "http": [{"method": http.method, "url": http.url} for http in manifest.capabilities.http]
            },
            "run": {"profile": manifest.profile, "retry": manifest.retry},
        }
    )
    if len(encoded) > MAX_MANIFEST_BYTES:
        raise PackageTooLargeError(f"manifest has {len(encoded)} bytes, the bound is {MAX_MANIFEST_BYTES}")
    return encoded


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest in canonical JSON. Verify the signature over `data` first.

    Raises:
        PackageTooLargeError: It has more than 256 KiB.
        UnknownFieldError: It carries a field that this version does not know.
        ManifestInvalidError: It is not canonical JSON, or a field breaks a rule of the format.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise PackageTooLargeError(f"manifest has {len(data)} bytes, the bound is {MAX_MANIFEST_BYTES}")
    return _decode(data)


@lru_cache(maxsize=MAX_DECODED_MANIFESTS)
def _decode(data: bytes) -> Manifest:
    try:
        document = Fields(parse_canonical(data), "manifest", error=ManifestInvalidError)
    except MalformedError as error:
        raise ManifestInvalidError(f"manifest: {error}") from error
    if (found := document.text("type")) != FORMAT:
        raise ManifestInvalidError(f"manifest format is {found[:64]!r}, this build reads {FORMAT!r}")
    schemas, run = document.child("schemas"), document.child("run")
    manifest = Manifest(
        name=read_name(document),
        version=read_version(document),
        media_type=read_media_type(document),
        module=_read_module(document.child("module")),
        parameters_schema=_read_schema(schemas, "parameters"),
        input_schema=_read_schema(schemas, "input"),
        output_schema=_read_schema(schemas, "output"),
        limits=read_limits(document.child("limits")),
        capabilities=read_capabilities(document.child("capabilities")),
        profile=read_profile(run),
        retry=read_retry(run),
    )
    for part in (schemas, run, document):
        part.end()
    return manifest


def read_name(document: Fields) -> str:
    """Take the template's name."""
    return document.pattern("name", NAME, "a name: [a-z][a-z0-9-]{0,62}")


def read_version(document: Fields) -> str:
    """Take the semantic version."""
    return document.pattern("version", VERSION, "a semantic version such as 1.2.0")


def read_media_type(document: Fields) -> str:
    """Take the media type of input and output."""
    return document.pattern("media_type", MEDIA_TYPE, "a media type such as application/json")


def read_profile(run: Fields) -> Profile:
    """Take the engine profile; absent means default."""
    if not run.has("profile"):
        return Profile.DEFAULT
    value = run.text("profile")
    if value not in set(Profile):
        raise run.invalid("profile", f"is {value[:32]!r}, not one of {', '.join(Profile)}")
    return Profile(value)


def read_retry(run: Fields) -> Retry:
    """Take the retry rule; absent means unsafe."""
    if not run.has("retry"):
        return Retry.UNSAFE
    value = run.text("retry")
    if value not in set(Retry):
        raise run.invalid("retry", f"is {value[:32]!r}, not one of {', '.join(Retry)}")
    return Retry(value)


def read_limits(table: Fields) -> RequestedLimits:
    """Take all requested limits and refuse other fields."""
    limits = RequestedLimits(
        **{
            limit.name: table.integer(limit.name, minimum=1, maximum=getattr(MAX_LIMITS, limit.name))
            for limit in fields(RequestedLimits)
            if table.has(limit.name)
        }
    )
    table.end()
    return limits


def read_capabilities(table: Fields) -> Capabilities:
    """Take all capabilities and refuse other fields: a capability that is not known cannot be granted."""
    http = table.children("http", max_items=MAX_HTTP_CAPABILITIES) if table.has("http") else []
    capabilities = Capabilities(http=tuple(_read_http(entry) for entry in http))
    table.end()
    return capabilities


def _read_http(entry: Fields) -> HttpCapability:
    method, url = entry.text("method"), entry.text("url", max_chars=MAX_URL_CHARS)
    if method not in HTTP_METHODS:
        raise entry.invalid("method", f"is {method[:16]!r}, not one of {', '.join(sorted(HTTP_METHODS))}")
    check_url_prefix(entry, url)
    entry.end()
    return HttpCapability(method=method, url=url)


def check_url_prefix(entry: Fields, url: str) -> None:
    """Refuse a prefix that could match another host, or that reads differently to different parsers.

    Raises:
        ManifestInvalidError: No http(s) scheme, no host, no path (``https://a.test`` would also match
            ``https://a.test.evil``), user info, query, fragment, backslash, dot segment or percent sign.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise entry.invalid("url", f"does not parse: {error}") from error
    if not _URL.fullmatch(url) or not host or not parts.path.startswith("/"):
        raise entry.invalid("url", "is not http(s)://host/path in printable ASCII")
    if "@" in parts.netloc or any(mark in url for mark in "?#\\%"):
        raise entry.invalid("url", "has user info, a query, a fragment, a backslash or a percent sign")
    if {".", ".."} & set(parts.path.split("/")):
        raise entry.invalid("url", "has a dot segment")


def _read_module(table: Fields) -> ModuleFile:
    module = ModuleFile(
        file_name=table.pattern("file_name", FILE_NAME, "a plain file name"),
        digest=table.digest("digest"),
        size_bytes=table.integer("size_bytes", minimum=1, maximum=MAX_MODULE_BYTES),
    )
    table.end()
    return module


def _read_schema(table: Fields, name: str) -> JsonSchema | None:
    return JsonSchema.from_object(table.raw_object(name)) if table.has(name) else None
