"""The queue is one queue per tenant, each by priority and age.

Revision 0004.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_WAITING = sa.text("claimable_at IS NOT NULL")
_DUE = sa.text(
    "((claimable_at AT TIME ZONE 'UTC'::text) + priority::double precision * '00:01:00'::interval)"
)


def upgrade() -> None:
    op.add_column(
        "executions", sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.drop_index("ix_executions_queue", table_name="executions")
    op.create_index(
        "ix_executions_queue", "executions", ["tenant_id", _DUE, "execution_id"], postgresql_where=_WAITING
    )


def downgrade() -> None:
    op.drop_index("ix_executions_queue", table_name="executions")
    op.create_index(
        "ix_executions_queue", "executions", ["claimable_at", "execution_id"], postgresql_where=_WAITING
    )
    op.drop_column("executions", "priority")
