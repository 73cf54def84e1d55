"""Which builds a schema still serves, so that the version before works on while the next one is tried.

Revision 0023. A migration that only adds leaves the row alone. One that takes away what an older build needs
sets `oldest_revision` to the revision of the oldest build that does without it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

# The service's login, and what it works as (revision 0022).
SERVICE_ROLES = "af_service, af_tenant, af_dispatch"


def upgrade() -> None:
    """Make the row."""
    op.create_table(
        "schema_support",
        sa.Column("singleton", sa.Boolean(), primary_key=True, server_default=sa.text("true")),
        sa.Column("oldest_revision", sa.Text(), nullable=False),
        sa.CheckConstraint("singleton", name="singleton"),
    )
    # Builds of earlier revisions ask for exactly their own.
    op.execute("INSERT INTO schema_support (oldest_revision) VALUES ('0023')")
    op.execute(f"GRANT SELECT ON schema_support TO {SERVICE_ROLES}")


def downgrade() -> None:
    """Builds of before ask for exactly their own schema."""
    op.drop_table("schema_support")
