"""A tenant may have quotas of its own.

Revision 0005.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("max_pending", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("executions_per_minute", sa.Integer(), nullable=True))
    op.create_check_constraint(
        op.f("ck_tenants_quotas"), "tenants", "max_pending > 0 AND executions_per_minute > 0"
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_tenants_quotas"), "tenants", type_="check")
    op.drop_column("tenants", "executions_per_minute")
    op.drop_column("tenants", "max_pending")
