"""The embedded engine under policies that mean harm, and built-ins with a guard."""

import json
import time

import pytest

from control_plane.policy.domain import MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES, PolicyBundle
from control_plane.policy.embedded import EmbeddedPolicyEngines
from shared.errors import PolicyInvalidError, PolicyUndecidedError

ENDS_WITHIN_SECONDS = 10
"""Stated for a busy machine; the bound of one evaluation is 100 ms."""


async def evaluated(expression: str, **asked: object) -> object:
    bundle = PolicyBundle.of({"a.rego": f"package agentfactory\n\nx := {expression}\n"}, {})
    engine = await EmbeddedPolicyEngines().load(bundle)
    return json.loads((await engine.evaluate("data.agentfactory.x", json.dumps(asked))).value_json)


@pytest.mark.parametrize(
    "expression",
    [
        "[1 | some a in numbers.range(1, 90000); some b in numbers.range(1, 90000); a * b == -1]",
        "numbers.range(1, 1000000000000)",
        "numbers.range_step(1, 1000000000000, 2)",
        "numbers.range(1, 9007199254740991)",
        'sprintf("%999999999d", [1])',
        'regex.match("(a|a)*{1000}", "aaaa")',
        'to_number("1e999999999")',
    ],
)
async def test_what_would_not_end_or_take_all_memory_is_an_error_soon(expression):
    started = time.monotonic()
    with pytest.raises(PolicyUndecidedError):
        await evaluated(expression)
    assert time.monotonic() - started < ENDS_WITHIN_SECONDS


async def test_text_that_doubles_without_end_is_ended_by_the_clock():
    doubled = "".join(f'd{number} := concat("", [d{number - 1}, d{number - 1}])\n' for number in range(1, 33))
    source = f'package agentfactory\n\nd0 := "0123456789abcdef"\n{doubled}x := count(d32)\n'
    engine = await EmbeddedPolicyEngines().load(PolicyBundle.of({"a.rego": source}, {}))
    started = time.monotonic()
    with pytest.raises(PolicyUndecidedError):
        await engine.evaluate("data.agentfactory.x", "{}")
    assert time.monotonic() - started < ENDS_WITHIN_SECONDS


@pytest.mark.parametrize(
    ("expression", "asked"),
    [
        ("regex.match(`^\\d+$`, input.a)", {"a": "٣"}),
        ("regex.match(`(?i)k`, input.a)", {"a": "\u212a"}),
        ("regex.match(`[[a]]`, input.a)", {"a": "a"}),
        ("regex.match(`[a-z&&[b]]`, input.a)", {"a": "a"}),
        ("regex.match(`\\<a`, input.a)", {"a": "a"}),
        ("upper(input.a)", {"a": "ß"}),
        ("lower(input.a)", {"a": "İ"}),
        ('sprintf("%f", [input.a])', {"a": 1}),
        ('sprintf("%s", [input.a])', {"a": 1}),
        ('sprintf("%d", [input.a])', {"a": "x"}),
        ('glob.match("{a,}x", [], input.a)', {"a": "x"}),
        ('replace(input.a, "", "x")', {"a": "日本"}),
        ('indexof(input.a, "")', {"a": "a"}),
        ("object.subset(input.a, input.a)", {"a": "text"}),
        ("to_number(input.a)", {"a": "0x10"}),
    ],
)
async def test_arguments_that_opa_answers_otherwise_are_refused(expression, asked):
    with pytest.raises(PolicyUndecidedError):
        await evaluated(expression, **asked)


@pytest.mark.parametrize(
    ("expression", "asked", "answer"),
    [
        ("regex.match(`^\\d+$`, input.a)", {"a": "123"}, True),
        ("regex.match(`^[a-zä]+$`, input.a)", {"a": "ä"}, True),
        ("upper(input.a)", {"a": "äé"}, "ÄÉ"),
        ('sprintf("%05d %v %s", [input.a, ["b"], "c"])', {"a": 7}, '00007 ["b"] c'),
        ('glob.match("*.{test,example}", ["."], input.a)', {"a": "a.test"}, True),
        ("object.subset(input.a, {})", {"a": {"b": 1}}, True),
        ("to_number(input.a)", {"a": "-12"}, -12),
    ],
)
async def test_other_arguments_pass_the_guards(expression, asked, answer):
    assert await evaluated(expression, **asked) == answer


async def test_the_message_of_a_refusal_names_file_line_and_way_out():
    bundle = PolicyBundle.of({"a.rego": "package agentfactory\n\nx := walk(1)\n\ny := 1.5\n"}, {})
    with pytest.raises(
        PolicyInvalidError, match=r"a\.rego:3:\d+: walk .*; a\.rego:5:\d+: 1\.5 .*an OPA server"
    ):
        await EmbeddedPolicyEngines().load(bundle)


def test_bundles_are_bounded():
    text = "package agentfactory\n"
    PolicyBundle.of({f"{number}.rego": text for number in range(MAX_BUNDLE_FILES)}, {})
    with pytest.raises(PolicyInvalidError, match="65 Rego files"):
        PolicyBundle.of({f"{number}.rego": text for number in range(MAX_BUNDLE_FILES + 1)}, {})
    with pytest.raises(PolicyInvalidError, match="0 Rego files"):
        PolicyBundle.of({}, {})
    with pytest.raises(PolicyInvalidError, match=f"the bound is {MAX_BUNDLE_BYTES}"):
        PolicyBundle.of({"a.rego": text + "#" * 50 * 1024 * 1024}, {})


def test_the_digest_is_of_every_path_text_and_value():
    base = {"a.rego": "package a\n", "b.rego": "package b\n"}
    others = [
        PolicyBundle.of(base, {}),
        PolicyBundle.of(base, {"x": 1}),
        PolicyBundle.of({"a.rego": "package b\n", "b.rego": "package a\n"}, {}),
        PolicyBundle.of({"a.rego": "package a\n", "c.rego": "package b\n"}, {}),
    ]
    assert len({bundle.digest for bundle in others}) == len(others)
    assert PolicyBundle.of(dict(reversed(base.items())), {}).digest == others[0].digest
