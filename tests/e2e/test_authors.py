"""From an author's folder to a result: new, build, sign, publish, run, by the command line alone."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.e2e.stack import running_stack
from tests.e2e.test_llm import node_settings
from tests.fixtures.llm_endpoint import completion, model_server
from tests.fixtures.runtimes import Author, runtime_folder

ASKS = {
    "python": """
from agentfactory_guest import Host, HostError, Tool

ADD = Tool("add", "Adds two numbers.", {"type": "object"})


def run(input: dict, host: Host) -> dict:
    messages = [{"role": "user", "content": "two and two?"}]
    first = host.llm.complete("local/small", messages, tools=[ADD], max_tokens=40, temperature=0.5)
    (asked,) = first.tool_calls
    messages += [first.message, asked.answer(sum(asked.json()["numbers"]))]
    said = host.llm.complete("local/small", messages, max_tokens=40)
    try:
        host.llm.complete("local/small", "and then?", max_tokens=1000)
    except HostError as error:
        return {"tool": asked.name, "text": said.text, "spent": 1000 - said.left_tokens, "refused": error.reason}
    return {}
""",
    "javascript": """
const add = { name: "add", description: "Adds two numbers.", parameters: { type: "object" } };

export function run(input, host) {
  const messages = [{ role: "user", content: "two and two?" }];
  const first = host.llm.complete("local/small", messages, { tools: [add], maxTokens: 40, temperature: 0.5 });
  const [asked] = first.toolCalls;
  messages.push(first.message, asked.answer(JSON.parse(asked.arguments).numbers.reduce((a, b) => a + b)));
  const said = host.llm.complete("local/small", messages, { maxTokens: 40 });
  try {
    host.llm.complete("local/small", "and then?", { maxTokens: 1000 });
  } catch (error) {
    return { tool: asked.name, text: said.text, spent: 1000 - said.left.tokens, refused: error.reason };
  }
}
""",
    "c": r"""
#include <stdio.h>
#include "agentfactory.h"

int main(void) {
    const char *tools = "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{\"type\":\"object\"}}}]";
    char messages[512];
    snprintf(messages, sizeof messages, "[{\"role\":\"user\",\"content\":\"two and two?\"}],%s,\"temperature\":0.5", tools);
    const char *first = agentfactory_member(agentfactory_llm_complete("local/small", messages, 40), "ok");
    const char *calls = agentfactory_member(agentfactory_member(first, "message"), "tool_calls");
    char *tool = agentfactory_text(agentfactory_member(agentfactory_member(calls + 1, "function"), "name"));
    snprintf(messages, sizeof messages, "[{\"role\":\"user\",\"content\":\"two and two?\"},"
             "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"4\"}]");
    const char *said = agentfactory_member(agentfactory_llm_complete("local/small", messages, 40), "ok");
    char *text = agentfactory_text(agentfactory_member(agentfactory_member(said, "message"), "content"));
    long left = strtol(agentfactory_member(agentfactory_member(said, "left"), "tokens"), NULL, 10);
    const char *no = agentfactory_llm_complete("local/small", "[{\"role\":\"user\",\"content\":\"and then?\"}]", 1000);
    char *reason = agentfactory_text(agentfactory_member(agentfactory_member(no, "error"), "reason"));
    char *quoted = agentfactory_quoted(text);
    printf("{\"tool\":\"%s\",\"text\":%s,\"spent\":%ld,\"refused\":\"%s\"}", tool, quoted, 1000 - left, reason);
    return 0;
}
""",
}
SAID = 'four \u2013 "4", \U0001f600\n'


@pytest.mark.timeout(300)
async def test_an_author_goes_from_a_folder_to_a_result(tmp_path: Path) -> None:
    runtimes = await asyncio.to_thread(runtime_folder, "javascript")
    async with running_stack() as stack:
        target = f"localhost:{stack.ports.grpc}"
        data = str(stack.paths.data_dir)
        author = Author(tmp_path, runtimes, AF_CLI_DATA_DIR=data, AF_CLI_TARGET=target)
        for words in (
            ("new", "words", "--lang", "javascript"),
            ("build", "words"),
            ("sign", "words"),
            ("publish", "words"),
        ):
            await asyncio.to_thread(author, *words)
        again = await asyncio.to_thread(author, "publish", "words")
        assert (
            "agent update words --template words@0.1.0" not in again.stderr
        )  # the same agent is no conflict
        case = "words/tests/hello.input.json"
        done = await asyncio.to_thread(author, "run", "words", "--input", case)
        assert json.loads(done.stdout) == {"words": 6, "most_common": ["to", "be", "or"]}
        wrong = tmp_path / "wrong.json"
        wrong.write_text('{"text": 7}')
        await asyncio.to_thread(_refused, author, wrong)


def _refused(author: Author, body: Path) -> None:
    """What the agent's own schema refuses never runs."""
    said = author("run", "words", "--input", str(body), expect=2).stderr
    assert "INVALID_INPUT" in said


@pytest.mark.timeout(600)
async def test_agents_of_each_language_ask_a_model_through_a_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AF_CONTROL_ALLOWED_LLM", json.dumps(["local/small"]))
    runtimes = await asyncio.to_thread(runtime_folder, "javascript", "python")
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"numbers": [2, 2]}'}}

    def answer(body: dict) -> bytes:
        if "tools" in body:
            return completion(None, tool_calls=[call], finish="tool_calls")
        return completion(SAID if body["messages"][-1]["content"] == "4" else "what?")

    async with model_server() as server, running_stack(**node_settings(server, tmp_path)) as stack:
        server.answer = answer
        target, data = f"localhost:{stack.ports.grpc}", str(stack.paths.data_dir)
        author = Author(tmp_path, runtimes, AF_CLI_DATA_DIR=data, AF_CLI_TARGET=target)
        for language, source in ASKS.items():
            said = await asyncio.to_thread(_ask, author, language, source)
            assert said == {"tool": "add", "text": SAID, "spent": 30, "refused": "BUDGET_EXHAUSTED"}
        assert [heard.body["max_tokens"] for heard in server.heard] == [40] * 6
        assert [heard.body.get("temperature") for heard in server.heard] == [0.5, None] * 3


def _ask(author: Author, language: str, source: str) -> object:
    folder = author.folder(f"asks-{language}", language, source)
    toml = (folder / "agent.toml").read_text()
    llm = '[capabilities]\nllm = { models = ["local/small"], max_tokens = 1000 }\n'
    toml = toml.replace("[capabilities]\n", llm).replace("wall_ms = 2000", "wall_ms = 60000")
    (folder / "agent.toml").write_text(toml)
    for command in ("build", "sign", "publish"):
        author(command, folder.name)
    body = author.home / "empty.json"
    body.write_text("{}")
    return json.loads(author("run", folder.name, "--input", str(body)).stdout)
