"""Engines that are denied, and what a stop was made of: a replica of the build before passes both over."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"


def upgrade() -> None:
    """Add the table and the column."""
    op.create_table(
        "engine_denials",
        sa.Column("engine_name", sa.Text(), nullable=False),
        sa.Column("engine_version", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("engine_config_digest", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("denied_by", sa.Text(), nullable=False),
        sa.Column("denied_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint(
            "engine_name", "engine_version", "engine_config_digest", name=op.f("pk_engine_denials")
        ),
    )
    op.execute(f"GRANT SELECT, INSERT, DELETE ON engine_denials TO {SERVICE_ROLE}")
    op.add_column("stops", sa.Column("evidence", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Remove both."""
    op.drop_column("stops", "evidence")
    op.drop_table("engine_denials")
