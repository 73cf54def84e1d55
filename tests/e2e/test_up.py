"""`agentfactory up` as a person runs it: in the foreground, twice, with Ctrl-C, with a part that dies."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from cli.stack import postgres, probe
from tests.e2e.stack import ROOT, command

pytestmark = pytest.mark.timeout(180)

BOUND_SECONDS = 90


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="agentfactory-up-"))
    folder.chmod(0o711)
    yield folder / "data"
    postgres.remove(folder / "data")
    shutil.rmtree(folder)


class Up:
    """One `up` process and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.lines: list[str] = []

    async def wait_for(self, pattern: str) -> str:
        assert self.process.stderr is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(BOUND_SECONDS):
                while line := (await self.process.stderr.readline()).decode():
                    self.lines.append(line)
                    if re.search(pattern, line):
                        return line
        raise AssertionError(f"no line {pattern!r} in:\n{''.join(self.lines)}")

    async def end(self) -> int:
        async with asyncio.timeout(BOUND_SECONDS):
            _, rest = await self.process.communicate()
        self.lines += rest.decode().splitlines(keepends=True)
        assert self.process.returncode is not None
        return self.process.returncode

    def state(self) -> dict:
        return json.loads((self.data_dir / "up.json").read_text())

    async def cli(self, *arguments: str, expect: int = 0) -> str:
        done = await command(*arguments, environment={**os.environ, "AF_CLI_DATA_DIR": str(self.data_dir)})
        assert expect == done.code, done.err
        return done.out + done.err


@asynccontextmanager
async def up(data_dir: Path) -> AsyncIterator[Up]:
    options = (
        *("--port", "--enroll-port", "--admin-port", "--node-admin-port"),
        *("--rest-port", "--rest-admin-port"),
    )
    # All in one call: two calls may find the same port free.
    ports = probe.free_ports(len(options))
    arguments = [str(part) for option in zip(options, ports, strict=True) for part in option]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "up", "--data-dir", str(data_dir), *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        limit=1 << 20,
    )
    running = Up(process, data_dir)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_ctrl_c_stops_everything_in_order_and_a_second_up_finds_its_data(data_dir: Path) -> None:
    async with up(data_dir) as first:
        await first.wait_for("ready: control plane")
        assert "ready" in await first.cli("status")
        node = first.state()["node_id"]
        pids = [first.state()[f"{name}_pid"] for name in ("postgres", "control_plane", "node", "gateway")]
        first.process.send_signal(signal.SIGINT)
        assert await first.end() == 0
        stopped = [line for line in first.lines if "has stopped" in line]
        assert [re.search(r"\d (.*) has stopped", line)[1] for line in stopped] == [
            "node",
            "gateway",
            "control plane",
            "postgres",
        ]
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    async with up(data_dir) as second:
        await second.wait_for("ready: control plane")
        assert "installation is found" in "".join(second.lines)
        assert second.state()["node_id"] == node
        assert node in await second.cli("node", "list")
    # Kept for replays after an upgrade, once however often it starts.
    assert len(list((data_dir / "workers").glob("sha256-*"))) == 1


async def test_a_second_up_on_the_same_data_says_so(data_dir: Path) -> None:
    async with up(data_dir) as first:
        await first.wait_for("ready: control plane")
        async with up(data_dir) as second:
            assert await second.end() == 2
            assert "already as process" in "".join(second.lines)
        assert first.process.returncode is None


async def test_a_part_that_dies_ends_up_with_one_line_and_takes_the_others_along(data_dir: Path) -> None:
    async with up(data_dir) as stack:
        await stack.wait_for("ready: control plane")
        state = stack.state()
        os.kill(state["node_pid"], signal.SIGKILL)
        assert await stack.end() == 4, "".join(stack.lines)
        assert "error: node was ended by signal 9" in "".join(stack.lines)
        assert "Traceback" not in "".join(stack.lines)
        for name in ("postgres", "control_plane"):
            with pytest.raises(ProcessLookupError):
                os.kill(state[f"{name}_pid"], 0)


async def test_kill_9_of_up_leaves_no_process_behind_and_the_next_one_starts(data_dir: Path) -> None:
    async with up(data_dir) as first:
        await first.wait_for("ready: control plane")
        first.process.kill()
        await first.process.wait()
    async with up(data_dir) as second:
        await second.wait_for("ready: control plane")


async def test_status_without_a_stack_is_exit_code_4(data_dir: Path) -> None:
    done = await command("status", "--data-dir", str(data_dir), "--json")
    assert done.code == 4
    assert done.json()["running"] is False


async def test_a_taken_port_is_one_clear_line(data_dir: Path) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = str(server.sockets[0].getsockname()[1])
        done = await command("up", "--data-dir", str(data_dir), "--port", port)
    assert done.code == 4
    assert f"port {port} of this machine is taken" in done.err
    assert "Traceback" not in done.err
