"""A furnished Postgres of each supported version."""

from tests.integration.executions.conftest import world

__all__ = ["world"]
