"""What a child gets from its parent, and each way to ask for more than it."""

from dataclasses import replace

import pytest

from shared.agent_toml import parse_agent_toml
from shared.canonical import canonical_json, parse_canonical
from shared.digests import sha256_digest
from shared.errors import (
    InvalidInputError,
    ManifestInvalidError,
    ParentMissingError,
    TemplateCycleError,
    TemplateWidensError,
    UnknownFieldError,
)
from shared.inheritance import Parent, Schemas, inherit, path_of, require_narrower
from shared.limits import RequestedLimits
from shared.manifest import (
    MAX_ANCESTORS,
    Capabilities,
    HttpCapability,
    Profile,
    Retry,
    decode_manifest,
    encode_manifest,
)
from shared.schemas import JsonSchema
from tests.unit.shared.builders import a_manifest

DIGEST = "sha256:" + "0" * 64
API = HttpCapability(method="GET", url="https://api.test/v1/", max_calls=5, addresses=("10.0.0.0/8",))
BASE = a_manifest(
    name="base",
    limits=RequestedLimits(wall_ms=1000),
    capabilities=Capabilities(http=(API,), kv=True, secrets=("token", "pin")),
    parameters_schema=JsonSchema.from_object(
        {
            "$defs": {"level": {"enum": ["low", "high"]}},
            "properties": {"level": {"$ref": "#/$defs/level", "default": "low"}},
        }
    ),
)


def parent_of(manifest) -> Parent:
    return Parent.of(encode_manifest(manifest))


def child(parent=BASE, toml: str = "", *, extends: str = "", schemas=None, name="child", version="1.0.0"):
    text = f'[template]\nname = "{name}"\nversion = "{version}"\n'
    text += f'extends = "{extends or parent.full_name}"\n{toml}'
    return inherit(parse_agent_toml(text.encode()), schemas or Schemas(), None, parent_of(parent))


def test_what_a_child_does_not_name_is_its_parents():
    made = child()
    assert made == replace(BASE, name="child", version="1.0.0", extends=parent_of(BASE).line)
    assert decode_manifest(encode_manifest(made)) == made
    assert parse_canonical(encode_manifest(made))["type"] == "agentfactory.template.v3"


def test_a_child_narrows_each_part():
    made = child(
        toml="""
[limits]
wall_ms = 500
cpu_ms = 200
[capabilities]
http = [{ method = "GET", url = "https://api.test/v1/users/" }]
kv = false
secrets = ["pin"]
[run]
profile = "deterministic"
"""
    )
    assert made.limits == RequestedLimits(wall_ms=500, cpu_ms=200)
    assert made.capabilities == Capabilities(
        # The bound that the child does not name is its parent's.
        http=(HttpCapability(method="GET", url="https://api.test/v1/users/", max_calls=5),),
        secrets=("pin",),
    )
    assert made.profile is Profile.DETERMINISTIC


@pytest.mark.parametrize(
    ("toml", "place"),
    [
        ("[limits]\nwall_ms = 2000", r"limits\.wall_ms: 2000 > 1000 of base@1\.2\.0"),
        ("[limits]\ncpu_ms = 20000", r"limits\.cpu_ms: 20000 > 10000 \(default\) of base@1\.2\.0"),
        ("[limits]\nscratch_bytes = 1", r"limits\.scratch_bytes: 1 > 0 \(default\)"),
        ("[capabilities]\nrecord_host_calls = true", r"capabilities\.record_host_calls: true > false"),
        ('[capabilities]\nsecrets = ["root"]', r"capabilities\.secrets: root is not among those"),
        ('[capabilities]\nhttp = [{method = "POST", url = "https://api.test/v1/"}]', "is within none"),
        ('[capabilities]\nhttp = [{method = "GET", url = "https://api.test/"}]', "is within none"),
        ('[capabilities]\nhttp = [{method = "GET", url = "https://api.test/v1x/"}]', "is within none"),
        ('[capabilities]\nhttp = [{method = "GET", url = "http://api.test/v1/"}]', "is within none"),
        (
            '[capabilities]\nhttp = [{method = "GET", url = "https://api.test/v1/", max_calls = 6}]',
            "max_calls 6 > 5",
        ),
        (
            (
                '[capabilities]\nhttp = [{method = "GET", url = "https://api.test/v1/a/", max_calls = 3},'
                ' {method = "GET", url = "https://api.test/v1/b/", max_calls = 3}]'
            ),
            "max_calls 6 > 5",
        ),
        (
            '[capabilities]\nhttp = [{method = "GET", url = "https://api.test/v1/", addresses = ["::/0"]}]',
            "is within none",
        ),
        ('[run]\nretry = "safe"', r"run\.retry: safe > unsafe"),
        ('media_type = "text/plain"', r"template\.media_type: text/plain is not application/json"),
    ],
)
def test_each_way_to_ask_for_more_is_refused_by_its_place(toml, place):
    with pytest.raises(TemplateWidensError, match=place):
        child(toml=toml)


def test_every_wider_place_is_named_with_the_path():
    with pytest.raises(TemplateWidensError) as caught:
        child(toml='[limits]\nwall_ms = 2000\n[run]\nretry = "safe"')
    assert str(caught.value) == (
        "child@1.0.0 → base@1.2.0: limits.wall_ms: 2000 > 1000 of base@1.2.0;"
        " run.retry: safe > unsafe of base@1.2.0"
    )


@pytest.mark.parametrize("profile", ["default", "portable"])
def test_a_strict_profile_stays(profile):
    strict = replace(BASE, profile=Profile.DETERMINISTIC)
    with pytest.raises(TemplateWidensError, match=r"run\.profile"):
        child(strict, toml=f'[run]\nprofile = "{profile}"')


def test_a_child_may_give_retries_up():
    assert child(replace(BASE, retry=Retry.SAFE), toml='[run]\nretry = "unsafe"').retry is Retry.UNSAFE


def test_parameters_have_to_fit_both_schemas_and_the_childs_default_counts():
    own = JsonSchema.from_object(
        {
            "$defs": {"level": {"type": "integer"}},
            "properties": {"depth": {"$ref": "#/$defs/level"}, "level": {"default": "high"}},
            "required": ["depth"],
        }
    )
    schema = child(schemas=Schemas(parameters=own)).parameters_schema
    given = {"depth": 1}
    schema.fill(given, "parameters")
    schema.check(given, "parameters")
    assert given == {"depth": 1, "level": "high"}
    for wrong in ({"depth": "deep"}, {"depth": 1, "level": "no"}, {"level": "low"}):
        with pytest.raises(InvalidInputError):
            schema.check(wrong, "parameters")


def test_properties_that_the_parent_closes_cannot_be_added():
    closed = JsonSchema.from_object({"properties": {"a": {}}, "additionalProperties": False})
    own = JsonSchema.from_object({"properties": {"b": {}}})
    with pytest.raises(TemplateWidensError, match=r"parameters\.b: not among the properties .* base@1\.2\.0"):
        child(replace(BASE, parameters_schema=closed), schemas=Schemas(parameters=own))


@pytest.mark.parametrize("schema", [None, {"allOf": [{}]}, {"properties": {"level": {}}}])
def test_a_signed_child_that_leaves_its_parents_schema_out_is_refused(schema):
    forged = replace(child(), parameters_schema=None if schema is None else JsonSchema.from_object(schema))
    with pytest.raises(TemplateWidensError, match=r"parameters\.parameters"):
        require_narrower(forged, parent_of(BASE))


def test_another_definition_under_the_parents_name_is_refused():
    own = JsonSchema.from_object({"properties": {"depth": {}}})
    made = child(schemas=Schemas(parameters=own))
    document = made.parameters_schema.to_object()
    document["$defs"]["parent.level"] = {}
    forged = replace(made, parameters_schema=JsonSchema.from_object(document))
    with pytest.raises(TemplateWidensError):
        require_narrower(forged, parent_of(BASE))


def test_three_levels_name_their_line():
    middle = child(name="middle", toml="[limits]\nwall_ms = 800")
    leaf = child(middle, name="leaf", toml="[limits]\nwall_ms = 700")
    assert path_of(leaf) == "leaf@1.0.0 → middle@1.0.0 → base@1.2.0"
    with pytest.raises(
        TemplateWidensError, match=r"leaf@1\.0\.0 → middle@1\.0\.0 → base@1\.2\.0: .* 900 > 800"
    ):
        child(middle, name="leaf", toml="[limits]\nwall_ms = 900")


def test_a_cycle_is_named_by_its_path():
    a = child(name="a", version="1.0.0", extends="base@1.2.0")
    b = child(a, name="b", version="2.0.0")
    with pytest.raises(TemplateCycleError, match=r"a@1\.0\.0 → b@2\.0\.0 → a@1\.0\.0 → base@1\.2\.0"):
        child(b, name="a", version="1.0.0")
    with pytest.raises(TemplateCycleError, match=r"base@1\.2\.0 → base@1\.2\.0"):
        child(BASE, name="base", version="1.2.0")


def test_a_line_has_a_bound():
    last = BASE
    for depth in range(MAX_ANCESTORS):
        last = child(last, name=f"level-{depth}")
    with pytest.raises(ManifestInvalidError, match="more than 8 ancestors"):
        child(last, name="deep")


def test_another_parent_than_the_one_named_is_refused():
    with pytest.raises(ParentMissingError, match=r"extends base@9\.0\.0, given is base@1\.2\.0"):
        child(extends="base@9.0.0")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, extends=(replace(m.extends[0], digest=sha256_digest(b"other")),)),
        lambda m: replace(m, extends=m.extends + child(name="other").extends),
    ],
    ids=["another digest", "another line"],
)
def test_ancestors_are_bound_by_digest(change):
    made = child()
    with pytest.raises((ParentMissingError, TemplateCycleError)):
        require_narrower(change(made), parent_of(BASE))


def test_extends_belongs_to_version_3_alone():
    document = parse_canonical(encode_manifest(child()))
    for older in ("agentfactory.template.v1", "agentfactory.template.v2"):
        with pytest.raises(UnknownFieldError, match="extends"):
            decode_manifest(canonical_json({**document, "type": older}))
    document["extends"] = []
    with pytest.raises(ManifestInvalidError, match="extends nothing"):
        decode_manifest(canonical_json(document))


@pytest.mark.parametrize(
    "extends", ["base", "base@", "@1.0.0", "Base@1.0.0", "base@1", "a@1.0.0@1.0.0", DIGEST]
)
def test_a_parent_is_named_by_name_and_version(extends):
    text = f'[template]\nname = "c"\nversion = "1.0.0"\nextends = "{extends}"\n'
    with pytest.raises(ManifestInvalidError, match=r"NAME@VERSION"):
        parse_agent_toml(text.encode())


def test_only_a_child_may_come_without_a_module():
    with pytest.raises(ManifestInvalidError, match="module"):
        parse_agent_toml(b'[template]\nname = "c"\nversion = "1.0.0"\n')
