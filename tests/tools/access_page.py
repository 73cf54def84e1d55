"""Writes the matrix of docs/access.md from the rules: `python -m tests.tools.access_page`."""

from pathlib import Path
from typing import Final

from control_plane.access.domain import Role, Rule
from control_plane.access.rules import RULES

PAGE: Final = Path(__file__).parents[2] / "docs" / "access.md"
START: Final = "<!-- matrix: written by `python -m tests.tools.access_page`; a test compares -->\n"
END: Final = "<!-- end of the matrix -->\n"
_COLUMNS: Final = (
    Role.VIEWER,
    Role.CALLER,
    Role.AUTHOR,
    Role.OPERATOR,
    Role.AUDITOR,
    Role.ADMIN,
    Role.NODE,
    Role.COMPILER,
)


def page(text: str) -> str:
    """Return the page with the matrix as it should be."""
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has lost its markers"
    return before + START + matrix() + END + after


def matrix() -> str:
    """Return a row for each method that is served."""
    head = "| method | " + " | ".join(_COLUMNS) + " | others | at most |\n"
    line = "|---|" + "---|" * len(_COLUMNS) + "---|---|\n"
    return head + line + "".join(_row(method, rule) for method, rule in RULES.items())


def _row(method: str, rule: Rule) -> str:
    service, _, name = method.rpartition("/")
    cells = ["✓" if role in rule.roles else "" for role in _COLUMNS]
    others = "everybody" if rule.anonymous else "every identity" if rule.identified else ""
    if rule.of_installation:
        others = "tenant `default` only"
    return f"| `{service.rpartition('.')[2]}/{name}` | {' | '.join(cells)} | {others} | {_time(rule)} |\n"


def _time(rule: Rule) -> str:
    seconds = int(rule.deadline.total_seconds())
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
