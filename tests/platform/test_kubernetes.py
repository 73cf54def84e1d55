"""The chart on a real API server: install, blue to green under load, a failing smoke test, the way back, lost machines.

Pods are KWOK's and carry no traffic, so real control planes stand behind the endpoints: a forwarder asks the API server
which colour the active service leads to, and passes each new connection on to the process of that colour.
"""

import asyncio
import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from cli.client import connect
from cli.stack import local
from cli.stack.children import stop
from cli.stack.probe import wait_until_ready
from tests.e2e.stack import READY, TestStack, execute_with, new_request, running_stack
from tests.platform.cluster import Cluster, running_cluster

CHART = Path(__file__).resolve().parents[2] / "helm" / "agent-factory"
BUILD_SECONDS = 1800
NAMESPACE = "agents"
GREEN_BESIDE = ("--set", "colours.green.enabled=true", "--set", "colours.green.tag=0.2.0")
QUICK = ("--set", "errorRate.window=1")
TRIES = 5
"""Of one call, with one request id: what docs/kubernetes.md asks of callers."""

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 600)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    programs = Path(os.environ["KUBERNETES"])
    builder = Path(__file__).with_name("build_kubernetes.sh")
    subprocess.run([builder, programs], check=True, timeout=BUILD_SECONDS)
    with running_cluster(programs, tmp_path_factory.mktemp("cluster")) as running:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"namespace": NAMESPACE},
            "type": "Opaque",
        }
        running.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": NAMESPACE,
                    "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
                },
            }
        )
        names = ("agent-factory-database", "agent-factory-keys", "agent-factory-nodes")
        running.apply(*({**secret, "metadata": {"namespace": NAMESPACE, "name": name}} for name in names))
        upgrade(running, "--install")
        yield running


def upgrade(cluster: Cluster, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Bring the release to the chart with values; what was set before stays."""
    kept = () if "--install" in arguments else ("--reuse-values",)
    return cluster.helm(
        *("upgrade", "af", CHART, "--namespace", NAMESPACE, "--wait", "--timeout", "60s", *kept, *QUICK),
        *arguments,
        check=check,
    )


def active(cluster: Cluster, service: str = "af-control-plane") -> set[str]:
    """Return the colours of the pods that a service leads to."""
    slices = cluster.get("endpointslices", "-n", NAMESPACE, "-l", f"kubernetes.io/service-name={service}")
    names = [
        one["targetRef"]["name"]
        for found in slices
        for one in found["endpoints"] or ()
        if one["conditions"]["ready"]
    ]
    return {
        name.removeprefix("af-control-plane-").removeprefix("af-gateway-").split("-")[0] for name in names
    }


def ready(cluster: Cluster, component: str) -> int:
    pods = cluster.get("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={component}")
    return sum(
        any(
            said["type"] == "Ready" and said["status"] == "True"
            for said in pod["status"].get("conditions", ())
        )
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
    )


def until(true: Any, *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.3)


@dataclass(slots=True)
class Forwarder:
    """What kube-proxy is for a service: new connections go where its endpoints are now."""

    cluster: Cluster
    ports: dict[str, int]
    colours: set[str] = field(default_factory=set)

    async def watch(self) -> None:
        while True:
            self.colours = await asyncio.to_thread(active, self.cluster)
            await asyncio.sleep(0.2)

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        colour = next(iter(self.colours), None)
        if colour is None:
            writer.close()
            return
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self.ports[colour])
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, back))
                group.create_task(_copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def two_colours(cluster: Cluster) -> AsyncIterator[tuple[TestStack, int]]:
    """Run a real control plane of each colour on one database, and the active service in front of them."""
    async with running_stack(nodes=0) as stack:
        green = local.Ports.free()
        child = await local.start_control_plane(stack.paths.data_dir, green, stack.database)
        try:
            await wait_until_ready(child, green.control_admin, within=READY)
            await stack.add_node(
                AF_NODE_CONTROL_PLANES=f'["localhost:{stack.ports.grpc}","localhost:{green.grpc}"]'
            )
            forwarder = Forwarder(cluster, {"blue": stack.ports.grpc, "green": green.grpc})
            watching = asyncio.create_task(forwarder.watch())
            server = await asyncio.start_server(forwarder.forward, "127.0.0.1", 0)
            try:
                yield stack, server.sockets[0].getsockname()[1]
            finally:
                watching.cancel()
                server.close()
        finally:
            await stop(child)


async def call_all_the_time(stack: TestStack, port: int, outcomes: Counter[str]) -> None:
    """Run the agent again and again, each time over a connection of its own, until cancelled."""
    settings = stack.settings.model_copy(update={"target": f"localhost:{port}"})
    while True:
        request = replace(new_request("actor", b"exit 0", 20), request_id=str(uuid.uuid4()))
        for tried in range(TRIES):
            try:
                async with connect(settings) as client:
                    await execute_with(client, request)
                outcomes["succeeded" if tried == 0 else "succeeded again"] += 1
                break
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    outcomes[f"failed: {error.code().name}"] += 1
                    break
            await asyncio.sleep(0.2 * (tried + 1))
        else:
            outcomes["failed: UNAVAILABLE"] += 1


def test_the_api_server_takes_every_object_and_pods_are_restricted(cluster):
    """The namespace enforces Pod Security "restricted": a pod that is not would never be made."""
    assert ready(cluster, "control-plane") == 2
    assert ready(cluster, "gateway") == 2
    assert ready(cluster, "node-default") == 4
    assert active(cluster) == {"blue"}
    zones = Counter(
        pod["spec"]["nodeName"]
        for pod in cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node-default")
    )
    assert set(zones.values()) == {1}  # one on each machine


async def test_blue_to_green_and_back_loses_no_call(cluster):
    outcomes: Counter[str] = Counter()
    async with two_colours(cluster) as (stack, port):
        await stack.make_agent("actor")
        calling = [asyncio.create_task(call_all_the_time(stack, port, outcomes)) for _ in range(3)]
        try:
            await asyncio.to_thread(upgrade, cluster, *GREEN_BESIDE)
            assert await asyncio.to_thread(active, cluster) == {"blue"}
            assert await asyncio.to_thread(active, cluster, "af-control-plane-green") == {"green"}
            before = outcomes.total()
            await asyncio.to_thread(upgrade, cluster, "--set", "active=green", "--rollback-on-failure")
            assert await asyncio.to_thread(active, cluster) == {"green"}
            assert await asyncio.to_thread(active, cluster, "af-gateway") == {"green"}
            await asyncio.to_thread(cluster.helm, "rollback", "af", "--namespace", NAMESPACE, "--wait")
            assert await asyncio.to_thread(active, cluster) == {"blue"}
            async with asyncio.timeout(timedelta(minutes=1).total_seconds()):
                while outcomes.total() < before + 10:
                    await asyncio.sleep(0.2)
        finally:
            for task in calling:
                task.cancel()
    assert {name for name in outcomes if name.startswith("failed")} == set(), outcomes


def test_a_smoke_test_that_fails_switches_nothing(cluster):
    upgrade(cluster, *GREEN_BESIDE, "--set", "colours.green.tag=9.0.0-smoke-test")
    done = upgrade(cluster, "--set", "active=green", "--rollback-on-failure", check=False)
    assert done.returncode != 0
    assert active(cluster) == {"blue"}
    assert ready(cluster, "control-plane") >= 2


def test_too_many_errors_after_the_change_lead_back(cluster):
    upgrade(cluster, *GREEN_BESIDE, "--set", "colours.green.tag=9.0.0-error-rate")
    done = upgrade(cluster, "--set", "active=green", "--rollback-on-failure", check=False)
    assert done.returncode != 0
    until(lambda: active(cluster) == {"blue"})


def test_the_colour_that_serves_cannot_be_taken_away_while_it_changes(cluster):
    upgrade(cluster, *GREEN_BESIDE)
    done = upgrade(cluster, "--set", "active=green", "--set", "colours.blue.enabled=false", check=False)
    assert done.returncode != 0
    assert "keep it enabled" in done.stderr
    assert active(cluster) == {"blue"}


def test_a_drain_respects_the_budget(cluster):
    """One machine of four may be drained; while its node is not back a second one is refused."""
    upgrade(cluster, "--set", "nodes.maxUnavailable=0")
    machine = cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node-default")[0][
        "spec"
    ]["nodeName"]
    drain = ("drain", machine, "--ignore-daemonsets", "--delete-emptydir-data", "--force")
    refused = cluster.run(cluster.programs / "kubectl", *drain, "--timeout=5s", check=False)
    assert refused.returncode != 0
    assert "disruption budget" in refused.stderr
    upgrade(cluster, "--set", "nodes.maxUnavailable=25%")
    cluster.kubectl(*drain, "--timeout=60s")
    cluster.kubectl("uncordon", machine)
    until(lambda: ready(cluster, "node-default") == 4 and ready(cluster, "control-plane") >= 2)


def test_a_quarter_of_the_machines_is_lost_and_pods_come_back_elsewhere(cluster):
    """Its heartbeats stop; control planes move by themselves, nodes when the machine is declared to be out of service."""
    machine = cluster.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node-default")[0][
        "spec"
    ]["nodeName"]
    cluster.kubectl("annotate", "node", machine, "kwok.x-k8s.io/node-")
    until(
        lambda: (
            "NotReady" in cluster.kubectl("get", "node", machine)
            or "Unknown" in cluster.kubectl("get", "node", machine)
        )
    )
    cluster.kubectl("taint", "node", machine, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")

    def elsewhere() -> bool:
        pods = cluster.get("pods", "-n", NAMESPACE)
        there = {pod["spec"].get("nodeName") for pod in pods if "deletionTimestamp" not in pod["metadata"]}
        return (
            machine not in there
            and ready(cluster, "node-default") == 4
            and ready(cluster, "control-plane") >= 2
        )

    until(elsewhere, seconds=120)
