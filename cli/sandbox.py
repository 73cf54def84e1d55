"""`agentfactory sandbox …`: run a module here, in the sandbox that nodes use. Talks to no control plane."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import output
from cli.output import Json
from cli.sandbox_archive import archive
from shared.errors import AgentFactoryError, InvalidInputError, UnavailableError, WorkerCrashedError

if TYPE_CHECKING:
    from data_plane.host_calls.service import AttemptCalls
    from data_plane.sandbox.domain import Preopen, RunRequest, RunResult, Stream
    from shared.limits import Limits

app = typer.Typer(no_args_is_help=True, help="Run modules here, in the sandbox that nodes use.")

_STDIN, _STDOUT, _STDERR = range(3)
_READ_BYTES: Final = 64 * 1024
_MAX_EXIT_CODE: Final = 255
_SCRATCH_BYTES: Final = 256 * 1024 * 1024
_SCRATCH_INODES: Final = 10_000
_CLOCK: Final = "2000-01-01T00:00:00Z"
"""Where the clock of a repeatable run starts unless it is named."""


@app.callback()
def group() -> None:
    """Only carries the help; without it a single command would stand for the group."""


@app.command()
def doctor(
    require: Annotated[
        list[str] | None, typer.Option("--require", help="A layer that must hold; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a worker here and say which layers of its jail hold, and why the others do not.

    Exit codes: 0; 2 for an unknown layer; 4 when a layer named with --require does not hold.

    Example: agentfactory sandbox doctor --require seccomp --require landlock
    """
    from agentfactory_engine import worker_path

    from data_plane.sandbox.cgroup import open_groups, with_layer
    from data_plane.sandbox.domain import Layer
    from data_plane.sandbox.engine import check_layers, read_layers

    unknown = [name for name in require or [] if name not in list(Layer)]
    if unknown:
        raise InvalidInputError(f"--require {unknown[0]!r} is not one of {', '.join(Layer)}")
    groups, group_layer = open_groups()
    if groups is not None:
        groups.close()
    layers = with_layer(asyncio.run(read_layers(worker_path())), group_layer)
    if output.wants_json():
        output.data([asdict(each) for each in layers])
    else:
        rows = [
            (each.layer, "active" if each.active else "not possible here", each.detail) for each in layers
        ]
        output.table(("layer", "state", "detail"), rows, empty="this worker has no jail")
    try:
        check_layers(layers, map(Layer, require or []))
    except UnavailableError as error:
        # The layers are the answer and are printed already; this is the verdict on them.
        output.note(f"error: {error}")
        raise typer.Exit(output.UNAVAILABLE) from error


app.command()(archive)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    module: Annotated[Path, typer.Argument(help="A WASI command, MODULE.wasm.")],
    args: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE; repeatable.")] = None,
    dirs: Annotated[list[str] | None, typer.Option("--dir", help="HOST::GUEST[:ro]; repeatable.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            help="N=VALUE: wall_ms, memory_bytes or another of docs/security/limits.md. Repeatable.",
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="default, deterministic or portable: docs/sandbox.md.")
    ] = "default",
    seed: Annotated[
        str | None, typer.Option("--seed", help="64 hex digits: where its random numbers come from.")
    ] = None,
    clock: Annotated[
        str | None, typer.Option("--clock", help="Where its clock starts, as in 2026-01-02T03:04:05Z.")
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="An empty /scratch for the run; so does --limit scratch_bytes.")
    ] = False,
    allow_http: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-http", help="'METHOD URL', or '* URL': it may call this and what is below. Repeatable."
        ),
    ] = None,
    allow_network: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-network", help="CIDR that such calls may reach beside public addresses; repeatable."
        ),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option("--secrets", help="A node's file of secrets; those of tenant default are granted."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Outcome and resources as JSON on stderr.")] = False,
) -> None:
    """Compile MODULE in a jailed process and run it in another; its streams are this command's own.

    Under the profiles deterministic and portable the same command gives the same output and the same fuel:
    seed and clock are then zeros and the year 2000 unless named, never this machine's.

    Host calls are answered as by a node: log, budget.left and kv always (kv is empty at first and forgotten
    after the run), http.fetch and secret.ref as the options say. What was denied is printed at the end.

    Exit codes: the guest's own where it ended by itself (256 and more become 1); else 1 when it trapped or
    a limit ended it, 2 wrong use, 3 the module is refused, 4 the sandbox is not available.

    Example: agentfactory sandbox run --dir .::/work:ro --limit wall_ms=1000 count.wasm /work/README.md
    """
    from cli.sandbox_calls import CallRules

    try:
        fixed = _fixed(profile, seed, clock)
        request = _request(module, args or [], env or [], dirs or [], limit or [], fixed, scratch=scratch)
        rules = CallRules.read(allow_http or [], allow_network or [], secrets)
        with rules.calls_of(request) as calls:
            result = asyncio.run(_run(module, request, calls))
    except AgentFactoryError as error:
        raise typer.Exit(_failed(error, as_json=as_json)) from error
    except BrokenPipeError as error:
        # Whoever read the guest's output has gone; there is nobody to tell.
        raise typer.Exit(output.NOT_SUCCEEDED) from error
    denials = calls.conclude().denials
    if as_json:
        output.note(json.dumps(_as_data(result) | {"denials": [asdict(denial) for denial in denials]}))
    else:
        for denial in denials:
            output.note(f"denied: {denial.method} ({denial.reason}): {denial.count}")
        if result.exit_code is None:
            output.note(_one_line(result))
    raise typer.Exit(_exit_code(result))


async def _run(module: Path, request: "RunRequest", calls: "AttemptCalls") -> "RunResult":
    from agentfactory_engine import worker_path

    from cli.sandbox_calls import TENANT
    from data_plane.sandbox.cgroup import open_groups
    from data_plane.sandbox.compiler import WorkerCompiler
    from data_plane.sandbox.engine import read_engines
    from data_plane.sandbox.pool import WorkerPool
    from data_plane.sandbox.process import User
    from data_plane.sandbox.scratch import ScratchFolders
    from shared.digests import sha256_digest
    from shared.manifest import Profile

    worker = worker_path()
    engines = await read_engines(worker)
    module_fd = _open(module)
    artifact_fd = os.memfd_create("artifact")
    groups, _ = open_groups()
    try:
        await WorkerCompiler(worker_path=worker, groups=groups).compile(
            module_fd=module_fd, artifact_fd=artifact_fd, profile=request.profile
        )

        async def artifact() -> int:
            return os.dup(artifact_fd)

        # Directories are given with the rights of whoever runs this; without one the guest needs nobody's.
        user = User.OWN if request.preopens else User.NOBODY
        async with AsyncExitStack() as stack:
            folders = None
            if request.scratch:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentfactory-scratch-"))
                folders = ScratchFolders(Path(folder))
            pool = await stack.enter_async_context(
                WorkerPool(
                    worker_path=worker,
                    engine=engines[Profile.DEFAULT],
                    engines=engines,
                    slots=1,
                    spares=0,
                    user=user,
                    scratch=folders,
                    groups=groups,
                )
            )
            return await pool.run(
                tenant_id=TENANT,
                module_digest=sha256_digest(str(module).encode()),
                artifact=artifact,
                request=request,
                stdin=_stdin(),
                sink=_pass_on,
                host_calls=calls,
            )
    finally:
        if groups is not None:
            groups.close()
        os.close(module_fd)
        os.close(artifact_fd)


def _open(module: Path) -> int:
    try:
        return os.open(module, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInputError(f"cannot read {module}: {error.strerror}") from error


async def _stdin() -> AsyncIterator[bytes]:
    """Yield this command's stdin as it comes; it stays blocking: the shell shares a terminal with it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(_STDIN, ready.set)
    except PermissionError:
        # Files and /dev/null are always ready, and cannot be waited for.
        ready.set()
    except OSError:
        return  # closed by whoever started this command
    try:
        while True:
            await ready.wait()
            chunk = os.read(_STDIN, _READ_BYTES)
            if not chunk:
                return
            yield chunk
            if loop.remove_reader(_STDIN):
                ready.clear()
                loop.add_reader(_STDIN, ready.set)
    finally:
        loop.remove_reader(_STDIN)


async def _pass_on(stream: "Stream", data: bytes) -> None:
    descriptor = _STDOUT if stream == "stdout" else _STDERR
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _request(
    module: Path,
    args: list[str],
    env: list[str],
    dirs: list[str],
    limits: list[str],
    fixed: dict[str, Any],
    *,
    scratch: bool,
) -> "RunRequest":
    from data_plane.sandbox.domain import RunRequest

    preopens = tuple(_preopen(entry) for entry in dirs)
    # A limit of scratch bounds folders to write to, too; without one it asks for scratch, as in a manifest.
    writes = any(one.writable for one in preopens)
    scratch = scratch or (not writes and any(entry.startswith("scratch_") for entry in limits))
    try:
        return RunRequest(
            args=(module.name, *args),
            env=tuple(_split(entry, "=", "--env NAME=VALUE") for entry in env),
            preopens=preopens,
            limits=_limits(limits, writes=writes or scratch),
            scratch=scratch,
            **fixed,
        )
    except ValueError as error:
        raise InvalidInputError(str(error)) from error


def _fixed(profile: str, seed: str | None, clock: str | None) -> dict[str, Any]:
    """Return what of the run is not this machine's."""
    from data_plane.sandbox.domain import SEED_BYTES
    from shared.manifest import Profile

    if profile not in list(Profile):
        raise InvalidInputError(f"--profile {profile!r} is not one of {', '.join(Profile)}")
    repeatable = profile != Profile.DEFAULT
    fixed: dict[str, Any] = {"profile": Profile(profile)}
    if seed is not None or repeatable:
        try:
            fixed["seed"] = bytes.fromhex(seed or "00" * SEED_BYTES)
        except ValueError as error:
            raise InvalidInputError(f"--seed {seed!r} is not {2 * SEED_BYTES} hexadecimal digits") from error
    if clock is not None or repeatable:
        try:
            fixed["clock"] = datetime.fromisoformat(clock or _CLOCK)
        except ValueError as error:
            raise InvalidInputError(f"--clock {clock!r} is not a time such as {_CLOCK}") from error
    return fixed


def _preopen(text: str) -> "Preopen":
    from data_plane.sandbox.domain import Preopen

    host, guest = _split(text, "::", "--dir HOST::GUEST[:ro]")
    path, _, mode = guest.partition(":")
    if mode not in {"", "ro"} or not path or not host:
        raise InvalidInputError(f"--dir {text!r} is not HOST::GUEST or HOST::GUEST:ro")
    return Preopen(host_path=host, guest_path=path, writable=not mode)


def _limits(entries: list[str], *, writes: bool) -> "Limits":
    from shared.limits import Limits
    from shared.outcomes import LimitName

    # Nobody who names a folder to write to wants to name how much as well.
    limits = Limits(scratch_bytes=_SCRATCH_BYTES, scratch_inodes=_SCRATCH_INODES) if writes else Limits()
    for entry in entries:
        name, text = _split(entry, "=", "--limit NAME=VALUE")
        if name not in list(LimitName) or not text.isdecimal():
            raise InvalidInputError(f"--limit {entry!r}: a name of {', '.join(LimitName)} and a whole number")
        value = int(text)
        match LimitName(name):
            case LimitName.STACK_BYTES:
                raise InvalidInputError(f"--limit {entry!r}: the engine fixes the call stack")
            case count:
                # All others are whole numbers under the limit's own name; a unit test holds that.
                changes: dict[str, Any] = {count: value}
                limits = replace(limits, **changes)
    return limits


def _split(text: str, separator: str, form: str) -> tuple[str, str]:
    left, found, right = text.partition(separator)
    if not found or not left:
        raise InvalidInputError(f"{text!r} is not of the form {form}")
    return left, right


def _exit_code(result: "RunResult") -> int:
    if result.exit_code is None:
        return output.NOT_SUCCEEDED
    return result.exit_code if result.exit_code <= _MAX_EXIT_CODE else output.NOT_SUCCEEDED


def _one_line(result: "RunResult") -> str:
    if result.limit is not None:
        return f"{result.outcome}: limit {result.limit}"
    if result.trap is not None:
        return f"{result.outcome}: {result.trap.name}: {result.trap.message}"
    return str(result.outcome)


def _as_data(result: "RunResult") -> dict[str, object]:
    from shared.resources import RESOURCE_FIELDS

    used = result.resources
    times = {"wall": "wall_ms", "cpu": "cpu_ms", "host_call_time": "host_call_ms"}
    return {
        "outcome": result.outcome,
        "exit_code": result.exit_code,
        "limit": result.limit,
        "trap": None if result.trap is None else {"name": result.trap.name, "message": result.trap.message},
        "resources": {
            times.get(name, name): value / timedelta(milliseconds=1) if name in times else value
            for name, value in ((name, getattr(used, name)) for name in RESOURCE_FIELDS)
        },
        "engine": {
            "name": result.engine.name,
            "version": result.engine.version,
            "profile": result.engine.profile,
            "config_digest": result.engine.config_digest,
        },
    }


def _failed(error: AgentFactoryError, *, as_json: bool) -> int:
    """Print the error beside the guest's output, never into it."""
    if as_json:
        details = {"reason": error.reason, "message": str(error), "hint": error.hint or ""}
        print(json.dumps({"error": details}), file=sys.stderr)
    else:
        output.note(f"error: {error} [{error.reason}]")
    return output.UNAVAILABLE if isinstance(error, WorkerCrashedError) else output.exit_code(error)
