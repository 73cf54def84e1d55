"""Generates protos/gen from protos/agentfactory, lints it and finds breaking changes. Never edits a .proto.

python protos/generate.py             write protos/gen
python protos/generate.py --check     exit 1 when protos/gen is not what the sources give
python protos/generate.py --lint BUF  buf lint, buf format, buf breaking against released.binpb
python protos/generate.py --release   make today's contract the one that must not break
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from protovalidate._gen.buf.validate import validate_pb

PROTOS = Path(__file__).resolve().parent
GENERATED = PROTOS / "gen"
RELEASED = PROTOS / "released.binpb"
SOURCES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("agentfactory/v1/*.proto"))
VALIDATE = "buf/validate/validate.proto"


def write_validate_descriptor(folder: Path) -> Path:
    """Write validate.proto and what it imports as a FileDescriptorSet: its text ships in no wheel."""
    descriptors = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(descriptors.file.add())
    descriptors.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    path = folder / "validate.binpb"
    path.write_bytes(descriptors.SerializeToString())
    return path


def protoc(*arguments: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        descriptors = write_validate_descriptor(Path(folder))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                "-I.",
                f"--descriptor_set_in={descriptors}",
                *arguments,
            ],
            check=True,
            cwd=PROTOS,
            env={**os.environ, "PATH": path},
            stderr=subprocess.DEVNULL if "--mypy_out" in " ".join(arguments) else None,
        )


def generate(folder: Path) -> None:
    """Write the Python modules and their typed stubs below ``folder``."""
    protoc(
        *(f"--{plugin}_out={folder}" for plugin in ("python", "mypy", "grpc_python", "mypy_grpc")), *SOURCES
    )
    protoc(f"--python_out={folder}", f"--mypy_out={folder}", VALIDATE)
    # protoc writes an empty _grpc pair for a file without a service.
    for stub in folder.rglob("*_pb2_grpc.py"):
        if "Servicer" not in stub.read_text(encoding="utf-8"):
            stub.unlink()
            stub.with_suffix(".pyi").unlink()
    for package in ("agentfactory/v1", "buf/validate"):
        (folder / package / "py.typed").touch()


def write_descriptors(path: Path) -> None:
    protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={path}", *SOURCES)


def differences(left: filecmp.dircmp[str]) -> Iterator[str]:
    yield from (f"{left.left}/{name}" for name in left.left_only + left.diff_files)
    yield from (f"{left.right}/{name}" for name in left.right_only if name != "__pycache__")
    for sub in left.subdirs.values():
        yield from differences(sub)


def check() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        drifted = sorted(differences(filecmp.dircmp(folder, GENERATED, ignore=["__pycache__"])))
    for name in drifted:
        print(f"generated code differs: {name}; run 'make proto' and commit protos/gen", file=sys.stderr)
    return 1 if drifted else 0


def lint(buf: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "contract.binpb"
        write_descriptors(image)
        commands = [
            [buf, "lint", str(image)],
            [buf, "format", "--diff", "--exit-code", ".", "--path", "agentfactory"],
            [buf, "breaking", str(image), "--against", str(RELEASED)],
        ]
        return max(subprocess.run(command, check=False, cwd=PROTOS).returncode for command in commands)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true")
    action.add_argument("--lint", metavar="BUF")
    action.add_argument("--release", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    if arguments.lint:
        return lint(arguments.lint)
    if arguments.release:
        write_descriptors(RELEASED)
        return 0
    for package in ("agentfactory", "buf"):
        shutil.rmtree(GENERATED / package, ignore_errors=True)
    generate(GENERATED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
