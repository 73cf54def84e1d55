"""Builds the runtimes of agents once for their sources, keeps them in the cache, and makes wheels of them.

python guests/build.py javascript python       what is not in the cache yet is built
python guests/build.py --wheel DIR javascript   and packed as agentfactory-javascript
python guests/build.py --twice javascript       built two times: the digests have to agree
Prints, last, the folder that AF_CLI_RUNTIMES may name.
"""

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
LANGUAGES = ("javascript", "python")
MAKES_OWN = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
MADE = {"javascript": ("javascript.wasm",), "python": ("python.wasm", "stdlib.zip")}


def cache() -> Path:
    named = os.environ.get("AF_CACHE_DIR")
    base = (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentfactory"
    )
    return base / "guests"


def key(language: str) -> str:
    """What a build depends on: its script, its sources' pins in it, our C, the compiler."""
    digest = hashlib.sha256(version("ziglang").encode())
    inputs = [
        HERE / "sources.sh",
        HERE / "zig.sh",
        *(HERE / language).glob("*"),
        *(HERE / language / "src").glob("*"),
    ]
    for path in sorted(inputs):
        if path.is_file() and path.name != "pyproject.toml":
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def build(language: str, target: Path) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"· building the runtime of {language}", file=sys.stderr)
    # Under `make test` the flags of our Makefile would reach CPython's, which lives by make's built-in rules.
    environment = {name: value for name, value in os.environ.items() if name not in MAKES_OWN}
    subprocess.run([HERE / language / "build.sh", target], check=True, stdout=sys.stderr, env=environment)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    took = time.monotonic() - began
    print(f"· built in {took:.0f} s, {processor:.0f} s of processors", file=sys.stderr)


def place(language: str) -> Path:
    """Return where a build of these sources is kept."""
    return cache() / f"{language}-{key(language)}"


def kept(language: str) -> Path:
    """Return the folder with what was built, building it where it is not there."""
    return made_once(place(language), lambda folder: build(language, folder))


def zones() -> Path:
    """Return the folder with the time zones of Python's agents, fetched where it is not there."""
    script = HERE / "zones.py"
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    command = [sys.executable, str(script)]
    return made_once(
        cache() / f"zones-{digest[:32]}", lambda folder: subprocess.run([*command, folder], check=True)
    )


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder of the cache, whole or not there at all; `make` fills it under another name."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as name:
            make(Path(name) / "made")
            try:
                (Path(name) / "made").rename(folder)
            except OSError:
                # Somebody else was faster with the same.
                if not folder.is_dir():
                    raise
    return folder


def lay_out(languages: list[str], target: Path) -> Path:
    """Put packages with their runtimes under `target`; return it."""
    for language in languages:
        made, package = kept(language), target / f"agentfactory_{language}"
        shutil.copytree(HERE / language / package.name, package, dirs_exist_ok=True)
        for name in MADE[language]:
            place = package / "lib" / name if name == "stdlib.zip" else package / name
            shutil.copyfile(made / name, place)
        if language == "python":
            shutil.copyfile(zones() / "zones.bin", package / "lib" / "zones.bin")
    return target


def runtimes(languages: list[str]) -> Path:
    """Return a folder with these runtimes as they are in this checkout, made at once or not at all."""
    digest = hashlib.sha256((HERE / "zones.py").read_bytes())
    for language in sorted(languages):
        digest.update(key(language).encode())
        package = HERE / language / f"agentfactory_{language}"
        for path in sorted(
            each for each in package.rglob("*") if each.is_file() and "__pycache__" not in each.parts
        ):
            digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes())
    folder = cache() / f"runtimes-{digest.hexdigest()[:32]}"
    return made_once(folder, lambda target: lay_out(languages, target))


def make_wheel(language: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        lay_out([language], Path(name))
        shutil.copyfile(HERE / language / "pyproject.toml", Path(name) / "pyproject.toml")
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        environment = os.environ | {"SOURCE_DATE_EPOCH": "1749600000"}
        subprocess.run([*command, "--wheel-dir", target, name], check=True, env=environment)


def check_twice(language: str) -> None:
    """Build in two places, demand the same bytes of both, and keep them."""
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / "first", Path(name) / "another" / "place")
        digests = []
        for folder in folders:
            build(language, folder)
            digests.append(
                {made: hashlib.sha256((folder / made).read_bytes()).hexdigest() for made in MADE[language]}
            )
        if digests[0] != digests[1]:
            sys.exit(f"two builds of {language} differ: {digests}")
        made_once(place(language), lambda target: shutil.copytree(folders[0], target))
    print(f"· two builds of {language} agree: {digests[0]}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("languages", nargs="+", choices=LANGUAGES)
    parser.add_argument("--wheel", type=Path, metavar="DIR")
    parser.add_argument("--twice", action="store_true")
    asked = parser.parse_args()
    for language in asked.languages:
        if asked.twice:
            check_twice(language)
        if asked.wheel:
            make_wheel(language, asked.wheel)
    print(runtimes(asked.languages))


if __name__ == "__main__":
    main()
