"""Three levels of templates through the whole system, as their authors and callers see them."""

import base64
import json
from pathlib import Path

import grpc
import pytest
import wasmtime
from agentfactory.v1 import executions_pb2

from cli.agents import create_with
from cli.templates import publish_with
from shared.inheritance import Parent
from shared.key_files import read_private_key
from shared.package_files import build_package, read_unsigned_package, write_envelope, write_package
from shared.packages import sign_package
from shared.rpc.errors import error_of
from shared.signatures import FileSigner
from tests.e2e.stack import TestStack, running_stack

ECHO = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 4096))
    (loop $more
      (i32.store (i32.const 4) (i32.const 65536))
      (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
      (if (i32.load (i32.const 8)) (then
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
        (br $more))))))
"""
"""Its output is its input, so that a test chooses both."""

PARAMETERS = {
    "type": "object",
    "properties": {"level": {"enum": ["low", "high"], "default": "low"}, "token": {"format": "secret-ref"}},
}
INPUT = {"type": "object", "properties": {"depth": {"type": "integer"}}, "required": ["depth"]}
OUTPUT = {"properties": {"depth": {"maximum": 5}}}


def write_template(folder: Path, toml: str, **schemas: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "agent.toml").write_text(toml)
    for name, schema in schemas.items():
        (folder / f"{name}.json").write_text(json.dumps(schema))
    return folder


async def publish(stack: TestStack, package: Path) -> None:
    signer = FileSigner(key=read_private_key(stack.paths.publisher_key))
    write_envelope(package, (await sign_package(read_unsigned_package(package), [signer])).envelope)
    async with stack.client() as client:
        await publish_with(client, package)


async def build(stack: TestStack, source: Path, parent: Path | None) -> Path:
    found = None if parent is None else Parent.of(read_unsigned_package(parent).manifest_bytes)
    package = write_package(build_package(source, found), stack.folder / "sources")
    await publish(stack, package)
    return package


async def publish_three(stack: TestStack) -> None:
    sources = stack.folder / "sources"
    base = write_template(
        sources / "base",
        '[template]\nname = "base"\nversion = "1.0.0"\nmodule = "echo.wasm"\n'
        '[parameters]\nschema = "parameters.json"\ninput_schema = "input.json"\n'
        '[limits]\nwall_ms = 2000\n[capabilities]\nsecrets = ["token"]\n',
        parameters=PARAMETERS,
        input=INPUT,
    )
    (base / "echo.wasm").write_bytes(bytes(wasmtime.wat2wasm(ECHO)))
    package = await build(stack, base, None)
    middle = write_template(
        sources / "middle",
        '[template]\nname = "middle"\nversion = "1.0.0"\nextends = "base@1.0.0"\n'
        '[parameters]\nschema = "parameters.json"\n[limits]\nwall_ms = 1500\n',
        parameters={"required": ["level"], "properties": {"level": {"default": "high"}}},
    )
    await build(stack, middle, package)
    leaf = write_template(
        sources / "leaf",
        '[template]\nname = "leaf"\nversion = "1.0.0"\nextends = "middle@1.0.0"\n'
        '[parameters]\noutput_schema = "output.json"\n',
        output=OUTPUT,
    )
    built = await stack.cli("template", "build", str(leaf), "--out", str(sources))
    assert "extends middle@1.0.0 → base@1.0.0" in built.err
    await publish(stack, Path(built.out.strip()))


@pytest.mark.timeout(300)  # commands are processes of their own
async def test_three_levels_from_agent_toml_to_the_receipt() -> None:
    async with running_stack(AF_NODE_SLOTS="1") as stack:
        await publish_three(stack)
        await _parameters_of_all_levels(stack)
        await _input_and_output(stack)
        await _wider_and_missing(stack)
        await _children_follow(stack)


async def _parameters_of_all_levels(stack: TestStack) -> None:
    wrong = '{"level":"no","token":"hunter2"}'
    arguments = ("agent", "create", "desk", "--template", "leaf@1.0.0", "--parameters")
    refused = await stack.cli(*arguments, wrong, "--json", expect=2)
    fields = {one["field"]: one["description"] for one in refused.json()["error"]["violations"]}
    assert fields == {
        "parameters/level": 'expected one of "low", "high", got string of 2 characters',
        "parameters/token": 'expected a reference to a secret: {"secret": NAME}, got string of 7 characters',
    }
    assert "hunter2" not in refused.out + refused.err
    async with stack.client() as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create_with(client, "desk", "leaf@1.0.0", b'{"token":{"secret":"root"}}')
    (violation,) = error_of(caught.value).violations
    assert violation.field == "parameters/token"
    assert "the name of a secret that the template's capabilities list" in violation.description
    async with stack.client() as client:
        agent = await create_with(client, "desk", "leaf@1.0.0", b'{"token":{"secret":"token"}}')
    assert agent.parameters == b'{"level":"high","token":{"secret":"token"}}'


async def _input_and_output(stack: TestStack) -> None:
    execution, output = await stack.execute("desk", b'{"depth":3}')
    assert (execution.state, output) == (executions_pb2.EXECUTION_STATE_SUCCEEDED, b'{"depth":3}')

    refused = await stack.cli("run", "desk", "--input", "-", "--json", stdin=b'{"depth":"x"}', expect=2)
    assert refused.json()["error"]["violations"] == [
        {"field": "input/depth", "description": "expected integer, got string of 1 characters"}
    ]

    execution, output = await stack.execute("desk", b'{"depth":6}')
    assert (execution.state, output) == (executions_pb2.EXECUTION_STATE_TRAPPED, b"")
    assert execution.trap == "OUTPUT_INVALID: the output does not fit its template's schema"
    logs = await stack.cli("execution", "logs", execution.execution_id)
    assert logs.out == "agentfactory: output/depth: expected at most 5, got integer\n"
    receipt = await stack.cli("receipt", "get", execution.execution_id, "--json")
    envelope = json.loads(base64.b64decode(receipt.json()["envelope"]))
    predicate = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    assert (predicate["outcome"], predicate["trap"]) == ("trapped", execution.trap)


async def _wider_and_missing(stack: TestStack) -> None:
    toml = '[template]\nname = "wide"\nversion = "1.0.0"\nextends = "{}"\n[limits]\nwall_ms = 1800\n'
    for number, (extends, reason, words) in enumerate(
        (
            ("leaf@1.0.0", "TEMPLATE_WIDENS", "limits.wall_ms: 1800 > 1500 of leaf@1.0.0"),
            ("leaf@9.0.0", "PARENT_MISSING", "leaf@9.0.0 is not published here"),
        )
    ):
        source = write_template(stack.folder / "sources" / f"wide-{number}", toml.format(extends))
        refused = await stack.cli("template", "build", str(source), "--json", expect=3)
        assert refused.json()["error"]["reason"] == reason
        assert words in refused.json()["error"]["message"]


async def _children_follow(stack: TestStack) -> None:
    await stack.cli("template", "revoke", "base@1.0.0", "--reason", "leak")
    refused = await stack.cli("run", "desk", "--input", "-", "--json", stdin=b'{"depth":1}', expect=3)
    assert refused.json()["error"]["reason"] == "TEMPLATE_REVOKED"
