"""The node's own policy: what it may say, what counts as no, and which files keep a node from starting."""

import time
from dataclasses import replace

import pytest

from data_plane.orders.policy import UNDECIDED, NodePolicy, load_node_policy
from shared.errors import OrderRejectedError, RejectionReason, SettingsError
from tests.unit.data_plane.builders import order

HEAD = "package agentfactory\nimport rego.v1\n"
BY_TENANT = (
    HEAD
    + 'accept_order := {"allowed": true, "reason": "ALLOWED"} if input.tenant_id in data.tenants\n'
    + 'else := {"allowed": false, "reason": "TENANT_NOT_HERE"}\n'
)


def refused(policy, one) -> str:
    with pytest.raises(OrderRejectedError) as rejected:
        policy.check(one)
    assert rejected.value.rejection is RejectionReason.POLICY
    assert policy.digest in str(rejected.value)
    return str(rejected.value)


def test_without_a_file_every_valid_order_is_accepted():
    load_node_policy(None, None).check(order())


def test_the_operator_says_which_tenants_run_here(tmp_path):
    policy, data = tmp_path / "node.rego", tmp_path / "node.json"
    policy.write_text(BY_TENANT)
    one = order()
    data.write_text(f'{{"tenants": ["{one.tenant_id}"]}}')
    loaded = load_node_policy(policy, data)
    loaded.check(one)
    assert "TENANT_NOT_HERE" in refused(loaded, replace(one, tenant_id="other"))
    loaded.check(one)


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "accept_order := true",
        'accept_order := {"allowed": "yes", "reason": "YES"}',
        'accept_order := {"allowed": true}',
        'accept_order := {"allowed": true, "reason": "ALLOWED"} if input.no_such_field',
        'accept_order := {"allowed": to_number("x") == 1, "reason": "BUILTIN"}',
        'accept_order := {"allowed": true, "reason": "LOOP"} if count([1 | some x in numbers.range(1, 3000); some y in numbers.range(1, 3000); x == y]) > 0',
    ],
)
def test_whatever_is_no_answer_denies_within_its_time(rule):
    policy = NodePolicy(source=f"{HEAD}{rule}\n", data_json="{}", path="node.rego")
    began = time.monotonic()
    assert UNDECIDED in refused(policy, order())
    assert time.monotonic() - began < 5


def test_an_answer_is_remembered_by_all_that_the_policy_sees():
    source = HEAD + 'accept_order := {"allowed": input.input_bytes < 10, "reason": "SIZE"}\n'
    policy = NodePolicy(source=source, data_json="{}", path="node.rego")
    for _ in range(2):
        policy.check(order(input_bytes=9))
        assert "SIZE" in refused(policy, order(input_bytes=10))


def test_what_looks_at_a_clock_is_never_remembered():
    source = HEAD + 'accept_order := {"allowed": time.now_ns() > 0, "reason": "NOW"}\n'
    policy = NodePolicy(source=source, data_json="{}", path="node.rego")
    policy.check(order())
    assert not policy._remembered


@pytest.mark.parametrize(
    ("rego", "data"),
    [
        ("package agentfactory\naccept_order := {", "{}"),
        (None, "{}"),
        (BY_TENANT, "[]"),
        (BY_TENANT, '{"a": 1, "a": 2}'),
        ('package agentfactory\naccept_order := http.send({"url": "http://a.test"})', "{}"),
    ],
    ids=["no-rego", "no-file", "data-no-object", "data-twice", "network"],
)
def test_a_node_does_not_start_with_a_policy_that_it_cannot_use(tmp_path, rego, data):
    policy, data_file = tmp_path / "node.rego", tmp_path / "node.json"
    if rego is not None:
        policy.write_text(rego)
    data_file.write_text(data)
    with pytest.raises(SettingsError):
        load_node_policy(policy, data_file)


def test_data_without_a_policy_is_a_mistake(tmp_path):
    with pytest.raises(SettingsError):
        load_node_policy(None, tmp_path / "node.json")


def test_a_policy_behind_a_link_or_without_end_is_not_read(tmp_path):
    (tmp_path / "real.rego").write_text(BY_TENANT)
    (tmp_path / "link.rego").symlink_to(tmp_path / "real.rego")
    (tmp_path / "huge.rego").write_bytes(b"#" * (1024 * 1024 + 1))
    for name in ("link.rego", "huge.rego"):
        with pytest.raises(SettingsError):
            load_node_policy(tmp_path / name, None)
