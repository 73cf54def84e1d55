"""A Kubernetes control plane of one's own on loopback; its nodes and pods are KWOK's, which carry no traffic."""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

READY_SECONDS = 120
COMMAND_SECONDS = 180
FAILING = Path(__file__).with_name("kubernetes") / "failing.yaml"
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "https://127.0.0.1:{port}", insecure-skip-tls-verify: true}}}}]
users: [{{name: admin, user: {{token: "{token}"}}}}]
contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]
current-context: test
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running cluster."""

    programs: Path
    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        helm = {
            name: str(self.folder / f"helm-{name.lower()}") for name in ("HELM_CACHE_HOME", "HELM_DATA_HOME")
        }
        return {**os.environ, **helm, "KUBECONFIG": str(self.folder / "kubeconfig")}

    def run(
        self, *command: str | Path, check: bool = True, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(one) for one in command],
            check=False,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            input=given,
            env=self.environment,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done

    def kubectl(self, *arguments: str, check: bool = True, given: str | None = None) -> str:
        return self.run(self.programs / "kubectl", *arguments, check=check, given=given).stdout

    def get(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        """Return objects of a kind."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *arguments, "-o", "json"))["items"]
        return found

    def helm(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(os.environ["HELM"], *arguments, check=check)

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        self.kubectl(
            "apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        )


def node(name: str, zone: str) -> dict[str, Any]:
    """Return a machine as KWOK plays one."""
    room = {"cpu": "32", "memory": "256Gi", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone, "type": "kwok"},
        },
        "spec": {"taints": []},
        "status": {"allocatable": room, "capacity": room, "phase": "Running"},
    }


def volume(name: str) -> dict[str, Any]:
    """Return a disk, as a provisioner would have made it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "16Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/nowhere"},
        },
    }


@contextmanager
def running_cluster(programs: Path, folder: Path, nodes: int = 4) -> Iterator[Cluster]:
    """Start everything, wait until machines are ready, and stop it afterwards."""
    etcd, peer, api, manager, scheduler = free_ports(5)
    token = secrets.token_urlsafe(24)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    (folder / "kubeconfig").write_text(KUBECONFIG.format(port=api, token=token))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "sa.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    failing = FAILING.read_text()
    (folder / "stages.yaml").write_text(
        (programs / "stages.yaml").read_text()
        + "".join(failing.replace("COMPONENT", name) for name in ("smoke-test", "error-rate"))
    )
    cluster = Cluster(programs=programs, folder=folder)
    config = f"--kubeconfig={folder / 'kubeconfig'}"
    commands = {
        "etcd": (
            *("--unsafe-no-fsync", f"--data-dir={folder / 'etcd'}", "--log-level=error"),
            *(f"--{one}client-urls=http://127.0.0.1:{etcd}" for one in ("listen-", "advertise-")),
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            *(f"--initial-{one}=http://127.0.0.1:{peer}" for one in ("advertise-peer-urls",)),
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        ),
        "kube-apiserver": (
            *(f"--etcd-servers=http://127.0.0.1:{etcd}", "--bind-address=127.0.0.1", f"--secure-port={api}"),
            *(f"--cert-dir={folder / 'certificates'}", "--service-cluster-ip-range=10.0.0.0/24"),
            *("--service-account-issuer=https://test", f"--service-account-key-file={folder / 'sa.key'}"),
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            *(f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC"),
            *("--endpoint-reconciler-type=none", "--default-not-ready-toleration-seconds=5"),
            "--default-unreachable-toleration-seconds=5",
        ),
        "kube-controller-manager": (
            *(config, "--leader-elect=false", f"--service-account-private-key-file={folder / 'sa.key'}"),
            *(f"--secure-port={manager}", "--bind-address=127.0.0.1", f"--cert-dir={folder / 'kcm'}"),
            *("--node-monitor-grace-period=8s", "--node-monitor-period=1s"),
        ),
        "kube-scheduler": (
            *(config, "--leader-elect=false", f"--secure-port={scheduler}", "--bind-address=127.0.0.1"),
            f"--cert-dir={folder / 'scheduler'}",
        ),
        "kwok": (
            *(config, f"--config={folder / 'stages.yaml'}", "--manage-all-nodes=false"),
            *("--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",),
            "--node-lease-duration-seconds=8",
        ),
    }
    with ExitStack() as stack:
        for name, arguments in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            child = subprocess.Popen([programs / name, *arguments], stdout=log, stderr=log)
            stack.callback(child.wait)
            stack.callback(child.kill)
            if name == "kube-apiserver":
                _until(lambda: cluster.kubectl("get", "--raw", "/readyz", check=False) == "ok", folder)
        cluster.apply(*(volume(f"disk-{number}") for number in range(2 * nodes)))
        cluster.apply(*(node(f"machine-{number}", f"zone-{number % 2}") for number in range(nodes)))
        _until(lambda: len(_ready(cluster)) == nodes, folder)
        _until(
            lambda: "default" in cluster.kubectl("get", "serviceaccounts", "-o", "name", check=False), folder
        )
        yield cluster


def _ready(cluster: Cluster) -> list[str]:
    return [
        one["metadata"]["name"]
        for one in cluster.get("nodes")
        if any(
            said["type"] == "Ready" and said["status"] == "True"
            for said in one["status"].get("conditions", [])
        )
    ]


def _until(true: Any, folder: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not true():
        if time.monotonic() > deadline:
            last = {path.name: path.read_text()[-1500:] for path in folder.glob("*.log")}
            raise AssertionError(f"the cluster does not come up: {last}")
        time.sleep(0.3)
