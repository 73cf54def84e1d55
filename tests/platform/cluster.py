"""A Kubernetes control plane of one's own on loopback; its machines and pods are KWOK's, which carry no traffic.

Two KWOK processes play the machines: the second one plays those that a test will lose, and their heartbeats stop
when it is killed. Pods of jobs in `PLAYED` stay running until somebody (tests/platform/jobs.py) says how they ended.
"""

import json
import logging
import os
import secrets
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cli.stack.probe import free_ports

READY_SECONDS = 120
COMMAND_SECONDS = 240
REQUEST_SECONDS = 30
MACHINES = 8
LOST = 2
"""A quarter of them, one in each zone."""
PLAYED = ("smoke-test", "error-rate")
COMPONENT = "app.kubernetes.io/component"
Manifest = dict[str, Any]
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "{server}", certificate-authority: "{authority}"}}}}]
users: [{{name: admin, user: {{token: "{token}"}}}}]
contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]
current-context: test
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What a cluster has on disk, and where it listens."""

    programs: Path
    folder: Path
    token: str = field(repr=False)
    server: str

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def service_key(self) -> Path:
        return self.folder / "service-accounts.key"

    @property
    def authority(self) -> Path:
        """The API server makes it when it starts."""
        return self.folder / "certificates" / "apiserver.crt"

    def write(self) -> None:
        (self.folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        self.kubeconfig.write_text(
            KUBECONFIG.format(server=self.server, token=self.token, authority=self.authority)
        )
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = serialization.PrivateFormat.TraditionalOpenSSL
        self.service_key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption())
        )
        stages = [one for one in yaml.safe_load_all((self.programs / "stages.yaml").read_text()) if one]
        for stage in stages:
            if stage["metadata"]["name"] == "pod-complete":
                stage["spec"]["selector"]["matchExpressions"].append(
                    {"key": f'.metadata.labels["{COMPONENT}"]', "operator": "NotIn", "values": list(PLAYED)}
                )
        (self.folder / "stages.yaml").write_text(yaml.safe_dump_all(stages))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running cluster."""

    files: Files
    http: httpx.Client
    children: dict[str, "subprocess.Popen[bytes]"]

    def run(
        self, *command: str | Path, check: bool = True, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        folder = self.files.folder
        helm = {name: str(folder / name.lower()) for name in ("HELM_CACHE_HOME", "HELM_DATA_HOME")}
        done = subprocess.run(
            [str(one) for one in command],
            check=False,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            input=given,
            env={**os.environ, **helm, "KUBECONFIG": str(self.files.kubeconfig)},
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done

    def kubectl(
        self, *arguments: str | Path, check: bool = True, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run(self.files.programs / "kubectl", *arguments, check=check, given=given)

    def helm(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(os.environ["HELM"], *arguments, check=check)

    def apply(self, *manifests: Manifest) -> None:
        self.kubectl("apply", "-f", "-", given=json.dumps(listed(manifests)))

    def get(self, path: str, selector: str = "") -> list[Manifest]:
        """Return the objects of a collection."""
        answer = self.http.get(path, params={"labelSelector": selector} if selector else {})
        answer.raise_for_status()
        found: list[Manifest] = answer.json()["items"]
        return found

    def patch_status(self, path: str, status: Manifest) -> None:
        kind = "application/merge-patch+json"
        self.http.patch(
            f"{path}/status", content=json.dumps({"status": status}), headers={"Content-Type": kind}
        ).raise_for_status()

    def stop_heartbeats(self) -> None:
        """Let the machines that are to be lost say nothing any more, as if their power were cut."""
        self.children["kwok-lost"].kill()

    def ready_machines(self) -> set[str]:
        return {one["metadata"]["name"] for one in self.get("/api/v1/nodes") if is_ready(one)}


def listed(manifests: tuple[Manifest, ...] | list[Manifest]) -> Manifest:
    return {"apiVersion": "v1", "kind": "List", "items": list(manifests)}


def is_ready(found: Manifest) -> bool:
    """Return whether a machine or a pod says so."""
    said = found["status"].get("conditions") or ()
    return any((one["type"], one["status"]) == ("Ready", "True") for one in said)


def machine(number: int) -> Manifest:
    name = f"machine-{number}"
    room = {"cpu": "32", "memory": "256Gi", "pods": "110"}
    labels = {
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": f"zone-{number % 2}",
        "group": "lost" if number < LOST else "stays",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"allocatable": room, "capacity": room},
    }


def disk(number: int) -> Manifest:
    """Return a volume, as a provisioner would have made it."""
    spec = {
        "capacity": {"storage": "16Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/nowhere"},
    }
    name = {"name": f"disk-{number}"}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": name, "spec": spec}


def commands(files: Files, ports: list[int]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield name, program and arguments of each process, in the order of their start."""
    etcd, peer, api, manager, scheduler = ports
    folder = files.folder
    config, key = f"--kubeconfig={files.kubeconfig}", files.service_key
    yield (
        "etcd",
        "etcd",
        (
            *("--unsafe-no-fsync", f"--data-dir={folder / 'etcd'}", "--log-level=error"),
            *(f"--{one}-client-urls=http://127.0.0.1:{etcd}" for one in ("listen", "advertise")),
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        ),
    )
    yield (
        "kube-apiserver",
        "kube-apiserver",
        (
            *(f"--etcd-servers=http://127.0.0.1:{etcd}", "--bind-address=127.0.0.1", f"--secure-port={api}"),
            *(f"--cert-dir={folder / 'certificates'}", "--service-cluster-ip-range=10.0.0.0/24"),
            *("--service-account-issuer=https://test", f"--service-account-key-file={key}"),
            f"--service-account-signing-key-file={key}",
            *(f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC"),
            *("--endpoint-reconciler-type=none", "--default-not-ready-toleration-seconds=5"),
            "--default-unreachable-toleration-seconds=5",
        ),
    )
    yield (
        "kube-controller-manager",
        "kube-controller-manager",
        (
            *(config, "--leader-elect=false", f"--service-account-private-key-file={key}"),
            *(f"--secure-port={manager}", "--bind-address=127.0.0.1", f"--cert-dir={folder / 'manager'}"),
            *("--node-monitor-grace-period=20s", "--node-monitor-period=2s", "--node-eviction-rate=10"),
        ),
    )
    yield (
        "kube-scheduler",
        "kube-scheduler",
        (
            *(config, "--leader-elect=false", f"--secure-port={scheduler}", "--bind-address=127.0.0.1"),
            f"--cert-dir={folder / 'scheduler'}",
        ),
    )
    for number, group in enumerate(("stays", "lost")):
        own = (
            *(f"--config={folder / 'stages.yaml'}", f"--manage-nodes-with-label-selector=group={group}"),
            *("--node-lease-duration-seconds=16", f"--cidr=10.{number + 1}.0.1/16", "--node-port=0"),
        )
        yield f"kwok-{group}", "kwok", (config, *own)


@contextmanager
def running_cluster(programs: Path, folder: Path) -> Iterator[Cluster]:
    """Start everything, wait until the machines are ready, and stop it afterwards."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # what is looked at five times a second
    ports = free_ports(5)
    files = Files(
        programs=programs,
        folder=folder,
        token=secrets.token_urlsafe(24),
        server=f"https://127.0.0.1:{ports[2]}",
    )
    files.write()
    children: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:
        for name, program, arguments in commands(files, ports):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            command = ["setpriv", "--pdeathsig=KILL", "--", programs / program, *arguments]
            children[name] = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(children[name].wait)
            stack.callback(children[name].kill)
            if name == "kube-apiserver":
                until(lambda: api_is_ready(files), seconds=READY_SECONDS, logs=folder)
        http = stack.enter_context(client(files))
        cluster = Cluster(files=files, http=http, children=children)
        cluster.apply(*(disk(number) for number in range(2 * MACHINES)), *map(machine, range(MACHINES)))
        until(
            lambda: (
                len(cluster.ready_machines()) == MACHINES
                and cluster.get("/api/v1/namespaces/default/serviceaccounts") != []
            ),
            seconds=READY_SECONDS,
            logs=folder,
        )
        yield cluster


def client(files: Files) -> httpx.Client:
    """Return a client that trusts the API server's certificate and nothing else."""
    return httpx.Client(
        base_url=files.server,
        headers={"Authorization": f"Bearer {files.token}"},
        verify=ssl.create_default_context(cafile=str(files.authority)),
        timeout=REQUEST_SECONDS,
    )


def api_is_ready(files: Files) -> bool:
    if not files.authority.exists():
        return False
    try:
        with client(files) as http:
            return http.get("/readyz").text == "ok"
    except (httpx.TransportError, ssl.SSLError):
        return False


def until(true: Callable[[], bool], *, seconds: float = 90.0, logs: Path | None = None) -> None:
    """Wait until something is true, or fail with the ends of the logs."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            ends: Mapping[str, str] = {
                path.name: path.read_text(errors="replace")[-1500:] for path in (logs or Path()).glob("*.log")
            }
            raise AssertionError(f"it did not come within {seconds} s: {ends}")
        time.sleep(0.2)
