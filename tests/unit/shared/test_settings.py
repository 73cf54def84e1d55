from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr

from shared.errors import SettingsError
from shared.settings import Plane, PlaneSettings, default_config_file, default_data_dir, load_settings


class NodeSettings(PlaneSettings):
    plane: ClassVar = Plane.NODE

    slots: int = Field(default=4, ge=1, le=64)
    lease: timedelta = timedelta(seconds=4)
    zones: tuple[str, ...] = ()
    password: SecretStr = SecretStr("")
    data_dir: Path = Path("/var/lib/x")


class GatewaySettings(PlaneSettings):
    plane: ClassVar = Plane.GATEWAY

    url: str


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "agentfactory.toml"
        path.write_text(text)
        return path

    return write


def load(environ=None, **options):
    return load_settings(NodeSettings, environ=environ or {}, **options)


def test_command_line_over_environment_over_file_over_default(config):
    file = config('[node]\nslots = 5\ndata_dir = "/from/file"\nzones = ["a"]\n')
    settings = load(
        {"AF_NODE_SLOTS": "6", "AF_NODE_DATA_DIR": "/from/env"},
        config_file=file,
        overrides={"slots": 7, "lease": None},
    )
    assert (settings.slots, settings.data_dir, settings.zones) == (7, Path("/from/env"), ("a",))
    assert settings.lease == timedelta(seconds=4)


def test_lists_in_the_environment_are_json():
    assert load({"AF_NODE_ZONES": '["a","b"]'}).zones == ("a", "b")
    with pytest.raises(SettingsError, match="AF_NODE_"):
        load({"AF_NODE_ZONES": "a,b"})


@pytest.mark.parametrize(
    ("name", "near"), [("AF_NODE_SLOT", "AF_NODE_SLOTS"), ("AF_NOED_SLOTS", "AF_NODE_SLOTS"), ("AF_ZZZ", "")]
)
def test_unknown_variable_stops_the_start_and_names_the_nearest(name, near):
    with pytest.raises(SettingsError, match=f"unknown variable {name}.*{near}") as caught:
        load({name: "1"})
    assert caught.value.hint == f"unset {name}"


def test_variables_of_build_tests_and_other_planes_are_known():
    load(
        {
            "AF_CACHE_DIR": "/c",
            "AF_SUITES_DIR": "/s",
            "AF_REQUIRE_SUITES": "1",
            "AF_CONTROL_X": "1",
            "HOME": "/",
        }
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[node]\nslot = 1\n", "unknown key 'slot' in \\[node\\].*did you mean slots"),
        ("[nodes]\nslots = 1\n", "unknown table \\[nodes\\].*did you mean node"),
        ("slots = 1\n", "unknown table \\[slots\\]"),
        ("node = 1\n", "not a table"),
        ("[node\n", "not TOML"),
    ],
)
def test_unknown_or_broken_file_stops_the_start(config, text, message):
    with pytest.raises(SettingsError, match=message):
        load(config_file=config(text))


def test_tables_of_other_planes_are_left_to_them(config):
    load(config_file=config("[control]\nwhatever = 1\n[gateway]\n[cli]\n"))


def test_missing_and_oversized_file(tmp_path, config):
    with pytest.raises(SettingsError, match="cannot read"):
        load(config_file=tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="more than"):
        load(config_file=config("#" * 300_000))


def test_bad_value_is_one_line_that_names_the_variable():
    with pytest.raises(SettingsError) as caught:
        load({"AF_NODE_SLOTS": "99"})
    assert "AF_NODE_SLOTS" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_value_names_the_variable():
    with pytest.raises(SettingsError, match="AF_GATEWAY_URL"):
        load_settings(GatewaySettings, environ={})


def test_value_of_a_secret_never_shows_even_when_it_is_wrong():
    settings = load({"AF_NODE_PASSWORD": "hunter2"})
    assert "hunter2" not in repr(settings)
    assert settings.password.get_secret_value() == "hunter2"
    with pytest.raises(SettingsError) as caught:
        load(overrides={"password": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


def test_settings_are_frozen_and_read_no_environment_of_their_own(monkeypatch):
    monkeypatch.setenv("AF_NODE_SLOTS", "9")
    settings = load({})
    assert settings.slots == 4
    assert load_settings(NodeSettings).slots == 9
    with pytest.raises(Exception, match="frozen"):
        settings.slots = 5


def test_default_places(tmp_path):
    assert default_data_dir({"XDG_DATA_HOME": "/data"}) == Path("/data/agentfactory")
    assert default_data_dir({"HOME": "/home/a"}) == Path("/home/a/.local/share/agentfactory")
    assert default_data_dir({"HOME": "/home/a", "XDG_DATA_HOME": "relative"}) == Path(
        "/home/a/.local/share/agentfactory"
    )
    assert default_config_file(tmp_path) is None
    (tmp_path / "agentfactory.toml").touch()
    assert default_config_file(tmp_path) == tmp_path / "agentfactory.toml"
