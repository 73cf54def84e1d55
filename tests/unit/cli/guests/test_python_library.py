"""The part of the Python runtime that needs no runtime: what imports say, and schemas of types."""

import dataclasses
import enum
import sys
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

LIBRARY = Path(__file__).parents[4] / "guests" / "python" / "agentfactory_python" / "lib"
sys.path.insert(0, str(LIBRARY))
try:
    import agentfactory_imports as imports
    import agentfactory_schemas as schemas
finally:
    sys.path.remove(str(LIBRARY))


def refusal(source: str) -> str:
    return imports.look({"agent.py": source}, {"agent.py": source}).refusal


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import json\n\nimport socket\n", "agent.py:3: import socket"),
        ("import requests", "agent.py:1: import requests"),
        ("from urllib.request import urlopen", "agent.py:1: import urllib.request"),
        ("from urllib import request", "import urllib.request"),
        ("def f():\n    import subprocess\n", "agent.py:2: import subprocess"),
        ("def run(input, host):\n    return {\n", "agent.py:2: SyntaxError: '{' was never closed"),
        ("x = 1\0", "agent.py:1"),
    ],
)
def test_what_an_agent_cannot_use_is_refused_with_its_line(source: str, words: str) -> None:
    assert words in refusal(source)


def test_the_capability_to_use_instead_is_named() -> None:
    source = "import socket"
    assert "host.http.fetch" in imports.look({"agent.py": source}, {"agent.py": source}).hint


def test_imports_within_functions_are_loaded_too_and_those_of_dependencies_are_not_judged() -> None:
    own = {"agent.py": "import json\nimport helper\ndef run(i, h):\n    import decimal, dep\n"}
    others = {"dep/__init__.py": "import socket, statistics\nimport optional_thing\n", "broken.py": "("}
    finding = imports.look(own, own | others)
    assert finding.refusal == ""
    assert set(finding.standard) == {"json", "decimal", "statistics"}
    assert set(finding.later) == {"helper", "dep"}


class Color(enum.Enum):
    RED = "red"


class Item(TypedDict):
    name: str
    note: NotRequired[str]


@dataclasses.dataclass
class Order:
    items: list[Item]
    color: Color
    sizes: dict[str, float]
    kind: Literal["a", "b"] = "a"
    parent: "Order | None" = None


def test_types_become_schemas() -> None:
    made = schemas.schema(Item)
    assert made == {
        "type": "object",
        "properties": {"name": {"type": "string"}, "note": {"type": "string"}},
        "required": ["name"],
    }


def test_a_type_that_holds_itself_is_refused() -> None:
    with pytest.raises(TypeError, match="deeper than 16"):
        schemas.schema(Order)


def test_plain_dictionaries_say_nothing() -> None:
    def run(given: dict, host: Any) -> dict: ...

    assert schemas.of(run)[0] == {}


def test_a_dataclass_is_made_of_the_input() -> None:
    given = {"items": [{"name": "x"}], "color": "red", "sizes": {"s": 1.0}, "unknown": 1}
    order = schemas.made(Order, given)
    assert (order.color, order.kind) == (Color.RED, "a")
    assert schemas.plain(order)["items"] == [{"name": "x"}]


def test_an_answer_is_never_guessed() -> None:
    with pytest.raises(TypeError, match="holds a object"):
        schemas.plain(object())


def test_a_failing_import_is_explained() -> None:
    error = ModuleNotFoundError("No module named 'sqlite3'", name="sqlite3")
    assert "kv" in imports.explain(error, "agent.py:1: ")[1]
    error = ModuleNotFoundError("No module named 'tomlkit'", name="tomlkit")
    assert imports.explain(error, "agent.py:1: ") == (
        "agent.py:1: import tomlkit: there is no such module",
        "a dependency belongs into requirements.txt, with its hash",
    )
