"""docker-compose.yml without a Docker engine, in every run: what it names is there, what is ours is locked down.

That Docker takes it: tests/integration/docker/test_compose_config.py.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.gateway.settings import GatewaySettings
from control_plane.settings import ControlSettings
from data_plane.settings import NodeSettings

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docker-compose.yml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
PROFILES = ("full", "minimal")
OF_OTHERS_AS_THEY_ARE = {"postgres"}
"""Its entry point needs root and a few capabilities for a moment, before it becomes another user."""
CLOSED_NETWORKS = {"data", "compile", "custody", "policy", "traces"}
SETTINGS = {"AF_CONTROL_": ControlSettings, "AF_NODE_": NodeSettings, "AF_GATEWAY_": GatewaySettings}


def mounted(service: dict[str, Any]) -> list[str]:
    return [volume.split(":")[0] for volume in service.get("volumes", ())]


def runs_in(name: str, profile: str) -> bool:
    return profile in SERVICES[name].get("profiles", PROFILES)


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_there(name):
    service = SERVICES[name]
    for depends in service.get("depends_on", ()):
        assert depends in SERVICES
    for network in service.get("networks", ()):
        assert network in FILE["networks"]
    for source in mounted(service):
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
        elif not source.startswith("${"):
            assert source in FILE["volumes"], source
    if "env_file" in service:
        for profile in PROFILES:
            assert (ROOT / service["env_file"].replace("${COMPOSE_PROFILES:-full}", profile)).is_file()


@pytest.mark.parametrize("kind", ["networks", "volumes"])
def test_what_is_declared_is_used(kind):
    text = yaml.safe_dump(SERVICES)
    used = {one for service in SERVICES.values() for one in service.get(kind, ())}
    if kind == "volumes":
        used = {source for service in SERVICES.values() for source in mounted(service)}
        used |= set(re.findall(r"\$\{[A-Z_]+:-([a-z-]+)\}:", text))
    assert set(FILE[kind]) - used == set()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_waits_for_nothing_that_it_does_not_run(profile):
    for name in (name for name in SERVICES if runs_in(name, profile)):
        depends = SERVICES[name].get("depends_on", {})
        conditions = depends if isinstance(depends, dict) else {other: {} for other in depends}
        for other, how in conditions.items():
            assert runs_in(other, profile) or how.get("required") is False, f"{name} waits for {other}"


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - OF_OTHERS_AS_THEY_ARE))
def test_a_service_is_nobody_on_a_file_system_that_is_read_only(name):
    service = SERVICES[name]
    assert not service["user"].startswith("0")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"}.isdisjoint(service)
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_ports_are_on_this_machine_alone_and_what_keeps_things_has_no_way_out():
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert {name for name, one in FILE["networks"].items() if one.get("internal")} == CLOSED_NETWORKS
    for name in ("postgres", "openbao", "custody", "opa-1", "opa-2", "install", "compiler"):
        assert set(SERVICES[name]["networks"]) <= CLOSED_NETWORKS, name


def test_images_of_others_have_a_version():
    images = {one["image"] for one in SERVICES.values() if not one["image"].startswith("${AF_IMAGES")}
    of_others = {re.sub(r"^\$\{[A-Z_]+:-(.*)\}$", r"\1", image) for image in images}
    assert len(of_others) == 7
    assert [image for image in of_others if not re.search(r":v?\d", image)] == []


def test_every_variable_is_explained():
    page = (ROOT / "docs" / "compose.md").read_text()
    variables = set(re.findall(r"\$\{((?:AF|COMPOSE)_[A-Z_]+)", TEXT))
    assert {one for one in variables if f"`{one}`" not in page} == set()


def test_what_our_processes_are_told_are_settings_of_theirs():
    files = [path.read_text() for path in (ROOT / "docker" / "profiles").rglob("*.env")]
    told = set(
        re.findall(r"^\s*(AF_(?:CONTROL|NODE|GATEWAY)_[A-Z_]+)[:=]", "\n".join([TEXT, *files]), re.MULTILINE)
    )
    known = {
        f"{prefix}{name}".upper() for prefix, settings in SETTINGS.items() for name in settings.model_fields
    }
    assert len(told) > 20
    assert told - known == set()
