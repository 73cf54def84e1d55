"""Dependencies: locked with hashes, pure Python, and bounded."""

import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from cli.guests.requirements import dependencies
from shared.errors import AgentBuildError

HASH = "--hash=sha256:" + "0" * 64


def wheels_of(cache: Path, requirements: str, files: dict[str, bytes]) -> None:
    """Stand for a download that was made before."""
    folder = cache / "wheels" / sha256(requirements.encode()).hexdigest()
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    (folder / ".complete").touch()


def found(tmp_path: Path, requirements: str) -> dict[str, bytes]:
    (tmp_path / "requirements.txt").write_text(requirements)
    return dependencies(tmp_path, tmp_path / "cache", lambda _: None)


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert dependencies(tmp_path, tmp_path / "cache", lambda _: None) == {}
    assert found(tmp_path, "# nothing yet\n\n") == {}


@pytest.mark.parametrize(
    "line",
    [
        "thing",
        "thing==1.0",
        f"thing>=1.0 {HASH}",
        "thing @ https://example.test/thing.whl",
        "-e .",
        "--index-url https://example.test",
        "-r other.txt",
        f"thing==1.0 {HASH} --global-option=x",
    ],
)
def test_a_line_that_is_not_locked_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(AgentBuildError, match="line 2") as refused:
        found(tmp_path, f"# dependencies\n{line}\n")
    assert "generate-hashes" in (refused.value.hint or "")


def test_only_python_files_are_taken(tmp_path: Path) -> None:
    text = f"thing==1.0 \\\n    {HASH}\n"
    files = {
        "thing/__init__.py": b"x = 1",
        "thing/data.bin": b"1",
        "thing-1.0.data/scripts/a.py": b"",
        "../out.py": b"",
        "/abs.py": b"",
        "thing-1.0.dist-info/METADATA": b"",
    }
    wheels_of(tmp_path / "cache", text, files)
    assert found(tmp_path, text) == {"requirements/thing/__init__.py": b"x = 1"}


def test_native_code_is_refused_by_the_name_of_its_package(tmp_path: Path) -> None:
    text = f"thing==1.0 {HASH}\n"
    wheels_of(tmp_path / "cache", text, {"thing/fast.cpython-313-x86_64-linux-gnu.so": b""})
    with pytest.raises(AgentBuildError, match=r"thing has no pure-Python wheel.*native code"):
        found(tmp_path, text)


def test_a_wheel_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    text = f"thing==1.0 {HASH}\n"
    wheels_of(tmp_path / "cache", text, {f"thing/m{n}.py": bytes(20_000_000) for n in range(2)})
    with pytest.raises(AgentBuildError, match="unpacks to more"):
        found(tmp_path, text)
