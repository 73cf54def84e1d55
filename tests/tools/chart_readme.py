"""Writes helm/agent-factory/README.md from the comments of values.yaml: python -m tests.tools.chart_readme.

A line `# -- …` above a value is its description; the text above the first value of a table, without dashes, is the
table's.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

MAX_SHOWN = 80
CHART = Path(__file__).resolve().parents[2] / "helm" / "agent-factory"
KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9-]*):(.*)$")
HEAD = """# agent-factory

Made by `python -m tests.tools.chart_readme` from values.yaml. How to install, upgrade and roll back:
[docs/kubernetes.md](../../docs/kubernetes.md).

| value | default | what it is |
|---|---|---|
"""


def described(text: str) -> dict[str, str]:
    """Return the description of every value that has one, by its path."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    said: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            said = [stripped.removeprefix("# -- ")]
        elif stripped.startswith("#"):
            said.append(stripped.removeprefix("#").strip())
        elif match := KEY.match(line):
            indent = len(match[1])
            path = [one for one in path if one[0] < indent] + [(indent, match[2])]
            if said:
                found[".".join(name for _, name in path)] = " ".join(said)
            said = []
        else:
            said = []
    return found


def value_at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def readme() -> str:
    """Return what the file must hold."""
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    rows = []
    for path, said in described(text).items():
        value = value_at(values, path)
        whole = json.dumps(value)
        rows.append(f"| `{path}` | {f'`{whole}`' if len(whole) <= MAX_SHOWN else ''} | {said} |")
    return HEAD + "\n".join(rows) + "\n"


def main() -> int:
    (CHART / "README.md").write_text(readme())
    return 0


if __name__ == "__main__":
    sys.exit(main())
