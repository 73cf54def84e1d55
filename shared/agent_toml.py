"""`agent.toml`, the author's form of a manifest: which files make a template and what it asks for.

Owns that file's format; reads no other file and signs nothing.
"""

import tomllib
from dataclasses import dataclass
from typing import Final

from shared.errors import ManifestInvalidError, PackageTooLargeError
from shared.fields import Fields
from shared.limits import RequestedLimits
from shared.manifest import (
    FILE_NAME,
    Capabilities,
    Profile,
    Retry,
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

_LIKE_FILE: Final = "the name of a file in the same folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentToml:
    """A decoded agent.toml. File names are plain: they name files in its own folder."""

    name: str
    version: str
    media_type: str
    module: str
    parameters_schema: str | None
    input_schema: str | None
    output_schema: str | None
    limits: RequestedLimits
    capabilities: Capabilities
    profile: Profile
    retry: Retry


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
    parsed = AgentToml(
        name=read_name(template),
        version=read_version(template),
        media_type=read_media_type(template) if template.has("media_type") else "application/json",
        module=template.pattern("module", FILE_NAME, _LIKE_FILE),
        parameters_schema=_optional_file(parameters, "schema"),
        input_schema=_optional_file(parameters, "input_schema"),
        output_schema=_optional_file(parameters, "output_schema"),
        limits=read_limits(_table(top, "limits")),
        capabilities=read_capabilities(_table(top, "capabilities")),
        profile=read_profile(run),
        retry=read_retry(run),
    )
    for part in (template, parameters, run, top):
        part.end()
    return parsed


def _table(top: Fields, name: str) -> Fields:
    return top.child(name) if top.has(name) else Fields({}, f"{FILE}.{name}", error=ManifestInvalidError)


def _optional_file(table: Fields, name: str) -> str | None:
    return table.pattern(name, FILE_NAME, _LIKE_FILE) if table.has(name) else None
