"""A second tenant of a stack: no command makes one yet."""

from typing import Any

from cli.agents import create_with
from cli.client import connect
from cli.settings import CliSettings
from cli.templates import publish_with
from control_plane.access.domain import Role
from control_plane.installation.files import ensure_client_certificate, read_authority
from shared.clock import SystemClock
from shared.ids import InstallationId
from tests.e2e.stack import TestStack


async def add_tenant(stack: TestStack, sql: Any, name: str, *, agent: str) -> CliSettings:
    """Make a tenant with one identity and an agent as the first tenant's; return what its caller connects with.

    `sql` is a connection of the database's owner. The client's certificate has the tenant's name.
    """
    installation = InstallationId(await sql.fetchval("SELECT installation FROM installation"))
    clock = SystemClock()
    identity = ensure_client_certificate(
        stack.paths, installation, read_authority(stack.paths, clock), name=name, clock=clock
    )
    await sql.execute("INSERT INTO tenants (tenant_id) VALUES ($1)", name)
    for role in (Role.AUTHOR, Role.CALLER):
        await sql.execute(
            "INSERT INTO role_bindings (tenant_id, identity, role) VALUES ($1, $2, $3)", name, identity, role
        )
    (package,) = (stack.folder / "sources").glob(f"{agent}-*")
    settings = CliSettings(data_dir=stack.paths.data_dir, target=stack.settings.target, client=name)
    async with connect(settings) as client:
        version = await publish_with(client, package)
        await create_with(client, agent, version.digest, b"{}")
    return settings
