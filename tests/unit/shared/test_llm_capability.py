"""The capability for language models: how it is written, read, inherited, ordered and told of in receipts."""

import json
from dataclasses import replace

import pytest
from agentfactory.v1 import orders_pb2

from shared.agent_toml import parse_agent_toml
from shared.canonical import canonical_json
from shared.errors import (
    InvalidInputError,
    MalformedError,
    ManifestInvalidError,
    ReceiptInvalidError,
    TemplateWidensError,
    UnknownFieldError,
)
from shared.inheritance import Parent, Schemas, inherit, require_narrower
from shared.manifest import Capabilities, LlmCapability, decode_manifest, encode_manifest
from shared.order_codec import decode_order, encode_order, format_for
from shared.receipt_codec import encode_receipt
from shared.receipts import LLM_PREDICATE_TYPE, PREDICATE_TYPE, predicate_type_for
from shared.resources import ResourcesUsed
from tests.unit.shared.builders import a_manifest, a_receipt, an_order

LLM = LlmCapability(models=("local/small", "openai/gpt:4"), max_tokens=100, max_cost_micros=50)
ASKS = Capabilities(llm=LLM)
V2, V3 = "agentfactory.order.v2", "agentfactory.order.v3"
TOML = '[template]\nname = "a"\nversion = "1.0.0"\nmodule = "a.wasm"\n[capabilities.llm]\n'


def test_manifest_with_models_is_of_version_4_and_comes_back():
    manifest = a_manifest(capabilities=ASKS)
    encoded = encode_manifest(manifest)
    assert json.loads(encoded)["type"] == "agentfactory.template.v4"
    assert decode_manifest(encoded) == manifest
    extending = replace(manifest, extends=Parent.of(encoded).line)
    assert decode_manifest(encode_manifest(extending)) == extending


@pytest.mark.parametrize("version", ["agentfactory.template.v2", "agentfactory.template.v3"])
def test_older_manifests_say_nothing_of_models(version):
    document = json.loads(encode_manifest(a_manifest(capabilities=ASKS)))
    document["type"] = version
    with pytest.raises((ManifestInvalidError, UnknownFieldError)):
        decode_manifest(canonical_json(document))


def test_manifest_of_version_4_has_the_capability():
    document = json.loads(encode_manifest(a_manifest()))
    document["type"] = "agentfactory.template.v4"
    with pytest.raises(ManifestInvalidError):
        decode_manifest(canonical_json(document))


@pytest.mark.parametrize(
    "lines",
    [
        "max_tokens = 1",
        "models = []\nmax_tokens = 1",
        'models = ["small"]\nmax_tokens = 1',
        'models = ["a/b", "a/b"]\nmax_tokens = 1',
        'models = ["A/b"]\nmax_tokens = 1',
        'models = ["a/"]\nmax_tokens = 1',
        'models = ["a/*"]\nmax_tokens = 1',
        'models = ["a/b"]',
        'models = ["a/b"]\nmax_tokens = 0',
        'models = ["a/b"]\nmax_tokens = 100000001',
        'models = ["a/b"]\nmax_tokens = 1\nmax_cost_micros = 0',
        'models = ["a/b"]\nmax_tokens = 1\nmore = 1',
    ],
)
def test_a_capability_that_is_none_is_refused(lines):
    with pytest.raises((ManifestInvalidError, UnknownFieldError)):
        parse_agent_toml((TOML + lines).encode())


def extended(lines: str, parent=LLM):
    base = Parent.of(encode_manifest(a_manifest(name="base", capabilities=Capabilities(llm=parent))))
    text = f'[template]\nname = "b"\nversion = "1.0.0"\nextends = "{base.manifest.full_name}"\n{lines}'
    made = inherit(parse_agent_toml(text.encode()), Schemas(), None, base)
    require_narrower(made, base)
    return made.capabilities.llm


def test_a_child_gets_its_parents_models_or_asks_for_fewer():
    assert extended("") == LLM
    fewer = extended('[capabilities.llm]\nmodels = ["local/small"]\nmax_tokens = 100\nmax_cost_micros = 1\n')
    assert fewer == LlmCapability(models=("local/small",), max_tokens=100, max_cost_micros=1)


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ('models = ["local/large"]\nmax_tokens = 1\nmax_cost_micros = 1', "local/large"),
        ('models = ["local/small"]\nmax_tokens = 101\nmax_cost_micros = 1', "max_tokens 101 > 100"),
        ('models = ["local/small"]\nmax_tokens = 1\nmax_cost_micros = 51', "max_cost_micros 51 > 50"),
        ('models = ["local/small"]\nmax_tokens = 1', "max_cost_micros any number > 50"),
    ],
)
def test_a_child_asks_for_no_more_of_models(lines, place):
    with pytest.raises(TemplateWidensError, match=place):
        extended(f"[capabilities.llm]\n{lines}\n")


def test_a_child_of_a_parent_without_models_has_none():
    with pytest.raises(TemplateWidensError, match=r"capabilities\.llm"):
        extended('[capabilities.llm]\nmodels = ["a/b"]\nmax_tokens = 1\n', parent=None)


def test_order_that_grants_models_is_of_version_3_and_no_other_is():
    order = an_order(format=V3, capabilities=ASKS, host_call_grants=ASKS.host_call_grants)
    assert decode_order(encode_order(order)) == order
    assert order.host_call_grants == ("llm.complete",)
    assert format_for(V3, ASKS) == V3
    assert format_for(V3, Capabilities(kv=True)) == V2
    for wrong in (an_order(format=V3), an_order(format=V2, capabilities=ASKS)):
        with pytest.raises(InvalidInputError, match="llm"):
            encode_order(wrong)


def test_order_of_version_2_that_grants_models_is_not_read():
    forged = orders_pb2.Order.FromString(encode_order(an_order(format=V3, capabilities=ASKS)))
    forged.type = V2
    with pytest.raises(MalformedError, match="llm"):
        decode_order(forged.SerializeToString(deterministic=True))


def test_only_receipts_of_version_3_tell_of_models():
    assert predicate_type_for(V3) == LLM_PREDICATE_TYPE
    used = ResourcesUsed(llm_tokens=5, llm_cost_micros=7)
    assert b'"llm_tokens":5' in encode_receipt(a_receipt(type=LLM_PREDICATE_TYPE, resources=used))
    with pytest.raises(ReceiptInvalidError, match="check 7"):
        encode_receipt(a_receipt(type=PREDICATE_TYPE, resources=used))
