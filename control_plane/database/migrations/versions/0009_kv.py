"""Values that agents keep between their runs, and recordings of host calls beside outputs.

Revision 0009. Expand only: a replica of the build before works on beside it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"


def upgrade() -> None:
    op.create_table(
        "kv_entries",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("written_by", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "agent_id", "key", name=op.f("pk_kv_entries")),
    )
    # The same keys are written again and again.
    op.execute("ALTER TABLE kv_entries SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02)")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON kv_entries TO {SERVICE_ROLE}")
    op.add_column("agents", sa.Column("kv_keys", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "agents", sa.Column("kv_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("executions", sa.Column("recording_body_id", sa.Text(), nullable=True))
    op.add_column("executions", sa.Column("recording_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("executions", "recording_bytes")
    op.drop_column("executions", "recording_body_id")
    op.drop_column("agents", "kv_bytes")
    op.drop_column("agents", "kv_keys")
    op.drop_table("kv_entries")
