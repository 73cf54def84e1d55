"""`agentfactory template …`: from an author's folder to a published version."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import channels, output
from cli.output import Json
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import AlreadyExistsError, InvalidInputError
from shared.paths import InstallationPaths

if TYPE_CHECKING:
    from agentfactory.v1 import templates_pb2

    from cli.client import Client

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build, sign and publish templates.")

app.add_typer(channels.app, name="channel")

Folder = Annotated[Path, typer.Argument(help="Folder with agent.toml.", exists=True, file_okay=False)]
Package = Annotated[Path, typer.Argument(help="NAME-VERSION.template folder.", exists=True, file_okay=False)]

AGENT_TOML = """\
[template]
name = "{name}"
version = "0.1.0"
module = "{name}.wasm"
media_type = "application/json"

[limits]
wall_ms = 1000
memory_bytes = 67108864
output_bytes = 1048576

[capabilities]

[run]
profile = "default"
retry = "unsafe"
"""

AGENT_C = """\
/* Reads the input on stdin, writes the result on stdout, logs on stderr; exit code 0 means succeeded. */
#include <stdio.h>

int main(void) {
    int c;
    unsigned long bytes = 0;
    while ((c = getchar()) != EOF) bytes++;
    printf("{\\"bytes\\":%lu}\\n", bytes);
    return 0;
}
"""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the template and its folder.")],
    parent: Annotated[Path, typer.Option("--in", help="Where to make the folder.")] = Path(),
) -> None:
    """Make a folder with agent.toml and a small C agent.

    Example: agentfactory template new counter
    """
    import re

    if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
        raise InvalidInputError(f"template name {name!r} is not [a-z][a-z0-9-]{{0,62}}")
    folder = parent / name
    if folder.exists():
        raise AlreadyExistsError(f"{folder} exists", hint="choose another name, or remove the folder")
    folder.mkdir(parents=True)
    (folder / "agent.toml").write_text(AGENT_TOML.format(name=name), encoding="utf-8")
    (folder / f"{name}.c").write_text(AGENT_C, encoding="utf-8")
    output.note(f"made {folder}; compile it with any C compiler for WASI, for example:")
    files = f"-o {folder / name}.wasm {folder / name}.c"
    print(f"python-zig cc --target=wasm32-wasi -O2 -Wl,-z,stack-size=131072 {files}")


@app.command()
def build(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="Where to write the package.")] = Path("build"),
    parent: Annotated[
        Path | None,
        typer.Option("--parent", help="Package that it extends; absent: asked of the registry.", exists=True),
    ] = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Make the unsigned package of a folder, resolved against the template that it extends.

    Example: agentfactory template build examples/redact
    Example: agentfactory template build child --parent build/base-1.0.0.template
    """
    from cli.template_parents import find_parent, line_of
    from shared.package_files import build_package, read_author, write_package

    extends = read_author(folder).extends
    inherited = None if extends is None else find_parent(extends, parent, read_settings(data_dir, target))
    package = build_package(folder, inherited)
    out.mkdir(parents=True, exist_ok=True)
    written = write_package(package, out)
    if output.wants_json():
        output.data({"package": str(written), "digest": package.digest})
        return
    output.note(f"built {package.manifest.name} {package.manifest.version} {package.digest}")
    if inherited is not None:
        output.note(f"extends {line_of(package.manifest_bytes)}")
    print(written)


@app.command()
def sign(
    package: Package,
    key: Annotated[Path | None, typer.Option("--key", help="Publisher's private key (PEM, 0600).")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Sign a package as publisher.

    Example: agentfactory template sign build/redact-1.0.0.template
    """
    from shared.key_files import read_private_key
    from shared.package_files import read_unsigned_package, write_envelope
    from shared.packages import sign_package
    from shared.signatures import FileSigner

    private = read_private_key(key or paths_of(data_dir).publisher_key)
    signed = asyncio.run(sign_package(read_unsigned_package(package), [FileSigner(key=private)]))
    write_envelope(package, signed.envelope)
    if output.wants_json():
        output.data({"package": str(package), "publisher_key_id": private.key_id})
        return
    output.note(f"signed by {private.key_id}")
    print(package)


def paths_of(data_dir: Path | None) -> InstallationPaths:
    return InstallationPaths(data_dir=read_settings(data_dir).data_dir)


@app.command()
def verify(
    package: Package,
    key: Annotated[Path | None, typer.Option("--key", help="Publisher's public key (PEM).")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Check a package as control plane and nodes do, offline; that it narrows its parent is checked there.

    Example: agentfactory template verify PACKAGE
    """
    from shared.inheritance import path_of, require_line
    from shared.key_files import read_public_key
    from shared.package_files import read_signed_package
    from shared.packages import verify_manifest, verify_package

    public = read_public_key(key or paths_of(data_dir).publisher_public_key)
    signed, trusted = read_signed_package(package), {public.key_id: public}
    verified = verify_manifest(signed.envelope, publisher_keys=trusted)
    manifest = verified.manifest
    require_line(manifest)
    module = "its own"
    if signed.blobs or not manifest.extends:
        _check_module(verify_package(signed.envelope, signed.blobs, publisher_keys=trusted).module)
    else:
        module = f"of a parent: {manifest.module.digest}"
    if output.wants_json():
        output.data({"verified": True, "digest": verified.digest, "publisher_key_id": public.key_id})
        return
    output.fields(
        [
            ("verified", f"{manifest.name} {manifest.version}"),
            ("digest", verified.digest),
            ("publisher", public.key_id),
            ("extends", path_of(manifest) if manifest.extends else ""),
            ("module", module if manifest.extends else ""),
        ]
    )


def _check_module(module: bytes) -> None:
    import agentfactory_engine

    from shared.errors import ModuleInvalidError
    from shared.manifest import MAX_MODULE_BYTES

    try:
        agentfactory_engine.validate_module(module, max_bytes=MAX_MODULE_BYTES)
    except agentfactory_engine.InvalidModuleError as error:
        raise ModuleInvalidError(str(error)) from error


@app.command()
def publish(package: Package, data_dir: DataDir = None, target: Target = None, as_json: Json = False) -> None:
    """Send a signed package to the registry.

    Example: agentfactory template publish PACKAGE
    """
    version = publish_package(read_settings(data_dir, target), package)
    if output.wants_json():
        output.message(version)
        return
    output.note(f"published {version.name} {version.version}")
    print(version.digest)


def publish_package(settings: CliSettings, package: Path) -> "templates_pb2.TemplateVersion":
    from cli.client import call

    return call(settings, lambda client: publish_with(client, package))


async def publish_with(client: "Client", package: Path) -> "templates_pb2.TemplateVersion":
    """Send a signed package: its envelope, then its module in chunks."""
    from agentfactory.v1 import templates_pb2

    from cli.client import CHUNK_BYTES
    from shared.package_files import read_signed_package

    signed = read_signed_package(package)
    module = b"".join(signed.blobs.values())

    async def parts() -> AsyncIterator[templates_pb2.PublishTemplateRequest]:
        header = templates_pb2.PublishTemplateHeader(envelope=signed.envelope)
        yield templates_pb2.PublishTemplateRequest(header=header)
        for start in range(0, len(module), CHUNK_BYTES):
            chunk = templates_pb2.ModuleChunk(data=module[start : start + CHUNK_BYTES])
            yield templates_pb2.PublishTemplateRequest(chunk=chunk)

    answer = await client.templates.PublishTemplate(parts(), timeout=client.timeout)
    return answer.template_version


def reference(text: str) -> "templates_pb2.TemplateRef":
    """Parse NAME@VERSION, NAME@CHANNEL, or a digest. A version begins with a digit, a channel never does.

    Raises:
        InvalidInputError: It is neither.
    """
    from agentfactory.v1 import templates_pb2

    if text.startswith("sha256:"):
        return templates_pb2.TemplateRef(digest=text)
    name, _, version = text.partition("@")
    if not name or not version:
        raise InvalidInputError(f"template {text!r} is none of NAME@VERSION, NAME@CHANNEL, sha256:…")
    if not version[0].isdigit():
        return templates_pb2.TemplateRef(name=name, channel=version)
    return templates_pb2.TemplateRef(name=name, version=version)


@app.command("list")
def list_templates(
    name: Annotated[str, typer.Option("--name", help="Only versions of this template.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List published versions.

    Example: agentfactory template list --name redact
    """
    from agentfactory.v1 import common_pb2, templates_pb2

    from cli.client import Client, call

    async def use(client: Client) -> templates_pb2.ListTemplatesResponse:
        request = templates_pb2.ListTemplatesRequest(name=name, page=common_pb2.PageRequest(page_size=limit))
        return await client.templates.ListTemplates(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("name", "version", "state", "digest", "published"),
        [
            (
                each.name,
                each.version,
                output.enum(templates_pb2.TemplateState.Name(each.state)),
                each.digest,
                output.time(each.published_at),
            )
            for each in answer.template_versions
        ],
        empty="no template is published yet",
    )


@app.command()
def show(
    template: Annotated[str, typer.Argument(help="NAME@VERSION or digest.")],
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show one version and its manifest.

    Example: agentfactory template show redact@1.0.0
    """
    from agentfactory.v1 import templates_pb2

    from cli.client import Client, call
    from cli.template_parents import line_of

    async def use(client: Client) -> templates_pb2.TemplateVersion:
        request = templates_pb2.GetTemplateRequest(template=reference(template))
        return (await client.templates.GetTemplate(request, timeout=client.timeout)).template_version

    version = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(version)
        return
    output.fields(
        [
            ("name", version.name),
            ("version", version.version),
            ("state", output.enum(templates_pb2.TemplateState.Name(version.state))),
            ("digest", version.digest),
            ("module", f"{version.module_digest} ({version.module_bytes} bytes)"),
            ("publisher", version.publisher_key_id),
            ("published", f"{output.time(version.published_at)} by {version.published_by}"),
            ("extends", line_of(version.manifest)),
            ("manifest", version.manifest.decode()),
        ]
    )


def _change_state(verb: str, template: str, settings: CliSettings, reason: str = "") -> None:
    from agentfactory.v1 import templates_pb2

    from cli.client import Client, call

    async def use(client: Client) -> templates_pb2.TemplateVersion:
        ref = reference(template)
        if verb == "retired":
            retire_request = templates_pb2.RetireTemplateRequest(template=ref)
            retired = await client.templates.RetireTemplate(retire_request, timeout=client.timeout)
            return retired.template_version
        revoke_request = templates_pb2.RevokeTemplateRequest(template=ref, reason=reason)
        revoked = await client.templates.RevokeTemplate(revoke_request, timeout=client.timeout)
        return revoked.template_version

    version = call(settings, use)
    if output.wants_json():
        output.message(version)
        return
    output.note(f"{verb} {version.name} {version.version}")


@app.command()
def retire(
    template: Annotated[str, typer.Argument(help="NAME@VERSION or digest.")],
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Close a version: nothing new starts, what waits ends, what runs goes on.

    Example: agentfactory template retire redact@1.0.0
    """
    _change_state("retired", template, read_settings(data_dir, target))


@app.command()
def revoke(
    template: Annotated[str, typer.Argument(help="NAME@VERSION or digest.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")],
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Forbid a version at once and stop what runs.

    Example: agentfactory template revoke redact@1.0.0 --reason leak
    """
    _change_state("revoked", template, read_settings(data_dir, target), reason)
