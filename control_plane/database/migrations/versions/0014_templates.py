"""Which versions a template extends, so that they are found when one of them is retired or revoked.

Revision 0014. Expand only: a replica of the build before works on beside it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "template_versions",
        sa.Column("ancestors", ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    )
    op.create_index(
        op.f("ix_template_versions_ancestors"), "template_versions", ["ancestors"], postgresql_using="gin"
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_template_versions_ancestors"), "template_versions")
    op.drop_column("template_versions", "ancestors")
