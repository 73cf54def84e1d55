"""Writes a policy as the bundle file that OPA servers take. Equal policies make equal files."""

import gzip
import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Final

from shared.canonical import canonical_json
from shared.digests import Digest

_PACKAGE: Final = re.compile(r"^\s*package\s+([A-Za-z_][A-Za-z0-9_]*)", re.MULTILINE)


def opa_bundle(*, files: Mapping[str, str], data_json: str, digest: Digest) -> bytes:
    """Return the ``.tar.gz`` of an OPA bundle of these Rego files, whose revision is the policy's digest.

    It owns the packages and the data that it brings, so that an operator's other bundles stay beside it.
    """
    packages = {found[1] for source in files.values() if (found := _PACKAGE.search(source))}
    roots = sorted(packages | set(json.loads(data_json)))
    manifest = canonical_json({"revision": digest, "roots": roots, "rego_version": 1})
    members = {".manifest": manifest, "data.json": data_json.encode()}
    members |= {path: source.encode() for path, source in sorted(files.items())}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)
