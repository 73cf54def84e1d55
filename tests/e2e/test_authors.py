"""From an author's folder to a result: new, build, sign, publish, run, by the command line alone."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.e2e.stack import running_stack
from tests.fixtures.runtimes import Author, runtime_folder


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
