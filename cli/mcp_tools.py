"""Agents as tools of the Model Context Protocol: schemas, input, and what came out. Does no I/O."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import mcp_types as types
from agentfactory.v1 import executions_pb2

from cli.run import outcome
from shared.canonical import JsonObject
from shared.errors import AgentFactoryError, InvalidInputError
from shared.manifest import Manifest
from shared.schemas import JsonSchema

if TYPE_CHECKING:
    from agentfactory.v1 import agents_pb2

MAX_RESULT_BYTES: Final = 1024 * 1024
"""Of an output that becomes a tool's result; whoever needs a larger one fetches it by its execution."""
META: Final = "agentfactory.dev/"
"""Before the names of what results and tools carry in `_meta`."""
REQUEST_ID: Final = META + "request-id"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTool:
    """One agent and what its signed manifest says about input and output."""

    agent: "agents_pb2.Agent"
    manifest: Manifest

    @property
    def is_json(self) -> bool:
        kind = self.manifest.media_type
        return kind == "application/json" or kind.endswith("+json")

    @property
    def is_text(self) -> bool:
        return self.manifest.media_type.startswith("text/")


def to_tool(tool: AgentTool) -> types.Tool:
    """Return how clients are told of an agent."""
    manifest, agent = tool.manifest, tool.agent
    output = manifest.output_schema
    return types.Tool(
        name=agent.name,
        description=_description(tool),
        input_schema=_input_schema(tool),
        output_schema=_as_object(output.to_object(), "result") if output is not None else None,
        annotations=_annotations(manifest),
        _meta={
            META + "template": f"{agent.template_name}@{agent.template_version}",
            META + "template-digest": agent.template_digest,
            META + "media-type": manifest.media_type,
        },
    )


def to_body(tool: AgentTool, arguments: Mapping[str, Any]) -> bytes:
    """Return an execution's input from a call's arguments.

    Raises:
        InvalidInputError: They are not what the tool's schema asks for as a whole. What is within is judged
            by the control plane.
    """
    if tool.is_json:
        schema = tool.manifest.input_schema
        if schema is not None and _is_object(schema.to_object()):
            return _dump(arguments)
        return _dump(_only(arguments, "input"))
    name = "input" if tool.is_text else "input_base64"
    value = _only(arguments, name)
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} is not a string", hint=f"call it with {{{name!r}: …}}")
    try:
        return value.encode() if tool.is_text else base64.b64decode(value, validate=True)
    except ValueError as error:
        raise InvalidInputError(f"{name} is not {'text' if tool.is_text else 'base64'}") from error


def to_result(tool: AgentTool, execution: executions_pb2.Execution, output: bytes) -> types.CallToolResult:
    """Return what a call of a tool came to; everything but success is the tool's error."""
    meta = {
        META + "execution-id": execution.execution_id,
        META + "receipt-id": execution.receipt_id,
    }
    if execution.state != executions_pb2.EXECUTION_STATE_SUCCEEDED:
        text = (
            f"error: {execution.agent_name} {outcome(execution)}\n"
            f"hint:  agentfactory execution show {execution.execution_id}"
        )
        return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True, _meta=meta)
    content: types.ContentBlock
    if tool.is_json or tool.is_text:
        content = types.TextContent(text=output.decode(errors="replace"))
    else:
        content = types.EmbeddedResource(
            resource=types.BlobResourceContents(
                uri=f"agentfactory://executions/{execution.execution_id}/output",
                mime_type=tool.manifest.media_type,
                blob=base64.b64encode(output).decode(),
            )
        )
    structured = _structured(tool.manifest.output_schema, output)
    return types.CallToolResult(content=[content], structured_content=structured, _meta=meta)


def to_error(error: AgentFactoryError, *, execution_id: str = "") -> types.CallToolResult:
    """Return a refusal or a failure as the tool's error: our reason, what is wrong and what to do next."""
    reason = str(getattr(error, "remote_reason", error.reason))
    lines = [f"error: {error} [{reason}]"]
    lines += [f"       {one.field}: {one.description}" for one in error.violations]
    if error.hint:
        lines.append(f"hint:  {error.hint}")
    meta = {META + "reason": reason} | ({META + "execution-id": execution_id} if execution_id else {})
    return types.CallToolResult(content=[types.TextContent(text="\n".join(lines))], is_error=True, _meta=meta)


def _description(tool: AgentTool) -> str:
    schema = tool.manifest.input_schema
    said = schema.to_object().get("description") if schema is not None else None
    runs = (
        f"Agent {tool.agent.name} of template {tool.agent.template_name}@{tool.agent.template_version}, "
        "run in a sandbox."
    )
    return f"{said}\n\n{runs}" if isinstance(said, str) and said else runs


def _annotations(manifest: Manifest) -> types.ToolAnnotations:
    """Say what the manifest lets an agent do: it is signed, and nodes hold agents to it."""
    capabilities = manifest.capabilities
    is_safe = all(http.method in _SAFE_METHODS for http in capabilities.http)
    asks_models = capabilities.llm is not None
    return types.ToolAnnotations(
        read_only_hint=is_safe and not capabilities.kv and not asks_models,
        open_world_hint=bool(capabilities.http) or asks_models,
    )


def _input_schema(tool: AgentTool) -> JsonObject:
    if not tool.is_json:
        name, kind = ("input", "text") if tool.is_text else ("input_base64", "base64")
        said = {"type": "string", "description": f"{tool.manifest.media_type}, as {kind}"}
        return _wrapped(said, name)
    schema = tool.manifest.input_schema
    return _as_object(schema.to_object() if schema is not None else {}, "input")


def _as_object(schema: JsonObject, name: str) -> JsonObject:
    """Return a schema whose root says that it is of an object: the protocol has no other arguments."""
    if _is_object(schema):
        return {"type": "object", **schema}
    return _wrapped(schema, name)


def _wrapped(schema: JsonObject, name: str) -> JsonObject:
    inner = {key: value for key, value in schema.items() if key not in {"$defs", "$schema", "$id"}}
    # References are `#/$defs/…`, from the root: definitions stay there.
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {
        "type": "object",
        "properties": {name: inner},
        "required": [name],
        "additionalProperties": False,
        **definitions,
    }


def _is_object(schema: object) -> bool:
    if not isinstance(schema, dict):
        return False
    if "type" in schema:
        return bool(schema["type"] == "object")
    parts = schema.get("allOf")
    return isinstance(parts, list) and any(_is_object(part) for part in parts)


def _only(arguments: Mapping[str, Any], name: str) -> Any:
    if arguments.keys() != {name}:
        raise InvalidInputError(
            f"the tool has one argument, {name}", hint=f"call it with {{{name!r}: …}} and nothing else"
        )
    return arguments[name]


def _structured(schema: JsonSchema | None, output: bytes) -> Any:
    if schema is None:
        return None
    value = json.loads(output)  # it kept to its schema, or would not have succeeded
    return value if _is_object(schema.to_object()) else {"result": value}


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
