"""Templates that extend others: what a child gets from its parent, and that it asks for no more.

A child is resolved before it is signed: its manifest holds all that it inherits, and names its ancestors by
digest. So what a publisher signs is what runs, and nobody has to read a second manifest to know what one
template may do. `require_narrower` is the one judge of it: the builder asks before the publisher signs, and
the registry again before it stores. Pure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from ipaddress import ip_network
from typing import Final

from shared.agent_toml import AgentToml
from shared.digests import Digest, sha256_digest
from shared.errors import (
    HostCallRefusedError,
    ManifestInvalidError,
    ParentMissingError,
    TemplateCycleError,
    TemplateWidensError,
)
from shared.limits import LIMIT_FIELDS, RequestedLimits, grant_limits
from shared.manifest import (
    MAX_ANCESTORS,
    Ancestor,
    Capabilities,
    HttpCapability,
    LlmCapability,
    Manifest,
    ModuleFile,
    Profile,
    Retry,
    TemplateName,
    decode_manifest,
)
from shared.schema_merge import closed_names, conjoin, means
from shared.schemas import JsonSchema
from shared.urls import parse_url

MAX_NAMED_PLACES: Final = 8
"""Places at which a child asks for too much, in one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A published manifest to extend."""

    manifest: Manifest
    digest: Digest

    @classmethod
    def of(cls, manifest_bytes: bytes) -> "Parent":
        """Return the parent in canonical JSON; whether it is to be trusted is the caller's to know.

        Raises:
            VerificationError: As `decode_manifest`.
        """
        return cls(manifest=decode_manifest(manifest_bytes), digest=sha256_digest(manifest_bytes))

    @property
    def line(self) -> tuple[Ancestor, ...]:
        """What a child of it extends: it, then its own ancestors."""
        return (Ancestor(name=self.manifest.full_name, digest=self.digest), *self.manifest.extends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schemas:
    """The schemas that a template has, or that its author adds."""

    parameters: JsonSchema | None = None
    input: JsonSchema | None = None
    output: JsonSchema | None = None


def path_of(manifest: Manifest) -> str:
    """Return a template and its ancestors as people read them: ``a@1.0.0 → b@2.0.0``."""
    return _path(manifest.full_name, manifest.extends)


def inherit(own: AgentToml, schemas: Schemas, module: ModuleFile | None, parent: Parent) -> Manifest:
    """Return the whole manifest of a template that extends `parent`.

    What its author does not name is the parent's. `schemas` are the author's own, and hold beside the
    parent's.

    Raises:
        ParentMissingError: `parent` is not the version that the author names.
        TemplateCycleError: The template is its own ancestor.
        TemplateWidensError: It asks for more than the parent at some place.
        ManifestInvalidError: It has more than 8 ancestors, or its schemas and the parent's are together
            beyond a bound.
    """
    base = parent.manifest
    if own.extends != base.full_name:
        raise ParentMissingError(f"{own.name}@{own.version} extends {own.extends}, given is {base.full_name}")
    manifest = Manifest(
        name=own.name,
        version=own.version,
        extends=parent.line,
        media_type=own.media_type or base.media_type,
        module=module or base.module,
        parameters_schema=_both(base.parameters_schema, schemas.parameters),
        input_schema=_both(base.input_schema, schemas.input),
        output_schema=_both(base.output_schema, schemas.output),
        limits=_inherited_limits(own.limits, base.limits),
        capabilities=_inherited_capabilities(own, base.capabilities),
        profile=own.profile or base.profile,
        retry=own.retry or base.retry,
    )
    require_narrower(manifest, parent)
    _require_open_parameters(schemas.parameters, base)
    return manifest


def require_line(manifest: Manifest) -> None:
    """Let a template pass whose ancestors are different versions, and not too many.

    Raises:
        TemplateCycleError: It, or one of its ancestors, is there twice.
        ManifestInvalidError: It has more than 8 ancestors.
    """
    names = [manifest.full_name, *(one.name for one in manifest.extends)]
    if len(set(names)) != len(names):
        raise TemplateCycleError(f"a template extends itself: {path_of(manifest)}")
    if len(manifest.extends) > MAX_ANCESTORS:
        raise ManifestInvalidError(f"a template has more than {MAX_ANCESTORS} ancestors: {path_of(manifest)}")


def require_narrower(manifest: Manifest, parent: Parent) -> None:
    """Let a template pass that `parent` is the parent of, and that asks for no more than it anywhere.

    1. Its ancestors are the parent and the parent's, by digest, without a circle, at most 8.
    2. No limit that it would be granted is above what the parent would be granted.
    3. Every capability is covered by one of the parent's.
    4. The profile is the parent's, or a stricter one in place of the default; retry is not safer.
    5. Every schema of the parent holds for it as well; the media type is the same.

    Raises:
        TemplateCycleError, ManifestInvalidError: Check 1, as `require_line`.
        ParentMissingError: Check 1, the line of ancestors is another one.
        TemplateWidensError: Check 2 to 5; the message names up to 8 places.
    """
    require_line(manifest)
    if manifest.extends != parent.line:
        raise ParentMissingError(
            f"{path_of(manifest)} names other ancestors than"
            f" {_path(manifest.full_name, parent.line)} ({parent.digest})"
        )
    base = parent.manifest
    places = [
        *_wider_limits(manifest.limits, base.limits),
        *_wider_capabilities(manifest.capabilities, base.capabilities),
        *_wider_run(manifest, base),
        *_wider_schemas(manifest, base),
    ]
    if places:
        more = f"; and {len(places) - MAX_NAMED_PLACES} more" if len(places) > MAX_NAMED_PLACES else ""
        named = "; ".join(f"{place} of {base.full_name}" for place in places[:MAX_NAMED_PLACES])
        raise TemplateWidensError(f"{path_of(manifest)}: {named}{more}")


def _path(name: TemplateName, line: Sequence[Ancestor]) -> str:
    return " → ".join(str(one) for one in (name, *(ancestor.name for ancestor in line)))


def _both(parent: JsonSchema | None, own: JsonSchema | None) -> JsonSchema | None:
    if parent is None or own is None:
        return parent or own
    return conjoin(parent, own)


def _inherited_limits(own: RequestedLimits, parent: RequestedLimits) -> RequestedLimits:
    named = {name: getattr(own, name) for name in LIMIT_FIELDS if getattr(own, name) is not None}
    return replace(parent, **named)


def _inherited_capabilities(own: AgentToml, parent: Capabilities) -> Capabilities:
    named = {name: getattr(own.capabilities, name) for name in own.named_capabilities}
    if "http" in named:
        named["http"] = tuple(_inherited_http(one, parent.http) for one in named["http"])
    return replace(parent, **named)


def _inherited_http(own: HttpCapability, parents: Sequence[HttpCapability]) -> HttpCapability:
    """Return one destination with the bounds of the parent's that covers it, where it names none."""
    at = _covering(own, parents)
    if at is None:
        return own
    return replace(
        own,
        max_calls=own.max_calls or parents[at].max_calls,
        max_bytes=own.max_bytes or parents[at].max_bytes,
    )


def _wider_limits(own: RequestedLimits, parent: RequestedLimits) -> Iterator[str]:
    # As granted: a limit that is not named is no request for nothing, but for the default.
    asked, most = grant_limits(own), grant_limits(parent)
    for name in LIMIT_FIELDS:
        if getattr(asked, name) > getattr(most, name):
            kind = "" if getattr(parent, name) is not None else " (default)"
            yield f"limits.{name}: {getattr(asked, name)} > {getattr(most, name)}{kind}"


def _wider_capabilities(own: Capabilities, parent: Capabilities) -> Iterator[str]:
    for name in ("kv", "record_host_calls"):
        if getattr(own, name) and not getattr(parent, name):
            yield f"capabilities.{name}: true > false"
    for secret in own.secrets:
        if secret not in parent.secrets:
            yield f"capabilities.secrets: {secret} is not among those"
    yield from _wider_llm(own.llm, parent.llm)
    yield from _wider_http(own.http, parent.http)


def _wider_llm(own: LlmCapability | None, parent: LlmCapability | None) -> Iterator[str]:
    if own is None:
        return
    if parent is None:
        yield "capabilities.llm: not among those"
        return
    for model in own.models:
        if model not in parent.models:
            yield f"capabilities.llm: {model} is not among those"
    if own.max_tokens > parent.max_tokens:
        yield f"capabilities.llm: max_tokens {own.max_tokens} > {parent.max_tokens}"
    if parent.max_cost_micros and not 0 < own.max_cost_micros <= parent.max_cost_micros:
        asked = own.max_cost_micros or "any number"
        yield f"capabilities.llm: max_cost_micros {asked} > {parent.max_cost_micros}"


def _wider_http(own: Sequence[HttpCapability], parents: Sequence[HttpCapability]) -> Iterator[str]:
    """Each destination within one of the parent's; those within the same one share its bounds."""
    shares: dict[int, list[HttpCapability]] = {}
    for http in own:
        at = _covering(http, parents)
        if at is None:
            yield f"capabilities.http: {http.method} {http.url} is within none"
        else:
            shares.setdefault(at, []).append(http)
    for at, those in shares.items():
        for name in ("max_calls", "max_bytes"):
            most, asked = getattr(parents[at], name), [getattr(one, name) for one in those]
            if most and (not all(asked) or sum(asked) > most):
                total = sum(asked) if all(asked) else "any number"
                yield f"capabilities.http: {those[0].method} {those[0].url}: {name} {total} > {most}"


def _covering(http: HttpCapability, parents: Sequence[HttpCapability]) -> int | None:
    """Return the first of the parent's destinations that `http` is within: method, prefix and networks."""
    for at, parent in enumerate(parents):
        if http.method == parent.method and _is_within(http.url, parent.url):
            allowed = [ip_network(network) for network in parent.addresses]
            asked = [ip_network(network) for network in http.addresses]
            if all(any(_within(one, other) for other in allowed) for one in asked):
                return at
    return None


def _is_within(url: str, prefix: str) -> bool:
    """Whether a URL is within a prefix, by the reading of nodes; one that has none is within nothing."""
    try:
        return parse_url(url).is_within(parse_url(prefix))
    except HostCallRefusedError:
        return False


def _within(one: object, other: object) -> bool:
    # Of different IP versions `subnet_of` raises.
    return type(one) is type(other) and one.subnet_of(other)  # type: ignore[attr-defined]


def _wider_run(manifest: Manifest, base: Manifest) -> Iterator[str]:
    if manifest.profile is not base.profile and base.profile is not Profile.DEFAULT:
        yield f"run.profile: {manifest.profile} is not {base.profile}"
    if manifest.retry is Retry.SAFE and base.retry is Retry.UNSAFE:
        yield f"run.retry: {manifest.retry} > {base.retry}"
    if manifest.media_type != base.media_type:
        yield f"template.media_type: {manifest.media_type} is not {base.media_type}"


def _wider_schemas(manifest: Manifest, base: Manifest) -> Iterator[str]:
    for name in (field.name for field in fields(Schemas)):
        own, parent = getattr(manifest, f"{name}_schema"), getattr(base, f"{name}_schema")
        if parent is not None and (own is None or not means(own, parent)):
            yield f"parameters.{name}: does not hold the schema"


def _require_open_parameters(own: JsonSchema | None, base: Manifest) -> None:
    """Refuse properties that no caller could ever give: the parent's schema closes its objects."""
    allowed = None if base.parameters_schema is None else closed_names(base.parameters_schema)
    if own is None or allowed is None:
        return
    added = sorted(own.to_object().get("properties", {}).keys() - allowed)
    if added:
        raise TemplateWidensError(
            f"parameters.{added[0]}: not among the properties that the schema of {base.full_name} allows"
        )
