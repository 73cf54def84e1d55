"""The template manifest: what an agent is made of and what it may ask for, as signed canonical JSON.

Owns the format and its rules. Who signed it and whether its files are there is `packages`; how authors write
it is `agent_toml`.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_network
from typing import Final
from urllib.parse import urlsplit

from shared.canonical import JsonObject, canonical_json, parse_canonical
from shared.digests import Digest
from shared.errors import (
    HostCallRefusedError,
    MalformedError,
    ManifestInvalidError,
    PackageTooLargeError,
    UnknownFieldError,
)
from shared.fields import Fields
from shared.limits import FIRST_LIMITS, LIMIT_FIELDS, MAX_LIMITS, NO_REQUEST, RequestedLimits, requested_json
from shared.schemas import JsonSchema
from shared.urls import parse_url

FORMAT_WITH_LLM: Final = "agentfactory.template.v4"
"""With the capability `llm`, and `extends` or not."""
FORMAT: Final = "agentfactory.template.v3"
"""With `extends`."""
FORMAT_WITHOUT_PARENTS: Final = "agentfactory.template.v2"
OLDER_FORMAT: Final = "agentfactory.template.v1"
"""Without the limits and capabilities that came with host calls. A manifest is written in the oldest format
that can say it: what needs nothing new runs on installations that know nothing new."""

MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_DECODED_MANIFESTS: Final = 64
"""Remembered by their exact bytes: a manifest never changes, and its schemas are read only once."""

MAX_ANCESTORS: Final = 8
"""Of one template: its parent, that one's parent and so on."""

MAX_MODULE_BYTES: Final = 64 * 1024 * 1024
MAX_HTTP_CAPABILITIES: Final = 64
MAX_URL_CHARS: Final = 2048
MAX_HTTP_ADDRESSES: Final = 16
MAX_SECRETS: Final = 16
MAX_LLM_MODELS: Final = 16
MAX_LLM_TOKENS: Final = 100_000_000
MAX_LLM_COST_MICROS: Final = 1_000_000_000_000

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
SECRET_NAME: Final = NAME
VERSION: Final = re.compile(  # Semantic Versioning 2.0.0
    r"(?=.{1,128}\Z)(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
MEDIA_TYPE: Final = re.compile(r"(?=.{1,127}\Z)[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")
FILE_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
LLM_MODEL: Final = re.compile(r"[a-z][a-z0-9-]{0,62}/[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
"""ENDPOINT/MODEL: what the node's operator calls the endpoint, and what that calls the model."""
HTTP_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_FIRST_CAPABILITIES: Final = frozenset({"http"})
_FIRST_HTTP: Final = frozenset({"method", "url"})
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
class HttpCapability:
    """One HTTP destination an agent may call: a method, and a prefix of the URL."""

    method: str
    url: str
    addresses: tuple[str, ...] = ()
    """Networks in CIDR notation, beside the public ones, that the host may have its addresses in."""
    max_calls: int = 0
    """Of one run; 0: as many as its limits allow."""
    max_bytes: int = 0
    """Bodies of requests and responses of one run together; 0: as its limits allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmCapability:
    """Which language models an agent may ask, and how much of them one run may use."""

    models: tuple[str, ...]
    """ENDPOINT/MODEL."""
    max_tokens: int
    """Prompts and answers of one run together."""
    max_cost_micros: int = 0
    """Of one run, in millionths of the operator's currency; 0: as the tokens allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an agent may reach outside its sandbox. Empty means nothing."""

    http: tuple[HttpCapability, ...] = ()
    kv: bool = False
    """May keep values of its own between runs."""
    secrets: tuple[str, ...] = ()
    """Names of secrets that it may have put into headers of its HTTP requests; it never sees them."""
    record_host_calls: bool = False
    """Keep the bytes of its host calls beside the receipt, not only their digests."""
    llm: LlmCapability | None = None

    @property
    def host_call_grants(self) -> tuple[str, ...]:
        """Methods of `agentfactory.call` that these capabilities come to, beside `log` and `budget.left`."""
        return (
            *(("http.fetch",) if self.http else ()),
            *(("kv.get", "kv.put") if self.kv else ()),
            *(("llm.complete",) if self.llm else ()),
            *(("secret.ref",) if self.secrets else ()),
        )


NO_CAPABILITIES: Final = Capabilities()


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateName:
    """How people name one version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A version that a template extends, by name and by what it is: nobody can put another in its place."""

    name: TemplateName
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFile:
    """The module of a template: its name at the author's, and its exact bytes."""

    file_name: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One immutable template version, complete by itself: what it inherits is in it (`inheritance`)."""

    name: str
    version: str
    extends: tuple[Ancestor, ...] = ()
    """Its parent, then that one's, to the root."""
    media_type: str
    module: ModuleFile
    parameters_schema: JsonSchema | None = None
    input_schema: JsonSchema | None = None
    output_schema: JsonSchema | None = None
    limits: RequestedLimits = NO_REQUEST
    capabilities: Capabilities = NO_CAPABILITIES
    profile: Profile = Profile.DEFAULT
    retry: Retry = Retry.UNSAFE

    @property
    def full_name(self) -> TemplateName:
        return TemplateName(name=self.name, version=self.version)


def format_of(manifest: Manifest) -> str:
    """Return the oldest format that can say the manifest."""
    if manifest.capabilities.llm is not None:
        return FORMAT_WITH_LLM
    if manifest.extends:
        return FORMAT
    limits, capabilities = requested_json(manifest.limits), capabilities_json(manifest.capabilities)
    later = limits.keys() - FIRST_LIMITS or capabilities.keys() - _FIRST_CAPABILITIES
    if later or any(_http_json(http).keys() - _FIRST_HTTP for http in manifest.capabilities.http):
        return FORMAT_WITHOUT_PARENTS
    return OLDER_FORMAT


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
    extends = [
        {"name": one.name.name, "version": one.name.version, "digest": one.digest} for one in manifest.extends
    ]
    encoded = canonical_json(
        {
            **({"extends": extends} if extends else {}),
            "type": format_of(manifest),
            "name": manifest.name,
            "version": manifest.version,
            "media_type": manifest.media_type,
            "module": {
                "file_name": manifest.module.file_name,
                "digest": manifest.module.digest,
                "size_bytes": manifest.module.size_bytes,
            },
            "schemas": {name: schema.to_object() for name, schema in schemas.items() if schema is not None},
            "limits": requested_json(manifest.limits),
            "capabilities": capabilities_json(manifest.capabilities),
            "run": {"profile": manifest.profile, "retry": manifest.retry},
        }
    )
    if len(encoded) > MAX_MANIFEST_BYTES:
        raise PackageTooLargeError(f"manifest has {len(encoded)} bytes, the bound is {MAX_MANIFEST_BYTES}")
    return encoded


def capabilities_json(capabilities: Capabilities) -> JsonObject:
    """Return capabilities as manifests carry them: beyond `http`, only what is asked for."""
    asked: JsonObject = {"http": [_http_json(http) for http in capabilities.http]}
    if capabilities.kv:
        asked["kv"] = True
    if capabilities.secrets:
        asked["secrets"] = list(capabilities.secrets)
    if capabilities.record_host_calls:
        asked["record_host_calls"] = True
    if capabilities.llm is not None:
        asked["llm"] = _llm_json(capabilities.llm)
    return asked


def _llm_json(llm: LlmCapability) -> JsonObject:
    asked: JsonObject = {"models": list(llm.models), "max_tokens": llm.max_tokens}
    if llm.max_cost_micros:
        asked["max_cost_micros"] = llm.max_cost_micros
    return asked


def _http_json(http: HttpCapability) -> JsonObject:
    asked: JsonObject = {"method": http.method, "url": http.url}
    if http.addresses:
        asked["addresses"] = list(http.addresses)
    if http.max_calls:
        asked["max_calls"] = http.max_calls
    if http.max_bytes:
        asked["max_bytes"] = http.max_bytes
    return asked


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest in canonical JSON. Verify the signature over `data` first.

    Raises:
        PackageTooLargeError: It has more than 256 KiB.
        UnknownFieldError: It carries a field that its version does not know.
        ManifestInvalidError: It is not canonical JSON, a field breaks a rule of the format, or the older
            format could have said it.
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
    found = document.text("type")
    if found not in {FORMAT_WITH_LLM, FORMAT, FORMAT_WITHOUT_PARENTS, OLDER_FORMAT}:
        raise ManifestInvalidError(f"manifest format is {found[:64]!r}, this build reads {FORMAT_WITH_LLM!r}")
    schemas, run = document.child("schemas"), document.child("run")
    asked = document.raw_object("capabilities")
    manifest = Manifest(
        name=read_name(document),
        version=read_version(document),
        extends=_read_extends(document, found),
        media_type=read_media_type(document),
        module=_read_module(document.child("module")),
        parameters_schema=_read_schema(schemas, "parameters"),
        input_schema=_read_schema(schemas, "input"),
        output_schema=_read_schema(schemas, "output"),
        limits=read_limits(document.child("limits")),
        capabilities=read_capabilities(Fields(asked, "manifest.capabilities", error=ManifestInvalidError)),
        profile=read_profile(run),
        retry=read_retry(run),
    )
    for part in (schemas, run, document):
        part.end()
    _check_format(manifest, found, asked)
    return manifest


def _check_format(manifest: Manifest, found: str, asked: JsonObject) -> None:
    needed = format_of(manifest)
    if found == FORMAT and not manifest.extends:
        raise ManifestInvalidError(f"manifest is of {found} and extends nothing")
    if found == OLDER_FORMAT and needed != found:
        raise UnknownFieldError(f"manifest of {found} carries what came later")
    if found != needed:
        raise ManifestInvalidError(f"manifest is of {found}, {needed} says the same")
    if {"http": [], **asked} != capabilities_json(manifest.capabilities):
        raise ManifestInvalidError("manifest names a capability that it does not ask for")


def _read_extends(document: Fields, found: str) -> tuple[Ancestor, ...]:
    if found == FORMAT_WITH_LLM and not document.has("extends"):
        return ()
    if found not in {FORMAT, FORMAT_WITH_LLM}:
        return ()  # left in the document, where `end` refuses it
    return tuple(_read_ancestor(one) for one in document.children("extends", max_items=MAX_ANCESTORS))


def _read_ancestor(said: Fields) -> Ancestor:
    name = TemplateName(name=read_name(said), version=read_version(said))
    ancestor = Ancestor(name=name, digest=said.digest("digest"))
    said.end()
    return ancestor


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
            name: table.integer(name, minimum=1, maximum=getattr(MAX_LIMITS, name))
            for name in LIMIT_FIELDS
            if table.has(name)
        }
    )
    table.end()
    return limits


def read_capabilities(table: Fields) -> Capabilities:
    """Take all capabilities and refuse other fields: a capability that is not known cannot be granted."""
    http = table.children("http", max_items=MAX_HTTP_CAPABILITIES) if table.has("http") else []
    capabilities = Capabilities(
        http=tuple(_read_http(entry) for entry in http),
        kv=table.has("kv") and table.boolean("kv"),
        secrets=_read_secrets(table),
        record_host_calls=table.has("record_host_calls") and table.boolean("record_host_calls"),
        llm=_read_llm(table.child("llm")) if table.has("llm") else None,
    )
    table.end()
    return capabilities


def _read_llm(entry: Fields) -> LlmCapability:
    models = entry.texts("models", max_items=MAX_LLM_MODELS, max_chars=192)
    if not models or len(set(models)) != len(models) or not all(map(LLM_MODEL.fullmatch, models)):
        raise entry.invalid("models", "are not different names ENDPOINT/MODEL, such as openai/gpt-small")
    llm = LlmCapability(
        models=models,
        max_tokens=entry.integer("max_tokens", minimum=1, maximum=MAX_LLM_TOKENS),
        max_cost_micros=_optional_bound(entry, "max_cost_micros", MAX_LLM_COST_MICROS),
    )
    entry.end()
    return llm


def _read_http(entry: Fields) -> HttpCapability:
    method, url = entry.text("method"), entry.text("url", max_chars=MAX_URL_CHARS)
    if method not in HTTP_METHODS:
        raise entry.invalid("method", f"is {method[:16]!r}, not one of {', '.join(sorted(HTTP_METHODS))}")
    check_url_prefix(entry, url)
    http = HttpCapability(
        method=method,
        url=url,
        addresses=_read_networks(entry),
        max_calls=_optional_bound(entry, "max_calls", MAX_LIMITS.host_calls),
        max_bytes=_optional_bound(entry, "max_bytes", MAX_LIMITS.host_call_bytes),
    )
    entry.end()
    return http


def _optional_bound(entry: Fields, name: str, maximum: int) -> int:
    return entry.integer(name, minimum=1, maximum=maximum) if entry.has(name) else 0


def _read_networks(entry: Fields) -> tuple[str, ...]:
    networks = (
        entry.texts("addresses", max_items=MAX_HTTP_ADDRESSES, max_chars=49) if entry.has("addresses") else ()
    )
    for network in networks:
        try:
            canonical = str(ip_network(network))
        except ValueError as error:
            raise entry.invalid("addresses", f"holds {network!r}: {error}") from error
        if canonical != network:
            raise entry.invalid("addresses", f"holds {network!r}, write {canonical}")
    return networks


def _read_secrets(table: Fields) -> tuple[str, ...]:
    names = table.texts("secrets", max_items=MAX_SECRETS, max_chars=63) if table.has("secrets") else ()
    if not all(SECRET_NAME.fullmatch(name) for name in names) or len(set(names)) != len(names):
        raise table.invalid("secrets", "are not different names of the form [a-z][a-z0-9-]{0,62}")
    return names


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


def require_reachable(manifest: Manifest) -> None:
    """Refuse a new manifest with a destination that no call matches, by the reading that nodes use.

    Those that exist are read as before; what they name so is never called.

    Raises:
        ManifestInvalidError: A URL of `http` has no reading, or several.
    """
    for http in manifest.capabilities.http:
        try:
            parse_url(http.url)
        except HostCallRefusedError as error:
            raise ManifestInvalidError(f"manifest.capabilities.http: url {error}") from error


def require_schemas_of_json(manifest: Manifest) -> None:
    """Refuse a new manifest whose input or output is judged as JSON and declared as something else.

    Raises:
        ManifestInvalidError: It has such a schema and another media type.
    """
    judged = manifest.input_schema is not None or manifest.output_schema is not None
    kind = manifest.media_type
    if judged and kind != "application/json" and not kind.endswith("+json"):
        raise ManifestInvalidError(
            f"manifest.media_type: input and output have schemas, and are {kind}, which is no JSON"
        )


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
