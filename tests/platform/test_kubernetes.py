"""The chart on a real API server: install, blue to green under calls, tests that fail, the way back, lost machines.

Blue's processes are those of an earlier version, green's those of now (tests/platform/behind.py).
"""

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import yaml

from cli.client import connect
from cli.run import execute_with
from shared.errors import UnavailableError
from tests.platform import version_before
from tests.platform.behind import NAMESPACE, Colours, Relay, leads_to, pods, ready, running_colours
from tests.platform.callers import SUCCEEDED, call, calling, request
from tests.platform.cluster import MACHINES, Cluster, listed, running_cluster, until
from tests.platform.test_chart import CHART, EVERYTHING, GREEN_BESIDE

NODES = ("--set", f"nodes.pools.default.replicas={MACHINES}")
WINDOW_SECONDS = 5

pytestmark = pytest.mark.timeout(600)
one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with what an operator's has before the chart comes: secrets, and the operators' kinds."""
    programs = Path(os.environ["KUBERNETES"])
    assert list(programs.glob("ready-*")), f"run tests/platform/build_kubernetes.sh {programs} first"
    with running_cluster(programs, tmp_path_factory.mktemp("cluster")) as cluster:
        names = {"agent-factory-database", "agent-factory-keys", "agent-factory-nodes"}
        restricted = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": restricted}},
            *(
                {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}}
                for name in sorted(names)
            ),
        )
        cluster.kubectl("apply", "--server-side", "-f", programs / "crds")
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield cluster


@pytest.fixture(scope="module")
def cluster(empty: Cluster) -> Cluster:
    """The chart is installed: blue serves, green is not there."""
    upgrade(empty, "--install", *NODES, "--set", f"errorRate.window={WINDOW_SECONDS}")
    return empty


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def colours(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Colours]:
    code = version_before.unpack(tmp_path_factory.mktemp("before"))
    async with running_colours(cluster, code) as running:
        await running.stack.make_agent("actor")
        await running.stack.make_agent("smoke", Path("tests/guests/look.wasm").resolve())
        yield running


def upgrade(
    cluster: Cluster, *arguments: str, chart: Path = CHART, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Upgrade as docs/kubernetes.md says; what was set before stays."""
    kept = () if "--install" in arguments else ("--reset-then-reuse-values",)
    command = ("upgrade", "af", chart, "--namespace", NAMESPACE, "--wait", "--timeout", "150s", *kept)
    return cluster.helm(*command, *arguments, check=check)


def change(cluster: Cluster, colour: str, *arguments: str, check: bool = True) -> int:
    """Make a colour the active one, with all that guards it; return helm's exit code."""
    given = ("--rollback-on-failure", "--set", f"active={colour}", *arguments)
    return upgrade(cluster, *given, check=check).returncode


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long something took; docs/kubernetes.md has the numbers."""
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.1f} s")  # noqa: T201 - for people, with pytest -s


async def start_with_blue(colours: Colours) -> None:
    """Bring about what each test of a change starts with: blue serves, green runs beside it, both are well."""
    for colour in ("blue", "green"):
        await colours.start(colour)
    await asyncio.to_thread(upgrade, colours.cluster, *GREEN_BESIDE, "--set", "active=blue")
    await asyncio.to_thread(until, lambda: leads_to(colours.cluster) == {"blue"})


async def answered(colours: Colours, colour: str) -> int:
    """Return how many calls about executions the process of a colour has answered."""
    url = f"http://127.0.0.1:{colours.ports[colour].control_admin}/metrics"
    async with httpx.AsyncClient(timeout=30) as http:
        lines = (await http.get(url)).text.splitlines()
    counts = [line for line in lines if line.startswith("af_rpc_seconds_count") and "Execute" in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in counts)


@pytest.mark.parametrize(
    "values",
    [(), (*GREEN_BESIDE, "--set", "active=green"), EVERYTHING],
    ids=["defaults", "changing", "everything"],
)
def test_the_api_server_takes_every_manifest(empty, values):
    """Server-side dry run: schemas, admission, Pod Security. A warning is a pod that "restricted" would refuse."""
    text = empty.helm("template", "af", CHART, "--namespace", NAMESPACE, "--is-upgrade", *values).stdout
    manifests = [one for one in yaml.safe_load_all(text) if one]
    given = json.dumps(listed(manifests))
    done = empty.kubectl("apply", "--dry-run=server", "-n", NAMESPACE, "-f", "-", given=given)
    assert done.stdout.count("(server dry run)") == len(manifests)
    assert "Warning" not in done.stderr


def test_the_dry_run_would_say_what_is_wrong(empty):
    spec = {"containers": [{"name": "root", "image": "root"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": spec}
    typo = {**pod, "spec": {"container": []}}
    for wrong, why in ((pod, 'violates PodSecurity "restricted'), (typo, "unknown field")):
        done = empty.kubectl(
            *("apply", "--dry-run=server", "-n", NAMESPACE, "-f", "-"), given=json.dumps(wrong), check=False
        )
        assert done.returncode != 0
        assert why in done.stderr


def test_it_installs_and_restricted_takes_its_pods(cluster):
    assert {one: ready(cluster, one) for one in ("control-plane", "gateway", "node-default")} == {
        "control-plane": 2,
        "gateway": 2,
        "node-default": MACHINES,
    }
    assert leads_to(cluster) == leads_to(cluster, "af-gateway") == {"blue"}
    machines = Counter(pod["spec"]["nodeName"] for pod in pods(cluster, "node-default"))
    assert max(machines.values()) <= 2  # spread over them


@one_loop
async def test_blue_to_green_and_back_fails_no_call(colours):
    """Beside, change, nodes roll, `helm rollback`, change again, blue goes, and comes again: calls all the time."""
    cluster = colours.cluster
    async with calling(colours.settings) as calls:
        await asyncio.to_thread(upgrade, cluster, *GREEN_BESIDE)
        assert await asyncio.to_thread(leads_to, cluster) == {"blue"}
        assert await asyncio.to_thread(leads_to, cluster, "af-control-plane-green") == {"green"}

        before = await answered(colours, "green")
        with timed("change to green"):
            await asyncio.to_thread(change, cluster, "green", "--set", "smokeTest.agent=smoke")
        assert await asyncio.to_thread(leads_to, cluster) == {"green"}
        assert await asyncio.to_thread(leads_to, cluster, "af-gateway") == {"green"}
        images = {one["spec"]["containers"][0]["image"] for one in pods(cluster, "node-default")}
        assert images == {"agentfactory/node:0.2.0"}
        await colours.roll_nodes("green")
        await calls.more()
        assert await answered(colours, "green") > before

        with timed("rollback to blue"):
            await asyncio.to_thread(cluster.helm, "rollback", "af", "--namespace", NAMESPACE, "--wait")
        assert await asyncio.to_thread(leads_to, cluster) == {"blue"}
        await colours.roll_nodes("blue")
        before = await answered(colours, "blue")
        await calls.more()
        assert await answered(colours, "blue") > before

        await asyncio.to_thread(change, cluster, "green")
        await colours.roll_nodes("green")
        refused = await asyncio.to_thread(
            upgrade, cluster, "--set", "colours.blue.enabled=false", check=False
        )
        assert refused.returncode != 0
        assert "colour blue is kept warm until 20" in refused.stderr
        await asyncio.to_thread(
            upgrade, cluster, "--set", "colours.blue.enabled=false", "--set", "keepWarm=0"
        )
        await colours.stop("blue")
        await calls.more()
        await colours.start("blue")
        await asyncio.to_thread(cluster.helm, "rollback", "af", "--namespace", NAMESPACE, "--wait")
        await asyncio.to_thread(change, cluster, "blue")
        await colours.roll_nodes("blue")
        await calls.more()
    assert calls.failed == {}, calls.ended
    print(f"calls: {dict(calls.ended)}")  # noqa: T201 - how much the retries hid


@one_loop
async def test_a_smoke_test_that_fails_changes_nothing(colours):
    """Green's process is dead: its smoke test says so, blue goes on."""
    await start_with_blue(colours)
    await colours.kill("green")
    async with calling(colours.settings) as calls:
        colours.led.clear()
        assert await asyncio.to_thread(change, colours.cluster, "green", check=False) != 0
        assert await asyncio.to_thread(leads_to, colours.cluster) == {"blue"}
        assert colours.led == ["blue"]
        await calls.more()
    assert calls.failed == {}, calls.ended


@one_loop
async def test_too_many_errors_after_the_change_lead_back(colours, tmp_path):
    """Green loses its database right after the change: callers see that, the check sees it, helm returns."""
    await start_with_blue(colours)
    await colours.stop("green")
    found = Path(colours.stack.database.socket) / ".s.PGSQL.5432"
    broken = threading.Event()
    relay = Relay(lambda: None if broken.is_set() else found)
    server = await asyncio.start_unix_server(relay.accept, tmp_path / found.name)
    async with server:
        await colours.start("green", database_socket=tmp_path)
        changing = asyncio.create_task(asyncio.to_thread(change, colours.cluster, "green", check=False))
        await asyncio.to_thread(until, lambda: leads_to(colours.cluster) == {"green"})
        broken.set()
        relay.cut()
        refused = 0
        with timed("return from a colour that fails"):
            while not changing.done():
                with suppress(UnavailableError):
                    async with connect(colours.settings) as client:
                        await execute_with(client, request())
                    continue
                refused += 1
        assert await changing != 0
        assert refused > 0
        assert await asyncio.to_thread(leads_to, colours.cluster) == {"blue"}
        assert (await call(colours.settings, request()))[0].state == SUCCEEDED
        await colours.kill("green")


def test_the_colour_that_serves_cannot_be_taken_away_while_it_changes(cluster):
    upgrade(cluster, *GREEN_BESIDE)
    done = upgrade(cluster, "--set", "active=green", "--set", "colours.blue.enabled=false", check=False)
    assert done.returncode != 0
    assert "keep it enabled" in done.stderr
    assert leads_to(cluster) == {"blue"}


def test_a_newer_chart_does_not_replace_what_runs_unless_it_is_told_to(cluster, tmp_path):
    """A colour without a version of its own would follow the chart's: the way back would be gone, and nodes would roll."""
    newer = tmp_path / "newer"
    shutil.copytree(CHART, newer)
    about = newer / "Chart.yaml"
    about.write_text(about.read_text().replace("ersion: 0.1.0", "ersion: 0.2.0"))
    refused = upgrade(cluster, *GREEN_BESIDE, chart=newer, check=False)
    assert refused.returncode != 0
    assert "set colours.blue.tag=0.1.0 to keep it" in refused.stderr

    upgrade(cluster, *GREEN_BESIDE, "--set", "colours.blue.tag=0.1.0", chart=newer)
    images = {one["spec"]["containers"][0]["image"] for one in pods(cluster, "control-plane")}
    assert images == {f"agentfactory/control-plane:{tag}" for tag in ("0.1.0", "0.2.0")}
    images = {one["spec"]["containers"][0]["image"] for one in pods(cluster, "node-default")}
    assert images == {"agentfactory/node:0.1.0"}
    assert leads_to(cluster) == {"blue"}


def test_drains_respect_the_budgets(cluster):
    """Evicted pods find no other place: of eight nodes two may be away, of two control planes one."""
    machines = sorted(cluster.ready_machines())
    cluster.kubectl("cordon", *machines)
    drained = sorted({pod["spec"]["nodeName"] for pod in pods(cluster, "node-default")})[-4:]
    done = cluster.kubectl("drain", *drained, "--delete-emptydir-data", "--timeout=6s", check=False)
    assert done.returncode != 0
    assert "violate the pod's disruption budget" in done.stderr
    assert ready(cluster, "node-default") == MACHINES - MACHINES // 4
    assert leads_to(cluster) == {"blue"}
    cluster.kubectl("uncordon", *machines)
    until(lambda: ready(cluster, "node-default") == MACHINES)


def test_a_quarter_of_the_machines_is_lost_and_pods_come_back_elsewhere(cluster):
    """Control planes move by themselves; nodes, of which there may be no second, when somebody says the machine is off."""
    upgrade(cluster, *GREEN_BESIDE)
    staying = {one["metadata"]["name"] for one in cluster.get("/api/v1/nodes", "group=stays")}
    lost = cluster.ready_machines() - staying
    assert {pod["spec"]["nodeName"] for pod in pods(cluster, "node-default")} & lost
    cluster.stop_heartbeats()
    until(lambda: cluster.ready_machines() == staying)
    cluster.kubectl("taint", "node", *lost, "node.kubernetes.io/out-of-service=off:NoExecute")

    def elsewhere() -> bool:
        wanted = {"control-plane": 4, "gateway": 4, "node-default": MACHINES}
        found = {one: pods(cluster, one) for one in wanted}
        there = {pod["spec"].get("nodeName") for several in found.values() for pod in several}
        return there <= staying and all(ready(cluster, one) == count for one, count in wanted.items())

    until(elsewhere, seconds=120)
