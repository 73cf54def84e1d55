"""What agents are as tools: schemas, input, results and errors."""

import base64
import json

import jsonschema
import pytest
from agentfactory.v1 import agents_pb2, executions_pb2

from cli.mcp_http import require_loopback
from cli.mcp_tools import AgentTool, to_body, to_error, to_result, to_tool
from shared.errors import InvalidInputError, SettingsError
from shared.manifest import Capabilities, HttpCapability, LlmCapability
from shared.schemas import JsonSchema
from tests.unit.shared.builders import a_manifest

AGENT = agents_pb2.Agent(name="desk", template_name="redact", template_version="1.0.0")
DEFINED = {"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}


def a_tool(*, media_type="application/json", capabilities=None, **schemas) -> AgentTool:
    made = {f"{name}_schema": JsonSchema.from_object(schema) for name, schema in schemas.items()}
    manifest = a_manifest(media_type=media_type, capabilities=capabilities or Capabilities(), **made)
    return AgentTool(agent=AGENT, manifest=manifest)


def ended(**changes) -> executions_pb2.Execution:
    said = {"execution_id": "exe_1", "agent_name": "desk", "state": executions_pb2.EXECUTION_STATE_SUCCEEDED}
    return executions_pb2.Execution(**(said | changes))


def test_an_object_is_the_arguments():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = a_tool(input=schema)
    assert to_tool(tool).input_schema == schema
    assert to_body(tool, {"a": 1}) == b'{"a":1}'


def test_a_child_of_an_object_is_one():
    schema = {"allOf": [{"type": "object"}, {"required": ["a"]}]}
    assert to_tool(a_tool(input=schema)).input_schema == {"type": "object", **schema}


def test_anything_else_is_one_argument_and_its_references_still_lead_somewhere():
    tool = a_tool(input=DEFINED)
    schema = to_tool(tool).input_schema
    jsonschema.validate({"input": [1, 2]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"input": ["x"]}, schema)
    assert to_body(tool, {"input": [1, 2]}) == b"[1,2]"


def test_without_a_schema_any_value_is_the_input():
    tool = a_tool()
    assert to_body(tool, {"input": None}) == b"null"
    assert to_tool(tool).output_schema is None


@pytest.mark.parametrize("arguments", [{}, {"a": 1}, {"input": 1, "more": 2}])
def test_other_arguments_are_none(arguments):
    with pytest.raises(InvalidInputError, match="one argument, input"):
        to_body(a_tool(), arguments)


def test_text_is_text_and_bytes_are_base64():
    assert to_body(a_tool(media_type="text/plain"), {"input": "é"}) == "é".encode()
    image = a_tool(media_type="image/png")
    assert to_body(image, {"input_base64": "AAE="}) == b"\x00\x01"
    for wrong in ("*", 7):
        with pytest.raises(InvalidInputError):
            to_body(image, {"input_base64": wrong})
    blob = to_result(image, ended(), b"\x00\x01").content[0].resource
    assert (blob.mime_type, base64.b64decode(blob.blob)) == ("image/png", b"\x00\x01")


def test_an_output_that_is_no_object_is_a_result():
    tool = a_tool(output=DEFINED)
    said = to_result(tool, ended(), b"[1,2]")
    assert said.structured_content == {"result": [1, 2]}
    jsonschema.validate(said.structured_content, to_tool(tool).output_schema)
    assert said.content[0].text == "[1,2]"


def test_the_output_of_what_did_not_succeed_is_no_result():
    said = to_result(
        a_tool(output=DEFINED), ended(state=executions_pb2.EXECUTION_STATE_KILLED, limit="wall_ms"), b""
    )
    assert said.is_error
    assert said.structured_content is None
    assert "killed (wall_ms)" in said.content[0].text


def test_an_error_says_what_is_wrong_and_what_to_do():
    error = InvalidInputError("not so", hint="do it so")
    said = to_error(error, execution_id="exe_1")
    assert said.is_error
    assert said.content[0].text == "error: not so [INVALID_INPUT]\nhint:  do it so"
    assert said.meta == {"agentfactory.dev/reason": "INVALID_INPUT", "agentfactory.dev/execution-id": "exe_1"}


@pytest.mark.parametrize(
    ("capabilities", "only_reads", "is_open"),
    [
        (Capabilities(), True, False),
        (Capabilities(kv=True), False, False),
        (Capabilities(http=(HttpCapability(method="GET", url="https://a.test/"),)), True, True),
        (Capabilities(http=(HttpCapability(method="POST", url="https://a.test/"),)), False, True),
        (Capabilities(llm=LlmCapability(models=("a/b",), max_tokens=1)), False, True),
    ],
)
def test_hints_are_what_the_manifest_allows(capabilities, only_reads, is_open):
    hints = to_tool(a_tool(capabilities=capabilities)).annotations
    assert (hints.read_only_hint, hints.open_world_hint) == (only_reads, is_open)


def test_a_tool_can_be_told():
    told = json.loads(to_tool(a_tool()).model_dump_json(by_alias=True, exclude_none=True))
    assert told["_meta"]["agentfactory.dev/template"] == "redact@1.0.0"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_tokens_may_travel_within_the_machine(host):
    require_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.test", "127.0.0.1.example.test"])
def test_tokens_never_travel_in_clear(host):
    with pytest.raises(SettingsError, match="in clear"):
        require_loopback(host)
