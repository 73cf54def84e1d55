"""The chart as helm renders it: closed values, restricted pods, colours that switch as they should."""

import base64
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.platform.test_rules import alerts
from tests.tools import chart_readme, dashboards

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "agent-factory"
GREEN_BESIDE = ("--set", "colours.green.enabled=true", "--set", "colours.green.tag=0.2.0")
EVERYTHING = (
    *GREEN_BESIDE,
    *("--set", "nodes.autoscaling.enabled=true", "--set", "externalSecrets.enabled=true"),
    *("--set", "compiler.enabled=true", "--set", "nodes.acceptCompiledArtifacts=true"),
    *("--set", "nodes.vaultSecret=agent-factory-node-vault"),
    *("--set", "backup.enabled=true", "--set", "backup.claim=backups", "--set", "backup.login=s3"),
    *(
        "--set",
        "monitoring.serviceMonitor=true",
        "--set",
        "monitoring.rules=true",
        "--set",
        "monitoring.dashboards=true",
    ),
)


def helm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [os.environ["HELM"], *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def rendered(*arguments: str) -> list[dict[str, Any]]:
    text = helm("template", "af", str(CHART), *arguments).stdout
    return [one for one in yaml.safe_load_all(text) if one]


def one(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(found for found in manifests if (found["kind"], found["metadata"]["name"]) == (kind, name))


def pods(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for found in manifests:
        if found["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield found["metadata"]["name"], found["spec"]["template"]["spec"]
        if found["kind"] == "CronJob":
            yield found["metadata"]["name"], found["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def hooks(manifests: list[dict[str, Any]]) -> dict[str, str]:
    return {
        found["metadata"]["name"]: found["metadata"]["annotations"]["helm.sh/hook"]
        for found in manifests
        if found["kind"] == "Job"
    }


def test_it_lints_and_its_readme_is_its_values():
    helm("lint", str(CHART), "--strict")
    assert (CHART / "README.md").read_text() == chart_readme.readme()


@pytest.mark.parametrize(
    "given",
    [
        "active=red",
        "controlPlane.replica=3",
        "nodes.pools.default.slots=0",
        "nodes.settings.AF_CONTROL_PORT=1",
        "nodes.require={seccomp,everything}",
        "nodes.acceptCompiledArtifacts=perhaps",
        "compiler.key=x",
        "compiler.settings.AF_NODE_SLOTS=1",
        "compiler.pools.default.replicas=2",
        "colours.blue.tag=not a tag",
    ],
)
def test_values_are_closed(given):
    assert helm("template", "af", str(CHART), "--set", given, check=False).returncode != 0


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every part of a schema that describes an object with named fields, and where it is."""
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from objects(part, f"{path}[{number}]")
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield path, schema
        for name, part in schema.items():
            yield from objects(part, f"{path}/{name}")


def test_the_schema_is_closed_at_every_level_and_names_each_value():
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = dict(objects(schema))
    assert len(found) > 10
    assert [path for path, part in found.items() if part.get("additionalProperties") is not False] == []
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values.keys() == schema["properties"].keys() - {"global"}  # helm's own
    for name, part in schema["properties"].items():
        if "properties" in part:
            assert values[name].keys() == part["properties"].keys(), name


def test_nodes_are_spread_budgeted_and_scaled_by_the_age_of_the_queue():
    manifests = rendered("--set", "nodes.autoscaling.enabled=true", "--set", "nodes.autoscaling.max=7")
    nodes = one(manifests, "StatefulSet", "af-node-default")["spec"]
    assert "replicas" not in nodes  # or each upgrade would undo what the scaler did
    pod = nodes["template"]["spec"]
    topologies = {spread["topologyKey"] for spread in pod["topologySpreadConstraints"]}
    assert topologies == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    assert one(manifests, "PodDisruptionBudget", "af-node-default")["spec"]["maxUnavailable"] == "25%"
    scaler = one(manifests, "HorizontalPodAutoscaler", "af-node-default")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 7)
    (metric,) = scaler["metrics"]
    assert metric["external"]["metric"]["name"] == "af_queue_age_seconds"
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert int(environment["AF_NODE_DRAIN_TIMEOUT_S"]) < pod["terminationGracePeriodSeconds"]
    required = json.loads(environment["AF_NODE_SANDBOX_REQUIRE"])
    assert required == ["seccomp", "landlock", "rlimits", "no_new_privs"]


def mentions(manifests: list[dict[str, Any]]) -> list[str]:
    """Return what has to do with compiling for others."""
    named = [found["metadata"]["name"] for found in manifests if "compile" in json.dumps(found).lower()]
    return sorted(set(named))


@pytest.mark.parametrize("given", [(), ("--set", "compiler=null")], ids=["by default", "values from before"])
def test_nothing_compiles_for_others_unless_somebody_says_so(given):
    assert mentions(rendered(*given)) == []
    alone = mentions(rendered("--set", "compiler.enabled=true"))
    assert alone == ["af-compiler", "af-compiler-default"]  # and no node takes its word yet


def test_nodes_take_the_word_of_a_compiler_when_they_are_told_to():
    manifests = rendered("--set", "nodes.acceptCompiledArtifacts=true")
    assert mentions(manifests) == ["af-node-default"]
    (container,) = one(manifests, "StatefulSet", "af-node-default")["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["AF_NODE_ACCEPT_COMPILED_ARTIFACTS"] == "true"


def test_a_compiler_keeps_its_key_is_handed_no_token_of_a_node_and_holds_up_no_upgrade():
    second = ("--set", "compiler.pools.arm.zone=eu-1", "--set", "compiler.pools.arm.nodeSelector.arch=arm64")
    manifests = rendered("--set", "compiler.enabled=true", "--set", "active=green", *GREEN_BESIDE, *second)
    other = one(manifests, "StatefulSet", "af-compiler-arm")["spec"]["template"]["spec"]
    assert other["nodeSelector"] == {"arch": "arm64"}
    spec = one(manifests, "StatefulSet", "af-compiler-default")["spec"]
    assert spec["replicas"] == 1  # each has a key of its own
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"].endswith("node:0.2.0")
    assert container["args"] == ["compiler"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["AF_COMPILER_CONTROL_PLANES"] == '["af-control-plane:7443"]'
    assert json.loads(environment["AF_COMPILER_SANDBOX_REQUIRE"]) == [
        *("seccomp", "landlock", "rlimits", "no_new_privs"),
    ]
    (claim,) = spec["volumeClaimTemplates"]
    (kept,) = (mount for mount in container["volumeMounts"] if mount["name"] == claim["metadata"]["name"])
    assert kept["mountPath"] == "/var/lib/agentfactory-node"
    (handed,) = (volume["projected"] for volume in pod["volumes"] if volume["name"] == "handed")
    sources = {source["secret"]["name"]: source["secret"]["items"] for source in handed["sources"]}
    assert {name: [item["key"] for item in items] for name, items in sources.items()} == {
        "agent-factory-nodes": ["trust.json"],
        "agent-factory-compiler": ["token"],
    }
    # It is ready by /readyz once its key is in the keyset: an upgrade with --wait must not wait for that.
    probes = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"/healthz"}


def test_a_compiler_reaches_control_planes_alone_and_only_metrics_are_asked_of_it():
    rules = ("--set-json", 'networkPolicies.nodesEgress=[{"to":[{"ipBlock":{"cidr":"0.0.0.0/0"}}]}]')
    manifests = rendered("--set", "compiler.enabled=true", *rules)
    labels = one(manifests, "StatefulSet", "af-compiler-default")["spec"]["template"]["metadata"]["labels"]
    applied = [
        found["spec"] for found in manifests if found["kind"] == "NetworkPolicy" and chooses(found, labels)
    ]
    ingress = [rule for policy in applied for rule in policy.get("ingress", [])]
    egress = [rule for policy in applied for rule in policy.get("egress", [])]
    assert len(applied) == 2  # with the one that denies
    (asked,) = ingress
    assert asked["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    assert [port["port"] for port in asked["ports"]] == [7474]
    names, reached = egress
    assert [port["port"] for port in names["ports"]] == [53, 53]
    assert [port["port"] for port in reached["ports"]] == [7443, 7445]
    (peer,) = reached["to"]
    assert peer.keys() == {"podSelector"}
    for found in manifests:
        if found["kind"] in {"Deployment", "StatefulSet", "Job"}:
            wanted = peer["podSelector"]["matchLabels"].items()
            leads = wanted <= found["spec"]["template"]["metadata"]["labels"].items()
            assert leads == found["metadata"]["name"].startswith("af-control-plane"), found["metadata"][
                "name"
            ]


def chooses(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    """Return whether a policy is about pods with these labels."""
    selector = policy["spec"]["podSelector"]
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        rule["operator"] == "In" and labels.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", [])
    )


def test_with_an_operator_for_secrets_the_compilers_token_comes_by_it_also_in_an_upgrade():
    given = ("--set", "externalSecrets.enabled=true")
    asked = {found["metadata"]["name"] for found in rendered(*given) if found["kind"] == "ExternalSecret"}
    manifests = rendered(*given, "--set", "compiler.enabled=true")
    found = one(manifests, "ExternalSecret", "agent-factory-compiler")
    assert found["metadata"]["name"] not in asked
    assert found["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert found["spec"]["dataFrom"] == [{"extract": {"key": "agent-factory/compiler"}}]


def test_compose_starts_no_compiler_by_itself_and_lets_it_reach_control_planes_alone():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    compiler = services["compiler"]
    assert compiler["scale"] == "${AF_COMPILER:-0}"
    assert [volume.partition(":")[0] for volume in compiler["volumes"]] == ["compiler"]  # no token of nodes
    (network,) = compiler["networks"]
    beside = {name for name, found in services.items() if network in found.get("networks", ())}
    assert beside == {"compiler", "control-plane-1", "control-plane-2", "prometheus"}
    networks = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["networks"]
    assert networks[network] == {"internal": True}


def test_its_notes_name_the_first_command_and_the_way_on(tmp_path):
    asked = ("install", "af", str(CHART), "--dry-run=client", "--kubeconfig", str(tmp_path / "none"))
    alone = helm(*asked).stdout.partition("NOTES:")[2]
    assert "agentfactory node list --target localhost:7443" in alone
    assert "--set colours.green.enabled=true" in alone
    assert "--set colours.blue.tag=0.1.0" in alone  # or a newer chart would replace it
    assert "--reuse-values" not in alone  # what is new in a newer chart would be missing
    assert "kept warm" not in alone
    assert "compiler.pub" not in alone
    compiling = helm(*asked, "--set", "compiler.enabled=true").stdout.partition("NOTES:")[2]
    assert "exec af-compiler-default-0 -- cat compiler.pub > compiler-default.pub" in compiling
    assert "agentfactory keys rotate compiler --public-key compiler-default.pub" in compiling
    beside = helm(*asked, *GREEN_BESIDE).stdout.partition("NOTES:")[2]
    assert "green (0.2.0) runs beside it" in beside
    assert "helm rollback af" in beside


def test_the_server_is_named_in_the_page_as_services_and_notes_call_it(tmp_path):
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    named = set(re.findall(r"--server-name (\S+)", page))
    asked = ("install", "af", str(CHART), "--dry-run=client", "--kubeconfig", str(tmp_path / "none"))
    targets = set(re.findall(r"--target (\S+):7443", helm(*asked).stdout.partition("NOTES:")[2]))
    services = {
        found["metadata"]["name"]
        for found in rendered(*GREEN_BESIDE)
        if found["kind"] == "Service" and "grpc" in {port["name"] for port in found["spec"]["ports"]}
    }
    assert len(services) == 3
    assert named == services | targets


def test_every_pod_is_restricted():
    found = dict(pods(rendered("--is-upgrade", *EVERYTHING)))
    assert {
        *("af-control-plane-blue", "af-gateway-green", "af-node-default", "af-compiler-default"),
        *("af-migrate", "af-backup"),
    } <= found.keys()
    for name, pod in found.items():
        security = pod["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(pod), name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"requests", "limits"} <= container["resources"].keys(), name
        assert all("hostPath" not in volume for volume in pod["volumes"]), name


def test_what_logs_a_node_in_to_openbao_is_a_file_of_its_own_and_nobody_elses():
    def pod(*given: str) -> dict[str, Any]:
        found: dict[str, Any] = dict(pods(rendered(*given)))["af-node-default"]
        return found

    assert "initContainers" not in pod()
    given = pod("--set", "nodes.vaultSecret=bao")
    (first,), (node,) = given["initContainers"], given["containers"]
    volumes = {volume["name"]: volume for volume in given["volumes"]}
    assert volumes["vault"]["secret"]["secretName"] == "bao"
    assert volumes["custody"]["emptyDir"]["medium"] == "Memory"
    *_, source, target = first["command"]
    placed = {mount["mountPath"]: mount["name"] for mount in first["volumeMounts"]}
    assert (placed[source], placed[target]) == ("vault", "custody")
    assert {"name": "custody", "mountPath": target, "readOnly": True} in node["volumeMounts"]
    assert "vault" not in {mount["name"] for mount in node["volumeMounts"]}


def test_the_values_of_the_page_for_openbao_are_taken_and_its_files_are_where_settings_look(tmp_path):
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (values,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "openbao.yaml").write_text(values)
    manifests = rendered("-f", str(tmp_path / "openbao.yaml"))
    for name, prefix in (("af-control-plane-blue", "AF_CONTROL"), ("af-node-default", "AF_NODE")):
        pod = dict(pods(manifests))[name]
        placed = pod["initContainers"][0]["command"][-1]
        settings = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
        for setting in (f"{prefix}_VAULT_CA_FILE", f"{prefix}_VAULT_SECRET_ID_FILE"):
            assert Path(settings[setting]).parent == Path(placed), setting


@pytest.mark.parametrize(
    ("value", "policy"), [("controlPlaneEgress", "af-control-plane"), ("gatewayEgress", "af-gateway")]
)
def test_keys_and_decisions_of_other_servers_are_reached_when_somebody_says_where(value, policy):
    """A control plane with its keys in OpenBao could not sign under policies that deny."""
    rule = {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"protocol": "TCP", "port": 8200}]}

    def policies(*given: str) -> dict[str, Any]:
        found = [one for one in rendered(*given) if one["kind"] == "NetworkPolicy"]
        return {one["metadata"]["name"]: one["spec"].get("egress", []) for one in found}

    before = policies()
    after = policies("--set-json", f"networkPolicies.{value}=[{json.dumps(rule)}]")
    assert after == {**before, policy: [*before[policy], rule]}


def test_every_pod_is_under_the_policy_that_denies():
    manifests = rendered("--is-upgrade", *EVERYTHING)
    selector = one(manifests, "NetworkPolicy", "af-deny")["spec"]
    assert selector["policyTypes"] == ["Ingress", "Egress"]
    assert {"ingress", "egress"}.isdisjoint(selector)
    wanted = selector["podSelector"]["matchLabels"].items()
    for found in manifests:
        if found["kind"] in {"Deployment", "StatefulSet", "Job"}:
            labels = found["spec"]["template"]["metadata"]["labels"]
            assert wanted <= labels.items(), found["metadata"]["name"]


def test_prometheus_asks_each_pod_once_and_names_its_job_as_the_rules_do():
    manifests = rendered(*EVERYTHING)
    monitor = one(manifests, "ServiceMonitor", "af")["spec"]
    (endpoint,) = monitor["endpoints"]
    chosen = [
        found
        for found in manifests
        if found["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
        and monitor["jobLabel"] in found["metadata"]["labels"]
    ]
    assert monitor["selector"]["matchExpressions"] == [{"key": monitor["jobLabel"], "operator": "Exists"}]
    asked = []
    for found in manifests:
        if found["kind"] in {"Deployment", "StatefulSet"}:
            pod = found["spec"]["template"]
            (container,) = pod["spec"]["containers"]
            labels = pod["metadata"]["labels"].items()
            (service,) = (by for by in chosen if by["spec"]["selector"].items() <= labels)
            (port,) = (port for port in service["spec"]["ports"] if port["name"] == endpoint["port"])
            assert port["targetPort"] in {port["name"] for port in container["ports"]}
            asked.append(service["metadata"]["labels"][monitor["jobLabel"]])
    compose = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())["scrape_configs"]
    assert set(asked) | {"prometheus"} == {job["job_name"] for job in compose}
    down = next(rule for rule in alerts().values() if "up{" in rule["expr"])
    (wanted,) = re.findall(r'up\{job=~"([^"]+)"\}', down["expr"])
    assert all(re.fullmatch(wanted, job) for job in asked)


def test_the_rules_are_in_it_with_links_to_where_the_runbook_is():
    manifests = rendered(
        "--set", "monitoring.rules=true", "--set", "monitoring.runbook=https://x.test/ALERT.html?for=ALERT"
    )
    groups = one(manifests, "PrometheusRule", "af")["spec"]["groups"]
    found = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert {rule["alert"]: rule["annotations"]["runbook_url"] for rule in found} == {
        name: f"https://x.test/{name}.html?for={name}" for name in alerts()
    }


def test_the_dashboards_are_in_it():
    manifests = rendered("--set", "monitoring.dashboards=true")
    maps = {found["metadata"]["name"]: found for found in manifests if found["kind"] == "ConfigMap"}
    assert {f"af-dashboard-{name.removesuffix('.json')}" for name in dashboards.files()} == maps.keys()
    for found in maps.values():
        (text,) = found["data"].values()
        assert json.loads(text)["panels"]


def test_services_lead_to_the_active_colour_alone():
    for active in ("blue", "green"):
        manifests = rendered(*GREEN_BESIDE, "--set", f"active={active}")
        for name in ("af-control-plane", "af-gateway"):
            selector = one(manifests, "Service", name)["spec"]["selector"]
            assert selector["agentfactory.dev/colour"] == active
            for colour in ("blue", "green"):
                preview = one(manifests, "Service", f"{name}-{colour}")["spec"]["selector"]
                assert preview["agentfactory.dev/colour"] == colour
        node = one(manifests, "StatefulSet", "af-node-default")["spec"]["template"]["spec"]["containers"][0]
        assert node["image"].endswith({"blue": ":0.1.0", "green": ":0.2.0"}[active])


def test_the_newest_enabled_version_migrates_whichever_colour_it_is():
    def image(*arguments: str) -> str:
        job = one(rendered(*arguments), "Job", "af-migrate")
        found: str = job["spec"]["template"]["spec"]["containers"][0]["image"]
        return found

    assert image().endswith("tools:0.1.0")
    assert image(*GREEN_BESIDE).endswith("tools:0.2.0")
    assert image(*GREEN_BESIDE, "--set", "active=green").endswith("tools:0.2.0")
    assert image(*GREEN_BESIDE, "--set", "colours.blue.tag=0.10.0").endswith("tools:0.10.0")


def test_a_change_is_tested_before_and_watched_after():
    manifests = rendered("--is-upgrade", *GREEN_BESIDE, "--set", "active=green")
    assert hooks(manifests) == {
        "af-migrate": "pre-install,pre-upgrade",
        "af-smoke-test": "pre-upgrade",
        "af-error-rate": "post-upgrade",
    }
    job = one(manifests, "Job", "af-smoke-test")["spec"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["containers"][0]["command"][1] == "af-control-plane-green"
    (handed,) = (volume for volume in job["template"]["spec"]["volumes"] if volume["name"] == "handed")
    files = {item["path"] for item in handed["secret"]["items"]}
    assert files == {"ca.crt", "clients.admin.crt", "clients.admin.key"}  # no key that signs anything
    assert "af-smoke-test" not in hooks(rendered())  # nothing served before an installation


def test_a_colour_that_does_not_run_cannot_serve():
    done = helm("template", "af", str(CHART), "--set", "active=green", check=False)
    assert done.returncode != 0
    assert "set colours.green.enabled=true" in done.stderr


def test_secrets_have_all_but_the_root_key_and_become_files_again(tmp_path):
    """The folder that init made goes through the manifests and the init container, and comes out the same."""
    folder = tmp_path / "installation"
    for name in (
        *("installation.json", "trust.json", "ca.crt", "server.key"),
        *("keys/root.key", "keys/order.key", "clients/admin.key"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    printed = subprocess.check_output(["python3", ROOT / "helm" / "secrets.py", folder, "-"], text=True)
    keys, nodes = json.loads(printed)["items"]
    assert set(nodes["data"]) == {"trust.json", "ca.crt", "token"}

    mounted, placed = tmp_path / "mounted", tmp_path / "placed"
    (mounted / "..data").mkdir(parents=True)
    placed.mkdir()
    for name, value in keys["data"].items():
        (mounted / "..data" / name).write_bytes(base64.b64decode(value))
        (mounted / name).symlink_to(f"..data/{name}")
    subprocess.run([ROOT / "docker" / "place-keys.sh", mounted, placed], check=True)

    found = {str(path.relative_to(placed)): path for path in placed.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == {
        name: name
        for name in (
            *("installation.json", "trust.json", "ca.crt", "server.key"),
            *("keys/order.key", "clients/admin.key"),
        )
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in found.values()} == {0o600}


def test_backups_are_scheduled_with_a_key_that_opens_none_and_no_other_key():
    assert not [found for found in rendered() if found["kind"] == "CronJob"]
    job = one(rendered("--set", "backup.enabled=true", "--set", "backup.keep=3"), "CronJob", "af-backup")
    assert (job["spec"]["concurrencyPolicy"], job["spec"]["timeZone"]) == ("Forbid", "Etc/UTC")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-4:] == ["--key", "/run/agentfactory/backup-create.key", "--keep", "3"]
    assert "envFrom" not in container
    (handed,) = (volume["projected"] for volume in pod["volumes"] if volume["name"] == "handed")
    files = {item["path"] for source in handed["sources"] for item in source["secret"]["items"]}
    assert files == {"pgpass", "backup-create.key", "trust.json", "ca.crt"}
    for wrong in ("backup.place=/etc", "backup.keep=0", "backup.settings.PATH=x", "backup.key=x"):
        assert helm("template", "af", str(CHART), "--set", wrong, check=False).returncode != 0
