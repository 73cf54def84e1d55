import json
from dataclasses import replace

import pytest

from shared.agent_toml import parse_agent_toml
from shared.canonical import canonical_json
from shared.errors import ManifestInvalidError, PackageTooLargeError, UnknownFieldError
from shared.limits import DEFAULT_LIMITS, MAX_LIMITS, Limits, RequestedLimits, grant_limits
from shared.manifest import (
    Capabilities,
    HttpCapability,
    Profile,
    Retry,
    decode_manifest,
    encode_manifest,
    require_reachable,
)
from shared.schemas import JsonSchema
from tests.unit.shared.builders import a_manifest

TOML = b"""
[template]
name = "redact"
version = "1.2.0"
module = "redact.wasm"
media_type = "text/plain"
[parameters]
schema = "parameters.schema.json"
output_schema = "out.json"
[limits]
wall_ms = 1000
memory_bytes = 67108864
[capabilities]
http = [{ method = "GET", url = "https://api.example.test/v1/" }]
[run]
profile = "deterministic"
retry = "safe"
"""


HTTP = HttpCapability(method="GET", url="https://a.test/v1/")


def changed(change) -> bytes:
    document = json.loads(encode_manifest(a_manifest()))
    change(document)
    return canonical_json(document)


def test_manifest_survives_its_encoding():
    schema = JsonSchema.from_object({"type": "object", "maxProperties": 3})
    manifest = a_manifest(
        parameters_schema=schema,
        output_schema=schema,
        limits=RequestedLimits(wall_ms=1000, open_files=4),
        capabilities=Capabilities(http=(HttpCapability(method="GET", url="https://a.test/v1/"),)),
        profile=Profile.PORTABLE,
        retry=Retry.SAFE,
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest


LATER = [
    {"limits": RequestedLimits(**{name: 1})}
    for name in Limits.__dataclass_fields__
    if name not in {"wall_ms", "cpu_ms", "memory_bytes", "output_bytes", "log_bytes", "open_files"}
] + [
    {"capabilities": capabilities}
    for capabilities in (
        Capabilities(kv=True),
        Capabilities(secrets=("token",)),
        Capabilities(record_host_calls=True),
        Capabilities(http=(replace(HTTP, addresses=("10.0.0.0/8",)),)),
        Capabilities(http=(HTTP, replace(HTTP, max_calls=1))),
        Capabilities(http=(replace(HTTP, max_bytes=1),)),
    )
]


def test_manifest_is_written_in_the_oldest_format_that_can_say_it():
    first = RequestedLimits(wall_ms=1, cpu_ms=1, memory_bytes=1, output_bytes=1, log_bytes=1, open_files=1)
    manifest = a_manifest(limits=first, capabilities=Capabilities(http=(HTTP,)))
    assert json.loads(encode_manifest(manifest))["type"] == "agentfactory.template.v1"


@pytest.mark.parametrize("changes", LATER)
def test_manifest_that_asks_for_what_came_later_is_of_version_2_and_of_no_other(changes):
    manifest = a_manifest(**changes)
    data = encode_manifest(manifest)
    document = json.loads(data)
    assert document["type"] == "agentfactory.template.v2"
    assert decode_manifest(data) == manifest
    with pytest.raises(UnknownFieldError, match="came later"):
        decode_manifest(canonical_json({**document, "type": "agentfactory.template.v1"}))


@pytest.mark.parametrize("change", [{"kv": False}, {"secrets": []}, {"record_host_calls": False}])
def test_capability_that_is_named_and_not_asked_for_is_refused(change):
    with pytest.raises(ManifestInvalidError):
        decode_manifest(changed(lambda d: d["capabilities"].update(change)))


def test_agent_toml_of_the_design_says_what_it_says():
    author = parse_agent_toml(TOML)
    assert (author.name, author.version, author.module) == ("redact", "1.2.0", "redact.wasm")
    assert (author.parameters_schema, author.input_schema, author.output_schema) == (
        "parameters.schema.json",
        None,
        "out.json",
    )
    assert author.limits == RequestedLimits(wall_ms=1000, memory_bytes=67108864)
    assert author.capabilities.http == (HttpCapability(method="GET", url="https://api.example.test/v1/"),)
    assert (author.media_type, author.profile, author.retry) == (
        "text/plain",
        Profile.DETERMINISTIC,
        Retry.SAFE,
    )


def test_agent_toml_needs_three_lines_and_grants_nothing_by_itself():
    author = parse_agent_toml(b'[template]\nname = "a"\nversion = "0.1.0"\nmodule = "a.wasm"\n')
    assert (author.extends, author.media_type) == (None, None)
    assert (author.capabilities, author.limits) == (Capabilities(), RequestedLimits())
    assert (author.profile, author.retry) == (None, None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"[run]", b"[run]\nspeed = 1"),
        (b"[run]", b"[secrets]\nall = true\n[run]"),
        (b"wall_ms", b"wal_ms"),
        (b"http = [", b"sockets = ["),
        (b'method = "GET"', b'method = "GET", body = "x"'),
    ],
)
def test_unknown_key_in_agent_toml_is_refused(old, new):
    with pytest.raises(UnknownFieldError):
        parse_agent_toml(TOML.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'name = "redact"', b'name = "Redact"'),
        (b'name = "redact"', b'name = "1redact"'),
        (b'name = "redact"', b'name = "' + b"a" * 64 + b'"'),
        (b'name = "redact"', b""),
        (b'"1.2.0"', b'"1.2"'),
        (b'"1.2.0"', b'"01.2.0"'),
        (b'"1.2.0"', b'"1.2.0-"'),
        (b'"1.2.0"', b'"1.2.0+' + b"a" * 128 + b'"'),
        (b'"1.2.0"', b"1.2"),
        (b'"redact.wasm"', b'"../redact.wasm"'),
        (b'"redact.wasm"', b'"/etc/passwd"'),
        (b'"redact.wasm"', b'".hidden"'),
        (b'"parameters.schema.json"', b'"a/b.json"'),
        (b'"text/plain"', b'"text"'),
        (b"wall_ms = 1000", b"wall_ms = 0"),
        (b"wall_ms = 1000", b"wall_ms = -1"),
        (b"wall_ms = 1000", b"wall_ms = 3600001"),
        (b"wall_ms = 1000", b"wall_ms = true"),
        (b"wall_ms = 1000", b"wall_ms = 1.5"),
        (b'"GET"', b'"CONNECT"'),
        (b'"GET"', b'"get"'),
        (b'"deterministic"', b'"fast"'),
        (b'"safe"', b'"always"'),
        (b"[template]", b"[template"),
        (b'"redact"', b'"\xff"'),
    ],
)
def test_bad_value_in_agent_toml_is_refused(old, new):
    assert old in TOML
    with pytest.raises(ManifestInvalidError):
        parse_agent_toml(TOML.replace(old, new))


@pytest.mark.parametrize(
    "url",
    [
        "https://a.test",  # would also match https://a.test.evil/
        "ftp://a.test/",
        "file:///etc/passwd",
        "https:///path",
        "https://user@a.test/",
        "https://a.test/../b",
        "https://a.test/%2e%2e/b",
        "https://a.test/\\b",
        "https://a.test/?q=1",
        "https://a.test/#f",
        "https://a.test:port/",
        "https://[::1/",
        "https://a.test/ b",
        "https://ä.test/",
        "//a.test/",
        "https://a.test/" + "a" * 2048,
    ],
)
def test_url_prefix_that_could_mean_something_else_is_refused(url):
    with pytest.raises(ManifestInvalidError):
        decode_manifest(changed(lambda d: d["capabilities"].update(http=[{"method": "GET", "url": url}])))


@pytest.mark.parametrize(
    "url",
    ["https://0x7f.1/", "https://a.test./", "https://a..test/", "https://a.test/a|b"],
)
def test_a_destination_that_no_call_matches_is_refused_when_new_and_readable_when_stored(url):
    manifest = a_manifest(capabilities=Capabilities(http=(replace(HTTP, url=url),)))
    with pytest.raises(ManifestInvalidError, match="url"):
        require_reachable(manifest)
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_destination_with_one_reading_is_not_refused():
    require_reachable(
        a_manifest(capabilities=Capabilities(http=(HTTP, replace(HTTP, url="https://[::1]:8443/"))))
    )


def test_bounds_of_agent_toml_and_manifest():
    with pytest.raises(PackageTooLargeError):
        parse_agent_toml(b"#" * (64 * 1024 + 1))
    with pytest.raises(PackageTooLargeError):
        decode_manifest(b" " * (256 * 1024 + 1))
    big = JsonSchema.from_object({"description": "x" * 65_000})
    long = Capabilities(http=(HttpCapability(method="GET", url="https://a.test/" + "x" * 2000),) * 64)
    with pytest.raises(PackageTooLargeError):
        encode_manifest(
            a_manifest(parameters_schema=big, input_schema=big, output_schema=big, capabilities=long)
        )


def test_a_manifest_that_was_read_once_is_not_read_again():
    data = encode_manifest(a_manifest())
    assert decode_manifest(data) is decode_manifest(bytes(bytearray(data)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(extends="other"),
        lambda d: d["module"].update(url="https://a.test"),
        lambda d: d["run"].update(priority=1),
        lambda d: d["limits"].update(gpu=1),
        lambda d: d["capabilities"].update(gpu=True),
        lambda d: d["schemas"].update(other={}),
    ],
)
def test_unknown_field_in_a_manifest_is_refused_at_every_depth(change):
    with pytest.raises(UnknownFieldError):
        decode_manifest(changed(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(type="agentfactory.template.v2"),  # version 1 says the same
        lambda d: d.update(type="agentfactory.template.v3"),
        lambda d: d.update(name=None),
        lambda d: d["module"].update(size_bytes=0),
        lambda d: d["module"].update(size_bytes=64 * 1024 * 1024 + 1),
        lambda d: d["module"].update(digest="sha256:00"),
        lambda d: d.pop("run"),
        lambda d: d.update(limits=[]),
        lambda d: d["capabilities"].update(http=[1]),
        lambda d: d["capabilities"].update(http=[{"method": "GET", "url": "https://a.test/"}] * 65),
    ],
)
def test_malformed_manifest_is_refused(change):
    with pytest.raises(ManifestInvalidError):
        decode_manifest(changed(change))


def test_manifest_that_is_not_canonical_is_refused():
    with pytest.raises(ManifestInvalidError, match="RFC 8785"):
        decode_manifest(encode_manifest(a_manifest()) + b"\n")


def test_granted_is_the_smaller_of_asked_and_allowed_and_the_default_where_nothing_is_asked():
    ceiling = Limits(**{**MAX_LIMITS_FIELDS, "wall_ms": 500, "memory_bytes": 1 << 20})
    granted = grant_limits(RequestedLimits(wall_ms=1000, cpu_ms=20), ceiling)
    assert (granted.wall_ms, granted.cpu_ms, granted.memory_bytes) == (500, 20, 1 << 20)
    assert granted.output_bytes == DEFAULT_LIMITS.output_bytes


MAX_LIMITS_FIELDS = {name: getattr(MAX_LIMITS, name) for name in Limits.__dataclass_fields__}
