"""The example agent in the real sandbox: what it must take out, what it must leave, what it does with bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "redact"


@pytest.fixture(scope="module")
def module() -> Path:
    subprocess.run([str(EXAMPLE / "build.sh")], check=True, timeout=300)
    return EXAMPLE / "redact.wasm"


def redact(
    module: Path, text: str | bytes, parameters: dict[str, object] | None = None, expect: int = 0
) -> dict:
    environment = (
        ["--env", f"AGENTFACTORY_PARAMETERS={json.dumps(parameters)}"] if parameters is not None else []
    )
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "sandbox", "run", *environment, str(module)],
        input=text.encode() if isinstance(text, str) else text,
        capture_output=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert expect == done.returncode, done.stderr.decode()
    return json.loads(done.stdout) if expect == 0 else {"log": done.stderr.decode()}


def bodies(module: Path, *texts: str) -> list[str]:
    lines = "\n".join(json.dumps({"body": text}) for text in texts)
    return [ticket["body"] for ticket in redact(module, lines)["redacted"]]


def test_finds_what_the_export_holds(module: Path) -> None:
    result = redact(module, (EXAMPLE / "data" / "tickets.jsonl").read_bytes())
    assert result["tickets"] == 36
    assert result["found"] == {"email": 27, "iban": 12, "card": 5, "ip": 13, "phone": 16}


def test_keeps_everything_but_the_personal_data(module: Path) -> None:
    source = [json.loads(line) for line in (EXAMPLE / "data" / "tickets.jsonl").open(encoding="utf-8")]
    result = redact(module, (EXAMPLE / "data" / "tickets.jsonl").read_bytes())["redacted"]
    assert [ticket["id"] for ticket in source] == [ticket["id"] for ticket in result]
    assert [{**ticket, "body": ""} for ticket in source] == [{**ticket, "body": ""} for ticket in result]


def test_checks_the_digits_before_it_calls_them_a_card_or_an_iban(module: Path) -> None:
    good, bad = bodies(
        module,
        "4111 1111 1111 1111 and DE89 3704 0044 0532 0130 00",
        "4111 1111 1111 1112 and DE00 1234 5678 9012 3456 78",
    )
    assert good == "[card] and [iban]"
    assert bad == "4111 1111 1111 1112 and DE00 1234 5678 9012 3456 78"


def test_leaves_versions_dates_times_and_order_numbers(module: Path) -> None:
    text = "v10.2.1.4.7 on 2024-06-03 at 14:32:07, ORD-2024-0012345, 49,90 EUR, 0045582910"
    assert bodies(module, text) == [text]


def test_finds_addresses_of_both_versions(module: Path) -> None:
    text = "http://192.0.2.1/x, (2001:db8::42), 2001:db8:85a3:0:0:8a2e:370:7334."
    assert bodies(module, text) == ["http://[ip]/x, ([ip]), [ip]."]


def test_takes_only_the_kinds_that_the_parameters_name(module: Path) -> None:
    line = json.dumps({"body": "a@example.com from 192.0.2.7"})
    result = redact(module, line, {"kinds": ["ip"]})
    assert result["found"] == {"ip": 1}
    assert result["redacted"] == [{"body": "a@example.com from [ip]"}]


def test_escapes_survive(module: Path) -> None:
    line = '{"body":"tab\\tquote\\" \\u00e4\\ud83d\\ude00 a@example.com\\nnext"}'
    assert redact(module, line)["redacted"] == [{"body": 'tab\tquote" ä😀 [email]\nnext'}]


@pytest.mark.parametrize("line", ["not json", '{"a":1', '["list"]', '{"a":"\\ud800"}', '{"a":1} x', '{"a"}'])
def test_names_the_line_that_is_no_object(module: Path, line: str) -> None:
    assert "line 2 is not a JSON object" in redact(module, f'{{"a":1}}\n{line}\n', expect=2)["log"]


def test_nothing_in_nothing_out(module: Path) -> None:
    assert redact(module, "")["redacted"] == []
