"""Prints the secrets of the chart from an installation's folder.

    python helm/secrets.py FOLDER TOKEN | kubectl apply -f -

FOLDER is what `agentfactory init` made; TOKEN a file with an enrollment token (`agentfactory node token`), or
- for none yet. The root key is left out: nothing in a cluster may sign which keys count. The secret of the
database is not made here.
"""

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

KEYS: Final = "agent-factory-keys"
NODES: Final = "agent-factory-nodes"
# Made where they are used, or not for a cluster.
LEFT_OUT: Final = ("keys/root.key", "publisher.key")
FOLDERS: Final = ("", "keys", "clients")


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what a control plane needs, named as a secret may: keys/order.key is keys.order.key."""
    for below in FOLDERS:
        for path in sorted((folder / below).iterdir()):
            name = f"{below}/{path.name}".lstrip("/")
            if path.is_file() and not path.is_symlink() and name not in LEFT_OUT:
                yield name.replace("/", "."), path.read_bytes()


def secret(name: str, data: Mapping[str, bytes]) -> dict[str, object]:
    """Return a manifest."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    folder, token = Path(sys.argv[1]), sys.argv[2]
    if not (folder / "keys").is_dir():
        print(f"{folder} holds no installation: it is made by `agentfactory init`", file=sys.stderr)
        return 2
    nodes = {name: (folder / name).read_bytes() for name in ("trust.json", "ca.crt")}
    nodes["token"] = b"" if token == "-" else Path(token).read_bytes()  # noqa: S105 - a file's name
    manifests = [secret(KEYS, dict(files(folder))), secret(NODES, nodes)]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
