"""Whatever a child asks for, it is refused or granted no more than its parent, and always the same."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.agent_toml import AgentToml
from shared.errors import InvalidInputError, ManifestInvalidError, TemplateWidensError
from shared.inheritance import Parent, Schemas, inherit
from shared.limits import LIMIT_FIELDS, MAX_LIMITS, RequestedLimits, grant_limits
from shared.manifest import (
    Capabilities,
    HttpCapability,
    Profile,
    Retry,
    TemplateName,
    decode_manifest,
    encode_manifest,
)
from shared.schemas import JsonSchema
from shared.urls import parse_url
from tests.property.shared.test_schemas import SCHEMAS, VALUES
from tests.unit.shared.builders import a_manifest

LIMITS = st.fixed_dictionaries(
    {}, optional={name: st.integers(1, getattr(MAX_LIMITS, name)) for name in LIMIT_FIELDS}
).map(lambda named: RequestedLimits(**named))
HTTP = st.builds(
    HttpCapability,
    method=st.sampled_from(["GET", "POST"]),
    url=st.sampled_from(
        ["https://a.test/", "https://a.test/v1/", "https://a.test/v1/x", "https://b.test/", "http://a.test/"]
    ),
    addresses=st.sets(st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"])).map(
        lambda found: tuple(sorted(found))
    ),
    max_calls=st.integers(0, 4),
    max_bytes=st.integers(0, 4),
)
CAPABILITIES = st.builds(
    Capabilities,
    http=st.lists(HTTP, max_size=3, unique=True).map(tuple),
    kv=st.booleans(),
    secrets=st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(tuple),
    record_host_calls=st.booleans(),
)
SOME_SCHEMA = st.none() | SCHEMAS
NAMED = st.sets(st.sampled_from([field.name for field in fields(Capabilities)])).map(frozenset)


def compiled(schema):
    """Return a schema, or none for what is beyond a bound."""
    return None if schema is None else JsonSchema.from_object(schema)


def limits_within(parent):
    """Limits that the parent would be granted, or less."""
    most = grant_limits(parent)
    named = {name: st.integers(1, bound) for name in LIMIT_FIELDS if (bound := getattr(most, name)) >= 1}
    return st.fixed_dictionaries({}, optional=named).map(lambda chosen: RequestedLimits(**chosen))


def capabilities_within(parent):
    """Some of the parent's capabilities, destinations below its own among them."""
    below = [replace(one, url=f"{one.url.rstrip('/')}/deeper/") for one in parent.http]
    http = (
        st.lists(st.sampled_from([*parent.http, *below]), max_size=2, unique=True) if below else st.just([])
    )
    return st.builds(
        Capabilities,
        http=http.map(tuple),
        kv=st.just(parent.kv),
        secrets=st.sets(st.sampled_from(parent.secrets)).map(lambda found: tuple(sorted(found)))
        if parent.secrets
        else st.just(()),
        record_host_calls=st.just(False),
    )


@st.composite
def children(draw):
    parent = a_manifest(
        name="base",
        limits=draw(LIMITS),
        capabilities=draw(CAPABILITIES),
        parameters_schema=compiled(draw(SOME_SCHEMA)),
        output_schema=compiled(draw(SOME_SCHEMA)),
        profile=draw(st.sampled_from(Profile)),
        retry=draw(st.sampled_from(Retry)),
    )
    limits, capabilities, named = draw(LIMITS), draw(CAPABILITIES), draw(NAMED)
    profile = draw(st.none() | st.sampled_from(Profile))
    retry = draw(st.none() | st.sampled_from(Retry))
    if draw(st.booleans()):  # otherwise hardly any child would be let through
        limits, capabilities = (
            draw(limits_within(parent.limits)),
            draw(capabilities_within(parent.capabilities)),
        )
        profile = retry = None
    own = AgentToml(
        name="child",
        version="1.0.0",
        extends=TemplateName(name=parent.name, version=parent.version),
        media_type=None,
        module=None,
        parameters_schema=None,
        input_schema=None,
        output_schema=None,
        limits=limits,
        capabilities=capabilities,
        named_capabilities=named,
        profile=profile,
        retry=retry,
    )
    schemas = Schemas(parameters=compiled(draw(SOME_SCHEMA)), output=compiled(draw(SOME_SCHEMA)))
    return own, schemas, parent


def fits(schema, value) -> bool:
    try:
        schema.check(value, "value")
    except InvalidInputError:
        return False
    return True


def reached(capabilities, method, url) -> bool:
    """Whether a call may be made at all."""
    return any(
        one.method == method and parse_url(url).is_within(parse_url(one.url)) for one in capabilities.http
    )


@settings(max_examples=120, deadline=None)
@given(children(), VALUES)
def test_a_child_that_is_made_is_granted_no_more_than_its_parent(made, value):
    own, schemas, base = made
    try:
        child = inherit(own, schemas, None, Parent.of(encode_manifest(base)))
    except ManifestInvalidError:
        return
    granted, most = grant_limits(child.limits), grant_limits(base.limits)
    assert all(getattr(granted, name) <= getattr(most, name) for name in LIMIT_FIELDS)
    assert child.capabilities.kv <= base.capabilities.kv
    assert child.capabilities.record_host_calls <= base.capabilities.record_host_calls
    assert set(child.capabilities.secrets) <= set(base.capabilities.secrets)
    for method in ("GET", "POST"):
        for url in (
            "https://a.test/v1/x/deeper/",
            "https://a.test/v1/",
            "https://b.test/z",
            "http://a.test/",
        ):
            assert reached(child.capabilities, method, url) <= reached(base.capabilities, method, url)
    assert base.profile in {Profile.DEFAULT, child.profile}
    assert (child.retry is Retry.SAFE) <= (base.retry is Retry.SAFE)
    for name in ("parameters", "output"):
        parents, mine = getattr(base, f"{name}_schema"), getattr(schemas, name)
        judged = getattr(child, f"{name}_schema")
        both = [one for one in (parents, mine) if one is not None]
        assert (judged is None) == (not both)
        if judged is not None:
            assert fits(judged, value) == all(fits(one, value) for one in both)


@settings(max_examples=60, deadline=None)
@given(children())
def test_resolution_is_deterministic_and_survives_its_encoding(made):
    own, schemas, base = made
    answers = []
    for _ in range(2):
        try:
            answers.append(encode_manifest(inherit(own, schemas, None, Parent.of(encode_manifest(base)))))
        except ManifestInvalidError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
    if isinstance(answers[0], bytes):
        assert encode_manifest(decode_manifest(answers[0])) == answers[0]


@settings(max_examples=60, deadline=None)
@given(children(), st.sampled_from(LIMIT_FIELDS))
def test_one_limit_above_the_parents_is_always_refused(made, name):
    own, schemas, base = made
    most = getattr(grant_limits(base.limits), name)
    if most >= getattr(MAX_LIMITS, name):
        return
    wider = AgentToml(
        **{field.name: getattr(own, field.name) for field in fields(own) if field.name != "limits"},
        limits=RequestedLimits(**{name: most + 1}),
    )
    with pytest.raises(TemplateWidensError, match=name):
        inherit(wider, schemas, None, Parent.of(encode_manifest(base)))
