"""What a template that is built extends: a package on the disk, or a version in the registry."""

import json
from pathlib import Path

from cli.settings import CliSettings
from shared.errors import NotFoundError, ParentMissingError
from shared.inheritance import Parent
from shared.manifest import TemplateName
from shared.package_files import read_unsigned_package


def find_parent(name: TemplateName, package: Path | None, settings: CliSettings) -> Parent:
    """Return the parent of this name: the package where one is given, else what is published.

    Raises:
        ParentMissingError: None is published.
        NotFoundError, VerificationError: The package cannot be read.
    """
    return _published(settings, name) if package is None else _packed(package)


def line_of(manifest: bytes) -> str:
    """Return the ancestors that a manifest names, the nearest first; empty: it has none."""
    extends = json.loads(manifest).get("extends", [])
    return " → ".join(f"{one['name']}@{one['version']}" for one in extends)


def _packed(package: Path) -> Parent:
    """Return what a package on the disk is; publishing it checks that the registry has the same."""
    return Parent.of(read_unsigned_package(package).manifest_bytes)


def _published(settings: CliSettings, name: TemplateName) -> Parent:
    """Return the published version of this name.

    Raises:
        ParentMissingError: There is none.
    """
    from agentfactory.v1 import templates_pb2

    from cli.client import Client, call

    async def use(client: Client) -> bytes:
        ref = templates_pb2.TemplateRef(name=name.name, version=name.version)
        request = templates_pb2.GetTemplateRequest(template=ref)
        answer = await client.templates.GetTemplate(request, timeout=client.timeout)
        return answer.template_version.manifest

    try:
        return Parent.of(call(settings, use))
    except NotFoundError as error:
        raise ParentMissingError(f"{name} is not published here") from error
