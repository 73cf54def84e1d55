"""What of an author's folder makes the module."""

from pathlib import Path

import pytest

from cli.guests.project import MAX_EXAMPLE_BYTES, Language, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "tests").mkdir()
    return Project(folder=tmp_path, language=Language.PYTHON)


def test_the_example_is_the_first_input_of_the_tests(project: Project) -> None:
    assert project.example() == b"{}"
    for name in ("b.input.json", "a.input.json", "a.output.json", "0.txt"):
        (project.folder / "tests" / name).write_text(name)
    assert project.example() == b"a.input.json"


def test_an_example_that_is_large_or_no_file_of_the_folder_is_passed_over(project: Project) -> None:
    tests = project.folder / "tests"
    (tests / "a.input.json").write_bytes(b"1" * (MAX_EXAMPLE_BYTES + 1))
    (tests / "b.input.json").symlink_to("/etc/hostname")
    (tests / "c.input.json").mkdir()
    assert project.example() == b"{}"
    (tests / "d.input.json").write_bytes(b"2" * MAX_EXAMPLE_BYTES)
    assert len(project.example()) == MAX_EXAMPLE_BYTES
