"""`agent.toml`, the author's form of a manifest: which files make a template and what it asks for.

Owns that file's format; reads no other file and signs nothing.
"""

import tomllib
from dataclasses import dataclass, fields
from typing import Final

from shared.errors import ManifestInvalidError, PackageTooLargeError
from shared.fields import Fields
from shared.limits import RequestedLimits
from shared.manifest import (
    FILE_NAME,
    NAME,
    VERSION,
    Capabilities,
    Profile,
    Retry,
    TemplateName,
    read_capabilities,
    read_limits,
    read_media_type,
    read_name,
    read_profile,
    read_retry,
    read_version,
)

FILE: Final = "agent.toml"
MAX_BYTES: Final = 64 * 1024

MAX_NAME_CHARS: Final = 256

_LIKE_FILE: Final = "the name of a file in the same folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentToml:
    """A decoded agent.toml. File names are plain: they name files in its own folder.

    None: it is not said, so it is the parent's, or the default where there is no parent.
    """

    name: str
    version: str
    extends: TemplateName | None
    media_type: str | None
    module: str | None
    """None only with a parent."""
    parameters_schema: str | None
    input_schema: str | None
    output_schema: str | None
    limits: RequestedLimits
    capabilities: Capabilities
    named_capabilities: frozenset[str]
    """What of them is said: with a parent, naming none differs from not naming any."""
    profile: Profile | None
    retry: Retry | None


def parse_agent_toml(data: bytes) -> AgentToml:
    """Return what an author's file says.

    Raises:
        PackageTooLargeError: It has more than 64 KiB.
        UnknownFieldError: It holds a key or table that is not known.
        ManifestInvalidError: It is not TOML, or a value breaks a rule of the manifest.
    """
    if len(data) > MAX_BYTES:
        raise PackageTooLargeError(f"{FILE} has {len(data)} bytes, the bound is {MAX_BYTES}")
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ManifestInvalidError(f"{FILE} is not TOML: {error}") from error
    top = Fields(document, FILE, error=ManifestInvalidError)
    template, parameters, run = top.child("template"), _table(top, "parameters"), _table(top, "run")
    extends = _read_extends(template)
    capabilities = _table(top, "capabilities")
    named = frozenset(field.name for field in fields(Capabilities) if capabilities.has(field.name))
    parsed = AgentToml(
        name=read_name(template),
        version=read_version(template),
        extends=extends,
        media_type=read_media_type(template) if template.has("media_type") else None,
        module=_read_module(template, extends),
        parameters_schema=_optional_file(parameters, "schema"),
        input_schema=_optional_file(parameters, "input_schema"),
        output_schema=_optional_file(parameters, "output_schema"),
        limits=read_limits(_table(top, "limits")),
        capabilities=read_capabilities(capabilities),
        named_capabilities=named,
        profile=read_profile(run) if run.has("profile") else None,
        retry=read_retry(run) if run.has("retry") else None,
    )
    for part in (template, parameters, run, top):
        part.end()
    return parsed


def _read_extends(template: Fields) -> TemplateName | None:
    if not template.has("extends"):
        return None
    name, _, version = template.text("extends", max_chars=MAX_NAME_CHARS).partition("@")
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise template.invalid("extends", "is not NAME@VERSION of a template, such as base@1.2.0")
    return TemplateName(name=name, version=version)


def _read_module(template: Fields, extends: TemplateName | None) -> str | None:
    if extends is not None and not template.has("module"):
        return None
    return template.pattern("module", FILE_NAME, _LIKE_FILE)


def _table(top: Fields, name: str) -> Fields:
    return top.child(name) if top.has(name) else Fields({}, f"{FILE}.{name}", error=ManifestInvalidError)


def _optional_file(table: Fields, name: str) -> str | None:
    return table.pattern(name, FILE_NAME, _LIKE_FILE) if table.has(name) else None
