"""Keys, their custody and freshness.

Revision 0012. Expand only: a replica of the build before works on beside it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"


def upgrade() -> None:
    op.create_table(
        "freshness",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("ck_freshness_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_freshness")),
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON freshness TO {SERVICE_ROLE}")


def downgrade() -> None:
    op.drop_table("freshness")
