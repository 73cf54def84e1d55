"""`agentfactory access …`: who may do what."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, Target, read_settings

if TYPE_CHECKING:
    from agentfactory.v1 import access_pb2

ROLES = ("viewer", "caller", "author", "operator", "auditor", "admin")
Identity = Annotated[
    str, typer.Argument(help="spiffe://…/caller/NAME, oidc:ISSUER/SUBJECT or group:ISSUER/GROUP")
]
RoleName = Annotated[str, typer.Argument(help=" | ".join(ROLES))]
Tenant = Annotated[str, typer.Option("--tenant", help="Another tenant than the caller's.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Tokens, roles and who holds them.")


@app.command()
def token(
    minutes: Annotated[float, typer.Option("--ttl", min=0.1, max=1440, help="Life in minutes.")] = 60.0,
    tenant: Annotated[str, typer.Option("--tenant", help="The one tenant that it counts in.")] = "",
    subject: Annotated[
        str | None, typer.Option("--subject", help="Who it names; default: the client's name.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Sign a bearer token with the key in the data folder; it names oidc:local/SUBJECT.

    Example: agentfactory access token --ttl 15
    """
    from cli.local_token import make_token
    from shared.local_tokens import identity_of
    from shared.paths import InstallationPaths

    settings = read_settings(data_dir)
    name = subject or settings.client
    made = make_token(
        InstallationPaths(data_dir=settings.data_dir),
        subject=name,
        life=timedelta(minutes=minutes),
        tenant=tenant,
    )
    if output.wants_json():
        output.data({"token": made, "identity": identity_of(name), "tenant": tenant})
        return
    output.note(f"names {identity_of(name)}, valid for {minutes:g} minutes")
    print(made)


@app.command("break-glass")
def break_glass(
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded at every use.")],
    minutes: Annotated[float, typer.Option("--ttl", min=0.1, max=60, help="Life in minutes.")] = 15.0,
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant to act in; default: 'default'.")] = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Sign a token for an emergency with the key in the data folder: its bearer is an administrator.

    Needs no binding and no control plane. Every use leaves an audit entry, a warning and a metric.

    Example: agentfactory access break-glass --reason "identity provider is down, incident 42"
    """
    from cli.local_token import make_break_glass_token
    from shared.paths import InstallationPaths

    settings = read_settings(data_dir)
    made = make_break_glass_token(
        InstallationPaths(data_dir=settings.data_dir),
        subject=settings.client,
        life=timedelta(minutes=minutes),
        reason=reason,
        tenant=tenant,
    )
    if output.wants_json():
        output.data({"token": made, "reason": reason})
        return
    output.note(f"administrator for {minutes:g} minutes; use it as AF_CLI_TOKEN; every use is recorded")
    print(made)


@app.command()
def whoami(data_dir: DataDir = None, target: Target = None, as_json: Json = False) -> None:
    """Show who the control plane takes this client for, and what it holds.

    Example: agentfactory access whoami
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    async def use(client: Client) -> access_pb2.GetCallerIdentityResponse:
        request = access_pb2.GetCallerIdentityRequest()
        return await client.access.GetCallerIdentity(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.fields(
        [("identity", answer.identity), ("groups", ", ".join(answer.groups)), ("tenant", answer.tenant_id)]
    )
    output.table(
        ("tenant", "roles"),
        [(each.tenant_id, ", ".join(map(role_name, each.roles))) for each in answer.held],
        empty="it holds no role",
    )


@app.command()
def bind(
    identity: Identity,
    role: RoleName,
    tenant: Tenant = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Give an identity or a group a role; a repeat changes nothing.

    Example: agentfactory access bind group:corp/agents caller
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    request = access_pb2.CreateRoleBindingRequest(identity=identity, role=role_value(role), tenant_id=tenant)

    async def use(client: Client) -> access_pb2.RoleBinding:
        return (await client.access.CreateRoleBinding(request, timeout=client.timeout)).role_binding

    _show_binding(call(read_settings(data_dir, target), use))


@app.command()
def unbind(
    identity: Identity,
    role: RoleName,
    tenant: Tenant = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Take a role back; it is gone everywhere within a second.

    Example: agentfactory access unbind oidc:corp/alice author
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    request = access_pb2.DeleteRoleBindingRequest(identity=identity, role=role_value(role), tenant_id=tenant)

    async def use(client: Client) -> access_pb2.DeleteRoleBindingResponse:
        return await client.access.DeleteRoleBinding(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
    else:
        output.note(f"{identity} is no {role} any more")


@app.command("list")
def list_bindings(
    identity: Annotated[str, typer.Option("--identity", help="Of this identity or group only.")] = "",
    tenant: Tenant = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    page: Annotated[str, typer.Option("--page", help="next_page_token of the page before.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List who holds which role.

    Example: agentfactory access list
    """
    from agentfactory.v1 import access_pb2, common_pb2

    from cli.client import Client, call

    request = access_pb2.ListRoleBindingsRequest(
        page=common_pb2.PageRequest(page_size=limit, page_token=page), identity=identity, tenant_id=tenant
    )

    async def use(client: Client) -> access_pb2.ListRoleBindingsResponse:
        return await client.access.ListRoleBindings(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("tenant", "identity", "role", "since", "given by"),
        [
            (one.tenant_id, one.identity, role_name(one.role), output.time(one.created_at), one.created_by)
            for one in answer.role_bindings
        ],
        empty="nobody holds a role",
    )
    if answer.next_page_token:
        output.note(f"more: --page {answer.next_page_token}")


@app.command()
def explain(
    who: Identity,
    what: Annotated[str, typer.Argument(help="Method, such as AgentService/GetAgent.")],
    group: Annotated[
        list[str] | None, typer.Option("--group", help="Group of its token; repeatable.")
    ] = None,
    tenant: Tenant = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Tell whether WHO may call WHAT, by which binding, or what is missing; exit 3 when it may not.

    Example: agentfactory access explain oidc:corp/alice ExecutionService/Execute --group group:corp/agents
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    request = access_pb2.ExplainAccessRequest(identity=who, method=what, groups=group or [], tenant_id=tenant)

    async def use(client: Client) -> access_pb2.ExplainAccessResponse:
        return await client.access.ExplainAccess(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
    else:
        output.fields(
            [
                ("allowed", "yes" if answer.allowed else "no"),
                ("method", answer.method),
                ("tenant", answer.tenant_id),
                ("needs one of", ", ".join(map(role_name, answer.needed))),
                ("why", answer.reason),
            ]
        )
    raise typer.Exit(output.OK if answer.allowed else output.REFUSED)


@app.command()
def bootstrap(
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Make this client the first administrator by the secret that `init` printed; read from stdin.

    Example: agentfactory access bootstrap < secret.txt
    """
    import sys

    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    if sys.stdin.isatty():
        output.note("paste the secret, then Enter:")
    secret = sys.stdin.readline(MAX_SECRET_CHARS).strip()

    async def use(client: Client) -> access_pb2.RoleBinding:
        request = access_pb2.ExchangeBootstrapSecretRequest(secret=secret)
        return (await client.access.ExchangeBootstrapSecret(request, timeout=client.timeout)).role_binding

    _show_binding(call(read_settings(data_dir, target), use))


MAX_SECRET_CHARS = 1024


def role_value(name: str) -> "access_pb2.Role.ValueType":
    """Return the role of this name.

    Raises:
        InvalidInputError: There is none.
    """
    from agentfactory.v1 import access_pb2

    from shared.errors import InvalidInputError

    if name not in ROLES:
        raise InvalidInputError(f"there is no role {name!r}", hint="one of " + ", ".join(ROLES))
    return access_pb2.Role.Value(f"ROLE_{name.upper()}")


def role_name(value: "access_pb2.Role.ValueType") -> str:
    from agentfactory.v1 import access_pb2

    return access_pb2.Role.Name(value).removeprefix("ROLE_").lower()


def _show_binding(binding: "access_pb2.RoleBinding") -> None:
    if output.wants_json():
        output.message(binding)
    else:
        output.note(f"{binding.identity} is {role_name(binding.role)} in tenant {binding.tenant_id}")
