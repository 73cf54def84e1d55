"""Packs the time zones that agents find by name: zones.py FOLDER writes FOLDER/zones.bin.

They come out of one wheel, pinned by digest. The file is a line of JSON, from each name to where its zone
begins and how long it is, and after it the zones, each once.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PIN = "tzdata==2026.6 --hash=sha256:0a10eec6e13ef16b627fabed9a5f2ba61a62b1c67f327305f4e7e412a70b4aec"
MAX_BYTES = 1024 * 1024
"""What an agent that imports zoneinfo has more in its memory."""


def fetch(folder: Path) -> Path:
    """Return the wheel, which pip has compared with its pin."""
    (folder / "requirements.txt").write_text(PIN)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder)]
    command += ["--requirement", str(folder / "requirements.txt")]
    subprocess.run(command, check=True)  # noqa: S603 - a fixed command
    (wheel,) = folder.glob("*.whl")
    return wheel


def pack(wheel: Path) -> bytes:
    """Return the file, the same for the same wheel."""
    places: dict[str, tuple[int, int]] = {}
    known: dict[bytes, int] = {}
    data = b""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.read("tzdata/zones").decode().split()):
            zone = archive.read(f"tzdata/zoneinfo/{name}")
            if zone not in known:
                known[zone] = len(data)
                data += zone
            places[name] = (known[zone], len(zone))
    return json.dumps(places, separators=(",", ":")).encode() + b"\n" + data


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        packed = pack(fetch(Path(name)))
    if len(packed) > MAX_BYTES:
        sys.exit(f"the zones have {len(packed)} bytes, the bound is {MAX_BYTES}")
    target.mkdir(parents=True, exist_ok=True)
    (target / "zones.bin").write_bytes(packed)


if __name__ == "__main__":
    main()
