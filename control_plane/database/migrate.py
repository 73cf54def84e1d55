"""Brings a database to the newest schema, as its owner. The service itself never changes the schema.

Alembic is imported where it is used: the service only asks for the version, and would pay a tenth of its
start and 9 MB for it.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.database.engine import PoolBounds, create_engine
from control_plane.database.errors import database_errors
from shared.errors import SettingsError

if TYPE_CHECKING:
    from alembic.config import Config

SERVICE_ROLE: Final = "af_service"
"""What the control plane logs in as. It owns nothing; the first migration makes it."""

_SCRIPTS: Final = Path(__file__).parent / "migrations"
_BOUNDS: Final = PoolBounds(connections=1, statement=timedelta(minutes=10), lock=timedelta(seconds=30))

Action = Callable[["Config"], None]


async def upgrade(owner_url: str, revision: str = "head") -> None:
    """Apply all migrations up to `revision`; one transaction, so a failed one leaves nothing behind.

    Raises:
        DatabaseUnavailableError: Postgres is away or refuses the login.
        SettingsError: `owner_url` is no URL of a Postgres database.
    """
    from alembic import command  # noqa: PLC0415

    await _run(owner_url, lambda config: command.upgrade(config, revision))


async def downgrade(owner_url: str, revision: str) -> None:
    """Take back migrations down to `revision` (``base``: all).

    Raises:
        DatabaseUnavailableError: Postgres is away or refuses the login.
    """
    from alembic import command  # noqa: PLC0415

    await _run(owner_url, lambda config: command.downgrade(config, revision))


async def require_current_schema(engine: AsyncEngine) -> None:
    """Return when the database has this build's schema, or a newer one that still serves this build.

    Raises:
        DatabaseUnavailableError: Postgres is away or refuses the login.
        SettingsError: The schema is older, there is none, or it is newer and serves this build no longer.
    """
    expected = newest_revision()
    with database_errors():
        async with engine.connect() as connection:
            found = await _revision(connection)
            if found == expected:
                return
            oldest = await _oldest_served(connection) if found is not None and found > expected else None
    if oldest is None:
        raise SettingsError(
            f"the database has schema {found or 'none'}, this build needs {expected}",
            hint=f"run 'agentfactory {'migrate' if found else 'init'}' of this version, with the owner's url",
        )
    if expected < oldest:
        raise SettingsError(
            f"the database has schema {found}, which serves builds from {oldest} on; this is {expected}",
            hint="start a newer version",
        )


def newest_revision() -> str:
    """Return the revision that this build's migrations lead to: the largest number of their files."""
    return max(script.name.partition("_")[0] for script in (_SCRIPTS / "versions").glob("[0-9]*.py"))


async def _revision(connection: AsyncConnection) -> str | None:
    if await connection.scalar(text("SELECT to_regclass('alembic_version') IS NULL")):
        return None
    found = await connection.execute(text("SELECT version_num FROM alembic_version"))
    return ", ".join(sorted(found.scalars())) or None


async def _oldest_served(connection: AsyncConnection) -> str | None:
    if await connection.scalar(text("SELECT to_regclass('schema_support') IS NULL")):
        return None
    oldest: str | None = await connection.scalar(text("SELECT oldest_revision FROM schema_support"))
    return oldest


async def _run(owner_url: str, action: Action) -> None:
    from alembic.config import Config  # noqa: PLC0415

    engine = create_engine(owner_url, application="agentfactory-migrate", bounds=_BOUNDS)

    def migrate(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(_SCRIPTS))
        config.attributes["connection"] = connection
        action(config)

    try:
        with database_errors():
            async with engine.begin() as connection:
                await connection.run_sync(migrate)
    finally:
        await engine.dispose()
