"""`agentfactory tenant …`: whom everything belongs to. For administrators of the tenant "default"."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, Target, read_settings

if TYPE_CHECKING:
    from agentfactory.v1 import access_pb2

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make and change tenants.")

TenantName = Annotated[str, typer.Argument(help="Lower-case letters, digits and dashes.")]
DisplayName = Annotated[str | None, typer.Option("--display-name", help="What people call it.")]
MaxPending = Annotated[
    int | None, typer.Option("--max-pending", min=0, help="Executions that may wait; 0: as the settings say.")
]
PerMinute = Annotated[
    int | None, typer.Option("--per-minute", min=0, help="Executions accepted a minute; 0: as settings say.")
]


LlmTokens = Annotated[
    int | None, typer.Option("--llm-tokens", min=0, help="Of language models, a day; 0: as settings say.")
]
LlmCost = Annotated[
    int | None,
    typer.Option("--llm-cost-micros", min=0, help="Their cost a day, in millionths; 0: as settings say."),
]


EncryptBodies = Annotated[
    bool | None,
    typer.Option(
        "--encrypt-bodies/--no-encrypt-bodies",
        help="Store inputs, outputs, logs and recordings encrypted from now on.",
    ),
]


@app.command()
def create(
    tenant: TenantName,
    display_name: DisplayName = None,
    max_pending: MaxPending = None,
    per_minute: PerMinute = None,
    llm_tokens: LlmTokens = None,
    llm_cost_micros: LlmCost = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Make a tenant; bind its first administrator with 'access bind --tenant'.

    Example: agentfactory tenant create red --max-pending 1000
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    request = access_pb2.CreateTenantRequest(
        tenant_id=tenant,
        display_name=display_name or "",
        max_pending=max_pending or 0,
        executions_per_minute=per_minute or 0,
        llm_tokens_per_day=llm_tokens or 0,
        llm_cost_micros_per_day=llm_cost_micros or 0,
    )

    async def use(client: Client) -> access_pb2.Tenant:
        return (await client.access.CreateTenant(request, timeout=client.timeout)).tenant

    _show(call(read_settings(data_dir, target), use))


@app.command("list")
def list_tenants(
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    page: Annotated[str, typer.Option("--page", help="next_page_token of the page before.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List tenants.

    Example: agentfactory tenant list
    """
    from agentfactory.v1 import access_pb2, common_pb2

    from cli.client import Client, call

    request = access_pb2.ListTenantsRequest(page=common_pb2.PageRequest(page_size=limit, page_token=page))

    async def use(client: Client) -> access_pb2.ListTenantsResponse:
        return await client.access.ListTenants(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.table(
        ("tenant", "name", "may wait", "per minute", "since"),
        [
            (
                one.tenant_id,
                one.display_name,
                str(one.max_pending or ""),
                str(one.executions_per_minute or ""),
                output.time(one.created_at),
            )
            for one in answer.tenants
        ],
        empty="there is no tenant",
    )
    if answer.next_page_token:
        output.note(f"more: --page {answer.next_page_token}")


@app.command()
def show(
    tenant: Annotated[str, typer.Argument(help="Default: the caller's.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show a tenant.

    Example: agentfactory tenant show
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    async def use(client: Client) -> access_pb2.Tenant:
        request = access_pb2.GetTenantRequest(tenant_id=tenant)
        return (await client.access.GetTenant(request, timeout=client.timeout)).tenant

    _show(call(read_settings(data_dir, target), use))


@app.command()
def update(
    tenant: TenantName,
    display_name: DisplayName = None,
    max_pending: MaxPending = None,
    per_minute: PerMinute = None,
    encrypt_bodies: EncryptBodies = None,
    llm_tokens: LlmTokens = None,
    llm_cost_micros: LlmCost = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Change what is named of a tenant.

    Example: agentfactory tenant update red --per-minute 600 --encrypt-bodies
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    request = access_pb2.UpdateTenantRequest(
        tenant_id=tenant,
        display_name=display_name,
        max_pending=max_pending,
        executions_per_minute=per_minute,
        encrypt_bodies=encrypt_bodies,
        llm_tokens_per_day=llm_tokens,
        llm_cost_micros_per_day=llm_cost_micros,
    )

    async def use(client: Client) -> access_pb2.Tenant:
        return (await client.access.UpdateTenant(request, timeout=client.timeout)).tenant

    _show(call(read_settings(data_dir, target), use))


@app.command("rotate-key")
def rotate_key(
    tenant: Annotated[str, typer.Argument(help="Default: the caller's.")] = "",
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Make the key that new bodies of a tenant are encrypted with; older bodies stay readable.

    Example: agentfactory tenant rotate-key red
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    async def use(client: Client) -> access_pb2.RotateBodyKeyResponse:
        request = access_pb2.RotateBodyKeyRequest(tenant_id=tenant)
        return await client.access.RotateBodyKey(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
    else:
        print(answer.body_key_id)


@app.command("erase-key")
def erase_key(
    tenant: TenantName,
    reason: Annotated[str, typer.Option("--reason", help="Who asked for it, and why; kept on record.")],
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Destroy all keys of a tenant's bodies, for good: what they encrypted is erased, in backups too.

    Example: agentfactory tenant erase-key red --reason "contract ended"
    """
    from agentfactory.v1 import access_pb2

    from cli.client import Client, call

    async def use(client: Client) -> access_pb2.EraseBodyKeysResponse:
        request = access_pb2.EraseBodyKeysRequest(tenant_id=tenant, reason=reason)
        return await client.access.EraseBodyKeys(request, timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.data({"keys": answer.keys})
    else:
        print(f"destroyed {answer.keys} keys; what they encrypted is erased")


def _show(tenant: "access_pb2.Tenant") -> None:
    if output.wants_json():
        output.message(tenant)
        return
    output.fields(
        [
            ("tenant", tenant.tenant_id),
            ("name", tenant.display_name),
            ("may wait", tenant.max_pending or "as the settings say"),
            ("per minute", tenant.executions_per_minute or "as the settings say"),
            ("model tokens a day", tenant.llm_tokens_per_day or "as the settings say"),
            ("model cost a day", tenant.llm_cost_micros_per_day or "as the settings say"),
            ("bodies", "encrypted" if tenant.encrypt_bodies else "plain"),
            ("since", output.time(tenant.created_at)),
        ]
    )
